//! Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it: `w' = w·γ/√(σ²+ε)`, `b' = (b−μ)·γ/√(σ²+ε) + β`, in float64. Where none
//! stands there, into the layers behind it; where none of those can take it, it becomes a Mul and an Add with one constant a channel.
//! So does a Mul, Add, Sub or Div with one constant, or one a channel, behind such a layer: half a batch norm, or a bias that an exporter left outside.
//! Exact up to the rounding of the new weights. Needs: constant weights and statistics, and nobody else who reads the value between.
//! Declines, with the reason: batch norms of which this does not hold. Other operations stay, without a word.

use super::edit::replace;
use super::fold_forward::{fold_forward, spell_out};
use crate::error::Result;
use crate::graph::{self, Graph, InputShapes, Linear, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;

/// The `fold-batch-norm` step.
pub fn fold_batch_norm(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("fold-batch-norm");
    let by_channel = |n: &Node| matches!(n.op, Op::BatchNormalization | Op::Mul | Op::Add | Op::Sub | Op::Div);
    let norms: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| by_channel(n)).map(|(id, _)| id).collect();
    let (mut before, mut behind, mut halves) = (0, 0, 0);
    for id in norms {
        let g = &mut model.graph;
        let name = g.node(id).name.clone();
        let is_norm = g.node(id).op == Op::BatchNormalization;
        let why_not_before = match find(g, id) {
            Ok(fold) => {
                apply(g, id, fold);
                *if is_norm { &mut before } else { &mut halves } += 1;
                continue;
            }
            Err(_) if !is_norm => continue,
            Err(why) => why,
        };
        let inferred = graph::infer(model, &InputShapes::new());
        let g = &mut model.graph;
        match fold_forward(g, &inferred, id) {
            Ok(()) => behind += 1,
            Err(why) => match spell_out(g, &inferred, id) {
                Ok(()) => notes.declined(name, format!("it becomes a Mul and an Add: {why_not_before}, and {why}")),
                Err(why) => notes.declined(name, format!("{why_not_before}, and {why}")),
            },
        }
    }
    model.graph.remove_dead();
    for (n, place) in [(before, "before"), (behind, "behind")] {
        if n > 0 {
            notes.changed("", format!("{n} batch norms folded into the layer {place} them"));
        }
    }
    if halves > 0 {
        notes.changed("", format!("{halves} products and sums with one constant a channel folded into the layer before them"));
    }
    Ok(notes)
}

