//! How large the real numbers of a float model get: smallest and largest value of every tensor over samples, by name.

use super::Ranges;
use crate::data::Dataset;
use crate::error::Result;
use crate::graph::{InputShapes, Model, ValueId, infer};
use crate::observe::Extremes;
use crate::pass::Progress;
use crate::tensor::{DType, Tensor};
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
    let mut total = vec![Extremes::default(); watched.len()];
    progress.begin("look", samples.len() as u64);
    let one = |t: &Tensor| -> Result<Extremes> {
        let mut e = Extremes::default();
        e.observe(&t.to_f32()?);
        Ok(e)
    };
    let see = |tensors: &[Tensor]| tensors.iter().map(one).collect::<Result<Vec<Extremes>>>();
    data.watch(model, &watched, samples, threads, see, |seen| {
        total.iter_mut().zip(&seen).for_each(|(t, s)| t.merge(s));
        progress.tick(1);
    })?;
    progress.end();
    Ok(watched.iter().zip(total).map(|(v, e)| (g.value(*v).name.clone(), e)).collect())
}

impl Ranges {
    /// What an earlier run saw, by tensor.
    pub fn peaks(&self) -> BTreeMap<String, Extremes> {
        self.tensors.iter().map(|(name, rows)| (name.clone(), rows.iter().fold(Extremes::default(), |e, r| r.merged(e)))).collect()
    }
}
