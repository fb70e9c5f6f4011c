//! QLinear… and QGemm: the float operator between the FakeQuants of its operands and of its result.

use super::params::Ask;
use super::qdq::{made, need, quantize};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeId, Op, ValueId};
use crate::quant::{Origin, QuantizerId};
use crate::tensor::{DType, Tensor};

/// The operand whose codes, scale and zero point stand at `slot` and behind it, as real numbers.
pub fn operand(w: &mut Work, n: &Node, slot: usize, axis: i64) -> Result<(ValueId, Option<QuantizerId>)> {
    let ask = Ask { scale: need(n, slot + 1)?, zero: n.input(slot + 2), axis, block: 0 };
    w.real(need(n, slot)?, ask, DType::F32, None)
}

/// Quantizes `value` as the node's output, under the scale and zero point at `slot` and behind it. Codes are of the zero point's type, or that of `like`.
fn result(w: &mut Work, n: &Node, value: ValueId, slot: usize, like: ValueId) -> Result<()> {
    let ask = Ask { scale: need(n, slot)?, zero: n.input(slot + 1), axis: 1, block: 0 };
    let dtype = ask.zero.and_then(|z| w.dtype(z)).or_else(|| w.dtype(like)).unwrap_or(DType::U8);
    quantize(w, value, made(n, 0)?, ask, dtype, &format!("{}_FakeQuant", n.name))
}

/// Float op `op` under the node's name with the attributes among `keep`.
pub fn float(n: &Node, op: Op, keep: &[&str]) -> Node {
    let mut node = Node::new(op, n.name.clone());
    node.attrs = n.attrs.iter().filter(|a| keep.contains(&a.name.as_str())).cloned().collect();
    node
}

fn before(w: &Work, n: &Node) -> Result<String> {
    Ok(format!("{}_float", w.name(made(n, 0)?)))
}

pub const WINDOW: &[&str] = &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// Runs `emit` on `x` with its channels moved from the last place to the second, if the node says that they are last, and back.
fn channels_first(w: &mut Work, n: &Node, x: ValueId, rank: Option<usize>, emit: impl FnOnce(&mut Work, ValueId) -> ValueId) -> Result<ValueId> {
    if n.int("channels_last").unwrap_or(0) == 0 {
        return Ok(emit(w, x));
    }
    let rank = rank.or_else(|| w.rank(x)).filter(|r| *r > 2).ok_or_else(|| Error::usage("its channels are last in an input of unknown rank"))? as i64;
    let name = before(w, n)?;
    let mut there: Vec<i64> = (0..rank).collect();
    there[1..].rotate_right(1);
    let mut back: Vec<i64> = (0..rank).collect();
    back[1..].rotate_left(1);
    let x = w.emit(Node::new(Op::Transpose, "").with("perm", there), &[Some(x)], &format!("{name}_channels_first"));
    let y = emit(w, x);
    Ok(w.emit(Node::new(Op::Transpose, "").with("perm", back), &[Some(y)], &format!("{name}_channels_last")))
}

/// One operand: x, its scale and zero; the result's scale and zero.
pub fn unary(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let codes = need(&n, 0)?;
    let (x, _) = operand(w, &n, 0, 1)?;
    let name = before(w, &n)?;
    let rank = n.ints("kernel_shape").map(|k| k.len() + 2).or_else(|| w.rank(codes));
    let node = match n.op {
        Op::QLinearSigmoid => float(&n, Op::Sigmoid, &[]),
        Op::QLinearLeakyRelu => float(&n, Op::LeakyRelu, &["alpha"]),
        Op::QLinearAveragePool => float(&n, Op::AveragePool, WINDOW),
        Op::QLinearGlobalAveragePool => float(&n, Op::GlobalAveragePool, &[]),
        _ => return reduce_mean(w, &n, x),
    };
    let t = channels_first(w, &n, x, rank, |w, x| w.emit(node, &[Some(x)], &name))?;
    result(w, &n, t, 3, codes)
}

