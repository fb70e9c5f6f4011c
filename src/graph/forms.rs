//! Functions that exporters spell out in several nodes, seen as the one operator that ONNX has for them: Gelu (by Erf, by Tanh), SiLU, HardSwish, Mish,
//! LayerNorm and RMSNorm. Only what computes the same for every input is found: constants are compared, axes and shapes too, and nothing outside the form
//! may read what lies within.
//! Source: ONNX operators Gelu, Swish, HardSwish, Mish, LayerNormalization, RMSNormalization, by their function bodies.

use super::{Attr, Dim, Graph, Inferred, NodeId, Op, ValueId, bounds};
use crate::tensor::Tensor;

/// A function spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// The operator that computes it alone.
    pub op: Op,
    pub attrs: Vec<Attr>,
    pub input: ValueId,
    pub output: ValueId,
    /// The operator's further inputs: constants of one number an element of the last axis.
    pub constants: Vec<ValueId>,
    /// Its nodes, in the order of the graph.
    pub nodes: Vec<NodeId>,
}

/// The opset from which ONNX has an operator that forms are.
pub fn since(op: Op) -> Option<i64> {
    Some(match op {
        Op::HardSwish => 14,
        Op::LayerNormalization => 17,
        Op::Mish => 18,
        Op::Gelu => 20,
        Op::RMSNormalization => 23,
        Op::Swish => 24,
        _ => return None,
    })
}

/// Numbers that exporters round in different ways are the same if they differ by less than this share.
const CLOSE: f64 = 1e-4;

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= CLOSE * b.abs()
}

/// Every form of a graph; bodies of If, Loop and Scan are graphs of their own. No node belongs to two.
pub fn forms(g: &Graph, inferred: &Inferred) -> Vec<Form> {
    let mut found: Vec<Form> = Vec::new();
    for (id, node) in g.nodes() {
        let form = match node.op {
            Op::Erf => gelu_by_erf(g, id),
            Op::Tanh => gelu_by_tanh(g, id).or_else(|| mish(g, id)),
            Op::Sigmoid => silu(g, id),
            Op::HardSigmoid | Op::Clip => hard_swish(g, id),
            Op::Sqrt => norm(g, inferred, id),
            _ => None,
        };
        let Some(mut form) = form else { continue };
        form.nodes.sort_by_key(|n| g.position(*n));
        form.nodes.dedup();
        let one_type = inferred.get(form.input).dtype.is_some() && inferred.get(form.input).dtype == inferred.get(form.output).dtype;
        let free = !found.iter().any(|f| f.nodes.iter().any(|n| form.nodes.contains(n)));
        if one_type && free && is_closed(g, &form) {
            found.push(form);
        }
    }
    found
}

/// Whether nothing outside reads what lies within.
fn is_closed(g: &Graph, form: &Form) -> bool {
    let within = |v: ValueId| v == form.output || !g.is_output(v) && g.value(v).uses().iter().all(|p| form.nodes.contains(&p.node));
    form.nodes.iter().all(|n| g.node(*n).outputs().iter().flatten().all(|v| within(*v)))
}

/// The node that makes `v`, if it is an `op`.
fn maker(g: &Graph, v: ValueId, op: Op) -> Option<NodeId> {
    let (id, _) = g.value(v).producer()?;
    (g.node(id).op == op).then_some(id)
}

/// The number that a constant of one element is.
fn number(g: &Graph, v: ValueId) -> Option<f64> {
    let t = &g.constant(v)?.tensor;
    if t.len() != 1 {
        return None;
    }
    t.to_f32().ok().map(|x| x[0] as f64)
}

/// The operand of a two-operand node that is a number, and the other.
fn with_number(g: &Graph, id: NodeId) -> Option<(f64, ValueId)> {
    let (a, b) = (g.node(id).input(0)?, g.node(id).input(1)?);
    number(g, b).map(|n| (n, a)).or_else(|| number(g, a).map(|n| (n, b)))
}

