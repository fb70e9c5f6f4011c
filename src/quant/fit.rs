//! Ranges → scale and zero. What every method of `range` ends in, and what a dynamic quantizer does at inference.

use super::blocks::Share;
use super::codebook::{Histogram, NF4, even};
use super::coder::Coder;
use super::value::{exponent_of, nearest_scale, round};
use super::{Book, Codes, Curve, Format, Layout, NestedScale, Origin, Params, Rounding, ScaleKind, Scheme, View, Zero, Zeros, dequantize, quantize};
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
    fit_codebook(&[(x, shape)], scheme, &mut params)?;
    Ok(params)
}

/// Entries of a codebook that is learnt, from tensors whose scales are known, by Lloyd's algorithm. Other formats are left as they are.
pub fn fit_codebook<X: AsRef<[f32]>>(tensors: &[(X, &[usize])], scheme: &Scheme, params: &mut Params) -> Result<()> {
    let Format::Codebook { bits, book: Book::Fitted } = scheme.format else { return Ok(()) };
    let mut histogram = Histogram::new();
    for (x, shape) in tensors {
        scheme.blocks.layout(shape)?.runs(|r, share| {
            for (i, &x) in x.as_ref()[r].iter().enumerate() {
                let b = match share {
                    Share::One(b) => b,
                    Share::Each(b) => b + i,
                };
                histogram.add(x / params.scale_at(b) + params.zero_at(b));
            }
        });
    }
    params.curve = Curve::Table(histogram.fit(bits).into());
    Ok(())
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
            (lo[b], hi[b], poison[b]) = (least(l, lo[b]), most(h, hi[b]), poison[b] + p);
        }
        Share::Each(b) => {
            let n = r.len();
            for (((&x, l), h), p) in x[r].iter().zip(&mut lo[b..b + n]).zip(&mut hi[b..b + n]).zip(&mut poison[b..b + n]) {
                *l = least(x, *l);
                *h = most(x, *h);
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
    let (mut lo, mut hi, mut poison) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16], [0f32; 16]);
    let (chunks, rest) = x.as_chunks::<16>();
    for c in chunks {
        for i in 0..16 {
            lo[i] = least(c[i], lo[i]);
            hi[i] = most(c[i], hi[i]);
            poison[i] += c[i] * 0.0;
        }
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lo[i] = least(lo[i + width], lo[i]);
            hi[i] = most(hi[i + width], hi[i]);
            poison[i] += poison[i + width];
        }
    }
    rest.iter().fold((lo[0], hi[0], poison[0]), |(l, h, p), &x| (least(x, l), most(x, h), p + x * 0.0))
}

