//! Small messages for the tests of this room.

use super::external::Files;
use super::proto::*;
use super::{import, rest};
use crate::error::Result;
use crate::graph::{Model, Op};

pub fn text(t: &str) -> Option<String> {
    Some(t.to_string())
}

/// A declaration of a float32 tensor.
pub fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims.iter().map(|&d| Dimension { value: Some(Value::DimValue(d)), denotation: None }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: text(name), r#type: Some(ty), ..Default::default() }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
    NodeProto { op_type: text(op), input: own(inputs), output: own(outputs), ..Default::default() }
}

/// A float32 initializer of ones.
pub fn initializer(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>() as usize;
    let raw = vec![1.0f32; n].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    TensorProto { name: text(name), dims: dims.to_vec(), data_type: Some(1), raw_data: Some(raw.into()), ..Default::default() }
}

pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: text(key), value: text(value) }
}

/// x → `nodes` → y.
pub fn graph(nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto { name: text("g"), node: nodes, input: vec![info("x", &[2, 3])], output: vec![info("y", &[2, 3])], ..Default::default() }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto { ir_version: Some(8), opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }], graph: Some(graph), ..Default::default() }
}

/// y = x + w.
pub fn add() -> ModelProto {
    let mut g = graph(vec![node(Op::Add.spelling().1, &["x", "w"], &["y"])]);
    g.initializer.push(initializer("w", &[2, 3]));
    model(g)
}

pub fn read(p: ModelProto) -> Result<Model> {
    import::import(p, &mut Files::of(None))
}

/// Asserts that a model comes back as it was, through the graph.
pub fn assert_kept(p: ModelProto) {
    let model = read(p.clone()).expect("it imports");
    assert_eq!(super::export::export(&model, &mut super::tensor::Place::Inline).expect("it exports"), p);
}

/// Asserts that a model is refused with all of `words` in the message.
pub fn assert_refused(p: ModelProto, words: &[&str]) {
    let e = read(p).expect_err("it is refused");
    assert_eq!(e.exit_code(), 2);
    words.iter().for_each(|w| assert!(e.to_string().contains(w), "{w:?} is missing in: {e}"));
}

#[test]
fn nothing_remains_of_a_plain_model() {
    assert_kept(add());
    let m = read(add()).unwrap();
    assert!(m.extra.is_empty() && m.graph.extra.is_empty());
    assert!(m.graph.nodes().all(|(_, n)| n.extra.is_empty()));
    assert!(m.graph.values().all(|(_, v)| v.extra.is_empty() && v.constant.as_ref().is_none_or(|c| c.extra.is_empty())));
    assert!(rest::pack_rest(&ModelProto::default()).is_empty());
}
