//! Operators whose scale is found when the model runs, and products of codes that leave the scale to others.

use super::held::{Held, Real, Under};
use super::params::{Ask, params, scheme, zero_numbers};
use super::qdq::{made, need, saturate};
use super::qlinear::{WINDOW, float, operand};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeId, Op, Type, ValueId};
use crate::quant::{Blocks, Extent, Format, QuantizerId, ScaleKind, Scheme, Timing, View, Zeros};
use crate::tensor::{DType, Tensor};

/// The quantizer that DynamicQuantizeLinear is.
fn dynamic(w: &mut Work, x: ValueId) -> QuantizerId {
    let name = w.name(x);
    w.all.table.add(name, Scheme { timing: Timing::Dynamic, ..Scheme::int(8, false) })
}

/// DynamicQuantizeLinear → a dynamic FakeQuant; scale and zero point are computed beside it for whoever reads them otherwise.
pub fn dynamic_quantize_linear(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (x, y) = (need(&n, 0)?, made(&n, 0)?);
    let (name, scale) = (w.name(y), n.output(1));
    let scale = scale.unwrap_or_else(|| w.g.add_value(&format!("{name}_scale")));
    let zero = n.output(2).unwrap_or_else(|| w.g.add_value(&format!("{name}_zero_point")));
    w.g.value_mut(scale).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![]) };
    let part = |what: &str| format!("{name}_{what}");

    let whole = |op| Node::new(op, "").with("keepdims", 0i64);
    let (top, bottom) = (w.emit(whole(Op::ReduceMax), &[Some(x)], &part("top")), w.emit(whole(Op::ReduceMin), &[Some(x)], &part("bottom")));
    let nought = w.scalar(0.0, &part("nought"));
    let (high, low) = (w.op(Op::Max, &[top, nought], &part("high")), w.op(Op::Min, &[bottom, nought], &part("low")));
    let width = w.op(Op::Sub, &[high, low], &part("width"));
    let steps = w.scalar(255.0, &part("steps"));
    let exact = w.op(Op::Div, &[width, steps], &part("exact_scale"));
    let (is_flat, one) = (w.op(Op::Equal, &[exact, nought], &part("is_flat")), w.scalar(1.0, &part("one")));
    w.emit_into(Node::new(Op::Where, ""), &[Some(is_flat), Some(one), Some(exact)], scale);
    let below = w.op(Op::Div, &[low, scale], &part("below"));
    let lowest = w.op(Op::Sub, &[nought, below], &part("lowest"));
    let rounded = w.op(Op::Round, &[lowest], &part("rounded_zero"));
    let zero_number = saturate(w, rounded, DType::U8, &part("zero"));
    let q = dynamic(w, x);
    let real = w.landing(y, DType::F32);
    w.emit_into(Node::fake_quant(q, n.name.clone()), &[Some(x)], real);
    // Won back from what FakeQuant made, so that a last bit in the scale moves no code.
    let divided = w.op(Op::Div, &[real, scale], &part("divided"));
    let steps = w.op(Op::Round, &[divided], &part("rounded"));
    let numbers = w.op(Op::Add, &[steps, zero_number], &part("number"));

    let under = Under::Dynamic { scale, zero };
    w.hold(zero, Held::numbers(DType::U8, zero_number))?;
    w.g.value_mut(zero).ty = Type::Tensor { dtype: Some(DType::U8), shape: Some(vec![]) };
    w.hold(y, Held { numbers: Some(numbers), ..Held::real(DType::U8, real, DType::F32, under) })
}

