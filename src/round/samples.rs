//! Samples that are walked together, and those that are held out to judge.

use crate::data::Dataset;
use crate::engine::{RunnerOptions, Walk, shapes_of};
use crate::error::Result;
use crate::graph::{InputShapes, Model, NodeId};
use crate::note::Notes;

/// Shapes of samples that are walked, the commonest first.
const SHAPES: usize = 8;
/// Bytes that the kept tensors of walks for statistics take at most, however much memory there is: more samples than this holds tell little more.
pub const KEPT: u64 = 256 << 20;

/// Samples by the shapes of their inputs, the commonest shapes first.
pub fn same_shapes(data: &Dataset, samples: &[usize]) -> Result<Vec<Vec<usize>>> {
    let mut groups: Vec<(InputShapes, Vec<usize>)> = Vec::new();
    for &i in samples {
        let shapes = shapes_of(&data.sample(i)?);
        match groups.iter_mut().find(|(s, _)| *s == shapes) {
            Some((_, group)) => group.push(i),
            None => groups.push((shapes, vec![i])),
        }
    }
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
    groups.truncate(SHAPES);
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// As many samples of each group as `memory` holds; at least one of the first.
pub fn within(model: &Model, data: &Dataset, groups: Vec<Vec<usize>>, stops: &[NodeId], memory: u64) -> Result<Vec<Vec<usize>>> {
    let mut left = memory;
    let mut kept = Vec::new();
    for mut group in groups {
        let bytes = Walk::kept_bytes(model, &shapes_of(&data.sample(group[0])?), stops)?.max(1);
        group.truncate(((left / bytes) as usize).max(kept.is_empty() as usize));
        left = left.saturating_sub(bytes * group.len() as u64);
        if !group.is_empty() {
            kept.push(group);
        }
    }
    Ok(kept)
}

/// A walk through the model for each group.
pub fn walks(model: &Model, data: &Dataset, groups: &[Vec<usize>], options: RunnerOptions, threads: usize) -> Result<Vec<Walk>> {
    let one = |group: &Vec<usize>| {
        let samples = group.iter().map(|&i| data.sample(i)).collect::<Result<Vec<_>>>()?;
        Walk::new(model, samples, options, threads)
    };
    groups.iter().map(one).collect()
}

/// Of samples, those to learn from and every fourth, which is held out to judge; `None`, and a remark, below `least`.
pub fn held_out(samples: &[usize], least: usize, notes: &mut Notes) -> Option<(Vec<usize>, Vec<usize>)> {
    if samples.len() < least {
        notes.declined("", format!("needs at least {least} samples, and gets {}", samples.len()));
        return None;
    }
    let part = |held: bool| samples.iter().enumerate().filter(|(i, _)| (i % 4 == 3) == held).map(|(_, s)| *s).collect();
    Some((part(false), part(true)))
}
