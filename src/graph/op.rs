//! The operators requant knows, one row each: the only place where their names stand as strings.

use super::Node;
use crate::quant::QuantizerId;

/// What an input slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Real values that flow; a constant here is an operand like any other.
    Activation,
    /// Learnt values that a multiply-add reads, usually constant.
    Weight,
    /// Added to the accumulator.
    Bias,
    /// Learnt values of an op that is no multiply-add (a normalisation's scale and offset).
    Constant,
    /// Scale or zero point of a quantized op.
    Params,
    /// Indices, shapes, conditions, bounds: never quantized.
    Shape,
}

/// What an op does to the values that pass through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Multiply-adds of two operands; see `Linear`.
    Linear,
    Recurrent,
    /// Values are moved, copied or selected, never computed: the output can share the input's scale.
    Move,
    /// Cuts the range and leaves the rest as it is.
    Clamp,
    /// One input element gives one output element.
    Pointwise,
    /// Element-wise over several inputs, with broadcasting.
    Arithmetic,
    Normalize,
    /// Any other computation on real values.
    Compute,
    /// Makes or reads shapes, indices and conditions: left exact.
    Meta,
    /// Has bodies.
    Control,
    /// Speaks of codes.
    Quantize,
    /// Not known well enough to touch.
    Opaque,
}

/// One op's row.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub op: Op,
    pub domain: &'static str,
    pub name: &'static str,
    /// Roles of the first input slots.
    pub slots: &'static [Role],
    /// Role of every slot behind them.
    pub rest: Role,
    pub flow: Flow,
}

macro_rules! ops {
    ($($op:ident $domain:literal $name:literal [$($slot:ident),*] $rest:ident $flow:ident;)*) => {
        /// An operator, by what it means. `Ms…` are com.microsoft's twins of ONNX's own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op {
            $($op,)*
            /// One that requant does not know: kept as it is.
            Other,
        }

        static FACTS: &[Facts] = &[
            $(Facts { op: Op::$op, domain: $domain, name: $name, slots: &[$(Role::$slot),*], rest: Role::$rest, flow: Flow::$flow },)*
            Facts { op: Op::Other, domain: "", name: "", slots: &[], rest: Role::Activation, flow: Flow::Opaque },
        ];
    };
}

