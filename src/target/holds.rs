//! Whether a target holds a quantizer as it stands: asked of finished files, and of files that were made for another target.

use super::{Legal, Limit, Must, Slot, name_of, scale_word};
use crate::quant::{Params, Scheme, Zero, Zeros};

impl Legal {
    /// Why a slot does not hold a format (`none`: float); what is said comes behind the tensor's name.
    pub fn refuses_format(&self, slot: Slot, format: &str) -> Option<String> {
        let legal = self.formats(slot);
        if legal.is_empty() || legal.iter().any(|f| f == format) {
            return None;
        }
        let is = if format == "none" { "is float".to_string() } else { format!("is {format}") };
        Some(format!("{is}; of {} the target holds {}", slot.word(), legal.join(", ").replace("none", "float")))
    }

    /// Why no slot holds the scales of a scheme.
    pub fn refuses_scales(&self, scheme: &Scheme) -> Option<String> {
        let word = scale_word(&scheme.scale);
        let has = if word == "codes" { "that are codes" } else { word };
        (!self.scales.is_empty() && !self.scales.iter().any(|s| s == word)).then(|| format!("has scales {has}; the target holds {}", self.scales.join(", ")))
    }

    /// Why a slot does not hold a scheme with these parameters: format, zero point, scale.
    pub fn refuses(&self, slot: Slot, scheme: &Scheme, params: Option<&Params>) -> Option<String> {
        if let Some(why) = self.refuses_format(slot, name_of(scheme.format).unwrap_or("a codebook")) {
            return Some(why);
        }
        if let Some(why) = self.refuses_scales(scheme) {
            return Some(why);
        }
        if self.symmetric.contains(&slot) && !is_symmetric(scheme, params) {
            return Some("has a zero point; the target wants it symmetric".into());
        }
        if self.pow2.contains(&slot) && !is_pow2(params) {
            return Some("has a scale that is no power of two".into());
        }
        None
    }
}

impl Limit {
    /// Why this limit does not let a node have such codes at a slot. `result`: they are what the node makes, of which only the format is asked;
    /// `once`: nobody else reads them.
    pub fn refuses(&self, slot: Slot, scheme: &Scheme, params: Option<&Params>, result: bool, once: bool) -> Option<String> {
        let format = name_of(scheme.format).unwrap_or("a codebook");
        let broken = match (&self.must, slot) {
            (Must::Weights(list), Slot::Weights) | (Must::Activations(list), Slot::Activations) => !list.iter().any(|f| f == format),
            _ if result => false,
            (Must::Zeroless, Slot::Activations) => !has_no_zero(params),
            (Must::Unsigned, Slot::Activations) => scheme.format.code_range().is_some_and(|(low, _)| low < 0) && !once,
            _ => false,
        };
        let is = if self.must == Must::Zeroless { "has a zero point".to_string() } else { format!("is {format}") };
        broken.then(|| format!("{is}: {}", self.why))
    }
}

/// Whether a quantizer has no zero point, or one in the middle of an unsigned format.
pub fn is_symmetric(scheme: &Scheme, params: Option<&Params>) -> bool {
    let middle = match scheme.format.code_range() {
        Some((0, most)) => most / 2 + 1,
        _ => 0,
    };
    match (params, scheme.zero) {
        (Some(Params { zero: Zeros::Integer(z), .. }), _) => z.iter().all(|z| *z == middle),
        (Some(Params { zero: Zeros::Real(_), .. }), _) => false,
        (_, Zero::Fixed(z)) => z == middle,
        (Some(_), _) => middle == 0,
        (None, zero) => zero == Zero::None,
    }
}

/// Whether all zero points are 0.
pub fn has_no_zero(params: Option<&Params>) -> bool {
    match params.map(|p| &p.zero) {
        Some(Zeros::Integer(z)) => z.iter().all(|z| *z == 0),
        Some(Zeros::Real(_)) => false,
        _ => true,
    }
}

/// Whether all scales are powers of two.
pub fn is_pow2(params: Option<&Params>) -> bool {
    params.is_none_or(|p| p.scale.iter().all(|s| *s > 0.0 && s.log2().fract() == 0.0))
}
