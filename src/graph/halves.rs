//! Which operators ONNX defines on float16 and bfloat16 tensors, and from which opset. Source: the schemas of onnx 1.23, all versions of each.

use super::Op;
use crate::tensor::DType;

/// Never in this type.
const NEVER: i64 = i64::MAX;

/// Operators, the opset from which all their real tensors may be float16, and the same of bfloat16. What stands nowhere is never either.
#[rustfmt::skip]
const ROWS: &[(&[Op], i64, i64)] = &[
    (&[
        Op::Abs, Op::Add, Op::ArgMax, Op::ArgMin, Op::Cast, Op::Ceil, Op::Clip, Op::Concat, Op::Constant, Op::DepthToSpace, Op::Div, Op::Exp, Op::Flatten,
        Op::Floor, Op::Gather, Op::Gemm, Op::Greater, Op::Hardmax, Op::Identity, Op::LRN, Op::Less, Op::Log, Op::LogSoftmax, Op::MatMul, Op::Max, Op::Mean,
        Op::Min, Op::Mul, Op::Neg, Op::Pad, Op::Reciprocal, Op::ReduceL1, Op::ReduceL2, Op::ReduceLogSum, Op::ReduceLogSumExp, Op::ReduceMax, Op::ReduceMean,
        Op::ReduceMin, Op::ReduceProd, Op::ReduceSum, Op::ReduceSumSquare, Op::Relu, Op::Reshape, Op::Shape, Op::Sigmoid, Op::Size, Op::Slice, Op::Softmax,
        Op::SpaceToDepth, Op::Split, Op::Sqrt, Op::Squeeze, Op::Sub, Op::Sum, Op::Tanh, Op::Tile, Op::Transpose, Op::Unsqueeze,
    ], 1, 13),
    (&[Op::BatchNormalization], 1, 14),
    (&[Op::Pow], 1, 15),
    (&[Op::If, Op::LeakyRelu, Op::Loop, Op::PRelu], 1, 16),
    (&[
        Op::AveragePool, Op::Conv, Op::ConvTranspose, Op::Dropout, Op::Elu, Op::GRU, Op::GlobalAveragePool, Op::GlobalLpPool, Op::GlobalMaxPool,
        Op::HardSigmoid, Op::InstanceNormalization, Op::LSTM, Op::LpNormalization, Op::LpPool, Op::MaxPool, Op::MaxRoiPool, Op::RNN, Op::Selu,
        Op::Softplus, Op::Softsign,
    ], 1, 22),
    (&[Op::TopK], 1, 24),
    (&[Op::Upsample], 1, NEVER),
    // com.microsoft's, as ONNX Runtime 1.27 documents them.
    (&[Op::MsGelu, Op::FastGelu, Op::BiasGelu, Op::QuickGelu, Op::SkipLayerNormalization, Op::SkipSimplifiedLayerNormalization, Op::FusedMatMul], 1, NEVER),
    (&[Op::SimplifiedLayerNormalization], 1, NEVER),
    (&[Op::Acos, Op::Asin, Op::Atan, Op::Cos, Op::Sin, Op::Tan], 7, 22),
    (&[Op::Expand], 8, 13),
    (&[Op::Scan], 8, 16),
    (&[Op::Scatter, Op::Shrink], 9, NEVER),
    (&[Op::Erf, Op::IsNaN, Op::NonZero, Op::Sign], 9, 13),
    // Its types are more, but the function it stands for adds a float32 constant.
    (&[Op::MeanVarianceNormalization], NEVER, NEVER),
    (&[Op::Where], 9, 16),
    (&[Op::ConstantOfShape], 9, 20),
    (&[Op::Acosh, Op::Asinh, Op::Atanh, Op::Cosh, Op::EyeLike, Op::MaxUnpool, Op::Sinh], 9, 22),
    (&[Op::Compress], 9, 28),
    (&[Op::OneHot], 9, NEVER),
    (&[Op::Mod], 10, 13),
    (&[Op::RoiAlign, Op::ThresholdedRelu], 10, 22),
    (&[Op::ReverseSequence], 10, 28),
    (&[Op::Equal, Op::GatherElements, Op::GatherND, Op::Resize, Op::ScatterElements, Op::ScatterND], 11, 13),
    (&[Op::Det, Op::Round], 11, 22),
    (&[Op::GreaterOrEqual, Op::LessOrEqual], 12, 16),
    (&[Op::Einsum], 12, 28),
    (&[Op::CumSum, Op::Trilu], 14, 14),
    (&[Op::HardSwish], 14, 22),
    (&[Op::CastLike], 15, 15),
    (&[Op::GridSample], 16, 22),
    (&[Op::LayerNormalization], 17, 17),
    (&[Op::CenterCropPad, Op::Col2Im, Op::GroupNormalization], 18, 18),
    (&[Op::Mish], 18, 22),
    (&[Op::QuantizeLinear, Op::DequantizeLinear], 19, 19),
    (&[Op::DeformConv], 19, 22),
    (&[Op::Gelu, Op::IsInf], 20, 20),
    (&[Op::Attention, Op::RMSNormalization, Op::RotaryEmbedding], 23, 23),
    (&[Op::Swish, Op::TensorScatter], 24, 24),
    (&[Op::CumProd], 26, 26),
    (&[Op::Celu], 28, 28),
];

/// The opset from which an operator's real tensors may be of type `dtype`; `None`: never.
pub fn half_since(op: Op, dtype: DType) -> Option<i64> {
    let row = ROWS.iter().find(|(ops, ..)| ops.contains(&op))?;
    let since = match dtype {
        DType::F16 => row.1,
        DType::BF16 => row.2,
        _ => NEVER,
    };
    (since != NEVER).then_some(since)
}

/// Whether a real tensor in an input slot stays float32, whatever the type of the others: a region and scales of a Resize.
pub fn stays_float32(op: Op, slot: usize) -> bool {
    matches!((op, slot), (Op::Resize, 1 | 2) | (Op::Upsample, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_operator_stands_twice_and_types_come_when_they_came() {
        for op in Op::all() {
            assert!(ROWS.iter().filter(|(ops, ..)| ops.contains(&op)).count() <= 1, "{op:?}");
        }
        let since = |op| [DType::F16, DType::BF16].map(|t| half_since(op, t));
        assert_eq!(since(Op::Conv), [Some(1), Some(22)]);
        assert_eq!(since(Op::Upsample), [Some(1), None]);
        assert_eq!(since(Op::NonMaxSuppression), [None, None]);
        assert_eq!(since(Op::MeanVarianceNormalization), [None, None]);
        assert!(stays_float32(Op::Resize, 2) && !stays_float32(Op::Resize, 0));
    }
}
