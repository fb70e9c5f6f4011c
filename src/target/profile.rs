//! A target's profile: data, read from YAML; every field is documented where the YAML is.

use super::limits::Limit;
use super::{Granularity, SchemeKeys};
use crate::graph::Op;
use crate::quant::ScaleKind;
use crate::tensor::DType;

/// What one target wants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    pub name: String,
    /// One line for `requant targets`.
    pub doc: String,
    /// Where its facts come from.
    pub source: String,
    /// The client that ran what was written for it; `no`: none was at hand.
    pub proven: String,
    /// Recipe where the user names none.
    pub recipe: String,
    pub weights: SchemeKeys,
    pub activations: SchemeKeys,
    pub bias: SchemeKeys,
    /// Activations that 8 bits harm too much; `None`: float.
    pub wide: Option<SchemeKeys>,
    /// What a set value may be; a key that is not listed may be anything.
    pub legal: Legal,
    /// Highest opset the target reads, if it has a limit.
    pub opset: Option<i64>,
    /// Highest IR version, likewise.
    pub ir: Option<i64>,
    /// Whether every shape must be a number.
    pub static_shapes: bool,
    /// The one size that the first dimension of inputs may have.
    pub batch: Option<usize>,
    /// Spellings of codes that it reads; `None`: any.
    pub forms: Option<Vec<Spelling>>,
    /// Ops that it runs in float.
    pub float: Vec<Op>,
    /// What becomes of ops that no list here names.
    pub others: Fate,
    /// What of the ops in the lists it does not run after all.
    pub limits: Vec<Limit>,
    /// Ops that run on codes.
    pub quantize: Vec<Op>,
    /// Ops whose constant weights are codes, and whose other operands and results stay float.
    pub weights_only: Vec<Op>,
    /// Ops that hand codes on: output and input share one quantizer.
    pub moves: Vec<Op>,
    /// Whether what a detector makes of its heads is cut off, as a model of its own.
    pub cut_tail: bool,
    /// Ops that the step `fuse` makes of what stands spelled out.
    pub fused: Vec<Op>,
    /// Operators that the step `fuse` writes out in others, which have codes.
    pub spelled: Vec<Op>,
    /// Such ops within whose spelled-out form nothing is quantized.
    pub groups: Vec<Op>,
    /// Computing ops whose inputs and output share one quantizer.
    pub join: Vec<Op>,
    /// Ops whose operands and results are never widened.
    pub never_wide: Vec<Op>,
    /// Ops of which every constant operand is codes under one scale, single numbers and tables among them.
    pub code_constants: Vec<Op>,
    /// Scheme of the scale of normalizations, whose offset is then a bias; `None`: both stay float.
    pub normalization: Option<SchemeKeys>,
    /// Ops that run in float between codes: quantizers stand around them all the same.
    pub emulated: Vec<Op>,
    /// Ops that run on codes though their result stays float.
    pub float_results: Vec<Op>,
    /// Ops whose constant operands stay float.
    pub float_constants: Vec<Op>,
    /// Ops whose float weights the runtime quantizes unasked where codes come in and go out.
    pub shield: Vec<Op>,
    /// Whether no two pairs of quantize and dequantize share a constant.
    pub own_constants: bool,
    /// Ops computed together with what follows them: no quantizer between.
    pub fuse: Vec<Fuse>,
    /// Outputs whose range is known without data.
    pub fixed: Vec<Fixed>,
    /// Where power-of-two scales may lie beside each other.
    pub shifts: Vec<Shift>,
}

/// A window for the positions (`scale = 2^−position`) around a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Shift {
    pub ops: Vec<Op>,
    pub of: Term,
    pub window: (i32, i32),
    /// Only where an operand is made by one of these; empty: anywhere.
    pub after: Vec<Op>,
    /// Only where one of these is computed with it; empty: anywhere.
    pub before: Vec<Op>,
}

/// What is held in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Operands, added, less the result.
    Product,
    /// Operands, added, less the bias.
    Bias,
    /// The bias less the result.
    BiasOutput,
    /// The largest operand less the smallest.
    Spread,
    /// The smallest operand less the result.
    Least,
    /// Every operand.
    Input,
    /// The result.
    Output,
}

impl Term {
    pub const NAMES: [(&str, Term); 7] = [
        ("product", Term::Product),
        ("bias", Term::Bias),
        ("bias-output", Term::BiasOutput),
        ("spread", Term::Spread),
        ("least", Term::Least),
        ("input", Term::Input),
        ("output", Term::Output),
    ];
    /// The same, for a list of choices.
    pub const WORDS: [&str; 7] = {
        let mut words = [""; 7];
        let mut i = 0;
        while i < words.len() {
            words[i] = Self::NAMES[i].0;
            i += 1;
        }
        words
    };
}

/// A producer, and what is computed with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fuse {
    pub producers: Vec<Op>,
    pub followers: Vec<Op>,
    /// Only where nothing but outputs of the model is made of the result.
    pub last: bool,
    /// Only where the lowest code stands for what the follower cuts at: then it is dropped.
    pub floor: bool,
    /// `floor` to the last bit: the follower's bounds do not lie within the codes; to be sure of that before data, it cuts at 0.
    pub exact: bool,
}

