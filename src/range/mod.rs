//! Which scale and zero point: from the ranges that values take to parameters.

mod calibrate;
mod choose;
mod clip;
mod entropy;
mod mask;
mod method;
mod peaks;
mod pow2;
mod saturate;
mod saved;
mod settle;
mod shifts;
mod tails;
mod weights;

pub use calibrate::{Calibrate, Calibrated, calibrate};
pub use choose::COMPARED_ON;
pub use clip::Clip;
pub use mask::Masks;
pub use method::Method;
pub use peaks::peaks;
pub use saved::{Ranges, Source};
pub use settle::settle;
pub use shifts::fit_bias;
pub use weights::{Weights, fit_constant};
