//! Recurrence from the last step to the first, which tract does not do by itself: the input is turned round, and the output turned back.

use super::prepare::{before, behind};
use crate::graph::{AttrValue, Graph, Node, NodeId, Op};
use crate::tensor::Tensor;

/// Rewrites an RNN, GRU or LSTM whose direction is "reverse". One with lengths of sequences is left alone.
pub fn rewrite(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    if n.str("direction") != Some("reverse") || n.input(4).is_some() {
        return None;
    }
    let axis = n.int("layout").unwrap_or(0);
    let x = n.input(0)?;
    let steps = *g.value(x).known_shape()?.get(usize::try_from(axis).ok()?)?;
    let backwards = g.add_constant("", Tensor::of_i64(&[steps], (0..steps as i64).rev().collect()));
    let turned = before(g, id, Node::new(Op::Gather, "").with("axis", axis), &[x, backwards]);
    g.set_input(id, 0, Some(turned));
    g.node_mut(id).set_attr("direction", AttrValue::from("forward"));
    // The last states are those of the first step, as they should be.
    behind(g, id, 0, Node::new(Op::Gather, "").with("axis", axis), &[backwards])
}
