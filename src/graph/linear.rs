//! Conv, ConvTranspose, Gemm and MatMul seen as one thing: multiply-adds of an input with a weight, and perhaps a bias.

use super::{Graph, Inferred, Node, NodeId, Op, ValueId};

/// A node that multiplies and adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    pub node: NodeId,
    /// Slot of the operand that flows.
    pub input_slot: usize,
    /// Slot of the weight; for MatMul of two flowing operands, the second.
    pub weight_slot: usize,
    pub weight: ValueId,
    pub bias: Option<ValueId>,
    /// Axis of the weight with one index an output channel (for grouped ConvTranspose, one a channel of each group).
    pub out_axis: usize,
    /// Axis of the weight that is summed over, along which blocks run.
    pub in_axis: usize,
    pub groups: usize,
    /// Whether the weight is a constant, perhaps behind FakeQuant and data movement.
    pub constant: bool,
}

impl Linear {
    /// The view of a node; `None` for other ops, for weights of unknown rank, and for constant ones whose shape the op cannot have.
    pub fn of(g: &Graph, node: NodeId) -> Option<Linear> {
        let n = g.node(node);
        let bias = |slot: usize| n.input(slot);
        let (input_slot, weight_slot, bias, transposed) = match n.op {
            Op::Conv | Op::FusedConv => (0, 1, bias(2), false),
            Op::ConvTranspose => (0, 1, bias(2), true),
            Op::Gemm | Op::FusedGemm => (0, 1, bias(2), n.int("transB").unwrap_or(0) == 0),
            Op::MatMul | Op::FusedMatMul => {
                let weight_first = n.input(0).is_some_and(|v| constant_behind(g, v).is_some()) && n.input(1).is_some_and(|v| constant_behind(g, v).is_none());
                if weight_first { (1, 0, None, false) } else { (0, 1, None, true) }
            }
            _ => return None,
        };
        let weight = n.input(weight_slot)?;
        let source = constant_behind(g, weight);
        let rank = match source {
            Some(v) => g.constant(v)?.tensor.rank(),
            None => match &g.value(weight).ty {
                super::Type::Tensor { shape: Some(s), .. } => s.len(),
                _ if matches!(n.op, Op::MatMul | Op::FusedMatMul) => 2,
                _ => return None,
            },
        };
        let matmul = matches!(n.op, Op::MatMul | Op::FusedMatMul);
        let (out_axis, in_axis) = match (matmul, transposed) {
            (true, _) if rank < 2 => (0, 0),
            (true, true) => (rank - 1, rank - 2),
            (true, false) => (rank - 2, rank - 1),
            (false, true) => (1, 0),
            (false, false) => (0, 1),
        };
        let groups = n.int("group").and_then(|g| usize::try_from(g).ok()).unwrap_or(1).max(1);
        if let Some(v) = source {
            let shape = g.constant(v)?.tensor.shape();
            let grouped = if n.op == Op::ConvTranspose { in_axis } else { out_axis };
            if !matmul && rank <= in_axis.max(out_axis) || groups > 1 && !shape.get(grouped)?.is_multiple_of(groups) {
                return None;
            }
        }
        Some(Linear { node, input_slot, weight_slot, weight, bias, out_axis, in_axis, groups, constant: source.is_some() })
    }

    /// Number of output channels, where the weight's shape is known; else 0.
    pub fn out_channels(&self, g: &Graph) -> usize {
        let shape = constant_behind(g, self.weight).and_then(|v| g.constant(v)).map(|c| c.tensor.shape().to_vec());
        let n = shape.and_then(|s| s.get(self.out_axis).copied()).unwrap_or(0);
        if g.node(self.node).op == Op::ConvTranspose { n * self.groups } else { n }
    }

