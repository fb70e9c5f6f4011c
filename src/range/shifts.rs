//! Chips that rescale by shifting reach so far only: a target's windows hold for the positions (`scale = 2^−position`) of a node's operands, bias and
//! result. Scales that were found without regard to them move where they must, those that lose least: a search by the cost of all moves together, which
//! is exact since a move away from where the loss is least never gains. Windows that nothing joins are searched apart.
//! Needs: one power-of-two scale a tensor. Declines: windows that no positions keep to.

use super::saved::Seen;
use super::weights::{Weights, fit_constant};
use crate::error::Result;
use crate::graph::{Flow, Graph, Linear, Model, NodeId, Op, Role, ValueId};
use crate::note::Notes;
use crate::observe::Histogram;
use crate::quant::{self, Origin, Params, QuantizerId, Scheme};
use crate::target::{Shift, Term};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// How far a position moves at most, and states that a search looks at.
const FAR: i32 = 24;
const STATES: usize = 100_000;

/// One window at one node, over indices of positions.
#[derive(Debug, Clone, PartialEq)]
struct Window {
    of: Term,
    operands: Vec<usize>,
    bias: Option<usize>,
    result: Option<usize>,
    ends: (i32, i32),
    node: String,
}

impl Window {
    fn members(&self) -> impl Iterator<Item = usize> + '_ {
        let (operands, bias, result) = match self.of {
            Term::Product | Term::Least => (true, false, true),
            Term::Bias => (true, true, false),
            Term::BiasOutput => (false, true, true),
            Term::Spread | Term::Input => (true, false, false),
            Term::Output => (false, false, true),
        };
        self.operands.iter().copied().filter(move |_| operands).chain(self.bias.filter(|_| bias)).chain(self.result.filter(|_| result))
    }

    /// How far it lies above its window (positive) or below, and which moves of one step bring it nearer.
    fn astray(&self, p: &[i32]) -> Option<Vec<(usize, i32)>> {
        let sum: i32 = self.operands.iter().map(|o| p[*o]).sum();
        let of = |i: Option<usize>| i.map_or(0, |i| p[i]);
        let (least, most) = self.operands.iter().fold((i32::MAX, i32::MIN), |(a, b), o| (a.min(p[*o]), b.max(p[*o])));
        // The value, what raises it as it rises, and what lowers it.
        let at = |end: i32| self.operands.iter().copied().filter(|o| p[*o] == end).collect::<Vec<_>>();
        let (value, up, down): (i32, Vec<usize>, Vec<usize>) = match self.of {
            Term::Product => (sum - of(self.result), self.operands.clone(), self.result.into_iter().collect()),
            Term::Bias => (sum - of(self.bias), self.operands.clone(), self.bias.into_iter().collect()),
            Term::BiasOutput => (of(self.bias) - of(self.result), self.bias.into_iter().collect(), self.result.into_iter().collect()),
            Term::Spread => (most - least, at(most), at(least)),
            Term::Least => (least - of(self.result), at(least), self.result.into_iter().collect()),
            Term::Input => (if least < self.ends.0 { least } else { most }, at(if least < self.ends.0 { least } else { most }), vec![]),
            Term::Output => (of(self.result), self.result.into_iter().collect(), vec![]),
        };
        let step = match value {
            v if v > self.ends.1 => -1,
            v if v < self.ends.0 => 1,
            _ => return None,
        };
        Some(up.into_iter().map(|i| (i, step)).chain(down.into_iter().map(|i| (i, -step))).collect())
    }
}

