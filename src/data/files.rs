//! Arrays in `.npz` and `.npy` files and in ONNX test sets.

use super::image::Fitted;
use super::npy::{Npy, Source};
use crate::error::{At, Error, Result};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compressed arrays above this go to a temporary file rather than to memory.
const IN_MEMORY: u64 = 32 << 20;

/// One array of a file.
#[derive(Debug, Clone)]
pub enum Array {
    Npy(Npy),
    /// A whole input.
    Tensor(Tensor),
    /// An image, a whole input.
    Image {
        path: PathBuf,
        how: Arc<Fitted>,
    },
    /// Numbers without a header, low byte first, a whole input.
    Raw {
        path: PathBuf,
        shape: Vec<usize>,
        dtype: DType,
    },
}

impl Array {
    pub fn shape(&self) -> &[usize] {
        match self {
            Array::Npy(a) => &a.shape,
            Array::Tensor(t) => t.shape(),
            Array::Image { how, .. } => &how.shape,
            Array::Raw { shape, .. } => shape,
        }
    }

    pub fn dtype(&self) -> DType {
        match self {
            Array::Npy(a) => a.dtype,
            Array::Tensor(t) => t.dtype(),
            Array::Image { how, .. } => how.dtype,
            Array::Raw { dtype, .. } => *dtype,
        }
    }

    /// All of it.
    pub fn whole(&self) -> Result<Tensor> {
        match self {
            Array::Npy(a) => a.whole(),
            Array::Tensor(t) => Ok(t.clone()),
            Array::Image { path, how } => how.read(path),
            Array::Raw { path, shape, dtype } => {
                let bytes = std::fs::read(path).map_err(|e| Error::usage(format!("{} cannot be read: {e}", path.display())))?;
                Tensor::new(*dtype, shape.clone(), bytes.into()).at(|| path.display())
            }
        }
    }
}

/// A file's arrays by name; a `.npy` has one, without a name.
pub type Arrays = BTreeMap<String, Array>;

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::usage(format!("it cannot be opened: {e}")))
}

/// The arrays of a `.npz` or `.npy` file. Errors name the file.
pub fn arrays(path: &Path) -> Result<Arrays> {
    let read = match extension(path).as_str() {
        "npz" => npz(path),
        _ => npy(path).map(|a| BTreeMap::from([(String::new(), Array::Npy(a))])),
    };
    read.at(|| path.display())
}

/// The file's extension in lower case.
pub fn extension(path: &Path) -> String {
    path.extension().map_or_else(String::new, |e| e.to_string_lossy().to_lowercase())
}

fn npy(path: &Path) -> Result<Npy> {
    let file = open(path)?;
    let len = file.metadata().map_err(|e| Error::usage(format!("it cannot be read: {e}")))?.len();
    Npy::open(Source::File { file: Arc::new(file), start: 0, len })
}

fn npz(path: &Path) -> Result<Arrays> {
    let damaged = |e: &dyn std::fmt::Display| Error::usage(format!("it is not a whole .npz archive ({e}); write it again with numpy.savez"));
    let file = Arc::new(open(path)?);
    let size = file.metadata().map_err(|e| damaged(&e))?.len();
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(open(path)?)).map_err(|e| damaged(&e))?;
    let mut arrays = Arrays::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|e| damaged(&e))?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_string) else { continue };
        let source = if entry.compression() == zip::CompressionMethod::Stored {
            let start = entry.data_start();
            let len = entry.size();
            if start.checked_add(len).is_none_or(|end| end > size) {
                return Err(damaged(&"an array reaches beyond its end"));
            }
            Source::File { file: file.clone(), start, len }
        } else {
            unpack(&mut entry).map_err(|e| damaged(&e))?
        };
        let array = Npy::open(source).at(|| format!("array {name}"))?;
        arrays.insert(name, Array::Npy(array));
    }
    if arrays.is_empty() {
        return Err(Error::usage("it holds no array; write it with numpy.savez"));
    }
    Ok(arrays)
}

/// A compressed array, once and for all: into memory, or into a file that has no name and goes with the process.
fn unpack(entry: &mut impl Read) -> std::io::Result<Source> {
    let mut bytes = Vec::new();
    entry.by_ref().take(IN_MEMORY).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < IN_MEMORY {
        return Ok(Source::Memory(bytes.into()));
    }
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    std::io::copy(entry, &mut file)?;
    let len = file.stream_position()?;
    Ok(Source::File { file: Arc::new(file), start: 0, len })
}

/// The folders of ONNX test sets: `path` itself, or those in it.
pub fn test_sets(path: &Path) -> Vec<PathBuf> {
    let has_inputs = |dir: &Path| dir.join("input_0.pb").is_file();
    if has_inputs(path) {
        return vec![path.to_path_buf()];
    }
    let mut sets: Vec<PathBuf> = entries(path).into_iter().filter(|p| p.is_dir() && has_inputs(p)).collect();
    // test_data_set_10 follows test_data_set_9.
    sets.sort_by_key(|p| (number(p), p.clone()));
    sets
}

fn number(path: &Path) -> u64 {
    let name = path.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    name.rsplit('_').next().and_then(|d| d.parse().ok()).or_else(|| digits.parse().ok()).unwrap_or(0)
}

/// What lies in a folder, sorted by name.
pub fn entries(path: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = std::fs::read_dir(path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    list.sort();
    list
}

/// The inputs of one test set: `input_0.pb`, `input_1.pb` … belong to the model's inputs in order, unless a tensor's own name is that of an input.
pub fn test_set(dir: &Path, inputs: &[String]) -> Result<Arrays> {
    let mut arrays = Arrays::new();
    for (i, input) in inputs.iter().enumerate() {
        let path = dir.join(format!("input_{i}.pb"));
        if !path.is_file() {
            continue;
        }
        let (name, tensor) = crate::onnx::read_tensor(&path)?;
        let name = if inputs.contains(&name) { name } else { input.clone() };
        arrays.insert(name, Array::Tensor(tensor));
    }
    Ok(arrays)
}
