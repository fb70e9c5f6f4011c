//! What layers read of the float model: second moments of the numbers that their outputs are sums over. Looked at in a pass that other steps make over
//! the samples, or in a walk of their own.

use super::biases;
use super::gptq::{Gptq, readings};
use super::moments::{FloatMoments, Moments};
use super::samples::KEPT;
use crate::engine::Patches;
use crate::error::Result;
use crate::graph::{Graph, Model, Op, ValueId};
use crate::math::{add_columns, add_gram};
use crate::note::Notes;
use crate::observe::{Beside, Turn};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a layer reads its input, and at how many places it is looked at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    /// The input as the float model has it: before the quantizers that a layer reads it through.
    pub x: ValueId,
    pub patches: Patches,
    pub places: usize,
}

impl Reading {
    /// What it reads of a tensor, of which there are `samples`.
    fn columns(&self, t: &Tensor, samples: usize) -> Result<(Vec<f32>, usize)> {
        Ok(self.patches.columns(&t.to_f32()?, t.shape(), self.places.div_ceil(samples.max(1)).max(1)))
    }
}

/// The value that quantizers made `v` of: the same in the float model, whether they stand there or were taken out.
pub(super) fn before_quantizers(g: &Graph, v: ValueId) -> ValueId {
    let quantizer = g.value(v).producer().map(|(n, _)| g.node(n)).filter(|n| n.op == Op::FakeQuant);
    quantizer.and_then(|n| n.input(0)).map_or(v, |x| before_quantizers(g, x))
}

/// Groups that are summed on one thread.
const GROUPS: usize = 64;

/// Sums over places, by group of channels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SecondMoments {
    pub groups: Vec<Group>,
    /// Places.
    pub count: usize,
}

/// Of the numbers that the outputs of a group are sums over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// Of their products, row by row; what lies above the diagonal means nothing.
    pub products: Vec<f32>,
    /// Of themselves.
    pub numbers: Vec<f64>,
}

impl SecondMoments {
    fn none(patches: &Patches) -> Self {
        let n = patches.width();
        SecondMoments { groups: vec![Group { products: vec![0.0; n * n], numbers: vec![0.0; n] }; patches.groups], count: 0 }
    }

    fn add(&mut self, columns: &[f32], places: usize) {
        let one = |(group, columns): (&mut Group, &[f32])| {
            add_gram(&mut group.products, columns, group.numbers.len(), places);
            add_columns(&mut group.numbers, columns, places);
        };
        match &mut self.groups[..] {
            [group] => one((group, columns)),
            groups => {
                let size = (groups[0].numbers.len() * places).max(1);
                groups.par_chunks_mut(GROUPS).zip(columns.par_chunks(GROUPS * size)).for_each(|(groups, columns)| {
                    groups.iter_mut().zip(columns.chunks(size)).for_each(one);
                });
            }
        }
        self.count += places;
    }

    /// Of what a layer reads of these tensors, one a sample.
    pub fn of(reading: &Reading, x: &[&Tensor]) -> Result<Self> {
        let mut moments = SecondMoments::none(&reading.patches);
        for t in x {
            let (columns, places) = reading.columns(t, x.len())?;
            moments.add(&columns, places);
        }
        Ok(moments)
    }
}

/// What was gathered.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    inputs: Vec<(Reading, SecondMoments)>,
    /// Of what layers gave out.
    pub(super) outputs: FloatMoments,
    pub(super) samples: usize,
}

impl Gathered {
    pub(super) fn of(&self, reading: &Reading) -> Option<&SecondMoments> {
        self.inputs.iter().find(|(r, _)| r == reading).map(|(_, moments)| moments)
    }

    /// Frees what rounding alone wants.
    pub fn forget_inputs(&mut self) {
        self.inputs = Vec::new();
    }
}

/// Gathers what layers read, and what they give out, while samples run through the float model.
pub struct Gather {
    values: Vec<ValueId>,
    /// With their positions among the values.
    readings: Vec<(usize, Reading)>,
    outputs: Vec<(usize, biases::Layer)>,
    /// Samples of which inputs are looked at: the first so many; and those of which outputs are.
    inputs: usize,
    looked: Vec<usize>,
    gathered: Mutex<Gathered>,
}

