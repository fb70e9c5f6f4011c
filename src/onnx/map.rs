//! Files as bytes, by memory map: the program's only `unsafe`.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use bytes::Bytes;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// How many maps of each file are alive.
static OPEN: Mutex<BTreeMap<PathBuf, usize>> = Mutex::new(BTreeMap::new());

/// A mapped file; counted in `OPEN` while it lives.
struct Mapped {
    map: Mmap,
    path: PathBuf,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut open = open();
        if let Some(count) = open.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.path);
            }
        }
    }
}

fn open() -> MutexGuard<'static, BTreeMap<PathBuf, usize>> {
    OPEN.lock().unwrap_or_else(|e| e.into_inner())
}

/// The bytes of a regular file, mapped. They stay valid as long as a clone or slice of them lives.
pub fn map(path: &Path) -> Result<Bytes> {
    let fail = |e: std::io::Error| Error::usage(format!("{} cannot be read: {e}", path.display()));
    let path = fs::canonicalize(path).map_err(fail)?;
    if fs::metadata(&path).map_err(fail)?.len() == 0 {
        return Ok(Bytes::new());
    }
    let file = File::open(&path).map_err(fail)?;
    // SAFETY: the map is private and read-only. What remains is another process that cuts or rewrites the file while we read it;
    // requant itself never writes into an existing file, it renames a new one over it, which leaves the mapped one as it was.
    let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
    *open().entry(path.clone()).or_default() += 1;
    Ok(Bytes::from_owner(Mapped { map, path }))
}

/// Whether bytes of this file are in use by a map.
pub fn is_mapped(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|p| open().contains_key(&p))
}
