//! One graph while it is lifted: edits, constants and what is known of values. New nodes go to the end; [`Work::finish`] sorts.

use super::bodies::Outer;
use super::held::Held;
use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Inferred, Node, NodeId, Op, Site, Type, ValueId, eval};
use crate::note::Notes;
use crate::quant::{Codes, QuantizerId, Table};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

pub type Path = Vec<(NodeId, Arc<str>, u32)>;

/// A value by the graph that makes it (graphs are counted as they are met) and its id there.
pub type Home = (u32, ValueId);

/// Scale, zero point and the words for the scheme: what makes two mentions one quantizer.
pub type Key = (Home, Option<Home>, String);

/// How deep chains of constants are followed.
const DEPTH: usize = 64;

/// What all graphs of a model share.
pub struct Shared {
    pub table: Table,
    pub codes: BTreeMap<Site, Codes>,
    pub notes: Notes,
    pub ids: BTreeMap<Key, QuantizerId>,
    pub opset: i64,
    scopes: u32,
}

impl Shared {
    pub fn new(table: Table, codes: BTreeMap<Site, Codes>, opset: i64) -> Self {
        Shared { table, codes, notes: Notes::of("lift"), ids: BTreeMap::new(), opset, scopes: 0 }
    }
}

/// One graph.
pub struct Work<'a> {
    pub g: &'a mut Graph,
    pub all: &'a mut Shared,
    pub path: Path,
    pub outer: &'a Outer,
    /// Values of the file that hold codes, and what stands for them now.
    pub held: BTreeMap<ValueId, Held>,
    /// Constant codes by value and quantizer, as real numbers.
    pub reals: BTreeMap<(ValueId, QuantizerId), ValueId>,
    /// Name of the node that is being lifted.
    pub from: String,
    /// The file's own types and shapes.
    inferred: Inferred,
    scope: u32,
    constants: BTreeMap<ValueId, Option<Tensor>>,
    /// Values that lost their maker.
    dropped: Vec<ValueId>,
}

impl<'a> Work<'a> {
    pub fn new(g: &'a mut Graph, all: &'a mut Shared, path: Path, inferred: Inferred, outer: &'a Outer) -> Self {
        all.scopes += 1;
        let scope = all.scopes;
        let (held, reals, constants) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Work { g, all, path, outer, held, reals, from: String::new(), inferred, scope, constants, dropped: Vec::new() }
    }

    /// Removes what nothing reads any more, and puts the nodes in order.
    pub fn finish(self) -> Result<()> {
        self.g.sort().map_err(|node| Error::usage(format!("node {node} depends on itself")))?;
        self.g.remove_dead();
        for v in self.dropped {
            let g = &self.g;
            if g.has_value(v) && !g.inputs.contains(&v) && !g.is_output(v) && g.value(v).producer().is_none() && g.value(v).uses().is_empty() {
                self.g.remove_value(v);
            }
        }
        // Quantized constants of dead nodes went with them.
        let (g, path) = (&self.g, &self.path);
        self.all.codes.retain(|site, _| site.path != *path || g.get_node(site.node).is_some());
        Ok(())
    }

    // ---- edits

    /// Removes a node; its outputs are then without a maker.
    pub fn take(&mut self, id: NodeId) -> Node {
        let n = self.g.remove_node(id);
        self.dropped.extend(n.outputs().iter().flatten());
        n
    }

    /// Notes that a value may have lost its maker.
    pub fn drop_value(&mut self, v: ValueId) {
        self.dropped.push(v);
    }

    /// Adds a node that makes a new value called `name`.
    pub fn emit(&mut self, node: Node, inputs: &[Option<ValueId>], name: &str) -> ValueId {
        let out = self.g.add_value(name);
        self.emit_into(node, inputs, out);
        out
    }

    /// Adds a node that makes `out`. One without a name is called after it.
    pub fn emit_into(&mut self, mut node: Node, inputs: &[Option<ValueId>], out: ValueId) -> NodeId {
        if node.name.is_empty() {
            node.name = self.g.value(out).name.clone();
        }
        if node.came_from.is_empty() && !self.from.is_empty() {
            node.came_from = vec![self.from.clone()];
        }
        self.g.add_node(node, inputs, &[Some(out)])
    }

