//! QOperator: a node whose operands and result are codes becomes an operator on codes; what only moves values moves codes. The rest stays QDQ.
//! A Relu or Clip before the quantizer is dropped where the lowest and highest code cut as it does: `Q(clip(x)) = Q(x)`; else codes are cut.
//! A constant of one number c is the code ±1 under the scale |c|, which is c itself.
//! Source: ONNX operators QLinearConv and QLinearMatMul; com.microsoft's QGemm, QLinear… and the kernels of ONNX Runtime 1.31 on a CPU: operands and
//! result of one type, int8 activations with int8 weights only, one zero point for a weight.
//! Needs: a model in Q/DQ. Declines, and says why: operators and types that no kernel takes, biases that are not int32 under the product of the scales.

use super::coded::{Coded, Made, made, numbers, sweep, take_out};
use super::moves::{move_codes, moved};
use crate::graph::{Graph, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// The scale with which ONNX Runtime 1.31's QLinearSoftmax is right: below it large results overflow, above it many are a step low (measured).
const SOFTMAX_SCALE: f32 = 1.0 / 256.0;

/// An operator on codes, and what it reads.
struct Spelled {
    node: Node,
    inputs: Vec<Option<ValueId>>,
}

/// Rewrites the outermost graph.
pub fn qoperator(model: &mut Model) -> Notes {
    let mut notes = Notes::of("lower");
    let opset = model.opset("").unwrap_or(0);
    let g = &mut model.graph;
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in g.order().to_vec() {
        let Some(node) = g.get_node(id) else { continue };
        let (name, was) = (node.name.clone(), node.op_type.to_string());
        match respell(g, id, opset) {
            Some(Ok(op)) => *done.entry(op.spelling().1.to_string()).or_default() += 1,
            Some(Err(why)) => left.entry(format!("{was} stays between QuantizeLinear and DequantizeLinear: {why}")).or_default().push(name),
            None => {}
        }
    }
    sweep(g, Op::DequantizeLinear);
    model.import_used(Op::QGemm.spelling().0);
    let counts: Vec<String> = done.iter().map(|(op, n)| format!("{n} {op}")).collect();
    notes.changed("", if counts.is_empty() { "no node runs on codes".to_string() } else { format!("on codes: {}", counts.join(", ")) });
    for (why, names) in left {
        notes.declined_alike(&names, |more| format!("{why}{more}"));
    }
    notes
}

/// Respells one node. `None`: it does not stand between codes; `Err`: it does, and why it stays.
fn respell(g: &mut Graph, id: NodeId, opset: i64) -> Option<Result<Op, String>> {
    let node = g.node(id);
    if matches!(node.op, Op::QuantizeLinear | Op::DequantizeLinear) {
        return None;
    }
    if let Some(outs) = moved(g, node) {
        let op = node.op;
        return Some(move_codes(g, id, &outs, opset).map(|()| op));
    }
    let node = node.clone();
    let Some(made) = made(g, node.output(0)?).filter(|_| node.outputs().len() == 1) else { return float_product(g, id) };
    let spelled = spell(g, &node, &made.out, opset)?;
    Some(spelled.and_then(|s| {
        if made.clip.is_some() && opset < 12 {
            return Err("a Relu or Clip behind it is not what its codes end at, and Clip takes no codes before opset 12".to_string());
        }
        let op = s.node.op;
        put(g, id, s, &made);
        Ok(op)
    }))
}

/// Puts an operator on codes in the place of a node and its quantizer.
fn put(g: &mut Graph, id: NodeId, spelled: Spelled, made: &Made) {
    let at = g.position(id);
    let out = made.out.codes;
    let Spelled { mut node, inputs } = spelled;
    (node.name, node.came_from) = (g.node(id).name.clone(), g.node(id).came_from.clone());
    take_out(g, &[&[id], &made.nodes[..]].concat(), &[&[out][..], &inputs.iter().flatten().copied().collect::<Vec<_>>()].concat());
    let Some((low, high)) = made.clip else {
        g.insert_node(at, node, &inputs, &[Some(out)]);
        return;
    };
    let name = g.value(out).name.clone();
    let uncut = g.add_value(&format!("{name}_uncut"));
    g.value_mut(uncut).ty = g.value(out).ty.clone();
    let [low, high] = [("low", low), ("high", high)].map(|(what, code)| g.add_constant(&format!("{name}_{what}"), scalar_code(made.out.dtype, code)));
    let cut = Node::new(Op::Clip, format!("{}_Clip", node.name));
    g.insert_node(at, node, &inputs, &[Some(uncut)]);
    g.insert_node(at + 1, cut, &[Some(uncut), Some(low), Some(high)], &[Some(out)]);
}

fn scalar_code(dtype: DType, code: i32) -> Tensor {
    Tensor::of(dtype, &[], vec![code as u8])
}

/// The operator on codes that computes what a node computes, with result `y`. `None` where its operands are not codes.
fn spell(g: &mut Graph, node: &Node, y: &Coded, opset: i64) -> Option<Result<Spelled, String>> {
    let read = |slot: usize| node.input(slot).and_then(|v| Coded::read(g, v));
    let plain = |slot: usize| read(slot).filter(Coded::is_plain);
    let of = |op: Op, inputs: &[&[Option<ValueId>]]| Spelled { node: with_attrs(op, node), inputs: inputs.concat() };
    let one_type = |operands: &[&Coded]| {
        if operands.iter().all(|c| c.dtype == y.dtype) { Ok(()) } else { Err(no_one_type()) }
    };
    match node.op {
        Op::Conv | Op::MatMul | Op::Gemm => Some(product(g, node, &plain(0)?, &read(1)?, Some(y))),
        Op::Add | Op::Mul | Op::Sub | Op::Div => {
            let (a, b) = (plain(0), plain(1));
            let number = if a.is_none() { 0 } else { 1 };
            if a.as_ref().or(b.as_ref())?.dtype != y.dtype {
                return Some(Err(no_one_type()));
            }
            let (op, a, b) = match (node.op, a, b) {
                (Op::Add, Some(a), Some(b)) => (Op::QLinearAdd, a, b),
                (Op::Mul, Some(a), Some(b)) => (Op::QLinearMul, a, b),
                (_, Some(_), Some(_)) => return Some(Err(no_operator(node))),
                (_, a, b) => {
                    let (op, c) = of_number(g, node, number)?;
                    let c = number_as_code(g, node.input(number)?, c, y.dtype);
                    if number == 0 { (op, c, b?) } else { (op, a?, c) }
                }
            };
            Some(one_type(&[&a, &b]).map(|()| Spelled { node: Node::new(op, ""), inputs: [&triple(&a)[..], &triple(&b), &pair(y)].concat() }))
        }
        Op::Sigmoid | Op::LeakyRelu | Op::Softmax | Op::AveragePool | Op::GlobalAveragePool => {
            let x = plain(0)?;
            if node.ints("dilations").is_some_and(|d| d.iter().any(|d| *d != 1)) {
                return Some(Err("its window has gaps".into()));
            }
            if node.op == Op::Softmax && g.constant(y.scale).is_none_or(|s| s.tensor.to_f32().is_ok_and(|s| s[0] != SOFTMAX_SCALE)) {
                return Some(Err("its kernel is exact under the scale 1/256 alone".into()));
            }
            let op = match node.op {
                Op::Sigmoid => Op::QLinearSigmoid,
                Op::LeakyRelu => Op::QLinearLeakyRelu,
                Op::Softmax => Op::QLinearSoftmax,
                Op::AveragePool => Op::QLinearAveragePool,
                _ => Op::QLinearGlobalAveragePool,
            };
            let mut spelled = of(op, &[&triple(&x), &pair(y)]);
            spelled.node.remove_attr("dilations");
            if node.op == Op::Softmax {
                let axis = node.int("axis").unwrap_or(if opset < 13 { 1 } else { -1 });
                spelled.node = Node::new(op, "").with("axis", axis).with("opset", opset);
            }
            Some(one_type(&[&x]).map(|()| spelled))
        }
        Op::Concat => {
            let operands: Option<Vec<Coded>> = (0..node.inputs().len()).map(plain).collect();
            let operands = operands?;
            let inputs: Vec<_> = std::iter::once(pair(y).to_vec()).chain(operands.iter().map(|c| triple(c).to_vec())).flatten().collect();
            Some(one_type(&operands.iter().collect::<Vec<_>>()).map(|()| of(Op::QLinearConcat, &[&inputs])))
        }
        _ => {
            let flows = |slot: usize| node.flows(slot) && node.input(slot).is_some_and(|v| g.constant(v).is_none());
            let slots: Vec<usize> = (0..node.inputs().len()).filter(|s| flows(*s)).collect();
            (!slots.is_empty() && slots.into_iter().all(|s| read(s).is_some())).then(|| Err(no_operator(node)))
        }
    }
}

/// `node`, one of whose operands is the one number at `slot`, as a sum with or a multiple by a number. `None`: there is none that is exact.
fn of_number(g: &Graph, node: &Node, slot: usize) -> Option<(Op, f32)> {
    let constant = &g.constant(node.input(slot)?)?.tensor;
    let c = *constant.to_f32().ok().filter(|x| x.len() == 1)?.first()?;
    let (op, c) = match (node.op, slot) {
        (Op::Add, _) => (Op::QLinearAdd, c),
        (Op::Mul, _) => (Op::QLinearMul, c),
        (Op::Sub, 1) => (Op::QLinearAdd, -c),
        // The quotient by a power of two is the product with another.
        (Op::Div, 1) if c.to_bits() << 9 == 0 => (Op::QLinearMul, 1.0 / c),
        _ => return None,
    };
    (c == 0.0 || c.is_normal()).then_some((op, c))
}

/// The number `c`, in the shape of constant `v`, as a code of `dtype`.
fn number_as_code(g: &mut Graph, v: ValueId, c: f32, dtype: DType) -> Coded {
    let (name, shape) = (g.value(v).name.clone(), g.value(v).known_shape().unwrap_or_default());
    let (code, zero) = match (c, dtype) {
        (0.0, _) => (0, 0),
        (..0.0, DType::U8) => (0, 1),
        (..0.0, _) => (-1, 0),
        _ => (1, 0),
    };
    let codes = g.add_constant(&format!("{name}_quantized"), Tensor::of(dtype, &shape, vec![code as u8]));
    let scale = g.add_constant(&format!("{name}_scale"), Tensor::scalar(if c == 0.0 { 1.0 } else { c.abs() }));
    let zero = g.add_constant(&format!("{name}_zero_point"), scalar_code(dtype, zero));
    Coded { codes, scale, zero: Some(zero), dtype, axis: None }
}

fn no_one_type() -> String {
    "its operands and its result are not of one type".to_string()
}

fn no_operator(node: &Node) -> String {
    format!("there is no {} on codes", node.op_type)
}

/// Conv, MatMul or Gemm of `x` and `w`; without `y` the result is float.
fn product(g: &Graph, node: &Node, x: &Coded, w: &Coded, y: Option<&Coded>) -> Result<Spelled, String> {
    if y.is_some_and(|y| y.dtype != x.dtype) || !matches!((x.dtype, w.dtype), (DType::U8, DType::U8 | DType::I8) | (DType::I8, DType::I8)) {
        let result = y.map_or(DType::F32, |y| y.dtype);
        return Err(format!("no kernel multiplies {} with {} and gives {result}", x.dtype, w.dtype));
    }
    let rank = g.constant(w.codes).map(|c| c.tensor.rank());
    let own = match node.op {
        Op::Conv => 0,
        Op::Gemm if node.int("transB").unwrap_or(0) != 0 => 0,
        _ => 1,
    };
    if w.axis.is_some_and(|axis| axis != own || node.op == Op::MatMul && rank != Some(2)) {
        return Err("its weight has scales along an axis that the kernel does not take".into());
    }
    let zeros = w.zero.and_then(|z| g.constant(z)).map(|c| numbers(&c.tensor)).unwrap_or_default();
    if zeros.is_empty() || zeros.iter().any(|z| *z != zeros[0]) {
        return Err("its weight has more than one zero point".into());
    }
    let (alpha, beta) = (node.float("alpha").unwrap_or(1.0), node.float("beta").unwrap_or(1.0));
    let bias = match node.input(2) {
        None => None,
        Some(_) if alpha != 1.0 || beta != 1.0 => return Err("its bias is multiplied".into()),
        Some(b) => match Coded::read(g, b).filter(|b| is_product(g, b, x, w)) {
            Some(b) => Some(b.codes),
            None => return Err("its bias is not int32 under the product of the scales".into()),
        },
    };
    let (op, inputs) = match (node.op, y.map(pair)) {
        (Op::Conv, Some(y)) => (Op::QLinearConv, [&triple(x)[..], &triple(w), &y, bias.map(Some).as_slice()].concat()),
        (Op::MatMul, Some(y)) => (Op::QLinearMatMul, [&triple(x)[..], &triple(w), &y].concat()),
        (Op::MatMul, None) => (Op::MatMulIntegerToFloat, vec![Some(x.codes), Some(w.codes), Some(x.scale), Some(w.scale), x.zero, w.zero]),
        (Op::Gemm, y) => (Op::QGemm, [&triple(x)[..], &triple(w), &[bias], y.as_ref().map_or(&[][..], |y| y)].concat()),
        _ => return Err("no kernel gives floats".into()),
    };
    let mut spelled = Spelled { node: with_attrs(op, node), inputs };
    spelled.node.remove_attr("beta");
    Ok(spelled)
}

/// MatMul or Gemm of codes whose result is float; with a MatMul goes the Add behind it, if that adds one number a column.
fn float_product(g: &mut Graph, id: NodeId) -> Option<Result<Op, String>> {
    let node = g.node(id).clone();
    if !matches!(node.op, Op::MatMul | Op::Gemm) {
        return None;
    }
    let x = Coded::read(g, node.input(0)?).filter(Coded::is_plain)?;
    let w = Coded::read(g, node.input(1)?)?;
    let mut spelled = match product(g, &node, &x, &w, None) {
        Ok(spelled) => spelled,
        Err(why) => return Some(Err(why)),
    };
    let (mut gone, mut out) = (vec![id], node.output(0)?);
    if let (Op::MatMul, [port], false) = (node.op, g.value(out).uses(), g.is_output(out))
        && let Some(add) = g.get_node(port.node).filter(|n| n.op == Op::Add)
        && let Some(bias) = add.other(port.slot as usize).filter(|b| column_numbers(g, *b) == columns(g, &w))
    {
        spelled.inputs.push(Some(bias));
        spelled.node.came_from = vec![node.name.clone(), add.name.clone()];
        (gone, out) = (vec![id, port.node], add.output(0)?);
    }
    let op = spelled.node.op;
    spelled.node.name = node.name;
    let at = if gone.len() == 1 { g.position(id) } else { g.position(gone[1]) - 1 };
    take_out(g, &gone, &[&[out][..], &spelled.inputs.iter().flatten().copied().collect::<Vec<_>>()].concat());
    g.insert_node(at, spelled.node, &spelled.inputs, &[Some(out)]);
    Some(Ok(op))
}

/// Columns of a constant matrix.
fn columns(g: &Graph, w: &Coded) -> Option<usize> {
    g.constant(w.codes)?.tensor.shape().last().copied()
}

/// How many numbers a constant vector has: floats, or codes behind a DequantizeLinear.
fn column_numbers(g: &Graph, v: ValueId) -> Option<usize> {
    let constant = Coded::read(g, v).map_or(v, |c| c.codes);
    let shape = g.constant(constant)?.tensor.shape();
    (shape.len() == 1).then(|| shape[0])
}

/// Whether a bias is int32 under the product of both scales, channel by channel and bit by bit.
fn is_product(g: &Graph, bias: &Coded, x: &Coded, w: &Coded) -> bool {
    let scales = |v: ValueId| g.constant(v).and_then(|c| Some(c.tensor.to_f32().ok()?.into_owned())).unwrap_or_default();
    let (b, x, w) = (scales(bias.scale), scales(x.scale), scales(w.scale));
    let zero = bias.zero.and_then(|z| g.constant(z)).is_none_or(|c| numbers(&c.tensor).iter().all(|z| *z == 0));
    bias.dtype == DType::I32 && zero && b.len() == w.len() && b.iter().zip(&w).all(|(b, w)| *b == x[0] * w)
}

fn with_attrs(op: Op, of: &Node) -> Node {
    let mut node = Node::new(op, "");
    node.attrs = of.attrs.clone();
    node
}

fn triple(c: &Coded) -> [Option<ValueId>; 3] {
    [Some(c.codes), Some(c.scale), c.zero]
}

fn pair(c: &Coded) -> [Option<ValueId>; 2] {
    [Some(c.scale), c.zero]
}

#[cfg(test)]
mod tests;
