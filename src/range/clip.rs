//! Cuts the range of each block of weights where its part in the layer's outputs changes least: of `m = max|w| · (1 − i/grid)`, `i/grid < shrink`, that
//! for which `Σ (X·(w − Q(w)))²`, with the range cut to `−m…m`, is least over inputs `X` that the samples hold.
//! Source: Lin et al. 2024, AWQ; the search of github.com/mit-han-lab/llm-awq (auto_clip), with its defaults and its 512 places.
//! Where there are fewer inputs than places, the sum is `eᵀ(XᵀX)e` with `e = w − Q(w)`: the same number for less.
//! Needs: samples; a constant weight that one Conv, Gemm or MatMul alone reads, and blocks that cut its inputs alike for every output.
//! Declines, which leaves the whole range: other weights.

use super::weights::Blocks;
use crate::data::Dataset;
use crate::engine::Patches;
use crate::error::{Error, Result};
use crate::graph::{Linear, Model, NodeId, ValueId};
use crate::math::{Matrix, add_gram, multiply};
use crate::note::Notes;
use crate::quant::{Layout, QuantizerId, Scheme};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// What the search was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// How far a range may shrink, as a share of itself.
    pub shrink: f64,
    /// Steps from all of a range to nothing.
    pub grid: usize,
    /// Samples looked at, at most.
    pub samples: usize,
}

/// Places of all samples at which layers are looked at.
const PLACES: usize = 512;

/// What a layer multiplies its weights with at some places of a sample: by group of channels, the numbers that outputs are summed over, a column each.
struct Seen {
    groups: Vec<Vec<f32>>,
    places: usize,
}

/// A value as a layer reads it, and what of it the samples hold.
struct Read {
    value: ValueId,
    patches: Patches,
    seen: Vec<Seen>,
}

/// The inputs that the weights of FakeQuants meet, and the shares of their ranges to try.
#[derive(Default)]
pub struct Met {
    reads: Vec<Read>,
    /// By FakeQuant: which of them, and whether the weights of one output lie side by side.
    sites: BTreeMap<NodeId, (usize, bool)>,
    shares: Vec<f32>,
}

impl Met {
    /// Looks at what the weights in `open` meet; those that are not taken are notes.
    pub fn look(
        model: &Model,
        open: &[(NodeId, QuantizerId)],
        how: &Clip,
        data: Option<(&Dataset, &[usize])>,
        threads: usize,
        notes: &mut Notes,
    ) -> Result<Met> {
        let (data, samples) = data.ok_or_else(|| Error::usage("clip weighs what weights lose by the inputs they meet: give --data"))?;
        let samples = &samples[..samples.len().min(how.samples)];
        let steps = (0..how.grid).map(|i| i as f64 / how.grid as f64).take_while(|s| *s < how.shrink);
        let mut met = Met { shares: steps.map(|s| (1.0 - s) as f32).collect(), ..Met::default() };
        for (fake, id) in open {
            match read(model, *fake) {
                None => {}
                Some(Err(why)) => notes.declined(&model.quantizers[*id].name, format!("keeps its whole range: {why}")),
                Some(Ok((value, patches, by_row))) => {
                    let known = met.reads.iter().position(|r| r.value == value && r.patches == patches);
                    met.sites.insert(*fake, (known.unwrap_or(met.reads.len()), by_row));
                    if known.is_none() {
                        met.reads.push(Read { value, patches, seen: Vec::new() });
                    }
                }
            }
        }
        let mut values: Vec<ValueId> = met.reads.iter().map(|r| r.value).collect();
        values.sort();
        values.dedup();
        let each = PLACES.div_ceil(samples.len().max(1));
        let see = |tensors: &[Tensor]| {
            let one = |r: &Read| {
                let t = &tensors[values.binary_search(&r.value).expect("it is among them")];
                let x = t.to_f32()?;
                let (groups, places): (Vec<_>, Vec<_>) = (0..r.patches.groups).map(|g| r.patches.columns(&x, t.shape(), g, each)).unzip();
                Ok(Seen { groups, places: places[0] })
            };
            met.reads.iter().map(one).collect::<Result<Vec<_>>>()
        };
        let mut all: Vec<Vec<Seen>> = met.reads.iter().map(|_| Vec::new()).collect();
        if !values.is_empty() {
            data.watch(model, &values, samples, threads, see, |new| all.iter_mut().zip(new).for_each(|(all, new)| all.push(new)))?;
        }
        met.reads.iter_mut().zip(all).for_each(|(r, seen)| r.seen = seen);
        Ok(met)
    }

    /// The ranges of the weight `x` under a FakeQuant, from those that hold all of it; `None` where its inputs were not looked at.
    pub fn ends(&self, fake: NodeId, x: &[f32], shape: &[usize], scheme: &Scheme, whole: &Blocks) -> Option<Result<Blocks>> {
        let (at, by_row) = *self.sites.get(&fake)?;
        let cut = |(lo, hi): (f32, f32), share: f32| {
            let most = hi.max(-lo) * share;
            (lo.max(-most), hi.min(most))
        };
        let search = || {
            let sums = Sums::of(&self.reads[at], by_row, x.len(), &scheme.blocks.layout(shape)?)?;
            whole.least(x, shape, scheme, &self.shares, cut, |y| sums.losses(x, y))
        };
        Some(search())
    }
}

