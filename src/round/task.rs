//! Units visited one after the other, each with what it reads and what it shall give; and the loss of what is learnt of one.

use super::samples::{held_out, same_shapes, within};
use super::units::Unit;
use crate::data::{Dataset, shuffle};
use crate::engine::{RunnerOptions, Walk, each_sample, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, NodeId, ValueId, infer};
use crate::learn::{Scales, Segment, Tape, Var, over_batch};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::QuantizerId;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Samples that the steps of a unit see, and steps that it has, where nobody said how many they are, whatever they take.
const FEWEST: (usize, usize) = (2400, 100);
/// Samples below which nothing is learnt.
const LEAST: usize = 8;

/// Steps of a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Iterations {
    /// So many.
    Exactly(usize),
    /// So many, or fewer where those of all units would take more multiply-adds than `work`, the way back included.
    AtMost { steps: usize, work: f64 },
}

/// How units are visited.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Visits {
    /// Samples at most, of which every fourth judges.
    pub samples: usize,
    /// Steps a unit.
    pub iterations: Iterations,
    /// Samples a step.
    pub batch: usize,
    pub seed: u64,
    /// Bytes that the kept tensors may take.
    pub memory: u64,
    pub threads: usize,
}

/// What is learnt, as a segment is given it: values of the graph first, then scales.
pub type Values = Vec<Arc<Vec<f32>>>;
/// A value that is overridden, and its shape.
pub type Place = (ValueId, Vec<usize>);
/// A quantizer whose scales are overridden, and its zero points.
pub type Scale = (QuantizerId, Option<Vec<f32>>);

/// A unit, what it reads and what it shall give, sample by sample; and what of it is overridden.
pub struct Task {
    segment: Segment,
    input: Vec<Tensor>,
    wanted: Vec<Tensor>,
    pub places: Vec<Place>,
    pub scales: Vec<Scale>,
    /// Samples to learn from, and those that judge.
    pub seen: Vec<usize>,
    pub held: Vec<usize>,
    /// Steps at most.
    pub steps: usize,
    pub threads: usize,
}

/// What came of a unit: held-out loss before and after, and what it gives for every sample where it is better than before.
pub struct Learnt {
    pub before: f64,
    pub after: f64,
    pub outputs: Option<Vec<Tensor>>,
}

/// What came of all units.
pub struct Visited {
    pub gained: usize,
    pub kept: usize,
    pub steps: usize,
    pub samples: usize,
}

/// Calls `learn` for each unit, by its number. It reads what the model with quantizers, and what was learnt of the units before, gives it; with
/// `parallel`, what the float model gives. Where it is no better than before, nearest codes are left. `None`, and a remark: there are too few samples.
pub fn visit(
    model: &Model,
    units: &[Unit],
    (how, parallel): (&Visits, bool),
    (data, samples): (&Dataset, &[usize]),
    (notes, progress): (&mut Notes, &dyn Progress),
    mut learn: impl FnMut(usize, Task) -> Result<Learnt>,
) -> Result<Option<Visited>> {
    let stops: Vec<NodeId> = units.iter().map(|u| u.last).collect();
    let groups = same_shapes(data, &samples[..samples.len().min(how.samples)])?.into_iter().take(1).collect();
    let group = within(model, data, groups, &stops, how.memory / 2)?.into_iter().next().unwrap_or_default();
    let all: Vec<usize> = (0..group.len()).collect();
    let Some((seen, held)) = held_out(&all, LEAST, notes) else { return Ok(None) };
    let read = || group.iter().map(|&i| data.sample(i)).collect::<Result<Vec<_>>>();
    let steps = affordable(model, units, &data.sample(group[0])?, how);
    let mut float = Walk::new(model, read()?, RunnerOptions { float: true, ..RunnerOptions::default() }, how.threads)?;
    let mut walk = match parallel {
        true => None,
        false => Some(Walk::new(model, read()?, RunnerOptions::default(), how.threads)?),
    };
    let begun = Instant::now();
    progress.begin("round", units.len() as u64);
    let (mut gained, mut kept) = (0, 0);
    for (at, unit) in units.iter().enumerate() {
        crate::interrupt::check()?;
        let name = || model.graph.node(unit.last).name.clone();
        let before = walk.as_mut().unwrap_or(&mut float);
        let input = match model.graph.value(unit.input).producer() {
            Some((producer, _)) => before.to(producer, unit.input).at(name)?.clone(),
            None => before.kept(unit.input).ok_or_else(|| Error::failed("reads nothing").at(name()))?.clone(),
        };
        let wanted = float.to(unit.last, unit.output).at(name)?.clone();
        let segment = match Segment::of(model, &[unit.input], &[unit.output]) {
            Err(Error::Failed(why)) => {
                notes.declined(name(), format!("nearest codes: {why}"));
                continue;
            }
            other => other?,
        };
        let (seen, held, threads) = (seen.clone(), held.clone(), how.threads);
        let task = Task { segment, input, wanted, places: Vec::new(), scales: Vec::new(), seen, held, steps, threads };
        let Learnt { before, after, outputs } = match learn(at, task) {
            Err(Error::Failed(why)) => return Err(Error::failed(why).at(name())),
            other => other?,
        };
        match outputs {
            Some(outputs) => {
                gained += 1;
                if let Some(walk) = &mut walk {
                    *walk.to(unit.last, unit.output).at(name)? = outputs;
                }
            }
            None => {
                kept += 1;
                notes.declined(name(), format!("nearest codes: no others are better on held-out samples ({before:.3e})"));
            }
        }
        progress.say(&format!("round: {}: loss {before:.3e} → {after:.3e} on held-out samples", name()));
        if at == 0 {
            progress.say(&format!("round: {steps} steps a unit; the first of {} units took {:.1} s", units.len(), begun.elapsed().as_secs_f64()));
        }
        progress.tick(1);
    }
    progress.end();
    Ok(Some(Visited { gained, kept, steps, samples: seen.len() }))
}

