//! requant: a float ONNX model goes in, the quantized ONNX model that a chip runs comes out, with an honest report of what it cost.
//!
//! Rooms see only what stands left of them:
//! `tensor < math < quant < graph < target < observe < onnx < lift < engine < learn < data < pass < range < round
//! < { transform, place, allocate, lower, check } < report < recipe < cli`. See ARCHITECTURE.md.

#![deny(unsafe_code)]

pub mod allocate;
pub mod check;
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod graph;
pub mod interrupt;
pub mod learn;
pub mod lift;
pub mod lower;
pub mod math;
pub mod note;
pub mod observe;
pub mod onnx;
pub mod pass;
pub mod place;
pub mod quant;
pub mod range;
pub mod recipe;
pub mod report;
pub mod round;
pub mod target;
pub mod tensor;
pub mod transform;

pub use error::{Error, Result};