/// Ops whose output has this scheme whatever the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Fixed {
    pub ops: Vec<Op>,
    pub output: SchemeKeys,
}

/// What the target holds at each kind of tensor; an empty list: anything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Legal {
    /// Formats by name.
    pub weights: Vec<String>,
    pub activations: Vec<String>,
    /// More of them, that a file may have and `convert` does not keep.
    pub taken: Vec<String>,
    /// The same; `none`: a float bias.
    pub bias: Vec<String>,
    /// Of weights.
    pub granularity: Vec<Granularity>,
    /// Words of [`SCALES`].
    pub scales: Vec<String>,
    /// Which of them have no zero point, or one in the middle of an unsigned format.
    pub symmetric: Vec<Slot>,
    /// Which of them have scales that are powers of two.
    pub pow2: Vec<Slot>,
    /// What becomes of a node whose codes are not legal.
    pub otherwise: Fate,
}

/// What scales may be in a file: numbers of a type, where a power of two is a float32, or `codes` under scales of their own.
pub const SCALES: [&str; 5] = ["float32", "float16", "bfloat16", "e8m0", "codes"];

/// The word of a scheme's scales.
pub fn scale_word(scale: &ScaleKind) -> &'static str {
    match scale {
        ScaleKind::Nested(_) => "codes",
        ScaleKind::Pow2(DType::F8E8M0) => "e8m0",
        ScaleKind::Exact(dtype) | ScaleKind::Pow2(dtype) => dtype.name(),
    }
}

impl Profile {
    /// Whether it reads no codes in any spelling.
    pub fn is_float(&self) -> bool {
        self.forms.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Legal {
    /// Formats that a slot may have; empty: any.
    pub fn formats(&self, slot: Slot) -> &[String] {
        match slot {
            Slot::Weights => &self.weights,
            Slot::Activations => &self.activations,
            Slot::Bias => &self.bias,
        }
    }
}

/// What a tensor is to the node that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    Weights,
    Activations,
    Bias,
}

impl Slot {
    /// As profiles write them.
    pub const WORDS: [&'static str; 3] = ["weights", "activations", "bias"];
    pub const ALL: [Slot; 3] = [Slot::Weights, Slot::Activations, Slot::Bias];

    pub fn word(self) -> &'static str {
        Slot::WORDS[self as usize]
    }
}

/// What becomes of a node that does not run on codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Fate {
    /// It runs in float.
    #[default]
    Float,
    /// Another processor runs it: the graph is split around it.
    Split,
    /// The compiler refuses the model.
    Refused,
}

impl Fate {
    /// As profiles write them.
    pub const WORDS: [&'static str; 3] = ["float", "split", "refused"];
    pub const ALL: [Fate; 3] = [Fate::Float, Fate::Split, Fate::Refused];
}

/// Families of operators in which ONNX files speak of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spelling {
    /// ONNX's QuantizeLinear and DequantizeLinear.
    Qdq,
    /// com.microsoft's.
    MsQdq,
    /// QLinearConv and its like.
    QOperator,
    /// DynamicQuantizeLinear, MatMulInteger and their like.
    Dynamic,
    /// MatMulNBits and its like.
    WeightOnly,
    /// Operators of mct_quantizers, which round floats.
    MctQuantizers,
}

impl Spelling {
    /// As profiles write them.
    pub const WORDS: [&'static str; 6] = ["qdq", "ms-qdq", "qoperator", "dynamic", "weight-only", "mct-quantizers"];
    pub const ALL: [Spelling; 6] = [Spelling::Qdq, Spelling::MsQdq, Spelling::QOperator, Spelling::Dynamic, Spelling::WeightOnly, Spelling::MctQuantizers];

    /// The family of an operator that speaks of codes.
    pub fn of(op: Op) -> Spelling {
        match op {
            Op::QuantizeLinear | Op::DequantizeLinear => Spelling::Qdq,
            Op::MsQuantizeLinear | Op::MsDequantizeLinear => Spelling::MsQdq,
            Op::MatMulNBits | Op::MatMulBnb4 | Op::GatherBlockQuantized | Op::MatMulFpQ4 | Op::QMoE => Spelling::WeightOnly,
            Op::DynamicQuantizeLinear | Op::MatMulInteger | Op::ConvInteger | Op::MatMulIntegerToFloat => Spelling::Dynamic,
            Op::DynamicQuantizeMatMul | Op::DynamicQuantizeLSTM | Op::MatMulInteger16 => Spelling::Dynamic,
            Op::ActivationPOTQuantizer | Op::ActivationSymmetricQuantizer | Op::WeightsPOTQuantizer | Op::WeightsSymmetricQuantizer => Spelling::MctQuantizers,
            _ => Spelling::QOperator,
        }
    }

    pub fn word(self) -> &'static str {
        Spelling::WORDS[self as usize]
    }
}
