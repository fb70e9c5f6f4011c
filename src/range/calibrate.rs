//! Gathers ranges and turns them into scales: one pass over the data for activations, none for weights.
//! Activations are watched on the float model, per quantizer: every tensor that shares it adds to its range.
//! Needs: a placed model; data as soon as an activation has no fixed range. Declines: a tensor that never carried a value.

use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, over_samples};
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId, ValueId};
use crate::note::Notes;
use crate::observe::{Extremes, Histogram};
use crate::pass::Progress;
use crate::quant::{self, QuantizerId, Timing};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// How a range is taken from the values seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// From the smallest to the largest value.
    MinMax,
    /// Leaves out this share in percent of the values at either end: 99.99 keeps all but one in ten thousand. Read from a histogram, exact to one part in 128.
    Percentile(f64),
}

/// What the `calibrate` step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibrate {
    pub activations: Method,
    pub weights: Method,
    pub threads: usize,
}

/// Gives every static quantizer without parameters its scale and zero point, then settles what follows from others.
pub fn calibrate(model: &mut Model, how: &Calibrate, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("calibrate");
    fit_weights(model, how.weights)?;
    let watched = watched_values(model);
    if !watched.is_empty() {
        let (data, samples) = data.ok_or_else(|| Error::usage("activations need sample inputs to find their ranges: give --data"))?;
        let seen = watch(model, how, &watched, data, samples, progress)?;
        fit_activations(model, how.activations, &watched, seen, &mut notes)?;
    }
    super::settle(model, &mut notes)?;
    notes.changed("", format!("{} quantizers have their scales", model.quantizers.ids().filter(|&q| model.quantizers[q].params.is_some()).count()));
    Ok(notes)
}

/// Min-max per block over every constant that shares the quantizer.
fn fit_weights(model: &mut Model, method: Method) -> Result<()> {
    if let Method::Percentile(_) = method {
        return Err(Error::usage("calibrate.weights.method: a percentile is for activations; weights know minmax"));
    }
    let mut ranges: BTreeMap<QuantizerId, (Vec<f32>, Vec<f32>)> = BTreeMap::new();
    let open: Vec<_> = model
        .constant_sites()
        .into_iter()
        .map(|(node, id)| (node, model.quantizers.root(id)))
        .filter(|(_, id)| model.quantizers[*id].params.is_none())
        .collect();
    let shared: &Model = model;
    let found = open.par_iter().map(|&(node, id)| weight_ranges(shared, node, id)).collect::<Result<Vec<_>>>()?;
    for (&(_, id), (lo, hi)) in open.iter().zip(found) {
        let quantizer = &model.quantizers[id];
        match ranges.get_mut(&id) {
            None => {
                ranges.insert(id, (lo, hi));
            }
            Some((l, h)) if l.len() == lo.len() => {
                l.iter_mut().zip(lo).for_each(|(a, b)| *a = a.min(b));
                h.iter_mut().zip(hi).for_each(|(a, b)| *a = a.max(b));
            }
            Some(_) => return Err(Error::failed("two constants of different shapes share one quantizer").at(&quantizer.name)),
        }
    }
    // A constant that shares its quantizer with an activation (Concat with a constant) waits for the data.
    let shared: std::collections::BTreeSet<_> = watched_values(model).into_iter().map(|(_, q)| q).collect();
    for (id, (lo, hi)) in ranges {
        if !shared.contains(&id) {
            let q = &mut model.quantizers[id];
            q.params = Some(quant::fit_range(&q.scheme, &lo, &hi).at(|| &q.name)?);
        }
    }
    Ok(())
}

/// Lowest and highest weight of each block of one constant.
fn weight_ranges(model: &Model, node: NodeId, id: QuantizerId) -> Result<(Vec<f32>, Vec<f32>)> {
    crate::interrupt::check()?;
    let quantizer = &model.quantizers[id];
    let constant = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v));
    let tensor = &constant.ok_or_else(|| Error::failed("reads no constant")).at(|| &quantizer.name)?.tensor;
    let x = tensor.to_f32().at(|| &quantizer.name)?;
    let layout = quantizer.scheme.blocks.layout(tensor.shape()).at(|| &quantizer.name)?;
    let (lo, hi) = quant::block_ranges(&x, tensor.shape(), &layout);
    if lo.iter().any(|l| l.is_nan()) {
        let i = x.iter().position(|v| !v.is_finite()).unwrap_or_default();
        return Err(Error::usage(format!("weight {}: element {i} is {}; a model with such weights cannot be quantized", quantizer.name, x[i])));
    }
    Ok((lo, hi))
}

