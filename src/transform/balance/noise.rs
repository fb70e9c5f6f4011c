//! What rounding costs at the outputs, as far as noises of different origin are independent: statistics of every value, channel by channel, and the
//! gain of noise energy from there to the outputs: `g_x[i] = Σ_o g_y[o] · Σ_k w[o,i,k]²` through a layer, the active share through a cut.

use super::groups::{Layer, bound};
use crate::data::Dataset;
use crate::error::Result;
use crate::graph::{Graph, Model, Op, ValueId};
use crate::math::moments;
use crate::observe::Extremes;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Of the energy that a channel's mean adds to the noise of the weights that read it, what is left once biases are corrected.
const MEAN: f64 = 0.25;

/// What was seen of a value, channel by channel of axis 1.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Elements of a channel in one sample.
    pub places: f64,
    samples: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
    active: Vec<f64>,
    tops: Vec<f64>,
    /// Largest number of all samples.
    pub highest: Vec<f64>,
    /// Lowest number of all.
    pub lowest: f64,
}

impl Stats {
    fn of(t: &Tensor) -> Result<Option<Stats>> {
        let (shape, x) = (t.shape(), t.to_f32()?);
        let Some(&channels) = shape.get(1).filter(|c| **c > 0 && !x.is_empty()) else { return Ok(None) };
        let inner: usize = shape[2..].iter().product();
        let places = (x.len() / channels) as f64;
        let mut rows = vec![Row::default(); channels];
        match inner {
            // Channels lie side by side.
            1 => rows.iter_mut().enumerate().for_each(|(c, row)| *row = Row::of(&x[c..].iter().step_by(channels).copied().collect::<Vec<_>>())),
            _ => x.chunks_exact(inner).enumerate().for_each(|(i, x)| rows[i % channels].merge(&Row::of(x))),
        }
        let each = |f: &dyn Fn(&Row) -> f64| rows.iter().map(f).collect::<Vec<_>>();
        Ok(Some(Stats {
            places,
            samples: 1.0,
            sum: each(&|r| r.sum / places),
            squares: each(&|r| r.squares / places),
            active: each(&|r| r.active as f64 / places),
            tops: each(&|r| r.seen.hi.max(-r.seen.lo) as f64),
            highest: each(&|r| r.seen.hi as f64),
            lowest: rows.iter().fold(0.0, |low, r| low.min(r.seen.lo as f64)),
        }))
    }

    fn merge(&mut self, o: &Stats) {
        self.samples += o.samples;
        self.lowest = self.lowest.min(o.lowest);
        for (a, b) in [(&mut self.sum, &o.sum), (&mut self.squares, &o.squares), (&mut self.active, &o.active), (&mut self.tops, &o.tops)] {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        self.highest.iter_mut().zip(&o.highest).for_each(|(a, b)| *a = a.max(*b));
    }

    pub fn channels(&self) -> usize {
        self.sum.len()
    }

    /// Mean over the samples of a channel's largest size.
    pub fn top(&self, c: usize) -> f64 {
        self.tops[c] / self.samples
    }

    /// The energy with which a channel multiplies errors of the weights that read it.
    pub fn energy(&self, c: usize) -> f64 {
        let mean = self.sum[c] / self.samples;
        (self.squares[c] / self.samples - (1.0 - MEAN) * mean * mean).max(0.0)
    }

    fn active(&self, c: usize) -> f64 {
        self.active[c] / self.samples
    }
}

/// Sums over some numbers of a channel, how many are above zero, and their extremes.
#[derive(Clone, Default)]
struct Row {
    sum: f64,
    squares: f64,
    active: usize,
    seen: Extremes,
}

impl Row {
    fn of(x: &[f32]) -> Row {
        let ((sum, squares), mut seen) = (moments(x), Extremes::default());
        seen.observe(x);
        Row { sum, squares, active: x.iter().filter(|v| **v > 0.0).count(), seen }
    }

