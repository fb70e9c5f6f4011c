//! ValueInfoProto ↔ name, type and the rest.

use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use super::rest::{pack_rest, unpack_rest};
use crate::error::Result;
use crate::graph::{Dim, Type, Value};
use crate::tensor::DType;
use bytes::Bytes;

/// Splits a declaration into name, type, and what neither says.
pub fn import(mut info: ValueInfoProto) -> (String, Type, Bytes) {
    let name = info.name.take().unwrap_or_default();
    let ty = take_type(&mut info.r#type);
    (name, ty, pack_rest(&info))
}

fn take_type(field: &mut Option<TypeProto>) -> Type {
    let Some(proto) = field else { return Type::Unknown };
    match &mut proto.value {
        None => Type::Unknown,
        Some(type_proto::Value::TensorType(tensor)) => {
            let dtype = tensor.elem_type.and_then(DType::of_onnx);
            if dtype.is_some() {
                tensor.elem_type = None;
            }
            let shape = tensor.shape.as_mut().map(|s| s.dim.iter_mut().map(take_dim).collect());
            if tensor.shape.as_ref().is_some_and(|s| s.dim.iter().all(|d| *d == Dimension::default())) {
                tensor.shape = None;
            }
            if tensor.elem_type.is_none() && tensor.shape.is_none() {
                proto.value = None;
                if proto.denotation.is_none() {
                    *field = None;
                }
            }
            Type::Tensor { dtype, shape }
        }
        Some(_) => Type::Other,
    }
}

fn take_dim(dim: &mut Dimension) -> Dim {
    match dim.value.take() {
        Some(dimension::Value::DimValue(n)) if n >= 0 => Dim::Known(n as usize),
        Some(dimension::Value::DimParam(s)) if !s.is_empty() => Dim::Symbol(s.into()),
        other => {
            dim.value = other;
            Dim::Unknown
        }
    }
}

/// The declaration of a value.
pub fn export(value: &Value) -> Result<ValueInfoProto> {
    let mut info: ValueInfoProto = unpack_rest(&value.extra)?;
    info.name = Some(value.name.clone());
    if let Type::Tensor { dtype, shape } = &value.ty {
        let proto = info.r#type.get_or_insert_default();
        let kept = match proto.value.take() {
            Some(type_proto::Value::TensorType(t)) => t,
            _ => type_proto::Tensor::default(),
        };
        let kept_dims = kept.shape.map(|s| s.dim).filter(|d| shape.as_ref().is_some_and(|s| s.len() == d.len()));
        let mut dims = kept_dims.unwrap_or_default().into_iter();
        let shape = shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(|d| put_dim(dims.next().unwrap_or_default(), d)).collect() });
        let elem_type = dtype.map(|d| d.onnx()).or(kept.elem_type);
        proto.value = Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type, shape }));
    }
    Ok(info)
}

fn put_dim(mut kept: Dimension, dim: &Dim) -> Dimension {
    match dim {
        Dim::Known(n) => kept.value = Some(dimension::Value::DimValue(*n as i64)),
        Dim::Symbol(s) => kept.value = Some(dimension::Value::DimParam(s.to_string())),
        Dim::Unknown => {}
    }
    kept
}
