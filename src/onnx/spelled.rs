//! Operators written out in others that compute the same, where a target or an opset has no words, or no codes, for them.
//! Source: the function bodies of ONNX's operators (onnx 1.23).

use crate::graph::{Dim, Graph, Inferred, Node, NodeId, Op, ValueId};
use crate::tensor::{DType, Tensor};

/// From this opset on reductions take their axes as an input.
pub const AXES_AS_INPUT: i64 = 18;

/// Rewrites a node for opset `to`, by what is known of the values around it.
pub type Undo = fn(&mut Graph, NodeId, &Inferred, to: i64) -> Result<(), String>;

/// Operators that are known in other words.
const WORDS: &[(Op, Undo)] = &[
    (Op::Attention, attention),
    (Op::Gelu, gelu),
    (Op::HardSwish, hard_swish),
    (Op::Mish, mish),
    (Op::RMSNormalization, rms_normalization),
    (Op::Swish, swish),
];

/// Whether [`spell_out`] knows an operator.
pub fn is_spelled(op: Op) -> bool {
    WORDS.iter().any(|(known, _)| *known == op)
}

/// Writes a node out in operators of opset `to`; nothing is changed where it says why it cannot.
pub fn spell_out(g: &mut Graph, id: NodeId, inferred: &Inferred, to: i64) -> Result<(), String> {
    let op = g.node(id).op;
    let (_, undo) = WORDS.iter().find(|(known, _)| *known == op).ok_or("it is not known in other words")?;
    undo(g, id, inferred, to)
}

/// Nodes on their way into the place of one.
struct Spelled<'g> {
    g: &'g mut Graph,
    name: String,
    at: usize,
    dtype: DType,
}

impl<'g> Spelled<'g> {
    fn new(g: &'g mut Graph, id: NodeId, inferred: &Inferred) -> Result<(Self, Node, ValueId, ValueId), String> {
        let at = g.position(id);
        let node = g.node(id).clone();
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return Err("it has no input or output".into()) };
        let dtype = inferred.get(x).dtype.ok_or("its type is not known")?;
        g.remove_node(id);
        Ok((Spelled { name: node.name.clone(), g, at, dtype }, node, x, y))
    }

    /// A number in the type that the function has.
    fn number(&mut self, what: &str, x: f64) -> ValueId {
        let v = self.g.add_constant(&format!("{}_{what}", self.name), Tensor::scalar(x as f32));
        self.typed(v)
    }

    /// A float32 constant in the type that the function has.
    fn typed(&mut self, v: ValueId) -> ValueId {
        match self.dtype {
            DType::F32 => v,
            dtype => self.put(Node::new(Op::Cast, format!("{}_Cast_{}", self.name, self.at)).with("to", dtype.onnx() as i64), &[v], None),
        }
    }

    fn put(&mut self, node: Node, inputs: &[ValueId], to: Option<ValueId>) -> ValueId {
        let y = to.unwrap_or_else(|| self.g.add_value(&format!("{}_{}", self.name, self.at)));
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.g.insert_node(self.at, node, &inputs, &[Some(y)]);
        self.at += 1;
        y
    }

    fn op(&mut self, op: Op, inputs: &[ValueId], to: Option<ValueId>) -> ValueId {
        let node = Node::new(op, format!("{}_{}_{}", self.name, op.spelling().1, self.at));
        self.put(node, inputs, to)
    }
}

/// x · Sigmoid(alpha · x)
fn swish(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let (mut s, node, x, y) = Spelled::new(g, id, inferred)?;
    let mut scaled = x;
    if let Some(alpha) = node.float("alpha").filter(|a| *a != 1.0) {
        let alpha = s.number("alpha", alpha.into());
        scaled = s.op(Op::Mul, &[x, alpha], None);
    }
    let gate = s.op(Op::Sigmoid, &[scaled], None);
    s.op(Op::Mul, &[x, gate], Some(y));
    Ok(())
}

/// x · Tanh(Softplus(x))
fn mish(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let (mut s, _, x, y) = Spelled::new(g, id, inferred)?;
    let soft = s.op(Op::Softplus, &[x], None);
    let tanh = s.op(Op::Tanh, &[soft], None);
    s.op(Op::Mul, &[x, tanh], Some(y));
    Ok(())
}

/// x · HardSigmoid(x), with alpha 1/6 and beta 0.5
fn hard_swish(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let (mut s, node, x, y) = Spelled::new(g, id, inferred)?;
    let gate = Node::new(Op::HardSigmoid, format!("{}_HardSigmoid", node.name)).with("alpha", 1.0f32 / 6.0).with("beta", 0.5f32);
    let gate = s.put(gate, &[x], None);
    s.op(Op::Mul, &[x, gate], Some(y));
    Ok(())
}

