//! Cuts the range of each block of weights where its part in the layer's outputs changes least: of `m = max|w| · (1 − i/grid)`, `i/grid < shrink`, that
//! for which `Σ (X·(w − Q(w)))²`, with the range cut to `−m…m`, is least over inputs `X` that the samples hold.
//! Source: Lin et al. 2024, AWQ; the search of github.com/mit-han-lab/llm-awq (auto_clip), with its defaults and its 512 places.
//! Where there are fewer inputs than places, the sum is `eᵀ(XᵀX)e` with `e = w − Q(w)`: the same number for less.
//! Needs: samples; a constant weight that one Conv, Gemm or MatMul alone reads, and blocks that cut its inputs alike for every output.
//! Declines, which leaves the whole range: other weights; layers that make queries or keys (as in that code: their error says
//! little of what Softmax makes of it).

use super::weights::Blocks;
use crate::data::Dataset;
use crate::engine::Patches;
use crate::error::{Error, Result};
use crate::graph::{Flow, Graph, Linear, Model, NodeId, Op, ValueId};
use crate::math::{Matrix, add_gram, multiply};
use crate::note::Notes;
use crate::quant::{Layout, QuantizerId, Scheme};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
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
    columns: Vec<f32>,
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
                let (columns, places) = r.patches.columns(&x, t.shape(), each);
                Ok(Seen { columns, places })
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
            (lo.clamp(-most, most), hi.clamp(-most, most))
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
    if node.output(0).is_some_and(|y| makes_scores(g, y, false, &mut BTreeSet::new())) {
        return Some(Err("its layer makes queries or keys, whose error says little of what Softmax makes of it"));
    }
    let Some(patches) = Patches::of(node, &linear, shape) else { return Some(Err("its weights do not meet its layer's input row by row")) };
    Some(Ok((node.input(linear.input_slot)?, patches, linear.out_axis == 0)))
}

