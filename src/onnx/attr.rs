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

#[cfg(test)]
mod tests {
    use super::super::sample::{add, assert_kept, assert_refused, graph as body, initializer, node, read, text};
    use super::*;

    fn plain(kind: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
        let mut p = AttributeProto { name: text("a"), r#type: Some(kind as i32), ..Default::default() };
        fill(&mut p);
        p
    }

    /// The value of an attribute that comes back as it was.
    fn kept(p: AttributeProto) -> AttrValue {
        let mut m = add();
        m.graph.as_mut().unwrap().node[0].attribute.push(p);
        assert_kept(m.clone());
        let m = read(m).unwrap();
        m.graph.nodes().next().unwrap().1.attrs[0].value.clone()
    }

    #[test]
    fn every_type() {
        use AttributeType::*;
        assert_eq!(kept(plain(Int, |p| p.i = Some(-1))), AttrValue::Int(-1));
        assert_eq!(kept(plain(Float, |p| p.f = Some(0.5))), AttrValue::Float(0.5));
        assert_eq!(kept(plain(String, |p| p.s = Some("s".into()))), AttrValue::String("s".into()));
        assert_eq!(kept(plain(Ints, |p| p.ints = vec![1, 2])), AttrValue::Ints(vec![1, 2]));
        assert_eq!(kept(plain(Floats, |_| ())), AttrValue::Floats(vec![]));
        assert_eq!(kept(plain(Strings, |p| p.strings = vec!["s".into()])), AttrValue::Strings(vec!["s".into()]));
        assert!(matches!(kept(plain(Tensor, |p| p.t = Some(initializer("t", &[2])))), AttrValue::Tensor(_)));
        assert!(matches!(kept(plain(Tensors, |p| p.tensors = vec![initializer("", &[2])])), AttrValue::Tensors(t) if t.len() == 1));
        assert!(matches!(kept(plain(Graph, |p| p.g = Some(body(vec![node("Relu", &["x"], &["y"])])))), AttrValue::Graph(_)));
        assert!(matches!(kept(plain(Graphs, |p| p.graphs = vec![body(vec![node("Relu", &["x"], &["y"])])])), AttrValue::Graphs(_)));
        assert_eq!(kept(plain(SparseTensor, |p| p.sparse_tensor = Some(Default::default()))), AttrValue::Other);
        assert_eq!(kept(plain(TypeProtos, |p| p.type_protos = vec![Default::default()])), AttrValue::Other);
        assert_eq!(kept(plain(Int, |p| p.ref_attr_name = text("axis"))), AttrValue::Other);
        assert_eq!(kept(plain(Tensor, |_| ())), AttrValue::Other);
        assert_eq!(kept(plain(Int, |p| (p.i, p.doc_string) = (Some(1), text("why")))), AttrValue::Int(1));
    }

    #[test]
    fn what_old_and_foreign_writers_leave_out() {
        let untyped = |fill: fn(&mut AttributeProto)| plain(AttributeType::Int, |p| (p.r#type = None, fill(p)).1);
        assert_eq!(kept(untyped(|p| p.i = Some(3))), AttrValue::Int(3));
        assert_eq!(kept(untyped(|p| p.ints = vec![3])), AttrValue::Ints(vec![3]));
        assert_eq!(kept(untyped(|_| ())), AttrValue::Other);
        assert_eq!(kept(plain(AttributeType::Int, |_| ())), AttrValue::Int(0));
        assert_eq!(kept(plain(AttributeType::Float, |_| ())), AttrValue::Float(0.0));
        assert_eq!(kept(plain(AttributeType::String, |_| ())), AttrValue::String(Bytes::new()));
        assert_eq!(kept(plain(AttributeType::Int, |p| p.i = Some(0))), AttrValue::Int(0));
        let mut changed = read(add()).unwrap();
        let id = changed.graph.order()[0];
        let absent = Attr { name: "a".into(), value: AttrValue::Int(5), extra: pack_rest(&AttributeProto { r#type: Some(ABSENT), ..Default::default() }) };
        changed.graph.node_mut(id).attrs.push(absent);
        let p = export::export(&changed, &mut Place::Inline).unwrap().graph.unwrap();
        assert_eq!(p.node[0].attribute[0], plain(AttributeType::Int, |p| p.i = Some(5)));
    }

    #[test]
    fn a_new_attribute_states_its_type() {
        let p = export(&Attr::new("axis", 1i64), &mut Place::Inline).unwrap();
        assert_eq!((p.name(), p.r#type, p.i), ("axis", Some(AttributeType::Int as i32), Some(1)));
    }

    #[test]
    fn an_error_names_node_and_attribute() {
        let mut p = add();
        let n = &mut p.graph.as_mut().unwrap().node[0];
        n.name = text("sum");
        n.attribute.push(plain(AttributeType::Tensor, |p| p.t = Some(Default::default())));
        assert_refused(p, &["node \"sum\"", "attribute \"a\"", "element type 0"]);
    }
}
