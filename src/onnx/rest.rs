//! What remains of a message once the modelled fields are taken out, as the graph's `extra` bytes.

use crate::error::{Error, Result};
use bytes::Bytes;
use prost::Message;

/// The message as bytes; none where nothing remains.
pub fn pack_rest(message: &impl Message) -> Bytes {
    match message.encoded_len() {
        0 => Bytes::new(),
        _ => message.encode_to_vec().into(),
    }
}

/// The message that `extra` was made from.
pub fn unpack_rest<M: Message + Default>(extra: &Bytes) -> Result<M> {
    M::decode(extra.clone()).map_err(|e| Error::failed(format!("what was kept of the input file cannot be read again: {e}")))
}

/// Takes a text out of its field. An empty one stays: that it was written although empty is part of what remains.
pub fn take_text(field: &mut Option<String>) -> String {
    field.take_if(|t| !t.is_empty()).unwrap_or_default()
}

/// Puts a text back; an empty one leaves the field as it is, if that is empty too.
pub fn put_text(field: &mut Option<String>, text: &str) {
    if !text.is_empty() {
        *field = Some(text.to_string());
    }
}
