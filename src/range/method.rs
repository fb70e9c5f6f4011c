//! How a range is taken from the values seen: one function a method, from a histogram to an interval.

use super::{entropy, pow2};
use crate::error::Result;
use crate::math::sum_of;
use crate::observe::{Extremes, Histogram};
use crate::quant::{self, Params, Scheme, Zero};

/// How a range is taken from the values seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// From the smallest to the largest value.
    MinMax,
    /// From the mean of the samples' smallest values to the mean of their largest, each weighing `constant` against those before it
    /// (Jacob et al. 2018, section 3.1: an exponential moving average).
    MovingAverage { constant: f64 },
    /// Leaves out this share in percent of the values at either end: 99.99 keeps all but one in ten thousand. Read from a histogram, exact to one part in 128.
    Percentile(f64),
    /// The interval whose codes lose the least squared error over the values seen, found by shrinking the extremes
    /// (Banner et al. 2019; searched over a histogram, whose buckets are one part in 128 wide).
    Mse,
    /// The same by the mean absolute error.
    Mae,
    /// The same by the mean of the error's p-th power.
    Lp(f64),
    /// The interval whose codes keep the distribution best, by Kullback-Leibler divergence (Migacz 2017, 8-bit inference with TensorRT).
    Entropy,
    /// All values seen, and half of what lies between them and the interval that loses the least squared error if the outermost values of each end belong
    /// to a tail that goes on beyond them, and is fitted to them. For data of which little was seen (Pickands 1975, peaks over a threshold; Banner et al. 2019, section 3, for the error).
    Tail,
    /// All values (HPTQ, section 3.2: the threshold from which its searches start).
    NoClip,
    /// Whichever of [`Method::COMPARED`] brings the outputs of a few samples nearest to the float model's; `Tail` for tensors of which too little was seen
    /// to tell.
    Auto,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Method::MinMax => f.write_str("minmax"),
            Method::MovingAverage { .. } => f.write_str("moving-average"),
            Method::Percentile(p) => write!(f, "percentile {p}"),
            Method::Mse => f.write_str("mse"),
            Method::Mae => f.write_str("mae"),
            Method::Lp(p) => write!(f, "lp {p}"),
            Method::Entropy => f.write_str("entropy"),
            Method::Tail => f.write_str("tail"),
            Method::NoClip => f.write_str("no-clip"),
            Method::Auto => f.write_str("auto"),
        }
    }
}

impl Method {
    /// What `Auto` chooses from; which of them cuts most; and, where that loses least, what it compares with in turn, for as long as less is lost.
    pub const COMPARED: [Method; 4] = [Method::MinMax, Method::Percentile(99.999), Method::HARDEST, Method::Mse];
    pub const HARDEST: Method = Method::Percentile(99.99);
    pub const HARDER: [Method; 3] = [Method::Percentile(99.95), Method::Percentile(99.9), Method::Percentile(99.8)];

    /// Of a moving average: the weight of a sample.
    pub fn constant(self) -> Option<f64> {
        if let Method::MovingAverage { constant } = self { Some(constant) } else { None }
    }

    /// Whether it reads a histogram; otherwise the extremes do.
    pub fn wants_histogram(self) -> bool {
        self.power().is_some() || matches!(self, Method::Percentile(_) | Method::Entropy | Method::Tail | Method::Auto)
    }

    /// Of an error that is made least: the power it is taken to.
    fn power(self) -> Option<f64> {
        match self {
            Method::Mse => Some(2.0),
            Method::Mae => Some(1.0),
            Method::Lp(p) => Some(p),
            _ => None,
        }
    }

    /// The range of values distributed so.
    pub fn range(self, seen: &Histogram, scheme: &Scheme) -> Result<Extremes> {
        match (self, self.power()) {
            (_, Some(p)) if pow2::applies(scheme) => {
                let mut loss = Loss::over(seen, p);
                pow2::threshold(seen, scheme, |params| loss.under(scheme, params))
            }
            (Method::Tail, _) if pow2::applies(scheme) => Ok(pow2::nearest(seen, scheme, behind_tails(seen, scheme))),
            (_, Some(p)) => least_error(seen, scheme, p),
            (Method::Percentile(p), _) => Ok(seen.central(p / 100.0)),
            (Method::Entropy, _) => entropy::range(seen, scheme),
            (Method::Tail, _) => Ok(behind_tails(seen, scheme)),
            _ => Ok(seen.extremes),
        }
    }
}

