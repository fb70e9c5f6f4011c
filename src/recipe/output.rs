//! Outputs appear whole or not at all: everything is written into a temporary folder beside its destination, read back from there, and moved.

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::onnx::{self, ReadOptions, WriteOptions};
use crate::report::FileRow;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Key of the metadata by which requant knows its own files again.
pub const VERSION_KEY: &str = "requant.version";

/// Key of the metadata of a tail: the SHA-256 of the model that it was cut off.
pub const TAIL_KEY: &str = "requant.tail_of";

/// What follows a model's name in that of its encodings.
const ENCODINGS: &str = ".encodings";

/// A model written beside its destination, and not moved there yet. Dropped, it is gone.
pub struct Pending {
    folder: TempDir,
    destination: PathBuf,
}

/// Refuses a destination that cannot be written, before any work is done: a folder that is missing, the input itself,
/// a file that is not requant's own (unless `force`).
pub fn check_destination(path: &Path, input: &Path, force: bool) -> Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::usage(format!("{} cannot be written: folder {} does not exist; create it first", path.display(), folder.display())));
    }
    if path.is_dir() {
        return Err(Error::usage(format!("{} is a folder; give the output a file name", path.display())));
    }
    if let (Ok(a), Ok(b)) = (path.canonicalize(), input.canonicalize())
        && a == b
    {
        return Err(Error::usage(format!("{} is the model itself, which is never changed; give another output with -o", path.display())));
    }
    drop(temporary_folder(path)?);
    if !force && path.exists() && !is_own(path) {
        return Err(Error::usage(format!("{} exists and was not written by requant; --force replaces it", path.display())));
    }
    Ok(())
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// `path` with `suffix` behind its whole name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    path.with_file_name(name)
}

/// Whether requant wrote a file: its metadata says so.
fn is_own(path: &Path) -> bool {
    onnx::read(path, &ReadOptions { drop_unknown: true }).is_ok_and(|m| m.metadata.iter().any(|(k, _)| k == VERSION_KEY))
}

/// Where the tail of a model lies: `OUT.tail.onnx` beside `OUT.onnx`.
pub fn tail_of(path: &Path) -> PathBuf {
    path.with_extension("tail.onnx")
}

/// Whether a file is a tail that requant wrote.
fn is_tail(path: &Path) -> bool {
    path.exists() && onnx::read(path, &ReadOptions { drop_unknown: true }).is_ok_and(|m| m.metadata.iter().any(|(k, _)| k == TAIL_KEY))
}

/// A folder beside `path` that goes when it is dropped.
pub fn temporary_folder(path: &Path) -> Result<TempDir> {
    let folder = folder_of(path);
    tempfile::Builder::new().prefix(".requant-").tempdir_in(&folder).map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "no permission to write into it; choose another folder".to_string()
            }
            _ => e.to_string(),
        };
        Error::usage(format!("{} cannot be written: folder {}: {why}", path.display(), folder.display()))
    })
}

impl Pending {
    /// Writes the model into a temporary folder beside `destination`, under its final name.
    pub fn write(model: &Model, destination: &Path) -> Result<Pending> {
        let pending = Pending { folder: temporary_folder(destination)?, destination: destination.to_path_buf() };
        onnx::write(model, &pending.model(), &WriteOptions::default())?;
        Ok(pending)
    }

    /// Where the model lies now.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join(self.destination.file_name().unwrap_or_default())
    }

    /// Writes encodings beside the model.
    pub fn write_encodings(&self, text: &str) -> Result<PathBuf> {
        let path = with_suffix(&self.model(), ENCODINGS);
        fs::write(&path, text).map_err(|e| Error::failed(format!("{} cannot be written: {e}", path.display())))?;
        Ok(path)
    }

    /// Writes a tail beside the model, which it names.
    pub fn write_tail(&self, mut tail: Model) -> Result<()> {
        tail.set_metadata(VERSION_KEY, env!("CARGO_PKG_VERSION"));
        tail.set_metadata(TAIL_KEY, &onnx::sha256_file(&self.model())?);
        onnx::write(&tail, &tail_of(&self.model()), &WriteOptions::default())
    }

    /// Where the tail lies now; `None`: there is none.
    pub fn tail(&self) -> Option<PathBuf> {
        Some(tail_of(&self.model())).filter(|p| p.exists())
    }

    /// The files, as the report lists them.
    pub fn rows(&self) -> Result<(FileRow, Option<FileRow>)> {
        Ok((row(&self.model(), &self.destination)?, self.tail().map(|t| row(&t, &tail_of(&self.destination))).transpose()?))
    }

    /// Moves the files to their destination, the model last. A data file or a tail of an earlier output that is no longer needed goes.
    pub fn publish(self) -> Result<()> {
        let (from, to) = (with_suffix(&self.model(), ".data"), with_suffix(&self.destination, ".data"));
        let has_data = from.exists();
        let (encodings, beside) = (with_suffix(&self.model(), ENCODINGS), with_suffix(&self.destination, ENCODINGS));
        if encodings.exists() {
            rename(&encodings, &beside)?;
        }
        let its_place = tail_of(&self.destination);
        if let Some(tail) = self.tail() {
            let data = with_suffix(&tail, ".data");
            if data.exists() {
                rename(&data, &with_suffix(&its_place, ".data"))?;
            }
            rename(&tail, &its_place)?;
        } else if is_tail(&its_place) {
            remove(&its_place)?;
            let data = with_suffix(&its_place, ".data");
            if data.exists() {
                remove(&data)?;
            }
        }
        let had_data = to.exists() && is_own(&self.destination);
        if has_data {
            rename(&from, &to)?;
        }
        rename(&self.model(), &self.destination).inspect_err(|_| {
            if has_data && !had_data {
                // Without its model the data file is of no use.
                let _ = fs::remove_file(&to);
            }
        })?;
        if had_data && !has_data {
            remove(&to)?;
        }
        Ok(())
    }
}

