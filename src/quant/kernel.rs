//! The same numbers as `coder`, written without branches and calls so that the compiler makes SIMD of them on any x86-64 (which has no
//! instruction to round before SSE4.1). `v + MAGIC − MAGIC` rounds `|v| ≤ 2^22` half to even, because the spacing of float32
//! at MAGIC is 1; the operand is clamped to integers first, which commutes with rounding.

use super::{Format, Specials};

/// 1.5 · 2^23.
const MAGIC: f32 = 12_582_912.0;

/// Codes and zero points up to here keep every step exact.
pub(super) const EXACT: f32 = 4_194_304.0;

/// `x` between `lo` and `hi`, as two instructions; NaN becomes `lo`.
#[inline(always)]
fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x > lo { x } else { lo };
    if x < hi { x } else { hi }
}

#[inline(always)]
fn nan_to_zero(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x }
}

/// `v` rounded half to even, for `|v| ≤ 2^22`.
#[inline(always)]
pub(crate) fn even(v: f32) -> f32 {
    v + MAGIC - MAGIC
}

// What makes of `r`, which is `v` rounded half to even, `v` rounded another way. `v − r` is exact.

#[inline(always)]
pub(super) fn half_even(_: f32, r: f32) -> f32 {
    r
}

#[inline(always)]
pub(super) fn half_up(v: f32, r: f32) -> f32 {
    if v - r == 0.5 { r + 1.0 } else { r }
}

#[inline(always)]
pub(super) fn half_away(v: f32, r: f32) -> f32 {
    let half = 0.5f32.copysign(v);
    if v - r == half { r + (half + half) } else { r }
}

#[inline(always)]
pub(super) fn floor(v: f32, r: f32) -> f32 {
    if r > v { r - 1.0 } else { r }
}

/// `saturate(round(x / scale) + zero) − zero`; `zero` is an integer. Never −0.
#[inline(always)]
pub(super) fn integer(x: f32, scale: f32, zero: f32, (lo, hi): (f32, f32), rounding: impl Fn(f32, f32) -> f32) -> f32 {
    let v = clamp(nan_to_zero(x / scale), lo - zero, hi - zero);
    rounding(v, even(v))
}

/// `saturate(round(x / scale + zero))`. Never −0.
#[inline(always)]
pub(super) fn integer_real_zero(x: f32, scale: f32, zero: f32, (lo, hi): (f32, f32), rounding: impl Fn(f32, f32) -> f32) -> f32 {
    let v = clamp(nan_to_zero(x / scale) + zero, lo, hi);
    rounding(v, even(v))
}

/// The lowest bits of a small integer in two's complement.
#[inline(always)]
pub(super) fn bits(integer: f32) -> u32 {
    (integer + MAGIC).to_bits()
}

/// A float format of at most 6 exponent bits, which float32's own arithmetic can round to.
#[derive(Clone, Copy)]
pub(super) struct Float {
    mantissa: u32,
    /// What turns the power of two below a number into 1.5 · 2^23 in units of the format's spacing there.
    magic: u32,
    /// Largest finite and smallest normal number.
    max: f32,
    normal: f32,
    /// What turns float32's exponent field into the format's.
    rebias: u32,
    /// Where the sign bit stands.
    sign: u32,
    signed_zero: bool,
    nan: f32,
    nan_code: u32,
}

impl Float {
    pub fn new(format: Format) -> Option<Self> {
        let Format::Float { exponent: exponent @ 1..=6, mantissa: mantissa @ 1..=10, specials } = format else { return None };
        let lowest = 1 - Format::bias(exponent, specials);
        let nan_code = format.nan_code();
        Some(Float {
            mantissa: mantissa as u32,
            magic: ((23 - mantissa as u32) << 23) + 0x0040_0000,
            max: format.max_value(),
            normal: 2f32.powi(lowest),
            rebias: ((lowest - 1 + 127) as u32) << mantissa,
            sign: (exponent + mantissa) as u32,
            signed_zero: specials != Specials::Fnuz,
            nan: if nan_code.is_some() { f32::NAN } else { 0.0 },
            nan_code: nan_code.unwrap_or(0) as u32,
        })
    }

    /// `|v|` rounded to the format.
    #[inline(always)]
    fn magnitude(&self, v: f32) -> f32 {
        let a = v.abs();
        let a = if a < self.max { a } else { self.max };
        let power = (if a > self.normal { a } else { self.normal }).to_bits() & 0x7f80_0000;
        // A check for overflow, as debug builds make one, would keep this from being SIMD.
        let magic = f32::from_bits(power.wrapping_add(self.magic));
        a + magic - magic
    }

    /// `x` as the format stands for it at this scale.
    #[inline(always)]
    pub fn fake(&self, x: f32, scale: f32) -> f32 {
        let v = x / scale;
        let m = self.magnitude(v).copysign(v);
        let m = if self.signed_zero { m } else { m + 0.0 };
        (if v.is_nan() { self.nan } else { m }) * scale
    }

