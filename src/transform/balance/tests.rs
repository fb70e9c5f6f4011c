//! Channels far apart, with bounds and residual sums between the layers: the result stays, and rounding costs less.

use super::super::testing::{result, rounded, sqnr};
use super::*;
use crate::data::{DataSettings, InputInfo};
use crate::graph::{Dim, Node, Type};

const GRID: Grid = Grid { weights: 127.0, by_channel: false, signed: 127.0, positive: 127.0, pow2: true };
const HOW: Balance = Balance { grid: GRID, sweeps: 8, samples: 8, bounded: true, threads: 1 };

fn value(g: &mut Graph, name: &str, channels: usize) -> ValueId {
    let v = g.add_value(name);
    g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, channels, 6, 6].map(Dim::Known).to_vec()) };
    v
}

fn noise(n: usize, k: usize) -> Vec<f32> {
    (0..n).map(|i| (((i * 7 + k * 131) as f32 * 0.618_034).fract() - 0.5) * 2.0).collect()
}

/// A Conv whose output channel `c` is `size(c)` times as large, and whose weights undo what `of` says of its input channels.
fn conv(
    g: &mut Graph,
    name: &str,
    x: ValueId,
    (outs, ins, kernel, groups): (usize, usize, usize, usize),
    size: impl Fn(usize) -> f32,
    of: impl Fn(usize) -> f32,
) -> ValueId {
    let per = ins / groups;
    let n = outs * per * kernel * kernel;
    let channel =
        |i: usize| (i / (per * kernel * kernel), i / (kernel * kernel) % per + if groups > 1 { i / (per * kernel * kernel) / (outs / groups) } else { 0 });
    let fan = ((per * kernel * kernel) as f32).sqrt();
    let w = noise(n, name.len()).into_iter().enumerate().map(|(i, w)| w / fan * size(channel(i).0) / of(channel(i).1)).collect();
    let w = g.add_constant(&format!("{name}_w"), Tensor::of_f32(&[outs, per, kernel, kernel], w));
    let b = g.add_constant(&format!("{name}_b"), Tensor::of_f32(&[outs], noise(outs, 3).into_iter().enumerate().map(|(c, b)| b * size(c)).collect()));
    let y = value(g, name, outs);
    let pad = (kernel / 2) as i64;
    let node = Node::new(Op::Conv, name).with("group", groups as i64).with("pads", vec![pad; 4]);
    g.add_node(node, &[Some(x), Some(w), Some(b)], &[Some(y)]);
    y
}

fn cut(g: &mut Graph, name: &str, x: ValueId, channels: usize) -> ValueId {
    let y = value(g, name, channels);
    let (low, high) =
        (g.add_constant(&format!("{name}_low"), Tensor::of_f32(&[], vec![0.0])), g.add_constant(&format!("{name}_high"), Tensor::of_f32(&[], vec![6.0])));
    g.add_node(Node::new(Op::Clip, name), &[Some(x), Some(low), Some(high)], &[Some(y)]);
    y
}

/// x → a → Clip → depthwise d → Clip → p ─┬→ a2 → Clip → p2 → Add → y layer; the first residual branch is p. Some channels are cut at their bound.
fn inverted_residual() -> Model {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut m.graph;
    let spread = |c: usize| [0.02, 1.0, 8.0, 0.3, 0.05, 2.0, 0.5, 0.1][c % 8];
    let narrow = |c: usize| [0.1, 1.0, 0.4, 3.0][c % 4];
    let one = |_: usize| 1.0;
    let x = value(g, "x", 3);
    g.inputs.push(x);
    let a = conv(g, "a", x, (8, 3, 1, 1), spread, one);
    let a = cut(g, "a_cut", a, 8);
    let d = conv(g, "dw", a, (8, 8, 3, 8), spread, spread);
    let d = cut(g, "d_cut", d, 8);
    let p = conv(g, "pro", d, (4, 8, 1, 1), narrow, spread);
    let e = conv(g, "expa", p, (8, 4, 1, 1), spread, narrow);
    let e = cut(g, "e_cut", e, 8);
    let q = conv(g, "secon", e, (4, 8, 3, 1), narrow, spread);
    let s = value(g, "sum", 4);
    g.add_node(Node::new(Op::Add, "add"), &[Some(p), Some(q)], &[Some(s)]);
    let y = conv(g, "output", s, (2, 4, 1, 1), one, narrow);
    g.outputs.push(y);
    m
}

fn data() -> Dataset {
    let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, 3, 6, 6].map(Dim::Known).to_vec()) };
    Dataset::open("random:8", &[info], &DataSettings::default()).unwrap()
}

fn results(m: &Model) -> Vec<f32> {
    let data = data();
    (0..8).flat_map(|i| result(m, &data.sample(i).unwrap()["x"])).collect()
}

/// The step that is a power of two.
fn pow2(largest: f32) -> f32 {
    2f32.powf((largest / 127.0).log2().ceil())
}

