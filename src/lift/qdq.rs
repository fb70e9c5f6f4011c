//! QuantizeLinear and DequantizeLinear, ONNX's and com.microsoft's.

use super::held::{Held, Under};
use super::params::Ask;
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeId, Op, ValueId};
use crate::quant::Format;
use crate::tensor::DType;

/// The element type that attribute `name` of a node asks for; `None` if it asks for none.
fn asked_type(n: &Node, name: &str) -> Result<Option<DType>> {
    match n.int(name) {
        None | Some(0) => Ok(None),
        Some(t) => {
            let dtype = i32::try_from(t).ok().and_then(DType::of_onnx);
            dtype.map(Some).ok_or_else(|| Error::usage(format!("its {name} {t} is no element type of ONNX")))
        }
    }
}

/// Input `slot`, which must be there.
pub fn need(n: &Node, slot: usize) -> Result<ValueId> {
    n.input(slot).ok_or_else(|| Error::usage(format!("its input {slot} is missing")))
}

/// Output `slot`, which must be there.
pub fn made(n: &Node, slot: usize) -> Result<ValueId> {
    n.output(slot).ok_or_else(|| Error::usage(format!("its output {slot} is missing")))
}

fn ask(n: &Node) -> Result<Ask> {
    Ok(Ask { scale: need(n, 1)?, zero: n.input(2), axis: n.int("axis").unwrap_or(1), block: n.int("block_size").unwrap_or(0) })
}

/// QuantizeLinear → FakeQuant, which takes its place.
pub fn quantize_linear(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (x, y, ask) = (need(&n, 0)?, made(&n, 0)?, ask(&n)?);
    let asked = asked_type(&n, "output_dtype")?;
    let dtype = ask.zero.and_then(|z| w.dtype(z)).or(asked).unwrap_or(DType::U8);
    let float8 = matches!(dtype, DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ);
    if float8 && n.int("saturate") == Some(0) {
        return Err(Error::usage("with saturate = 0 large numbers become NaN or infinity, which no quantizer here does; write it with saturate = 1"));
    }
    if asked_type(&n, "precision")?.is_some_and(|t| t != DType::F32) {
        w.all.notes.declined(&n.name, "the division that `precision` asks for in a narrower type is done in float32");
    }
    quantize(w, x, y, ask, dtype, &n.name)
}

/// Quantizes `x`, a float or integer value, as `y`, a value of the file without a maker that holds codes of `dtype`.
pub fn quantize(w: &mut Work, x: ValueId, y: ValueId, ask: Ask, dtype: DType, node: &str) -> Result<()> {
    let (name, dims) = (w.name(x), w.dims(x).or_else(|| w.dims(y)));
    let q = w.quantizer(ask, dtype, dims.as_deref(), &name)?;
    let shaped = if w.rank(x).is_some() { x } else { y };
    let x = match w.dtype(x) {
        _ if w.held.contains_key(&x) => w.numbers(x)?,
        Some(t) if !t.is_float() => w.cast(x, DType::F32, &format!("{name}_float")),
        _ => x,
    };
    if let Some(q) = q {
        let float = w.dtype(x).unwrap_or(DType::F32);
        let real = w.landing(y, float);
        w.emit_into(Node::fake_quant(q, node), &[Some(x)], real);
        return w.hold(y, Held::real(dtype, real, float, Under::Static(q)));
    }
    let name = w.name(y);
    let (scale, zero) = w.computed(ask, shaped, &name)?;
    let steps = w.op(Op::Div, &[x, scale], &format!("{name}_steps"));
    let mut numbers = w.round(steps, dtype, &name)?;
    if let Some(zero) = zero {
        numbers = w.op(Op::Add, &[numbers, zero], &format!("{name}_shifted"));
    }
    numbers = saturate(w, numbers, dtype, &name);
    w.hold(y, Held::numbers(dtype, numbers))
}

