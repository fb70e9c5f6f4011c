//! Codes in a graph of QuantizeLinear and DequantizeLinear: who reads them, who makes them, and what lies between a node and its quantizer.

use crate::graph::{Graph, Node, NodeId, Op, Port, ValueId, bounds};
use crate::tensor::{DType, Tensor, pack};
use std::collections::BTreeSet;

/// Codes under their scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coded {
    pub codes: ValueId,
    pub scale: ValueId,
    pub zero: Option<ValueId>,
    pub dtype: DType,
    /// The axis of a constant with a scale an index; `None`: one scale for all.
    pub axis: Option<usize>,
}

impl Coded {
    /// What the DequantizeLinear that makes `v` reads.
    pub fn read(g: &Graph, v: ValueId) -> Option<Coded> {
        let node = g.node(g.value(v).producer()?.0);
        if node.op == Op::DequantizeLinear { Coded::of(g, node, node.input(0)?) } else { None }
    }

    /// What `node` makes or reads as `codes`.
    pub fn of(g: &Graph, node: &Node, codes: ValueId) -> Option<Coded> {
        let (scale, zero) = (node.input(1)?, node.input(2));
        let scales = &g.constant(scale)?.tensor;
        let dtype = match zero {
            Some(z) => g.constant(z)?.tensor.dtype(),
            None => g.value(codes).dtype()?,
        };
        if node.int("block_size").unwrap_or(0) != 0 || scales.dtype() != DType::F32 {
            return None;
        }
        let axis = match (scales.len(), node.int("axis").unwrap_or(1)) {
            (1, _) => None,
            (_, axis @ ..0) => Some(usize::try_from(axis + g.constant(codes)?.tensor.rank() as i64).ok()?),
            (_, axis) => Some(axis as usize),
        };
        Some(Coded { codes, scale, zero, dtype, axis })
    }

    /// Whether these are 8-bit integers under one scale.
    pub fn is_plain(&self) -> bool {
        self.axis.is_none() && self.zero.is_some() && matches!(self.dtype, DType::U8 | DType::I8)
    }

    /// Whether both have the same scale and zero point.
    pub fn same(&self, g: &Graph, other: &Coded) -> bool {
        let equal = |a: ValueId, b: ValueId| a == b || g.constant(a).is_some_and(|a| g.constant(b).is_some_and(|b| a.tensor == b.tensor));
        let zeros = match (self.zero, other.zero) {
            (Some(a), Some(b)) => equal(a, b),
            (a, b) => a == b,
        };
        equal(self.scale, other.scale) && zeros
    }

    /// The code that a real number gets: half to even, saturated.
    pub fn code(&self, g: &Graph, x: f32) -> Option<i32> {
        let scale = g.constant(self.scale)?.tensor.to_f32().ok()?[0];
        let zero = *numbers(&g.constant(self.zero?)?.tensor).first()?;
        let (low, high) = crate::quant::Format::of_dtype(self.dtype)?.code_range()?;
        (!x.is_nan()).then(|| ((x / scale).round_ties_even() as f64 + zero as f64).clamp(low as f64, high as f64) as i32)
    }
}

/// The codes of a tensor as integers.
pub fn numbers(t: &Tensor) -> Vec<i32> {
    pack::unpack(t.bytes(), t.dtype(), t.len())
}

/// How a node's result becomes codes: the nodes from its first reader to the QuantizeLinear, and what this makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub out: Coded,
    pub nodes: Vec<NodeId>,
    /// The codes to which Relu and Clip on the way cut, where that is less than all there are.
    pub clip: Option<(i32, i32)>,
}

/// The QuantizeLinear that alone reads `v`, perhaps behind Relu and Clip.
pub fn made(g: &Graph, mut v: ValueId) -> Option<Made> {
    let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
    let mut nodes = Vec::new();
    loop {
        let [Port { node, slot: 0 }] = g.value(v).uses() else { return None };
        let n = g.node(*node);
        if g.is_output(v) {
            return None;
        }
        nodes.push(*node);
        v = n.output(0)?;
        if n.op == Op::QuantizeLinear {
            let out = Coded::of(g, n, v).filter(Coded::is_plain)?;
            let (low, high) = (out.code(g, low)?, out.code(g, high)?);
            let whole = out.code(g, f32::NEG_INFINITY)? == low && out.code(g, f32::INFINITY)? == high;
            return Some(Made { out, nodes, clip: (!whole).then_some((low, high)) });
        }
        let (from, to) = bounds(g, n).filter(|(from, to)| from <= to)?;
        (low, high) = (low.clamp(from, to), high.clamp(from, to));
    }
}

/// Takes out nodes, the values between them, and constants that nobody reads any more; `keep` gets a new maker.
pub fn take_out(g: &mut Graph, nodes: &[NodeId], keep: &[ValueId]) {
    let mut idle = BTreeSet::new();
    for id in nodes {
        let n = g.remove_node(*id);
        idle.extend(n.inputs().iter().chain(n.outputs()).flatten().copied());
    }
    idle.into_iter().filter(|v| !keep.contains(v)).for_each(|v| g.remove_idle(v));
}

/// Takes out every `op` that nobody reads any more, and constants that it alone read.
pub fn sweep(g: &mut Graph, op: Op) {
    let idle = |v: &ValueId| g.value(*v).uses().is_empty() && !g.is_output(*v);
    let dead: Vec<NodeId> = g.nodes().filter(|(_, n)| n.op == op && n.outputs().iter().flatten().all(idle)).map(|(id, _)| id).collect();
    take_out(g, &dead, &[]);
}
