//! Learns the biases of the whole quantized model at once, all else frozen, so that its outputs come near those of the float model: the divergence of
//! the probabilities where outputs are scores, else noise over signal, by gradients straight through every quantizer.
//! Source: Hubara et al. 2021, Accurate Post Training Quantization With Small Calibration Sets, section 3.5 (bias tuning). Adam with steps relative to
//! what each layer gives out, instead of the authors' rates for one family of models. Biases are rounded as they will be written while they are learnt.
//! Needs: weights with codes, samples, a model that is differentiable from its inputs to its outputs (declined by name where it is not).
//! The best iterate on held-out samples is kept; where none is better than the start by more than chance, the biases stay.

use super::biases::{Biases, Layer, current, fake_of, layers};
use super::samples::held_out;
use crate::data::{Dataset, shuffle};
use crate::engine::{Plans, RunnerOptions, Running, Trial, each_sample, over_samples, shapes_of};
use crate::error::{Error, Result};
use crate::graph::{Model, Site, ValueId, infer};
use crate::learn::{Adam, Segment, Tape, Var, over_batch};
use crate::note::Notes;
use crate::pass::Progress;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What the step may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuneBias<'a> {
    /// Samples at most, those held out to judge by included.
    pub samples: usize,
    /// Times that all samples are seen.
    pub epochs: usize,
    /// Samples a step.
    pub batch: usize,
    /// Length of a first step, as a share of the standard deviation of what a layer gives out.
    pub rate: f64,
    /// Models that lose less need no other biases.
    pub loss: f64,
    pub seed: u64,
    pub biases: Biases<'a>,
    /// Bytes that samples and the float model's outputs may take.
    pub memory: u64,
    pub threads: usize,
}

/// Epochs without a better iterate after which no more are run.
const PATIENCE: usize = 8;
/// Samples on which deviations are measured.
const MEASURED: usize = 4;

/// One bias on its way.
struct Bias {
    layer: Layer,
    /// The constant that stands for it in the segment.
    value: ValueId,
    shape: Vec<usize>,
    /// Standard deviation of what the layer gives out.
    spread: f32,
    now: Arc<Vec<f32>>,
    best: Arc<Vec<f32>>,
    adam: Adam,
}

/// The quantized model as a function of its biases, and what it is measured by.
struct Objective {
    segment: Segment,
    inputs: Vec<String>,
    /// By probe: whether it holds scores, and the mean square of what the float model gives.
    probes: Vec<(bool, f32)>,
}

/// The `tune-bias` step. `float` is the model before it was placed.
pub fn tune_bias(model: &mut Model, how: &TuneBias, float: &Model, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("tune-bias");
    let (data, samples) = data.ok_or_else(|| Error::usage("tune-bias needs sample inputs: give --data"))?;
    let fits = match samples.first() {
        Some(i) => (how.memory / bytes(float, &data.sample(*i)?).max(1)) as usize,
        None => 0,
    };
    let Some((seen, held)) = held_out(&samples[..samples.len().min(how.samples).min(fits)], 8, &mut notes) else { return Ok(notes) };
    let layers: Vec<Layer> = layers(model, &mut notes).into_iter().filter(|l| float.graph.has_value(l.output)).collect();
    let trial = |samples: &[usize]| Trial::new(float, samples.iter().map(|i| data.sample(*i)).collect::<Result<_>>()?, how.threads);
    let (seen, held) = (trial(&seen)?, trial(&held)?);
    let (biases, learnt) = open(model, layers, &seen, float, how.threads)?;
    if biases.is_empty() {
        notes.declined("", "no layer has a bias of its own");
        return Ok(notes);
    }
    let objective = match Objective::new(&learnt, &seen) {
        Err(Error::Failed(why)) => {
            notes.declined("", format!("the model is not differentiable: {why}"));
            return Ok(notes);
        }
        other => other?,
    };
    let kept = model.clone();
    let before = held.loss(&held.plans(model), &model.quantizers)?;
    if before < how.loss {
        notes.declined("", format!("the biases stay: the model loses {before:.5}, less than {}", how.loss));
        return Ok(notes);
    }
    let count: usize = biases.iter().map(|b| b.now.len()).sum();
    let layers = biases.len();
    let (biases, epochs) = match objective.descend(biases, how, &seen, &held, progress) {
        Err(Error::Failed(why)) => {
            notes.declined("", format!("the model is not differentiable: {why}"));
            return Ok(notes);
        }
        other => other?,
    };
    for b in biases {
        how.biases.set(model, &b.layer, b.best.to_vec())?;
    }
    let after = held.loss(&held.plans(model), &model.quantizers)?;
    let told = format!("loss {before:.4} → {after:.4} on {} held-out samples", held.samples().len());
    if after < before {
        notes.changed("", format!("{count} biases of {layers} layers learnt over {} samples in {epochs} epochs: {told}", seen.samples().len()));
    } else {
        *model = kept;
        notes.declined("", format!("the biases stay, since no others were better by more than chance in {epochs} epochs: {told}"));
    }
    Ok(notes)
}

