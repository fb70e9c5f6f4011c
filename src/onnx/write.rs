//! A model as a file, and its data file: whole or not at all.

use super::external::Layout;
use super::proto::ModelProto;
use super::stream::Stream;
use super::tensor::Place;
use super::{export, map};
use crate::error::{Error, Result};
use crate::graph::Model;
use prost::Message;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Whether tensors go to a data file beside the model. `None`: those that came from one, and all where the message would come near protobuf's limit.
    pub external: Option<bool>,
}

/// Above this, tensors go to a data file by themselves: protobuf readers refuse 2 GiB.
const INLINE_LIMIT: usize = 1_900_000_000;

/// Smaller tensors stay in the model: shapes and axes must be readable without the data file.
const EXTERNAL_AT_LEAST: usize = 1024;

/// Writes `model` to `path`, and to `<path>.data` what goes there. Both appear whole, the data file first, or not at all.
///
/// Fails where the folder is missing or not writable, where `path` is a file that the model's tensors are still mapped from, and where `external: Some(false)`
/// would pass protobuf's limit.
pub fn write(model: &Model, path: &Path, options: &WriteOptions) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::usage(format!("{} is no file name; give the output a name", path.display())))?;
    let mut data_name = name.to_os_string();
    data_name.push(".data");
    let data_path = path.with_file_name(&data_name);
    let location = data_name.into_string().map_err(|_| Error::usage(format!("{} is not UTF-8; give the output another name", path.display())))?;

    let (message, layout) = lay_out(model, &location, options)?;
    let outputs: &[&Path] = if layout.pieces.is_empty() { &[path] } else { &[path, &data_path] };
    for output in outputs {
        if map::is_mapped(output) {
            return Err(Error::usage(format!("{} is being read from; give another output", output.display())));
        }
        if output.is_dir() {
            return Err(Error::usage(format!("{} is a folder; give the output a file name", output.display())));
        }
    }

    let model_file = temporary(path, |stream| stream.model(message))?;
    if layout.pieces.is_empty() {
        return rename(model_file, path);
    }
    let data_file = temporary(&data_path, |stream| {
        for (offset, bytes) in &layout.pieces {
            // Seeking leaves a hole of zeros between the tensors.
            stream.sink.seek(SeekFrom::Start(*offset)).map_err(stream.fail)?;
            stream.bytes(bytes)?;
        }
        Ok(())
    })?;
    rename(data_file, &data_path)?;
    rename(model_file, path).inspect_err(|_| drop(fs::remove_file(&data_path)))
}

/// The message, and the data file that it refers to; an empty layout where everything is inline.
fn lay_out(model: &Model, location: &str, options: &WriteOptions) -> Result<(ModelProto, Layout)> {
    let mut layout = Layout::new(location.to_string());
    if options.external == Some(false) {
        let message = export::export(model, &mut Place::Inline)?;
        return match message.encoded_len() {
            0..=INLINE_LIMIT => Ok((message, layout)),
            len => Err(Error::usage(format!("the model would be one message of {len} bytes, which protobuf does not read; let its tensors go to a data file"))),
        };
    }
    let at_least = (options.external == Some(true)).then_some(EXTERNAL_AT_LEAST);
    let message = export::export(model, &mut Place::File { layout: &mut layout, at_least })?;
    if message.encoded_len() <= INLINE_LIMIT {
        return Ok((message, layout));
    }
    let mut layout = Layout::new(location.to_string());
    let message = export::export(model, &mut Place::File { layout: &mut layout, at_least: Some(EXTERNAL_AT_LEAST) })?;
    Ok((message, layout))
}

