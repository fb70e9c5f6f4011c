//! The scales of one group's channels. With the steps `d` of all that a group touches given, the noise at the outputs is, channel by channel,
//! `p/e² + q·e²`: errors of what makes the channel and of itself shrink as it is multiplied by `e`, those of the weights that read it grow. It is least
//! at `e = ⁴√(p/q)`, within the bounds that the steps set to the largest numbers. The steps are searched: up and down, several at a time.

use super::groups::{Group, Layer};
use super::noise::Stats;
use crate::graph::ValueId;
use crate::quant::{ScaleKind, Scheme, Zero};
use std::collections::BTreeMap;

/// What the target's codes reach, in steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub weights: f64,
    /// Whether an output channel has a step of its own.
    pub by_channel: bool,
    /// Codes of numbers of both signs, and of those that are never negative.
    pub signed: f64,
    pub positive: f64,
    /// Whether steps are powers of two.
    pub pow2: bool,
}

impl Grid {
    /// That of a pair of schemes.
    pub fn of(weights: &Scheme, activations: &Scheme) -> Grid {
        let last = |s: &Scheme| s.format.code_range().map_or(s.format.max_value() as f64, |(_, last)| last as f64);
        let (signed, positive) = match activations.zero {
            Zero::Integer | Zero::Real => (
                activations.format.code_range().map_or(1.0, |(a, b)| (b as f64 - a as f64) / 2.0),
                activations.format.code_range().map_or(1.0, |(a, b)| b as f64 - a as f64),
            ),
            Zero::Fixed(z) => (last(activations) - z as f64, last(activations) - z as f64),
            Zero::None => (last(activations), last(activations)),
        };
        Grid { weights: last(weights), by_channel: !weights.blocks.is_tensor(), signed, positive, pow2: matches!(activations.scale, ScaleKind::Pow2(_)) }
    }
}

/// Beyond what samples showed of a value before it is cut, it may be larger by this factor.
const MARGIN: f64 = 2.0;
/// No scale goes further from 1.
const FAR: f64 = 1e4;
/// Rounds of moves in one group, and steps that are moved at once where all combinations would be too many.
const ROUNDS: usize = 30;
const TOGETHER: usize = 5;

/// Everything that is searched over.
pub struct Search<'a> {
    pub layers: &'a [Layer],
    pub groups: &'a [Group],
    pub stats: &'a BTreeMap<ValueId, Stats>,
    pub gains: &'a BTreeMap<ValueId, Vec<f64>>,
    /// By group: the values that are quantized.
    pub points: &'a [Vec<ValueId>],
    pub grid: Grid,
    /// By group: what its channels are multiplied by, and its upper bounds.
    pub scales: Vec<Vec<f64>>,
    pub cuts: Vec<f64>,
    /// Steps of layers' weights, and of values.
    weights: Vec<f64>,
    values: BTreeMap<ValueId, f64>,
}

/// What one group is judged by, with everything else as it stands.
struct Local {
    /// By step: the factor of `step²/e²`, or of `step²·e²` for layers that read.
    noise: Vec<Vec<f64>>,
    /// By step: the largest number of each channel in steps' units; beyond `step · reach / largest` a channel does not go, or below `largest / (step · reach)`.
    largest: Vec<Vec<f64>>,
    reach: Vec<f64>,
    /// From where on steps belong to layers that read.
    readers: usize,
    /// Fixed parts: of `1/e²`, of `e²`, and the lowest scale.
    above: Vec<f64>,
    below: Vec<f64>,
    least: Vec<f64>,
    /// Channels that a bound cuts, and the largest scale of those that none does, at bounds as they are.
    cut: Vec<bool>,
    free: Vec<f64>,
}

impl<'a> Search<'a> {
    pub fn new(
        layers: &'a [Layer],
        groups: &'a [Group],
        stats: &'a BTreeMap<ValueId, Stats>,
        gains: &'a BTreeMap<ValueId, Vec<f64>>,
        points: &'a [Vec<ValueId>],
        grid: Grid,
    ) -> Self {
        let scales = groups.iter().map(|g| vec![1.0; g.channels]).collect();
        let mut s = Search { layers, groups, stats, gains, points, grid, scales, cuts: vec![1.0; groups.len()], weights: Vec::new(), values: BTreeMap::new() };
        s.weights = layers.iter().map(|l| s.covering(l.largest.iter().fold(0.0, |a: f64, w| a.max(*w)) / grid.weights)).collect();
        for v in points.iter().flatten() {
            let top = (0..stats[v].channels()).map(|c| stats[v].top(c)).fold(0.0, f64::max);
            s.values.insert(*v, s.covering(top / s.reach(*v)));
        }
        s
    }