/// MatMulInteger and ConvInteger. Where a cast and multiplications with the input's scale and the weight's follow, as dynamic quantization writes
/// them, they become one product of a dynamic FakeQuant and a weight held as codes; else the product of numbers around zero, which weights held as
/// codes with scale 1 are.
pub fn integer_product(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (a, b, y) = (need(&n, 0)?, need(&n, 1)?, made(&n, 0)?);
    let (zero_a, zero_b) = (n.input(2), n.input(3));
    let conv = n.op == Op::ConvInteger;
    let axis = if conv { 0 } else { -1 };
    let node = if conv { float(&n, Op::Conv, WINDOW) } else { float(&n, Op::MatMul, &[]) };

    if let (Some(real), Some(_)) = (w.held.get(&a).and_then(|h| h.real), w.constant(b))
        && let Some((end, scale)) = scaled(w, y, real, zero_a, conv)
    {
        let (weight, _) = w.real(b, Ask { scale, zero: zero_b, axis, block: 0 }, DType::F32, None)?;
        w.emit_into(node, &[Some(real.value), Some(weight)], end);
        return Ok(());
    }
    let one = w.g.add_constant("one", Tensor::scalar(1.0));
    // One zero point a row of the first operand, one an output channel of the second.
    let left = centred(w, a, zero_a, -2)?;
    let right = match w.constant(b) {
        // A zero point for each channel asks for as many scales.
        Some(_) => {
            let zeros = zero_b.and_then(|z| w.constant(z)).map_or(1, |z| z.len());
            let ones = if zeros == 1 { one } else { w.g.add_constant("ones", Tensor::of_f32(&[zeros], vec![1.0; zeros])) };
            w.real(b, Ask { scale: ones, zero: zero_b, axis, block: 0 }, DType::F32, None)?.0
        }
        None => centred(w, b, zero_b, axis)?,
    };
    let product = w.landing(y, DType::F32);
    w.emit_into(node, &[Some(left), Some(right)], product);
    w.hold(y, Held::numbers(DType::I32, product))
}

/// Codes less their zero point as numbers: one zero point for all, or one an index of `axis`.
fn centred(w: &mut Work, v: ValueId, zero: Option<ValueId>, axis: i64) -> Result<ValueId> {
    let numbers = w.numbers(v)?;
    let Some(zero) = zero else { return Ok(numbers) };
    if w.constant(zero).is_some_and(|t| t.len() == 1 && t.bytes().iter().all(|b| *b == 0)) {
        return Ok(numbers);
    }
    let name = w.name(v);
    let zero_numbers = w.numbers(zero)?;
    let zero = w.along(zero_numbers, zero, v, axis)?;
    Ok(w.op(Op::Sub, &[numbers, zero], &format!("{name}_centred")))
}

/// Looks behind a product of codes for Cast and Mul by both scales. The value that the last Mul made, now without a maker, and the weight's scale:
/// one number or one a channel.
fn scaled(w: &mut Work, y: ValueId, a: Real, zero_a: Option<ValueId>, conv: bool) -> Option<(ValueId, ValueId)> {
    let Under::Dynamic { scale: of_a, zero } = a.under else { return None };
    if zero_a != Some(zero) {
        return None;
    }
    let only_reader = |w: &Work, v: ValueId| match w.g.value(v).uses() {
        [port] if !w.g.is_output(v) => w.g.get_node(port.node).filter(|n| !n.captures().contains(&v)).map(|_| port.node),
        _ => None,
    };
    let cast = only_reader(w, y)?;
    if w.g.node(cast).op != Op::Cast || w.g.node(cast).int("to") != Some(DType::F32.onnx() as i64) {
        return None;
    }
    let mut at = w.g.node(cast).output(0)?;
    let mut factors = Vec::new();
    loop {
        let mul = only_reader(w, at)?;
        let m = w.g.node(mul);
        let (Op::Mul, Some(l), Some(r), Some(out)) = (m.op, m.input(0), m.input(1), m.output(0)) else { return None };
        let other = if l == at { r } else { l };
        let known = w.constant(other).is_some();
        match w.g.value(other).producer().map(|(p, _)| w.g.node(p)) {
            Some(p) if p.op == Op::Mul && !known => factors.extend([p.input(0)?, p.input(1)?]),
            _ => factors.push(other),
        }
        at = out;
        match factors[..] {
            [_] => {}
            [l, r] if l == of_a || r == of_a => {
                let scale = if l == of_a { r } else { l };
                let t = w.constant(scale)?;
                let channels = if t.len() == 1 { true } else { along(t.shape(), conv) };
                if t.dtype() != DType::F32 || !channels {
                    return None;
                }
                // The scale of a convolution's channels has dimensions behind them.
                let scale = if t.rank() <= 1 { scale } else { w.g.add_constant(&w.name(scale), t.reshaped(vec![t.len()]).ok()?) };
                w.take(mul);
                return Some((out, scale));
            }
            _ => return None,
        }
    }
}

