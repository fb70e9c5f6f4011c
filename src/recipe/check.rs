//! `requant check`: a file held against a target's profile.

use super::profile;
use crate::check::{Check, check as judge};
use crate::error::{At, Error, Result};
use crate::onnx::{self, ReadOptions};
use std::path::Path;

/// What becomes of each node of the model in this file on the target of that name or path.
pub fn check(model: &Path, target: &str) -> Result<Check> {
    super::configs::check_target(target).map_err(|e| Error::usage(format!("--target: {e}")))?;
    let profile = profile(target)?;
    let model = onnx::read(model, &ReadOptions { drop_unknown: true }).at(|| model.display())?;
    Ok(judge(&model, &profile))
}
