//! Ranges → scale and zero. What every method of `range` ends in, and what a dynamic quantizer does at inference.

use super::blocks::Share;
use super::codebook::{Histogram, even};
use super::coder::Coder;
use super::value::{exponent_of, nearest_scale, round};
use super::{Codes, Curve, Format, Layout, NestedScale, Origin, Params, Rounding, ScaleKind, Scheme, View, Zero, Zeros, dequantize, quantize};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, numel, pack};

/// Parameters that cover `lo[b]…hi[b]` in each block `b`, for schemes whose scales nest per tensor or not at all. See [`fit_grid`].
pub fn fit_range(scheme: &Scheme, lo: &[f32], hi: &[f32]) -> Result<Params> {
    if let ScaleKind::Nested(inner) = &scheme.scale
        && !inner.blocks.is_tensor()
        && inner.blocks.view != View::Flat
    {
        return Err(Error::failed(format!("the blocks of nested scales ({inner}) need the grid of the outer ones")));
    }
    fit_grid(scheme, &[lo.len()], &first_curve(scheme), lo, hi)
}

/// Parameters that cover `lo[b]…hi[b]` in each block `b` of a layout's `grid`, on the given curve.
///
/// * Zero `Integer`: ranges are widened to hold 0, which gets a code of its own. `None`, `Fixed`: the smallest scale that reaches both ends;
///   signed integers without a zero point use as many codes below zero as above. `Real`: exactly the range.
/// * Scale `Exact`: rounded to its type. `Pow2` in float8e8m0: `2^(floor(log2 absmax) − floor(log2 max))` (OCP MX 1.0, section 6.3), which clips
///   a little; otherwise the smallest power of two that covers the range. `Nested`: the scales that would be exact, quantized by the inner scheme
///   and kept positive.
/// * An empty range gets scale 1, or the smallest scale where scales nest.
pub fn fit_grid(scheme: &Scheme, grid: &[usize], curve: &Curve, lo: &[f32], hi: &[f32]) -> Result<Params> {
    if lo.len() != hi.len() {
        return Err(Error::failed(format!("{} lower bounds do not pair with {} upper ones", lo.len(), hi.len())));
    }
    if let Some(b) = lo.iter().zip(hi).position(|(l, h)| !(l.is_finite() && h.is_finite() && l <= h)) {
        return Err(Error::failed(format!("the range {}…{} of block {b} is not a finite interval", lo[b], hi[b])));
    }
    let zeros = if scheme.zero == Zero::Real { Zeros::Real(vec![]) } else { Zeros::None };
    let mut params = Params { scale: vec![], nested: None, zero: zeros, curve: curve.clone(), origin: Origin::Fitted };
    let reach = Reach::new(scheme, &params)?;
    let wanted = lo.iter().zip(hi).map(|(&l, &h)| reach.scale(l, h));
    match &scheme.scale {
        ScaleKind::Exact(dtype) => params.scale = wanted.map(|s| nearest_scale(or_one(s), *dtype)).collect(),
        ScaleKind::Pow2(DType::F8E8M0) => params.scale = lo.iter().zip(hi).map(|(&l, &h)| reach.mx_scale(l, h)).collect(),
        ScaleKind::Pow2(_) => params.scale = wanted.map(|s| covering_pow2(or_one(s))).collect(),
        ScaleKind::Nested(inner) => {
            let (codes, inner_params, scale) = nest(&wanted.collect::<Vec<_>>(), grid, inner)?;
            params.scale = scale;
            params.nested = Some(Box::new(NestedScale { codes, params: inner_params }));
        }
    }
    let ranges = || lo.iter().zip(&params.scale);
    params.zero = match scheme.zero {
        Zero::None => Zeros::None,
        Zero::Fixed(z) => Zeros::Integer(vec![z]),
        Zero::Integer => Zeros::Integer(ranges().map(|(&l, s)| reach.integer_zero(l.min(0.0), *s)).collect()),
        Zero::Real => Zeros::Real(ranges().map(|(&l, s)| reach.low - l / s).collect()),
    };
    Ok(params)
}

