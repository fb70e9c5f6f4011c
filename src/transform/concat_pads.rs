//! Writes a Pad as a Concat with what it puts in, along an axis before which the target's own Pad must put nothing.
//! Exact. Needs known shapes. Declines: pads and numbers that are computed, pads below 0, modes that repeat or mirror, types other than float32.

use crate::graph::{Graph, InputShapes, Model, Node, NodeId, Op, Type, ValueId, infer, pads};
use crate::note::Notes;
use crate::target::{Must, Profile};
use crate::tensor::{DType, Tensor};

/// Writes every Pad that a limit of the target bars so.
pub fn concat_pads(model: &mut Model, target: &Profile) -> Notes {
    let mut notes = Notes::of("fuse");
    let inferred = infer(model, &InputShapes::new());
    let axis = |must: &Must| if let Must::Unpadded(axis) = must { Some(*axis) } else { None };
    let barred: Vec<(NodeId, usize)> = target.barred(model, &inferred).into_iter().filter_map(|(id, l)| Some((id, axis(&l.must)?))).collect();
    let mut written = 0;
    for (id, axis) in barred {
        let g = &model.graph;
        let node = g.node(id);
        let float = |v: &ValueId| inferred.get(*v).dtype == Some(DType::F32);
        let shape = node.input(0).filter(float).and_then(|x| inferred.shape(x));
        let added = pads(g, node).filter(|p| p.iter().all(|n| *n >= 0));
        match (shape, added, filler(g, node)) {
            (Some(shape), Some(pads), Some(filler)) => {
                join(&mut model.graph, id, axis, &shape, &pads, filler);
                written += 1;
            }
            _ => notes.declined(&node.name, format!("what it puts before axis {axis}, or its shape, is not known, and it stays a Pad")),
        }
    }
    if written > 0 {
        notes.changed("", format!("{written} Pads are written as Concat, since the target's own must put nothing there"));
    }
    notes
}

/// The number that a Pad puts in.
pub fn filler(g: &Graph, node: &Node) -> Option<f32> {
    let number = match node.input(2) {
        Some(v) => g.constant(v)?.tensor.to_f32().ok()?.first().copied(),
        None => Some(node.float("value").unwrap_or(0.0)),
    };
    number.filter(|_| node.str("mode").unwrap_or("constant") == "constant")
}

/// Puts a Concat in a Pad's place, behind a Pad of the other axes where these are padded.
fn join(g: &mut Graph, id: NodeId, axis: usize, shape: &[usize], pads: &[i64], filler: f32) {
    let (rank, at) = (shape.len(), g.position(id));
    let mut rest = pads.to_vec();
    let [before, behind] = [axis, axis + rank].map(|i| std::mem::take(&mut rest[i]) as usize);
    let mut padded: Vec<usize> = (0..rank).map(|i| shape[i] + (rest[i] + rest[i + rank]) as usize).collect();
    let mut pad = g.remove_node(id);
    let (name, y) = (pad.name.clone(), pad.output(0));
    let mut inputs = pad.inputs().to_vec();
    let mut middle = inputs[0];
    let mut piece = |g: &mut Graph, what: &str, n: usize| {
        padded[axis] = n;
        (n > 0).then(|| g.add_constant(&format!("{name}_{what}"), Tensor::of_f32(&padded, vec![filler; padded.iter().product()])))
    };
    let [before, behind] = [piece(g, "before", before), piece(g, "behind", behind)];
    if rest.iter().any(|n| *n != 0) {
        let v = g.add_value(&format!("{name}_padded"));
        g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
        pad.name = format!("{name}_rest");
        pad.came_from.push(name.clone());
        match inputs.get_mut(1) {
            Some(list) => *list = Some(g.add_constant(&format!("{name}_pads"), Tensor::of_i64(&[rest.len()], rest))),
            None => pad.set_attr("pads", rest),
        }
        g.insert_node(at, pad, &inputs, &[Some(v)]);
        middle = Some(v);
    }
    let at = middle.and_then(|v| g.value(v).producer()).map_or(at, |(n, _)| at.max(g.position(n) + 1));
    let concat = Node::new(Op::Concat, name).with("axis", axis as i64);
    let operands: Vec<Option<ValueId>> = [before, middle, behind].into_iter().filter(Option::is_some).collect();
    g.insert_node(at, concat, &operands, &[y]);
    inputs.into_iter().skip(1).flatten().for_each(|v| g.remove_idle(v));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Fate, Limit};
    use crate::transform::testing::{noise, result, value};

    /// x[1,2,3,2] → Pad → y
    fn model(pads: &[i64], filler: Option<f32>, opset: i64, mode: &str) -> Model {
        let mut m = Model { opsets: vec![(String::new(), opset)], ..Model::default() };
        let g = &mut m.graph;
        let (x, y) = (value(g, "x", &[1, 2, 3, 2]), g.add_value("y"));
        g.inputs.push(x);
        g.outputs.push(y);
        let node = Node::new(Op::Pad, "pad").with("mode", mode);
        if opset < 11 {
            g.add_node(node.with("pads", pads.to_vec()).with("value", filler.unwrap_or(0.0)), &[Some(x)], &[Some(y)]);
        } else {
            let list = g.add_constant("pads", Tensor::of_i64(&[8], pads.to_vec()));
            let filler = filler.map(|n| g.add_constant("filler", Tensor::scalar(n)));
            g.add_node(node, &[Some(x), Some(list), filler], &[Some(y)]);
        }
        m
    }

    fn target(axis: usize) -> Profile {
        Profile { limits: vec![Limit { ops: vec![Op::Pad], must: Must::Unpadded(axis), then: Fate::Refused, ..Limit::default() }], ..Profile::default() }
    }

    #[test]
    fn a_pad_before_the_axis_becomes_a_concat_of_the_same_numbers() {
        let cases: [(&[i64], Option<f32>, &[Op]); 4] = [
            (&[0, 1, 0, 0, 0, 2, 0, 0], None, &[Op::Concat]),
            (&[0, 3, 0, 0, 0, 0, 0, 0], Some(0.5), &[Op::Concat]),
            (&[0, 1, 1, 0, 0, 1, 0, 2], Some(-2.0), &[Op::Pad, Op::Concat]),
            (&[0, 0, 1, 1, 0, 4, 1, 1], None, &[Op::Pad]),
        ];
        for ((pads, filler, ops), opset) in cases.into_iter().flat_map(|c| [(c, 10), (c, 17)]) {
            let before = model(pads, filler, opset, "constant");
            let mut after = before.clone();
            concat_pads(&mut after, &target(1));
            assert_eq!(after.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), ops, "{pads:?}");
            let barred = target(1).barred(&after, &infer(&after, &InputShapes::new())).len();
            assert_eq!((after.graph.value(after.graph.outputs[0]).name.as_str(), barred), ("y", 0));
            let x = Tensor::of_f32(&[1, 2, 3, 2], noise(&[1, 2, 3, 2], 1));
            assert_eq!(result(&before, &x), result(&after, &x), "{pads:?}");
        }
    }

    #[test]
    fn what_mirrors_or_cuts_off_stays_and_says_so() {
        for (last, mode) in [(0, "reflect"), (-1, "constant")] {
            let mut m = model(&[0, 1, 0, 0, 0, last, 0, 0], None, 17, mode);
            let notes = concat_pads(&mut m, &target(1));
            assert!(notes.list().len() == 1 && m.graph.nodes().all(|(_, n)| n.op == Op::Pad));
            assert!(concat_pads(&mut m, &target(2)).list().is_empty());
        }
    }
}
