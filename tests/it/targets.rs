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

/// x[1,6,8] → query (MatMul) and key (Transpose) → scores → soft → mixed (MatMul) → split in two → the first reshaped to heads, the second a Gelu by Erf; and
/// joined: Concat of convolutions of 3 channels → narrow (Conv)
fn apart() -> Model {
    let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() };
    let g = &mut m.graph;
    let float = |shape: &[usize]| Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().copied().map(Dim::Known).collect()) };
    let numbers = |g: &mut requant::graph::Graph, name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        Some(g.add_constant(name, Tensor::of_f32(shape, (0..n).map(|i| ((i * 7919 % 97) as f32 - 48.0) / 60.0).collect())))
    };
    let names = ["x", "q", "k", "s", "p", "o", "a", "b", "heads", "d", "e", "f", "h", "gelu", "i", "c1", "c2", "j", "n"];
    let [x, q, k, s, p, o, a, b, heads, d, e, f, h, gelu, i, c1, c2, j, n] = names.map(|name| Some(g.add_value(name)));
    for (v, shape) in [(x, &[1, 6, 8][..]), (heads, &[1, 6, 2, 2]), (gelu, &[1, 6, 4]), (i, &[1, 3, 6, 6]), (n, &[1, 2, 6, 6])] {
        g.value_mut(v.unwrap()).ty = float(shape);
    }
    (g.inputs, g.outputs) = (vec![x.unwrap(), i.unwrap()], vec![heads.unwrap(), gelu.unwrap(), n.unwrap()]);
    let w = numbers(g, "w", &[8, 8]);
    let [halves, shape] =
        [("halves", vec![4, 4]), ("shape", vec![1, 6, 2, 2])].map(|(name, list)| Some(g.add_constant(name, Tensor::of_i64(&[list.len()], list))));
    let [root, one, half] = [("root", 2f32.sqrt()), ("one", 1.0), ("half", 0.5)].map(|(name, x)| Some(g.add_constant(name, Tensor::scalar(x))));
    let [w1, w2, w3] = [("w1", [3, 3, 1, 1]), ("w2", [3, 3, 1, 1]), ("w3", [2, 6, 1, 1])].map(|(name, shape)| numbers(g, name, &shape));
    let mut node = |op: Op, name: &str, inputs: &[Option<requant::graph::ValueId>], outputs: &[Option<requant::graph::ValueId>]| {
        g.add_node(Node::new(op, name), inputs, outputs)
    };
    node(Op::MatMul, "query", &[x, w], &[q]);
    let turn = node(Op::Transpose, "key", &[x], &[k]);
    node(Op::MatMul, "scores", &[q, k], &[s]);
    node(Op::Softmax, "soft", &[s], &[p]);
    node(Op::MatMul, "mixed", &[p, x], &[o]);
    let cut = node(Op::Split, "split", &[o, halves], &[a, b]);
    node(Op::Reshape, "to-heads", &[a, shape], &[heads]);
    node(Op::Div, "div", &[b, root], &[d]);
    node(Op::Erf, "erf", &[d], &[e]);
    node(Op::Add, "add", &[e, one], &[f]);
    node(Op::Mul, "gate", &[b, f], &[h]);
    node(Op::Mul, "halve", &[h, half], &[gelu]);
    node(Op::Conv, "left", &[i, w1], &[c1]);
    node(Op::Conv, "right", &[i, w2], &[c2]);
    let join = node(Op::Concat, "join", &[c1, c2], &[j]);
    node(Op::Conv, "narrow", &[j, w3], &[n]);
    for (id, key, value) in [(cut, "axis", 2), (join, "axis", 1)] {
        g.node_mut(id).set_attr(key, value);
    }
    g.node_mut(turn).set_attr("perm", vec![0i64, 2, 1]);
    m
}

/// What rknn-toolkit2, tpu-mlir and OpenVINO refused or ran in float of models that others had shipped: named in anyone's file, and not in one that is written
/// for them.
#[test]
fn what_a_compiler_takes_together_and_cannot_run_stands_apart() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("apart.onnx");
    onnx::write(&apart(), &from, &WriteOptions::default()).unwrap();
    let to = |target: &str| dir.path().join(format!("{target}.onnx"));
    let write = |target: &str| {
        written(&from, &to(target), target, Some("int8-fast"), &[], Some(Path::new("random:4"))).unwrap_or_else(|e| panic!("{target}: {e}"));
        onnx::read(&to(target), &ReadOptions::default()).unwrap()
    };
    let fallen = |file: &str, target: &str, verdict: Verdict| {
        let rows = check(&to(file), target, None).unwrap().nodes;
        rows.into_iter().filter(|r| r.verdict == verdict && r.rule == "limits").map(|r| r.node).collect::<Vec<_>>()
    };
    let [_, rknn, sophgo, openvino] = ["generic", "rknn", "sophgo", "openvino"].map(write);

    assert_eq!(fallen("generic", "rknn", Verdict::Refused), ["mixed", "to-heads"]);
    assert_eq!(fallen("generic", "rknn", Verdict::Float), ["narrow"]);
    let parted: Vec<&str> = rknn.graph.nodes().filter(|(_, n)| n.op == Op::Max).map(|(_, n)| n.name.as_str()).collect();
    assert_eq!(parted, ["p_apart", "a_apart", "j_apart"]);
    let own = check(&to("rknn"), "rknn", None).unwrap();
    assert_eq!((own.refused, own.float), (0, 0), "{:?}", own.nodes);

    let reads = |m: &Model, name: &str| {
        m.graph.node(m.graph.value(m.graph.nodes().find(|(_, n)| n.name == name).unwrap().1.input(0).unwrap()).producer().unwrap().0).op
    };
    assert_eq!(reads(&sophgo, "erf"), Op::Div, "no quantizer stands within a Gelu");
    assert_eq!(fallen("sophgo", "sophgo", Verdict::Refused), [] as [&str; 0]);
    let whole = check(&to("sophgo"), "sophgo", None).unwrap().nodes;
    assert!(whole.iter().any(|r| r.node == "erf" && r.verdict == Verdict::Integer), "{whole:?}");

    // Of OpenVINO's file no constant is read by two quantizers.
    let g = &openvino.graph;
    let makers = g.nodes().filter(|(_, n)| n.op == Op::QuantizeLinear).map(|(_, n)| n.input(2).unwrap());
    let shared = |v: &requant::graph::ValueId| g.value(*v).uses().iter().filter(|p| g.node(p.node).op == Op::QuantizeLinear).count() > 1;
    assert_eq!(makers.filter(shared).count(), 0);
}
