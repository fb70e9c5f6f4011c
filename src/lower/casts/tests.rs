//! Where Casts stand, and what keeps its type.

use super::*;
use crate::graph::{Dim, Type};

const HUGE: f32 = -3.4e38;

fn typed(g: &mut Graph, name: &str, dtype: DType) -> ValueId {
    let v = g.add_value(name);
    g.value_mut(v).ty = Type::Tensor { dtype: Some(dtype), shape: Some(vec![Dim::Known(2), Dim::Known(2)]) };
    v
}

/// Nodes (op, name, inputs, output) in a chain by names; `x` goes in, the last output goes out. Names without a maker are float32 constants.
fn model(nodes: &[(Op, &str, &[&str], &str)], constants: &[(&str, f32)]) -> Model {
    let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() };
    let g = &mut m.graph;
    let x = typed(g, "x", DType::F32);
    for (name, value) in constants {
        g.add_constant(name, Tensor::of_f32(&[], vec![*value]));
    }
    g.inputs = vec![x];
    for (op, name, inputs, output) in nodes {
        let inputs: Vec<_> = inputs.iter().map(|n| g.find_value(n)).collect();
        let y = typed(g, output, DType::F32);
        g.add_node(Node::new(*op, *name), &inputs, &[Some(y)]);
    }
    g.outputs = vec![g.find_value(nodes.last().unwrap().3).unwrap()];
    m
}

fn how<'a>(keep_io: bool, ops: &'a [Op], seen: &'a BTreeMap<String, Extremes>) -> Casts<'a> {
    static NONE: BTreeSet<NodeId> = BTreeSet::new();
    Casts { dtype: DType::F16, keep_io, ops, nodes: &NONE, seen }
}

fn narrowed(m: &mut Model, keep_io: bool, ops: &[Op], seen: &[(&str, f32)]) -> String {
    let seen = seen.iter().map(|(n, x)| (n.to_string(), Extremes { lo: 0.0, hi: *x })).collect();
    let notes = half_floats(m, &how(keep_io, ops, &seen)).unwrap();
    notes.list().iter().map(|n| format!("{n}\n")).collect()
}

/// Every node as `op:type of its result`.
fn shown(g: &Graph) -> Vec<String> {
    g.nodes().map(|(_, n)| format!("{}:{}", n.op_type, g.value(n.output(0).unwrap()).dtype().map_or("?", |t| t.name()))).collect()
}

fn dtype(m: &Model, name: &str) -> DType {
    let v = m.graph.find_value(name).unwrap();
    m.graph.constant(v).map_or_else(|| m.graph.value(v).dtype().unwrap(), |c| c.tensor.dtype())
}

#[test]
fn casts_stand_at_the_ends_alone_and_constants_are_cast_once() {
    let mut m = model(&[(Op::Mul, "a", &["x", "k"], "h"), (Op::Relu, "b", &["h"], "y")], &[("k", 0.1)]);
    narrowed(&mut m, true, &[], &[]);
    assert_eq!(shown(&m.graph), ["Cast:float16", "Mul:float16", "Relu:float16", "Cast:float32"]);
    assert_eq!((dtype(&m, "k"), dtype(&m, "x"), dtype(&m, "y")), (DType::F16, DType::F32, DType::F32));
    let mut m = model(&[(Op::Mul, "a", &["x", "k"], "h"), (Op::Relu, "b", &["h"], "y")], &[("k", 0.1)]);
    narrowed(&mut m, false, &[], &[]);
    assert_eq!(shown(&m.graph), ["Mul:float16", "Relu:float16"]);
    assert_eq!((dtype(&m, "x"), dtype(&m, "y")), (DType::F16, DType::F16));
}

#[test]
fn a_node_in_float32_reads_one_cast_and_what_hands_on_between_two_needs_none() {
    let nodes: &[(Op, &str, &[&str], &str)] = &[
        (Op::Relu, "r", &["x"], "h"),
        (Op::Erf, "e", &["h"], "a"),
        (Op::Identity, "i", &["a"], "b"),
        (Op::Erf, "f", &["b"], "c"),
        (Op::Erf, "g", &["h"], "d"),
        (Op::Add, "s", &["c", "d"], "y"),
    ];
    let mut m = model(nodes, &[]);
    narrowed(&mut m, false, &[Op::Erf], &[]);
    // One Cast of h for both that read it, one for each operand of the Add.
    assert_eq!(
        shown(&m.graph),
        ["Relu:float16", "Cast:float32", "Erf:float32", "Identity:float32", "Erf:float32", "Cast:float16", "Erf:float32", "Cast:float16", "Add:float16"]
    );
    // An output that is read as float32 too shares the Cast.
    let mut m = model(&nodes[..2], &[]);
    m.graph.outputs.insert(0, m.graph.find_value("h").unwrap());
    narrowed(&mut m, true, &[Op::Erf], &[]);
    assert_eq!(shown(&m.graph), ["Cast:float16", "Relu:float16", "Cast:float32", "Erf:float32"]);
    assert_eq!(m.graph.value(m.graph.outputs[0]).name, "h");
}

