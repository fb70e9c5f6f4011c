//! Learns for each weight whether it is rounded up or down, so that what a layer or a block gives out comes near what it gives in the float model, with
//! everything before it quantized: `w = step · clip(⌊w / step⌋ + h(V))`, `h` a rectified sigmoid, and `λ Σ 1 − |2h − 1|^β` drives it to 0 or 1.
//! Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (a layer, with its activation); Li et al. 2021, BRECQ (a block).
//! Outputs are measured by their power, so that λ means the same for every layer. Steps are longer where fewer are taken.
//! Needs: samples; integer codes. A unit that is not better than under nearest codes on held-out samples keeps these.

use super::grid::Grid;
use super::samples::{held_out, same_shapes, within};
use super::units::{Unit, blocks, layers};
use crate::data::{Dataset, shuffle};
use crate::engine::{RunnerOptions, Walk, each_sample, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, NodeId, Site, ValueId, infer};
use crate::learn::{Segment, SoftRound, Tape, Var, over_batch};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What the method was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reconstruct {
    /// Whether blocks are units; else single layers.
    pub blocks: bool,
    /// Samples at most, of which every fourth judges.
    pub samples: usize,
    /// Steps a unit, at most.
    pub iterations: usize,
    /// Samples a step.
    pub batch: usize,
    /// Weight of the regulariser.
    pub lambda: f64,
    pub seed: u64,
    /// Bytes that the kept tensors may take.
    pub memory: u64,
    pub threads: usize,
}

/// The exponent of the regulariser, from the first to the last step that has one; and the share of steps before.
const BETA: (f64, f64) = (20.0, 2.0);
const WARM: f64 = 0.2;
/// How far a weight's V may go in all steps, and in one.
const TRAVEL: f64 = 20.0;
const LONGEST: f64 = 0.03;
/// Multiply-adds that all steps may take, the way back included; and steps that a unit has in any case.
const WORK: f64 = 4e11;
const FEWEST: usize = 100;
/// Times that held-out samples judge.
const LOOKS: usize = 8;
/// Weights of a block at most.
const MOST: usize = 4 << 20;

/// What a FakeQuant of a weight gives, which is overridden, and its shape.
type Place = (ValueId, Vec<usize>);
/// Weights as a segment is given them.
type Weights = Vec<Arc<Vec<f32>>>;