/// ReduceMean takes its axes as an attribute until opset 17, and as an input from 18 on.
fn reduce_mean(w: &mut Work, n: &Node, x: ValueId) -> Result<()> {
    let name = before(w, n)?;
    let mut inputs = vec![Some(x)];
    let node = match n.ints("axes") {
        Some(axes) if w.all.opset >= 18 => {
            let axes = Tensor::of_i64(&[axes.len()], axes.to_vec());
            inputs.push(Some(w.g.add_constant(&format!("{name}_axes"), axes)));
            float(n, Op::ReduceMean, &["keepdims"])
        }
        _ => float(n, Op::ReduceMean, &["axes", "keepdims"]),
    };
    let t = w.emit(node, &inputs, &name);
    result(w, n, t, 3, need(n, 0)?)
}

/// Softmax before opset 13 is over all dimensions from its axis on; the node says which it means, the model's opset which a float Softmax will mean.
pub fn softmax(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let codes = need(&n, 0)?;
    let (x, _) = operand(w, &n, 0, 1)?;
    let name = before(w, &n)?;
    let meant = n.int("opset").unwrap_or(13);
    let axis = n.int("axis").unwrap_or(-1);
    let rank = w.rank(codes).map(|r| r as i64);
    let last = axis == -1 || rank.is_some_and(|r| axis == r - 1);
    if !last && (meant < 13) != (w.all.opset < 13) {
        return Err(Error::usage(format!("its Softmax is of opset {meant} over axis {axis}, which the model's opset {} says otherwise", w.all.opset)));
    }
    let axis = match (last, rank) {
        (true, Some(r)) => r - 1,
        (true, None) if w.all.opset < 13 => return Err(Error::usage("the rank of its input is not known")),
        _ => axis,
    };
    let t = w.emit(float(&n, Op::Softmax, &[]).with("axis", axis), &[Some(x)], &name);
    result(w, &n, t, 3, codes)
}

/// Two operands and a result.
pub fn binary(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let ((a, _), (b, _)) = (operand(w, &n, 0, 1)?, operand(w, &n, 3, 1)?);
    let op = if n.op == Op::QLinearAdd { Op::Add } else { Op::Mul };
    let name = before(w, &n)?;
    let t = w.emit(float(&n, op, &[]), &[Some(a), Some(b)], &name);
    result(w, &n, t, 6, need(&n, 0)?)
}

pub fn choose(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let condition = need(&n, 0)?;
    let ((a, _), (b, _)) = (operand(w, &n, 1, 1)?, operand(w, &n, 4, 1)?);
    let name = before(w, &n)?;
    let t = w.emit(float(&n, Op::Where, &[]), &[Some(condition), Some(a), Some(b)], &name);
    result(w, &n, t, 7, need(&n, 1)?)
}

/// Scale and zero of the result, then codes, scale and zero of each operand.
pub fn concat(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let count = n.inputs().len();
    if count < 5 || count % 3 != 2 {
        return Err(Error::usage(format!("it has {count} inputs, not two and three for each operand")));
    }
    let mut operands = Vec::new();
    for slot in (2..count).step_by(3) {
        // Operands may be float32 already.
        let v = need(&n, slot)?;
        let is_float = w.dtype(v) == Some(DType::F32);
        operands.push(Some(if is_float { v } else { operand(w, &n, slot, 1)?.0 }));
    }
    let name = before(w, &n)?;
    let t = w.emit(float(&n, Op::Concat, &["axis"]), &operands, &name);
    result(w, &n, t, 0, need(&n, 2)?)
}

pub fn conv(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let codes = need(&n, 0)?;
    let ((x, of_x), (weight, of_w)) = (operand(w, &n, 0, 1)?, operand(w, &n, 3, 0)?);
    let rank = w.rank(need(&n, 3)?);
    let bias = match n.input(8) {
        Some(b) => Some(bias(w, b, (need(&n, 1)?, of_x), (need(&n, 4)?, of_w), 1.0)?),
        None => None,
    };
    let name = before(w, &n)?;
    let node = float(&n, Op::Conv, WINDOW);
    let t = channels_first(w, &n, x, rank, |w, x| w.emit(node, &[&[Some(x), Some(weight)], bias.map(Some).as_slice()].concat(), &name))?;
    result(w, &n, t, 6, codes)
}

