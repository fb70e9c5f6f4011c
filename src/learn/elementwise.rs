//! Functions of one element, and of two with ONNX's broadcasting.

use super::buffers;
use super::tape::{Grads, Tape, Var};
use crate::graph::broadcast;

/// A function of one element: its value, and its slope by operand and value.
type Slope = fn(f32, f32) -> f32;

impl Tape {
    /// Records `f` of each element; `slope` is given the operand and the value.
    pub(super) fn map(&mut self, x: Var, f: impl Fn(f32) -> f32, slope: impl Fn(f32, f32) -> f32 + Send + 'static) -> Var {
        let value = buffers::collect(self.value(x).len(), self.value(x).iter().map(|v| f(*v)));
        let shape = self.shape(x).to_vec();
        let y = self.next();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.give_with(x, || buffers::collect(grad.len(), tape.value(x).iter().zip(tape.value(y)).zip(grad).map(|((x, y), g)| g * slope(*x, *y))));
        })
    }

    fn named(&mut self, x: Var, f: fn(f32) -> f32, slope: Slope) -> Var {
        self.map(x, f, slope)
    }

    pub fn relu(&mut self, x: Var) -> Var {
        self.named(x, |x| x.max(0.0), |x, _| if x > 0.0 { 1.0 } else { 0.0 })
    }

    /// Cuts to `lo … hi`; the gradient is 0 outside.
    pub fn clip(&mut self, x: Var, lo: f32, hi: f32) -> Var {
        self.map(x, move |x| x.max(lo).min(hi), move |x, _| if x > lo && x < hi { 1.0 } else { 0.0 })
    }

    pub fn sigmoid(&mut self, x: Var) -> Var {
        self.named(x, sigmoid, |_, y| y * (1.0 - y))
    }

    pub fn tanh(&mut self, x: Var) -> Var {
        self.named(x, f32::tanh, |_, y| 1.0 - y * y)
    }

    pub fn exp(&mut self, x: Var) -> Var {
        self.named(x, f32::exp, |_, y| y)
    }

    /// The natural logarithm.
    pub fn log(&mut self, x: Var) -> Var {
        self.named(x, f32::ln, |x, _| 1.0 / x)
    }

    pub fn sqrt(&mut self, x: Var) -> Var {
        self.named(x, f32::sqrt, |_, y| 0.5 / y)
    }

    pub fn erf(&mut self, x: Var) -> Var {
        self.named(x, erf, |x, _| std::f32::consts::FRAC_2_SQRT_PI * (-x * x).exp())
    }

    /// The gradient at 0 is 0.
    pub fn abs(&mut self, x: Var) -> Var {
        self.named(x, f32::abs, |x, _| if x == 0.0 { 0.0 } else { x.signum() })
    }

    pub fn neg(&mut self, x: Var) -> Var {
        self.named(x, |x| -x, |_, _| -1.0)
    }

    pub fn reciprocal(&mut self, x: Var) -> Var {
        self.named(x, |x| 1.0 / x, |_, y| -y * y)
    }

    pub fn sin(&mut self, x: Var) -> Var {
        self.named(x, f32::sin, |x, _| x.cos())
    }

    pub fn cos(&mut self, x: Var) -> Var {
        self.named(x, f32::cos, |x, _| -x.sin())
    }

    pub fn softplus(&mut self, x: Var) -> Var {
        self.named(x, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), |x, _| sigmoid(x))
    }

    /// `slope · x` below 0.
    pub fn leaky_relu(&mut self, x: Var, slope: f32) -> Var {
        self.map(x, move |x| if x < 0.0 { slope * x } else { x }, move |x, _| if x < 0.0 { slope } else { 1.0 })
    }

    /// `alpha · (e^x − 1)` below 0, `gamma` times all of it.
    pub fn elu(&mut self, x: Var, alpha: f32, gamma: f32) -> Var {
        self.map(x, move |x| gamma * if x < 0.0 { alpha * x.exp_m1() } else { x }, move |x, _| gamma * if x < 0.0 { alpha * x.exp() } else { 1.0 })
    }

    /// `max(0, min(1, alpha · x + beta))`.
    pub fn hard_sigmoid(&mut self, x: Var, alpha: f32, beta: f32) -> Var {
        self.map(x, move |x| (alpha * x + beta).clamp(0.0, 1.0), move |_, y| if y > 0.0 && y < 1.0 { alpha } else { 0.0 })
    }

    pub fn hard_swish(&mut self, x: Var) -> Var {
        let gate = |x: f32| (x / 6.0 + 0.5).clamp(0.0, 1.0);
        self.map(x, move |x| x * gate(x), move |x, _| gate(x) + if x > -3.0 && x < 3.0 { x / 6.0 } else { 0.0 })
    }

    /// `x · sigmoid(alpha · x)`: SiLU at 1.
    pub fn swish(&mut self, x: Var, alpha: f32) -> Var {
        let slope = move |x: f32, y: f32| {
            let s = sigmoid(alpha * x);
            s + alpha * y * (1.0 - s)
        };
        self.map(x, move |x| x * sigmoid(alpha * x), slope)
    }

    /// `x · Φ(x)`.
    pub fn gelu(&mut self, x: Var) -> Var {
        let phi = |x: f32| 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        let density = |x: f32| 0.5 * std::f32::consts::FRAC_1_SQRT_2 * std::f32::consts::FRAC_2_SQRT_PI * (-0.5 * x * x).exp();
        self.map(x, move |x| x * phi(x), move |x, _| phi(x) + x * density(x))
    }

    /// Gelu by the hyperbolic tangent.
    pub fn gelu_tanh(&mut self, x: Var) -> Var {
        const C: f32 = 0.797_884_6; // sqrt(2 / π)
        let inner = |x: f32| (C * (x + 0.044_715 * x * x * x)).tanh();
        let slope = move |x: f32, _: f32| {
            let t = inner(x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C * (1.0 + 3.0 * 0.044_715 * x * x)
        };
        self.map(x, move |x| 0.5 * x * (1.0 + inner(x)), slope)
    }

    /// Records `f` of each pair; `slopes` are those by the first and the second, given both operands.
    fn pair(&mut self, a: Var, b: Var, f: impl Fn(f32, f32) -> f32, slopes: impl Fn(f32, f32) -> (f32, f32) + Send + 'static) -> Var {
        let rows = Rows::new(self.shape(a), self.shape(b));
        let (x, y) = (self.value(a), self.value(b));
        let mut value = buffers::zeros(rows.len());
        rows.each(|at, i, j, n| {
            let out = &mut value[at..at + n];
            match rows.steps {
                (1, 1) => out.iter_mut().zip(&x[i..i + n]).zip(&y[j..j + n]).for_each(|((o, x), y)| *o = f(*x, *y)),
                (1, _) => out.iter_mut().zip(&x[i..i + n]).for_each(|(o, x)| *o = f(*x, y[j])),
                (_, 1) => out.iter_mut().zip(&y[j..j + n]).for_each(|(o, y)| *o = f(x[i], *y)),
                _ => out.fill(f(x[i], y[j])),
            }
        });
        let shape = rows.shape.clone();
        self.push(value, &shape, &[a, b], move |tape, grad, grads| {
            let (x, y) = (tape.value(a), tape.value(b));
            pass_back(grads, a, grad, (x, y), &rows, false, |x, y| slopes(x, y).0);
            pass_back(grads, b, grad, (y, x), &rows, true, |y, x| slopes(x, y).1);
        })
    }

    pub fn add(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, |a, b| a + b, |_, _| (1.0, 1.0))
    }

    pub fn sub(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, |a, b| a - b, |_, _| (1.0, -1.0))
    }

    pub fn mul(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, |a, b| a * b, |a, b| (b, a))
    }

    pub fn div(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, |a, b| a / b, |a, b| (1.0 / b, -a / (b * b)))
    }

    /// `a^b`; the gradient by the exponent is that of positive bases, else 0.
    pub fn pow(&mut self, a: Var, b: Var) -> Var {
        let power = |a: f32, b: f32| if b == 2.0 { a * a } else { a.powf(b) };
        let by_exponent = |a: f32, b: f32| if a > 0.0 { a.powf(b) * a.ln() } else { 0.0 };
        self.pair(a, b, power, move |a, b| (if b == 2.0 { 2.0 * a } else { b * a.powf(b - 1.0) }, by_exponent(a, b)))
    }

    /// The larger; where both are equal the first has the gradient.
    pub fn max(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, f32::max, |a, b| if a >= b { (1.0, 0.0) } else { (0.0, 1.0) })
    }

    /// The smaller; where both are equal the first has the gradient.
    pub fn min(&mut self, a: Var, b: Var) -> Var {
        self.pair(a, b, f32::min, |a, b| if a <= b { (1.0, 0.0) } else { (0.0, 1.0) })
    }

    /// `slope · x` below 0.
    pub fn prelu(&mut self, x: Var, slope: Var) -> Var {
        self.pair(x, slope, |x, s| if x < 0.0 { s * x } else { x }, |x, s| if x < 0.0 { (s, x) } else { (1.0, 0.0) })
    }

    /// Each element times `factor`, plus `offset`.
    pub fn scale(&mut self, x: Var, factor: f32, offset: f32) -> Var {
        self.map(x, move |x| factor * x + offset, move |_, _| factor)
    }

    /// `a` where `condition` is not 0, else `b`. The condition has no gradient.
    pub fn choose(&mut self, condition: Var, a: Var, b: Var) -> Var {
        // c ≠ 0 takes all of the first and nothing of the second, infinities included.
        let first = self.pair(condition, a, |c, a| if c != 0.0 { a } else { 0.0 }, |c, _| (0.0, if c != 0.0 { 1.0 } else { 0.0 }));
        let second = self.pair(condition, b, |c, b| if c != 0.0 { 0.0 } else { b }, |c, _| (0.0, if c != 0.0 { 0.0 } else { 1.0 }));
        self.add(first, second)
    }
}

