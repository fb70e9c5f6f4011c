//! Attention masks. A mask adds 0 where a position counts and −1e9, −3.4e38 or −∞ where it does not; what Softmax makes of the latter is 0 either
//! way. Taken at their word such constants set a scale at which every score rounds to 0. Here they saturate at what Softmax can still tell apart:
//!
//! * the input of a Softmax: in each row, whatever lies more than [`REACH`] below the row's largest value counts as that far below it;
//! * an operand of an Add before it that reaches below [`EXTREME`]: `REACH` and the span of the other operand below its own largest value.
//!
//! Both hold only for values that reach nothing but Softmax. Exact up to `exp(−REACH)` in each row.

use crate::graph::{Flow, Graph, Model, Op, ValueId};
use crate::observe::Extremes;
use crate::quant::QuantizerId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// exp(−12) is 6e-6: far less than half a step of a probability of 8 bits, a tenth of that of 16 bits.
const REACH: f32 = 12.0;
/// No score of attention lies below this; every mask's constant does.
const EXTREME: f32 = -1000.0;

/// Where values saturate.
#[derive(Debug, Default, PartialEq)]
pub struct Masks {
    /// Inputs of Softmax, and the axis of their rows: counted from the end, and whether all later axes belong to the row.
    rows: BTreeMap<ValueId, Rows>,
    /// Values that reach nothing but Softmax.
    before: BTreeSet<ValueId>,
    /// Quantizers of an Add's operand, with that of the other operand.
    pub operands: BTreeMap<QuantizerId, QuantizerId>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Rows {
    axis: i64,
    /// Softmax before opset 13: the row is everything from `axis` on.
    flat: bool,
}

impl Masks {
    /// Looks at every Softmax of a placed model.
    pub fn of(model: &Model) -> Masks {
        let g = &model.graph;
        let mut masks = Masks::default();
        let mut only = BTreeMap::new();
        let modern = model.opset("").unwrap_or(0) >= 13;
        for (_, node) in g.nodes().filter(|(_, n)| n.op == Op::Softmax) {
            let Some(x) = node.input(0) else { continue };
            let raw = behind(g, x);
            if reaches_only_softmax(g, raw, &mut only) {
                let axis = node.int("axis").unwrap_or(if modern { -1 } else { 1 });
                masks.rows.insert(raw, Rows { axis, flat: !modern });
            }
            let Some(add) = addition(g, raw) else { continue };
            let quantizers: Vec<_> = add.iter().map(|&v| quantizer(model, v)).collect();
            if let [Some(a), Some(b)] = quantizers[..]
                && a != b
            {
                masks.operands.insert(a, b);
                masks.operands.insert(b, a);
            }
        }
        let stray: BTreeSet<QuantizerId> = g
            .nodes()
            .filter_map(|(_, n)| Some((model.quantizers.root(n.quantizer()?), n.output(0)?)))
            .filter(|(_, y)| !reaches_only_softmax(g, *y, &mut only))
            .map(|(q, _)| q)
            .collect();
        masks.operands.retain(|q, _| !stray.contains(q));
        masks.before = g.nodes().flat_map(|(_, n)| n.outputs().iter().flatten()).copied().filter(|y| reaches_only_softmax(g, *y, &mut only)).collect();
        masks
    }

    /// `x`, the tensor at `value`, with its rows saturated; `None` where nothing is to be done. Rows that are masked as a whole leave no trace.
    pub fn saturate(&self, value: ValueId, x: &[f32], shape: &[usize]) -> Option<Vec<f32>> {
        let mut out = Vec::with_capacity(x.len());
        self.each(value, x, shape, |row, stride, floor| match stride {
            1 => out.extend(x[row].iter().map(|v| v.max(floor))),
            _ => out.extend(row.step_by(stride).map(|i| x[i].max(floor))),
        })?;
        Some(out)
    }

    /// The tensor `x` at `value` and another model's `y` of the same shape, both saturated where `x` is: as Softmax sees them. `None` where nothing is
    /// to be done: the value holds no mask, or something else reads it.
    pub fn seen_by_softmax(&self, value: ValueId, x: &[f32], y: &[f32], shape: &[usize]) -> Option<(Vec<f32>, Vec<f32>)> {
        if x.len() != y.len() {
            return None;
        }
        let (mut a, mut b) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
        let mut put = |i: usize, floor: f32| {
            a.push(x[i].max(floor));
            b.push(y[i].max(floor));
        };
        if self.each(value, x, shape, |row, stride, floor| row.step_by(stride).for_each(|i| put(i, floor))).is_none() {
            // A mask before it is added: its rows are not known yet.
            let (lo, hi) = x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
            if lo > EXTREME || hi <= EXTREME || !self.before.contains(&value) {
                return None;
            }
            (0..x.len()).for_each(|i| put(i, hi.min(0.0) - REACH));
        }
        Some((a, b))
    }

