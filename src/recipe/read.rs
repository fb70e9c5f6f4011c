//! [`Tree`] → the types of the rooms below. The shapes were checked before; what two keys contradict is found here.

use super::shape::Tree;
use crate::error::{Error, Result};
use crate::graph::Op;
use crate::quant::{Rounding, Timing};
use crate::target::{Fixed, Fuse, Granularity, Keep, Legal, Override, Place, Profile, ScaleKey, SchemeKeys, Select, Shift, Term, Wish, ZeroKey};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// The keys of a scheme, or `none`.
pub fn scheme(t: &Tree) -> SchemeKeys {
    if t.text() == Some("none") {
        return SchemeKeys { format: Some("none".into()), ..SchemeKeys::default() };
    }
    let text = |k: &str| t.get(k).and_then(Tree::text);
    SchemeKeys {
        bits: t.get("bits").and_then(Tree::int).map(|b| b as u8),
        format: text("format").map(str::to_string),
        granularity: text("granularity").map(|g| match g {
            "channel" => Granularity::Channel,
            "block" => Granularity::Block,
            "token" => Granularity::Token,
            "gate" => Granularity::Gate,
            _ => Granularity::Tensor,
        }),
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
        k.scale.map(|s| match s {
            ScaleKey::Type(t) => text(t.name()),
            ScaleKey::Pow2(DType::F8E8M0) => text("e8m0"),
            ScaleKey::Pow2(_) => text("pow2"),
            ScaleKey::Fixed(s) => Tree::Number(s.into()),
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

fn granularity_name(g: Granularity) -> &'static str {
    match g {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Block => "block",
        Granularity::Token => "token",
        Granularity::Gate => "gate",
    }
}

fn ops(t: Option<&Tree>) -> Vec<Op> {
    t.map_or(&[][..], Tree::list).iter().filter_map(|o| Op::of_name(o.text()?)).collect()
}

fn texts(t: Option<&Tree>) -> Vec<String> {
    t.map_or(&[][..], Tree::list).iter().filter_map(|o| Some(o.text()?.to_string())).collect()
}

/// A window for positions.
fn shift(place: &str, t: &Tree) -> Result<Shift> {
    let ends: Vec<i32> = t.get("window").map_or(&[][..], Tree::list).iter().filter_map(|n| Some(n.int()? as i32)).collect();
    let of = t.get("of").and_then(Tree::text).and_then(|w| Term::NAMES.iter().find(|(name, _)| *name == w)).map(|(_, term)| *term);
    match (of, &ends[..]) {
        (Some(of), &[lo, hi]) if lo <= hi => {
            Ok(Shift { ops: ops(t.get("ops")), of, window: (lo, hi), after: ops(t.get("after")), before: ops(t.get("before")) })
        }
        _ => Err(Error::usage(format!("{place}: shifts: each entry needs `of` and `window: [least, most]`, the least first"))),
    }
}

/// A target's profile. `t`: merged with those it extends.
pub fn profile(name: &str, place: &str, t: &Tree) -> Result<Profile> {
    let of = |key: &str| t.get(key).map(scheme).unwrap_or_default();
    let text = |key: &str| t.get(key).and_then(Tree::text).unwrap_or_default().to_string();
    let profile = Profile {
        name: name.to_string(),
        doc: text("doc"),
        recipe: text("recipe"),
        weights: of("weights"),
        activations: of("activations"),
        bias: of("bias"),
        wide: t.get("wide").map(scheme),
        legal: Legal { weights: texts(t.get("legal").and_then(|l| l.get("weights"))), activations: texts(t.get("legal").and_then(|l| l.get("activations"))) },
        opset: t.get("opset").and_then(Tree::int),
        quantize: ops(t.get("quantize")),
        weights_only: ops(t.get("weights_only")),
        moves: ops(t.get("moves")),
        join: ops(t.get("join")),
        never_wide: ops(t.get("never_wide")),
        float_constants: ops(t.get("float_constants")),
        shield: ops(t.get("shield")),
        fuse: t
            .get("fuse")
            .map_or(&[][..], Tree::list)
            .iter()
            .map(|f| Fuse { producers: ops(f.get("producers")), followers: ops(f.get("followers")), last: f.get("last").and_then(Tree::flag).unwrap_or(false) })
            .collect(),
        fixed: t
            .get("fixed")
            .map_or(&[][..], Tree::list)
            .iter()
            .map(|f| Fixed { ops: ops(f.get("ops")), output: f.get("output").map(scheme).unwrap_or_default() })
            .collect(),
        shifts: t.get("shifts").map_or(&[][..], Tree::list).iter().map(|s| shift(place, s)).collect::<Result<_>>()?,
    };
    let fail = |why: String| Err(Error::usage(format!("{place}: {why}")));
    for (what, keys, legal) in [("weights", &profile.weights, &profile.legal.weights), ("activations", &profile.activations, &profile.legal.activations)] {
        if let Some(format) = &keys.format
            && !keys.is_none()
            && !legal.is_empty()
            && !legal.contains(format)
        {
            return fail(format!("{what}.format is {format}, which its own legal.{what} does not list ({})", legal.join(", ")));
        }
    }
    for fixed in &profile.fixed {
        fixed.output.scheme(None).and_then(|s| fixed.output.params(&s)).map_err(|e| e.at(format!("{place}: fixed")))?;
    }
    if profile.recipe.is_empty() {
        return fail("it names no `recipe`, the one to use where nobody asks for another".into());
    }
    Ok(profile)
}

/// One entry of `overrides`; `origin` is said in complaints.
pub fn override_of(t: &Tree, origin: String) -> Result<Override> {
    let text = |key: &str| t.get(key).and_then(Tree::text).map(str::to_string);
    let fail = |why: String| Err(Error::usage(format!("{origin}: {why}")));
    let between = match &texts(t.get("between"))[..] {
        [] if t.get("between").is_none() => None,
        [from, to] => Some((from.clone(), to.clone())),
        _ => return fail("`between` is [from tensor, to tensor]".into()),
    };
    let place = text("where").and_then(|w| Place::NAMES.iter().find(|(name, _)| *name == w)).map(|(_, place)| *place);
    let select = Select { nodes: text("nodes"), ops: t.get("ops").map(|o| ops(Some(o))), tensors: text("tensors"), between, place };
    if select == Select::default() {
        return fail("it selects nothing: say `nodes`, `ops`, `tensors`, `between` or `where`".into());
    }
    let slots = |key: &str| -> Result<BTreeMap<usize, SchemeKeys>> {
        t.get(key)
            .map_or(&[][..], Tree::entries)
            .iter()
            .map(|(slot, keys)| match slot.parse() {
                Ok(slot) => Ok((slot, scheme(keys))),
                Err(_) => Err(Error::usage(format!("{origin}: {key}: `{slot}` is not the number of a slot"))),
            })
            .collect()
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
