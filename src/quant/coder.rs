//! One number ↔ one code, for every scheme: the definition that the fast paths of `kernel` must equal bit for bit.

use super::value::round;
use super::{Curve, Format, Params, Rounding, Scheme, Zeros, codebook};
use crate::error::{Error, Result};

/// What of scheme and params is the same for every block. `scale` and `zero` come with each number.
#[derive(Clone, Copy)]
pub(super) struct Coder<'a> {
    pub format: Format,
    pub rounding: Rounding,
    pub kind: Kind<'a>,
    /// Lowest and highest code; of float formats unused.
    pub codes: (i32, i32),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    /// `code = saturate(round(x / scale) + zero)`.
    Integer,
    /// `code = saturate(round(x / scale + zero))`: a real zero leaves nothing to round before it is added.
    IntegerRealZero,
    /// `code = nearest pattern to x / scale + zero`.
    Float,
    /// `code = nearest entry to x / scale + zero`.
    Table(&'a [f32]),
    /// `code = saturate(round(sign(v) · |v|^a))` of `v = x / scale + zero`.
    Power(f32),
}

impl<'a> Coder<'a> {
    /// Fails where curve and format do not go together.
    pub fn new(scheme: &Scheme, params: &'a Params) -> Result<Self> {
        let format = scheme.format;
        let kind = match (format, &params.curve) {
            (Format::Int { .. }, Curve::Linear) if matches!(params.zero, Zeros::Real(_)) => Kind::IntegerRealZero,
            (Format::Int { .. }, Curve::Linear) => Kind::Integer,
            (Format::Int { .. }, Curve::Power(a)) if *a > 0.0 && a.is_finite() => Kind::Power(*a),
            (Format::Int { .. }, Curve::Power(a)) => return Err(Error::usage(format!("a power exponent must be positive, not {a}"))),
            (Format::Float { .. }, Curve::Linear) => Kind::Float,
            (Format::Codebook { bits, .. }, Curve::Table(t)) => {
                if t.is_empty() || t.len() > 1 << bits || !t.iter().all(|x| x.is_finite()) || !t.is_sorted() {
                    return Err(Error::usage(format!("the table of a {format} must hold 1 to {} finite numbers in ascending order", 1u32 << bits)));
                }
                Kind::Table(t)
            }
            (Format::Codebook { .. }, _) => return Err(Error::usage(format!("a {format} needs a table of its entries"))),
            (_, Curve::Table(_)) => return Err(Error::usage(format!("{format} cannot have a table: only codebooks do"))),
            (_, Curve::Power(_)) => return Err(Error::usage(format!("{format} cannot have a power curve: only integers do"))),
        };
        let (lo, hi) = format.code_range().unwrap_or((0, 0));
        let hi = if let Kind::Table(t) = kind { hi.min(t.len() as i32 - 1) } else { hi };
        Ok(Coder { format, rounding: scheme.rounding, kind, codes: (lo, hi) })
    }

    /// The code of `x`. NaN becomes the format's NaN; where it has none, the code of 0.
    pub fn encode(&self, x: f32, scale: f32, zero: f32) -> i32 {
        let (lo, hi) = self.codes;
        let saturate = |q: f64, zero: i64| (q as i64).saturating_add(zero).clamp(lo as i64, hi as i64) as i32;
        let v = x / scale;
        let integer = |v: f64| if v.is_nan() { 0.0 } else { round(v, self.rounding) };
        if self.kind == Kind::Integer {
            return saturate(integer(v as f64), zero as i64);
        }
        let v = if zero == 0.0 { v } else { v + zero };
        match self.kind {
            Kind::Float => self.format.encode_float(v, self.rounding),
            Kind::Table(t) => codebook::nearest(t, if v.is_nan() { zero } else { v }, self.rounding),
            Kind::Power(a) => saturate(integer((v.abs() as f64).powf(a as f64).copysign(v as f64)), 0),
            Kind::IntegerRealZero | Kind::Integer => saturate(integer((if v.is_nan() { zero } else { v }) as f64), 0),
        }
    }

