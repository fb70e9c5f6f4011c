//! Tails of activation functions. SiLU, Gelu and HardSwish make 0 of everything far below zero, Sigmoid and Tanh a constant of everything far from it.
//! What an input is out there cannot be told from the output, so it need not be told apart by the input's codes either: its range ends where the
//! function comes within [`SHARE`] of a step of its output's scale of its limit. Exact up to that share.
//! Holds for quantizers that nothing but such a function reads, in one piece or spelled out.

use crate::graph::{Graph, Model, Op, Port, ValueId};
use crate::observe::Extremes;
use crate::quant::QuantizerId;
use std::collections::BTreeMap;

/// Of a step of the output, what saturating may change.
const SHARE: f64 = 0.25;
/// Farther out than this every function here is at its limit in float32.
const FAR: i32 = 40;

/// A function whose tails are flat.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Silu,
    Gelu,
    HardSwish,
    Sigmoid,
    Tanh,
    Mish,
    HardSigmoid { alpha: f64, beta: f64 },
}

impl Function {
    fn at(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Function::Silu => x * sigmoid(x),
            // The usual approximation: for tails it is near enough.
            Function::Gelu => 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh()),
            Function::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Function::Sigmoid => sigmoid(x),
            Function::Tanh => x.tanh(),
            Function::Mish => x * x.exp().ln_1p().tanh(),
            Function::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        }
    }

    /// Where the function is within `tolerance` of its limits, below and above; an infinite end where it has no limit.
    fn flat_beyond(self, tolerance: f64) -> (f32, f32) {
        const STEPS: i32 = 16;
        let x = |i: i32| i as f64 / STEPS as f64;
        let end = FAR * STEPS;
        let low = (-end..0).take_while(|i| (self.at(x(*i)) - self.at(x(-end))).abs() <= tolerance).last();
        let bounded = (self.at(x(end)) - self.at(x(end / 2))).abs() <= tolerance;
        let high = (0..=end).rev().take_while(|i| (self.at(x(*i)) - self.at(x(end))).abs() <= tolerance).last();
        (low.map_or(f32::NEG_INFINITY, |i| x(i) as f32), high.filter(|_| bounded).map_or(f32::INFINITY, |i| x(i) as f32))
    }
}

/// Quantizers whose readers are such functions: each function and the quantizer of what it makes.
#[derive(Debug, Default, PartialEq)]
pub struct Tails(BTreeMap<QuantizerId, Vec<(Function, QuantizerId)>>);

impl Tails {
    /// Looks at every quantizer of a placed model.
    pub fn of(model: &Model) -> Tails {
        let g = &model.graph;
        let mut all: BTreeMap<QuantizerId, Option<Vec<(Function, QuantizerId)>>> = BTreeMap::new();
        for (_, node) in g.nodes() {
            let (Some(q), Some(y)) = (node.quantizer(), node.output(0)) else { continue };
            let entry = all.entry(model.quantizers.root(q)).or_insert_with(|| Some(Vec::new()));
            match (entry.as_mut(), reader(model, y)) {
                (Some(list), Some(found)) => list.push(found),
                _ => *entry = None,
            }
        }
        Tails(all.into_iter().filter_map(|(q, list)| Some((q, list?))).filter(|(_, l)| !l.is_empty()).collect())
    }

    /// The interval within which values of `q` make a difference; `step` tells the scale of a quantizer's output.
    pub fn interval(&self, q: QuantizerId, step: impl Fn(QuantizerId) -> Option<f64>) -> Option<Extremes> {
        let mut whole = Extremes::default();
        for (function, output) in self.0.get(&q)? {
            let (lo, hi) = function.flat_beyond(step(*output)? * SHARE);
            whole.merge(&Extremes { lo, hi });
        }
        Some(whole)
    }

    /// Quantizers there is something to say of.
    pub fn quantizers(&self) -> impl Iterator<Item = QuantizerId> + '_ {
        self.0.keys().copied()
    }
}

/// The only function that reads `y`, and the quantizer of its result.
fn reader(model: &Model, y: ValueId) -> Option<(Function, QuantizerId)> {
    let g = &model.graph;
    if g.is_output(y) {
        return None;
    }
    let quantizer = |v: ValueId| {
        let [p] = g.value(v).uses() else { return None };
        Some(model.quantizers.root(g.get_node(p.node)?.quantizer()?))
    };
    match g.value(y).uses() {
        [port] => {
            let node = g.get_node(port.node).filter(|_| port.slot == 0)?;
            let function = match node.op {
                Op::Swish if node.float("alpha").unwrap_or(1.0) == 1.0 => Function::Silu,
                Op::Gelu | Op::MsGelu | Op::FastGelu if node.inputs().len() == 1 => Function::Gelu,
                Op::HardSwish => Function::HardSwish,
                Op::Sigmoid => Function::Sigmoid,
                Op::Tanh => Function::Tanh,
                Op::Mish => Function::Mish,
                Op::HardSigmoid => Function::HardSigmoid { alpha: node.float("alpha").unwrap_or(0.2) as f64, beta: node.float("beta").unwrap_or(0.5) as f64 },
                _ => return None,
            };
            Some((function, quantizer(node.output(0)?)?))
        }
        [a, b] => spelled_out(g, y, a, b).or_else(|| spelled_out(g, y, b, a)).and_then(|(function, z)| Some((function, quantizer(z)?))),
        _ => None,
    }
}

