//! From what was seen to scales: one range a quantizer, over all values that share it; and which method finds the ranges, by what the outputs lose.

use super::Method;
use super::pow2;
use super::saved::Seen;
use crate::engine::Trial;
use crate::error::{At, Error, Result};
use crate::graph::{Flow, Model, NodeId, ValueId, constant_behind};
use crate::note::Notes;
use crate::observe::{Extremes, Histogram};
use crate::pass::Progress;
use crate::quant::{self, QuantizerId, Scheme};
use crate::target::Shift;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Fewer values than this say little of the ends that cost the least: a normal distribution's in 8 bits lie where one value in 16 384 is beyond, and four
/// should be.
const FEW: u64 = 4 * 16_384;
/// Fewer samples than this say nothing of such ends either when methods are compared on them: what was seen in them all was seen by the ranges.
const FEW_SAMPLES: usize = 32;

/// What was seen of the values that flow into quantizers.
pub struct Found<'a> {
    pub watched: &'a [(ValueId, QuantizerId)],
    /// One a watched value.
    pub seen: &'a [Seen],
    /// Intervals beyond which no reader can tell values apart.
    pub kept: &'a BTreeMap<QuantizerId, Extremes>,
    pub samples: usize,
    pub shifts: &'a [Shift],
    /// Of tensors that share a quantizer, whether each counts by its energy: so methods want it that make errors least. Otherwise by its number of values.
    pub by_energy: bool,
}

/// How a range is taken from what was seen of a tensor.
pub type Range<'a> = &'a (dyn Fn(&Histogram, &Scheme) -> Result<Extremes> + Sync);

/// A method chosen by comparison, as it is applied to what was seen in so many samples: where that is little, no comparison can tell whose ends are right,
/// and the distribution must.
pub fn measured(method: Method, samples: usize) -> impl Fn(&Histogram, &Scheme) -> Result<Extremes> + Sync {
    move |h, scheme| if samples < FEW_SAMPLES && h.total() < FEW { Method::Tail } else { method }.range(h, scheme)
}

/// Samples on which methods are compared.
pub const COMPARED_ON: usize = 8;
/// What loses this many times as much as the best on half of them is compared no further.
const HOPELESS: f64 = 1.5;

/// The model under the method whose outputs come nearest to the float model's.
pub fn best_of(model: &Model, found: &Found, trial: &Trial, progress: &dyn Progress) -> Result<(Method, Model, Notes)> {
    progress.begin("compare ranges", Method::COMPARED.len() as u64);
    // Weights stay float here: what their rounding shifts is not the ranges' fault, and may be corrected later.
    let mut activations = model.clone();
    model.constant_sites().into_iter().for_each(|(node, _)| {
        activations.graph.bypass(node);
    });
    // Methods differ in the table alone, which constants that flow follow.
    let plans = trial.live_plans(&activations);
    let (all, half) = (trial.samples().len(), trial.samples().len().div_ceil(2));
    let mut candidates = Vec::new();
    for method in Method::COMPARED {
        let (candidate, notes) = fitted(model, &measured(method, found.samples), found)?;
        let lost = trial.lost(&plans, &candidate.quantizers, 0..half)?;
        candidates.push((lost.compared()?, lost, method, candidate, notes));
        progress.tick(1);
    }
    let within = HOPELESS * candidates.iter().map(|c| c.0).fold(f64::INFINITY, f64::min);
    let mut best: Option<(f64, Method, Model, Notes)> = None;
    let mut figures = Vec::new();
    for (mut loss, mut lost, method, candidate, notes) in candidates {
        let hopeful = loss <= within;
        let so_far = if hopeful { "" } else { " on half of them" };
        if hopeful {
            lost.merge(&trial.lost(&plans, &candidate.quantizers, half..all)?);
            loss = lost.compared()?;
        }
        figures.push(format!("{method} {loss:.2e}{so_far}"));
        if hopeful && best.as_ref().is_none_or(|b| loss < b.0) {
            best = Some((loss, method, candidate, notes));
        }
    }
    progress.end();
    let (_, method, model, mut notes) = best.expect("there are methods to compare");
    notes.changed("", format!("ranges by {method}, which loses least on {all} samples: {}", figures.join(", ")));
    Ok((method, model, notes))
}

