//! What the target asks of schemes at single places.

use super::kind::Kind;
use crate::graph::{Graph, Model, NodeId, Op, ValueId};
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

/// Whether the lowest code of a value under these keys can stand for what its producer cuts at: not if zero lies in the middle, nor if the value shares
/// its range with others in a Concat.
pub fn has_floor(g: &Graph, kinds: &BTreeMap<NodeId, Kind>, v: ValueId, keys: &SchemeKeys) -> bool {
    let unsigned = matches!(keys.format.as_deref().and_then(format_of), Some(Format::Int { signed: false, .. }));
    let middle = keys.symmetric.unwrap_or(!unsigned) || keys.zero_point == Some(ZeroKey::None);
    !middle && !is_joined(g, kinds, v)
}

fn is_joined(g: &Graph, kinds: &BTreeMap<NodeId, Kind>, v: ValueId) -> bool {
    let moves = |p: &&crate::graph::Port| kinds.get(&p.node) == Some(&Kind::Moves);
    g.value(v)
        .uses()
        .iter()
        .filter(moves)
        .any(|p| g.node(p.node).op == Op::Concat || g.node(p.node).outputs().iter().flatten().any(|y| is_joined(g, kinds, *y)))
}

/// Whether a target computes a follower together with its producer.
pub fn fits(f: &Fuse, producer: Op, follower: Op) -> bool {
    f.producers.contains(&producer) && f.followers.contains(&follower)
}
