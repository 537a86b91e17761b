//! Rows stored narrower than their dtype: how one is made, and what a lookup gives for it.
//!
//! A stored row is its elements, then for `int8` the `float32` that they are multiplied by. A piece that holds some columns
//! of a row holds the scale of the whole row.

use crate::plan::StoreDtype;
use crate::tensor::{DType, Float, bf16, f16};
use half::slice::HalfFloatSliceExt;
use std::fmt::Display;

/// The elements of a row of floats as `float64`.
fn numbers(dtype: DType, row: &[u8], out: &mut Vec<f64>) {
    out.clear();
    match dtype {
        DType::F32 => out.extend(row.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)))),
        DType::F16 => out.extend(row.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64())),
        DType::BF16 => out.extend(row.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64())),
        _ => out.extend(row.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b))),
    }
}

/// Makes stored rows of rows of one dtype.
#[derive(Debug)]
pub(super) struct Narrower {
    dtype: DType,
    store: StoreDtype,
    row: Vec<f64>,
    given: Vec<f64>,
    stored: Vec<u8>,
    wide: Vec<u8>,
    /// The largest absolute error so far.
    pub(super) max_error: f64,
}

impl Narrower {
    pub(super) fn new(dtype: DType, store: StoreDtype) -> Self {
        let (row, given, stored, wide) = Default::default();
        Self { dtype, store, row, given, stored, wide, max_error: 0.0 }
    }

    /// The stored form of a row, valid until the next one.
    ///
    /// # Errors
    /// Elements that the form cannot hold at all: past the range of `float16`, no finite number for `int8`.
    pub(super) fn narrow(&mut self, row: &[u8]) -> Result<&[u8], String> {
        numbers(self.dtype, row, &mut self.row);
        self.stored.clear();
        let past = |x: f64, what: &str| Err(format!("element {x} is past the range of {what}"));
        match self.store {
            StoreDtype::F16 => {
                for &x in &self.row {
                    let y = f16::from_f64(x);
                    if x.is_finite() && !y.is_finite() {
                        return past(x, "float16; bf16 has that of float32");
                    }
                    self.stored.extend(y.to_le_bytes());
                }
            }
            StoreDtype::BF16 => {
                for &x in &self.row {
                    let y = bf16::from_f64(x);
                    if x.is_finite() && !y.is_finite() {
                        return past(x, "bfloat16");
                    }
                    self.stored.extend(y.to_le_bytes());
                }
            }
            StoreDtype::Int8 => {
                if let Some(x) = self.row.iter().find(|x| !x.is_finite()) {
                    return Err(format!("element {x} cannot be stored as int8: it is no finite number"));
                }
                let largest = self.row.iter().fold(0f64, |m, x| m.max(x.abs()));
                let scale = (largest / 127.0) as f32;
                if !scale.is_finite() {
                    return past(largest, "float32, in which a row's scale is kept");
                }
                let by = if scale == 0.0 { 0.0 } else { 1.0 / f64::from(scale) };
                self.stored.extend(self.row.iter().map(|x| (x * by).round().clamp(-127.0, 127.0) as i8 as u8));
                self.stored.extend(scale.to_le_bytes());
            }
        }
        let columns = self.row.len();
        self.wide.clear();
        widen(self.dtype, self.store, &[columns], &self.stored, &mut self.wide);
        numbers(self.dtype, &self.wide, &mut self.given);
        let errors = self.row.iter().zip(&self.given).map(|(a, b)| (a - b).abs()).filter(|e| !e.is_nan());
        self.max_error = errors.fold(self.max_error, f64::max);
        Ok(&self.stored)
    }
}

/// What is wrong in a row, with its id.
pub(super) fn at_row(id: u64, what: impl Display) -> std::io::Error {
    std::io::Error::other(format!("row {id}: {what}"))
}

/// Appends the rows of `dtype` that stored rows stand for. A row is made of `segments` of as many columns each, every one
/// with its tail.
pub(super) fn widen(dtype: DType, store: StoreDtype, segments: &[usize], stored: &[u8], out: &mut Vec<u8>) {
    match store {
        StoreDtype::F16 => put_floats(dtype, &halves::<f16>(stored), out),
        StoreDtype::BF16 => put_floats(dtype, &halves::<bf16>(stored), out),
        StoreDtype::Int8 => {
            let width: usize = segments.iter().map(|c| c + 4).sum();
            let mut row = Vec::new();
            for mut rest in stored.chunks_exact(width.max(1)) {
                row.clear();
                for &columns in segments {
                    let (segment, next) = rest.split_at(columns + 4);
                    scaled(segment, &mut row);
                    rest = next;
                }
                put_floats(dtype, &row, out);
            }
        }
    }
}

/// Appends the elements of bytes that end in their scale.
fn scaled(segment: &[u8], out: &mut Vec<f32>) {
    let (codes, scale) = segment.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
    let scale = f32::from_le_bytes(*scale);
    out.extend(codes.iter().map(|&c| f32::from(c as i8) * scale));
}

/// The `float32` elements of a row of one segment, in place of what is in `out`.
fn row_floats(store: StoreDtype, stored: &[u8], out: &mut Vec<f32>) {
    fn put<T: Float<Wide = f32>>(stored: &[u8], out: &mut Vec<f32>) {
        match T::slice_from_bytes(stored) {
            Some(row) => T::widen_all(row, out),
            None => T::widen_all(&T::vec_from_bytes(stored).unwrap_or_default(), out),
        }
    }
    match store {
        StoreDtype::F16 => put::<f16>(stored, out),
        StoreDtype::BF16 => put::<bf16>(stored, out),
        StoreDtype::Int8 => {
            out.clear();
            scaled(stored, out);
        }
    }
}

