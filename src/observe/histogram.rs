//! Counts of values by the upper sixteen bits of their float32 pattern: sign, exponent and seven bits of mantissa. No range has to be known
//! beforehand, counts merge exactly, and a quantile is off by at most one part in 128 of its own size.

use super::Extremes;
use crate::math::wide;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// How often values of each size were seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    pub extremes: Extremes,
    /// Counts by bucket, page by page; a page that holds nothing is not kept. Ascending pages, and buckets in them, are ascending values.
    pages: BTreeMap<u16, Box<[u64; PAGE]>>,
    total: u64,
}

/// Bits of the mantissa that a bucket keeps.
const SHIFT: u32 = 16;
const HALF: u32 = 1 << 15;

/// Patterns that a bucket may have; those of negative numbers have the upper half.
const PATTERNS: usize = 2 * HALF as usize;
/// Buckets of one sign and exponent: counts of a page are moved and added together.
const PAGE: usize = 128;
/// The exponents of zero and of what is no finite number.
const ZERO: usize = 0;
const INFINITE: usize = 255;
/// Numbers that are looked at in every way before the next, as they lie near.
const PART: usize = 4096;

thread_local! {
    /// Where one tensor is counted by pattern before its pages are added: all zero between calls. Neighbours, which are often alike, are counted in
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

/// The page of patterns that a number lies in, less its sign.
fn exponent(x: f32) -> usize {
    (x.to_bits() >> SHIFT & (HALF - 1)) as usize / PAGE
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

/// A page of patterns in both tables.
fn page_of(tables: &mut [Vec<u32>; 2], page: usize) -> [&mut [u32; PAGE]; 2] {
    tables.each_mut().map(|t| &mut t.as_chunks_mut().0[page])
}

/// Whether nothing is counted in a page.
fn is_empty([even, odd]: &[&mut [u32; PAGE]; 2]) -> bool {
    wide(
        #[inline(always)]
        || {
            let mut any = 0;
            for i in 0..PAGE {
                any |= even[i] | odd[i];
            }
            any == 0
        },
    )
}

/// Moves the counts of a page of patterns, of which the largest size comes first among buckets if they are of negative numbers.
fn drain([even, odd]: [&mut [u32; PAGE]; 2], negative: bool, to: &mut [u64; PAGE]) {
    wide(
        #[inline(always)]
        move || {
            let mut new = [0u64; PAGE];
            for i in 0..PAGE {
                new[i] = u64::from(even[i]) + u64::from(odd[i]);
            }
            (*even, *odd) = ([0; PAGE], [0; PAGE]);
            for i in 0..PAGE {
                to[i] = to[i].wrapping_add(if negative { new[PAGE - 1 - i] } else { new[i] });
            }
        },
    )
}

/// Adds counts of a page. None exceeds the number of values, which is checked before.
fn add(page: &mut [u64; PAGE], more: &[u64; PAGE]) {
    wide(
        #[inline(always)]
        move || {
            for i in 0..PAGE {
                page[i] = page[i].wrapping_add(more[i]);
            }
        },
    )
}

impl Histogram {
    /// Takes in more values, and tells the extremes of these; NaN is passed over.
    pub fn observe(&mut self, x: &[f32]) -> Extremes {
        let mut all = Extremes::default();
        // A bucket of one call counts in 32 bits.
        for x in x.chunks(u32::MAX as usize) {
            let (mut seen, mut least) = (Extremes::default(), f32::INFINITY);
            DENSE.with_borrow_mut(|tables| {
                for part in x.chunks(PART) {
                    least = least.min(seen.observe_sizes(part));
                    count(tables, part);
                }
                self.total += x.len() as u64;
                for (negative, largest) in [(true, -seen.lo), (false, seen.hi)] {
                    let first_page = if negative { PATTERNS / PAGE / 2 } else { 0 };
                    for e in std::iter::once(ZERO).chain(exponent(least).max(ZERO + 1)..=exponent(largest.max(0.0)).min(INFINITE - 1)) {
                        let counts = page_of(tables, first_page + e);
                        if !is_empty(&counts) {
                            drain(counts, negative, self.page(if negative { INFINITE - e } else { INFINITE + 1 + e }));
                        }
                    }
                    // Here lies NaN too, some of which shares its pattern with an infinity.
                    let counts = page_of(tables, first_page + INFINITE);
                    if !is_empty(&counts) {
                        counts.into_iter().for_each(|page| page.fill(0));
                        for v in x.iter().filter(|v| !v.is_finite() && v.is_sign_negative() == negative) {
                            match v.is_nan() {
                                true => self.total -= 1,
                                false => self.put(bucket(*v) as u16, 1),
                            }
                        }
                    }
                }
            });
            all.merge(&seen);
        }
        self.extremes.merge(&all);
        all
    }

    /// Counts so many in a bucket.
    fn put(&mut self, bucket: u16, n: u64) {
        self.page(bucket as usize / PAGE)[bucket as usize % PAGE] += n;
    }

    fn page(&mut self, at: usize) -> &mut [u64; PAGE] {
        self.pages.entry(at as u16).or_insert_with(|| Box::new([0; PAGE]))
    }

    /// With these counts, none of which is zero.
    fn of(extremes: Extremes, counts: impl Iterator<Item = (u16, u64)>) -> Histogram {
        let mut h = Histogram { extremes, ..Histogram::default() };
        for (bucket, n) in counts {
            h.put(bucket, n);
            h.total += n;
        }
        h
    }

    /// As if everything the other saw had been seen here.
    pub fn merge(&mut self, other: &Histogram) {
        self.extremes.merge(&other.extremes);
        self.total += other.total;
        for (at, page) in &other.pages {
            add(self.page(*at as usize), page);
        }
    }

    /// Counts what lies beyond `interval` as its end.
    pub fn saturate(&mut self, interval: &Extremes) {
        let (first, last) = (bucket(interval.lo) as u16, bucket(interval.hi) as u16);
        *self = Histogram::of(self.extremes.within(interval), self.counts().map(|(b, n)| (b.clamp(first, last), n)));
    }

    /// The same values, each seen `factor` times as often, and once at least.
    pub fn weighed(&self, factor: f64) -> Histogram {
        Histogram::of(self.extremes, self.counts().map(|(b, n)| (b, ((n as f64 * factor) as u64).max(1))))
    }

    /// Forgets what lies more than `deviations` standard deviations from the mean (z-score).
    pub fn drop_beyond(&mut self, deviations: f64) {
        let (sum, squares) = self.points().fold((0.0, 0.0), |(sum, squares), (x, n)| (sum + x as f64 * n as f64, squares + (x as f64).powi(2) * n as f64));
        let mean = sum / self.total.max(1) as f64;
        let reach = deviations * (squares / self.total.max(1) as f64 - mean * mean).max(0.0).sqrt();
        let near: Vec<(f32, (u16, u64))> =
            self.points().zip(self.counts()).map(|((x, _), count)| (x, count)).filter(|(x, _)| (*x as f64 - mean).abs() <= reach).collect();
        let (Some(first), Some(last)) = (near.first(), near.last()) else { return };
        let extremes = self.extremes.within(&Extremes { lo: first.0, hi: last.0 });
        *self = Histogram::of(extremes, near.into_iter().map(|(_, count)| count));
    }

    /// Buckets that hold something and how much, ascending.
    pub fn counts(&self) -> impl DoubleEndedIterator<Item = (u16, u64)> + '_ {
        let bucket = |at: &u16, i: usize| at * PAGE as u16 + i as u16;
        self.pages.iter().flat_map(move |(at, page)| page.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(i, n)| (bucket(at, i), *n)))
    }

    /// The histogram with these counts. `None` where none has them: buckets out of order or empty, extremes in other buckets than the outermost.
    pub fn of_counts(extremes: Extremes, counts: Vec<(u16, u64)>) -> Option<Histogram> {
        counts.iter().try_fold(0u64, |sum, (_, n)| sum.checked_add(*n).filter(|_| *n > 0))?;
        let ascends = counts.windows(2).all(|w| w[0].0 < w[1].0);
        let zero = |b: u16| (bucket(-0.0)..=bucket(0.0)).contains(&(b as u32));
        // Of two zeros either may be the extreme.
        let lies = |x: f32, b: u16| bucket(x) == b as u32 || x == 0.0 && zero(b);
        let holds = match (counts.first(), counts.last()) {
            (Some(first), Some(last)) => !extremes.is_empty() && lies(extremes.lo, first.0) && lies(extremes.hi, last.0),
            _ => extremes == Extremes::default(),
        };
        (ascends && holds).then(|| Histogram::of(extremes, counts.into_iter()))
    }

    /// The sum of the values' squares, as far as buckets tell them.
    pub fn energy(&self) -> f64 {
        self.points().map(|(x, n)| (x as f64).powi(2) * n as f64).sum()
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
        let first_beyond = |order: &mut dyn Iterator<Item = (u16, u64)>| {
            let mut seen = 0;
            let mut beyond = order.skip_while(|(_, n)| {
                seen += n;
                seen <= tail
            });
            beyond.next().map(|(b, _)| outermost(b))
        };
        let lo = first_beyond(&mut self.counts()).map_or(self.extremes.lo, |edges| edges.0);
        let hi = first_beyond(&mut self.counts().rev()).map_or(self.extremes.hi, |edges| edges.1);
        Extremes { lo: lo.max(self.extremes.lo), hi: hi.min(self.extremes.hi) }
    }

    /// Filled buckets as (lower edge, upper edge, count), ascending, within what was seen; a bucket of zeros has both edges at zero.
    pub fn spans(&self) -> impl Iterator<Item = (f32, f32, u64)> + '_ {
        self.counts().map(|(b, c)| {
            let (near, far) = edges(b as u32);
            let far = if near == 0.0 { near } else { far };
            (near.min(far).max(self.extremes.lo), near.max(far).min(self.extremes.hi), c)
        })
    }

    /// Filled buckets as (middle, count), ascending: what searches over a distribution read.
    pub fn points(&self) -> impl Iterator<Item = (f32, u64)> + '_ {
        self.counts().map(|(b, c)| {
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
                assert!(h.counts().eq(want.clone()));
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
        for c in x.chunks(777) {
            h.observe(c);
        }
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
        assert!(h.counts().eq(plain.counts()) && h.total() == 1000);
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