/// Parameters fitted to `x`: the range of each block, then [`fit_grid`]; the entries of a codebook by Lloyd's algorithm. Refuses NaN and infinity.
pub fn fit(x: &[f32], shape: &[usize], scheme: &Scheme) -> Result<Params> {
    let layout = scheme.blocks.layout(shape)?;
    if numel(&layout.view) != Some(x.len()) {
        return Err(Error::failed(format!("{} elements do not have shape {shape:?}", x.len())));
    }
    let (lo, hi) = block_ranges(x, shape, &layout);
    if lo.iter().any(|l| l.is_nan()) {
        let i = x.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(Error::failed(format!("element {i} of a tensor of shape {shape:?} is {}: no scale covers it", x[i])));
    }
    let mut params = fit_grid(scheme, &layout.grid, &first_curve(scheme), &lo, &hi)?;
    if let Format::Codebook { bits } = scheme.format {
        let mut histogram = Histogram::new();
        layout.runs(|r, share| {
            for (i, &x) in x[r].iter().enumerate() {
                let b = match share {
                    Share::One(b) => b,
                    Share::Each(b) => b + i,
                };
                histogram.add(x / params.scale[b] + params.zero_at(b));
            }
        });
        params.curve = Curve::Table(histogram.fit(bits).into());
    }
    Ok(params)
}

/// Lowest and highest number of each block of `x`, whose `shape` the layout was made for. A block that holds a NaN or an infinity has NaN for both.
pub fn block_ranges(x: &[f32], shape: &[usize], layout: &Layout) -> (Vec<f32>, Vec<f32>) {
    debug_assert_eq!(numel(shape), Some(x.len()));
    debug_assert_eq!(numel(&layout.view), Some(x.len()));
    let mut lo = vec![f32::INFINITY; layout.len()];
    let mut hi = vec![f32::NEG_INFINITY; layout.len()];
    let mut poison = vec![0f32; layout.len()];
    layout.runs(|r, share| match share {
        Share::One(b) => {
            let (l, h, p) = stretch_range(&x[r]);
            (lo[b], hi[b], poison[b]) = (lo[b].min(l), hi[b].max(h), poison[b] + p);
        }
        Share::Each(b) => {
            let n = r.len();
            for (((&x, l), h), p) in x[r].iter().zip(&mut lo[b..b + n]).zip(&mut hi[b..b + n]).zip(&mut poison[b..b + n]) {
                *l = if x < *l { x } else { *l };
                *h = if x > *h { x } else { *h };
                *p += x * 0.0;
            }
        }
    });
    for ((l, h), _) in lo.iter_mut().zip(&mut hi).zip(&poison).filter(|(_, p)| p.is_nan()) {
        (*l, *h) = (f32::NAN, f32::NAN);
    }
    (lo, hi)
}

/// Lowest, highest, and 0 or, if any is NaN or infinite, NaN. In lanes, which the compiler makes SIMD of.
fn stretch_range(x: &[f32]) -> (f32, f32, f32) {
    const LANES: usize = 8;
    let (mut lo, mut hi, mut poison) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0f32; LANES]);
    let mut step = |i: usize, x: f32| {
        lo[i] = if x < lo[i] { x } else { lo[i] };
        hi[i] = if x > hi[i] { x } else { hi[i] };
        poison[i] += x * 0.0;
    };
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        for i in 0..LANES {
            step(i, c[i]);
        }
    }
    rest.iter().enumerate().for_each(|(i, &x)| step(i, x));
    (lo.into_iter().fold(f32::INFINITY, f32::min), hi.into_iter().fold(f32::NEG_INFINITY, f32::max), poison.iter().sum())
}

/// The curve of a scheme before its data is seen: linear, and evenly spaced entries for a codebook.
fn first_curve(scheme: &Scheme) -> Curve {
    match scheme.format {
        Format::Codebook { bits } => Curve::Table(even(bits).into()),
        _ => Curve::Linear,
    }
}

/// What the codes of a scheme reach at scale 1.
struct Reach {
    zero: Zero,
    low: f32,
    high: f32,
    codes: (i32, i32),
}

impl Reach {
    fn new(scheme: &Scheme, params: &Params) -> Result<Self> {
        let coder = Coder::new(scheme, params)?;
        let format = scheme.format;
        let (low, high) = coder.span();
        let integer = matches!(format, Format::Int { .. }) && params.curve == Curve::Linear;
        let (low, high) = match scheme.zero {
            Zero::None if integer && low < 0.0 && matches!(scheme.scale, ScaleKind::Exact(_) | ScaleKind::Nested(_)) => (-high, high),
            Zero::None | Zero::Real | Zero::Fixed(0) => (low, high),
            Zero::Integer if integer => (low, high),
            Zero::Fixed(z) if integer && (coder.codes.0..=coder.codes.1).contains(&z) => (low - z as f32, high - z as f32),
            Zero::Fixed(z) => return Err(Error::usage(format!("zero point {z} is not a code of {format}"))),
            Zero::Integer => return Err(Error::usage(format!("{format} cannot have an integer zero point: only evenly spaced integer codes can"))),
        };
        Ok(Reach { zero: scheme.zero, low, high, codes: coder.codes })
    }

