//! Operator calls: what they are, what they read and make, and their attributes.

use super::{Attr, AttrValue, Graph, Op, ValueId};
use bytes::Bytes;
use std::sync::Arc;

/// An operator call.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub name: String,
    pub op: Op,
    /// The operator's name as written; what `op` is looked up from.
    pub op_type: Arc<str>,
    /// `""` is ONNX's own domain.
    pub domain: Arc<str>,
    pub attrs: Vec<Attr>,
    /// Names of the input file's nodes that this one came from; empty for a node that is itself from the file.
    pub came_from: Vec<String>,
    /// What `onnx` could not say in the fields above (encoded, without them): written back as it was.
    pub extra: Bytes,
    pub(super) inputs: Vec<Option<ValueId>>,
    pub(super) outputs: Vec<Option<ValueId>>,
    pub(super) captures: Vec<ValueId>,
}

impl Node {
    /// A node of `op` without inputs, outputs or attributes.
    pub fn new(op: Op, name: impl Into<String>) -> Self {
        let (domain, op_type) = op.spelling();
        Node {
            name: name.into(),
            op,
            op_type: op_type.into(),
            domain: domain.into(),
            attrs: Vec::new(),
            came_from: Vec::new(),
            extra: Bytes::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            captures: Vec::new(),
        }
    }

    /// A node spelled as in a file; unknown spellings are `Op::Other`.
    pub fn spelled(domain: &str, op_type: &str, name: impl Into<String>) -> Self {
        let op = Op::of_spelling(domain, op_type);
        Node { op, op_type: op_type.into(), domain: domain.into(), ..Node::new(Op::Identity, name) }
    }

    /// The same with an attribute more.
    pub fn with(mut self, name: &str, value: impl Into<AttrValue>) -> Self {
        self.set_attr(name, value);
        self
    }

    /// Input slots; `None` where an optional input is left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// Output slots; `None` where an optional output is left out.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    /// Outer values that subgraphs of this node read by name.
    pub fn captures(&self) -> &[ValueId] {
        &self.captures
    }

    /// The value at input `slot`, if there is one.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Of two operands, the one that is not at `slot`.
    pub fn other(&self, slot: usize) -> Option<ValueId> {
        self.input(1usize.checked_sub(slot)?)
    }

    /// The value at output `slot`, if there is one.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    pub fn attr(&self, name: &str) -> Option<&AttrValue> {
        self.attrs.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name)? {
            AttrValue::Int(i) => Some(*i),
            _ => None,
        }
    }

    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attr(name)? {
            AttrValue::Float(f) => Some(*f),
            _ => None,
        }
    }

    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attr(name)? {
            AttrValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attr(name)? {
            AttrValue::String(s) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }

    /// Sets or replaces an attribute.
    pub fn set_attr(&mut self, name: &str, value: impl Into<AttrValue>) {
        let value = value.into();
        match self.attrs.iter_mut().find(|a| a.name == name) {
            Some(a) => a.value = value,
            None => self.attrs.push(Attr::new(name, value)),
        }
    }

    /// Removes an attribute, if it is there.
    pub fn remove_attr(&mut self, name: &str) {
        self.attrs.retain(|a| a.name != name);
    }

    /// The bodies of an If, Loop or Scan, with the names of their attributes.
    pub fn bodies(&self) -> impl Iterator<Item = (&str, &Graph)> {
        self.attrs.iter().flat_map(|a| {
            let graphs: &[Graph] = match &a.value {
                AttrValue::Graph(g) => std::slice::from_ref(g),
                AttrValue::Graphs(g) => g,
                _ => &[],
            };
            graphs.iter().map(|g| (a.name.as_str(), g))
        })
    }

    /// The same, to change them. Captures must be refreshed afterwards ([`Graph::refresh_captures`]).
    pub fn bodies_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attrs.iter_mut().flat_map(|a| {
            let graphs: &mut [Graph] = match &mut a.value {
                AttrValue::Graph(g) => std::slice::from_mut(g),
                AttrValue::Graphs(g) => g,
                _ => &mut [],
            };
            graphs.iter_mut()
        })
    }
}
