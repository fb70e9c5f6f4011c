//! The keys in which a scheme is asked for. A key that nobody set is the choice of whoever stands before: recipe, then target.

use super::formats;
use crate::error::{At, Error, Result};
use crate::quant::{self, Blocks, Format, Origin, Params, Rounding, ScaleKind, Scheme, Timing, Zero, Zeros};
use crate::tensor::DType;

/// What was asked of a scheme; `None` in a field: nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SchemeKeys {
    pub bits: Option<u8>,
    /// A format's name, or `none`: stays float.
    pub format: Option<String>,
    pub granularity: Option<Granularity>,
    pub block_size: Option<usize>,
    pub axis: Option<i32>,
    pub symmetric: Option<bool>,
    pub zero_point: Option<ZeroKey>,
    pub narrow: Option<bool>,
    pub scale: Option<ScaleKey>,
    pub range: Option<(f32, f32)>,
    pub timing: Option<Timing>,
    pub rounding: Option<Rounding>,
}

/// `granularity:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    Tensor,
    Channel,
    Block,
    Token,
    /// One scale a gate of recurrent weights; elsewhere one a channel.
    Gate,
}

/// `zero_point:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroKey {
    None,
    Integer,
    Real,
    Fixed(i32),
}

/// `scale:`
#[derive(Debug, Clone, PartialEq)]
pub enum ScaleKey {
    /// A float type that scales are rounded to.
    Type(DType),
    /// Powers of two, in float32 or as float8e8m0.
    Pow2(DType),
    /// This one.
    Fixed(f32),
    /// Scales are codes themselves, under this scheme.
    Nested(Box<SchemeKeys>),
}

impl SchemeKeys {
    /// These keys, and where they are silent those of `base`. Keys that speak of the same thing replace each other.
    pub fn over(self, base: &SchemeKeys) -> SchemeKeys {
        let format_set = self.format.is_some() || self.bits.is_some();
        let zero_set = self.symmetric.is_some() || self.zero_point.is_some() || self.format.is_some();
        let ranged = self.range.is_some() || matches!(self.scale, Some(ScaleKey::Fixed(_)));
        // A fixed scale of the base does not outlive a new range, format or width.
        let outlives = |s: &&ScaleKey| !(matches!(s, ScaleKey::Fixed(_)) && (ranged || format_set));
        SchemeKeys {
            bits: self.bits.or(if self.format.is_some() { None } else { base.bits }),
            format: self.format.or_else(|| if format_set { base.format.as_ref().and_then(|f| widen(f, self.bits)) } else { base.format.clone() }),
            granularity: self.granularity.or(base.granularity),
            block_size: self.block_size.or(base.block_size),
            axis: self.axis.or(base.axis),
            symmetric: self.symmetric.or(if zero_set { None } else { base.symmetric }),
            // A real zero point was found for the base's width.
            zero_point: self.zero_point.or(base.zero_point.filter(|z| !(zero_set || format_set && *z == ZeroKey::Real))),
            narrow: self.narrow.or(base.narrow),
            scale: self.scale.or_else(|| base.scale.as_ref().filter(outlives).cloned()),
            range: self.range.or(if ranged || format_set { None } else { base.range }),
            timing: self.timing.or(base.timing),
            rounding: self.rounding.or(base.rounding),
        }
    }

    /// Whether this asks for no quantization.
    pub fn is_none(&self) -> bool {
        self.format.as_deref() == Some("none")
    }

    /// The scheme asked for; `axis` is that of channels or blocks where the keys name none.
    pub fn scheme(&self, axis: Option<i32>) -> Result<Scheme> {
        self.scheme_along(axis, axis)
    }

    /// The same where the tensor's channels lie along one axis and its blocks along another.
    pub fn scheme_along(&self, channel: Option<i32>, block: Option<i32>) -> Result<Scheme> {
        let name = self.format.as_deref().ok_or_else(|| Error::usage("neither target nor recipe says a format"))?;
        let mut format = formats::format_of(name).ok_or_else(|| Error::usage(format!("format `{name}` is not known; `requant formats` lists them")))?;
        if let (Format::Int { bits, .. }, Some(asked)) = (&mut format, self.bits) {
            *bits = asked;
        }
        if let (Format::Int { narrow, signed: true, .. }, Some(asked)) = (&mut format, self.narrow) {
            *narrow = asked;
        }
        let integer = matches!(format, Format::Int { .. });
        let unsigned = matches!(format, Format::Int { signed: false, .. });
        let zero = match (self.zero_point, self.symmetric) {
            (Some(ZeroKey::None), _) => Zero::None,
            (Some(ZeroKey::Integer), _) => Zero::Integer,
            (Some(ZeroKey::Real), _) => Zero::Real,
            (Some(ZeroKey::Fixed(z)), _) => Zero::Fixed(z),
            // A symmetric unsigned format puts zero in the middle.
            (None, Some(true)) if unsigned => Zero::Fixed(1 << (format.bits() - 1)),
            (None, Some(true)) => Zero::None,
            (None, Some(false)) if integer => Zero::Integer,
            (None, Some(false)) => return Err(Error::usage(format!("format `{name}` has no zero point: `symmetric: false` cannot hold"))),
            (None, None) => {
                if unsigned {
                    Zero::Integer
                } else {
                    Zero::None
                }
            }
        };
        let codebook = matches!(format, Format::Codebook { .. });
        if !integer && (matches!(zero, Zero::Integer | Zero::Fixed(_)) || zero == Zero::Real && !codebook) {
            return Err(Error::usage(format!("format `{name}` has no zero point")));
        }
        if let (Zero::Fixed(z), Some((lo, hi))) = (zero, format.code_range())
            && !(lo..=hi).contains(&z)
        {
            return Err(Error::usage(format!("zero point {z} is not a code of `{name}`: its codes are {lo} … {hi}")));
        }
        let blocks = match self.granularity.unwrap_or(Granularity::Tensor) {
            Granularity::Tensor => Blocks::tensor(),
            Granularity::Channel | Granularity::Gate => self.axis.or(channel).map_or_else(Blocks::tensor, Blocks::channel),
            Granularity::Token => Blocks::token(),
            Granularity::Block => {
                let size = self.block_size.ok_or_else(|| Error::usage("`granularity: block` needs a block_size"))?;
                Blocks::block(self.axis.or(block).unwrap_or(-1), size)
            }
        };
        let scale = match &self.scale {
            None | Some(ScaleKey::Fixed(_)) => ScaleKind::Exact(DType::F32),
            Some(ScaleKey::Type(t)) => ScaleKind::Exact(*t),
            Some(ScaleKey::Pow2(t)) => ScaleKind::Pow2(*t),
            Some(ScaleKey::Nested(keys)) => ScaleKind::Nested(Box::new(keys.scheme_along(channel, block).at(|| "scale")?)),
        };
        Ok(Scheme { format, scale, zero, blocks, timing: self.timing.unwrap_or(Timing::Static), rounding: self.rounding.unwrap_or(Rounding::HalfEven) })
    }

