//! Writes operators that the target has no codes for, but for what they stand for, in other words: an Attention's two products then run on codes.
//! Exact up to the order of float sums, but for queries from which a mask of truths hides every key: they get the mean of the values, not 0. Needs nothing.
//! Declines, with the reason: what depends on shapes that are not known.

use crate::graph::{Graph, Inferred, InputShapes, Model, Op, infer, infer_body};
use crate::note::Notes;
use crate::onnx;
use std::collections::BTreeMap;

/// Writes the nodes of `ops` out, those of bodies too.
pub fn spell_out(model: &mut Model, ops: &[Op]) -> Notes {
    let mut notes = Notes::of("fuse");
    if !stand_in(&model.graph, ops) {
        return notes;
    }
    let opset = model.opset("").unwrap_or(0);
    let inferred = infer(model, &InputShapes::new());
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    in_graph(&mut model.graph, &inferred, (ops, opset), &mut done, &mut notes);
    if !done.is_empty() {
        let list: Vec<String> = done.iter().map(|(op, n)| format!("{n} {op}")).collect();
        notes.changed("", format!("written in other operators, which have codes: {}", list.join(", ")));
    }
    notes
}

fn stand_in(g: &Graph, ops: &[Op]) -> bool {
    g.nodes().any(|(_, n)| ops.contains(&n.op) || n.bodies().any(|(_, body)| stand_in(body, ops)))
}

fn in_graph(g: &mut Graph, inferred: &Inferred, how: (&[Op], i64), done: &mut BTreeMap<&'static str, usize>, notes: &mut Notes) {
    for id in g.order().to_vec() {
        let scope = inferred.around(g, g.node(id), &BTreeMap::new());
        for body in g.node_mut(id).bodies_mut() {
            let inner = infer_body(body, &scope);
            in_graph(body, &inner, how, done, notes);
        }
        let (name, op) = (g.node(id).name.clone(), g.node(id).op);
        if how.0.contains(&op) {
            match onnx::spell_out(g, id, inferred, how.1) {
                Ok(()) => *done.entry(op.spelling().1).or_default() += 1,
                Err(why) => notes.declined(&name, format!("stays {}: {why}", op.spelling().1)),
            }
        }
    }
}
