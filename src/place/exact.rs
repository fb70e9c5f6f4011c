//! What must not be rounded: values that are compared, cut to whole numbers or used as indices. A code's value is near the number and not the
//! number, so that `x == 3` fails on it.

use super::kind::{Kind, is_real};
use crate::graph::{Flow, Graph, Inferred, NodeId, Op, Port};
use std::collections::{BTreeMap, BTreeSet};

/// Ports that read real values and need them as they are. Nodes that serve such ports become [`Kind::Exact`]: those that move values to one, and
/// those that compute for nothing else.
pub fn exact_ports(g: &Graph, inferred: &Inferred, kinds: &mut BTreeMap<NodeId, Kind>) -> BTreeSet<(NodeId, usize)> {
    let mut exact: BTreeSet<(NodeId, usize)> = BTreeSet::new();
    for (id, node) in g.nodes().rev() {
        let real = |slot: &usize| node.input(*slot).is_some_and(|v| g.constant(v).is_none() && is_real(inferred, v));
        let uses = || node.outputs().iter().flatten().flat_map(|v| g.value(*v).uses());
        let is_exact = |p: &Port| exact.contains(&(p.node, p.slot as usize));
        let serves = match (&kinds[&id], node.op.flow()) {
            _ if (0..node.inputs().len()).any(|slot| node.reads_exactly(slot) && real(&slot)) => {
                exact.extend((0..node.inputs().len()).filter(|slot| node.reads_exactly(*slot) && real(slot)).map(|slot| (id, slot)));
                continue;
            }
            (Kind::Moves, _) if uses().any(is_exact) => (0..node.inputs().len()).collect::<Vec<_>>(),
            // From one real type to another.
            (_, Flow::Meta) if node.op == Op::Cast && uses().any(is_exact) => vec![0],
            (Kind::Quantized | Kind::Float(_), Flow::Arithmetic | Flow::Pointwise | Flow::Clamp | Flow::Move)
                if uses().next().is_some() && uses().all(is_exact) && !node.outputs().iter().flatten().any(|v| g.is_output(*v)) =>
            {
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
