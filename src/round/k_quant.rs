//! k-quants: scale and offset of each block by weighted least squares, `min Σ c·(s·q + m − w)²` with `c = √mean(w²) + |w|`, for the codes of twenty
//! finer and finer grids over the block's range; with `m = −zero·s`. Without zero points, `s = Σ c·q·w / Σ c·q²` around the largest weight.
//! Source: llama.cpp's k-quants (make_qkx2_quants), as ONNX Runtime's weight-only quantizer uses them.
//! Needs: weights alone. Declines: scales that are not free; blocks that lose less as they are.

use super::refit::{Weights, refit};
use crate::error::Result;
use crate::graph::Model;
use crate::note::Notes;
use crate::quant::{Zero, nearest_scale};

/// Grids tried, and how much of a code each is finer than the last.
const GRIDS: usize = 20;
const FINER: f32 = 0.1;

/// Scales and zero points for all weights that allow it.
pub fn k_quant(model: &mut Model) -> Result<Notes> {
    refit(model, "k-quant", true, solve)
}

fn solve(w: &mut Weights) {
    let found: Vec<(f32, f32)> = w.blocks().map(|(b, block)| solve_block(w, block, (w.scale[b], w.zero[b]))).collect();
    (w.scale, w.zero) = found.into_iter().unzip();
}

fn solve_block(w: &Weights, block: &[f32], start: (f32, f32)) -> (f32, f32) {
    let (lo, hi) = w.codes;
    let free = matches!(w.kind, Zero::Real | Zero::Integer);
    let size = (block.iter().map(|x| (x * x) as f64).sum::<f64>() / block.len().max(1) as f64).sqrt();
    let weight: Vec<f64> = block.iter().map(|x| size + x.abs() as f64).collect();
    let loss = |(scale, zero): (f32, f32)| -> f64 {
        let (scale, zero) = (nearest_scale(scale, w.stored), w.storable_zero(zero));
        block.iter().zip(&weight).map(|(x, c)| c * ((w.fake(*x, scale, zero) - x) as f64).powi(2)).sum()
    };
    let (min, max) = block.iter().fold((0f32, 0f32), |(l, h), x| (l.min(*x), h.max(*x)));
    let mut best = (loss(start), start);
    for i in 0..GRIDS {
        // The grid: how many codes the range is cut into.
        let codes = if free { hi - lo - 1.0 + FINER * i as f32 } else { (hi.max(-lo)) - 1.0 + FINER * i as f32 };
        let (inverse, zero) = match free {
            true => (codes / (max - min), lo - min * codes / (max - min)),
            false => (codes / max.max(-min), start.1),
        };
        if !inverse.is_finite() || inverse <= 0.0 {
            break;
        }
        let [mut a, mut b, mut c, mut d, mut e] = [0f64; 5];
        for (x, k) in block.iter().zip(&weight) {
            let q = (x * inverse + zero).round_ties_even().clamp(lo, hi) as f64 - if free { 0.0 } else { zero as f64 };
            a += k;
            b += k * q;
            c += k * q * q;
            d += k * *x as f64;
            e += k * q * *x as f64;
        }
        let candidate = match free {
            true => {
                let det = a * c - b * b;
                let (s, m) = ((a * e - d * b) / det, (c * d - b * e) / det);
                (s as f32, (-m / s) as f32)
            }
            false => ((e / c) as f32, start.1),
        };
        if candidate.0 > 0.0 && candidate.0.is_finite() && candidate.1.is_finite() {
            let now = loss(candidate);
            if now < best.0 {
                best = (now, candidate);
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::super::refit::tests::{loss, weights};
    use super::*;

    #[test]
    fn every_kind_of_zero_point_loses_less_than_the_range_does() {
        for (zero, least) in [(Zero::Real, 0.95), (Zero::Integer, 1.0), (Zero::None, 0.95)] {
            let mut m = weights(4, zero);
            let before = loss(&m);
            k_quant(&mut m).unwrap();
            assert!(loss(&m) <= least * before, "{zero:?}: {} of {before}", loss(&m));
        }
    }
}
