//! Values between a node and what is computed with it.

use super::plan::Planner;
use super::suits::{fits, has_floor};
use crate::graph::{Flow, Form, Port, ValueId};
use crate::target::Fuse;
use std::collections::BTreeSet;

/// A Relu or Clip that vanishes into the quantizer behind it: what it reads, and what it makes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    pub before: ValueId,
    pub behind: ValueId,
    /// Whether its bounds must not lie within the codes.
    pub exact: bool,
}

/// What becomes of values between a node and what is computed with it.
#[derive(Debug, Default)]
pub struct Fused {
    /// Never codes.
    pub inner: BTreeSet<ValueId>,
    /// Of these, those before a Relu or Clip that vanishes into the quantizer behind it.
    pub floors: Vec<Floor>,
    /// Before one that does not vanish, and its result. Under one quantizer the first rounding changes nothing: to cut what is rounded, and to round again, is to
    /// round what is cut.
    pub cut: Vec<(ValueId, ValueId)>,
}

impl Planner<'_> {
    /// Values that multiply-adds are made of, at whatever distance.
    fn before_multiply_adds(&self) -> BTreeSet<ValueId> {
        let mut before = BTreeSet::new();
        for (_, node) in self.model.graph.nodes().rev() {
            let multiplies = matches!(node.op.flow(), Flow::Linear | Flow::Recurrent | Flow::Control);
            if multiplies || node.outputs().iter().flatten().any(|v| before.contains(v)) {
                before.extend(node.inputs().iter().flatten().chain(node.captures()).copied());
            }
        }
        before
    }

    pub fn fused(&self) -> Fused {
        let g = &self.model.graph;
        let before = self.before_multiply_adds();
        let within = |f: &Form| f.nodes.iter().flat_map(|n| g.node(*n).outputs()).flatten().copied().filter(|v| *v != f.output).collect::<Vec<_>>();
        let mut fused = Fused { inner: self.groups.iter().flat_map(within).collect(), ..Fused::default() };
        for (id, node) in g.nodes() {
            let Some(v) = node.output(0) else { continue };
            let [port] = g.value(v).uses() else { continue };
            if g.is_output(v) || port.slot == Port::CAPTURE || !self.is_quantized(id) || !self.is_quantized(port.node) {
                continue;
            }
            let follower = g.node(port.node);
            let together = |f: &&Fuse| fits(f, node.op, follower.op) && !(f.last && before.contains(&v));
            let rows: Vec<&Fuse> = self.rules.profile.fuse.iter().filter(together).collect();
            let (Some(y), Some(base), 1, false) = (follower.output(0), self.rules.activations, self.operands(follower).len(), rows.is_empty()) else {
                continue;
            };
            let (asks, exact) = (rows.iter().all(|f| f.floor), rows.iter().all(|f| f.exact));
            if asks && !has_floor(self.model, self.rules.profile, &self.plan.kinds, y, &self.wishes.value(y, base), exact) {
                fused.cut.push((v, y));
                continue;
            }
            fused.inner.insert(v);
            if asks {
                fused.floors.push(Floor { before: v, behind: y, exact });
            }
        }
        fused
    }
}
