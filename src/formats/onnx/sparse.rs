//! Sparse tensors of ONNX files, made dense.

use super::external::ExternalFiles;
use super::proto::SparseTensorProto;
use super::tensor::{TensorProtoError, decode, dims_of};
use crate::tensor::{DType, Tensor, pack_bits, unpack_bits};

/// A dense tensor of at most this many bytes is always made.
const ALWAYS: usize = 1 << 30;
/// A larger one only if the file holds at least this part of it.
const PART: usize = 16;

/// The dense form of a sparse tensor, zeros where the file has nothing.
///
/// # Errors
/// Indices out of range or not ascending, parts that do not fit together, or a dense size far past what the file holds.
pub fn decode_sparse(proto: &SparseTensorProto, files: &ExternalFiles) -> Result<Tensor, TensorProtoError> {
    let name = proto.values.as_ref().map_or("", |v| v.name());
    dense(proto, files).map_err(|what| TensorProtoError { name: name.into(), what })
}

fn dense(proto: &SparseTensorProto, files: &ExternalFiles) -> Result<Tensor, String> {
    let shape = dims_of(&proto.dims)?;
    let part = |p: &Option<_>, what: &str| p.clone().ok_or_else(|| format!("a sparse tensor without {what}"));
    let values = decode(&mut part(&proto.values, "values")?, files).map_err(|e| format!("values: {}", e.what))?.0;
    let indices = decode(&mut part(&proto.indices, "indices")?, files).map_err(|e| format!("indices: {}", e.what))?.0;
    let [nnz] = values.shape()[..] else {
        return Err(format!("values must have one dim, found {}{}", values.dtype(), values.shape()));
    };
    let len = crate::tensor::checked_len(&shape).ok_or_else(|| format!("the size of {shape} does not fit 63 bits"))?;
    if indices.dtype() != DType::I64 {
        return Err(format!("indices must be int64, found {}", indices.dtype()));
    }
    let places = match indices.shape()[..] {
        [n] if n == nnz => linear(&indices.to_i64s().map_err(|e| e.to_string())?, len)?,
        [n, rank] if n == nnz && rank == shape.len() => coordinates(&indices.to_i64s().map_err(|e| e.to_string())?, &shape)?,
        _ => return Err(format!("indices must be [{nnz}] or [{nnz},{}], found {}", shape.len(), indices.shape())),
    };
    if let Some(w) = places.windows(2).find(|w| w[0] >= w[1]) {
        return Err(format!("indices must ascend, found element {} after {}", w[1], w[0]));
    }
    // A string takes its own header at least.
    let unit = values.dtype().size().unwrap_or(if values.dtype() == DType::String { size_of::<String>() } else { 1 });
    let bytes = len.saturating_mul(unit);
    if bytes > ALWAYS && bytes / PART > nnz.saturating_mul(unit) {
        return Err(format!("{}{shape} would take {bytes} bytes when dense, for {nnz} stored elements", values.dtype()));
    }
    scatter(&values, &places, &shape, len).map_err(|e| e.to_string())
}

fn linear(indices: &[i64], len: usize) -> Result<Vec<usize>, String> {
    let one =
        |&i: &i64| usize::try_from(i).ok().filter(|&i| i < len).ok_or_else(|| format!("index {i} is out of range for {len} elements"));
    indices.iter().map(one).collect()
}

fn coordinates(indices: &[i64], shape: &[usize]) -> Result<Vec<usize>, String> {
    if shape.is_empty() {
        return Err("coordinates of a tensor without dims".into());
    }
    let one = |c: &[i64]| {
        c.iter().zip(shape).enumerate().try_fold(0usize, |at, (axis, (&i, &dim))| match usize::try_from(i) {
            Ok(i) if i < dim => Ok(at * dim + i),
            _ => Err(format!("index {i} is out of range for dim {axis}, {dim}")),
        })
    };
    indices.chunks_exact(shape.len()).map(one).collect()
}