/// ½ x · (1 + Erf(x / √2)), or ½ x · (1 + Tanh(√(2/π) · (x + 0.044715 x³)))
fn gelu(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let (mut s, node, x, y) = Spelled::new(g, id, inferred)?;
    let inner = if node.str("approximate") == Some("tanh") {
        let (cubic, root) = (s.number("cubic", 0.044715), s.number("root", (2.0 / std::f64::consts::PI).sqrt()));
        let squared = s.op(Op::Mul, &[x, x], None);
        let cubed = s.op(Op::Mul, &[squared, x], None);
        let small = s.op(Op::Mul, &[cubed, cubic], None);
        let sum = s.op(Op::Add, &[x, small], None);
        let scaled = s.op(Op::Mul, &[sum, root], None);
        s.op(Op::Tanh, &[scaled], None)
    } else {
        let root = s.number("root", std::f64::consts::SQRT_2);
        let scaled = s.op(Op::Div, &[x, root], None);
        s.op(Op::Erf, &[scaled], None)
    };
    let (one, half) = (s.number("one", 1.0), s.number("half", 0.5));
    let sum = s.op(Op::Add, &[inner, one], None);
    let product = s.op(Op::Mul, &[x, sum], None);
    s.op(Op::Mul, &[product, half], Some(y));
    Ok(())
}

/// x / Sqrt(ReduceMean(x²) + epsilon) · scale, over the last axes from `axis` on.
fn rms_normalization(g: &mut Graph, id: NodeId, inferred: &Inferred, to: i64) -> Result<(), String> {
    let scale = g.node(id).input(1).ok_or("it has no scale")?;
    let given = inferred.get(g.node(id).input(0).ok_or("it has no input")?);
    if given.dtype != Some(DType::F32) {
        return Err("its mean is of another type than its input".into());
    }
    let rank = given.shape.as_ref().map(|d| d.len() as i64).ok_or("its rank is not known")?;
    let (mut s, node, x, y) = Spelled::new(g, id, inferred)?;
    let axis = node.int("axis").unwrap_or(-1);
    let axes: Vec<i64> = (if axis < 0 { axis + rank } else { axis }..rank).collect();
    let epsilon = s.number("epsilon", node.float("epsilon").unwrap_or(1e-5).into());
    let squared = s.op(Op::Mul, &[x, x], None);
    let mean = Node::new(Op::ReduceMean, format!("{}_ReduceMean", node.name));
    let mean = if to < AXES_AS_INPUT {
        s.put(mean.with("axes", axes), &[squared], None)
    } else {
        let axes = s.g.add_constant(&format!("{}_axes", node.name), Tensor::of_i64(&[axes.len()], axes));
        s.put(mean, &[squared, axes], None)
    };
    let safe = s.op(Op::Add, &[mean, epsilon], None);
    let root = s.op(Op::Sqrt, &[safe], None);
    let normal = s.op(Op::Div, &[x, root], None);
    s.op(Op::Mul, &[normal, scale], Some(y));
    Ok(())
}

/// Softmax(scale · Q Kᵀ + mask) V, head by head; a key and value that several queries share stand once for each. Where a mask of truths hides every key
/// from a query, that gets the mean of the values, and not the 0 that runtimes give.
fn attention(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    heads(g, id, inferred, false)
}

/// The same with that 0, at the cost of a Where behind the Softmax.
pub fn attention_exactly(g: &mut Graph, id: NodeId, inferred: &Inferred) -> Result<(), String> {
    heads(g, id, inferred, true)
}

