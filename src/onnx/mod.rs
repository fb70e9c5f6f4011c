//! ONNX files: import and export. Protobuf ends here.
//!
//! Nothing is lost: what the graph has no field for is kept, encoded, in the `extra` of the model, graph, node, value, attribute or constant it belongs to.

mod attr;
mod export;
mod external;
mod hash;
mod import;
mod map;
mod proto;
mod rest;
mod stream;
mod tensor;
mod types;
mod wire;
mod write;

pub use hash::sha256_file;
pub use write::{WriteOptions, write};

use crate::error::{At, Error, Result};
use crate::graph::Model;
use bytes::Bytes;
use prost::Message;
use std::path::Path;

/// How to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// Go on where the file has fields that ONNX 1.23 does not know; they are lost ([`unknown_fields`] lists them). Otherwise that is an error.
    pub drop_unknown: bool,
}

/// Reads a model file. The file and its external data are mapped: tensors are slices of the maps, nothing large is allocated.
///
/// Fails, in one sentence that starts with the path, on what is not a complete ONNX model, and on external data that is missing, short or outside the model's folder.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Model> {
    decode(open(path)?, path.parent(), options).at(|| path.display())
}

/// The bytes of a file that may be a model.
fn open(path: &Path) -> Result<Bytes> {
    let name = path.display();
    if path.is_dir() {
        return Err(Error::usage(format!("{name} is a folder; name the .onnx file in it")));
    }
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::usage(format!("{name} does not exist"))),
        Err(e) => Err(Error::usage(format!("{name} cannot be read: {e}"))),
        Ok(m) if !m.is_file() => Err(Error::usage(format!("{name} is not a file; give the path of an .onnx file"))),
        Ok(_) => map::map(path),
    }
}

/// Decodes a model; external data is looked for in `dir`. Errors do not name the file.
pub fn decode(bytes: Bytes, dir: Option<&Path>, options: &ReadOptions) -> Result<Model> {
    let message = message(bytes.clone())?;
    if !options.drop_unknown {
        let unknown = wire::unknown_fields(&bytes);
        if let Some(first) = unknown.first() {
            let n = unknown.len() - 1;
            let more = if n == 0 { String::new() } else { format!(" and {n} more") };
            return Err(Error::usage(format!("it has fields that ONNX 1.23 does not define ({first}{more}); --drop-unknown leaves them out")));
        }
    }
    import::import(message, &mut external::Files::of(dir))
}

/// The fields of a model file that ONNX 1.23 does not define, as `model.graph.node: field 77`: what `drop_unknown` drops.
pub fn unknown_fields(path: &Path) -> Result<Vec<String>> {
    let bytes = open(path)?;
    message(bytes.clone()).at(|| path.display())?;
    Ok(wire::unknown_fields(&bytes).into_iter().collect())
}

/// Name and version of the program that wrote a model, as the file states them; empty if it does not.
pub fn producer(model: &Model) -> Result<String> {
    let rest: proto::ModelProto = rest::unpack_rest(&model.extra)?;
    Ok(format!("{} {}", rest.producer_name(), rest.producer_version()).trim().to_string())
}

fn message(bytes: Bytes) -> Result<proto::ModelProto> {
    let message = proto::ModelProto::decode(bytes.clone());
    message.map_err(|e| Error::usage(what_it_is(&bytes).unwrap_or_else(|| format!("it is not an ONNX model ({e})")))).and_then(|m| match bytes.is_empty() {
        true => Err(Error::usage("it is empty; export or download the model again")),
        false => Ok(m),
    })
}

/// What a file that does not decode seems to be, and what to do.
fn what_it_is(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(512)];
    if head.starts_with(b"version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the model; run git lfs pull".to_string());
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some("it is a zip archive, perhaps a PyTorch checkpoint, not an ONNX model; export it to ONNX first".to_string());
    }
    if !head.iter().any(|b| b.is_ascii_control() && !b.is_ascii_whitespace()) {
        return Some("it is text, not an ONNX model; give the .onnx file".to_string());
    }
    let missing = wire::missing_bytes(bytes)?;
    Some(format!("it is cut short: at least {missing} bytes are missing at its end; export or download the model again"))
}

/// A model as one message with everything inline. FakeQuant nodes go out as domain `requant`, which only our engine reads.
pub fn encode(model: &Model) -> Result<Vec<u8>> {
    Ok(export::export(model, &mut tensor::Place::Inline)?.encode_to_vec())
}
