//! Samples: inputs for the model, read from files or made up.
//!
//! An array of the input's rank holds samples along its first axis, taken in steps of the model's fixed batch, or one by one; an array of one rank
//! more holds one whole input per index. In a folder each file is one or more samples by the same rule, so lengths may differ between files.

mod files;
mod image;
mod labels;
mod lists;
mod npy;
mod random;
mod sample;
mod split;
#[cfg(test)]
pub(crate) mod tests;

pub use image::{Filter, Preprocess, Resize};
pub use labels::labels;
pub use random::{mix, shuffle};
pub use split::{Split, split};

use crate::engine::{Plans, RunnerOptions, Running, over_samples};
use crate::error::{At, Error, Result};
use crate::graph::{Dim, Model, ValueId};
use crate::interrupt;
use crate::onnx;
use crate::tensor::{DType, Tensor};
use sample::Part;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

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
    /// `inputs.X.preprocess`: how an image becomes this input.
    pub preprocess: Option<Preprocess>,
}

/// `fill:`
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    Zeros,
    Ones,
    /// 0, 1, 2 … along the last axis.
    Positions,
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
pub struct Dataset {
    inputs: Vec<InputInfo>,
    from: From,
    remarks: Vec<String>,
    /// By sample: inputs that are not read but were found by running the model.
    states: BTreeMap<usize, BTreeMap<String, Tensor>>,
}

#[derive(Debug)]
enum From {
    Files { parts: Vec<Part>, paths: Vec<PathBuf>, root: PathBuf },
    Random { n: usize, seed: u64 },
}

const TAKES: &str = "--data takes .npz and .npy files, folders of them, images (JPEG, PNG, WebP, BMP), folders or lists of images, \
                     ONNX test sets (input_0.pb …), raw files with an input_list.txt, or random:N";

