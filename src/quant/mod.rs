//! The quantizer: the record in which every method and every spelling meet. `x ≈ (decode(code) − zero) · scale`.

mod arith;
mod blocks;
mod codebook;
mod coder;
mod fit;
mod kernel;
mod params;
mod scheme;
mod show;
mod table;
mod value;

pub use arith::{cut_ends, cuts_evenly, dequantize, ends, fake_quantize, quantize, span, swallows};

pub use blocks::{Blocks, Extent, Layout, View};
pub use codebook::NF4;
pub use fit::{block_ranges, first_curve, fit, fit_codebook, fit_grid, fit_range};
pub(crate) use kernel::even as half_even;
pub use params::{Codes, Curve, NestedScale, Origin, Params, Zeros};
pub use scheme::{Book, Format, Rounding, ScaleKind, Scheme, Specials, Timing, Zero};
pub use table::{Quantizer, QuantizerId, Table};
pub use value::{e8m0_code, e8m0_value, nearest_scale};
