//! Data movement between equal quantizers runs on the codes themselves.

use super::coded::{Coded, Made, made, take_out};
use crate::graph::{Graph, Node, NodeId, Op, Role, ValueId};

/// Operators that move codes, and the opset from which they take 8-bit ones.
#[rustfmt::skip]
const MOVES: &[(Op, i64)] = &[
    (Op::MaxPool, 12), (Op::Reshape, 1), (Op::Transpose, 1), (Op::Flatten, 9), (Op::Slice, 1), (Op::Squeeze, 1), (Op::Unsqueeze, 1), (Op::Split, 2),
    (Op::Gather, 1), (Op::GatherElements, 11), (Op::GatherND, 11), (Op::Identity, 1), (Op::Expand, 8), (Op::Tile, 6), (Op::Resize, 10), (Op::Pad, 11),
    (Op::Concat, 4), (Op::DepthToSpace, 1), (Op::SpaceToDepth, 1), (Op::ReverseSequence, 10),
];

/// The quantizers of a moving node's results, where its operands are codes under the same scale.
pub fn moved(g: &Graph, node: &Node) -> Option<Vec<(usize, Made)>> {
    if !MOVES.iter().any(|(op, _)| *op == node.op) {
        return None;
    }
    let read = |v: &ValueId| Coded::read(g, *v).filter(Coded::is_plain);
    let x = read(&node.input(0)?)?;
    let mut outs = Vec::new();
    for (slot, y) in node.outputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
        let m = made(g, y).filter(|m| m.clip.is_none() && m.nodes.len() == 1)?;
        if !m.out.same(g, &x) || slot > 0 && node.op != Op::Split {
            return None;
        }
        outs.push((slot, m));
    }
    let all = node.inputs().iter().flatten().enumerate().filter(|(slot, _)| node.op.role(*slot) == Role::Activation);
    let mut all = all.filter(|(slot, _)| *slot == 0 || node.op == Op::Concat);
    all.all(|(_, v)| read(v).is_some_and(|c| c.same(g, &x))).then_some(outs)
}

/// Makes a moving node read and make codes.
pub fn move_codes(g: &mut Graph, id: NodeId, outs: &[(usize, Made)], opset: i64) -> Result<(), String> {
    let node = g.node(id);
    if MOVES.iter().any(|(op, from)| *op == node.op && opset < *from) {
        return Err(format!("{} takes no 8-bit codes at opset {opset}", node.op_type));
    }
    if node.op == Op::Resize && node.str("mode").unwrap_or("nearest") != "nearest" {
        return Err("it interpolates".into());
    }
    let x = node.input(0).and_then(|v| Coded::read(g, v)).ok_or("its operand is not codes")?;
    let fill = match (node.op, node.str("mode").unwrap_or("constant"), node.input(2)) {
        (Op::Pad, "constant", Some(v)) => match (Coded::read(g, v).filter(|c| c.same(g, &x)), g.constant(v)) {
            (Some(coded), _) => Some(coded.codes),
            (None, Some(c)) if c.tensor.to_f32().is_ok_and(|f| f.iter().all(|f| *f == 0.0)) => x.zero,
            _ => return Err("it does not fill in zeros".into()),
        },
        (Op::Pad, "constant", None) => x.zero,
        _ => None,
    };
    let slots: Vec<usize> = (0..node.inputs().len()).filter(|s| *s == 0 || node.op == Op::Concat).collect();
    for slot in slots {
        let codes = g.node(id).input(slot).and_then(|v| Coded::read(g, v)).map(|c| c.codes);
        g.set_input(id, slot, codes);
    }
    if fill.is_some() {
        g.set_input(id, 2, fill);
    }
    for (slot, made) in outs {
        let old = g.node(id).output(*slot).expect("it is made");
        take_out(g, &made.nodes, &[old, made.out.codes]);
        g.set_output(id, *slot, made.out.codes);
        g.remove_value(old);
    }
    Ok(())
}