#[test]
fn what_leaves_the_range_stays_float32_with_whoever_reads_it() {
    let nodes: &[(Op, &str, &[&str], &str)] =
        &[(Op::Relu, "r", &["x"], "h"), (Op::Exp, "e", &["h"], "a"), (Op::Sqrt, "q", &["a"], "b"), (Op::Neg, "n", &["b"], "y")];
    let mut m = model(nodes, &[]);
    let said = narrowed(&mut m, false, &[], &[("a", 7e4)]);
    assert_eq!(shown(&m.graph), ["Relu:float16", "Cast:float32", "Exp:float32", "Sqrt:float32", "Cast:float16", "Neg:float16"]);
    assert!(said.contains("e: declined: stays float32: a reached 7.000e4 on the samples, and float16 ends at 65504"), "{said}");
    let mut m = model(nodes, &[]);
    let said = narrowed(&mut m, false, &[], &[("a", 2e-6)]);
    assert!(said.contains("q: declined: stays float32: a stayed below 2.000e-6"), "{said}");
    // The sum inside a mean.
    let mut m = model(&[(Op::ReduceMean, "mean", &["x"], "y")], &[]);
    m.graph.value_mut(m.graph.outputs[0]).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(1)]) };
    let said = narrowed(&mut m, true, &[], &[("y", 3e4)]);
    assert!(said.contains("inside it sums reach 1.200e5"), "{said}");
    assert_eq!(shown(&m.graph), ["ReduceMean:float32"]);
}

#[test]
fn constants_saturate_where_they_are_bounds_and_keep_their_readers_wide_where_they_are_not() {
    let mut m = model(&[(Op::Add, "mask", &["x", "k"], "h"), (Op::Softmax, "s", &["h"], "y")], &[("k", HUGE)]);
    let said = narrowed(&mut m, false, &[], &[]);
    assert_eq!(shown(&m.graph), ["Add:float16", "Softmax:float16"]);
    assert!(said.contains("k: 1 numbers of this constant, to -3.4e38, lie beyond float16 and become -6.5504e4"), "{said}");
    let mut m = model(&[(Op::Mul, "scale", &["x", "k"], "h"), (Op::Relu, "r", &["h"], "y")], &[("k", 1e6)]);
    let said = narrowed(&mut m, false, &[], &[]);
    assert!(said.contains("scale: declined: stays float32: k holds 1e6"), "{said}");
    // An epsilon is lost with the root that needs it.
    let nodes: &[(Op, &str, &[&str], &str)] =
        &[(Op::Relu, "r", &["x"], "v"), (Op::Add, "a", &["v", "e"], "b"), (Op::Sqrt, "q", &["b"], "c"), (Op::Relu, "t", &["c"], "y")];
    let mut m = model(nodes, &[("e", 1e-12)]);
    let said = narrowed(&mut m, false, &[], &[]);
    assert_eq!(shown(&m.graph), ["Relu:float16", "Cast:float32", "Add:float32", "Sqrt:float32", "Cast:float16", "Relu:float16"]);
    assert!(said.contains("e holds 1e-12, which is 0 in float16"), "{said}");
}

#[test]
fn operators_without_the_type_and_scales_of_a_resize_stay() {
    let mut m = model(&[(Op::Celu, "c", &["x"], "h"), (Op::Relu, "r", &["h"], "y")], &[]);
    let said = narrowed(&mut m, true, &[], &[]);
    assert_eq!(shown(&m.graph), ["Celu:float32", "Cast:float16", "Relu:float16", "Cast:float32"]);
    assert!(said.contains("c: declined: stays float32: Celu is not defined on float16 before opset 28"), "{said}");
    let mut m = model(&[(Op::Resize, "z", &["x", "none", "s"], "y")], &[("s", 2.0)]);
    narrowed(&mut m, false, &[], &[]);
    assert_eq!((shown(&m.graph), dtype(&m, "s")), (vec!["Resize:float16".to_string()], DType::F32));
}

