//! AttributeProto ↔ attribute. `type` says which field holds the value.
//!
//! Two things that old and foreign writers do are remembered in the rest's `type`, which a modelled attribute does not need there:
//! [`UNTYPED`] (they left `type` out) and [`ABSENT`] (they left a zero or empty value out).

use super::import::{Scope, graph};
use super::proto::AttributeProto;
use super::proto::attribute_proto::AttributeType;
use super::rest::{pack_rest, take_text, unpack_rest};
use super::tensor::{self, Place};
use super::{export, rest::put_text};
use crate::error::Result;
use crate::graph::{Attr, AttrValue};
use bytes::Bytes;
use std::mem::take;

const UNTYPED: i32 = -1;
const ABSENT: i32 = -2;

pub fn import(mut p: AttributeProto, scope: &mut Scope) -> Result<Attr> {
    let name = take_text(&mut p.name);
    let kind = match p.r#type {
        Some(t) => AttributeType::try_from(t).unwrap_or(AttributeType::Undefined),
        None => only_field(&p),
    };
    let absent = match kind {
        AttributeType::Int => p.i.is_none(),
        AttributeType::Float => p.f.is_none(),
        AttributeType::String => p.s.is_none(),
        _ => false,
    };
    let value = match kind {
        // A reference to an attribute of the function around it: there is no value.
        _ if p.ref_attr_name.is_some() => AttrValue::Other,
        AttributeType::Int => AttrValue::Int(p.i.take().unwrap_or_default()),
        AttributeType::Float => AttrValue::Float(p.f.take().unwrap_or_default()),
        AttributeType::String => AttrValue::String(p.s.take().unwrap_or_default()),
        AttributeType::Ints => AttrValue::Ints(take(&mut p.ints)),
        AttributeType::Floats => AttrValue::Floats(take(&mut p.floats)),
        AttributeType::Strings => AttrValue::Strings(take(&mut p.strings)),
        AttributeType::Tensors => AttrValue::Tensors(take(&mut p.tensors).into_iter().map(|t| tensor::import(t, scope.files)).collect::<Result<_>>()?),
        AttributeType::Graphs => AttrValue::Graphs(take(&mut p.graphs).into_iter().map(|g| graph(g, scope)).collect::<Result<_>>()?),
        AttributeType::Tensor if p.t.is_some() => AttrValue::Tensor(tensor::import(p.t.take().unwrap_or_default(), scope.files)?),
        AttributeType::Graph if p.g.is_some() => AttrValue::Graph(Box::new(graph(p.g.take().unwrap_or_default(), scope)?)),
        _ => AttrValue::Other,
    };
    if value != AttrValue::Other {
        p.r#type = match p.r#type {
            None => Some(UNTYPED),
            Some(_) => absent.then_some(ABSENT),
        };
    }
    Ok(Attr { name, value, extra: pack_rest(&p) })
}

/// The type of an attribute that does not state it: of the one field it has.
fn only_field(p: &AttributeProto) -> AttributeType {
    use AttributeType::*;
    let fields = [
        (Int, p.i.is_some()),
        (Float, p.f.is_some()),
        (String, p.s.is_some()),
        (Tensor, p.t.is_some()),
        (Graph, p.g.is_some()),
        (Ints, !p.ints.is_empty()),
        (Floats, !p.floats.is_empty()),
        (Strings, !p.strings.is_empty()),
        (Tensors, !p.tensors.is_empty()),
        (Graphs, !p.graphs.is_empty()),
    ];
    let mut present = fields.iter().filter(|f| f.1);
    match (present.next(), present.next()) {
        (Some((kind, _)), None) => *kind,
        _ => Undefined,
    }
}

pub fn export(a: &Attr, place: &mut Place) -> Result<AttributeProto> {
    let mut p: AttributeProto = unpack_rest(&a.extra)?;
    put_text(&mut p.name, &a.name);
    let mark = p.r#type;
    let kind = match &a.value {
        AttrValue::Int(i) => (p.i = Some(*i), AttributeType::Int).1,
        AttrValue::Float(f) => (p.f = Some(*f), AttributeType::Float).1,
        AttrValue::String(s) => (p.s = Some(s.clone()), AttributeType::String).1,
        AttrValue::Tensor(t) => (p.t = Some(tensor::export(t, place)?), AttributeType::Tensor).1,
        AttrValue::Graph(g) => (p.g = Some(export::graph(g, place)?), AttributeType::Graph).1,
        AttrValue::Ints(v) => (p.ints = v.clone(), AttributeType::Ints).1,
        AttrValue::Floats(v) => (p.floats = v.clone(), AttributeType::Floats).1,
        AttrValue::Strings(v) => (p.strings = v.clone(), AttributeType::Strings).1,
        AttrValue::Tensors(v) => (p.tensors = v.iter().map(|t| tensor::export(t, place)).collect::<Result<_>>()?, AttributeType::Tensors).1,
        AttrValue::Graphs(v) => (p.graphs = v.iter().map(|g| export::graph(g, place)).collect::<Result<_>>()?, AttributeType::Graphs).1,
        AttrValue::Other => return Ok(p),
    };
    p.r#type = (mark != Some(UNTYPED)).then_some(kind as i32);
    if mark == Some(ABSENT) {
        p.i.take_if(|i| *i == 0);
        p.f.take_if(|f| f.to_bits() == 0);
        p.s.take_if(|s: &mut Bytes| s.is_empty());
    }
    Ok(p)
}
