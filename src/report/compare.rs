//! Two models on the same samples, end to end.

use super::metrics::classes;
use super::parts::{Part, parts};
use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, over_samples, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{InputShapes, Model, ValueId, infer};
use crate::observe::{Db, Sums};
use crate::pass::Progress;
use crate::tensor::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// One output of the reference, and how far the other model is from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputRow {
    pub name: String,
    pub sqnr_db: Db,
    pub cosine: f64,
    pub largest_error: f64,
    pub mean_error: f64,
    /// Elements that are NaN in either model.
    pub nan: u64,
    /// Share of samples whose largest element stands in the same place; where the output looks like classes.
    pub agreement: Option<f64>,
    /// Share of labels met; where labels were given and the output looks like classes.
    pub accuracy: Option<Accuracy>,
    /// Share of elements that are equal; of outputs that are no real numbers.
    pub equal: Option<f64>,
    pub samples: usize,
    /// Of an output that joins tensors, such as boxes and scores.
    pub parts: Vec<PartRow>,
}

/// A stretch of an output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartRow {
    /// Of the tensor that was joined.
    pub name: String,
    pub sqnr_db: Db,
    pub cosine: f64,
    pub agreement: Option<f64>,
}

/// Top-1 accuracy of both models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    pub reference: f64,
    pub converted: f64,
}

/// Class by each model, of each entry.
type Classes = Vec<(usize, usize)>;

/// What one sample adds to one output.
#[derive(Default, Clone)]
struct Seen {
    sums: Sums,
    equal: (u64, u64),
    /// `None` where it does not look like classes.
    classes: Option<Classes>,
    /// By name, in the order of the output.
    parts: Vec<(String, Sums, Option<Classes>)>,
}

/// The parts of each output, by the shapes of the sample.
type Divided = Arc<Vec<Vec<Part>>>;