ops! {
    Abs "" "Abs" [Activation] Shape Pointwise;
    Acos "" "Acos" [Activation] Shape Pointwise;
    Acosh "" "Acosh" [Activation] Shape Pointwise;
    Add "" "Add" [Activation, Activation] Shape Arithmetic;
    AffineGrid "" "AffineGrid" [] Activation Opaque;
    And "" "And" [] Shape Meta;
    ArgMax "" "ArgMax" [] Shape Meta;
    ArgMin "" "ArgMin" [] Shape Meta;
    Asin "" "Asin" [Activation] Shape Pointwise;
    Asinh "" "Asinh" [Activation] Shape Pointwise;
    Atan "" "Atan" [Activation] Shape Pointwise;
    Atanh "" "Atanh" [Activation] Shape Pointwise;
    Attention "" "Attention" [Activation, Activation, Activation, Activation, Activation, Activation, Shape] Shape Compute;
    AveragePool "" "AveragePool" [Activation] Shape Compute;
    BatchNormalization "" "BatchNormalization" [Activation, Constant, Constant, Constant, Constant] Shape Normalize;
    Bernoulli "" "Bernoulli" [] Shape Meta;
    BitCast "" "BitCast" [Activation] Shape Meta;
    BitShift "" "BitShift" [] Shape Meta;
    BitwiseAnd "" "BitwiseAnd" [] Shape Meta;
    BitwiseNot "" "BitwiseNot" [] Shape Meta;
    BitwiseOr "" "BitwiseOr" [] Shape Meta;
    BitwiseXor "" "BitwiseXor" [] Shape Meta;
    BlackmanWindow "" "BlackmanWindow" [] Activation Opaque;
    Cast "" "Cast" [Activation] Shape Meta;
    CastLike "" "CastLike" [Activation] Shape Meta;
    CausalConvWithState "" "CausalConvWithState" [] Activation Opaque;
    Ceil "" "Ceil" [Activation] Shape Pointwise;
    Celu "" "Celu" [Activation] Shape Pointwise;
    CenterCropPad "" "CenterCropPad" [Activation, Shape] Shape Move;
    Clip "" "Clip" [Activation, Shape, Shape] Shape Clamp;
    Col2Im "" "Col2Im" [Activation, Shape, Shape] Shape Compute;
    Compress "" "Compress" [Activation, Shape] Shape Move;
    Concat "" "Concat" [] Activation Move;
    ConcatFromSequence "" "ConcatFromSequence" [] Activation Opaque;
    Constant "" "Constant" [] Shape Meta;
    ConstantOfShape "" "ConstantOfShape" [] Shape Meta;
    Conv "" "Conv" [Activation, Weight, Bias] Shape Linear;
    ConvInteger "" "ConvInteger" [Activation, Weight, Params, Params] Shape Quantize;
    ConvTranspose "" "ConvTranspose" [Activation, Weight, Bias] Shape Linear;
    Cos "" "Cos" [Activation] Shape Pointwise;
    Cosh "" "Cosh" [Activation] Shape Pointwise;
    CumProd "" "CumProd" [Activation, Shape] Shape Compute;
    CumSum "" "CumSum" [Activation, Shape] Shape Compute;
    DFT "" "DFT" [] Activation Opaque;
    DeformConv "" "DeformConv" [Activation, Weight, Activation, Bias, Activation] Shape Compute;
    DepthToSpace "" "DepthToSpace" [Activation] Shape Move;
    DequantizeLinear "" "DequantizeLinear" [Activation, Params, Params] Shape Quantize;
    Det "" "Det" [] Activation Opaque;
    Div "" "Div" [Activation, Activation] Shape Arithmetic;
    Dropout "" "Dropout" [Activation, Shape, Shape] Shape Move;
    DynamicQuantizeLinear "" "DynamicQuantizeLinear" [Activation] Shape Quantize;
    Einsum "" "Einsum" [] Activation Compute;
    Elu "" "Elu" [Activation] Shape Pointwise;
    Equal "" "Equal" [] Shape Meta;
    Erf "" "Erf" [Activation] Shape Pointwise;
    Exp "" "Exp" [Activation] Shape Pointwise;
    Expand "" "Expand" [Activation, Shape] Shape Move;
    EyeLike "" "EyeLike" [] Shape Meta;
    Flatten "" "Flatten" [Activation] Shape Move;
    Floor "" "Floor" [Activation] Shape Pointwise;
    GRU "" "GRU" [Activation, Weight, Weight, Bias, Shape, Activation, Activation, Weight] Shape Recurrent;
    Gather "" "Gather" [Activation, Shape] Shape Move;
    GatherElements "" "GatherElements" [Activation, Shape] Shape Move;
    GatherND "" "GatherND" [Activation, Shape] Shape Move;
    Gelu "" "Gelu" [Activation] Shape Pointwise;
    Gemm "" "Gemm" [Activation, Weight, Bias] Shape Linear;
    GlobalAveragePool "" "GlobalAveragePool" [Activation] Shape Compute;
    GlobalLpPool "" "GlobalLpPool" [Activation] Shape Compute;
    GlobalMaxPool "" "GlobalMaxPool" [Activation] Shape Move;
    Greater "" "Greater" [] Shape Meta;
    GreaterOrEqual "" "GreaterOrEqual" [] Shape Meta;
    GridSample "" "GridSample" [Activation, Activation] Shape Compute;
    GroupNormalization "" "GroupNormalization" [Activation, Constant, Constant] Shape Normalize;
    HammingWindow "" "HammingWindow" [] Activation Opaque;
    HannWindow "" "HannWindow" [] Activation Opaque;
    HardSigmoid "" "HardSigmoid" [Activation] Shape Pointwise;
    HardSwish "" "HardSwish" [Activation] Shape Pointwise;
    Hardmax "" "Hardmax" [Activation] Shape Normalize;
    Identity "" "Identity" [Activation] Shape Move;
    If "" "If" [] Activation Control;
    ImageDecoder "" "ImageDecoder" [] Activation Opaque;
    InstanceNormalization "" "InstanceNormalization" [Activation, Constant, Constant] Shape Normalize;
    IsInf "" "IsInf" [] Shape Meta;
    IsNaN "" "IsNaN" [] Shape Meta;
    LRN "" "LRN" [Activation] Shape Normalize;
    LSTM "" "LSTM" [Activation, Weight, Weight, Bias, Shape, Activation, Activation, Weight] Shape Recurrent;
    LayerNormalization "" "LayerNormalization" [Activation, Constant, Constant] Shape Normalize;
    LeakyRelu "" "LeakyRelu" [Activation] Shape Pointwise;
    Less "" "Less" [] Shape Meta;
    LessOrEqual "" "LessOrEqual" [] Shape Meta;
    LinearAttention "" "LinearAttention" [] Activation Opaque;
    Log "" "Log" [Activation] Shape Pointwise;
    LogSoftmax "" "LogSoftmax" [Activation] Shape Normalize;
    Loop "" "Loop" [] Activation Control;
    LpNormalization "" "LpNormalization" [Activation] Shape Normalize;
    LpPool "" "LpPool" [Activation] Shape Compute;
    MatMul "" "MatMul" [Activation, Activation] Shape Linear;
    MatMulInteger "" "MatMulInteger" [Activation, Activation, Params, Params] Shape Quantize;
    Max "" "Max" [] Activation Arithmetic;
    MaxPool "" "MaxPool" [Activation] Shape Move;
    MaxRoiPool "" "MaxRoiPool" [Activation, Activation] Shape Compute;
    MaxUnpool "" "MaxUnpool" [Activation, Shape, Shape] Shape Move;
    Mean "" "Mean" [] Activation Arithmetic;
    MeanVarianceNormalization "" "MeanVarianceNormalization" [Activation] Shape Normalize;
    MelWeightMatrix "" "MelWeightMatrix" [] Activation Opaque;
    Min "" "Min" [] Activation Arithmetic;
    Mish "" "Mish" [Activation] Shape Pointwise;
    Mod "" "Mod" [Activation, Activation] Shape Arithmetic;
    Mul "" "Mul" [Activation, Activation] Shape Arithmetic;
    Multinomial "" "Multinomial" [] Shape Meta;
    Neg "" "Neg" [Activation] Shape Pointwise;
    NegativeLogLikelihoodLoss "" "NegativeLogLikelihoodLoss" [] Activation Opaque;
    NonMaxSuppression "" "NonMaxSuppression" [] Shape Meta;
    NonZero "" "NonZero" [] Shape Meta;
    Not "" "Not" [] Shape Meta;
    OneHot "" "OneHot" [] Shape Meta;
    Optional "" "Optional" [] Activation Opaque;
    OptionalGetElement "" "OptionalGetElement" [] Activation Opaque;
    OptionalHasElement "" "OptionalHasElement" [] Activation Opaque;
    Or "" "Or" [] Shape Meta;
    PRelu "" "PRelu" [Activation, Constant] Shape Pointwise;
    Pad "" "Pad" [Activation, Shape, Activation, Shape] Shape Move;
    Pow "" "Pow" [Activation, Activation] Shape Arithmetic;
    QLinearConv "" "QLinearConv" [Activation, Params, Params, Weight, Params, Params, Params, Params, Bias] Shape Quantize;
    QLinearMatMul "" "QLinearMatMul" [Activation, Params, Params, Activation, Params, Params, Params, Params] Shape Quantize;
    QuantizeLinear "" "QuantizeLinear" [Activation, Params, Params] Shape Quantize;
    RMSNormalization "" "RMSNormalization" [Activation, Constant] Shape Normalize;
    RNN "" "RNN" [Activation, Weight, Weight, Bias, Shape, Activation, Activation, Weight] Shape Recurrent;
    RandomNormal "" "RandomNormal" [] Shape Meta;
    RandomNormalLike "" "RandomNormalLike" [] Shape Meta;
    RandomUniform "" "RandomUniform" [] Shape Meta;
    RandomUniformLike "" "RandomUniformLike" [] Shape Meta;
    Range "" "Range" [] Shape Meta;
    Reciprocal "" "Reciprocal" [Activation] Shape Pointwise;
    ReduceL1 "" "ReduceL1" [Activation, Shape] Shape Compute;
    ReduceL2 "" "ReduceL2" [Activation, Shape] Shape Compute;
    ReduceLogSum "" "ReduceLogSum" [Activation, Shape] Shape Compute;
    ReduceLogSumExp "" "ReduceLogSumExp" [Activation, Shape] Shape Compute;
    ReduceMax "" "ReduceMax" [Activation, Shape] Shape Move;
    ReduceMean "" "ReduceMean" [Activation, Shape] Shape Compute;
    ReduceMin "" "ReduceMin" [Activation, Shape] Shape Move;
    ReduceProd "" "ReduceProd" [Activation, Shape] Shape Compute;
    ReduceSum "" "ReduceSum" [Activation, Shape] Shape Compute;
    ReduceSumSquare "" "ReduceSumSquare" [Activation, Shape] Shape Compute;
    RegexFullMatch "" "RegexFullMatch" [] Activation Opaque;
    Relu "" "Relu" [Activation] Shape Clamp;
    Reshape "" "Reshape" [Activation, Shape] Shape Move;
    Resize "" "Resize" [Activation, Shape, Shape, Shape] Shape Compute;
    ReverseSequence "" "ReverseSequence" [Activation, Shape] Shape Move;
    RoiAlign "" "RoiAlign" [Activation, Activation, Shape] Shape Compute;
    RotaryEmbedding "" "RotaryEmbedding" [Activation, Constant, Constant, Shape] Shape Compute;
    Round "" "Round" [Activation] Shape Pointwise;
    STFT "" "STFT" [] Activation Opaque;
    Scan "" "Scan" [] Activation Control;
    Scatter "" "Scatter" [Activation, Shape, Activation] Shape Move;
    ScatterElements "" "ScatterElements" [Activation, Shape, Activation] Shape Move;
    ScatterND "" "ScatterND" [Activation, Shape, Activation] Shape Move;
    Selu "" "Selu" [Activation] Shape Pointwise;
    SequenceAt "" "SequenceAt" [] Activation Opaque;
    SequenceConstruct "" "SequenceConstruct" [] Activation Opaque;
    SequenceEmpty "" "SequenceEmpty" [] Activation Opaque;
    SequenceErase "" "SequenceErase" [] Activation Opaque;
    SequenceInsert "" "SequenceInsert" [] Activation Opaque;
    SequenceLength "" "SequenceLength" [] Activation Opaque;
    SequenceMap "" "SequenceMap" [] Activation Opaque;
    Shape "" "Shape" [] Shape Meta;
    Shrink "" "Shrink" [Activation] Shape Pointwise;
    Sigmoid "" "Sigmoid" [Activation] Shape Pointwise;
    Sign "" "Sign" [Activation] Shape Pointwise;
    Sin "" "Sin" [Activation] Shape Pointwise;
    Sinh "" "Sinh" [Activation] Shape Pointwise;
    Size "" "Size" [] Shape Meta;
    Slice "" "Slice" [Activation, Shape, Shape, Shape, Shape] Shape Move;
    Softmax "" "Softmax" [Activation] Shape Normalize;
    SoftmaxCrossEntropyLoss "" "SoftmaxCrossEntropyLoss" [] Activation Opaque;
    Softplus "" "Softplus" [Activation] Shape Pointwise;
    Softsign "" "Softsign" [Activation] Shape Pointwise;
    SpaceToDepth "" "SpaceToDepth" [Activation] Shape Move;
    Split "" "Split" [Activation, Shape] Shape Move;
    SplitToSequence "" "SplitToSequence" [] Activation Opaque;
    Sqrt "" "Sqrt" [Activation] Shape Pointwise;
    Squeeze "" "Squeeze" [Activation, Shape] Shape Move;
    StringConcat "" "StringConcat" [] Activation Opaque;
    StringNormalizer "" "StringNormalizer" [] Activation Opaque;
    StringSplit "" "StringSplit" [] Activation Opaque;
    Sub "" "Sub" [Activation, Activation] Shape Arithmetic;
    Sum "" "Sum" [] Activation Arithmetic;
    SwiGLU "" "SwiGLU" [] Activation Opaque;
    Swish "" "Swish" [Activation] Shape Pointwise;
    Tan "" "Tan" [Activation] Shape Pointwise;
    Tanh "" "Tanh" [Activation] Shape Pointwise;
    TensorScatter "" "TensorScatter" [] Activation Opaque;
    TfIdfVectorizer "" "TfIdfVectorizer" [] Activation Opaque;
    ThresholdedRelu "" "ThresholdedRelu" [Activation] Shape Pointwise;
    Tile "" "Tile" [Activation, Shape] Shape Move;
    TopK "" "TopK" [Activation, Shape] Shape Move;
    Transpose "" "Transpose" [Activation] Shape Move;
    Trilu "" "Trilu" [Activation, Shape] Shape Move;
    Unique "" "Unique" [] Shape Meta;
    Unsqueeze "" "Unsqueeze" [Activation, Shape] Shape Move;
    Upsample "" "Upsample" [Activation, Shape] Shape Compute;
    Where "" "Where" [Shape, Activation, Activation] Shape Move;
    Xor "" "Xor" [] Shape Meta;
    MsQuantizeLinear "com.microsoft" "QuantizeLinear" [Activation, Params, Params] Shape Quantize;
    MsDequantizeLinear "com.microsoft" "DequantizeLinear" [Activation, Params, Params] Shape Quantize;
    MsQLinearConv "com.microsoft" "QLinearConv" [Activation, Params, Params, Weight, Params, Params, Params, Params, Bias] Shape Quantize;
    QGemm "com.microsoft" "QGemm" [Activation, Params, Params, Weight, Params, Params, Bias, Params, Params] Shape Quantize;
    QLinearAdd "com.microsoft" "QLinearAdd" [Activation, Params, Params, Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearMul "com.microsoft" "QLinearMul" [Activation, Params, Params, Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearSigmoid "com.microsoft" "QLinearSigmoid" [Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearLeakyRelu "com.microsoft" "QLinearLeakyRelu" [Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearSoftmax "com.microsoft" "QLinearSoftmax" [Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearConcat "com.microsoft" "QLinearConcat" [] Activation Quantize;
    QLinearAveragePool "com.microsoft" "QLinearAveragePool" [Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearGlobalAveragePool "com.microsoft" "QLinearGlobalAveragePool" [Activation, Params, Params, Params, Params] Shape Quantize;
    QLinearReduceMean "com.microsoft" "QLinearReduceMean" [Activation, Params, Params, Params, Params] Shape Quantize;
    QAttention "com.microsoft" "QAttention" [Activation, Weight, Bias, Params, Params, Shape, Params, Params, Activation] Shape Quantize;
    QEmbedLayerNormalization "com.microsoft" "QEmbedLayerNormalization" [] Params Quantize;
    QMoE "com.microsoft" "QMoE" [Activation, Activation] Params Quantize;
    MatMulInteger16 "com.microsoft" "MatMulInteger16" [Activation, Weight] Shape Quantize;
    MulInteger "com.microsoft" "MulInteger" [Activation, Params, Activation, Params] Shape Quantize;
    ReduceSumInteger "com.microsoft" "ReduceSumInteger" [Activation] Shape Quantize;
    MatMulFpQ4 "com.microsoft" "MatMulFpQ4" [Activation, Weight] Shape Quantize;
    QuantizeBFP "com.microsoft" "QuantizeBFP" [Activation] Shape Quantize;
    DequantizeBFP "com.microsoft" "DequantizeBFP" [Activation, Shape, Shape] Shape Quantize;
    QLinearWhere "com.microsoft" "QLinearWhere" [Shape, Activation, Params, Params, Activation, Params, Params, Params, Params] Shape Quantize;
    MatMulNBits "com.microsoft" "MatMulNBits" [Activation, Weight, Params, Params, Shape, Bias] Shape Quantize;
    MatMulBnb4 "com.microsoft" "MatMulBnb4" [Activation, Weight, Params] Shape Quantize;
    GatherBlockQuantized "com.microsoft" "GatherBlockQuantized" [Weight, Shape, Params, Params] Shape Quantize;
    DynamicQuantizeMatMul "com.microsoft" "DynamicQuantizeMatMul" [Activation, Weight, Params, Params, Bias] Shape Quantize;
    MatMulIntegerToFloat "com.microsoft" "MatMulIntegerToFloat" [Activation, Weight, Params, Params, Params, Params, Bias] Shape Quantize;
    DynamicQuantizeLSTM "com.microsoft" "DynamicQuantizeLSTM" [Activation, Weight, Weight, Bias, Shape, Activation, Activation, Weight, Params, Params, Params, Params] Shape Quantize;
    FusedConv "com.microsoft" "FusedConv" [Activation, Weight, Bias, Activation] Shape Linear;
    FusedMatMul "com.microsoft" "FusedMatMul" [Activation, Activation] Shape Linear;
    FusedGemm "com.microsoft" "FusedGemm" [Activation, Weight, Bias] Shape Linear;
    MsGelu "com.microsoft" "Gelu" [Activation] Shape Pointwise;
    FastGelu "com.microsoft" "FastGelu" [Activation, Bias] Shape Pointwise;
    BiasGelu "com.microsoft" "BiasGelu" [Activation, Bias] Shape Pointwise;
    QuickGelu "com.microsoft" "QuickGelu" [Activation] Shape Pointwise;
    SkipLayerNormalization "com.microsoft" "SkipLayerNormalization" [Activation, Activation, Constant, Constant, Constant] Shape Normalize;
    SimplifiedLayerNormalization "" "SimplifiedLayerNormalization" [Activation, Constant] Shape Normalize;
    SkipSimplifiedLayerNormalization "com.microsoft" "SkipSimplifiedLayerNormalization" [Activation, Activation, Constant, Constant] Shape Normalize;
    GroupQueryAttention "com.microsoft" "GroupQueryAttention" [Activation, Activation, Activation, Activation, Activation, Shape, Shape, Constant, Constant] Shape Compute;
    MultiHeadAttention "com.microsoft" "MultiHeadAttention" [Activation, Activation, Activation, Bias, Activation, Activation] Shape Compute;
    ActivationPOTQuantizer "mct_quantizers" "ActivationPOTQuantizer" [Activation] Shape Quantize;
    ActivationSymmetricQuantizer "mct_quantizers" "ActivationSymmetricQuantizer" [Activation] Shape Quantize;
    WeightsPOTQuantizer "mct_quantizers" "WeightsPOTQuantizer" [Weight, Params] Shape Quantize;
    WeightsSymmetricQuantizer "mct_quantizers" "WeightsSymmetricQuantizer" [Weight, Params] Shape Quantize;
    FakeQuant "requant" "FakeQuant" [Activation] Shape Quantize;
    Narrow "requant" "Narrow" [Activation] Shape Pointwise;
}

/// Attribute of a FakeQuant node that holds its `QuantizerId`.
const QUANTIZER: &str = "quantizer";

impl Op {
    /// The op's row.
    pub fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// Domain and name as written in a file.
    pub fn spelling(self) -> (&'static str, &'static str) {
        let f = self.facts();
        (f.domain, f.name)
    }

    /// The op written so; `Op::Other` if there is none.
    pub fn of_spelling(domain: &str, name: &str) -> Op {
        use std::collections::HashMap;
        use std::sync::LazyLock;
        static INDEX: LazyLock<HashMap<(&str, &str), Op>> =
            LazyLock::new(|| FACTS.iter().filter(|f| f.op != Op::Other).map(|f| ((f.domain, f.name), f.op)).collect());
        let domain = if domain == "ai.onnx" { "" } else { domain };
        INDEX.get(&(domain, name)).copied().unwrap_or(Op::Other)
    }

    /// The op of ONNX's own domain called `name`, in any case: what recipes and profiles write.
    pub fn of_name(name: &str) -> Option<Op> {
        FACTS.iter().find(|f| f.op != Op::Other && f.name == name).map(|f| f.op)
    }

    pub fn flow(self) -> Flow {
        self.facts().flow
    }

    /// Role of input `slot`.
    pub fn role(self, slot: usize) -> Role {
        let f = self.facts();
        f.slots.get(slot).copied().unwrap_or(f.rest)
    }

    /// Every known op.
    pub fn all() -> impl Iterator<Item = Op> {
        FACTS.iter().map(|f| f.op).filter(|&op| op != Op::Other)
    }
}

impl Node {
    /// A FakeQuant node under quantizer `id`.
    pub fn fake_quant(id: QuantizerId, name: impl Into<String>) -> Node {
        Node::new(Op::FakeQuant, name).with(QUANTIZER, id.0 as i64)
    }

    /// The quantizer of a FakeQuant node.
    pub fn quantizer(&self) -> Option<QuantizerId> {
        (self.op == Op::FakeQuant).then(|| self.int(QUANTIZER)).flatten().map(|i| QuantizerId(i as u32))
    }

    /// Whether the result jumps where the real value in `slot` changes a little: comparisons, and what makes whole numbers of it.
    pub fn reads_exactly(&self, slot: usize) -> bool {
        match self.op {
            Op::Equal | Op::Greater | Op::GreaterOrEqual | Op::Less | Op::LessOrEqual | Op::IsInf | Op::IsNaN => true,
            Op::NonZero | Op::Unique | Op::BitCast | Op::OneHot | Op::Range | Op::Floor | Op::Ceil | Op::Round | Op::Sign => true,
            // A Cast between real numbers only rounds.
            Op::Cast => slot == 0 && !matches!(self.int("to"), Some(1 | 10 | 11 | 16..=20)),
            _ => false,
        }
    }

    /// Whether a real value in `slot` may become codes on its way. The state of a recurrent layer stays as it is.
    pub fn flows(&self, slot: usize) -> bool {
        matches!(self.op.role(slot), Role::Activation | Role::Weight) && (slot == 0 || self.op.flow() != Flow::Recurrent)
    }

    /// Whether it normalizes and then scales: its scale stands at slot 1, its offset at slot 2.
    pub fn scales(&self) -> bool {
        self.op.flow() == Flow::Normalize && self.op.role(1) == Role::Constant && self.op != Op::BatchNormalization
    }

    /// Gives a FakeQuant node another quantizer.
    pub fn set_quantizer(&mut self, id: QuantizerId) {
        self.set_attr(QUANTIZER, id.0 as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_at_its_own_index_and_is_found_by_its_spelling() {
        for op in Op::all() {
            let (domain, name) = op.spelling();
            assert_eq!(op.facts().op, op);
            assert_eq!(Op::of_spelling(domain, name), op, "{domain}:{name}");
        }
        assert_eq!(Op::of_spelling("", "NoSuchOp"), Op::Other);
        assert_eq!(Op::of_spelling("ai.onnx", "Conv"), Op::Conv);
    }
}
