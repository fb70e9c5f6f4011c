//! The samples of one file or test set: which array feeds which input, and how many samples that makes.

use super::files::{Array, Arrays};
use super::{DataSettings, Fill, InputInfo};
use crate::error::{At, Error, Result};
use crate::graph::{Dim, shape_text};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One file, or one test set.
#[derive(Debug)]
pub struct Part {
    pub path: PathBuf,
    feeds: BTreeMap<String, Feed>,
    len: usize,
}

/// Where an input's samples come from.
#[derive(Debug)]
enum Feed {
    /// `step` entries of the first axis a sample.
    Rows { array: Array, step: usize },
    /// One index of the first axis a sample; it is left out of the shape.
    Index(Array),
    /// The whole array is the one sample.
    Whole(Array),
    /// Made up from the other inputs' shapes.
    Filled(Fill),
}

impl Part {
    /// Pairs arrays with inputs. Errors name the file.
    pub fn new(path: &Path, mut arrays: Arrays, inputs: &[InputInfo], settings: &DataSettings, remarks: &mut Vec<String>) -> Result<Part> {
        let names: Vec<String> = arrays.keys().cloned().collect();
        let mut feeds = BTreeMap::new();
        for input in inputs {
            let asked = settings.inputs.get(&input.name).and_then(|s| s.from.as_deref());
            let lone = inputs.len() == 1 && names.len() == 1 && ["", "arr_0"].contains(&names[0].as_str());
            let key = match asked {
                Some(from) => arrays.contains_key(from).then(|| from.to_string()),
                None if arrays.contains_key(&input.name) => Some(input.name.clone()),
                None if lone => Some(names[0].clone()),
                None => None,
            };
            let fill = settings.inputs.get(&input.name).and_then(|s| s.fill);
            let feed = match (key.and_then(|k| arrays.remove(&k)), fill) {
                (Some(array), _) => feed(array, input).at(|| format!("{}: input {}", path.display(), input.name))?,
                (None, Some(fill)) => Feed::Filled(fill),
                (None, None) => match (asked, guess(input)) {
                    (None, Some(feed)) => {
                        let what = match feed {
                            Feed::Filled(Fill::Positions) => "0, 1, 2 …",
                            Feed::Filled(Fill::Ones) => "ones",
                            _ => "zeros",
                        };
                        remarks.push(format!("input {} is not in the data; it is filled with {what}", input.name));
                        feed
                    }
                    _ => return Err(lacking(path, input, asked, &names, inputs)),
                },
            };
            feeds.insert(input.name.clone(), feed);
        }
        if feeds.values().all(|f| matches!(f, Feed::Filled(_))) {
            return Err(lacking(path, &inputs[0], None, &names, inputs));
        }
        let mut counts: Vec<(&String, usize)> = feeds.iter().filter_map(|(n, f)| Some((n, f.count()?))).collect();
        counts.sort_by_key(|c| c.1);
        if let (Some(few), Some(many)) = (counts.first(), counts.last())
            && few.1 != many.1
        {
            return Err(Error::usage(format!(
                "{}: input {} has {} samples and input {} has {}; they must be as many",
                path.display(),
                few.0,
                few.1,
                many.0,
                many.1
            )));
        }
        let len = counts.first().map_or(1, |c| c.1);
        for (name, feed) in &feeds {
            if let Feed::Rows { array, step } = feed
                && array.shape()[0] % step != 0
            {
                remarks.push(format!(
                    "{}: input {name}: the last {} entries do not fill the model's batch of {step} and are left out",
                    path.display(),
                    array.shape()[0] % step
                ));
            }
        }
        Ok(Part { path: path.to_path_buf(), feeds, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Entries of the first axis a sample.
    pub fn batch(&self) -> usize {
        let of = |f: &Feed| match f {
            Feed::Rows { step, .. } => Some(*step),
            Feed::Index(a) => a.shape().get(1).copied(),
            Feed::Whole(a) => a.shape().first().copied(),
            _ => None,
        };
        self.feeds.values().find_map(of).unwrap_or(1)
    }

    /// Sample `k`. Errors name the input.
    pub fn sample(&self, k: usize, inputs: &[InputInfo]) -> Result<BTreeMap<String, Tensor>> {
        let mut sample = BTreeMap::new();
        for (name, feed) in &self.feeds {
            if let Some(t) = feed.tensor(k).at(|| format!("input {name}"))? {
                check_numbers(&t).at(|| format!("input {name}"))?;
                sample.insert(name.clone(), t);
            }
        }
        let sizes = symbols(inputs, &sample);
        for input in inputs.iter().filter(|i| !sample.contains_key(&i.name)).cloned().collect::<Vec<_>>() {
            let shape: Vec<usize> = input.shape.iter().flatten().map(|d| size(d, &sizes)).collect();
            let t = match &self.feeds[&input.name] {
                Feed::Filled(Fill::Positions) => {
                    let last = shape.last().copied().unwrap_or(1).max(1);
                    made(input.dtype, &shape, |i| (i % last) as f64)
                }
                Feed::Filled(Fill::Zeros) => made(input.dtype, &shape, |_| 0.0),
                Feed::Filled(Fill::Value(v)) => made(input.dtype, &shape, |_| *v),
                _ => made(input.dtype, &shape, |_| 1.0),
            };
            sample.insert(input.name.clone(), t.at(|| format!("input {}", input.name))?);
        }
        Ok(sample)
    }
}

impl Feed {
    /// Samples there are; `None`: as many as asked for.
    fn count(&self) -> Option<usize> {
        match self {
            Feed::Rows { array, step } => Some(array.shape()[0] / step),
            Feed::Index(array) => Some(array.shape()[0]),
            Feed::Whole(_) => Some(1),
            Feed::Filled(_) => None,
        }
    }

    fn tensor(&self, k: usize) -> Result<Option<Tensor>> {
        let rows = |array: &Array, from, to| match array {
            Array::Npy(a) => a.rows(from, to),
            whole => whole.whole(),
        };
        Ok(Some(match self {
            Feed::Rows { array, step } => rows(array, k * step, (k + 1) * step)?,
            Feed::Index(array) => rows(array, k, k + 1)?.reshaped(array.shape()[1..].to_vec())?,
            Feed::Whole(array) => array.whole()?,
            Feed::Filled(_) => return Ok(None),
        }))
    }
}

/// How an array feeds an input, or why it cannot.
fn feed(array: Array, input: &InputInfo) -> Result<Feed> {
    if array.dtype() != input.dtype {
        let remedy = match array {
            Array::Npy(_) => format!("convert it with .astype(np.{})", input.dtype),
            _ => "write the tensor in that type".to_string(),
        };
        return Err(Error::usage(format!("the array is {}, the model wants {}; {remedy}", array.dtype(), input.dtype)));
    }
    let shape = array.shape();
    let Some(declared) = &input.shape else {
        // Nothing is declared: a file is one input.
        return Ok(Feed::Whole(array));
    };
    let whole = !matches!(array, Array::Npy(_)) || declared.is_empty() && shape.is_empty();
    let (fits, feed): (&[usize], _) = if whole {
        (shape, None)
    } else if shape.len() == declared.len() {
        let step = if let Dim::Known(n) = declared[0] { n } else { 1 };
        (shape, Some(step))
    } else if shape.len() == declared.len() + 1 {
        (&shape[1..], Some(0))
    } else {
        return Err(Error::usage(format!(
            "the array has shape {shape:?}, the model wants {}: an array of {} dimensions holds samples along its first, one of {} a whole input per index",
            shape_text(declared),
            declared.len(),
            declared.len() + 1
        )));
    };
    let skip = (feed.is_some_and(|step| step > 0)) as usize;
    let wrong = fits.len() != declared.len() || fits.iter().zip(declared).skip(skip).any(|(a, d)| matches!(d, Dim::Known(n) if n != a));
    if wrong {
        return Err(Error::usage(format!("the array has shape {shape:?}, which does not fit the model's {}", shape_text(declared))));
    }
    if shape.contains(&0) {
        return Err(Error::usage(format!("the array has shape {shape:?}: it holds no sample")));
    }
    match feed {
        None => Ok(Feed::Whole(array)),
        Some(0) => Ok(Feed::Index(array)),
        Some(step) if shape[0] < step => Err(Error::usage(format!("the array has {} entries, fewer than the model's fixed batch of {step}", shape[0]))),
        Some(step) => Ok(Feed::Rows { array, step }),
    }
}

/// What an integer input is by its name, where data lacks it: masks are ones, positions count, token types are zeros.
fn guess(input: &InputInfo) -> Option<Feed> {
    if !matches!(input.dtype, DType::I64 | DType::I32 | DType::Bool) || input.shape.is_none() {
        return None;
    }
    let name = input.name.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| name.contains(w));
    match () {
        () if has(&["mask"]) => Some(Feed::Filled(Fill::Ones)),
        () if has(&["position"]) => Some(Feed::Filled(Fill::Positions)),
        () if has(&["token_type", "segment"]) => Some(Feed::Filled(Fill::Zeros)),
        () => None,
    }
}

fn lacking(path: &Path, input: &InputInfo, asked: Option<&str>, names: &[String], inputs: &[InputInfo]) -> Error {
    let quoted = |names: Vec<&str>| names.join(", ");
    let has = quoted(names.iter().map(|n| if n.is_empty() { "one array without a name" } else { n }).collect());
    let wants = quoted(inputs.iter().map(|i| i.name.as_str()).collect());
    let path = path.display();
    match asked {
        Some(from) => Error::usage(format!("{path}: inputs.{}.from names array {from}, which it does not have; it has {has}", input.name)),
        None => Error::usage(format!(
            "{path}: it has no array for input {}: it has {has}, the model wants {wants}; rename it, or say inputs.{}.from in the recipe",
            input.name, input.name
        )),
    }
}

/// Refuses NaN and infinity.
fn check_numbers(t: &Tensor) -> Result<()> {
    if !t.dtype().is_float() {
        return Ok(());
    }
    let x = t.to_f32()?;
    match x.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::usage(format!("element {i} is {}; leave such samples out", x[i]))),
    }
}