    /// For a weight of this shape: the input channel and the output channel that an element joins. Groups lie one after the other.
    pub fn channels(&self, g: &Graph, shape: &[usize]) -> impl Fn(usize) -> (usize, usize) + use<> {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let ((in_stride, ins), (out_stride, outs)) = ((stride(self.in_axis), shape[self.in_axis]), (stride(self.out_axis), shape[self.out_axis]));
        let (transposed, groups) = (g.node(self.node).op == Op::ConvTranspose, self.groups);
        move |i| {
            let (input, out) = (i / in_stride % ins, i / out_stride % outs);
            match transposed {
                true => (input, input / (ins / groups).max(1) * outs + out),
                false => (out / (outs / groups).max(1) * ins + input, out),
            }
        }
    }

    /// Multiply-adds for shapes as inferred; `None` where they are not all known.
    pub fn macs(&self, g: &Graph, inferred: &Inferred) -> Option<u64> {
        let n = g.node(self.node);
        let shape = |v: ValueId| inferred.shape(v);
        let product = |s: &[usize]| s.iter().map(|d| *d as u64).product::<u64>();
        let (x, w, y) = (shape(n.input(self.input_slot)?)?, shape(self.weight)?, shape(n.output(0)?)?);
        Some(match n.op {
            Op::Conv | Op::FusedConv => product(&w) * product(y.get(2..)?) * y[0] as u64,
            Op::ConvTranspose => product(&w) * product(x.get(2..)?) * x[0] as u64,
            Op::Gemm | Op::FusedGemm => product(&w) * *y.first()? as u64,
            _ => product(&y) * *w.get(self.in_axis)? as u64,
        })
    }
}

/// LSTM, GRU and RNN seen as one thing: at each step, the input times W and the state times R, `[directions, gates · hidden, …]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recurrent {
    pub node: NodeId,
    /// Gates whose rows W and R hold one after the other.
    pub gates: usize,
}

impl Recurrent {
    /// Slots of W and R.
    pub const WEIGHTS: [usize; 2] = [1, 2];
    /// Axis of W and R with one index a row of a gate.
    pub const OUT_AXIS: i32 = 1;

    /// The view of a node; `None` for other ops.
    pub fn of(g: &Graph, node: NodeId) -> Option<Recurrent> {
        let gates = match g.node(node).op {
            Op::LSTM => 4,
            Op::GRU => 3,
            Op::RNN => 1,
            _ => return None,
        };
        Some(Recurrent { node, gates })
    }

    /// Multiply-adds over all steps, for shapes as inferred; `None` where they are not all known.
    pub fn macs(&self, g: &Graph, inferred: &Inferred) -> Option<u64> {
        let size = |slot: usize| Some(inferred.shape(g.node(self.node).input(slot)?)?.iter().map(|d| *d as u64).product::<u64>());
        let steps: u64 = inferred.shape(g.node(self.node).input(0)?)?.iter().take(2).map(|d| *d as u64).product();
        Some((size(1)? + size(2)?) * steps)
    }
}

/// The Add that alone reads a product, perhaps behind FakeQuant, and adds a constant of one value a column: node, and slot of the constant.
pub fn bias_behind(g: &Graph, mut product: ValueId, columns: usize) -> Option<(NodeId, usize)> {
    loop {
        let [port] = g.value(product).uses() else { return None };
        let node = g.get_node(port.node)?;
        match node.op {
            Op::FakeQuant => product = node.output(0)?,
            Op::Add => {
                let constant = &g.constant(constant_behind(g, node.other(port.slot as usize)?)?)?.tensor;
                return (constant.len() == columns && constant.shape().last() == Some(&columns)).then_some((port.node, 1 - port.slot as usize));
            }
            _ => return None,
        }
    }
}

/// The interval to which a Relu, or a Clip with constant bounds, cuts.
pub fn bounds(g: &Graph, node: &Node) -> Option<(f32, f32)> {
    let number = |slot: usize, attr: &str, none: f32| match node.input(slot) {
        Some(v) => g.constant(v)?.tensor.to_f32().ok()?.first().copied(),
        None => Some(node.float(attr).unwrap_or(none)),
    };
    match node.op {
        Op::Relu => Some((0.0, f32::INFINITY)),
        Op::Clip => Some((number(1, "min", f32::NEG_INFINITY)?, number(2, "max", f32::INFINITY)?)),
        _ => None,
    }
}

