//! Reductions over axes, and counting ops.

use super::numbers::Numbers;
use super::{Call, axis_of, strides, walk};
use crate::graph::Op;
use crate::tensor::{DType, Tensor};

/// The output, if the op is one of these.
pub fn eval(c: &Call) -> Option<Tensor> {
    match c.node.op {
        Op::ReduceSum | Op::ReduceMean | Op::ReduceMax | Op::ReduceMin | Op::ReduceProd => reduce(c),
        Op::CumSum => cumulate(c),
        Op::NonZero => non_zero(c),
        Op::Trilu => triangle(c),
        _ => None,
    }
}

/// The axes of a reduction; all of them where none are named, unless it is told to do nothing then.
pub fn reduced_axes(axes: Option<&[i64]>, noop: bool, rank: usize) -> Option<Vec<usize>> {
    match axes {
        Some(a) if !a.is_empty() => a.iter().map(|a| axis_of(*a, rank)).collect(),
        _ if noop => Some(Vec::new()),
        _ => Some((0..rank).collect()),
    }
}

/// A shape with `axes` reduced to one, or dropped.
pub fn reduced_shape(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let each = |i: usize| if axes.contains(&i) { keep.then_some(1) } else { Some(shape[i]) };
    (0..shape.len()).filter_map(each).collect()
}

