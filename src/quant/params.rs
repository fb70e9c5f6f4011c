//! Parameters: everything about a quantizer that is learnt from data.

use super::QuantizerId;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Scale, zero and decoding curve of one quantizer: `x ≈ (decode(code) − zero) · scale`, one entry a block of the scheme's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Effective scales, row-major over the layout's grid. One entry serves every block.
    pub scale: Vec<f32>,
    /// The codes behind `scale` where the scheme nests.
    pub nested: Option<Box<NestedScale>>,
    pub zero: Zeros,
    pub curve: Curve,
    pub origin: Origin,
}

/// Scales that are codes themselves; `Params::scale` is what they decode to.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScale {
    /// Shape: the outer layout's grid.
    pub codes: Codes,
    pub params: Params,
}

/// Zero points, one a block; one entry serves every block.
#[derive(Debug, Clone, PartialEq)]
pub enum Zeros {
    None,
    Integer(Vec<i32>),
    Real(Vec<f32>),
}

/// What a code stands for before zero and scale.
#[derive(Debug, Clone, PartialEq)]
pub enum Curve {
    /// The format's own value.
    Linear,
    /// Codebook entries by index; ascending.
    Table(Arc<[f32]>),
    /// `sign(c) · |c|^(1/a)`: uniform codes of the values' a-th power.
    Power(f32),
}

/// Where parameters come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Found from data or weights.
    Fitted,
    /// Given by target, recipe or input file.
    Fixed,
    /// Always those of another quantizer (Concat's inputs, Reshape's output).
    Same(QuantizerId),
    /// Scale is the product of two others' (a bias: input times weight).
    Product(QuantizerId, QuantizerId),
}

/// Codes as stored at one site: in the format's ONNX storage type.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes(pub Tensor);

impl Params {
    /// One scale for the whole tensor.
    pub fn tensor(scale: f32, zero: Option<i32>) -> Self {
        Params { scale: vec![scale], nested: None, zero: zero.map_or(Zeros::None, |z| Zeros::Integer(vec![z])), curve: Curve::Linear, origin: Origin::Fitted }
    }

    /// Scale of block `i`.
    pub fn scale_at(&self, i: usize) -> f32 {
        if self.scale.len() == 1 { self.scale[0] } else { self.scale[i] }
    }

    /// Zero point of block `i` as a real number.
    pub fn zero_at(&self, i: usize) -> f32 {
        match &self.zero {
            Zeros::None => 0.0,
            Zeros::Integer(z) => (if z.len() == 1 { z[0] } else { z[i] }) as f32,
            Zeros::Real(z) => {
                if z.len() == 1 {
                    z[0]
                } else {
                    z[i]
                }
            }
        }
    }
}

impl Codes {
    /// The codes as integers: by value for integer formats, by bit pattern for float formats.
    pub fn unpack(&self) -> Vec<i32> {
        crate::tensor::pack::unpack(self.0.bytes(), self.0.dtype(), self.0.len())
    }
}