/// What can be folded: the value that the layer makes, the layer, its new weight and bias where they change.
struct Fold {
    between: ValueId,
    linear: Linear,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

/// The operand that flows into a Mul, Add, Sub or Div with a constant; `None`: there is none.
fn flowing(g: &Graph, node: &Node) -> Option<ValueId> {
    let mut operands = (0..2).filter_map(|slot| node.input(slot)).filter(|v| g.constant(*v).is_none());
    operands.next().filter(|_| operands.next().is_none() && node.inputs().len() == 2)
}

/// Factor and offset of a Mul, Add, Sub or Div with one constant, or one for each of `channels` along axis 1 of what flows, which has `rank` dimensions.
fn half(g: &Graph, node: &Node, x: ValueId, channels: usize, rank: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    let first = node.input(0) == Some(x);
    let constant = node.other(!first as usize).and_then(|v| g.constant(v)).ok_or("it has no constant")?;
    let shape = constant.tensor.shape();
    // Behind the channels lie rank − 2 dimensions.
    let along = shape.len().checked_sub(rank - 1).and_then(|axis| shape.get(axis)) == Some(&channels);
    if shape.len() > rank || constant.tensor.len() != 1 && !(along && constant.tensor.len() == channels) {
        return Err("its constant is not one number a channel".into());
    }
    let numbers = constant.tensor.to_f32().map_err(|e| e.to_string())?;
    let c: Vec<f64> = (0..channels).map(|i| numbers[if numbers.len() == 1 { 0 } else { i }] as f64).collect();
    let all = |x: f64| vec![x; channels];
    let (factor, offset) = match (node.op, first) {
        (Op::Add, _) => (all(1.0), c),
        (Op::Sub, true) => (all(1.0), c.iter().map(|c| -c).collect()),
        (Op::Sub, false) => (all(-1.0), c),
        (Op::Mul, _) => (c, all(0.0)),
        (Op::Div, true) => (c.iter().map(|c| 1.0 / c).collect(), all(0.0)),
        _ => return Err("it divides a constant".into()),
    };
    let finite = factor.iter().chain(&offset).all(|x| x.is_finite());
    finite.then_some((factor, offset)).ok_or("its constant is no finite number".into())
}

/// Per-channel factor and offset of a batch norm.
pub(super) fn factors(g: &Graph, bn: &Node) -> Result<(Vec<f64>, Vec<f64>), String> {
    if bn.outputs().iter().skip(1).any(Option::is_some) || bn.int("training_mode").unwrap_or(0) != 0 {
        return Err("it is in training mode".into());
    }
    let read = |slot: usize, what: &str| -> Result<Vec<f64>, String> {
        let t = bn.input(slot).and_then(|v| g.constant(v)).ok_or(format!("its {what} is no constant"))?;
        Ok(t.tensor.to_f32().map_err(|e| e.to_string())?.iter().map(|x| *x as f64).collect())
    };
    let (gamma, beta, mean, variance) = (read(1, "scale")?, read(2, "offset")?, read(3, "mean")?, read(4, "variance")?);
    let epsilon = bn.float("epsilon").unwrap_or(1e-5) as f64;
    if [beta.len(), mean.len(), variance.len()].iter().any(|n| *n != gamma.len()) {
        return Err("its statistics differ in length".into());
    }
    let factor: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    if factor.iter().any(|f| !f.is_finite()) {
        return Err("a variance is negative or not a number".into());
    }
    let offset = (0..gamma.len()).map(|c| beta[c] - mean[c] * factor[c]).collect();
    Ok((factor, offset))
}

fn find(g: &Graph, id: NodeId) -> Result<Fold, String> {
    let bn = g.node(id);
    let is_norm = bn.op == Op::BatchNormalization;
    let x = if is_norm { bn.input(0) } else { flowing(g, bn) }.ok_or("it has no input")?;
    let (producer, _) = g.value(x).producer().ok_or("nothing stands before it")?;
    let layer = g.node(producer);
    let is_layer = matches!(layer.op, Op::Conv | Op::ConvTranspose | Op::Gemm | Op::MatMul);
    let linear = Linear::of(g, producer).filter(|l| is_layer && l.input_slot == 0).ok_or(format!("a {} stands before it", layer.op_type))?;
    if g.value(x).uses().len() != 1 || g.is_output(x) {
        return Err("the value between is read elsewhere too".into());
    }
    let weight = g.constant(linear.weight).ok_or("the layer's weight is no constant")?;
    if layer.op == Op::MatMul && weight.tensor.rank() != 2 {
        return Err("the product before it has more than two dimensions".into());
    }
    if matches!(layer.op, Op::MatMul) && rank_two(g, x) != Some(true) {
        return Err("its channels are not known to be the last dimension of the product before it".into());
    }
    let (alpha, beta) = (layer.float("alpha").unwrap_or(1.0) as f64, layer.float("beta").unwrap_or(1.0) as f64);
    let channels = linear.out_channels(g);
    let (factor, offset) = if is_norm { factors(g, bn)? } else { half(g, bn, x, channels, weight.tensor.rank())? };
    if channels != factor.len() {
        return Err(format!("the layer before it has {channels} channels, its statistics {}", factor.len()));
    }
    let weight = if factor.iter().all(|f| *f == 1.0) { None } else { Some(scaled_outputs(g, &linear, &factor)?) };
    let old_bias = match linear.bias {
        None => vec![0.0; channels],
        Some(b) => {
            let b = g.constant(b).ok_or("the layer's bias is no constant")?.tensor.to_f32().map_err(|e| e.to_string())?.into_owned();
            match b.len() {
                1 => vec![b[0]; channels],
                n if n == channels => b,
                _ => return Err("the layer's bias is not one value a channel".into()),
            }
        }
    };
    debug_assert!(alpha.is_finite());
    if layer.op == Op::MatMul {
        return Err("a MatMul has no bias to take its offset".into());
    }
    if beta == 0.0 {
        return Err("the layer's beta is zero".into());
    }
    let bias: Vec<f32> = (0..channels).map(|c| (old_bias[c] as f64 * factor[c] + offset[c] / beta) as f32).collect();
    let bias = (linear.bias.is_some() || bias.iter().any(|b| *b != 0.0)).then(|| Tensor::of_f32(&[channels], bias));
    Ok(Fold { between: x, linear, weight, bias })
}

/// A layer's constant weight with each output channel times a factor.
pub(super) fn scaled_outputs(g: &Graph, linear: &Linear, factor: &[f64]) -> Result<Tensor, String> {
    let weight = &g.constant(linear.weight).ok_or("the layer's weight is no constant")?.tensor;
    let channel = linear.channels(g, weight.shape());
    let values = weight.to_f32().map_err(|e| e.to_string())?;
    let scaled = values.iter().enumerate().map(|(i, w)| (*w as f64 * factor[channel(i).1]) as f32).collect();
    Ok(Tensor::of_f32(weight.shape(), scaled))
}

fn rank_two(g: &Graph, v: ValueId) -> Option<bool> {
    match &g.value(v).ty {
        crate::graph::Type::Tensor { shape: Some(s), .. } => Some(s.len() == 2),
        _ => None,
    }
}

fn apply(g: &mut Graph, id: NodeId, fold: Fold) {
    let layer = fold.linear.node;
    let (x, y) = (fold.between, g.node(id).output(0).expect("found"));
    let names = [g.node(id).name.clone(), g.node(layer).name.clone()];
    // A weight that others read as well keeps its old value for them.
    fold.weight.into_iter().for_each(|w| replace(g, layer, fold.linear.weight_slot, "weight", w));
    fold.bias.into_iter().for_each(|b| replace(g, layer, 2, "bias", b));
    g.remove_node(id);
    g.set_output(layer, 0, y);
    g.remove_value(x);
    let node = g.node_mut(layer);
    if node.came_from.is_empty() {
        node.came_from.push(names[1].clone());
    }
    node.came_from.push(names[0].clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_norm(op: Op, weight: &[usize], attrs: &[(&str, i64)], bias: Option<Vec<f32>>) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, h, y] = ["x", "h", "y"].map(|n| g.add_value(n));
        let n: usize = weight.iter().product();
        let w = g.add_constant("w", Tensor::of_f32(weight, (0..n).map(|i| i as f32 + 1.0).collect()));
        let b = bias.map(|b| g.add_constant("b", Tensor::of_f32(&[b.len()], b)));
        let stats: Vec<Option<ValueId>> = [("scale", 2.0), ("offset", 3.0), ("mean", 1.0), ("variance", 4.0)]
            .iter()
            .map(|(n, v)| Some(g.add_constant(n, Tensor::of_f32(&[2], vec![*v, 2.0 * v]))))
            .collect();
        g.inputs.push(x);
        g.outputs.push(y);
        let mut layer = Node::new(op, "layer");
        attrs.iter().for_each(|(k, v)| layer.set_attr(k, *v));
        g.add_node(layer, &[Some(x), Some(w), b], &[Some(h)]);
        g.add_node(Node::new(Op::BatchNormalization, "norm").with("epsilon", 0.0f32), &[vec![Some(h)], stats].concat(), &[Some(y)]);
        m
    }

