//! What each layer loses in each width.
//!
//! One at a time: everything is held in 16 bits, one layer's weights alone become narrower, and the outputs of a few samples are compared with the float model's.
//! Small noises of different origin add up, which makes the losses of layers additive (ZeroQ, Cai et al. 2020, section 3.2; CalibTIP, Hubara et al. 2021, section 4.2).
//! Layer MSE: the noise over signal of the layer's own output, on inputs that are as good as float; what becomes of it further down is not seen.
//! Hessian trace: see [`super::trace`]; what lies between float weights and rounded ones is taken for a parabola.
//! The table alone changes: no model is planned anew. A narrower width never counts for less than a wider one.

use super::layers::{Layer, Rows, layer_at};
use super::trace::Traces;
use super::widen::wide_row;
use crate::engine::{Plans, RunnerOptions, Running, Trial, each_sample};
use crate::error::Result;
use crate::graph::Model;
use crate::observe::Sums;
use crate::pass::Progress;
use crate::quant::{Format, Table, Timing};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// By what layers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sensitivity {
    OneAtATime,
    LayerMse,
    HessianTrace,
}

/// Bits that are as good as float.
pub const WIDE: u8 = 16;

/// The table with every static activation and every layer's weights in 16 bits.
pub fn all_wide(model: &Model, layers: &[Layer]) -> Result<Table> {
    let mut table = model.quantizers.clone();
    for (_, node) in model.graph.nodes() {
        let (Some(q), Some(x)) = (node.quantizer(), node.input(0)) else { continue };
        let id = model.quantizers.root(q);
        let scheme = &table[id].scheme;
        let narrow = matches!(scheme.format, Format::Int { bits: ..WIDE, .. } | Format::Float { .. }) && scheme.timing == Timing::Static;
        if model.graph.constant(x).is_none() && narrow && scheme.blocks.is_tensor() && table[id].params.is_some() {
            wide_row(&mut table, id);
        }
    }
    for layer in layers.iter().filter(|l| l.bits(model) < WIDE) {
        layer_at(model, layer, WIDE)?.into_iter().for_each(|(q, row)| table[q] = row);
    }
    Ok(table)
}

/// For each layer, the loss in each of its widths (ascending), for which its quantizers are given; 16 bits lose nothing.
pub fn sensitivity(
    model: &Model,
    layers: &[Layer],
    (widths, rows): (&[Vec<u8>], &[Vec<Rows>]),
    by: Sensitivity,
    trial: &Trial,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let wide = all_wide(model, layers)?;
    let plans = trial.live_plans(model);
    let least = if by == Sensitivity::OneAtATime { trial.loss(&plans, &wide)? } else { 0.0 };
    let traces = if by == Sensitivity::HessianTrace { Some(Traces::of(model, layers, trial, progress)?) } else { None };
    progress.begin("sensitivity", widths.iter().map(|w| w.len() as u64).sum());
    let mut losses = Vec::new();
    for (layer, (widths, rows)) in layers.iter().zip(widths.iter().zip(rows)) {
        let own = if by == Sensitivity::LayerMse { Some(Own::of(model, layer, &wide, trial)?) } else { None };
        let mut of_layer = Vec::new();
        for (&bits, rows) in widths.iter().zip(rows) {
            progress.tick(1);
            if bits >= WIDE {
                of_layer.push(0.0);
                continue;
            }
            if let Some(traces) = &traces {
                of_layer.push(traces.loss(layer, rows, &wide)?);
                continue;
            }
            let mut table = wide.clone();
            rows.iter().for_each(|(q, row)| table[*q] = row.clone());
            of_layer.push(match &own {
                None => (trial.loss(&plans, &table)? - least).max(0.0),
                Some(own) => own.loss(&table)?,
            });
        }
        for k in (1..of_layer.len()).rev() {
            of_layer[k - 1] = f64::max(of_layer[k - 1], of_layer[k]);
        }
        losses.push(of_layer);
    }
    progress.end();
    Ok(losses)
}

/// A layer's own outputs, and what they are in 16 bits.
struct Own<'a> {
    plans: Plans<'a>,
    samples: &'a [BTreeMap<String, Tensor>],
    wanted: Vec<Vec<Tensor>>,
    threads: usize,
}

impl<'a> Own<'a> {
    fn of(model: &'a Model, layer: &Layer, wide: &Table, trial: &'a Trial) -> Result<Own<'a>> {
        let (samples, threads) = (trial.samples(), trial.threads());
        let outputs: Vec<_> = layer.nodes.iter().filter_map(|n| model.graph.node(*n).output(0)).collect();
        let mut own =
            Own { plans: Plans::new(model, &outputs, RunnerOptions { live_weights: true, ..RunnerOptions::default() }), samples, wanted: Vec::new(), threads };
        own.wanted = own.run(wide)?;
        Ok(own)
    }

    fn run(&self, table: &Table) -> Result<Vec<Vec<Tensor>>> {
        let run = |running: &mut Running, i: usize| self.plans.run(running, &self.samples[i], table);
        each_sample(self.samples.len(), self.threads, || Ok(Running::default()), run)
    }

    /// The sum over outputs of noise over signal.
    fn loss(&self, table: &Table) -> Result<f64> {
        let got = self.run(table)?;
        let mut sums = vec![Sums::default(); self.wanted.first().map_or(0, Vec::len)];
        for (wanted, got) in self.wanted.iter().zip(&got) {
            for ((sum, w), g) in sums.iter_mut().zip(wanted).zip(got) {
                sum.merge(&Sums::of(&w.to_f32()?, &g.to_f32()?));
            }
        }
        Ok(sums.iter().map(|s| 10f64.powf(-s.sqnr().0 / 10.0)).sum())
    }
}