/// Bytes of a sample, and of what the float model gives for it.
fn bytes(float: &Model, sample: &BTreeMap<String, Tensor>) -> u64 {
    let inferred = infer(float, &shapes_of(sample));
    let outputs = float.graph.outputs.iter().filter_map(|v| inferred.shape(*v)).map(|s| 4 * s.iter().product::<usize>());
    (sample.values().map(|t| t.bytes().len()).sum::<usize>() + outputs.sum::<usize>()) as u64
}

/// The biases, and a model in which each is a constant of its own without codes, so that it is rounded anew whenever it is read.
fn open(model: &Model, layers: Vec<Layer>, seen: &Trial, float: &Model, threads: usize) -> Result<(Vec<Bias>, Model)> {
    let mut open = model.clone();
    let spreads = spreads(float, &layers, seen, threads)?;
    let mut biases = Vec::new();
    for (layer, spread) in layers.into_iter().zip(spreads) {
        let Some(port) = model.graph.node(layer.node).input(layer.slot) else { continue };
        let now = Arc::new(current(model, &layer)?);
        let shape = vec![now.len()];
        let value = open.graph.add_constant("", Tensor::of_f32(&shape, now.to_vec()));
        match fake_of(model, port) {
            Some(fake) => {
                open.graph.set_input(fake, 0, Some(value));
                open.codes.remove(&Site::of(fake));
            }
            None => open.graph.set_input(layer.node, layer.slot, Some(value)),
        }
        let adam = Adam::new(now.len());
        biases.push(Bias { layer, value, shape, spread, best: now.clone(), now, adam });
    }
    Ok((biases, open))
}

/// The standard deviation of what each layer of the float model gives out, over a few samples.
fn spreads(float: &Model, layers: &[Layer], seen: &Trial, threads: usize) -> Result<Vec<f32>> {
    let outputs: Vec<ValueId> = layers.iter().map(|l| l.output).collect();
    let few = seen.samples()[..seen.samples().len().min(MEASURED)].to_vec();
    let mut sums = vec![(0f64, 0f64, 0f64); layers.len()];
    let plans = Plans::new(float, &outputs, RunnerOptions::default());
    over_samples(
        few.len(),
        threads,
        || Ok(Running::default()),
        |running, i| plans.run(running, &few[i], &float.quantizers),
        |_, tensors| {
            for (sum, t) in sums.iter_mut().zip(&tensors) {
                for v in t.to_f32()?.iter().map(|v| *v as f64) {
                    *sum = (sum.0 + v, sum.1 + v * v, sum.2 + 1.0);
                }
            }
            Ok(())
        },
    )?;
    Ok(sums.iter().map(|(s, q, n)| ((q / n - (s / n) * (s / n)).max(0.0).sqrt()) as f32).collect())
}

impl Objective {
    fn new(model: &Model, seen: &Trial) -> Result<Objective> {
        let g = &model.graph;
        let inputs: Vec<ValueId> = g.inputs.iter().copied().filter(|v| g.constant(*v).is_none()).collect();
        let outputs: Vec<ValueId> = seen.probes().iter().map(|p| p.value).collect();
        if let Some(v) = outputs.iter().find(|v| !g.has_value(**v)) {
            return Err(Error::failed(format!("value {} of the float model is not in it", v.0)));
        }
        let power = |p: usize| -> Result<f32> {
            let mut sum = (0f64, 0f64);
            for i in 0..seen.samples().len() {
                let t = seen.wanted(i)[p].to_f32()?;
                sum = (sum.0 + t.iter().map(|v| (*v as f64).powi(2)).sum::<f64>(), sum.1 + t.len() as f64);
            }
            Ok((sum.0 / sum.1.max(1.0)) as f32)
        };
        let scores = |p: usize| seen.probes()[p].scores && seen.wanted(0)[p].shape().last().is_some_and(|n| *n > 1);
        let probes = (0..outputs.len()).map(|p| Ok((scores(p), power(p)?))).collect::<Result<_>>()?;
        let names = inputs.iter().map(|v| g.value(*v).name.clone()).collect();
        Ok(Objective { segment: Segment::of(model, &inputs, &outputs)?, inputs: names, probes })
    }

