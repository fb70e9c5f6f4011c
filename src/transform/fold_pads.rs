//! Makes a Pad the padding of the Conv or MaxPool behind it, as exporters write layers whose sides are padded unequally.
//! Exact: a Conv pads with zeros; a MaxPool with what is never the largest, so that zeros go behind a Relu too.
//! Declines: pads below 0 or as wide as the window, windows that round up, what a limit of the target would then bar.

use super::concat_pads::filler;
use crate::graph::{Graph, InputShapes, Model, NodeId, Op, bounds, infer, pads};
use crate::note::Notes;
use crate::target::Profile;
use std::collections::BTreeSet;

/// Folds every Pad all of whose readers can pad by themselves.
pub fn fold_pads(model: &mut Model, target: &Profile) -> Notes {
    let mut notes = Notes::of("fold-batch-norm");
    let barred = |m: &Model| target.barred(m, &infer(m, &InputShapes::new())).into_keys().collect::<BTreeSet<NodeId>>();
    let candidates: Vec<_> = model.graph.nodes().filter(|(_, n)| n.op == Op::Pad).filter_map(|(id, _)| Some((id, padded_layers(&model.graph, id)?))).collect();
    if candidates.is_empty() {
        return notes;
    }
    let already = barred(model);
    let mut folded = 0;
    for (id, layers) in candidates {
        let mut with = model.clone();
        fold(&mut with.graph, id, &layers);
        if barred(&with).is_subset(&already) {
            *model = with;
            folded += 1;
        } else {
            notes.declined(&model.graph.node(id).name, "it stays a Pad: the target's layers do not pad so");
        }
    }
    if folded > 0 {
        notes.changed("", format!("{folded} Pads became their layers' own padding"));
    }
    notes
}

/// The layers that read a Pad, each with the pads that it needs, if all can have them.
fn padded_layers(g: &Graph, id: NodeId) -> Option<Vec<(NodeId, Vec<i64>)>> {
    let node = g.node(id);
    let y = node.output(0).filter(|y| !g.is_output(*y))?;
    let added = pads(g, node).filter(|p| p.len() >= 6 && p.iter().all(|n| *n >= 0) && node.str("mode").unwrap_or("constant") == "constant")?;
    let (axes, number) = (added.len() / 2, filler(g, node)?);
    let spatial = [&added[2..axes], &added[axes + 2..]].concat();
    let least = g.value(node.input(0)?).producer().and_then(|(n, _)| bounds(g, g.node(n))).map_or(f32::NEG_INFINITY, |b| b.0);
    if added[..2].iter().chain(&added[axes..axes + 2]).any(|n| *n != 0) || g.value(y).uses().is_empty() {
        return None;
    }
    let layer = |layer: NodeId, slot: u32| {
        let n = g.get_node(layer).filter(|_| slot == 0)?;
        let suits = match n.op {
            Op::Conv => number == 0.0,
            Op::MaxPool => number <= least && n.int("ceil_mode").unwrap_or(0) == 0,
            _ => false,
        };
        let unpadded = vec![0; spatial.len()];
        let own = match n.str("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => n.ints("pads").map_or(unpadded, <[i64]>::to_vec),
            "VALID" => unpadded,
            _ => return None,
        };
        let kernel = match n.ints("kernel_shape") {
            Some(k) => k.to_vec(),
            None => g.constant(n.input(1)?)?.tensor.shape().get(2..)?.iter().map(|k| *k as i64).collect(),
        };
        if !suits || own.len() != spatial.len() || kernel.len() * 2 != own.len() {
            return None;
        }
        let dilations = n.ints("dilations").map_or_else(|| vec![1; kernel.len()], <[i64]>::to_vec);
        if dilations.len() != kernel.len() {
            return None;
        }
        let widths: Vec<i64> = kernel.iter().zip(&dilations).map(|(k, d)| k.saturating_sub(1).saturating_mul(*d)).collect();
        let all: Vec<i64> = own.iter().zip(&spatial).map(|(a, b)| a.saturating_add(*b)).collect();
        let narrow = |(i, p): (usize, &i64)| *p <= widths[i % widths.len()];
        all.iter().enumerate().all(narrow).then_some((layer, all))
    };
    // A node that reads it twice cannot be such a layer.
    g.value(y).uses().iter().map(|p| layer(p.node, p.slot)).collect()
}