/// Values that flow into FakeQuants whose static quantizer has no parameters yet.
fn watched_values(model: &Model) -> Vec<(ValueId, QuantizerId)> {
    let g = &model.graph;
    let mut list: Vec<(ValueId, QuantizerId)> = g
        .nodes()
        .filter_map(|(_, node)| {
            let q = model.quantizers.root(node.quantizer()?);
            let x = node.input(0)?;
            let row = &model.quantizers[q];
            (row.params.is_none() && row.scheme.timing == Timing::Static && g.constant(x).is_none()).then_some((x, q))
        })
        .collect();
    list.sort();
    list.dedup();
    list
}

/// What was seen at one value.
enum Seen {
    Extremes(Vec<Extremes>),
    Histogram(Box<Histogram>),
}

/// Runs the float model over the samples and watches the values. Per-tensor quantizers are watched as the method needs, per-channel ones by extremes.
fn watch(model: &Model, how: &Calibrate, watched: &[(ValueId, QuantizerId)], data: &Dataset, samples: &[usize], progress: &dyn Progress) -> Result<Vec<Seen>> {
    let outputs: Vec<ValueId> = watched.iter().map(|(v, _)| *v).collect();
    let plans = Plans::new(model, &outputs, RunnerOptions { float: true, ..RunnerOptions::default() });
    let mut total: Vec<Option<Seen>> = watched.iter().map(|_| None).collect();
    progress.begin("calibrate", samples.len() as u64);
    over_samples(
        samples.len(),
        how.threads,
        || Ok(Running::default()),
        |running, i| {
            let sample = data.sample(samples[i])?;
            let tensors = plans.run(running, &sample, &model.quantizers).at(|| format!("sample {}", samples[i]))?;
            let see = |(t, (v, q)): (&crate::tensor::Tensor, &(ValueId, QuantizerId))| -> Result<Seen> {
                let x = t.to_f32()?;
                if let Some(k) = x.iter().position(|v| v.is_nan()) {
                    return Err(Error::failed(format!(
                        "sample {}: tensor {} is NaN at element {k} in the float model",
                        samples[i],
                        model.graph.value(*v).name
                    )));
                }
                let scheme = &model.quantizers[*q].scheme;
                if scheme.blocks.is_tensor() {
                    if let Method::Percentile(_) = how.activations {
                        let mut h = Histogram::default();
                        h.observe(&x);
                        return Ok(Seen::Histogram(Box::new(h)));
                    }
                    let mut e = Extremes::default();
                    e.observe(&x);
                    return Ok(Seen::Extremes(vec![e]));
                }
                let layout = scheme.blocks.layout(t.shape())?;
                let (lo, hi) = quant::block_ranges(&x, t.shape(), &layout);
                Ok(Seen::Extremes(lo.into_iter().zip(hi).map(|(lo, hi)| Extremes { lo, hi }).collect()))
            };
            tensors.iter().zip(watched).map(see).collect::<Result<Vec<_>>>()
        },
        |_, seen: Vec<Seen>| {
            for (have, new) in total.iter_mut().zip(seen) {
                merge(have, new)?;
            }
            progress.tick(1);
            Ok(())
        },
    )?;
    progress.end();
    total.into_iter().map(|s| s.ok_or_else(|| Error::usage("there is no sample to calibrate on"))).collect()
}

fn merge(have: &mut Option<Seen>, new: Seen) -> Result<()> {
    match (have, new) {
        (have @ None, new) => *have = Some(new),
        (Some(Seen::Histogram(a)), Seen::Histogram(b)) => a.merge(&b),
        (Some(Seen::Extremes(a)), Seen::Extremes(b)) if a.len() == b.len() => a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b)),
        _ => return Err(Error::failed("samples of different shapes have different numbers of blocks; a static scale must not depend on the sample")),
    }
    Ok(())
}

