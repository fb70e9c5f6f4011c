//! The steps there are, and every key that one may have.

use super::shape::{Key, Shape};
use super::steps::{self, Run};
use super::table::{COUNT, FLAG, describe};
use crate::lower;

/// A step that recipes may name.
pub struct StepRow {
    pub name: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
    /// The key that a scalar stands for: `round: nearest` is `round: { method: nearest }`.
    pub scalar: Option<&'static str>,
    /// When it may come, and what carries it out.
    pub run: Run,
}

/// The steps there are, in the order in which recipes use them.
pub static STEPS: &[StepRow] = &[
    StepRow {
        name: "fold-constants",
        doc: "fold what depends on constants alone; remove nodes that do nothing",
        keys: &[],
        scalar: None,
        run: steps::FOLD_CONSTANTS,
    },
    StepRow {
        name: "fold-batch-norm",
        doc: "fold batch normalisation into its neighbours, and Pads into the layers behind them",
        keys: &[],
        scalar: None,
        run: steps::FOLD_BATCH_NORM,
    },
    StepRow {
        name: "cut-tail",
        doc: "write what a detector makes of its heads as a float model of its own, where the target wants it off",
        keys: &[],
        scalar: None,
        run: steps::CUT_TAIL,
    },
    StepRow {
        name: "fuse",
        doc: "write functions that stand spelled out as one operator, where the target has it, and operators without codes in others",
        keys: &[],
        scalar: None,
        run: steps::FUSE,
    },
    StepRow {
        name: "equalize",
        doc: "give channels that one layer makes and another reads like ranges in both",
        keys: EQUALIZE,
        scalar: None,
        run: steps::EQUALIZE,
    },
    StepRow {
        name: "balance",
        doc: "scale channels between layers so that rounding to the target's codes costs the outputs least",
        keys: BALANCE,
        scalar: None,
        run: steps::BALANCE,
    },
    StepRow {
        name: "smooth",
        doc: "hand channels that stand out from activations over to the weights that read them",
        keys: SMOOTH,
        scalar: None,
        run: steps::SMOOTH,
    },
    StepRow {
        name: "awq",
        doc: "scale channels by the size of the inputs they carry, so that the weights that matter most lose least",
        keys: AWQ,
        scalar: None,
        run: steps::AWQ,
    },
    StepRow {
        name: "shift-negatives",
        doc: "lift functions that reach a little below zero above it, so that their codes need no sign",
        keys: SHIFT_NEGATIVES,
        scalar: None,
        run: steps::SHIFT_NEGATIVES,
    },
    StepRow { name: "place", doc: "decide which values become codes, by the target's rules and the overrides", keys: &[], scalar: None, run: steps::PLACE },
    StepRow { name: "calibrate", doc: "find scales and zero points", keys: CALIBRATE, scalar: None, run: steps::CALIBRATE },
    StepRow { name: "widen", doc: "keep the few activations wider that 8 bits harm most, by measurement", keys: WIDEN, scalar: None, run: steps::WIDEN },
    StepRow {
        name: "allocate",
        doc: "choose a width for each layer's weights within a limit, by measurement and an integer program",
        keys: ALLOCATE,
        scalar: None,
        run: steps::ALLOCATE,
    },
    StepRow { name: "round", doc: "find a code for each weight", keys: ROUND, scalar: Some("method"), run: steps::ROUND },
    StepRow {
        name: "correct-bias",
        doc: "restore the mean of each layer's output, channel by channel, through its bias",
        keys: CORRECT_BIAS,
        scalar: None,
        run: steps::CORRECT_BIAS,
    },
    StepRow {
        name: "tune-batch-norm",
        doc: "restore mean and deviation of each layer's output, channel by channel, through its scales and its bias",
        keys: TUNE_BATCH_NORM,
        scalar: None,
        run: steps::TUNE_BATCH_NORM,
    },
    StepRow {
        name: "tune-bias",
        doc: "learn all biases at once so that the model's outputs come near the float model's",
        keys: TUNE_BIAS,
        scalar: None,
        run: steps::TUNE_BIAS,
    },
    StepRow { name: "lower", doc: "write quantizers in ONNX's own ops", keys: LOWER, scalar: Some("form"), run: steps::LOWER },
];

/// Keys of every step.
pub static EVERY_STEP: &[Key] = &[Key::new("id", Shape::Text, "a name for this step, for --set and --stop-after")];

