//! [`Tree`] → the types of the rooms below. The shapes were checked before; what two keys contradict is found here.

use super::parse::parse;
use super::shape::{Shape, Tree};
use super::table::SCHEME;
use super::{FloatRecipe, configs};
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::quant::{Rounding, Timing};
use crate::target::{Granularity, Keep, Override, Place, ScaleKey, SchemeKeys, Select, Wish, ZeroKey};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// The keys of a scheme, or `none`. Where `format` names a scheme of `configs/schemes`, its keys stand beneath those given.
pub fn scheme(t: &Tree) -> SchemeKeys {
    let keys = plain_scheme(t);
    match keys.format.as_deref().and_then(configs::scheme_text) {
        Some(text) => {
            let named = parse(text.as_bytes(), &Shape::Map(SCHEME), "configs/schemes").expect("shipped schemes are tested");
            SchemeKeys { format: None, ..keys }.over(&plain_scheme(&named))
        }
        None => keys,
    }
}

fn plain_scheme(t: &Tree) -> SchemeKeys {
    if t.text() == Some("none") {
        return SchemeKeys { format: Some("none".into()), ..SchemeKeys::default() };
    }
    let text = |k: &str| t.get(k).and_then(Tree::text);
    SchemeKeys {
        bits: t.get("bits").and_then(Tree::int).map(|b| b as u8),
        format: text("format").map(str::to_string),
        granularity: text("granularity").map(granularity),
        block_size: t.get("block_size").and_then(Tree::int).map(|n| n as usize),
        axis: t.get("axis").and_then(Tree::int).map(|a| a as i32),
        symmetric: t.get("symmetric").and_then(Tree::flag),
        zero_point: t.get("zero_point").and_then(|z| match z {
            Tree::Int(i) => Some(ZeroKey::Fixed(*i as i32)),
            Tree::Text(z) => Some(match z.as_str() {
                "integer" => ZeroKey::Integer,
                "real" => ZeroKey::Real,
                _ => ZeroKey::None,
            }),
            _ => None,
        }),
        narrow: t.get("narrow").and_then(Tree::flag),
        scale: t.get("scale").and_then(|s| match s {
            Tree::Text(s) => Some(match s.as_str() {
                "float16" => ScaleKey::Type(DType::F16),
                "bfloat16" => ScaleKey::Type(DType::BF16),
                "pow2" => ScaleKey::Pow2(DType::F32),
                "e8m0" => ScaleKey::Pow2(DType::F8E8M0),
                _ => ScaleKey::Type(DType::F32),
            }),
            nested @ Tree::Map(_) => Some(ScaleKey::Nested(Box::new(plain_scheme(nested)))),
            other => other.number().map(|n| ScaleKey::Fixed(n as f32)),
        }),
        range: t.get("range").map(Tree::list).and_then(|r| Some((r.first()?.number()? as f32, r.get(1)?.number()? as f32))),
        timing: text("timing").map(|t| if t == "dynamic" { Timing::Dynamic } else { Timing::Static }),
        rounding: text("rounding").map(|r| match r {
            "half-up" => Rounding::HalfUp,
            "half-away" => Rounding::HalfAway,
            "floor" => Rounding::Floor,
            _ => Rounding::HalfEven,
        }),
    }
}

/// The inverse: keys that were set, as a tree.
pub fn scheme_tree(k: &SchemeKeys) -> Tree {
    if k.is_none() {
        return Tree::Text("none".into());
    }
    let mut map = Vec::new();
    let mut put = |name: &str, value: Option<Tree>| map.extend(value.map(|v| (name.to_string(), v)));
    let text = |t: &str| Tree::Text(t.to_string());
    put("bits", k.bits.map(|b| Tree::Int(b.into())));
    put("format", k.format.as_deref().map(text));
    put("granularity", k.granularity.map(|g| text(granularity_name(g))));
    put("block_size", k.block_size.map(|n| Tree::Int(n as i64)));
    put("axis", k.axis.map(|a| Tree::Int(a.into())));
    put("symmetric", k.symmetric.map(Tree::Bool));
    put(
        "zero_point",
        k.zero_point.map(|z| match z {
            ZeroKey::None => text("none"),
            ZeroKey::Integer => text("integer"),
            ZeroKey::Real => text("real"),
            ZeroKey::Fixed(z) => Tree::Int(z.into()),
        }),
    );
    put("narrow", k.narrow.map(Tree::Bool));
    put(
        "scale",
        k.scale.as_ref().map(|s| match s {
            ScaleKey::Type(t) => text(t.name()),
            ScaleKey::Pow2(DType::F8E8M0) => text("e8m0"),
            ScaleKey::Pow2(_) => text("pow2"),
            ScaleKey::Fixed(s) => Tree::Number((*s).into()),
            ScaleKey::Nested(keys) => scheme_tree(keys),
        }),
    );
    put("range", k.range.map(|(a, b)| Tree::List(vec![Tree::Number(a.into()), Tree::Number(b.into())])));
    put("timing", k.timing.map(|t| text(if t == Timing::Dynamic { "dynamic" } else { "static" })));
    put(
        "rounding",
        k.rounding.map(|r| {
            text(match r {
                Rounding::HalfEven => "half-even",
                Rounding::HalfUp => "half-up",
                Rounding::HalfAway => "half-away",
                Rounding::Floor => "floor",
            })
        }),
    );
    Tree::Map(map)
}

