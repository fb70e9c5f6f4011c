//! A scheme: everything about a quantizer that is known before any data. Six free choices; the named presets of their product stand in `configs/`.

use super::Blocks;
use crate::tensor::DType;

/// How real values become codes, as far as it is known before data: `x ≈ (decode(code) − zero) · scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheme {
    pub format: Format,
    pub scale: ScaleKind,
    pub zero: Zero,
    pub blocks: Blocks,
    pub timing: Timing,
    pub rounding: Rounding,
}

/// The set of codes and what each stands for before zero and scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Two's complement or unsigned integers. `narrow` leaves the lowest code of a signed type out (−127…127).
    /// Widths that ONNX has no type for (3, 5, 6, 7 …) are stored in the next wider type.
    Int { bits: u8, signed: bool, narrow: bool },
    /// Sign, `exponent` and `mantissa` bits; the code is the bit pattern.
    Float { exponent: u8, mantissa: u8, specials: Specials },
    /// `2^bits` real values (`Params::curve`); the code is the index.
    Codebook { bits: u8, book: Book },
}

/// Where the entries of a codebook come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Book {
    /// Learnt from data.
    Fitted,
    /// [`super::NF4`], whatever the data.
    Nf4,
}

/// Which bit patterns of a float format are not finite numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Specials {
    /// As IEEE 754: infinities and NaNs in the highest exponent (E5M2).
    Ieee,
    /// No infinities; NaN where all exponent and mantissa bits are set (E4M3FN).
    Fn,
    /// No infinities, no negative zero; its pattern is the only NaN; exponent bias one higher (…FNUZ).
    Fnuz,
    /// Every pattern is a finite number (E2M1, E2M3, E3M2).
    None,
}

/// What a scale may be.
#[derive(Debug, Clone, PartialEq)]
pub enum ScaleKind {
    /// Any positive value of a float type: `F32`, `F16` or `BF16`.
    Exact(DType),
    /// A power of two, kept in `F32` or, as an exponent byte, in `F8E8M0`.
    Pow2(DType),
    /// The scales are themselves codes under a coarser scheme (NVFP4, LPBQ, double quantization).
    Nested(Box<Scheme>),
}

/// What a zero point may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// None: "symmetric".
    None,
    /// This code, whatever the data.
    Fixed(i32),
    /// A code found from data.
    Integer,
    /// A real number found from data (HQQ, decoupleQ).
    Real,
}

/// When scale and zero are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// Before the model ships.
    Static,
    /// At inference, by the same fitting function, from the tensor at hand; nothing is stored.
    Dynamic,
}

/// How a real number becomes the nearest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// ONNX's: ties to the even code.
    HalfEven,
    /// Ties towards +∞.
    HalfUp,
    /// Ties away from zero.
    HalfAway,
    /// Towards −∞.
    Floor,
}

impl Scheme {
    /// Integers of `bits` with a float32 scale for the whole tensor, half-even: zero point from data if unsigned, none if signed.
    pub fn int(bits: u8, signed: bool) -> Self {
        Scheme {
            format: Format::Int { bits, signed, narrow: false },
            scale: ScaleKind::Exact(DType::F32),
            zero: if signed { Zero::None } else { Zero::Integer },
            blocks: Blocks::tensor(),
            timing: Timing::Static,
            rounding: Rounding::HalfEven,
        }
    }

    /// Whether a bias of this scheme has a scale of its own: one of 32 bits has the product of its input's and its weight's.
    pub fn has_own_bias_scale(&self) -> bool {
        self.format.bits() <= 16
    }
}

impl Format {
    /// A codebook that is learnt from data.
    pub const fn codebook(bits: u8) -> Format {
        Format::Codebook { bits, book: Book::Fitted }
    }

    /// The codebook of QLoRA.
    pub const NF4: Format = Format::Codebook { bits: 4, book: Book::Nf4 };

    /// Bits of a code.
    pub fn bits(self) -> u8 {
        match self {
            Format::Int { bits, .. } | Format::Codebook { bits, .. } => bits,
            Format::Float { exponent, mantissa, .. } => 1 + exponent + mantissa,
        }
    }

    /// Lowest and highest code of an integer format or codebook; `None` for float formats, whose codes are not ordered by value.
    pub fn code_range(self) -> Option<(i32, i32)> {
        match self {
            Format::Int { bits, signed: true, narrow } => {
                let half = 1i64 << (bits - 1);
                Some(((-half + narrow as i64) as i32, (half - 1) as i32))
            }
            Format::Int { bits, signed: false, .. } | Format::Codebook { bits, .. } => Some((0, ((1i64 << bits) - 1).min(i32::MAX as i64) as i32)),
            Format::Float { .. } => None,
        }
    }

    /// The ONNX type that stores the codes: the format's own, or the next wider integer type.
    pub fn storage(self) -> Option<DType> {
        use DType::*;
        Some(match self {
            Format::Int { bits, signed, .. } => match (bits, signed) {
                (1..=2, true) => I2,
                (1..=2, false) => U2,
                (3..=4, true) => I4,
                (3..=4, false) => U4,
                (5..=8, true) => I8,
                (5..=8, false) => U8,
                (9..=16, true) => I16,
                (9..=16, false) => U16,
                (17..=32, true) => I32,
                (17..=32, false) => U32,
                _ => return None,
            },
            Format::Codebook { bits, .. } => match bits {
                1..=2 => U2,
                3..=4 => U4,
                5..=8 => U8,
                9..=16 => U16,
                _ => return None,
            },
            Format::Float { exponent, mantissa, specials } => match (exponent, mantissa, specials) {
                (4, 3, Specials::Fn) => F8E4M3FN,
                (4, 3, Specials::Fnuz) => F8E4M3FNUZ,
                (5, 2, Specials::Ieee) => F8E5M2,
                (5, 2, Specials::Fnuz) => F8E5M2FNUZ,
                (2, 1, Specials::None) => F4E2M1,
                (2, 3, Specials::None) => F6E2M3,
                (3, 2, Specials::None) => F6E3M2,
                _ => return None,
            },
        })
    }

    /// The format whose codes fill ONNX type `dtype` (full range); `None` for types that hold no codes.
    pub fn of_dtype(dtype: DType) -> Option<Format> {
        use DType::*;
        let int = |bits, signed| Some(Format::Int { bits, signed, narrow: false });
        let float = |exponent, mantissa, specials| Some(Format::Float { exponent, mantissa, specials });
        match dtype {
            I2 => int(2, true),
            U2 => int(2, false),
            I4 => int(4, true),
            U4 => int(4, false),
            I8 => int(8, true),
            U8 => int(8, false),
            I16 => int(16, true),
            U16 => int(16, false),
            I32 => int(32, true),
            F8E4M3FN => float(4, 3, Specials::Fn),
            F8E4M3FNUZ => float(4, 3, Specials::Fnuz),
            F8E5M2 => float(5, 2, Specials::Ieee),
            F8E5M2FNUZ => float(5, 2, Specials::Fnuz),
            F4E2M1 => float(2, 1, Specials::None),
            F6E2M3 => float(2, 3, Specials::None),
            F6E3M2 => float(3, 2, Specials::None),
            _ => None,
        }
    }
}
