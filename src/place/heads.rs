//! Heads that join scores with boxes. Scores lie in 0 … 1, boxes in hundreds of pixels: under the one scale of a Concat a score has two or three codes.
//! Where nothing but outputs of the model is made of the join, it needs no codes at all: its parts keep a scale each.

use super::kind::Kind;
use crate::graph::{Flow, Graph, NodeId, Op, ValueId};
use crate::target::Profile;
use std::collections::BTreeMap;

/// Takes such Concats, and what moves their result on to the outputs, out of the nodes that hand codes on.
pub fn keep_heads_apart(g: &Graph, profile: &Profile, kinds: &mut BTreeMap<NodeId, Kind>) {
    let mut apart: BTreeMap<NodeId, String> = BTreeMap::new();
    for (id, node) in g.nodes() {
        let Some(y) = node.output(0).filter(|_| kinds[&id] == Kind::Moves) else { continue };
        if let Some(why) = node.inputs().iter().flatten().find_map(|v| apart.get(&g.value(*v).producer()?.0)).cloned() {
            apart.insert(id, why);
            continue;
        }
        if node.op != Op::Concat || !leaves(g, y, kinds) {
            continue;
        }
        let bounded = |v: &ValueId| source(g, *v).is_some_and(|op| profile.fixed.iter().any(|f| f.ops.contains(&op)));
        let (scores, others): (Vec<ValueId>, Vec<ValueId>) = node.inputs().iter().flatten().partition(|v| bounded(v));
        if let (Some(score), Some(other)) = (scores.first(), others.first()) {
            let (score, other) = (&g.value(*score).name, &g.value(*other).name);
            let why = format!(
                "it joins {score}, which lies in 0 … 1, with {other}, which need not; as nothing but outputs is made of them, each keeps its own scale"
            );
            apart.insert(id, why);
        }
    }
    kinds.extend(apart.into_iter().map(|(id, why)| (id, Kind::Float(why))));
}

/// Whether a value is moved to outputs of the model, and read by nothing else.
fn leaves(g: &Graph, v: ValueId, kinds: &BTreeMap<NodeId, Kind>) -> bool {
    let uses = g.value(v).uses();
    (g.is_output(v) || !uses.is_empty())
        && uses.iter().all(|p| kinds.get(&p.node) == Some(&Kind::Moves) && g.node(p.node).outputs().iter().flatten().all(|y| leaves(g, *y, kinds)))
}

/// The op that computes a value, seen through moves.
fn source(g: &Graph, v: ValueId) -> Option<Op> {
    let node = g.node(g.value(v).producer()?.0);
    if node.op.flow() == Flow::Move && node.op != Op::Concat { source(g, node.input(0)?) } else { Some(node.op) }
}