    /// Calls `put` with the places of each row that counts, a range and the stride in it, and with the row's floor.
    fn each(&self, value: ValueId, x: &[f32], shape: &[usize], mut put: impl FnMut(Range<usize>, usize, f32)) -> Option<()> {
        let rows = self.rows.get(&value)?;
        let rank = shape.len() as i64;
        let axis = usize::try_from(if rows.axis < 0 { rows.axis + rank } else { rows.axis }).ok().filter(|a| *a < shape.len())?;
        let stride: usize = if rows.flat { 1 } else { shape[axis + 1..].iter().product() };
        let n: usize = if rows.flat { shape[axis..].iter().product() } else { shape[axis] };
        let size = (n * stride).max(1);
        for start in (0..x.len()).step_by(size) {
            let end = (start + size).min(x.len());
            for first in start..end.min(start + stride) {
                let top = match stride {
                    1 => {
                        let mut row = Extremes::default();
                        row.observe(&x[first..end]);
                        row.hi
                    }
                    _ => (first..end).step_by(stride).fold(f32::NEG_INFINITY, |top, i| top.max(x[i])),
                };
                if top > EXTREME {
                    put(first..end, stride, top - REACH);
                }
            }
        }
        Some(())
    }
}

/// The range of a mask's operand, where it is one: `other` is that of what it is added to.
pub fn saturated(range: Extremes, other: Extremes) -> Extremes {
    let span = if other.is_empty() || other.lo <= EXTREME { 0.0 } else { other.hi - other.lo };
    let floor = range.hi.min(0.0) - REACH - span;
    if range.lo <= EXTREME && range.hi > EXTREME && floor.is_finite() { Extremes { lo: range.lo.max(floor), hi: range.hi } } else { range }
}

/// The value before a FakeQuant.
fn behind(g: &Graph, v: ValueId) -> ValueId {
    match g.value(v).producer() {
        Some((n, _)) if g.node(n).op == Op::FakeQuant => g.node(n).input(0).unwrap_or(v),
        _ => v,
    }
}

/// The operands of the addition that makes `v`, seen through moves.
fn addition(g: &Graph, mut v: ValueId) -> Option<[ValueId; 2]> {
    loop {
        v = behind(g, v);
        let node = g.node(g.value(v).producer()?.0);
        match node.op {
            Op::Add => return Some([node.input(0)?, node.input(1)?]),
            op if op.flow() == Flow::Move && op != Op::Where => v = node.input(0)?,
            _ => return None,
        }
    }
}

fn quantizer(model: &Model, v: ValueId) -> Option<QuantizerId> {
    let (n, _) = model.graph.value(v).producer()?;
    Some(model.quantizers.root(model.graph.node(n).quantizer()?))
}

/// Whether all that a value ends in is Softmax, by way of additions and moves.
fn reaches_only_softmax(g: &Graph, v: ValueId, known: &mut BTreeMap<ValueId, bool>) -> bool {
    if let Some(&yes) = known.get(&v) {
        return yes;
    }
    let uses = g.value(v).uses();
    let passes = |p: &crate::graph::Port| g.get_node(p.node).map(|n| (n.op, n.output(0)));
    let yes = !uses.is_empty()
        && !g.is_output(v)
        && uses.to_vec().iter().all(|p| match passes(p) {
            Some((Op::Softmax, _)) => p.slot == 0,
            Some((op, Some(y))) if matches!(op, Op::Add | Op::FakeQuant) || op.flow() == Flow::Move => reaches_only_softmax(g, y, known),
            _ => false,
        });
    known.insert(v, yes);
    yes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_where_softmax_gives_nothing_and_dead_rows_leave_no_trace() {
        let masks = Masks { rows: BTreeMap::from([(ValueId(3), Rows { axis: -1, flat: false })]), ..Masks::default() };
        let x = [0.0, f32::MIN, 2.0, -50.0, f32::MIN, f32::NEG_INFINITY, f32::MIN, f32::MIN];
        assert_eq!(masks.saturate(ValueId(3), &x, &[2, 4]).unwrap(), [0.0, 2.0 - REACH, 2.0, 2.0 - REACH]);
        assert_eq!(masks.saturate(ValueId(4), &x, &[2, 4]), None);
        let first = Masks { rows: BTreeMap::from([(ValueId(3), Rows { axis: 0, flat: false })]), ..Masks::default() };
        assert_eq!(first.saturate(ValueId(3), &[5.0, 1.0, -90.0, 2.0], &[2, 2]).unwrap(), [5.0, 5.0 - REACH, 1.0, 2.0]);
    }

    #[test]
    fn what_softmax_cannot_tell_apart_is_compared_as_equal() {
        let masks = Masks {
            rows: BTreeMap::from([(ValueId(3), Rows { axis: -1, flat: false })]),
            before: BTreeSet::from([ValueId(2), ValueId(3)]),
            ..Masks::default()
        };
        let (x, y) = ([1.0, f32::MIN, 0.5, 0.0], [1.5, -30.0, 0.5, -1e9]);
        let seen = |value| masks.seen_by_softmax(ValueId(value), &x, &y, &[1, 4]);
        assert_eq!(seen(3).unwrap(), (vec![1.0, 1.0 - REACH, 0.5, 0.0], vec![1.5, 1.0 - REACH, 0.5, 1.0 - REACH]));
        // Before it is added, a mask has no rows, and the largest value tells nothing above 0.
        assert_eq!(seen(2).unwrap(), (vec![1.0, -REACH, 0.5, 0.0], vec![1.5, -REACH, 0.5, -REACH]));
        assert_eq!(seen(1), None);
        assert_eq!(masks.seen_by_softmax(ValueId(2), &[1.0, -60.0], &y[..2], &[2]), None, "scores are no mask");
    }

    #[test]
    fn a_mask_sets_no_scale_and_a_bias_keeps_its_own() {
        let scores = Extremes { lo: -5.0, hi: 5.0 };
        assert_eq!(saturated(Extremes { lo: f32::MIN, hi: 0.0 }, scores), Extremes { lo: -REACH - 10.0, hi: 0.0 });
        assert_eq!(saturated(Extremes { lo: -1e9, hi: 0.0 }, Extremes { lo: -1e9, hi: 5.0 }).lo, -REACH);
        let bias = Extremes { lo: -60.0, hi: 3.0 };
        assert_eq!(saturated(bias, scores), bias);
        assert_eq!(saturated(scores, Extremes { lo: f32::MIN, hi: 0.0 }), scores);
    }
}
