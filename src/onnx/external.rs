//! Tensors that lie in files beside the model: reading them, and laying them out anew.

use super::map;
use super::proto::{StringStringEntryProto, TensorProto};
use crate::error::{Error, Result};
use crate::tensor::DType;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

/// Tensors in a data file start at multiples of this: a page, so that they can be mapped.
const ALIGN: u64 = 4096;

/// The data files of one model, each mapped once.
pub struct Files {
    /// The model's folder, with symbolic links resolved; `None` for a model that is no file.
    dir: Option<PathBuf>,
    maps: BTreeMap<PathBuf, Bytes>,
}

impl Files {
    pub fn of(dir: Option<&Path>) -> Self {
        let dir = dir.map(|d| if d.as_os_str().is_empty() { Path::new(".") } else { d });
        Files { dir: dir.and_then(|d| d.canonicalize().ok()), maps: BTreeMap::new() }
    }

    /// Takes location, offset and length out of `tensor` and hands out the `want` bytes there. Errors name the file, not the tensor.
    pub fn take(&mut self, tensor: &mut TensorProto, want: usize) -> Result<Bytes> {
        let mut take = |key: &str| {
            let at = tensor.external_data.iter().position(|e| e.key() == key)?;
            tensor.external_data.remove(at).value
        };
        let (location, offset, length) = (take("location"), take("offset"), take("length"));
        let location = location.filter(|l| !l.is_empty()).ok_or_else(|| Error::usage("its external data has no location; export the model again"))?;
        let number = |what: &str, text: Option<String>| {
            text.map(|t| t.parse::<u64>().map_err(|_| Error::usage(format!("the {what} of its external data in {location:?} is {t:?}, which is no number"))))
                .transpose()
        };
        let (offset, length) = (number("offset", offset)?.unwrap_or(0), number("length", length)?);
        if length.is_some_and(|l| l != want as u64) {
            let length = length.unwrap_or(0);
            return Err(Error::usage(format!("its type and shape need {want} bytes, but {length} are declared in external file {location:?}")));
        }
        let file = self.open(&location)?;
        let end = offset.checked_add(want as u64).filter(|&end| end <= file.len() as u64);
        let Some(end) = end else {
            let len = file.len();
            return Err(Error::usage(format!(
                "external file {location:?} has {len} bytes, but the tensor's {want} start at byte {offset}; it is cut short or belongs to another model"
            )));
        };
        Ok(file.slice(offset as usize..end as usize))
    }

    /// Maps the file at `location`, which must lie inside the model's folder.
    fn open(&mut self, location: &str) -> Result<Bytes> {
        let fail = |why: &str| Error::usage(format!("external file {location:?} {why}"));
        let dir = self.dir.as_ref().ok_or_else(|| fail("cannot be found, because the model was not read from a folder"))?;
        let relative = Path::new(location);
        if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) || location.contains(['\\', '\0']) {
            return Err(fail("must be a path inside the model's folder, relative and without \"..\""));
        }
        let path = dir.join(relative).canonicalize().map_err(|_| fail(&format!("does not exist in {}; put it beside the model", dir.display())))?;
        if !path.starts_with(dir) {
            return Err(fail("is a link that leaves the model's folder; put the file itself there"));
        }
        if !path.is_file() {
            return Err(fail("is not a file"));
        }
        if let Some(bytes) = self.maps.get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map::map(&path)?;
        self.maps.insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// A data file to be written: which bytes go where.
pub struct Layout {
    /// The data file's name as the model refers to it.
    pub location: String,
    /// Offsets and bytes; they do not overlap.
    pub pieces: Vec<(u64, Bytes)>,
    /// Offset by address and length: tensors that share bytes in memory share them in the file.
    placed: HashMap<(usize, usize), u64>,
    end: u64,
}

impl Layout {
    pub fn new(location: String) -> Self {
        Layout { location, pieces: Vec::new(), placed: HashMap::new(), end: 0 }
    }

    /// Gives `bytes` a place and makes `tensor` refer to it.
    pub fn put(&mut self, tensor: &mut TensorProto, bytes: &Bytes) {
        let key = (bytes.as_ptr() as usize, bytes.len());
        let offset = *self.placed.entry(key).or_insert_with(|| {
            // Nothing to store: the start of the file will do, even of an empty one.
            let offset = if bytes.is_empty() { 0 } else { self.end.next_multiple_of(ALIGN) };
            self.end = self.end.max(offset + bytes.len() as u64);
            self.pieces.push((offset, bytes.clone()));
            offset
        });
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.to_string()), value: Some(value) };
        let place = [entry("location", self.location.clone()), entry("offset", offset.to_string()), entry("length", bytes.len().to_string())];
        tensor.external_data.splice(0..0, place);
        tensor.data_location = Some(super::proto::tensor_proto::DataLocation::External as i32);
    }
}

