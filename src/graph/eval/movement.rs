//! Operators that move elements of any type without looking at them.

use super::{Call, axis_of, broadcast, broadcast_strides, strides, walk, width};
use crate::graph::{AttrValue, Op};
use crate::tensor::{DType, Tensor};

/// The output, if the op is one of these.
pub fn eval(c: &Call) -> Option<Tensor> {
    match c.node.op {
        Op::Identity => Some(c.input(0)?.clone()),
        Op::Constant => constant(c),
        Op::Shape => shape(c),
        Op::Size => Some(Tensor::of_i64(&[], vec![c.input(0)?.len() as i64])),
        Op::Reshape => reshape(c),
        Op::Flatten => flatten(c),
        Op::Squeeze => squeeze(c),
        Op::Unsqueeze => unsqueeze(c),
        Op::Transpose => transpose(c),
        Op::Slice => slice(c),
        Op::Gather => gather(c),
        Op::Concat => concat(c),
        Op::Expand => expand(c),
        Op::Tile => tile(c),
        Op::Pad => pad(c),
        Op::Where => choose(c),
        Op::ConstantOfShape => fill(c),
        Op::Dropout if c.node.outputs().len() == 1 && c.input(2).is_none_or(|t| t.bytes().iter().all(|b| *b == 0)) => Some(c.input(0)?.clone()),
        _ => None,
    }
}

/// Reads `t` through a start and strides.
fn view(c: &Call, t: &Tensor, shape: &[usize], start: isize, steps: &[isize]) -> Option<Tensor> {
    let n = c.allow(shape)?;
    let w = width(t.dtype())?;
    let from = t.bytes();
    let mut out = Vec::with_capacity(n * w);
    walk(shape, start, steps, |i| out.extend_from_slice(&from[i * w..(i + 1) * w]));
    Tensor::new(t.dtype(), shape.to_vec(), out.into()).ok()
}

fn constant(c: &Call) -> Option<Tensor> {
    let n = c.node;
    Some(match (n.attr("value"), n.int("value_int"), n.float("value_float"), n.ints("value_ints")) {
        (Some(AttrValue::Tensor(t)), ..) => t.tensor.clone(),
        (_, Some(i), ..) => Tensor::of_i64(&[], vec![i]),
        (_, _, Some(f), _) => Tensor::scalar(f),
        (_, _, _, Some(v)) => Tensor::of_i64(&[v.len()], v.to_vec()),
        _ => match n.attr("value_floats")? {
            AttrValue::Floats(v) => Tensor::of_f32(&[v.len()], v.clone()),
            _ => return None,
        },
    })
}

fn shape(c: &Call) -> Option<Tensor> {
    let s = c.input(0)?.shape();
    let (a, b) = shape_window(c.node.int("start"), c.node.int("end"), s.len());
    let dims: Vec<i64> = s[a..b].iter().map(|d| *d as i64).collect();
    Some(Tensor::of_i64(&[dims.len()], dims))
}

/// The dimensions that Shape's `start` and `end` leave.
pub fn shape_window(start: Option<i64>, end: Option<i64>, rank: usize) -> (usize, usize) {
    let clamp = |i: i64| (if i < 0 { i + rank as i64 } else { i }).clamp(0, rank as i64) as usize;
    let (a, b) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(rank as i64)));
    (a, b.max(a))
}

/// Reshape's target, with its 0 and −1 resolved.
pub fn resolve_shape(from: &[usize], to: &[i64], allowzero: bool) -> Option<Vec<usize>> {
    let mut shape: Vec<Option<usize>> = Vec::with_capacity(to.len());
    for (i, &d) in to.iter().enumerate() {
        shape.push(match d {
            0 if !allowzero => Some(*from.get(i)?),
            -1 => None,
            d => Some(usize::try_from(d).ok()?),
        });
    }
    let total = crate::tensor::numel(from)?;
    let known = shape.iter().flatten().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match shape.iter().filter(|d| d.is_none()).count() {
        0 => (known == total).then(|| shape.into_iter().flatten().collect()),
        1 if known > 0 && total % known == 0 => Some(shape.into_iter().map(|d| d.unwrap_or(total / known)).collect()),
        _ => None,
    }
}

fn reshape(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let to = c.ints(1, "shape")??;
    t.reshaped(resolve_shape(t.shape(), &to, c.node.int("allowzero") == Some(1))?).ok()
}

fn flatten(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let axis = c.node.int("axis").unwrap_or(1);
    let a = if axis == t.rank() as i64 { t.rank() } else { axis_of(axis, t.rank())? };
    t.reshaped(vec![t.shape()[..a].iter().product(), t.shape()[a..].iter().product()]).ok()
}

fn squeeze(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let axes = c.ints(1, "axes")?;
    t.reshaped(squeezed(t.shape(), axes.as_deref())?).ok()
}