fn reduce(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let axes = reduced_axes(c.ints(1, "axes")?.as_deref(), c.node.int("noop_with_empty_axes") == Some(1), t.rank())?;
    let shape = reduced_shape(t.shape(), &axes, c.node.int("keepdims").unwrap_or(1) != 0);
    let own = strides(t.shape());
    let (mut outer, mut outer_steps, mut inner, mut inner_steps) = (vec![], vec![], vec![], vec![]);
    for (i, (&d, &step)) in t.shape().iter().zip(&own).enumerate() {
        let (dims, steps) = if axes.contains(&i) { (&mut inner, &mut inner_steps) } else { (&mut outer, &mut outer_steps) };
        dims.push(d);
        steps.push(step);
    }
    let count: usize = inner.iter().product();
    let mut starts = Vec::with_capacity(c.allow(&outer)?);
    walk(&outer, 0, &outer_steps, |i| starts.push(i as isize));
    let op = c.node.op;
    if count == 0 && matches!(op, Op::ReduceMax | Op::ReduceMin | Op::ReduceMean) {
        return None;
    }
    let out = match Numbers::of(t)? {
        Numbers::F32(v) => Numbers::F32(
            starts
                .iter()
                .map(|&s| {
                    let mut acc = match op {
                        Op::ReduceMax => f64::NEG_INFINITY,
                        Op::ReduceMin => f64::INFINITY,
                        Op::ReduceProd => 1.0,
                        _ => 0.0,
                    };
                    walk(&inner, s, &inner_steps, |i| {
                        let x = v[i] as f64;
                        acc = match op {
                            Op::ReduceMax => acc.max(x),
                            Op::ReduceMin => acc.min(x),
                            Op::ReduceProd => acc * x,
                            _ => acc + x,
                        }
                    });
                    (if op == Op::ReduceMean { acc / count as f64 } else { acc }) as f32
                })
                .collect(),
        ),
        Numbers::I64(v) => Numbers::I64(
            starts
                .iter()
                .map(|&s| {
                    let mut all = Vec::with_capacity(count);
                    walk(&inner, s, &inner_steps, |i| all.push(v[i]));
                    Some(match op {
                        Op::ReduceMax => *all.iter().max()?,
                        Op::ReduceMin => *all.iter().min()?,
                        Op::ReduceProd => all.iter().try_fold(1i64, |a, b| a.checked_mul(*b))?,
                        Op::ReduceSum => all.iter().try_fold(0i64, |a, b| a.checked_add(*b))?,
                        _ => return None,
                    })
                })
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    };
    out.tensor(t.dtype(), &shape)
}

/// Batch normalization by the statistics given, or (`training_mode`, opset 14) by those of the input itself: as exporters write weights that are
/// standardized. Then with the running statistics, which nobody reads here.
pub fn batch_norm(c: &Call) -> Option<Vec<Tensor>> {
    let x = c.input(0)?;
    let trains = c.node.int("training_mode") == Some(1);
    let (outputs, channels) = (c.node.outputs().len(), *x.shape().get(1)?);
    if x.dtype() != DType::F32 || outputs > if trains { 3 } else { 1 } || c.node.int("spatial") == Some(0) {
        return None;
    }
    let given = (1..5).map(|slot| c.input(slot).filter(|t| t.shape() == [channels])?.to_f32().ok()).collect::<Option<Vec<_>>>()?;
    let data = x.to_f32().ok()?;
    let inner = x.shape()[2..].iter().product::<usize>();
    let of_channel = |k: usize| data.chunks_exact((channels * inner).max(1)).flat_map(move |image| &image[k * inner..(k + 1) * inner]).map(|v| *v as f64);
    let n = (data.len() / channels.max(1)).max(1) as f64;
    let own = |k: usize| {
        let mean = of_channel(k).sum::<f64>() / n;
        (mean, of_channel(k).map(|v| (v - mean).powi(2)).sum::<f64>() / n)
    };
    let (epsilon, momentum) = (c.node.float("epsilon").unwrap_or(1e-5) as f64, c.node.float("momentum").unwrap_or(0.9) as f64);
    let told = |k: usize| (given[2][k] as f64, given[3][k] as f64);
    let used: Vec<(f64, f64)> = (0..channels).map(|k| if trains { own(k) } else { told(k) }).collect();
    let one = |(k, v): (usize, &f32)| {
        let ((mean, variance), scale, bias) = (used[k], given[0][k] as f64, given[1][k] as f64);
        ((*v as f64 - mean) / (variance + epsilon).sqrt() * scale + bias) as f32
    };
    let y = data.iter().enumerate().map(|(i, v)| one((i / inner.max(1) % channels, v))).collect();
    let running = |part: fn((f64, f64)) -> f64| {
        let mixed = (0..channels).map(|k| (part(told(k)) * momentum + part(used[k]) * (1.0 - momentum)) as f32);
        Tensor::of_f32(&[channels], mixed.collect())
    };
    let mut all = vec![Tensor::of_f32(x.shape(), y), running(|s| s.0), running(|s| s.1)];
    all.truncate(outputs);
    Some(all)
}

fn cumulate(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let a = axis_of(*c.input(1)?.to_i64().ok()?.first()?, t.rank())?;
    if c.node.int("exclusive").unwrap_or(0) != 0 || c.node.int("reverse").unwrap_or(0) != 0 {
        return None;
    }
    let (n, inner): (usize, usize) = (t.shape()[a], t.shape()[a + 1..].iter().product());
    let before = |i: usize| (!(i / inner.max(1)).is_multiple_of(n.max(1))).then(|| i - inner);
    let out = match Numbers::of(t)? {
        Numbers::F32(mut v) => {
            (0..v.len()).for_each(|i| {
                if let Some(j) = before(i) {
                    v[i] += v[j]
                }
            });
            Numbers::F32(v)
        }
        Numbers::I64(mut v) => {
            (0..v.len()).for_each(|i| {
                if let Some(j) = before(i) {
                    v[i] = v[i].wrapping_add(v[j])
                }
            });
            Numbers::I64(v)
        }
        _ => return None,
    };
    out.tensor(t.dtype(), t.shape())
}

fn non_zero(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let hits: Vec<usize> = match Numbers::of(t)? {
        Numbers::Bool(v) => (0..v.len()).filter(|i| v[*i]).collect(),
        Numbers::I64(v) => (0..v.len()).filter(|i| v[*i] != 0).collect(),
        Numbers::F32(v) => (0..v.len()).filter(|i| v[*i] != 0.0).collect(),
        Numbers::F64(v) => (0..v.len()).filter(|i| v[*i] != 0.0).collect(),
    };
    let steps = strides(t.shape());
    let out = (0..t.rank()).flat_map(|d| hits.iter().map(|i| (i / steps[d] as usize % t.shape()[d]) as i64).collect::<Vec<_>>()).collect();
    Some(Tensor::of_i64(&[t.rank(), hits.len()], out))
}

fn triangle(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let k = match (c.input(1), c.node.input(1)) {
        (Some(k), _) => *k.to_i64().ok()?.first()?,
        (None, None) => 0,
        _ => return None,
    };
    let upper = c.node.int("upper").unwrap_or(1) != 0;
    let w = super::width(t.dtype()).filter(|_| t.rank() >= 2)?;
    let (rows, cols) = (t.shape()[t.rank() - 2], t.shape()[t.rank() - 1]);
    let mut out = t.bytes().to_vec();
    for (i, element) in out.chunks_exact_mut(w).enumerate() {
        let (r, col) = ((i / cols % rows) as i64, (i % cols) as i64);
        if if upper { col < r.saturating_add(k) } else { col > r.saturating_add(k) } {
            element.fill(0);
        }
    }
    debug_assert_ne!(t.dtype(), DType::Str);
    Tensor::new(t.dtype(), t.shape().to_vec(), out.into()).ok()
}