static EQUALIZE: &[Key] = &[
    Key::new("sweeps", COUNT, "times that all pairs of layers are visited at most; default 20"),
    Key::new("absorb", FLAG, "move what a channel always carries into the biases behind; default true, with samples"),
    Key::new("sigmas", Shape::Number(0.0, 100.0), "standard deviations below the mean that a channel always carries; default 3"),
    Key::new("samples", COUNT, "samples for those means at most; default 32"),
];
static BALANCE: &[Key] = &[
    Key::new("sweeps", COUNT, "times that all layers are visited at most; default 8"),
    Key::new("samples", COUNT, "samples looked at at most; default 64"),
    Key::new("bounded", FLAG, "scale channels behind an upper bound (Relu6, Clip) too, and the bound with them; default true"),
];
static SHIFT_NEGATIVES: &[Key] = &[
    Key::new("ratio", Shape::Number(0.0, 1.0), "of its threshold, how far below zero a function may reach to be lifted; default 0.05"),
    Key::new("samples", COUNT, "samples looked at at most; default 64"),
];
static SMOOTH: &[Key] = &[
    Key::new("alpha", Shape::Number(0.0, 1.0), "share of a channel's range that moves into the weights; default: searched for each value"),
    Key::new("samples", COUNT, "samples looked at at most; default 16"),
];
static AWQ: &[Key] =
    &[Key::new("grid", COUNT, "exponents tried, from 0 on, evenly below 1; default 20"), Key::new("samples", COUNT, "samples looked at at most; default 64")];
static CALIBRATE: &[Key] = &[
    Key::new("activations", Shape::Map(CALIBRATE_ACTIVATIONS), "how the range of an activation is taken from the samples"),
    Key::new("weights", Shape::Map(CALIBRATE_WEIGHTS), "how the range of a weight is taken from its values"),
];
static CALIBRATE_ACTIVATIONS: &[Key] = &[
    Key::new(
        "method",
        Shape::OneOf(&["minmax", "moving-average", "percentile", "mse", "mae", "lp", "entropy", "tail", "no-clip", "auto"]),
        "minmax: all values seen; moving-average: the mean of the samples' extremes; percentile: without the outermost; mse: least squared error; mae: least absolute error; lp: least p-th power of the error; entropy: least divergence; tail: all values seen, and half of what a tail fitted to the outermost adds; no-clip: all values, from which searches start; auto: the best of minmax, percentile 99.999 and 99.99 (where that is best, of lower ones too), and mse on a few samples, and, below 32 samples, tail for tensors of fewer than 65536 values",
    ),
    Key::new("constant", Shape::Number(0.0, 1.0), "moving-average: weight of a sample against those before it; default 0.01"),
    Key::new("percentile", Shape::Number(50.0, 100.0), "percent of the values that the range must hold, at either end; default 99.99"),
    Key::new("power", Shape::Number(0.1, 16.0), "lp: the power; default 2"),
    Key::new("unsigned", FLAG, "where zero lies in the middle of unsigned codes, it becomes their lowest for tensors that are never negative; default false"),
    Key::new("outliers", Shape::Number(0.0, f64::INFINITY), "standard deviations from the mean beyond which values count for nothing; default: all count"),
];
static CALIBRATE_WEIGHTS: &[Key] = &[
    Key::new(
        "method",
        Shape::OneOf(&["minmax", "mse", "clip"]),
        "minmax: all values; mse: least squared error; clip: least squared error of the layer's output over samples, block by block",
    ),
    Key::new("shrink", Shape::Number(0.0, 1.0), "clip: how far a range may shrink, as a share of itself; default 0.5"),
    Key::new("grid", COUNT, "clip: steps from all of a range to nothing; default 20"),
    Key::new("samples", COUNT, "clip: samples looked at at most; default 64"),
];
static ROUND: &[Key] = &[
    Key::new(
        "method",
        Shape::OneOf(&["nearest", "gptq", "adaround", "block", "adaquant", "hqq", "k-quant"]),
        "nearest: the code closest to each weight; gptq: each weight makes up for what those before it lost; adaround: up or down, learnt layer by layer; block: the same over residual and attention blocks, with the scales of activations in them; adaquant: weights that may end at any code, biases and scales, learnt layer by layer; hqq: zero points that make little of outliers, and nearest codes; k-quant: scales and zero points by weighted least squares, and nearest codes",
    ),
    Key::new(
        "damping",
        Shape::Number(0.0, 1.0),
        "gptq: of the inputs' mean energy, what is added to each; default 0.01, or, where samples hold few places, half of the numbers of a sum over these",
    ),
    Key::new(
        "work",
        Shape::Number(0.0, f64::INFINITY),
        "gptq: billions of multiply-adds that a layer may take; fewer places are looked at for it, and beyond that it gets nearest codes; default 2000",
    ),
    Key::new("samples", COUNT, "samples at most; default 32 for gptq, 1000 for adaround, block and adaquant, of which every fourth judges"),
    Key::new(
        "iterations",
        COUNT,
        "adaround, block, adaquant: steps a layer or block; by default 20000, 1000 for adaquant, and fewer where all would take too long",
    ),
    Key::new("batch", COUNT, "adaround, block, adaquant: samples a step; default 8, 50 for adaquant"),
    Key::new("lambda", Shape::Number(0.0, f64::INFINITY), "adaround, block: weight of the regulariser that decides between up and down; default 0.01"),
    Key::new("parallel", FLAG, "adaquant: layers read what the float model gives them, instead of what the quantized layers before do; default false"),
];
/// What `latency_table` holds.
pub static LATENCIES: Shape = Shape::MapOf(&Shape::MapOf(&Shape::Number(0.0, f64::INFINITY)));

