//! What a choice costs: a few samples' outputs of the float model, against which the quantized model is measured under any table.
//!
//! Outputs that look like scores of classes (the last operation is a Softmax, a Gemm or a MatMul) are measured by the Kullback-Leibler divergence
//! of the probabilities that they stand for, all others by noise over signal. Both are about 0 where nothing is lost and 1 where all is.
//! An output that joins several tensors is measured part by part.

use super::{Plans, RunnerOptions, Running, each_sample, over_samples, shapes_of};
use crate::error::{Error, Result};
use crate::graph::{Graph, Inferred, InputShapes, Model, Op, ValueId, infer};
use crate::observe::Sums;
use crate::quant::Table;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Samples and the float model's outputs for them.
#[derive(Debug)]
pub struct Trial {
    samples: Vec<BTreeMap<String, Tensor>>,
    probes: Vec<Probe>,
    wanted: Vec<Vec<Tensor>>,
    threads: usize,
}

/// One output or part of one: the value looked at, and whether it holds scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    pub value: ValueId,
    pub scores: bool,
}

impl Trial {
    /// Runs the float model that `model` was placed in: its quantizers pass everything through. Outputs that are no real numbers count by those they were decided by.
    pub fn new(model: &Model, samples: Vec<BTreeMap<String, Tensor>>, threads: usize) -> Result<Trial> {
        let probes = Self::probes_of(model, &samples.first().map(shapes_of).unwrap_or_default());
        let values: Vec<ValueId> = probes.iter().map(|p| p.value).collect();
        let plans = Plans::new(model, &values, RunnerOptions { float: true, ..RunnerOptions::default() });
        let run = |running: &mut Running, i: usize| plans.run(running, &samples[i], &model.quantizers);
        let wanted = each_sample(samples.len(), threads, || Ok(Running::default()), run)?;
        Ok(Trial { samples, probes, wanted, threads })
    }

    /// With what the float model is known to give at the probes, sample by sample.
    pub fn with(samples: Vec<BTreeMap<String, Tensor>>, probes: Vec<Probe>, wanted: Vec<Vec<Tensor>>, threads: usize) -> Trial {
        Trial { samples, probes, wanted, threads }
    }

    /// The same of the first samples alone, so many at most.
    pub fn first(mut self, samples: usize) -> Trial {
        self.samples.truncate(samples);
        self.wanted.truncate(samples);
        self
    }

    /// What is looked at of a model whose inputs have these shapes.
    pub fn probes_of(model: &Model, shapes: &InputShapes) -> Vec<Probe> {
        let (g, inferred) = (&model.graph, infer(model, shapes));
        let mut seen = BTreeSet::new();
        let looked_at: BTreeSet<ValueId> = g.outputs.iter().flat_map(|v| parts(g, &inferred, *v, &mut seen)).collect();
        looked_at.into_iter().map(|v| probe(g, v)).collect()
    }

    /// What is looked at.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// What the float model gave at the probes for sample `i`.
    pub fn wanted(&self, i: usize) -> &[Tensor] {
        &self.wanted[i]
    }

    /// The samples.
    pub fn samples(&self) -> &[BTreeMap<String, Tensor>] {
        &self.samples
    }

    /// Threads that run them.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Plans of the model as it is now: its weights are built in.
    pub fn plans<'m>(&self, model: &'m Model) -> Plans<'m> {
        self.plans_with(model, RunnerOptions::default())
    }

    /// Plans whose weights follow the table of each run.
    pub fn live_plans<'m>(&self, model: &'m Model) -> Plans<'m> {
        self.plans_with(model, RunnerOptions { live_weights: true, ..RunnerOptions::default() })
    }

    fn plans_with<'m>(&self, model: &'m Model, options: RunnerOptions) -> Plans<'m> {
        Plans::new(model, &self.probes.iter().map(|p| p.value).collect::<Vec<_>>(), options)
    }

    /// The mean over the outputs' parts of what each loses under `table`.
    pub fn loss(&self, plans: &Plans, table: &Table) -> Result<f64> {
        self.lost(plans, table, 0..self.samples.len())?.mean()
    }

    /// What is lost on some of the samples.
    pub fn lost(&self, plans: &Plans, table: &Table, samples: Range<usize>) -> Result<Lost> {
        self.lost_by(samples, |running: &mut Running, i| plans.run(running, &self.samples[i], table))
    }

    /// What is lost on some of the samples, where `run` gives what the quantized model makes of each at the probes.
    pub(super) fn lost_by<S: Default>(&self, samples: Range<usize>, run: impl Fn(&mut S, usize) -> Result<Vec<Tensor>> + Sync) -> Result<Lost> {
        let mut lost = Lost(vec![(Sums::default(), 0.0, 0.0); self.probes.len()]);
        over_samples(
            samples.len(),
            self.threads,
            || Ok(S::default()),
            |state, i| {
                let i = samples.start + i;
                let got = run(state, i)?;
                let one = |((w, g), p): ((&Tensor, &Tensor), &Probe)| -> Result<(Sums, f64, f64)> {
                    if !w.dtype().is_float() {
                        return Ok((Sums::default(), 0.0, 0.0));
                    }
                    let (w32, g32) = (w.to_f32()?, g.to_f32()?);
                    let columns = w.shape().last().copied().unwrap_or(1);
                    if p.scores && columns > 1 {
                        let (pairs, rows) = (w32.chunks_exact(columns).zip(g32.chunks_exact(columns)), (w.len() / columns) as f64);
                        // Where rows are many, nobody asks for their noise.
                        let few = rows < FEW_ROWS;
                        let sums = if few { Sums::of(&centred(&w32, columns), &centred(&g32, columns)) } else { Sums::default() };
                        return Ok((sums, pairs.map(|(w, g)| divergence(w, g)).sum(), rows));
                    }
                    Ok((Sums::of(&w32, &g32), 0.0, 0.0))
                };
                self.wanted[i].iter().zip(&got).zip(&self.probes).map(one).collect::<Result<Vec<_>>>().map(Lost)
            },
            |_, new| {
                lost.merge(&new);
                Ok(())
            },
        )?;
        Ok(lost)
    }
}