pub fn mat_mul(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    // One scale a row of the first operand, one a column of the second.
    let ((a, _), (b, _)) = (operand(w, &n, 0, -2)?, operand(w, &n, 3, -1)?);
    let name = before(w, &n)?;
    let t = w.emit(float(&n, Op::MatMul, &[]), &[Some(a), Some(b)], &name);
    result(w, &n, t, 6, need(&n, 0)?)
}

/// `alpha · (A·B + C)`, C being codes under the product of the scales; a float result where there is no scale for it.
pub fn gemm(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let columns = if n.int("transB").unwrap_or(0) == 0 { 1 } else { 0 };
    let ((a, of_a), (b, of_b)) = (operand(w, &n, 0, 0)?, operand(w, &n, 3, columns)?);
    let mut inputs = vec![Some(a), Some(b)];
    if let Some(c) = n.input(6) {
        let alpha = n.float("alpha").unwrap_or(1.0);
        inputs.push(Some(bias(w, c, (need(&n, 1)?, of_a), (need(&n, 4)?, of_b), alpha)?));
    }
    let node = float(&n, Op::Gemm, &["alpha", "transA", "transB"]);
    if n.input(7).is_none() {
        w.emit_into(node, &inputs, made(&n, 0)?);
        return Ok(());
    }
    let name = before(w, &n)?;
    let t = w.emit(node, &inputs, &name);
    result(w, &n, t, 7, need(&n, 0)?)
}

