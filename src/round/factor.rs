//! Second moments of what a layer reads, as the factor that rounding reads.

use super::inputs::Group;
use crate::math::cholesky;
use rayon::prelude::*;

/// What is left of the energy of means.
const MEAN: f64 = 0.25;

/// The factor of a layer's second moments.
pub(super) struct Factor {
    /// Inputs in ascending order of their energy: the last is rounded first.
    pub order: Vec<usize>,
    /// By column `k`: `L_jk / L_kk` for `j` from `k` on; and `L_kk²`.
    pub columns: Vec<f32>,
    pub pivots: Vec<f64>,
}

impl Factor {
    pub fn of(sums: &Group, count: usize, damping: f64) -> Factor {
        let n = sums.numbers.len();
        let rows = count.max(1) as f64;
        let means: Vec<f64> = sums.numbers.iter().map(|sum| sum / rows).collect();
        let moment = |i: usize, j: usize| sums.products[i.max(j) * n + i.min(j)] as f64 / rows - (1.0 - MEAN) * means[i] * means[j];
        let energy = |i: usize| moment(i, i);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| energy(*a).total_cmp(&energy(*b)).then(b.cmp(a)));
        let mean = (0..n).map(energy).sum::<f64>() / n as f64;
        let mut damping = damping * mean.max(f64::MIN_POSITIVE);
        let (mut pivots, mut columns) = (vec![1.0; n], vec![0f32; n * n]);
        for _ in 0..6 {
            let mut l = vec![0f64; n * n];
            l.par_chunks_mut(n).enumerate().for_each(|(j, l)| {
                let b = order[j];
                l[j..].iter_mut().zip(&order[j..]).for_each(|(l, &a)| *l = moment(a, b));
                l[j] += damping;
            });
            if cholesky(&mut l, n) {
                for k in 0..n {
                    pivots[k] = l[k * n + k] * l[k * n + k];
                    for j in k + 1..n {
                        columns[k * n + j] = (l[k * n + j] / l[k * n + k]) as f32;
                    }
                }
                break;
            }
            damping *= 10.0;
        }
        Factor { order, columns, pivots }
    }
}
