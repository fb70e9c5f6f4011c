//! Smallest and largest value seen.

use crate::math::wide;

/// The interval that every value seen so far lies in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extremes {
    pub lo: f32,
    pub hi: f32,
}

impl Default for Extremes {
    /// Nothing seen: an empty interval.
    fn default() -> Self {
        Extremes { lo: f32::INFINITY, hi: f32::NEG_INFINITY }
    }
}

impl Extremes {
    /// Takes in more values; NaN is passed over.
    pub fn observe(&mut self, x: &[f32]) {
        self.look::<false>(x);
    }

    /// The same, and the smallest size that one of these has which is not zero; infinite where none has.
    pub(super) fn observe_sizes(&mut self, x: &[f32]) -> f32 {
        self.look::<true>(x)
    }

    fn look<const SIZES: bool>(&mut self, x: &[f32]) -> f32 {
        // So many lanes keep the loop free of one long dependency chain.
        const LANES: usize = 32;
        let start = *self;
        let [lo, hi, least] = wide(
            #[inline(always)]
            move || {
                let (mut lo, mut hi, mut least) = ([start.lo; LANES], [start.hi; LANES], [f32::INFINITY; LANES]);
                let (chunks, rest) = x.as_chunks::<LANES>();
                for (i, &v) in rest.iter().enumerate() {
                    lo[i] = if v < lo[i] { v } else { lo[i] };
                    hi[i] = if v > hi[i] { v } else { hi[i] };
                    least[i] = if SIZES { smaller(v, least[i]) } else { least[i] };
                }
                for c in chunks {
                    for i in 0..LANES {
                        lo[i] = if c[i] < lo[i] { c[i] } else { lo[i] };
                        hi[i] = if c[i] > hi[i] { c[i] } else { hi[i] };
                        least[i] = if SIZES { smaller(c[i], least[i]) } else { least[i] };
                    }
                }
                [lo, hi, least]
            },
        );
        self.lo = lo.into_iter().fold(self.lo, f32::min);
        self.hi = hi.into_iter().fold(self.hi, f32::max);
        if SIZES { least.into_iter().fold(f32::INFINITY, f32::min) } else { f32::INFINITY }
    }

    /// As if everything the other saw had been seen here.
    pub fn merge(&mut self, other: &Extremes) {
        self.lo = self.lo.min(other.lo);
        self.hi = self.hi.max(other.hi);
    }

    /// As if every value beyond `interval` had been its end.
    pub fn within(&self, interval: &Extremes) -> Extremes {
        Extremes { lo: self.lo.clamp(interval.lo, interval.hi), hi: self.hi.clamp(interval.lo, interval.hi) }
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.lo > self.hi
    }
}

/// The size of a number, if it is not zero and smaller than `least`.
#[inline(always)]
fn smaller(v: f32, least: f32) -> f32 {
    let size = if v == 0.0 { f32::INFINITY } else { v.abs() };
    if size < least { size } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_length_and_any_split_gives_the_same_interval() {
        let x: Vec<f32> = (0..37).map(|i| ((i * 29) % 37) as f32 - 11.0).collect();
        let mut whole = Extremes::default();
        whole.observe(&x);
        assert_eq!((whole.lo, whole.hi), (-11.0, 25.0));
        for cut in 0..x.len() {
            let (mut a, mut b) = (Extremes::default(), Extremes::default());
            a.observe(&x[..cut]);
            b.observe(&x[cut..]);
            b.merge(&a);
            assert_eq!(b, whole);
        }
    }

    #[test]
    fn nan_is_passed_over_and_nothing_seen_is_empty() {
        let mut e = Extremes::default();
        assert!(e.is_empty());
        e.observe(&[f32::NAN, 2.0, f32::NAN]);
        assert_eq!((e.lo, e.hi), (2.0, 2.0));
    }
}
