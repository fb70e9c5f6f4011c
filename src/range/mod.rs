//! Which scale and zero point: from the ranges that values take to parameters.

mod calibrate;
mod mask;
mod method;
mod saved;
mod settle;
mod tails;
mod weights;

pub use calibrate::{COMPARED_ON, Calibrate, Calibrated, calibrate};
pub use mask::Masks;
pub use method::Method;
pub use saved::{Ranges, Source};
pub use settle::settle;