/// Finds codes for all weights that allow it; the others are left for nearest codes.
pub fn reconstruct(model: &mut Model, how: &Reconstruct, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let (data, samples) = data.ok_or_else(|| Error::usage("learned rounding compares outputs on sample inputs: give --data"))?;
    let units = if how.blocks { blocks(model, MOST) } else { layers(model) };
    if units.is_empty() {
        notes.declined("", "nearest codes: no layer has a weight of integers that it alone reads");
        return Ok(notes);
    }
    let stops: Vec<NodeId> = units.iter().map(|u| u.last).collect();
    let groups = same_shapes(data, &samples[..samples.len().min(how.samples)])?.into_iter().take(1).collect();
    let group = within(model, data, groups, &stops, how.memory / 2)?.into_iter().next().unwrap_or_default();
    let all: Vec<usize> = (0..group.len()).collect();
    let Some((seen, held)) = held_out(&all, 8, &mut notes) else { return Ok(notes) };
    let read = || group.iter().map(|&i| data.sample(i)).collect::<Result<Vec<_>>>();
    let iterations = affordable(model, &units, &data.sample(group[0])?, how);
    let mut float = Walk::new(model, read()?, RunnerOptions { float: true, ..RunnerOptions::default() }, how.threads)?;
    let mut walk = Walk::new(model, read()?, RunnerOptions::default(), how.threads)?;
    let begun = Instant::now();
    progress.begin("round", units.len() as u64);
    let (mut found, mut gained, mut kept) = (Vec::new(), 0, 0);
    for (at, unit) in units.iter().enumerate() {
        crate::interrupt::check()?;
        let name = || model.graph.node(unit.last).name.clone();
        let input = match model.graph.value(unit.input).producer() {
            Some((producer, _)) => walk.to(producer, unit.input).at(name)?.clone(),
            None => walk.kept(unit.input).ok_or_else(|| Error::failed("reads nothing").at(name()))?.clone(),
        };
        let wanted = float.to(unit.last, unit.output).at(name)?.clone();
        let segment = match Segment::of(model, &[unit.input], &[unit.output]) {
            Err(Error::Failed(why)) => {
                notes.declined(name(), format!("nearest codes: {why}"));
                continue;
            }
            other => other?,
        };
        let softs = unit.weights.iter().map(|(fake, _)| soft(model, *fake)).collect::<Result<Vec<_>>>().at(name)?;
        let (softs, places) = softs.into_iter().unzip();
        let channels = unit.weights.last().and_then(|(_, n)| Linear::of(&model.graph, *n)).map_or(1, |l| l.out_channels(&model.graph));
        let task = Task { segment, places, input, wanted, scale: channels as f64, threads: how.threads };
        let (before, after, codes) = match task.learn(softs, (&seen, &held), iterations, how) {
            Err(Error::Failed(why)) => return Err(Error::failed(why).at(name())),
            other => other?,
        };
        match codes {
            Some(codes) => {
                gained += 1;
                let outputs = task.outputs(&codes)?;
                *walk.to(unit.last, unit.output).at(name)? = outputs;
                for ((fake, _), values) in unit.weights.iter().zip(&codes) {
                    let row = &model.quantizers[model.quantizers.root(model.graph.node(*fake).quantizer().expect("it is a FakeQuant"))];
                    let shape = model.graph.node(*fake).input(0).and_then(|v| model.graph.constant(v)).expect("found before").tensor.shape();
                    let params = row.params.as_ref().expect("a grid has parameters");
                    found.push((Site::of(*fake), quant::quantize(values, shape, &row.scheme, params).at(name)?));
                }
            }
            None => {
                kept += 1;
                notes.declined(name(), format!("nearest codes: no others are better on held-out samples ({before:.3e})"));
            }
        }
        progress.say(&format!("round: {}: loss {before:.3e} → {after:.3e} on held-out samples", name()));
        if at == 0 {
            progress.say(&format!("round: {iterations} steps a unit; the first of {} units took {:.1} s", units.len(), begun.elapsed().as_secs_f64()));
        }
        progress.tick(1);
    }
    progress.end();
    let weights: usize = found.iter().map(|(_, c): &(Site, quant::Codes)| c.0.len()).sum();
    model.codes.extend(found);
    let what = if how.blocks { "blocks and layers" } else { "layers" };
    let told = format!("{weights} weights of {gained} {what} rounded by {iterations} steps over {} samples; {kept} keep nearest codes", seen.len());
    notes.changed("", told);
    Ok(notes)
}

