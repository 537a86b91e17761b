//! Tensors: a dtype, a shape and shared storage that is either owned by us or a view on mapped bytes.
//! Every tensor is dense and row-major; sub-byte dtypes are packed, low bits first, as in ONNX.

mod cast;
mod dtype;
mod element;
mod floats;
mod large_pages;
mod mapped;
mod memory;
pub(crate) mod pool;
mod prefetch;
mod recycle;
mod shape;
mod value;

pub use cast::{CastMode, cast, cast_with, pack_bits, unpack_bits};
pub use dtype::DType;
pub use element::{Element, Float, Int, Number};
pub use floats::{F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, Rounding, f4e2m1_from_f32, f4e2m1_to_f32};
pub use half::{bf16, f16};
pub use large_pages::Frequented;
pub use mapped::{Maps, map_file, read_at_random, release};
pub use memory::fits_memory;
pub use num_complex::{Complex32, Complex64};
pub use pool::PoolMode;
pub(crate) use prefetch::{AHEAD, LINE, prefetch};
pub use recycle::{Recycling, room};
pub use shape::{Shape, broadcast_shapes, checked_len, checked_offset, strides};
pub use value::{Map, MapKeys, Value};

use bytes::Bytes;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What can be wrong with a tensor's parts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The tensor holds another element type than the caller asked for.
    #[error("expected {expected}, found {found}")]
    DType {
        /// The dtype that was asked for.
        expected: DType,
        /// The dtype that is there.
        found: DType,
    },
    /// Shape and storage disagree, or a size does not fit 64 bits.
    #[error("{0}")]
    Shape(String),
    /// The tensor is a stand-in whose elements were taken out of the file.
    #[error("the elements of this tensor are not in the file")]
    Absent,
}

/// A type-erased owned buffer: an [`Owned`] of some [`Element`].
trait Buffer: Any + Send + Sync {
    /// The bytes, or `None` for strings.
    fn bytes(&self) -> Option<&[u8]>;
}

/// A vector that is a tensor's own; its memory is used again.
struct Owned<T: Element>(Vec<T>);

impl<T: Element> Buffer for Owned<T> {
    fn bytes(&self) -> Option<&[u8]> {
        T::as_bytes(&self.0)
    }
}

impl<T: Element> Drop for Owned<T> {
    fn drop(&mut self) {
        recycle::give(std::mem::take(&mut self.0));
    }
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<dyn Buffer>),
    Mapped(Bytes),
    /// The elements are elsewhere; the text names where (a digest, a table).
    Absent(Arc<str>),
}

impl Storage {
    fn owned<T: Element>(data: Vec<T>) -> Self {
        Self::Owned(Arc::new(Owned(data)))
    }
}

/// A dense row-major tensor. Cloning shares the storage.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    storage: Storage,
}

impl Tensor {
    /// A tensor of `shape` over `data`.
    ///
    /// # Errors
    /// When the number of elements is not the product of the dims.
    pub fn new<T: Element>(shape: impl Into<Shape>, data: Vec<T>) -> Result<Self, TensorError> {
        let shape = shape.into();
        if checked_len(&shape) != Some(data.len()) {
            return Err(TensorError::Shape(format!(
                "shape {shape} needs {} elements, found {}",
                checked_len(&shape).map_or("too many".into(), |n| n.to_string()),
                data.len()
            )));
        }
        Ok(Self { dtype: T::DTYPE, shape, storage: Storage::owned(data) })
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self { dtype: T::DTYPE, shape: Shape::default(), storage: Storage::owned(vec![value]) }
    }

    /// A rank-1 tensor.
    pub fn vector<T: Element>(data: Vec<T>) -> Self {
        Self { dtype: T::DTYPE, shape: Shape::from([data.len()]), storage: Storage::owned(data) }
    }

