//! Our graph → the protobuf structs that tract parses. Built directly, not through a file's bytes: weights never pass through protobuf
//! (the runner puts them into the plan itself), and nothing that tract's old schema lacks can get in its way.

use super::tensors::datum_type;
use crate::error::{Error, Result};
use crate::graph::{AttrValue, Constant, Graph, Model, Node, ValueId};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeSet;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// The model in tract's terms. `sources` are the values that the plan is given: inputs, and constants that the caller puts in.
/// Nodes are called `@index@`, so that tract's complaints can be traced back ([`node_of`]).
pub fn encode(model: &Model, sources: &[(ValueId, DType, Vec<usize>)], outputs: &[ValueId]) -> Result<ModelProto> {
    let g = &model.graph;
    let named = |v: ValueId| ValueInfoProto { name: g.value(v).name.clone(), ..Default::default() };
    let mut graph = GraphProto { name: "graph".into(), output: outputs.iter().map(|&v| named(v)).collect(), ..Default::default() };
    for (v, dtype, shape) in sources {
        graph.input.push(ValueInfoProto { r#type: Some(type_proto(*dtype, shape)), ..named(*v) });
    }
    for (id, node) in g.nodes() {
        graph.node.push(encode_node(g, node, format!("@{}@", id.0))?);
    }
    let opset = model.opset("").unwrap_or(0);
    Ok(ModelProto {
        ir_version: model.ir_version,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(graph),
        ..Default::default()
    })
}

/// The index of the node that a complaint of tract's speaks of.
pub fn node_of(complaint: &str) -> Option<u32> {
    complaint.split('@').skip(1).find_map(|s| s.parse().ok())
}

fn type_proto(dtype: DType, shape: &[usize]) -> TypeProto {
    let dim = |&d: &usize| Dimension { value: Some(dimension::Value::DimValue(d as i64)), ..Default::default() };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect() });
    TypeProto { value: Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: dtype.onnx(), shape })), ..Default::default() }
}

fn encode_node(g: &Graph, node: &Node, name: String) -> Result<NodeProto> {
    let names = |values: &[Option<ValueId>]| values.iter().map(|v| v.map_or(String::new(), |v| g.value(v).name.clone())).collect();
    let attribute = node.attrs.iter().map(|a| encode_attr(&a.name, &a.value, &name)).collect::<Result<_>>()?;
    // tract counts inputs that are left out.
    let given = node.inputs().iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    // tract knows operators by their name alone; `support` has made sure that the name means the same there.
    Ok(NodeProto {
        input: names(&node.inputs()[..given]),
        output: names(node.outputs()),
        op_type: node.op_type.to_string(),
        attribute,
        name,
        ..Default::default()
    })
}

fn encode_attr(name: &str, value: &AttrValue, node: &str) -> Result<AttributeProto> {
    let mut a = AttributeProto { name: name.into(), ..Default::default() };
    let kind = match value {
        AttrValue::Int(i) => {
            a.i = *i;
            AttributeType::Int
        }
        AttrValue::Float(f) => {
            a.f = *f;
            AttributeType::Float
        }
        AttrValue::String(s) => {
            a.s = s.to_vec();
            AttributeType::String
        }
        AttrValue::Ints(v) => {
            a.ints = v.clone();
            AttributeType::Ints
        }
        AttrValue::Floats(v) => {
            a.floats = v.clone();
            AttributeType::Floats
        }
        AttrValue::Strings(v) => {
            a.strings = v.iter().map(|s| s.to_vec()).collect();
            AttributeType::Strings
        }
        AttrValue::Tensor(c) => {
            a.t = Some(encode_tensor(String::new(), &c.tensor)?);
            AttributeType::Tensor
        }
        AttrValue::Graph(g) => {
            a.g = Some(encode_body(g, node)?);
            AttributeType::Graph
        }
        _ => return Err(Error::failed(format!("attribute {name} is of a kind the engine does not read"))),
    };
    a.r#type = kind as i32;
    Ok(a)
}

/// A body: its constants go along as initializers, its nodes are named after the node that holds it.
fn encode_body(g: &Graph, holder: &str) -> Result<GraphProto> {
    let info = |v: &ValueId| {
        let value = g.value(*v);
        let shape = value.known_shape();
        let r#type = value.dtype().map(|t| match shape {
            Some(s) => type_proto(t, &s),
            None => TypeProto { value: Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: t.onnx(), shape: None })), ..Default::default() },
        });
        ValueInfoProto { name: value.name.clone(), r#type, ..Default::default() }
    };
    let inputs: BTreeSet<_> = g.inputs.iter().collect();
    let constants = g.values().filter(|(v, _)| !inputs.contains(v));
    Ok(GraphProto {
        name: "body".into(),
        input: g.inputs.iter().map(info).collect(),
        output: g.outputs.iter().map(info).collect(),
        initializer: constants.filter_map(|(_, v)| v.constant.as_ref().map(|c: &Constant| encode_tensor(v.name.clone(), &c.tensor))).collect::<Result<_>>()?,
        node: g.nodes().map(|(id, n)| encode_node(g, n, format!("{holder}.{}", id.0))).collect::<Result<_>>()?,
        ..Default::default()
    })
}

fn encode_tensor(name: String, t: &Tensor) -> Result<TensorProto> {
    if datum_type(t.dtype()).is_none() {
        return Err(Error::failed(format!("the engine does not compute with {} tensors", t.dtype())));
    }
    let dims = t.shape().iter().map(|&d| d as i64).collect();
    Ok(TensorProto { name, dims, data_type: t.dtype().onnx(), raw_data: t.bytes().to_vec(), ..Default::default() })
}
