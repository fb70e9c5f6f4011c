//! What each ONNX spelling can hold, asked before anything is fitted.

use crate::quant::{Blocks, Format, ScaleKind, Scheme, Timing, Zero};
use crate::tensor::DType;

/// The granularity in which Q/DQ say `scheme` of a constant of `shape`. ONNX has no gates: their scales stand once a row, or, where directions have
/// scales of their own, in blocks of a gate's rows.
pub fn qdq_blocks(scheme: &Scheme, shape: Option<&[usize]>) -> Blocks {
    match (scheme.blocks.gates(), shape) {
        (Some(_), Some([1, ..])) => Blocks::channel(1),
        (Some(gates), Some([_, rows, ..])) => Blocks::block(1, rows / gates),
        _ => scheme.blocks.clone(),
    }
}

/// The lowest opset of ONNX's own domain in which QuantizeLinear and DequantizeLinear hold `scheme`, or why none does. `constant`: the shape of what
/// is quantized, if that is constant.
/// Source: onnx 1.23 operator schemas (versions 10, 13, 19, 21, 23, 24, 25, 28).
pub fn qdq_opset(scheme: &Scheme, constant: Option<&[usize]>) -> Result<i64, String> {
    let storage = match scheme.format {
        _ if is_spelled_out(scheme) => return spelled_opset(scheme, constant),
        f => f.storage().ok_or("ONNX has no type for this format")?,
    };
    if scheme.timing == Timing::Dynamic {
        return Err("a dynamic quantizer has no static Q/DQ spelling".into());
    }
    if constant.is_none() {
        if scheme.rounding != crate::quant::Rounding::HalfEven {
            return Err("QuantizeLinear rounds half to even only".into());
        }
        if scheme.format.code_range().is_some() && scheme.format.code_range() != Format::of_dtype(storage).and_then(Format::code_range) {
            return Err(format!("QuantizeLinear saturates at {storage}'s full range, which is wider than the format's"));
        }
    }
    let of_type = |t: DType| match t {
        DType::U8 | DType::I8 | DType::I32 => 10,
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19,
        DType::U16 | DType::I16 | DType::U4 | DType::I4 => 21,
        DType::F4E2M1 => 23,
        DType::U2 | DType::I2 => 25,
        _ => 28,
    };
    let of_scale = match &scheme.scale {
        ScaleKind::Exact(DType::F32) | ScaleKind::Pow2(DType::F32) => 10,
        // Through a Cast.
        ScaleKind::Exact(_) => 13,
        ScaleKind::Pow2(_) => 24,
        ScaleKind::Nested(inner) => {
            let grid = constant.filter(|_| scheme.blocks.block_axis().is_some()).and_then(|shape| scheme.blocks.layout(shape).ok());
            let grid = grid.ok_or("scales that are codes themselves need a weight in blocks")?.grid;
            if !matches!(inner.scale, ScaleKind::Exact(DType::F32) | ScaleKind::Pow2(DType::F32)) {
                return Err("scales that are codes themselves need float32 scales".into());
            }
            qdq_opset(inner, Some(&grid)).map_err(|why| format!("scale: {why}"))?
        }
    };
    let b = qdq_blocks(scheme, constant);
    let of_blocks = if b.is_tensor() {
        10
    } else if b.channel_axis().is_some() {
        13
    } else if b.block_axis().is_some() {
        21
    } else {
        return Err("ONNX scales are per tensor, per axis or per block along one axis, and only constants have gates".into());
    };
    Ok(of_type(storage).max(of_scale).max(of_blocks))
}

/// Whether DequantizeLinear cannot say a scheme that Cast, Gather, Sub and Mul can: a codebook, or real zero points.
pub fn is_spelled_out(scheme: &Scheme) -> bool {
    matches!(scheme.format, Format::Codebook { .. }) || scheme.zero == Zero::Real
}

/// The lowest opset in which it is spelled out.
fn spelled_opset(scheme: &Scheme, constant: Option<&[usize]>) -> Result<i64, String> {
    let b = &scheme.blocks;
    let plain = matches!(scheme.scale, ScaleKind::Exact(_) | ScaleKind::Pow2(DType::F32)) && matches!(scheme.zero, Zero::None | Zero::Real);
    match constant {
        None => Err("codebooks and real zero points can only be written of constants".into()),
        Some(_) if !plain || !(b.is_tensor() || b.channel_axis().is_some() || b.block_axis().is_some()) => Err(
            "codebooks and real zero points are written with float scales per tensor, per channel or in blocks along one axis, codebooks without whole zero points"
                .into(),
        ),
        Some(_) => Ok(match scheme.format.storage() {
            Some(DType::U2 | DType::I2) => 25,
            Some(DType::U4 | DType::I4) => 21,
            _ => 13,
        }),
    }
}

/// The lowest IR version for a model that imports `opset` of ONNX's own domain, as onnx's own table pairs them.
pub fn ir_of_opset(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=26 => 13,
        _ => 14,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_floor() {
        let u8 = Scheme::int(8, false);
        let constant = Some(&[64, 8][..]);
        assert_eq!(qdq_opset(&u8, None), Ok(10));
        assert_eq!(qdq_opset(&Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) }, constant), Ok(13));
        assert_eq!(qdq_opset(&Scheme { blocks: Blocks::block(0, 32), ..Scheme::int(4, true) }, constant), Ok(21));
        assert_eq!(qdq_opset(&Scheme::int(16, false), None), Ok(21));
        assert_eq!(qdq_opset(&Scheme::int(2, true), constant), Ok(25));
        let gates = Scheme { blocks: Blocks::gate(4), ..Scheme::int(8, true) };
        assert_eq!([1, 2].map(|directions| qdq_opset(&gates, Some(&[directions, 8, 3]))), [Ok(13), Ok(21)]);
        assert!(qdq_opset(&gates, None).is_err());
    }

    #[test]
    fn what_cannot_be_said_says_why() {
        let narrow = Scheme { format: Format::Int { bits: 8, signed: true, narrow: true }, ..Scheme::int(8, true) };
        assert!(qdq_opset(&narrow, None).is_err());
        assert!(qdq_opset(&narrow, Some(&[2])).is_ok());
        assert!(qdq_opset(&Scheme { timing: Timing::Dynamic, ..Scheme::int(8, true) }, None).is_err());
        assert!(qdq_opset(&Scheme::int(5, false), None).is_err());
    }
}
