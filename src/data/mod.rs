//! Samples: inputs for the model, read from files or made up.

use crate::error::{Error, Result};
use crate::graph::Dim;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// What the model says of one of its inputs (`--fix-dim` and the recipe's `inputs.X.shape` already applied).
#[derive(Debug, Clone, PartialEq)]
pub struct InputInfo {
    pub name: String,
    pub dtype: DType,
    /// `None`: not even the rank is declared.
    pub shape: Option<Vec<Dim>>,
}

/// What the recipe says of one input's data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InputSettings {
    /// `inputs.X.from`: the array that holds this input's samples.
    pub from: Option<String>,
    /// `inputs.X.fill`: what the input is where data lacks it.
    pub fill: Option<Fill>,
}

/// `fill:`
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    Zeros,
    Ones,
    Value(f64),
}

/// How data is read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DataSettings {
    pub inputs: BTreeMap<String, InputSettings>,
    pub seed: u64,
}

/// Samples of a model's inputs. Files are read when a sample is asked for, never all at once.
#[derive(Debug)]
pub struct Dataset {}

impl Dataset {
    /// Opens `spec`: a path, or `random:N`.
    pub fn open(_spec: &str, _inputs: &[InputInfo], _settings: &DataSettings) -> Result<Dataset> {
        Err(Error::failed("being written"))
    }

    /// Number of samples, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        0
    }

    /// Sample `i` by input name. Refuses NaN and infinity, naming file, sample and input.
    pub fn sample(&self, _i: usize) -> Result<BTreeMap<String, Tensor>> {
        Err(Error::failed("being written"))
    }

    /// For people: `calib.npz[12]`, `folder/a.npy`.
    pub fn name(&self, _i: usize) -> String {
        String::new()
    }

    /// Whether the samples are made up, so that no figure measured on them means anything.
    pub fn is_random(&self) -> bool {
        false
    }

    /// SHA-256 over the files' names and contents, in their order; empty for random data.
    pub fn sha256(&self) -> Result<String> {
        Ok(String::new())
    }

    /// What a person should know: inputs filled because data lacked them, arrays renamed, files passed over.
    pub fn remarks(&self) -> &[String] {
        &[]
    }
}

/// Which samples calibrate and which validate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    pub calibration: Vec<usize>,
    pub validation: Vec<usize>,
    /// Said to the user: too few samples, or samples that serve both.
    pub remarks: Vec<String>,
}

/// Splits `n` samples; `validate: None` takes what calibration leaves.
pub fn split(_n: usize, _samples: usize, _validate: Option<usize>, _shuffle: Option<u64>) -> Split {
    Split::default()
}

/// Class labels, one a sample of `data`: `.npy` of integers, or CSV `file,class`.
pub fn labels(_path: &Path, _data: &Dataset) -> Result<Vec<i64>> {
    Err(Error::failed("being written"))
}
