//! What each ONNX spelling can hold, asked before anything is fitted.

use crate::graph::Op;
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
        if !saturates_by_itself(scheme) && !scheme.blocks.is_tensor() {
            return Err(format!(
                "QuantizeLinear saturates at {storage}'s full range, which is wider than the format's, and a Clip before it has one range a tensor"
            ));
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
    let of_clip = if constant.is_none() && !saturates_by_itself(scheme) { CLIP_OPSET } else { 0 };
    Ok(of_type(storage).max(of_scale).max(of_blocks).max(of_clip))
}

/// The lowest opset in which the ends of a Clip are operands.
const CLIP_OPSET: i64 = 11;

/// Whether QuantizeLinear saturates where the format ends. Narrow formats, and those stored in wider types, need a Clip before it.
pub fn saturates_by_itself(scheme: &Scheme) -> bool {
    let stored = scheme.format.storage().and_then(Format::of_dtype).and_then(Format::code_range);
    scheme.format.code_range().is_none_or(|range| stored == Some(range))
}

/// Whether com.microsoft's QuantizeLinear and DequantizeLinear hold a scheme that ONNX's own hold, whatever the model's opset.
/// Source: ONNX Runtime 1.31's contrib operators: 4, 8 and 16 bits, a float32 scale a tensor or a channel.
pub fn is_microsoft(scheme: &Scheme) -> bool {
    let types = matches!(scheme.format.storage(), Some(DType::U8 | DType::I8 | DType::U16 | DType::I16 | DType::U4 | DType::I4));
    let scales = matches!(scheme.scale, ScaleKind::Exact(DType::F32) | ScaleKind::Pow2(DType::F32));
    types && scales && !is_spelled_out(scheme) && (scheme.blocks.is_tensor() || scheme.blocks.channel_axis().is_some())
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

/// The lowest opset in which scales are found when the model runs: that of DynamicQuantizeLinear, and of Round and Clip as used per token.
pub const DYNAMIC_OPSET: i64 = 11;

/// Why no integer operator computes a layer of `op` whose input's scale is found when the model runs, if none does. `shape`: the weight's, `axis`: that of
/// its output channels.
/// Source: ONNX operators DynamicQuantizeLinear, MatMulInteger, ConvInteger; kernels of ONNX Runtime 1.31 on a CPU, also com.microsoft's DynamicQuantizeLSTM.
pub fn dynamic(op: Op, input: &Scheme, weight: &Scheme, shape: &[usize], axis: usize) -> Result<(), String> {
    let recurrent = op == Op::LSTM;
    let eight = |signed| matches!(input.format, Format::Int { bits: 8, signed: s, .. } if s == signed);
    let tensor = input.blocks.is_tensor() && eight(false) && input.zero == Zero::Integer;
    let token = input.blocks == Blocks::token() && eight(true) && input.zero == Zero::None;
    if input.scale != ScaleKind::Exact(DType::F32) || input.rounding != crate::quant::Rounding::HalfEven || !(tensor || token) {
        let forms = "uint8 with a zero point, one scale a tensor, or symmetric int8, one scale a token";
        return Err(format!("{input} has no operators that find its scale when the model runs; these do: {forms}"));
    }
    if token && !matches!(op, Op::MatMul | Op::Gemm) {
        return Err("scales a token are for MatMul and Gemm: keep the layer float, or ask for `granularity: tensor`".into());
    }
    let channels = match weight.blocks.channel_axis() {
        Some(a) => a == axis as i32 || a + shape.len() as i32 == axis as i32,
        None => recurrent && weight.blocks.gates().is_some(),
    };
    let types = matches!(weight.format.storage(), Some(DType::I8 | DType::U8)) && matches!(weight.format, Format::Int { .. });
    if !types || !(channels || weight.blocks.is_tensor()) || !matches!(weight.scale, ScaleKind::Exact(DType::F32) | ScaleKind::Pow2(DType::F32)) {
        return Err(format!("a weight of {weight} is in no integer operator; 8-bit weights per tensor or channel are"));
    }
    match weight.zero {
        Zero::Real => Err("integer operators have no real zero point: ask for `symmetric: true` weights".into()),
        Zero::Integer if channels && !recurrent && (op == Op::Conv || shape.len() != 2) => {
            Err("its integer operator has one zero point for the whole weight: ask for `symmetric: true` weights, or one scale a tensor".into())
        }
        _ => Ok(()),
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
    fn integer_operators_take_what_their_kernels_do() {
        let channel = |axis, zero| Scheme { blocks: Blocks::channel(axis), zero, ..Scheme::int(8, true) };
        let tensor = Scheme { timing: Timing::Dynamic, ..Scheme::int(8, false) };
        let token = Scheme { timing: Timing::Dynamic, blocks: Blocks::token(), ..Scheme::int(8, true) };
        let (conv, matrix) = (&[4, 3, 1, 1][..], &[8, 4][..]);
        for (op, input, weight, shape, axis, fits) in [
            (Op::MatMul, &tensor, channel(1, Zero::None), matrix, 1, true),
            (Op::MatMul, &tensor, channel(-1, Zero::Integer), matrix, 1, true),
            (Op::MatMul, &tensor, channel(0, Zero::None), matrix, 1, false),
            (Op::MatMul, &tensor, Scheme::int(4, true), matrix, 1, false),
            (Op::MatMul, &tensor, channel(1, Zero::Real), matrix, 1, false),
            (Op::MatMul, &token, channel(1, Zero::None), matrix, 1, true),
            (Op::MatMul, &Scheme::int(8, true), channel(1, Zero::None), matrix, 1, false),
            (Op::Conv, &tensor, channel(0, Zero::None), conv, 0, true),
            (Op::Conv, &tensor, channel(0, Zero::Integer), conv, 0, false),
            (Op::Conv, &token, channel(0, Zero::None), conv, 0, false),
            (Op::LSTM, &tensor, Scheme { blocks: Blocks::gate(4), ..Scheme::int(8, true) }, &[1, 8, 3], 1, true),
        ] {
            assert_eq!(dynamic(op, input, &weight, shape, axis).is_ok(), fits, "{op:?} {input} {weight}");
        }
    }

    #[test]
    fn what_cannot_be_said_says_why() {
        let narrow = Scheme { format: Format::Int { bits: 8, signed: true, narrow: true }, ..Scheme::int(8, true) };
        assert_eq!(qdq_opset(&narrow, None), Ok(11));
        assert!(qdq_opset(&Scheme { blocks: Blocks::channel(1), ..narrow.clone() }, None).is_err());
        assert!(qdq_opset(&narrow, Some(&[2])).is_ok());
        assert!(qdq_opset(&Scheme { timing: Timing::Dynamic, ..Scheme::int(8, true) }, None).is_err());
        assert_eq!(qdq_opset(&Scheme::int(5, false), None), Ok(11));
    }
}