/// What the values of a distribution lose under parameters: the sum of the errors' p-th powers.
struct Loss {
    x: Vec<f32>,
    weight: Vec<f64>,
    y: Vec<f32>,
    power: f64,
}

impl Loss {
    fn over(seen: &Histogram, power: f64) -> Loss {
        let (x, weight): (Vec<f32>, Vec<f64>) = seen.points().map(|(x, n)| (x, n as f64)).unzip();
        Loss { y: x.clone(), x, weight, power }
    }

    fn under(&mut self, scheme: &Scheme, params: &Params) -> Result<f64> {
        self.y.copy_from_slice(&self.x);
        quant::fake_quantize(&mut self.y, &[self.x.len()], scheme, Some(params))?;
        if self.power == 2.0 {
            return Ok(sum_of(
                &self.x,
                &self.y,
                &self.weight,
                #[inline(always)]
                |x, y, weight| {
                    let e = (x - y) as f64;
                    e * e * weight
                },
            ));
        }
        let errors = self.x.iter().zip(&self.y).map(|(x, y)| (x - y).abs() as f64);
        Ok(errors.map(|e| e.powf(self.power)).zip(&self.weight).map(|(e, w)| e * w).sum())
    }
}

/// Searches both ends together in steps of 2 %, then each alone around the best. Zero is within, but where zero points are real numbers.
fn least_error(seen: &Histogram, scheme: &Scheme, power: f64) -> Result<Extremes> {
    let mut all = seen.extremes;
    if all.is_empty() {
        return Ok(all);
    }
    if scheme.zero != Zero::Real {
        all.observe(&[0.0]);
    }
    let mut errors = Loss::over(seen, power);
    let mut loss = |a: f32, b: f32| match all.lo * a <= all.hi * b {
        true => errors.under(scheme, &quant::fit_range(scheme, &[all.lo * a], &[all.hi * b])?),
        false => Ok(f64::INFINITY),
    };
    let mut best = (loss(1.0, 1.0)?, 1.0f32, 1.0f32);
    let mut consider = |a: f32, b: f32, best: &mut (f64, f32, f32)| -> Result<()> {
        if (a, b) == (best.1, best.2) {
            return Ok(());
        }
        let l = loss(a, b)?;
        if l < best.0 {
            *best = (l, a, b);
        }
        Ok(())
    };
    for i in 1..45 {
        let f = 1.0 - 0.02 * i as f32;
        consider(f, f, &mut best)?;
    }
    for step in [0.1f32, 0.03, 0.01] {
        let (_, a, b) = best;
        for i in -4..=4 {
            let shifted = |f: f32| (f + step * i as f32).clamp(0.02, 1.0);
            consider(shifted(a), b, &mut best)?;
        }
        let (_, a, _) = best;
        for i in -4..=4 {
            consider(a, (b + step * i as f32).clamp(0.02, 1.0), &mut best)?;
        }
    }
    Ok(Extremes { lo: all.lo * best.1, hi: all.hi * best.2 })
}

/// Share of the values of an end that its tail is fitted to, and their least and largest number.
const TAIL: (f64, u64, u64) = (0.01, 24, 256);
/// Share of the values whose quantile tells how fast an end falls, and how fast one falls of which that quantile says nothing.
const SHOULDER: (f64, f64) = (0.1, 1.25);

/// How far a fitted tail is followed beyond what was seen.
const TRUST: f32 = 0.5;

