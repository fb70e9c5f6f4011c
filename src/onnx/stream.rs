//! A message written piece by piece: the same bytes as encoding it whole, without holding them.

use super::map;
use super::proto::{GraphProto, ModelProto, TensorProto};
use crate::error::Result;
use crate::interrupt;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::io::{self, Write};
use std::mem::take;

/// Bytes written at once, and between two looks at the interrupt. Much larger requests are slower on Linux.
const PIECE: usize = 2 << 20;

/// Tensors from this size on are worth a request to the system.
const PREFETCH: usize = 1 << 18;

/// A sink that remembers what the system said when it failed.
pub struct Stream<'a, W: Write> {
    pub sink: &'a mut W,
    pub fail: &'a dyn Fn(io::Error) -> crate::Error,
}

impl<W: Write> Stream<'_, W> {
    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            interrupt::check()?;
            if bytes.len() >= PREFETCH {
                map::prefetch(piece);
            }
            self.sink.write_all(piece).map_err(self.fail)?;
        }
        Ok(())
    }

    fn fields(&mut self, message: &impl Message) -> Result<()> {
        self.bytes(&message.encode_to_vec())
    }

    /// The head of a length-delimited field.
    fn open(&mut self, number: u32, len: usize) -> Result<()> {
        let mut head = Vec::with_capacity(16);
        encode_key(number, WireType::LengthDelimited, &mut head);
        encode_varint(len as u64, &mut head);
        self.bytes(&head)
    }

    /// A whole model. Fields go out by number, as encoders do.
    pub fn model(&mut self, mut p: ModelProto) -> Result<()> {
        let before = ModelProto {
            ir_version: p.ir_version.take(),
            producer_name: p.producer_name.take(),
            producer_version: p.producer_version.take(),
            domain: p.domain.take(),
            model_version: p.model_version.take(),
            doc_string: p.doc_string.take(),
            ..ModelProto::default()
        };
        self.fields(&before)?;
        if let Some(graph) = p.graph.take() {
            self.open(7, graph.encoded_len())?;
            self.graph(graph)?;
        }
        self.fields(&p)
    }

    fn graph(&mut self, mut p: GraphProto) -> Result<()> {
        for node in take(&mut p.node) {
            self.open(1, node.encoded_len())?;
            self.fields(&node)?;
        }
        self.fields(&GraphProto { name: p.name.take(), ..GraphProto::default() })?;
        for tensor in take(&mut p.initializer) {
            self.open(5, tensor.encoded_len())?;
            self.tensor(tensor)?;
        }
        self.fields(&p)
    }

    fn tensor(&mut self, mut p: TensorProto) -> Result<()> {
        let raw: Option<Bytes> = p.raw_data.take();
        let behind = TensorProto {
            doc_string: p.doc_string.take(),
            external_data: take(&mut p.external_data),
            data_location: p.data_location.take(),
            double_data: take(&mut p.double_data),
            uint64_data: take(&mut p.uint64_data),
            metadata_props: take(&mut p.metadata_props),
            ..TensorProto::default()
        };
        self.fields(&p)?;
        if let Some(raw) = raw {
            self.open(9, raw.len())?;
            self.bytes(&raw)?;
        }
        self.fields(&behind)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{add, entry, info, text};
    use super::*;

    #[test]
    fn pieces_make_the_bytes_of_the_whole() {
        let mut p = add();
        (p.doc_string, p.model_version, p.metadata_props) = (text("d"), Some(3), vec![entry("a", "b")]);
        let g = p.graph.as_mut().unwrap();
        (g.doc_string, g.value_info) = (text("g"), vec![info("w", &[2, 3])]);
        let mut typed = g.initializer[0].clone();
        (typed.raw_data, typed.double_data, typed.float_data, typed.data_location) = (None, vec![1.0], vec![2.0], Some(0));
        let mut raw = typed.clone();
        (raw.raw_data, raw.doc_string) = (Some(Bytes::from_static(b"raw")), text("t"));
        g.initializer.extend([typed, raw]);
        let mut out = Vec::new();
        Stream { sink: &mut out, fail: &|e| crate::Error::failed(e) }.model(p.clone()).unwrap();
        assert_eq!(out, p.encode_to_vec());
    }
}