impl Gather {
    /// For the rounding and the correction of biases that follow a pass over `samples`; `outputs`: samples of which what layers give out is looked at.
    /// Sums that would take too much memory are left for the step that wants them.
    pub fn new(model: &Model, gptq: Option<&Gptq>, outputs: usize, samples: &[usize]) -> Gather {
        let bytes = |r: &Reading| (r.patches.groups * r.patches.width() * r.patches.width() * size_of::<f32>()) as u64;
        let mut different: Vec<Reading> = Vec::new();
        for reading in gptq.map_or(Vec::new(), |how| readings(model, how)) {
            if !different.contains(&reading) {
                different.push(reading);
            }
        }
        if different.iter().map(bytes).sum::<u64>() > KEPT {
            different.clear();
        }
        let inputs = gptq.map_or(0, |how| samples.len().min(how.samples));
        let looked = &samples[..samples.len().min(outputs)];
        let layers = if looked.is_empty() { Vec::new() } else { biases::layers(model, &mut Notes::default()) };
        let mut values: Vec<ValueId> = different.iter().map(|r| r.x).chain(layers.iter().map(|l| l.output)).collect();
        values.sort();
        values.dedup();
        let at = |v: ValueId| values.binary_search(&v).expect("it is among them");
        Gather {
            readings: different.iter().map(|r| (at(r.x), r.clone())).collect(),
            outputs: layers.into_iter().map(|l| (at(l.output), l)).collect(),
            inputs,
            looked: looked.to_vec(),
            gathered: Mutex::new(Gathered {
                inputs: different.into_iter().map(|r| (r.clone(), SecondMoments::none(&r.patches))).collect(),
                outputs: FloatMoments::default(),
                samples: inputs,
            }),
            values,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was gathered, once all samples have been seen.
    pub fn done(self) -> Gathered {
        self.gathered.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beside for Gather {
    fn values(&self) -> &[ValueId] {
        &self.values
    }

    fn see(&self, i: usize, tensors: &[Tensor]) -> Result<Turn<'_>> {
        let readings = if i < self.inputs { &self.readings[..] } else { &[] };
        let read = readings.iter().map(|(at, r)| r.columns(&tensors[*at], self.inputs)).collect::<Result<Vec<_>>>()?;
        let looked = self.looked.get(i).copied();
        let layers = if looked.is_some() { &self.outputs[..] } else { &[] };
        let given = layers.iter().map(|(at, l)| Ok((l.output, Moments::of(&tensors[*at], l)?))).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(move || {
            let mut gathered = self.lock();
            gathered.inputs.iter_mut().zip(&read).for_each(|((_, moments), (columns, places))| moments.add(columns, *places));
            if let Some(sample) = looked {
                gathered.outputs.add(sample, given);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::biases::Biases;
    use super::super::correct_bias::{CorrectBias, correct_bias};
    use super::super::gptq::gptq;
    use super::super::round_nearest;
    use super::super::testing::{models, samples};
    use super::*;
    use crate::engine::{Plans, RunnerOptions, Running, over_samples};
    use crate::pass::Silent;
    use crate::quant::Blocks;

    /// What is gathered in a pass of another's is what the steps would have found themselves, on any number of threads, and they use it.
    #[test]
    fn what_was_gathered_spares_walks_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut model) = models(&Blocks::channel(0));
        model.codes.clear();
        let data = samples(dir.path(), 40, false);
        let all: Vec<usize> = (0..40).rev().collect();
        let gptq_of = Gptq { damping: None, samples: 32, work: 1e9, memory: 1 << 20, threads: 1 };
        for threads in [1, 3] {
            let gather = Gather::new(&model, Some(&gptq_of), 16, &all);
            let plans = Plans::new(&model, gather.values(), RunnerOptions { float: true, ..RunnerOptions::default() });
            let run = |running: &mut Running, i: usize| gather.see(i, &plans.run(running, &data.sample(all[i])?, &model.quantizers)?);
            over_samples(
                40,
                threads,
                || Ok(Running::default()),
                run,
                |_, turn| {
                    turn();
                    Ok(())
                },
            )
            .unwrap();
            let gathered = gather.done();
            let [mut by_walks, mut by_gathered] = [model.clone(), model.clone()];
            gptq(&mut by_walks, &gptq_of, Some((&data, &all)), None, &Silent).unwrap();
            gptq(&mut by_gathered, &gptq_of, Some((&data, &all)), Some(&gathered), &Silent).unwrap();
            assert_eq!(by_walks.codes, by_gathered.codes);
            round_nearest(&mut by_walks).unwrap();
            let [mut a, mut b] = [by_walks.clone(), by_walks];
            let how = CorrectBias { samples: 16, biases: Biases { bias: None, float: false, shifts: &[] }, gathered: None, memory: 1 << 20, threads };
            correct_bias(&mut a, &how, Some((&data, &all)), &Silent).unwrap();
            correct_bias(&mut b, &CorrectBias { gathered: Some(&gathered), ..how }, Some((&data, &all)), &Silent).unwrap();
            assert_eq!(a, b);
            // What says otherwise is believed: inputs that have nothing to do with each other, outputs that are zero.
            let mut other = gathered;
            for (n, products) in other.inputs.iter_mut().flat_map(|(_, m)| &mut m.groups).map(|g| (g.numbers.len(), &mut g.products)) {
                products.iter_mut().enumerate().for_each(|(i, p)| *p = if i / n == i % n { 1.0 } else { 0.0 });
            }
            let layers = biases::layers(&model, &mut Notes::default());
            all.iter().for_each(|i| other.outputs.add(*i, layers.iter().map(|l| (l.output, Moments::new(l.channels))).collect()));
            let [mut c, mut nearest] = [model.clone(), model.clone()];
            gptq(&mut c, &gptq_of, Some((&data, &all)), Some(&other), &Silent).unwrap();
            [&mut c, &mut nearest].into_iter().for_each(|m| drop(round_nearest(m).unwrap()));
            assert!(c.codes == nearest.codes && c.codes != a.codes);
            correct_bias(&mut c, &CorrectBias { gathered: Some(&other), ..how }, Some((&data, &all)), &Silent).unwrap();
            correct_bias(&mut nearest, &how, Some((&data, &all)), &Silent).unwrap();
            assert_ne!(c.codes, nearest.codes);
        }
    }

    /// A quantizer that was taken out changes nothing of what layers of the float model read.
    #[test]
    fn what_was_gathered_serves_where_a_quantizer_was_taken_out() {
        let (_, mut model) = models(&Blocks::channel(0));
        model.codes.clear();
        let how = Gptq { damping: None, samples: 32, work: 1e9, memory: 1 << 20, threads: 1 };
        let gathered = Gather::new(&model, Some(&how), 0, &[0]).done();
        let g = &model.graph;
        let fakes: Vec<_> =
            g.nodes().filter(|(_, n)| n.quantizer().is_some() && n.input(0).is_some_and(|x| g.constant(x).is_none())).map(|(id, _)| id).collect();
        let out = fakes.into_iter().filter(|n| model.graph.bypass(*n)).count();
        let readings = readings(&model, &how);
        assert!(out > 0 && !readings.is_empty() && readings.iter().all(|r| gathered.of(r).is_some()), "{out} {}", readings.len());
    }
}
