//! ONNX files: import and export. Protobuf ends here.
//!
//! Nothing is lost: what the graph has no field for is kept, encoded, in the `extra` of the model, graph, node, value, attribute or constant it belongs to.

mod attr;
mod export;
mod external;
mod hash;
mod import;
mod map;
mod older;
mod opset;
mod proto;
mod rest;
#[cfg(test)]
mod sample;
mod spelled;
mod stream;
mod tensor;
mod types;
mod wire;
mod write;

pub use hash::{sha256, sha256_file, sha256_model};
pub use older::lower_opset;
pub use opset::raise_opset;
pub use spelled::{attention_exactly, is_spelled, spell_out};
pub use write::{WriteOptions, write};

use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::tensor::Tensor;
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

/// Says which program wrote a model.
pub fn set_producer(model: &mut Model, name: &str, version: &str) -> Result<()> {
    let mut rest: proto::ModelProto = rest::unpack_rest(&model.extra)?;
    (rest.producer_name, rest.producer_version) = (Some(name.into()), Some(version.into()));
    model.extra = rest::pack_rest(&rest);
    Ok(())
}

/// One tensor of a test set (`input_0.pb`), with its name.
pub fn read_tensor(path: &Path) -> Result<(String, Tensor)> {
    let bytes = open(path)?;
    let read = || {
        let mut message = proto::TensorProto::decode(bytes).map_err(|e| Error::usage(format!("it is not a tensor ({e}); write it with onnx.numpy_helper")))?;
        let name = message.name.take().unwrap_or_default();
        Ok((name, tensor::import(message, &mut external::Files::of(path.parent()))?.tensor))
    };
    read().at(|| path.display())
}

fn message(bytes: Bytes) -> Result<proto::ModelProto> {
    if bytes.is_empty() {
        return Err(Error::usage("it is empty; export or download the model again"));
    }
    let why = match proto::ModelProto::decode(bytes.clone()) {
        Ok(message) if message.graph.is_some() => return Ok(message),
        Ok(_) => "it has no graph".to_string(),
        Err(e) => e.to_string(),
    };
    Err(Error::usage(what_it_is(&bytes).unwrap_or_else(|| format!("it is not an ONNX model ({why}); export the model to ONNX first"))))
}

/// What bytes that are no model seem to be, and what to do.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The error of reading a file with these contents.
    fn refused(contents: &[u8], words: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        fs::write(&path, contents).unwrap();
        check(&path, words);
    }

    fn check(path: &Path, words: &[&str]) {
        let e = read(path, &ReadOptions::default()).expect_err("it is refused");
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().starts_with(&path.display().to_string()), "{e}");
        words.iter().for_each(|w| assert!(e.to_string().contains(w), "{w:?} is missing in: {e}"));
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let plain = sample::add().encode_to_vec();
        refused(b"", &["is empty"]);
        refused(b"hello, this is text\n", &["is text"]);
        refused(b"{\"a\": 1}", &["is text"]);
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", &["Git LFS"]);
        refused(b"PK\x03\x04\x14\0\0\0", &["zip archive"]);
        refused(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &["not an ONNX model"]);
        refused(&[0; 64], &["not an ONNX model"]);
        refused(&[8, 8], &["no graph"]);
        refused(&plain[..plain.len() / 2], &["is cut short"]);
        refused(&plain[..plain.len() - 4], &["no operator set"]);
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), &["is a folder"]);
        check(&dir.path().join("none.onnx"), &["does not exist"]);
    }

    #[test]
    fn unknown_fields_are_refused_or_dropped() {
        let plain = sample::add().encode_to_vec();
        let more = [&plain[..], &[0xea, 0x3e, 2, 1, 1]].concat();
        refused(&more, &["model: field 1005", "--drop-unknown"]);
        let dropped = decode(more.clone().into(), None, &ReadOptions { drop_unknown: true }).unwrap();
        assert_eq!(encode(&dropped).unwrap(), plain);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("m.onnx"), more).unwrap();
        assert_eq!(unknown_fields(&dir.path().join("m.onnx")).unwrap(), ["model: field 1005"]);
    }

    #[test]
    fn a_model_of_our_own_goes_out_and_comes_back() {
        use crate::graph::{Dim, Node, Op, Type};
        use crate::tensor::{DType, Tensor};
        let mut m = Model { ir_version: 10, opsets: vec![(String::new(), 21)], metadata: vec![("by".into(), "requant".into())], ..Model::default() };
        let g = &mut m.graph;
        let (x, h, y) = (g.add_value("x"), g.add_value("h"), g.add_value("y"));
        let w = g.add_constant("w", Tensor::of_f32(&[2], vec![1.0, 2.0]));
        for v in [x, h, y] {
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("n".into()), Dim::Known(2)]) };
        }
        (g.inputs, g.outputs, g.value_info) = (vec![x], vec![y], vec![h]);
        g.add_node(Node::new(Op::Add, "sum"), &[Some(x), Some(w)], &[Some(h)]);
        g.add_node(Node::fake_quant(crate::quant::QuantizerId(7), "q"), &[Some(h)], &[Some(y)]);
        let p = proto::ModelProto::decode(&encode(&m).unwrap()[..]).unwrap().graph.unwrap();
        assert_eq!((p.node[1].domain(), p.node[1].op_type(), p.node[1].attribute[0].i), ("requant", "FakeQuant", Some(7)));
        assert_eq!((p.value_info.len(), p.value_info[0].name()), (1, "h"));
        let back = decode(encode(&m).unwrap().into(), None, &ReadOptions::default()).unwrap();
        assert_eq!(encode(&back).unwrap(), encode(&m).unwrap());
        assert_eq!((back.ir_version, back.opset(""), back.metadata), (10, Some(21), m.metadata));
    }

    /// Every prefix, and every byte changed in four ways, of a small model with a bit of everything: an error or a model, never a panic.
    #[test]
    fn damaged_bytes_do_not_panic() {
        let mut p = sample::add();
        let g = p.graph.as_mut().unwrap();
        let mut branch = sample::graph(vec![sample::node("Relu", &["x"], &["y"])]);
        branch.input.clear();
        let attribute = proto::AttributeProto { name: sample::text("b"), r#type: Some(5), g: Some(branch), ..Default::default() };
        g.node.push(proto::NodeProto { attribute: vec![attribute], ..sample::node("If", &["x"], &["z"]) });
        g.value_info.push(sample::info("z", &[-1]));
        g.initializer.push(proto::TensorProto { name: sample::text("i"), data_type: Some(22), dims: vec![3], int32_data: vec![1, 2], ..Default::default() });
        let bytes = p.encode_to_vec();
        let try_it = |bytes: Vec<u8>| {
            if let Ok(m) = decode(bytes.into(), None, &ReadOptions { drop_unknown: true }) {
                encode(&m).unwrap();
            }
        };
        for i in 0..bytes.len() {
            try_it(bytes[..i].to_vec());
            for change in [0x01, 0x08, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[i] ^= change;
                try_it(bytes);
            }
        }
    }

    #[test]
    fn a_hash_is_the_known_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "abc").unwrap();
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&dir.path().join("f")).unwrap(), want);
    }
}
