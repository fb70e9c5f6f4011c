//! A part of a model as a model of its own.

use crate::error::{Error, Result};
use crate::graph::{Dim, Model, Node, Type, ValueId};
use crate::tensor::DType;
use std::collections::BTreeSet;

/// A value that a segment is given: its id in the model, type and shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub value: ValueId,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// The nodes that lie between `inputs` and `outputs`, as a model whose inputs are the given values, under their own names and ids.
/// Constants and quantizers come along. Fails, by name, where an output needs a value that is neither given nor made from given ones.
pub fn cut(model: &Model, inputs: &[Given], outputs: &[ValueId]) -> Result<Model> {
    let g = &model.graph;
    let given: BTreeSet<ValueId> = inputs.iter().map(|i| i.value).collect();
    let mut keep = BTreeSet::new();
    let mut open = outputs.to_vec();
    let mut seen: BTreeSet<ValueId> = given.clone();
    while let Some(v) = open.pop() {
        if !seen.insert(v) || g.constant(v).is_some() && g.value(v).producer().is_none() {
            continue;
        }
        match g.value(v).producer() {
            Some((node, _)) => {
                keep.insert(node);
                let node: &Node = g.node(node);
                open.extend(node.inputs().iter().flatten().chain(node.captures()));
            }
            None => {
                let name = &g.value(v).name;
                return Err(Error::failed(format!("the segment needs {name}, which is not among the values it is given")));
            }
        }
    }
    let mut part = model.clone();
    let g = &mut part.graph;
    g.outputs = outputs.to_vec();
    g.inputs = inputs.iter().map(|i| i.value).collect();
    let drop: Vec<_> = g.order().iter().copied().filter(|n| !keep.contains(n)).collect();
    for node in drop {
        g.remove_node(node);
    }
    for i in inputs {
        if let Some((node, slot)) = g.value(i.value).producer() {
            // The node stays for its other outputs; this one gets another name.
            let other = g.add_value("");
            g.set_output(node, slot as usize, other);
        }
        let value = g.value_mut(i.value);
        value.constant = None;
        value.ty = Type::Tensor { dtype: Some(i.dtype), shape: Some(i.shape.iter().map(|&d| Dim::Known(d)).collect()) };
    }
    Ok(part)
}