impl Dataset {
    /// Opens `spec`: a path, or `random:N`. Reads headers only.
    ///
    /// # Errors
    /// In one sentence that names file and input: what is missing or damaged, arrays of the wrong name, rank, shape or type, no samples.
    pub fn open(spec: &str, inputs: &[InputInfo], settings: &DataSettings) -> Result<Dataset> {
        if let Some(n) = spec.strip_prefix("random:") {
            let n = n.parse().ok().filter(|n| *n > 0).ok_or_else(|| Error::usage(format!("{spec}: say random:N with N at least 1, such as random:16")))?;
            let remarks = random::remarks(inputs);
            return Ok(Dataset { inputs: inputs.to_vec(), from: From::Random { n, seed: settings.seed }, remarks, states: BTreeMap::new() });
        }
        let root = PathBuf::from(spec);
        if !root.exists() {
            return Err(Error::usage(format!("{spec} does not exist; {TAKES}")));
        }
        let mut remarks = Vec::new();
        let mut parts = Vec::new();
        let mut paths = Vec::new();
        let sets = if root.is_dir() { files::test_sets(&root) } else { Vec::new() };
        if !sets.is_empty() {
            let names: Vec<String> = inputs.iter().map(|i| i.name.clone()).collect();
            for set in sets {
                interrupt::check()?;
                parts.push(Part::new(&set, files::test_set(&set, &names)?, inputs, settings, &mut remarks)?);
                paths.extend(files::entries(&set).into_iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("input_"))));
            }
        } else if let Some(found) = lists::listed(&root)? {
            for (path, arrays) in found.samples(inputs, settings, &mut remarks)? {
                interrupt::check()?;
                parts.push(Part::new(&path, arrays, inputs, settings, &mut remarks)?);
                paths.push(path);
            }
        } else {
            let list = if root.is_dir() { files::entries(&root) } else { vec![root.clone()] };
            let (taken, other): (Vec<_>, Vec<_>) = list.into_iter().partition(|p| matches!(files::extension(p).as_str(), "npz" | "npy"));
            if taken.is_empty() {
                let what = match (root.is_dir(), other.first()) {
                    (true, None) => "is an empty folder".to_string(),
                    (true, Some(first)) => format!("holds no samples that can be read ({} is none)", first.display()),
                    (false, _) => "is no file of samples that can be read".to_string(),
                };
                return Err(Error::usage(format!("{spec} {what}; {TAKES}")));
            }
            if !other.is_empty() {
                remarks.push(format!("{} other files in {spec} were passed over", other.len()));
            }
            for path in taken {
                interrupt::check()?;
                parts.push(Part::new(&path, files::arrays(&path)?, inputs, settings, &mut remarks)?);
                paths.push(path);
            }
        }
        remarks.dedup();
        let data = Dataset { inputs: inputs.to_vec(), from: From::Files { parts, paths, root }, remarks, states: BTreeMap::new() };
        match data.len() {
            0 => Err(Error::usage(format!("{spec} holds no sample"))),
            _ => Ok(data),
        }
    }

    /// Number of samples, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match &self.from {
            From::Random { n, .. } => *n,
            From::Files { parts, .. } => parts.iter().map(Part::len).sum(),
        }
    }

    /// The part that holds sample `i`, and the sample's number there.
    fn locate(parts: &[Part], mut i: usize) -> Option<(&Part, usize)> {
        for part in parts {
            if i < part.len() {
                return Some((part, i));
            }
            i -= part.len();
        }
        None
    }

    /// Sample `i` by input name. Refuses NaN and infinity, naming file, sample and input.
    pub fn sample(&self, i: usize) -> Result<BTreeMap<String, Tensor>> {
        let mut sample = match &self.from {
            From::Random { seed, .. } => random::sample(&self.inputs, *seed, i),
            From::Files { parts, .. } => {
                let (part, k) = Self::locate(parts, i).ok_or_else(|| Error::failed(format!("there is no sample {i}")))?;
                part.sample(k, &self.inputs).at(|| self.name(i))?
            }
        };
        sample.extend(self.states.get(&i).into_iter().flatten().map(|(name, t)| (name.clone(), t.clone())));
        Ok(sample)
    }

    /// Runs a model as it is without its quantizers over some of the samples, and hands what `see` makes of `values` to `merge`, in the samples' order.
    pub fn watch<T: Send>(
        &self,
        model: &Model,
        values: &[ValueId],
        samples: &[usize],
        threads: usize,
        see: impl Fn(&[Tensor]) -> Result<T> + Sync,
        mut merge: impl FnMut(T),
    ) -> Result<()> {
        let plans = Plans::new(model, values, RunnerOptions { float: true, ..RunnerOptions::default() });
        over_samples(
            samples.len(),
            threads,
            || Ok(Running::default()),
            |running, i| see(&plans.run(running, &self.sample(samples[i])?, &model.quantizers).at(|| self.name(samples[i]))?),
            |_, seen| {
                merge(seen);
                Ok(())
            },
        )
    }

    /// The samples of each file, which follow each other in time; samples made up are one sequence.
    pub fn sequences(&self) -> Vec<Range<usize>> {
        let lengths = match &self.from {
            From::Random { n, .. } => vec![*n],
            From::Files { parts, .. } => parts.iter().map(Part::len).collect(),
        };
        let mut end = 0;
        let one = |length: usize| {
            end += length;
            end - length..end
        };
        lengths.into_iter().map(one).collect()
    }

    /// Gives samples, by number, inputs in the place of those that the data holds.
    pub fn hold(&mut self, states: BTreeMap<usize, BTreeMap<String, Tensor>>) {
        self.states = states;
    }

    /// For people: `calib.npz[12]`, `folder/a.npy[0]`.
    pub fn name(&self, i: usize) -> String {
        match &self.from {
            From::Random { .. } => format!("random[{i}]"),
            From::Files { parts, .. } => Self::locate(parts, i).map_or_else(String::new, |(part, k)| format!("{}[{k}]", part.path.display())),
        }
    }

    /// Entries of the first axis of each sample, in order: its batch.
    pub fn batches(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match &self.from {
            From::Random { n, .. } => Box::new(std::iter::repeat_n(1, *n)),
            From::Files { parts, .. } => Box::new(parts.iter().flat_map(|p| std::iter::repeat_n(p.batch(), p.len()))),
        }
    }

    /// Whether the samples are made up, so that no figure measured on them means anything.
    pub fn is_random(&self) -> bool {
        matches!(self.from, From::Random { .. })
    }

    /// SHA-256 over the files' names and contents, in their order; empty for random data.
    pub fn sha256(&self) -> Result<String> {
        let From::Files { paths, root, .. } = &self.from else { return Ok(String::new()) };
        let relative = |p: &Path| {
            p.strip_prefix(root).ok().filter(|r| r.components().next().is_some()).map_or_else(|| p.file_name().unwrap_or_default().into(), Path::to_path_buf)
        };
        let mut text = String::new();
        for path in paths {
            text += &format!("{} {}\n", onnx::sha256_file(path)?, relative(path).display());
        }
        Ok(if paths.len() == 1 { onnx::sha256_file(&paths[0])? } else { onnx::sha256(text.as_bytes()) })
    }

    /// What a person should know: inputs filled because data lacked them, files passed over.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }
}