    fn folded(m: &mut Model) -> (Vec<f32>, Vec<f32>) {
        let notes = fold_batch_norm(m).unwrap();
        assert_eq!(m.graph.nodes().count(), 1, "{notes:?}");
        let (_, n) = m.graph.nodes().next().unwrap();
        let read = |slot: usize| m.graph.constant(n.input(slot).unwrap()).unwrap().tensor.to_f32().unwrap().into_owned();
        assert_eq!(n.came_from, ["layer", "norm"]);
        (read(1), read(2))
    }

    // γ/σ = 2/2 = 1 and 4/√8; offsets 3−1·1 and 6−2·4/√8.
    #[test]
    fn each_layer_is_scaled_along_its_own_channels() {
        let f = 4.0 / 8f32.sqrt();
        let (w, b) = folded(&mut with_norm(Op::Conv, &[2, 1, 1, 2], &[], None));
        assert_eq!((w, b), (vec![1.0, 2.0, 3.0 * f, 4.0 * f], vec![2.0, (6.0 - 8.0 / 8f64.sqrt()) as f32]));
        let (w, _) = folded(&mut with_norm(Op::ConvTranspose, &[1, 2, 1, 2], &[], None));
        assert_eq!(w, [1.0, 2.0, 3.0 * f, 4.0 * f]);
        let (w, _) = folded(&mut with_norm(Op::ConvTranspose, &[2, 1, 1, 2], &[("group", 2)], None));
        assert_eq!(w, [1.0, 2.0, 3.0 * f, 4.0 * f]);
        let (w, b) = folded(&mut with_norm(Op::Gemm, &[2, 2], &[], Some(vec![1.0, 1.0])));
        assert_eq!((w, b[0]), (vec![1.0, 2.0 * f, 3.0, 4.0 * f], 3.0));
        let (w, _) = folded(&mut with_norm(Op::Gemm, &[2, 2], &[("transB", 1)], None));
        assert_eq!(w, [1.0, 2.0, 3.0 * f, 4.0 * f]);
    }