/// Fills a temporary file beside `path`, which disappears again unless it is renamed.
fn temporary(path: &Path, fill: impl FnOnce(&mut Stream<io::BufWriter<File>>) -> Result<()>) -> Result<NamedTempFile> {
    let fail = |e: io::Error| cannot_write(path, &e);
    let dir = folder(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".requant-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(&dir).map_err(fail)?;
    let mut sink = io::BufWriter::new(file.reopen().map_err(fail)?);
    fill(&mut Stream { sink: &mut sink, fail: &fail })?;
    sink.flush().map_err(fail)?;
    Ok(file)
}

fn rename(file: NamedTempFile, path: &Path) -> Result<()> {
    file.persist(path).map(drop).map_err(|e| cannot_write(path, &e.error))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn cannot_write(path: &Path, e: &io::Error) -> Error {
    let dir = folder(path);
    match e.kind() {
        _ if !dir.is_dir() => Error::usage(format!("{} cannot be written: folder {} does not exist; create it first", path.display(), dir.display())),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::usage(format!("{} cannot be written: no permission to write into {}; choose another folder", path.display(), dir.display()))
        }
        io::ErrorKind::StorageFull => Error::failed(format!("{} cannot be written: the disk is full", path.display())),
        _ => Error::failed(format!("{} cannot be written: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{add, initializer, read as import};
    use super::super::{ReadOptions, encode, read};
    use super::*;
    use crate::graph::Storage;

    /// y = x + w with another initializer of 8 KiB.
    fn model() -> Model {
        let mut p = add();
        let g = p.graph.as_mut().unwrap();
        g.initializer.push(initializer("big", &[2048]));
        g.initializer.push(initializer("none", &[0]));
        import(p).unwrap()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn storage(m: &Model, name: &str) -> Storage {
        m.graph.value(m.graph.find_value(name).unwrap()).constant.as_ref().unwrap().storage
    }

    const EXTERNAL: WriteOptions = WriteOptions { external: Some(true) };

    #[test]
    fn inline_files_are_the_encoded_model() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        write(&model(), &path, &WriteOptions::default()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), encode(&model()).unwrap());
        assert_eq!(files(dir.path()), ["m.onnx"]);
        #[cfg(unix)]
        assert_ne!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o044, 0);
    }

    #[test]
    fn a_data_file_holds_the_large_tensors_and_keeps_doing_so() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.onnx"), dir.path().join("b.onnx"));
        write(&model(), &a, &EXTERNAL).unwrap();
        assert_eq!(files(dir.path()), ["a.onnx", "a.onnx.data"]);
        assert_eq!(fs::metadata(dir.path().join("a.onnx.data")).unwrap().len(), 8192);
        let first = read(&a, &ReadOptions::default()).unwrap();
        assert_eq!((storage(&first, "big"), storage(&first, "w")), (Storage::External, Storage::Raw));
        write(&first, &b, &WriteOptions::default()).unwrap();
        let second = read(&b, &ReadOptions::default()).unwrap();
        assert_eq!(first, second);
        assert_eq!(encode(&second).unwrap(), encode(&model()).unwrap());
        write(&first, &dir.path().join("c.onnx"), &WriteOptions { external: Some(false) }).unwrap();
        assert_eq!(files(dir.path()), ["a.onnx", "a.onnx.data", "b.onnx", "b.onnx.data", "c.onnx"]);
    }

    #[test]
    fn an_empty_tensor_that_lay_in_a_data_file_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = model();
        let none = m.graph.find_value("none").unwrap();
        m.graph.value_mut(none).constant.as_mut().unwrap().storage = Storage::External;
        let path = dir.path().join("m.onnx");
        write(&m, &path, &WriteOptions::default()).unwrap();
        assert_eq!(read(&path, &ReadOptions::default()).unwrap(), m);
    }

    #[test]
    fn near_the_limit_of_protobuf_tensors_go_to_a_data_file_by_themselves() {
        use crate::tensor::{DType, Tensor};
        let mut m = model();
        // Zeros that the system never has to provide: nothing reads them.
        let zeros = Tensor::new(DType::U8, vec![INLINE_LIMIT], vec![0; INLINE_LIMIT].into()).unwrap();
        m.graph.add_constant("huge", zeros);
        let (message, layout) = lay_out(&m, "m.data", &WriteOptions::default()).unwrap();
        assert!(message.encoded_len() < 1000);
        assert_eq!(layout.pieces.iter().map(|p| p.1.len()).collect::<Vec<_>>(), [8192, INLINE_LIMIT]);
        assert!(lay_out(&m, "m.data", &WriteOptions { external: Some(false) }).is_err());
    }

    #[test]
    fn a_file_that_is_read_from_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        write(&model(), &path, &EXTERNAL).unwrap();
        let before = fs::read(&path).unwrap();
        let m = read(&path, &ReadOptions::default()).unwrap();
        let e = write(&m, &dir.path().join(".").join("m.onnx"), &EXTERNAL).unwrap_err();
        assert!(e.to_string().contains("is being read from"), "{e}");
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(m);
        write(&model(), &path, &EXTERNAL).unwrap();
    }

    #[test]
    fn places_that_cannot_be_written_are_one_sentence_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        // The system's own folder of devices is read-only even to root.
        let cases: [(&Path, &str); 5] = [
            (&dir.path().join("none/m.onnx"), "does not exist; create it first"),
            (&dir.path().join("file/m.onnx"), "does not exist; create it first"),
            (&dir.path().join("folder"), "is a folder"),
            (Path::new("/"), "no file name"),
            (Path::new("/sys/m.onnx"), "no permission to write into /sys"),
        ];
        for (path, words) in cases {
            if path.starts_with("/sys") && !Path::new("/sys/devices").exists() {
                continue;
            }
            for options in [EXTERNAL, WriteOptions::default()] {
                let e = write(&model(), path, &options).unwrap_err();
                assert!(e.to_string().contains(words), "{e}");
                assert_eq!(e.exit_code(), 2);
            }
        }
        assert_eq!(files(dir.path()), ["file", "folder"]);
        assert!(files(&dir.path().join("folder")).is_empty());
    }

    #[test]
    fn what_fails_midway_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        temporary(&path, |s| s.bytes(b"half").and(Err::<(), _>(Error::Interrupted))).unwrap_err();
        // The model's own place is taken by a folder after the data file is there.
        fs::create_dir(&path).unwrap();
        let data = temporary(&dir.path().join("d"), |s| s.bytes(b"data")).unwrap();
        rename(data, &path).unwrap_err();
        assert_eq!(files(dir.path()), ["m.onnx"]);
    }
}