#[test]
fn bodies_follow_the_node_that_has_them() {
    let branch = |name: &str, op: Op| {
        let mut g = Graph::default();
        let (h, k, y) = (g.add_value("h"), g.add_constant("k", Tensor::scalar(0.5)), g.add_value(name));
        g.add_node(Node::new(op, format!("in_{name}")), &[Some(h), Some(k)], &[Some(y)]);
        g.outputs = vec![y];
        g
    };
    let build = || {
        let mut m = model(&[(Op::Relu, "r", &["x"], "h")], &[]);
        let g = &mut m.graph;
        let (c, y) = (typed(g, "c", DType::Bool), typed(g, "y", DType::F32));
        g.inputs.push(c);
        let node = Node::new(Op::If, "if").with("then_branch", branch("t", Op::Mul)).with("else_branch", branch("e", Op::Add));
        let id = g.add_node(node, &[Some(c)], &[Some(y)]);
        g.refresh_captures(id);
        g.outputs = vec![y];
        m
    };
    let ops = |m: &Model| -> Vec<Vec<Op>> {
        let node = m.graph.nodes().find(|(_, n)| n.op == Op::If).unwrap().1;
        node.bodies().map(|(_, b)| b.nodes().map(|(_, n)| n.op).collect()).collect()
    };
    let mut m = build();
    narrowed(&mut m, false, &[], &[]);
    assert_eq!(ops(&m), [vec![Op::Mul], vec![Op::Add]]);
    assert_eq!(shown(&m.graph), ["Relu:float16", "If:float16"]);
    let mut m = build();
    narrowed(&mut m, false, &[Op::If], &[]);
    assert_eq!(ops(&m), [vec![Op::Cast, Op::Mul], vec![Op::Cast, Op::Add]]);
    assert_eq!(shown(&m.graph), ["Relu:float16", "If:float32", "Cast:float16"]);
    let mut m = build();
    narrowed(&mut m, false, &[Op::Mul], &[]);
    assert_eq!(ops(&m), [vec![Op::Cast, Op::Mul, Op::Cast], vec![Op::Add]]);
}

#[test]
fn nodes_between_codes_stay_and_their_scales_are_not_touched() {
    let mut m = model(&[(Op::Relu, "r", &["x"], "h")], &[("s", 0.1), ("t", 0.25)]);
    let g = &mut m.graph;
    let zero = g.add_constant("zero", Tensor::of(DType::U8, &[], vec![3u8]));
    let [s, t, h] = ["s", "t", "h"].map(|n| g.find_value(n));
    let [q, p] = ["q", "p"].map(|n| typed(g, n, DType::U8));
    let [d, e, y, z] = ["d", "e", "y", "z"].map(|n| typed(g, n, DType::F32));
    g.add_node(Node::new(Op::QuantizeLinear, "Q"), &[h, s, Some(zero)], &[Some(q)]);
    g.add_node(Node::new(Op::DequantizeLinear, "D"), &[Some(q), s, Some(zero)], &[Some(d)]);
    g.add_node(Node::new(Op::Sigmoid, "S"), &[Some(d)], &[Some(e)]);
    g.add_node(Node::new(Op::QuantizeLinear, "P"), &[Some(e), t, Some(zero)], &[Some(p)]);
    g.add_node(Node::new(Op::DequantizeLinear, "E"), &[Some(p), t, Some(zero)], &[Some(y)]);
    g.add_node(Node::new(Op::Neg, "N"), &[Some(y)], &[Some(z)]);
    g.outputs = vec![z];
    let before = m.clone();
    narrowed(&mut m, false, &[], &[]);
    let want = [
        "Relu:float16",
        "Cast:float32",
        "QuantizeLinear:uint8",
        "DequantizeLinear:float32",
        "Sigmoid:float32",
        "QuantizeLinear:uint8",
        "DequantizeLinear:float32",
        "Cast:float16",
        "Neg:float16",
    ];
    assert_eq!(shown(&m.graph), want);
    assert_eq!(dtype(&m, "s"), DType::F32);
    // From opset 19 on a scale may be float16, and one that loses nothing so is: the result then needs no Cast.
    let mut m = before;
    m.set_opset("", 19);
    narrowed(&mut m, false, &[], &[]);
    assert_eq!(shown(&m.graph)[6..], ["DequantizeLinear:float16", "Neg:float16"]);
}