    /// The smallest scale that covers `lo…hi`; 0 if any does.
    fn scale(&self, lo: f32, hi: f32) -> f32 {
        match self.zero {
            Zero::None | Zero::Fixed(_) => {
                let above = if self.high > 0.0 { hi.max(0.0) / self.high } else { 0.0 };
                let below = if self.low < 0.0 { lo.min(0.0) / self.low } else { 0.0 };
                above.max(below)
            }
            Zero::Integer => self.spread(lo.min(0.0), hi.max(0.0)),
            Zero::Real if lo == hi => lo.abs(),
            Zero::Real => self.spread(lo, hi),
        }
    }

    fn spread(&self, lo: f32, hi: f32) -> f32 {
        let levels = self.high - self.low;
        if (hi - lo).is_finite() { (hi - lo) / levels } else { hi / levels - lo / levels }
    }

    /// The MX rule where codes lie around zero; elsewhere a power of two that covers.
    fn mx_scale(&self, lo: f32, hi: f32) -> f32 {
        let absmax = if self.low < 0.0 { hi.max(-lo) } else { hi };
        match self.zero {
            Zero::None | Zero::Fixed(0) if absmax > 0.0 => 2f64.powi((exponent_of(absmax) - exponent_of(self.high)).clamp(-127, 127)) as f32,
            _ => covering_pow2(or_one(self.scale(lo, hi))),
        }
    }

    fn integer_zero(&self, lo: f32, scale: f32) -> i32 {
        let (low, high) = self.codes;
        (round((low as f32 - lo / scale) as f64, Rounding::HalfEven) as i64).clamp(low as i64, high as i64) as i32
    }
}

fn or_one(scale: f32) -> f32 {
    if scale > 0.0 { scale } else { 1.0 }
}

/// The smallest power of two not below `scale`, within float32's normal numbers.
fn covering_pow2(scale: f32) -> f32 {
    let e = exponent_of(scale);
    let exact = 2f64.powi(e) == scale as f64;
    2f64.powi((e + !exact as i32).clamp(-126, 127)) as f32
}

/// Quantizes the scales that are wanted. Codes that would make a scale of 0 or less become the one with the smallest positive scale.
fn nest(wanted: &[f32], grid: &[usize], inner: &Scheme) -> Result<(Codes, Params, Vec<f32>)> {
    let params = fit(wanted, grid, inner)?;
    let codes = quantize(wanted, grid, inner, &params)?;
    let mut scale = dequantize(&codes, inner, &params)?;
    if scale.iter().all(|s| *s > 0.0) {
        return Ok((codes, params, scale));
    }
    let dtype = codes.0.dtype();
    if dtype.bits() > 16 {
        return Err(Error::usage(format!("scales cannot be codes of {}: at most 16 bits", inner.format)));
    }
    let coder = Coder::new(inner, &params)?;
    let all = match inner.format.code_range() {
        Some((lo, hi)) => lo..=hi,
        None => 0..=(1 << inner.format.bits()) - 1,
    };
    let smallest = |s: f32, z: f32| {
        let positive = all.clone().map(|c| (coder.decode(c, s, z), c)).filter(|(x, _)| *x > 0.0 && x.is_finite());
        positive.min_by(|a, b| a.0.total_cmp(&b.0)).ok_or_else(|| Error::usage(format!("scales cannot be codes of {inner}: none is positive")))
    };
    let layout = inner.blocks.layout(grid)?;
    let mut owner = vec![0; wanted.len()];
    layout.runs(|r, share| {
        for (i, o) in owner[r].iter_mut().enumerate() {
            *o = match share {
                Share::One(b) => b,
                Share::Each(b) => b + i,
            };
        }
    });
    let mut list = codes.unpack();
    let mut known = std::collections::BTreeMap::new();
    for i in 0..scale.len() {
        if scale[i] > 0.0 {
            continue;
        }
        let b = owner[i];
        let (value, code) = match known.get(&b) {
            Some(found) => *found,
            None => *known.entry(b).or_insert(smallest(params.scale_at(b), params.zero_at(b))?),
        };
        (scale[i], list[i]) = (value, code);
    }
    let codes = Codes(Tensor::new(dtype, grid.to_vec(), pack::pack(&list, dtype).into())?);
    Ok((codes, params, scale))
}
