//! Element-wise operators, with broadcasting: in float32, float64, int64 or bool, as the elements are.

use super::numbers::Numbers;
use super::{Call, broadcast, broadcast_strides, strides, walk};
use crate::graph::{AttrValue, Op};
use crate::tensor::{DType, Tensor};

/// The output, if the op is one of these.
pub fn eval(c: &Call) -> Option<Tensor> {
    match c.node.op {
        Op::Cast => cast(c),
        Op::Range => range(c),
        Op::MatMul => matmul(c),
        Op::Clip => clip(c),
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Mod | Op::Pow => binary(c, c.input(0)?, c.input(1)?),
        Op::Min | Op::Max | Op::Sum => {
            let parts: Vec<&Tensor> = c.inputs.iter().copied().collect::<Option<_>>()?;
            let (first, rest) = parts.split_first()?;
            rest.iter().try_fold((*first).clone(), |a, b| binary(c, &a, b))
        }
        Op::Equal | Op::Less | Op::LessOrEqual | Op::Greater | Op::GreaterOrEqual | Op::And | Op::Or | Op::Xor => compare(c),
        Op::Not => {
            let t = c.input(0)?;
            (t.dtype() == DType::Bool).then(|| Tensor::of(DType::Bool, t.shape(), t.bytes().iter().map(|b| (*b == 0) as u8).collect::<Vec<_>>()))
        }
        _ => unary(c),
    }
}

fn cast(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let to = DType::of_onnx(i32::try_from(c.node.int("to")?).ok()?)?;
    if to == t.dtype() {
        return Some(t.clone());
    }
    Numbers::of(t)?.tensor(to, t.shape())
}

fn range(c: &Call) -> Option<Tensor> {
    let (start, limit, delta) = (c.input(0)?, c.input(1)?, c.input(2)?);
    let dtype = start.dtype();
    match (Numbers::of(start)?, Numbers::of(limit)?, Numbers::of(delta)?) {
        (Numbers::I64(s), Numbers::I64(l), Numbers::I64(d)) => {
            let (s, l, d) = (*s.first()?, *l.first()?, *d.first()?);
            let span = l.checked_sub(s)?;
            if d == 0 {
                return None;
            }
            let n = if (span > 0) == (d > 0) { usize::try_from((span.unsigned_abs()).div_ceil(d.unsigned_abs())).ok()? } else { 0 };
            c.allow(&[n])?;
            Numbers::I64((0..n as i64).map(|i| s + i * d).collect()).tensor(dtype, &[n])
        }
        (Numbers::F32(s), Numbers::F32(l), Numbers::F32(d)) => {
            let (s, l, d) = (*s.first()?, *l.first()?, *d.first()?);
            let n = ((l - s) / d).ceil().max(0.0);
            if !n.is_finite() || n as f64 > c.limit as f64 {
                return None;
            }
            Numbers::F32((0..n as usize).map(|i| s + i as f32 * d).collect()).tensor(dtype, &[n as usize])
        }
        _ => None,
    }
}

/// Pairs of elements under broadcasting.
fn pairs<A: Copy, R>(c: &Call, shape: &[usize], (a, sa): (&[A], &[usize]), (b, sb): (&[A], &[usize]), f: impl Fn(A, A) -> Option<R>) -> Option<Vec<R>> {
    let n = c.allow(shape)?;
    if sa == shape && sb == shape {
        return a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect();
    }
    let mut left = Vec::with_capacity(n);
    walk(shape, 0, &broadcast_strides(sa, shape), |i| left.push(i));
    let mut out = Vec::with_capacity(n);
    let mut at = left.into_iter();
    walk(shape, 0, &broadcast_strides(sb, shape), |i| out.push(f(a[at.next().unwrap_or(0)], b[i])));
    out.into_iter().collect()
}

