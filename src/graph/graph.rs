//! Nodes, values and the edits that keep their use–def links true. Values have names because ONNX's do; ids are stable across edits and never reused.

use super::{AttrValue, Constant, Node, Op};
use crate::tensor::DType;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Names a node of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// Names a value of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// One place where a node reads a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    pub node: NodeId,
    /// Input slot; [`Port::CAPTURE`] where a subgraph of the node reads the value by name.
    pub slot: u32,
}

impl Port {
    pub const CAPTURE: u32 = u32::MAX;
}

/// A tensor that flows: a graph input, a constant, a node's output, or an outer graph's value read by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    pub name: String,
    pub ty: Type,
    pub constant: Option<Constant>,
    /// As `Node::extra`, of the value's ValueInfoProto.
    pub extra: Bytes,
    producer: Option<(NodeId, u32)>,
    uses: Vec<Port>,
}

/// Element type and shape, as far as declared or inferred.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Type {
    #[default]
    Unknown,
    Tensor {
        dtype: Option<DType>,
        /// `None`: rank unknown.
        shape: Option<Vec<Dim>>,
    },
    /// A sequence, map, optional or sparse tensor: kept in `Value::extra`.
    Other,
}

/// A dimension as declared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    Known(usize),
    Symbol(Arc<str>),
    Unknown,
}

/// A declared shape for people: `[N, 3, ?]`.
pub fn shape_text(shape: &[Dim]) -> String {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => s.to_string(),
        Dim::Unknown => "?".to_string(),
    };
    format!("[{}]", shape.iter().map(dim).collect::<Vec<_>>().join(", "))
}

/// A graph or the body of an If, Loop or Scan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    pub name: String,
    /// As `Node::extra`, of the GraphProto.
    pub extra: Bytes,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Values in the order the file lists its initializers.
    pub initializers: Vec<ValueId>,
    /// Values in the order the file lists their `value_info`.
    pub value_info: Vec<ValueId>,
    nodes: Vec<Option<Node>>,
    values: Vec<Option<Value>>,
    /// Execution order.
    order: Vec<NodeId>,
    by_name: HashMap<String, ValueId>,
}

impl Value {
    /// The node and output slot that make this value.
    pub fn producer(&self) -> Option<(NodeId, u32)> {
        self.producer
    }

    /// Every port that reads this value, in no particular order; a graph's outputs are not among them.
    pub fn uses(&self) -> &[Port] {
        &self.uses
    }

    /// The declared shape where every dimension is a number.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        if let Some(c) = &self.constant {
            return Some(c.tensor.shape().to_vec());
        }
        match &self.ty {
            Type::Tensor { shape: Some(s), .. } => s.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect(),
            _ => None,
        }
    }

    /// Gives the value another element type, its shape being as it was; of what is no tensor, nothing.
    pub fn set_dtype(&mut self, to: DType) {
        if let Type::Tensor { dtype, .. } = &mut self.ty {
            *dtype = Some(to);
        }
    }

    pub fn dtype(&self) -> Option<DType> {
        match (&self.constant, &self.ty) {
            (Some(c), _) => Some(c.tensor.dtype()),
            (None, Type::Tensor { dtype, .. }) => *dtype,
            _ => None,
        }
    }
}

impl Graph {
    // ---- values