static WIDEN: &[Key] = &[
    Key::new("share", Shape::Number(0.0, 1.0), "largest share of all activations that may be wider; default 0.08"),
    Key::new("macs", Shape::Number(0.0, 1.0), "largest share of the multiply-adds whose operand may be wider; default 0.02"),
    Key::new("tries", COUNT, "groups of activations whose noise is found; default 24"),
    Key::new("samples", COUNT, "samples to measure on; default 4"),
    Key::new("loss", Shape::Number(0.0, f64::INFINITY), "models that lose less need nothing wider: noise over signal, or nats; default 0.01"),
];
static ALLOCATE: &[Key] = &[
    Key::new("bits", Shape::List(&Shape::Int(2, 16)), "widths to choose from, as far as the target holds them; default [4, 8]"),
    Key::new(
        "size",
        Shape::Any(&[Shape::Number(0.0, 1.0), Shape::Bytes]),
        "limit on what the layers' weights take: a share of what they take at their widest, or bytes; default 0.75, where there is no other limit",
    ),
    Key::new("bitops", Shape::Number(0.0, 1.0), "limit on multiply-adds times the bits of both operands: a share of what they are at their widest"),
    Key::new("latency", Shape::Number(0.0, f64::INFINITY), "limit on the sum of the times in `latency_table`, in their unit"),
    Key::new("latency_table", Shape::Text, "path of a YAML or JSON file: time by layer and bits of its weights, such as `/conv1/Conv: { 4: 1.5, 8: 2.5 }`"),
    Key::new("front", Shape::List(&Shape::Number(0.0, 1.0)), "more limits, as shares of the widest, for which what would be lost is told; default none"),
    Key::new(
        "strategy",
        Shape::OneOf(&["program", "greedy", "uniform"]),
        "program: an integer program, measured beside the two others; greedy: from the widest, least loss for what is saved first; uniform: one width for all; default program",
    ),
    Key::new(
        "sensitivity",
        Shape::OneOf(&["one-at-a-time", "layer-mse", "hessian-trace"]),
        "one-at-a-time: what the model's outputs lose by one layer alone; layer-mse: noise over signal of the layer's own output; hessian-trace: the loss's mean curvature by the layer's weights, times their squared error; default one-at-a-time",
    ),
    Key::new("samples", COUNT, "samples to measure on; default 32"),
];
static CORRECT_BIAS: &[Key] = &[Key::new("samples", COUNT, "samples at most; default 32")];
static TUNE_BATCH_NORM: &[Key] = &[Key::new("samples", COUNT, "samples at most, of which every fourth judges; default 64")];
static TUNE_BIAS: &[Key] = &[
    Key::new("samples", COUNT, "samples at most, of which every fourth judges; default 128"),
    Key::new("epochs", COUNT, "times that all samples are seen at most; default 20"),
    Key::new("batch", COUNT, "samples a step; default 16"),
    Key::new("rate", Shape::Number(0.0, 1.0), "length of a first step, as a share of the deviation of what a layer gives out; default 0.001"),
    Key::new("loss", Shape::Number(0.0, f64::INFINITY), "models that lose less keep their biases: noise over signal, or nats; default 0.001"),
];
static LOWER: &[Key] = &[
    Key::new(
        "form",
        Shape::OneOf(lower::FORMS),
        "qdq: QuantizeLinear and DequantizeLinear, and, in any form, DynamicQuantizeLinear and integer products where scales are found at inference; qoperator: operators on codes (QLinearConv …, for ONNX Runtime also those of com.microsoft) wherever there are any; matmul-nbits: com.microsoft's MatMulNBits, MatMulBnb4 and GatherBlockQuantized for weights in blocks, qdq for the rest; encodings: a float model, and beside it OUT.encodings, AIMET's JSON; mct-quantizers: Sony's operators, also written where the target reads nothing else",
    ),
    Key::new(
        "io",
        Shape::OneOf(&["uint8", "int8"]),
        "inputs and outputs that are quantized to this type are codes themselves: their Q/DQ fall away; the metadata `requant.io.NAME` says scale and zero point",
    ),
    Key::new("version", Shape::Int(1, 2), "encodings: 1 writes version 1.0.0, 2 version 2.0.0; default 1"),
    Key::new(
        "images",
        Shape::OneOf(&["nhwc", "nchw"]),
        "inputs with `preprocess` take images as they are, uint8 in this layout: scale, mean and std stand in the graph; the metadata `requant.image.NAME` says them",
    ),
    Key::new(
        "accuracy_level",
        Shape::Int(0, 4),
        "matmul-nbits: what the runtime may compute in: 0 its choice, 1 float32, 2 float16, 3 bfloat16, 4 inputs rounded to int8 in blocks",
    ),
];

/// Rows (key, value, meaning) of a step's keys, nested ones dotted.
pub fn step_keys(row: &StepRow) -> Vec<(String, String, String)> {
    let mut rows = Vec::new();
    describe(row.keys, "", &mut rows);
    describe(EVERY_STEP, "", &mut rows);
    rows
}