/// Tails fall like `exp(−(x/s)^a)`. Of `L` steps over `span`, rounding loses `span² / 12 L²`; cutting at `c` loses `2 p(c) β²`, where a share `p(c)` lies
/// beyond `c`, by `β` in the mean. With a share `p` beyond `u`, by `m` in the mean of `xᵃ`, the tail has `p(c) = p · exp(−(cᵃ − uᵃ)/m)` and
/// `β = m / (a cᵃ⁻¹)`, and the sum is least at `cᵃ = uᵃ + m · ln(12 L² p β / span)`. An end at which values pile up has no tail.
fn behind_tails(seen: &Histogram, scheme: &Scheme) -> Extremes {
    let all = seen.extremes;
    let Some((first, last)) = scheme.format.code_range().filter(|_| !all.is_empty()) else { return all };
    let steps = (last as f64 - first as f64).powi(2);
    let points: Vec<(f64, u64)> = seen.points().map(|(x, n)| (x as f64, n)).collect();
    let low: Vec<(f64, u64)> = points.iter().map(|(x, n)| (-x, *n)).collect();
    let high: Vec<(f64, u64)> = points.into_iter().rev().collect();
    let (low, high) = (End::of(&low, seen.total()), End::of(&high, seen.total()));
    let (mut lo, mut hi) = (all.lo as f64, all.hi as f64);
    for _ in 0..6 {
        let span = hi.max(0.0) - lo.min(0.0);
        (lo, hi) = (low.as_ref().map_or(all.lo as f64, |e| -e.cut(-lo, span, steps)), high.as_ref().map_or(all.hi as f64, |e| e.cut(hi, span, steps)));
    }
    // Halfway to what was seen, and never within it: a fit to few values errs to either side, and cutting off costs more than reaching too far.
    let reach = |seen: f32, fitted: f64| seen + TRUST * (fitted as f32 - seen);
    Extremes { lo: reach(all.lo, lo).min(all.lo), hi: reach(all.hi, hi).max(all.hi) }
}

/// The tail of one end: `a`, `uᵃ`, `m` and `p`.
struct End {
    fall: f64,
    threshold: f64,
    excess: f64,
    share: f64,
}

impl End {
    /// From values and their counts, outermost first; `None` where there is no tail.
    fn of(points: &[(f64, u64)], total: u64) -> Option<End> {
        let count = ((TAIL.0 * total as f64) as u64).clamp(TAIL.1, TAIL.2).min(total / 4);
        let (top, pile) = *points.first()?;
        if top <= 0.0 || 4 * pile > count {
            return None;
        }
        // The first value with so many beyond it, and how many these are.
        let quantile = |count: u64| {
            let mut beyond = 0;
            let at = points.iter().position(|(_, n)| {
                let reached = beyond >= count;
                beyond += if reached { 0 } else { *n };
                reached
            });
            let at = at.unwrap_or(points.len());
            (points.get(at).map_or(0.0, |p| p.0.max(0.0)), at, beyond as f64 / total as f64)
        };
        let (u, beyond, share) = quantile(count);
        let (shoulder, _, wide) = quantile((SHOULDER.0 * total as f64) as u64);
        let fall = match shoulder > 0.0 && u > shoulder && 3.0 * share < wide {
            // Between the two the slope is that of the shoulder; beyond the second a normal distribution's is a quarter steeper.
            true => (1.25 * (share.ln() / wide.ln()).ln() / (u / shoulder).ln()).clamp(0.8, 4.0),
            false => SHOULDER.1,
        };
        let power = |x: f64| x.max(0.0).powf(fall);
        let (n, sum) = points[..beyond].iter().fold((0, 0.0), |(n, sum), (x, k)| (n + k, sum + power(*x) * *k as f64));
        let (threshold, excess) = (power(u), sum / n.max(1) as f64 - power(u));
        (excess > 1e-3 * threshold).then_some(End { fall, threshold, excess, share })
    }