    /// The loss of sample `i`, and its gradients if they are wanted.
    fn of(&self, biases: &[Bias], trial: &Trial, i: usize, learn: bool) -> Result<(f64, Vec<Vec<f32>>)> {
        let mut tape = Tape::new();
        let put = |tape: &mut Tape, t: &Tensor| -> Result<Var> { Ok(tape.constant(t.to_f32()?.into_owned(), t.shape())) };
        let sample = &trial.samples()[i];
        let inputs = self.inputs.iter().map(|name| sample.get(name).ok_or_else(|| Error::usage(format!("input {name} is not given"))));
        let inputs = inputs.map(|t| put(&mut tape, t?)).collect::<Result<Vec<Var>>>()?;
        let one = |tape: &mut Tape, b: &Bias| if learn { tape.parameter(b.now.clone(), &b.shape) } else { tape.constant(b.now.clone(), &b.shape) };
        let values: BTreeMap<ValueId, Var> = biases.iter().map(|b| (b.value, one(&mut tape, b))).collect();
        let found = self.segment.run(&mut tape, &inputs, &values, &BTreeMap::new())?;
        let mut loss = tape.constant(vec![0.0], &[]);
        let share = 1.0 / self.probes.len().max(1) as f32;
        for ((v, wanted), (scores, power)) in found.iter().zip(trial.wanted(i)).zip(&self.probes) {
            let wanted = put(&mut tape, wanted)?;
            let term = match scores {
                true => tape.kl_divergence(*v, wanted),
                false if *power > 0.0 => {
                    let noise = tape.mean_square(*v, wanted);
                    tape.scale(noise, 1.0 / power, 0.0)
                }
                false => continue,
            };
            let term = tape.scale(term, share, 0.0);
            loss = tape.add(loss, term);
        }
        let value = tape.scalar(loss) as f64;
        if !learn {
            return Ok((value, Vec::new()));
        }
        let mut grads = tape.backward(loss);
        Ok((value, biases.iter().map(|b| grads.take(values[&b.value], b.now.len())).collect()))
    }

    /// The loss of each sample of a trial.
    fn losses(&self, biases: &[Bias], trial: &Trial, threads: usize) -> Result<Vec<f64>> {
        each_sample(trial.samples().len(), threads, || Ok(()), |_, i| Ok(self.of(biases, trial, i, false)?.0))
    }

    /// Runs the epochs; the biases with the best iterate, and how many were run.
    fn descend(&self, mut biases: Vec<Bias>, how: &TuneBias, seen: &Trial, held: &Trial, progress: &dyn Progress) -> Result<(Vec<Bias>, usize)> {
        let n = seen.samples().len();
        let begun = Instant::now();
        self.of(&biases, seen, 0, true)?;
        let estimate = begun.elapsed().as_secs_f64() * (how.epochs * (n + held.samples().len() / 2)) as f64 / how.threads.max(1) as f64;
        progress.say(&format!("tune-bias: at most some {estimate:.0} s for {} epochs", how.epochs));
        progress.begin("tune-bias", how.epochs as u64);
        let start = self.losses(&biases, held, how.threads)?;
        let mut best = mean(&start);
        let (mut idle, mut run) = (0, 0);
        let batch = how.batch.clamp(1, n.max(1));
        let steps = (how.epochs * n.div_ceil(batch)) as f64;
        let mut step = 0;
        for epoch in 0..how.epochs {
            let mut order: Vec<usize> = (0..n).collect();
            shuffle(&mut order, how.seed.wrapping_add(epoch as u64));
            let mut learnt = 0.0;
            for samples in order.chunks(batch) {
                let (loss, grads) = over_batch(samples, how.threads, |i| self.of(&biases, seen, i, true))?;
                learnt += loss / n as f64;
                // The rate falls to nothing along half a cosine.
                let rate = how.rate * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps).cos());
                for (b, grad) in biases.iter_mut().zip(&grads) {
                    let grad: Vec<f32> = grad.iter().map(|g| g / samples.len() as f32).collect();
                    b.adam.step(Arc::<Vec<f32>>::make_mut(&mut b.now), &grad, rate as f32 * b.spread);
                }
                step += 1;
            }
            run = epoch + 1;
            let losses = self.losses(&biases, held, how.threads)?;
            let loss = mean(&losses);
            progress.say(&format!("tune-bias: epoch {run}: {learnt:.5} seen, {loss:.5} held out"));
            progress.tick(1);
            if loss < best && is_better(&start, &losses) {
                (best, idle) = (loss, 0);
                biases.iter_mut().for_each(|b| b.best = b.now.clone());
            } else {
                idle += 1;
            }
            if idle >= PATIENCE || !loss.is_finite() {
                break;
            }
        }
        progress.end();
        Ok((biases, run))
    }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// Whether samples lose less than before by more than chance would have it: their mean gain is above twice its standard error.
