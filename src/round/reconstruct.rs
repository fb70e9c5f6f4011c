//! Learns for each weight whether it is rounded up or down, so that what a layer or a block gives out comes near what it gives in the float model, with
//! everything before it quantized: `w = step · clip(⌊w / step⌋ + h(V))`, `h` a rectified sigmoid, and `λ Σ 1 − |2h − 1|^β` drives it to 0 or 1.
//! Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (a layer, with its activation); Li et al. 2021, BRECQ (a block).
//! Outputs are measured by their power, so that λ means the same for every layer. Steps are longer where fewer are taken.
//! Needs: samples; integer codes. A unit that is not better than under nearest codes on held-out samples keeps these.

use super::grid::Grid;
use super::task::{Batches, Learnt, Place, Task, Values, Visits, visit};
use super::units::{blocks, layers};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{Linear, Model, NodeId, Site};
use crate::learn::SoftRound;
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant;
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
/// How far a weight's V may go in all steps, and in one.
const TRAVEL: f64 = 20.0;
const LONGEST: f64 = 0.03;
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
    let mut found = Vec::new();
    let visited = visit(model, &units, (&how.visits, false), data, (&mut notes, progress), |at, mut task| {
        let unit = &units[at];
        let softs = unit.weights.iter().map(|(fake, _)| soft(model, *fake)).collect::<Result<Vec<_>>>()?;
        let (softs, places) = softs.into_iter().unzip();
        task.places = places;
        let channels = unit.weights.last().and_then(|(_, n)| Linear::of(&model.graph, *n)).map_or(1, |l| l.out_channels(&model.graph));
        let (before, after, codes) = learn(&task, softs, channels as f64, how)?;
        for ((fake, _), values) in unit.weights.iter().zip(codes.iter().flatten()) {
            let row = &model.quantizers[model.quantizers.root(model.graph.node(*fake).quantizer().expect("it is a FakeQuant"))];
            let shape = model.graph.node(*fake).input(0).and_then(|v| model.graph.constant(v)).expect("found before").tensor.shape();
            let params = row.params.as_ref().expect("a grid has parameters");
            found.push((Site::of(*fake), quant::quantize(values, shape, &row.scheme, params)?));
        }
        Ok(Learnt { before, after, outputs: codes.map(|c| task.outputs(&c)).transpose()? })
    })?;
    let Some(visited) = visited else { return Ok(notes) };
    let weights: usize = found.iter().map(|(_, c): &(Site, quant::Codes)| c.0.len()).sum();
    model.codes.extend(found);
    let what = if how.blocks { "blocks and layers" } else { "layers" };
    let (gained, kept) = (visited.gained, visited.kept);
    let told = format!("{weights} weights of {gained} {what} rounded by {} steps over {} samples; {kept} keep nearest codes", visited.steps, visited.samples);
    notes.changed("", told);
    Ok(notes)
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

/// Held-out loss under nearest codes and under the best others; their values, if they are better. `scale` is the number of channels that the unit gives out.
fn learn(task: &Task, mut softs: Vec<SoftRound>, scale: f64, how: &Reconstruct) -> Result<(f64, f64, Option<Values>)> {
    let all = |softs: &[SoftRound], values: fn(&SoftRound) -> Vec<f32>| softs.iter().map(|s| Arc::new(values(s))).collect::<Values>();
    let before = task.judge(&all(&softs, SoftRound::hard))?;
    let power = task.power()?;
    if before == 0.0 || power == 0.0 {
        return Ok((before, before, None));
    }
    let steps = task.steps;
    let rate = (TRAVEL / steps as f64).min(LONGEST);
    let warm = (WARM * steps as f64) as usize;
    let mut batches = Batches::new(&task.seen, how.visits.batch, how.visits.seed);
    let scale = (scale / power / batches.size as f64) as f32;
    let (mut best, mut codes) = (before, None);
    for step in 0..steps {
        crate::interrupt::check()?;
        let grads = task.gradients(&all(&softs, SoftRound::soft), batches.draw())?;
        let passed = (step.saturating_sub(warm)) as f64 / (steps - warm).max(1) as f64;
        let (beta, lambda) = (BETA.0 + (BETA.1 - BETA.0) * passed, if step < warm { 0.0 } else { how.lambda });
        for (soft, grad) in softs.iter_mut().zip(grads) {
            let grad: Vec<f32> = grad.iter().map(|g| g * scale).collect();
            soft.step(&grad, lambda, beta, rate);
        }
        if step + 1 == warm && task.judge(&all(&softs, SoftRound::soft))? >= before {
            break;
        }
        if step >= warm && (step + 1 == steps || (step + 1) % steps.div_ceil(LOOKS) == 0) {
            let now = all(&softs, SoftRound::hard);
            let loss = task.judge(&now)?;
            if loss < best {
                (best, codes) = (loss, Some(now));
            }
            if softs.iter().all(SoftRound::is_decided) {
                break;
            }
        }
    }
    Ok((before, best, codes))
}
