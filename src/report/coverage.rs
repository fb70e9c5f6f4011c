//! Which share of a written file computes on codes: counted from the file alone, as it was read from disk.
//!
//! Each operand of a multiply-adding op is traced back through data movement to the DequantizeLinear it comes from. An activation counts as codes if,
//! once its fused or data-moving followers are passed, everybody reads it through a QuantizeLinear.

use crate::graph::{Dim, Graph, InputShapes, Model, Node, Op, Type, infer};
use crate::tensor::DType;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Shares of a file's multiply-adds and activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Coverage {
    /// Multiply-adds whose operands are both codes of at most 8 bits.
    pub cov8: f64,
    /// … of at most 16 bits, and at least one of more than 8.
    pub cov16: f64,
    /// Multiply-adds of float activations with weights that are codes.
    pub w_only: f64,
    pub float: f64,
    /// Activation elements stored in at most 8 bits.
    pub act8: f64,
    /// … in 9 to 16 bits.
    pub act16: f64,
    /// Multiply-adds with a batch of 1.
    pub macs: f64,
    /// Nodes that were left out, for a shape that is not known.
    pub unknown: usize,
}

/// How far operands are traced.
const DEPTH: usize = 12;

#[rustfmt::skip]
const PASS: &[Op] = &[
    Op::Transpose, Op::Reshape, Op::Identity, Op::Squeeze, Op::Unsqueeze, Op::Flatten, Op::Slice, Op::Split, Op::Gather, Op::Expand, Op::Relu, Op::Clip,
    Op::MaxPool, Op::Pad, Op::Concat, Op::DepthToSpace, Op::SpaceToDepth, Op::Tile, Op::Cast,
];
/// Operators that give back floats on a grid.
const ROUNDERS: &[Op] = &[Op::ActivationPOTQuantizer, Op::ActivationSymmetricQuantizer, Op::WeightsPOTQuantizer, Op::WeightsSymmetricQuantizer];
const FUSED: &[Op] = &[Op::LeakyRelu, Op::PRelu, Op::BatchNormalization, Op::Dropout, Op::HardSwish];
#[rustfmt::skip]
const SKIP: &[Op] = &[
    Op::QuantizeLinear, Op::DequantizeLinear, Op::MsQuantizeLinear, Op::MsDequantizeLinear, Op::ActivationPOTQuantizer, Op::ActivationSymmetricQuantizer,
    Op::WeightsPOTQuantizer, Op::WeightsSymmetricQuantizer, Op::Constant, Op::Shape, Op::ConstantOfShape, Op::Range, Op::Size,
    Op::NonZero, Op::ArgMax, Op::OneHot, Op::Equal, Op::Less, Op::Greater, Op::Not, Op::And, Op::Or, Op::DynamicQuantizeLinear, Op::Cast, Op::If, Op::Loop, Op::Scan,
];
#[rustfmt::skip]
const WHOLE: &[Op] = &[
    Op::QLinearConv, Op::QLinearMatMul, Op::MsQLinearConv, Op::QLinearAdd, Op::QLinearMul, Op::QLinearSigmoid, Op::QLinearLeakyRelu, Op::QLinearSoftmax,
    Op::QLinearConcat, Op::QLinearAveragePool, Op::QLinearGlobalAveragePool, Op::QLinearWhere,
];

/// Bits of a stored code; `None` for types that hold none.
fn code_type(dtype: DType) -> Option<u32> {
    use DType::*;
    match dtype {
        I8 | U8 | I16 | U16 | I32 | I4 | U4 | I2 | U2 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F4E2M1 | F6E2M3 | F6E3M2 => Some(dtype.bits() as u32),
        _ => None,
    }
}

/// A file's graphs, bodies included, seen as one.
struct File<'a> {
    nodes: Vec<(&'a Graph, &'a Node)>,
    producers: BTreeMap<&'a str, (&'a Graph, &'a Node)>,
    readers: BTreeMap<&'a str, Vec<(&'a Graph, &'a Node)>>,
    shapes: BTreeMap<&'a str, Vec<f64>>,
    types: BTreeMap<&'a str, DType>,
    constants: BTreeSet<&'a str>,
    outputs: BTreeSet<&'a str>,
}

fn name(g: &Graph, v: Option<crate::graph::ValueId>) -> Option<&str> {
    Some(g.value(v?).name.as_str())
}

