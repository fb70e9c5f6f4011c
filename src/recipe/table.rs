//! Every key that a recipe or a target's profile may have; those of steps are in `step_table`.

use super::shape::{Key, Shape};
use super::{configs, shape};
use crate::target::{Fate, Place, SCALES, Slot, Spelling, Term};

pub(super) const COUNT: Shape = Shape::Int(1, i64::MAX);
pub(super) const FLAG: Shape = Shape::Bool;

const GRANULARITY: Shape = Shape::OneOf(&["tensor", "channel", "block", "token", "gate"]);

/// Keys in which a scheme is asked for.
pub static SCHEME: &[Key] = &[
    Key::new("bits", Shape::Int(2, 16), "width of a code; keeps the signedness of the format beneath"),
    Key::new("format", Shape::Format, "the set of codes: `requant formats` lists them; none: stays float"),
    Key::new("granularity", GRANULARITY, "which elements share a scale; gate: those of one gate of recurrent weights, elsewhere of one channel"),
    Key::new("block_size", COUNT, "elements of a block"),
    Key::new("axis", Shape::Int(-16, 16), "axis of channels or blocks; default: the op's own"),
    Key::new("symmetric", FLAG, "true: no zero point, or one in the middle of an unsigned format"),
    Key::new(
        "zero_point",
        Shape::Any(&[Shape::OneOf(&["integer", "real", "none"]), Shape::Int(-32768, 65535)]),
        "integer or real: from data; none; or this code",
    ),
    Key::new("narrow", FLAG, "leave the lowest code of a signed format out"),
    Key::new(
        "scale",
        Shape::Any(&[Shape::OneOf(&["float32", "float16", "bfloat16", "pow2", "e8m0"]), Shape::Fraction, Shape::Map(SCALE)]),
        "the type that scales are rounded to, or this scale, or the scheme under which scales are codes themselves",
    ),
    Key::new("range", Shape::Range, "the interval that the codes cover, whatever the data"),
    Key::new(
        "timing",
        Shape::OneOf(&["static", "dynamic"]),
        "static: scales are stored; dynamic: found at inference, before layers with constant weights, whose results stay float: uint8 per tensor, or symmetric int8 per token",
    ),
    Key::new("rounding", Shape::OneOf(&["half-even", "half-up", "half-away", "floor"]), "ties; ONNX rounds half-even"),
];

/// Keys of a scale that is codes itself.
static SCALE: &[Key] = &[
    Key::new("format", Shape::Format, "the set of codes"),
    Key::new("granularity", Shape::OneOf(&["tensor", "channel", "block"]), "which scales share a scale of their own"),
    Key::new("block_size", COUNT, "scales of a block"),
    Key::new("axis", Shape::Int(-16, 16), "axis of channels or blocks; default: the op's own"),
    Key::new("zero_point", Shape::OneOf(&["integer", "none"]), "integer: from data; none"),
    Key::new("scale", Shape::OneOf(&["float32", "pow2"]), "what the coarser scales may be"),
];

const SCHEME_OR_NONE: Shape = Shape::Any(&[Shape::Map(SCHEME), Shape::OneOf(&["none"])]);

/// Keys of a recipe.
pub static RECIPE: &[Key] = &[
    Key::new("extends", Shape::Name(configs::check_recipe, "a recipe's name or path"), "the recipe that this one builds on"),
    Key::new("target", Shape::Name(configs::check_target, "a target's name or path"), "the chip or runtime that the model is for"),
    Key::new("inputs", Shape::MapOf(&Shape::Map(INPUT)), "by name, where the model or the data do not say enough of an input"),
    Key::new("data", Shape::Map(DATA), "how many samples serve for what"),
    Key::new("weights", SCHEME_OR_NONE, "scheme of weights; none: they stay float"),
    Key::new("activations", SCHEME_OR_NONE, "scheme of activations; none: only weights are quantized"),
    Key::new("bias", SCHEME_OR_NONE, "scheme of biases; none: they stay float"),
    Key::new("float", Shape::Any(&[Shape::OneOf(FLOATS), Shape::Map(FLOAT)]), "the type of what stays float; default float32"),
    Key::new("memory", Shape::Bytes, "memory that statistics and caches may take; default 4GiB"),
    Key::new("steps", Shape::Steps, "what is done, in this order"),
    Key::new("overrides", Shape::List(&Shape::Map(OVERRIDE)), "exceptions; later entries win"),
    Key::new("gate", Shape::Map(GATE), "what the result must reach to be written"),
    Key::new("seed", Shape::Int(0, i64::MAX), "of everything random; default 0"),
];