fn binary(c: &Call, a: &Tensor, b: &Tensor) -> Option<Tensor> {
    let shape = broadcast(a.shape(), b.shape())?;
    let op = c.node.op;
    if a.dtype() != b.dtype() && op != Op::Pow {
        return None;
    }
    let float = |x: f64, y: f64| {
        Some(match op {
            Op::Pow => x.powf(y),
            _ if c.node.int("fmod") == Some(1) => x % y,
            _ => return None,
        })
    };
    let out = match (Numbers::of(a)?, Numbers::of(b)?) {
        (Numbers::F32(x), Numbers::F32(y)) => Numbers::F32(pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| {
            Some(match op {
                Op::Add | Op::Sum => x + y,
                Op::Sub => x - y,
                Op::Mul => x * y,
                Op::Div => x / y,
                Op::Min => {
                    if x.is_nan() || x < y {
                        x
                    } else {
                        y
                    }
                }
                Op::Max => {
                    if x.is_nan() || x > y {
                        x
                    } else {
                        y
                    }
                }
                Op::Pow => x.powf(y),
                _ => float(x as f64, y as f64)? as f32,
            })
        })?),
        (Numbers::F64(x), Numbers::F64(y)) => Numbers::F64(pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| {
            Some(match op {
                Op::Add | Op::Sum => x + y,
                Op::Sub => x - y,
                Op::Mul => x * y,
                Op::Div => x / y,
                Op::Min => x.min(y),
                Op::Max => x.max(y),
                _ => float(x, y)?,
            })
        })?),
        (Numbers::I64(x), Numbers::I64(y)) => Numbers::I64(pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| {
            Some(match op {
                Op::Add | Op::Sum => x.wrapping_add(y),
                Op::Sub => x.wrapping_sub(y),
                Op::Mul => x.wrapping_mul(y),
                Op::Div => x.checked_div(y)?,
                Op::Mod if c.node.int("fmod") == Some(1) => x.checked_rem(y)?,
                Op::Mod => x.checked_rem(y)?.checked_add(if (x % y != 0) && ((x < 0) != (y < 0)) { y } else { 0 })?,
                Op::Min => x.min(y),
                Op::Max => x.max(y),
                Op::Pow => x.checked_pow(u32::try_from(y).ok()?)?,
                _ => return None,
            })
        })?),
        // A float base with an exponent of another type.
        (Numbers::F32(x), other) if op == Op::Pow => {
            let Numbers::F32(y) = numbers_as_f32(other) else { return None };
            Numbers::F32(pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| Some(x.powf(y)))?)
        }
        _ => return None,
    };
    out.tensor(a.dtype(), &shape)
}

fn numbers_as_f32(n: Numbers) -> Numbers {
    match n {
        Numbers::I64(v) => Numbers::F32(v.into_iter().map(|x| x as f32).collect()),
        Numbers::F64(v) => Numbers::F32(v.into_iter().map(|x| x as f32).collect()),
        n => n,
    }
}

fn compare(c: &Call) -> Option<Tensor> {
    fn holds<T: PartialOrd>(op: Op, x: T, y: T) -> Option<bool> {
        Some(match op {
            Op::Equal => x == y,
            Op::Less => x < y,
            Op::LessOrEqual => x <= y,
            Op::Greater => x > y,
            Op::GreaterOrEqual => x >= y,
            _ => return None,
        })
    }
    let (a, b) = (c.input(0)?, c.input(1)?);
    let shape = broadcast(a.shape(), b.shape())?;
    if a.dtype() != b.dtype() {
        return None;
    }
    let op = c.node.op;
    let out: Vec<bool> = match (Numbers::of(a)?, Numbers::of(b)?) {
        (Numbers::F32(x), Numbers::F32(y)) => pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| holds(op, x, y))?,
        (Numbers::F64(x), Numbers::F64(y)) => pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| holds(op, x, y))?,
        (Numbers::I64(x), Numbers::I64(y)) => pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| holds(op, x, y))?,
        (Numbers::Bool(x), Numbers::Bool(y)) => pairs(c, &shape, (&x, a.shape()), (&y, b.shape()), |x, y| {
            Some(match op {
                Op::And => x & y,
                Op::Or => x | y,
                Op::Xor => x ^ y,
                Op::Equal => x == y,
                _ => return None,
            })
        })?,
        _ => return None,
    };
    Numbers::Bool(out).tensor(DType::Bool, &shape)
}

