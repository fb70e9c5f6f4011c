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

#[cfg(test)]
mod tests {
    use super::super::sample::{add, assert_kept, entry, info, read, text};
    use super::*;

    /// A model whose input is declared so comes back as it was; its type as the graph sees it.
    fn kept(change: impl FnOnce(&mut ValueInfoProto)) -> Type {
        let mut p = add();
        change(&mut p.graph.as_mut().unwrap().input[0]);
        assert_kept(p.clone());
        let m = read(p).unwrap();
        m.graph.value(m.graph.inputs[0]).ty.clone()
    }

    fn tensor(elem_type: Option<i32>, dims: Option<Vec<Dimension>>) -> Option<TypeProto> {
        let t = type_proto::Tensor { elem_type, shape: dims.map(|dim| TensorShapeProto { dim }) };
        Some(TypeProto { value: Some(type_proto::Value::TensorType(t)), denotation: None })
    }

    fn dim(value: Option<dimension::Value>, denotation: Option<&str>) -> Dimension {
        Dimension { value, denotation: denotation.map(str::to_string) }
    }

    #[test]
    fn shapes_of_every_kind() {
        use dimension::Value::{DimParam, DimValue};
        let dims = vec![
            dim(Some(DimValue(3)), Some("DATA_CHANNEL")),
            dim(Some(DimParam("n".into())), None),
            dim(Some(DimValue(-1)), None),
            dim(Some(DimParam(String::new())), None),
            dim(None, Some("DATA_BATCH")),
            dim(Some(DimValue(0)), None),
        ];
        let ty = kept(|i| i.r#type = tensor(Some(1), Some(dims)));
        let shape = vec![Dim::Known(3), Dim::Symbol("n".into()), Dim::Unknown, Dim::Unknown, Dim::Unknown, Dim::Known(0)];
        assert_eq!(ty, Type::Tensor { dtype: Some(DType::F32), shape: Some(shape) });
    }

    #[test]
    fn rank_and_type_may_be_missing() {
        assert_eq!(kept(|i| i.r#type = tensor(Some(7), Some(vec![]))), Type::Tensor { dtype: Some(DType::I64), shape: Some(vec![]) });
        assert_eq!(kept(|i| i.r#type = tensor(Some(1), None)), Type::Tensor { dtype: Some(DType::F32), shape: None });
        assert_eq!(kept(|i| i.r#type = tensor(Some(0), None)), Type::Tensor { dtype: None, shape: None });
        assert_eq!(kept(|i| i.r#type = tensor(None, None)), Type::Tensor { dtype: None, shape: None });
        assert_eq!(kept(|i| i.r#type = tensor(Some(99), None)), Type::Tensor { dtype: None, shape: None });
        assert_eq!(kept(|i| i.r#type = Some(TypeProto::default())), Type::Unknown);
        assert_eq!(kept(|i| i.r#type = None), Type::Unknown);
    }

    #[test]
    fn sequences_optionals_and_maps_are_kept_whole() {
        let of_floats = || tensor(Some(1), None).map(Box::new);
        let sequence = type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type: of_floats() }));
        let optional = type_proto::Value::OptionalType(Box::new(type_proto::Optional { elem_type: of_floats() }));
        let map = type_proto::Value::MapType(Box::new(type_proto::Map { key_type: Some(7), value_type: of_floats() }));
        for value in [sequence, optional, map, type_proto::Value::OpaqueType(type_proto::Opaque::default())] {
            let ty = kept(|i| i.r#type = Some(TypeProto { value: Some(value), denotation: text("d") }));
            assert_eq!(ty, Type::Other);
        }
    }

    #[test]
    fn doc_strings_denotations_and_metadata() {
        kept(|i| {
            i.doc_string = text("the picture");
            i.metadata_props = vec![entry("k", "v")];
            i.r#type.as_mut().unwrap().denotation = text("IMAGE");
        });
    }

    #[test]
    fn a_changed_type_replaces_the_kept_one() {
        let mut odd = info("x", &[2, 3]);
        odd.r#type = tensor(Some(1), Some(vec![dim(Some(dimension::Value::DimValue(-1)), None)]));
        let mut p = add();
        p.graph.as_mut().unwrap().input[0] = odd;
        let mut m = read(p).unwrap();
        let x = m.graph.inputs[0];
        m.graph.value_mut(x).ty = Type::Tensor { dtype: Some(DType::U8), shape: Some(vec![Dim::Known(4)]) };
        assert_eq!(export(m.graph.value(x)).unwrap().r#type, tensor(Some(2), Some(vec![dim(Some(dimension::Value::DimValue(4)), None)])));
    }
}