const FLOATS: &[&str] = &["float32", "float16", "bfloat16"];
static FLOAT: &[Key] = &[
    Key::new("format", Shape::OneOf(FLOATS), "the type of tensors that are no codes"),
    Key::new("keep_io", FLAG, "inputs and outputs of the model stay float32; default false"),
    Key::new("keep", OPS, "operators that stay float32"),
];
static INPUT: &[Key] = &[
    Key::new("shape", Shape::List(&COUNT), "size of each dimension"),
    Key::new("fix", FLAG, "write the shape into the model too"),
    Key::new("from", Shape::Text, "name of the array that holds this input's samples"),
    Key::new("fill", Shape::Any(&[Shape::OneOf(&["zeros", "ones", "arange"]), Shape::Fraction]), "what the input is where the data lacks it"),
    Key::new("tie", Shape::Text, "state: zeros at the first sample of a file, or what the data holds, then what this output gave at the sample before"),
    Key::new(
        "preprocess",
        Shape::Any(&[Shape::Name(configs::check_preset, "a preset's name, or the path of its file or of a preprocessor_config.json"), Shape::Map(PREPROCESS)]),
        "how an image becomes this input",
    ),
];
const SIDES: Shape = Shape::Any(&[COUNT, Shape::List(&COUNT)]);
const PER_CHANNEL: Shape = Shape::Any(&[Shape::Number(f64::NEG_INFINITY, f64::INFINITY), Shape::List(&Shape::Number(f64::NEG_INFINITY, f64::INFINITY))]);
/// Keys of `inputs.X.preprocess` and of a preset's file.
pub static PREPROCESS: &[Key] = &[
    Key::new("preset", Shape::Name(configs::check_preset, "a preset's name or path"), "what the other keys change"),
    Key::new(
        "resize",
        Shape::OneOf(&["short-side", "stretch", "letterbox"]),
        "short-side: the shorter side becomes size, and the middle is kept; stretch: both do; letterbox: as large as fits, on gray; default stretch",
    ),
    Key::new("size", SIDES, "pixels, or [height, width], after resizing; default: the model's"),
    Key::new("crop", SIDES, "pixels, or [height, width], of the middle that is kept"),
    Key::new("filter", Shape::OneOf(&["nearest", "bilinear", "bicubic"]), "as Pillow computes it; default bilinear"),
    Key::new("pad", Shape::Int(0, 255), "letterbox: gray around the image; default 114"),
    Key::new("position", Shape::OneOf(&["center", "corner"]), "letterbox: where the image lies; default center"),
    Key::new("scale", Shape::Number(0.0, f64::INFINITY), "bytes are divided by it; default 1"),
    Key::new("mean", PER_CHANNEL, "taken off after that, for all channels or each"),
    Key::new("std", PER_CHANNEL, "divides after that"),
    Key::new("channels", Shape::OneOf(&["rgb", "bgr"]), "their order; default rgb"),
    Key::new("layout", Shape::OneOf(&["nchw", "nhwc"]), "default: as the model's shape says"),
];
static DATA: &[Key] = &[
    Key::new("samples", COUNT, "samples that calibrate; default 128"),
    Key::new("validate", Shape::Int(0, i64::MAX), "samples that judge; default: what calibration leaves; 0: the result is not validated"),
    Key::new("shuffle", FLAG, "take samples in random order; default true"),
];
static GATE: &[Key] = &[
    Key::new("sqnr_db", Shape::Number(f64::NEG_INFINITY, f64::INFINITY), "least SQNR of each output, in dB"),
    Key::new("cosine", Shape::Number(-1.0, 1.0), "least cosine similarity of each output"),
    Key::new("agreement", Shape::Number(0.0, 1.0), "least share of samples with the same class"),
    Key::new("coverage", Shape::Number(0.0, 1.0), "least share of multiply-adds on codes of at most 8 bits"),
    Key::new("top1_drop", Shape::Number(0.0, 1.0), "largest loss of accuracy against the labels"),
    Key::new(
        "eval_drop",
        Shape::Number(f64::NEG_INFINITY, f64::INFINITY),
        "largest loss of the number that --eval prints: the float model's less the converted one's",
    ),
];
static OVERRIDE: &[Key] = &[
    Key::new("nodes", Shape::Text, "pattern of node names; * stops at /, ** does not"),
    Key::new("ops", Shape::List(&Shape::Op), "nodes of these operators"),
    Key::new("tensors", Shape::Text, "pattern of tensor names"),
    Key::new("between", Shape::List(&Shape::Text), "[from, to]: nodes on a path between two tensors"),
    Key::new(
        "where",
        Shape::OneOf(&Place::WORDS),
        "products of two operands that flow; with a constant weight; with that as first operand; convolutions with a group a channel; those that no other stands before, or behind",
    ),
    Key::new("optional", FLAG, "matching nothing is no error"),
    Key::new("keep", Shape::OneOf(&["float", "input"]), "leave the nodes alone: in the recipe's float type, or in that of the input file"),
    Key::new("weights", SCHEME_OR_NONE, "scheme of their weights"),
    Key::new("activations", SCHEME_OR_NONE, "scheme of their activations"),
    Key::new("bias", SCHEME_OR_NONE, "scheme of their biases"),
    Key::new("inputs", Shape::Slots(&SCHEME_OR_NONE), "scheme of single inputs, by slot, or of all"),
    Key::new("outputs", Shape::Slots(&SCHEME_OR_NONE), "scheme of single outputs, by slot, or of all"),
];

