//! ONNX's messages as prost compiles them from proto/onnx.proto; `bytes` fields are slices of the buffer that was decoded.

#![allow(clippy::all, missing_docs, rustdoc::all)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
