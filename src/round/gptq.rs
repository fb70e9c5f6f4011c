//! Rounds the weights of a layer one input after the other, and each makes up for what those before it lost: of `‖(W − Q)·X‖²` over the samples, with
//! `H = X·Xᵀ = L·Lᵀ` and inputs in descending order of their energy, `Q_k = round(W_k + Σ_j (W_j − Q_j)·L_jk / L_kk)` over the `j` before.
//! Source: Frantar et al. 2022, GPTQ; in the form of Chee et al. 2023, QuIP, section 3. Codes and scales stay those of the quantizer.
//! Needs: samples; integer codes. Means count little, since biases can restore them. A row that nearest codes serve better keeps these.
//! Declines, for nearest codes: weights that several layers read, ConvTranspose, formats other than integers.

use super::biases::fake_of;
use super::factor::Factor;
use super::grid::{Grid, chosen};
use super::inputs::{Gathered, Group, Reading, SecondMoments, before_quantizers};
use super::samples::{same_shapes, walks, within};
use crate::data::Dataset;
use crate::engine::{Patches, RunnerOptions};
use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, NodeId, Op, Site, ValueId};
use crate::math::{Matrix, multiply, wide};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant;
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What the method was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    /// Of the mean energy of the inputs, what is added to each; `None`: 0.01, and more where few places were seen.
    pub damping: Option<f64>,
    /// Samples at most.
    pub samples: usize,
    /// Multiply-adds that a layer may take at most.
    pub work: f64,
    /// Bytes that the kept tensors of a walk may take.
    pub memory: u64,
    pub threads: usize,
}

/// What is added to the energy of each input, of their mean; and, where samples hold fewer places than are wanted, the share of these that the numbers of a
/// sum are times this, if that is more: second moments of few places fit these alone.
const DAMPING: (f64, f64) = (0.01, 0.5);
/// Places that are looked at for each number of a sum, and at least in all.
const PLACES: (usize, usize) = (4, 2048);
/// Rows that are rounded together, and inputs whose errors the others are told of at once (the paper's lazy updates).
const ROWS: usize = 16;
const BLOCK: usize = 32;
/// Errors of an input: of each row under its codes, and under its nearest ones.
const LANES: usize = 2 * ROWS;

/// A layer and the FakeQuant that holds its weight.
struct Layer {
    node: NodeId,
    fake: NodeId,
    /// What it reads.
    x: ValueId,
    reading: Reading,
    outs: usize,
    /// Whether the numbers of one sum lie side by side.
    by_row: bool,
}

