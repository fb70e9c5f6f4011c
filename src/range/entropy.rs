//! The range whose codes keep a distribution best, by Kullback-Leibler divergence (Migacz 2017, 8-bit inference with TensorRT).

use super::pow2;
use crate::error::Result;
use crate::observe::{Extremes, Histogram};
use crate::quant::{self, Params, Scheme};

/// The range of least divergence. Bins are too wide to tell what is far below the largest value: where the search ends at the least range that it can
/// speak of, it begins anew with what lies beyond counted as the ends.
pub fn range(seen: &Histogram, scheme: &Scheme) -> Result<Extremes> {
    let mut seen = seen.clone();
    loop {
        let wide = seen.extremes.hi.max(0.0) - seen.extremes.lo.min(0.0);
        let bins = Bins::of(&seen);
        let (range, least) = match pow2::applies(scheme) {
            true => {
                let range = pow2::threshold(&seen, scheme, |params| Ok(bins.as_ref().map_or(0.0, |b| b.divergence_under(scheme, params))))?;
                let step = quant::fit_range(scheme, &[range.lo], &[range.hi])?.scale_at(0);
                (range, step < 2.0 * wide / BINS as f32)
            }
            false => {
                let (lo, hi) = (seen.extremes.lo.min(0.0), seen.extremes.hi.max(0.0));
                let range = bins.as_ref().map_or(Extremes { lo, hi }, |b| b.least_divergence(codes_of(scheme)));
                (range, (range.hi - range.lo) * (BINS as f32) < wide * (codes_of(scheme) + 8) as f32)
            }
        };
        if !least || range.hi.max(0.0) - range.lo.min(0.0) >= wide {
            return Ok(range);
        }
        seen.saturate(&range);
    }
}

/// Codes that a search tells apart.
fn codes_of(scheme: &Scheme) -> usize {
    1 << scheme.format.bits().min(10)
}

/// Bins of the distribution whose divergence is taken.
const BINS: usize = 2048;

/// Bins of one width from the lowest to the highest value, 0 among them.
struct Axis {
    lo: f64,
    width: f64,
}

impl Axis {
    fn at(&self, x: f32) -> usize {
        (((x as f64 - self.lo) / self.width) as usize).min(BINS - 1)
    }

    fn edge(&self, bin: usize) -> f32 {
        (self.lo + self.width * bin as f64) as f32
    }
}

/// The distribution in bins. Values that are 0 count for nothing: every range holds them exactly, and behind a Relu they would outweigh all others.
struct Bins {
    axis: Axis,
    sums: Sums,
}

impl Bins {
    /// `None` where there is but one value.
    fn of(seen: &Histogram) -> Option<Bins> {
        let (lo, hi) = (seen.extremes.lo.min(0.0) as f64, seen.extremes.hi.max(0.0) as f64);
        if seen.extremes.is_empty() || lo == hi {
            return None;
        }
        let axis = Axis { lo, width: (hi - lo) / BINS as f64 };
        let mut counts = [0.0; BINS];
        for (from, to, n) in seen.spans().filter(|(from, to, _)| (*from, *to) != (0.0, 0.0)) {
            let (first, last) = (axis.at(from), axis.at(to));
            for (bin, count) in counts.iter_mut().enumerate().take(last + 1).skip(first) {
                let (left, right) = (axis.edge(bin).max(from), axis.edge(bin + 1).min(to));
                let share = if first == last { 1.0 } else { ((right - left) / (to - from)).max(0.0) as f64 };
                *count += n as f64 * share;
            }
        }
        Some(Bins { axis, sums: Sums::of(&counts) })
    }

    /// What the distribution loses under parameters: the divergence between it and what the codes make of it.
    fn divergence_under(&self, scheme: &Scheme, params: &Params) -> f64 {
        if scheme.format.code_range().is_none() {
            return 0.0;
        }
        // Of a range that is a few bins wide nothing can be said: all that is cut off would count as well held.
        if (params.scale_at(0) as f64) < self.axis.width {
            return f64::INFINITY;
        }
        let (lo, hi) = quant::ends(scheme, params);
        let (from, to) = (self.axis.at(lo.max(self.axis.edge(0))), self.axis.at(hi.min(self.axis.edge(BINS))) + 1);
        let codes = ((to - from) as f64 * self.axis.width / params.scale_at(0) as f64).ceil() as usize;
        self.sums.divergence(from, to, codes.clamp(1, to - from))
    }

    /// Shrinks the end farther from zero, then the other, each for as long as the range has a bin a code.
    fn least_divergence(&self, codes: usize) -> Extremes {
        let zero = self.axis.at(0.0);
        let mut best = (self.sums.divergence(0, BINS, codes), 0, BINS);
        let upper_first = BINS - zero > zero;
        for upper in [upper_first, !upper_first] {
            let (_, low, high) = best;
            let ends: Vec<(usize, usize)> =
                if upper { (zero + 1..high).rev().map(|to| (low, to)).collect() } else { (low + 1..=zero).map(|from| (from, high)).collect() };
            for (from, to) in ends.into_iter().filter(|(from, to)| to - from >= codes.min(BINS)).step_by(4) {
                let d = self.sums.divergence(from, to, codes);
                if d < best.0 {
                    best = (d, from, to);
                }
            }
        }
        Extremes { lo: self.axis.edge(best.1).min(0.0), hi: self.axis.edge(best.2).max(0.0) }
    }
}

