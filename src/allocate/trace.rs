//! What a layer loses by the curvature of the loss: half the mean trace of its Hessian, times the squared error of its weights.
//! Source: HAWQ-V2 (Dong et al. 2020) and HAWQ-V3 (Yao et al. 2021, section 3.4) for the measure, Hutchinson's estimator for the trace.
//! Draws end where every trace's standard error is a twentieth of it: neither source says more than that a hundred are enough.
//! The loss is the one that a [`Trial`] tells, against the float model's own outputs. It is least where weights are float, where its Hessian is `Jᵀ·A·Aᵀ·J`
//! without more (Gauss and Newton), `J` the outputs' derivatives and `A·Aᵀ` the loss's own curvature: of random signs `v`, `‖Jᵀ·A·v‖²` is the trace on
//! average, and one way back gives it for all layers at once.

use super::layers::{Layer, Rows};
use crate::data::mix;
use crate::engine::Trial;
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId, Op, ValueId};
use crate::learn::{Segment, Tape, Var, over_batch};
use crate::pass::Progress;
use crate::quant::{self, Quantizer, QuantizerId, Table};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Draws of signs for each sample, at least and at most.
pub const DRAWS: (u64, u64) = (4, 100);
/// The standard error of every trace, as a share of it, below which no more are drawn.
const ERROR: f64 = 0.05;

/// A layer's weight on the tape.
struct Weight {
    id: QuantizerId,
    /// What its FakeQuant gives.
    value: ValueId,
    values: Arc<Vec<f32>>,
    shape: Vec<usize>,
}

/// What draws gave, and its square, summed.
#[derive(Clone, Default)]
struct Sum {
    first: f64,
    second: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        (self.first, self.second) = (self.first + x, self.second + x * x);
    }

    /// The standard error of the mean of `n` draws, as a share of it.
    fn error(&self, n: u64) -> f64 {
        let n = n as f64;
        let (mean, square) = (self.first / n, self.second / n);
        if mean > 0.0 { ((square - mean * mean).max(0.0) / (n - 1.0).max(1.0)).sqrt() / mean } else { 0.0 }
    }
}

/// By quantizer of a layer's weight: the Hessian's trace, divided by the number of weights.
pub struct Traces {
    weights: Vec<Weight>,
    means: Vec<f64>,
}

