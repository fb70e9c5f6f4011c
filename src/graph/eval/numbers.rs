//! Tensors as vectors of numbers: every float type narrower than float64 computes in float32, every integer type in int64.

use crate::tensor::{DType, Tensor};
use half::{bf16, f16};

/// Elements to compute with.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl Numbers {
    /// The elements of a tensor; `None` for strings, complex numbers and codes.
    pub fn of(t: &Tensor) -> Option<Numbers> {
        use DType::*;
        Some(match t.dtype() {
            F64 => Numbers::F64(t.values::<f64>().into_owned()),
            Bool => Numbers::Bool(t.values::<u8>().iter().map(|b| *b != 0).collect()),
            F32 | F16 | BF16 => Numbers::F32(t.to_f32().ok()?.into_owned()),
            _ => Numbers::I64(t.to_i64().ok()?),
        })
    }

    /// A tensor of `dtype`, converted as ONNX's Cast does for values in range.
    pub fn tensor(self, dtype: DType, shape: &[usize]) -> Option<Tensor> {
        use DType::*;
        let float = |v: &Numbers| -> Vec<f64> {
            match v {
                Numbers::F32(v) => v.iter().map(|x| *x as f64).collect(),
                Numbers::F64(v) => v.clone(),
                Numbers::I64(v) => v.iter().map(|x| *x as f64).collect(),
                Numbers::Bool(v) => v.iter().map(|x| *x as u8 as f64).collect(),
            }
        };
        Some(match (dtype, self) {
            (F32, Numbers::F32(v)) => Tensor::of_f32(shape, v),
            (F32, Numbers::I64(v)) => Tensor::of_f32(shape, v.into_iter().map(|x| x as f32).collect()),
            (F32, v) => Tensor::of_f32(shape, float(&v).into_iter().map(|x| x as f32).collect()),
            (F64, v) => Tensor::of(F64, shape, float(&v)),
            (F16, v) => Tensor::of(F16, shape, float(&v).into_iter().map(|x| f16::from_f64(x).to_bits()).collect::<Vec<_>>()),
            (BF16, v) => Tensor::of(BF16, shape, float(&v).into_iter().map(|x| bf16::from_f64(x).to_bits()).collect::<Vec<_>>()),
            (Bool, v) => Tensor::of(Bool, shape, v.truths().into_iter().map(u8::from).collect::<Vec<_>>()),
            (t, v) => {
                let v = v.integers()?;
                match t {
                    I8 => Tensor::of(t, shape, v.into_iter().map(|x| x as i8).collect::<Vec<_>>()),
                    U8 => Tensor::of(t, shape, v.into_iter().map(|x| x as u8).collect::<Vec<_>>()),
                    I16 => Tensor::of(t, shape, v.into_iter().map(|x| x as i16).collect::<Vec<_>>()),
                    U16 => Tensor::of(t, shape, v.into_iter().map(|x| x as u16).collect::<Vec<_>>()),
                    I32 => Tensor::of(t, shape, v.into_iter().map(|x| x as i32).collect::<Vec<_>>()),
                    U32 => Tensor::of(t, shape, v.into_iter().map(|x| x as u32).collect::<Vec<_>>()),
                    I64 => Tensor::of(t, shape, v),
                    U64 => Tensor::of(t, shape, v.into_iter().map(|x| x as u64).collect::<Vec<_>>()),
                    _ => return None,
                }
            }
        })
    }

    /// Towards zero; `None` where a float is no number of the int64 range.
    fn integers(self) -> Option<Vec<i64>> {
        let whole = |x: f64| (x.is_finite() && x.abs() < 9.2e18).then_some(x as i64);
        match self {
            Numbers::I64(v) => Some(v),
            Numbers::Bool(v) => Some(v.into_iter().map(i64::from).collect()),
            Numbers::F32(v) => v.into_iter().map(|x| whole(x as f64)).collect(),
            Numbers::F64(v) => v.into_iter().map(whole).collect(),
        }
    }

    fn truths(self) -> Vec<bool> {
        match self {
            Numbers::Bool(v) => v,
            Numbers::I64(v) => v.into_iter().map(|x| x != 0).collect(),
            Numbers::F32(v) => v.into_iter().map(|x| x != 0.0).collect(),
            Numbers::F64(v) => v.into_iter().map(|x| x != 0.0).collect(),
        }
    }
}
