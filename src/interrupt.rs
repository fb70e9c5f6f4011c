//! Ctrl-C: long loops ask here and return [`Error::Interrupted`], so that temporary files are removed on the way out.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static FLAG: AtomicBool = AtomicBool::new(false);

/// Asks every loop to stop.
pub fn request() {
    FLAG.store(true, Ordering::SeqCst);
}

/// Fails once an interrupt was requested.
pub fn check() -> Result<()> {
    if FLAG.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