/// Rows of scores fewer than these are told apart by their noise: where a model is certain a divergence is next to nothing, and the few rows in which it
/// is not would decide alone.
const FEW_ROWS: f64 = 256.0;
/// Numbers fewer than these tell nothing.
const FEW_NUMBERS: u64 = 32;

/// What samples lost, by probe: noise and signal, and of scores, whose rows are centred for these, divergences and rows.
#[derive(Debug, Clone)]
pub struct Lost(Vec<(Sums, f64, f64)>);

impl Lost {
    /// Together with what other samples lost.
    pub fn merge(&mut self, o: &Lost) {
        for (a, b) in self.0.iter_mut().zip(&o.0) {
            a.0.merge(&b.0);
            a.1 += b.1;
            a.2 += b.2;
        }
    }

    /// The mean over the probes.
    ///
    /// # Errors
    /// None of them holds real numbers.
    pub fn mean(&self) -> Result<f64> {
        self.mean_with(1.0)
    }

    /// The same to compare candidates by: of few rows of scores, noise over signal.
    pub fn compared(&self) -> Result<f64> {
        self.mean_with(FEW_ROWS)
    }

    /// Whether it speaks of a few rows of scores: of samples as many, of which each may differ much.
    pub fn is_of_few(&self) -> bool {
        self.0.iter().any(|(_, _, rows)| *rows > 0.0 && *rows < FEW_ROWS)
    }

    /// Whether it speaks of so few numbers, at every probe, that chance decides which are near.
    pub fn is_chance(&self) -> bool {
        self.0.iter().all(|(s, _, rows)| s.pairs() < FEW_NUMBERS && *rows < FEW_ROWS)
    }

    fn mean_with(&self, rows_needed: f64) -> Result<f64> {
        let of = |(s, divergence, rows): &(Sums, f64, f64)| match (s.pairs(), *rows >= rows_needed) {
            (_, true) => Some(divergence / rows),
            (0, false) => None,
            _ => Some(10f64.powf(-s.sqnr().0 / 10.0)),
        };
        let losses: Vec<f64> = self.0.iter().filter_map(of).collect();
        if losses.is_empty() {
            return Err(Error::failed("the model has no output of real numbers to measure by"));
        }
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(if mean.is_nan() { f64::INFINITY } else { mean })
    }
}

/// Rows of scores less their means, which Softmax does not see.
fn centred(x: &[f32], columns: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(x.len());
    for row in x.chunks_exact(columns) {
        let mean = row.iter().map(|v| *v as f64).sum::<f64>() / columns as f64;
        all.extend(row.iter().map(|v| (*v as f64 - mean) as f32));
    }
    all
}

/// KL(softmax(p) ‖ softmax(q)) of two rows of scores, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        top + x.iter().map(|v| (*v as f64 - top).exp()).sum::<f64>().ln()
    };
    let (a, b) = (log_sum(p), log_sum(q));
    p.iter().zip(q).map(|(p, q)| (*p as f64 - a, *q as f64 - b)).filter(|(p, _)| *p > -50.0).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

/// Parts that an output joins at most, or it is looked at as a whole.
const PARTS: usize = 32;

/// What output `v` is made of: the tensors it joins, such as a detector's boxes and scores, since the smaller numbers would not count beside the larger
/// ones; the real numbers that it was decided by, where it holds classes or truth values; else `v` itself.
/// Nothing, where that was `seen` before.
fn parts(g: &Graph, inferred: &Inferred, v: ValueId, seen: &mut BTreeSet<ValueId>) -> Vec<ValueId> {
    if !seen.insert(v) {
        return vec![];
    }
    let mut at = v;
    while let Some((n, _)) = g.value(at).producer() {
        let node = g.node(n);
        let real = |v: &ValueId| inferred.get(*v).dtype.is_none_or(|d| d.is_float());
        let mut sources =
            || node.inputs().iter().flatten().filter(|v| g.constant(**v).is_none()).flat_map(|v| parts(g, inferred, *v, seen)).collect::<BTreeSet<_>>();
        at = match node.op {
            Op::Concat => {
                let joined = sources();
                return if joined.len() > PARTS { vec![v] } else { joined.into_iter().collect() };
            }
            Op::FakeQuant | Op::Identity | Op::Squeeze | Op::Unsqueeze | Op::Flatten | Op::Reshape | Op::Transpose => node.input(0).unwrap_or(v),
            _ if !real(&at) => return sources().into_iter().take(PARTS).collect(),
            _ => break,
        };
    }
    if inferred.get(v).dtype.is_none_or(|d| d.is_float()) { vec![v] } else { vec![] }
}