/// One range a quantizer, over all values and constants that share it.
fn fit_activations(model: &mut Model, method: Method, watched: &[(ValueId, QuantizerId)], seen: Vec<Seen>, notes: &mut Notes) -> Result<()> {
    let mut ranges: BTreeMap<QuantizerId, Vec<Extremes>> = BTreeMap::new();
    for ((value, id), seen) in watched.iter().zip(seen) {
        let new = match (seen, method) {
            (Seen::Extremes(e), _) => e,
            (Seen::Histogram(h), Method::Percentile(p)) => vec![h.central(p / 100.0)],
            (Seen::Histogram(h), Method::MinMax) => vec![h.extremes],
        };
        let name = &model.graph.value(*value).name;
        match ranges.get_mut(id) {
            None => {
                ranges.insert(*id, new);
            }
            Some(have) if have.len() == new.len() => have.iter_mut().zip(&new).for_each(|(a, b)| a.merge(b)),
            Some(_) => return Err(Error::failed("shares its quantizer with a tensor of another number of blocks").at(name)),
        }
    }
    for (node, id) in model.constant_sites() {
        if let Some([have]) = ranges.get_mut(&model.quantizers.root(id)).map(Vec::as_mut_slice) {
            let value = model.graph.node(node).input(0).expect("a FakeQuant reads something");
            have.observe(&model.graph.constant(value).expect("it is a constant site").tensor.to_f32()?);
        }
    }
    for (id, mut range) in ranges {
        let q = &mut model.quantizers[id];
        if range.iter().any(|e| e.is_empty()) {
            notes.declined(&q.name, "no sample put a value here; its range is taken as 0 … 0");
            range.iter_mut().filter(|e| e.is_empty()).for_each(|e| *e = Extremes { lo: 0.0, hi: 0.0 });
        }
        let (lo, hi): (Vec<f32>, Vec<f32>) = range.iter().map(|e| (e.lo, e.hi)).unzip();
        q.params = Some(quant::fit_range(&q.scheme, &lo, &hi).at(|| &q.name)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Op, Type};
    use crate::pass::Silent;
    use crate::quant::{Blocks, Scheme};
    use crate::tensor::{DType, Tensor};

    /// x[N,4] → FakeQuant → Relu → FakeQuant → y, and a constant under a quantizer of its own.
    fn placed() -> (Model, [QuantizerId; 3]) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let ids = [m.quantizers.add("x", Scheme::int(8, false)), m.quantizers.add("y", Scheme::int(8, false)), m.quantizers.add("w", Scheme::int(8, true))];
        m.quantizers[ids[2]].scheme.blocks = Blocks::channel(0);
        let g = &mut m.graph;
        let mut value = |name: &str| {
            let v = g.add_value(name);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(4)]) };
            v
        };
        let [x, xq, r, y, wq] = ["x", "xq", "r", "y", "wq"].map(&mut value);
        let w = g.add_constant("w", Tensor::of_f32(&[2, 2], vec![1.0, -2.54, 0.127, 0.0]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(ids[0], "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(xq)], &[Some(r)]);
        g.add_node(Node::fake_quant(ids[1], "fy"), &[Some(r)], &[Some(y)]);
        g.add_node(Node::fake_quant(ids[2], "fw"), &[Some(w)], &[Some(wq)]);
        (m, ids)
    }

    /// `n` samples of four numbers: −1, −0.5, 0.5 and, in the last, 100 for 1.
    fn data(dir: &std::path::Path, n: usize) -> Dataset {
        let rows = (0..n).flat_map(|i| [-1.0f32, -0.5, 0.5, if i + 1 == n { 100.0 } else { 1.0 }]);
        let bytes = npy("<f4", false, &[n, 4], &rows.flat_map(f32::to_le_bytes).collect::<Vec<_>>());
        let path = dir.join("x.npy");
        std::fs::write(&path, bytes).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(4)]) };
        Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap()
    }

    fn how(activations: Method, threads: usize) -> Calibrate {
        Calibrate { activations, weights: Method::MinMax, threads }
    }

    #[test]
    fn ranges_become_scales_the_same_on_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path(), 200);
        let all: Vec<usize> = (0..200).collect();
        for (method, x, y) in [(Method::MinMax, (101.0, -1.0), (100.0, 0.0)), (Method::Percentile(99.0), (2.0, -1.0), (1.0, 0.0))] {
            for threads in [1, 3] {
                let (mut m, ids) = placed();
                calibrate(&mut m, &how(method, threads), Some((&data, &all)), &Silent).unwrap();
                let of = |id: QuantizerId| m.quantizers[id].params.clone().unwrap();
                // A percentile is read from buckets of one part in 128.
                let near = |a: f32, b: f32| (a - b).abs() <= b / 64.0;
                let (px, py) = (of(ids[0]), of(ids[1]));
                assert!(near(px.scale[0], x.0 / 255.0) && near(py.scale[0], y.0 / 255.0), "{method:?}: {px} {py}");
                assert_eq!(px.zero_at(0), (-x.1 / px.scale[0]).round(), "the float model is watched: its quantizers do not clip");
                assert_eq!((py.zero_at(0), of(ids[2]).scale), (0.0, vec![2.54 / 127.0, 0.127 / 127.0]));
            }
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let (mut m, _) = placed();
        assert!(calibrate(&mut m, &how(Method::MinMax, 1), None, &Silent).unwrap_err().to_string().contains("--data"));
        let (mut m, _) = placed();
        let w = m.graph.find_value("w").unwrap();
        m.graph.value_mut(w).constant = Some(Tensor::of_f32(&[2, 2], vec![1.0, f32::NAN, 0.0, 0.0]).into());
        let e = calibrate(&mut m, &how(Method::MinMax, 1), None, &Silent).unwrap_err().to_string();
        assert!(e.contains("weight w: element 1 is NaN"), "{e}");
    }
}
