//! Values whose channels can be scaled in what makes them and back in the layers that read them.

use super::edit::{rename, replace_each};
use super::fold_forward::{fold_into, into};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Inferred, Linear, Model, NodeId, Op, Type, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;

/// Rows of all samples that searches multiply.
const ROWS: usize = 512;

/// What a value's channels are divided in.
pub(super) enum Maker {
    /// A constant of one number a channel: node and slot.
    Constant(NodeId, usize),
    /// The output channels of a layer with a constant weight, and its bias.
    Layer(NodeId),
}

/// A value that can be scaled.
pub(super) struct Value {
    pub id: ValueId,
    pub channels: usize,
    rank: usize,
    makers: Vec<Maker>,
    /// What is scaled with it before it is made.
    inner: Vec<ValueId>,
    pub readers: Vec<Linear>,
}

/// What the samples hold of a value: by channel its extremes and the sum of its sizes, and some rows.
pub(super) struct Seen {
    pub lo: Vec<f32>,
    pub hi: Vec<f32>,
    pub sizes: Vec<f64>,
    pub rows: Vec<f32>,
}

/// All values that MatMul and Gemm layers with constant weights alone read and that can be scaled: in a normalization or a Mul, with an Add behind;
/// if `paired`, also in a layer before, with Relu between or as one factor of a Mul. The others are notes: `is not WHAT`.
pub(super) fn found(g: &Graph, inferred: &Inferred, paired: bool, what: &str, notes: &mut Notes) -> Vec<Value> {
    let mut met = std::collections::BTreeSet::new();
    let linears = g.nodes().filter_map(|(id, n)| Linear::of(g, id).filter(|l| l.constant).and_then(|l| n.input(l.input_slot)));
    let read: Vec<ValueId> = linears.filter(|v| met.insert(*v)).collect();
    let mut values = Vec::new();
    for v in read {
        match find(g, inferred, v, paired) {
            Ok(value) => values.push(value),
            Err(why) => notes.declined(&g.value(v).name, format!("is not {what}: {why}")),
        }
    }
    values
}

/// A value that layers read, if it can be scaled, or why not.
fn find(g: &Graph, inferred: &Inferred, v: ValueId, paired: bool) -> std::result::Result<Value, String> {
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
    let mut value = Value { id: v, channels, rank, makers: Vec::new(), inner: Vec::new(), readers };
    makers(g, v, &mut value, paired)?;
    Ok(value)
}

/// Adds to `value` what can scale the channels of `v`, or says why nothing can.
fn makers(g: &Graph, v: ValueId, value: &mut Value, paired: bool) -> std::result::Result<(), String> {
    let (id, out) = g.value(v).producer().ok_or("it is an input of the model")?;
    let node = g.node(id);
    let by_channel = |id: NodeId, slot: usize| {
        let t = g.node(id).input(slot).and_then(|c| g.constant(c)).map(|c| &c.tensor);
        t.is_some_and(|t| t.len() == value.channels && t.shape().last() == Some(&value.channels))
    };
    let of_pair = |id: NodeId| (0..2).find(|slot| by_channel(id, *slot));
    // What lies before the node, which then is scaled too.
    let before = |slot: usize| -> std::result::Result<ValueId, String> {
        let inner = node.input(slot).ok_or_else(|| format!("{} lacks an input", node.name))?;
        if g.value(inner).uses().len() != 1 || g.is_output(inner) {
            return Err(format!("what lies before {} is read elsewhere too", node.name));
        }
        Ok(inner)
    };
    match node.op {
        Op::LayerNormalization | Op::RMSNormalization if out == 0 => {
            let axis = node.int("axis").unwrap_or(-1);
            let slots: Vec<_> = (1..3).filter(|s| node.input(*s).is_some()).collect();
            let last = axis == -1 || axis == value.rank as i64 - 1;
            if !last || slots.is_empty() || !slots.iter().all(|s| by_channel(id, *s)) {
                return Err(format!("{} has no constant scale of one number a channel", node.name));
            }
            value.makers.extend(slots.into_iter().map(|slot| Maker::Constant(id, slot)));
        }
        Op::Mul => match of_pair(id) {
            Some(slot) => value.makers.push(Maker::Constant(id, slot)),
            None if paired => {
                let full = |v: ValueId| inferred_channels(g, v) == Some(value.channels);
                let branch = (0..2).find_map(|slot| {
                    let inner = before(slot).ok()?;
                    let mut tried = Value { makers: Vec::new(), inner: vec![inner], readers: Vec::new(), ..*value };
                    (full(inner) && makers(g, inner, &mut tried, paired).is_ok()).then_some(tried)
                });
                let tried = branch.ok_or_else(|| format!("neither factor of {} is made by what can be scaled", node.name))?;
                value.makers.extend(tried.makers);
                value.inner.extend(tried.inner);
            }
            None => return Err("its factor is not one constant a channel".into()),
        },
        Op::Add => {
            let slot = of_pair(id).ok_or("its offset is not one constant a channel")?;
            let inner = before(1 - slot)?;
            if !paired && g.value(inner).producer().is_none_or(|(m, _)| g.node(m).op != Op::Mul) {
                return Err("no Mul stands before its Add".into());
            }
            value.makers.push(Maker::Constant(id, slot));
            value.inner.push(inner);
            makers(g, inner, value, paired)?;
        }
        Op::Relu if paired => {
            let inner = before(0)?;
            value.inner.push(inner);
            makers(g, inner, value, paired)?;
        }
        Op::MatMul | Op::Gemm if paired => {
            let linear = Linear::of(g, id).filter(|l| l.constant && l.input_slot == 0).ok_or_else(|| format!("{} has no constant weight", node.name))?;
            let shape = g.constant(linear.weight).map(|c| c.tensor.shape()).unwrap_or_default();
            if shape.len() != 2 || shape[linear.out_axis] != value.channels || (linear.bias.is_some() && !by_channel(id, 2)) {
                return Err(format!("{} has no output channel for each of its own", node.name));
            }
            value.makers.push(Maker::Layer(id));
        }
        _ => return Err(format!("{}, a {}, makes it", node.name, node.op_type)),
    }
    Ok(())
}