    /// Where to cut, if `cut` is nearly it.
    fn cut(&self, cut: f64, span: f64, steps: f64) -> f64 {
        // A tail that begins at 0 may end there too, where it has no slope: it is looked at where it has fallen to a third.
        let cut = if cut > 0.0 { cut } else { (self.threshold + self.excess).powf(1.0 / self.fall) };
        let beta = self.excess / (self.fall * cut.powf(self.fall - 1.0));
        (self.threshold + self.excess * (12.0 * steps * self.share * beta / span).ln().max(0.0)).powf(1.0 / self.fall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::ScaleKind;
    use crate::tensor::DType;

    fn bell(outlier: f32) -> Histogram {
        let mut h = Histogram::default();
        // Sums of uniform numbers are near enough to a bell.
        let u = |i: usize, k: f32| (i as f32 * k).fract() - 0.5;
        let x: Vec<f32> = (0..20_000).map(|i| u(i, 0.618_034) + u(i, 0.414_214) + u(i, 0.732_051) + u(i, 0.236_068)).collect();
        h.observe(&x);
        h.observe(&[outlier]);
        h
    }

    #[test]
    fn searches_cut_an_outlier_off_and_keep_what_is_dense() {
        let scheme = Scheme::int(4, false);
        let h = bell(40.0);
        for method in [Method::Mse, Method::Entropy] {
            let r = method.range(&h, &scheme).unwrap();
            assert!(r.hi < 12.0 && r.hi > 0.7 && r.lo < -0.5, "{method:?}: {r:?}");
        }
        let all = Method::NoClip.range(&h, &scheme).unwrap();
        assert_eq!(all.hi, 40.0);
    }

    /// A few values below zero, fewer than a tail is fitted to, end somewhere.
    #[test]
    fn a_tail_that_begins_at_zero_ends() {
        let mut h = Histogram::default();
        h.observe(&(0..1000).map(|i| 1.0 + (i as f32 * 0.618_034).fract()).collect::<Vec<_>>());
        h.observe(&(1..9).map(|i| -1e-5 * i as f32).collect::<Vec<_>>());
        let r = Method::Tail.range(&h, &Scheme::int(8, false)).unwrap();
        assert!(r.lo <= -8e-5 && r.lo > -0.01 && r.hi < 3.0, "{r:?}");
    }

    #[test]
    fn without_an_outlier_eight_bits_keep_nearly_everything() {
        let h = bell(0.0);
        for method in [Method::Mse, Method::Entropy] {
            let r = method.range(&h, &Scheme::int(8, false)).unwrap();
            assert!(r.hi > 0.75 * h.extremes.hi && r.lo < 0.75 * h.extremes.lo, "{method:?}: {r:?} of {:?}", h.extremes);
        }
    }

    #[test]
    fn values_of_one_sign_have_a_range_that_holds_them() {
        let pow2 = Scheme { scale: ScaleKind::Pow2(DType::F32), ..Scheme::int(8, true) };
        let real = Scheme { zero: Zero::Real, ..Scheme::int(8, false) };
        for values in [vec![8.0f32; 5], vec![-91.4, -70.0, -60.0], (0..3000).map(|i| 5921.0 + 0.7 * i as f32).collect(), vec![1e-30; 3]] {
            let mut h = Histogram::default();
            h.observe(&values);
            for scheme in [Scheme::int(8, false), Scheme::int(8, true), Scheme::int(4, false), pow2.clone(), real.clone()] {
                for method in [Method::NoClip, Method::Percentile(99.9), Method::Mse, Method::Mae, Method::Lp(2.4), Method::Entropy, Method::Tail] {
                    let r = method.range(&h, &scheme).unwrap();
                    let params = quant::fit_range(&scheme, &[r.lo], &[r.hi]).unwrap_or_else(|e| panic!("{method:?} of {:?} under {scheme}: {e}", h.extremes));
                    let mut y = values.clone();
                    quant::fake_quantize(&mut y, &[values.len()], &scheme, Some(&params)).unwrap();
                    let (signal, noise): (f64, f64) =
                        values.iter().zip(&y).fold((0.0, 0.0), |(s, n), (x, y)| (s + (*x as f64).powi(2), n + (*x as f64 - *y as f64).powi(2)));
                    assert!(noise <= 0.05 * signal, "{method:?} of {:?} under {scheme}: {r:?}", h.extremes);
                }
            }
        }
    }

    #[test]
    fn a_tail_reaches_beyond_few_values_and_stops_where_values_pile_up() {
        let u = |i: usize, k: f64| (i as f64 * k).fract();
        // Box and Muller's normal numbers.
        let normal = |i: usize| ((-2.0 * u(i + 1, 0.618_033_988_7).ln()).sqrt() * (std::f64::consts::TAU * u(i + 1, 0.414_213_562_4)).cos()) as f32;
        let range = |n: usize, of: &dyn Fn(f32) -> f32| {
            let mut h = Histogram::default();
            h.observe(&(0..n).map(|i| of(normal(i))).collect::<Vec<_>>());
            (Method::Tail.range(&h, &Scheme::int(8, false)).unwrap(), h.extremes)
        };
        let (few, seen) = range(128, &|x| x);
        assert!(few.hi > 1.1 * seen.hi && few.hi < 2.0 * seen.hi && few.lo < 1.1 * seen.lo, "{few:?} of {seen:?}");
        let (many, seen) = range(200_000, &|x| x);
        assert_eq!(many, seen, "least squares over a normal distribution end at 4, and more was seen");
        let (cut, seen) = range(2000, &|x| (2.0 * x).clamp(0.0, 3.0));
        assert_eq!(cut, seen);
    }

    #[test]
    fn thresholds_are_the_best_of_all_powers_of_two() {
        let pow2 = ScaleKind::Pow2(DType::F32);
        let schemes = [
            Scheme { scale: pow2.clone(), ..Scheme::int(4, true) },
            Scheme { scale: pow2.clone(), ..Scheme::int(8, true) },
            Scheme { scale: pow2, zero: Zero::Fixed(0), ..Scheme::int(8, false) },
        ];
        for (scheme, outlier) in schemes.iter().flat_map(|s| [0.5f32, 6.0, 300.0].map(|o| (s, o))) {
            let h = bell(outlier);
            let (x, n): (Vec<f32>, Vec<u64>) = h.points().unzip();
            for (method, power) in [(Method::Mse, 2.0), (Method::Mae, 1.0), (Method::Lp(2.4), 2.4)] {
                let loss = |exponent: i32| {
                    let mut y = x.clone();
                    let p = Params { scale: vec![2f32.powi(exponent)], ..quant::fit_range(scheme, &[-1.0], &[1.0]).unwrap() };
                    quant::fake_quantize(&mut y, &[x.len()], scheme, Some(&p)).unwrap();
                    x.iter().zip(y).zip(&n).map(|((x, y), n)| ((x - y).abs() as f64).powf(power) * *n as f64).sum::<f64>()
                };
                let r = method.range(&h, scheme).unwrap();
                let found = quant::fit_range(scheme, &[r.lo], &[r.hi]).unwrap().scale[0].log2() as i32;
                let best = (-20..=4).map(loss).fold(f64::INFINITY, f64::min);
                assert!(loss(found) <= best * (1.0 + 1e-9), "{method} {scheme}, outlier {outlier}: 2^{found} loses {}, the best {best}", loss(found));
            }
            let scale = |m: Method| {
                let r = m.range(&h, scheme).unwrap();
                quant::fit_range(scheme, &[r.lo], &[r.hi]).unwrap().scale[0]
            };
            assert!(scale(Method::Entropy) <= scale(Method::NoClip) && scale(Method::Tail) <= 2.0 * scale(Method::NoClip));
            if outlier == 300.0 {
                assert!(scale(Method::Entropy) < 0.1 * scale(Method::NoClip), "{}", scale(Method::Entropy));
            }
        }
    }

    #[test]
    fn least_squares_is_no_worse_than_every_range_of_a_grid() {
        let scheme = Scheme::int(4, false);
        let h = bell(6.0);
        let loss = |r: Extremes| {
            let p = quant::fit_range(&scheme, &[r.lo], &[r.hi]).unwrap();
            let (x, n): (Vec<f32>, Vec<u64>) = h.points().unzip();
            let mut y = x.clone();
            quant::fake_quantize(&mut y, &[x.len()], &scheme, Some(&p)).unwrap();
            x.iter().zip(y).zip(n).map(|((x, y), n)| ((x - y) as f64).powi(2) * n as f64).sum::<f64>()
        };
        let found = loss(Method::Mse.range(&h, &scheme).unwrap());
        let grid = (1..=20).flat_map(|a| (1..=20).map(move |b| (a as f32 / 20.0, b as f32 / 20.0)));
        let best = grid.map(|(a, b)| loss(Extremes { lo: h.extremes.lo * a, hi: h.extremes.hi * b })).fold(f64::INFINITY, f64::min);
        assert!(found <= best * 1.1, "{found} is well above {best}");
    }
}
