//! Softmax, and normalisation to a mean of 0 and a spread of 1.

use super::buffers;
use super::tape::{Tape, Var};

/// Lengths along and behind an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

impl Tape {
    /// Exponentials over their sum along `axis`.
    pub fn softmax(&mut self, x: Var, axis: usize) -> Var {
        let shape = self.shape(x).to_vec();
        let (n, inner) = around(&shape, axis);
        let mut value = buffers::copy(self.value(x));
        each_line(value.len(), n, inner, |at| {
            let top = (0..n).map(|k| value[at + k * inner]).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for k in 0..n {
                let e = (value[at + k * inner] - top).exp();
                value[at + k * inner] = e;
                sum += e;
            }
            (0..n).for_each(|k| value[at + k * inner] /= sum);
        });
        let y = self.next();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.give_with(x, || {
                let (y, mut dx) = (tape.value(y), buffers::copy(grad));
                each_line(dx.len(), n, inner, |at| {
                    let mean: f32 = (0..n).map(|k| grad[at + k * inner] * y[at + k * inner]).sum();
                    (0..n).for_each(|k| dx[at + k * inner] = y[at + k * inner] * (grad[at + k * inner] - mean));
                });
                dx
            });
        })
    }

    /// The logarithm of [`Tape::softmax`].
    pub fn log_softmax(&mut self, x: Var, axis: usize) -> Var {
        let shape = self.shape(x).to_vec();
        let (n, inner) = around(&shape, axis);
        let mut value = buffers::copy(self.value(x));
        each_line(value.len(), n, inner, |at| {
            let top = (0..n).map(|k| value[at + k * inner]).fold(f32::NEG_INFINITY, f32::max);
            let log = top + (0..n).map(|k| (value[at + k * inner] - top).exp()).sum::<f32>().ln();
            (0..n).for_each(|k| value[at + k * inner] -= log);
        });
        let y = self.next();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.give_with(x, || {
                let (y, mut dx) = (tape.value(y), buffers::copy(grad));
                each_line(dx.len(), n, inner, |at| {
                    let sum: f32 = (0..n).map(|k| grad[at + k * inner]).sum();
                    (0..n).for_each(|k| dx[at + k * inner] -= y[at + k * inner].exp() * sum);
                });
                dx
            });
        })
    }

    /// Each row of `length` neighbours less its mean (unless it is to be kept), over its standard deviation or root mean square: what Layer-, RMS-,
    /// Instance- and GroupNormalization do before they scale.
    pub fn normalize(&mut self, x: Var, length: usize, epsilon: f32, keep_mean: bool) -> Var {
        let shape = self.shape(x).to_vec();
        let mut value = buffers::copy(self.value(x));
        let n = length.max(1) as f32;
        let mut slopes = Vec::with_capacity(value.len() / length.max(1));
        for row in value.chunks_exact_mut(length.max(1)) {
            let mean = if keep_mean { 0.0 } else { row.iter().map(|v| *v as f64).sum::<f64>() as f32 / n };
            row.iter_mut().for_each(|v| *v -= mean);
            let slope = 1.0 / (row.iter().map(|v| (v * v) as f64).sum::<f64>() as f32 / n + epsilon).sqrt();
            row.iter_mut().for_each(|v| *v *= slope);
            slopes.push(slope);
        }
        let y = self.next();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.give_with(x, || {
                let mut dx = buffers::copy(grad);
                for ((dx, y), slope) in dx.chunks_exact_mut(length.max(1)).zip(tape.value(y).chunks_exact(length.max(1))).zip(&slopes) {
                    let along = dx.iter().zip(y).map(|(g, y)| g * y).sum::<f32>() / n;
                    let mean = if keep_mean { 0.0 } else { dx.iter().sum::<f32>() / n };
                    dx.iter_mut().zip(y).for_each(|(g, y)| *g = slope * (*g - mean - y * along));
                }
                dx
            });
        })
    }
}

/// Calls `f` with the first element of each line of `n` elements that lie `inner` apart.
fn each_line(len: usize, n: usize, inner: usize, mut f: impl FnMut(usize)) {
    if len > 0 {
        (0..len / n).for_each(|i| f(i / inner * n * inner + i % inner));
    }
}