/// The value that the layer behind a FakeQuant reads, how it reads it, and whether the weights of one output lie side by side; or why it is not taken.
/// `None`: no layer reads it.
fn read(model: &Model, fake: NodeId) -> Option<std::result::Result<(ValueId, Patches, bool), &'static str>> {
    let g = &model.graph;
    let weight = g.node(fake).output(0)?;
    let layer = |node| Linear::of(g, node).filter(|l| l.weight == weight);
    let linear = g.value(weight).uses().iter().find_map(|p| g.get_node(p.node).and_then(|_| layer(p.node)))?;
    if g.value(weight).uses().len() != 1 {
        return Some(Err("several nodes read it"));
    }
    let shape = g.constant(g.node(fake).input(0)?)?.tensor.shape();
    let node = g.node(linear.node);
    let Some(patches) = Patches::of(node, &linear, shape) else { return Some(Err("its weights do not meet its layer's input row by row")) };
    Some(Ok((node.input(linear.input_slot)?, patches, linear.out_axis == 0)))
}

/// A layer's outputs as sums of parts, one a block.
struct Sums {
    parts: Vec<Part>,
    /// Blocks in all.
    blocks: usize,
    /// Inputs and outputs, and whether the weights of one output lie side by side.
    ins: usize,
    outs: usize,
    by_row: bool,
}

/// Weights of neighbouring outputs that meet the same inputs.
struct Part {
    outs: Range<usize>,
    ins: Vec<usize>,
    /// The block of each output's.
    blocks: Vec<u32>,
    /// By input, its numbers at all places; where these are more than the inputs, its products with the others, summed.
    met: Vec<f32>,
    products: bool,
}

impl Sums {
    fn of(read: &Read, by_row: bool, weights: usize, layout: &Layout) -> Result<Sums> {
        let (ins, groups) = (read.patches.width(), read.patches.groups);
        let outs = weights / ins.max(1);
        let mut sums = Sums { parts: Vec::new(), blocks: layout.len(), ins, outs, by_row };
        let members = layout.members();
        for group in 0..groups {
            let rows = group * outs / groups..(group + 1) * outs / groups;
            let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            (0..ins).for_each(|c| parts.entry(members[sums.at(rows.start, c)]).or_default().push(c));
            for ins in parts.into_values() {
                let blocks: Vec<u32> = rows.clone().map(|o| members[sums.at(o, ins[0])]).collect();
                if rows.clone().zip(&blocks).any(|(o, b)| ins.iter().any(|c| members[sums.at(o, *c)] != *b)) {
                    return Err(Error::usage("clip needs blocks that cut the inputs alike for every output: the method mse has no such need"));
                }
                let (met, products) = met(&read.seen, group, &ins);
                sums.parts.push(Part { outs: rows.clone(), ins, blocks, met, products });
            }
        }
        Ok(sums)
    }

    /// Where the weight of an output for an input lies.
    fn at(&self, out: usize, input: usize) -> usize {
        if self.by_row { out * self.ins + input } else { input * self.outs + out }
    }

    /// By block, what the outputs lose where `y` stands for the weights `x`.
    fn losses(&self, x: &[f32], y: &[f32]) -> Vec<f64> {
        let one = |part: &Part| {
            let (n, height) = (part.ins.len(), part.outs.len());
            let errors: Vec<f32> = part.outs.clone().flat_map(|o| part.ins.iter().map(move |c| self.at(o, *c))).map(|i| x[i] - y[i]).collect();
            let width = part.met.len() / n;
            let mut changed = vec![0f32; height * width];
            multiply(&mut changed, width, Matrix::new(&errors, height, n), Matrix::new(&part.met, n, width), false);
            let of = |(changed, errors): (&[f32], &[f32])| -> f64 {
                let other = if part.products { errors } else { changed };
                changed.iter().zip(other).map(|(a, b)| *a as f64 * *b as f64).sum()
            };
            changed.chunks_exact(width.max(1)).zip(errors.chunks_exact(n)).map(of).collect::<Vec<_>>()
        };
        let found: Vec<Vec<f64>> = self.parts.par_iter().map(one).collect();
        let mut losses = vec![0f64; self.blocks];
        for (part, found) in self.parts.iter().zip(found) {
            part.blocks.iter().zip(found).for_each(|(b, loss)| losses[*b as usize] += loss);
        }
        losses
    }
}

/// What some inputs of a group held at all places, an input a row; or their products, and that they are these.
fn met(seen: &[Seen], group: usize, ins: &[usize]) -> (Vec<f32>, bool) {
    let (n, places) = (ins.len(), seen.iter().map(|s| s.places).sum::<usize>());
    let column = |s: &Seen, c: usize| s.groups[group][c * s.places..(c + 1) * s.places].to_vec();
    if places <= n {
        return (ins.iter().flat_map(|c| seen.iter().flat_map(|s| column(s, *c))).collect(), false);
    }
    let mut sums = vec![0f64; n * n];
    for s in seen {
        let columns: Vec<f32> = ins.iter().flat_map(|c| column(s, *c)).collect();
        add_gram(&mut sums, &columns, n, s.places);
    }
    ((0..n * n).map(|i| (sums[(i / n).max(i % n) * n + (i / n).min(i % n)] / places as f64) as f32).collect(), true)
}