/// What to look at for output `v`: the scores before a Softmax rather than its saturated result.
fn probe(g: &Graph, v: ValueId) -> Probe {
    let maker = |v: ValueId| g.value(v).producer().map(|(n, _)| g.node(n));
    let mut at = v;
    while let Some(node) = maker(at) {
        let constant = |slot: usize| node.input(slot).is_some_and(|v| crate::graph::constant_behind(g, v).is_some());
        at = match node.op {
            Op::Softmax if node.int("axis").unwrap_or(-1) == -1 || node.int("axis") == Some(1) => {
                return node.input(0).map_or(Probe { value: v, scores: false }, |value| Probe { value, scores: true });
            }
            Op::Gemm | Op::MatMul => return Probe { value: v, scores: true },
            Op::FakeQuant | Op::Identity | Op::Squeeze | Op::Flatten => node.input(0).unwrap_or(at),
            Op::Add if constant(1) => node.input(0).unwrap_or(at),
            Op::Add if constant(0) => node.input(1).unwrap_or(at),
            _ => break,
        };
    }
    Probe { value: v, scores: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Node, Type};
    use crate::quant::{Params, Scheme};
    use crate::tensor::DType;

    #[test]
    fn divergence_worked_by_hand() {
        assert_eq!(divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]), 0.0);
        // p = (1/2, 1/2), q = (1/4, 3/4).
        let kl = divergence(&[0.0, 0.0], &[0.0, 3f32.ln()]);
        assert!((kl - (0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln())).abs() < 1e-7, "{kl}");
    }

    /// y = ArgMax(Concat(Sigmoid(x), x)), z = Concat(Sigmoid(x), x): both are looked at as Sigmoid(x) and x.
    #[test]
    fn outputs_are_looked_at_part_by_part_and_classes_by_their_scores() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, s, z, y] = ["x", "s", "z", "y"].map(|n| g.add_value(n));
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(2)]) };
        (g.inputs, g.outputs) = (vec![x], vec![y, z]);
        g.add_node(Node::new(Op::Sigmoid, "s"), &[Some(x)], &[Some(s)]);
        g.add_node(Node::new(Op::Concat, "z").with("axis", 1), &[Some(s), Some(x)], &[Some(z)]);
        g.add_node(Node::new(Op::ArgMax, "y"), &[Some(z)], &[Some(y)]);
        let inferred = infer(&m, &InputShapes::default());
        let parts = |v| parts(&m.graph, &inferred, v, &mut BTreeSet::new());
        assert_eq!([parts(y), parts(z)], [vec![x, s], vec![x, s]]);
    }

    /// x[1,2] → FQ → MatMul → Softmax → y: a coarser scale loses more, and the table alone decides.
    #[test]
    fn a_coarser_table_loses_more() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let q = m.quantizers.add("x", Scheme::int(8, false));
        let g = &mut m.graph;
        let [x, xq, z, y] = ["x", "xq", "z", "y"].map(|n| {
            let v = g.add_value(n);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(2)]) };
            v
        });
        let w = g.add_constant("w", Tensor::of_f32(&[2, 2], vec![1.0, -1.0, 0.5, 2.0]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(q, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::MatMul, "m"), &[Some(xq), Some(w)], &[Some(z)]);
        g.add_node(Node::new(Op::Softmax, "s"), &[Some(z)], &[Some(y)]);
        assert_eq!(probe(g, y), Probe { value: z, scores: true });
        let sample = |a: f32, b: f32| BTreeMap::from([("x".to_string(), Tensor::of_f32(&[1, 2], vec![a, b]))]);
        let trial = Trial::new(&m, vec![sample(0.3, 0.77), sample(0.11, 0.5)], 1).unwrap();
        let loss = |scale: f32| {
            let mut m = m.clone();
            m.quantizers[q].params = Some(Params::tensor(scale, Some(0)));
            trial.loss(&trial.plans(&m), &m.quantizers).unwrap()
        };
        // Compared by noise, a scale that moves every score alike is no loss.
        let mut lost = Lost(vec![(Sums::of(&centred(&[1.0, 3.0], 2), &centred(&[6.0, 8.5], 2)), 0.5, 1.0)]);
        assert!((lost.compared().unwrap() - 0.0625).abs() < 1e-6 && lost.mean().unwrap() == 0.5);
        lost.0[0].2 = FEW_ROWS;
        assert_eq!(lost.compared().unwrap(), 0.5 / FEW_ROWS);
        assert!(loss(0.004) < 1e-4 && loss(0.25) > 10.0 * loss(0.01), "{} {} {}", loss(0.004), loss(0.01), loss(0.25));
    }
}
