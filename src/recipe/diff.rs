//! `requant diff`: reads two models and samples, and compares.

use super::Sources;
use crate::data::{self, DataSettings, Dataset};
use crate::error::{At, Result};
use crate::lift::{real_interface, wide_floats};
use crate::onnx::{self, ReadOptions};
use crate::pass::Progress;
use crate::report::{self, Diff};
use std::path::PathBuf;

/// What one call of `diff` was asked.
#[derive(Debug, Clone, Default)]
pub struct DiffRequest {
    pub a: PathBuf,
    pub b: PathBuf,
    pub data: String,
    pub labels: Option<PathBuf>,
    /// A recipe whose `inputs` say how the samples are read.
    pub recipe: Option<String>,
    /// 0: one a core.
    pub threads: usize,
    pub seed: u64,
}

/// Compares two files of anyone. Inputs are those that the first declares.
pub fn diff(request: &DiffRequest, progress: &dyn Progress) -> Result<Diff> {
    let read = |path: &PathBuf| onnx::read(path, &ReadOptions::default());
    let (a, b) = (read(&request.a)?, read(&request.b)?);
    let mut fed = a.clone();
    real_interface(&mut fed).at(|| request.a.display())?;
    wide_floats(&mut fed);
    let infos = super::start::declared_inputs(&fed)?;
    let settings = match &request.recipe {
        None => DataSettings::default(),
        Some(name) => super::start::settings(&super::resolve(&Sources { recipe: Some(name.clone()), ..Sources::default() })?),
    };
    let data = Dataset::open(&request.data, &infos, &DataSettings { seed: request.seed, ..settings })?;
    let labels = request.labels.as_ref().map(|path| data::labels(path, &data)).transpose()?;
    let names = (request.a.display().to_string(), request.b.display().to_string());
    report::diff((&names.0, &a), (&names.1, &b), &data, labels.as_deref(), super::driver::threads(request.threads), progress)
}