/// Adds to the gradient of operand `v` the result's times `slope`, which is given the elements of this operand and of the other (`swapped`: `v` is the second).
fn pass_back(grads: &mut Grads, v: Var, grad: &[f32], (own, other): (&[f32], &[f32]), rows: &Rows, swapped: bool, slope: impl Fn(f32, f32) -> f32) {
    grads.add_to(v, own.len(), |sum| {
        rows.each(|at, i, j, n| {
            let (i, j, steps) = if swapped { (j, i, (rows.steps.1, rows.steps.0)) } else { (i, j, rows.steps) };
            let g = &grad[at..at + n];
            match steps {
                (1, 1) => {
                    let both = own[i..i + n].iter().zip(&other[j..j + n]);
                    sum[i..i + n].iter_mut().zip(both).zip(g).for_each(|((s, (x, y)), g)| *s += g * slope(*x, *y));
                }
                (1, _) => sum[i..i + n].iter_mut().zip(&own[i..i + n]).zip(g).for_each(|((s, x), g)| *s += g * slope(*x, other[j])),
                (_, 1) => sum[i] += other[j..j + n].iter().zip(g).map(|(y, g)| g * slope(own[i], *y)).sum::<f32>(),
                _ => sum[i] += g.iter().sum::<f32>() * slope(own[i], other[j]),
            }
        })
    });
}

