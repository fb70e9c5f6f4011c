//! Half-quadratic quantization: zero points for which the error is small and its outliers count little. With `ι = 1/scale` and codes
//! `q = round(w·ι + z)`, by turns `e = shrink(w − (q − z)/ι)`, which keeps what of the error is large, and `z = mean(q − (w − e)·ι)`.
//! Source: Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models; the solver of github.com/mobiusml/hqq, with its defaults.
//! Needs: weights alone, a scheme with zero points; real ones keep all of the gain. Declines: other schemes; blocks that lose less as they are.

use super::refit::{Weights, refit};
use crate::error::Result;
use crate::graph::Model;
use crate::note::Notes;

/// The exponent of the error's norm, the weight of the quadratic term, its growth at each turn, and turns at most.
const P: f32 = 0.7;
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;
const TURNS: usize = 20;

/// Zero points for all weights that allow it.
pub fn hqq(model: &mut Model) -> Result<Notes> {
    refit(model, "hqq", false, solve)
}

fn solve(w: &mut Weights) {
    let (lo, hi) = w.codes;
    let mut beta = BETA;
    let mut best = f64::INFINITY;
    for _ in 0..TURNS {
        // Below this, shrinking leaves nothing.
        let threshold = beta.powf(-1.0 / (2.0 - P));
        let mut error = 0f64;
        let next: Vec<f32> = w
            .blocks()
            .map(|(b, block)| {
                let (scale, zero) = (w.scale[b], w.zero[b]);
                let inverse = 1.0 / scale;
                let (mut sum, mut off) = (0f32, 0f32);
                for &x in block {
                    let q = (x * inverse + zero).round_ties_even().clamp(lo, hi);
                    let d = x - (q - zero) * scale;
                    off += d.abs();
                    let e = if d.abs() <= threshold { 0.0 } else { (d.abs() - d.abs().powf(P - 1.0) / beta).max(0.0).copysign(d) };
                    sum += q - (x - e) * inverse;
                }
                error += off as f64;
                sum / block.len().max(1) as f32
            })
            .collect();
        // The error is that of the zero points as they were.
        if error >= best {
            break;
        }
        best = error;
        w.zero = next;
        beta *= KAPPA;
    }
}

#[cfg(test)]
mod tests {
    use super::super::refit::tests::{loss, weights};
    use super::*;
    use crate::quant::Zero;

    #[test]
    fn real_zero_points_lose_less_than_those_of_the_range_and_integer_ones_no_more() {
        for (zero, least) in [(Zero::Real, 0.97), (Zero::Integer, 1.0)] {
            let mut m = weights(4, zero);
            let before = loss(&m);
            hqq(&mut m).unwrap();
            assert!(loss(&m) <= least * before, "{zero:?}: {} of {before}", loss(&m));
        }
    }

    #[test]
    fn a_scheme_without_zero_point_is_left_alone_with_the_reason() {
        let mut m = weights(4, Zero::None);
        let before = m.quantizers.clone();
        let notes = hqq(&mut m).unwrap();
        assert!(notes.list()[0].text.contains("no zero point to move") && m.quantizers == before, "{notes:?}");
    }
}
