//! What the recipe's overrides ask of each node and tensor. Later entries win.

use super::Rules;
use crate::error::{Error, Result};
use crate::graph::{Model, NodeId, ValueId};
use crate::target::{Keep, Override, SchemeKeys};
use std::collections::BTreeMap;

/// Overrides, sorted by what they match.
pub struct Wishes<'a> {
    model: &'a Model,
    nodes: BTreeMap<NodeId, Vec<&'a Override>>,
    tensors: BTreeMap<ValueId, Vec<&'a Override>>,
}

impl<'a> Wishes<'a> {
    /// Fails on an override that matches nothing and is not optional.
    pub fn of(model: &'a Model, rules: &'a Rules) -> Result<Self> {
        let mut w = Wishes { model, nodes: BTreeMap::new(), tensors: BTreeMap::new() };
        for o in rules.overrides {
            let nodes = o.select.nodes(model)?;
            let tensors = o.select.tensors(model)?;
            if nodes.is_empty() && tensors.is_empty() && !o.optional {
                return Err(Error::usage(format!("{}: the override matches nothing in this model; correct it, or add `optional: true`", o.origin)));
            }
            for id in nodes {
                w.nodes.entry(id).or_default().push(o);
            }
            for id in tensors {
                w.tensors.entry(id).or_default().push(o);
            }
        }
        Ok(w)
    }

    fn node(&self, id: NodeId) -> &[&'a Override] {
        self.nodes.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Why a node is to stay float, if it is.
    pub fn keep(&self, id: NodeId) -> Option<String> {
        self.node(id).iter().rev().find_map(|o| Some((o, o.set.keep?))).map(|(o, keep)| {
            let how = if keep == Keep::Input { "as in the input file" } else { "float" };
            format!("kept {how} by the override at {}", o.origin)
        })
    }

    /// Keys of a weight; `None` where an override leaves it float.
    pub fn weights(&self, id: NodeId, slot: usize, base: &SchemeKeys) -> Option<SchemeKeys> {
        let asked = self.node(id).iter().flat_map(|o| [o.set.weights.as_ref(), o.set.inputs.get(&slot)]);
        overlay(base, asked)
    }

    /// Keys of a bias; `None` where it stays float.
    pub fn bias(&self, id: NodeId, base: &SchemeKeys) -> Option<SchemeKeys> {
        overlay(base, self.node(id).iter().map(|o| o.set.bias.as_ref()))
    }

    /// Keys under which a node wants to read its input.
    pub fn input(&self, id: NodeId, slot: usize, base: &SchemeKeys) -> Option<SchemeKeys> {
        let asked = self.node(id).iter().flat_map(|o| [o.set.activations.as_ref(), o.set.inputs.get(&slot)]);
        overlay(base, asked)
    }

    /// Whether an override speaks of how a node reads this input.
    pub fn names_input(&self, id: NodeId, slot: usize) -> bool {
        self.node(id).iter().any(|o| o.set.activations.is_some() || o.set.inputs.contains_key(&slot))
    }

    /// Whether an override speaks of a value's codes.
    pub fn asks_of_value(&self, v: ValueId) -> bool {
        let of_node = |(n, slot): (NodeId, u32)| self.node(n).iter().any(|o| o.set.activations.is_some() || o.set.outputs.contains_key(&(slot as usize)));
        self.model.graph.value(v).producer().is_some_and(of_node) || self.tensors.get(&v).into_iter().flatten().any(|o| o.set.activations.is_some())
    }

    /// Whether an override speaks of the codes that a node reads there.
    pub fn asks_of_port(&self, id: NodeId, slot: usize) -> bool {
        self.node(id).iter().any(|o| o.set.weights.is_some() || o.set.inputs.contains_key(&slot))
    }

    /// Keys of a value that flows: those of its producer's outputs, then those that name the tensor.
    pub fn value(&self, v: ValueId, base: &SchemeKeys) -> SchemeKeys {
        let producer = self.model.graph.value(v).producer();
        let by_node =
            producer.into_iter().flat_map(|(n, slot)| self.node(n).iter().flat_map(move |o| [o.set.activations.as_ref(), o.set.outputs.get(&(slot as usize))]));
        let by_name = self.tensors.get(&v).into_iter().flatten().map(|o| o.set.activations.as_ref());
        by_node.chain(by_name).flatten().fold(base.clone(), |keys, asked| asked.clone().over(&keys))
    }

    /// The same on top of a fixed range of the target's.
    pub fn fixed(&self, v: ValueId, base: &SchemeKeys, fixed: &SchemeKeys) -> SchemeKeys {
        self.value(v, &fixed.clone().over(base))
    }
}

fn overlay<'k>(base: &SchemeKeys, asked: impl Iterator<Item = Option<&'k SchemeKeys>>) -> Option<SchemeKeys> {
    let keys = asked.flatten().fold(base.clone(), |keys, asked| asked.clone().over(&keys));
    (!keys.is_none()).then_some(keys)
}
