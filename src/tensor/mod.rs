//! Tensors: an element type, a shape, and bytes in ONNX's own packing that may lie in memory or in a mapped file.

mod dtype;
pub mod pack;

pub use dtype::DType;

use crate::error::{Error, Result};
use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian bytes, as ONNX stores them");

/// A constant tensor. Cloning shares the bytes.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, PartialEq)]
enum Data {
    /// Row-major, little-endian, sub-byte elements packed as ONNX's `raw_data`.
    Packed(Bytes),
    Strings(Arc<[Bytes]>),
}

/// A vector that lends its bytes: how typed vectors become [`Bytes`] without a copy.
struct Pods<T>(Vec<T>);

impl<T: NoUninit> AsRef<[u8]> for Pods<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Number of elements of `shape`; `None` where that overflows.
pub fn numel(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor over packed bytes. Fails if their number does not fit type and shape.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self> {
        let want = numel(&shape).and_then(|n| dtype.packed_len(n));
        if dtype == DType::Str || want != Some(data.len()) {
            return Err(Error::usage(format!("a {dtype} tensor of shape {shape:?} cannot have {} bytes", data.len())));
        }
        Ok(Tensor { dtype, shape, data: Data::Packed(data) })
    }

    /// A string tensor; one entry an element.
    pub fn of_strings(shape: Vec<usize>, strings: Vec<Bytes>) -> Result<Self> {
        if numel(&shape) != Some(strings.len()) {
            return Err(Error::usage(format!("a string tensor of shape {shape:?} cannot have {} elements", strings.len())));
        }
        Ok(Tensor { dtype: DType::Str, shape, data: Data::Strings(strings.into()) })
    }

    /// A tensor over a vector of plain values, without a copy. `T`'s width must be the type's.
    ///
    /// # Panics
    /// If the number of values is not the shape's, or `T` is not as wide as an element: a programming error.
    pub fn of<T: NoUninit + Send + 'static>(dtype: DType, shape: &[usize], values: Vec<T>) -> Self {
        assert_eq!(dtype.bits(), size_of::<T>() * 8, "{dtype}");
        assert_eq!(numel(shape), Some(values.len()), "{dtype} {shape:?}");
        Tensor { dtype, shape: shape.to_vec(), data: Data::Packed(Bytes::from_owner(Pods(values))) }
    }

    /// A float32 tensor.
    pub fn of_f32(shape: &[usize], values: Vec<f32>) -> Self {
        Self::of(DType::F32, shape, values)
    }

    /// An int64 tensor.
    pub fn of_i64(shape: &[usize], values: Vec<i64>) -> Self {
        Self::of(DType::I64, shape, values)
    }

    /// A float32 tensor of rank 0.
    pub fn scalar(value: f32) -> Self {
        Self::of_f32(&[], vec![value])
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed bytes; empty for strings.
    pub fn bytes(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.data {
            Data::Packed(b) => b,
            Data::Strings(_) => &NONE,
        }
    }

    /// The elements of a string tensor.
    pub fn strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Packed(_) => None,
            Data::Strings(s) => Some(s),
        }
    }

    /// The same elements under another shape of as many.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Self> {
        if numel(&shape) != Some(self.len()) {
            return Err(Error::usage(format!("{:?} cannot be reshaped to {shape:?}", self.shape)));
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// The elements as `T`, borrowed where the bytes are aligned. `T`'s width must be the type's.
    ///
    /// # Panics
    /// If `T` is not as wide as an element.
    pub fn values<T: AnyBitPattern + NoUninit>(&self) -> Cow<'_, [T]> {
        assert_eq!(self.dtype.bits(), size_of::<T>() * 8, "{}", self.dtype);
        match bytemuck::try_cast_slice(self.bytes()) {
            Ok(s) => Cow::Borrowed(s),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(self.bytes())),
        }
    }

    /// The elements as float32, borrowed where they are float32 already, else converted (float16, bfloat16, float64, integers, bool).
    /// Fails on types that are codes, strings or complex.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        use DType::*;
        fn map<T: AnyBitPattern + NoUninit>(t: &Tensor, f: impl Fn(T) -> f32) -> Cow<'_, [f32]> {
            t.values::<T>().iter().map(|&x| f(x)).collect::<Vec<_>>().into()
        }
        Ok(match self.dtype {
            F32 => self.values(),
            F16 => map(self, |x: u16| half::f16::from_bits(x).to_f32()),
            BF16 => map(self, |x: u16| half::bf16::from_bits(x).to_f32()),
            F64 => map(self, |x: f64| x as f32),
            I8 => map(self, |x: i8| x as f32),
            U8 => map(self, |x: u8| x as f32),
            Bool => map(self, |x: u8| (x != 0) as u8 as f32),
            I16 => map(self, |x: i16| x as f32),
            U16 => map(self, |x: u16| x as f32),
            I32 => map(self, |x: i32| x as f32),
            U32 => map(self, |x: u32| x as f32),
            I64 => map(self, |x: i64| x as f32),
            U64 => map(self, |x: u64| x as f32),
            _ => return Err(Error::usage(format!("a {} tensor cannot be read as float32", self.dtype))),
        })
    }

    /// The elements as int64 (integers and bool; int2/int4 and their unsigned forms unpacked). Fails on the rest.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        use DType::*;
        fn map<T: AnyBitPattern + NoUninit>(t: &Tensor, f: impl Fn(T) -> i64) -> Vec<i64> {
            t.values::<T>().iter().map(|&x| f(x)).collect()
        }
        Ok(match self.dtype {
            I8 => map(self, |x: i8| x as i64),
            U8 => map(self, |x: u8| x as i64),
            Bool => map(self, |x: u8| (x != 0) as i64),
            I16 => map(self, |x: i16| x as i64),
            U16 => map(self, |x: u16| x as i64),
            I32 => map(self, |x: i32| x as i64),
            U32 => map(self, |x: u32| x as i64),
            I64 => self.values::<i64>().into_owned(),
            U64 => map(self, |x: u64| x as i64),
            I2 | U2 | I4 | U4 => pack::unpack(self.bytes(), self.dtype, self.len()).into_iter().map(i64::from).collect(),
            _ => return Err(Error::usage(format!("a {} tensor cannot be read as integers", self.dtype))),
        })
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}