fn affordable(model: &Model, units: &[Unit], sample: &BTreeMap<String, Tensor>, how: &Visits) -> usize {
    let inferred = infer(model, &shapes_of(sample));
    let nodes = units.iter().flat_map(|u| &u.weights);
    steps(nodes.filter_map(|(_, n)| Linear::of(&model.graph, *n)?.macs(&model.graph, &inferred)).sum(), how.batch, how.iterations)
}

/// Steps a unit, whatever the machine; `macs`: multiply-adds of all units for a sample.
pub fn steps(macs: u64, batch: usize, iterations: Iterations) -> usize {
    match iterations {
        Iterations::Exactly(n) => n,
        Iterations::AtMost { steps, work } => {
            let each = 3.0 * macs.max(1) as f64 * batch as f64;
            ((work / each) as usize).max(FEWEST.0 / batch.max(1)).max(FEWEST.1).min(steps)
        }
    }
}

impl Task {
    /// What the unit gives under these values for sample `i`, and the values on the tape.
    fn run(&self, tape: &mut Tape, values: &Values, i: usize, learn: bool) -> Result<(Var, Vec<Var>)> {
        let x = tape.copied(&self.input[i].to_f32()?, self.input[i].shape());
        let put = |tape: &mut Tape, w: &Arc<Vec<f32>>, s: &[usize]| if learn { tape.parameter(w.clone(), s) } else { tape.constant(w.clone(), s) };
        let (places, scales) = values.split_at(self.places.len());
        let mut vars: Vec<Var> = places.iter().zip(&self.places).map(|(w, (_, shape))| put(tape, w, shape)).collect();
        let given = self.places.iter().map(|(v, _)| *v).zip(vars.iter().copied()).collect();
        let mut quantizers = BTreeMap::new();
        for (values, (id, zero)) in scales.iter().zip(&self.scales) {
            let scale = put(tape, values, &[values.len()]);
            let zero = zero.as_ref().map(|z| tape.constant(z.clone(), &[z.len()]));
            quantizers.insert(*id, Scales { scale, zero });
            vars.push(scale);
        }
        let y = self.segment.run(tape, &[x], &given, &quantizers)?;
        Ok((y[0], vars))
    }

    /// Mean squared error on one sample, and its gradients by the values.
    fn loss(&self, values: &Values, i: usize, learn: bool) -> Result<(f64, Vec<Vec<f32>>)> {
        let mut tape = Tape::new();
        let (y, vars) = self.run(&mut tape, values, i, learn)?;
        let wanted = tape.copied(&self.wanted[i].to_f32()?, self.wanted[i].shape());
        let loss = tape.mean_square(y, wanted);
        let value = tape.scalar(loss) as f64;
        if !value.is_finite() {
            return Err(Error::failed("the loss is not a finite number: look for weights or sample inputs of vast size"));
        }
        if !learn {
            return Ok((value, Vec::new()));
        }
        let mut grads = tape.backward(loss);
        Ok((value, vars.iter().zip(values).map(|(v, w)| grads.take(*v, w.len())).collect()))
    }

    /// Gradients of the mean squared error by the values, summed over samples.
    pub fn gradients(&self, values: &Values, samples: &[usize]) -> Result<Vec<Vec<f32>>> {
        Ok(over_batch(samples, self.threads, |i| self.loss(values, i, true))?.1)
    }

    /// Mean squared error on the samples that judge.
    pub fn judge(&self, values: &Values) -> Result<f64> {
        Ok(over_batch(&self.held, self.threads, |i| self.loss(values, i, false))?.0 / self.held.len().max(1) as f64)
    }

    /// The mean square of what the unit shall give.
    pub fn power(&self) -> Result<f64> {
        Ok(self.wanted.iter().map(mean_power).sum::<Result<f64>>()? / self.wanted.len().max(1) as f64)
    }

    /// The mean square of what it reads.
    pub fn input_power(&self) -> Result<f64> {
        Ok(self.input.iter().map(mean_power).sum::<Result<f64>>()? / self.input.len().max(1) as f64)
    }

    /// What the unit gives under these values, for every sample.
    pub fn outputs(&self, values: &Values) -> Result<Vec<Tensor>> {
        let run = |_: &mut (), i: usize| {
            let mut tape = Tape::new();
            let (y, _) = self.run(&mut tape, values, i, false)?;
            Ok(Tensor::of_f32(tape.shape(y), tape.value(y).to_vec()))
        };
        each_sample(self.input.len(), self.threads, || Ok(()), run)
    }
}

fn mean_power(t: &Tensor) -> Result<f64> {
    let x = t.to_f32()?;
    Ok(x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / x.len().max(1) as f64)
}

/// Samples in an order of chance, a batch at a time; anew when fewer than a batch are left.
pub struct Batches {
    order: Vec<usize>,
    at: usize,
    round: u64,
    seed: u64,
    pub size: usize,
}

impl Batches {
    pub fn new(samples: &[usize], size: usize, seed: u64) -> Batches {
        Batches { order: samples.to_vec(), at: samples.len(), round: 0, seed, size: size.clamp(1, samples.len().max(1)) }
    }

    pub fn draw(&mut self) -> &[usize] {
        if self.at + self.size > self.order.len() {
            self.order.sort_unstable();
            shuffle(&mut self.order, self.seed.wrapping_add(self.round));
            (self.at, self.round) = (0, self.round + 1);
        }
        self.at += self.size;
        &self.order[self.at - self.size..self.at]
    }
}
