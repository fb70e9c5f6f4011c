//! A target's profile: data, read from YAML; every field is documented where the YAML is.

use super::SchemeKeys;
use crate::graph::Op;

/// What one target wants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    pub name: String,
    /// One line for `requant targets`.
    pub doc: String,
    /// Recipe where the user names none.
    pub recipe: String,
    pub weights: SchemeKeys,
    pub activations: SchemeKeys,
    pub bias: SchemeKeys,
    /// Activations that 8 bits harm too much; `None`: float.
    pub wide: Option<SchemeKeys>,
    /// What a set value may be; a key that is not listed may be anything.
    pub legal: Legal,
    /// Highest opset the target reads, if it has a limit.
    pub opset: Option<i64>,
    /// Ops that run on codes.
    pub quantize: Vec<Op>,
    /// Ops whose constant weights are codes, and whose other operands and results stay float.
    pub weights_only: Vec<Op>,
    /// Ops that hand codes on: output and input share one quantizer.
    pub moves: Vec<Op>,
    /// Computing ops whose inputs and output share one quantizer.
    pub join: Vec<Op>,
    /// Ops whose operands and results are never widened.
    pub never_wide: Vec<Op>,
    /// Computing ops whose constant operands stay float.
    pub float_constants: Vec<Op>,
    /// Ops whose float weights the runtime quantizes unasked where codes come in and go out.
    pub shield: Vec<Op>,
    /// Ops computed together with what follows them: no quantizer between.
    pub fuse: Vec<Fuse>,
    /// Outputs whose range is known without data.
    pub fixed: Vec<Fixed>,
    /// Where power-of-two scales may lie beside each other.
    pub shifts: Vec<Shift>,
}

/// A window for the positions (`scale = 2^−position`) around a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Shift {
    pub ops: Vec<Op>,
    pub of: Term,
    pub window: (i32, i32),
    /// Only where an operand is made by one of these; empty: anywhere.
    pub after: Vec<Op>,
    /// Only where one of these is computed with it; empty: anywhere.
    pub before: Vec<Op>,
}

/// What is held in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Operands, added, less the result.
    Product,
    /// Operands, added, less the bias.
    Bias,
    /// The bias less the result.
    BiasOutput,
    /// The largest operand less the smallest.
    Spread,
    /// The smallest operand less the result.
    Least,
    /// Every operand.
    Input,
    /// The result.
    Output,
}

impl Term {
    pub const NAMES: [(&str, Term); 7] = [
        ("product", Term::Product),
        ("bias", Term::Bias),
        ("bias-output", Term::BiasOutput),
        ("spread", Term::Spread),
        ("least", Term::Least),
        ("input", Term::Input),
        ("output", Term::Output),
    ];
    /// The same, for a list of choices.
    pub const WORDS: [&str; 7] = {
        let mut words = [""; 7];
        let mut i = 0;
        while i < words.len() {
            words[i] = Self::NAMES[i].0;
            i += 1;
        }
        words
    };
}

/// A producer, and what is computed with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fuse {
    pub producers: Vec<Op>,
    pub followers: Vec<Op>,
    /// Only where nothing but outputs of the model is made of the result.
    pub last: bool,
}

/// Ops whose output has this scheme whatever the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Fixed {
    pub ops: Vec<Op>,
    pub output: SchemeKeys,
}

/// Formats that the target holds at each kind of tensor; empty: any.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Legal {
    pub weights: Vec<String>,
    pub activations: Vec<String>,
}