/// A file that lies at `at`, and will lie at `destination`.
fn row(at: &Path, destination: &Path) -> Result<FileRow> {
    let len = |p: PathBuf| p.metadata().map_or(0, |m| m.len());
    let (bytes, data_bytes) = (len(at.to_path_buf()), len(with_suffix(at, ".data")));
    Ok(FileRow { path: destination.display().to_string(), sha256: onnx::sha256_file(at)?, bytes, data_bytes })
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::failed(format!("{} cannot be written: {e}", to.display())))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|e| Error::failed(format!("{} cannot be removed: {e}", path.display())))
}

/// Refuses a text file that cannot be written, before any work is done.
pub fn check_text(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::usage(format!("{} cannot be written: folder {} does not exist; create it first", path.display(), folder.display())));
    }
    if path.is_dir() {
        return Err(Error::usage(format!("{} is a folder; give a file name", path.display())));
    }
    temporary_folder(path).map(drop)
}

/// Writes a text file whole or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    let folder = temporary_folder(path)?;
    let part = folder.path().join("part");
    fs::write(&part, text).map_err(|e| Error::failed(format!("{} cannot be written: {e}", path.display())))?;
    rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, Op};
    use crate::tensor::Tensor;

    fn model(elements: usize) -> Model {
        let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 17)], metadata: vec![(VERSION_KEY.into(), "0".into())], ..Model::default() };
        let g = &mut m.graph;
        let (x, y) = (g.add_value("x"), g.add_value("y"));
        let w = g.add_constant("w", Tensor::of_f32(&[elements], vec![1.0; elements]));
        g.value_mut(w).constant.as_mut().unwrap().storage = crate::graph::Storage::External;
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::new(Op::Add, "n"), &[Some(x), Some(w)], &[Some(y)]);
        m
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_pending_model_is_moved_with_its_data_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("o.onnx");
        drop(Pending::write(&model(4096), &out).unwrap());
        assert!(names(dir.path()).is_empty());
        let pending = Pending::write(&model(4096), &out).unwrap();
        assert!(pending.rows().unwrap().0.data_bytes >= 4096 * 4);
        pending.publish().unwrap();
        assert_eq!(names(dir.path()), ["o.onnx", "o.onnx.data"]);
        onnx::read(&out, &ReadOptions::default()).unwrap();
        let mut plain = model(4);
        let w = plain.graph.find_value("w").unwrap();
        plain.graph.value_mut(w).constant.as_mut().unwrap().storage = crate::graph::Storage::Raw;
        Pending::write(&plain, &out).unwrap().publish().unwrap();
        assert_eq!(names(dir.path()), ["o.onnx"], "the data file of the earlier output is gone");
    }

    #[test]
    fn destinations_are_checked_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        fs::write(at("in.onnx"), "").unwrap();
        fs::write(at("other.onnx"), "not ours").unwrap();
        fs::create_dir(at("folder")).unwrap();
        let refused = |out: &str, force, word: &str| {
            let e = check_destination(&at(out), &at("in.onnx"), force).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(word), "{e}");
        };
        refused("none/o.onnx", true, "does not exist");
        refused("in.onnx", true, "never changed");
        refused("folder", true, "is a folder");
        refused("other.onnx", false, "--force");
        check_destination(&at("other.onnx"), &at("in.onnx"), true).unwrap();
        Pending::write(&model(4), &at("own.onnx")).unwrap().publish().unwrap();
        check_destination(&at("own.onnx"), &at("in.onnx"), false).unwrap();
        assert_eq!(names(dir.path()), ["folder", "in.onnx", "other.onnx", "own.onnx", "own.onnx.data"]);
    }
}