/// Whether a value is on its way to be multiplied with what flows and to be weighed by Softmax, as queries and keys are; `multiplied`: it has been.
fn makes_scores(g: &Graph, v: ValueId, multiplied: bool, seen: &mut BTreeSet<(ValueId, bool)>) -> bool {
    // Residual sums rejoin: each value is looked behind once.
    seen.insert((v, multiplied))
        && g.value(v).uses().iter().any(|port| {
            let Some(node) = g.get_node(port.node) else { return false };
            let mut on = |multiplied| node.outputs().iter().flatten().any(|y| makes_scores(g, *y, multiplied, seen));
            match (node.op, node.op.flow()) {
                (Op::Softmax, _) => multiplied,
                (Op::Attention | Op::MultiHeadAttention | Op::GroupQueryAttention, _) => port.slot < 2,
                (_, Flow::Linear) => !multiplied && Linear::of(g, port.node).is_some_and(|l| !l.constant) && on(true),
                (Op::FakeQuant | Op::Where, _) | (_, Flow::Move | Flow::Arithmetic | Flow::Clamp) => on(multiplied),
                (_, Flow::Pointwise) => multiplied && on(true),
                _ => false,
            }
        })
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
                let (met, products) = met(&read.seen, group * sums.ins, &ins);
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

/// What some inputs of a group, whose first is `first` of all, held at all places, an input a row; or their products, and that they are these.
fn met(seen: &[Seen], first: usize, ins: &[usize]) -> (Vec<f32>, bool) {
    let (n, places) = (ins.len(), seen.iter().map(|s| s.places).sum::<usize>());
    let column = |s: &Seen, c: usize| s.columns[(first + c) * s.places..][..s.places].to_vec();
    if places <= n {
        return (ins.iter().flat_map(|c| seen.iter().flat_map(|s| column(s, *c))).collect(), false);
    }
    let mut sums = vec![0f32; n * n];
    for s in seen {
        let columns: Vec<f32> = ins.iter().flat_map(|c| column(s, *c)).collect();
        add_gram(&mut sums, &columns, n, s.places);
    }
    ((0..n * n).map(|i| sums[(i / n).max(i % n) * n + (i / n).min(i % n)] / places as f32).collect(), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Type};
    use crate::quant::Blocks as Shared;
    use crate::range::weights::{Weights, fit_weights};
    use crate::tensor::DType;

    fn noise(n: usize, k: f64) -> Vec<f32> {
        (1..=n).map(|i| (i as f64 * k).fract() as f32 - 0.5).collect()
    }

    const HOW: Clip = Clip { shrink: 0.5, grid: 20, samples: 64 };

    /// x → Conv, Gemm or MatMul (weight under a quantizer) → y, and samples in which every third channel is loud.
    fn model(dir: &std::path::Path, node: Node, x: &[usize], w: &[usize], scheme: Scheme) -> (Model, Dataset) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let q = m.quantizers.add("w", scheme);
        let g = &mut m.graph;
        let ty = |shape: &[usize]| Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        let [vx, wq, y] = ["x", "wq", "y"].map(|n| g.add_value(n));
        g.value_mut(vx).ty = ty(x);
        g.value_mut(y).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
        let count = w.iter().product();
        let values = noise(count, 0.618_033_988_7).iter().zip(noise(count, 0.414_213_562_4)).map(|(a, b)| a * b * b).collect();
        let c = g.add_constant("w", Tensor::of_f32(w, values));
        (g.inputs, g.outputs) = (vec![vx], vec![y]);
        g.add_node(Node::fake_quant(q, "fw"), &[Some(c)], &[Some(wq)]);
        g.add_node(node, &[Some(vx), Some(wq)], &[Some(y)]);
        let one: usize = x.iter().product();
        let channel = |i: usize| i / x[2..].iter().product::<usize>() % x[1];
        let samples: Vec<f32> = noise(20 * one, 0.732_050_807_6).iter().enumerate().map(|(i, v)| if channel(i) % 3 == 0 { 9.0 * v } else { *v }).collect();
        let path = dir.join("x.npy");
        let shape = [&[20 * x[0]], &x[1..]].concat();
        std::fs::write(&path, npy("<f4", false, &shape, &samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(x.iter().map(|d| Dim::Known(*d)).collect()) };
        (m, Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap())
    }

    fn fitted(m: &Model, data: &Dataset, how: Weights, threads: usize) -> (Model, Notes) {
        let (mut m, mut notes) = (m.clone(), Notes::of("calibrate"));
        let all: Vec<usize> = (0..20).collect();
        fit_weights(&mut m, how, &BTreeSet::new(), Some((data, &all)), threads, &mut notes).unwrap();
        (m, notes)
    }

    /// Squared error of the model's output over the samples with its weight as the quantizer makes it.
    fn loss(m: &Model, data: &Dataset) -> f64 {
        let run = |float: bool| {
            let mut outputs = Vec::new();
            let options = crate::engine::RunnerOptions { float, ..Default::default() };
            let plans = crate::engine::Plans::new(m, &m.graph.outputs, options);
            let mut running = crate::engine::Running::default();
            for i in 0..20 {
                outputs.extend(plans.run(&mut running, &data.sample(i).unwrap(), &m.quantizers).unwrap()[0].to_f32().unwrap().into_owned());
            }
            outputs
        };
        run(true).iter().zip(run(false)).map(|(a, b)| ((a - b) as f64).powi(2)).sum()
    }

    /// In one channel or tensor all inputs count at once, so that no cut of the grid serves the layer better; in blocks each its own part.
    #[test]
    fn layers_of_every_kind_lose_less_than_by_least_squares_of_weights() {
        let dir = tempfile::tempdir().unwrap();
        let conv = Node::new(Op::Conv, "n").with("group", 2i64).with("pads", vec![1i64, 1, 1, 1]);
        let cases = [
            (Node::new(Op::MatMul, "n"), vec![4, 48], vec![48, 10], vec![Shared::block(0, 16), Shared::channel(1), Shared::tensor()]),
            (Node::new(Op::Gemm, "n").with("transB", 1i64), vec![4, 48], vec![10, 48], vec![Shared::block(1, 16), Shared::channel(0)]),
            (conv, vec![1, 12, 7, 7], vec![8, 6, 3, 3], vec![Shared::channel(0), Shared::block(1, 3)]),
        ];
        for (node, x, w, blocks) in cases {
            for blocks in blocks {
                let scheme = Scheme { blocks: blocks.clone(), ..Scheme::int(3, false) };
                let (m, data) = model(dir.path(), node.clone(), &x, &w, scheme);
                let (clipped, notes) = fitted(&m, &data, Weights::Clip(HOW), 1);
                assert!(notes.list().is_empty(), "{notes:?}");
                let of = |how| loss(&fitted(&m, &data, how, 1).0, &data);
                let (all, mse, clip) = (of(Weights::MinMax), of(Weights::Mse), loss(&clipped, &data));
                assert!(clip < 0.97 * all && clip < mse, "{:?} {blocks}: minmax {all} mse {mse} clip {clip}", node.op);
                assert_eq!(fitted(&m, &data, Weights::Clip(HOW), 3).0.quantizers, clipped.quantizers);
                let whole = fitted(&m, &data, Weights::Clip(Clip { grid: 1, ..HOW }), 1).0;
                assert_eq!(whole.quantizers, fitted(&m, &data, Weights::MinMax, 1).0.quantizers, "one step is the whole range");
            }
        }
    }

    /// Of blocks of one weight no range holds zero: both ends are cut.
    #[test]
    fn ranges_without_zero_are_cut_at_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let scheme = Scheme { blocks: Shared::block(0, 1), ..Scheme::int(3, false) };
        let (m, data) = model(dir.path(), Node::new(Op::MatMul, "n"), &[4, 8], &[8, 6], scheme);
        let (clipped, _) = fitted(&m, &data, Weights::Clip(HOW), 1);
        assert!(loss(&clipped, &data) <= loss(&fitted(&m, &data, Weights::MinMax, 1).0, &data));
    }

    /// Sums of products and sums over places are one number.
    #[test]
    fn products_stand_for_places() {
        let (n, outs) = (6, 4);
        let seen = |places: usize| Seen { columns: noise(n * places, 0.732_050_807_6), places };
        let (x, y) = (noise(n * outs, 0.618_033_988_7), noise(n * outs, 0.236_067_977_5));
        let part = |seen: &[Seen]| {
            let (met, products) = met(seen, 0, &[0, 1, 2, 3, 4, 5]);
            (
                Sums {
                    parts: vec![Part { outs: 0..outs, ins: (0..n).collect(), blocks: (0..4).collect(), met, products }],
                    blocks: 4,
                    ins: n,
                    outs,
                    by_row: true,
                },
                products,
            )
        };
        for places in [n, n + 1, 40] {
            let (sums, products) = part(&[seen(places)]);
            assert_eq!(products, places > n);
            let scale = if products { places as f64 } else { 1.0 };
            for (o, loss) in sums.losses(&x, &y).into_iter().enumerate() {
                let error = |p: usize| (0..n).map(|c| (x[o * n + c] - y[o * n + c]) as f64 * seen(places).columns[c * places + p] as f64).sum::<f64>();
                let want = (0..places).map(|p| error(p).powi(2)).sum::<f64>();
                assert!((loss * scale - want).abs() < 1e-5 * want, "{places} places, output {o}: {loss} {want}");
            }
        }
    }

    /// x → q, k, v; Softmax(q·kᵀ)·v → y: queries and keys keep their whole ranges, values do not.
    #[test]
    fn queries_and_keys_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut m, data) = model(dir.path(), Node::new(Op::MatMul, "n"), &[4, 48], &[48, 8], Scheme { blocks: Shared::channel(1), ..Scheme::int(3, false) });
        let g = &mut m.graph;
        let (x, v) = (g.inputs[0], g.outputs[0]);
        let names = ["qw", "kw", "q", "k", "kt", "s", "scaled", "p", "out"];
        let [qw, kw, q, k, kt, s, scaled, p, out] = names.map(|n| g.add_value(n));
        for (name, weight, y) in [("query", qw, q), ("key", kw, k)] {
            let id = m.quantizers.add(name, Scheme { blocks: Shared::channel(1), ..Scheme::int(3, false) });
            let c = g.add_constant(&format!("{name}_w"), Tensor::of_f32(&[48, 8], noise(48 * 8, 0.302_775_637_7)));
            g.add_node(Node::fake_quant(id, name), &[Some(c)], &[Some(weight)]);
            g.add_node(Node::new(Op::MatMul, name), &[Some(x), Some(weight)], &[Some(y)]);
        }
        let root = g.add_constant("root", Tensor::of_f32(&[], vec![0.35]));
        g.add_node(Node::new(Op::Transpose, "t").with("perm", vec![1i64, 0]), &[Some(k)], &[Some(kt)]);
        g.add_node(Node::new(Op::MatMul, "scores"), &[Some(q), Some(kt)], &[Some(s)]);
        g.add_node(Node::new(Op::Mul, "scale"), &[Some(s), Some(root)], &[Some(scaled)]);
        g.add_node(Node::new(Op::Softmax, "softmax"), &[Some(scaled)], &[Some(p)]);
        g.add_node(Node::new(Op::MatMul, "weighed"), &[Some(p), Some(v)], &[Some(out)]);
        g.outputs = vec![out];
        let (clipped, notes) = fitted(&m, &data, Weights::Clip(HOW), 1);
        let declined: Vec<&str> = notes.list().iter().map(|n| n.about.as_str()).collect();
        assert_eq!(declined, ["query", "key"]);
        let whole = fitted(&m, &data, Weights::MinMax, 1).0;
        let same: Vec<bool> = m.quantizers.ids().map(|q| clipped.quantizers[q] == whole.quantizers[q]).collect();
        assert_eq!(same, [false, true, true]);
    }

    #[test]
    fn what_it_cannot_do_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (m, data) = model(dir.path(), Node::new(Op::MatMul, "n"), &[4, 8], &[8, 6], Scheme { blocks: Shared::block(0, 4), ..Scheme::int(4, false) });
        let none = fit_weights(&mut m.clone(), Weights::Clip(HOW), &BTreeSet::new(), None, 1, &mut Notes::of("calibrate"));
        assert!(none.unwrap_err().to_string().contains("--data"));
        let mut two = m.clone();
        let (x, wq) = (two.graph.inputs[0], two.graph.find_value("wq").unwrap());
        let z = two.graph.add_value("z");
        two.graph.add_node(Node::new(Op::MatMul, "other"), &[Some(x), Some(wq)], &[Some(z)]);
        let (_, notes) = fitted(&two, &data, Weights::Clip(HOW), 1);
        assert!(notes.list()[0].text.contains("several nodes read it"), "{notes:?}");
        let (flat, data) = model(dir.path(), Node::new(Op::MatMul, "n"), &[4, 8], &[8, 6], Scheme { blocks: Shared::flat(10), ..Scheme::int(4, false) });
        let all: Vec<usize> = (0..20).collect();
        let cut = fit_weights(&mut flat.clone(), Weights::Clip(HOW), &BTreeSet::new(), Some((&data, &all)), 1, &mut Notes::of("calibrate"));
        assert!(cut.unwrap_err().to_string().contains("cut the inputs alike"));
    }
}