/// Accumulator codes `b` as real numbers: int32 under the product of the operands' scales and `factor`.
fn bias(w: &mut Work, b: ValueId, input: (ValueId, Option<QuantizerId>), weight: (ValueId, Option<QuantizerId>), factor: f32) -> Result<ValueId> {
    let name = w.name(b);
    let (Some(x), Some(y)) = (w.constant(input.0), w.constant(weight.0)) else {
        let scale = w.op(Op::Mul, &[input.0, weight.0], &format!("{name}_scale"));
        let numbers = w.numbers(b)?;
        return Ok(w.op(Op::Mul, &[numbers, scale], &format!("{name}_dequantized")));
    };
    let (x, y) = (x.to_f32()?, y.to_f32()?);
    let [x] = x[..] else { return Err(Error::usage("its input has more than one scale, so that its bias has none")) };
    let product = y.iter().map(|y| x * y * factor).collect();
    let scale = w.g.add_constant(&format!("{name}_scale"), Tensor::of_f32(&[y.len()], product));
    let axis = w.rank(b).map_or(0, |r| r as i64 - 1);
    let (real, id) = w.real(b, Ask { scale, zero: None, axis, block: 0 }, DType::F32, None)?;
    if let (Some(id), Some(x), Some(y), 1.0) = (id, input.1, weight.1, factor)
        && let Some(p) = &mut w.all.table[id].params
    {
        p.origin = Origin::Product(x, y);
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use crate::graph::{Model, Node, Op, Site};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, maker, model, node, ops, read};
    use crate::quant::{Blocks, Origin};
    use crate::tensor::{DType, Tensor};

    fn lifted(op: Node, reads: &'static [&'static str]) -> Model {
        let constants = [
            ("s", f32s(&[0.5])),
            ("z", bytes(DType::U8, &[], &[3])),
            ("t", f32s(&[0.25])),
            ("w", bytes(DType::I8, &[2, 4, 1, 1], &[1, 2, 3, 4, 5, 6, 7, 8])),
            ("m", bytes(DType::I8, &[4, 2], &[1, 2, 3, 4, 5, 6, 7, 8])),
            ("ws", f32s(&[0.1, 0.2])),
            ("wz", bytes(DType::I8, &[2], &[0, 0])),
            ("b", Tensor::of(DType::I32, &[2], vec![7i32, -9])),
        ];
        let shape: &[usize] = if op.op == Op::QLinearConv { &[1, 4, 3, 3] } else { &[3, 4] };
        let mut m = model(13, &[("x", DType::U8, shape), ("k", DType::Bool, &[4])], &constants, vec![(op, reads, &["y"])], &["y"]);
        lift(&mut m).unwrap();
        m
    }

    #[test]
    fn conv_has_a_weight_by_channel_and_a_bias_under_the_product() {
        let m = lifted(node(Op::QLinearConv).with("group", 1i64), &["x", "s", "z", "w", "ws", "wz", "t", "z", "b"]);
        let (_, conv) = maker(&m, "y_float");
        assert_eq!((conv.op, conv.name.as_str(), conv.int("group")), (Op::Conv, "make_y", Some(1)));
        let (weight, bias) = (maker(&m, read(&m, "y_float", 1)), maker(&m, read(&m, "y_float", 2)));
        let of = |n: &Node| &m.quantizers[n.quantizer().unwrap()];
        assert_eq!((of(weight.1).name.as_str(), &of(weight.1).scheme.blocks), ("w", &Blocks::channel(0)));
        assert_eq!(m.codes[&Site::of(bias.0)].unpack(), [7, -9]);
        let p = of(bias.1).params.as_ref().unwrap();
        assert_eq!(p.scale, [0.5 * 0.1, 0.5 * 0.2]);
        assert!(matches!(p.origin, Origin::Product(x, w) if m.quantizers[x].name == "x" && m.quantizers[w].name == "w"));
        assert_eq!(m.graph.value(m.graph.outputs[0]).name, "y");
    }

    #[test]
    fn mat_mul_has_a_weight_by_column() {
        let m = lifted(node(Op::QLinearMatMul), &["x", "s", "z", "m", "ws", "wz", "t", "z"]);
        let weight = maker(&m, read(&m, "y_float", 1)).1;
        assert_eq!(m.quantizers[weight.quantizer().unwrap()].scheme.blocks, Blocks::channel(1));
    }

    #[test]
    fn gemm_without_a_scale_for_its_result_gives_floats() {
        let m = lifted(node(Op::QGemm).with("alpha", 2f32), &["x", "s", "z", "m", "ws", "wz", "b"]);
        assert_eq!(maker(&m, "y").1.op, Op::Gemm);
        let bias = maker(&m, read(&m, "y", 2)).1;
        assert_eq!(m.quantizers[bias.quantizer().unwrap()].params.as_ref().unwrap().scale, [0.5 * 0.1 * 2.0, 0.5 * 0.2 * 2.0]);
    }

    #[test]
    fn each_operator_stands_between_its_quantizers() {
        let unary: &[&str] = &["x", "s", "z", "t", "z"];
        let binary: &[&str] = &["x", "s", "z", "x", "s", "z", "t", "z"];
        for (op, reads, float) in [
            (node(Op::QLinearSigmoid), unary, Op::Sigmoid),
            (node(Op::QLinearLeakyRelu), unary, Op::LeakyRelu),
            (node(Op::QLinearSoftmax).with("opset", 13i64), unary, Op::Softmax),
            (node(Op::QLinearReduceMean).with("axes", vec![1i64]), unary, Op::ReduceMean),
            (node(Op::QLinearAveragePool).with("kernel_shape", vec![1i64, 1]), unary, Op::AveragePool),
            (node(Op::QLinearGlobalAveragePool), unary, Op::GlobalAveragePool),
            (node(Op::QLinearAdd), binary, Op::Add),
            (node(Op::QLinearMul), binary, Op::Mul),
            (node(Op::QLinearWhere), &["k", "x", "s", "z", "x", "s", "z", "t", "z"], Op::Where),
            (node(Op::QLinearConcat).with("axis", 0i64), &["t", "z", "x", "s", "z", "x", "s", "z"], Op::Concat),
        ] {
            let m = lifted(op, reads);
            assert_eq!(maker(&m, "y_float").1.op, float);
            assert_eq!(ops(&m).iter().filter(|op| **op == Op::FakeQuant).count(), 1, "{float:?}");
            assert_eq!(maker(&m, "y").1.op, Op::Cast, "the output keeps its type");
        }
    }
}
