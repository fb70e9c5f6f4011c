//! Thresholds of power-of-two scales: from the smallest that clips nothing, each half the one before; the one that loses least, by whatever measure.
//! Source: HPTQ (Habi et al. 2021, section 3.2); candidates as in its implementation.
//! Needs: integers without a zero point that moves.

use crate::error::Result;
use crate::observe::{Extremes, Histogram};
use crate::quant::{self, Format, Params, ScaleKind, Scheme, Zero};
use crate::tensor::DType;

/// How often the threshold of an activation is halved, and that of a weight.
pub const HALVINGS: (usize, usize) = (20, 10);

/// Whether a scheme's scale is all there is to find, and is a power of two.
pub fn applies(scheme: &Scheme) -> bool {
    let scale = scheme.scale == ScaleKind::Pow2(DType::F32);
    scale && matches!(scheme.format, Format::Int { .. }) && matches!(scheme.zero, Zero::None | Zero::Fixed(_))
}

/// The part of the values seen that lies within the best threshold; of thresholds that are as good, the largest.
pub fn threshold(seen: &Histogram, scheme: &Scheme, mut loss: impl FnMut(&Params) -> Result<f64>) -> Result<Extremes> {
    let all = seen.extremes;
    if all.is_empty() {
        return Ok(all);
    }
    let mut params = quant::fit_range(scheme, &[all.lo], &[all.hi])?;
    let mut best = (f64::INFINITY, params.clone());
    for _ in 0..HALVINGS.0 {
        let l = loss(&params)?;
        if l < best.0 {
            best = (l, params.clone());
        }
        params.scale[0] *= 0.5;
        if params.scale[0] < f32::MIN_POSITIVE {
            break;
        }
    }
    Ok(within(all, scheme, &best.1))
}

/// Of the two powers of two around the threshold of a range that may end anywhere, the one that loses less. For normal numbers in 8 bits the loss of
/// clipping below the best end equals that of the coarser step above it where the lower lies at .81 of it.
pub fn nearest(seen: &Histogram, scheme: &Scheme, range: Extremes) -> Extremes {
    const LOWER: f32 = 0.81;
    let Ok(params) = quant::fit_range(scheme, &[range.lo.min(range.hi) * LOWER], &[range.hi * LOWER]) else { return range };
    if seen.extremes.is_empty() { range } else { within(range, scheme, &params) }
}

/// The part of a range that parameters cover. Fitted to it, they come out again.
fn within(range: Extremes, scheme: &Scheme, params: &Params) -> Extremes {
    if scheme.format.code_range().is_none() {
        return range;
    }
    let (lo, hi) = quant::ends(scheme, params);
    Extremes { lo: range.lo.clamp(lo, hi), hi: range.hi.clamp(lo, hi) }
}