/// The model with one range a quantizer, over all values and constants that share it, and with what follows from them.
pub fn fitted(model: &Model, range: Range, found: &Found) -> Result<(Model, Notes)> {
    let Found { watched, kept, seen, .. } = found;
    let (mut model, mut notes) = (model.clone(), Notes::of("calibrate"));
    let ranges = watched.par_iter().zip(*seen).map(|((_, id), seen)| match seen {
        Seen::Extremes(e) | Seen::Average(e) => Ok(e.clone()),
        Seen::Histogram(h) => {
            let range = range(h, &model.quantizers[*id].scheme)?;
            Ok(vec![kept.get(id).map_or(range, |i| range.within(i))])
        }
    });
    let ends = ranges.collect::<Result<Vec<_>>>()?;
    let ends = alike(&model, found, range, ends)?;
    let mut ranges: BTreeMap<QuantizerId, Vec<Extremes>> = BTreeMap::new();
    for ((value, id), new) in watched.iter().zip(ends) {
        let name = &model.graph.value(*value).name;
        match ranges.get_mut(id) {
            None => {
                ranges.insert(*id, new);
            }
            Some(have) if have.len() == new.len() => have.iter_mut().zip(&new).for_each(|(a, b)| a.merge(b)),
            Some(_) => return Err(Error::failed("shares its quantizer with a tensor of another number of blocks").at(name)),
        }
    }
    let mut tables: BTreeMap<QuantizerId, Extremes> = BTreeMap::new();
    for (node, id) in model.constant_sites() {
        let moved = model.graph.node(node).output(0).and_then(|v| model.moved_to(v));
        let id = moved.unwrap_or_else(|| model.quantizers.root(id));
        if let Some([have]) = ranges.get_mut(&id).map(Vec::as_mut_slice) {
            let value = model.graph.node(node).input(0).expect("a FakeQuant reads something");
            let mut own = Extremes::default();
            own.observe(&model.graph.constant(value).expect("it is a constant site").tensor.to_f32()?);
            let own = kept.get(&id).map_or(own, |i| own.within(i));
            have.merge(&own);
            if moved.is_some() {
                tables.entry(id).or_default().merge(&own);
            }
        }
    }
    // Where nothing but rows of tables comes, whatever row may come, and nothing beyond.
    for (id, table) in tables {
        if watched.iter().filter(|(_, q)| *q == id).all(|(v, _)| is_row(model.graph.value(*v).producer().map(|(n, _)| n), &model)) {
            ranges.insert(id, vec![table]);
        }
    }
    for (id, mut range) in ranges {
        let q = &mut model.quantizers[id];
        if range.iter().any(|e| e.is_empty()) {
            notes.declined(&q.name, "no sample put a value here; its range is taken as 0 … 0");
            range.iter_mut().filter(|e| e.is_empty()).for_each(|e| *e = Extremes { lo: 0.0, hi: 0.0 });
        }
        let (lo, hi): (Vec<f32>, Vec<f32>) = range.iter().map(|e| (e.lo, e.hi)).unzip();
        q.params = Some(quant::fit_range(&q.scheme, &lo, &hi).at(|| &q.name)?);
    }
    super::settle(&mut model, &mut notes)?;
    let seen: Vec<_> = watched.iter().map(|(_, q)| *q).zip(*seen).collect();
    super::shifts::hold(&mut model, found.shifts, &seen, &mut notes)?;
    Ok((model, notes))
}

/// One power-of-two threshold for all values that share a quantizer: that of their distributions together, in which each counts by how much of it an
/// error is. The largest of their own would leave those of smaller numbers few codes.
fn alike(model: &Model, found: &Found, range: Range, mut ends: Vec<Vec<Extremes>>) -> Result<Vec<Vec<Extremes>>> {
    let mut sharing: BTreeMap<QuantizerId, Vec<usize>> = BTreeMap::new();
    for (i, (_, id)) in found.watched.iter().enumerate() {
        if pow2::applies(&model.quantizers[*id].scheme) && matches!(found.seen[i], Seen::Histogram(_)) {
            sharing.entry(*id).or_default().push(i);
        }
    }
    for (id, members) in sharing.into_iter().filter(|(_, m)| m.len() > 1) {
        let mut all = Histogram::default();
        for i in &members {
            let Seen::Histogram(h) = &found.seen[*i] else { continue };
            if !found.by_energy {
                all.merge(h);
                continue;
            }
            let energy: f64 = h.points().map(|(x, n)| (x as f64).powi(2) * n as f64).sum();
            all.merge(&h.weighed(if energy > 0.0 { 1e9 / energy } else { 0.0 }));
        }
        let one = range(&all, &model.quantizers[id].scheme)?;
        let one = found.kept.get(&id).map_or(one, |i| one.within(i));
        members.iter().for_each(|i| ends[*i].iter_mut().for_each(|e| *e = if e.is_empty() { *e } else { one }));
    }
    Ok(ends)
}

/// Whether a node moves rows of a constant table.
fn is_row(node: Option<NodeId>, model: &Model) -> bool {
    let Some(node) = node.map(|n| model.graph.node(n)) else { return false };
    let source = node.input(0).filter(|_| node.op.flow() == Flow::Move);
    source.is_some_and(|v| constant_behind(&model.graph, v).is_some() || is_row(model.graph.value(v).producer().map(|(n, _)| n), model))
}
