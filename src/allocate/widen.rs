//! Keeps the few activations wider that 8 bits harm most. Candidates are the activations that lose most by themselves; each is tried alone, and then
//! one more at a time, in the order of what it gained, for as long as the outputs of a few samples come nearer to the float model's.
//! Source: sensitivity analysis, one quantizer at a time (Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 6.1).
//! Needs: scales, samples. Declines: whatever would take the share of wider activations above its limit.

use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, Trial, over_samples, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{self, Flow, InputShapes, Linear, Model, Recurrent, ValueId};
use crate::note::Notes;
use crate::observe::Sums;
use crate::pass::Progress;
use crate::quant::{self, Format, Origin, QuantizerId, Table, Timing};
use crate::target::SchemeKeys;
use std::collections::{BTreeMap, BTreeSet};

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widen<'a> {
    /// Largest share of the elements of all activations that may be wider.
    pub share: f64,
    /// Largest share of the multiply-adds whose operand may be wider.
    pub macs: f64,
    /// Activations tried.
    pub tries: usize,
    /// Samples to measure on.
    pub samples: usize,
    /// Models that lose less than this need nothing wider.
    pub loss: f64,
    /// What wider ones become; `None`: float.
    pub wide: Option<&'a SchemeKeys>,
    pub threads: usize,
}

/// A wider tensor must make the loss smaller by this factor.
const WORTH: f64 = 0.93;

/// One quantizer and the activations that flow through it.
struct Candidate {
    id: QuantizerId,
    name: String,
    elements: u64,
    /// Multiply-adds that read it.
    macs: u64,
    own: Sums,
}

/// The `widen` step.
pub fn widen(model: &mut Model, how: &Widen, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("widen");
    let (data, samples) = data.ok_or_else(|| Error::usage("widen measures on sample inputs: give --data"))?;
    let few = samples.iter().take(how.samples).map(|&i| data.sample(i)).collect::<Result<Vec<_>>>()?;
    let trial = Trial::new(model, few.clone(), how.threads)?;
    let plans = trial.plans(model);
    let base = trial.loss(&plans, &model.quantizers)?;
    if base < how.loss {
        return Ok(notes);
    }
    let all = candidates(model, &few, how.threads)?;
    let (total, macs) = all.iter().fold((0u64, 0u64), |(e, m), c| (e + c.elements, m.saturating_add(c.macs)));
    let fits = |elements: u64, m: u64| elements as f64 <= how.share * total as f64 && m as f64 <= how.macs * macs as f64;
    let mut tried: Vec<&Candidate> = all.iter().filter(|c| fits(c.elements, c.macs)).collect();
    tried.sort_by(|a, b| a.own.sqnr().0.total_cmp(&b.own.sqnr().0));
    tried.truncate(how.tries);
    progress.begin("widen", 2 * tried.len() as u64);
    let mut gains: Vec<(f64, &Candidate)> = Vec::new();
    for c in tried {
        let mut table = model.quantizers.clone();
        wide_row(&mut table, c.id);
        gains.push((trial.loss(&plans, &table)?, c));
        progress.tick(1);
    }
    gains.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut table, mut loss, mut elements, mut wide_macs) = (model.quantizers.clone(), base, 0, 0);
    let mut chosen: Vec<(&Candidate, f64, f64)> = Vec::new();
    for (_, c) in &gains {
        progress.tick(1);
        if !fits(elements + c.elements, wide_macs + c.macs) {
            continue;
        }
        let mut with = table.clone();
        wide_row(&mut with, c.id);
        let less = trial.loss(&plans, &with)?;
        if less < loss * WORTH {
            chosen.push((c, loss, less));
            (table, loss, elements, wide_macs) = (with, less, elements + c.elements, wide_macs + c.macs);
        }
    }
    progress.end();
    drop(plans);
    for (c, before, after) in &chosen {
        let gain = 10.0 * (before / after).log10();
        let share = 100.0 * c.elements as f64 / total.max(1) as f64;
        notes.changed(&c.name, format!("kept wider, as the outputs lose {gain:.1} dB less for it ({share:.1} % of the activations)"));
    }
    let ids: BTreeSet<QuantizerId> = chosen.iter().map(|(c, ..)| c.id).collect();
    match how.wide {
        None => remove(model, &ids),
        Some(keys) => {
            for &id in &ids {
                let row = &mut model.quantizers[id];
                let scheme = keys.scheme(None).at(|| &row.name)?;
                let (lo, hi) = covered(&table, id);
                (row.params, row.scheme) = (Some(quant::fit_range(&scheme, &[lo], &[hi]).at(|| &row.name)?), scheme);
            }
        }
    }
    Ok(notes)
}

/// Multiply-adds by the quantizer of the operand that flows in, on inputs of these shapes.
fn multiply_adds(model: &Model, shapes: &InputShapes) -> BTreeMap<QuantizerId, u64> {
    let g = &model.graph;
    let inferred = graph::infer(model, shapes);
    let mut macs: BTreeMap<QuantizerId, u64> = BTreeMap::new();
    for (id, node) in g.nodes() {
        let n = match (Linear::of(g, id), Recurrent::of(g, id)) {
            (Some(linear), _) => linear.macs(g, &inferred),
            (None, Some(recurrent)) => recurrent.macs(g, &inferred),
            (None, None) => continue,
        };
        // Where they cannot be counted, they are too many to be widened.
        let n = n.unwrap_or(u64::MAX / 1024);
        for v in node.inputs().iter().flatten() {
            if let Some(q) = source(model, *v) {
                *macs.entry(q).or_default() += n;
            }
        }
    }
    macs
}

