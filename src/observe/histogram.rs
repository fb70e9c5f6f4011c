//! Counts of values by the upper sixteen bits of their float32 pattern: sign, exponent and seven bits of mantissa. No range has to be known
//! beforehand, counts merge exactly, and a quantile is off by at most one part in 128 of its own size.

use super::Extremes;

/// How often values of each size were seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    pub extremes: Extremes,
    /// Indexed so that ascending buckets are ascending values.
    counts: Vec<u64>,
    total: u64,
}

/// Bits of the mantissa that a bucket keeps.
const SHIFT: u32 = 16;
const HALF: u32 = 1 << 15;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { extremes: Extremes::default(), counts: vec![0; 2 * HALF as usize], total: 0 }
    }
}

fn bucket(x: f32) -> u32 {
    let bits = x.to_bits() >> SHIFT;
    if bits & HALF != 0 { HALF - 1 - (bits & (HALF - 1)) } else { HALF + bits }
}

/// The bucket's edge nearer to zero and the one farther away.
fn edges(bucket: u32) -> (f32, f32) {
    let edge = |magnitude: u32| f32::from_bits(magnitude << SHIFT);
    if bucket >= HALF {
        let m = bucket - HALF;
        (edge(m), edge(m + 1))
    } else {
        let m = HALF - 1 - bucket;
        (-edge(m), -edge(m + 1))
    }
}

impl Histogram {
    /// Takes in more values; NaN is passed over.
    pub fn observe(&mut self, x: &[f32]) {
        self.extremes.observe(x);
        for &v in x {
            if !v.is_nan() {
                self.counts[bucket(v) as usize] += 1;
                self.total += 1;
            }
        }
    }

    /// As if everything the other saw had been seen here.
    pub fn merge(&mut self, other: &Histogram) {
        self.extremes.merge(&other.extremes);
        self.total += other.total;
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
    }

    /// Counts what lies below `lo` as `lo`.
    pub fn saturate(&mut self, lo: f32) {
        let at = bucket(lo) as usize;
        let below: u64 = self.counts[..at].iter_mut().map(std::mem::take).sum();
        self.counts[at] += below;
        self.extremes.lo = self.extremes.lo.max(lo);
        self.extremes.hi = self.extremes.hi.max(lo);
    }

    /// Number of values seen.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Shortest interval that leaves at most a share `1 − p` of the values below it and as many above, widened to bucket edges and kept within what was seen.
    /// `p` in (0.5, 1].
    pub fn central(&self, p: f64) -> Extremes {
        if self.total == 0 || p >= 1.0 {
            return self.extremes;
        }
        let tail = ((1.0 - p) * self.total as f64).floor() as u64;
        let outermost = |b: usize| {
            let (near, far) = edges(b as u32);
            (near.min(far), near.max(far))
        };
        let first_beyond = |mut order: Box<dyn Iterator<Item = usize>>| {
            let mut seen = 0;
            order.find(|&b| {
                seen += self.counts[b];
                seen > tail
            })
        };
        let low = first_beyond(Box::new(0..self.counts.len()));
        let high = first_beyond(Box::new((0..self.counts.len()).rev()));
        let lo = low.map_or(self.extremes.lo, |b| outermost(b).0);
        let hi = high.map_or(self.extremes.hi, |b| outermost(b).1);
        Extremes { lo: lo.max(self.extremes.lo), hi: hi.min(self.extremes.hi) }
    }

    /// Filled buckets as (middle, count), ascending: what searches over a distribution read.
    pub fn points(&self) -> impl Iterator<Item = (f32, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, c)| **c > 0).map(|(b, &c)| {
            let (near, far) = edges(b as u32);
            let middle = if far.is_finite() { near + (far - near) / 2.0 } else { near };
            (middle.clamp(self.extremes.lo, self.extremes.hi), c)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_ascend_with_values() {
        let x = [f32::MIN, -2.0, -1.5, -1e-30, -0.0, 0.0, 1e-30, 0.3, 1.0, 1.01, 7.0, f32::MAX];
        assert!(x.windows(2).all(|w| bucket(w[0]) <= bucket(w[1])));
        for v in x {
            let (near, far) = edges(bucket(v));
            assert!(near.abs() <= v.abs() && v.abs() <= far.abs(), "{v}: {near} … {far}");
        }
    }

    #[test]
    fn quantiles_are_within_one_part_in_128_of_the_exact_ones() {
        let x: Vec<f32> = (0..100_000).map(|i| ((i as f32 * 0.618_034).fract() - 0.3) * 20.0).collect();
        let mut h = Histogram::default();
        x.chunks(777).for_each(|c| h.observe(c));
        let mut sorted = x.clone();
        sorted.sort_by(f32::total_cmp);
        for p in [0.9, 0.99, 0.999, 0.9999] {
            let tail = ((1.0 - p) * x.len() as f64).floor() as usize;
            let got = h.central(p);
            let (lo, hi) = (sorted[tail], sorted[x.len() - 1 - tail]);
            assert!(got.lo <= lo && got.hi >= hi, "never cuts more than asked");
            assert!((got.lo - lo).abs() <= lo.abs() / 128.0 && (got.hi - hi).abs() <= hi.abs() / 128.0, "{p}: {got:?} {lo} {hi}");
        }
        assert_eq!(h.central(1.0), h.extremes);
    }

    #[test]
    fn what_saturates_is_counted_where_it_ends() {
        let (mut h, mut want) = (Histogram::default(), Histogram::default());
        h.observe(&[-3.4e38, f32::NEG_INFINITY, -20.0, -1.0, 0.0]);
        want.observe(&[-20.0, -20.0, -20.0, -1.0, 0.0]);
        h.saturate(-20.0);
        assert_eq!(h, want);
    }

    #[test]
    fn merging_is_observing_both() {
        let (a, b): (Vec<f32>, Vec<f32>) = ((0..50).map(|i| i as f32).collect(), (0..70).map(|i| -0.1 * i as f32).collect());
        let (mut one, mut two, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        one.observe(&a);
        two.observe(&b);
        both.observe(&a);
        both.observe(&b);
        two.merge(&one);
        assert_eq!(two, both);
        assert_eq!(both.points().map(|p| p.1).sum::<u64>(), 120);
    }
}