    /// One layer of two channels, x → layer → node with the constant `c`, in either order, → y.
    fn with_half(layer: Node, weight: &[usize], op: Op, c: (&[usize], Vec<f32>), flows_first: bool) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, h, y] = ["x", "h", "y"].map(|n| g.add_value(n));
        let n: usize = weight.iter().product();
        let w = g.add_constant("w", Tensor::of_f32(weight, (0..n).map(|i| i as f32 + 1.0).collect()));
        let c = g.add_constant("c", Tensor::of_f32(c.0, c.1));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(layer, &[Some(x), Some(w)], &[Some(h)]);
        g.add_node(Node::new(op, "half"), &if flows_first { [Some(h), Some(c)] } else { [Some(c), Some(h)] }, &[Some(y)]);
        m
    }

    #[test]
    fn products_and_sums_with_a_constant_a_channel_are_halves_of_one() {
        // Weight and bias, or the number of nodes that are left.
        let outcome = |op: Op, c: (&[usize], Vec<f32>), first: bool| {
            let mut m = with_half(Node::new(Op::Conv, "layer"), &[2, 1, 1, 2], op, c, first);
            fold_batch_norm(&mut m).unwrap();
            let (_, n) = m.graph.nodes().next().unwrap();
            let read = |slot: usize| n.input(slot).map(|v| m.graph.constant(v).unwrap().tensor.to_f32().unwrap().into_owned());
            if m.graph.nodes().count() == 1 { Ok((read(1).unwrap(), read(2))) } else { Err(m.graph.nodes().count()) }
        };
        let (w, channels): (Vec<f32>, &[usize]) = (vec![1.0, 2.0, 3.0, 4.0], &[1, 2, 1, 1]);
        assert_eq!(outcome(Op::Add, (channels, vec![5.0, 6.0]), true), Ok((w.clone(), Some(vec![5.0, 6.0]))));
        assert_eq!(outcome(Op::Add, (&[2, 1, 1], vec![5.0, 6.0]), false), Ok((w.clone(), Some(vec![5.0, 6.0]))));
        assert_eq!(outcome(Op::Sub, (&[], vec![5.0]), true), Ok((w.clone(), Some(vec![-5.0, -5.0]))));
        assert_eq!(outcome(Op::Sub, (&[1], vec![5.0]), false), Ok((vec![-1.0, -2.0, -3.0, -4.0], Some(vec![5.0, 5.0]))));
        assert_eq!(outcome(Op::Mul, (channels, vec![2.0, 10.0]), true), Ok((vec![2.0, 4.0, 30.0, 40.0], None)), "no bias comes of nothing");
        assert_eq!(outcome(Op::Div, (&[], vec![2.0]), true), Ok((vec![0.5, 1.0, 1.5, 2.0], None)));
        // A constant is divided, or by zero; it lies along the columns, or adds dimensions.
        assert_eq!(outcome(Op::Div, (&[], vec![2.0]), false), Err(2));
        assert_eq!(outcome(Op::Div, (&[], vec![0.0]), true), Err(2));
        assert_eq!(outcome(Op::Add, (&[2], vec![5.0, 6.0]), true), Err(2));
        assert_eq!(outcome(Op::Add, (&[1, 1, 1, 1, 1], vec![5.0]), true), Err(2));
        assert_eq!(outcome(Op::Add, (&[2, 2, 1, 1], vec![5.0; 4]), true), Err(2));
    }

    #[test]
    fn a_gemm_counts_its_bias_by_beta() {
        let gemm = |beta: f32| with_half(Node::new(Op::Gemm, "layer").with("beta", beta), &[2, 2], Op::Add, (&[2], vec![5.0, 6.0]), true);
        let mut m = gemm(0.5);
        fold_batch_norm(&mut m).unwrap();
        let (_, n) = m.graph.nodes().next().unwrap();
        assert_eq!(*m.graph.constant(n.input(2).unwrap()).unwrap().tensor.to_f32().unwrap(), [10.0, 12.0]);
        let mut m = gemm(0.0);
        fold_batch_norm(&mut m).unwrap();
        assert_eq!(m.graph.nodes().count(), 2);
    }

    #[test]
    fn a_value_that_others_read_is_declined_with_the_reason() {
        let mut m = with_norm(Op::Conv, &[2, 1, 1, 2], &[], None);
        let h = m.graph.find_value("h").unwrap();
        m.graph.outputs.push(h);
        let notes = fold_batch_norm(&mut m).unwrap();
        assert_eq!(m.graph.nodes().count(), 2);
        assert!(notes.list()[0].text.contains("read elsewhere"), "{notes:?}");
    }
}