/// Whether elements of `dtype` can lie in a data file.
pub fn can_be_external(dtype: DType) -> bool {
    dtype != DType::Str
}

#[cfg(test)]
mod tests {
    use super::super::sample::entry;
    use super::*;
    use std::fs;

    /// What comes of a tensor of `want` bytes with these entries, in a folder with `w.bin` of 100 bytes.
    fn take(entries: &[(&str, &str)], want: usize) -> Result<Bytes> {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("model");
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::write(dir.path().join("secret.bin"), [7; 100]).unwrap();
        fs::write(inside.join("w.bin"), (0..100).collect::<Vec<u8>>()).unwrap();
        fs::write(inside.join("sub/w.bin"), [9; 100]).unwrap();
        fs::write(inside.join("empty.bin"), []).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret.bin", inside.join("link.bin")).unwrap();
        let mut tensor = TensorProto { external_data: entries.iter().map(|(k, v)| entry(k, v)).collect(), ..Default::default() };
        Files::of(Some(&inside)).take(&mut tensor, want)
    }

    fn refused(entries: &[(&str, &str)], words: &[&str]) {
        let e = take(entries, 10).expect_err("it is refused");
        assert_eq!(e.exit_code(), 2);
        words.iter().for_each(|w| assert!(e.to_string().contains(w), "{w:?} is missing in: {e}"));
    }

    #[test]
    fn places_in_a_file() {
        assert_eq!(take(&[("location", "w.bin")], 10).unwrap()[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(take(&[("location", "./w.bin"), ("offset", "98"), ("length", "2")], 2).unwrap()[..], [98, 99]);
        assert_eq!(take(&[("length", "1"), ("location", "sub/w.bin"), ("checksum", "0")], 1).unwrap()[..], [9]);
        assert!(take(&[("location", "empty.bin")], 0).unwrap().is_empty());
    }

    #[test]
    fn hostile_paths_are_refused() {
        for path in ["../secret.bin", "sub/../../secret.bin", "sub/../w.bin", "/etc/passwd", "..", "sub\\..\\w.bin", "w.bin\0"] {
            refused(&[("location", path)], &["inside the model's folder"]);
        }
        refused(&[("location", "link.bin")], &["link.bin", "leaves the model's folder"]);
        refused(&[("location", "none.bin")], &["none.bin", "does not exist"]);
        refused(&[("location", "sub")], &["is not a file"]);
        refused(&[("location", "")], &["no location"]);
        refused(&[], &["no location"]);
    }

    #[test]
    fn hostile_offsets_and_lengths_are_refused() {
        refused(&[("location", "w.bin"), ("offset", "91")], &["w.bin", "100 bytes", "byte 91"]);
        refused(&[("location", "w.bin"), ("offset", "18446744073709551615")], &["100 bytes"]);
        refused(&[("location", "w.bin"), ("offset", "-1")], &["offset", "\"-1\""]);
        refused(&[("location", "w.bin"), ("offset", "99999999999999999999")], &["no number"]);
        refused(&[("location", "w.bin"), ("length", "9")], &["need 10 bytes", "9 are declared"]);
        refused(&[("location", "w.bin"), ("length", "1e3")], &["length"]);
        refused(&[("location", "empty.bin")], &["0 bytes"]);
    }

    #[test]
    fn a_layout_is_aligned_and_shares_what_is_shared() {
        let mut layout = Layout::new("m.data".into());
        let (a, b) = (Bytes::from(vec![1; 5000]), Bytes::from(vec![2; 10]));
        let mut places = Vec::new();
        for bytes in [&a, &b, &a.clone(), &Bytes::new(), &b] {
            let mut t = TensorProto { external_data: vec![entry("checksum", "x")], ..Default::default() };
            layout.put(&mut t, bytes);
            assert_eq!((t.external_data[0].value(), t.external_data[3].key(), t.data_location), ("m.data", "checksum", Some(1)));
            places.push((t.external_data[1].value().to_string(), t.external_data[2].value().to_string()));
        }
        let want = [("0", "5000"), ("8192", "10"), ("0", "5000"), ("0", "0"), ("8192", "10")];
        assert!(places.iter().zip(want).all(|(p, w)| (p.0.as_str(), p.1.as_str()) == w), "{places:?}");
        assert_eq!(layout.pieces.len(), 3);
    }
}
