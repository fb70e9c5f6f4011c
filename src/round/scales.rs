//! Scales that may be learnt, and how far a vector that is learnt has come.

use super::biases::{computed_with, fake_of, follow};
use super::task::Scale;
use super::units::Unit;
use crate::error::{Error, Result};
use crate::graph::{Model, NodeId, Op, ValueId};
use crate::learn::Adam;
use crate::quant::{Origin, Params, Quantizer, QuantizerId, ScaleKind, Timing, Zeros, nearest_scale};
use crate::tensor::DType;
use std::collections::BTreeSet;

/// How far scales go, as shares of what they were.
const REACH: (f32, f32) = (-0.5, 1.0);
/// Biases whose codes are beyond this share of their highest hold their scales.
const ROOM: f64 = 0.125;

/// A vector on its way: `start + unit · t`.
pub struct Moving {
    start: Vec<f32>,
    unit: Vec<f32>,
    t: Vec<f32>,
    adam: Adam,
    rate: f32,
    /// Of scales: their type.
    stored: Option<DType>,
}

impl Moving {
    /// From `start`, in units of `unit`, by `rate` of them in a first step.
    pub fn new(start: Vec<f32>, unit: Vec<f32>, rate: f32) -> Moving {
        let n = start.len();
        Moving { start, unit, t: vec![0.0; n], adam: Adam::new(n), rate, stored: None }
    }

    /// The scales of a quantizer, but for those that stay, by `rate` of themselves in a first step; and what a task overrides.
    ///
    /// # Errors
    /// A quantizer whose scales are not free.
    pub fn scales(model: &Model, id: QuantizerId, stays: &[bool], rate: f32) -> Result<(Scale, Moving)> {
        let row = &model.quantizers[id];
        let (Some(params), ScaleKind::Exact(stored)) = (&row.params, &row.scheme.scale) else { return Err(Error::failed("has no scale")) };
        let zero = match &params.zero {
            Zeros::None => None,
            Zeros::Integer(z) => Some(z.iter().map(|z| *z as f32).collect()),
            Zeros::Real(z) => Some(z.clone()),
        };
        let unit = params.scale.iter().enumerate().map(|(i, s)| if stays.get(i) == Some(&true) { 0.0 } else { *s }).collect();
        Ok(((id, zero), Moving { stored: Some(*stored), ..Moving::new(params.scale.clone(), unit, rate) }))
    }

    pub fn value(&self) -> Vec<f32> {
        let one = |i: usize| match self.stored {
            Some(t) if self.unit[i] != 0.0 => nearest_scale(self.start[i] + self.unit[i] * self.t[i], t),
            _ => self.start[i] + self.unit[i] * self.t[i],
        };
        (0..self.t.len()).map(one).collect()
    }

    /// Step `at` of `steps` against a gradient by the values, times `scale`: rates fall along half a cosine.
    pub fn step(&mut self, grad: &[f32], scale: f32, (at, steps): (usize, usize)) {
        let share = 0.5 * (1.0 + (std::f64::consts::PI * at as f64 / steps as f64).cos());
        let slopes: Vec<f32> = grad.iter().zip(&self.unit).map(|(g, u)| g * u * scale).collect();
        self.adam.step(&mut self.t, &slopes, self.rate * share as f32);
        if self.stored.is_some() {
            self.t.iter_mut().for_each(|t| *t = t.clamp(REACH.0, REACH.1));
        }
    }
}

/// Leaves learnt scales in the model: biases whose scales are products follow.
pub fn settle(model: &mut Model, id: QuantizerId, scale: &[f32]) {
    if let Some(params) = &mut model.quantizers[id].params {
        params.scale = scale.to_vec();
        follow(model, id);
    }
}

/// Whether a quantizer has scales of its own that may be any numbers, at places that are all `within`.
pub fn is_free(model: &Model, id: QuantizerId, within: impl Fn(NodeId) -> bool) -> bool {
    let row = &model.quantizers[id];
    let fits = row.params.as_ref().is_some_and(|p| p.origin == Origin::Fitted && p.nested.is_none());
    let mut places = model.graph.nodes().filter(|(_, n)| n.op == Op::FakeQuant && n.quantizer().is_some_and(|q| model.quantizers.root(q) == id));
    fits && matches!(row.scheme.scale, ScaleKind::Exact(_)) && row.scheme.timing == Timing::Static && places.all(|(n, _)| within(n))
}

/// Which biases would not fit their codes if their scales grew much smaller.
pub fn tight(row: &Quantizer, bias: &[f32]) -> Vec<bool> {
    let (Some(params), Some((_, top))) = (&row.params, row.scheme.format.code_range()) else { return Vec::new() };
    let one = |(i, b): (usize, &f32)| (*b as f64 / params.scale_at(i) as f64).abs() > ROOM * top as f64;
    bias.iter().enumerate().map(one).collect()
}

/// The FakeQuant of data that makes what a unit reads, and what that FakeQuant reads.
pub fn quantizer_before(model: &Model, unit: &Unit) -> Option<(NodeId, ValueId)> {
    let fake = fake_of(model, unit.input)?;
    let value = model.graph.node(fake).input(0)?;
    model.graph.constant(value).is_none().then_some((fake, value))
}

/// The quantizers of data inside a unit whose scales nothing outside of it feels and nothing holds, in the order of the graph.
pub fn activations(model: &Model, unit: &Unit) -> Result<Vec<QuantizerId>> {
    let g = &model.graph;
    let mut inside = BTreeSet::new();
    let mut open = vec![unit.output];
    while let Some(v) = open.pop() {
        let Some((node, _)) = g.value(v).producer().filter(|_| v != unit.input) else { continue };
        if inside.insert(node) {
            open.extend(g.node(node).inputs().iter().flatten().chain(g.node(node).captures()));
        }
    }
    // A place that all readers of its data share with it.
    let whole = |n: NodeId| {
        let node = g.node(n);
        let data = node.input(0).is_some_and(|v| g.constant(v).is_none());
        let read = node.output(0).is_some_and(|v| !g.is_output(v) && g.value(v).uses().iter().all(|p| inside.contains(&p.node)));
        inside.contains(&n) && data && read
    };
    let mut found = Vec::new();
    for id in g.nodes().filter(|(n, _)| inside.contains(n)).filter_map(|(_, n)| Some(model.quantizers.root(n.quantizer()?))) {
        if !found.contains(&id) && is_free(model, id, whole) && !holds_bias(model, id)? {
            found.push(id);
        }
    }
    Ok(found)
}

/// Whether a bias whose scale is a product of this quantizer's barely fits.
fn holds_bias(model: &Model, id: QuantizerId) -> Result<bool> {
    for (node, q) in model.constant_sites() {
        let row = &model.quantizers[model.quantizers.root(q)];
        if let Some(Params { origin: Origin::Product(x, w), .. }) = row.params
            && [x, w].iter().any(|q| model.quantizers.root(*q) == id)
            && let Some(bias) = model.graph.node(node).output(0)
            && tight(row, &computed_with(model, bias)?).contains(&true)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