/// Numbers along the last axis, where the model says.
fn inferred_channels(g: &Graph, v: ValueId) -> Option<usize> {
    match &g.value(v).ty {
        Type::Tensor { shape: Some(shape), .. } => match shape.last() {
            Some(Dim::Known(n)) => Some(*n),
            _ => None,
        },
        _ => None,
    }
}

/// What some samples hold of each value.
pub(super) fn look(model: &Model, values: &[Value], threads: usize, data: &Dataset, samples: &[usize]) -> Result<Vec<Seen>> {
    let ids: Vec<ValueId> = values.iter().map(|v| v.id).collect();
    let each = ROWS.div_ceil(samples.len().max(1));
    let none =
        |v: &Value| Seen { lo: vec![f32::INFINITY; v.channels], hi: vec![f32::NEG_INFINITY; v.channels], sizes: vec![0.0; v.channels], rows: Vec::new() };
    let mut seen: Vec<Seen> = values.iter().map(none).collect();
    let one = |(t, v): (&Tensor, &Value)| -> Result<Seen> {
        let (x, mut s) = (t.to_f32()?, none(v));
        let n = x.len() / v.channels;
        for (r, row) in x.chunks_exact(v.channels).enumerate() {
            for (c, x) in row.iter().enumerate() {
                (s.lo[c], s.hi[c]) = (s.lo[c].min(*x), s.hi[c].max(*x));
                s.sizes[c] += x.abs() as f64;
            }
            if r % n.div_ceil(each).max(1) == 0 {
                s.rows.extend(row);
            }
        }
        Ok(s)
    };
    let see = |tensors: &[Tensor]| tensors.iter().zip(values).map(one).collect::<Result<Vec<_>>>();
    data.watch(model, &ids, samples, threads, see, |new| {
        for (have, new) in seen.iter_mut().zip(new) {
            have.lo.iter_mut().zip(new.lo).for_each(|(a, b)| *a = a.min(b));
            have.hi.iter_mut().zip(new.hi).for_each(|(a, b)| *a = a.max(b));
            have.sizes.iter_mut().zip(new.sizes).for_each(|(a, b)| *a += b);
            have.rows.extend(new.rows);
        }
    })?;
    Ok(seen)
}

/// The weight as rows of input channels.
pub(super) fn rows_of(g: &Graph, linear: &Linear) -> Result<(Vec<f64>, usize)> {
    // A weight that two layers share was copied when the first of them was scaled.
    let linear = &Linear::of(g, linear.node).unwrap_or(*linear);
    let weight = &g.constant(linear.weight).ok_or_else(|| Error::failed("a weight is gone"))?.tensor;
    let (channel, outs) = (linear.channels(g, weight.shape()), linear.out_channels(g));
    let mut rows = vec![0f64; weight.len()];
    for (i, w) in weight.to_f32()?.iter().enumerate() {
        let (input, out) = channel(i);
        rows[input * outs + out] = *w as f64;
    }
    Ok((rows, outs))
}

/// Divides what makes the value and multiplies what reads it; `what`: added to the names of values that hold other numbers now.
pub(super) fn scale(g: &mut Graph, inferred: &Inferred, value: &Value, s: &[f64], what: &str) -> Result<()> {
    let mut from = String::new();
    for maker in &value.makers {
        let node = match *maker {
            Maker::Constant(node, slot) => {
                replace_each(g, node, slot, what, |c, x| (x as f64 / s[c]) as f32)?;
                node
            }
            Maker::Layer(node) => {
                let linear = Linear::of(g, node).ok_or_else(|| Error::failed("a layer is gone"))?;
                let shape = g.constant(linear.weight).ok_or_else(|| Error::failed("a weight is gone"))?.tensor.shape().to_vec();
                let channel = linear.channels(g, &shape);
                let outs: Vec<usize> = (0..shape.iter().product()).map(|i| channel(i).1).collect();
                replace_each(g, node, linear.weight_slot, what, |i, w| (w as f64 / s[outs[i]]) as f32)?;
                if linear.bias.is_some() {
                    replace_each(g, node, 2, what, |c, b| (b as f64 / s[c]) as f32)?;
                }
                node
            }
        };
        if from.is_empty() {
            from = g.node(node).name.clone();
        }
    }
    for r in &value.readers {
        // A weight that two of them share was copied by the first.
        let linear = Linear::of(g, r.node).expect("it was one");
        fold_into(g, inferred, linear, (value.rank - 1, value.rank), (s, &vec![0.0; s.len()]), &from)?;
    }
    rename(g, value.inner.iter().copied().chain([value.id]), what);
    Ok(())
}
