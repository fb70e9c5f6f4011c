//! What the target asks of schemes at single places.

use super::kind::Kind;
use crate::graph::{Graph, Model, NodeId, Op, ValueId, bounds};
use crate::quant::Format;
use crate::target::{Fuse, Granularity, Limit, Must, Profile, ScaleKey, SchemeKeys, ZeroKey, format_of, name_of};
use std::collections::{BTreeMap, BTreeSet};

/// Keys of a weight, in a granularity that the target holds for a node that these limits bind.
pub fn granular(profile: &Profile, bound: &[&Limit], keys: &SchemeKeys) -> SchemeKeys {
    let (held, _) = profile.granularities(bound);
    let asked = keys.granularity.unwrap_or(Granularity::Tensor);
    match held.first().filter(|_| !held.contains(&asked)) {
        // Scales of scales belong to blocks.
        Some(&other) => SchemeKeys { granularity: Some(other), scale: keys.scale.clone().filter(|s| !matches!(s, ScaleKey::Nested(_))), ..keys.clone() },
        None => keys.clone(),
    }
}

/// Values that must have zero point 0, for somebody who reads them.
pub fn zeroless(model: &Model, kinds: &BTreeMap<NodeId, Kind>, bound: &BTreeMap<NodeId, Vec<&Limit>>) -> BTreeSet<ValueId> {
    let asks = |id: &NodeId| kinds.get(id) == Some(&Kind::Quantized) && bound.get(id).is_some_and(|b| b.iter().any(|l| l.must == Must::Zeroless));
    let nodes = model.graph.nodes().filter(|(id, _)| asks(id));
    nodes.flat_map(|(_, n)| n.inputs().iter().enumerate().filter(|(slot, _)| n.flows(*slot)).filter_map(|(_, v)| *v)).collect()
}

/// The same keys without a zero point, on signed codes.
pub fn without_zero(keys: &SchemeKeys) -> SchemeKeys {
    let signed = match keys.format.as_deref().and_then(format_of) {
        Some(Format::Int { bits, .. }) => name_of(Format::Int { bits, signed: true, narrow: false }).map(str::to_string),
        _ => None,
    };
    match keys.zero_point {
        Some(ZeroKey::Fixed(0)) => keys.clone(),
        _ => SchemeKeys { symmetric: Some(true), format: signed.or(keys.format.clone()), ..SchemeKeys::default() }.over(keys),
    }
}

/// Whether the lowest and highest codes of a value under these keys can stand for what its producer cuts at: not if zero lies in the middle, nor if it is cut
/// away, nor if the value shares its range with others. Where one bound alone is cut at, and that is not 0, whether a code stands for it is luck.
/// `exact`: the bound is 0.
pub fn has_floor(model: &Model, profile: &Profile, kinds: &BTreeMap<NodeId, Kind>, v: ValueId, keys: &SchemeKeys, exact: bool) -> bool {
    let g = &model.graph;
    let unsigned = matches!(keys.format.as_deref().and_then(format_of), Some(Format::Int { signed: false, .. }));
    let middle = keys.symmetric.unwrap_or(!unsigned) || keys.zero_point == Some(ZeroKey::None);
    let cut = g.value(v).producer().and_then(|(maker, _)| bounds(g, g.node(maker)));
    let reached = cut.is_some_and(|(least, most)| least <= 0.0 && most >= 0.0 && (least == 0.0 || !exact && (least.is_infinite() || most.is_finite())));
    !middle && reached && !is_joined(g, profile, kinds, v)
}

/// Whether a value, or what is moved of it, shares its range with other values.
fn is_joined(g: &Graph, profile: &Profile, kinds: &BTreeMap<NodeId, Kind>, v: ValueId) -> bool {
    g.value(v).uses().iter().filter_map(|p| g.get_node(p.node).map(|n| (p.node, n))).any(|(id, n)| match kinds.get(&id) {
        Some(Kind::Moves) => n.op == Op::Concat || n.outputs().iter().flatten().any(|y| is_joined(g, profile, kinds, *y)),
        Some(Kind::Quantized) => profile.join.contains(&n.op),
        _ => false,
    })
}

/// Whether a target computes a follower together with its producer.
pub fn fits(f: &Fuse, producer: Op, follower: Op) -> bool {
    f.producers.contains(&producer) && f.followers.contains(&follower)
}