/// A dtype that rows are stored narrower than.
pub(super) trait Narrowed: Float {
    /// What [`widen`] gives for a row of one segment, in the wide type, in place of what is in `out`.
    fn widen_row(store: StoreDtype, stored: &[u8], scratch: &mut Vec<f32>, out: &mut Vec<Self::Wide>);
}

impl Narrowed for f32 {
    fn widen_row(store: StoreDtype, stored: &[u8], _: &mut Vec<f32>, out: &mut Vec<f32>) {
        row_floats(store, stored, out);
    }
}

macro_rules! narrowed {
    ($($t:ty, $from:expr;)*) => {$(
        impl Narrowed for $t {
            fn widen_row(store: StoreDtype, stored: &[u8], scratch: &mut Vec<f32>, out: &mut Vec<Self::Wide>) {
                row_floats(store, stored, scratch);
                out.clear();
                out.extend(scratch.iter().map(|&x| ($from)(x).widen()));
            }
        }
    )*};
}
narrowed!(f64, f64::from; f16, f16::from_f32; bf16, bf16::from_f32;);

/// 16-bit floats as `float32`.
fn halves<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    match bytemuck::try_cast_slice::<u8, T>(bytes) {
        Ok(slice) => slice.to_f32_vec(),
        Err(_) => bytes.chunks_exact(2).map(bytemuck::pod_read_unaligned::<T>).collect::<Vec<T>>().to_f32_vec(),
    }
}

fn put_floats(dtype: DType, row: &[f32], out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => out.extend_from_slice(bytemuck::cast_slice(row)),
        DType::F16 => out.extend(row.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
        DType::BF16 => out.extend(row.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
        _ => out.extend(row.iter().flat_map(|x| f64::from(*x).to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Element;

    fn round_trip(store: StoreDtype, row: &[f32]) -> Result<(Vec<f32>, f64), String> {
        let mut n = Narrower::new(DType::F32, store);
        let stored = n.narrow(bytemuck::cast_slice(row))?.to_vec();
        let mut wide = Vec::new();
        widen(DType::F32, store, &[row.len()], &stored, &mut wide);
        Ok((wide.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(), n.max_error))
    }

    #[test]
    fn values_that_fit_come_back_and_others_are_near() {
        // By hand: the scale is 127/127, so whole numbers stay.
        assert_eq!(round_trip(StoreDtype::Int8, &[127.0, -3.0, 0.0, 64.0]), Ok((vec![127.0, -3.0, 0.0, 64.0], 0.0)));
        assert_eq!(round_trip(StoreDtype::Int8, &[127.0, 0.25]), Ok((vec![127.0, 0.0], 0.25)));
        assert_eq!(round_trip(StoreDtype::Int8, &[0.0, 0.0]), Ok((vec![0.0, 0.0], 0.0)));
        // 2049 lies between the float16 numbers 2048 and 2050; ties go to the even one.
        assert_eq!(round_trip(StoreDtype::F16, &[0.5, 2049.0]), Ok((vec![0.5, 2048.0], 1.0)));
        // bfloat16 keeps 8 bits: 257 lies between 256 and 258.
        assert_eq!(round_trip(StoreDtype::BF16, &[1e38, 257.0]).map(|r| r.0[1]), Ok(256.0));
        let infinite = round_trip(StoreDtype::F16, &[f32::INFINITY, f32::NAN]).unwrap();
        assert!(infinite.0[0] == f32::INFINITY && infinite.0[1].is_nan() && infinite.1 == 0.0);
    }

    #[test]
    fn what_a_form_cannot_hold_is_an_error() {
        assert!(round_trip(StoreDtype::F16, &[70_000.0]).unwrap_err().contains("70000 is past the range of float16"));
        assert!(round_trip(StoreDtype::Int8, &[f32::NAN]).unwrap_err().contains("no finite number"));
    }

    #[test]
    fn a_row_by_itself_is_what_it_is_among_others() {
        fn check<T: Narrowed>(store: StoreDtype) {
            let mut n = Narrower::new(DType::F32, store);
            let (mut scratch, mut row, mut wide) = (vec![7.0; 9], Vec::new(), Vec::new());
            for values in [[1.0f32, -0.3, 0.0, 2.5, -1e-6], [-0.0, 77.7, 0.1, -3.3, 9.9]] {
                let stored = n.narrow(bytemuck::cast_slice(&values)).unwrap().to_vec();
                wide.clear();
                widen(T::DTYPE, store, &[5], &stored, &mut wide);
                let right: Vec<T::Wide> = T::vec_from_bytes(&wide).unwrap().into_iter().map(T::widen).collect();
                T::widen_row(store, &stored, &mut scratch, &mut row);
                assert_eq!(T::Wide::as_bytes(&row), T::Wide::as_bytes(&right), "{store:?} {}", T::DTYPE);
            }
        }
        for store in [StoreDtype::F16, StoreDtype::BF16, StoreDtype::Int8] {
            check::<f32>(store);
            check::<f64>(store);
            check::<f16>(store);
            check::<bf16>(store);
        }
    }

    #[test]
    fn segments_have_their_own_scale() {
        let stored = [[1u8, 2].as_slice(), &2f32.to_le_bytes(), &[0xff], &0.5f32.to_le_bytes()].concat();
        let mut wide = Vec::new();
        widen(DType::F32, StoreDtype::Int8, &[2, 1], &[stored.clone(), stored].concat(), &mut wide);
        let row: Vec<f32> = wide.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(row, [2.0, 4.0, -0.5, 2.0, 4.0, -0.5]);
    }
}
