//! The arithmetic, for whole tensors: `code = saturate(round(x / scale) + zero)`, `x̂ = (decode(code) − zero) · scale`, in float32, division not reciprocal.

use super::blocks::Share;
use super::coder::{Coder, Kind};
use super::kernel;
use super::{Codes, Layout, Params, Rounding, Scheme, Timing, Zeros, fit};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, numel, pack};
use std::borrow::Cow;

/// The codes of `x`, in the format's ONNX storage type. What lies outside the range saturates, infinities too; NaN becomes the format's NaN,
/// where it has none the code of 0. Fails where `params` do not fit `shape` or the format has no ONNX type.
pub fn quantize(x: &[f32], shape: &[usize], scheme: &Scheme, params: &Params) -> Result<Codes> {
    let dtype = scheme.format.storage().ok_or_else(|| Error::usage(format!("ONNX has no element type for {}", scheme.format)))?;
    let steps = Steps::new(x.len(), shape, scheme, params)?;
    let coder = Coder::new(scheme, params)?;
    let small = dtype.bits() <= 8;
    let bytes = match steps.fast(&coder) {
        Some(Fast::Integer { lo, hi }) if small => pack::pack_bytes(steps.map(x, |x, s, z| kernel::integer_code(x, s, z, lo, hi) as u8), dtype),
        Some(Fast::Integer { lo, hi }) if dtype.bits() == 16 => {
            bytemuck::allocation::pod_collect_to_vec(&steps.map(x, |x, s, z| kernel::integer_code(x, s, z, lo, hi) as u16))
        }
        Some(Fast::Float(f)) if small => pack::pack_bytes(steps.map(x, |x, s, _| f.code(x, s) as u8), dtype),
        _ => pack::pack(&steps.map(x, |x, s, z| coder.encode(x, s, z)), dtype),
    };
    Ok(Codes(Tensor::new(dtype, shape.to_vec(), bytes.into())?))
}

/// What codes stand for, row-major. Fails where scheme, params and codes do not fit together.
pub fn dequantize(codes: &Codes, scheme: &Scheme, params: &Params) -> Result<Vec<f32>> {
    let Codes(tensor) = codes;
    if scheme.format.storage() != Some(tensor.dtype()) {
        return Err(Error::usage(format!("{} tensors hold no codes of {}", tensor.dtype(), scheme.format)));
    }
    let steps = Steps::new(tensor.len(), tensor.shape(), scheme, params)?;
    let coder = Coder::new(scheme, params)?;
    let codes = codes.unpack();
    if let Kind::Table(t) = coder.kind
        && let Some(i) = codes.iter().position(|&c| c as usize >= t.len())
    {
        return Err(Error::usage(format!("code {} of element {i} is beyond the {} entries of the codebook", codes[i], t.len())));
    }
    Ok(match coder.kind {
        Kind::Integer if tensor.dtype().bits() <= 16 => steps.map(&codes, |c, s, z| (c as f32 - z) * s),
        Kind::Float => {
            let values: Vec<f32> = (0..1 << scheme.format.bits()).map(|c| scheme.format.value(c)).collect();
            steps.map(&codes, |c, s, z| (values[c as usize] - z) * s)
        }
        _ => steps.map(&codes, |c, s, z| coder.decode(c, s, z)),
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
        Some(Fast::Integer { lo, hi }) => steps.apply(x, |x, s, z| kernel::integer_fake(x, s, z, lo, hi)),
        Some(Fast::RealZero { lo, hi }) => steps.apply(x, |x, s, z| kernel::real_zero_fake(x, s, z, lo, hi)),
        Some(Fast::Float(f)) => steps.apply(x, |x, s, _| f.fake(x, s)),
        None => steps.apply(x, |x, s, z| coder.fake(x, s, z)),
    }
    Ok(())
}

/// Which fast path serves.
enum Fast {
    Integer { lo: f32, hi: f32 },
    RealZero { lo: f32, hi: f32 },
    Float(kernel::Float),
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

    /// The fast path that gives the coder's own results, if there is one.
    fn fast(&self, coder: &Coder) -> Option<Fast> {
        let (lo, hi) = (coder.codes.0 as f32, coder.codes.1 as f32);
        let small = |z: &f32| lo.abs() + hi.abs() + z.abs() <= kernel::EXACT;
        match coder.kind {
            _ if coder.rounding != Rounding::HalfEven => None,
            Kind::Integer if self.zero.iter().all(small) => Some(Fast::Integer { lo, hi }),
            Kind::IntegerRealZero if small(&0.0) => Some(Fast::RealZero { lo, hi }),
            Kind::Float if self.zero.iter().all(|z| *z == 0.0) => kernel::Float::new(coder.format).map(Fast::Float),
            _ => None,
        }
    }

    /// `f(element, scale, zero)` of each element.
    #[inline(always)]
    fn map<A: Copy, B: Copy + Default>(&self, x: &[A], f: impl Fn(A, f32, f32) -> B) -> Vec<B> {
        if let ([s], [z]) = (&self.scale[..], &self.zero[..]) {
            let (s, z) = (*s, *z);
            return x.iter().map(|&x| f(x, s, z)).collect();
        }
        let mut out = vec![B::default(); x.len()];
        self.layout.runs(|r, share| match share {
            Share::One(b) => {
                let (s, z) = (self.scale[b], self.zero[b]);
                out[r.clone()].iter_mut().zip(&x[r]).for_each(|(o, &x)| *o = f(x, s, z));
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
    fn apply(&self, x: &mut [f32], f: impl Fn(f32, f32, f32) -> f32) {
        if let ([s], [z]) = (&self.scale[..], &self.zero[..]) {
            let (s, z) = (*s, *z);
            return x.iter_mut().for_each(|x| *x = f(*x, s, z));
        }
        self.layout.runs(|r, share| match share {
            Share::One(b) => {
                let (s, z) = (self.scale[b], self.zero[b]);
                x[r].iter_mut().for_each(|x| *x = f(*x, s, z));
            }
            Share::Each(b) => {
                let steps = self.scale[b..].iter().zip(&self.zero[b..]);
                x[r].iter_mut().zip(steps).for_each(|(x, (&s, &z))| *x = f(*x, s, z));
            }
        });
    }
}