/// Positions that keep to all windows at the least cost, and the windows that no positions keep to. `cost(i, p)` is what position `p` of `i` costs; it does
/// not fall with the distance from `start`.
fn solve(windows: &[Window], start: &[i32], cost: &dyn Fn(usize, i32) -> f64) -> (Vec<i32>, BTreeSet<usize>) {
    let (mut positions, mut given_up) = (start.to_vec(), BTreeSet::new());
    let mut left: BTreeSet<usize> = (0..windows.len()).filter(|w| windows[*w].astray(start).is_some()).collect();
    while let Some(&first) = left.first() {
        // What one move may serve is searched together: windows that share a member, or that a third one joins.
        let near = |a: usize, b: usize| windows[a].members().any(|m| windows[b].members().any(|n| n == m));
        let mut together = BTreeSet::from([first]);
        while let Some(&w) =
            left.iter().find(|w| !together.contains(w) && together.iter().any(|t| near(*t, **w) || (0..windows.len()).any(|by| near(*t, by) && near(by, **w))))
        {
            together.insert(w);
        }
        let one_by_one = || together.iter().map(|w| BTreeSet::from([*w])).collect::<Vec<_>>();
        let moved = match search(windows, &together, &given_up, start, &positions, cost) {
            Some(moved) => vec![(together.clone(), Some(moved))],
            None => one_by_one().into_iter().map(|seed| (seed, None)).collect(),
        };
        for (seeds, moved) in moved {
            match moved.or_else(|| search(windows, &seeds, &given_up, start, &positions, cost)) {
                Some(moved) => moved.into_iter().for_each(|(i, p)| positions[i] = p),
                None => given_up.extend(seeds),
            }
        }
        left.retain(|w| !given_up.contains(w) && windows[*w].astray(&positions).is_some());
    }
    (positions, given_up)
}

/// The cheapest moves from `from` after which the `seeds` and all windows of moved positions hold; `None` where there are none, or too many to look at.
fn search(
    windows: &[Window],
    seeds: &BTreeSet<usize>,
    given_up: &BTreeSet<usize>,
    start: &[i32],
    from: &[i32],
    cost: &dyn Fn(usize, i32) -> f64,
) -> Option<BTreeMap<usize, i32>> {
    let mut of_position: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (w, window) in windows.iter().enumerate().filter(|(w, _)| !given_up.contains(w)) {
        window.members().for_each(|i| of_position.entry(i).or_default().push(w));
    }
    // Costs in units so small that their order is that of the numbers.
    let units = |x: f64| (x.clamp(0.0, 1e6) * 1e12) as u64;
    let mut heap: BinaryHeap<Reverse<(u64, BTreeMap<usize, i32>)>> = BinaryHeap::from([Reverse((0, BTreeMap::new()))]);
    let mut seen: BTreeSet<BTreeMap<usize, i32>> = BTreeSet::new();
    while let Some(Reverse((_, moved))) = heap.pop() {
        if seen.len() > STATES {
            return None;
        }
        if !seen.insert(moved.clone()) {
            continue;
        }
        let mut positions = from.to_vec();
        moved.iter().for_each(|(i, p)| positions[*i] = *p);
        let touched: BTreeSet<usize> = seeds.iter().copied().chain(moved.keys().filter_map(|i| of_position.get(i)).flatten().copied()).collect();
        let Some(moves) = touched.iter().find_map(|w| windows[*w].astray(&positions)) else { return Some(moved) };
        for (i, step) in moves {
            let p = positions[i] + step;
            // A move back is another path to a state that is looked at anyway.
            if (p - start[i]).abs() > FAR || (p - from[i]).signum() != step.signum() || !cost(i, p).is_finite() {
                continue;
            }
            let mut next = moved.clone();
            next.insert(i, p);
            let total: u64 = next.iter().map(|(i, p)| units(cost(*i, *p))).sum();
            heap.push(Reverse((total, next)));
        }
    }
    None
}

/// `−log2` of a quantizer's scale, if it is a power of two, and one.
fn position(params: &Params) -> Option<i32> {
    let &[scale] = &params.scale[..] else { return None };
    let p = -scale.log2();
    (p.fract() == 0.0).then_some(p as i32)
}

/// The quantizer that an operand comes from, seen through moves.
fn source(model: &Model, v: ValueId) -> Option<QuantizerId> {
    Some(model.quantizer_behind(v)?.1)
}

/// The quantizer of what a node makes, and the ops computed with it in between.
fn result(model: &Model, node: NodeId) -> (Option<QuantizerId>, Vec<Op>) {
    let g: &Graph = &model.graph;
    let mut passed = Vec::new();
    let mut y = g.node(node).output(0);
    while let Some(v) = y {
        let readers = || g.value(v).uses().iter().filter_map(|p| g.get_node(p.node));
        if let Some(q) = readers().find_map(|n| n.quantizer()) {
            return (Some(model.quantizers.root(q)), passed);
        }
        y = match &readers().collect::<Vec<_>>()[..] {
            [n] if matches!(n.op.flow(), Flow::Clamp | Flow::Pointwise | Flow::Move) && passed.len() < 4 => {
                passed.push(n.op);
                n.output(0)
            }
            _ => None,
        };
    }
    (None, passed)
}

