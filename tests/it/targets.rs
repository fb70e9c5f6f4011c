//! What targets' profiles say of a file's form, as compilers were found to want it.

use crate::retarget::written;
use requant::check::Verdict;
use requant::graph::{Dim, Model, Node, Op, Type};
use requant::onnx::{self, ReadOptions, WriteOptions};
use requant::recipe::check;
use requant::tensor::{DType, Tensor};
use std::path::Path;

/// x → conv → swish (HardSwish) → rows (times a number a column) → first (MatMul, its weight in front) → up (ConvTranspose) → log → y
fn odd() -> Model {
    let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 14)], ..Model::default() };
    let g = &mut m.graph;
    let v = ["x", "c", "s", "r", "f", "u", "y"].map(|n| g.add_value(n));
    for v in [v[0], v[6]] {
        g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, 4, 6, 6].map(Dim::Known).to_vec()) };
    }
    (g.inputs, g.outputs) = (vec![v[0]], vec![v[6]]);
    let mut numbers = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        Some(g.add_constant(name, Tensor::of_f32(shape, (0..n).map(|i| (1 + i * 7919 % 97) as f32 / 60.0).collect())))
    };
    let [w, c, a, t] = [("w", &[4, 4, 1, 1][..]), ("c", &[1, 1, 1, 6]), ("a", &[6, 6]), ("t", &[4, 4, 1, 1])].map(|(name, shape)| numbers(name, shape));
    g.add_node(Node::new(Op::Conv, "conv"), &[Some(v[0]), w], &[Some(v[1])]);
    g.add_node(Node::new(Op::HardSwish, "swish"), &[Some(v[1])], &[Some(v[2])]);
    g.add_node(Node::new(Op::Mul, "rows"), &[Some(v[2]), c], &[Some(v[3])]);
    g.add_node(Node::new(Op::MatMul, "first"), &[a, Some(v[3])], &[Some(v[4])]);
    g.add_node(Node::new(Op::ConvTranspose, "up"), &[Some(v[4]), t], &[Some(v[5])]);
    g.add_node(Node::new(Op::Log, "log"), &[Some(v[5])], &[Some(v[6])]);
    m
}

/// What compilers made of models that others had shipped: layers in float16 behind which a function stood without a quantizer, scales along axes that are not read.
#[test]
fn quantizers_stand_and_scales_lie_where_compilers_were_found_to_want_them() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("odd.onnx");
    onnx::write(&odd(), &from, &WriteOptions::default()).unwrap();
    let written = |target: &str| {
        let to = dir.path().join(format!("{target}.onnx"));
        written(&from, &to, target, Some("int8-fast"), &[], Some(Path::new("random:4"))).unwrap_or_else(|e| panic!("{target}: {e}"));
        onnx::read(&to, &ReadOptions::default()).unwrap()
    };
    let node = |m: &Model, name: &str| m.graph.nodes().find(|(_, n)| n.name == name).unwrap_or_else(|| panic!("no {name}")).1.clone();
    // Who reads the layer; how many scales the constant at a slot has, 0: it is float.
    let reader = |m: &Model| m.graph.node(m.graph.value(node(m, "conv").output(0).unwrap()).uses()[0].node).op;
    let scales = |m: &Model, name: &str, slot: usize| {
        let v = node(m, name).input(slot).unwrap();
        if m.graph.constant(v).is_some() {
            return 0;
        }
        let dequantize = m.graph.node(m.graph.value(v).producer().unwrap().0);
        m.graph.constant(dequantize.input(1).unwrap()).unwrap().tensor.len()
    };
    let [generic, ort, rknn, sophgo] = ["generic", "ort", "rknn", "sophgo"].map(written);
    assert_eq!([&generic, &rknn, &sophgo].map(reader), [Op::HardSwish, Op::QuantizeLinear, Op::QuantizeLinear]);
    assert_eq!([&generic, &ort].map(|m| scales(m, "first", 0)), [6, 1]);
    assert_eq!([&generic, &sophgo].map(|m| scales(m, "rows", 1)), [6, 1]);
    assert_eq!([&generic, &sophgo].map(|m| scales(m, "up", 1)), [4, 0]);
    let log = |target: &str| check(&from, target, None).unwrap().nodes.iter().find(|r| r.node == "log").unwrap().verdict;
    assert_eq!([log("qnn"), log("qnn-16"), log("qnn-lpbq4")], [Verdict::Float; 3]);
    // A file of others that has a scale a row at the first operand.
    let verdicts = check(&dir.path().join("generic.onnx"), "ort", None).unwrap().nodes;
    assert!(verdicts.iter().any(|r| r.node == "first" && r.verdict == Verdict::Float && r.rule == "limits"), "{verdicts:?}");
}
