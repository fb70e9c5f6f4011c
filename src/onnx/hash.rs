//! Hashes of files, as reports and metadata state them.

use crate::error::{Error, Result};
use crate::graph::{Graph, Storage};
use crate::interrupt;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// SHA-256 of a file's contents in lower-case hexadecimal; read piece by piece.
pub fn sha256_file(path: &Path) -> Result<String> {
    let fail = |e: std::io::Error| Error::usage(format!("{} cannot be read: {e}", path.display()));
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupt::check()?;
        match file.read(&mut buffer).map_err(fail)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// SHA-256 by which a model is known: that of its file, or, where tensors lie in a data file, that of the file's hash and those tensors' bytes.
pub fn sha256_model(path: &Path, graph: &Graph) -> Result<String> {
    fn external(g: &Graph, hash: &mut Sha256) -> bool {
        let mut any = false;
        for constant in g.values().filter_map(|(_, v)| v.constant.as_ref()).filter(|c| c.storage == Storage::External) {
            hash.update(constant.tensor.bytes());
            any = true;
        }
        g.nodes().flat_map(|(_, n)| n.bodies()).fold(any, |any, body| external(body.1, hash) || any)
    }
    let file = sha256_file(path)?;
    let mut hash = Sha256::new_with_prefix(&file);
    Ok(if external(graph, &mut hash) { hexadecimal(&hash.finalize()) } else { file })
}

/// SHA-256 of bytes in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