/// A shape without the dimensions `axes`, or without all ones.
pub fn squeezed(shape: &[usize], axes: Option<&[i64]>) -> Option<Vec<usize>> {
    let drop: Vec<usize> = match axes {
        Some(axes) => axes.iter().map(|a| axis_of(*a, shape.len())).collect::<Option<_>>()?,
        None => (0..shape.len()).filter(|i| shape[*i] == 1).collect(),
    };
    if drop.iter().any(|i| shape[*i] != 1) {
        return None;
    }
    Some((0..shape.len()).filter(|i| !drop.contains(i)).map(|i| shape[i]).collect())
}

fn unsqueeze(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let mut axes: Vec<usize> = {
        let axes = c.ints(1, "axes")??;
        let rank = t.rank() + axes.len();
        axes.iter().map(|a| axis_of(*a, rank)).collect::<Option<_>>()?
    };
    axes.sort();
    let mut shape = t.shape().to_vec();
    for a in axes {
        if a > shape.len() {
            return None;
        }
        shape.insert(a, 1);
    }
    t.reshaped(shape).ok()
}

fn transpose(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let r = t.rank();
    let perm: Vec<usize> = match c.node.ints("perm") {
        Some(p) => p.iter().map(|a| axis_of(*a, r)).collect::<Option<_>>()?,
        None => (0..r).rev().collect(),
    };
    if perm.len() != r {
        return None;
    }
    let own = strides(t.shape());
    view(c, t, &perm.iter().map(|p| t.shape()[*p]).collect::<Vec<_>>(), 0, &perm.iter().map(|p| own[*p]).collect::<Vec<_>>())
}

/// One axis of a Slice: first index, number of elements and step.
pub fn slice_axis(len: usize, start: i64, end: i64, step: i64) -> Option<(usize, usize)> {
    let n = len as i64;
    let wrap = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
    match step {
        0 => None,
        1.. => {
            let (a, b) = (wrap(start).clamp(0, n), wrap(end).clamp(0, n));
            Some((a as usize, ((b - a).max(0) as usize).div_ceil(step as usize)))
        }
        _ => {
            let (a, b) = (wrap(start).clamp(-1, n - 1), if end == i64::MIN { -1 } else { wrap(end).clamp(-1, n - 1) });
            Some((a.max(0) as usize, ((a - b).max(0) as usize).div_ceil(step.unsigned_abs() as usize)))
        }
    }
}

