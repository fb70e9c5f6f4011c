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
            (Format::Codebook { bits }, Curve::Table(t)) => {
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

    /// What a code stands for. `code` must be one of the format's.
    pub fn decode(&self, code: i32, scale: f32, zero: f32) -> f32 {
        let value = match self.kind {
            Kind::Integer => return (code as i64 - zero as i64) as f32 * scale,
            Kind::IntegerRealZero => code as f32,
            Kind::Float => self.format.value(code),
            Kind::Table(t) => t[code.clamp(0, self.codes.1) as usize],
            Kind::Power(a) => (code.unsigned_abs() as f64).powf(1.0 / a as f64) as f32 * code.signum() as f32,
        };
        (value - zero) * scale
    }

    /// `x` as its code stands for it.
    pub fn fake(&self, x: f32, scale: f32, zero: f32) -> f32 {
        self.decode(self.encode(x, scale, zero), scale, zero)
    }

    /// The lowest and the highest number that codes stand for, before zero and scale.
    pub fn span(&self) -> (f32, f32) {
        let bare = |code| self.decode(code, 1.0, 0.0);
        match self.kind {
            Kind::Float => (-self.format.max_value(), self.format.max_value()),
            _ => (bare(self.codes.0), bare(self.codes.1)),
        }
    }
}
