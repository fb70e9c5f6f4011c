//! How a quantized model is written in ONNX. A lowering never alters a number; whether its spelling can hold a scheme was asked when quantizers were placed.

mod coded;
mod moves;
mod qdq;
mod qoperator;
mod shield;

pub use qdq::{lower_qdq, qdq_opset};
pub use qoperator::qoperator;
pub use shield::shield;

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::note::Notes;

/// The spellings there are: what `lower: { form: … }` may say.
pub const FORMS: &[&str] = &["qdq", "qoperator"];

/// What a spelling may be told besides its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {}

/// Writes, in the operators of `form`, all that these can say. Quantizers that are left become QuantizeLinear and DequantizeLinear: [`lower_qdq`].
pub fn spell(_model: &mut Model, form: &str, _settings: &Settings) -> Result<Notes> {
    match form {
        "qdq" | "qoperator" => Ok(Notes::of("lower")),
        other => Err(Error::usage(format!("`{other}` is no form; the forms are {}", FORMS.join(", ")))),
    }
}
