//! Learns for each weight whether it is rounded up or down, so that what a layer or a block gives out comes near what it gives in the float model, with
//! everything before it quantized: `w = step · clip(⌊w / step⌋ + h(V))`, `h` a rectified sigmoid, and `λ Σ 1 − |2h − 1|^β` drives it to 0 or 1.
//! Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (a layer, with its activation); Li et al. 2021, BRECQ (a block,
//! with the scales of the activations in it: Esser et al. 2020, LSQ; at once with the weights, as Wei et al. 2022, QDrop).
//! Outputs are measured by their power, so that λ means the same for every layer. Steps are longer where fewer are taken.
//! Needs: samples; integer codes. Of activations the scales stay that are felt outside of a block, powers of two, given, or that a bias barely fits; zero
//! points stay. A unit that is not better than under nearest codes on held-out samples keeps these, and its scales.

use super::grid::Grid;
use super::scales::{Moving, activations, quantizer_before, settle};
use super::task::{Batches, Learnt, Place, Task, Values, Visits, visit};
use super::units::{Unit, blocks, layers};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{Linear, Model, NodeId, Site};
use crate::learn::SoftRound;
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::{self, Quantizer, QuantizerId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the method was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reconstruct {
    /// Whether blocks are units; else single layers.
    pub blocks: bool,
    /// Weight of the regulariser.
    pub lambda: f64,
    pub visits: Visits,
}

/// The exponent of the regulariser, from the first to the last step that has one; and the share of steps before.
const BETA: (f64, f64) = (20.0, 2.0);
const WARM: f64 = 0.2;
/// How far a weight's V may go in all steps, and in one. The same of the number that the outermost code of an activation stands for, in steps between codes
/// (in all steps half as far, since they grow shorter): LSQ's share that falls with the number of codes, without which 8 bits lose more than they gain.
const TRAVEL: f64 = 20.0;
const LONGEST: f64 = 0.03;
const STRETCH: f64 = 30.0;
const WIDEST: f64 = 0.1;
/// Times that held-out samples judge.
const LOOKS: usize = 8;
/// Weights of a block at most.
const MOST: usize = 4 << 20;

/// Finds codes for all weights that allow it; the others are left for nearest codes.
pub fn reconstruct(model: &mut Model, how: &Reconstruct, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let data = data.ok_or_else(|| Error::usage("learned rounding compares outputs on sample inputs: give --data"))?;
    let units = if how.blocks { blocks(model, MOST) } else { layers(model) };
    if units.is_empty() {
        notes.declined("", "nearest codes: no layer has a weight of integers that it alone reads");
        return Ok(notes);
    }
    let (units, scales) = if how.blocks { with_scales(model, units)? } else { (units, Vec::new()) };
    let (mut found, mut moved) = (Vec::new(), Vec::new());
    let visited = visit(model, &units, (&how.visits, false), data, (&mut notes, progress), |at, mut task| {
        let unit = &units[at];
        let softs = unit.weights.iter().map(|(fake, _)| soft(model, *fake)).collect::<Result<Vec<_>>>()?;
        let (softs, places) = softs.into_iter().unzip();
        task.places = places;
        let channels = unit.weights.last().and_then(|(_, n)| Linear::of(&model.graph, *n)).map_or(1, |l| l.out_channels(&model.graph));
        let pace = (STRETCH / task.steps as f64).min(WIDEST) as f32;
        let opened = scales
            .get(at)
            .into_iter()
            .flatten()
            .map(|id| Moving::scales(model, *id, &[], pace / outermost(&model.quantizers[*id])))
            .collect::<Result<Vec<_>>>()?;
        let (of, moving) = opened.into_iter().unzip();
        task.scales = of;
        let (before, after, best) = learn(&task, (softs, moving), channels as f64, how)?;
        let mut values = best.iter().flatten();
        for ((fake, _), values) in unit.weights.iter().zip(&mut values) {
            let row = &model.quantizers[model.quantizers.root(model.graph.node(*fake).quantizer().expect("it is a FakeQuant"))];
            let shape = model.graph.node(*fake).input(0).and_then(|v| model.graph.constant(v)).expect("found before").tensor.shape();
            let params = row.params.as_ref().expect("a grid has parameters");
            found.push((Site::of(*fake), quant::quantize(values, shape, &row.scheme, params)?));
        }
        moved.extend(task.scales.iter().map(|(id, _)| *id).zip(values.cloned()));
        Ok(Learnt { before, after, outputs: best.map(|v| task.outputs(&v)).transpose()? })
    })?;
    let Some(visited) = visited else { return Ok(notes) };
    let weights: usize = found.iter().map(|(_, c): &(Site, quant::Codes)| c.0.len()).sum();
    model.codes.extend(found);
    moved.iter().for_each(|(id, scale)| settle(model, *id, scale));
    let what = if how.blocks { "blocks and layers" } else { "layers" };
    let (gained, kept) = (visited.gained, visited.kept);
    let with = if moved.is_empty() { String::new() } else { format!(", and {} scales of activations learnt,", moved.len()) };
    let (steps, samples) = (visited.steps, visited.samples);
    let told = format!("{weights} weights of {gained} {what} rounded{with} by {steps} steps over {samples} samples; {kept} keep nearest codes");
    notes.changed("", told);
    Ok(notes)
}

/// How far from zero the outermost code of the first block lies, in steps between codes.
fn outermost(row: &Quantizer) -> f32 {
    let zero = row.params.as_ref().map_or(0.0, |p| p.zero_at(0));
    let (lo, hi) = row.scheme.format.code_range().map_or((0.0, row.scheme.format.max_value()), |(lo, hi)| (lo as f32, hi as f32));
    (zero - lo).max(hi - zero).max(1.0)
}

/// The weight of a FakeQuant on its way, and what the FakeQuant gives, with its shape.
fn soft(model: &Model, fake: NodeId) -> Result<(SoftRound, Place)> {
    let node = model.graph.node(fake);
    let tensor = &node.input(0).and_then(|v| model.graph.constant(v)).ok_or_else(|| Error::failed("reads no constant"))?.tensor;
    let row = &model.quantizers[model.quantizers.root(node.quantizer().expect("it is a FakeQuant"))];
    let Grid { step, offset, codes } = Grid::of(row, tensor.shape())?;
    let value = node.output(0).ok_or_else(|| Error::failed("gives nothing"))?;
    Ok((SoftRound::new(&tensor.to_f32()?, step, offset, codes), (value, tensor.shape().to_vec())))
}

/// The units, each from what it reads before that is quantized if it is alone in reading it, with the quantizers of activations whose scales it may learn.
fn with_scales(model: &Model, mut units: Vec<Unit>) -> Result<(Vec<Unit>, Vec<Vec<QuantizerId>>)> {
    let place: BTreeMap<NodeId, usize> = model.graph.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut walked = 0;
    let mut scales = Vec::new();
    for unit in &mut units {
        if let Some((fake, value)) = quantizer_before(model, unit).filter(|(f, _)| place[f] >= walked) {
            let wider = Unit { input: value, ..unit.clone() };
            let own = model.graph.node(fake).quantizer().map(|q| model.quantizers.root(q));
            if activations(model, &wider)?.iter().any(|q| Some(*q) == own) {
                *unit = wider;
            }
        }
        scales.push(activations(model, unit)?);
        walked = walked.max(place[&unit.last] + 1);
    }
    Ok((units, scales))
}

/// Held-out loss under nearest codes and under the best others; these and the scales with them, if they are better. `channels`: how many the unit gives out.
fn learn(task: &Task, mut at: (Vec<SoftRound>, Vec<Moving>), channels: f64, how: &Reconstruct) -> Result<(f64, f64, Option<Values>)> {
    let all = |(softs, moving): &(Vec<SoftRound>, Vec<Moving>), values: fn(&SoftRound) -> Vec<f32>| {
        softs.iter().map(values).chain(moving.iter().map(Moving::value)).map(Arc::new).collect::<Values>()
    };
    let before = task.judge(&all(&at, SoftRound::hard))?;
    let power = task.power()?;
    if before == 0.0 || power == 0.0 {
        return Ok((before, before, None));
    }
    let steps = task.steps;
    let rate = (TRAVEL / steps as f64).min(LONGEST);
    let warm = (WARM * steps as f64) as usize;
    let mut batches = Batches::new(&task.seen, how.visits.batch, how.visits.seed);
    let scale = (channels / power / batches.size as f64) as f32;
    let (mut best, mut values) = (before, None);
    for step in 0..steps {
        crate::interrupt::check()?;
        let grads = task.gradients(&all(&at, SoftRound::soft), batches.draw())?;
        let passed = (step.saturating_sub(warm)) as f64 / (steps - warm).max(1) as f64;
        let (beta, lambda) = (BETA.0 + (BETA.1 - BETA.0) * passed, if step < warm { 0.0 } else { how.lambda });
        let mut grads = grads.iter();
        for (soft, grad) in at.0.iter_mut().zip(&mut grads) {
            let grad: Vec<f32> = grad.iter().map(|g| g * scale).collect();
            soft.step(&grad, lambda, beta, rate);
        }
        at.1.iter_mut().zip(grads).for_each(|(scales, grad)| scales.step(grad, scale, (step, steps)));
        if step + 1 == warm && task.judge(&all(&at, SoftRound::soft))? >= before {
            break;
        }
        if step >= warm && (step + 1 == steps || (step + 1) % steps.div_ceil(LOOKS) == 0) {
            let now = all(&at, SoftRound::hard);
            let loss = task.judge(&now)?;
            if loss < best {
                (best, values) = (loss, Some(now));
            }
            if at.0.iter().all(SoftRound::is_decided) {
                break;
            }
        }
    }
    Ok((before, best, values))
}
