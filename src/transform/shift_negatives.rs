//! Shift-negative correction: functions such as SiLU, HardSwish and Gelu reach a little below zero, and for that their codes spend a sign. Where all that
//! reads such a function are layers, a constant is added to it that makes it positive, and taken off in their biases: `b − shift·Σ w`. Layers that pad do so
//! in a node of its own, with the shift. Done where `0 < −min ≤ ratio · threshold`; the shift is a multiple of the step.
//! Source: HPTQ (Habi et al. 2021, section 3.3).
//! Needs: samples. Exact up to the rounding of biases. Declines, with the reason: functions that something else reads as well.

use super::fold_forward::fold_into;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{self, Flow, Graph, Inferred, InputShapes, Linear, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::observe::Histogram;
use crate::quant::{self, ScaleKind, Scheme};
use crate::range::Method;
use crate::tensor::{DType, Tensor};

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShiftNegatives {
    /// Bits of a code.
    pub bits: u8,
    /// Of the threshold, how far below zero a function may reach.
    pub ratio: f64,
    pub samples: usize,
    pub threads: usize,
}

/// A function's result, and the layers that take its shift.
struct Candidate {
    y: ValueId,
    layers: Vec<NodeId>,
}

/// The `shift-negatives` step.
pub fn shift_negatives(model: &mut Model, how: &ShiftNegatives, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("shift-negatives");
    let (data, samples) = data.ok_or_else(|| Error::usage("shift-negatives looks at sample inputs: give --data"))?;
    let inferred = graph::infer(model, &InputShapes::new());
    let g = &model.graph;
    let mut candidates = Vec::new();
    for (_, node) in g.nodes().filter(|(_, n)| may_reach_below(g, n)) {
        let Some(y) = node.output(0) else { continue };
        let mut layers = Vec::new();
        match readers(g, &inferred, y, &mut layers) {
            Ok(()) if !layers.is_empty() => candidates.push(Candidate { y, layers }),
            Ok(()) => {}
            Err(why) => notes.declined(&node.name, why),
        }
    }
    let seen = histograms(model, &candidates, data, &samples[..samples.len().min(how.samples)], how.threads)?;
    let signed = Scheme { scale: ScaleKind::Pow2(DType::F32), ..Scheme::int(how.bits, true) };
    let mut done = 0;
    for (c, seen) in candidates.iter().zip(&seen) {
        let lowest = -seen.extremes.lo as f64;
        if seen.extremes.is_empty() || lowest <= 0.0 {
            continue;
        }
        let range = Method::Mse.range(seen, &signed)?;
        let step = quant::fit_range(&signed, &[range.lo], &[range.hi])?.scale_at(0) as f64;
        let threshold = step * 2f64.powi(how.bits as i32 - 1);
        let name = model.graph.value(c.y).producer().map(|(n, _)| model.graph.node(n).name.clone()).unwrap_or_default();
        if lowest > how.ratio * threshold {
            notes.declined(name, format!("it reaches {lowest:.3} below zero, more than {} of its threshold {threshold}", how.ratio));
            continue;
        }
        shift(model, &inferred, c, ((lowest / step).ceil() * step) as f32)?;
        done += 1;
    }
    if done > 0 {
        notes.changed("", format!("{done} functions that reach a little below zero shifted above it; the biases behind take the shift off"));
    }
    Ok(notes)
}

/// Whether a node is a function that may reach a little below zero: not a Relu, and no layer.
fn may_reach_below(g: &Graph, node: &Node) -> bool {
    let flowing = node.inputs().iter().flatten().filter(|v| g.constant(**v).is_none()).count();
    match node.op {
        Op::Mul => flowing == 2,
        Op::Relu | Op::Sigmoid | Op::Sqrt | Op::Abs => false,
        op => op.flow() == Flow::Pointwise && flowing == 1,
    }
}

/// The layers that read `v`, through what keeps a constant constant.
fn readers(g: &Graph, inferred: &Inferred, v: ValueId, found: &mut Vec<NodeId>) -> std::result::Result<(), String> {
    if g.is_output(v) {
        return Err("its result is an output of the model".into());
    }
    for port in g.value(v).uses() {
        let node = g.get_node(port.node).ok_or("a body reads it")?;
        let unpadded = || node.ints("pads").is_none_or(|p| p.iter().all(|n| *n == 0)) && node.str("auto_pad").is_none_or(|a| matches!(a, "NOTSET" | "VALID"));
        match (Linear::of(g, port.node), node.op) {
            (Some(l), _) if l.constant && l.input_slot == port.slot as usize && takes(g, inferred, &l) => found.push(port.node),
            (Some(_), _) => return Err(format!("{} cannot take a constant off", node.name)),
            (_, Op::AveragePool | Op::MaxPool) if unpadded() => readers(g, inferred, node.output(0).ok_or("a pool has no output")?, found)?,
            (_, Op::GlobalAveragePool | Op::GlobalMaxPool | Op::Flatten | Op::Reshape | Op::Squeeze | Op::Identity) if port.slot == 0 => {
                readers(g, inferred, node.output(0).ok_or("a node behind it has no output")?, found)?
            }
            _ => return Err(format!("{} reads it, which is a {}", node.name, node.op_type)),
        }
    }
    Ok(())
}

/// Whether a layer's bias can take a constant off all its inputs.
fn takes(g: &Graph, inferred: &Inferred, l: &Linear) -> bool {
    let node = g.node(l.node);
    let Some(weight) = g.constant(l.weight) else { return false };
    let rank = node.input(0).and_then(|x| inferred.get(x).shape.as_ref().map(Vec::len));
    let explicit = matches!(node.str("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID");
    let bias = l.bias.is_none_or(|b| g.constant(b).is_some_and(|c| c.tensor.len() == l.out_channels(g)));
    let plain = node.int("transA").unwrap_or(0) == 0 && node.float("alpha").unwrap_or(1.0) == 1.0 && node.float("beta").unwrap_or(1.0) == 1.0;
    match node.op {
        Op::Conv => explicit && bias && rank.is_some_and(|r| r == weight.tensor.rank()),
        Op::Gemm => plain && bias && rank == Some(2),
        _ => false,
    }
}

fn histograms(model: &Model, candidates: &[Candidate], data: &Dataset, samples: &[usize], threads: usize) -> Result<Vec<Histogram>> {
    let values: Vec<ValueId> = candidates.iter().map(|c| c.y).collect();
    let mut all = vec![Histogram::default(); values.len()];
    if values.is_empty() {
        return Ok(all);
    }
    let of = |t: &Tensor| -> Result<Histogram> {
        let mut h = Histogram::default();
        h.observe(&t.to_f32()?);
        Ok(h)
    };
    let see = |tensors: &[Tensor]| tensors.iter().map(of).collect::<Result<Vec<_>>>();
    data.watch(model, &values, samples, threads, see, |new| all.iter_mut().zip(&new).for_each(|(a, b)| a.merge(b)))?;
    Ok(all)
}

/// Adds `by` to a function's result, and takes it off in the layers behind.
fn shift(model: &mut Model, inferred: &Inferred, c: &Candidate, by: f32) -> Result<()> {
    let opset = model.opset("").unwrap_or(0);
    let g = &mut model.graph;
    let (producer, _) = g.value(c.y).producer().ok_or_else(|| Error::failed("a function that nobody computes"))?;
    let name = g.node(producer).name.clone();
    let shifted = g.add_value(&format!("{}_shifted", g.value(c.y).name));
    g.value_mut(shifted).ty = g.value(c.y).ty.clone();
    g.replace_uses(c.y, shifted);
    let constant = g.add_constant(&format!("{name}_shift"), Tensor::of_f32(&[], vec![by]));
    let mut add = Node::new(Op::Add, format!("{name}_shift_add"));
    add.came_from.push(name.clone());
    let at = g.position(producer) + 1;
    g.insert_node(at, add, &[Some(c.y), Some(constant)], &[Some(shifted)]);
    for &layer in &c.layers {
        pad_apart(g, layer, constant, by, opset);
        let linear = Linear::of(g, layer).ok_or_else(|| Error::failed("a layer is gone"))?;
        let ins = g.constant(linear.weight).map_or(0, |w| w.tensor.shape()[linear.in_axis]) * linear.groups;
        let rank = inferred.get(c.y).shape.as_ref().map_or(0, Vec::len).max(if g.node(layer).op == Op::Gemm { 2 } else { 3 });
        fold_into(g, inferred, linear, (1, rank), (&vec![1.0; ins], &vec![-by as f64; ins]), &name)?;
    }
    Ok(())
}

/// Gives a layer that pads with zeros a node before it that pads with the shift.
fn pad_apart(g: &mut Graph, layer: NodeId, constant: ValueId, by: f32, opset: i64) {
    let Some(pads) = g.node(layer).ints("pads").map(<[i64]>::to_vec).filter(|p| p.iter().any(|n| *n != 0)) else { return };
    let (n, Some(x)) = (pads.len() / 2, g.node(layer).input(0)) else { return };
    // Samples and channels are not padded.
    let all: Vec<i64> = [&[0, 0], &pads[..n], &[0, 0], &pads[n..]].concat();
    let name = g.node(layer).name.clone();
    let padded = g.add_value(&format!("{}_padded", g.value(x).name));
    let dtype = g.value(x).dtype();
    g.value_mut(padded).ty = graph::Type::Tensor { dtype, shape: None };
    let at = g.position(layer);
    let mut node = Node::new(Op::Pad, format!("{name}_pad"));
    node.came_from.push(name.clone());
    if opset >= 11 {
        let list = g.add_constant(&format!("{name}_pads"), Tensor::of(DType::I64, &[all.len()], all));
        g.insert_node(at, node, &[Some(x), Some(list), Some(constant)], &[Some(padded)]);
    } else {
        g.insert_node(at, node.with("pads", all).with("value", by), &[Some(x)], &[Some(padded)]);
    }
    g.set_input(layer, 0, Some(padded));
    g.node_mut(layer).set_attr("pads", vec![0i64; pads.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataSettings, InputInfo};
    use crate::engine::Runner;
    use crate::graph::{Dim, Type};
    use std::collections::BTreeMap;

    fn value(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
        let v = g.add_value(name);
        g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        v
    }

    fn noise(shape: &[usize], k: f32) -> Tensor {
        Tensor::of_f32(shape, (0..shape.iter().product()).map(|i| (i as f32 * k).fract() - 0.5).collect())
    }

    /// x[1,3,6,6] → Mul(30) → HardSwish → Conv a (padded, with a bias) → HardSwish → GlobalAveragePool → Flatten → Gemm → y, of opset `opset`.
    fn model(pads: &[i64], opset: i64) -> Model {
        let mut m = Model { opsets: vec![(String::new(), opset)], ..Model::default() };
        let g = &mut m.graph;
        let x = value(g, "x", &[1, 3, 6, 6]);
        let shape = [1, 3, 6, 6];
        let [s, h, p, f] = [value(g, "s", &shape), value(g, "h", &shape), value(g, "p", &[1, 4, 1, 1]), value(g, "f", &[1, 4])];
        let (a, k) = (value(g, "a", &[1, 4, 5, 5]), value(g, "k", &[1, 4, 5, 5]));
        let y = value(g, "y", &[1, 2]);
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let thirty = g.add_constant("thirty", Tensor::of_f32(&[], vec![30.0]));
        g.add_node(Node::new(Op::Mul, "m"), &[Some(x), Some(thirty)], &[Some(s)]);
        g.add_node(Node::new(Op::HardSwish, "first"), &[Some(s)], &[Some(h)]);
        let (w, b) = (g.add_constant("w", noise(&[4, 3, 3, 3], 0.618_034)), g.add_constant("b", noise(&[4], 0.3)));
        g.add_node(Node::new(Op::Conv, "conv").with("pads", pads.to_vec()), &[Some(h), Some(w), Some(b)], &[Some(a)]);
        g.add_node(Node::new(Op::HardSwish, "second"), &[Some(a)], &[Some(k)]);
        g.add_node(Node::new(Op::GlobalAveragePool, "pool"), &[Some(k)], &[Some(p)]);
        g.add_node(Node::new(Op::Flatten, "flat"), &[Some(p)], &[Some(f)]);
        let v = g.add_constant("v", noise(&[4, 2], 0.414_214));
        g.add_node(Node::new(Op::Gemm, "gemm"), &[Some(f), Some(v)], &[Some(y)]);
        m
    }

    fn result(m: &Model, x: &Tensor) -> Vec<f32> {
        let shapes = InputShapes::from([("x".to_string(), x.shape().to_vec())]);
        let runner = Runner::new(m, &shapes, &m.graph.outputs).unwrap();
        runner.run(&mut runner.spawn(), &BTreeMap::from([("x".to_string(), x.clone())]), &m.quantizers).unwrap().remove(0).to_f32().unwrap().into_owned()
    }

    fn data() -> Dataset {
        let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, 3, 6, 6].map(Dim::Known).to_vec()) };
        Dataset::open("random:4", &[info], &DataSettings::default()).unwrap()
    }

    const HOW: ShiftNegatives = ShiftNegatives { bits: 8, ratio: 0.05, samples: 4, threads: 1 };

    #[test]
    fn the_result_stays_at_borders_too() {
        for (pads, opset) in [([0i64, 0, 0, 0], 14), ([1, 0, 0, 1], 14), ([1, 1, 0, 0], 14)] {
            let before = model(&pads, opset);
            let mut after = before.clone();
            let notes = shift_negatives(&mut after, &HOW, Some((&data(), &[0, 1, 2, 3]))).unwrap();
            let adds = after.graph.nodes().filter(|(_, n)| n.op == Op::Add).count();
            let padded = after.graph.nodes().filter(|(_, n)| n.op == Op::Pad).count();
            assert!(adds >= 1 && padded == pads.contains(&1) as usize, "{adds} {padded} {notes:?}");
            let x = noise(&[1, 3, 6, 6], 0.732_051);
            let (a, b) = (result(&before, &x), result(&after, &x));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs().max(1.0)), "{a:?} {b:?}");
        }
    }

    #[test]
    fn what_reaches_far_below_zero_or_is_read_elsewhere_is_left_with_the_reason() {
        let mut m = model(&[0, 0, 0, 0], 14);
        let notes = shift_negatives(&mut m, &ShiftNegatives { ratio: 1e-4, ..HOW }, Some((&data(), &[0, 1, 2, 3]))).unwrap();
        assert!(notes.list().iter().any(|n| n.about == "first" && n.text.contains("below zero, more than")), "{notes:?}");
        assert!(m.graph.nodes().all(|(_, n)| n.op != Op::Add));
        let mut m = model(&[0, 0, 0, 0], 14);
        let (h, z) = (m.graph.find_value("h").unwrap(), value(&mut m.graph, "z", &[1, 3, 6, 6]));
        m.graph.add_node(Node::new(Op::Relu, "relu"), &[Some(h)], &[Some(z)]);
        m.graph.outputs.push(z);
        let notes = shift_negatives(&mut m, &HOW, Some((&data(), &[0, 1, 2, 3]))).unwrap();
        assert!(notes.list().iter().any(|n| n.about == "first" && n.text.contains("relu reads it")), "{notes:?}");
    }
}
