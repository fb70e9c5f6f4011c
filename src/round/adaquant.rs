//! Learns, layer by layer, weights as real numbers that may end at any code, the bias, and the scales of the weight and of what the layer reads, so that
//! what it gives out comes near what it gives in the float model: `min ‖f(W·X + b₀) − f(Q_w(W + V)·Q_x(X) + b)‖²`, straight through what is rounded.
//! Source: Hubara et al. 2021, Accurate Post Training Quantization With Small Calibration Sets, section 3.1; scales as Esser et al. 2020 (LSQ).
//! Rates are shares of what they move, since the paper's absolute ones diverge where steps are small; they fall along half a cosine. Zero points stay.
//! Needs: samples; integer codes. Scales stay that are powers of two, codes themselves, given, shared, or that a bias barely fits; biases of 16 bits and
//! fewer stay, and layers without one get none. A layer that is not better than under nearest codes on held-out samples keeps these, its bias and scales.

use super::biases::{Biases, Layer, current, fake_of, layers as with_bias};
use super::grid::Grid;
use super::scales::{Moving, is_free, quantizer_before, settle, tight};
use super::task::{Batches, Learnt, Task, Values, Visits, visit};
use super::units::{Unit, layers, with_activation};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{Linear, Model, NodeId, Site, ValueId, constant_behind};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::{self, Codes, QuantizerId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the method was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaQuant {
    /// Whether layers read what the float model gives them, instead of what the quantized layers before do.
    pub parallel: bool,
    pub visits: Visits,
}

/// How far a weight may go in all steps, and in the first one at most, in steps between codes: it may come to any neighbour, and no farther with many steps.
const TRAVEL: f32 = 1.25;
const WEIGHT: f32 = 0.01;
/// Length of a first step of scales, as a share of them, and of biases, in steps between codes times the input's deviation.
const SCALE: f32 = 1e-3;
const BIAS: f32 = 1e-2;
/// Times that held-out samples judge; without a gain in the first half of the steps, the others are not run.
const LOOKS: usize = 8;

/// What is learnt of a layer.
struct Layout {
    fake: NodeId,
    weight: QuantizerId,
    /// The layer's bias, and the value that holds it.
    bias: Option<(Layer, ValueId)>,
    /// Which scales of the weight stay all the same; `None`: all.
    scales: Option<Vec<bool>>,
    /// The quantizer of what it reads, if its scale moves.
    input: Option<QuantizerId>,
}

/// What was learnt of a layer.
struct Found {
    layout: usize,
    codes: Codes,
    values: Values,
}

/// Finds codes for all weights that allow it, with scales and biases; the others are left for nearest codes.
pub fn adaquant(model: &mut Model, how: &AdaQuant, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let data = data.ok_or_else(|| Error::usage("adaquant compares outputs on sample inputs: give --data"))?;
    let (units, layouts): (Vec<Unit>, Vec<Layout>) = layouts(model, &mut notes)?.into_iter().unzip();
    if units.is_empty() {
        notes.declined("", "nearest codes: no layer has a weight of integers that it alone reads");
        return Ok(notes);
    }
    let mut found = Vec::new();
    let visited = visit(model, &units, (&how.visits, how.parallel), data, (&mut notes, progress), |at, mut task| {
        let layout = &layouts[at];
        let moving = layout.open(model, &mut task)?;
        let (before, after, values) = learn(&task, moving, how)?;
        let Some(values) = values else { return Ok(Learnt { before, after, outputs: None }) };
        let row = &model.quantizers[layout.weight];
        let mut params = row.params.clone().ok_or_else(|| Error::failed("has no scale"))?;
        if layout.scales.is_some() {
            params.scale = values[task.places.len()].to_vec();
        }
        let codes = quant::quantize(&values[0], &task.places[0].1, &row.scheme, &params)?;
        let outputs = Some(task.outputs(&values)?);
        found.push(Found { layout: at, codes, values });
        Ok(Learnt { before, after, outputs })
    })?;
    let Some(visited) = visited else { return Ok(notes) };
    let weights: usize = found.iter().map(|f| f.codes.0.len()).sum();
    for f in found {
        layouts[f.layout].close(model, f.codes, f.values)?;
    }
    let (gained, kept) = (visited.gained, visited.kept);
    let told = format!(
        "{weights} weights of {gained} layers learnt with biases and scales by {} steps over {} samples; {kept} keep nearest codes",
        visited.steps, visited.samples
    );
    notes.changed("", told);
    Ok(notes)
}

/// The layers, each from what it reads before that is quantized, to its bias and the activation behind it; and what is learnt of it.
fn layouts(model: &Model, notes: &mut Notes) -> Result<Vec<(Unit, Layout)>> {
    let g = &model.graph;
    let place: BTreeMap<NodeId, usize> = g.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut biases: BTreeMap<NodeId, Layer> = with_bias(model, notes).into_iter().map(|l| (l.product, l)).collect();
    let mut found = Vec::new();
    let mut passed = 0;
    for mut unit in layers(model) {
        let (fake, node) = unit.weights[0];
        let root = |n: NodeId| Some(model.quantizers.root(g.node(n).quantizer()?));
        let Some(weight) = root(fake) else { continue };
        let bias = biases.remove(&node).filter(|l| g.node(l.node).input(l.slot).is_some());
        // An Add that holds the bias belongs to the layer, unless the walk meets another layer before it.
        let near = |l: &Layer| l.node == node || g.order()[place[&node] + 1..place[&l.node]].iter().all(|n| Linear::of(g, *n).is_none());
        let bias = bias.filter(near);
        if let Some(l) = bias.as_ref().filter(|l| l.node != node) {
            (unit.output, unit.last) = with_activation(g, &g.order()[place[&l.node] + 1..], l.output, l.node);
        }
        let row = bias.as_ref().and_then(|l| root(fake_of(model, g.node(l.node).input(l.slot)?)?)).map(|q| &model.quantizers[q]);
        let tight = match (&bias, row) {
            (Some(layer), Some(row)) => tight(row, &current(model, layer)?),
            _ => Vec::new(),
        };
        let bias = bias.filter(|_| row.is_none_or(|r| !r.scheme.has_own_bias_scale()));
        // What is read before it is quantized, unless the walk is past that.
        let alone = g.value(unit.input).uses().len() == 1 && !tight.contains(&true);
        let before = quantizer_before(model, &unit).filter(|(f, _)| place[f] >= passed);
        let input = before.and_then(|(f, _)| root(f)).filter(|q| alone && is_free(model, *q, |n| before.is_some_and(|(f, _)| f == n)));
        unit.input = before.map_or(unit.input, |(_, v)| v);
        let count = model.quantizers[weight].params.as_ref().map_or(0, |p| p.scale.len());
        let stays = match tight.len() == count {
            true => tight,
            false => vec![tight.contains(&true); count],
        };
        let scales = is_free(model, weight, |n| n == fake).then_some(stays);
        passed = passed.max(place[&unit.last] + 1);
        let bias = bias.and_then(|l| Some((g.node(l.node).input(l.slot)?, l))).map(|(v, l)| (l, v));
        found.push((unit, Layout { fake, weight, bias, scales, input }));
    }
    Ok(found)
}

impl Layout {
    /// What is overridden in the unit: its weight, its bias, the scales of its weight and of what it reads.
    fn open(&self, model: &Model, task: &mut Task) -> Result<Vec<Moving>> {
        let g = &model.graph;
        let row = &model.quantizers[self.weight];
        let value = g.node(self.fake).input(0).ok_or_else(|| Error::failed("reads no weight"))?;
        let tensor = &g.constant(value).ok_or_else(|| Error::failed("reads no constant"))?.tensor;
        let steps = Grid::of(row, tensor.shape())?.step;
        let typical = steps.iter().sum::<f32>() / steps.len().max(1) as f32 * task.input_power()?.sqrt() as f32;
        task.places.push((value, tensor.shape().to_vec()));
        // Steps grow shorter along half a cosine: all together go half as far as if each were as long as the first.
        let rate = (2.0 * TRAVEL / task.steps as f32).min(WEIGHT);
        let mut moving = vec![Moving::new(tensor.to_f32()?.into_owned(), steps, rate)];
        if let Some((layer, value)) = &self.bias {
            let bias = current(model, layer)?;
            let held = constant_behind(g, *value).and_then(|c| g.constant(c));
            let shape = held.map_or_else(|| vec![bias.len()], |c| c.tensor.shape().to_vec());
            task.places.push((*value, shape));
            let units = vec![typical; bias.len()];
            moving.push(Moving::new(bias, units, BIAS));
        }
        for (id, stays) in self.scales.iter().map(|s| (self.weight, s.clone())).chain(self.input.map(|id| (id, Vec::new()))) {
            let (scale, moves) = Moving::scales(model, id, &stays, SCALE)?;
            task.scales.push(scale);
            moving.push(moves);
        }
        Ok(moving)
    }

    /// Leaves what was learnt in the model.
    fn close(&self, model: &mut Model, codes: Codes, values: Values) -> Result<()> {
        let mut values = values.into_iter().skip(1);
        let bias = self.bias.as_ref().and_then(|(layer, _)| Some((layer, values.next()?)));
        for id in self.scales.iter().map(|_| self.weight).chain(self.input) {
            if let Some(scale) = values.next() {
                settle(model, id, &scale);
            }
        }
        model.codes.insert(Site::of(self.fake), codes);
        if let Some((layer, bias)) = bias {
            Biases { bias: None, float: false, shifts: &[] }.set(model, layer, bias.to_vec())?;
        }
        Ok(())
    }
}

/// Held-out loss under nearest codes and under the best others; the values of these, if they are better.
fn learn(task: &Task, mut moving: Vec<Moving>, how: &AdaQuant) -> Result<(f64, f64, Option<Values>)> {
    let all = |moving: &[Moving]| moving.iter().map(|m| Arc::new(m.value())).collect::<Values>();
    let before = task.judge(&all(&moving))?;
    if before == 0.0 {
        return Ok((before, before, None));
    }
    let mut batches = Batches::new(&task.seen, how.visits.batch, how.visits.seed);
    let scale = (1.0 / before / batches.size as f64) as f32;
    let (mut best, mut values) = (before, None);
    for step in 0..task.steps {
        crate::interrupt::check()?;
        let grads = task.gradients(&all(&moving), batches.draw())?;
        moving.iter_mut().zip(&grads).for_each(|(m, grad)| m.step(grad, scale, (step, task.steps)));
        if step + 1 == task.steps || (step + 1) % task.steps.div_ceil(LOOKS) == 0 {
            let now = all(&moving);
            let loss = task.judge(&now)?;
            if loss < best {
                (best, values) = (loss, Some(now));
            } else if values.is_none() && 2 * (step + 1) >= task.steps {
                // Nothing to gain.
                break;
            }
        }
    }
    Ok((before, best, values))
}
