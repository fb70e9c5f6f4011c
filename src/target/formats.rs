//! Names of formats: what recipes and profiles write in `format:`.

use crate::quant::{Format, Specials};

/// A format's name and what people should know of it.
pub struct NamedFormat {
    pub name: &'static str,
    pub format: Format,
    pub doc: &'static str,
}

const fn int(name: &'static str, bits: u8, signed: bool, doc: &'static str) -> NamedFormat {
    NamedFormat { name, format: Format::Int { bits, signed, narrow: false }, doc }
}

const fn float(name: &'static str, exponent: u8, mantissa: u8, specials: Specials, doc: &'static str) -> NamedFormat {
    NamedFormat { name, format: Format::Float { exponent, mantissa, specials }, doc }
}

/// Every format that has a name of its own.
pub static FORMATS: &[NamedFormat] = &[
    int("int2", 2, true, "−2 … 1"),
    int("int3", 3, true, "−4 … 3, stored as int4"),
    int("int4", 4, true, "−8 … 7"),
    int("int5", 5, true, "−16 … 15, stored as int8"),
    int("int6", 6, true, "−32 … 31, stored as int8"),
    int("int7", 7, true, "−64 … 63, stored as int8"),
    int("int8", 8, true, "−128 … 127"),
    int("int16", 16, true, "−32768 … 32767"),
    int("int32", 32, true, "biases and accumulators"),
    int("uint2", 2, false, "0 … 3"),
    int("uint3", 3, false, "0 … 7, stored as uint4"),
    int("uint4", 4, false, "0 … 15"),
    int("uint5", 5, false, "0 … 31, stored as uint8"),
    int("uint6", 6, false, "0 … 63, stored as uint8"),
    int("uint7", 7, false, "0 … 127, stored as uint8"),
    int("uint8", 8, false, "0 … 255"),
    int("uint16", 16, false, "0 … 65535"),
    float("float8e4m3fn", 4, 3, Specials::Fn, "largest 448, no infinity"),
    float("float8e4m3fnuz", 4, 3, Specials::Fnuz, "largest 240, no infinity, no negative zero"),
    float("float8e5m2", 5, 2, Specials::Ieee, "largest 57344"),
    float("float8e5m2fnuz", 5, 2, Specials::Fnuz, "largest 57344, no infinity, no negative zero"),
    float("float6e2m3", 2, 3, Specials::None, "largest 7.5"),
    float("float6e3m2", 3, 2, Specials::None, "largest 28"),
    float("float4e2m1", 2, 1, Specials::None, "0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives"),
    NamedFormat { name: "nf4", format: Format::NF4, doc: "16 quantiles of the normal distribution between −1 and 1" },
    NamedFormat { name: "codebook4", format: Format::codebook(4), doc: "16 real values learnt from the weights" },
];

/// The format called `name`.
pub fn format_of(name: &str) -> Option<Format> {
    FORMATS.iter().find(|f| f.name == name).map(|f| f.format)
}

/// The name of a format, narrow or not.
pub fn name_of(format: Format) -> Option<&'static str> {
    let plain = match format {
        Format::Int { bits, signed, .. } => Format::Int { bits, signed, narrow: false },
        f => f,
    };
    FORMATS.iter().find(|f| f.format == plain).map(|f| f.name)
}
