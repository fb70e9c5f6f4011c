//! Samples that are a file each: images in a folder, a list or alone, and raw numbers with a list of files (QNN's `input_list.txt`).

use super::files::{self, Array, Arrays};
use super::image::EXTENSIONS;
use super::{DataSettings, InputInfo};
use crate::error::{At, Error, Result};
use crate::graph::{Dim, shape_text};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was found.
pub enum Listed {
    Images(Vec<PathBuf>),
    /// A line a sample: (input, file); the input is empty where there is but one.
    Raw {
        list: PathBuf,
        lines: Vec<Vec<(String, PathBuf)>>,
    },
}

fn is_image(path: &Path) -> bool {
    EXTENSIONS.contains(&files::extension(path).as_str())
}

/// Images or raw files at `root`: a folder, a list, or one image. `None`: neither.
pub fn listed(root: &Path) -> Result<Option<Listed>> {
    if root.is_file() {
        return match files::extension(root).as_str() {
            "txt" => list(root).map(Some),
            _ => Ok(is_image(root).then(|| Listed::Images(vec![root.to_path_buf()]))),
        };
    }
    let raw = root.join("input_list.txt");
    if raw.is_file() {
        return list(&raw).map(Some);
    }
    // Arrays come before pictures of them.
    if files::entries(root).iter().any(|p| matches!(files::extension(p).as_str(), "npz" | "npy")) {
        return Ok(None);
    }
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in files::entries(&folder) {
            match path.is_dir() {
                true => folders.push(path),
                false if is_image(&path) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    Ok((!found.is_empty()).then_some(Listed::Images(found)))
}

/// A text file: paths of images, a line each, or raw files, `input:=path` or a path alone, as many as there are inputs. Paths are relative to the list
/// or to where the program runs.
fn list(path: &Path) -> Result<Listed> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::usage(format!("{} cannot be read: {e}", path.display())))?;
    let here = path.parent().unwrap_or(Path::new(""));
    let place = |p: &str| if here.join(p).exists() { here.join(p) } else { PathBuf::from(p) };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', '%'])).collect();
    if lines.is_empty() {
        return Err(Error::usage(format!("{} lists no file", path.display())));
    }
    let images: Vec<PathBuf> = lines.iter().map(|l| place(l)).filter(|p| is_image(p)).collect();
    if !images.is_empty() && images.len() < lines.len() {
        return Err(Error::usage(format!(
            "{} lists images and other files: {} is none",
            path.display(),
            lines.iter().find(|l| !is_image(Path::new(l))).unwrap_or(&"")
        )));
    }
    if let Some(missing) = images.iter().find(|p| !p.exists()) {
        return Err(Error::usage(format!("{}: {} does not exist", path.display(), missing.display())));
    }
    if !images.is_empty() {
        return Ok(Listed::Images(images));
    }
    let one = |item: &str| match item.split_once(":=") {
        Some((name, file)) => (name.to_string(), place(file)),
        None => (String::new(), place(item)),
    };
    Ok(Listed::Raw { list: path.to_path_buf(), lines: lines.iter().map(|l| l.split_whitespace().map(one).collect()).collect() })
}

impl Listed {
    /// The arrays of each sample, and the file that stands for it.
    pub fn samples(&self, inputs: &[InputInfo], settings: &DataSettings, remarks: &mut Vec<String>) -> Result<Vec<(PathBuf, Arrays)>> {
        match self {
            Listed::Images(paths) => images(paths, inputs, settings, remarks),
            Listed::Raw { list, lines } => lines.iter().map(|line| raw(line, inputs).at(|| list.display())).collect(),
        }
    }
}

fn images(paths: &[PathBuf], inputs: &[InputInfo], settings: &DataSettings, remarks: &mut Vec<String>) -> Result<Vec<(PathBuf, Arrays)>> {
    let asked = |i: &&InputInfo| settings.inputs.get(&i.name).is_some_and(|s| s.preprocess.is_some());
    let how = |i: &InputInfo| settings.inputs.get(&i.name).and_then(|s| s.preprocess.clone());
    let Some((input, how)) = inputs.iter().find(asked).and_then(|i| Some((i, how(i)?))) else {
        let takes = inputs.iter().find(|i| i.shape.as_ref().is_some_and(|s| s.len() == 4)).or(inputs.first()).map_or("X", |i| &i.name);
        return Err(Error::usage(format!(
            "images need to be told how the model was trained to see them: say inputs.{takes}.preprocess in the recipe, such as `imagenet`, `imagenet-raw`, `clip`, `yolo`, \
             `unit`, a preprocessor_config.json, or keys (--set inputs.{takes}.preprocess=imagenet)"
        )));
    };
    let fitted = how.fit(input.shape.as_deref(), input.dtype).at(|| format!("input {}", input.name))?;
    remarks.push(format!("input {} is made of images: {fitted}", input.name));
    let fitted = Arc::new(fitted);
    Ok(paths.iter().map(|path| (path.clone(), Arrays::from([(input.name.clone(), Array::Image { path: path.clone(), how: fitted.clone() })]))).collect())
}

fn raw(line: &[(String, PathBuf)], inputs: &[InputInfo]) -> Result<(PathBuf, Arrays)> {
    let mut arrays = Arrays::new();
    for (i, (name, path)) in line.iter().enumerate() {
        let input = match name.as_str() {
            "" => inputs.get(i),
            name => inputs.iter().find(|input| input.name == name),
        };
        let input = input.ok_or_else(|| {
            let has = inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
            Error::usage(format!(
                "{} is for an input that the model does not have ({has})",
                if name.is_empty() { path.display().to_string() } else { name.clone() }
            ))
        })?;
        let declared = input.shape.as_deref().unwrap_or_default();
        // A batch that is left open is 1.
        let size = |(i, d): (usize, &Dim)| match d {
            Dim::Known(n) => Some(*n),
            _ if i == 0 => Some(1),
            _ => None,
        };
        let shape: Option<Vec<usize>> = declared.iter().enumerate().map(size).collect();
        let shape = shape.filter(|_| input.shape.is_some()).ok_or_else(|| {
            Error::usage(format!(
                "raw files say no shape, and the model's {} of input {} is open: say inputs.{}.shape",
                shape_text(declared),
                input.name,
                input.name
            ))
        })?;
        let bytes = std::fs::metadata(path).map_err(|e| Error::usage(format!("{} cannot be read: {e}", path.display())))?.len();
        let want = (crate::tensor::numel(&shape).unwrap_or(usize::MAX) as u64).saturating_mul(input.dtype.bits() as u64) / 8;
        if bytes != want {
            return Err(Error::usage(format!("{} has {bytes} bytes, input {} of {} {shape:?} needs {want}", path.display(), input.name, input.dtype)));
        }
        arrays.insert(input.name.clone(), Array::Raw { path: path.clone(), shape, dtype: input.dtype });
    }
    Ok((line.first().map(|l| l.1.clone()).unwrap_or_default(), arrays))
}