/// `v` as `factor · x`: Mul with a number, or Div by one.
fn scaled(g: &Graph, v: ValueId) -> Option<(f64, ValueId, NodeId)> {
    let (id, _) = g.value(v).producer()?;
    match g.node(id).op {
        Op::Mul => with_number(g, id).map(|(n, x)| (n, x, id)),
        Op::Div => number(g, g.node(id).input(1)?).map(|n| (1.0 / n, g.node(id).input(0).expect("a Div has operands"), id)),
        _ => None,
    }
}

/// `v` as `x + offset`.
fn shifted(g: &Graph, v: ValueId) -> Option<(f64, ValueId, NodeId)> {
    let id = maker(g, v, Op::Add)?;
    with_number(g, id).map(|(n, x)| (n, x, id))
}

/// The only node that reads `v`, and the slot.
fn reader(g: &Graph, v: ValueId) -> Option<(NodeId, usize)> {
    let [port] = g.value(v).uses() else { return None };
    g.get_node(port.node)?;
    Some((port.node, port.slot as usize)).filter(|_| !g.is_output(v))
}

/// Follows `gate` through products with numbers and with `x`, until it is `factor · x · gate`. The nodes on the way are added.
fn times(g: &Graph, mut gate: ValueId, x: ValueId, factor: f64, nodes: &mut Vec<NodeId>) -> Option<ValueId> {
    let (mut have, mut met) = (1.0, false);
    loop {
        if met && close(have, factor) {
            return Some(gate);
        }
        let (id, slot) = reader(g, gate)?;
        let node = g.node(id);
        let other = node.other(slot)?;
        match (node.op, number(g, other)) {
            (Op::Mul, Some(n)) => have *= n,
            (Op::Div, Some(n)) if slot == 0 => have /= n,
            (Op::Mul, None) if met => return None,
            (Op::Mul, None) if other == x => met = true,
            (Op::Mul, None) => {
                let (n, _, id) = scaled(g, other).filter(|(_, of, _)| *of == x)?;
                (have, met) = (have * n, true);
                nodes.push(id);
            }
            _ => return None,
        }
        nodes.push(id);
        gate = node.output(0)?;
    }
}

/// `0.5 · x · (1 + erf(x / √2))`
fn gelu_by_erf(g: &Graph, erf: NodeId) -> Option<Form> {
    let (factor, x, within) = scaled(g, g.node(erf).input(0)?)?;
    if !close(factor, std::f64::consts::FRAC_1_SQRT_2) {
        return None;
    }
    let mut nodes = vec![within, erf];
    let gate = one_more(g, g.node(erf).output(0)?, &mut nodes)?;
    let output = times(g, gate, x, 0.5, &mut nodes)?;
    Some(Form { op: Op::Gelu, attrs: vec![], input: x, output, constants: vec![], nodes })
}

