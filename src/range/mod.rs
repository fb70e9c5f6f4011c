//! Which scale and zero point: from the ranges that values take to parameters.

mod calibrate;
mod mask;
mod method;
mod settle;
mod tails;
mod weights;

pub use calibrate::{Calibrate, calibrate};
pub use method::Method;
pub use settle::settle;