/// The windows of a placed model, over the quantizers listed with it.
fn windows(model: &Model, rules: &[Shift]) -> (Vec<Window>, Vec<QuantizerId>) {
    let g = &model.graph;
    let mut ids: Vec<QuantizerId> = Vec::new();
    let mut index = |q: QuantizerId| -> Option<usize> {
        position(model.quantizers[q].params.as_ref()?)?;
        Some(ids.iter().position(|i| *i == q).unwrap_or_else(|| {
            ids.push(q);
            ids.len() - 1
        }))
    };
    let mut found = Vec::new();
    for (id, node) in g.nodes() {
        for rule in rules.iter().filter(|r| r.ops.contains(&node.op)) {
            let (result, passed) = result(model, id);
            let made_by = |v: &ValueId| behind(model, *v).is_some_and(|op| rule.after.contains(&op));
            let inputs: Vec<(usize, ValueId)> = node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))).collect();
            let fits = (rule.after.is_empty() || inputs.iter().any(|(_, v)| made_by(v)))
                && (rule.before.is_empty() || passed.iter().any(|op| rule.before.contains(op)));
            if !fits {
                continue;
            }
            let is_bias = |slot: usize| node.op.role(slot) == Role::Bias;
            let of = |bias: bool| inputs.iter().filter(move |(s, _)| is_bias(*s) == bias).filter_map(|(_, v)| source(model, *v)).collect::<Vec<_>>();
            let operands: Vec<usize> = of(false).into_iter().filter_map(&mut index).collect();
            let bias = of(true).into_iter().filter_map(&mut index).next();
            let window = Window { of: rule.of, operands, bias, result: result.and_then(&mut index), ends: rule.window, node: node.name.clone() };
            // A factor that is a number without codes gets its position from the chip, which may take one that serves.
            let factors = inputs.iter().filter(|(s, _)| !is_bias(*s)).count();
            let whole = match rule.of {
                Term::Product => window.result.is_some() && window.operands.len() == factors,
                Term::Bias => window.bias.is_some() && window.operands.len() == 2,
                Term::BiasOutput => window.bias.is_some() && window.result.is_some(),
                Term::Spread => window.operands.len() > 1,
                Term::Least => window.result.is_some() && window.operands.len() > 1,
                Term::Input => !window.operands.is_empty(),
                Term::Output => window.result.is_some(),
            };
            if whole && (Linear::of(g, id).is_none() || rule.of == Term::BiasOutput || window.operands.len() == 2) {
                found.push(window);
            }
        }
    }
    (found, ids)
}

/// The op that computes a value, seen through quantizers and moves.
fn behind(model: &Model, v: ValueId) -> Option<Op> {
    let node = model.graph.node(model.graph.value(v).producer()?.0);
    if node.op == Op::FakeQuant || node.op.flow() == Flow::Move { behind(model, node.input(0)?) } else { Some(node.op) }
}

/// Of a quantizer whose values are but added to others: those of the sums, to whose size their errors compare. A branch that is next to nothing loses
/// nothing where it is rounded to 0.
fn sums(model: &Model, id: QuantizerId) -> Option<BTreeSet<QuantizerId>> {
    let mut found = BTreeSet::new();
    for (node, n) in model.graph.nodes().filter(|(_, n)| n.op != Op::FakeQuant && n.op.flow() != Flow::Move) {
        for (slot, v) in n.inputs().iter().enumerate().filter_map(|(slot, v)| Some((slot, (*v)?))) {
            if source(model, v) != Some(id) {
                continue;
            }
            let added = matches!(n.op, Op::Add | Op::Sub) || n.op.role(slot) == Role::Bias && Linear::of(&model.graph, node).is_some();
            found.insert(result(model, node).0.filter(|_| added)?);
        }
    }
    Some(found)
}