impl Traces {
    /// # Errors
    /// A model that is not differentiable from its inputs to its outputs, by the node that is not.
    pub fn of(model: &Model, layers: &[Layer], trial: &Trial, progress: &dyn Progress) -> Result<Traces> {
        let mut float = model.clone();
        let mut weights = Vec::new();
        let wanted: Vec<QuantizerId> = layers.iter().flat_map(|l| &l.weights).copied().collect();
        let sites: BTreeMap<NodeId, QuantizerId> = model.constant_sites().into_iter().map(|(n, q)| (n, model.quantizers.root(q))).collect();
        let fakes: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| n.op == Op::FakeQuant).map(|(id, _)| id).collect();
        for fake in fakes {
            let node = model.graph.node(fake);
            let (Some(x), Some(value)) = (node.input(0), node.output(0)) else { continue };
            match (sites.get(&fake).filter(|q| wanted.contains(q)), model.graph.constant(x)) {
                (Some(&id), Some(c)) => {
                    let (values, shape) = (Arc::new(c.tensor.to_f32()?.into_owned()), c.tensor.shape().to_vec());
                    weights.push(Weight { id, value, values, shape });
                }
                // Attributes as inputs are read as constants.
                (None, Some(c)) => {
                    float.graph.remove_node(fake);
                    float.graph.value_mut(value).constant = Some(c.clone());
                }
                _ => {
                    let node = float.graph.node_mut(fake);
                    (node.op, node.attrs) = (Op::Identity, Vec::new());
                }
            }
        }
        let curvature = Curvature::of(&float, trial).map_err(refused)?;
        let samples: Vec<usize> = (0..trial.samples().len()).collect();
        let (mut sums, mut drawn) = (vec![Sum::default(); weights.len()], 0u64);
        progress.begin("hessian-trace", DRAWS.1);
        while drawn < DRAWS.1 && (drawn < DRAWS.0 || sums.iter().any(|s| s.error(drawn) > ERROR)) {
            crate::interrupt::check()?;
            let one = |i: usize| Ok((0.0, vec![curvature.squares(&weights, trial, i, drawn)?]));
            let (_, found) = over_batch(&samples, trial.threads(), one).map_err(refused)?;
            drawn += 1;
            let found = found.first().map(Vec::as_slice).unwrap_or_default();
            sums.iter_mut().zip(found).for_each(|(sum, square)| sum.add(*square as f64));
            progress.tick(1);
        }
        progress.end();
        progress.say(&format!("hessian-trace: {drawn} draws of signs a sample"));
        let runs = (drawn * samples.len().max(1) as u64) as f64;
        let means = sums.iter().zip(&weights).map(|(s, w)| s.first / runs / w.values.len().max(1) as f64).collect();
        Ok(Traces { weights, means })
    }

    /// What the layer loses with these quantizers in the table's place, as far as its loss is quadratic.
    pub fn loss(&self, layer: &Layer, rows: &Rows, table: &Table) -> Result<f64> {
        let row = |id: QuantizerId| -> &Quantizer { rows.iter().find(|(q, _)| *q == id).map_or(&table[id], |(_, row)| row) };
        let mut loss = 0.0;
        for (weight, mean) in self.weights.iter().zip(&self.means).filter(|(w, _)| layer.weights.contains(&w.id)) {
            let row = row(weight.id);
            let mut x = weight.values.to_vec();
            quant::fake_quantize(&mut x, &weight.shape, &row.scheme, row.params.as_ref()).at(|| &row.name)?;
            let square: f64 = x.iter().zip(weight.values.iter()).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
            loss += 0.5 * mean * square;
        }
        Ok(loss)
    }
}

fn refused(error: Error) -> Error {
    match error {
        Error::Failed(why) => Error::usage(format!("sensitivity hessian-trace needs a model that can be differentiated: {why}; take one-at-a-time")),
        other => other,
    }
}

/// The float model as a function of its weights, and the curvature of the loss by its outputs.
struct Curvature {
    segment: Segment,
    inputs: Vec<String>,
    /// By probe: whether it holds scores, and the mean square of what the float model gives.
    probes: Vec<(bool, f64)>,
}

impl Curvature {
    fn of(float: &Model, trial: &Trial) -> Result<Curvature> {
        let g = &float.graph;
        let inputs: Vec<ValueId> = g.inputs.iter().copied().filter(|v| g.constant(*v).is_none()).collect();
        let outputs: Vec<ValueId> = trial.probes().iter().map(|p| p.value).collect();
        let power = |p: usize| -> Result<f64> {
            let (mut sum, mut count) = (0f64, 0f64);
            for i in 0..trial.samples().len() {
                let t = trial.wanted(i)[p].to_f32()?;
                (sum, count) = (sum + t.iter().map(|v| (*v as f64).powi(2)).sum::<f64>(), count + t.len() as f64);
            }
            Ok(sum / count.max(1.0))
        };
        let probes = trial.probes().iter().enumerate().map(|(p, probe)| Ok((probe.scores, power(p)?))).collect::<Result<_>>()?;
        let names = inputs.iter().map(|v| g.value(*v).name.clone()).collect();
        Ok(Curvature { segment: Segment::of(float, &inputs, &outputs)?, inputs: names, probes })
    }