    /// The smallest step that is one and not below `step`.
    fn covering(&self, step: f64) -> f64 {
        let step = step.max(1e-30);
        if self.grid.pow2 { 2f64.powf((step.log2() - 1e-9).ceil()) } else { step }
    }

    fn reach(&self, v: ValueId) -> f64 {
        if self.stats[&v].lowest < 0.0 { self.grid.signed } else { self.grid.positive }
    }

    /// Visits all groups, `sweeps` times at most. The noise before and after, as far as groups make it.
    pub fn run(&mut self, sweeps: usize) -> crate::error::Result<(f64, f64)> {
        let before: f64 = (0..self.groups.len()).map(|g| self.noise(g)).sum();
        for _ in 0..sweeps {
            crate::interrupt::check()?;
            let change = (0..self.groups.len()).map(|g| self.visit(g)).fold(0.0, f64::max);
            if change < 1e-2 {
                break;
            }
        }
        Ok((before, (0..self.groups.len()).map(|g| self.noise(g)).sum()))
    }

    fn noise(&self, g: usize) -> f64 {
        let local = self.local(g);
        let (p, q) = local.parts(&self.steps(g));
        self.scales[g].iter().zip(p.iter().zip(&q)).map(|(e, (p, q))| p / (e * e) + q * e * e).sum()
    }

    /// Steps of a group: of layers that write, of values, of layers that read.
    fn steps(&self, g: usize) -> Vec<f64> {
        let group = &self.groups[g];
        let weights = |list: &[usize]| if self.grid.by_channel { vec![] } else { list.iter().map(|l| self.weights[*l]).collect::<Vec<_>>() };
        let values: Vec<f64> = self.points[g].iter().map(|v| self.values[v]).collect();
        [weights(&group.writers), values, weights(&group.readers)].concat()
    }

    fn set_steps(&mut self, g: usize, steps: &[f64]) {
        let group = &self.groups[g];
        let mut steps = steps.iter();
        let weights = |list: &'a [usize]| if self.grid.by_channel { &[][..] } else { list };
        for &l in weights(&group.writers) {
            self.weights[l] = *steps.next().expect("one a layer");
        }
        for v in &self.points[g] {
            self.values.insert(*v, *steps.next().expect("one a value"));
        }
        for &l in weights(&group.readers) {
            self.weights[l] = *steps.next().expect("one a layer");
        }
    }

    fn scale_of(&self, group: Option<usize>, c: usize) -> f64 {
        group.map_or(1.0, |g| self.scales[g][c])
    }

    fn local(&self, g: usize) -> Local {
        let group = &self.groups[g];
        let n = group.channels;
        let empty = || vec![0.0; n];
        let mut local = Local {
            noise: vec![],
            largest: vec![],
            reach: vec![],
            readers: 0,
            above: empty(),
            below: empty(),
            least: empty(),
            cut: vec![false; n],
            free: vec![f64::INFINITY; n],
        };
        let places = |v: &ValueId| self.stats.get(v).map_or(1.0, |s| s.places);
        let gain = |v: &ValueId, c: usize| self.gains.get(v).map_or(0.0, |g| g[c]);
        let energy = |v: &ValueId, c: usize| self.stats.get(v).map_or(0.0, |s| s.energy(c));
        for l in group.writers.iter().filter(|_| !self.grid.by_channel).map(|l| &self.layers[*l]) {
            let (mut noise, mut largest) = (empty(), empty());
            for o in 0..n {
                for (k, i) in l.inputs(o).enumerate() {
                    let e = self.scale_of(l.input, i);
                    noise[o] += energy(&l.x, i) * e * e * l.kernel as f64;
                    largest[o] = f64::max(largest[o], l.largest[o * l.ins + k] / e);
                }
                noise[o] *= places(&l.y) * gain(&l.y, o);
            }
            local.push(noise, largest, self.grid.weights);
        }
        for v in &self.points[g] {
            let noise = (0..n).map(|c| places(v) * gain(v, c)).collect();
            local.push(noise, (0..n).map(|c| self.stats[v].top(c)).collect(), self.reach(*v));
        }
        local.readers = local.noise.len();
        for l in group.readers.iter().map(|l| &self.layers[*l]) {
            let (mut noise, mut largest) = (empty(), empty());
            for o in 0..l.outs {
                let e = self.scale_of(l.output, o);
                let out = places(&l.y) * gain(&l.y, o);
                let row = &l.largest[o * l.ins..(o + 1) * l.ins];
                // One step a channel follows its largest weight, which must not grow.
                let own = l.inputs(o).zip(row).map(|(i, w)| w / self.scales[g][i]).fold(0.0, f64::max);
                for (i, w) in l.inputs(o).zip(row) {
                    let energy = energy(&l.x, i) * l.kernel as f64;
                    if self.grid.by_channel {
                        local.below[i] += energy * out * (own / self.grid.weights).powi(2);
                        local.least[i] = f64::max(local.least[i], if own > 0.0 { w / own } else { 0.0 });
                    } else {
                        noise[i] += energy * out / (e * e);
                        largest[i] = f64::max(largest[i], w * e);
                    }
                }
            }
            if !self.grid.by_channel {
                local.push(noise, largest, self.grid.weights);
            }
        }
        for cut in &group.cuts {
            let Some(stats) = self.stats.get(&cut.x) else { continue };
            for c in 0..n {
                let top = stats.highest[c].max(1e-9) * MARGIN;
                local.cut[c] |= top > cut.bound;
                local.free[c] = local.free[c].min(cut.bound / top);
            }
        }
        local
    }

