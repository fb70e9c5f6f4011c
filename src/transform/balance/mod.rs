//! Scales the channels between layers so that rounding to the target's codes costs the outputs least: a channel that is multiplied by `e` loses less
//! to its own rounding and to that of the weights that make it, and more to that of the weights that read it, which are divided by `e`.
//! Channels of a residual sum go together. A Relu that cuts at a bound is passed: where samples come near the bound all such channels are scaled
//! alike and the bound with them, where they stay below half of it, each for itself.
//! Source: equalization between layers (Nagel et al. 2019, section 4.1; HPTQ, section 3.4) taken to what it is for, the noise at the outputs.
//! Needs: constant weights, samples. Exact up to the rounding of weights, as long as no value exceeds what samples showed of it twofold.

mod groups;
mod noise;
mod solve;

pub use solve::Grid;

use super::edit::{rename, replace, replace_each};
use super::fold_batch_norm::scaled_outputs;
use super::fold_forward::fold_into;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{self, Constant, Graph, InputShapes, Linear, Model, Op, ValueId};
use crate::note::Notes;
use crate::tensor::{DType, Tensor};
use groups::{Group, Layer, groups};
use std::collections::BTreeSet;

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    pub grid: Grid,
    /// Times that all groups are visited, at most.
    pub sweeps: usize,
    /// Samples looked at, at most.
    pub samples: usize,
    /// Whether channels that a Relu6 or Clip cuts are scaled too: inputs larger than any seen are then cut elsewhere.
    pub bounded: bool,
    pub threads: usize,
}

/// The `balance` step.
pub fn balance(model: &mut Model, how: &Balance, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("balance");
    let (data, samples) = data.ok_or_else(|| Error::usage("balance measures channels on sample inputs: give --data"))?;
    let inferred = graph::infer(model, &InputShapes::new());
    let (layers, groups) = groups(&model.graph, &inferred, how.bounded);
    let between: usize = groups.iter().map(|g| g.writers.len()).sum();
    let alone = layers.len() - between;
    if groups.is_empty() {
        notes.declined("", "no layer's channels can be scaled: what reads them does not commute with scaling, or they are outputs");
        return Ok(notes);
    }
    let g = &model.graph;
    let real = |v: &ValueId| inferred.get(*v).dtype == Some(DType::F32) && g.constant(*v).is_none();
    let values: BTreeSet<ValueId> = g.nodes().flat_map(|(_, n)| n.inputs().iter().chain(n.outputs()).flatten()).copied().filter(real).collect();
    let values: Vec<ValueId> = values.into_iter().collect();
    let stats = noise::statistics(model, (data, &samples[..samples.len().min(how.samples)]), how.threads, &values)?;
    let gains = noise::gains(g, &layers, &stats);
    let points: Vec<Vec<ValueId>> =
        groups.iter().map(|group| group.values.iter().copied().filter(|v| stats.contains_key(v) && is_point(g, *v)).collect()).collect();
    let mut search = solve::Search::new(&layers, &groups, &stats, &gains, &points, how.grid);
    let (before, after) = search.run(how.sweeps)?;
    let (scales, cuts) = (search.scales.clone(), search.cuts.clone());
    drop(search);
    for ((group, scales), cut) in groups.iter().zip(&scales).zip(&cuts) {
        scale(&mut model.graph, &inferred, &layers, group, scales, *cut)?;
    }
    notes.changed(
        "",
        format!(
            "channels behind {between} layers scaled in {} groups: what rounding is expected to cost the outputs falls by {:.1} dB",
            groups.len(),
            10.0 * (before / after.max(f64::MIN_POSITIVE)).log10()
        ),
    );
    if alone > 0 {
        notes.declined("", format!("{alone} layers keep their channels: what reads them does not commute with scaling, or they are outputs"));
    }
    Ok(notes)
}

/// Whether a value will be rounded: computed, and not only handed to the activation function that is computed with it.
fn is_point(g: &Graph, v: ValueId) -> bool {
    let Some(op) = g.value(v).producer().map(|(n, _)| g.node(n).op) else { return false };
    let activation = |op: Op| matches!(op, Op::Relu | Op::Clip | Op::LeakyRelu | Op::PRelu);
    let computes =
        matches!(op, Op::Conv | Op::ConvTranspose | Op::Gemm | Op::Add | Op::Sub | Op::Sum | Op::AveragePool | Op::GlobalAveragePool | Op::ReduceMean)
            || activation(op);
    let inner = matches!(g.value(v).uses(), [p] if g.get_node(p.node).is_some_and(|n| activation(n.op)));
    computes && !inner
}

/// Multiplies what writes a group by `scales` and divides what reads it; bounds move by `cut`.
fn scale(g: &mut Graph, inferred: &graph::Inferred, layers: &[Layer], group: &Group, scales: &[f64], cut: f64) -> Result<()> {
    for w in &group.writers {
        let node = layers[*w].linear.node;
        // Its input channels may have been scaled since.
        let linear = Linear::of(g, node).ok_or_else(|| Error::failed("a layer is gone"))?;
        let weight = scaled_outputs(g, &linear, scales).map_err(Error::failed)?;
        replace(g, node, linear.weight_slot, "weight", weight);
        replace_each(g, node, 2, "bias", |c, b| (b as f64 * scales[c]) as f32)?;
    }
    let back: Vec<f64> = scales.iter().map(|s| 1.0 / s).collect();
    for r in &group.readers {
        let node = layers[*r].linear.node;
        let linear = Linear::of(g, node).ok_or_else(|| Error::failed("a layer is gone"))?;
        let rank = inferred.get(layers[*r].x).shape.as_ref().map_or(0, Vec::len);
        fold_into(g, inferred, linear, (1, rank), (&back, &vec![0.0; back.len()]), "balance")?;
    }
    for c in &group.cuts {
        let bound = (c.bound * cut) as f32;
        if let Some(old) = g.node(c.node).input(2) {
            let name = format!("{}_bound", g.node(c.node).name);
            let v = g.add_constant(&name, Constant::from(Tensor::of_f32(&[], vec![bound])));
            g.set_input(c.node, 2, Some(v));
            g.remove_idle(old);
        } else {
            g.node_mut(c.node).set_attr("max", bound);
        }
    }
    rename(g, group.values.iter().copied(), "balanced");
    Ok(())
}

#[cfg(test)]
mod tests;
