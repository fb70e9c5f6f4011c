//! Gives each pair of QuantizeLinear and DequantizeLinear a scale and a zero point of its own, for compilers that change what one of them reads.

use crate::graph::{Graph, Model, NodeId, Op};
use std::collections::BTreeSet;

/// Copies every scale and zero point that another pair reads too.
pub fn own_constants(model: &mut Model) {
    let g = &mut model.graph;
    let is = |g: &Graph, id: NodeId, ops: [Op; 2]| g.get_node(id).is_some_and(|n| ops.contains(&n.op));
    let starts: Vec<NodeId> = g.order().iter().copied().filter(|id| is(g, *id, [Op::QuantizeLinear, Op::MsQuantizeLinear])).collect();
    for id in starts {
        let Some(codes) = g.node(id).output(0) else { continue };
        let ends = g.value(codes).uses().iter().map(|p| p.node).filter(|n| is(g, *n, [Op::DequantizeLinear, Op::MsDequantizeLinear]));
        let pair: BTreeSet<NodeId> = ends.chain([id]).collect();
        for slot in [1, 2] {
            let Some(old) = g.node(id).input(slot) else { continue };
            let Some(constant) = g.constant(old).cloned() else { continue };
            if g.value(old).uses().iter().all(|p| pair.contains(&p.node)) {
                continue;
            }
            let name = g.value(old).name.clone();
            let own = g.add_constant(&name, constant);
            for n in pair.iter().filter(|n| g.node(**n).input(slot) == Some(old)).copied().collect::<Vec<_>>() {
                g.set_input(n, slot, Some(own));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::tensor::Tensor;

    #[test]
    fn no_two_pairs_read_one_constant() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, q, a, b, y] = ["x", "q", "a", "b", "y"].map(|n| g.add_value(n));
        let s = g.add_constant("s", Tensor::scalar(0.5));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::new(Op::QuantizeLinear, "q1"), &[Some(x), Some(s)], &[Some(q)]);
        g.add_node(Node::new(Op::DequantizeLinear, "d1"), &[Some(q), Some(s)], &[Some(a)]);
        g.add_node(Node::new(Op::QuantizeLinear, "q2"), &[Some(a), Some(s)], &[Some(b)]);
        g.add_node(Node::new(Op::DequantizeLinear, "d2"), &[Some(b), Some(s)], &[Some(y)]);
        own_constants(&mut m);
        let scales: Vec<_> = m.graph.nodes().map(|(_, n)| n.input(1).unwrap()).collect();
        assert!(scales[0] == scales[1] && scales[2] == scales[3] && scales[0] != scales[2]);
        assert!(scales.iter().all(|v| m.graph.constant(*v).unwrap().tensor == Tensor::scalar(0.5)));
    }
}