/// Steps a unit that keep all work bounded, whatever the machine.
fn affordable(model: &Model, units: &[Unit], sample: &BTreeMap<String, Tensor>, how: &Reconstruct) -> usize {
    let inferred = infer(model, &shapes_of(sample));
    let nodes = units.iter().flat_map(|u| &u.weights);
    let macs: u64 = nodes.filter_map(|(_, n)| Linear::of(&model.graph, *n)?.macs(&model.graph, &inferred)).sum();
    let each = 3.0 * macs.max(1) as f64 * how.batch as f64;
    ((WORK / each) as usize).clamp(FEWEST, how.iterations.max(FEWEST)).min(how.iterations)
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

/// A unit, what it reads and what it shall give.
struct Task {
    segment: Segment,
    places: Vec<Place>,
    input: Vec<Tensor>,
    wanted: Vec<Tensor>,
    /// Channels that it gives out.
    scale: f64,
    threads: usize,
}

impl Task {
    /// What the unit gives under these weights for sample `i`, and the weights on the tape.
    fn run(&self, tape: &mut Tape, weights: &Weights, i: usize, learn: bool) -> Result<(Var, Vec<Var>)> {
        let x = tape.constant(self.input[i].to_f32()?.into_owned(), self.input[i].shape());
        let put = |tape: &mut Tape, w: &Arc<Vec<f32>>, s: &[usize]| if learn { tape.parameter(w.clone(), s) } else { tape.constant(w.clone(), s) };
        let vars: Vec<Var> = weights.iter().zip(&self.places).map(|(w, (_, shape))| put(tape, w, shape)).collect();
        let given = self.places.iter().map(|(v, _)| *v).zip(vars.iter().copied()).collect();
        let y = self.segment.run(tape, &[x], &given, &BTreeMap::new())?;
        Ok((y[0], vars))
    }

    /// Mean squared error on one sample, and its gradients by the weights.
    fn loss(&self, weights: &Weights, i: usize, learn: bool) -> Result<(f64, Vec<Vec<f32>>)> {
        let mut tape = Tape::new();
        let (y, vars) = self.run(&mut tape, weights, i, learn)?;
        let wanted = tape.constant(self.wanted[i].to_f32()?.into_owned(), self.wanted[i].shape());
        let loss = tape.mean_square(y, wanted);
        let value = tape.scalar(loss) as f64;
        if !value.is_finite() {
            return Err(Error::failed("the loss is not a finite number: look for weights or sample inputs of vast size"));
        }
        if !learn {
            return Ok((value, Vec::new()));
        }
        let mut grads = tape.backward(loss);
        Ok((value, vars.iter().zip(weights).map(|(v, w)| grads.take(*v, w.len())).collect()))
    }

    fn mean(&self, weights: &Weights, samples: &[usize]) -> Result<f64> {
        Ok(over_batch(samples, self.threads, |i| self.loss(weights, i, false))?.0 / samples.len().max(1) as f64)
    }

    /// Held-out loss under nearest codes and under the best others; their values, if they are better.
    fn learn(&self, mut softs: Vec<SoftRound>, (seen, held): (&[usize], &[usize]), steps: usize, how: &Reconstruct) -> Result<(f64, f64, Option<Weights>)> {
        let all = |softs: &[SoftRound], values: fn(&SoftRound) -> Vec<f32>| softs.iter().map(|s| Arc::new(values(s))).collect::<Weights>();
        let before = self.mean(&all(&softs, SoftRound::hard), held)?;
        let power = self.wanted.iter().map(|t| Ok(mean_power(&t.to_f32()?))).sum::<Result<f64>>()? / self.wanted.len().max(1) as f64;
        if before == 0.0 || power == 0.0 {
            return Ok((before, before, None));
        }
        let rate = (TRAVEL / steps as f64).min(LONGEST);
        let (batch, warm) = (how.batch.clamp(1, seen.len()), (WARM * steps as f64) as usize);
        let (mut best, mut codes) = (before, None);
        let (mut order, mut at, mut round) = (Vec::new(), 0, 0);
        for step in 0..steps {
            crate::interrupt::check()?;
            if at + batch > order.len() {
                order = seen.to_vec();
                shuffle(&mut order, how.seed.wrapping_add(round));
                (at, round) = (0, round + 1);
            }
            let weights = all(&softs, SoftRound::soft);
            let (_, grads) = over_batch(&order[at..at + batch], self.threads, |i| self.loss(&weights, i, true))?;
            at += batch;
            let scale = (self.scale / power / batch as f64) as f32;
            let passed = (step.saturating_sub(warm)) as f64 / (steps - warm).max(1) as f64;
            let (beta, lambda) = (BETA.0 + (BETA.1 - BETA.0) * passed, if step < warm { 0.0 } else { how.lambda });
            for (soft, grad) in softs.iter_mut().zip(grads) {
                let grad: Vec<f32> = grad.iter().map(|g| g * scale).collect();
                soft.step(&grad, lambda, beta, rate);
            }
            if step + 1 == warm && self.mean(&all(&softs, SoftRound::soft), held)? >= before {
                break;
            }
            if step >= warm && (step + 1 == steps || (step + 1) % steps.div_ceil(LOOKS) == 0) {
                let now = all(&softs, SoftRound::hard);
                let loss = self.mean(&now, held)?;
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

    /// What the unit gives under these weights, for every sample.
    fn outputs(&self, weights: &Weights) -> Result<Vec<Tensor>> {
        let run = |_: &mut (), i: usize| {
            let mut tape = Tape::new();
            let (y, _) = self.run(&mut tape, weights, i, false)?;
            Ok(Tensor::of_f32(tape.shape(y), tape.value(y).to_vec()))
        };
        each_sample(self.input.len(), self.threads, || Ok(()), run)
    }
}

fn mean_power(x: &[f32]) -> f64 {
    x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / x.len().max(1) as f64
}
