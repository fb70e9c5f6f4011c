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

impl Given {
    /// The given value as an input of its own, without a constant, of this type and shape.
    fn declare(&self, model: &mut Model) {
        let value = model.graph.value_mut(self.value);
        value.constant = None;
        value.ty = Type::Tensor { dtype: Some(self.dtype), shape: Some(self.shape.iter().map(|&d| Dim::Known(d)).collect()) };
    }
}

/// The nodes that lie between `inputs` and `outputs`, as a model whose inputs are the given values, under their own names and ids and of the given types
/// and shapes. Constants and quantizers come along. Fails, by name, where an output needs a value that is neither given nor made from given ones.
pub fn cut(model: &Model, inputs: &[Given], outputs: &[ValueId]) -> Result<Model> {
    let values: Vec<ValueId> = inputs.iter().map(|i| i.value).collect();
    let mut part = cut_at(model, &values, outputs)?;
    inputs.iter().for_each(|i| i.declare(&mut part));
    Ok(part)
}

/// The same, with types and shapes as they are declared.
pub fn cut_at(model: &Model, inputs: &[ValueId], outputs: &[ValueId]) -> Result<Model> {
    let g = &model.graph;
    let given: BTreeSet<ValueId> = inputs.iter().copied().collect();
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
    g.inputs = inputs.to_vec();
    g.keep_nodes(|n| keep.contains(&n));
    for &v in inputs {
        if let Some((node, slot)) = g.value(v).producer() {
            // The node stays for its other outputs; this one gets another name.
            let other = g.add_value("");
            g.set_output(node, slot as usize, other);
        }
    }
    Ok(part)
}
