//! Every operator's form in a graph beside the engine.

use super::*;
use crate::engine::{Runner, RunnerOptions};
use crate::graph::{Dim, InputShapes, Model, Type};
use crate::learn::Segment;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

fn numbers(shape: &[usize], lo: f32, hi: f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::of_f32(shape, (0..n).map(|i| lo + (hi - lo) * (i as f32 * 0.618_034 + 0.31).fract()).collect())
}

/// A model of one node that reads `x` of this shape and constants, in any order.
fn model(opset: i64, node: Node, x: &[usize], operands: Vec<Option<Tensor>>) -> Model {
    let mut m = Model { opsets: vec![(String::new(), opset)], ir_version: 8, ..Model::default() };
    if !node.domain.is_empty() {
        m.opsets.push((node.domain.to_string(), 1));
    }
    let g = &mut m.graph;
    let input = g.add_value("x");
    g.value_mut(input).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(x.iter().map(|d| Dim::Known(*d)).collect()) };
    g.inputs.push(input);
    let mut inputs: Vec<Option<ValueId>> = std::iter::once(Some(input)).chain(operands.into_iter().map(|t| t.map(|t| g.add_constant("c", t)))).collect();
    if node.op == Op::Where {
        inputs.swap(0, 1);
    }
    let parts = if node.op == Op::Split { 2 } else { 1 };
    let outputs: Vec<ValueId> = (0..parts).map(|_| g.add_value("y")).collect();
    g.outputs = outputs.clone();
    g.add_node(node, &inputs, &outputs.into_iter().map(Some).collect::<Vec<_>>());
    m
}

/// The largest difference between a segment and the engine.
fn difference(m: &Model, x: &Tensor) -> f32 {
    let g = &m.graph;
    let segment = Segment::of(m, &g.inputs, &g.outputs).unwrap();
    let mut tape = Tape::new();
    let v = tape.parameter(x.to_f32().unwrap().into_owned(), x.shape());
    let found = segment.run(&mut tape, &[v], &BTreeMap::new(), &BTreeMap::new()).unwrap();
    let sum: Vec<Var> = found.iter().map(|v| tape.sum(*v)).collect();
    // Some gradient comes back, whatever it is.
    assert!(sum.iter().any(|s| tape.backward(*s).of(v).is_some()), "no gradient");
    let runner = Runner::with(m, &InputShapes::from([("x".to_string(), x.shape().to_vec())]), &g.outputs, RunnerOptions::default()).unwrap();
    let wanted = runner.run(&mut runner.spawn(), &BTreeMap::from([("x".to_string(), x.clone())]), &m.quantizers).unwrap();
    let mut worst = 0.0f32;
    for (v, t) in found.iter().zip(&wanted) {
        assert_eq!(tape.shape(*v), t.shape());
        tape.value(*v).iter().zip(t.to_f32().unwrap().iter()).for_each(|(a, b)| worst = worst.max((a - b).abs()));
    }
    worst
}

fn ints(v: &[i64]) -> Option<Tensor> {
    Some(Tensor::of_i64(&[v.len()], v.to_vec()))
}

fn some(shape: &[usize]) -> Option<Tensor> {
    Some(numbers(shape, 0.3, 1.7))
}

type Case = (i64, Node, Vec<usize>, Vec<Option<Tensor>>);