/// Whether a scale of this shape has one number an output channel: `[…1, n]` for MatMul, `[1, n, 1…]` for Conv.
fn along(shape: &[usize], conv: bool) -> bool {
    let n: usize = shape.iter().product();
    match (conv, shape) {
        (false, [rest @ .., last]) => *last == n && rest.iter().all(|d| *d == 1),
        (true, [1, m, rest @ ..]) if !rest.is_empty() => *m == n && rest.iter().all(|d| *d == 1),
        (true, [m, rest @ ..]) if rest.len() >= 2 => *m == n && rest.iter().all(|d| *d == 1),
        _ => false,
    }
}

/// A bias is added if there is one.
fn with_bias(w: &mut Work, n: &Node, product: Node, inputs: [ValueId; 2], bias: Option<ValueId>) -> Result<()> {
    let y = made(n, 0)?;
    let inputs = inputs.map(Some);
    match bias {
        None => {
            w.emit_into(product, &inputs, y);
        }
        Some(b) => {
            let name = w.name(y);
            let t = w.emit(product, &inputs, &format!("{name}_product"));
            w.emit_into(Node::new(Op::Add, format!("{}_bias", n.name)), &[Some(t), Some(b)], y);
        }
    }
    Ok(())
}

pub fn mat_mul_integer_to_float(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let ask = |scale, zero, axis| Ask { scale, zero, axis, block: 0 };
    let (a, _) = w.real(need(&n, 0)?, ask(need(&n, 2)?, n.input(4), -2), DType::F32, None)?;
    let (b, _) = w.real(need(&n, 1)?, ask(need(&n, 3)?, n.input(5), -1), DType::F32, None)?;
    with_bias(w, &n, Node::new(Op::MatMul, n.name.clone()), [a, b], n.input(6))
}

pub fn dynamic_quantize_mat_mul(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let x = need(&n, 0)?;
    let (b, _) = operand(w, &n, 1, -1)?;
    let q = dynamic(w, x);
    let a = w.emit(Node::fake_quant(q, ""), &[Some(x)], &format!("{}_quantized", w.name(x)));
    with_bias(w, &n, Node::new(Op::MatMul, n.name.clone()), [a, b], n.input(4))
}