    /// A tensor of `shape` filled with `value`.
    ///
    /// # Errors
    /// When the product of the dims does not fit the address space.
    pub fn full<T: Element>(shape: impl Into<Shape>, value: T) -> Result<Self, TensorError> {
        let shape = shape.into();
        let len = checked_len(&shape).filter(|&n| n.checked_mul(size_of::<T>()).is_some_and(fits_memory));
        let len = len.ok_or_else(|| TensorError::Shape(format!("shape {shape} is too large")))?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| TensorError::Shape(format!("shape {shape} does not fit memory")))?;
        data.resize(len, value);
        Self::new(shape, data)
    }

    /// A tensor over the little-endian bytes of its elements, as in ONNX's `raw_data`; nothing is copied.
    ///
    /// # Errors
    /// When the length is not that of `shape` elements of `dtype`, or `dtype` is string.
    pub fn from_bytes(dtype: DType, shape: impl Into<Shape>, bytes: impl Into<Bytes>) -> Result<Self, TensorError> {
        let (shape, bytes) = (shape.into(), bytes.into());
        let need = dtype.byte_len(&shape).ok_or_else(|| TensorError::Shape(format!("{dtype}{shape} has no byte length")))?;
        if need != bytes.len() {
            return Err(TensorError::Shape(format!("{dtype}{shape} needs {need} bytes, found {}", bytes.len())));
        }
        Ok(Self { dtype, shape, storage: Storage::Mapped(bytes) })
    }

    /// A tensor of a packed sub-byte dtype from its packed bytes, or of any dtype from an owned vector of the same width.
    ///
    /// # Errors
    /// When the byte length does not fit.
    pub fn from_vec_as<T: Element + bytemuck::NoUninit>(dtype: DType, shape: impl Into<Shape>, data: Vec<T>) -> Result<Self, TensorError> {
        let shape = shape.into();
        let found = size_of_val(data.as_slice());
        if dtype.byte_len(&shape) != Some(found) {
            return Err(TensorError::Shape(format!("{dtype}{shape} does not hold {found} bytes")));
        }
        if T::DTYPE == dtype || dtype.bits() < 8 {
            return Ok(Self { dtype, shape, storage: Storage::owned(data) });
        }
        crate::dispatch!(dtype, T2 => Self::relabel::<T, T2>(shape, data))
    }

    fn relabel<T: Element + bytemuck::NoUninit, U: Element>(shape: Shape, data: Vec<T>) -> Result<Self, TensorError> {
        let owned = U::vec_from_words(data).ok_or_else(|| TensorError::Shape(format!("bytes are no valid {}", U::DTYPE)))?;
        Self::new(shape, owned)
    }

    /// A stand-in for elements that were taken out; `place` says where they are.
    pub fn absent(dtype: DType, shape: impl Into<Shape>, place: &str) -> Self {
        Self { dtype, shape: shape.into(), storage: Storage::Absent(place.into()) }
    }

    /// Where the elements of a stand-in are; `None` for a tensor that has its elements.
    pub fn absent_place(&self) -> Option<&str> {
        match &self.storage {
            Storage::Absent(place) => Some(place),
            _ => None,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dims.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The number of dims.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        checked_len(&self.shape).unwrap_or_default()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The little-endian bytes; strings and stand-ins have none.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.storage {
            Storage::Owned(buffer) => buffer.bytes(),
            Storage::Mapped(bytes) => Some(bytes),
            Storage::Absent(_) => None,
        }
    }

    /// The bytes as a shared view, without a copy of the elements.
    pub fn shared_bytes(&self) -> Option<Bytes> {
        struct Owner(Arc<dyn Buffer>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.bytes().unwrap_or_default()
            }
        }
        match &self.storage {
            Storage::Owned(buffer) => buffer.bytes().is_some().then(|| Bytes::from_owner(Owner(buffer.clone()))),
            Storage::Mapped(bytes) => Some(bytes.clone()),
            Storage::Absent(_) => None,
        }
    }

    fn expect<T: Element>(&self) -> Result<(), TensorError> {
        if self.dtype == T::DTYPE { Ok(()) } else { Err(TensorError::DType { expected: T::DTYPE, found: self.dtype }) }
    }

    /// The elements, without a copy.
    ///
    /// # Errors
    /// Another dtype, a stand-in, or mapped bytes that do not lie on the element's alignment (see [`Tensor::aligned`]).
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        self.expect::<T>()?;
        match &self.storage {
            Storage::Owned(buffer) => {
                let any: &dyn Any = &**buffer;
                match any.downcast_ref::<Owned<T>>() {
                    Some(Owned(v)) => Ok(v),
                    None => Err(TensorError::DType { expected: T::DTYPE, found: self.dtype }),
                }
            }
            Storage::Mapped(bytes) => {
                T::slice_from_bytes(bytes).ok_or_else(|| TensorError::Shape(format!("mapped bytes are no aligned valid {}", self.dtype)))
            }
            Storage::Absent(_) => Err(TensorError::Absent),
        }
    }

    /// The elements, copied only where mapped bytes are not aligned.
    ///
    /// # Errors
    /// Another dtype, or a stand-in.
    pub fn to_slice<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        self.expect::<T>()?;
        match self.as_slice::<T>() {
            Ok(s) => Ok(Cow::Borrowed(s)),
            Err(TensorError::Absent) => Err(TensorError::Absent),
            Err(e) => self.bytes().and_then(T::vec_from_bytes).map(Cow::Owned).ok_or(e),
        }
    }

    /// The elements as an owned vector; the storage is taken over where nobody else holds it.
    ///
    /// # Errors
    /// Another dtype, or a stand-in.
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>, TensorError> {
        self.expect::<T>()?;
        match self.storage {
            Storage::Owned(buffer) => {
                let any: Arc<dyn Any + Send + Sync> = buffer;
                let vec = any.downcast::<Owned<T>>().map_err(|_| TensorError::DType { expected: T::DTYPE, found: self.dtype })?;
                Ok(match Arc::try_unwrap(vec) {
                    Ok(mut own) => std::mem::take(&mut own.0),
                    Err(shared) => recycle::copy(&shared.0),
                })
            }
            _ => self.to_slice::<T>().map(Cow::into_owned),
        }
    }

    /// The elements as an n-dimensional view.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`].
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>, TensorError> {
        let slice = self.as_slice::<T>()?;
        ArrayViewD::from_shape(IxDyn(&self.shape), slice).map_err(|e| TensorError::Shape(e.to_string()))
    }

    /// A tensor from an n-dimensional array, copied only if the array is not in standard layout.
    pub fn from_array<T: Element>(array: ArrayD<T>) -> Self {
        let shape = Shape::from(array.shape());
        let data = if array.is_standard_layout() { array.into_raw_vec_and_offset() } else { (array.iter().cloned().collect(), None) };
        let data = match data {
            (v, Some(at)) if at > 0 || v.len() != shape.iter().product::<usize>() => v[at..at + shape.iter().product::<usize>()].to_vec(),
            (v, _) => v,
        };
        Self { dtype: T::DTYPE, shape, storage: Storage::owned(data) }
    }

    /// The same elements under other dims.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(mut self, shape: impl Into<Shape>) -> Result<Self, TensorError> {
        let shape = shape.into();
        if checked_len(&shape) != Some(self.len()) {
            return Err(TensorError::Shape(format!("cannot reshape {} to {shape}", self.shape)));
        }
        self.shape = shape;
        Ok(self)
    }

    /// The same tensor with its elements on their alignment; copies only mapped bytes that are not.
    pub fn aligned(self) -> Self {
        let Storage::Mapped(bytes) = &self.storage else { return self };
        if (bytes.as_ptr() as usize).is_multiple_of(self.dtype.alignment()) || self.dtype.bits() < 8 {
            return self;
        }
        let Tensor { dtype, shape, .. } = &self;
        let copied = crate::dispatch!(*dtype, T => T::vec_from_bytes(bytes).map(|v| Tensor { dtype: *dtype, shape: shape.clone(), storage: Storage::owned(v) }));
        copied.unwrap_or(self)
    }

    /// The only element of a one-element tensor.
    ///
    /// # Errors
    /// Another dtype or more or fewer elements.
    pub fn item<T: Element>(&self) -> Result<T, TensorError> {
        match &*self.to_slice::<T>()? {
            [x] => Ok(x.clone()),
            s => Err(TensorError::Shape(format!("expected one element, found {}", s.len()))),
        }
    }

    /// The elements of any integer or bool tensor as `i64`; `uint64` wraps.
    ///
    /// # Errors
    /// A dtype that is no integer.
    pub fn to_i64s(&self) -> Result<Vec<i64>, TensorError> {
        if !(self.dtype.is_int() || self.dtype == DType::Bool) {
            return Err(TensorError::DType { expected: DType::I64, found: self.dtype });
        }
        cast(self, DType::I64)?.into_vec()
    }

    /// The elements of any real numeric tensor as `f32`, rounded to nearest.
    ///
    /// # Errors
    /// Strings and complex numbers.
    pub fn to_f32s(&self) -> Result<Vec<f32>, TensorError> {
        cast(self, DType::F32)?.into_vec()
    }
}

/// An empty `float32` vector.
impl Default for Tensor {
    fn default() -> Self {
        Self::vector::<f32>(Vec::new())
    }
}

/// Equal dtype, dims and element bits (so NaN equals itself, and 0.0 differs from -0.0).
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        if self.dtype != other.dtype || self.shape != other.shape {
            return false;
        }
        match (&self.storage, &other.storage) {
            (Storage::Absent(a), Storage::Absent(b)) => a == b,
            (Storage::Absent(_), _) | (_, Storage::Absent(_)) => false,
            _ => match (self.bytes(), other.bytes()) {
                (Some(a), Some(b)) => a == b,
                (None, None) => self.as_slice::<String>().ok() == other.as_slice::<String>().ok(),
                _ => false,
            },
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)?;
        if let Some(place) = self.absent_place() {
            return write!(f, " <{place}>");
        }
        if self.len() > 64 {
            return f.write_str(" …");
        }
        match self.dtype {
            DType::String => write!(f, " {:?}", self.as_slice::<String>().unwrap_or_default()),
            d if d.is_int() || d == DType::Bool => write!(f, " {:?}", self.to_i64s().unwrap_or_default()),
            _ => write!(f, " {:?}", self.to_f32s().unwrap_or_default()),
        }
    }
}
