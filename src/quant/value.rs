//! What codes of the float formats stand for, and which code stands for a real number: the bit patterns.

use super::{Format, Rounding, Specials};
use crate::tensor::DType;

/// Rounds to an integer. Exact for every float32.
pub(super) fn round(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::HalfEven => x.round_ties_even(),
        Rounding::HalfUp => (x + 0.5).floor(),
        Rounding::HalfAway => x.round(),
        Rounding::Floor => x.floor(),
    }
}

/// `2^e`, exact.
fn pow2(e: i32) -> f64 {
    2f64.powi(e)
}

/// `floor(log2 |x|)` of a finite number that is not zero.
pub(super) fn exponent_of(x: f32) -> i32 {
    // Every float32, the subnormal ones too, is a normal float64.
    ((x as f64).to_bits() >> 52 & 0x7ff) as i32 - 1023
}

/// The number of type `dtype` (F32, F16, BF16) nearest to a positive `x`, kept positive and finite.
pub fn nearest_scale(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(x).to_f32().clamp(half::f16::from_bits(1).to_f32(), half::f16::MAX.to_f32()),
        DType::BF16 => half::bf16::from_f32(x).to_f32().clamp(f32::MIN_POSITIVE, half::bf16::MAX.to_f32()),
        _ => x.clamp(f32::MIN_POSITIVE, f32::MAX),
    }
}

/// What a byte of `float8e8m0` stands for: `2^(byte − 127)`, and NaN at 255.
pub fn e8m0_value(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { pow2(byte as i32 - 127) as f32 }
}

/// The byte of `float8e8m0` that stands for `scale`; `None` if `scale` is not one of its powers of two.
pub fn e8m0_code(scale: f32) -> Option<u8> {
    if !(scale > 0.0 && scale.is_finite()) {
        return None;
    }
    let byte = u8::try_from(exponent_of(scale) + 127).ok()?;
    (e8m0_value(byte) == scale).then_some(byte)
}

impl Format {
    /// Mask of a float format's exponent and mantissa bits.
    fn magnitude_mask(exponent: u8, mantissa: u8) -> u32 {
        (1 << (exponent + mantissa)) - 1
    }

    /// Exponent bias of a float format.
    pub(super) fn bias(exponent: u8, specials: Specials) -> i32 {
        (1 << exponent >> 1) - 1 + (specials == Specials::Fnuz) as i32
    }

    /// What a code stands for before zero and scale: an integer or a codebook's index is itself, a float code is a bit pattern.
    pub fn value(self, code: i32) -> f32 {
        let Format::Float { exponent, mantissa, specials } = self else { return code as f32 };
        let mask = Self::magnitude_mask(exponent, mantissa);
        let magnitude = code as u32 & mask;
        let negative = code as u32 & (mask + 1) != 0;
        let (e, m) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let top = e == (1 << exponent) - 1;
        let x = match specials {
            Specials::Ieee if top && m != 0 => return f32::NAN,
            Specials::Ieee if top => f64::INFINITY,
            Specials::Fn if magnitude == mask => return f32::NAN,
            Specials::Fnuz if negative && magnitude == 0 => return f32::NAN,
            _ => {
                let unit = pow2(e.max(1) as i32 - Self::bias(exponent, specials) - mantissa as i32);
                (m + if e == 0 { 0 } else { 1 << mantissa }) as f64 * unit
            }
        };
        (if negative { -x } else { x }) as f32
    }

    /// Bit pattern of the largest finite number of a float format.
    pub(super) fn max_code(exponent: u8, mantissa: u8, specials: Specials) -> u32 {
        let mask = Self::magnitude_mask(exponent, mantissa);
        match specials {
            Specials::Ieee => mask - (1 << mantissa),
            Specials::Fn => mask - 1,
            Specials::Fnuz | Specials::None => mask,
        }
    }

    /// The largest finite number that a code stands for; of integers and codebooks the highest code.
    pub fn max_value(self) -> f32 {
        match self {
            Format::Float { exponent, mantissa, specials } => self.value(Self::max_code(exponent, mantissa, specials) as i32),
            _ => self.code_range().map_or(0.0, |(_, hi)| hi as f32),
        }
    }

    /// The code of a NaN, where the format has one: the positive one, quiet if IEEE.
    pub(super) fn nan_code(self) -> Option<i32> {
        let Format::Float { exponent, mantissa, specials } = self else { return None };
        let mask = Self::magnitude_mask(exponent, mantissa);
        match specials {
            Specials::Ieee if mantissa == 0 => None,
            Specials::Ieee => Some((mask - (1 << (mantissa - 1)) + 1) as i32),
            Specials::Fn => Some(mask as i32),
            Specials::Fnuz => Some(mask as i32 + 1),
            Specials::None => None,
        }
    }