/// Sums over bins from the first up to each, so that a divergence costs a logarithm a code, not a bin.
struct Sums {
    count: [f64; BINS + 1],
    /// Bins that hold something.
    filled: [u32; BINS + 1],
    /// Of `n ln n`.
    entropy: [f64; BINS + 1],
}

/// `n ln n`, and its limit.
fn n_ln_n(n: f64) -> f64 {
    if n > 0.0 { n * n.ln() } else { 0.0 }
}

impl Sums {
    fn of(bins: &[f64; BINS]) -> Sums {
        let mut sums = Sums { count: [0.0; BINS + 1], filled: [0; BINS + 1], entropy: [0.0; BINS + 1] };
        for (i, n) in bins.iter().enumerate() {
            sums.count[i + 1] = sums.count[i] + n;
            sums.filled[i + 1] = sums.filled[i] + (*n > 0.0) as u32;
            sums.entropy[i + 1] = sums.entropy[i] + n_ln_n(*n);
        }
        sums
    }

    fn count(&self, from: usize, to: usize) -> f64 {
        self.count[to] - self.count[from]
    }

    /// KL(P‖Q): P is the distribution with what lies outside `from..to` moved to the nearest bin inside, Q what `codes` codes make of the bins inside.
    fn divergence(&self, from: usize, to: usize, codes: usize) -> f64 {
        let (total, kept) = (self.count[BINS], self.count(from, to));
        if kept == 0.0 {
            return f64::INFINITY;
        }
        // What was moved into the first and the last bin.
        let (below, above) = (self.count(0, from), self.count(to, BINS));
        let moved: &[(usize, f64)] = if to - from == 1 { &[(from, below + above)] } else { &[(from, below), (to - 1, above)] };
        let mut entropy = self.entropy[to] - self.entropy[from];
        let mut cross = 0.0;
        for (bin, more) in moved {
            let own = self.count(*bin, bin + 1);
            entropy += n_ln_n(own + more) - n_ln_n(own);
            if own == 0.0 {
                // A bin that only holds what was moved there has no counterpart: the smallest there can be stands in.
                cross += more * 1e-10f64.ln();
            }
        }
        for code in 0..codes {
            let (first, last) = (from + code * (to - from) / codes, from + (code + 1) * (to - from) / codes);
            let inside = self.count(first, last);
            if inside > 0.0 {
                let q = inside / (self.filled[last] - self.filled[first]) as f64 / kept;
                let moved = moved.iter().filter(|(bin, _)| (first..last).contains(bin) && self.count(*bin, bin + 1) > 0.0);
                cross += (inside + moved.map(|m| m.1).sum::<f64>()) * q.ln();
            }
        }
        (entropy - cross) / total - total.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ScaleKind;
    use crate::range::Method;
    use crate::tensor::DType;

    /// As it is defined, bin by bin.
    fn divergence(bins: &[f64; BINS], from: usize, to: usize, codes: usize) -> f64 {
        let inside = &bins[from..to];
        let mut p = inside.to_vec();
        p[0] += bins[..from].iter().sum::<f64>();
        p[to - from - 1] += bins[to..].iter().sum::<f64>();
        let (total, kept) = (p.iter().sum::<f64>(), inside.iter().sum::<f64>());
        let mut d = 0.0;
        for code in 0..codes {
            let group = code * inside.len() / codes..(code + 1) * inside.len() / codes;
            let filled = inside[group.clone()].iter().filter(|n| **n > 0.0).count();
            let q = inside[group.clone()].iter().sum::<f64>() / filled.max(1) as f64 / kept;
            for i in group.filter(|i| p[*i] > 0.0) {
                d += p[i] / total * (p[i] / total / if inside[i] > 0.0 { q } else { 1e-10 }).ln();
            }
        }
        d
    }

    #[test]
    fn by_sums_it_is_what_it_is_bin_by_bin() {
        // Holes, a tail, and ends that hold nothing themselves.
        let bins: [f64; BINS] = std::array::from_fn(|i| if i % 7 == 3 || (700..720).contains(&i) { 0.0 } else { (1e6 * (-(i as f64) / 150.0).exp()).floor() });
        let sums = Sums::of(&bins);
        for (from, to, codes) in [(0, BINS, 256), (3, 710, 256), (3, 1000, 16), (10, 267, 256), (700, 2000, 100), (5, 6, 1)] {
            let (got, want) = (sums.divergence(from, to, codes), divergence(&bins, from, to, codes));
            assert!((got - want).abs() < 1e-9 * (1.0 + want.abs()), "{from}..{to} in {codes}: {got} {want}");
        }
        assert_eq!(sums.divergence(700, 720, 16), f64::INFINITY);
    }

    /// Behind a Relu half of the values are zero; that says nothing of where the others should end.
    #[test]
    fn zeros_do_not_draw_the_least_divergence_in() {
        let mut h = Histogram::default();
        let u = |i: usize, k: f32| (i as f32 * k).fract() - 0.5;
        let x: Vec<f32> = (0..20_000).map(|i| (u(i, 0.618_034) + u(i, 0.414_214) + u(i, 0.732_051) + u(i, 0.236_068)).max(0.0)).collect();
        h.observe(&x);
        for (scheme, least) in
            [(Scheme::int(8, false), 0.6), (Scheme::int(8, true), 0.6), (Scheme { scale: ScaleKind::Pow2(DType::F32), ..Scheme::int(8, true) }, 0.45)]
        {
            let r = Method::Entropy.range(&h, &scheme).unwrap();
            assert!(r.hi > least * h.extremes.hi, "{scheme}: {r:?} of {:?}", h.extremes);
        }
    }
}
