//! How a quantized model is written in ONNX. A lowering never alters a number; whether its spelling can hold a scheme was asked when quantizers were placed.

mod casts;
mod coded;
mod dynamic;
mod encodings;
mod images;
mod io;
mod mct;
mod moves;
mod own_constants;
mod packed;
mod qdq;
mod qoperator;
mod relus;
mod shield;
mod spelled;

pub use casts::{Casts, half_floats};
pub use encodings::encodings;
pub use images::{Image, raw_image};
pub use io::integer_interface;
pub use mct::{OPSET as MCT_OPSET, mct_quantizers};
pub use own_constants::own_constants;
pub use qdq::{lower_qdq, qdq_opset};
pub use qoperator::qoperator;
pub use relus::relus;
pub use shield::shield;

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::note::Notes;

/// The spellings there are: what `lower: { form: … }` may say.
pub const FORMS: &[&str] = &["qdq", "qoperator", "matmul-nbits", "encodings", "mct-quantizers"];

/// What a spelling may be told besides its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// MatMulNBits' `accuracy_level`.
    pub accuracy_level: Option<i64>,
}

/// Writes, in the operators of `form`, all that these can say. Quantizers that are left become QuantizeLinear and DequantizeLinear: [`lower_qdq`].
pub fn spell(model: &mut Model, form: &str, settings: &Settings) -> Result<Notes> {
    if settings.accuracy_level.is_some() && form != "matmul-nbits" {
        return Err(Error::usage(format!("`accuracy_level` is a key of form matmul-nbits, not of {form}")));
    }
    match form {
        "matmul-nbits" => packed::lower_packed(model, settings.accuracy_level),
        "qdq" | "qoperator" => Ok(Notes::of("lower")),
        other => Err(Error::usage(format!("`{other}` is no form; the forms are {}", FORMS.join(", ")))),
    }
}
