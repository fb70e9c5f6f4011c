//! Attention masks. A mask adds 0 where a position counts and −1e9, −3.4e38 or −∞ where it does not; what Softmax makes of the latter is 0 either
//! way. Taken at their word such constants set a scale at which every score rounds to 0. Here they saturate at what Softmax can still tell apart:
//!
//! * the input of a Softmax, and what is moved there row by row: whatever lies more than [`REACH`] below the row's largest value counts as that far below it;
//! * any other value that reaches below [`EXTREME`]: `REACH` below the least of its values that does not, and farther by the span of what it is added to.
//!
//! Both hold only for values that reach nothing but Softmax, by way of any number of additions. Exact up to `exp(−REACH)` in each row.

use crate::graph::{Flow, Graph, Inferred, InputShapes, Model, Op, ValueId, infer};
use crate::observe::Extremes;
use crate::quant::QuantizerId;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// exp(−12) is 6e-6: far less than half a step of a probability of 8 bits, a tenth of that of 16 bits.
const REACH: f32 = 12.0;
/// No score of attention lies below this; every mask's constant does.
const EXTREME: f32 = -1000.0;

/// Where values saturate.
#[derive(Debug, Default, PartialEq)]
pub struct Masks {
    /// Inputs of Softmax and what they are moved from, and the axis of their rows: counted from the end, and whether all later axes belong to the row.
    rows: BTreeMap<ValueId, Rows>,
    /// Values that reach nothing but Softmax.
    before: BTreeSet<ValueId>,
    /// Quantizers of such values alone, with those of what an Add adds to them.
    pub quantizers: BTreeMap<QuantizerId, BTreeSet<QuantizerId>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Rows {
    axis: i64,
    /// Softmax before opset 13: the row is everything from `axis` on.
    flat: bool,
}

impl Masks {
    /// Looks at every Softmax of a placed model, whose inputs have these shapes where they are known.
    pub fn of(model: &Model, shapes: &InputShapes) -> Masks {
        let g = &model.graph;
        let inferred = LazyCell::new(|| infer(model, shapes));
        let mut masks = Masks::default();
        let mut only = BTreeMap::new();
        let modern = model.opset("").unwrap_or(0) >= 13;
        for (_, node) in g.nodes().filter(|(_, n)| n.op == Op::Softmax) {
            let Some(mut x) = node.input(0).map(|x| behind(g, x)) else { continue };
            let rows = Rows { axis: node.int("axis").unwrap_or(if modern { -1 } else { 1 }), flat: !modern };
            while reaches_only_softmax(g, x, &mut only) && masks.rows.insert(x, rows).is_none() {
                let Some(from) = moved_by_rows(g, x, rows, &inferred) else { break };
                x = from;
            }
        }
        let mut stray = BTreeSet::new();
        for (_, node) in g.nodes() {
            if let (Some(q), Some(y)) = (node.quantizer(), node.output(0)) {
                let q = model.quantizers.root(q);
                match reaches_only_softmax(g, y, &mut only) {
                    true => drop(masks.quantizers.entry(q).or_default()),
                    false => drop(stray.insert(q)),
                }
            }
            let sum = node.output(0).filter(|y| node.op == Op::Add && reaches_only_softmax(g, *y, &mut only));
            let operands: Vec<_> = node.inputs().iter().flatten().filter_map(|v| quantizer(model, *v)).collect();
            if let (Some(_), &[a, b]) = (sum, &operands[..])
                && a != b
            {
                masks.quantizers.entry(a).or_default().insert(b);
                masks.quantizers.entry(b).or_default().insert(a);
            }
        }
        masks.quantizers.retain(|q, _| !stray.contains(q));
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

/// Whether values this small hold a mask.
pub fn is_mask(range: &Extremes) -> bool {
    range.lo <= EXTREME && range.hi > EXTREME
}

/// The least value that no mask made, of some in any order.
pub fn least_unmasked(values: impl Iterator<Item = f32>) -> Option<f32> {
    values.filter(|v| *v > EXTREME).reduce(f32::min)
}

/// Where a value saturates that holds a mask: `least` is the least that it holds beside, if that is known, and `others` are the ranges of what it is
/// added to.
pub fn floor(range: Extremes, least: Option<f32>, others: impl Iterator<Item = Extremes>) -> Option<f32> {
    let span = |o: Extremes| if o.is_empty() || o.lo <= EXTREME { 0.0 } else { o.hi - o.lo };
    let floor = least.unwrap_or(range.hi).min(0.0) - REACH - others.map(span).fold(0.0, f32::max);
    (is_mask(&range) && floor.is_finite()).then_some(floor)
}

/// The value before a FakeQuant.
fn behind(g: &Graph, v: ValueId) -> ValueId {
    match g.value(v).producer() {
        Some((n, _)) if g.node(n).op == Op::FakeQuant => g.node(n).input(0).unwrap_or(v),
        _ => v,
    }
}

/// What `v` is made from where its rows are moved as they are.
fn moved_by_rows(g: &Graph, v: ValueId, rows: Rows, inferred: &LazyCell<Inferred, impl FnOnce() -> Inferred>) -> Option<ValueId> {
    let node = g.node(g.value(v).producer()?.0);
    let from = behind(g, node.input(0).filter(|_| matches!(node.op, Op::Reshape | Op::Squeeze | Op::Unsqueeze | Op::Identity))?);
    let (a, b) = (inferred.shape(from)?, inferred.shape(v)?);
    // The axis is the last of both, counted in the same way.
    let is_last = rows.axis == -1 || rows.axis + 1 == b.len() as i64 && a.len() == b.len();
    (is_last && a.last() == b.last()).then_some(from)
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
        let range = |lo, hi| Extremes { lo, hi };
        let at = |r, least, others: &[Extremes]| floor(r, least, others.iter().copied());
        assert_eq!(at(range(f32::MIN, 0.0), Some(0.0), &[range(-5.0, 5.0)]), Some(-REACH - 10.0));
        assert_eq!(at(range(f32::NEG_INFINITY, 0.0), None, &[range(-1e9, 5.0), range(-1.0, 1.0)]), Some(-REACH - 2.0));
        assert_eq!(at(range(-1e9, 6.0), Some(-30.0), &[]), Some(-30.0 - REACH), "scores that hold a mask already");
        assert_eq!(at(range(-60.0, 3.0), Some(-60.0), &[range(-5.0, 5.0)]), None);
        assert_eq!(at(range(-5.0, 5.0), Some(-5.0), &[range(f32::MIN, 0.0)]), None);
        assert_eq!(least_unmasked([3.0, -1e9, -7.0].into_iter()), Some(-7.0));
    }
}