fn heads(g: &mut Graph, id: NodeId, inferred: &Inferred, exactly: bool) -> Result<(), String> {
    let node = g.node(id).clone();
    let int = |name: &str| node.int(name).unwrap_or(0);
    let (Some(q), Some(k), Some(v)) = (node.input(0), node.input(1), node.input(2)) else { return Err("it lacks a query, key or value".into()) };
    let (mask, past_key, past_value) = (node.input(3), node.input(4), node.input(5));
    let shape = |x: ValueId| inferred.get(x).shape.clone();
    let size = |x: ValueId, axis: usize| match shape(x)?.get(axis) {
        Some(Dim::Known(n)) => Some(*n),
        _ => None,
    };
    let rank = shape(q).map(|s| s.len()).ok_or("the rank of its query is not known")?;
    if node.input(6).is_some() || node.output(3).is_some() || node.float("softcap").unwrap_or(0.0) != 0.0 {
        return Err("it cuts its keys or products, or hands the products out".into());
    }
    if ["left_window_size", "right_window_size"].iter().any(|name| node.int(name).unwrap_or(-1) != -1) {
        return Err("it looks at a window".into());
    }
    let (heads, shared) = match rank {
        3 => (Some(int("q_num_heads") as usize), Some(int("kv_num_heads") as usize)),
        _ => (size(q, 1), size(k, 1)),
    };
    let (Some(heads @ 1..), Some(shared @ 1..)) = (heads, shared) else { return Err("its number of heads is not known".into()) };
    let per_head = |x: ValueId, heads: usize| if rank == 3 { size(x, 2).map(|n| n / heads) } else { size(x, 3) };
    let (Some(width), Some(key_width), Some(value_width)) = (per_head(q, heads), per_head(k, shared), per_head(v, shared)) else {
        return Err("the size of its heads is not known".into());
    };
    let causal = match (int("is_causal") != 0, past_key, size(q, rank - 2), size(k, rank - 2)) {
        (false, ..) => None,
        (true, None, Some(rows), Some(columns)) => Some((rows, columns)),
        _ => return Err("what lies before what is not known".into()),
    };
    let truths = mask.map(|m| inferred.get(m).dtype.ok_or("the type of its mask is not known")).transpose()? == Some(DType::Bool);
    let (mut s, node, ..) = Spelled::new(g, id, inferred)?;
    let ints = |s: &mut Spelled, what: &str, n: Vec<i64>| s.g.add_constant(&format!("{}_{what}_{}", s.name, s.at), Tensor::of_i64(&[n.len()], n));
    let transposed = |s: &mut Spelled, x: ValueId, perm: [i64; 4], to| {
        let node = Node::new(Op::Transpose, format!("{}_Transpose_{}", s.name, s.at)).with("perm", perm.to_vec());
        s.put(node, &[x], to)
    };
    let split = |s: &mut Spelled, x: ValueId, heads: usize| {
        if rank != 3 {
            return x;
        }
        let sizes = ints(s, "heads", vec![0, 0, heads as i64, -1]);
        let apart = s.op(Op::Reshape, &[x, sizes], None);
        transposed(s, apart, [0, 2, 1, 3], None)
    };
    let joined = |s: &mut Spelled, parts: &[ValueId], to| {
        let node = Node::new(Op::Concat, format!("{}_Concat_{}", s.name, s.at)).with("axis", 2i64);
        s.put(node, parts, to)
    };
    // What was there before stands first, and what comes of it may be handed out.
    let after = |s: &mut Spelled, x: ValueId, past: Option<ValueId>, present: Option<ValueId>| match (past, present) {
        (Some(past), present) => joined(s, &[past, x], present),
        (None, Some(present)) => s.op(Op::Identity, &[x], Some(present)),
        (None, None) => x,
    };
    let each = |s: &mut Spelled, x: ValueId, width: usize| {
        if heads == shared {
            return x;
        }
        let axis = ints(s, "axis", vec![2]);
        let one = s.op(Op::Unsqueeze, &[x, axis], None);
        let many = joined(s, &vec![one; heads / shared], None);
        let sizes = ints(s, "heads", vec![0, heads as i64, -1, width as i64]);
        s.op(Op::Reshape, &[many, sizes], None)
    };
    let q = split(&mut s, q, heads);
    let k = split(&mut s, k, shared);
    let k = after(&mut s, k, past_key, node.output(1));
    let k = each(&mut s, k, key_width);
    let v = split(&mut s, v, shared);
    let v = after(&mut s, v, past_value, node.output(2));
    let v = each(&mut s, v, value_width);
    let k = transposed(&mut s, k, [0, 1, 3, 2], None);
    let products = s.op(Op::MatMul, &[q, k], None);
    let scale = s.number("scale", node.float("scale").map_or(1.0 / (width as f64).sqrt(), f64::from));
    let mut scores = s.op(Op::Mul, &[products, scale], None);
    // The lowest number that float16 has too.
    const LEAST: f32 = -65504.0;
    if let Some((rows, columns)) = causal {
        let numbers = (0..rows * columns).map(|i| if i % columns <= i / columns { 0.0 } else { LEAST }).collect();
        let before = s.g.add_constant(&format!("{}_causal", s.name), Tensor::of_f32(&[rows, columns], numbers));
        let before = s.typed(before);
        scores = s.op(Op::Add, &[scores, before], None);
    }
    let zero = if truths { Some(s.number("zero", 0.0)) } else { None };
    if let Some(mask) = mask {
        let added = match zero {
            Some(zero) => {
                let least = s.number("least", LEAST.into());
                s.op(Op::Where, &[mask, zero, least], None)
            }
            None => mask,
        };
        scores = s.op(Op::Add, &[scores, added], None);
    }
    let softmax = Node::new(Op::Softmax, format!("{}_Softmax", s.name)).with("axis", -1i64);
    let mut shares = s.put(softmax, &[scores], None);
    if let (Some(mask), Some(zero), true) = (mask, zero, exactly) {
        shares = s.op(Op::Where, &[mask, shares, zero], None);
    }
    let y = node.output(0);
    if rank == 3 {
        let mixed = s.op(Op::MatMul, &[shares, v], None);
        let rows = transposed(&mut s, mixed, [0, 2, 1, 3], None);
        let sizes = ints(&mut s, "joined", vec![0, 0, -1]);
        s.op(Op::Reshape, &[rows, sizes], y);
    } else {
        s.op(Op::MatMul, &[shares, v], y);
    }
    Ok(())
}