    /// Adds a node of `op` without attributes.
    pub fn op(&mut self, op: Op, inputs: &[ValueId], name: &str) -> ValueId {
        let inputs: Vec<_> = inputs.iter().map(|v| Some(*v)).collect();
        self.emit(Node::new(op, ""), &inputs, name)
    }

    /// Adds a Cast.
    pub fn cast(&mut self, v: ValueId, to: DType, name: &str) -> ValueId {
        self.emit(Node::new(Op::Cast, "").with("to", to.onnx() as i64), &[Some(v)], name)
    }

    /// Adds a scalar constant.
    pub fn scalar(&mut self, x: f32, name: &str) -> ValueId {
        self.g.add_constant(name, Tensor::scalar(x))
    }

    /// The name of a value.
    pub fn name(&self, v: ValueId) -> String {
        self.g.value(v).name.clone()
    }

    /// Gives a value another element type, its shape being as it was.
    pub fn retype(&mut self, v: ValueId, to: DType) {
        self.g.value_mut(v).set_dtype(to);
    }

    /// Where FakeQuant `node` of this graph keeps its codes.
    pub fn site(&self, node: NodeId) -> Site {
        Site { path: self.path.clone(), node, slot: 0 }
    }

    // ---- knowledge

    /// Whether this graph reads the value from a graph around it.
    pub fn is_captured(&self, v: ValueId) -> bool {
        let value = self.g.value(v);
        value.producer().is_none() && value.constant.is_none() && !self.g.inputs.contains(&v)
    }

    /// The graph that makes a value, and its id there.
    pub fn home(&self, v: ValueId) -> Home {
        match self.outer.constants.get(&self.g.value(v).name) {
            Some((_, home)) if self.is_captured(v) => *home,
            _ => (self.scope, v),
        }
    }

    /// The tensor of a constant: stored, captured, or computed from constants by plain operators.
    pub fn constant(&mut self, v: ValueId) -> Option<Tensor> {
        self.constant_within(v, DEPTH)
    }

    fn constant_within(&mut self, v: ValueId, depth: usize) -> Option<Tensor> {
        if let Some(known) = self.constants.get(&v) {
            return known.clone();
        }
        let found = self.find_constant(v, depth);
        self.constants.insert(v, found.clone());
        found
    }

    fn find_constant(&mut self, v: ValueId, depth: usize) -> Option<Tensor> {
        if let Some(c) = self.g.constant(v) {
            return Some(c.tensor.clone());
        }
        if self.is_captured(v) {
            return self.outer.constants.get(&self.g.value(v).name).map(|(t, _)| t.clone());
        }
        let (node, slot) = self.g.value(v).producer()?;
        let node = self.g.node(node);
        if depth == 0 || node.quantizer().is_some() || node.bodies().next().is_some() {
            return None;
        }
        let node = node.clone();
        let mut inputs = Vec::with_capacity(node.inputs().len());
        for v in node.inputs() {
            inputs.push(match v {
                None => None,
                Some(v) => Some(self.constant_within(*v, depth - 1)?),
            });
        }
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        eval(&node, &inputs)?.into_iter().nth(slot as usize)
    }

    /// The element type of a value as the file has it.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        let captured = || self.is_captured(v).then(|| self.outer.facts.get(&self.g.value(v).name)).flatten();
        let held = self.held.get(&v).map(|h| h.dtype);
        held.or_else(|| self.inferred.get(v).dtype).or_else(|| self.g.value(v).dtype()).or_else(|| captured().and_then(|f| f.dtype))
    }

    /// The dimensions of a value, where at least their number is known.
    pub fn dims(&self, v: ValueId) -> Option<Vec<Dim>> {
        if let Some(c) = self.g.constant(v) {
            return Some(c.tensor.shape().iter().map(|d| Dim::Known(*d)).collect());
        }
        let inferred = || self.inferred.get(v).shape.clone();
        let declared = || match &self.g.value(v).ty {
            Type::Tensor { shape: Some(s), .. } => Some(s.clone()),
            _ => None,
        };
        let captured = || self.is_captured(v).then(|| self.outer.facts.get(&self.g.value(v).name)?.shape.clone()).flatten();
        inferred().or_else(declared).or_else(captured)
    }

    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.dims(v).map(|d| d.len())
    }
}