/// Numbers cut to the range of an integer type's codes.
pub fn saturate(w: &mut Work, v: ValueId, dtype: DType, name: &str) -> ValueId {
    let Some((lo, hi)) = Format::of_dtype(dtype).and_then(Format::code_range) else { return v };
    let (lo, hi) = (w.scalar(lo as f32, &format!("{name}_lowest")), w.scalar(hi as f32, &format!("{name}_highest")));
    let above = w.op(Op::Max, &[v, lo], &format!("{name}_above"));
    w.op(Op::Min, &[above, hi], &format!("{name}_number"))
}

/// DequantizeLinear → another FakeQuant of what was quantized, a FakeQuant without input, or Sub and Mul.
pub fn dequantize_linear(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (x, y, ask) = (need(&n, 0)?, made(&n, 0)?, ask(&n)?);
    let to = match (asked_type(&n, "output_dtype")?, w.dtype(ask.scale)) {
        (Some(t), _) => t,
        (None, Some(t @ (DType::F16 | DType::BF16))) => t,
        _ => DType::F32,
    };
    w.real(x, ask, to, Some(y))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::graph::{Model, Node, Op, Site};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, maker, model, node, ops, read};
    use crate::quant::{Blocks, Format, Origin, ScaleKind, Zero, Zeros};
    use crate::tensor::{DType, Tensor};

    type Nodes = Vec<(Node, &'static [&'static str], &'static [&'static str])>;

    fn lifted(nodes: Nodes, outputs: &[&str]) -> Model {
        let constants = [
            ("s", f32s(&[0.5])),
            ("t", f32s(&[0.25])),
            ("z", bytes(DType::U8, &[], &[3])),
            ("w", bytes(DType::I8, &[2, 3], &[1, 2, 3, 4, 5, 6])),
            ("ws", f32s(&[0.1, 0.2, 0.3])),
        ];
        let mut m = model(13, &[("x", DType::F32, &[2, 3]), ("c", DType::U8, &[2, 3])], &constants, nodes, outputs);
        lift(&mut m).unwrap();
        m
    }

    #[test]
    fn a_pair_is_one_fake_quant_under_the_name_of_what_it_gives_back() {
        let m = lifted(vec![(node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]), (node(Op::DequantizeLinear), &["q", "s", "z"], &["y"])], &["y"]);
        let (_, f) = maker(&m, "y");
        assert_eq!((f.name.as_str(), &f.came_from[..]), ("make_y", &["make_q".to_string(), "make_y".to_string()][..]));
        let q = &m.quantizers[f.quantizer().unwrap()];
        assert_eq!((q.name.as_str(), q.scheme.zero, q.scheme.format), ("x", Zero::Integer, Format::of_dtype(DType::U8).unwrap()));
        let p = q.params.as_ref().unwrap();
        assert_eq!((&p.scale[..], &p.zero, p.origin), (&[0.5][..], &Zeros::Integer(vec![3]), Origin::Fixed));
    }

    #[test]
    fn mentions_of_the_same_scale_and_zero_are_one_quantizer() {
        let two = |s2: &'static [&'static str], back: &'static [&'static str]| {
            let nodes: Nodes = vec![
                (node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]),
                (node(Op::DequantizeLinear), &["q", "s", "z"], &["a"]),
                (node(Op::Relu), &["a"], &["b"]),
                (node(Op::QuantizeLinear), s2, &["q2"]),
                (node(Op::DequantizeLinear), back, &["y"]),
            ];
            lifted(nodes, &["y"])
        };
        assert_eq!(two(&["b", "s", "z"], &["q2", "s", "z"]).quantizers.len(), 1);
        let m = two(&["b", "t", "z"], &["q2", "t", "z"]);
        assert_eq!((m.quantizers.len(), ops(&m)), (2, vec![Op::FakeQuant, Op::Relu, Op::FakeQuant]));
    }

    #[test]
    fn every_reader_of_the_codes_has_its_own_fake_quant_and_other_parameters_are_arithmetic() {
        let nodes: Nodes = vec![
            (node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]),
            (node(Op::DequantizeLinear), &["q", "s", "z"], &["a"]),
            (node(Op::DequantizeLinear), &["q", "s", "z"], &["b"]),
            (node(Op::DequantizeLinear), &["q", "t"], &["y"]),
        ];
        let m = lifted(nodes, &["a", "b", "y"]);
        assert_eq!(maker(&m, "a").1.quantizer(), maker(&m, "b").1.quantizer());
        assert_eq!((read(&m, "a", 0), read(&m, "b", 0)), ("x", "x"));
        assert_eq!(maker(&m, "y").1.op, Op::Mul);
        assert_eq!(ops(&m).iter().filter(|op| **op == Op::Round).count(), 1);
    }

    #[test]
    fn interfaces_keep_their_types() {
        let m = lifted(vec![(node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]), (node(Op::DequantizeLinear), &["c", "s", "z"], &["y"])], &["q", "y"]);
        let (_, cast) = maker(&m, "q");
        assert_eq!((cast.op, cast.int("to")), (Op::Cast, Some(DType::U8.onnx() as i64)));
        assert_eq!(maker(&m, "y").1.op, Op::Mul);
        assert_eq!(m.graph.value(m.graph.inputs[1]).dtype(), Some(DType::U8));
    }

    #[test]
    fn constant_codes_stand_at_their_site() {
        let m = lifted(vec![(node(Op::DequantizeLinear).with("axis", -1i64), &["w", "ws"], &["d"]), (node(Op::MatMul), &["x", "d"], &["y"])], &["y"]);
        let (id, f) = maker(&m, "d");
        assert!(f.inputs().is_empty());
        assert_eq!(m.codes[&Site::of(id)].unpack(), [1, 2, 3, 4, 5, 6]);
        let q = &m.quantizers[f.quantizer().unwrap()];
        assert_eq!((q.name.as_str(), &q.scheme.blocks, q.scheme.zero), ("w", &Blocks::channel(1), Zero::None));
        assert_eq!(m.graph.value(m.graph.find_value("d").unwrap()).known_shape(), Some(vec![2, 3]));
        assert!(m.graph.find_value("w").is_none());
    }

    #[test]
    fn a_scale_that_is_itself_dequantized_nests() {
        let constants = [("c", bytes(DType::U8, &[2, 2], &[1, 2, 3, 4])), ("cs", f32s(&[0.5])), ("w", bytes(DType::I8, &[4, 2], &[1, 2, 3, 4, 5, 6, 7, 8]))];
        let nodes: Nodes = vec![
            (node(Op::DequantizeLinear), &["c", "cs"], &["s"]),
            (node(Op::DequantizeLinear).with("axis", 0i64).with("block_size", 2i64), &["w", "s"], &["y"]),
        ];
        let mut m = model(21, &[], &constants, nodes, &["y"]);
        lift(&mut m).unwrap();
        let q = &m.quantizers[maker(&m, "y").1.quantizer().unwrap()];
        assert!(matches!(q.scheme.scale, ScaleKind::Nested(_)));
        let p = q.params.as_ref().unwrap();
        assert_eq!((&p.scale[..], p.nested.as_ref().unwrap().codes.unpack()), (&[0.5, 1.0, 1.5, 2.0][..], vec![1, 2, 3, 4]));
        assert_eq!((ops(&m), m.codes.len()), (vec![Op::FakeQuant], 1));
    }

    #[test]
    fn a_float_weight_between_the_two_is_fake_quantized_and_no_codes() {
        let constants = [("f", Tensor::of_f32(&[2], vec![0.3, 0.9])), ("s", f32s(&[0.5])), ("z", bytes(DType::I8, &[], &[0]))];
        let nodes: Nodes = vec![(node(Op::QuantizeLinear), &["f", "s", "z"], &["q"]), (node(Op::DequantizeLinear), &["q", "s", "z"], &["y"])];
        let mut m = model(13, &[], &constants, nodes, &["y"]);
        lift(&mut m).unwrap();
        assert_eq!((read(&m, "y", 0), m.codes.len()), ("f", 0));
    }
}