fn pointwise() -> Vec<Case> {
    let n = |op: Op| Node::new(op, "node");
    let mut cases: Vec<Case> = Vec::new();
    let single = [
        Op::Abs,
        Op::Cos,
        Op::Erf,
        Op::Exp,
        Op::FastGelu,
        Op::HardSwish,
        Op::Log,
        Op::MsGelu,
        Op::Neg,
        Op::Reciprocal,
        Op::Relu,
        Op::Sigmoid,
        Op::Sin,
        Op::Softplus,
        Op::Sqrt,
        Op::Tanh,
        Op::Identity,
        Op::Dropout,
        Op::Elu,
        Op::Celu,
        Op::Selu,
        Op::LeakyRelu,
        Op::HardSigmoid,
        Op::Swish,
        Op::QuickGelu,
    ];
    cases.extend(single.map(|op| (20, n(op), vec![2, 5], vec![])));
    cases.extend([
        (20, n(Op::Gelu), vec![2, 5], vec![]),
        (20, n(Op::Gelu).with("approximate", "tanh"), vec![2, 5], vec![]),
        (13, n(Op::Celu).with("alpha", 0.7f32), vec![2, 5], vec![]),
        (13, n(Op::Elu).with("alpha", 0.7f32), vec![2, 5], vec![]),
        (13, n(Op::LeakyRelu).with("alpha", 0.3f32), vec![2, 5], vec![]),
        (13, n(Op::HardSigmoid).with("alpha", 0.3f32).with("beta", 0.4f32), vec![2, 5], vec![]),
        (13, n(Op::BiasGelu), vec![2, 5], vec![some(&[5])]),
        (13, n(Op::Clip), vec![2, 5], vec![Some(Tensor::scalar(-0.5)), Some(Tensor::scalar(0.5))]),
        (6, n(Op::Clip).with("min", -0.5f32).with("max", 0.5f32), vec![2, 5], vec![]),
        (13, n(Op::Cast).with("to", 1i64), vec![2, 5], vec![]),
        (13, n(Op::PRelu), vec![2, 3, 4], vec![some(&[3, 1])]),
        (13, n(Op::Where), vec![2, 3], vec![Some(Tensor::of(DType::Bool, &[2, 1], vec![1u8, 0])), some(&[3])]),
    ]);
    for op in [Op::Add, Op::Sub, Op::Mul, Op::Div, Op::Pow, Op::Max, Op::Min, Op::Sum, Op::Mean] {
        cases.push((13, n(op), vec![2, 3, 4], vec![some(&[3, 1])]));
    }
    cases.push((13, n(Op::Sum), vec![2, 3], vec![some(&[2, 3]), some(&[2, 3])]));
    cases
}

fn products_and_norms() -> Vec<Case> {
    let n = |op: Op| Node::new(op, "node");
    let mut cases = vec![
        (13, n(Op::MatMul), vec![2, 3, 4], vec![some(&[4, 5])]),
        (13, n(Op::Gemm), vec![3, 4], vec![some(&[4, 5]), some(&[5])]),
        (13, n(Op::Gemm).with("transB", 1i64).with("alpha", 0.5f32).with("beta", 2f32), vec![3, 4], vec![some(&[5, 4]), some(&[3, 1])]),
        (13, n(Op::Gemm).with("transA", 1i64), vec![4, 3], vec![some(&[4, 5])]),
        (13, n(Op::Softmax), vec![2, 3, 4], vec![]),
        (13, n(Op::Softmax).with("axis", 1i64), vec![2, 3, 4], vec![]),
        (11, n(Op::Softmax), vec![2, 3, 4], vec![]),
        (13, n(Op::LogSoftmax), vec![2, 3, 4], vec![]),
        (17, n(Op::LayerNormalization), vec![2, 3, 4], vec![some(&[4]), some(&[4])]),
        (17, n(Op::LayerNormalization).with("axis", 1i64).with("epsilon", 1e-3f32), vec![2, 3, 4], vec![some(&[3, 4])]),
        (13, n(Op::SimplifiedLayerNormalization), vec![2, 3, 4], vec![some(&[4])]),
        (23, n(Op::RMSNormalization), vec![2, 3, 4], vec![some(&[4])]),
        (13, n(Op::InstanceNormalization), vec![2, 3, 2, 4], vec![some(&[3]), some(&[3])]),
        (21, n(Op::GroupNormalization).with("num_groups", 2i64), vec![2, 4, 3, 2], vec![some(&[4]), some(&[4])]),
    ];
    cases.push((13, n(Op::BatchNormalization), vec![2, 3, 4], vec![some(&[3]), some(&[3]), some(&[3]), some(&[3])]));
    cases
}

