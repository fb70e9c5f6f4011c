//! Small models for this room's tests.

use crate::graph::{Dim, Model, Node, NodeId, Op, Type};
use crate::tensor::{DType, Tensor};

/// A model of inputs, constants and nodes, each by names; values are made as they are met.
pub fn model(opset: i64, inputs: &[(&str, DType, &[usize])], constants: &[(&str, Tensor)], nodes: Vec<(Node, &[&str], &[&str])>, outputs: &[&str]) -> Model {
    let mut m = Model { opsets: vec![(String::new(), opset)], ..Model::default() };
    let g = &mut m.graph;
    for (name, dtype, shape) in inputs {
        let v = g.add_value(name);
        g.value_mut(v).ty = Type::Tensor { dtype: Some(*dtype), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        g.inputs.push(v);
    }
    for (name, t) in constants {
        g.add_constant(name, t.clone());
    }
    for (mut node, reads, makes) in nodes {
        node.name = format!("make_{}", makes[0]);
        let mut values = |names: &[&str]| names.iter().map(|n| (!n.is_empty()).then(|| g.find_value(n).unwrap_or_else(|| g.add_value(n)))).collect::<Vec<_>>();
        let (reads, makes) = (values(reads), values(makes));
        g.add_node(node, &reads, &makes);
    }
    m.graph.outputs = outputs.iter().map(|n| m.graph.find_value(n).unwrap()).collect();
    m
}

pub fn node(op: Op) -> Node {
    Node::new(op, "")
}

pub fn f32s(values: &[f32]) -> Tensor {
    if let [one] = values { Tensor::scalar(*one) } else { Tensor::of_f32(&[values.len()], values.to_vec()) }
}

/// A tensor of a type of one byte.
pub fn bytes(dtype: DType, shape: &[usize], values: &[u8]) -> Tensor {
    Tensor::new(dtype, shape.to_vec(), values.to_vec().into()).unwrap()
}

/// Ops in execution order.
pub fn ops(m: &Model) -> Vec<Op> {
    m.graph.nodes().map(|(_, n)| n.op).collect()
}

/// The node that makes a value.
pub fn maker<'a>(m: &'a Model, name: &str) -> (NodeId, &'a Node) {
    let (id, _) = m.graph.value(m.graph.find_value(name).unwrap_or_else(|| panic!("{name} is gone"))).producer().unwrap();
    (id, m.graph.node(id))
}

/// Name of input `slot` of the node that makes a value.
pub fn read<'a>(m: &'a Model, name: &str, slot: usize) -> &'a str {
    &m.graph.value(maker(m, name).1.input(slot).unwrap()).name
}