    /// Adds a value. A name that is taken gets a number behind it; an empty name gets a fresh one.
    pub fn add_value(&mut self, name: &str) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let name = self.fresh_name(name);
        self.by_name.insert(name.clone(), id);
        self.values.push(Some(Value { name, ty: Type::Unknown, constant: None, extra: Bytes::new(), producer: None, uses: Vec::new() }));
        id
    }

    /// Adds a constant that is written as an initializer.
    pub fn add_constant(&mut self, name: &str, constant: impl Into<Constant>) -> ValueId {
        let id = self.add_value(name);
        self.value_mut(id).constant = Some(constant.into());
        self.initializers.push(id);
        id
    }

    /// The value called `name`.
    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// `name`, or `name_1`, `name_2` … whichever is free.
    pub fn fresh_name(&self, name: &str) -> String {
        let base = if name.is_empty() { "value" } else { name };
        if !self.by_name.contains_key(base) {
            return base.to_string();
        }
        (1..).map(|i| format!("{base}_{i}")).find(|n| !self.by_name.contains_key(n)).unwrap()
    }

    /// Gives a value another name, which must be free; bodies that read it by name follow.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn rename_value(&mut self, id: ValueId, name: &str) {
        let old = self.value(id).name.clone();
        if old == name {
            return;
        }
        assert!(!self.by_name.contains_key(name), "{name} is taken");
        for port in self.value(id).uses.clone() {
            if port.slot == Port::CAPTURE {
                self.node_mut(port.node).bodies_mut().for_each(|g| g.rename_captured(&old, name));
            }
        }
        self.by_name.remove(&old);
        self.by_name.insert(name.to_string(), id);
        self.value_mut(id).name = name.to_string();
    }

    pub fn value(&self, id: ValueId) -> &Value {
        self.values[id.0 as usize].as_ref().expect("a value that was not removed")
    }

    /// To change type, constant and extra. The name changes by [`Graph::rename_value`] only.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        self.values[id.0 as usize].as_mut().expect("a value that was not removed")
    }

    /// Whether the value is still there.
    pub fn has_value(&self, id: ValueId) -> bool {
        self.values.get(id.0 as usize).is_some_and(Option::is_some)
    }

    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().filter_map(|(i, v)| Some((ValueId(i as u32), v.as_ref()?)))
    }

    /// One more than the highest value id: the length of a table indexed by value.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// The constant behind a value: an initializer that is no overridable input, or a Constant node's output.
    pub fn constant(&self, id: ValueId) -> Option<&Constant> {
        let v = self.value(id);
        if v.constant.is_some() && !self.inputs.contains(&id) {
            return v.constant.as_ref();
        }
        let (node, _) = v.producer?;
        let node = self.node(node);
        match (node.op, node.attr("value")) {
            (Op::Constant, Some(AttrValue::Tensor(c))) => Some(c),
            _ => None,
        }
    }

    /// Whether the graph hands this value out.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.contains(&id)
    }

    // ---- nodes

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("a node that was not removed")
    }

    /// To change name, op and attributes; inputs and outputs change by the graph's own methods.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("a node that was not removed")
    }

    /// The node if it is still there.
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    /// Nodes in execution order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// Ids in execution order.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// Appends a node at the end of the execution order.
    pub fn add_node(&mut self, node: Node, inputs: &[Option<ValueId>], outputs: &[Option<ValueId>]) -> NodeId {
        let at = self.order.len();
        self.insert_node(at, node, inputs, outputs)
    }

    /// Inserts a node before position `at` of the execution order. Its outputs must have no producer yet.
    ///
    /// # Panics
    /// If an output has a producer.
    pub fn insert_node(&mut self, at: usize, mut node: Node, inputs: &[Option<ValueId>], outputs: &[Option<ValueId>]) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        node.inputs = inputs.to_vec();
        node.outputs = outputs.to_vec();
        node.captures = Vec::new();
        for (slot, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.value_mut(*v).uses.push(Port { node: id, slot: slot as u32 });
            }
        }
        for (slot, v) in outputs.iter().enumerate() {
            if let Some(v) = v {
                let value = self.value_mut(*v);
                assert!(value.producer.is_none(), "{} is made twice", value.name);
                value.producer = Some((id, slot as u32));
            }
        }
        self.nodes.push(Some(node));
        self.order.insert(at, id);
        self.refresh_captures(id);
        id
    }

    /// Where a node stands in the execution order.
    pub fn position(&self, id: NodeId) -> usize {
        self.order.iter().position(|&n| n == id).expect("a node that was not removed")
    }

    /// Takes out a node that makes its first output of its first input, and connects these. An output of the graph keeps its name: the node before
    /// makes it; where none does, or makes another output of the graph, nothing is done.
    pub fn bypass(&mut self, id: NodeId) -> bool {
        let (Some(x), Some(y)) = (self.node(id).input(0), self.node(id).output(0)) else { return false };
        if !self.is_output(y) {
            self.remove_node(id);
            self.replace_uses(y, x);
            self.remove_value(y);
            return true;
        }
        let Some((producer, slot)) = self.value(x).producer().filter(|_| !self.is_output(x)) else { return false };
        self.remove_node(id);
        self.replace_uses(x, y);
        self.set_output(producer, slot as usize, y);
        self.remove_value(x);
        true
    }

    /// Removes a node. Its outputs stay, without a producer, for the caller to reconnect or remove.
    pub fn remove_node(&mut self, id: NodeId) -> Node {
        self.order.retain(|&n| n != id);
        self.unlink(id)
    }

    /// Removes all nodes but these, as [`Graph::remove_node`] does.
    pub fn keep_nodes(&mut self, kept: impl Fn(NodeId) -> bool) {
        let (order, gone): (Vec<NodeId>, Vec<NodeId>) = self.order.iter().partition(|n| kept(**n));
        self.order = order;
        gone.into_iter().for_each(|n| drop(self.unlink(n)));
    }

    fn unlink(&mut self, id: NodeId) -> Node {
        let node = self.nodes[id.0 as usize].take().expect("a node that was not removed");
        node.inputs.iter().flatten().chain(&node.captures).for_each(|v| self.value_mut(*v).uses.retain(|p| p.node != id));
        node.outputs.iter().flatten().for_each(|v| self.value_mut(*v).producer = None);
        node
    }

    /// Removes a value if nobody makes, reads or hands it out.
    pub fn remove_idle(&mut self, id: ValueId) {
        let v = self.value(id);
        if v.producer.is_none() && v.uses.is_empty() && !self.inputs.contains(&id) && !self.outputs.contains(&id) {
            self.remove_value(id);
        }
    }

    /// Removes a value that nobody makes, reads or hands out.
    ///
    /// # Panics
    /// If somebody does.
    pub fn remove_value(&mut self, id: ValueId) {
        let v = self.value(id);
        assert!(v.producer.is_none() && v.uses.is_empty() && !self.inputs.contains(&id) && !self.outputs.contains(&id), "{} is in use", v.name);
        let name = v.name.clone();
        self.by_name.remove(&name);
        self.values[id.0 as usize] = None;
        self.initializers.retain(|&v| v != id);
        self.value_info.retain(|&v| v != id);
    }

    /// Makes input `slot` of a node read `value` (or nothing). Slots up to it are added as needed.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        let port = Port { node, slot: slot as u32 };
        let n = self.node_mut(node);
        if n.inputs.len() <= slot {
            n.inputs.resize(slot + 1, None);
        }
        let old = std::mem::replace(&mut n.inputs[slot], value);
        if let Some(old) = old {
            self.value_mut(old).uses.retain(|&p| p != port);
        }
        if let Some(new) = value {
            self.value_mut(new).uses.push(port);
        }
    }

    /// Drops trailing input slots beyond `len`.
    pub fn truncate_inputs(&mut self, node: NodeId, len: usize) {
        for slot in len..self.node(node).inputs.len() {
            self.set_input(node, slot, None);
        }
        self.node_mut(node).inputs.truncate(len);
    }

    /// Makes output `slot` of a node produce `value`, which must have no producer; the old value keeps its readers.
    pub fn set_output(&mut self, node: NodeId, slot: usize, value: ValueId) {
        let n = self.node_mut(node);
        if n.outputs.len() <= slot {
            n.outputs.resize(slot + 1, None);
        }
        if let Some(old) = n.outputs[slot].replace(value) {
            self.value_mut(old).producer = None;
        }
        let v = self.value_mut(value);
        assert!(v.producer.is_none(), "{} is made twice", v.name);
        v.producer = Some((node, slot as u32));
    }

    /// Makes every node that reads `old` read `new`, bodies included. Graph outputs are left alone: their names are the model's interface.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let (from, to) = (self.value(old).name.clone(), self.value(new).name.clone());
        for port in std::mem::take(&mut self.value_mut(old).uses) {
            if port.slot == Port::CAPTURE {
                let node = self.node_mut(port.node);
                node.bodies_mut().for_each(|g| g.rename_captured(&from, &to));
                for v in &mut node.captures {
                    if *v == old {
                        *v = new;
                    }
                }
            } else {
                self.node_mut(port.node).inputs[port.slot as usize] = Some(new);
            }
            self.value_mut(new).uses.push(port);
        }
    }

    /// Finds anew which outer values the bodies of a node read.
    pub fn refresh_captures(&mut self, id: NodeId) {
        for v in std::mem::take(&mut self.node_mut(id).captures) {
            self.value_mut(v).uses.retain(|p| !(p.node == id && p.slot == Port::CAPTURE));
        }
        let mut names: Vec<String> = self.node(id).bodies().flat_map(|(_, g)| g.captured()).collect();
        names.sort();
        names.dedup();
        let captures: Vec<ValueId> = names.iter().filter_map(|n| self.find_value(n)).collect();
        for &v in &captures {
            self.value_mut(v).uses.push(Port { node: id, slot: Port::CAPTURE });
        }
        self.node_mut(id).captures = captures;
    }

    /// Whether a value of a body stands for one of the graphs around it.
    pub(super) fn is_outer(&self, id: ValueId) -> bool {
        let v = self.value(id);
        v.producer.is_none() && v.constant.is_none() && !self.inputs.contains(&id)
    }

    /// Names that this body reads from the graphs around it.
    pub fn captured(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.values().filter(|(id, v)| self.is_outer(*id) && (self.is_output(*id) || !v.uses.is_empty())).map(|(_, v)| v.name.clone()).collect();
        for (_, node) in self.nodes() {
            names.extend(node.bodies().flat_map(|(_, g)| g.captured()).filter(|n| self.find_value(n).is_none()));
        }
        names
    }

    pub(super) fn rename_captured(&mut self, old: &str, new: &str) {
        if let Some(id) = self.find_value(old) {
            if self.is_outer(id) {
                match self.find_value(new) {
                    None => self.rename_value(id, new),
                    Some(known) => self.replace_uses(id, known),
                }
            }
            return;
        }
        for id in self.order.clone() {
            self.node_mut(id).bodies_mut().for_each(|g| g.rename_captured(old, new));
        }
    }

    /// Gives a node whose name an earlier one has a number behind it: runtimes refuse two nodes of one name.
    pub fn name_nodes_apart(&mut self) {
        let mut taken: HashSet<String> = self.nodes().map(|(_, n)| n.name.clone()).collect();
        let mut met = HashSet::new();
        for id in self.order.clone() {
            let name = self.node(id).name.clone();
            if name.is_empty() || met.insert(name.clone()) {
                continue;
            }
            let new = (1..).map(|i| format!("{name}_{i}")).find(|n| taken.insert(n.clone())).expect("numbers do not end");
            self.node_mut(id).name = new;
        }
    }

    /// Puts the nodes into an order in which each stands behind what it reads; stable. `Err` names a node on a cycle.
    pub fn sort(&mut self) -> Result<(), String> {
        let mut done = vec![false; self.nodes.len()];
        let mut order = Vec::with_capacity(self.order.len());
        for &root in &self.order {
            let mut stack = vec![(root, false)];
            let mut open = HashSet::new();
            while let Some((id, ready)) = stack.pop() {
                if done[id.0 as usize] {
                    continue;
                }
                if ready {
                    done[id.0 as usize] = true;
                    order.push(id);
                    continue;
                }
                if !open.insert(id) {
                    return Err(self.node(id).name.clone());
                }
                stack.push((id, true));
                let node = self.node(id);
                for v in node.inputs.iter().flatten().chain(&node.captures).rev() {
                    if let Some((p, _)) = self.value(*v).producer
                        && !done[p.0 as usize]
                    {
                        stack.push((p, false));
                    }
                }
            }
        }
        self.order = order;
        Ok(())
    }
}
