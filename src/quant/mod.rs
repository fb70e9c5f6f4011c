//! The quantizer: the record in which every method and every spelling meet. `x ≈ (decode(code) − zero) · scale`.

mod blocks;
mod params;
mod scheme;
mod table;

pub use blocks::{Blocks, Extent, Layout, View};
pub use params::{Codes, Curve, NestedScale, Origin, Params, Zeros};
pub use scheme::{Format, Rounding, ScaleKind, Scheme, Specials, Timing, Zero};
pub use table::{Quantizer, QuantizerId, Table};