/// `y · gate(y)`, where `gate` reads `y` and `product` multiplies with it: the function, and its result before any constant factor behind it.
fn spelled_out(g: &Graph, y: ValueId, gate: &Port, product: &Port) -> Option<(Function, ValueId)> {
    let product_node = g.get_node(product.node).filter(|n| n.op == Op::Mul)?;
    let other = product_node.other(product.slot as usize)?;
    // What lies between the gate's first node and the product, in order.
    let mut ops = Vec::new();
    let mut v = other;
    while v != y {
        let (id, _) = g.value(v).producer()?;
        let node = g.node(id);
        if ops.len() > 6 {
            return None;
        }
        match node.op {
            Op::FakeQuant => {}
            op => ops.push(op),
        }
        let flowing: Vec<ValueId> = node.inputs().iter().flatten().copied().filter(|v| crate::graph::constant_behind(g, *v).is_none()).collect();
        let &[x] = &flowing[..] else { return None };
        if x == y && id != gate.node {
            return None;
        }
        v = x;
    }
    ops.reverse();
    let function = match &ops[..] {
        [Op::Sigmoid] => Function::Silu,
        [Op::HardSigmoid] | [Op::Add, Op::Clip] | [Op::Add, Op::Clip, Op::Div | Op::Mul] => Function::HardSwish,
        [Op::Div | Op::Mul, Op::Erf, Op::Add] | [Op::Div | Op::Mul, Op::Erf, Op::Add, Op::Mul] => Function::Gelu,
        _ => return None,
    };
    Some((function, product_node.output(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::quant::Scheme;

    #[test]
    fn tails_begin_where_the_function_is_flat() {
        assert_eq!(Function::HardSwish.flat_beyond(0.0), (-3.0, f32::INFINITY));
        for (f, tolerance) in [(Function::Silu, 0.01), (Function::Gelu, 0.001), (Function::Mish, 0.02)] {
            let (lo, hi) = f.flat_beyond(tolerance);
            assert!(f.at(lo as f64).abs() <= tolerance && f.at(lo as f64 + 0.5).abs() > tolerance && hi == f32::INFINITY, "{f:?} {lo}");
        }
        let (lo, hi) = Function::Sigmoid.flat_beyond(1.0 / 1024.0);
        assert!((lo + hi).abs() < 0.1 && (-7.0..-6.5).contains(&lo), "{lo} {hi}");
        let (lo, hi) = Function::HardSigmoid { alpha: 0.2, beta: 0.5 }.flat_beyond(0.0);
        assert_eq!((lo, hi), (-2.5, 2.5));
    }

    /// x → FQ → Sigmoid → FQ → · ← FQ(x), → FQ; and, if `also`, a Relu that reads x too.
    fn silu(also: bool) -> (Model, QuantizerId, QuantizerId) {
        let mut m = Model::default();
        let [qx, qs, qy] = ["x", "s", "y"].map(|n| m.quantizers.add(n, Scheme::int(8, false)));
        let g = &mut m.graph;
        let [x, xq, s, sq, y, yq, r] = ["x", "xq", "s", "sq", "y", "yq", "r"].map(|n| g.add_value(n));
        g.add_node(Node::fake_quant(qx, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::Sigmoid, "s"), &[Some(xq)], &[Some(s)]);
        g.add_node(Node::fake_quant(qs, "fs"), &[Some(s)], &[Some(sq)]);
        g.add_node(Node::new(Op::Mul, "m"), &[Some(xq), Some(sq)], &[Some(y)]);
        g.add_node(Node::fake_quant(qy, "fy"), &[Some(y)], &[Some(yq)]);
        if also {
            g.add_node(Node::new(Op::Relu, "r"), &[Some(xq)], &[Some(r)]);
        }
        (m, qx, qy)
    }

    #[test]
    fn a_function_is_known_where_it_is_spelled_out_and_alone() {
        let (m, x, y) = silu(false);
        let tails = Tails::of(&m);
        assert_eq!(tails.0[&x], [(Function::Silu, y)]);
        let i = tails.interval(x, |_| Some(0.04)).unwrap();
        assert!((-7.0..-6.0).contains(&i.lo) && i.hi == f32::INFINITY, "{i:?}");
        assert!(tails.interval(x, |_| None).is_none());
        let (m, x, _) = silu(true);
        assert!(!Tails::of(&m).0.contains_key(&x));
    }
}