/// DynamicQuantizeLSTM, whose weights lie transposed. The runtime also quantizes the hidden state at every step, which stays float here.
pub fn dynamic_quantize_lstm(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let x = need(&n, 0)?;
    let q = dynamic(w, x);
    let mut inputs = n.inputs().to_vec();
    inputs.truncate(8);
    inputs[0] = Some(w.emit(Node::fake_quant(q, ""), &[Some(x)], &format!("{}_quantized", w.name(x))));
    for (slot, scale) in [(1, 8), (2, 10)] {
        let (codes, name) = (need(&n, slot)?, w.name(need(&n, slot)?));
        let constants = (w.constant(codes), w.constant(need(&n, scale)?), n.input(scale + 1).map(|z| w.constant(z)));
        let (Some(t), Some(s), zero) = constants else { return Err(Error::usage(format!("its weight {name} or the scale of it is no constant"))) };
        let format = Format::of_dtype(t.dtype()).ok_or_else(|| Error::usage(format!("its weight {name} is of type {}", t.dtype())))?;
        let zero = match zero {
            None => Zeros::None,
            Some(Some(z)) => zero_numbers(&z, format)?,
            Some(None) => return Err(Error::usage(format!("the zero point of its weight {name} is no constant"))),
        };
        let along = if s.rank() == 2 { vec![(0, Extent::One), (2, Extent::One)] } else { vec![(0, Extent::One)] };
        let blocks = Blocks { view: View::Own, rest: Extent::Whole, along };
        let id = w.all.table.add(&name, scheme(format, ScaleKind::Exact(DType::F32), &zero, blocks));
        w.all.table[id].params = Some(params(s.to_f32()?.into_owned(), zero));
        let real = w.constant_real(t, id, DType::F32, None, &format!("{name}_dequantized"))?;
        inputs[slot] = Some(w.emit(Node::new(Op::Transpose, "").with("perm", vec![0i64, 2, 1]), &[Some(real)], &format!("{name}_transposed")));
    }
    w.all.notes.fell_back(&n.name, "the runtime quantizes the hidden state at every step; here it stays float");
    let keep = ["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget"];
    let mut node = float(&n, Op::LSTM, &keep);
    node.came_from = vec![n.name.clone()];
    w.g.add_node(node, &inputs, n.outputs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::graph::{Model, Node, Op};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, maker, model, node, ops, read};
    use crate::quant::{Blocks, Timing, Zeros};
    use crate::tensor::DType;

    type Nodes = Vec<(Node, &'static [&'static str], &'static [&'static str])>;

    fn lifted(tail: Nodes) -> Model {
        let constants =
            [("w", bytes(DType::I8, &[3, 2], &[1, 2, 3, 4, 5, 6])), ("ws", f32s(&[0.1, 0.2])), ("wz", bytes(DType::I8, &[], &[2])), ("one", f32s(&[0.5]))];
        let mut nodes: Nodes = vec![
            (node(Op::DynamicQuantizeLinear), &["x"], &["q", "s", "z"]),
            (node(Op::MatMulInteger), &["q", "w", "z", "wz"], &["i"]),
            (node(Op::Cast).with("to", DType::F32.onnx() as i64), &["i"], &["j"]),
        ];
        nodes.extend(tail);
        let mut m = model(13, &[("x", DType::F32, &[2, 3])], &constants, nodes, &["y"]);
        lift(&mut m).unwrap();
        m
    }

    #[test]
    fn the_usual_form_is_one_product_of_two_fake_quants() {
        let forms: [Nodes; 2] = [
            vec![(node(Op::Mul), &["s", "ws"], &["k"]), (node(Op::Mul), &["j", "k"], &["y"])],
            vec![(node(Op::Mul), &["j", "ws"], &["k"]), (node(Op::Mul), &["s", "k"], &["y"])],
        ];
        for tail in forms {
            let m = lifted(tail);
            assert_eq!(ops(&m), [Op::FakeQuant, Op::FakeQuant, Op::MatMul]);
            let of = |slot| &m.quantizers[maker(&m, read(&m, "y", slot)).1.quantizer().unwrap()];
            assert_eq!((of(0).name.as_str(), of(0).scheme.timing, of(0).params.is_none()), ("x", Timing::Dynamic, true));
            let p = of(1).params.as_ref().unwrap();
            assert_eq!((&of(1).scheme.blocks, &p.scale[..], &p.zero), (&Blocks::channel(1), &[0.1, 0.2][..], &Zeros::Integer(vec![2])));
        }
    }

    #[test]
    fn other_forms_are_products_of_numbers_around_zero() {
        let m = lifted(vec![(node(Op::Add), &["j", "one"], &["y"])]);
        let (_, product) = maker(&m, "i");
        assert_eq!(product.op, Op::MatMul);
        let weight = &m.quantizers[maker(&m, read(&m, "i", 1)).1.quantizer().unwrap()];
        assert_eq!(weight.params.as_ref().unwrap().scale, [1.0]);
    }

    #[test]
    fn operators_that_quantize_inside_have_a_dynamic_quantizer_of_their_own() {
        let constants = [("w", bytes(DType::I8, &[3, 2], &[1, 2, 3, 4, 5, 6])), ("s", f32s(&[0.5])), ("b", f32s(&[1.0, 2.0]))];
        let nodes: Nodes = vec![(node(Op::DynamicQuantizeMatMul), &["x", "w", "s", "", "b"], &["y"])];
        let mut m = model(13, &[("x", DType::F32, &[2, 3])], &constants, nodes, &["y"]);
        lift(&mut m).unwrap();
        assert_eq!(ops(&m), [Op::FakeQuant, Op::FakeQuant, Op::MatMul, Op::Add]);
    }

    #[test]
    fn what_the_runtime_does_beyond_is_told() {
        let constants =
            [("w", bytes(DType::I8, &[1, 2, 4], &[1; 8])), ("r", bytes(DType::I8, &[1, 1, 4], &[1; 4])), ("s", crate::tensor::Tensor::of_f32(&[1], vec![0.5]))];
        let nodes: Nodes = vec![(node(Op::DynamicQuantizeLSTM).with("hidden_size", 1i64), &["x", "w", "r", "", "", "", "", "", "s", "", "s"], &["y"])];
        let mut m = model(13, &[("x", DType::F32, &[3, 1, 2])], &constants, nodes, &["y"]);
        let notes = lift(&mut m).unwrap();
        assert!(notes.list().iter().any(|n| n.text.contains("hidden state")));
        assert_eq!(maker(&m, "y").1.op, Op::LSTM);
        assert_eq!(maker(&m, read(&m, "y", 1)).1.op, Op::Transpose);
    }
}