/// What a Pad puts before and behind each axis, all befores first; `None`: it is computed, or speaks of some axes alone.
pub fn pads(g: &Graph, node: &Node) -> Option<Vec<i64>> {
    match node.input(1) {
        Some(v) if node.input(3).is_none() => g.constant(v)?.tensor.to_i64().ok(),
        Some(_) => None,
        None => node.ints("pads").map(<[i64]>::to_vec),
    }
}

/// The constant that a value is, or moves from, behind FakeQuant, Identity, Cast and Narrow.
pub fn constant_behind(g: &Graph, mut v: ValueId) -> Option<ValueId> {
    loop {
        if g.constant(v).is_some() {
            return Some(v);
        }
        let (node, _) = g.value(v).producer()?;
        match g.node(node).op {
            Op::FakeQuant | Op::Identity | Op::Cast | Op::Narrow => v = g.node(node).input(0)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn layer(node: Node, weight: &[usize]) -> (Graph, NodeId) {
        let mut g = Graph::default();
        let (x, y) = (g.add_value("x"), g.add_value("y"));
        let w = g.add_constant("w", Tensor::of_f32(weight, vec![1.0; weight.iter().product()]));
        let id = g.add_node(node, &[Some(x), Some(w)], &[Some(y)]);
        (g, id)
    }

    /// Which input and output channel each element of a weight joins.
    fn joined(node: Node, weight: &[usize]) -> Vec<(usize, usize)> {
        let (g, id) = layer(node, weight);
        let channels = Linear::of(&g, id).unwrap().channels(&g, weight);
        (0..weight.iter().product()).map(channels).collect()
    }

    #[test]
    fn elements_join_the_channels_that_the_op_says() {
        let grouped = |op: Op| Node::new(op, "n").with("group", 2i64);
        assert_eq!(joined(Node::new(Op::MatMul, "n"), &[2, 2]), [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(joined(Node::new(Op::Gemm, "n").with("transB", 1i64), &[2, 2]), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        assert_eq!(joined(grouped(Op::Conv), &[4, 1, 1]), [(0, 0), (0, 1), (1, 2), (1, 3)]);
        assert_eq!(joined(grouped(Op::ConvTranspose), &[4, 1, 1]), [(0, 0), (1, 0), (2, 1), (3, 1)]);
    }

    #[test]
    fn a_weight_that_the_op_cannot_have_is_no_layers() {
        for (node, weight) in [
            (Node::new(Op::Gemm, "n"), &[4][..]),
            (Node::new(Op::Conv, "n"), &[4]),
            (Node::new(Op::Conv, "n").with("group", 3i64), &[4, 1, 1]),
            (Node::new(Op::ConvTranspose, "n").with("group", 3i64), &[2, 1, 1]),
        ] {
            let op = node.op;
            let (g, id) = layer(node, weight);
            assert_eq!(Linear::of(&g, id), None, "{op:?} {weight:?}");
        }
    }

    #[test]
    fn an_add_of_three_operands_holds_no_bias() {
        let mut g = Graph::default();
        let [x, p, y] = ["x", "p", "y"].map(|n| g.add_value(n));
        let b = g.add_constant("b", Tensor::of_f32(&[3], vec![1.0; 3]));
        let add = g.add_node(Node::new(Op::Add, "add"), &[Some(b), Some(x), Some(p)], &[Some(y)]);
        assert_eq!(bias_behind(&g, p, 3), None);
        g.set_input(add, 1, Some(p));
        g.set_input(add, 2, None);
        assert_eq!(bias_behind(&g, p, 3), Some((add, 0)));
    }
}