fn fold(g: &mut Graph, pad: NodeId, layers: &[(NodeId, Vec<i64>)]) {
    let (x, name) = (g.node(pad).input(0), g.node(pad).name.clone());
    for (layer, pads) in layers {
        g.set_input(*layer, 0, x);
        let n = g.node_mut(*layer);
        n.remove_attr("auto_pad");
        n.set_attr("pads", pads.clone());
        n.came_from.push(name.clone());
    }
    let inputs = g.remove_node(pad).inputs().to_vec();
    inputs.into_iter().skip(1).flatten().for_each(|v| g.remove_idle(v));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::target::{Fate, Limit, Must};
    use crate::tensor::Tensor;
    use crate::transform::testing::{noise, result, value};

    /// x[1,2,5,4] → first → Pad → layer → y
    fn model(first: Op, added: &[i64], number: f32, layer: Node) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let x = value(g, "x", &[1, 2, 5, 4]);
        let [a, b, y] = ["a", "b", "y"].map(|n| g.add_value(n));
        let list = g.add_constant("list", Tensor::of_i64(&[8], added.to_vec()));
        let number = g.add_constant("number", Tensor::scalar(number));
        let weight = (layer.op == Op::Conv).then(|| g.add_constant("w", Tensor::of_f32(&[3, 2, 3, 2], noise(&[3, 2, 3, 2], 5))));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(first, "first"), &[Some(x)], &[Some(a)]);
        g.add_node(Node::new(Op::Pad, "pad"), &[Some(a), Some(list), Some(number)], &[Some(b)]);
        g.add_node(layer, &[vec![Some(b)], weight.map(Some).into_iter().collect()].concat(), &[Some(y)]);
        m
    }

    fn conv() -> Node {
        Node::new(Op::Conv, "layer")
    }

    fn pool() -> Node {
        Node::new(Op::MaxPool, "layer").with("kernel_shape", vec![3, 2]).with("strides", vec![2, 1])
    }

    const UNEQUAL: [i64; 8] = [0, 0, 1, 0, 0, 0, 2, 1];

    #[test]
    fn layers_pad_by_themselves_where_that_is_the_same() {
        let cases = [
            (Op::Neg, UNEQUAL, 0.0, conv(), true),
            (Op::Neg, UNEQUAL, 0.0, conv().with("auto_pad", "VALID"), true),
            (Op::Neg, [0, 0, 1, 0, 0, 0, 0, 0], 0.0, conv().with("pads", vec![1i64, 1, 0, 0]), true),
            (Op::Neg, UNEQUAL, f32::NEG_INFINITY, pool(), true),
            (Op::Relu, UNEQUAL, 0.0, pool(), true),
            (Op::Neg, UNEQUAL, 0.0, pool(), false),
            (Op::Neg, UNEQUAL, 0.5, conv(), false),
            (Op::Neg, UNEQUAL, 0.0, conv().with("auto_pad", "SAME_UPPER"), false),
            (Op::Neg, UNEQUAL, 0.0, conv().with("dilations", vec![1i64]), false),
            (Op::Neg, UNEQUAL, f32::NEG_INFINITY, pool().with("ceil_mode", 1i64), false),
            (Op::Neg, [0, 0, 3, 0, 0, 0, 0, 0], 0.0, conv(), false),
            (Op::Neg, [0, 1, 0, 0, 0, -1, 0, 0], 0.0, conv(), false),
        ];
        for (first, added, number, layer, folds) in cases {
            let before = model(first, &added, number, layer);
            let mut after = before.clone();
            let notes = fold_pads(&mut after, &Profile::default());
            assert_eq!(after.graph.nodes().all(|(_, n)| n.op != Op::Pad), folds, "{added:?} {number}");
            assert_eq!(notes.list().is_empty(), !folds);
            if folds {
                let x = Tensor::of_f32(&[1, 2, 5, 4], noise(&[1, 2, 5, 4], 3));
                assert_eq!(result(&before, &x), result(&after, &x), "{added:?} {number}");
            } else {
                assert_eq!(before, after);
            }
        }
    }

    #[test]
    fn a_pad_stays_where_the_target_bars_what_it_would_become() {
        let mut m = model(Op::Neg, &UNEQUAL, 0.0, conv());
        let must = Must::AtMost { name: "pads".into(), most: 1 };
        let target = Profile { limits: vec![Limit { ops: vec![Op::Conv], must, then: Fate::Refused, ..Limit::default() }], ..Profile::default() };
        let notes = fold_pads(&mut m, &target);
        assert!(notes.list().iter().any(|n| n.text.contains("the target's layers do not pad so")), "{notes:?}");
        assert!(m.graph.nodes().any(|(_, n)| n.op == Op::Pad));
    }
}