/// `1 + v`, which alone reads `v`.
fn one_more(g: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<ValueId> {
    let (id, _) = reader(g, v)?;
    let node = g.node(id);
    if node.op != Op::Add || !close(with_number(g, id)?.0, 1.0) {
        return None;
    }
    nodes.push(id);
    node.output(0)
}

/// `0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`
fn gelu_by_tanh(g: &Graph, tanh: NodeId) -> Option<Form> {
    let (factor, sum, scale) = scaled(g, g.node(tanh).input(0)?)?;
    let add = maker(g, sum, Op::Add)?;
    let (a, b) = (g.node(add).input(0)?, g.node(add).input(1)?);
    if !close(factor, (2.0 / std::f64::consts::PI).sqrt()) {
        return None;
    }
    let mut nodes = vec![scale, add, tanh];
    let cubed = |x: ValueId, term: ValueId, nodes: &mut Vec<NodeId>| -> Option<()> {
        let (n, cube, id) = scaled(g, term)?;
        let (pow, by) = cube_of(g, cube)?;
        nodes.push(id);
        nodes.extend(by);
        (pow == x && close(n, 0.044_715)).then_some(())
    };
    let mark = nodes.len();
    let x = match cubed(a, b, &mut nodes) {
        Some(()) => a,
        None => {
            nodes.truncate(mark);
            cubed(b, a, &mut nodes)?;
            b
        }
    };
    let gate = one_more(g, g.node(tanh).output(0)?, &mut nodes)?;
    let output = times(g, gate, x, 0.5, &mut nodes)?;
    Some(Form { op: Op::Gelu, attrs: vec![Attr::new("approximate", "tanh")], input: x, output, constants: vec![], nodes })
}

/// `x` of `v = x³`: Pow, or two Muls.
fn cube_of(g: &Graph, v: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
    let (id, _) = g.value(v).producer()?;
    let node = g.node(id);
    let (a, b) = (node.input(0)?, node.input(1)?);
    match node.op {
        Op::Pow => (number(g, b)? == 3.0).then_some((a, vec![id])),
        Op::Mul => [(a, b), (b, a)].into_iter().find_map(|(x, square)| {
            let (of, by) = square_of(g, square)?;
            (of == x).then_some((x, vec![id, by]))
        }),
        _ => None,
    }
}

/// `x` of `v = x²`, and the node: a Pow, or a Mul with itself.
pub fn square_of(g: &Graph, v: ValueId) -> Option<(ValueId, NodeId)> {
    let (id, _) = g.value(v).producer()?;
    let node = g.node(id);
    let (a, b) = (node.input(0)?, node.input(1)?);
    match node.op {
        Op::Pow => (number(g, b)? == 2.0).then_some((a, id)),
        Op::Mul => (a == b).then_some((a, id)),
        _ => None,
    }
}

/// `x · sigmoid(α · x)`
fn silu(g: &Graph, sigmoid: NodeId) -> Option<Form> {
    let within = g.node(sigmoid).input(0)?;
    let mut nodes = vec![sigmoid];
    let gate = g.node(sigmoid).output(0)?;
    if let Some(output) = times(g, gate, within, 1.0, &mut nodes) {
        return Some(Form { op: Op::Swish, attrs: vec![], input: within, output, constants: vec![], nodes });
    }
    let (alpha, x, id) = scaled(g, within)?;
    let mut nodes = vec![id, sigmoid];
    let output = times(g, gate, x, 1.0, &mut nodes)?;
    Some(Form { op: Op::Swish, attrs: vec![Attr::new("alpha", alpha as f32)], input: x, output, constants: vec![], nodes })
}

/// `x · tanh(softplus(x))`
fn mish(g: &Graph, tanh: NodeId) -> Option<Form> {
    let softplus = maker(g, g.node(tanh).input(0)?, Op::Softplus)?;
    let x = g.node(softplus).input(0)?;
    let mut nodes = vec![softplus, tanh];
    let output = times(g, g.node(tanh).output(0)?, x, 1.0, &mut nodes)?;
    Some(Form { op: Op::Mish, attrs: vec![], input: x, output, constants: vec![], nodes })
}

/// `x · clip(x + 3, 0, 6) / 6`, or `x · hard_sigmoid(x)` with its slope 1/6.
fn hard_swish(g: &Graph, gate: NodeId) -> Option<Form> {
    let node = g.node(gate);
    let (x, factor, mut nodes) = match node.op {
        Op::HardSigmoid => {
            let (alpha, beta) = (node.float("alpha").unwrap_or(0.2) as f64, node.float("beta").unwrap_or(0.5) as f64);
            (node.input(0).filter(|_| close(alpha, 1.0 / 6.0) && close(beta, 0.5))?, 1.0, vec![gate])
        }
        _ => {
            let (offset, x, add) = shifted(g, node.input(0)?)?;
            if bounds(g, node)? != (0.0, 6.0) || offset != 3.0 {
                return None;
            }
            (x, 1.0 / 6.0, vec![add, gate])
        }
    };
    let output = times(g, node.output(0)?, x, factor, &mut nodes)?;
    Some(Form { op: Op::HardSwish, attrs: vec![], input: x, output, constants: vec![], nodes })
}

/// `d / √(mean(d²) + ε) · γ + β` over the last axis: RMSNorm of d, or LayerNorm where `d = x − mean(x)`.
fn norm(g: &Graph, inferred: &Inferred, sqrt: NodeId) -> Option<Form> {
    let (epsilon, variance, add) = shifted(g, g.node(sqrt).input(0)?)?;
    let (squares, mean) = mean_of(g, inferred, variance)?;
    let (d, square) = square_of(g, squares)?;
    let mut nodes = vec![mean, square, add, sqrt];
    // d / √v, or d · (1 / √v).
    let root = g.node(sqrt).output(0)?;
    let (id, slot) = reader(g, root)?;
    let mut normal = match g.node(id).op {
        Op::Div if slot == 1 && g.node(id).input(0) == Some(d) => id,
        Op::Reciprocal => product(g, id, d, &mut nodes)?,
        Op::Div if slot == 1 && number(g, g.node(id).input(0)?) == Some(1.0) => product(g, id, d, &mut nodes)?,
        _ => return None,
    };
    nodes.push(normal);
    let centred = maker(g, d, Op::Sub).and_then(|sub| {
        let x = g.node(sub).input(0)?;
        let (of, mean) = mean_of(g, inferred, g.node(sub).input(1)?)?;
        (of == x).then_some((x, [sub, mean]))
    });
    let (op, input) = match centred {
        Some((x, by)) => {
            nodes.extend(by);
            (Op::LayerNormalization, x)
        }
        None => (Op::RMSNormalization, d),
    };
    let shape = inferred.get(input).shape.as_ref()?;
    let Dim::Known(width) = *shape.last()? else { return None };
    let mut constants = Vec::new();
    for wanted in [Op::Mul, Op::Add] {
        let Some((id, slot)) = g.node(normal).output(0).and_then(|v| reader(g, v)).filter(|(id, _)| g.node(*id).op == wanted) else { break };
        let other = g.node(id).other(slot)?;
        let fits = |t: &Tensor| t.len() == width && t.shape().last() == Some(&width) && t.rank() <= shape.len();
        if !g.constant(other).is_some_and(|c| fits(&c.tensor)) {
            break;
        }
        constants.push(other);
        nodes.push(id);
        normal = id;
        if op == Op::RMSNormalization {
            break;
        }
    }
    // Both operators want a scale.
    if constants.is_empty() {
        return None;
    }
    let attrs = vec![Attr::new("axis", -1i64), Attr::new("epsilon", epsilon as f32)];
    Some(Form { op, attrs, input, output: g.node(normal).output(0)?, constants, nodes })
}

/// The Mul that alone reads a node's result, with `d` as its other operand. The node is added.
fn product(g: &Graph, id: NodeId, d: ValueId, nodes: &mut Vec<NodeId>) -> Option<NodeId> {
    let (mul, slot) = reader(g, g.node(id).output(0)?)?;
    nodes.push(id);
    (g.node(mul).op == Op::Mul && g.node(mul).other(slot) == Some(d)).then_some(mul)
}

/// What `v` is the mean of, over the last axis alone, which stays with length 1.
fn mean_of(g: &Graph, inferred: &Inferred, v: ValueId) -> Option<(ValueId, NodeId)> {
    let id = maker(g, v, Op::ReduceMean)?;
    let node = g.node(id);
    let x = node.input(0)?;
    let rank = inferred.get(x).shape.as_ref()?.len() as i64;
    let axes = match node.input(1) {
        Some(axes) => g.constant(axes)?.tensor.to_i64().ok()?,
        None => node.ints("axes")?.to_vec(),
    };
    let last = axes.len() == 1 && (axes[0] == -1 || axes[0] == rank - 1);
    (last && node.int("keepdims").unwrap_or(1) != 0).then_some((x, id))
}