    /// By weight, `‖Jᵀ·A·v‖²` for sample `i`.
    fn squares(&self, weights: &[Weight], trial: &Trial, i: usize, draw: u64) -> Result<Vec<f32>> {
        let mut tape = Tape::new();
        let sample = &trial.samples()[i];
        let mut given = Vec::new();
        for name in &self.inputs {
            let t = sample.get(name).ok_or_else(|| Error::usage(format!("input {name} is not given")))?;
            given.push(tape.constant(t.to_f32()?.into_owned(), t.shape()));
        }
        let vars: Vec<Var> = weights.iter().map(|w| tape.parameter(w.values.clone(), &w.shape)).collect();
        let values = weights.iter().map(|w| w.value).zip(vars.iter().copied()).collect();
        let outputs = self.segment.run(&mut tape, &given, &values, &BTreeMap::new())?;
        let mut seeds = Vec::new();
        for (p, (output, wanted)) in outputs.into_iter().zip(trial.wanted(i)).enumerate() {
            let place = mix(draw ^ mix((i * self.probes.len() + p) as u64));
            if tape.is_wanted(output) {
                seeds.push((output, self.seed(p, wanted, |k| if mix(place ^ k as u64) & 1 == 0 { 1.0 } else { -1.0 })?));
            }
        }
        let mut grads = tape.backward_from(seeds);
        let square = |(v, w): (&Var, &Weight)| grads.take(*v, w.values.len()).iter().map(|g| (*g as f64).powi(2)).sum::<f64>() as f32;
        Ok(vars.iter().zip(weights).map(square).collect())
    }

