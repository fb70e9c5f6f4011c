//! Our tensors ↔ tract's.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use half::f16;
use std::sync::Arc;
use tract_onnx::prelude::{Datum, DatumType, Tensor as Theirs};

/// Element types that both sides compute with.
const PAIRS: [(DType, DatumType); 12] = [
    (DType::F32, DatumType::F32),
    (DType::F16, DatumType::F16),
    (DType::F64, DatumType::F64),
    (DType::Bool, DatumType::Bool),
    (DType::I8, DatumType::I8),
    (DType::U8, DatumType::U8),
    (DType::I16, DatumType::I16),
    (DType::U16, DatumType::U16),
    (DType::I32, DatumType::I32),
    (DType::U32, DatumType::U32),
    (DType::I64, DatumType::I64),
    (DType::U64, DatumType::U64),
];

/// tract's type for ours, if the engine computes with it.
pub fn datum_type(dtype: DType) -> Option<DatumType> {
    PAIRS.iter().find(|p| p.0 == dtype).map(|p| p.1)
}

/// A tensor of tract's. Fails on types the engine does not compute with.
pub fn to_tract(t: &Tensor) -> Result<Theirs> {
    macro_rules! plain {
        ($($ours:ident $rust:ty),*) => {
            match t.dtype() {
                $(DType::$ours => Theirs::from_shape::<$rust>(t.shape(), &t.values::<$rust>()),)*
                DType::Bool => Theirs::from_shape::<bool>(t.shape(), &t.values::<u8>().iter().map(|&b| b != 0).collect::<Vec<_>>()),
                DType::F16 => Theirs::from_shape::<f16>(t.shape(), &t.values::<u16>().iter().map(|&b| f16::from_bits(b)).collect::<Vec<_>>()),
                other => return Err(Error::failed(format!("the engine does not compute with {other} tensors"))),
            }
        };
    }
    plain!(F32 f32, F64 f64, I8 i8, U8 u8, I16 i16, U16 u16, I32 i32, U32 u32, I64 i64, U64 u64).map_err(|e| Error::failed(format!("{e:#}")))
}

/// Lends a tract tensor's bytes.
struct Lent(Arc<Theirs>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A tensor of ours over tract's bytes, without a copy. tract's symbolic dimensions become int64.
pub fn of_tract(t: Arc<Theirs>) -> Result<Tensor> {
    let failed = |e| Error::failed(format!("the engine returned a tensor that cannot be read: {e:#}"));
    let t = if t.datum_type() == tract_onnx::prelude::TDim::datum_type() { Arc::new(t.cast_to::<i64>().map_err(failed)?.into_owned()) } else { t };
    let dtype = PAIRS.iter().find(|p| p.1 == t.datum_type().unquantized()).map(|p| p.0);
    let dtype = dtype.ok_or_else(|| Error::failed(format!("the engine returned a tensor of type {:?}", t.datum_type())))?;
    Tensor::new(dtype, t.shape().to_vec(), Bytes::from_owner(Lent(t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_type_goes_there_and_back_unchanged() {
        for (dtype, datum) in PAIRS {
            let n = 6 * dtype.bits() / 8;
            let bytes: Vec<u8> = if dtype == DType::Bool { vec![0, 1, 1, 0, 1, 0] } else { (0..n as u8).collect() };
            for shape in [vec![2, 3], vec![6, 1, 1]] {
                let ours = Tensor::new(dtype, shape, bytes.clone().into()).unwrap();
                let theirs = to_tract(&ours).unwrap();
                assert_eq!(theirs.datum_type(), datum);
                assert!(of_tract(Arc::new(theirs)).unwrap() == ours, "{dtype}");
            }
        }
    }

    #[test]
    fn scalars_and_empty_tensors_keep_their_shape() {
        for t in [Tensor::scalar(2.5), Tensor::of_f32(&[0, 3], vec![])] {
            assert!(of_tract(Arc::new(to_tract(&t).unwrap())).unwrap() == t);
        }
    }

    #[test]
    fn types_without_a_twin_are_refused_by_name() {
        let t = Tensor::new(DType::F8E4M3FN, vec![2], vec![0u8, 1].into()).unwrap();
        assert!(to_tract(&t).unwrap_err().to_string().contains("float8e4m3fn"));
    }
}