fn slice(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let (starts, ends) = (c.ints(1, "starts")??, c.ints(2, "ends")??);
    let axes = c.ints(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = c.ints(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    let (mut shape, mut step, mut start) = (t.shape().to_vec(), strides(t.shape()), 0isize);
    for i in 0..starts.len() {
        let a = axis_of(*axes.get(i)?, t.rank())?;
        let (first, count) = slice_axis(t.shape()[a], starts[i], *ends.get(i)?, *steps.get(i)?)?;
        shape[a] = count;
        start += step[a] * first as isize;
        step[a] *= steps[i] as isize;
    }
    view(c, t, &shape, start, &step)
}

fn gather(c: &Call) -> Option<Tensor> {
    let (t, index) = (c.input(0)?, c.input(1)?);
    let a = axis_of(c.node.int("axis").unwrap_or(0), t.rank())?;
    let n = t.shape()[a];
    let index_values: Vec<usize> = index.to_i64().ok()?.into_iter().map(|i| axis_of(i, n)).collect::<Option<_>>()?;
    let w = width(t.dtype())?;
    let inner: usize = t.shape()[a + 1..].iter().product::<usize>() * w;
    let outer: usize = t.shape()[..a].iter().product();
    let mut shape = t.shape()[..a].to_vec();
    shape.extend(index.shape());
    shape.extend(&t.shape()[a + 1..]);
    let mut out = Vec::with_capacity(c.allow(&shape)? * w);
    for o in 0..outer {
        for i in &index_values {
            let at = (o * n + i) * inner;
            out.extend_from_slice(&t.bytes()[at..at + inner]);
        }
    }
    Tensor::new(t.dtype(), shape, out.into()).ok()
}

fn concat(c: &Call) -> Option<Tensor> {
    let parts: Vec<&Tensor> = c.inputs.iter().copied().collect::<Option<_>>()?;
    let first = *parts.first()?;
    let a = axis_of(c.node.int("axis")?, first.rank())?;
    let same = |p: &&Tensor| p.rank() == first.rank() && p.dtype() == first.dtype() && (0..first.rank()).all(|i| i == a || p.shape()[i] == first.shape()[i]);
    if !parts.iter().all(same) {
        return None;
    }
    let w = width(first.dtype())?;
    let mut shape = first.shape().to_vec();
    shape[a] = parts.iter().map(|p| p.shape()[a]).sum();
    let mut out = Vec::with_capacity(c.allow(&shape)? * w);
    for o in 0..shape[..a].iter().product() {
        for p in &parts {
            let run = p.shape()[a..].iter().product::<usize>() * w;
            out.extend_from_slice(&p.bytes()[o * run..(o + 1) * run]);
        }
    }
    Tensor::new(first.dtype(), shape, out.into()).ok()
}

/// Lengths of Split's outputs along an axis of `len`.
pub fn split_lengths(len: usize, outputs: usize, split: Option<&[i64]>) -> Option<Vec<usize>> {
    match split {
        Some(s) => {
            let s: Vec<usize> = s.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
            (s.len() == outputs && s.iter().sum::<usize>() == len).then_some(s)
        }
        None => {
            let each = len.div_ceil(outputs.max(1));
            Some((0..outputs).map(|i| each.min(len.saturating_sub(i * each))).collect())
        }
    }
}

/// Split has several outputs.
pub fn split(c: &Call) -> Option<Vec<Tensor>> {
    let t = c.input(0)?;
    let a = axis_of(c.node.int("axis").unwrap_or(0), t.rank())?;
    let lengths = split_lengths(t.shape()[a], c.node.outputs().len(), c.ints(1, "split")?.as_deref())?;
    let steps = strides(t.shape());
    let mut at = 0isize;
    lengths
        .into_iter()
        .map(|n| {
            let mut shape = t.shape().to_vec();
            shape[a] = n;
            let part = view(c, t, &shape, at * steps[a], &steps);
            at += n as isize;
            part
        })
        .collect()
}

fn expand(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let to: Vec<usize> = c.ints(1, "shape")??.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let shape = broadcast(t.shape(), &to)?;
    view(c, t, &shape, 0, &broadcast_strides(t.shape(), &shape))
}

fn tile(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let repeats: Vec<usize> = c.ints(1, "repeats")??.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    if repeats.len() != t.rank() {
        return None;
    }
    // Each dimension as [repeat, length], the repeat with stride zero.
    let own = strides(t.shape());
    let (mut shape, mut steps) = (Vec::new(), Vec::new());
    for i in 0..t.rank() {
        shape.extend([repeats[i], t.shape()[i]]);
        steps.extend([0, own[i]]);
    }
    let flat = view(c, t, &shape, 0, &steps)?;
    flat.reshaped((0..t.rank()).map(|i| repeats[i] * t.shape()[i]).collect()).ok()
}

fn pad(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    if c.node.str("mode").unwrap_or("constant") != "constant" || c.node.input(3).is_some() {
        return None;
    }
    let pads = c.ints(1, "pads")??;
    if pads.len() != 2 * t.rank() || pads.iter().any(|p| *p < 0) {
        return None;
    }
    let w = width(t.dtype())?;
    let filler: Vec<u8> = match (c.input(2), c.node.input(2), c.node.float("value")) {
        (Some(v), ..) if v.dtype() == t.dtype() && v.len() == 1 => v.bytes().to_vec(),
        (None, None, None) => vec![0; w],
        (None, None, Some(v)) if t.dtype() == DType::F32 => v.to_le_bytes().to_vec(),
        _ => return None,
    };
    let shape: Vec<usize> =
        (0..t.rank()).map(|i| t.shape()[i].checked_add(pads[i] as usize)?.checked_add(pads[i + t.rank()] as usize)).collect::<Option<_>>()?;
    let mut out = filler.repeat(c.allow(&shape)?);
    let steps = strides(&shape);
    let start: isize = (0..t.rank()).map(|i| pads[i] as isize * steps[i]).sum();
    let mut from = 0;
    walk(t.shape(), start, &steps, |to| {
        out[to * w..(to + 1) * w].copy_from_slice(&t.bytes()[from..from + w]);
        from += w;
    });
    Tensor::new(t.dtype(), shape, out.into()).ok()
}

fn choose(c: &Call) -> Option<Tensor> {
    let (cond, a, b) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let shape = broadcast(&broadcast(cond.shape(), a.shape())?, b.shape())?;
    let spread = |t: &Tensor| view(c, t, &shape, 0, &broadcast_strides(t.shape(), &shape));
    let (cond, a, b) = (spread(cond)?, spread(a)?, spread(b)?);
    if a.dtype() != b.dtype() {
        return None;
    }
    let w = width(a.dtype())?;
    let pick = |(i, c): (usize, &u8)| if *c != 0 { &a.bytes()[i * w..(i + 1) * w] } else { &b.bytes()[i * w..(i + 1) * w] };
    let out: Vec<u8> = cond.bytes().iter().enumerate().flat_map(pick).copied().collect();
    Tensor::new(a.dtype(), shape, out.into()).ok()
}

fn fill(c: &Call) -> Option<Tensor> {
    let shape: Vec<usize> = c.input(0)?.to_i64().ok()?.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let n = c.allow(&shape)?;
    match c.node.attr("value") {
        None => Some(Tensor::of_f32(&shape, vec![0.0; n])),
        Some(AttrValue::Tensor(t)) if t.tensor.len() == 1 && width(t.tensor.dtype()).is_some() => {
            Tensor::new(t.tensor.dtype(), shape, t.tensor.bytes().repeat(n).into()).ok()
        }
        _ => None,
    }
}
