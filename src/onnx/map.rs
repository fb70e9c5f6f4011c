//! Files as bytes, by memory map: the program's only `unsafe`.

#![allow(unsafe_code)]

use crate::error::{Error, Result};
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The maps that bytes may still be in use of.
static OPEN: Mutex<Vec<Weak<Mapped>>> = Mutex::new(Vec::new());

struct Mapped {
    map: Mmap,
    path: PathBuf,
}

/// One owner of a mapped file: what [`Bytes`] keep alive.
struct Owner(Arc<Mapped>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

fn open() -> MutexGuard<'static, Vec<Weak<Mapped>>> {
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
    let mapped = Arc::new(Mapped { map, path });
    let mut open = open();
    open.retain(|m| m.strong_count() > 0);
    open.push(Arc::downgrade(&mapped));
    Ok(Bytes::from_owner(Owner(mapped)))
}

/// Whether bytes of this file are in use by a map.
pub fn is_mapped(path: &Path) -> bool {
    fs::canonicalize(path).is_ok_and(|p| open().iter().filter_map(Weak::upgrade).any(|m| m.path == p))
}

/// Tells the system that all of `bytes` is about to be read: one request instead of a page fault every few pages. For bytes of no map it does nothing.
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    for mapped in open().iter().filter_map(Weak::upgrade) {
        let offset = (bytes.as_ptr() as usize).wrapping_sub(mapped.map.as_ptr() as usize);
        if offset < mapped.map.len() {
            // Systems that do not know the request fault page by page.
            let _ = mapped.map.advise_range(memmap2::Advice::PopulateRead, offset, bytes.len().min(mapped.map.len() - offset));
            return;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}