fn moved() -> Vec<Case> {
    let n = |op: Op| Node::new(op, "node");
    let mut cases = vec![
        (13, n(Op::Reshape), vec![2, 3, 4], vec![ints(&[0, -1])]),
        (13, n(Op::Flatten).with("axis", 2i64), vec![2, 3, 4], vec![]),
        (13, n(Op::Squeeze), vec![2, 1, 4], vec![ints(&[1])]),
        (13, n(Op::Unsqueeze), vec![2, 4], vec![ints(&[0, 2])]),
        (13, n(Op::Transpose).with("perm", vec![1i64, 2, 0]), vec![2, 3, 4], vec![]),
        (13, n(Op::Slice), vec![4, 5], vec![ints(&[3, 1]), ints(&[0, 5]), ints(&[0, 1]), ints(&[-1, 2])]),
        (13, n(Op::Gather).with("axis", 1i64), vec![2, 3], vec![ints(&[2, -3, 2])]),
        (13, n(Op::Expand), vec![2, 1], vec![ints(&[3, 2, 4])]),
        (13, n(Op::Tile), vec![2, 3], vec![ints(&[2, 2])]),
        (13, n(Op::Split).with("axis", 1i64), vec![2, 5], vec![ints(&[2, 3])]),
        (13, n(Op::Pad), vec![2, 3], vec![ints(&[1, 0, 0, 2]), Some(Tensor::scalar(0.7))]),
        (13, n(Op::Pad), vec![2, 3], vec![ints(&[1, 0, 0, 2])]),
        (13, n(Op::Concat).with("axis", 1i64), vec![2, 3], vec![some(&[2, 2])]),
        (13, n(Op::DepthToSpace).with("blocksize", 2i64), vec![1, 8, 2, 3], vec![]),
        (13, n(Op::DepthToSpace).with("blocksize", 2i64).with("mode", "CRD"), vec![1, 8, 2, 3], vec![]),
        (13, n(Op::SpaceToDepth).with("blocksize", 2i64), vec![1, 2, 4, 6], vec![]),
        (13, n(Op::ReduceSum), vec![2, 3, 4], vec![ints(&[0, 2])]),
        (11, n(Op::ReduceMean).with("axes", vec![-1i64]).with("keepdims", 0i64), vec![2, 3, 4], vec![]),
    ];
    for op in [Op::ReduceMax, Op::ReduceMean, Op::ReduceMin, Op::ReduceL1, Op::ReduceL2, Op::ReduceSumSquare, Op::ReduceLogSum, Op::ReduceLogSumExp] {
        cases.push((13, n(op).with("axes", vec![1i64]), vec![2, 3, 4], vec![]));
    }
    cases
}

