//! `requant check`: a file held against a target's profile.

use super::{again, profile};
use crate::check::{Check, check as judge, encoded};
use crate::error::{At, Error, Result};
use crate::onnx::{self, ReadOptions};
use std::path::Path;

/// What becomes of each node of the model in this file on the target of that name or path; with encodings beside a float model, under these.
pub fn check(model: &Path, target: &str, encodings: Option<&Path>) -> Result<Check> {
    super::configs::check_target(target).map_err(|e| Error::usage(format!("--target: {e}")))?;
    let profile = profile(target)?;
    let mut model = onnx::read(model, &ReadOptions { drop_unknown: true }).at(|| model.display())?;
    let Some(path) = encodings else { return Ok(judge(&model, &profile)) };
    again::encode(&mut model, path)?;
    Ok(encoded(&model, &profile))
}