    /// Searches one group's steps and bounds; how far its scales changed.
    fn visit(&mut self, g: usize) -> f64 {
        let local = self.local(g);
        let steps = self.steps(g);
        let Some((loss, scales)) = local.best(&steps, self.cuts[g]) else { return 0.0 };
        let mut best = (loss, scales, steps, self.cuts[g]);
        let ratio = if self.grid.pow2 { 2.0 } else { 2f64.powf(0.25) };
        let moves = moves(best.2.len());
        let bounds: &[f64] = if local.cut.contains(&true) { &[1.0, 0.840_896_415, 1.189_207_115] } else { &[1.0] };
        for _ in 0..ROUNDS {
            let (loss, _, steps, cut) = best.clone();
            for moved in &moves {
                let steps: Vec<f64> = steps.iter().zip(moved).map(|(s, m)| s * ratio.powi(*m)).collect();
                for bound in bounds {
                    if let Some((l, scales)) = local.best(&steps, cut * bound)
                        && l < best.0 * (1.0 - 1e-6)
                    {
                        best = (l, scales, steps.clone(), cut * bound);
                    }
                }
            }
            if best.0 == loss {
                break;
            }
        }
        let change = best.1.iter().zip(&self.scales[g]).map(|(a, b)| (a / b).ln().abs()).fold(0.0, f64::max);
        self.scales[g] = best.1;
        self.cuts[g] = best.3;
        self.set_steps(g, &best.2);
        change
    }
}

impl Local {
    fn push(&mut self, noise: Vec<f64>, largest: Vec<f64>, reach: f64) {
        self.noise.push(noise);
        self.largest.push(largest);
        self.reach.push(reach * (1.0 + 1e-9));
    }

    /// What goes with `1/e²` and with `e²`, in units of a twelfth.
    fn parts(&self, steps: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut p, mut q) = (self.above.clone(), self.below.clone());
        for (i, (d, noise)) in steps.iter().zip(&self.noise).enumerate() {
            let into = if i < self.readers { &mut p } else { &mut q };
            into.iter_mut().zip(noise).for_each(|(a, n)| *a += d * d * n);
        }
        (p, q)
    }

    /// The best scales under these steps and bounds, and their noise; `None` where no scales keep to them.
    fn best(&self, steps: &[f64], bound: f64) -> Option<(f64, Vec<f64>)> {
        let (p, q) = self.parts(steps);
        let mut scales = Vec::with_capacity(p.len());
        let mut loss = 0.0;
        for c in 0..p.len() {
            let (mut lo, mut hi) = (self.least[c], f64::INFINITY);
            for (i, d) in steps.iter().enumerate() {
                let largest = self.largest[i][c];
                match i < self.readers {
                    true if largest > 0.0 => hi = hi.min(d * self.reach[i] / largest),
                    false => lo = f64::max(lo, largest / (d * self.reach[i])),
                    _ => {}
                }
            }
            let e = if self.cut[c] {
                bound
            } else {
                hi = hi.min(self.free[c] * bound);
                let e = if p[c] > 0.0 && q[c] > 0.0 { (p[c] / q[c]).sqrt().sqrt() } else { 1.0 };
                e.max(lo.max(1.0 / FAR)).min(hi.min(FAR))
            };
            if e < lo * (1.0 - 1e-9) || e > hi * (1.0 + 1e-9) {
                return None;
            }
            loss += p[c] / (e * e) + q[c] * e * e;
            scales.push(e);
        }
        Some((loss, scales))
    }
}

/// Ways to move `n` steps up, down or not at all: all of them, or at most two at a time.
fn moves(n: usize) -> Vec<Vec<i32>> {
    if n <= TOGETHER {
        return (0..3i32.pow(n as u32)).map(|i| (0..n).map(|k| i / 3i32.pow(k as u32) % 3 - 1).collect()).collect();
    }
    let mut all = vec![vec![0; n]];
    for a in 0..n {
        for b in a..n {
            for (x, y) in [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0)] {
                let mut m = vec![0; n];
                (m[b], m[a]) = (y, x);
                all.push(m);
            }
        }
    }
    all.sort();
    all.dedup();
    all
}