fn clip(c: &Call) -> Option<Tensor> {
    let t = c.input(0)?;
    let bound = |slot: usize, name: &str| -> Option<Option<Numbers>> {
        match (c.input(slot), c.node.input(slot), c.node.float(name)) {
            (Some(t), ..) => Some(Some(Numbers::of(t)?)),
            (None, Some(_), _) => None,
            (None, None, f) => Some(f.map(|f| Numbers::F32(vec![f]))),
        }
    };
    let (lo, hi) = (bound(1, "min")?, bound(2, "max")?);
    let out = match Numbers::of(t)? {
        Numbers::F32(v) => {
            let edge = |n: Option<Numbers>, or: f32| match n {
                None => Some(or),
                Some(Numbers::F32(v)) => v.first().copied(),
                _ => None,
            };
            let (lo, hi) = (edge(lo, f32::NEG_INFINITY)?, edge(hi, f32::INFINITY)?);
            Numbers::F32(v.into_iter().map(|x| x.max(lo).min(hi)).collect())
        }
        Numbers::I64(v) => {
            let edge = |n: Option<Numbers>, or: i64| match n {
                None => Some(or),
                Some(Numbers::I64(v)) => v.first().copied(),
                _ => None,
            };
            let (lo, hi) = (edge(lo, i64::MIN)?, edge(hi, i64::MAX)?);
            Numbers::I64(v.into_iter().map(|x| x.max(lo).min(hi)).collect())
        }
        _ => return None,
    };
    out.tensor(t.dtype(), t.shape())
}

fn unary(c: &Call) -> Option<Tensor> {
    let op = c.node.op;
    let real: fn(f64) -> f64 = match op {
        Op::Sqrt => f64::sqrt,
        Op::Exp => f64::exp,
        Op::Log => f64::ln,
        Op::Sin => f64::sin,
        Op::Cos => f64::cos,
        Op::Tan => f64::tan,
        Op::Tanh => f64::tanh,
        Op::Floor => f64::floor,
        Op::Ceil => f64::ceil,
        Op::Round => f64::round_ties_even,
        Op::Sigmoid => |x| 1.0 / (1.0 + (-x).exp()),
        Op::Reciprocal => |x| 1.0 / x,
        Op::Neg => |x| -x,
        Op::Abs => f64::abs,
        Op::Sign => |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        },
        Op::Relu => |x| if x > 0.0 { x } else { 0.0 },
        _ => return None,
    };
    let t = c.input(0)?;
    if !c.node.attrs.iter().all(|a| matches!(a.value, AttrValue::Other)) {
        return None;
    }
    let out = match Numbers::of(t)? {
        Numbers::F32(v) => Numbers::F32(v.into_iter().map(|x| real(x as f64) as f32).collect()),
        Numbers::F64(v) => Numbers::F64(v.into_iter().map(real).collect()),
        Numbers::I64(v) => Numbers::I64(match op {
            Op::Neg => v.into_iter().map(i64::wrapping_neg).collect(),
            Op::Abs => v.into_iter().map(i64::wrapping_abs).collect(),
            Op::Sign => v.into_iter().map(i64::signum).collect(),
            Op::Relu => v.into_iter().map(|x| x.max(0)).collect(),
            _ => return None,
        }),
        Numbers::Bool(_) => return None,
    };
    out.tensor(t.dtype(), t.shape())
}

/// Products of constants, in float32 with float64 sums.
fn matmul(c: &Call) -> Option<Tensor> {
    let (a, b) = (c.input(0)?, c.input(1)?);
    if a.rank() < 2 || b.rank() < 2 || a.dtype() != DType::F32 || b.dtype() != DType::F32 {
        return None;
    }
    let (m, k, n) = (a.shape()[a.rank() - 2], a.shape()[a.rank() - 1], b.shape()[b.rank() - 1]);
    let (outer_a, outer_b) = (&a.shape()[..a.rank() - 2], &b.shape()[..b.rank() - 2]);
    let outer = broadcast(outer_a, outer_b)?;
    if b.shape()[b.rank() - 2] != k || m.checked_mul(n)?.checked_mul(k)? > c.limit {
        return None;
    }
    let mut shape = outer.clone();
    shape.extend([m, n]);
    let (x, y) = (a.to_f32().ok()?, b.to_f32().ok()?);
    let mut out = Vec::with_capacity(c.allow(&shape)?);
    let offsets = |s: &[usize], each: usize| {
        let steps: Vec<isize> = broadcast_strides(s, &outer).iter().map(|d| d * each as isize).collect();
        let mut v = Vec::new();
        walk(&outer, 0, &steps, |i| v.push(i));
        v
    };
    debug_assert_eq!(strides(&outer).len(), outer.len());
    for (oa, ob) in offsets(outer_a, m * k).into_iter().zip(offsets(outer_b, k * n)) {
        for i in 0..m {
            for j in 0..n {
                out.push((0..k).map(|l| x[oa + i * k + l] as f64 * y[ob + l * n + j] as f64).sum::<f64>() as f32);
            }
        }
    }
    Some(Tensor::of_f32(&shape, out))
}