    /// What a code stands for at scale 1, before the zero point.
    pub fn value(&self, code: i32) -> f32 {
        match self.kind {
            Kind::Integer | Kind::IntegerRealZero => code as f32,
            Kind::Float => self.format.value(code),
            Kind::Table(t) => t[code.clamp(0, self.codes.1) as usize],
            Kind::Power(a) => (code.unsigned_abs() as f64).powf(1.0 / a as f64) as f32 * code.signum() as f32,
        }
    }

    /// What a code stands for.
    pub fn decode(&self, code: i32, scale: f32, zero: f32) -> f32 {
        match self.kind {
            Kind::Integer => (code as i64 - zero as i64) as f32 * scale,
            _ => (self.value(code) - zero) * scale,
        }
    }

    /// `x` as its code stands for it.
    pub fn fake(&self, x: f32, scale: f32, zero: f32) -> f32 {
        self.decode(self.encode(x, scale, zero), scale, zero)
    }

    /// The lowest and the highest number that codes stand for, before zero and scale.
    pub fn span(&self) -> (f32, f32) {
        match self.kind {
            Kind::Float => (-self.format.max_value(), self.format.max_value()),
            _ => (self.value(self.codes.0), self.value(self.codes.1)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::{Blocks, Origin, ScaleKind, Specials, Timing, Zero};
    use crate::tensor::DType;

    /// Every format of at most 8 bits, whether ONNX has a type for it or not.
    pub fn formats() -> Vec<Format> {
        let mut list = Vec::new();
        for bits in 1..=8 {
            list.extend([Format::Int { bits, signed: true, narrow: false }, Format::Int { bits, signed: false, narrow: false }, Format::codebook(bits)]);
            if bits > 1 {
                list.push(Format::Int { bits, signed: true, narrow: true });
            }
        }
        for exponent in 1..=7 {
            for mantissa in 0..=7 - exponent {
                for specials in [Specials::Ieee, Specials::Fn, Specials::Fnuz, Specials::None] {
                    if exponent + mantissa >= 2 && (mantissa > 0 || matches!(specials, Specials::Fnuz | Specials::None)) {
                        list.push(Format::Float { exponent, mantissa, specials });
                    }
                }
            }
        }
        list
    }

    pub fn scheme(format: Format, rounding: Rounding) -> Scheme {
        Scheme { format, scale: ScaleKind::Exact(DType::F32), zero: Zero::None, blocks: Blocks::tensor(), timing: Timing::Static, rounding }
    }

    /// Scale 1, no zero, and a curve that suits the format.
    pub fn params(format: Format) -> Params {
        let curve = match format {
            Format::Codebook { bits, .. } => Curve::Table((0..1 << bits).map(|i| (i * i) as f32 / 7.0 - 3.0).collect()),
            _ => Curve::Linear,
        };
        Params { scale: vec![1.0], nested: None, zero: Zeros::None, curve, origin: Origin::Fixed }
    }

    #[test]
    fn every_code_of_every_format_survives_decoding_and_encoding() {
        let mut seen = 0;
        for format in formats() {
            for rounding in [Rounding::HalfEven, Rounding::HalfUp, Rounding::HalfAway, Rounding::Floor] {
                let (scheme, params) = (scheme(format, rounding), params(format));
                let c = Coder::new(&scheme, &params).unwrap();
                let (lo, hi) = format.code_range().unwrap_or((0, (1 << format.bits()) - 1));
                for code in lo..=hi {
                    for (scale, zero) in [(1.0, 0.0), (0.25, 0.0), (8.0, 1.0)] {
                        let zero = if matches!(format, Format::Int { .. }) { zero } else { 0.0 };
                        let x = c.decode(code, scale, zero);
                        let want = if x.is_nan() {
                            format.nan_code().unwrap()
                        } else if x.is_infinite() {
                            code - 1
                        } else {
                            code
                        };
                        assert_eq!(c.encode(x, scale, zero), want, "{format} {rounding:?} code {code} = {x} at scale {scale}, zero {zero}");
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 100_000, "{seen}");
    }

    #[test]
    fn float_formats_round_to_the_nearest_and_to_even_between_every_pair_of_neighbours() {
        for format in formats() {
            let Format::Float { exponent, mantissa, specials } = format else { continue };
            let max = Format::max_code(exponent, mantissa, specials) as i32;
            let sign = 1 << (exponent + mantissa);
            for code in 0..max {
                let (a, b) = (format.value(code) as f64, format.value(code + 1) as f64);
                let mid = ((a + b) / 2.0) as f32;
                let even = code + code % 2;
                for (x, want) in [(mid, even), (f32::from_bits(mid.to_bits() - 1), code), (f32::from_bits(mid.to_bits() + 1), code + 1)] {
                    if x as f64 <= a || x as f64 >= b || mid as f64 != (a + b) / 2.0 {
                        continue; // beyond float32's own precision
                    }
                    assert_eq!(format.encode_float(x, Rounding::HalfEven), want, "{format} {x:e}");
                    let negative = if want == 0 && specials == Specials::Fnuz { 0 } else { want | sign };
                    assert_eq!(format.encode_float(-x, Rounding::HalfEven), negative, "{format} -{x:e}");
                }
            }
            assert_eq!(format.encode_float(f32::MAX, Rounding::HalfEven), max);
            assert_eq!(format.encode_float(f32::NEG_INFINITY, Rounding::Floor), max | sign);
            assert_eq!(format.encode_float(-0.0, Rounding::HalfEven), if specials == Specials::Fnuz { 0 } else { sign });
            assert_eq!(format.encode_float(f32::NAN, Rounding::HalfEven), format.nan_code().unwrap_or(0));
        }
    }

    #[test]
    fn integers_round_before_the_zero_point_is_added_and_saturate() {
        let (s, p) =
            (scheme(Format::Int { bits: 8, signed: false, narrow: false }, Rounding::HalfEven), params(Format::Int { bits: 8, signed: false, narrow: false }));
        let c = Coder::new(&s, &p).unwrap();
        let codes = [0.5, 1.5, 2.5, -0.5, 300.0, -300.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|x| c.encode(x, 1.0, 11.0));
        assert_eq!(codes, [11, 13, 13, 11, 255, 0, 11, 255, 0]);
        let c = Coder { kind: Kind::IntegerRealZero, ..c };
        assert_eq!([0.5, 1.5, f32::NAN].map(|x| c.encode(x, 1.0, 11.5)), [12, 13, 12]);
        let c = Coder { kind: Kind::Integer, codes: (i32::MIN, i32::MAX), ..c };
        assert_eq!([1e30, -1e30, 7.0].map(|x| c.encode(x, 1.0, 9.0)), [i32::MAX, i32::MIN, 16]);
    }

    #[test]
    fn curves_that_do_not_suit_the_format_are_refused() {
        let int8 = Format::Int { bits: 8, signed: true, narrow: false };
        let book = Format::codebook(1);
        let e2m1 = Format::Float { exponent: 2, mantissa: 1, specials: Specials::None };
        let table = |t: &[f32]| Curve::Table(t.into());
        for (format, curve) in [
            (book, Curve::Linear),
            (book, table(&[])),
            (book, table(&[1.0, 2.0, 3.0])),
            (book, table(&[1.0, 0.0])),
            (book, table(&[0.0, f32::NAN])),
            (int8, table(&[0.0, 1.0])),
            (int8, Curve::Power(0.0)),
            (int8, Curve::Power(f32::NAN)),
            (e2m1, Curve::Power(0.5)),
        ] {
            let p = Params { curve, ..params(format) };
            assert!(Coder::new(&scheme(format, Rounding::HalfEven), &p).is_err(), "{format} {p}");
        }
    }
}
