//! Which scale and zero point: from the ranges that values take to parameters.

mod calibrate;
mod settle;

pub use calibrate::{Calibrate, Method, calibrate};
pub use settle::settle;
