//! What tract 0.23.9 runs as ONNX means it. tract knows an operator by its name alone, ignores attributes it has not heard of and
//! answers with wrong numbers; so an operator runs if it stands in the table, and only with attributes that stand there or have no effect.

use super::tensors::datum_type;
use crate::error::Result;
use crate::graph::{AttrValue, Graph, Model, Node, Op, ValueId, constant_behind};
use crate::tensor::DType;
use std::collections::BTreeSet;

/// Operators and the attributes that tract honours.
#[rustfmt::skip]
const KNOWN: &[(&[Op], &[&str])] = &[
    (&[
        Op::Abs, Op::Acos, Op::Acosh, Op::Add, Op::And, Op::Asin, Op::Asinh, Op::Atan, Op::Atanh, Op::BitwiseAnd, Op::BitwiseNot, Op::BitwiseOr,
        Op::BitwiseXor, Op::CastLike, Op::Ceil, Op::Cos, Op::Cosh, Op::Div, Op::Dropout, Op::Equal, Op::Erf, Op::Exp, Op::Expand, Op::Floor,
        Op::GlobalAveragePool, Op::GlobalMaxPool, Op::Greater, Op::GreaterOrEqual, Op::HardSwish, Op::Identity, Op::IsNaN, Op::Less,
        Op::LessOrEqual, Op::Log, Op::MatMul, Op::Max, Op::Mean, Op::Min, Op::Mish, Op::Mul, Op::Neg, Op::NonZero, Op::Not, Op::Or, Op::PRelu, Op::Pow,
        Op::Range, Op::Reciprocal, Op::Relu, Op::Round, Op::Sigmoid, Op::Sign, Op::Sin, Op::Sinh, Op::Size, Op::Softplus, Op::Softsign, Op::Sqrt,
        Op::Sub, Op::Sum, Op::Swish, Op::Tan, Op::Tanh, Op::Tile, Op::Where, Op::Xor,
    ], &[]),
    (&[Op::ArgMax, Op::ArgMin], &["axis", "keepdims", "select_last_index"]),
    (&[Op::Attention], &["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"]),
    (&[Op::AveragePool], &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"]),
    (&[Op::BatchNormalization], &["epsilon", "momentum"]),
    (&[Op::BitShift], &["direction"]),
    (&[Op::Cast], &["to"]),
    (&[Op::Celu, Op::Elu, Op::LeakyRelu, Op::ThresholdedRelu], &["alpha"]),
    (&[Op::Clip], &["max", "min"]),
    (&[Op::Concat, Op::Flatten, Op::Gather, Op::GatherElements, Op::Hardmax, Op::LogSoftmax, Op::OneHot, Op::Softmax], &["axis"]),
    (&[Op::Constant], &["value", "value_float", "value_floats", "value_int", "value_ints"]),
    (&[Op::ConstantOfShape], &["value"]),
    (&[Op::Conv], &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    (&[Op::ConvTranspose], &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"]),
    (&[Op::CumSum], &["exclusive", "reverse"]),
    (&[Op::DepthToSpace], &["blocksize", "mode"]),
    (&[Op::Einsum], &["equation"]),
    (&[Op::EyeLike], &["dtype", "k"]),
    (&[Op::FakeQuant], &["quantizer"]),
    (&[Op::Narrow], &["to"]),
    (&[Op::GatherND], &["batch_dims"]),
    (&[Op::Gelu], &["approximate"]),
    (&[Op::MsGelu, Op::FastGelu, Op::BiasGelu], &[]),
    (&[Op::QuickGelu], &["alpha"]),
    (&[Op::Gemm], &["alpha", "beta", "transA", "transB"]),
    (&[Op::GlobalLpPool], &["p"]),
    (&[Op::GridSample], &["align_corners", "mode", "padding_mode"]),
    (&[Op::GroupNormalization], &["epsilon", "num_groups"]),
    (&[Op::GRU], &["hidden_size", "layout", "linear_before_reset"]),
    (&[Op::HardSigmoid, Op::Selu], &["alpha", "beta", "gamma"]),
    (&[Op::If], &["else_branch", "then_branch"]),
    (&[Op::InstanceNormalization], &["epsilon"]),
    (&[Op::IsInf], &["detect_negative", "detect_positive"]),
    (&[Op::LRN], &["alpha", "beta", "bias", "size"]),
    (&[Op::LSTM, Op::RNN], &["hidden_size", "layout"]),
    (&[Op::LayerNormalization, Op::RMSNormalization, Op::SimplifiedLayerNormalization], &["axis", "epsilon", "stash_type"]),
    (&[Op::LpNormalization], &["axis", "p"]),
    (&[Op::MaxPool], &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"]),
    (&[Op::MeanVarianceNormalization], &["axes"]),
    (&[Op::Mod], &["fmod"]),
    (&[Op::NonMaxSuppression], &["center_point_box"]),
    (&[Op::Pad], &["mode", "pads", "value"]),
    (&[Op::ReduceL1, Op::ReduceL2, Op::ReduceLogSum, Op::ReduceLogSumExp, Op::ReduceMax, Op::ReduceMean, Op::ReduceMin, Op::ReduceProd, Op::ReduceSum,
        Op::ReduceSumSquare], &["axes", "keepdims", "noop_with_empty_axes"]),
    (&[Op::Reshape], &["allowzero"]),
    (&[Op::Resize], &["antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value",
        "keep_aspect_ratio_policy", "mode", "nearest_mode"]),
    (&[Op::RotaryEmbedding], &["interleaved", "num_heads", "rotary_embedding_dim"]),
    (&[Op::Scan], &["body", "num_scan_inputs", "scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"]),
    (&[Op::Scatter, Op::ScatterElements], &["axis", "reduction"]),
    (&[Op::ScatterND], &["reduction"]),
    (&[Op::Shape], &["end", "start"]),
    (&[Op::Shrink], &["bias", "lambd"]),
    (&[Op::SkipLayerNormalization, Op::SkipSimplifiedLayerNormalization], &["epsilon"]),
    (&[Op::Slice], &["axes", "ends", "starts"]),
    (&[Op::SpaceToDepth], &["blocksize"]),
    (&[Op::Split], &["axis", "num_outputs", "split"]),
    (&[Op::Squeeze, Op::Unsqueeze], &["axes"]),
    (&[Op::TopK], &["axis", "largest", "sorted"]),
    (&[Op::Transpose], &["perm"]),
    (&[Op::Trilu], &["upper"]),
];

/// Slots that tract must find constant when it plans, and what they hold.
#[rustfmt::skip]
const CONSTANT: &[(&[Op], &[usize], &str)] = &[
    (&[Op::BatchNormalization], &[1, 2, 3, 4], "statistics"),
    (&[Op::ConstantOfShape], &[0], "a shape"),
    (&[Op::CumSum], &[1], "an axis"),
    (&[Op::Expand, Op::Reshape], &[1], "a shape"),
    (&[Op::GRU, Op::LSTM, Op::RNN], &[4], "lengths of sequences"),
    (&[Op::OneHot], &[1, 2], "a depth and values"),
    (&[Op::Pad], &[1, 2, 3], "paddings"),
    (&[Op::ReduceL1, Op::ReduceL2, Op::ReduceLogSum, Op::ReduceLogSumExp, Op::ReduceMax, Op::ReduceMean, Op::ReduceMin, Op::ReduceProd, Op::ReduceSum,
        Op::ReduceSumSquare, Op::Squeeze, Op::Unsqueeze], &[1], "axes"),
    (&[Op::Resize], &[1, 2, 3], "a size"),
    (&[Op::Slice], &[1, 2, 3, 4], "bounds"),
    (&[Op::Split], &[1], "lengths"),
    (&[Op::Tile], &[1], "repeats"),
];

/// Attributes that tract ignores, and the value at which that does no harm.
fn is_neutral(node: &Node, name: &str, value: &AttrValue) -> bool {
    use AttrValue::{Float, Int, Strings};
    match (node.op, name, value) {
        (Op::BatchNormalization, "training_mode", Int(0)) | (Op::BatchNormalization, "spatial", Int(1)) => true,
        (Op::Swish, "alpha", Float(a)) => *a == 1.0,
        (Op::SpaceToDepth, "mode", AttrValue::String(s)) => &**s == b"DCR",
        (Op::GRU | Op::LSTM | Op::RNN, "direction", AttrValue::String(s)) => &**s == b"forward" || &**s == b"bidirectional",
        (Op::LSTM, "input_forget", Int(0)) => true,
        (Op::GRU | Op::LSTM | Op::RNN, "activations", Strings(s)) => {
            let usual: &[&[u8]] = match node.op {
                Op::LSTM => &[b"sigmoid", b"tanh", b"tanh"],
                Op::GRU => &[b"sigmoid", b"tanh"],
                _ => &[b"tanh"],
            };
            s.iter().zip(usual.iter().cycle()).all(|(a, b)| a.eq_ignore_ascii_case(b))
        }
        // Before opset 7, Add and its like broadcast only if told to.
        (_, "consumed_inputs", _) => true,
        (Op::Dropout, "ratio" | "seed", _) | (Op::Dropout, "is_test", Int(1)) => true,
        (Op::Cast | Op::CastLike, "saturate" | "round_mode", _) => true,
        (Op::Attention, "softmax_precision", _) => true,
        (Op::LayerNormalization, "stash_type", Int(1)) => true,
        _ => false,
    }
}

/// Names, in one error, every node that the engine cannot run: asked before any work, of a model as `graph::specialize` left it.
pub fn check_supported(model: &Model) -> Result<()> {
    let mut model = model.clone();
    super::prepare::prepare(&mut model)?;
    super::planning::refuse(&refused(&model))
}

/// Nodes that the engine cannot run, as (name, reason), of a model as `prepare` left it.
pub fn refused(model: &Model) -> Vec<(String, String)> {
    let mut list = Vec::new();
    check(&model.graph, &mut list);
    list
}

fn check(g: &Graph, list: &mut Vec<(String, String)>) {
    for (_, n) in g.nodes() {
        if let Some(why) = refusal(g, n) {
            list.push((label(g, n), why));
        }
        for (_, body) in n.bodies() {
            check(body, list);
        }
    }
}

/// Why a node cannot be run; `None` if it can.
fn refusal(g: &Graph, n: &Node) -> Option<String> {
    let spelled = if n.domain.is_empty() || &*n.domain == "ai.onnx" { n.op_type.to_string() } else { format!("{}.{}", n.domain, n.op_type) };
    let Some((_, attrs)) = KNOWN.iter().find(|(ops, _)| ops.contains(&n.op)) else {
        return Some(format!("{spelled} is not an operator that the engine knows"));
    };
    if let Some(a) = n.attrs.iter().find(|a| !attrs.contains(&a.name.as_str()) && !is_neutral(n, &a.name, &a.value)) {
        return Some(format!("{spelled} with attribute {} = {} is not what the engine computes", a.name, short(&a.value)));
    }
    let values: BTreeSet<ValueId> = n.inputs().iter().chain(n.outputs()).flatten().copied().collect();
    let strange = |v: &ValueId| g.value(*v).dtype().filter(|&t| datum_type(t).is_none());
    if let Some(t) = values.iter().find_map(strange) {
        return Some(format!("{spelled} on {t} tensors, which the engine does not compute with"));
    }
    // A constant behind a quantizer, or what passes for one in a float plan, is one when tract plans.
    let codes = |v: ValueId| g.value(v).producer().is_some_and(|(id, _)| g.node(id).op == Op::FakeQuant && g.node(id).input(0).is_none());
    let computed = |slot: &usize| n.input(*slot).filter(|v| constant_behind(g, *v).is_none() && !codes(*v));
    let needed = CONSTANT.iter().filter(|(ops, ..)| ops.contains(&n.op));
    if let Some((v, what)) = needed.filter_map(|(_, slots, what)| Some((slots.iter().find_map(computed)?, what))).next() {
        return Some(format!("{spelled} with {what} computed at run time ({})", g.value(v).name));
    }
    special(g, n).map(|why| format!("{spelled} {why}"))
}

/// What an operator's row cannot say.
fn special(g: &Graph, n: &Node) -> Option<String> {
    let dtype = |slot: usize| n.input(slot).and_then(|v| g.value(v).dtype());
    match n.op {
        Op::Dropout if n.input(2).is_some_and(|v| g.constant(v).is_none_or(|c| c.tensor.bytes().iter().any(|b| *b != 0))) => Some("in training mode".into()),
        Op::Attention if dtype(3) == Some(DType::Bool) => Some("with a mask of booleans cannot be planned by the engine".into()),
        Op::Celu if dtype(0) == Some(DType::F16) => Some("on float16 tensors is computed wrongly by the engine".into()),
        _ => None,
    }
}

fn short(value: &AttrValue) -> String {
    match value {
        AttrValue::Int(i) => i.to_string(),
        AttrValue::Float(f) => f.to_string(),
        AttrValue::String(s) => String::from_utf8_lossy(s).into_owned(),
        AttrValue::Ints(v) => format!("{v:?}"),
        AttrValue::Floats(v) => format!("{v:?}"),
        AttrValue::Strings(v) => v.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>().join(","),
        _ => "…".into(),
    }
}

/// The name a person knows a node by.
pub fn label(g: &Graph, n: &Node) -> String {
    if !n.name.is_empty() {
        return n.name.clone();
    }
    match n.outputs().iter().flatten().next() {
        Some(&v) => format!("the node that makes {}", g.value(v).name),
        None => format!("a node without a name ({})", n.op_type),
    }
}