/// What the tensors of one quantizer lose at a position: noise over signal, which is at least `power` a value.
fn losses(scheme: &Scheme, params: &Params, seen: &[&Histogram], power: f64, start: i32) -> BTreeMap<i32, f64> {
    let mut all = Histogram::default();
    seen.iter().for_each(|h| all.merge(h));
    let (x, weight): (Vec<f32>, Vec<f64>) = all.points().map(|(x, n)| (x, n as f64)).unzip();
    let signal = all.energy().max(power * all.total() as f64).max(f64::MIN_POSITIVE);
    let at = |p: i32| {
        let mut params = params.clone();
        params.scale[0] = 2f32.powi(-p);
        let mut y = x.clone();
        match quant::fake_quantize(&mut y, &[x.len()], scheme, Some(&params)) {
            Ok(()) => x.iter().zip(&y).zip(&weight).map(|((x, y), w)| ((x - y) as f64).powi(2) * w).sum::<f64>() / signal,
            Err(_) => f64::INFINITY,
        }
    };
    let mut table = BTreeMap::from([(start, 0.0)]);
    let first = at(start);
    for side in [-1, 1] {
        let mut worst = 0f64;
        for d in 1..=FAR {
            // Every step costs something, so that none is made for nothing.
            worst = (at(start + side * d) - first).max(worst) + 1e-9;
            table.insert(start + side * d, worst);
        }
    }
    table
}

/// Moves positions so that a target's windows hold, and says which. `seen`: what flows into quantizers.
pub fn hold(model: &mut Model, rules: &[Shift], seen: &[(QuantizerId, &Seen)], notes: &mut Notes) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let (windows, ids) = windows(model, rules);
    let start: Vec<i32> = ids.iter().map(|q| position(model.quantizers[*q].params.as_ref().expect("listed with it")).expect("listed with it")).collect();
    if windows.iter().all(|w| w.astray(&start).is_none()) {
        return Ok(());
    }
    let mut constants: BTreeMap<QuantizerId, Histogram> = BTreeMap::new();
    for (node, id) in model.constant_sites() {
        let Some(c) = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v)) else { continue };
        constants.entry(model.quantizers.root(id)).or_default().observe(&c.tensor.to_f32()?);
    }
    let table = |i: usize| -> BTreeMap<i32, f64> {
        let row = &model.quantizers[ids[i]];
        let params = row.params.as_ref().expect("listed with it");
        let flowing = |id: QuantizerId| seen.iter().filter(move |(q, _)| *q == id).filter_map(|(_, s)| s.histogram());
        // What is fixed, or follows from others, stays.
        if params.origin != Origin::Fitted {
            return BTreeMap::from([(start[i], 0.0)]);
        }
        let all: Vec<&Histogram> = constants.get(&ids[i]).into_iter().chain(flowing(ids[i])).collect();
        let power = |id: QuantizerId| flowing(id).map(|h| h.energy() / h.total().max(1) as f64).fold(0.0, f64::max);
        let least = sums(model, ids[i]).into_iter().flatten().map(power).reduce(f64::min);
        losses(&row.scheme, params, &all, least.unwrap_or(0.0), start[i])
    };
    let tables = std::cell::RefCell::new(BTreeMap::<usize, BTreeMap<i32, f64>>::new());
    let cost = |i: usize, p: i32| tables.borrow_mut().entry(i).or_insert_with(|| table(i)).get(&p).copied().unwrap_or(f64::INFINITY);
    let (positions, given_up) = solve(&windows, &start, &cost);
    for w in given_up {
        let w = &windows[w];
        notes.declined(&w.node, format!("no scales bring its positions into the target's window {} … {}: the chip may refuse it", w.ends.0, w.ends.1));
    }
    for (i, &id) in ids.iter().enumerate().filter(|(i, _)| positions[*i] != start[*i]) {
        let why =
            windows.iter().find(|w| w.members().any(|m| m == i) && w.astray(&start).is_some()).or_else(|| windows.iter().find(|w| w.members().any(|m| m == i)));
        let at = why.map_or(String::new(), |w| format!(", for the target's shifts at {}", w.node));
        notes.changed(&model.quantizers[id].name, format!("scale moved from 2^{} to 2^{}{at}", -start[i], -positions[i]));
        model.quantizers[id].params.as_mut().expect("listed with it").scale[0] = 2f32.powi(-positions[i]);
    }
    Ok(())
}

/// Parameters for a bias that changed, within the windows of the layer that adds it.
pub fn fit_bias(model: &Model, rules: &[Shift], layer: NodeId, x: &[f32], shape: &[usize], scheme: &Scheme) -> Result<Params> {
    let mut params = fit_constant(x, shape, scheme, Weights::Mse)?;
    if let (Some(p), (lo, hi)) = (position(&params), bias_positions(model, rules, layer)) {
        params.scale[0] = 2f32.powi(-p.clamp(lo, hi.max(lo)));
    }
    Ok(params)
}