const OPS: Shape = Shape::List(&Shape::Op);

/// Keys of a target's profile.
pub static PROFILE: &[Key] = &[
    Key::new("doc", Shape::Text, "one line: what it is"),
    Key::new("extends", Shape::Name(configs::check_target, "a target's name or path"), "the profile that this one builds on"),
    Key::new("recipe", Shape::Name(configs::check_recipe, "a recipe's name or path"), "recipe where the user names none"),
    Key::new("source", Shape::Text, "where its facts come from"),
    Key::new("proven", Shape::Text, "the client that ran what was written for it; no: none was at hand"),
    Key::new("opset", COUNT, "highest opset that the target reads"),
    Key::new("ir", COUNT, "highest IR version that it reads"),
    Key::new("static", FLAG, "true: every shape is a number; a symbolic first dimension of an input becomes `batch`, or 1"),
    Key::new("batch", COUNT, "the one size that the first dimension of inputs may have"),
    Key::new("forms", Shape::List(&Shape::OneOf(&Spelling::WORDS)), "spellings of codes that it reads; absent: any; []: it reads float models only"),
    Key::new("weights", SCHEME_OR_NONE, "scheme of weights where nobody asks for another"),
    Key::new("activations", SCHEME_OR_NONE, "scheme of activations where nobody asks for another"),
    Key::new("bias", SCHEME_OR_NONE, "scheme of biases where nobody asks for another"),
    Key::new("wide", SCHEME_OR_NONE, "scheme of activations that 8 bits harm too much; none or absent: float"),
    Key::new("legal", Shape::Map(LEGAL), "what the target holds at each kind of tensor"),
    Key::new("quantize", OPS, "operators that run on codes"),
    Key::new("weights_only", OPS, "operators whose constant weights are codes and whose other operands and results stay float"),
    Key::new("moves", OPS, "operators that hand codes on: output and input share one quantizer"),
    Key::new("cut_tail", FLAG, "true: the step `cut-tail` takes off what a detector makes of its heads, and writes it beside as a float model"),
    Key::new(
        "fused",
        OPS,
        "operators that the step `fuse` makes of what stands spelled out: Gelu, Swish, HardSwish, Mish, LayerNormalization, RMSNormalization",
    ),
    Key::new(
        "spelled",
        OPS,
        "operators that the step `fuse` writes out in others, which have codes: of Attention, Gelu, HardSwish, Mish, RMSNormalization, Swish",
    ),
    Key::new("groups", OPS, "the same operators: within what stands spelled out nothing is quantized"),
    Key::new("join", OPS, "computing operators whose inputs and output share one quantizer"),
    Key::new("never_wide", OPS, "operators whose operands and results the step `widen` leaves as they are"),
    Key::new("float", OPS, "operators that it runs in float, whatever `quantize` and `moves` say"),
    Key::new(
        "others",
        Shape::OneOf(&Fate::WORDS),
        "what becomes of operators that no list names: float; split: another processor runs them; refused. Default float",
    ),
    Key::new("limits", Shape::List(&Shape::Map(LIMIT)), "what of its operators it does not run after all"),
    Key::new("code_constants", OPS, "operators of which every constant operand is codes under one scale: single numbers too, and the table of a Gather"),
    Key::new("normalization", SCHEME_OR_NONE, "scheme of the scale of normalizations, whose offset is then a bias; none or absent: both stay float"),
    Key::new("emulated", OPS, "operators that run in float between codes: quantizers stand around them all the same"),
    Key::new("float_results", OPS, "operators that run on codes though their result stays float"),
    Key::new("float_constants", OPS, "operators whose constant operands stay float"),
    Key::new("own_constants", FLAG, "true: no two pairs of QuantizeLinear and DequantizeLinear share a scale or a zero point"),
    Key::new("shield", OPS, "operators whose float weights the runtime quantizes unasked between codes: a Sum of one operand before them hides them"),
    Key::new("fuse", Shape::List(&Shape::Map(FUSE)), "operators computed together with what follows: no quantizer between"),
    Key::new("fixed", Shape::List(&Shape::Map(FIXED)), "outputs whose range is known without data"),
    Key::new("shifts", Shape::List(&Shape::Map(SHIFT)), "windows for the positions of power-of-two scales around an operator; scale = 2^-position"),
];
static SHIFT: &[Key] = &[
    Key::new("ops", OPS, "operators"),
    Key::new(
        "of",
        Shape::OneOf(&Term::WORDS),
        "what lies in the window: product: operands, added, less the result; bias: operands, added, less the bias; bias-output: the bias less the result; spread: the largest operand less the smallest; least: the smallest operand less the result; input: each operand; output: the result",
    ),
    Key::new("window", Shape::List(&Shape::Int(-1000, 1000)), "[least, most]"),
    Key::new("after", OPS, "only where an operand is made by one of these"),
    Key::new("before", OPS, "only where one of these is computed with it"),
];
static LEGAL: &[Key] = &[
    Key::new("weights", Shape::List(&Shape::Format), "formats of weights; absent: any"),
    Key::new("activations", Shape::List(&Shape::Format), "formats of activations; absent: any"),
    Key::new("taken", Shape::List(&Shape::Format), "more formats of activations that the compiler takes of anyone's file; `convert` keeps none of them"),
    Key::new("bias", Shape::List(&Shape::Format), "formats of biases, none: float; absent: any"),
    Key::new("granularity", Shape::List(&GRANULARITY), "which elements of a weight may share a scale; absent: any"),
    Key::new(
        "scales",
        Shape::List(&Shape::OneOf(&SCALES)),
        "what scales may be: a type, of which float32 also holds powers of two, or codes under scales of their own; absent: any",
    ),
    Key::new("symmetric", Shape::List(&Shape::OneOf(&Slot::WORDS)), "tensors without a zero point, or with one in the middle of an unsigned format"),
    Key::new("pow2", Shape::List(&Shape::OneOf(&Slot::WORDS)), "tensors whose scales are powers of two"),
    Key::new("otherwise", Shape::OneOf(&Fate::WORDS), "what becomes of a node whose codes are not legal; default float"),
];
static LIMIT: &[Key] = &[
    Key::new("ops", OPS, "operators; absent: all"),
    Key::new("where", Shape::OneOf(&Place::WORDS), "only those at this place, as in overrides"),
    Key::new("unless_after", OPS, "not those of which one of these makes an operand"),
    Key::new("attribute", Shape::Text, "an attribute that must be one of `values`, or `at_most` so much, where it is given, or that must be `given`"),
    Key::new("values", Shape::List(&Shape::Text), "words or numbers"),
    Key::new("at_most", Shape::Int(i64::MIN, i64::MAX), "a number"),
    Key::new("given", FLAG, "true: the attribute is written, and not left at its default"),
    Key::new("rank", COUNT, "most dimensions of operands and results"),
    Key::new("constant", Shape::Int(0, 16), "the slot of an input that must be constant"),
    Key::new("unpadded", Shape::Int(0, 16), "the axis before which a Pad must put nothing; `fuse` writes what does as a Concat"),
    Key::new(
        "apart",
        OPS,
        "what must not make an operand, directly or through what moves numbers: Slice where its operand is cut twice, Split …; `fuse` puts a Max of the value with itself between. A Reshape that only adds or takes away axes of one element may stand anywhere",
    ),
    Key::new("across", OPS, "beside `apart`: operators with one operand that flows, which between them do not help"),
    Key::new("alone", FLAG, "beside `apart`, true: only what nobody else reads"),
    Key::new(
        "pieces",
        COUNT,
        "beside `apart`: only where the operator is cheaper on each of the pieces that are joined: a piece but the last has a number of channels that this does not divide, or the operator makes fewer channels than a piece has on average",
    ),
    Key::new("weights", Shape::List(&Shape::Format), "formats that their weights may have"),
    Key::new("activations", Shape::List(&Shape::Format), "formats that their operands and results may have"),
    Key::new("granularity", Shape::List(&GRANULARITY), "which elements of the weight may share a scale; obeyed by `place`"),
    Key::new("zeroless", FLAG, "true: operands have zero point 0; obeyed by `place`"),
    Key::new("unsigned", FLAG, "true: operands are unsigned, or signed, not constant and read by nobody else"),
    Key::new("floor", FLAG, "true: the bounds of Relu and Clip are the ends of all codes of the result, or both lie within; of others, no code is below 0"),
    Key::new("alike", FLAG, "true: operands, constants of `code_constants` among them, and results are codes of one format with one scale each"),
    Key::new("codes", FLAG, "true: it runs on codes; said of nodes that would run in float"),
    Key::new("then", Shape::OneOf(&Fate::WORDS), "what becomes of the nodes of which this does not hold; without a condition, of all"),
    Key::new("emulated", FLAG, "true: quantizers stand around them all the same, as around operators of `emulated`"),
    Key::new("why", Shape::Text, "what the target does about them, in a few words"),
    Key::new("remedy", Shape::Text, "what helps"),
];
static FUSE: &[Key] = &[
    Key::new("producers", OPS, "what computes"),
    Key::new("followers", OPS, "what is computed with it"),
    Key::new("floor", FLAG, "true: only where the lowest code stands for what Relu or Clip cut at, so that they can be dropped"),
    Key::new("exact", FLAG, "true: `floor` to the last bit; a Clip that does not cut at 0 stays"),
    Key::new("last", FLAG, "true: only where nothing but outputs of the model is made of the result"),
];
static FIXED: &[Key] = &[Key::new("ops", OPS, "operators"), Key::new("output", Shape::Map(SCHEME), "the scheme of their output")];

/// The same for any keys.
pub fn describe(keys: &[Key], prefix: &str, rows: &mut Vec<(String, String, String)>) {
    for key in keys {
        let name = format!("{prefix}{}", key.name);
        match key.shape.choices() {
            [shape::Shape::Map(inner)] => describe(inner, &format!("{name}."), rows),
            _ => rows.push((name, key.shape.wants(), key.doc.to_string())),
        }
    }
}