/// The quantizer that a value comes from, seen through moves.
fn source(model: &Model, v: ValueId) -> Option<QuantizerId> {
    let g = &model.graph;
    let node = g.node(g.value(v).producer()?.0);
    match node.quantizer() {
        Some(q) if g.constant(node.input(0)?).is_none() => Some(model.quantizers.root(q)),
        Some(_) => None,
        None if node.op.flow() == Flow::Move => source(model, node.input(0)?),
        None => None,
    }
}

/// Static activations of at most 8 bits per tensor whose range came from data, with what each loses by itself.
fn candidates(model: &Model, samples: &[BTreeMap<String, crate::tensor::Tensor>], threads: usize) -> Result<Vec<Candidate>> {
    let g = &model.graph;
    let mut flows: BTreeMap<ValueId, QuantizerId> = BTreeMap::new();
    for (_, node) in g.nodes() {
        let (Some(q), Some(x)) = (node.quantizer(), node.input(0)) else { continue };
        let (id, row) = (model.quantizers.root(q), &model.quantizers[model.quantizers.root(q)]);
        let fitted = row.params.as_ref().is_some_and(|p| p.origin == Origin::Fitted);
        if fitted && g.constant(x).is_none() && row.scheme.blocks.is_tensor() && row.scheme.timing == Timing::Static && row.scheme.format.bits() <= 8 {
            flows.insert(x, id);
        }
    }
    let values: Vec<ValueId> = flows.keys().copied().collect();
    let ids: Vec<QuantizerId> = flows.values().copied().collect();
    let plans = Plans::new(model, &values, RunnerOptions { float: true, ..RunnerOptions::default() });
    let mut found: BTreeMap<QuantizerId, (u64, Sums)> = BTreeMap::new();
    over_samples(
        samples.len(),
        threads,
        || Ok(Running::default()),
        |running, i| {
            let tensors = plans.run(running, &samples[i], &model.quantizers)?;
            let lost = |(t, id): (&crate::tensor::Tensor, &QuantizerId)| -> Result<(u64, Sums)> {
                let x = t.to_f32()?;
                let mut y = x.to_vec();
                let row = &model.quantizers[*id];
                quant::fake_quantize(&mut y, t.shape(), &row.scheme, row.params.as_ref())?;
                Ok((x.len() as u64, Sums::of(&x, &y)))
            };
            tensors.iter().zip(&ids).map(lost).collect::<Result<Vec<_>>>()
        },
        |_, seen| {
            for (id, (n, sums)) in ids.iter().zip(seen) {
                let have = found.entry(*id).or_default();
                have.0 += n;
                have.1.merge(&sums);
            }
            Ok(())
        },
    )?;
    let macs = multiply_adds(model, &shapes_of(&samples[0]));
    let of = |(id, (elements, own)): (QuantizerId, (u64, Sums))| Candidate {
        id,
        name: model.quantizers[id].name.clone(),
        elements,
        macs: macs.get(&id).copied().unwrap_or(0),
        own,
    };
    Ok(found.into_iter().map(of).collect())
}

/// The same range in 16 bits.
fn wide_row(table: &mut Table, id: QuantizerId) {
    let (lo, hi) = covered(table, id);
    let row = &mut table[id];
    if let Format::Int { signed, narrow, .. } = row.scheme.format {
        row.scheme.format = Format::Int { bits: 16, signed, narrow };
    } else {
        row.scheme.format = Format::Int { bits: 16, signed: true, narrow: false };
    }
    if let quant::Zero::Fixed(z) = &mut row.scheme.zero {
        *z *= 256;
    }
    if let Ok(p) = quant::fit_range(&row.scheme, &[lo], &[hi]) {
        row.params = Some(p);
    }
}

/// The range that a quantizer's codes cover.
fn covered(table: &Table, id: QuantizerId) -> (f32, f32) {
    let row = &table[id];
    let Some(p) = &row.params else { return (0.0, 0.0) };
    let (s, z) = (p.scale_at(0), p.zero_at(0));
    let (first, last) = row.scheme.format.code_range().map_or((-row.scheme.format.max_value(), row.scheme.format.max_value()), |(a, b)| (a as f32, b as f32));
    ((first - z) * s, (last - z) * s)
}

/// Takes the quantizers' nodes out of the graph.
fn remove(model: &mut Model, ids: &BTreeSet<QuantizerId>) {
    let g = &model.graph;
    let nodes: Vec<_> = g
        .nodes()
        .filter(|(_, n)| n.quantizer().is_some_and(|q| ids.contains(&model.quantizers.root(q))))
        .filter(|(_, n)| n.input(0).is_some_and(|x| g.constant(x).is_none()))
        .map(|(id, _)| id)
        .collect();
    for n in nodes {
        model.graph.bypass(n);
    }
}