#[test]
fn the_result_stays_and_rounding_costs_less() {
    let before = inverted_residual();
    let mut after = before.clone();
    let samples: Vec<usize> = (0..8).collect();
    let notes = balance(&mut after, &HOW, Some((&data(), &samples))).unwrap();
    assert!(notes.list().iter().any(|n| n.text.contains("6 layers scaled in 4 groups") || n.text.contains("5 layers scaled in 4 groups")), "{notes:?}");
    let (a, b) = (results(&before), results(&after));
    assert!(sqnr(&a, &b) > 90.0, "{}", sqnr(&a, &b));
    let (plain, balanced) = (sqnr(&a, &results(&rounded(&before, pow2))), sqnr(&a, &results(&rounded(&after, pow2))));
    assert!(balanced > plain + 6.0, "{plain} {balanced}");
    // What the channels hold now has other names.
    assert!(after.graph.find_value("a_cut").is_none() && after.graph.find_value("a_cut_balanced").is_some() && after.graph.find_value("x").is_some());
}

#[test]
fn what_a_bound_cuts_may_be_left_alone() {
    let before = inverted_residual();
    let mut after = before.clone();
    let samples: Vec<usize> = (0..8).collect();
    let notes = balance(&mut after, &Balance { bounded: false, ..HOW }, Some((&data(), &samples))).unwrap();
    assert!(notes.list().iter().any(|n| n.text.contains("2 layers scaled in 1 groups")), "{notes:?}");
    let bounds = |m: &Model| m.graph.nodes().filter_map(|(_, n)| groups::bound(&m.graph, n)).collect::<Vec<_>>();
    assert_eq!(bounds(&before), bounds(&after));
    assert!(after.graph.find_value("a_cut").is_some() && after.graph.find_value("sum").is_none());
}

#[test]
fn a_channel_that_is_cut_moves_with_the_bound_alone() {
    let mut m = inverted_residual();
    let g = &m.graph;
    let inferred = graph::infer(&m, &InputShapes::new());
    let (layers, found) = groups(g, &inferred, true);
    assert_eq!((layers.len(), found.len()), (6, 4));
    assert_eq!(found.iter().map(|g| g.cuts.len()).sum::<usize>(), 3);
    // The residual sum joins what two layers make and two read.
    assert!(found.iter().any(|g| g.writers.len() == 2 && g.readers.len() == 2 && g.channels == 4));
    let before = results(&m);
    let samples: Vec<usize> = (0..8).collect();
    balance(&mut m, &HOW, Some((&data(), &samples))).unwrap();
    let bounds: Vec<f64> = m.graph.nodes().filter_map(|(_, n)| groups::bound(&m.graph, n)).collect();
    assert_eq!(bounds.len(), 3);
    assert!(bounds.iter().all(|b| *b > 0.0 && b.is_finite()) && sqnr(&before, &results(&m)) > 90.0, "{bounds:?}");
    let idle = m.graph.values().find(|(v, value)| value.constant.is_some() && value.uses().is_empty() && !m.graph.is_output(*v));
    assert!(idle.is_none(), "a constant that was replaced stays: {}", idle.unwrap().1.name);
}

#[test]
fn outputs_and_what_does_not_commute_are_left_alone() {
    let mut m = inverted_residual();
    let clips: Vec<_> = m.graph.nodes().filter(|(_, n)| n.op == Op::Clip).map(|(id, _)| id).collect();
    for id in clips {
        let x = m.graph.node(id).input(0);
        let node = m.graph.node_mut(id);
        (node.op, node.op_type) = (Op::Sigmoid, Node::new(Op::Sigmoid, "").op_type);
        m.graph.set_input(id, 1, None);
        m.graph.set_input(id, 2, None);
        m.graph.set_input(id, 0, x);
    }
    let sum = m.graph.find_value("sum").unwrap();
    m.graph.outputs.push(sum);
    let samples: Vec<usize> = (0..8).collect();
    let notes = balance(&mut m, &HOW, Some((&data(), &samples))).unwrap();
    assert!(notes.list().iter().any(|n| n.text.contains("no layer's channels can be scaled")), "{notes:?}");
    assert!(balance(&mut m, &HOW, None).unwrap_err().to_string().contains("--data"));
}

#[test]
fn functions_of_constants_alone_are_passed_over() {
    let mut m = inverted_residual();
    let c = m.graph.add_constant("c", Tensor::of_f32(&[1, 2, 6, 6], vec![1.0; 72]));
    let y = value(&mut m.graph, "of_c", 2);
    m.graph.add_node(Node::new(Op::Relu, "of_c"), &[Some(c)], &[Some(y)]);
    m.graph.outputs.push(y);
    let (data, samples) = (data(), (0..8).collect::<Vec<_>>());
    let notes = balance(&mut m, &HOW, Some((&data, &samples))).unwrap();
    assert!(notes.list().iter().any(|n| n.text.contains("scaled in")), "{notes:?}");
}