fn scatter(values: &Tensor, places: &[usize], shape: &[usize], len: usize) -> Result<Tensor, crate::tensor::TensorError> {
    let dtype = values.dtype();
    if dtype == DType::String {
        let mut all = vec![String::new(); len];
        for (text, &at) in values.as_slice::<String>()?.iter().zip(places) {
            all[at].clone_from(text);
        }
        return Tensor::new(shape, all);
    }
    let bytes = values.bytes().unwrap_or_default();
    if let Some(size) = dtype.size() {
        let mut all = vec![0u8; len * size];
        for (element, &at) in bytes.chunks_exact(size).zip(places) {
            all[at * size..(at + 1) * size].copy_from_slice(element);
        }
        return Ok(Tensor::from_bytes(dtype, shape, all)?.aligned());
    }
    let mut codes = vec![0u8; len];
    for (code, &at) in unpack_bits(bytes, dtype.bits(), places.len()).into_iter().zip(places) {
        codes[at] = code;
    }
    Tensor::from_vec_as(dtype, shape, pack_bits(&codes, dtype.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::TensorProto;

    fn sparse(dims: &[i64], values: &[f32], index_dims: &[i64], indices: &[i64]) -> SparseTensorProto {
        SparseTensorProto {
            values: Some(TensorProto {
                name: Some("s".into()),
                dims: vec![values.len() as i64],
                data_type: Some(1),
                float_data: values.to_vec(),
                ..Default::default()
            }),
            indices: Some(TensorProto {
                dims: index_dims.to_vec(),
                data_type: Some(7),
                int64_data: indices.to_vec(),
                ..Default::default()
            }),
            dims: dims.to_vec(),
        }
    }

    fn check(proto: &SparseTensorProto) -> String {
        decode_sparse(proto, &ExternalFiles::none()).map_or_else(|e| e.to_string(), |t| format!("{t:?}"))
    }

    #[test]
    fn linear_and_coordinate_indices_mean_the_same() {
        let want = "float32[2,3] [0.0, 5.0, 0.0, 0.0, 0.0, 7.0]";
        assert_eq!(check(&sparse(&[2, 3], &[5.0, 7.0], &[2], &[1, 5])), want);
        assert_eq!(check(&sparse(&[2, 3], &[5.0, 7.0], &[2, 2], &[0, 1, 1, 2])), want);
        assert_eq!(check(&sparse(&[2], &[], &[0], &[])), "float32[2] [0.0, 0.0]");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let err = |p| check(&p).trim_start_matches("tensor \"s\": ").to_string();
        assert_eq!(err(sparse(&[4], &[1.0], &[1], &[1 << 40])), "index 1099511627776 is out of range for 4 elements");
        assert_eq!(err(sparse(&[4], &[1.0], &[1], &[-1])), "index -1 is out of range for 4 elements");
        assert_eq!(err(sparse(&[2, 2], &[1.0], &[1, 2], &[0, 2])), "index 2 is out of range for dim 1, 2");
        assert_eq!(err(sparse(&[4], &[1.0, 2.0], &[2], &[1, 1])), "indices must ascend, found element 1 after 1");
        assert_eq!(err(sparse(&[4], &[1.0, 2.0], &[1], &[1])), "indices must be [2] or [2,1], found [1]");
        assert_eq!(
            err(sparse(&[1 << 40], &[1.0], &[1], &[1])),
            "float32[1099511627776] would take 4398046511104 bytes when dense, for 1 stored elements"
        );
        assert_eq!(err(sparse(&[1 << 40, 1 << 40], &[1.0], &[1], &[1])), "the size of [1099511627776,1099511627776] does not fit 63 bits");
        assert_eq!(err(sparse(&[-2], &[1.0], &[1], &[1])), "dim 0 of [-2] is negative");
        assert_eq!(err(SparseTensorProto { values: None, ..sparse(&[4], &[], &[0], &[]) }), "tensor \"\": a sparse tensor without values");
    }

    #[test]
    fn packed_elements_scatter_too() {
        let mut proto = sparse(&[4], &[], &[2], &[1, 3]);
        proto.values = Some(TensorProto { dims: vec![2], data_type: Some(22), int32_data: vec![0x7f], ..Default::default() });
        assert_eq!(check(&proto), "int4[4] [0, -1, 0, 7]");
    }
}
