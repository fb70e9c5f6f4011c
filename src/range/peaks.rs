//! How large the real numbers of a float model get: smallest and largest value of every tensor over samples, by name.

use super::Ranges;
use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, over_samples};
use crate::error::{At, Result};
use crate::graph::{InputShapes, Model, ValueId, infer};
use crate::observe::Extremes;
use crate::pass::Progress;
use crate::tensor::DType;
use std::collections::BTreeMap;

/// Runs the model, without its quantizers, over `samples` and watches every float32 tensor of the outermost graph that is no constant. NaN is passed over.
pub fn peaks(model: &Model, data: (&Dataset, &[usize]), threads: usize, progress: &dyn Progress) -> Result<BTreeMap<String, Extremes>> {
    let (data, samples) = data;
    let inferred = infer(model, &InputShapes::new());
    let g = &model.graph;
    let watched: Vec<ValueId> = g
        .values()
        .filter(|(v, value)| inferred.get(*v).dtype == Some(DType::F32) && g.constant(*v).is_none() && !value.name.is_empty())
        .map(|(v, _)| v)
        .collect();
    let plans = Plans::new(model, &watched, RunnerOptions { float: true, ..RunnerOptions::default() });
    let mut total = vec![Extremes::default(); watched.len()];
    progress.begin("look", samples.len() as u64);
    over_samples(
        samples.len(),
        threads,
        || Ok(Running::default()),
        |running, i| {
            let sample = data.sample(samples[i])?;
            let tensors = plans.run(running, &sample, &model.quantizers).at(|| data.name(samples[i]))?;
            let one = |t: &crate::tensor::Tensor| -> Result<Extremes> {
                let mut e = Extremes::default();
                e.observe(&t.to_f32()?);
                Ok(e)
            };
            tensors.iter().map(one).collect::<Result<Vec<Extremes>>>()
        },
        |_, seen| {
            total.iter_mut().zip(&seen).for_each(|(t, s)| t.merge(s));
            progress.tick(1);
            Ok(())
        },
    )?;
    progress.end();
    Ok(watched.iter().zip(total).map(|(v, e)| (g.value(*v).name.clone(), e)).collect())
}

impl Ranges {
    /// What an earlier run saw, by tensor.
    pub fn peaks(&self) -> BTreeMap<String, Extremes> {
        self.tensors.iter().map(|(name, rows)| (name.clone(), rows.iter().fold(Extremes::default(), |e, r| r.merged(e)))).collect()
    }
}