/// Runs both models, each under its own quantizers, over `samples` of `data`. Outputs pair by name; by position where names differ and their number is
/// the same. `labels`: one an entry of the batch of every sample of `data`.
pub fn compare(
    reference: &Model,
    other: &Model,
    data: &Dataset,
    samples: &[usize],
    labels: Option<&[i64]>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<OutputRow>> {
    let pairs = pair(reference, other)?;
    let (left, right): (Vec<ValueId>, Vec<ValueId>) = pairs.iter().copied().unzip();
    let plans = (Plans::new(reference, &left, RunnerOptions::default()), Plans::new(other, &right, RunnerOptions::default()));
    let mut total = vec![Seen::default(); pairs.len()];
    let mut classes_of: Vec<Option<Classes>> = vec![Some(Vec::new()); pairs.len()];
    let mut entries = Vec::new();
    let known: Mutex<BTreeMap<InputShapes, Divided>> = Mutex::default();
    let divided = |shapes: InputShapes| -> Divided {
        let mut known = known.lock().unwrap_or_else(|e| e.into_inner());
        let new = |shapes: &InputShapes| {
            let inferred = infer(reference, shapes);
            Arc::new(left.iter().map(|v| parts(&reference.graph, &inferred, *v)).collect())
        };
        known.entry(shapes.clone()).or_insert_with(|| new(&shapes)).clone()
    };
    progress.begin("judge", samples.len() as u64);
    over_samples(
        samples.len(),
        threads,
        || Ok((Running::default(), Running::default())),
        |(a, b), i| {
            let sample = data.sample(samples[i])?;
            let mut run = || -> Result<_> {
                let x = plans.0.run(a, &sample, &reference.quantizers)?;
                let y = plans.1.run(b, &sample, &other.quantizers)?;
                let parts = divided(shapes_of(&sample));
                x.iter().zip(&y).zip(&*parts).map(|((x, y), parts)| see(x, y, parts)).collect::<Result<Vec<Seen>>>()
            };
            run().at(|| data.name(samples[i]))
        },
        |i, seen| {
            for ((total, all), seen) in total.iter_mut().zip(&mut classes_of).zip(seen) {
                total.sums.merge(&seen.sums);
                total.equal = (total.equal.0 + seen.equal.0, total.equal.1 + seen.equal.1);
                if entries.is_empty() {
                    total.parts = seen.parts;
                } else {
                    merge_parts(&mut total.parts, seen.parts);
                }
                match (&mut *all, seen.classes) {
                    (Some(all), Some(new)) => all.extend(new),
                    _ => *all = None,
                }
            }
            entries.push(samples[i]);
            progress.tick(1);
            Ok(())
        },
    )?;
    progress.end();
    let wanted = labels.map(|l| pick(l, data, &entries));
    let row = |((total, classes), (a, _)): ((Seen, Option<Classes>), &(ValueId, ValueId))| {
        let classes = classes.filter(|c| !c.is_empty());
        let share = |hits: usize, n: usize| hits as f64 / n.max(1) as f64;
        let accuracy = classes.as_ref().zip(wanted.as_ref()).filter(|(c, w)| c.len() == w.len()).map(|(c, w)| Accuracy {
            reference: share(c.iter().zip(w).filter(|(c, w)| c.0 as i64 == **w).count(), w.len()),
            converted: share(c.iter().zip(w).filter(|(c, w)| c.1 as i64 == **w).count(), w.len()),
        });
        OutputRow {
            name: reference.graph.value(*a).name.clone(),
            sqnr_db: total.sums.sqnr(),
            cosine: total.sums.cosine(),
            largest_error: total.sums.largest_error(),
            mean_error: total.sums.mean_error(),
            nan: total.sums.nan,
            agreement: classes.as_ref().map(|c| share(c.iter().filter(|(a, b)| a == b).count(), c.len())),
            accuracy,
            equal: (total.equal.1 > 0).then(|| total.equal.0 as f64 / total.equal.1 as f64),
            samples: samples.len(),
            parts: total.parts.into_iter().map(part_row).collect(),
        }
    };
    Ok(total.into_iter().zip(classes_of).zip(&pairs).map(row).collect())
}

/// Parts of another sample's output; where it is divided otherwise, none are known.
fn merge_parts(have: &mut Vec<(String, Sums, Option<Classes>)>, new: Vec<(String, Sums, Option<Classes>)>) {
    if have.len() != new.len() || have.iter().zip(&new).any(|(a, b)| a.0 != b.0) {
        have.clear();
        return;
    }
    for (a, b) in have.iter_mut().zip(new) {
        a.1.merge(&b.1);
        a.2 = a.2.take().zip(b.2).map(|(mut all, new)| {
            all.extend(new);
            all
        });
    }
}

fn part_row((name, sums, classes): (String, Sums, Option<Classes>)) -> PartRow {
    let hits = |c: Classes| c.iter().filter(|(a, b)| a == b).count() as f64 / c.len() as f64;
    PartRow { name, sqnr_db: sums.sqnr(), cosine: sums.cosine(), agreement: classes.filter(|c| !c.is_empty()).map(hits) }
}

/// Classes by both models.
fn both(x: &Tensor, y: &Tensor) -> Option<Classes> {
    classes(x).zip(classes(y)).map(|(a, b)| a.into_iter().zip(b).collect())
}

/// The labels of these samples' entries.
fn pick(labels: &[i64], data: &Dataset, samples: &[usize]) -> Vec<i64> {
    let mut starts = vec![0];
    for (i, batch) in data.batches().enumerate() {
        starts.push(starts[i] + batch);
    }
    samples.iter().flat_map(|&i| labels[starts[i]..starts[i + 1]].iter().copied()).collect()
}

/// Outputs that belong together.
pub fn pair(a: &Model, b: &Model) -> Result<Vec<(ValueId, ValueId)>> {
    let (ga, gb) = (&a.graph, &b.graph);
    let by_name: Vec<_> = ga.outputs.iter().map(|&v| Some((v, *gb.outputs.iter().find(|w| gb.value(**w).name == ga.value(v).name)?))).collect();
    if by_name.iter().all(Option::is_some) {
        return Ok(by_name.into_iter().flatten().collect());
    }
    if ga.outputs.len() == gb.outputs.len() {
        return Ok(ga.outputs.iter().copied().zip(gb.outputs.iter().copied()).collect());
    }
    let missing = ga.outputs.iter().zip(&by_name).find(|(_, p)| p.is_none()).map_or("", |(v, _)| &ga.value(*v).name);
    Err(Error::usage(format!("the second model has no output {missing}, and another number of outputs ({} and {})", ga.outputs.len(), gb.outputs.len())))
}

fn see(x: &Tensor, y: &Tensor, parts: &[Part]) -> Result<Seen> {
    if x.shape() != y.shape() {
        return Err(Error::failed(format!("the models' outputs have different shapes, {:?} and {:?}", x.shape(), y.shape())));
    }
    if !x.dtype().is_float() || !y.dtype().is_float() {
        let (a, b) = (x.to_f32()?, y.to_f32()?);
        let hits = a.iter().zip(b.iter()).filter(|(a, b)| a == b).count() as u64;
        return Ok(Seen { sums: Sums::of(&a, &b), equal: (hits, a.len() as u64), ..Seen::default() });
    }
    let mut seen = Seen { sums: Sums::of(&x.to_f32()?, &y.to_f32()?), classes: both(x, y), ..Seen::default() };
    for part in parts {
        if let (Some(x), Some(y)) = (part.of(x), part.of(y)) {
            // Of what does not look like classes no part does.
            let classes = seen.classes.as_ref().and_then(|_| both(&x, &y));
            seen.parts.push((part.name.clone(), Sums::of(&x.to_f32()?, &y.to_f32()?), classes));
        }
    }
    Ok(seen)
}
