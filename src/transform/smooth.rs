//! Activation to weight: a channel that stands far above the others takes up the whole range of its tensor; what makes it gives it smaller, and the
//! weights that read it grow: `s_j = max|x_j|^α / max_i|W_ji|^(1−α)`, `x ← x/s`, `W ← diag(s)·W`. α is searched by what the layers lose in 8 bits.
//! Source: Xiao et al. 2023, SmoothQuant, section 4 (equation 4); the search is per value here.
//! Exact up to the rounding of constants. Needs: samples, and constant weights in MatMul or Gemm layers that alone read the value; the value is made
//! by a normalization with constants of one number a channel, or by its last Mul and Add. Declines, with the reason: everything else.

use super::edit::{rename, replace_each};
use super::fold_forward::{fold_into, into};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{self, Graph, Inferred, InputShapes, Linear, Model, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smooth {
    /// How much of the range moves into the weights, 0 … 1; `None`: searched for each value.
    pub alpha: Option<f64>,
    /// Samples looked at, at most.
    pub samples: usize,
    pub threads: usize,
}

const SEARCHED: [f64; 7] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Rows of all samples that the search multiplies.
const ROWS: usize = 512;

/// A value that can be scaled.
struct Value {
    id: ValueId,
    channels: usize,
    rank: usize,
    /// Constants to divide: node and slot.
    makers: Vec<(NodeId, usize)>,
    /// What is scaled with it before it is made.
    inner: Option<ValueId>,
    readers: Vec<Linear>,
}

/// What the samples hold of a value: extremes by channel, and some rows.
struct Seen {
    lo: Vec<f32>,
    hi: Vec<f32>,
    rows: Vec<f32>,
}

/// The `smooth` step.
pub fn smooth(model: &mut Model, how: &Smooth, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("smooth");
    let Some((data, samples)) = data else {
        notes.declined("", "nothing is smoothed: that needs sample inputs (--data)");
        return Ok(notes);
    };
    let inferred = graph::infer(model, &InputShapes::new());
    let mut chosen = Vec::new();
    let mut read: Vec<ValueId> =
        model.graph.nodes().filter_map(|(id, n)| Linear::of(&model.graph, id).filter(|l| l.constant).and_then(|l| n.input(l.input_slot))).collect();
    let mut met = std::collections::BTreeSet::new();
    read.retain(|v| met.insert(*v));
    for v in read {
        match find(&model.graph, &inferred, v) {
            Ok(value) => chosen.push(value),
            Err(why) => notes.declined(&model.graph.value(v).name, format!("is not smoothed: {why}")),
        }
    }
    if chosen.is_empty() {
        return Ok(notes);
    }
    let seen = look(model, &chosen, how, data, &samples[..samples.len().min(how.samples)])?;
    let mut done = 0;
    for (value, seen) in chosen.iter().zip(&seen) {
        let g = &mut model.graph;
        let name = g.value(value.id).name.clone();
        match search(g, value, seen, how.alpha)? {
            None => notes.declined(name, "is not smoothed: its layers would lose more in 8 bits"),
            Some((alpha, gain, s)) => {
                scale(g, &inferred, value, &s)?;
                notes.changed(name, format!("smoothed with α {alpha}: its layers' error in 8 bits is {gain:.2} times smaller"));
                done += 1;
            }
        }
    }
    notes.changed("", format!("{done} of {} values smoothed", chosen.len()));
    Ok(notes)
}

/// A value that layers read, if it can be scaled, or why not.
fn find(g: &Graph, inferred: &Inferred, v: ValueId) -> std::result::Result<Value, String> {
    if g.is_output(v) {
        return Err("it is an output of the model".into());
    }
    let rank = inferred.get(v).shape.as_ref().map(Vec::len).filter(|r| *r > 0).ok_or("its rank is not known")?;
    let mut readers = Vec::new();
    for port in g.value(v).uses() {
        let node = g.get_node(port.node).ok_or("a body reads it")?;
        let linear = Linear::of(g, port.node).filter(|l| l.constant && l.input_slot == port.slot as usize && matches!(node.op, Op::MatMul | Op::Gemm));
        readers.push(linear.ok_or_else(|| format!("{}, a {}, reads it", node.name, node.op_type))?);
    }
    let first = readers.first().ok_or("nothing reads it")?;
    let channels = *g.constant(first.weight).and_then(|c| c.tensor.shape().get(first.in_axis)).ok_or("a weight has no input axis")?;
    for r in &readers {
        into(g, inferred, *r, rank - 1, rank, (&vec![1.0; channels], &vec![0.0; channels]))?;
    }
    let (makers, inner) = makers(g, v, channels, rank)?;
    Ok(Value { id: v, channels, rank, makers, inner, readers })
}

/// Constants (node and slot) by which the channels of a value can be scaled, and the value between them.
type Makers = (Vec<(NodeId, usize)>, Option<ValueId>);

/// What can scale the channels of `v`, or why nothing can.
fn makers(g: &Graph, v: ValueId, channels: usize, rank: usize) -> std::result::Result<Makers, String> {
    let (id, out) = g.value(v).producer().ok_or("it is an input of the model")?;
    let node = g.node(id);
    let by_channel = |id: NodeId, slot: usize| {
        let t = g.node(id).input(slot).and_then(|c| g.constant(c)).map(|c| &c.tensor);
        t.is_some_and(|t| t.len() == channels && t.shape().last() == Some(&channels))
    };
    let of_pair = |id: NodeId| (0..2).find(|slot| by_channel(id, *slot));
    match node.op {
        Op::LayerNormalization | Op::RMSNormalization if out == 0 => {
            let axis = node.int("axis").unwrap_or(-1);
            let slots: Vec<_> = (1..3).filter(|s| node.input(*s).is_some()).map(|s| (id, s)).collect();
            let last = axis == -1 || axis == rank as i64 - 1;
            if !last || slots.is_empty() || !slots.iter().all(|(id, s)| by_channel(*id, *s)) {
                return Err(format!("{} has no constant scale of one number a channel", node.name));
            }
            Ok((slots, None))
        }
        Op::Mul => Ok((vec![(id, of_pair(id).ok_or("its factor is not one constant a channel")?)], None)),
        Op::Add => {
            let slot = of_pair(id).ok_or("its offset is not one constant a channel")?;
            let inner = node.input(1 - slot).ok_or("an Add has one input")?;
            let (mul, _) = g.value(inner).producer().filter(|(m, _)| g.node(*m).op == Op::Mul).ok_or("no Mul stands before its Add")?;
            if g.value(inner).uses().len() != 1 || g.is_output(inner) {
                return Err("what lies before its Add is read elsewhere too".into());
            }
            Ok((vec![(id, slot), (mul, of_pair(mul).ok_or("its factor is not one constant a channel")?)], Some(inner)))
        }
        _ => Err(format!("{}, a {}, makes it", node.name, node.op_type)),
    }
}

fn look(model: &Model, values: &[Value], how: &Smooth, data: &Dataset, samples: &[usize]) -> Result<Vec<Seen>> {
    let ids: Vec<ValueId> = values.iter().map(|v| v.id).collect();
    let each = ROWS.div_ceil(samples.len().max(1));
    let none = |v: &Value| Seen { lo: vec![f32::INFINITY; v.channels], hi: vec![f32::NEG_INFINITY; v.channels], rows: Vec::new() };
    let mut seen: Vec<Seen> = values.iter().map(none).collect();
    let one = |(t, v): (&Tensor, &Value)| -> Result<Seen> {
        let (x, mut s) = (t.to_f32()?, none(v));
        let n = x.len() / v.channels;
        for (r, row) in x.chunks_exact(v.channels).enumerate() {
            row.iter().enumerate().for_each(|(c, x)| (s.lo[c], s.hi[c]) = (s.lo[c].min(*x), s.hi[c].max(*x)));
            if r % n.div_ceil(each).max(1) == 0 {
                s.rows.extend(row);
            }
        }
        Ok(s)
    };
    let see = |tensors: &[Tensor]| tensors.iter().zip(values).map(one).collect::<Result<Vec<_>>>();
    data.watch(model, &ids, samples, how.threads, see, |new| {
        for (have, new) in seen.iter_mut().zip(new) {
            have.lo.iter_mut().zip(new.lo).for_each(|(a, b)| *a = a.min(b));
            have.hi.iter_mut().zip(new.hi).for_each(|(a, b)| *a = a.max(b));
            have.rows.extend(new.rows);
        }
    })?;
    Ok(seen)
}

/// The weight as rows of input channels.
fn rows_of(g: &Graph, linear: &Linear) -> Result<(Vec<f64>, usize)> {
    let weight = &g.constant(linear.weight).ok_or_else(|| Error::failed("a weight is gone"))?.tensor;
    let (channel, outs) = (linear.channels(g, weight.shape()), linear.out_channels(g));
    let mut rows = vec![0f64; weight.len()];
    for (i, w) in weight.to_f32()?.iter().enumerate() {
        let (input, out) = channel(i);
        rows[input * outs + out] = *w as f64;
    }
    Ok((rows, outs))
}

/// The α whose layers lose least, how many times less than without, and the scales. `None`: no α is better for the layers together and worse for none.
fn search(g: &Graph, value: &Value, seen: &Seen, alpha: Option<f64>) -> Result<Option<(f64, f64, Vec<f64>)>> {
    let weights = value.readers.iter().map(|l| rows_of(g, l)).collect::<Result<Vec<_>>>()?;
    let most: Vec<f64> = seen.lo.iter().zip(&seen.hi).map(|(lo, hi)| (-lo).max(*hi) as f64).collect();
    let largest = |c: usize| weights.iter().flat_map(|(w, n)| &w[c * n..(c + 1) * n]).fold(0f64, |a, w| a.max(w.abs()));
    let largest: Vec<f64> = (0..value.channels).map(largest).collect();
    if most.iter().any(|m| !m.is_finite()) {
        return Ok(None);
    }
    let before = losses(&weights, seen, &vec![1.0; value.channels]);
    let mut best: Option<(f64, f64, Vec<f64>)> = None;
    for alpha in alpha.as_slice().iter().chain(if alpha.is_some() { &[] } else { &SEARCHED[..] }) {
        crate::interrupt::check()?;
        let one = |(x, w): (&f64, &f64)| if *x == 0.0 || *w == 0.0 { 1.0 } else { (x.powf(*alpha) / w.powf(1.0 - alpha)).clamp(1e-5, 1e5) };
        let s: Vec<f64> = most.iter().zip(&largest).map(one).collect();
        let now = losses(&weights, seen, &s);
        let gain = before.iter().sum::<f64>() / now.iter().sum::<f64>();
        if now.iter().zip(&before).all(|(a, b)| a <= b) && gain > best.as_ref().map_or(1.0, |b| b.1) {
            best = Some((*alpha, gain, s));
        }
    }
    Ok(best)
}

/// Of each layer: squared error of its output over the output's energy, with x in 8 bits per tensor and the weight in 8 bits per output channel.
fn losses(weights: &[(Vec<f64>, usize)], seen: &Seen, s: &[f64]) -> Vec<f64> {
    let n = s.len();
    let lo = seen.lo.iter().zip(s).fold(0f64, |a, (x, s)| a.min(*x as f64 / s));
    let hi = seen.hi.iter().zip(s).fold(0f64, |a, (x, s)| a.max(*x as f64 / s));
    let step = ((hi - lo) / 255.0).max(f64::MIN_POSITIVE);
    let zero = (-lo / step).round_ties_even();
    let code = |x: f64| (((x / step).round_ties_even() + zero).clamp(0.0, 255.0) - zero) * step;
    let coded: Vec<f32> = seen.rows.iter().enumerate().map(|(i, x)| code(*x as f64 / s[i % n]) as f32).collect();
    let one = |(w, outs): &(Vec<f64>, usize)| {
        let mut scale = vec![0f64; *outs];
        w.iter().enumerate().for_each(|(i, w)| scale[i % outs] = scale[i % outs].max((w * s[i / outs]).abs()));
        let round = |(i, w): (usize, &f64)| {
            let step = (scale[i % outs] / 127.0).max(f64::MIN_POSITIVE);
            ((w * s[i / outs] / step).round_ties_even() * step) as f32
        };
        let (rounded, w): (Vec<f32>, Vec<f32>) = (w.iter().enumerate().map(round).collect(), w.iter().map(|w| *w as f32).collect());
        let (mut error, mut energy) = (0f64, 0f64);
        let (mut y, mut z) = (vec![0f32; *outs], vec![0f32; *outs]);
        for (x, q) in seen.rows.chunks_exact(n).zip(coded.chunks_exact(n)) {
            y.fill(0.0);
            z.fill(0.0);
            for c in 0..n {
                y.iter_mut().zip(&w[c * outs..]).for_each(|(y, w)| *y += x[c] * w);
                z.iter_mut().zip(&rounded[c * outs..]).for_each(|(z, w)| *z += q[c] * w);
            }
            for (y, z) in y.iter().zip(&z) {
                error += (*y as f64 - *z as f64).powi(2);
                energy += (*y as f64).powi(2);
            }
        }
        if energy > 0.0 { error / energy } else { error }
    };
    weights.iter().map(one).collect()
}

/// Divides what makes the value and multiplies what reads it.
fn scale(g: &mut Graph, inferred: &Inferred, value: &Value, s: &[f64]) -> Result<()> {
    let (maker, _) = value.makers[0];
    for (node, slot) in &value.makers {
        replace_each(g, *node, *slot, "smoothed", |c, x| (x as f64 / s[c]) as f32)?;
    }
    let name = g.node(maker).name.clone();
    for r in &value.readers {
        // A weight that two of them share was copied by the first.
        let linear = Linear::of(g, r.node).expect("it was one");
        fold_into(g, inferred, linear, (value.rank - 1, value.rank), (s, &vec![0.0; s.len()]), &name)?;
    }
    rename(g, value.inner.into_iter().chain([value.id]), "smoothed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, result, value};
    use super::*;
    use crate::data::{DataSettings, InputInfo};
    use crate::graph::{Dim, Node};
    use crate::tensor::DType;

    /// x → Mul → Add → two products; the fourth channel of the Mul is a hundred times the others.
    fn outlier() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, h, n, a, b] = [("x", 8), ("h", 8), ("n", 8), ("a", 6), ("b", 6)].map(|(name, c)| value(g, name, &[1, 4, c]));
        g.inputs.push(x);
        g.outputs.extend([a, b]);
        let factor = g.add_constant("f", Tensor::of_f32(&[8], (0..8).map(|c| if c == 3 { 100.0 } else { 1.0 }).collect()));
        let offset = g.add_constant("o", Tensor::of_f32(&[8], noise(&[8], 5)));
        g.add_node(Node::new(Op::Mul, "mul"), &[Some(x), Some(factor)], &[Some(h)]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(h), Some(offset)], &[Some(n)]);
        for (y, name, seed) in [(a, "q", 1), (b, "k", 2)] {
            let w = noise(&[8, 6], seed).iter().enumerate().map(|(i, w)| if i / 6 == 3 { w / 100.0 } else { *w }).collect();
            let w = g.add_constant(&format!("{name}_w"), Tensor::of_f32(&[8, 6], w));
            g.add_node(Node::new(Op::MatMul, name), &[Some(n), Some(w)], &[Some(y)]);
        }
        m
    }

    fn smoothed(m: &mut Model) -> Notes {
        let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, 4, 8].map(Dim::Known).to_vec()) };
        let data = Dataset::open("random:8", &[info], &DataSettings::default()).unwrap();
        smooth(m, &Smooth { alpha: None, samples: 8, threads: 2 }, Some((&data, &[0, 1, 2, 3, 4, 5, 6, 7]))).unwrap()
    }

    #[test]
    fn a_channel_that_stands_out_costs_five_times_less_and_the_result_stays() {
        let (before, mut after) = (outlier(), outlier());
        let notes = smoothed(&mut after);
        let x = Tensor::of_f32(&[1, 4, 8], noise(&[1, 4, 8], 9));
        for (a, b) in result(&before, &x).iter().zip(result(&after, &x)) {
            assert!((a - b).abs() <= 1e-5, "{a} {b}");
        }
        let text = notes.list().iter().find(|n| n.text.contains("times smaller")).expect("it is smoothed").text.clone();
        let gain: f64 = text.split("is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(gain >= 5.0, "{text}");
        assert!(after.graph.find_value("n").is_none() && after.graph.find_value("n_smoothed").is_some());
    }

    #[test]
    fn a_value_that_others_read_is_declined_with_the_reason() {
        let mut m = outlier();
        let n = m.graph.find_value("n").unwrap();
        let y = value(&mut m.graph, "r", &[1, 4, 8]);
        m.graph.add_node(Node::new(Op::Relu, "relu"), &[Some(n)], &[Some(y)]);
        m.graph.outputs.push(y);
        let notes = smoothed(&mut m);
        assert!(notes.list().iter().any(|n| n.text.contains("relu, a Relu, reads it")), "{notes:?}");
        assert!(m.graph.find_value("n").is_some());
    }
}