    fn merge(&mut self, o: &Row) {
        self.sum += o.sum;
        self.squares += o.squares;
        self.active += o.active;
        self.seen.merge(&o.seen);
    }
}

/// Statistics of all values that nodes of the float graph make of real numbers, and of its inputs.
pub fn statistics(model: &Model, (data, samples): (&Dataset, &[usize]), threads: usize, values: &[ValueId]) -> Result<BTreeMap<ValueId, Stats>> {
    let mut all: BTreeMap<ValueId, Stats> = BTreeMap::new();
    let see = |tensors: &[Tensor]| tensors.iter().map(Stats::of).collect::<Result<Vec<_>>>();
    data.watch(model, values, samples, threads, see, |new| {
        for (v, s) in values.iter().zip(new).filter_map(|(v, s)| Some((*v, s?))) {
            match all.get_mut(&v) {
                Some(have) if have.channels() == s.channels() => have.merge(&s),
                Some(_) => {}
                None => drop(all.insert(v, s)),
            }
        }
    })?;
    Ok(all)
}

/// The gain of noise energy from each value's channels to the outputs.
pub fn gains(g: &Graph, layers: &[Layer], stats: &BTreeMap<ValueId, Stats>) -> BTreeMap<ValueId, Vec<f64>> {
    let mut gains: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
    for v in &g.outputs {
        if let Some(s) = stats.get(v) {
            // Every output counts alike.
            let energy = s.squares.iter().sum::<f64>() / s.samples * s.places;
            gains.insert(*v, vec![1.0 / energy.max(f64::MIN_POSITIVE); s.channels()]);
        }
    }
    let of_node: BTreeMap<_, &Layer> = layers.iter().map(|l| (l.linear.node, l)).collect();
    for (id, node) in g.nodes().rev() {
        let Some((y, of_y)) = node.output(0).and_then(|y| Some((y, gains.get(&y)?.clone()))) else { continue };
        let Some(sy) = stats.get(&y) else { continue };
        for x in node.inputs().iter().flatten().filter(|v| g.constant(**v).is_none()) {
            let Some(sx) = stats.get(x) else { continue };
            let places = sx.places / sy.places;
            let same = |c: usize| if of_y.len() == sx.channels() { of_y[c] } else { of_y.iter().sum::<f64>() / of_y.len() as f64 };
            let gain: Vec<f64> = match (of_node.get(&id), node.op) {
                (Some(layer), _) if layer.x == *x && layer.ins * layer.linear.groups == sx.channels() && layer.outs == of_y.len() => {
                    let mut gain = vec![0.0; sx.channels()];
                    for (o, of_y) in of_y.iter().enumerate() {
                        let squares = &layer.squares[o * layer.ins..(o + 1) * layer.ins];
                        gain[layer.inputs(o)].iter_mut().zip(squares).for_each(|(g, s)| *g += of_y * s / places);
                    }
                    gain
                }
                (_, Op::Relu | Op::Clip) => {
                    (0..sx.channels()).map(|c| same(c) * if bound(g, node).is_some() || node.op == Op::Relu { sx.active(c) } else { 1.0 }).collect()
                }
                (_, Op::LeakyRelu) => {
                    let slope = node.float("alpha").unwrap_or(0.01) as f64;
                    (0..sx.channels()).map(|c| same(c) * (sx.active(c) + slope * slope * (1.0 - sx.active(c)))).collect()
                }
                (_, Op::GlobalAveragePool | Op::AveragePool | Op::ReduceMean) => (0..sx.channels()).map(|c| same(c) / (places * places)).collect(),
                (_, Op::MaxPool | Op::GlobalMaxPool) => (0..sx.channels()).map(|c| same(c) / places).collect(),
                _ => (0..sx.channels()).map(same).collect(),
            };
            match gains.get_mut(x) {
                Some(have) => have.iter_mut().zip(gain).for_each(|(a, b)| *a += b),
                None => drop(gains.insert(*x, gain)),
            }
        }
    }
    gains
}
