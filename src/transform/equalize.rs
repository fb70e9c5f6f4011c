//! Cross-layer equalization: a channel that leaves one layer small and is read by large weights can be handed over larger, and its weights smaller.
//! Dividing output channel i by `s_i = √(r1_i·r2_i) / r2_i` and multiplying what reads it gives both layers the range `√(r1_i·r2_i)`, for any function
//! between with f(s·x) = s·f(x), s > 0. What channels always carry (high bias) then moves into the biases behind.
//! Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, sections 4.1 and 4.1.3.
//! Exact up to the rounding of the weights, but for absorbed biases, which hold for all but the rarest values.
//! Needs: constant weights; samples, to absorb biases. Declines, with the reason: every layer whose readers do not allow it.

use super::edit::{rename, replace, replace_each};
use super::fold_batch_norm::scaled_outputs;
use super::fold_forward::{fold_into, into, own_bias};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{self, Dim, Graph, Inferred, InputShapes, Linear, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Equalize {
    /// Times that all pairs are visited, at most.
    pub sweeps: usize,
    /// Biases are absorbed up to this many standard deviations below a channel's mean; `None`: not at all.
    pub absorb: Option<f64>,
    /// Samples for those means, at most.
    pub samples: usize,
    pub threads: usize,
}

/// Scales are settled when none changes by more than this share in a sweep.
const SETTLED: f64 = 1e-5;
/// No scale goes further from 1.
const FAR: f64 = 1e8;

/// A layer and everything that reads its channels.
struct Pair {
    linear: Linear,
    /// Where its bias is: node and slot.
    bias: Option<(NodeId, usize)>,
    /// What its channels are called where the scale is changed, from the layer on.
    between: Vec<ValueId>,
    readers: Vec<Reader>,
    channels: usize,
    /// Whether a Relu alone lies between, so that what is always positive can be taken off.
    relu: bool,
}

#[derive(Clone, Copy)]
struct Reader {
    linear: Linear,
    axis: usize,
    rank: usize,
}

/// The `equalize` step.
pub fn equalize(model: &mut Model, how: &Equalize, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("equalize");
    let inferred = graph::infer(model, &InputShapes::new());
    let g = &model.graph;
    let mut pairs = Vec::new();
    for (id, node) in g.nodes() {
        let Some(linear) = Linear::of(g, id).filter(|l| l.constant) else { continue };
        match pair(g, &inferred, linear) {
            Ok(p) => pairs.push(p),
            Err(why) => notes.declined(&node.name, format!("is not equalized with what reads it: {why}")),
        }
    }
    if pairs.is_empty() {
        return Ok(notes);
    }
    let scales = settle(g, &pairs, how.sweeps)?;
    let (spread, now) = scale(&mut model.graph, &inferred, &pairs, &scales)?;
    notes.changed(
        "",
        format!("{} layers equalized with what reads them; their channels' ranges differ by up to {spread:.1}, before, and {now:.1}", pairs.len()),
    );
    match (how.absorb, data) {
        (None, _) => {}
        (Some(_), None) => notes.declined("", "no bias is absorbed: that needs sample inputs (--data)"),
        (Some(sigmas), Some(data)) => absorb(model, &inferred, &pairs, sigmas, how, data, &mut notes)?,
    }
    Ok(notes)
}

/// A layer whose outputs may be scaled, or why not.
fn pair(g: &Graph, inferred: &Inferred, linear: Linear) -> std::result::Result<Pair, String> {
    let node = g.node(linear.node);
    let weight = g.constant(linear.weight).ok_or("its weight is moved or quantized before it is used")?;
    if g.value(linear.weight).uses().len() != 1 {
        return Err("its weight is shared".into());
    }
    if !matches!(node.op, Op::Conv | Op::ConvTranspose | Op::Gemm | Op::MatMul) || linear.input_slot != 0 || node.op == Op::MatMul && weight.tensor.rank() != 2
    {
        return Err("its output has no channels of its own".into());
    }
    let channels = linear.out_channels(g);
    let mut y = node.output(0).ok_or("it has no output")?;
    let mut between = vec![y];
    let rank = inferred.get(y).shape.as_ref().map(Vec::len).ok_or("its rank is not known")?;
    let bias = match (node.op, linear.bias) {
        (Op::MatMul, _) => {
            let add = own_bias(g, linear.node, channels);
            if let Some((add, _)) = add {
                y = g.node(add).output(0).ok_or("its bias is not added to anything")?;
                between.push(y);
            }
            add
        }
        (_, None) => None,
        (_, Some(b)) => {
            let constant = g.constant(b).ok_or("its bias is computed")?;
            if constant.tensor.len() != channels {
                return Err("its bias is not one number a channel".into());
            }
            Some((linear.node, 2))
        }
    };
    let axis = if node.op == Op::MatMul { rank - 1 } else { 1 };
    let (mut readers, mut relu) = (Vec::new(), true);
    follow(g, inferred, y, axis, channels, &mut between, &mut readers, &mut relu)?;
    if readers.is_empty() {
        return Err("nothing reads it".into());
    }
    let ones = vec![1.0; channels];
    for r in &readers {
        if g.value(r.linear.weight).uses().len() != 1 {
            return Err(format!("the weight of {} is shared", g.node(r.linear.node).name));
        }
        into(g, inferred, r.linear, r.axis, r.rank, (&ones, &vec![0.0; channels]))?;
    }
    Ok(Pair { linear, bias, between, readers, channels, relu })
}

/// Goes on from `v`, through what keeps channels apart and commutes with scaling them, to the layers that read it.
#[allow(clippy::too_many_arguments)]
fn follow(
    g: &Graph,
    inferred: &Inferred,
    v: ValueId,
    axis: usize,
    channels: usize,
    between: &mut Vec<ValueId>,
    readers: &mut Vec<Reader>,
    relu: &mut bool,
) -> std::result::Result<(), String> {
    if g.is_output(v) {
        return Err("it is an output of the model".into());
    }
    let rank = inferred.get(v).shape.as_ref().map(Vec::len).ok_or("a rank behind it is not known")?;
    for port in g.value(v).uses() {
        let node = g.get_node(port.node).ok_or("a body reads it")?;
        if let Some(linear) = Linear::of(g, port.node) {
            if linear.input_slot != port.slot as usize || !linear.constant {
                return Err(format!("{} multiplies it with something that is computed", node.name));
            }
            readers.push(Reader { linear, axis, rank });
            continue;
        }
        let to = passes(g, inferred, node, axis, channels).filter(|_| port.slot == 0).ok_or_else(|| format!("{} is a {}", node.name, node.op_type))?;
        *relu &= node.op == Op::Relu;
        let y = node.output(0).ok_or("a node behind it has no output")?;
        between.push(y);
        follow(g, inferred, y, to, channels, between, readers, relu)?;
    }
    Ok(())
}

/// The axis of the channels behind a node for which f(s·x) = s·f(x), channel by channel.
pub(super) fn passes(g: &Graph, inferred: &Inferred, node: &Node, axis: usize, channels: usize) -> Option<usize> {
    let shape = |v: ValueId| inferred.get(v).shape.clone();
    let (x, y) = (shape(node.input(0)?)?, shape(node.output(0)?)?);
    let spatial = |s: &[Dim]| s.iter().skip(2).all(|d| *d == Dim::Known(1));
    match node.op {
        Op::Relu | Op::LeakyRelu | Op::PRelu | Op::Identity => Some(axis),
        Op::MaxPool | Op::AveragePool | Op::GlobalAveragePool | Op::GlobalMaxPool if axis == 1 => Some(1),
        Op::Transpose => match node.ints("perm") {
            Some(p) => p.iter().position(|i| *i as usize == axis),
            None => Some(x.len() - 1 - axis),
        },
        Op::Pad => {
            let zero = |v: ValueId| g.constant(v).and_then(|c| c.tensor.to_f32().ok().map(|t| t.iter().all(|x| *x == 0.0)));
            let value = node.input(2).map_or(node.float("value").unwrap_or(0.0) == 0.0, |v| zero(v) == Some(true));
            (value || node.str("mode").is_some_and(|m| m != "constant")).then_some(axis).filter(|a| y.get(*a) == Some(&Dim::Known(channels)))
        }
        // From one number a channel to one number a channel.
        Op::Flatten | Op::Reshape | Op::Squeeze if axis == 1 && spatial(&x) && spatial(&y) => {
            (x.get(1) == Some(&Dim::Known(channels)) && y.get(1) == Some(&Dim::Known(channels))).then_some(1)
        }
        _ => None,
    }
}

/// Largest size of a weight by input and output channel, under the scales so far.
fn ranges(g: &Graph, linear: &Linear, inputs: Option<&Vec<f64>>, outputs: Option<&Vec<f64>>, by_output: bool, n: usize) -> Result<Vec<f64>> {
    let weight = &g.constant(linear.weight).ok_or_else(|| Error::failed("a weight is gone"))?.tensor;
    let channel = linear.channels(g, weight.shape());
    let mut range = vec![0f64; n];
    for (i, w) in weight.to_f32()?.iter().enumerate() {
        let (input, out) = channel(i);
        let w = (*w as f64).abs() * inputs.map_or(1.0, |s| s[input]) / outputs.map_or(1.0, |s| s[out]);
        let at = &mut range[if by_output { out } else { input }];
        *at = at.max(w);
    }
    Ok(range)
}

/// The scale of each pair's channels: what the layer is divided by.
fn settle(g: &Graph, pairs: &[Pair], sweeps: usize) -> Result<Vec<Vec<f64>>> {
    let mut outputs: BTreeMap<NodeId, Vec<f64>> = pairs.iter().map(|p| (p.linear.node, vec![1.0; p.channels])).collect();
    let mut inputs: BTreeMap<NodeId, Vec<f64>> = pairs.iter().flat_map(|p| p.readers.iter().map(|r| (r.linear.node, vec![1.0; p.channels]))).collect();
    for _ in 0..sweeps {
        crate::interrupt::check()?;
        let mut change = 0f64;
        for p in pairs {
            let id = p.linear.node;
            let first = ranges(g, &p.linear, inputs.get(&id), outputs.get(&id), true, p.channels)?;
            let mut second = vec![0f64; p.channels];
            for r in &p.readers {
                let id = r.linear.node;
                let one = ranges(g, &r.linear, inputs.get(&id), outputs.get(&id), false, p.channels)?;
                second.iter_mut().zip(one).for_each(|(a, b)| *a = a.max(b));
            }
            for c in 0..p.channels {
                // A channel that is always zero, or that nobody looks at, stays as it is.
                if first[c] == 0.0 || second[c] == 0.0 {
                    continue;
                }
                let whole = outputs.get_mut(&id).expect("made above");
                let s = ((first[c] * second[c]).sqrt() / second[c]).clamp(1.0 / FAR / whole[c], FAR / whole[c]);
                change = change.max((s - 1.0).abs());
                whole[c] *= s;
                p.readers.iter().for_each(|r| inputs.get_mut(&r.linear.node).expect("made above")[c] *= s);
            }
        }
        if change < SETTLED {
            break;
        }
    }
    Ok(pairs.iter().map(|p| outputs.remove(&p.linear.node).expect("made above")).collect())
}

/// Divides the layers and multiplies their readers. Returns how far the output channels' ranges of a layer differed at most, and differ now.
fn scale(g: &mut Graph, inferred: &Inferred, pairs: &[Pair], scales: &[Vec<f64>]) -> Result<(f64, f64)> {
    let spread = |g: &Graph| -> Result<f64> {
        let one = |p: &Pair| -> Result<f64> {
            let r = ranges(g, &p.linear, None, None, true, p.channels)?;
            let (lo, hi) = r.iter().filter(|r| **r > 0.0).fold((f64::INFINITY, 0f64), |(lo, hi), r| (lo.min(*r), hi.max(*r)));
            Ok(if hi > 0.0 { hi / lo } else { 1.0 })
        };
        pairs.iter().map(one).try_fold(1f64, |a, b| Ok(a.max(b?)))
    };
    let before = spread(g)?;
    let mut renamed = BTreeSet::new();
    for (p, s) in pairs.iter().zip(scales) {
        let divide: Vec<f64> = s.iter().map(|s| 1.0 / s).collect();
        let weight = scaled_outputs(g, &p.linear, &divide).map_err(Error::failed)?;
        replace(g, p.linear.node, p.linear.weight_slot, "weight", weight);
        if let Some((node, slot)) = p.bias {
            replace_each(g, node, slot, "bias", |c, b| (b as f64 * divide[c]) as f32)?;
        }
        fold(g, inferred, p, s, &vec![0.0; p.channels])?;
        renamed.extend(p.between.iter().copied());
    }
    rename(g, renamed, "equalized");
    Ok((before, spread(g)?))
}

/// Makes the readers of a pair undo that what they read was divided by `factor`, after `offset` was taken off.
fn fold(g: &mut Graph, inferred: &Inferred, p: &Pair, factor: &[f64], offset: &[f64]) -> Result<()> {
    let name = g.node(p.linear.node).name.clone();
    for r in &p.readers {
        // The bias may have been made since.
        let linear = Linear::of(g, r.linear.node).expect("it was one");
        fold_into(g, inferred, linear, (r.axis, r.rank), (factor, offset), &name)?;
    }
    Ok(())
}

/// Moves what lies always above zero from a layer's bias into the biases of its readers: `c = max(0, mean − sigmas·deviation)`.
fn absorb(
    model: &mut Model,
    inferred: &Inferred,
    pairs: &[Pair],
    sigmas: f64,
    how: &Equalize,
    (data, samples): (&Dataset, &[usize]),
    notes: &mut Notes,
) -> Result<()> {
    let g = &model.graph;
    // An offset cannot be taken out where a reader pads with zeros.
    let takes = |p: &&Pair| {
        let (ones, offset) = (vec![1.0; p.channels], vec![1.0; p.channels]);
        p.relu && p.bias.is_some() && p.readers.iter().all(|r| into(g, inferred, r.linear, r.axis, r.rank, (&ones, &offset)).is_ok())
    };
    let chosen: Vec<&Pair> = pairs.iter().filter(takes).collect();
    let values: Vec<ValueId> = chosen.iter().map(|p| g.node(p.bias.expect("checked").0).output(0).expect("found")).collect();
    if values.is_empty() {
        return Ok(());
    }
    let samples = &samples[..samples.len().min(how.samples)];
    let mut sums: Vec<Vec<[f64; 3]>> = chosen.iter().map(|p| vec![[0.0; 3]; p.channels]).collect();
    let axes: Vec<(usize, usize)> = chosen.iter().map(|p| (if g.node(p.linear.node).op == Op::MatMul { usize::MAX } else { 1 }, p.channels)).collect();
    let see = |tensors: &[Tensor]| tensors.iter().zip(&axes).map(|(t, (axis, channels))| moments(t, *axis, *channels)).collect::<Result<Vec<_>>>();
    data.watch(model, &values, samples, how.threads, see, |new| {
        for (have, new) in sums.iter_mut().flatten().zip(new.iter().flatten()) {
            have.iter_mut().zip(new).for_each(|(a, b)| *a += b);
        }
    })?;
    let mut absorbed = 0;
    for (p, sums) in chosen.iter().zip(&sums) {
        let lowest = |[n, sum, squares]: &[f64; 3]| {
            let mean = sum / n.max(1.0);
            (mean - sigmas * (squares / n.max(1.0) - mean * mean).max(0.0).sqrt()).max(0.0)
        };
        let offset: Vec<f64> = sums.iter().map(lowest).collect();
        if offset.iter().all(|c| *c == 0.0) {
            continue;
        }
        let g = &mut model.graph;
        let (node, slot) = p.bias.expect("checked");
        replace_each(g, node, slot, "bias", |c, b| (b as f64 - offset[c]) as f32)?;
        fold(g, inferred, p, &vec![1.0; p.channels], &offset)?;
        absorbed += offset.iter().filter(|c| **c > 0.0).count();
    }
    if absorbed > 0 {
        notes.changed("", format!("the biases of {absorbed} channels that always lie above zero absorbed by what reads them"));
    }
    Ok(())
}

/// Count, sum and sum of squares by channel. `axis` beyond the last is the last.
fn moments(t: &Tensor, axis: usize, channels: usize) -> Result<Vec<[f64; 3]>> {
    let axis = axis.min(t.rank().saturating_sub(1));
    if t.shape().get(axis) != Some(&channels) {
        return Err(Error::failed(format!("a layer of {channels} channels gives shape {:?}", t.shape())));
    }
    let inner: usize = t.shape()[axis + 1..].iter().product();
    let mut sums = vec![[0.0; 3]; channels];
    for (row, values) in t.to_f32()?.chunks_exact(inner.max(1)).enumerate() {
        let sum = &mut sums[row % channels];
        sum[0] += values.len() as f64;
        for v in values {
            sum[1] += *v as f64;
            sum[2] += (*v as f64).powi(2);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests;