    /// The bit pattern.
    #[inline(always)]
    pub fn code(&self, x: f32, scale: f32) -> u32 {
        let v = x / scale;
        let m = self.magnitude(v);
        // A subnormal is read off the number that lies as far above the smallest normal one.
        let (lift, carry) = if m < self.normal { (self.normal, 1 << self.mantissa) } else { (0.0, 0) };
        let code = ((m + lift).to_bits() >> (23 - self.mantissa)).wrapping_sub(self.rebias + carry);
        let sign = if self.signed_zero | (code != 0) { v.to_bits() >> 31 << self.sign } else { 0 };
        if v.is_nan() { self.nan_code } else { code | sign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::coder::tests::{formats, params, scheme};
    use crate::quant::coder::{Coder, Kind};
    use crate::quant::{Rounding, Zeros};

    /// Every sign and exponent of float32 with telling mantissas, a walk over all bit patterns, and all halves and their neighbours up to 300.
    fn numbers() -> Vec<f32> {
        let mut list: Vec<f32> = (0..512u32).flat_map(|e| [0, 1, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x7f_ffff].map(|m| f32::from_bits(e << 23 | m))).collect();
        list.extend((0..60_000u32).map(|i| f32::from_bits(i.wrapping_mul(71_583)))); // 2^32 / 60 000
        for i in -600..600 {
            let half = i as f32 / 2.0;
            list.extend([half, f32::from_bits(half.to_bits().wrapping_add(1)), f32::from_bits(half.to_bits().wrapping_sub(1)), half / 64.0]);
        }
        list
    }

    const SCALES: [f32; 10] = [1.0, 0.037, 3.0, 0.25, 1e-38, 1e30, -0.5, 0.0, f32::INFINITY, f32::NAN];

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    fn integer_paths_equal_the_coder(rounding: Rounding, adjust: impl Fn(f32, f32) -> f32 + Copy) {
        let numbers = numbers();
        let ints = formats().into_iter().chain([true, false].map(|signed| Format::Int { bits: 16, signed, narrow: false }));
        for format in ints.filter(|f| matches!(f, Format::Int { .. })) {
            let (scheme, plain) = (scheme(format, rounding), params(format));
            let real = crate::quant::Params { zero: Zeros::Real(vec![0.0]), ..plain.clone() };
            let (c, r) = (Coder::new(&scheme, &plain).unwrap(), Coder::new(&scheme, &real).unwrap());
            assert_eq!(r.kind, Kind::IntegerRealZero);
            let (lo, hi) = (c.codes.0 as f32, c.codes.1 as f32);
            let mask = ((1u64 << format.bits()) - 1) as u32;
            for (k, s) in SCALES.into_iter().enumerate() {
                let z = [0.0, lo, hi, 1.0][k % 4];
                for &x in &numbers {
                    let q = integer(x, s, z, (lo, hi), adjust);
                    assert!(same(q * s, c.fake(x, s, z)), "{format} {rounding:?} {x:e} scale {s} zero {z}: {q}");
                    assert_eq!(bits(q + z) & mask, c.encode(x, s, z) as u32 & mask, "{format} {rounding:?} {x:e} scale {s} zero {z}");
                    let z = z * 0.8;
                    let q = integer_real_zero(x, s, z, (lo, hi), adjust);
                    assert!(same((q - z) * s, r.fake(x, s, z)), "{format} {rounding:?} {x:e} scale {s} zero {z}: {q}");
                    assert_eq!(bits(q) & mask, r.encode(x, s, z) as u32 & mask, "{format} {rounding:?} {x:e} scale {s} zero {z}");
                }
            }
        }
    }

    /// Every float32 there is.
    #[test]
    #[ignore = "takes minutes: asked for by name (docs/performance.md)"]
    fn every_float32_becomes_what_the_coder_says() {
        use rayon::prelude::*;
        let formats = [Format::Int { bits: 8, signed: true, narrow: false }, Format::Int { bits: 4, signed: true, narrow: false }, E2M1];
        for (format, scale) in formats.into_iter().zip([0.037, 0.25, 1.0]) {
            let (scheme, params) = (scheme(format, Rounding::HalfEven), params(format));
            let c = Coder::new(&scheme, &params).unwrap();
            let (range, float) = ((c.codes.0 as f32, c.codes.1 as f32), Float::new(format));
            (0..=u32::MAX).into_par_iter().for_each(|bits| {
                let x = f32::from_bits(bits);
                let fast = float.map_or_else(|| integer(x, scale, 0.0, range, half_even) * scale, |f| f.fake(x, scale));
                assert!(same(fast, c.fake(x, scale, 0.0)), "{format} {x:e}: {fast} {}", c.fake(x, scale, 0.0));
            });
        }
    }

    const E2M1: Format = Format::Float { exponent: 2, mantissa: 1, specials: Specials::None };

    #[test]
    fn integer_paths_equal_the_coder_bit_for_bit() {
        integer_paths_equal_the_coder(Rounding::HalfEven, half_even);
        integer_paths_equal_the_coder(Rounding::HalfUp, half_up);
        integer_paths_equal_the_coder(Rounding::HalfAway, half_away);
        integer_paths_equal_the_coder(Rounding::Floor, floor);
    }

    #[test]
    fn float_paths_equal_the_coder_bit_for_bit() {
        let numbers = numbers();
        let mut seen = 0;
        for format in formats() {
            let Some(f) = Float::new(format) else { continue };
            let (scheme, params) = (scheme(format, Rounding::HalfEven), params(format));
            let c = Coder::new(&scheme, &params).unwrap();
            for scale in SCALES {
                for &x in &numbers {
                    assert!(same(f.fake(x, scale), c.fake(x, scale, 0.0)), "{format} {x:e} scale {scale}: {} {}", f.fake(x, scale), c.fake(x, scale, 0.0));
                    assert_eq!(f.code(x, scale), c.encode(x, scale, 0.0) as u32, "{format} {x:e} scale {scale}");
                }
            }
            seen += 1;
        }
        assert!(seen > 40, "{seen}");
    }
}