/// The positions that a layer's bias may have, all else as it stands.
fn bias_positions(model: &Model, rules: &[Shift], layer: NodeId) -> (i32, i32) {
    let node = model.graph.node(layer);
    let (result, passed) = result(model, layer);
    let at = |q: Option<QuantizerId>| q.and_then(|q| position(model.quantizers[q].params.as_ref()?));
    let operand = |slot: usize| at(node.input(slot).and_then(|v| source(model, v)));
    let (mut lo, mut hi) = (-126, 126);
    for rule in rules.iter().filter(|r| r.ops.contains(&node.op) && (r.before.is_empty() || passed.iter().any(|op| r.before.contains(op)))) {
        match (rule.of, operand(0), operand(1), at(result)) {
            (Term::Bias, Some(x), Some(w), _) => (lo, hi) = (lo.max(x + w - rule.window.1), hi.min(x + w - rule.window.0)),
            (Term::BiasOutput, _, _, Some(y)) => (lo, hi) = (lo.max(y.saturating_add(rule.window.0)), hi.min(y.saturating_add(rule.window.1))),
            _ => {}
        }
    }
    (lo, hi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;

    fn window(of: Term, operands: &[usize], bias: Option<usize>, result: Option<usize>, ends: (i32, i32)) -> Window {
        Window { of, operands: operands.to_vec(), bias, result, ends, node: String::new() }
    }

    /// A chain of layers x·w + b → y, two of which are added, with pseudo-random starts and costs.
    fn case(seed: u64) -> (Vec<Window>, Vec<i32>, Vec<Vec<f64>>) {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        // 0: x, 1 and 2: weights, 3 and 4: results, 5: bias of the first, 6: their sum.
        let windows = vec![
            window(Term::Product, &[0, 1], None, Some(3), (0, 4)),
            window(Term::Bias, &[0, 1], Some(5), None, (0, 3)),
            window(Term::BiasOutput, &[], Some(5), Some(3), (-9, 3)),
            window(Term::Product, &[3, 2], None, Some(4), (0, 4)),
            window(Term::Spread, &[3, 4], None, None, (0, 2)),
            window(Term::Least, &[3, 4], None, Some(6), (-1, 3)),
            window(Term::Output, &[], None, Some(6), (-1, 3)),
            window(Term::Input, &[0], None, None, (-2, 2)),
        ];
        let start = (0..7).map(|_| random(7) as i32 - 3).collect();
        let costs = (0..7).map(|_| (0..2).map(|_| 0.1 + random(100) as f64).collect()).collect();
        (windows, start, costs)
    }

    #[test]
    fn every_window_holds_at_the_least_cost_that_brute_force_finds() {
        const REACH: i32 = 3;
        for seed in 1..30 {
            let (windows, start, costs) = case(seed);
            let cost = |i: usize, p: i32| {
                let d = p - start[i];
                if d.abs() > REACH { f64::INFINITY } else { (d * d) as f64 * costs[i][(d > 0) as usize] }
            };
            let total = |p: &[i32]| p.iter().enumerate().map(|(i, p)| cost(i, *p)).sum::<f64>();
            let (found, given_up) = solve(&windows, &start, &cost);
            // Brute force, one position after the other, cut where it is dearer than the best.
            fn all(i: usize, p: &mut Vec<i32>, spent: f64, best: &mut f64, start: &[i32], windows: &[Window], cost: &dyn Fn(usize, i32) -> f64) {
                if spent >= *best {
                    return;
                }
                if i == start.len() {
                    if windows.iter().all(|w| w.astray(p).is_none()) {
                        *best = spent;
                    }
                    return;
                }
                for d in -REACH..=REACH {
                    p[i] = start[i] + d;
                    all(i + 1, p, spent + cost(i, p[i]), best, start, windows, cost);
                }
                p[i] = start[i];
            }
            let mut best = f64::INFINITY;
            all(0, &mut start.clone(), 0.0, &mut best, &start, &windows, &cost);
            if best.is_finite() {
                assert!(windows.iter().all(|w| w.astray(&found).is_none()) && given_up.is_empty(), "{seed}: {found:?}");
                assert!((total(&found) - best).abs() < 1e-6, "{seed}: {} {best}", total(&found));
            } else {
                assert!(!given_up.is_empty(), "{seed}");
            }
        }
    }

    #[test]
    fn a_number_without_codes_holds_no_product_back() {
        use crate::graph::Node;
        use crate::tensor::Tensor;
        // x times a quarter, and times itself.
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let [qx, quarter, square] = [("x", 3), ("quarter", 5), ("square", 7)].map(|(name, position)| {
            let q = m.quantizers.add(name, Scheme::int(8, true));
            m.quantizers[q].params = Some(Params::tensor(2f32.powi(-position), None));
            q
        });
        let g = &mut m.graph;
        let [x, xq, a, aq, b, bq] = ["x", "xq", "a", "aq", "b", "bq"].map(|n| g.add_value(n));
        let c = g.add_constant("c", Tensor::scalar(0.25));
        (g.inputs, g.outputs) = (vec![x], vec![aq, bq]);
        g.add_node(Node::fake_quant(qx, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::Mul, "quarter"), &[Some(xq), Some(c)], &[Some(a)]);
        g.add_node(Node::fake_quant(quarter, "fa"), &[Some(a)], &[Some(aq)]);
        g.add_node(Node::new(Op::Mul, "square"), &[Some(xq), Some(xq)], &[Some(b)]);
        g.add_node(Node::fake_quant(square, "fb"), &[Some(b)], &[Some(bq)]);
        let rule = Shift { ops: vec![Op::Mul], of: Term::Product, window: (0, 32), after: vec![], before: vec![] };
        let (found, _) = windows(&m, &[rule]);
        assert_eq!(found.iter().map(|w| w.node.as_str()).collect::<Vec<_>>(), ["square"]);
    }

    #[test]
    fn what_is_within_its_windows_does_not_move() {
        let windows = [window(Term::Product, &[0, 1], None, Some(2), (0, 16)), window(Term::Product, &[2, 3], None, Some(4), (0, 16))];
        let start = [7, 6, 5, 36, 4];
        let cost = |i: usize, p: i32| if i == 3 { 0.01 * (p - start[i]).abs() as f64 } else { 10.0 * (p - start[i]).abs() as f64 };
        assert_eq!(solve(&windows, &start, &cost), (vec![7, 6, 5, 15, 4], BTreeSet::new()));
        let fixed = |i: usize, p: i32| if p == start[i] { 0.0 } else { f64::INFINITY };
        assert_eq!(solve(&windows, &start, &fixed).1, BTreeSet::from([1]));
    }

    /// x, and t that is next to nothing beside it, are added. Their positions are too far apart: t becomes 0, rather than that x is cut off.
    #[test]
    fn what_is_but_added_counts_by_the_sum() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let [qx, qt, qy] = ["x", "t", "y"].map(|n| m.quantizers.add(n, Scheme::int(8, true)));
        for (q, p) in [(qx, 6), (qt, 24), (qy, 6)] {
            m.quantizers[q].params = Some(Params { origin: Origin::Fitted, ..Params::tensor(2f32.powi(-p), None) });
        }
        let g = &mut m.graph;
        let [x, t, a, b, c, y] = ["x", "t", "a", "b", "c", "y"].map(|n| g.add_value(n));
        (g.inputs, g.outputs) = (vec![x, t], vec![y]);
        g.add_node(Node::fake_quant(qx, "fx"), &[Some(x)], &[Some(a)]);
        g.add_node(Node::fake_quant(qt, "ft"), &[Some(t)], &[Some(b)]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(a), Some(b)], &[Some(c)]);
        g.add_node(Node::fake_quant(qy, "fy"), &[Some(c)], &[Some(y)]);
        let seen = |size: f32| {
            let mut h = Histogram::default();
            h.observe(&(0..256).map(|i| (i as f32 / 128.0 - 1.0) * size).collect::<Vec<_>>());
            Seen::Histogram(Box::new(h))
        };
        let [sx, st, sy] = [1.9, 7e-6, 1.9].map(seen);
        let rule = Shift { ops: vec![Op::Add], of: Term::Spread, window: (0, 14), after: vec![], before: vec![] };
        hold(&mut m, &[rule], &[(qx, &sx), (qt, &st), (qy, &sy)], &mut Notes::of("calibrate")).unwrap();
        assert_eq!([qx, qt, qy].map(|q| position(m.quantizers[q].params.as_ref().unwrap())), [Some(6), Some(20), Some(6)]);
    }
}