fn is_better(before: &[f64], after: &[f64]) -> bool {
    let gains: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
    let (m, n) = (mean(&gains), gains.len() as f64);
    let variance = gains.iter().map(|g| (g - m).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    m > 2.0 * (variance / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::graph::Op;
    use crate::note::NoteKind;
    use crate::pass::Silent;
    use crate::quant::Blocks;
    use crate::round::testing::{models, models_before, samples, weight_codes};

    fn how(threads: usize) -> TuneBias<'static> {
        TuneBias {
            samples: 64,
            epochs: 12,
            batch: 8,
            rate: 0.02,
            loss: 1e-4,
            seed: 3,
            biases: Biases { bias: None, float: false, shifts: &[] },
            memory: 1 << 20,
            threads,
        }
    }

    #[test]
    fn outputs_come_nearer_to_the_float_models_on_samples_it_has_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let data = samples(dir.path(), 96, false);
        let (float, m) = models(&Blocks::channel(0));
        let all: Vec<usize> = (0..64).collect();
        let others = Trial::new(&float, (64..96).map(|i| data.sample(i).unwrap()).collect(), 1).unwrap();
        let loss = |m: &Model| others.loss(&others.plans(m), &m.quantizers).unwrap();
        let (mut one, mut two) = (m.clone(), m.clone());
        let notes = tune_bias(&mut one, &how(1), &float, Some((&data, &all)), &Silent).unwrap();
        tune_bias(&mut two, &how(3), &float, Some((&data, &all)), &Silent).unwrap();
        assert!(one == two, "the result depends on the number of threads");
        assert!(notes.list().iter().any(|n| n.kind == NoteKind::Changed && n.text.contains("21 biases of 2 layers")), "{notes:?}");
        assert_eq!(weight_codes(&one), weight_codes(&m));
        assert!(loss(&one) < 0.7 * loss(&m), "{} {}", loss(&m), loss(&one));
    }

    #[test]
    fn what_does_not_serve_samples_it_has_not_seen_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (float, m) = models(&Blocks::channel(0));
        let all: Vec<usize> = (0..16).collect();
        let mut tuned = m.clone();
        let notes = tune_bias(&mut tuned, &how(1), &float, Some((&samples(dir.path(), 16, true), &all)), &Silent).unwrap();
        assert!(tuned == m && notes.count(NoteKind::Declined) == 1, "{notes:?}");
        let notes = tune_bias(&mut tuned, &how(1), &float, Some((&samples(dir.path(), 16, false), &all[..7])), &Silent).unwrap();
        assert!(tuned == m && notes.list()[0].text.contains("at least 8 samples, and gets 7"), "{notes:?}");
        // Eight numbers in and five out.
        let little = TuneBias { memory: 5 * 13 * 4, ..how(1) };
        let notes = tune_bias(&mut tuned, &little, &float, Some((&samples(dir.path(), 16, false), &all)), &Silent).unwrap();
        assert!(notes.list()[0].text.contains("gets 5"), "{notes:?}");
        let notes = tune_bias(&mut tuned, &TuneBias { loss: 100.0, ..how(1) }, &float, Some((&samples(dir.path(), 16, false), &all)), &Silent).unwrap();
        assert!(tuned == m && notes.list()[0].text.contains("less than 100"), "{notes:?}");
        assert!(tune_bias(&mut tuned, &how(1), &float, None, &Silent).unwrap_err().to_string().contains("--data"));
    }

    #[test]
    fn a_model_that_is_not_differentiable_is_declined_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (float, mut m) = models_before(&Blocks::channel(0), Some(Node::new(Op::Mod, "wrap").with("fmod", 1i64)));
        let before = m.clone();
        let all: Vec<usize> = (0..16).collect();
        let notes = tune_bias(&mut m, &how(1), &float, Some((&samples(dir.path(), 16, false), &all)), &Silent).unwrap();
        assert!(m == before && notes.list().iter().any(|n| n.text.contains("wrap: Mod is not differentiated")), "{notes:?}");
    }

    #[test]
    fn gains_within_their_standard_error_are_chance() {
        assert!(is_better(&[1.0, 1.0, 1.0, 1.0], &[0.9, 0.8, 0.9, 0.8]));
        assert!(!is_better(&[1.0, 1.0, 1.0, 5.0], &[1.1, 1.1, 1.1, 3.0]));
        assert!(!is_better(&[1.0, 1.0], &[1.0, 1.0]));
    }
}
