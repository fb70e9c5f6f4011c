//! What must not be rounded: values that are compared, cut to whole numbers or used as indices. A code's value is near the number and not the
//! number, so that `x == 3` fails on it. And what a Log reads: of numbers that differ by their ratios, evenly spaced codes keep the largest alone.

use super::kind::{Kind, is_real};
use crate::graph::{Flow, Graph, Inferred, Node, NodeId, Op, Port};
use std::collections::{BTreeMap, BTreeSet};

/// Why a node stays float that works for a Log.
const RATIOS: &str = "a Log reads what it makes, and tells small numbers apart that codes do not";

/// Ports that read real values and need them as they are. Nodes that serve such ports become [`Kind::Exact`], or stay float where that is a Log in
/// float: those that move values to one, and those that compute for nothing else.
pub fn exact_ports(g: &Graph, inferred: &Inferred, kinds: &mut BTreeMap<NodeId, Kind>) -> BTreeSet<(NodeId, usize)> {
    let mut exact: BTreeSet<(NodeId, usize)> = BTreeSet::new();
    // Those of them that serve a Log alone.
    let mut ratios: BTreeSet<(NodeId, usize)> = BTreeSet::new();
    for (id, node) in g.nodes().rev() {
        let real = |slot: &usize| node.input(*slot).is_some_and(|v| g.constant(v).is_none() && is_real(inferred, v));
        let uses = || node.outputs().iter().flatten().flat_map(|v| g.value(*v).uses());
        let is_exact = |p: &Port| exact.contains(&(p.node, p.slot as usize));
        // Whether it works for such ports and for nothing else.
        let alone = |ports: &BTreeSet<(NodeId, usize)>| {
            let all = uses().all(|p| ports.contains(&(p.node, p.slot as usize)));
            all && uses().next().is_some() && !node.outputs().iter().flatten().any(|v| g.is_output(*v))
        };
        let log = node.op == Op::Log;
        if log && matches!(kinds[&id], Kind::Float(_)) || !log && may_serve_log(node, &kinds[&id]) && alone(&ratios) {
            if !log {
                kinds.insert(id, Kind::Float(RATIOS.into()));
            }
            let read = (0..node.inputs().len()).filter(real).map(|slot| (id, slot));
            exact.extend(read.clone());
            ratios.extend(read);
            continue;
        }
        let serves = match (&kinds[&id], node.op.flow()) {
            _ if (0..node.inputs().len()).any(|slot| node.reads_exactly(slot) && real(&slot)) => {
                exact.extend((0..node.inputs().len()).filter(|slot| node.reads_exactly(*slot) && real(slot)).map(|slot| (id, slot)));
                continue;
            }
            (Kind::Moves, _) if uses().any(is_exact) => (0..node.inputs().len()).collect::<Vec<_>>(),
            // From one real type to another.
            (_, Flow::Meta) if node.op == Op::Cast && uses().any(is_exact) => vec![0],
            (Kind::Quantized | Kind::Float(_), Flow::Arithmetic | Flow::Pointwise | Flow::Clamp | Flow::Move) if alone(&exact) => {
                (0..node.inputs().len()).collect()
            }
            _ => continue,
        };
        let serves: Vec<usize> = serves.into_iter().filter(real).collect();
        if !serves.is_empty() {
            kinds.insert(id, Kind::Exact);
            exact.extend(serves.into_iter().map(|slot| (id, slot)));
        }
    }
    exact
}

/// Whether a node may make what a Log reads, without layers between.
fn may_serve_log(node: &Node, kind: &Kind) -> bool {
    let sums = matches!(node.op, Op::ReduceSum | Op::ReduceMean | Op::ReduceSumSquare | Op::ReduceL2 | Op::Softmax);
    let each = matches!(node.op.flow(), Flow::Arithmetic | Flow::Pointwise | Flow::Clamp | Flow::Move);
    (sums || each) && matches!(kind, Kind::Quantized | Kind::Moves | Kind::Float(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{InputShapes, Model, Type, infer};
    use crate::tensor::DType;

    /// x → Relu → Softmax → Log → y, and Relu → z.
    #[test]
    fn what_a_log_reads_stays_float_as_far_as_it_serves_that_alone() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, r, s, y, z] = ["x", "r", "s", "y", "z"].map(|n| g.add_value(n));
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
        (g.inputs, g.outputs) = (vec![x], vec![y, z]);
        let relu = g.add_node(Node::new(Op::Relu, "relu"), &[Some(x)], &[Some(r)]);
        let softmax = g.add_node(Node::new(Op::Softmax, "softmax"), &[Some(r)], &[Some(s)]);
        let log = g.add_node(Node::new(Op::Log, "log"), &[Some(s)], &[Some(y)]);
        let other = g.add_node(Node::new(Op::Sigmoid, "other"), &[Some(r)], &[Some(z)]);
        let inferred = infer(&m, &InputShapes::new());
        let placed = |of_log: Kind| {
            let mut kinds: BTreeMap<_, _> = [(relu, Kind::Quantized), (softmax, Kind::Quantized), (log, of_log), (other, Kind::Quantized)].into();
            let exact = exact_ports(&m.graph, &inferred, &mut kinds);
            (exact, kinds)
        };
        let (exact, kinds) = placed(Kind::Float("no codes".into()));
        assert_eq!(exact, [(log, 0), (softmax, 0)].into());
        assert_eq!((&kinds[&softmax], &kinds[&relu]), (&Kind::Float(RATIOS.into()), &Kind::Quantized));
        // A target that runs Log on codes hands it codes.
        assert!(placed(Kind::Quantized).0.is_empty());
    }
}
