//! How a quantized model is written in ONNX. A lowering never alters a number; whether its spelling can hold a scheme was asked when quantizers were placed.

mod qdq;
mod shield;

pub use qdq::{lower_qdq, qdq_opset};
pub use shield::shield;