/// Counts.
pub fn coverage(model: &Model) -> Coverage {
    let file = File::of(model);
    let mut macs: BTreeMap<&str, f64> = BTreeMap::new();
    let mut unknown = 0;
    for (g, n) in &file.nodes {
        let Some(counted) = file.multiply_adds(g, n) else { continue };
        let Some((count, x, w)) = counted else {
            unknown += 1;
            continue;
        };
        let key = match x.max(w) {
            ..=8 => "cov8",
            9..=16 => "cov16",
            _ if w <= 16 => "w_only",
            _ => "float",
        };
        *macs.entry(key).or_default() += count.max(1.0);
    }
    let mut act = [0.0; 3];
    for (g, n) in &file.nodes {
        let Some(t) = name(g, n.output(0)) else { continue };
        if SKIP.contains(&n.op) || PASS.contains(&n.op) || file.constants.contains(t) {
            continue;
        }
        let dtype = file.types.get(t).copied();
        let whole = WHOLE.contains(&n.op) || n.op == Op::QGemm && dtype != Some(DType::F32);
        if !whole && matches!(dtype, Some(DType::I64 | DType::I32 | DType::Bool | DType::Str)) {
            continue;
        }
        let bits = if whole { 8 } else { file.stored(t, 0) };
        act[if bits <= 8 { 0 } else { (bits > 16) as usize + 1 }] += file.shape(t).iter().product::<f64>();
    }
    let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
    let (all, activations) = (macs.values().sum::<f64>(), act.iter().sum::<f64>());
    let of = |key: &str| share(macs.get(key).copied().unwrap_or(0.0), all);
    Coverage {
        cov8: of("cov8"),
        cov16: of("cov16"),
        w_only: of("w_only"),
        float: of("float"),
        act8: share(act[0], activations),
        act16: share(act[1], activations),
        macs: if all > 0.0 { all } else { 1.0 },
        unknown,
    }
}