/// Sizes of symbolic dimensions, as the arrays of a sample have them.
fn symbols(inputs: &[InputInfo], sample: &BTreeMap<String, Tensor>) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for input in inputs {
        let (Some(t), Some(shape)) = (sample.get(&input.name), &input.shape) else { continue };
        for (d, n) in shape.iter().zip(t.shape()) {
            if let Dim::Symbol(s) = d {
                sizes.entry(s.to_string()).or_insert(*n);
            }
        }
    }
    sizes
}

fn size(dim: &Dim, sizes: &BTreeMap<String, usize>) -> usize {
    match dim {
        Dim::Known(n) => *n,
        Dim::Symbol(s) => sizes.get(&**s).copied().unwrap_or(1),
        Dim::Unknown => 1,
    }
}

/// A tensor of made-up numbers; `f` by the element's index.
pub fn made(dtype: DType, shape: &[usize], f: impl Fn(usize) -> f64) -> Result<Tensor> {
    let n = crate::tensor::numel(shape).ok_or_else(|| Error::usage(format!("shape {shape:?} has too many elements")))?;
    let values = (0..n).map(f);
    Ok(match dtype {
        DType::F32 => Tensor::of_f32(shape, values.map(|v| v as f32).collect()),
        DType::F64 => Tensor::of(dtype, shape, values.collect()),
        DType::F16 => Tensor::of(dtype, shape, values.map(|v| half::f16::from_f64(v).to_bits()).collect()),
        DType::BF16 => Tensor::of(dtype, shape, values.map(|v| half::bf16::from_f64(v).to_bits()).collect()),
        DType::I64 => Tensor::of_i64(shape, values.map(|v| v as i64).collect()),
        DType::U64 => Tensor::of(dtype, shape, values.map(|v| v as u64).collect()),
        DType::I32 => Tensor::of(dtype, shape, values.map(|v| v as i32).collect()),
        DType::U32 => Tensor::of(dtype, shape, values.map(|v| v as u32).collect()),
        DType::I16 => Tensor::of(dtype, shape, values.map(|v| v as i16).collect()),
        DType::U16 => Tensor::of(dtype, shape, values.map(|v| v as u16).collect()),
        DType::I8 => Tensor::of(dtype, shape, values.map(|v| v as i8).collect()),
        DType::U8 => Tensor::of(dtype, shape, values.map(|v| v as u8).collect()),
        DType::Bool => Tensor::new(dtype, shape.to_vec(), values.map(|v| (v != 0.0) as u8).collect::<Vec<_>>().into())?,
        other => return Err(Error::usage(format!("inputs of type {other} cannot be made up; give data"))),
    })
}
