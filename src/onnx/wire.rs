//! Protobuf's wire format, as far as prost keeps it to itself: fields the schema does not know, and where a file was cut.

struct Message {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    number: u32,
    name: &'static str,
    /// Index of the field's message in `MESSAGES`; `None` for scalars.
    message: Option<usize>,
}

mod table {
    use super::{Field, Message};
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
use std::collections::BTreeSet;
use table::MESSAGES;

/// Field number and contents of the next field; `Err` with the number of missing bytes where it reaches beyond the end.
type Next<'a> = Result<(u32, &'a [u8], bool), usize>;

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Reads one field: its number, its contents, and whether these are length-delimited.
fn field<'a>(bytes: &mut &'a [u8]) -> Next<'a> {
    let key = varint(bytes).ok_or(1usize)?;
    let number = (key >> 3) as u32;
    let before = *bytes;
    let len = match key & 7 {
        0 => {
            varint(bytes).ok_or(1usize)?;
            let len = before.len() - bytes.len();
            *bytes = before;
            len
        }
        1 => 8,
        5 => 4,
        2 => usize::try_from(varint(bytes).ok_or(1usize)?).unwrap_or(usize::MAX),
        // A group. Nothing in ONNX is one, so what stands behind its start is not looked at.
        3 => bytes.len(),
        _ => 0,
    };
    if len > bytes.len() {
        return Err(len - bytes.len());
    }
    let (contents, rest) = bytes.split_at(len);
    *bytes = rest;
    Ok((number, contents, key & 7 == 2))
}

/// Every place of an encoded ModelProto where the schema knows no such field, as `graph.node: field 77`. `bytes` is a message that prost has decoded.
pub fn unknown_fields(bytes: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let root = MESSAGES.iter().position(|m| m.name == "ModelProto").expect("the schema has ModelProto");
    search(bytes, root, &mut vec!["model"], &mut found);
    found
}

fn search(mut bytes: &[u8], message: usize, path: &mut Vec<&'static str>, found: &mut BTreeSet<String>) {
    while !bytes.is_empty() {
        let Ok((number, contents, delimited)) = field(&mut bytes) else { return };
        match MESSAGES[message].fields.iter().find(|f| f.number == number) {
            None => {
                found.insert(format!("{}: field {number}", path.join(".")));
            }
            Some(Field { message: Some(inner), name, .. }) if delimited => {
                path.push(name);
                search(contents, *inner, path, found);
                path.pop();
            }
            Some(_) => {}
        }
    }
}

/// If this is an ONNX file whose end is missing: how many bytes at least.
pub fn missing_bytes(mut bytes: &[u8]) -> Option<usize> {
    let model = MESSAGES.iter().find(|m| m.name == "ModelProto")?;
    let mut fields = 0;
    while !bytes.is_empty() {
        match field(&mut bytes) {
            Ok((number, ..)) if model.fields.iter().any(|f| f.number == number) => fields += 1,
            Ok(_) => return None,
            Err(missing) => return (fields > 0 && missing < 1 << 40).then_some(missing),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::sample::add;
    use super::*;
    use prost::Message;

    /// A length-delimited field.
    fn nest(number: u32, contents: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
        prost::encoding::encode_varint(contents.len() as u64, &mut out);
        out.extend(contents);
        out
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        unknown_fields(bytes).into_iter().collect()
    }

    #[test]
    fn unknown_fields_are_found_at_every_depth() {
        let plain = add().encode_to_vec();
        assert!(names(&plain).is_empty());
        assert_eq!(names(&[plain.clone(), nest(99, b"hello")].concat()), ["model: field 99"]);
        let node = nest(7, &nest(1, &[nest(4, b"Relu"), vec![0xe8, 0x07, 1]].concat()));
        let group = nest(7, &nest(5, &[0x9b, 0x06, 0x08, 0x01, 0x9c, 0x06]));
        assert_eq!(names(&[plain, node, group].concat()), ["model.graph.initializer: field 99", "model.graph.node: field 125"]);
    }

    #[test]
    fn packed_and_padded_encodings_are_no_unknown_fields() {
        // ir_version 8 as a varint of two bytes; an attribute's ints packed, as proto3 writers do.
        let attribute = nest(7, &nest(1, &nest(5, &nest(8, &[1, 2, 3]))));
        assert!(names(&[vec![0x08, 0x88, 0x00], attribute].concat()).is_empty());
    }

    #[test]
    fn a_cut_file_says_how_much_is_missing() {
        let plain = add().encode_to_vec();
        assert_eq!(missing_bytes(&plain), None);
        let graph = plain.len() - 4;
        assert_eq!(missing_bytes(&plain[..graph - 10]), Some(10));
        assert_eq!(missing_bytes(b"hello, world"), None);
    }
}
