//! Cuts off what no reader can tell apart: what attention masks hold far below zero, and the flat tails of activation functions.

use super::mask::{self, Masks};
use super::saved::Seen;
use super::tails::Tails;
use crate::error::{At, Result};
use crate::graph::{Model, ValueId};
use crate::note::Notes;
use crate::observe::Extremes;
use crate::quant::{self, QuantizerId};
use std::collections::{BTreeMap, BTreeSet};

/// Masks that are constants under one scale: their range, and the least of their values that is no mask.
pub type ConstantMasks = BTreeMap<QuantizerId, (Extremes, Option<f32>)>;

/// Those whose quantizers nothing that flows shares and nobody has given parameters.
pub fn constant_masks(model: &Model, masks: &Masks, flowing: &BTreeSet<QuantizerId>) -> Result<ConstantMasks> {
    let mut found = ConstantMasks::new();
    for (node, q) in model.constant_sites() {
        let q = model.quantizers.root(q);
        let row = &model.quantizers[q];
        if !masks.quantizers.contains_key(&q) || flowing.contains(&q) || !row.scheme.blocks.is_tensor() || row.params.is_some() {
            continue;
        }
        let Some(constant) = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v)) else { continue };
        let x = constant.tensor.to_f32()?;
        let (range, least) = found.entry(q).or_default();
        range.observe(&x);
        *least = mask::least_unmasked(least.iter().copied().chain(x.iter().copied()));
    }
    found.retain(|_, (range, _)| mask::is_mask(range));
    Ok(found)
}

/// Cuts what was seen of the watched values, and gives masks that are constants their parameters. The intervals kept.
pub fn saturate(
    model: &mut Model,
    watched: &[(ValueId, QuantizerId)],
    (masks, constants): (&Masks, &ConstantMasks),
    seen: &mut [Seen],
    notes: &mut Notes,
) -> Result<BTreeMap<QuantizerId, Extremes>> {
    let mut extremes: BTreeMap<QuantizerId, Extremes> = BTreeMap::new();
    for ((_, id), seen) in watched.iter().zip(&*seen) {
        let have = extremes.entry(*id).or_default();
        match seen {
            Seen::Extremes(e) | Seen::Average(e) => e.iter().for_each(|e| have.merge(e)),
            Seen::Histogram(h) => have.merge(&h.extremes),
        }
    }
    let mut kept: BTreeMap<QuantizerId, Extremes> = BTreeMap::new();
    let counted = |q: QuantizerId| {
        let histograms = watched.iter().zip(&*seen).filter(|((_, id), _)| *id == q).filter_map(|(_, s)| s.histogram());
        mask::least_unmasked(histograms.flat_map(|h| h.points()).map(|(x, _)| x))
    };
    for (q, others) in &masks.quantizers {
        let constant = constants.get(q);
        let Some(range) = extremes.get(q).or(constant.map(|c| &c.0)) else { continue };
        let least = constant.map_or_else(|| counted(*q), |c| c.1);
        let Some(floor) = mask::floor(*range, least, others.iter().filter_map(|o| extremes.get(o).copied())) else { continue };
        notes.changed(&model.quantizers[*q].name, format!("an attention mask: it saturates at {floor:.1}, from where Softmax gives 0"));
        if constant.is_some() {
            let row = &mut model.quantizers[*q];
            row.params = Some(quant::fit_range(&row.scheme, &[floor], &[range.hi]).at(|| &row.name)?);
        }
        kept.insert(*q, Extremes { lo: floor, hi: f32::INFINITY });
    }
    let tails = Tails::of(model);
    let step = |q: QuantizerId| match (&model.quantizers[q].params, extremes.get(&q), model.quantizers[q].scheme.format.code_range()) {
        (Some(p), ..) => Some(p.scale_at(0) as f64),
        (None, Some(e), Some((first, last))) if !e.is_empty() => Some((e.hi.max(0.0) - e.lo.min(0.0)) as f64 / (last - first) as f64),
        _ => None,
    };
    for q in tails.quantizers().filter(|q| extremes.contains_key(q)) {
        let Some(flat) = tails.interval(q, step).filter(|i| extremes[&q].lo < i.lo || extremes[&q].hi > i.hi) else { continue };
        kept.entry(q).or_insert(flat);
    }
    for ((_, id), seen) in watched.iter().zip(seen) {
        let Some(i) = kept.get(id) else { continue };
        match seen {
            Seen::Extremes(e) | Seen::Average(e) => e.iter_mut().for_each(|e| *e = e.within(i)),
            Seen::Histogram(h) => h.saturate(i),
        }
    }
    Ok(kept)
}
