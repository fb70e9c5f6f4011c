//! Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it: `w' = w·γ/√(σ²+ε)`, `b' = (b−μ)·γ/√(σ²+ε) + β`, in float64. Where none
//! stands there, into the layers behind it; where none of those can take it, it becomes a Mul and an Add with one constant a channel.
//! Exact up to the rounding of the new weights. Needs: constant weights and statistics, and nobody else who reads the value between.
//! Declines, with the reason: everything else.

use super::edit::replace;
use super::fold_forward::{fold_forward, spell_out};
use crate::error::Result;
use crate::graph::{self, Graph, InputShapes, Linear, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;

/// The `fold-batch-norm` step.
pub fn fold_batch_norm(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("fold-batch-norm");
    let norms: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| n.op == Op::BatchNormalization).map(|(id, _)| id).collect();
    let (mut before, mut behind) = (0, 0);
    for id in norms {
        let g = &mut model.graph;
        let name = g.node(id).name.clone();
        let why_not_before = match find(g, id) {
            Ok(fold) => {
                apply(g, id, fold);
                before += 1;
                continue;
            }
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
    Ok(notes)
}

/// A batch norm that can be folded: the layer, its new weight and bias.
struct Fold {
    linear: Linear,
    weight: Tensor,
    bias: Tensor,
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
    let x = bn.input(0).ok_or("it has no input")?;
    let (producer, _) = g.value(x).producer().ok_or("nothing stands before it")?;
    let layer = g.node(producer);
    let linear = Linear::of(g, producer).filter(|l| l.input_slot == 0).ok_or(format!("a {} stands before it", layer.op_type))?;
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
    let (factor, offset) = factors(g, bn)?;
    let channels = linear.out_channels(g);
    if channels != factor.len() {
        return Err(format!("the layer before it has {channels} channels, its statistics {}", factor.len()));
    }
    let weight = scaled_outputs(g, &linear, &factor)?;
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
    let divisor = if linear.bias.is_some() && beta != 0.0 { beta } else { 1.0 };
    let bias = (0..channels).map(|c| ((old_bias[c] as f64 * beta * factor[c] + offset[c]) / divisor) as f32).collect();
    if layer.op == Op::MatMul {
        return Err("a MatMul has no bias to take its offset".into());
    }
    if linear.bias.is_none() && beta == 0.0 {
        return Err("the layer's beta is zero".into());
    }
    Ok(Fold { linear, weight, bias: Tensor::of_f32(&[channels], bias) })
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
    let (x, y) = (g.node(id).input(0).expect("found"), g.node(id).output(0).expect("found"));
    let names = [g.node(id).name.clone(), g.node(layer).name.clone()];
    // A weight that others read as well keeps its old value for them.
    replace(g, layer, fold.linear.weight_slot, "weight", fold.weight);
    replace(g, layer, 2, "bias", fold.bias);
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