    /// The code of a float format nearest to `x`; half-even goes to the even bit pattern. What lies outside, infinities too, saturates to the largest finite number. A negative
    /// number that rounds to zero becomes −0 where the format has one. NaN becomes the format's NaN, or 0 where it has none.
    pub(super) fn encode_float(self, x: f32, rounding: Rounding) -> i32 {
        let Format::Float { exponent, mantissa, specials } = self else { return 0 };
        if x.is_nan() {
            return self.nan_code().unwrap_or(0);
        }
        let max = Self::max_code(exponent, mantissa, specials);
        let lowest = 1 - Self::bias(exponent, specials);
        let magnitude = if x == 0.0 {
            0
        } else if x.abs() > self.max_value() {
            max
        } else {
            let e = exponent_of(x).max(lowest);
            let steps = (x as f64 / pow2(e - mantissa as i32)).abs();
            let code = (((e - lowest) as u32) << mantissa) + steps as u32;
            let rest = steps.fract();
            let up = match rounding {
                Rounding::HalfEven => rest > 0.5 || rest == 0.5 && code % 2 == 1,
                Rounding::HalfUp => rest > 0.5 || rest == 0.5 && x > 0.0,
                Rounding::HalfAway => rest >= 0.5,
                Rounding::Floor => rest > 0.0 && x < 0.0,
            };
            // A carry out of the mantissa lands in the exponent, as it should.
            (code + up as u32).min(max)
        };
        let signed = x.is_sign_negative() && !(specials == Specials::Fnuz && magnitude == 0);
        (magnitude | (signed as u32) << (exponent + mantissa)) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn float(exponent: u8, mantissa: u8, specials: Specials) -> Format {
        Format::Float { exponent, mantissa, specials }
    }

    #[test]
    fn the_landmarks_of_the_formats() {
        // (format, largest, smallest normal, smallest): onnx-formats' table, from the OCP and IEEE definitions.
        let rows = [
            (float(4, 3, Specials::Fn), 448.0, -6, -9),
            (float(4, 3, Specials::Fnuz), 240.0, -7, -10),
            (float(5, 2, Specials::Ieee), 57344.0, -14, -16),
            (float(5, 2, Specials::Fnuz), 57344.0, -15, -17),
            (float(2, 1, Specials::None), 6.0, 0, -1),
            (float(2, 3, Specials::None), 7.5, 0, -3),
            (float(3, 2, Specials::None), 28.0, -2, -4),
            (float(5, 10, Specials::Ieee), 65504.0, -14, -24),
        ];
        for (f, max, normal, smallest) in rows {
            let Format::Float { mantissa, .. } = f else { unreachable!() };
            assert_eq!(f.max_value(), max, "{f}");
            assert_eq!(f.value(1 << mantissa) as f64, pow2(normal), "{f}");
            assert_eq!(f.value(1) as f64, pow2(smallest), "{f}");
        }
        assert_eq!(Format::Int { bits: 8, signed: true, narrow: false }.max_value(), 127.0);
        assert!(float(4, 3, Specials::Fn).value(0xff).is_nan() && float(4, 3, Specials::Fnuz).value(0x80).is_nan());
        assert_eq!(float(5, 2, Specials::Ieee).value(0xfc), f32::NEG_INFINITY);
    }

    #[test]
    fn float16_codes_are_those_of_half() {
        let f = float(5, 10, Specials::Ieee);
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            let got = f.value(bits as i32);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:x}");
            // Every midpoint between neighbours, and a hair to either side.
            let mid = (want + half::f16::from_bits(bits.wrapping_add(1)).to_f32()) / 2.0;
            for x in [mid, f32::from_bits(mid.to_bits().wrapping_add(1)), f32::from_bits(mid.to_bits().wrapping_sub(1))] {
                if x.is_finite() && x.abs() <= 65504.0 {
                    assert_eq!(f.encode_float(x, Rounding::HalfEven), half::f16::from_f32(x).to_bits() as i32, "{x:e}");
                }
            }
        }
    }

    #[test]
    fn four_ways_to_round() {
        use Rounding::*;
        let all = |x: f64| [HalfEven, HalfUp, HalfAway, Floor].map(|r| round(x, r));
        assert_eq!(all(2.5), [2.0, 3.0, 3.0, 2.0]);
        assert_eq!(all(-2.5), [-2.0, -2.0, -3.0, -3.0]);
        assert_eq!(all(-1.5), [-2.0, -1.0, -2.0, -2.0]);
        assert_eq!(all(0.49999997f32 as f64), [0.0; 4]);
        let e2m1 = |x: f32| [HalfEven, HalfUp, HalfAway, Floor].map(|r| float(2, 1, Specials::None).value(float(2, 1, Specials::None).encode_float(x, r)));
        assert_eq!(e2m1(2.5), [2.0, 3.0, 3.0, 2.0]);
        assert_eq!(e2m1(-2.5), [-2.0, -2.0, -3.0, -3.0]);
        assert_eq!(e2m1(-5.0), [-4.0, -4.0, -6.0, -6.0]);
        assert_eq!(e2m1(-0.1), [0.0, 0.0, 0.0, -0.5]);
    }

    #[test]
    fn e8m0_bytes() {
        for byte in 0..=254u8 {
            assert_eq!(e8m0_value(byte) as f64, pow2(byte as i32 - 127));
            assert_eq!(e8m0_code(e8m0_value(byte)), Some(byte));
        }
        assert!(e8m0_value(255).is_nan());
        for x in [0.0, -1.0, 3.0, f32::NAN, f32::INFINITY, 1e-45] {
            assert_eq!(e8m0_code(x), None, "{x}");
        }
    }
}
