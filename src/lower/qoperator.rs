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
    sweep(g);
    if model.graph.nodes().any(|(_, n)| &*n.domain == Op::QGemm.spelling().0) && model.opset(Op::QGemm.spelling().0).is_none() {
        model.set_opset(Op::QGemm.spelling().0, 1);
    }
    let counts: Vec<String> = done.iter().map(|(op, n)| format!("{n} {op}")).collect();
    notes.changed("", if counts.is_empty() { "no node runs on codes".to_string() } else { format!("on codes: {}", counts.join(", ")) });
    for (why, names) in left {
        let more = if names.len() > 1 { format!(" (and {} more)", names.len() - 1) } else { String::new() };
        notes.declined(&names[0], format!("{why}{more}"));
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
        && let Some(bias) = add.input(1 - port.slot as usize).filter(|b| column_numbers(g, *b) == columns(g, &w))
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
mod tests {
    use super::*;
    use crate::graph::{Attr, Type};
    use crate::lift::lift;

    /// A model whose values are made as they are named; scales and zero points are called after the number.
    struct Made(Model);

    impl Made {
        fn new() -> Self {
            Made(Model { opsets: vec![(String::new(), 13)], ir_version: 7, ..Model::default() })
        }

        fn v(&mut self, name: &str) -> ValueId {
            self.0.graph.find_value(name).unwrap_or_else(|| self.0.graph.add_value(name))
        }

        fn put(&mut self, name: &str, t: Tensor) -> &mut Self {
            self.0.graph.add_constant(name, t);
            self
        }

        fn node(&mut self, op: Op, attrs: &[Attr], reads: &[&str], makes: &[&str]) -> &mut Self {
            let reads: Vec<_> = reads.iter().map(|n| Some(self.v(n))).collect();
            let outs: Vec<_> = makes.iter().map(|n| Some(self.v(n))).collect();
            let mut node = Node::new(op, format!("make_{}", makes[0]));
            node.attrs = attrs.to_vec();
            self.0.graph.add_node(node, &reads, &outs);
            self
        }

        /// Scale and zero point called `s` and `z` before `of`.
        fn pair(&mut self, of: &str, dtype: DType, scale: f32, zero: i32) {
            self.put(&format!("s{of}"), Tensor::scalar(scale)).put(&format!("z{of}"), scalar_code(dtype, zero));
        }

        /// float `x` → Q → DQ → `x.`, under the pair called `of`.
        fn coded(&mut self, x: &str, of: &str) -> &mut Self {
            let (scale, zero, codes) = (format!("s{of}"), format!("z{of}"), format!("{x}:q"));
            self.node(Op::QuantizeLinear, &[], &[x, &scale, &zero], &[&codes]);
            let (v, z) = (self.v(&codes), self.v(&zero));
            let dtype = self.0.graph.value(z).dtype();
            self.0.graph.value_mut(v).ty = Type::Tensor { dtype, shape: None };
            self.node(Op::DequantizeLinear, &[], &[&codes, &scale, &zero], &[&format!("{x}.")])
        }

        fn done(mut self, output: &str) -> (Model, Vec<Op>, Notes) {
            let (x, y) = (self.v("x"), self.v(output));
            self.0.graph.inputs.push(x);
            self.0.graph.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, 2, 4, 4].map(crate::graph::Dim::Known).to_vec()) };
            self.0.graph.outputs.push(y);
            let notes = qoperator(&mut self.0);
            let ops = self.0.graph.nodes().map(|(_, n)| n.op).collect();
            (self.0, ops, notes)
        }
    }

    /// x → Q/DQ → Conv(codes, int32 bias) → then → Q/DQ.
    fn conv(dtype: DType, zero: i32, bias_scale: f32, then: Op) -> (Model, Vec<Op>, Notes) {
        let mut m = Made::new();
        m.pair("x", dtype, 0.5, 3);
        m.pair("y", dtype, 0.25, zero);
        m.put("w", Tensor::of(DType::I8, &[2, 2, 1, 1], vec![1i8, -2, 3, -4])).put("sw", Tensor::of_f32(&[2], vec![0.1, 0.2]));
        m.put("zw", Tensor::of(DType::I8, &[2], vec![0i8, 0])).put("b", Tensor::of(DType::I32, &[2], vec![7i32, -9]));
        m.put("sb", Tensor::of_f32(&[2], vec![0.5 * 0.1, bias_scale]));
        m.coded("x", "x");
        m.node(Op::DequantizeLinear, &[Attr::new("axis", 0i64)], &["w", "sw", "zw"], &["w."]);
        m.node(Op::DequantizeLinear, &[Attr::new("axis", 0i64)], &["b", "sb"], &["b."]);
        m.node(Op::Conv, &[Attr::new("group", 1i64)], &["x.", "w.", "b."], &["c"]).node(then, &[], &["c"], &["y"]).coded("y", "y");
        m.done("y.")
    }

    #[test]
    fn a_layer_is_one_operator_and_no_number_is_another() {
        let (mut m, ops, _) = conv(DType::U8, 0, 0.5 * 0.2, Op::Relu);
        assert_eq!(ops, [Op::QuantizeLinear, Op::QLinearConv, Op::DequantizeLinear]);
        let (_, node) = m.graph.nodes().nth(1).unwrap();
        let read: Vec<&str> = node.inputs().iter().map(|v| m.graph.value(v.unwrap()).name.as_str()).collect();
        assert_eq!(read, ["x:q", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"]);
        assert_eq!((node.name.as_str(), node.int("group")), ("make_c", Some(1)));
        assert!(m.graph.find_value("sb").is_none() && m.graph.find_value("c").is_none());
        lift(&mut m).unwrap();
        let scales: Vec<_> = m.quantizers.ids().map(|q| (m.quantizers[q].name.clone(), m.quantizers[q].params.as_ref().unwrap().scale.clone())).collect();
        assert!(scales.contains(&("w".into(), vec![0.1, 0.2])) && scales.contains(&("b".into(), vec![0.5 * 0.1, 0.5 * 0.2])), "{scales:?}");
        assert_eq!(m.codes.values().map(|c| c.unpack()).collect::<Vec<_>>(), [vec![1, -2, 3, -4], vec![7, -9]]);
    }

    #[test]
    fn what_the_codes_do_not_cut_is_cut_among_them() {
        let (m, ops, _) = conv(DType::I8, 0, 0.5 * 0.2, Op::Relu);
        assert_eq!(ops, [Op::QuantizeLinear, Op::QLinearConv, Op::Clip, Op::DequantizeLinear]);
        let (_, cut) = m.graph.nodes().nth(2).unwrap();
        let bound = |slot: usize| numbers(&m.graph.constant(cut.input(slot).unwrap()).unwrap().tensor)[0];
        assert_eq!((bound(1), bound(2)), (0, 127));
    }

    #[test]
    fn what_no_kernel_takes_stays_and_says_why() {
        let (_, ops, notes) = conv(DType::U8, 0, 0.11, Op::Relu);
        assert!(ops.contains(&Op::Conv));
        assert!(notes.list().iter().any(|n| n.about == "make_c" && n.text.contains("product of the scales")), "{:?}", notes.list());
        let (_, ops, notes) = conv(DType::U8, 0, 0.5 * 0.2, Op::Tanh);
        assert!(ops.contains(&Op::Conv) && notes.list().len() == 1, "its result is not codes");
        let mut m = Made::new();
        m.pair("a", DType::U8, 0.5, 3);
        m.coded("x", "a").node(Op::Tanh, &[], &["x."], &["y"]).coded("y", "a");
        let (_, ops, notes) = m.done("y.");
        assert!(ops.contains(&Op::Tanh) && notes.list()[1].text.contains("no Tanh on codes"), "{:?}", notes.list());
    }

    #[test]
    fn each_operator_has_its_own() {
        let made = |op: Op, attrs: &[Attr], reads: &[&str]| {
            let mut m = Made::new();
            m.pair("a", DType::U8, 0.5, 3);
            m.pair("s", DType::U8, 1.0 / 256.0, 0);
            m.put("minus", Tensor::scalar(-1.5)).put("third", Tensor::scalar(3.0));
            m.coded("x", "a").node(Op::Neg, &[], &["x"], &["n"]).coded("n", "s").node(op, attrs, reads, &["y"]).coded("y", "s");
            let (m, ops, _) = m.done("y.");
            (ops.into_iter().filter(|op| !matches!(op, Op::QuantizeLinear | Op::DequantizeLinear | Op::Neg)).collect::<Vec<_>>(), m)
        };
        let window = [Attr::new("kernel_shape", vec![2i64, 2])];
        for (op, attrs, reads, want) in [
            (Op::Add, &[][..], &["x.", "n."][..], Op::QLinearAdd),
            (Op::Mul, &[], &["x.", "n."], Op::QLinearMul),
            (Op::Sub, &[], &["x.", "minus"], Op::QLinearAdd),
            (Op::Mul, &[], &["minus", "x."], Op::QLinearMul),
            (Op::Sigmoid, &[], &["x."], Op::QLinearSigmoid),
            (Op::LeakyRelu, &[], &["x."], Op::QLinearLeakyRelu),
            (Op::Softmax, &[], &["x."], Op::QLinearSoftmax),
            (Op::AveragePool, &window, &["x."], Op::QLinearAveragePool),
            (Op::GlobalAveragePool, &[], &["x."], Op::QLinearGlobalAveragePool),
            (Op::MatMul, &[], &["x.", "n."], Op::QLinearMatMul),
            (Op::Concat, &[Attr::new("axis", 1i64)], &["x.", "n."], Op::QLinearConcat),
            (Op::Div, &[], &["x.", "third"], Op::Div),
            (Op::Sub, &[], &["x.", "n."], Op::Sub),
        ] {
            let (ops, m) = made(op, attrs, reads);
            assert_eq!(ops, [want], "{op:?}");
            assert_eq!(m.opset("com.microsoft").is_some(), want.spelling().0 == "com.microsoft");
        }
        // −1.5 as a code, exactly: (0 − 1) · 1.5; subtracted, it is added as 1.5.
        let (_, m) = made(Op::Mul, &[], &["minus", "x."]);
        let (_, node) = m.graph.nodes().find(|(_, n)| n.op == Op::QLinearMul).unwrap();
        let number = |slot: usize| m.graph.constant(node.input(slot).unwrap()).unwrap().tensor.clone();
        assert_eq!((numbers(&number(0)), number(1), numbers(&number(2))), (vec![0], Tensor::scalar(1.5), vec![1]));
        let (ops, _) = made(Op::Softmax, &[], &["n."]);
        assert_eq!(ops, [Op::QLinearSoftmax]);
    }

    #[test]
    fn a_softmax_that_the_kernel_would_spoil_stays() {
        let mut m = Made::new();
        m.pair("a", DType::U8, 0.5, 3);
        m.pair("s", DType::U8, 1.0 / 300.0, 0);
        m.coded("x", "a").node(Op::Softmax, &[], &["x."], &["y"]).coded("y", "s");
        assert!(m.done("y.").1.contains(&Op::Softmax));
    }

    #[test]
    fn movement_is_of_codes_where_the_scale_is_one() {
        let moved = |to: &str| {
            let mut m = Made::new();
            m.pair("a", DType::U8, 0.5, 3);
            m.pair("b", DType::U8, 0.25, 3);
            m.put("pads", Tensor::of_i64(&[8], vec![1; 8]));
            m.coded("x", "a").node(Op::Pad, &[], &["x.", "pads"], &["p"]).coded("p", to).node(Op::Transpose, &[], &["p."], &["y"]).coded("y", to);
            m.done("y.")
        };
        let (m, ops, _) = moved("a");
        assert_eq!(ops, [Op::QuantizeLinear, Op::Pad, Op::Transpose, Op::DequantizeLinear]);
        let (_, pad) = m.graph.nodes().nth(1).unwrap();
        assert_eq!(m.graph.value(pad.input(2).unwrap()).name, "za", "zeros are the zero point");
        let (_, ops, _) = moved("b");
        assert_eq!(ops, [Op::QuantizeLinear, Op::DequantizeLinear, Op::Pad, Op::QuantizeLinear, Op::Transpose, Op::DequantizeLinear]);
    }

    #[test]
    fn a_product_that_stays_float_takes_its_bias_along() {
        let mut m = Made::new();
        m.pair("a", DType::U8, 0.5, 3);
        m.put("w", Tensor::of(DType::I8, &[4, 2], vec![1i8; 8])).put("sw", Tensor::of_f32(&[2], vec![0.1, 0.2]));
        m.put("zw", Tensor::of(DType::I8, &[2], vec![0i8, 0])).put("b", Tensor::of_f32(&[2], vec![0.3, 0.4]));
        m.coded("x", "a").node(Op::DequantizeLinear, &[Attr::new("axis", 1i64)], &["w", "sw", "zw"], &["w."]);
        m.node(Op::MatMul, &[], &["x.", "w."], &["p"]).node(Op::Add, &[], &["b", "p"], &["y"]);
        let (m, ops, _) = m.done("y");
        assert_eq!(ops, [Op::QuantizeLinear, Op::MatMulIntegerToFloat]);
        let (_, node) = m.graph.nodes().nth(1).unwrap();
        let read: Vec<&str> = node.inputs().iter().map(|v| m.graph.value(v.unwrap()).name.as_str()).collect();
        assert_eq!(
            read,
            ["x:q", "w", "sx", "sw", "zx", "zw", "b"].map(|n| if n == "sx" {
                "sa"
            } else if n == "zx" {
                "za"
            } else {
                n
            })
        );
    }
}