    /// `A·v` of probe `p`, `A·Aᵀ` the second derivatives of its loss: `2 / (n · power)` each of noise over signal, `diag(π) − π·πᵀ` of a row of scores
    /// (of which `A = diag(√π) − π·√πᵀ`) divided by the number of rows.
    fn seed(&self, p: usize, wanted: &Tensor, sign: impl Fn(usize) -> f32) -> Result<Vec<f32>> {
        let (scores, power) = self.probes[p];
        let (x, share) = (wanted.to_f32()?, 1.0 / self.probes.len() as f64);
        let classes = wanted.shape().last().copied().unwrap_or(1).max(1);
        if !scores || classes == 1 {
            let each = if power > 0.0 { (2.0 * share / (x.len().max(1) as f64 * power)).sqrt() as f32 } else { 0.0 };
            return Ok((0..x.len()).map(|k| each * sign(k)).collect());
        }
        let each = (share / (x.len() / classes).max(1) as f64).sqrt() as f32;
        let mut seed = Vec::with_capacity(x.len());
        for (r, row) in x.chunks(classes).enumerate() {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = row.iter().map(|v| (v - most).exp()).collect();
            let total: f32 = exps.iter().sum();
            let roots: Vec<f32> = exps.iter().map(|e| (e / total).sqrt()).collect();
            let sum: f32 = roots.iter().enumerate().map(|(k, root)| root * sign(r * classes + k)).sum();
            seed.extend(roots.iter().enumerate().map(|(k, root)| each * (root * sign(r * classes + k) - root * root * sum)));
        }
        Ok(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::layers::layers;
    use crate::graph::{Dim, Node, Type};
    use crate::pass::Silent;
    use crate::quant::{Params, Scheme};
    use crate::tensor::DType;

    const N: usize = 6;

    /// `x · W`, with the samples that it is given and the layer's trace: of scores, or, behind a LeakyRelu that changes nothing, of numbers.
    fn found(scores: bool) -> (Vec<Vec<f32>>, Vec<Vec<f32>>, f64, f64, f64) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(N)]) };
        let [x, y, z, wq] = ["x", "y", "z", "wq"].map(|n| m.graph.add_value(n));
        [x, y, z].iter().for_each(|v| m.graph.value_mut(*v).ty = ty.clone());
        let w: Vec<f32> = (0..N * N).map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * 2.0).collect();
        let q = m.quantizers.add("w", Scheme::int(8, true));
        m.quantizers[q].params = Some(Params::tensor(1.0 / 127.0, None));
        let c = m.graph.add_constant("w", Tensor::of_f32(&[N, N], w.clone()));
        m.graph.add_node(Node::fake_quant(q, ""), &[Some(c)], &[Some(wq)]);
        m.graph.add_node(Node::new(Op::MatMul, "layer"), &[Some(x), Some(wq)], &[Some(y)]);
        m.graph.inputs = vec![x];
        m.graph.outputs = vec![if scores { y } else { z }];
        if !scores {
            m.graph.add_node(Node::new(Op::LeakyRelu, "same").with("alpha", 1.0f32), &[Some(y)], &[Some(z)]);
        }
        let xs: Vec<Vec<f32>> = (0..3).map(|s| (0..N).map(|k| ((s * N + k) as f32 * 0.754_877).fract() * 2.0 - 0.8).collect()).collect();
        let samples: Vec<_> = xs.iter().map(|x| BTreeMap::from([("x".to_string(), Tensor::of_f32(&[1, N], x.clone()))])).collect();
        let ys = xs.iter().map(|x| (0..N).map(|j| (0..N).map(|i| x[i] * w[i * N + j]).sum()).collect()).collect();
        let trial = Trial::new(&m, samples, 2).unwrap();
        assert_eq!(trial.probes()[0].scores, scores);
        let layers = layers(&m, &Default::default());
        let traces = Traces::of(&m, &layers, &trial, &Silent).unwrap();
        // One step of error in every weight.
        let row = Quantizer { params: Some(Params::tensor(4.0, None)), ..m.quantizers[q].clone() };
        let all_lost = traces.loss(&layers[0], &vec![(q, row)], &m.quantizers).unwrap();
        (xs, ys, traces.means[0] * (N * N) as f64, all_lost, w.iter().map(|v| (*v as f64).powi(2)).sum::<f64>())
    }

    fn square(x: &[f32]) -> f64 {
        x.iter().map(|v| (*v as f64).powi(2)).sum()
    }

    /// Of `Σ_j (y_j − y*_j)² / (N · power)` the second derivative by `W_ij` is `2 x_i² / (N · power)`: signs change nothing, the trace is exact.
    #[test]
    fn the_trace_of_a_product_measured_by_noise_is_exact() {
        let (xs, ys, trace, all_lost, w) = found(false);
        let power = ys.iter().map(|y| square(y)).sum::<f64>() / (3 * N) as f64;
        let want = xs.iter().map(|x| 2.0 * square(x) / power).sum::<f64>() / 3.0;
        assert!((trace / want - 1.0).abs() < 1e-4, "{trace} {want}");
        // Weights that are all rounded to 0.
        let want = 0.5 * want / (N * N) as f64 * w;
        assert!((all_lost / want - 1.0).abs() < 1e-4, "{all_lost} {want}");
    }

    /// Of the divergence of a row it is `x_i² · π_j (1 − π_j)`: draws come near.
    #[test]
    fn the_trace_of_scores_is_that_of_their_probabilities() {
        let (xs, ys, trace, ..) = found(true);
        let spread = |y: &[f32]| {
            let total: f64 = y.iter().map(|v| (*v as f64).exp()).sum();
            1.0 - y.iter().map(|v| ((*v as f64).exp() / total).powi(2)).sum::<f64>()
        };
        let want = xs.iter().zip(&ys).map(|(x, y)| square(x) * spread(y)).sum::<f64>() / 3.0;
        assert!((trace / want - 1.0).abs() < 3.0 * ERROR, "{trace} {want}");
    }

    #[test]
    fn the_error_of_a_mean_falls_with_the_draws() {
        let of = |xs: &[f64]| {
            let mut sum = Sum::default();
            xs.iter().for_each(|x| sum.add(*x));
            sum.error(xs.len() as u64)
        };
        assert_eq!(of(&[3.0, 3.0, 3.0, 3.0]), 0.0);
        // Deviation √(4/3) over √4, of a mean of 2.
        assert!((of(&[1.0, 3.0, 1.0, 3.0]) - (1.0f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
        assert_eq!(of(&[0.0, 0.0]), 0.0, "what the loss does not feel is known");
    }
}