pub fn granularity(word: &str) -> Granularity {
    match word {
        "channel" => Granularity::Channel,
        "block" => Granularity::Block,
        "token" => Granularity::Token,
        "gate" => Granularity::Gate,
        _ => Granularity::Tensor,
    }
}

pub fn granularity_name(g: Granularity) -> &'static str {
    match g {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Block => "block",
        Granularity::Token => "token",
        Granularity::Gate => "gate",
    }
}

pub fn ops(t: Option<&Tree>) -> Vec<Op> {
    t.map_or(&[][..], Tree::list).iter().filter_map(|o| Op::of_name(o.text()?)).collect()
}

pub fn texts(t: Option<&Tree>) -> Vec<String> {
    t.map_or(&[][..], Tree::list).iter().filter_map(|o| Some(o.text()?.to_string())).collect()
}

/// `float:` on top of what other layers said.
pub fn float(t: &Tree, under: Option<FloatRecipe>) -> Option<FloatRecipe> {
    let word = t.text().or_else(|| t.get("format").and_then(Tree::text));
    let base = if t.text().is_some() { None } else { under };
    let dtype = match word.and_then(DType::of_name).or(base.as_ref().map(|b| b.dtype))? {
        DType::F32 => return None,
        narrow => narrow,
    };
    let keep = t.get("keep").map(|o| ops(Some(o))).or(base.as_ref().map(|b| b.keep.clone()));
    let keep_io = t.get("keep_io").and_then(Tree::flag).or(base.map(|b| b.keep_io));
    Some(FloatRecipe { dtype, keep_io: keep_io.unwrap_or(false), keep: keep.unwrap_or_default() })
}

/// The tree that [`float`] reads.
pub fn float_tree(f: &FloatRecipe) -> Tree {
    let keep = f.keep.iter().map(|op| Tree::Text(op.spelling().1.to_string())).collect();
    let format = ("format".into(), Tree::Text(f.dtype.name().into()));
    Tree::Map(vec![format, ("keep_io".into(), Tree::Bool(f.keep_io)), ("keep".into(), Tree::List(keep))])
}

/// A word of `where:`.
pub fn place(word: &str) -> Option<Place> {
    Place::NAMES.iter().find(|(name, _)| *name == word).map(|(_, place)| *place)
}

/// Slots of an operator at most, of which `inputs` or `outputs` without a number speak.
const SLOTS: usize = 64;

/// One entry of `overrides`; `origin` is said in complaints.
pub fn override_of(t: &Tree, origin: String) -> Result<Override> {
    let text = |key: &str| t.get(key).and_then(Tree::text).map(str::to_string);
    let fail = |why: String| Err(Error::usage(format!("{origin}: {why}")));
    let between = match &texts(t.get("between"))[..] {
        [] if t.get("between").is_none() => None,
        [from, to] => Some((from.clone(), to.clone())),
        _ => return fail("`between` is [from tensor, to tensor]".into()),
    };
    let place = text("where").and_then(|w| place(&w));
    let select = Select { nodes: text("nodes"), ops: t.get("ops").map(|o| ops(Some(o))), tensors: text("tensors"), between, place };
    if select == Select::default() {
        return fail("it selects nothing: say `nodes`, `ops`, `tensors`, `between` or `where`".into());
    }
    let slots = |key: &str| -> Result<BTreeMap<usize, SchemeKeys>> {
        let Some(tree) = t.get(key) else { return Ok(BTreeMap::new()) };
        let slots: Vec<Option<usize>> = tree.entries().iter().map(|(slot, _)| slot.parse().ok()).collect();
        match slots.iter().flatten().count() {
            0 => Ok((0..SLOTS).map(|slot| (slot, scheme(tree))).collect()),
            n if n == slots.len() => Ok(tree.entries().iter().zip(slots).filter_map(|((_, keys), slot)| Some((slot?, scheme(keys)))).collect()),
            _ => Err(Error::usage(format!("{origin}: {key}: slots and keys for all slots stand side by side"))),
        }
    };
    let set = Wish {
        keep: text("keep").map(|k| if k == "input" { Keep::Input } else { Keep::Float }),
        weights: t.get("weights").map(scheme),
        activations: t.get("activations").map(scheme),
        bias: t.get("bias").map(scheme),
        inputs: slots("inputs")?,
        outputs: slots("outputs")?,
    };
    if set == Wish::default() {
        return fail("it asks for nothing: say `keep`, `weights`, `activations`, `bias`, `inputs` or `outputs`".into());
    }
    Ok(Override { select, set, optional: t.get("optional").and_then(Tree::flag).unwrap_or(false), origin })
}