impl<'a> File<'a> {
    fn of(model: &'a Model) -> File<'a> {
        let g = &model.graph;
        // Every dimension that is not a number counts as 1.
        let fixed: InputShapes = g
            .inputs
            .iter()
            .filter_map(|v| match &g.value(*v).ty {
                Type::Tensor { shape: Some(s), .. } => {
                    Some((g.value(*v).name.clone(), s.iter().map(|d| if let Dim::Known(n) = d { (*n).max(1) } else { 1 }).collect()))
                }
                _ => None,
            })
            .collect();
        let inferred = infer(model, &fixed);
        let mut file = File {
            nodes: vec![],
            producers: BTreeMap::new(),
            readers: BTreeMap::new(),
            shapes: BTreeMap::new(),
            types: BTreeMap::new(),
            constants: BTreeSet::new(),
            outputs: g.outputs.iter().map(|v| g.value(*v).name.as_str()).collect(),
        };
        for (v, value) in g.values() {
            let fact = inferred.get(v);
            if let Some(shape) = &fact.shape {
                file.shapes.insert(&value.name, shape.iter().map(|d| if let Dim::Known(n) = d { *n as f64 } else { 1.0 }).collect());
            }
            file.types.extend(fact.dtype.map(|t| (value.name.as_str(), t)));
        }
        file.add(g);
        let nodes = file.nodes.clone();
        for (g, n) in nodes {
            // What depends on constants and shapes alone is no activation.
            let fixed = !n.inputs().is_empty() && n.inputs().iter().all(|v| name(g, *v).is_none_or(|t| file.constants.contains(t)));
            if fixed || matches!(n.op, Op::Shape | Op::Size | Op::Constant | Op::ConstantOfShape | Op::Range) {
                file.constants.extend(n.outputs().iter().filter_map(|v| name(g, *v)));
            }
        }
        file
    }

    fn add(&mut self, g: &'a Graph) {
        for (_, value) in g.values() {
            let name = value.name.as_str();
            if let Some(c) = &value.constant {
                self.constants.insert(name);
                self.shapes.insert(name, c.tensor.shape().iter().map(|d| *d as f64).collect());
                self.types.insert(name, c.tensor.dtype());
            } else if let Type::Tensor { shape: Some(s), .. } = &value.ty {
                let dim = |d: &Dim| if let Dim::Known(n) = d { (*n).max(1) as f64 } else { 1.0 };
                self.shapes.entry(name).or_insert_with(|| s.iter().map(dim).collect());
            }
            if let Some(t) = value.dtype() {
                self.types.entry(name).or_insert(t);
            }
        }
        for (_, n) in g.nodes() {
            self.nodes.push((g, n));
            for t in n.outputs().iter().filter_map(|v| name(g, *v)) {
                self.producers.insert(t, (g, n));
            }
            for t in n.inputs().iter().filter_map(|v| name(g, *v)) {
                self.readers.entry(t).or_default().push((g, n));
            }
        }
        for (_, n) in g.nodes() {
            n.bodies().for_each(|(_, body)| self.add(body));
        }
    }

    fn shape(&self, t: &str) -> &[f64] {
        match self.shapes.get(t) {
            Some(s) if !s.is_empty() => s,
            _ => &[1.0],
        }
    }

    /// Bits of a tensor of codes; 32 for others.
    fn code_bits(&self, t: &str) -> u32 {
        if let Some(bits) = self.types.get(t).and_then(|t| code_type(*t)) {
            return bits;
        }
        let Some((g, n)) = self.producers.get(t) else { return 32 };
        match n.op {
            Op::QuantizeLinear | Op::MsQuantizeLinear => {
                let zero = name(g, n.input(2)).and_then(|z| self.types.get(z));
                let asked = n.int("output_dtype").filter(|t| *t != 0).and_then(|t| DType::of_onnx(t as i32));
                match (zero, asked) {
                    (Some(t), _) => code_type(*t).unwrap_or(32),
                    (None, Some(t)) => code_type(t).unwrap_or(32),
                    (None, None) => 8,
                }
            }
            op if PASS.contains(&op) => name(g, n.input(0)).map_or(32, |t| self.code_bits(t)),
            Op::QGemm | Op::DynamicQuantizeLinear => 8,
            op if WHOLE.contains(&op) => 8,
            _ => 32,
        }
    }

    /// Bits of a real-valued operand; 32: float.
    fn bits(&self, t: Option<&str>, depth: usize) -> u32 {
        let Some((g, n)) = t.and_then(|t| self.producers.get(t)).filter(|_| depth <= DEPTH) else { return 32 };
        match n.op {
            Op::DequantizeLinear | Op::MsDequantizeLinear => name(g, n.input(0)).map_or(32, |t| self.code_bits(t)),
            op if ROUNDERS.contains(&op) => n.int("num_bits").unwrap_or(32) as u32,
            Op::Concat => n.inputs().iter().map(|v| self.bits(name(g, *v), depth + 1)).max().unwrap_or(32),
            op if PASS.contains(&op) => self.bits(name(g, n.input(0)), depth + 1),
            _ => 32,
        }
    }

    /// Multiply-adds of a node, and the bits of its operands; `None`: it has none; `Some(None)`: they cannot be counted.
    fn multiply_adds(&self, g: &'a Graph, n: &'a Node) -> Option<Option<(f64, u32, u32)>> {
        let input = |slot| name(g, n.input(slot));
        let shape = |slot| input(slot).and_then(|t| self.shapes.get(t));
        let product = |s: &[f64]| s.iter().product::<f64>();
        let size = |slot| shape(slot).map(|s| product(s));
        let y = name(g, n.output(0)).map_or(&[1.0][..], |t| self.shape(t));
        let tail = |s: &[f64]| if s.len() > 2 { product(&s[2..]) } else { 1.0 };
        let bits = |slot| self.bits(input(slot), 0);
        let inner = || shape(0).and_then(|s| s.last().copied()).unwrap_or(1.0);
        let recurrent = || Some((size(1)? + size(2)?) * shape(0).and_then(|s| s.first().copied()).unwrap_or(1.0));
        Some(match n.op {
            Op::Conv => size(1).map(|w| (w * tail(y), bits(0), bits(1))),
            Op::ConvTranspose => size(1).and_then(|w| Some((w * tail(shape(0)?), bits(0), bits(1)))),
            Op::Gemm => size(1).map(|w| (w * y.first().copied().unwrap_or(1.0), bits(0), bits(1))),
            Op::MatMul => Some((product(y) * inner(), bits(0), bits(1))),
            Op::LSTM | Op::GRU | Op::RNN => recurrent().map(|m| (m, bits(0), bits(1).max(bits(2)))),
            Op::QLinearConv | Op::MsQLinearConv => size(3).map(|w| (w * tail(y), 8, 8)),
            Op::ConvInteger => size(1).map(|w| (w * tail(y), 8, 8)),
            Op::QLinearMatMul | Op::MatMulInteger | Op::MatMulIntegerToFloat | Op::DynamicQuantizeMatMul => Some((product(y) * inner(), 8, 8)),
            Op::QGemm => size(3).map(|w| (w * y.first().copied().unwrap_or(1.0), 8, 8)),
            Op::DynamicQuantizeLSTM => recurrent().map(|m| (m, 8, 8)),
            Op::MatMulNBits | Op::MatMulBnb4 => {
                let (k, columns) = (n.int("K"), n.int("N"));
                let rows = if y.len() > 1 { product(&y[..y.len() - 1]) } else { 1.0 };
                k.zip(columns).map(|(k, c)| (k as f64 * c as f64 * rows, 32, n.int("bits").unwrap_or(4) as u32))
            }
            _ => return None,
        })
    }

    /// Bits in which an activation is stored once its fused or data-moving followers are passed.
    fn stored(&self, t: &str, depth: usize) -> u32 {
        let readers = self.readers.get(t).map_or(&[][..], Vec::as_slice);
        if readers.is_empty() || depth > DEPTH {
            return 32;
        }
        let quantizes = |n: &Node| matches!(n.op, Op::QuantizeLinear | Op::MsQuantizeLinear) || ROUNDERS.contains(&n.op);
        let is_output = self.outputs.contains(t);
        if let [(g, n)] = readers
            && (FUSED.contains(&n.op) || PASS.contains(&n.op))
            && !is_output
        {
            return name(g, n.output(0)).map_or(32, |t| self.stored(t, depth + 1));
        }
        if is_output && !readers.iter().any(|(_, n)| quantizes(n)) {
            return 32;
        }
        let bits = |(g, n): &(&'a Graph, &'a Node)| {
            if ROUNDERS.contains(&n.op) {
                self.bits(name(g, n.output(0)), 0)
            } else if quantizes(n) {
                name(g, n.output(0)).map_or(32, |t| self.code_bits(t))
            } else {
                32
            }
        };
        readers.iter().map(bits).max().unwrap_or(32)
    }
}