/// Finds codes for all weights that allow it; the others are left for nearest codes. The float model is walked through unless all that its layers read has
/// been gathered before.
pub fn gptq(model: &mut Model, how: &Gptq, data: Option<(&Dataset, &[usize])>, gathered: Option<&Gathered>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let (data, samples) = data.ok_or_else(|| Error::usage("gptq weighs errors by sample inputs: give --data"))?;
    let mut layers = Vec::new();
    let mut refused: BTreeMap<&str, (String, Vec<String>)> = BTreeMap::new();
    for (id, node) in model.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Conv | Op::ConvTranspose | Op::Gemm | Op::MatMul)) {
        match layer(model, id, how.work) {
            Some(Ok(layer)) => layers.push(layer),
            Some(Err(why)) => {
                let (alike, text) = match why {
                    Refusal::Form(text) => (text, text.to_string()),
                    Refusal::Work(text) => ("work", text),
                };
                refused.entry(alike).or_insert((text, Vec::new())).1.push(node.name.clone());
            }
            None => {}
        }
    }
    for (text, names) in refused.values() {
        notes.declined_alike(names, |more| format!("nearest codes{more}: {text}"));
    }
    if layers.is_empty() {
        return Ok(notes);
    }
    progress.begin("round", layers.len() as u64);
    let gathered = gathered.filter(|g| layers.iter().all(|l| g.of(&l.reading).is_some()));
    let (count, mut walks) = match gathered {
        Some(gathered) => (gathered.samples, Vec::new()),
        None => {
            let stops: Vec<NodeId> = layers.iter().filter_map(|l| model.graph.value(l.x).producer()).map(|(n, _)| n).collect();
            let groups = within(model, data, same_shapes(data, &samples[..samples.len().min(how.samples)])?, &stops, how.memory)?;
            let options = RunnerOptions { float: true, ..RunnerOptions::default() };
            (groups.iter().map(Vec::len).sum(), walks(model, data, &groups, options, how.threads)?)
        }
    };
    let (mut kept, mut rows, mut found) = (0, 0, Vec::new());
    for layer in &layers {
        crate::interrupt::check()?;
        let name = || model.graph.node(layer.node).name.clone();
        let quantizer = &model.quantizers[model.quantizers.root(model.graph.node(layer.fake).quantizer().expect("it is a FakeQuant"))];
        let walked;
        let moments = match gathered.and_then(|g| g.of(&layer.reading)) {
            Some(moments) => moments,
            None => {
                let mut x: Vec<&Tensor> = Vec::with_capacity(count);
                for walk in &mut walks {
                    x.extend(match model.graph.value(layer.x).producer() {
                        Some((producer, _)) => &*walk.to(producer, layer.x).at(name)?,
                        None => walk.kept(layer.x).ok_or_else(|| Error::failed("reads nothing").at(name()))?,
                    });
                }
                walked = SecondMoments::of(&layer.reading, &x)?;
                &walked
            }
        };
        let weight = &model.graph.node(layer.fake).input(0).and_then(|v| model.graph.constant(v)).expect("found before").tensor;
        let grid = Grid::of(quantizer, weight.shape()).at(name)?;
        let w = weight.to_f32()?;
        let (values, better) = round_layer(layer, &w, &grid, moments, how.damping);
        (kept, rows) = (kept + layer.outs - better, rows + layer.outs);
        let params = quantizer.params.as_ref().expect("a grid has parameters");
        found.push((Site::of(layer.fake), quant::quantize(&values, weight.shape(), &quantizer.scheme, params).at(name)?));
        progress.tick(1);
    }
    progress.end();
    model.codes.extend(found);
    notes.changed(
        "",
        format!(
            "the weights of {} layers rounded so that errors make up for each other, over {count} samples; {kept} of {rows} rows keep their nearest codes",
            layers.len()
        ),
    );
    Ok(notes)
}

