//! Attributes and constants.

use super::Graph;
use crate::tensor::Tensor;
use bytes::Bytes;

/// A node's attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct Attr {
    pub name: String,
    pub value: AttrValue,
    /// What `onnx` could not say in the fields above: written back as it was.
    pub extra: Bytes,
}

/// What an attribute holds.
#[derive(Debug, Clone, PartialEq)]
pub enum AttrValue {
    Int(i64),
    Float(f32),
    String(Bytes),
    Tensor(Constant),
    Graph(Box<Graph>),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Constant>),
    Graphs(Vec<Graph>),
    /// Types, sparse tensors, references to a function's attributes: wholly in `Attr::extra`.
    Other,
}

/// A tensor and how the file stored it, so that it can be stored so again.
#[derive(Debug, Clone, PartialEq)]
pub struct Constant {
    pub tensor: Tensor,
    pub storage: Storage,
    /// What `onnx` could not say in the fields above (doc string, metadata …): written back as it was.
    pub extra: Bytes,
}

/// The field of a TensorProto that holds the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    #[default]
    Raw,
    /// `float_data`, `int32_data`, `int64_data` …, whichever the element type prescribes.
    Typed,
    /// A file beside the model.
    External,
}

impl Attr {
    pub fn new(name: &str, value: impl Into<AttrValue>) -> Self {
        Attr { name: name.to_string(), value: value.into(), extra: Bytes::new() }
    }
}

impl From<Tensor> for Constant {
    fn from(tensor: Tensor) -> Self {
        Constant { tensor, storage: Storage::Raw, extra: Bytes::new() }
    }
}

macro_rules! into_attr {
    ($($from:ty => |$x:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for AttrValue {
            fn from($x: $from) -> Self {
                $to
            }
        })*
    };
}

into_attr! {
    i64 => |x| AttrValue::Int(x),
    f32 => |x| AttrValue::Float(x),
    &str => |x| AttrValue::String(Bytes::copy_from_slice(x.as_bytes())),
    Vec<i64> => |x| AttrValue::Ints(x),
    Vec<f32> => |x| AttrValue::Floats(x),
    Tensor => |x| AttrValue::Tensor(x.into()),
    Graph => |x| AttrValue::Graph(Box::new(x)),
}