/// Two operands under broadcasting, as rows of neighbours.
struct Rows {
    shape: Vec<usize>,
    /// Lengths and strides of the outer dimensions.
    outer: Vec<(usize, usize, usize)>,
    length: usize,
    /// From one element of a row to the next: 0 or 1.
    steps: (usize, usize),
}

impl Rows {
    fn new(a: &[usize], b: &[usize]) -> Rows {
        let shape = broadcast(a, b).unwrap_or_else(|| panic!("{a:?} and {b:?} do not broadcast"));
        let strides = |own: &[usize]| {
            let mut at = own.iter().product::<usize>();
            let lead = shape.len() - own.len();
            (0..shape.len())
                .map(|i| {
                    if i < lead {
                        return 0;
                    }
                    at /= own[i - lead].max(1);
                    if own[i - lead] == 1 { 0 } else { at }
                })
                .collect::<Vec<usize>>()
        };
        // Neighbouring dimensions that both operands walk through evenly are one.
        let mut dims: Vec<(usize, usize, usize)> = Vec::new();
        for ((d, sa), sb) in shape.iter().zip(strides(a)).zip(strides(b)).filter(|((d, _), _)| **d != 1) {
            match dims.last_mut() {
                Some(last) if last.1 == d * sa && last.2 == d * sb => *last = (last.0 * d, sa, sb),
                _ => dims.push((*d, sa, sb)),
            }
        }
        let (length, sa, sb) = dims.pop().unwrap_or((1, 0, 0));
        Rows { shape, outer: dims, length, steps: (sa, sb) }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Calls `f` for each row with the offsets into result, first and second operand, and the row's length.
    fn each(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        if self.shape.contains(&0) {
            return;
        }
        let mut index = vec![0; self.outer.len()];
        let (mut i, mut j) = (0, 0);
        for row in 0..self.len() / self.length {
            f(row * self.length, i, j, self.length);
            for (d, (n, sa, sb)) in self.outer.iter().enumerate().rev() {
                index[d] += 1;
                (i, j) = (i + sa, j + sb);
                if index[d] < *n {
                    break;
                }
                (i, j) = (i - n * sa, j - n * sb);
                index[d] = 0;
            }
        }
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function to the precision of float32: its series about 0, and the continued fraction of its complement.
pub(super) fn erf(x: f32) -> f32 {
    let a = x.abs() as f64;
    let y = if a < 2.5 {
        // 2/√π · e^(−a²) · Σ 2ⁿ a^(2n+1) / (1·3·5…(2n+1)): all terms are positive.
        let (mut term, mut sum, mut n) = (a, a, 1.0);
        while term > 1e-9 * sum {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum
    } else if a < 4.0 {
        let fraction = (1..=24).rev().fold(a, |below, n| a + 0.5 * n as f64 / below);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    (y as f32).copysign(x)
}