/// Why a layer is not taken.
enum Refusal {
    Form(&'static str),
    Work(String),
}

/// A layer whose weight is one constant under a quantizer that has no codes yet; or why it is not taken.
fn layer(model: &Model, id: NodeId, work: f64) -> Option<std::result::Result<Layer, Refusal>> {
    let g = &model.graph;
    let (fake, linear) = match chosen(model, id)? {
        Ok(found) => found,
        Err(why) => return Some(Err(Refusal::Form(why))),
    };
    let outs = g.constant(g.node(fake).input(0)?)?.tensor.shape()[linear.out_axis];
    let x = g.node(id).input(linear.input_slot)?;
    Some(reading(model, &linear, fake, work)?.map(|reading| Layer { node: id, fake, x, reading, outs, by_row: linear.out_axis == 0 }))
}

/// How a layer reads its input, so that all takes at most `work`; or why it is not taken. Its weight is a constant under the FakeQuant.
fn reading(model: &Model, linear: &Linear, fake: NodeId, work: f64) -> Option<std::result::Result<Reading, Refusal>> {
    let g = &model.graph;
    let (node, shape) = (g.node(linear.node), g.constant(g.node(fake).input(0)?)?.tensor.shape());
    let Some(patches) = Patches::of(node, linear, shape) else { return Some(Err(Refusal::Form("its weights do not meet its input row by row"))) };
    let x = before_quantizers(g, node.input(linear.input_slot)?);
    Some(places(patches.width(), patches.groups, shape[linear.out_axis], work).map(|places| Reading { x, patches, places }).map_err(Refusal::Work))
}

/// How all layers read their inputs whose weights may be rounded so.
pub(super) fn readings(model: &Model, how: &Gptq) -> Vec<Reading> {
    let g = &model.graph;
    let one = |id| {
        let linear = Linear::of(g, id).filter(|l| l.constant)?;
        reading(model, &linear, fake_of(model, linear.weight)?, how.work)?.ok()
    };
    g.nodes().filter_map(|(id, _)| one(id)).collect()
}

/// Places over which a layer's second moments are summed so that these, their factor and its `outs` rows take at most `work` multiply-adds; or why it
/// cannot be: fewer places than the `n` numbers of a sum say too little.
fn places(n: usize, groups: usize, outs: usize, work: f64) -> std::result::Result<usize, String> {
    let (inputs, groups) = (n as f64, groups as f64);
    let each = groups * inputs * inputs / 2.0;
    let others = groups * inputs.powi(3) / 6.0 + inputs * inputs * outs as f64;
    let wanted = (PLACES.0 * n).max(PLACES.1);
    let (least, affordable) = (others + each * inputs, ((work - others) / each).max(0.0));
    if affordable < inputs {
        return Err(format!("sums over {n} inputs take {:.1} billion multiply-adds, and `work` allows {:.1}", least / 1e9, work / 1e9));
    }
    Ok(wanted.min(affordable as usize))
}

/// The values that stand for a layer's weights, and how many rows are better so than under their nearest codes.
fn round_layer(layer: &Layer, w: &[f32], grid: &Grid, moments: &SecondMoments, damping: Option<f64>) -> (Vec<f32>, usize) {
    let Reading { patches, places, .. } = &layer.reading;
    let n = patches.width();
    let per_group = layer.outs / patches.groups;
    let at = |o: usize, c: usize| if layer.by_row { o * n + c } else { c * layer.outs + o };
    let one = |(group, sums): (usize, &Group)| {
        let factor = Factor::of(sums, moments.count, damping.unwrap_or_else(|| wise(n, moments.count, *places)));
        let rows: Vec<usize> = (group * per_group..(group + 1) * per_group).collect();
        rows.par_chunks(ROWS).map(|rows| round_rows(rows, &factor, w, grid, &at)).collect::<Vec<_>>()
    };
    let found: Vec<_> = moments.groups.par_iter().enumerate().map(one).collect();
    let (mut values, mut better) = (w.to_vec(), 0);
    for (o, row, won) in found.into_iter().flatten().flatten() {
        better += won as usize;
        row.into_iter().enumerate().for_each(|(c, v)| values[at(o, c)] = v);
    }
    (values, better)
}

/// The damping of sums over `n` numbers, of which so many places were seen and so many were wanted.
fn wise(n: usize, seen: usize, wanted: usize) -> f64 {
    if seen < wanted { DAMPING.0.max(DAMPING.1 * n as f64 / seen.max(1) as f64) } else { DAMPING.0 }
}

/// `owed + Σ l · e`, one after the other.
fn add(owed: &[f32], l: &[f32], e: &[[f32; LANES]]) -> [f32; LANES] {
    let mut sums: [f32; LANES] = owed.try_into().expect("it has that length");
    wide(
        #[inline(always)]
        move || {
            for (l, e) in l.iter().zip(e) {
                for i in 0..LANES {
                    sums[i] += l * e[i];
                }
            }
            sums
        },
    )
}

/// Some rows at once: by row its index, its values, and whether they are better than nearest ones.
fn round_rows(rows: &[usize], factor: &Factor, w: &[f32], grid: &Grid, at: &impl Fn(usize, usize) -> usize) -> Vec<(usize, Vec<f32>, bool)> {
    let n = factor.order.len();
    // Errors so far, of these codes and of the nearest, side by side; and what those of earlier blocks mean for this one.
    let mut errors = vec![0f32; n * LANES];
    let mut owed = vec![0f32; BLOCK * LANES];
    let mut losses = [0f64; LANES];
    let mut values = vec![vec![0f32; n]; 2 * rows.len()];
    for from in (0..n).step_by(BLOCK).rev() {
        let to = (from + BLOCK).min(n);
        if to < n {
            let known = Matrix::new(&errors[to * LANES..], n - to, LANES);
            multiply(&mut owed, LANES, Matrix::strided(&factor.columns[from * n + to..], to - from, n - to, n), known, false);
        }
        for k in (from..to).rev() {
            let owed = add(&owed[(k - from) * LANES..][..LANES], &factor.columns[k * n + k + 1..k * n + to], errors[(k + 1) * LANES..].as_chunks().0);
            let c = factor.order[k];
            let mut wanted = [[0f32; ROWS]; 2];
            let mut places = [0; ROWS];
            for (i, &o) in rows.iter().enumerate() {
                let x = w[at(o, c)];
                (places[i], wanted[0][i], wanted[1][i]) = (at(o, c), x + owed[i], x);
            }
            let x = wanted[1];
            for (side, wanted) in wanted.iter().enumerate() {
                let q = grid.nearest(&places, wanted);
                let from = side * ROWS;
                for i in 0..ROWS {
                    errors[k * LANES + from + i] = x[i] - q[i];
                    losses[from + i] += factor.pivots[k] * ((x[i] - q[i] + owed[from + i]) as f64).powi(2);
                }
                values[side * rows.len()..].iter_mut().zip(&q[..rows.len()]).for_each(|(values, q)| values[c] = *q);
            }
        }
    }
    let mut nearest = values.split_off(rows.len());
    let pick = |(i, o): (usize, &usize)| {
        let better = losses[i] < losses[ROWS + i];
        (*o, std::mem::take(if better { &mut values[i] } else { &mut nearest[i] }), better)
    };
    rows.iter().enumerate().map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Type};
    use crate::pass::Silent;
    use crate::quant::{Blocks, Format, Params, QuantizerId, Scheme};
    use crate::round::round_nearest;
    use crate::tensor::DType;

