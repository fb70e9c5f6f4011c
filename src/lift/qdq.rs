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
    let (scale, zero) = w.computed(ask, &name)?;
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
