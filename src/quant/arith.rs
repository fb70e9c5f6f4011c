//! The arithmetic, for whole tensors: `code = saturate(round(x / scale) + zero)`, `x̂ = (decode(code) − zero) · scale`, in float32, division not reciprocal.

use super::blocks::Share;
use super::coder::{Coder, Kind};
use super::kernel;
use super::{Codes, Layout, Params, Rounding, Scheme, Timing, Zeros, fit};
use crate::error::{Error, Result};
use crate::math::wide;
use crate::tensor::{Tensor, numel, pack};
use std::borrow::Cow;

/// Evaluates an expression with the kernel's rounding function, so that each gets a loop of its own.
macro_rules! with_rounding {
    ($coder:expr, $round:ident => $loop:expr) => {
        match $coder.rounding {
            Rounding::HalfEven => with_rounding!(@ kernel::half_even, $round, $loop),
            Rounding::HalfUp => with_rounding!(@ kernel::half_up, $round, $loop),
            Rounding::HalfAway => with_rounding!(@ kernel::half_away, $round, $loop),
            Rounding::Floor => with_rounding!(@ kernel::floor, $round, $loop),
        }
    };
    (@ $function:path, $round:ident, $loop:expr) => {{
        let $round = $function;
        $loop
    }};
}

/// The codes of `x`, in the format's ONNX storage type. What lies outside the range saturates, infinities too; NaN becomes the format's NaN,
/// where it has none the code of 0. Fails where `params` do not fit `shape` or the format has no ONNX type.
pub fn quantize(x: &[f32], shape: &[usize], scheme: &Scheme, params: &Params) -> Result<Codes> {
    let dtype = scheme.format.storage().ok_or_else(|| Error::usage(format!("ONNX has no element type for {}", scheme.format)))?;
    let steps = Steps::new(x.len(), shape, scheme, params)?;
    let coder = Coder::new(scheme, params)?;
    let narrow = |codes: Vec<u8>| Tensor::new(dtype, shape.to_vec(), pack::pack_bytes(codes, dtype).into());
    let tensor = match (steps.fast(&coder), dtype.bits()) {
        (Fast::Integer(range), 1..=8) => {
            narrow(with_rounding!(coder, r => steps.map(x, #[inline(always)] move |x, s, z| kernel::bits(kernel::integer(x, s, z, range, r) + z) as u8)))?
        }
        (Fast::Integer(range), 16) => Tensor::of(
            dtype,
            shape,
            with_rounding!(coder, r => steps.map(x, #[inline(always)] move |x, s, z| kernel::bits(kernel::integer(x, s, z, range, r) + z) as u16)),
        ),
        (Fast::RealZero(range), 1..=8) => {
            narrow(with_rounding!(coder, r => steps.map(x, #[inline(always)] move |x, s, z| kernel::bits(kernel::integer_real_zero(x, s, z, range, r)) as u8)))?
        }
        (Fast::Float(f), 1..=8) => narrow(steps.map(
            x,
            #[inline(always)]
            move |x, s, _| f.code(x, s) as u8,
        ))?,
        _ => Tensor::new(dtype, shape.to_vec(), pack::pack(&steps.map(x, |x, s, z| coder.encode(x, s, z)), dtype).into())?,
    };
    Ok(Codes(tensor))
}

/// What codes stand for, row-major. Fails where scheme, params and codes do not fit together.
pub fn dequantize(codes: &Codes, scheme: &Scheme, params: &Params) -> Result<Vec<f32>> {
    let Codes(tensor) = codes;
    let dtype = tensor.dtype();
    if scheme.format.storage() != Some(dtype) {
        return Err(Error::usage(format!("{dtype} tensors hold no codes of {}", scheme.format)));
    }
    let steps = Steps::new(tensor.len(), tensor.shape(), scheme, params)?;
    let coder = Coder::new(scheme, params)?;
    if dtype.bits() > 8 {
        return Ok(match coder.kind {
            Kind::Integer if dtype.bits() == 16 => steps.map(&codes.unpack(), |c, s, z| (c as f32 - z) * s),
            _ => steps.map(&codes.unpack(), |c, s, z| coder.decode(c, s, z)),
        });
    }
    let bytes = pack::unpack_bytes(tensor.bytes(), dtype, tensor.len());
    if let Kind::Table(t) = coder.kind
        && let Some(i) = bytes.iter().position(|&c| c as usize >= t.len())
    {
        return Err(Error::usage(format!("code {} of element {i} is beyond the {} entries of the codebook", bytes[i], t.len())));
    }
    let spare = 8 - dtype.bits();
    Ok(match coder.kind {
        Kind::Integer | Kind::IntegerRealZero if pack::is_signed(dtype) => steps.map(&bytes, |c, s, z| (((c << spare) as i8 >> spare) as f32 - z) * s),
        Kind::Integer | Kind::IntegerRealZero => steps.map(&bytes, |c, s, z| (c as f32 - z) * s),
        _ => {
            let code = |byte: i32| if pack::is_signed(dtype) { byte << (24 + spare) >> (24 + spare) } else { byte };
            let values: [f32; 256] = std::array::from_fn(|byte| coder.value(code(byte as i32)));
            steps.map(&bytes, |c, s, z| (values[c as usize] - z) * s)
        }
    })
}

/// Replaces each number by what its code stands for. Without `params` they are fitted to `x` first, which is what a dynamic quantizer does.
pub fn fake_quantize(x: &mut [f32], shape: &[usize], scheme: &Scheme, params: Option<&Params>) -> Result<()> {
    let fitted;
    let params = match params {
        Some(p) => p,
        None if scheme.timing == Timing::Dynamic => {
            fitted = fit(x, shape, scheme)?;
            &fitted
        }
        None => return Err(Error::failed(format!("a static quantizer ({scheme}) has no parameters: calibrate it first"))),
    };
    let steps = Steps::new(x.len(), shape, scheme, params)?;
    let coder = Coder::new(scheme, params)?;
    match steps.fast(&coder) {
        Fast::Integer(range) => with_rounding!(coder, r => steps.apply(x, #[inline(always)] move |x, s, z| kernel::integer(x, s, z, range, r) * s)),
        Fast::RealZero(range) => {
            with_rounding!(coder, r => steps.apply(x, #[inline(always)] move |x, s, z| (kernel::integer_real_zero(x, s, z, range, r) - z) * s))
        }
        Fast::Float(f) => steps.apply(
            x,
            #[inline(always)]
            move |x, s, _| f.fake(x, s),
        ),
        Fast::No => steps.apply(x, |x, s, z| coder.fake(x, s, z)),
    }
    Ok(())
}

/// The lowest and the highest number that codes of the first block stand for, on an even grid.
pub fn ends(scheme: &Scheme, params: &Params) -> (f32, f32) {
    let most = scheme.format.max_value();
    let (first, last) = scheme.format.code_range().map_or((-most, most), |(a, b)| (a as f32, b as f32));
    let (scale, zero) = (params.scale_at(0), params.zero_at(0));
    ((first - zero) * scale, (last - zero) * scale)
}

/// Whether a quantizer cuts all that is cut at these bounds before it: the bounds are rounded to the ends of all codes, or, `exact`, do not lie within these.
/// Compilers tell the first of two bounds, and of one at the top; within a lone bound at the bottom no code may lie either way.
pub fn swallows(scheme: &Scheme, params: &Params, (least, most): (f32, f32), exact: bool) -> bool {
    let [low, high] = cut_ends(scheme, params, (least, most));
    let (lo, hi) = ends(scheme, params);
    let beyond = lo >= least - f32::EPSILON && hi <= most + f32::EPSILON;
    if exact { beyond } else { !low && !high && (beyond || most.is_finite() || least.is_infinite()) }
}

/// Whether bounds cut codes off at both ends or at none; without bounds, whether the lowest code does not lie below 0.
pub fn cuts_evenly(scheme: &Scheme, params: &Params, bounds: Option<(f32, f32)>) -> bool {
    match bounds.filter(|_| scheme.format.code_range().is_some()) {
        Some(bounds) => matches!(cut_ends(scheme, params, bounds), [true, true] | [false, false]),
        None => scheme.format.code_range().is_none() || ends(scheme, params).0 >= -params.scale_at(0) * 1e-3,
    }
}

/// Whether bounds cut codes off, at the low end and at the high one. Of no codes: both.
pub fn cut_ends(scheme: &Scheme, params: &Params, (least, most): (f32, f32)) -> [bool; 2] {
    let Some((low, high)) = scheme.format.code_range() else { return [true; 2] };
    let code = |x: f32| (x / params.scale_at(0)).round_ties_even() + params.zero_at(0);
    [code(least) > low as f32, code(most) < high as f32]
}

/// The lowest and the highest number that codes stand for, before zero and scale. Fails where curve and format do not go together.
pub fn span(scheme: &Scheme, params: &Params) -> Result<(f32, f32)> {
    Ok(Coder::new(scheme, params)?.span())
}

/// Which fast path gives the coder's own results.
enum Fast {
    /// By lowest and highest code.
    Integer((f32, f32)),
    RealZero((f32, f32)),
    Float(kernel::Float),
    No,
}

/// Scale and zero for every block, over a layout that they fit.
struct Steps<'a> {
    layout: Layout,
    /// One entry for all, or one a block; both alike.
    scale: Cow<'a, [f32]>,
    zero: Cow<'a, [f32]>,
}

impl<'a> Steps<'a> {
    fn new(len: usize, shape: &[usize], scheme: &Scheme, params: &'a Params) -> Result<Self> {
        if numel(shape) != Some(len) {
            return Err(Error::failed(format!("{len} elements do not have shape {shape:?}")));
        }
        let layout = scheme.blocks.layout(shape)?;
        let blocks = layout.len();
        let zero: Cow<[f32]> = match &params.zero {
            Zeros::None => vec![0.0].into(),
            Zeros::Integer(z) => z.iter().map(|&z| z as f32).collect(),
            Zeros::Real(z) => z.into(),
        };
        let scale = Cow::from(&params.scale);
        for (what, n) in [("scales", scale.len()), ("zero points", zero.len())] {
            if n != blocks && n != 1 {
                return Err(Error::usage(format!("{n} {what} do not fit the {blocks} blocks of shape {shape:?} ({scheme})")));
            }
        }
        if scale.len() == zero.len() {
            return Ok(Steps { layout, scale, zero });
        }
        let spread = |v: Cow<'a, [f32]>| if v.len() == 1 { vec![v[0]; blocks].into() } else { v };
        Ok(Steps { layout, scale: spread(scale), zero: spread(zero) })
    }

    fn fast(&self, coder: &Coder) -> Fast {
        let (lo, hi) = (coder.codes.0 as f32, coder.codes.1 as f32);
        let small = |z: &f32| lo.abs() + hi.abs() + z.abs() <= kernel::EXACT;
        match coder.kind {
            Kind::Integer if self.zero.iter().all(small) => Fast::Integer((lo, hi)),
            Kind::IntegerRealZero if small(&0.0) => Fast::RealZero((lo, hi)),
            Kind::Float if coder.rounding == Rounding::HalfEven && self.zero.iter().all(|z| *z == 0.0) => {
                kernel::Float::new(coder.format).map_or(Fast::No, Fast::Float)
            }
            _ => Fast::No,
        }
    }

    /// `f(element, scale, zero)` of each element.
    #[inline(always)]
    fn map<A: Copy, B: Copy + Default>(&self, x: &[A], f: impl Fn(A, f32, f32) -> B + Copy) -> Vec<B> {
        let mut out = vec![B::default(); x.len()];
        if let ([s], [z]) = (&self.scale[..], &self.zero[..]) {
            let (s, z) = (*s, *z);
            run_into(&mut out, x, (s, z), f);
            return out;
        }
        self.layout.runs(|r, share| match share {
            Share::One(b) => {
                let (s, z) = (self.scale[b], self.zero[b]);
                run_into(&mut out[r.clone()], &x[r], (s, z), f);
            }
            Share::Each(b) => {
                let steps = self.scale[b..].iter().zip(&self.zero[b..]);
                out[r.clone()].iter_mut().zip(&x[r]).zip(steps).for_each(|((o, &x), (&s, &z))| *o = f(x, s, z));
            }
        });
        out
    }

    /// The same in place.
    #[inline(always)]
    fn apply(&self, x: &mut [f32], f: impl Fn(f32, f32, f32) -> f32 + Copy) {
        if let ([s], [z]) = (&self.scale[..], &self.zero[..]) {
            let (s, z) = (*s, *z);
            return run(x, (s, z), f);
        }
        self.layout.runs(|r, share| match share {
            Share::One(b) => {
                let (s, z) = (self.scale[b], self.zero[b]);
                run(&mut x[r], (s, z), f);
            }
            Share::Each(b) => {
                let steps = self.scale[b..].iter().zip(&self.zero[b..]);
                x[r].iter_mut().zip(steps).for_each(|(x, (&s, &z))| *x = f(*x, s, z));
            }
        });
    }
}

/// `f` of each element under one scale and zero, in place.
#[inline(always)]
fn run(x: &mut [f32], (scale, zero): (f32, f32), f: impl Fn(f32, f32, f32) -> f32 + Copy) {
    wide(
        #[inline(always)]
        move || {
            for x in x {
                *x = f(*x, scale, zero);
            }
        },
    );
}

/// `f` of each element.
#[inline(always)]
fn run_into<A: Copy, B>(out: &mut [B], x: &[A], (scale, zero): (f32, f32), f: impl Fn(A, f32, f32) -> B + Copy) {
    wide(
        #[inline(always)]
        move || {
            for (o, x) in out.iter_mut().zip(x) {
                *o = f(*x, scale, zero);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::coder::tests::{formats, params as plain, scheme as plain_scheme};
    use crate::quant::{Blocks, Format, ScaleKind, Zero};
    use crate::tensor::DType;
    use proptest::prelude::*;

    const SHAPE: [usize; 3] = [3, 8, 5];

    fn numbers() -> Vec<f32> {
        (0..120).map(|i| ((i * 37 % 61) as f32 - 30.0) / 7.5).collect()
    }

    /// Block sizes and axes of every kind: one run, long runs, short last blocks, each element its own block.
    fn granularities() -> [Blocks; 8] {
        use Blocks as B;
        [B::tensor(), B::channel(0), B::channel(1), B::channel(2), B::block(1, 3), B::block(2, 2), B::gate(4), B::flat(7)]
    }

    #[test]
    fn whole_tensors_agree_with_one_number_at_a_time_under_every_granularity() {
        for format in formats() {
            for (blocks, rounding) in granularities().iter().zip([Rounding::HalfEven, Rounding::HalfUp].into_iter().cycle()) {
                let scheme = Scheme { blocks: blocks.clone(), ..plain_scheme(format, rounding) };
                let layout = blocks.layout(&SHAPE).unwrap();
                let scale: Vec<f32> = (0..layout.len()).map(|b| 0.1 + b as f32 / 64.0).collect();
                let zero = match format {
                    Format::Int { .. } => Zeros::Integer((0..layout.len() as i32).map(|b| b % 2).collect()),
                    _ => Zeros::None,
                };
                let params = Params { scale, zero, ..plain(format) };
                let coder = Coder::new(&scheme, &params).unwrap();
                let mut block = vec![0; 120];
                layout.runs(|r, share| {
                    for i in r.clone() {
                        block[i] = match share {
                            Share::One(b) => b,
                            Share::Each(b) => b + i - r.start,
                        };
                    }
                });
                let x = numbers();
                let each =
                    |f: &dyn Fn(f32, f32, f32) -> f32| -> Vec<f32> { (0..120).map(|i| f(x[i], params.scale_at(block[i]), params.zero_at(block[i]))).collect() };
                let mut fake = x.clone();
                fake_quantize(&mut fake, &SHAPE, &scheme, Some(&params)).unwrap();
                assert_eq!(fake, each(&|x, s, z| coder.fake(x, s, z)), "{scheme}");
                if format.storage().is_some() {
                    let codes = quantize(&x, &SHAPE, &scheme, &params).unwrap();
                    assert_eq!(codes.0.shape(), SHAPE);
                    let want = each(&|x, s, z| coder.encode(x, s, z) as f32);
                    assert_eq!(codes.unpack().iter().map(|c| *c as f32).collect::<Vec<_>>(), want, "{scheme}");
                    assert_eq!(dequantize(&codes, &scheme, &params).unwrap(), fake, "{scheme}");
                }
            }
        }
    }

    #[test]
    fn one_scale_or_one_zero_point_serves_every_block() {
        let scheme = Scheme { blocks: Blocks::channel(1), ..Scheme::int(4, false) };
        let x = numbers();
        let quantized = |scale: Vec<f32>, zero| quantize(&x, &SHAPE, &scheme, &Params { scale, zero, ..Params::tensor(1.0, None) }).unwrap();
        let all = quantized(vec![0.5; 8], Zeros::Integer(vec![7; 8]));
        assert_eq!(all, quantized(vec![0.5], Zeros::Integer(vec![7; 8])));
        assert_eq!(all, quantized(vec![0.5; 8], Zeros::Integer(vec![7])));
        assert_eq!(all, quantized(vec![0.5], Zeros::Integer(vec![7])));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_one_sentence() {
        let scheme = Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) };
        let two = Params { scale: vec![1.0, 1.0], ..Params::tensor(1.0, None) };
        let error = quantize(&[0.0; 6], &[3, 2], &scheme, &two).unwrap_err().to_string();
        assert_eq!(error, "2 scales do not fit the 3 blocks of shape [3, 2] (int8 per channel (axis 0), symmetric, scale float32)");
        assert!(quantize(&[0.0; 5], &[3, 2], &scheme, &Params::tensor(1.0, None)).is_err());
        assert!(fake_quantize(&mut [0.0; 6], &[3, 2], &scheme, None).unwrap_err().to_string().contains("calibrate"));
        let codes = quantize(&[0.0; 6], &[3, 2], &scheme, &Params::tensor(1.0, None)).unwrap();
        assert!(dequantize(&codes, &Scheme::int(4, true), &Params::tensor(1.0, None)).unwrap_err().to_string().contains("int8 tensors hold no codes of int4"));
        let odd = Scheme { format: Format::Float { exponent: 3, mantissa: 4, specials: crate::quant::Specials::None }, ..scheme };
        assert!(quantize(&[0.0; 6], &[3, 2], &odd, &Params::tensor(1.0, None)).unwrap_err().to_string().contains("float8e3m4"));
        let book = Format::codebook(2);
        let codes = Codes(Tensor::new(DType::U2, vec![2], vec![0b1101u8].into()).unwrap());
        let three = Params { curve: super::super::Curve::Table([0.0, 1.0, 2.0].into()), ..plain(book) };
        assert!(dequantize(&codes, &plain_scheme(book, Rounding::HalfEven), &three).unwrap_err().to_string().contains("code 3 of element 1"));
    }

    #[test]
    fn empty_tensors_and_scalars_pass() {
        for scheme in [Scheme::int(8, false), Scheme { blocks: Blocks::channel(0), timing: Timing::Dynamic, ..Scheme::int(8, true) }] {
            let params = fit(&[], &[0, 4], &scheme).unwrap();
            fake_quantize(&mut [], &[0, 4], &scheme, Some(&params)).unwrap();
            assert!(quantize(&[], &[0, 4], &scheme, &params).unwrap().0.is_empty());
        }
        let mut x = [0.3];
        fake_quantize(&mut x, &[], &Scheme::int(8, true), Some(&Params::tensor(0.25, None))).unwrap();
        assert_eq!(x, [0.25]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Inside the range the error is at most half a step, and what was quantized once stays as it is.
        #[test]
        fn half_a_step_and_idempotent(
            x in prop::collection::vec(-1e6f32..1e6, 1..40), bits in 2u8..=16, signed: bool, integer_zero: bool, pow2: bool, channel: bool,
        ) {
            let zero = if integer_zero { Zero::Integer } else { Zero::None };
            let scale = if pow2 { ScaleKind::Pow2(DType::F32) } else { ScaleKind::Exact(DType::F32) };
            let blocks = if channel { Blocks::channel(0) } else { Blocks::tensor() };
            let scheme = Scheme { zero, scale, blocks, ..Scheme::int(bits, signed) };
            let shape = [1, x.len()];
            let params = fit(&x, &shape, &scheme).unwrap();
            let mut once = x.clone();
            fake_quantize(&mut once, &shape, &scheme, Some(&params)).unwrap();
            let (lo, hi) = scheme.format.code_range().unwrap();
            let (s, z) = (params.scale[0], params.zero_at(0));
            for (x, y) in x.iter().zip(&once) {
                let (least, most) = ((lo as f32 - z) * s, (hi as f32 - z) * s);
                if (least..=most).contains(x) {
                    prop_assert!((x - y).abs() <= s * 0.500_001 + x.abs() * 1e-6, "{x} became {y} at scale {s}");
                } else {
                    prop_assert!(*y == least || *y == most);
                }
            }
            let mut twice = once.clone();
            fake_quantize(&mut twice, &shape, &scheme, Some(&params)).unwrap();
            prop_assert_eq!(once, twice);
        }

        /// The same of float formats, whose step is half the distance to the neighbours.
        #[test]
        fn float_formats_go_to_the_nearest(x in prop::collection::vec(-40f32..40.0, 1..40), pick in 0usize..200, scale in 0.01f32..10.0) {
            let formats: Vec<Format> = formats().into_iter().filter(|f| matches!(f, Format::Float { .. })).collect();
            let format = formats[pick % formats.len()];
            let scheme = plain_scheme(format, Rounding::HalfEven);
            let params = Params { scale: vec![scale], ..plain(format) };
            let mut y = x.clone();
            fake_quantize(&mut y, &[x.len()], &scheme, Some(&params)).unwrap();
            let all: Vec<f32> = (0..1 << format.bits()).map(|c| format.value(c)).filter(|v| v.is_finite()).collect();
            for (x, y) in x.iter().zip(&y) {
                let v = (x / scale) as f64;
                let nearest = all.iter().map(|a| (*a as f64 - v).abs()).fold(f64::INFINITY, f64::min);
                prop_assert!(((y / scale) as f64 - v).abs() <= nearest + v.abs() * 1e-6, "{x} became {y}");
            }
        }
    }
}
