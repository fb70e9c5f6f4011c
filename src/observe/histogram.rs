//! Counts of values by the upper sixteen bits of their float32 pattern: sign, exponent and seven bits of mantissa. No range has to be known
//! beforehand, counts merge exactly, and a quantile is off by at most one part in 128 of its own size.

use super::Extremes;
use crate::math::wide;
use std::cell::RefCell;

/// How often values of each size were seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    pub extremes: Extremes,
    /// Buckets that hold something and how much, ascending; ascending buckets are ascending values.
    counts: Vec<(u16, u64)>,
    total: u64,
}

/// Bits of the mantissa that a bucket keeps.
const SHIFT: u32 = 16;
const HALF: u32 = 1 << 15;

/// Patterns that a bucket may have; those of negative numbers have the upper half, and infinity is the last of each half that is a number.
const PATTERNS: usize = 2 * HALF as usize;
const INFINITY: u32 = 0x7f80;
/// Patterns that are looked at together, since most were not seen.
const BLOCK: usize = 16;
/// Numbers that are looked at in every way before the next, as they lie near.
const PART: usize = 4096;

thread_local! {
    /// Where one tensor is counted by pattern before its buckets are listed: all zero between calls. Neighbours, which are often alike, are counted in
    /// turn in one or the other, as a count waits for the one before it in the same place.
    static DENSE: RefCell<[Vec<u32>; 2]> = RefCell::new([vec![0; PATTERNS], vec![0; PATTERNS]]);
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

/// Counts patterns.
fn count(tables: &mut [Vec<u32>; 2], x: &[f32]) {
    let [even, odd] = tables.each_mut().map(|t| <&mut [u32; PATTERNS]>::try_from(&mut t[..]).expect("it has a place for each pattern"));
    // No table's count exceeds the number of values, which is checked before.
    let add = |table: &mut [u32; PATTERNS], v: f32| {
        let n = &mut table[(v.to_bits() >> SHIFT) as usize];
        *n = n.wrapping_add(1);
    };
    let (pairs, rest) = x.as_chunks::<2>();
    for [a, b] in pairs {
        add(even, *a);
        add(odd, *b);
    }
    rest.iter().for_each(|v| add(even, *v));
}

/// The smallest size that a number other than zero has.
fn smallest(x: &[f32]) -> f32 {
    const LANES: usize = 32;
    let least = wide(
        #[inline(always)]
        move || {
            let mut least = [f32::INFINITY; LANES];
            let (chunks, rest) = x.as_chunks::<LANES>();
            for (i, v) in rest.iter().enumerate() {
                let size = if *v == 0.0 { f32::INFINITY } else { v.abs() };
                least[i] = if size < least[i] { size } else { least[i] };
            }
            for c in chunks {
                for i in 0..LANES {
                    let size = if c[i] == 0.0 { f32::INFINITY } else { c[i].abs() };
                    least[i] = if size < least[i] { size } else { least[i] };
                }
            }
            least
        },
    );
    least.into_iter().fold(f32::INFINITY, f32::min)
}

/// Those of these blocks in which something was counted.
fn filled(even: &[[u32; BLOCK]], odd: &[[u32; BLOCK]], at: impl Iterator<Item = usize>) -> Vec<usize> {
    wide(
        #[inline(always)]
        move || {
            let mut filled = Vec::with_capacity(256);
            for at in at {
                let (even, odd, mut any) = (&even[at], &odd[at], 0);
                for i in 0..BLOCK {
                    any |= even[i] | odd[i];
                }
                if any != 0 {
                    filled.push(at);
                }
            }
            filled
        },
    )
}

/// Empties what was counted of one sign, at least of the size `zero` and of sizes from `first` to `last`: bucket, pattern without sign, and count of each.
fn drain(tables: &mut [Vec<u32>; 2], negative: bool, [zero, first, last]: [f32; 3], mut each: impl FnMut(u16, u32, u64)) {
    let block = |x: f32| ((x.to_bits() >> SHIFT) & (HALF - 1)) as usize / BLOCK;
    let sign = if negative { HALF as usize } else { 0 };
    let [even, odd] = tables.each_mut().map(|t| t[sign..sign + HALF as usize].as_chunks_mut::<BLOCK>().0);
    let at = std::iter::once(block(zero)).chain(block(first).max(block(zero) + 1)..=block(last));
    for at in filled(even, odd, at) {
        for (i, (a, b)) in even[at].iter_mut().zip(&mut odd[at]).enumerate() {
            let (pattern, n) = ((at * BLOCK + i) as u32, std::mem::take(a) as u64 + std::mem::take(b) as u64);
            if n > 0 {
                each(if negative { HALF - 1 - pattern } else { HALF + pattern } as u16, pattern, n);
            }
        }
    }
}

impl Histogram {
    /// Takes in more values; NaN is passed over.
    pub fn observe(&mut self, x: &[f32]) {
        // A bucket of one call counts in 32 bits.
        for x in x.chunks(u32::MAX as usize) {
            let mut new = Histogram::default();
            DENSE.with_borrow_mut(|tables| {
                let mut least = f32::INFINITY;
                for part in x.chunks(PART) {
                    new.extremes.observe(part);
                    least = least.min(smallest(part));
                    count(tables, part);
                }
                let Extremes { lo, hi } = new.extremes;
                let mut list = |negative: bool, first: f32, last: f32| {
                    drain(tables, negative, [first, first.abs().max(least), last], |bucket, pattern, n| {
                        // Patterns of NaN lie beyond, and some share that of an infinity.
                        let n = if pattern == INFINITY { x.iter().filter(|v| v.is_infinite() && v.is_sign_negative() == negative).count() as u64 } else { n };
                        if n > 0 && pattern <= INFINITY {
                            new.counts.push((bucket, n));
                        }
                    });
                    // Of negative numbers the largest size comes first.
                    if negative {
                        new.counts.reverse();
                    }
                };
                // Either zero may be an extreme, whichever was seen.
                if lo <= 0.0 {
                    list(true, hi.min(0.0), lo);
                }
                if hi >= 0.0 {
                    list(false, lo.max(0.0), hi);
                }
            });
            new.total = new.counts.iter().map(|(_, n)| n).sum();
            if new.total < x.len() as u64 {
                // What is left was NaN.
                DENSE.with_borrow_mut(|tables| [false, true].map(|negative| drain(tables, negative, [f32::INFINITY, f32::INFINITY, f32::NAN], |_, _, _| ())));
            }
            self.merge(&new);
        }
    }

    /// As if everything the other saw had been seen here.
    pub fn merge(&mut self, other: &Histogram) {
        self.extremes.merge(&other.extremes);
        self.total += other.total;
        if self.add_within(other) {
            return;
        }
        let (a, b) = (std::mem::take(&mut self.counts), &other.counts);
        if a.is_empty() {
            self.counts.clone_from(b);
            return;
        }
        self.counts.reserve(a.len() + b.len() / 4);
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            let next = match (a.get(i), b.get(j)) {
                (Some(x), Some(y)) if x.0 == y.0 => (x.0, x.1 + y.1),
                (Some(x), Some(y)) if x.0 < y.0 => *x,
                (Some(x), None) => *x,
                (_, Some(y)) => *y,
                (None, None) => break,
            };
            i += a.get(i).is_some_and(|x| x.0 == next.0) as usize;
            j += b.get(j).is_some_and(|y| y.0 == next.0) as usize;
            self.counts.push(next);
        }
    }

    /// Adds the other's counts, if its buckets are among these.
    fn add_within(&mut self, other: &Histogram) -> bool {
        let mut places = Vec::with_capacity(other.counts.len());
        let mut at = 0;
        for (bucket, _) in &other.counts {
            while self.counts.get(at).is_some_and(|(b, _)| b < bucket) {
                at += 1;
            }
            if self.counts.get(at).is_none_or(|(b, _)| b != bucket) {
                return false;
            }
            places.push(at);
        }
        places.into_iter().zip(&other.counts).for_each(|(at, (_, n))| self.counts[at].1 += n);
        true
    }

    /// Counts what lies beyond `interval` as its end.
    pub fn saturate(&mut self, interval: &Extremes) {
        let (first, last) = (bucket(interval.lo) as u16, bucket(interval.hi) as u16);
        let mut moved = Histogram { extremes: self.extremes.within(interval), total: self.total, ..Histogram::default() };
        for &(b, n) in &self.counts {
            let b = b.clamp(first, last);
            match moved.counts.last_mut() {
                Some((at, count)) if *at == b => *count += n,
                _ => moved.counts.push((b, n)),
            }
        }
        *self = moved;
    }

    /// The same values, each seen `factor` times as often, and once at least.
    pub fn weighed(&self, factor: f64) -> Histogram {
        let counts: Vec<(u16, u64)> = self.counts.iter().map(|(b, n)| (*b, ((*n as f64 * factor) as u64).max(1))).collect();
        Histogram { extremes: self.extremes, total: counts.iter().map(|(_, n)| n).sum(), counts }
    }

    /// Forgets what lies more than `deviations` standard deviations from the mean (z-score).
    pub fn drop_beyond(&mut self, deviations: f64) {
        let (sum, squares) = self.points().fold((0.0, 0.0), |(sum, squares), (x, n)| (sum + x as f64 * n as f64, squares + (x as f64).powi(2) * n as f64));
        let mean = sum / self.total.max(1) as f64;
        let reach = deviations * (squares / self.total.max(1) as f64 - mean * mean).max(0.0).sqrt();
        let near: Vec<(f32, u64, u16)> =
            self.points().zip(&self.counts).map(|((x, n), (b, _))| (x, n, *b)).filter(|(x, ..)| (*x as f64 - mean).abs() <= reach).collect();
        let (Some(first), Some(last)) = (near.first(), near.last()) else { return };
        self.extremes = self.extremes.within(&Extremes { lo: first.0, hi: last.0 });
        self.counts = near.iter().map(|(_, n, b)| (*b, *n)).collect();
        self.total = self.counts.iter().map(|(_, n)| n).sum();
    }

    /// Buckets that hold something and how much, ascending.
    pub fn counts(&self) -> &[(u16, u64)] {
        &self.counts
    }

    /// The histogram with these counts. `None` where none has them: buckets out of order or empty, extremes in other buckets than the outermost.
    pub fn of_counts(extremes: Extremes, counts: Vec<(u16, u64)>) -> Option<Histogram> {
        let total = counts.iter().try_fold(0u64, |sum, (_, n)| sum.checked_add(*n).filter(|_| *n > 0))?;
        let ascends = counts.windows(2).all(|w| w[0].0 < w[1].0);
        let zero = |b: u16| (bucket(-0.0)..=bucket(0.0)).contains(&(b as u32));
        // Of two zeros either may be the extreme.
        let lies = |x: f32, b: u16| bucket(x) == b as u32 || x == 0.0 && zero(b);
        let holds = match (counts.first(), counts.last()) {
            (Some(first), Some(last)) => !extremes.is_empty() && lies(extremes.lo, first.0) && lies(extremes.hi, last.0),
            _ => extremes == Extremes::default(),
        };
        (ascends && holds).then_some(Histogram { extremes, counts, total })
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
        let outermost = |b: u16| {
            let (near, far) = edges(b as u32);
            (near.min(far), near.max(far))
        };
        fn first_beyond<'a>(mut order: impl Iterator<Item = &'a (u16, u64)>, tail: u64) -> Option<u16> {
            let mut seen = 0;
            order
                .find(|(_, n)| {
                    seen += n;
                    seen > tail
                })
                .map(|(b, _)| *b)
        }
        let low = first_beyond(self.counts.iter(), tail);
        let high = first_beyond(self.counts.iter().rev(), tail);
        let lo = low.map_or(self.extremes.lo, |b| outermost(b).0);
        let hi = high.map_or(self.extremes.hi, |b| outermost(b).1);
        Extremes { lo: lo.max(self.extremes.lo), hi: hi.min(self.extremes.hi) }
    }

    /// Filled buckets as (lower edge, upper edge, count), ascending, within what was seen; a bucket of zeros has both edges at zero.
    pub fn spans(&self) -> impl Iterator<Item = (f32, f32, u64)> + '_ {
        self.counts.iter().map(|&(b, c)| {
            let (near, far) = edges(b as u32);
            let far = if near == 0.0 { near } else { far };
            (near.min(far).max(self.extremes.lo), near.max(far).min(self.extremes.hi), c)
        })
    }

    /// Filled buckets as (middle, count), ascending: what searches over a distribution read.
    pub fn points(&self) -> impl Iterator<Item = (f32, u64)> + '_ {
        self.counts.iter().map(|&(b, c)| {
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
    fn counts_are_those_of_the_buckets_one_by_one_and_nan_is_passed_over() {
        let nan = [0x7f80_0001, 0xff80_0001, 0x7f81_0000, 0xff81_0000, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000].map(f32::from_bits);
        let inf = [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY];
        let numbers: Vec<f32> = (0..4000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).filter(|v| v.is_finite()).collect();
        let small: Vec<f32> = (0..301).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
        let above: Vec<f32> = small.iter().map(|v| v + 7.5).collect();
        let below: Vec<f32> = above.iter().map(|v| -v).collect();
        let mixed = [&small[..], &nan, &inf, &[-0.0, 0.0, -0.0]].concat();
        for x in [&numbers[..], &small, &above, &below, &mixed, &nan, &inf, &[-0.0], &[0.0], &[]] {
            let mut want: std::collections::BTreeMap<u16, u64> = Default::default();
            x.iter().filter(|v| !v.is_nan()).for_each(|v| *want.entry(bucket(*v) as u16).or_default() += 1);
            // Twice, so that what the first left behind would show.
            for _ in 0..2 {
                let mut h = Histogram::default();
                h.observe(x);
                assert_eq!(h.counts(), want.clone().into_iter().collect::<Vec<_>>());
                assert_eq!(h.total(), want.values().sum::<u64>());
            }
        }
    }

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
        h.saturate(&Extremes { lo: -20.0, hi: f32::INFINITY });
        assert_eq!(h, want);
    }

    #[test]
    fn outliers_are_forgotten_by_their_distance_from_the_mean() {
        let mut h = Histogram::default();
        h.observe(&(0..1000).map(|i| (i % 10) as f32 - 5.0).collect::<Vec<_>>());
        let plain = h.clone();
        h.observe(&[100.0, -100.0]);
        let mut all = h.clone();
        all.drop_beyond(1e6);
        assert_eq!(all, h);
        h.drop_beyond(8.0);
        assert_eq!((h.counts(), h.total()), (plain.counts(), 1000));
        assert!(h.extremes.lo <= -5.0 && h.extremes.lo > -5.1 && h.extremes.hi >= 4.0 && h.extremes.hi < 4.1, "{:?}", h.extremes);
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
