//! What is minimised.

use super::buffers;
use super::tape::{Tape, Var};
use crate::math::sum_of;

impl Tape {
    /// The sum of all elements.
    pub fn sum(&mut self, x: Var) -> Var {
        let axes: Vec<usize> = (0..self.shape(x).len()).collect();
        let sum = self.sum_over(x, &axes);
        self.reshape(sum, &[])
    }

    /// The mean of squared differences.
    pub fn mean_square(&mut self, a: Var, b: Var) -> Var {
        let (x, y) = (self.value(a), self.value(b));
        assert_eq!(self.shape(a), self.shape(b));
        let n = x.len().max(1) as f64;
        let value = (sum_of(x, y, y, |x, y, _| (x - y) as f64 * (x - y) as f64) / n) as f32;
        self.push(vec![value], &[], &[a, b], move |tape, grad, grads| {
            let (x, y) = (tape.value(a), tape.value(b));
            let g = 2.0 * grad[0] / n as f32;
            let slopes = |x: &[f32], y: &[f32]| buffers::collect(x.len(), x.iter().zip(y).map(|(x, y)| g * (x - y)));
            grads.give_with(a, || slopes(x, y));
            grads.give_with(b, || slopes(y, x));
        })
    }

    /// The mean over rows of the Kullback-Leibler divergence of the probabilities that rows of `scores` stand for, from those of `reference`, in nats:
    /// `KL(softmax(reference) ‖ softmax(scores))` along the last axis. The reference has no gradient.
    pub fn kl_divergence(&mut self, scores: Var, reference: Var) -> Var {
        assert_eq!(self.shape(scores), self.shape(reference));
        let columns = self.shape(scores).last().copied().unwrap_or(1).max(1);
        let (x, r) = (self.value(scores), self.value(reference));
        let rows = (x.len() / columns).max(1);
        let mut value = 0.0;
        let mut slopes = Vec::with_capacity(x.len());
        for (x, r) in x.chunks_exact(columns).zip(r.chunks_exact(columns)) {
            let (a, b) = (log_sum(r), log_sum(x));
            for (x, r) in x.iter().zip(r) {
                let (p, q) = (*r as f64 - a, *x as f64 - b);
                value += if p > -80.0 { p.exp() * (p - q) } else { 0.0 };
                slopes.push(((q.exp() - p.exp()) / rows as f64) as f32);
            }
        }
        self.push(vec![(value / rows as f64) as f32], &[], &[scores], move |_, grad, grads| {
            grads.give_with(scores, || slopes.iter().map(|s| s * grad[0]).collect());
        })
    }
}

/// `ln Σ eˣ`.
fn log_sum(x: &[f32]) -> f64 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    top + x.iter().map(|v| (*v as f64 - top).exp()).sum::<f64>().ln()
}
