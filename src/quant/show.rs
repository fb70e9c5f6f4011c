//! Quantizers as people read them: one line.

use super::{Blocks, Book, Curve, Extent, Format, Origin, Params, Rounding, ScaleKind, Scheme, Timing, View, Zero, Zeros};
use std::fmt::{self, Display, Formatter};

impl Display for Format {
    /// `int8`, `uint4`, `int8 narrow`, `float8e4m3fn`, `codebook4`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match *self {
            Format::Int { bits, signed, narrow } => {
                write!(f, "{}int{bits}{}", if signed { "" } else { "u" }, if narrow { " narrow" } else { "" })
            }
            Format::Codebook { bits, book: Book::Fitted } => write!(f, "codebook{bits}"),
            Format::Codebook { book: Book::Nf4, .. } => write!(f, "nf4"),
            Format::Float { exponent, mantissa, .. } => match self.storage() {
                Some(dtype) => write!(f, "{dtype}"),
                None => write!(f, "float{}e{exponent}m{mantissa}", self.bits()),
            },
        }
    }
}

impl Display for Blocks {
    /// `per tensor`, `per channel (axis 0)`, `per block of 32 (axis 1)`, `per token`, `per gate (4)`, `per flat block of 64`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        if self.is_tensor() {
            return write!(f, "per tensor");
        }
        if let Some(axis) = self.channel_axis() {
            return write!(f, "per channel (axis {axis})");
        }
        if let Some((axis, size)) = self.block_axis() {
            return write!(f, "per block of {size} (axis {axis})");
        }
        if let Some(gates) = self.gates() {
            return write!(f, "per gate ({gates})");
        }
        match (self.view, self.rest, &self.along[..]) {
            (View::Own, Extent::One, [(-1, Extent::Whole)]) => write!(f, "per token"),
            (View::Flat, Extent::Size(n), []) => write!(f, "per flat block of {n}"),
            _ => {
                write!(f, "per block of [{}", Across(self.rest))?;
                self.along.iter().try_for_each(|(axis, e)| write!(f, "; axis {axis}: {}", Across(*e)))?;
                write!(f, "]")?;
                match self.view {
                    View::Own => Ok(()),
                    View::Flat => write!(f, " of the flattened tensor"),
                    View::Split { axis, parts } => write!(f, " with axis {axis} split in {parts}"),
                }
            }
        }
    }
}

struct Across(Extent);

impl Display for Across {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self.0 {
            Extent::Whole => write!(f, "all"),
            Extent::One => write!(f, "1"),
            Extent::Size(n) => write!(f, "{n}"),
        }
    }
}

impl Display for ScaleKind {
    /// `float32`, `power of two (float8e8m0)`, `(uint4 per channel (axis 0), symmetric, scale float32)`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            ScaleKind::Exact(dtype) => write!(f, "{dtype}"),
            ScaleKind::Pow2(dtype) => write!(f, "power of two ({dtype})"),
            ScaleKind::Nested(inner) => write!(f, "({inner})"),
        }
    }
}

impl Display for Scheme {
    /// `int8 per channel (axis 0), symmetric, scale float32`; what is not the default follows: `dynamic`, `rounding half-up`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{} {}, ", self.format, self.blocks)?;
        match self.zero {
            Zero::None => write!(f, "symmetric")?,
            Zero::Fixed(z) => write!(f, "zero_point {z}")?,
            Zero::Integer => write!(f, "zero_point integer")?,
            Zero::Real => write!(f, "zero_point real")?,
        }
        write!(f, ", scale {}", self.scale)?;
        if self.timing == Timing::Dynamic {
            write!(f, ", dynamic")?;
        }
        match self.rounding {
            Rounding::HalfEven => Ok(()),
            Rounding::HalfUp => write!(f, ", rounding half-up"),
            Rounding::HalfAway => write!(f, ", rounding half-away"),
            Rounding::Floor => write!(f, ", rounding floor"),
        }
    }
}

impl Display for Params {
    /// `scale 0.5, zero_point 128, fitted`; of several their number and span: `64 scales 0.001…0.02, zero_points 3…8, fitted`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match &self.scale[..] {
            [s] => write!(f, "scale {s}")?,
            many => write!(f, "{} scales{}", many.len(), Span(many))?,
        }
        match &self.zero {
            Zeros::None => {}
            Zeros::Integer(z) => match (z.iter().min(), z.iter().max()) {
                (Some(a), Some(b)) if a == b => write!(f, ", zero_point {a}")?,
                (Some(a), Some(b)) => write!(f, ", zero_points {a}…{b}")?,
                _ => {}
            },
            Zeros::Real(z) => match &z[..] {
                [z] => write!(f, ", zero_point {z}")?,
                many => write!(f, ", zero_points{}", Span(many))?,
            },
        }
        if let Some(nested) = &self.nested {
            write!(f, ", scales as {} codes ({})", nested.codes.0.dtype(), nested.params)?;
        }
        match &self.curve {
            Curve::Linear => {}
            Curve::Table(t) => write!(f, ", {} entries{}", t.len(), Span(t))?,
            Curve::Power(a) => write!(f, ", power {a}")?,
        }
        write!(f, ", {}", self.origin)
    }
}

impl Display for Origin {
    /// `fitted`, `fixed`, `same as #3`, `product of #3 and #4`.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Origin::Fitted => write!(f, "fitted"),
            Origin::Fixed => write!(f, "fixed"),
            Origin::Same(id) => write!(f, "same as #{}", id.0),
            Origin::Product(a, b) => write!(f, "product of #{} and #{}", a.0, b.0),
        }
    }
}

struct Span<'a>(&'a [f32]);

impl Display for Span<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let lo = self.0.iter().copied().reduce(f32::min);
        let hi = self.0.iter().copied().reduce(f32::max);
        match (lo, hi) {
            (Some(lo), Some(hi)) => write!(f, " {lo}…{hi}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{QuantizerId, Specials};
    use crate::tensor::DType;

    #[test]
    fn one_line_each() {
        let int8 = Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) };
        assert_eq!(int8.to_string(), "int8 per channel (axis 0), symmetric, scale float32");
        let odd = Scheme {
            format: Format::Float { exponent: 3, mantissa: 4, specials: Specials::None },
            scale: ScaleKind::Pow2(DType::F8E8M0),
            blocks: Blocks { view: View::Flat, rest: Extent::One, along: vec![(0, Extent::Size(6))] },
            timing: Timing::Dynamic,
            rounding: Rounding::Floor,
            zero: Zero::Real,
        };
        assert_eq!(
            odd.to_string(),
            "float8e3m4 per block of [1; axis 0: 6] of the flattened tensor, zero_point real, scale power of two (float8e8m0), dynamic, rounding floor"
        );
        assert_eq!(Params::tensor(0.5, Some(3)).to_string(), "scale 0.5, zero_point 3, fitted");
        let many = Params {
            scale: vec![0.5, 0.125],
            zero: Zeros::Integer(vec![4, -2]),
            curve: Curve::Power(0.5),
            origin: Origin::Product(QuantizerId(3), QuantizerId(4)),
            nested: None,
        };
        assert_eq!(many.to_string(), "2 scales 0.125…0.5, zero_points -2…4, power 0.5, product of #3 and #4");
    }
}