    /// Parameters, where the keys give them: a scale with its zero point, or a range.
    pub fn params(&self, scheme: &Scheme) -> Result<Option<Params>> {
        if let Some((lo, hi)) = self.range {
            if matches!(scheme.scale, ScaleKind::Nested(_)) {
                return Err(Error::usage("scales that are codes follow from the values: `range` cannot stand beside them"));
            }
            let mut p = quant::fit_range(scheme, &[lo], &[hi])?;
            p.origin = Origin::Fixed;
            return Ok(Some(p));
        }
        let Some(ScaleKey::Fixed(scale)) = self.scale else { return Ok(None) };
        let zero = match scheme.zero {
            Zero::None => Zeros::None,
            Zero::Fixed(z) => Zeros::Integer(vec![z]),
            _ => return Err(Error::usage("a fixed scale needs a zero_point that is a number, or `symmetric: true`")),
        };
        Ok(Some(Params { zero, origin: Origin::Fixed, ..Params::tensor(scale, None) }))
    }
}

/// An integer format of another width keeps its signedness: `bits` over `uint8` asks for `uint16`, over what is no integer for a signed one.
fn widen(format: &str, bits: Option<u8>) -> Option<String> {
    match (formats::format_of(format), bits) {
        (Some(Format::Int { signed, .. }), Some(bits)) => formats::name_of(Format::Int { bits, signed, narrow: false }).map(str::to_string),
        (Some(other), Some(bits)) if other.bits() != bits => Some(format!("int{bits}")),
        (None, Some(bits)) => Some(format!("int{bits}")),
        _ => Some(format.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(name: &str) -> SchemeKeys {
        SchemeKeys { format: Some(name.into()), ..SchemeKeys::default() }
    }

    #[test]
    fn bits_keep_the_signedness_of_the_base_and_format_replaces_all() {
        let wider = SchemeKeys { bits: Some(16), ..SchemeKeys::default() }.over(&format("uint8"));
        assert_eq!(wider.scheme(None).unwrap(), Scheme::int(16, false));
        let fp8 = format("float8e4m3fn").over(&SchemeKeys { symmetric: Some(false), ..format("uint8") });
        assert_eq!(fp8.scheme(None).unwrap().zero, Zero::None);
        assert!(format("none").over(&format("uint8")).is_none());
    }

    #[test]
    fn symmetric_unsigned_codes_have_zero_in_the_middle() {
        let keys = SchemeKeys { symmetric: Some(true), ..format("uint8") };
        assert_eq!(keys.scheme(None).unwrap().zero, Zero::Fixed(128));
    }

    #[test]
    fn channels_take_the_axis_they_are_given() {
        let keys = SchemeKeys { granularity: Some(Granularity::Channel), ..format("int8") };
        assert_eq!(keys.scheme(Some(1)).unwrap().blocks, Blocks::channel(1));
        assert_eq!(SchemeKeys { axis: Some(0), ..keys }.scheme(Some(1)).unwrap().blocks, Blocks::channel(0));
    }

    #[test]
    fn a_fixed_scale_gives_parameters_and_falls_with_another_width() {
        let softmax = SchemeKeys { scale: Some(ScaleKey::Fixed(1.0 / 256.0)), zero_point: Some(ZeroKey::Fixed(0)), ..format("uint8") };
        let p = softmax.params(&softmax.scheme(None).unwrap()).unwrap().unwrap();
        assert_eq!((p.scale[0], p.zero_at(0), p.origin), (1.0 / 256.0, 0.0, Origin::Fixed));
        let wider = SchemeKeys { bits: Some(16), ..SchemeKeys::default() }.over(&softmax);
        assert_eq!(wider.scale, None);
    }
}
