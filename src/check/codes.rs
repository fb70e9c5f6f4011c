//! Which values of a lifted model are codes, under which quantizer, and where their readers take them as codes.

use crate::graph::{Flow, Graph, Inferred, Model, Node, NodeId, Op, ValueId, bounds};
use crate::quant::{self, QuantizerId, Table};
use crate::target::Profile;
use std::collections::{BTreeMap, BTreeSet};

/// Codes of a model.
pub struct Codes {
    /// Values on a quantizer's grid.
    of: BTreeMap<ValueId, QuantizerId>,
    /// Values between a node and what is computed with it.
    inner: BTreeSet<ValueId>,
}

impl Codes {
    /// Follows codes through data movement.
    pub fn of(model: &Model, profile: &Profile, inferred: &Inferred) -> Codes {
        let g = &model.graph;
        let mut codes = Codes { of: BTreeMap::new(), inner: BTreeSet::new() };
        for (_, node) in g.nodes() {
            let under = match node.quantizer() {
                Some(q) => Some(model.quantizers.root(q)),
                None if node.op.flow() == Flow::Move => codes.moved(g, &model.quantizers, node),
                None => None,
            };
            for &v in node.outputs().iter().flatten().filter(|_| under.is_some()) {
                codes.of.extend(under.map(|q| (v, q)));
            }
        }
        for form in profile.grouped(model, inferred) {
            let made = form.nodes.iter().flat_map(|n| g.node(*n).outputs()).flatten().copied();
            codes.inner.extend(made.filter(|v| *v != form.output));
        }
        for (_, node) in g.nodes() {
            let Some(v) = node.output(0) else { continue };
            let ([port], false) = (g.value(v).uses(), g.is_output(v) || codes.of.contains_key(&v)) else { continue };
            let Some(follower) = g.get_node(port.node) else { continue };
            let floor = |exact: bool| follower.output(0).is_some_and(|y| codes.taken(model, y).all(|(_, q)| is_dropped(model, follower, q, exact)));
            if profile.fuse.iter().any(|f| f.producers.contains(&node.op) && f.followers.contains(&follower.op) && (!f.floor || floor(f.exact))) {
                codes.inner.insert(v);
            }
        }
        codes
    }

    /// The quantizer of what a node moves: that of all its operands.
    fn moved(&self, g: &Graph, table: &Table, node: &Node) -> Option<QuantizerId> {
        let mut operands = (0..node.inputs().len()).filter(|slot| node.flows(*slot)).filter_map(|slot| node.input(slot));
        let first = *self.of.get(&operands.next()?)?;
        operands.filter(|v| g.constant(*v).is_none()).all(|v| self.of.get(&v).is_some_and(|q| same(table, *q, first))).then_some(first)
    }

    /// The quantizer on whose grid a value lies.
    pub fn get(&self, v: ValueId) -> Option<QuantizerId> {
        self.of.get(&v).copied()
    }

    /// Whether a value is never stored: what is computed together hands it on.
    pub fn is_inner(&self, v: ValueId) -> bool {
        self.inner.contains(&v)
    }

    /// What is stored of a value: itself, or what the last of those computed with its producer makes of it.
    pub fn behind(&self, g: &Graph, mut v: ValueId) -> ValueId {
        while let Some(next) = self.inner.get(&v).and_then(|v| g.get_node(g.value(*v).uses().first()?.node)?.output(0)) {
            v = next;
        }
        v
    }

    /// Whether everybody takes a value as codes.
    pub fn is_stored(&self, g: &Graph, v: ValueId) -> bool {
        !g.is_output(v) && !g.value(v).uses().is_empty() && g.value(v).uses().iter().all(|p| g.get_node(p.node).is_some_and(|n| n.op == Op::FakeQuant))
    }

    /// The quantizers under which a value is taken.
    pub fn taken<'a>(&'a self, model: &'a Model, v: ValueId) -> impl Iterator<Item = (NodeId, QuantizerId)> + 'a {
        let g = &model.graph;
        g.value(v).uses().iter().filter_map(move |p| Some((p.node, model.quantizers.root(g.get_node(p.node)?.quantizer()?))))
    }
}

/// Whether two quantizers give every number the same code.
pub fn same(table: &Table, a: QuantizerId, b: QuantizerId) -> bool {
    let parts = |q: QuantizerId| table[q].params.as_ref().map(|p| (&p.scale, &p.zero));
    a == b || table[a].scheme.format == table[b].scheme.format && parts(a) == parts(b)
}

/// Whether the codes of an op's result end at the least and the most that it makes, or are cut at both ends: the bounds of a Relu or Clip; of the others, the
/// least is 0.
pub fn is_cut_evenly(model: &Model, node: &Node, q: QuantizerId) -> bool {
    let row = &model.quantizers[q];
    row.params.as_ref().is_none_or(|p| quant::cuts_evenly(&row.scheme, p, bounds(&model.graph, node)))
}

/// Whether a quantizer cuts all that a Relu or Clip before it cuts.
fn is_dropped(model: &Model, node: &Node, q: QuantizerId, exact: bool) -> bool {
    let row = &model.quantizers[q];
    let Some(p) = row.params.as_ref().filter(|_| row.scheme.format.code_range().is_some()) else { return false };
    !matches!(node.op, Op::Relu | Op::Clip) || bounds(&model.graph, node).is_some_and(|b| quant::swallows(&row.scheme, p, b, exact))
}