    const N: usize = 12;

    /// x[1,12] → FakeQuant → Gemm(w) → y, and its samples, whose numbers go together.
    fn model(dir: &std::path::Path, scheme: Scheme) -> (Model, QuantizerId, Dataset, Vec<f32>) {
        let noise = |i: usize, k: f64| (i as f64 * k).fract() as f32 - 0.5;
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let (qx, qw) = (m.quantizers.add("x", Scheme::int(8, true)), m.quantizers.add("w", scheme));
        m.quantizers[qx].params = Some(Params::tensor(0.1, None));
        let w: Vec<f32> = (0..N * 5).map(|i| noise(i + 1, 0.618_033_988_7)).collect();
        let shape = [N, 5];
        m.quantizers[qw].params = Some(quant::fit(&w, &shape, &m.quantizers[qw].scheme).unwrap());
        let g = &mut m.graph;
        let mut typed = |name: &str, n: usize| {
            let v = g.add_value(name);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(n)]) };
            v
        };
        let [x, xq, y] = [("x", N), ("xq", N), ("y", 5)].map(|(name, n)| typed(name, n));
        let (c, wq) = (g.add_constant("w", Tensor::of_f32(&shape, w.clone())), g.add_value("wq"));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(qx, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::fake_quant(qw, "fw"), &[Some(c)], &[Some(wq)]);
        g.add_node(Node::new(Op::Gemm, "gemm"), &[Some(xq), Some(wq)], &[Some(y)]);
        // What all numbers of a sample share is larger than what each has of its own.
        let samples: Vec<f32> = (0..40 * N).map(|i| 3.0 * noise(i / N + 1, 0.414_213_562_4) + noise(i + 1, 0.732_050_807_6)).collect();
        let path = dir.join("x.npy");
        std::fs::write(&path, npy("<f4", false, &[40, N], &samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Known(1), Dim::Known(N)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        (m, qw, data, samples)
    }

    /// Squared error of the layer's outputs over the samples, apart from their means.
    fn loss(m: &Model, q: QuantizerId, samples: &[f32]) -> f64 {
        let fake = m.graph.nodes().find(|(_, n)| n.name == "fw").unwrap().0;
        let w = m.graph.constant(m.graph.node(fake).input(0).unwrap()).unwrap().tensor.to_f32().unwrap().into_owned();
        let row = &m.quantizers[q];
        let stands = quant::dequantize(&m.codes[&Site::of(fake)], &row.scheme, row.params.as_ref().unwrap()).unwrap();
        let error = |s: &[f32], o: usize| (0..N).map(|c| s[c] as f64 * (w[c * 5 + o] - stands[c * 5 + o]) as f64).sum::<f64>();
        let of = |o: usize| {
            let e: Vec<f64> = samples.chunks_exact(N).map(|s| error(s, o)).collect();
            let mean = e.iter().sum::<f64>() / e.len() as f64;
            e.iter().map(|e| (e - mean).powi(2)).sum::<f64>()
        };
        (0..5).map(of).sum()
    }

    #[test]
    fn errors_make_up_for_each_other_under_every_granularity() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<usize> = (0..40).collect();
        for blocks in [Blocks::tensor(), Blocks::channel(1), Blocks::block(0, 4)] {
            for signed in [true, false] {
                let (m, q, data, samples) = model(dir.path(), Scheme { blocks: blocks.clone(), ..Scheme::int(4, signed) });
                let mut plain = m.clone();
                round_nearest(&mut plain).unwrap();
                let how = Gptq { damping: Some(0.01), samples: 40, work: 1e9, memory: 1 << 20, threads: 1 };
                let (mut one, mut two) = (m.clone(), m.clone());
                let notes = gptq(&mut one, &how, Some((&data, &all)), None, &Silent).unwrap();
                gptq(&mut two, &Gptq { threads: 3, ..how }, Some((&data, &all)), None, &Silent).unwrap();
                assert_eq!(one.codes, two.codes);
                assert!(notes.list().iter().any(|n| n.text.contains("the weights of 1 layers")), "{notes:?}");
                let (nearest, found) = (loss(&plain, q, &samples), loss(&one, q, &samples));
                assert!(found < 0.8 * nearest, "{blocks} {signed}: {found} {nearest}");
            }
        }
    }

    #[test]
    fn samples_of_every_length_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (mut m, _, _, samples) = model(dir.path(), Scheme { blocks: Blocks::channel(1), ..Scheme::int(4, true) });
        for v in m.graph.inputs.clone().into_iter().chain(m.graph.nodes().filter_map(|(_, n)| n.output(0)).collect::<Vec<_>>()) {
            m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
        }
        let folder = dir.path().join("few");
        std::fs::create_dir(&folder).unwrap();
        let mut rest = &samples[..10 * N];
        for (i, rows) in [3, 2, 2, 3].into_iter().enumerate() {
            let bytes: Vec<u8> = rest[..rows * N].iter().flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(folder.join(format!("{i}.npy")), npy("<f4", false, &[1, rows, N], &bytes)).unwrap();
            rest = &rest[rows * N..];
        }
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("n".into()), Dim::Known(N)]) };
        let data = Dataset::open(folder.to_str().unwrap(), &[input], &Default::default()).unwrap();
        // A walk keeps a row as it comes and as it is rounded. There are ten rows, three of them in the fourth sample; and memory for eight.
        for (memory, over) in [(1 << 20, 4), (8 * 2 * 4 * N as u64, 3)] {
            let how = Gptq { damping: None, samples: 40, work: 1e9, memory, threads: 1 };
            let notes = gptq(&mut m.clone(), &how, Some((&data, &[0, 1, 2, 3])), None, &Silent).unwrap();
            assert!(notes.list().iter().any(|n| n.text.contains(&format!("over {over} samples"))), "{notes:?}");
        }
    }

    /// Sums of products, and means of zero.
    fn group(products: &[f64], n: usize) -> Group {
        Group { products: products.iter().map(|s| *s as f32).collect(), numbers: vec![0.0; n] }
    }

    /// Inputs that have nothing to do with each other, of which half as many places were seen as there are.
    #[test]
    fn what_few_places_seem_to_share_is_damped() {
        let (n, places) = (64, 32);
        let x = |p: usize, i: usize| (((p * n + i + 1) as f64 * 0.618_033_988_7).fract() + ((p * n + i + 1) as f64 * 0.414_213_562_4).fract() - 1.0) * 3.0;
        let sums: Vec<f64> = (0..n * n).map(|i| (0..places).map(|p| x(p, i / n) * x(p, i % n)).sum()).collect();
        let w: Vec<f32> = (0..n * 8).map(|i| ((i + 1) as f32 * 0.732_051).fract() * 4.0 - 2.0).collect();
        let grid = Grid { step: vec![0.3; n * 8], offset: vec![0.0; n * 8], codes: (-8.0, 7.0) };
        let lost = |damping| {
            let factor = Factor::of(&group(&sums, n), places, damping);
            let found = round_rows(&[0, 1, 2, 3, 4, 5, 6, 7], &factor, &w, &grid, &|o, c| o * n + c);
            found
                .iter()
                .flat_map(|(o, row, _)| row.iter().enumerate().map(move |(c, q)| (o, c, q)))
                .map(|(o, c, q)| ((q - w[o * n + c]) as f64).powi(2))
                .sum::<f64>()
        };
        let (free, damped) = (lost(DAMPING.0), lost(wise(n, places, 2048)));
        assert_eq!((wise(n, places, 2048), wise(n, 2048, 2048)), (1.0, DAMPING.0));
        assert!(damped < 0.5 * free, "{damped} {free}");
    }

    #[test]
    fn what_it_cannot_round_is_left_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (mut m, q, data, _) = model(dir.path(), Scheme::int(8, true));
        m.quantizers[q].scheme.format = Format::Float { exponent: 4, mantissa: 3, specials: crate::quant::Specials::Fn };
        let how = Gptq { damping: Some(0.01), samples: 8, work: 1e9, memory: 1 << 20, threads: 1 };
        let notes = gptq(&mut m, &how, Some((&data, &[0, 1])), None, &Silent).unwrap();
        assert!(m.codes.is_empty() && notes.list().iter().any(|n| n.about == "gemm" && n.text.contains("no evenly spaced integers")), "{notes:?}");
        assert!(gptq(&mut m, &how, None, None, &Silent).unwrap_err().to_string().contains("--data"));
    }

    #[test]
    fn work_limits_places_and_then_layers() {
        assert_eq!(places(100, 1, 10, 1e12), Ok(2048));
        assert_eq!(places(1000, 1, 10, 1e12), Ok(4000));
        let others = 1e9 / 6.0 + 1e7;
        assert_eq!(places(1000, 1, 10, others + 0.5e6 * 1500.5), Ok(1500));
        let why = places(1000, 1, 10, others + 0.5e6 * 999.0).unwrap_err();
        assert_eq!(why, "sums over 1000 inputs take 0.7 billion multiply-adds, and `work` allows 0.7");
        let dir = tempfile::tempdir().unwrap();
        let (mut m, _, data, _) = model(dir.path(), Scheme::int(8, true));
        let notes =
            gptq(&mut m, &Gptq { damping: Some(0.01), samples: 8, work: 1.0, memory: 1 << 20, threads: 1 }, Some((&data, &[0, 1])), None, &Silent).unwrap();
        assert!(m.codes.is_empty() && notes.list().iter().any(|n| n.about == "gemm" && n.text.contains("`work` allows")), "{notes:?}");
    }

    /// Rows of a factor, rounded to whole numbers a third apart.
    fn rounded(sums: Vec<f64>, n: usize, damping: f64, outs: usize) -> (Vec<f32>, Vec<Vec<f32>>) {
        let w: Vec<f32> = (0..n * outs).map(|i| ((i + 1) as f32 * 0.618_034).fract() * 4.0 - 2.0).collect();
        let grid = Grid { step: vec![0.3; n * outs], offset: vec![0.0; n * outs], codes: (-8.0, 7.0) };
        let factor = Factor::of(&group(&sums, n), 1, damping);
        let rows: Vec<usize> = (0..outs).collect();
        let found = round_rows(&rows, &factor, &w, &grid, &|o, c| o * n + c);
        (w.iter().enumerate().map(|(i, x)| grid.nearest(&[i], &[*x])[0]).collect(), found.into_iter().map(|f| f.1).collect())
    }

    #[test]
    fn inputs_that_have_nothing_to_do_with_each_other_get_nearest_codes() {
        let n = 200;
        let diagonal: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 + (i % 7) as f64 } else { 0.0 }).collect();
        let (nearest, found) = rounded(diagonal, n, 0.01, 3);
        assert_eq!(found.concat(), nearest);
        // So do those whose damping drowns all they share; less of it does not.
        let shared: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 2.0 } else { 1.0 }).collect();
        assert_eq!(rounded(shared.clone(), n, 1e9, 3).1.concat(), nearest);
        assert_ne!(rounded(shared, n, 0.01, 3).1.concat(), nearest);
    }

    #[test]
    fn blocks_of_inputs_change_nothing_but_the_order_of_sums() {
        let n = 300;
        let a: Vec<f64> = (0..n * n).map(|i| (i as f64 * 0.414_213_562_4).fract() - 0.5).collect();
        let sums: Vec<f64> = (0..n * n).map(|i| (0..n).map(|k| a[i / n * n + k] * a[i % n * n + k]).sum::<f64>()).collect();
        let (_, found) = rounded(sums.clone(), n, 0.1, 1);
        let factor = Factor::of(&group(&sums, n), 1, 0.1);
        let w: Vec<f64> = (0..n).map(|i| (((i + 1) as f32 * 0.618_034).fract() * 4.0 - 2.0) as f64).collect();
        let mut q = vec![0f64; n];
        for k in (0..n).rev() {
            let owed: f64 = (k + 1..n).map(|j| factor.columns[k * n + j] as f64 * (w[factor.order[j]] - q[factor.order[j]])).sum();
            q[factor.order[k]] = ((w[factor.order[k]] + owed) / 0.3f32 as f64).round_ties_even().clamp(-8.0, 7.0) * 0.3f32 as f64;
        }
        let differ = q.iter().zip(&found[0]).filter(|(a, b)| (*a - **b as f64).abs() > 1e-3).count();
        assert_eq!(differ, 0);
    }
}