/// The lesser of two numbers, as one instruction; `b` if `a` is NaN.
#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn most(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The curve of a scheme before its data is seen: linear, and, for a codebook that is learnt, evenly spaced entries.
pub fn first_curve(scheme: &Scheme) -> Curve {
    match scheme.format {
        Format::Codebook { bits, book: Book::Fitted } => Curve::Table(even(bits).into()),
        Format::Codebook { book: Book::Nf4, .. } => Curve::Table(NF4.into()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Blocks, Specials, Timing};

    fn scheme(format: Format, scale: ScaleKind, zero: Zero) -> Scheme {
        Scheme { format, scale, zero, blocks: Blocks::tensor(), timing: Timing::Static, rounding: Rounding::HalfEven }
    }

    const F32: ScaleKind = ScaleKind::Exact(DType::F32);
    const E2M1: Format = Format::Float { exponent: 2, mantissa: 1, specials: Specials::None };
    const E4M3: Format = Format::Float { exponent: 4, mantissa: 3, specials: Specials::Fn };

    fn int(bits: u8, signed: bool, narrow: bool) -> Format {
        Format::Int { bits, signed, narrow }
    }

    fn one(s: &Scheme, lo: f32, hi: f32) -> (f32, f32) {
        let p = fit_range(s, &[lo], &[hi]).unwrap();
        (p.scale[0], p.zero_at(0))
    }

    #[test]
    fn ranges_become_scale_and_zero() {
        let fit = |format, zero, lo, hi| one(&scheme(format, F32, zero), lo, hi);
        assert_eq!(fit(int(8, true, false), Zero::None, -2.0, 1.0), (2.0 / 127.0, 0.0));
        assert_eq!(fit(int(8, false, false), Zero::None, 0.0, 51.0), (0.2, 0.0));
        assert_eq!(fit(int(8, false, false), Zero::Integer, -1.0, 1.55), (2.55 / 255.0, 100.0));
        assert_eq!(fit(int(8, true, false), Zero::Integer, 1.0, 2.55), (2.55 / 255.0, -128.0), "0 is widened in");
        assert_eq!(fit(int(8, true, true), Zero::Integer, -2.54, 0.0), (2.54 / 254.0, 127.0));
        assert_eq!(fit(int(8, false, false), Zero::Fixed(128), -1.0, 0.5), (1.0 / 128.0, 128.0));
        assert_eq!(fit(int(8, false, false), Zero::Fixed(128), -1.0, 1.0), (1.0 / 127.0, 128.0));
        assert_eq!(fit(int(4, false, false), Zero::Real, 2.0, 5.0), (0.2, -10.0));
        assert_eq!(fit(E4M3, Zero::None, -896.0, 3.0), (2.0, 0.0));
        assert_eq!(fit(int(8, true, false), Zero::None, -f32::MAX, f32::MAX).0, f32::MAX / 127.0);
        assert!(fit(int(8, true, false), Zero::Integer, -f32::MAX, f32::MAX).0.is_finite());
    }

    #[test]
    fn empty_and_constant_blocks_have_a_positive_scale() {
        let nvfp4 = ScaleKind::Nested(Box::new(scheme(E4M3, F32, Zero::None)));
        let kinds = [F32, ScaleKind::Exact(DType::F16), ScaleKind::Exact(DType::BF16), ScaleKind::Pow2(DType::F32), ScaleKind::Pow2(DType::F8E8M0), nvfp4];
        for kind in kinds {
            for zero in [Zero::None, Zero::Fixed(0), Zero::Integer, Zero::Real] {
                for format in [int(8, true, false), int(4, false, false), E2M1] {
                    if zero == Zero::Integer && format == E2M1 {
                        continue;
                    }
                    let s = scheme(format, kind.clone(), zero);
                    for c in [0.0, -0.0, 3.0, -3.0, 1e-45, -1e-40, 1e38] {
                        let p = fit(&[c, c], &[2], &s).unwrap();
                        assert!(p.scale[0] > 0.0 && p.scale[0].is_finite(), "{s}: constant {c} has scale {}", p.scale[0]);
                        let mut x = [c, c];
                        super::super::fake_quantize(&mut x, &[2], &s, Some(&p)).unwrap();
                        assert!(x[0].is_finite(), "{s}: {c} became {}", x[0]);
                    }
                }
            }
        }
        assert_eq!(fit(&[2.5; 3], &[3], &scheme(int(4, false, false), F32, Zero::Real)).map(|p| (2.5 / p.scale[0] + p.zero_at(0)) * 1.0).unwrap(), 0.0);
    }

    #[test]
    fn powers_of_two_cover_the_range_and_the_mx_rule_clips() {
        let pow2 = |format, zero, lo, hi| one(&scheme(format, ScaleKind::Pow2(DType::F32), zero), lo, hi).0;
        let int8 = int(8, true, false);
        assert_eq!(pow2(int8, Zero::None, 0.0, 127.0), 1.0);
        assert_eq!(pow2(int8, Zero::None, 0.0, 127.01), 2.0);
        assert_eq!(pow2(int8, Zero::None, -128.0, 0.0), 1.0);
        assert_eq!(pow2(int(8, true, true), Zero::None, -128.0, 0.0), 2.0);
        assert_eq!(pow2(int8, Zero::Integer, -1.0, 1.0), 2f32.powi(-6));
        let mx = |format, absmax: f32| one(&scheme(format, ScaleKind::Pow2(DType::F8E8M0), Zero::None), -absmax, 0.0).0;
        // 2^(floor(log2 absmax) − e_max), e_max 2 for E2M1, 8 for E4M3, 15 for E5M2, 4 for E3M2, 6 for int8.
        assert_eq!([1.0, 3.99, 4.0, 7.9, 0.3].map(|a| mx(E2M1, a)), [0.25, 0.5, 1.0, 1.0, 0.0625]);
        assert_eq!(mx(E4M3, 511.0), 1.0);
        assert_eq!(mx(Format::Float { exponent: 5, mantissa: 2, specials: Specials::Ieee }, 65535.0), 1.0);
        assert_eq!(mx(Format::Float { exponent: 3, mantissa: 2, specials: Specials::None }, 31.0), 1.0);
        assert_eq!(mx(int8, 1.99), 2f32.powi(-6));
        assert_eq!(mx(E2M1, 1e-45), 2f32.powi(-127), "the smallest of float8e8m0");
    }

    #[test]
    fn scales_are_of_the_type_that_the_scheme_says() {
        let half = fit_range(&scheme(int(8, true, false), ScaleKind::Exact(DType::F16), Zero::None), &[-1.0, 0.0, 0.0], &[0.0, 1e30, 1e-30]).unwrap();
        assert_eq!(half.scale, [half::f16::from_f32(1.0 / 127.0).to_f32(), 65504.0, 2f32.powi(-24)]);
        let brain = fit_range(&scheme(int(8, true, false), ScaleKind::Exact(DType::BF16), Zero::None), &[-1.0], &[0.0]).unwrap();
        assert_eq!(brain.scale, [half::bf16::from_f32(1.0 / 127.0).to_f32()]);
    }

    #[test]
    fn nested_scales_are_what_their_codes_decode_to_and_never_zero() {
        let inner = Scheme { blocks: Blocks::channel(0), ..scheme(int(4, false, false), F32, Zero::None) };
        let outer = Scheme { blocks: Blocks::block(1, 2), ..scheme(int(4, true, false), ScaleKind::Nested(Box::new(inner.clone())), Zero::None) };
        // Two channels of three blocks; the last block of each is far too small for a code of its own, one block is all zero.
        let x = [9.0, -1.0, 14.0, 3.0, 0.001, 0.0, 0.0, 0.0, -21.0, 2.0, 1e-6, 0.0];
        let p = fit(&x, &[2, 6], &outer).unwrap();
        let nested = p.nested.as_ref().unwrap();
        assert_eq!(nested.params.scale, [2.0 / 15.0, 3.0 / 15.0]);
        assert_eq!(nested.codes.unpack(), [10, 15, 1, 1, 15, 1], "9.64 goes to 10, and 0 is raised to 1");
        assert_eq!(dequantize(&nested.codes, &inner, &nested.params).unwrap(), p.scale);
        assert!(fit_range(&outer, &[0.0; 6], &[1.0; 6]).is_err(), "the grid is needed");
    }

    #[test]
    fn what_no_scale_covers_is_refused_by_index() {
        let s = Scheme { blocks: Blocks::channel(0), ..scheme(int(8, true, false), F32, Zero::None) };
        let error = |x: &[f32]| fit(x, &[2, 10], &s).unwrap_err().to_string();
        let mut x = [1.0; 20];
        x[13] = f32::NAN;
        assert!(error(&x).contains("element 13") && error(&x).contains("NaN"), "{}", error(&x));
        x[3] = f32::NEG_INFINITY;
        assert!(error(&x).contains("element 3 ") && error(&x).contains("-inf"));
        assert!(fit_range(&s, &[0.0, 1.0], &[1.0, 0.0]).unwrap_err().to_string().contains("block 1"));
        assert!(fit_range(&s, &[0.0], &[f32::INFINITY]).is_err() && fit_range(&s, &[0.0], &[]).is_err());
        assert!(fit_range(&scheme(E2M1, F32, Zero::Integer), &[0.0], &[1.0]).is_err());
        assert!(fit_range(&scheme(int(4, false, false), F32, Zero::Fixed(16)), &[0.0], &[1.0]).is_err());
    }

    #[test]
    fn ranges_of_blocks_long_and_short() {
        let x: Vec<f32> = (0..60).map(|i| ((i * 17) % 31) as f32 - 15.0).collect();
        for blocks in [Blocks::tensor(), Blocks::channel(2), Blocks::block(0, 2), Blocks::block(2, 3), Blocks::token()] {
            let layout = blocks.layout(&[3, 4, 5]).unwrap();
            let (lo, hi) = block_ranges(&x, &[3, 4, 5], &layout);
            let mut want = vec![(f32::INFINITY, f32::NEG_INFINITY); layout.len()];
            for (i, &x) in x.iter().enumerate() {
                let at = [i / 20, i / 5 % 4, i % 5];
                let b = (0..3).fold(0, |b, d| b * layout.grid[d] + at[d] / layout.extent[d]);
                want[b] = (want[b].0.min(x), want[b].1.max(x));
            }
            assert_eq!(lo.into_iter().zip(hi).collect::<Vec<_>>(), want, "{blocks}");
        }
    }
}