fn windowed() -> Vec<Case> {
    let n = |op: Op| Node::new(op, "node");
    let pool = |op: Op| n(op).with("kernel_shape", vec![3i64, 2]).with("strides", vec![2i64, 2]);
    let resize = |mode: &str, coordinates: &str| n(Op::Resize).with("mode", mode).with("coordinate_transformation_mode", coordinates);
    let scales = |v: &[f32]| Some(Tensor::of_f32(&[v.len()], v.to_vec()));
    let none = || Some(Tensor::of_f32(&[0], vec![]));
    vec![
        (13, n(Op::Conv).with("pads", vec![1i64, 0, 2, 1]).with("strides", vec![2i64, 1]), vec![1, 3, 6, 5], vec![some(&[4, 3, 3, 2]), some(&[4])]),
        (13, n(Op::Conv).with("group", 2i64).with("dilations", vec![2i64, 1]), vec![2, 4, 6, 5], vec![some(&[6, 2, 3, 2])]),
        (13, n(Op::Conv).with("group", 3i64).with("auto_pad", "SAME_UPPER").with("strides", vec![2i64, 2]), vec![1, 3, 6, 5], vec![some(&[3, 1, 3, 3])]),
        (13, n(Op::Conv).with("auto_pad", "SAME_LOWER").with("strides", vec![2i64, 2]), vec![1, 3, 6, 5], vec![some(&[2, 3, 3, 3])]),
        (13, n(Op::Conv).with("pads", vec![1i64, 2]), vec![1, 3, 7], vec![some(&[2, 3, 3])]),
        (13, n(Op::ConvTranspose).with("strides", vec![2i64, 2]), vec![1, 3, 4, 5], vec![some(&[3, 2, 2, 2]), some(&[2])]),
        (
            13,
            n(Op::ConvTranspose).with("strides", vec![2i64, 3]).with("pads", vec![1i64, 0, 0, 1]).with("output_padding", vec![1i64, 0]),
            vec![1, 3, 4, 5],
            vec![some(&[3, 2, 3, 2])],
        ),
        (13, n(Op::ConvTranspose).with("group", 2i64), vec![1, 4, 4, 3], vec![some(&[4, 3, 2, 2])]),
        (13, pool(Op::MaxPool).with("pads", vec![1i64, 0, 1, 1]), vec![1, 2, 6, 5], vec![]),
        (13, pool(Op::MaxPool).with("ceil_mode", 1i64), vec![1, 2, 6, 5], vec![]),
        (13, pool(Op::AveragePool).with("pads", vec![1i64, 0, 1, 1]), vec![1, 2, 6, 5], vec![]),
        (13, pool(Op::AveragePool).with("pads", vec![1i64, 0, 1, 1]).with("count_include_pad", 1i64), vec![1, 2, 6, 5], vec![]),
        (13, pool(Op::AveragePool).with("ceil_mode", 1i64), vec![1, 2, 6, 5], vec![]),
        (13, pool(Op::AveragePool).with("auto_pad", "SAME_UPPER"), vec![1, 2, 6, 5], vec![]),
        (13, n(Op::GlobalAveragePool), vec![2, 3, 4, 5], vec![]),
        (13, n(Op::GlobalMaxPool), vec![2, 3, 4, 5], vec![]),
        (13, resize("nearest", "asymmetric").with("nearest_mode", "floor"), vec![1, 2, 3, 4], vec![none(), scales(&[1.0, 1.0, 2.0, 2.0])]),
        (13, resize("nearest", "half_pixel").with("nearest_mode", "round_prefer_floor"), vec![1, 2, 3, 4], vec![none(), scales(&[1.0, 1.0, 2.0, 2.0])]),
        (13, resize("linear", "half_pixel"), vec![1, 2, 3, 4], vec![none(), scales(&[1.0, 1.0, 2.0, 2.0])]),
        (13, resize("linear", "align_corners"), vec![1, 2, 3, 4], vec![none(), None, ints(&[1, 2, 5, 7])]),
        (13, resize("linear", "pytorch_half_pixel"), vec![1, 2, 4, 6], vec![none(), None, ints(&[1, 2, 2, 3])]),
        (13, resize("cubic", "half_pixel"), vec![1, 1, 4, 5], vec![none(), None, ints(&[1, 1, 8, 10])]),
        (9, n(Op::Upsample), vec![1, 2, 3, 4], vec![scales(&[1.0, 1.0, 2.0, 2.0])]),
    ]
}

#[test]
fn every_operator_computes_what_the_engine_does() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for (opset, node, shape, operands) in pointwise().into_iter().chain(products_and_norms()).chain(moved()).chain(windowed()) {
        let what = format!("{:?} {:?} {shape:?}", node.op, node.attrs.iter().map(|a| (&a.name, &a.value)).collect::<Vec<_>>());
        seen.insert(node.op);
        let positive = matches!(node.op, Op::Log | Op::Sqrt | Op::Reciprocal | Op::Pow | Op::ReduceLogSum);
        let x = numbers(&shape, if positive { 0.5 } else { -2.0 }, 2.0);
        let m = model(opset, node, &shape, operands);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| difference(&m, &x)));
        if !found.as_ref().is_ok_and(|d| *d < 2e-5) {
            wrong.push(format!("{what}: {:?}", found.ok()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let untested: Vec<&Op> = KNOWN.iter().filter(|op| !seen.contains(op)).collect();
    assert!(untested.is_empty(), "{untested:?}");
}
