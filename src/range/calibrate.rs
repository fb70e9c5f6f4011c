//! Gathers ranges and turns them into scales: one pass over the data for activations, none for weights but those whose layers are looked at.
//! Activations are watched on the float model, per quantizer: every tensor that shares it adds to its range.
//! Needs: a placed model; data as soon as an activation has no fixed range. Declines: a tensor that never carried a value.

use super::Method;
use super::choose::{COMPARED_ON, Found, best_of, fitted, measured};
use super::mask::Masks;
use super::saturate::{constant_masks, saturate};
use super::saved::{Ranges, Row, Seen};
use super::weights::{Weights, fit_weights};
use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, Trial, over_samples, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{Model, Node, ValueId, bounds};
use crate::math::wide;
use crate::note::Notes;
use crate::observe::{Beside, Extremes, Histogram, Turn};
use crate::pass::Progress;
use crate::quant::{self, Format, QuantizerId, Timing, Zero};
use crate::target::Shift;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// What the `calibrate` step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibrate<'a> {
    pub activations: Method,
    pub weights: Weights,
    /// Standard deviations from the mean beyond which values count for nothing.
    pub outliers: Option<f64>,
    /// Whether the zero of unsigned codes, where it lies in their middle, is the lowest for tensors that are never negative.
    pub unsigned: bool,
    /// Windows for the positions of power-of-two scales.
    pub shifts: &'a [Shift],
    pub threads: usize,
}

/// What calibration said and saw.
#[derive(Debug)]
pub struct Calibrated {
    pub notes: Notes,
    /// Statistics of the tensors that were watched; who made them is for the caller to say.
    pub ranges: Ranges,
    /// Whether the data was passed over.
    pub passed: bool,
    /// The float model's outputs for the first samples, where methods were compared on them.
    pub trial: Option<Trial>,
}

/// Gives every static quantizer without parameters its scale and zero point, then settles what follows from others.
/// With `saved` ranges the data is not passed over; `auto` still compares its methods on a few samples, where there are any. Where it is passed over, so
/// that `beside` has seen all samples, the result says so.
pub fn calibrate(
    model: &mut Model,
    how: &Calibrate,
    data: Option<(&Dataset, &[usize])>,
    saved: Option<&Ranges>,
    beside: Option<&dyn Beside>,
    progress: &dyn Progress,
) -> Result<Calibrated> {
    let mut notes = Notes::of("calibrate");
    let mut ranges = Ranges { samples: saved.map_or(data.map_or(0, |d| d.1.len()), |s| s.samples), ..Ranges::default() };
    let shapes = data.and_then(|(data, samples)| samples.first().map(|&i| data.sample(i))).transpose()?.map(|sample| shapes_of(&sample));
    let masks = Masks::of(model, &shapes.unwrap_or_default());
    let flowing: BTreeSet<QuantizerId> = watched_values(model).into_iter().map(|(_, q)| q).collect();
    // What masks are added to tells where they end.
    let constant_masks = constant_masks(model, &masks, &flowing)?;
    let later = flowing.into_iter().chain(constant_masks.keys().copied()).collect();
    fit_weights(model, how.weights, &later, data, how.threads, &mut notes)?;
    let watched = watched_values(model);
    let passed = !watched.is_empty() && saved.is_none();
    let mut compared = None;
    if !watched.is_empty() {
        let few = match data {
            Some((data, samples)) if how.activations == Method::Auto => {
                samples.iter().take(COMPARED_ON).map(|&i| data.sample(i)).collect::<Result<Vec<_>>>()?
            }
            _ => Vec::new(),
        };
        let probes = few.first().map_or(Vec::new(), |sample| Trial::probes_of(model, &shapes_of(sample)));
        let probed: Vec<ValueId> = probes.iter().map(|p| p.value).collect();
        let (mut seen, wanted) = match (saved, data) {
            (Some(saved), _) => (recall(model, how, &watched, saved)?, None),
            (None, Some(data)) => watch(model, how, (&watched, &probed, beside), &masks, data, progress).map(|(seen, wanted)| (seen, Some(wanted)))?,
            (None, None) => return Err(Error::usage("activations need sample inputs to find their ranges: give --data")),
        };
        for ((v, q), s) in watched.iter().zip(&seen) {
            let row = Row::new(s, model.quantizers[*q].scheme.blocks.to_string(), how.activations);
            let rows = ranges.tensors.entry(model.graph.value(*v).name.clone()).or_default();
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        let kept = saturate(model, &watched, (&masks, &constant_masks), &mut seen, &mut notes)?;
        if let Some(deviations) = how.outliers {
            seen.iter_mut().for_each(|s| {
                if let Seen::Histogram(h) = s {
                    h.drop_beyond(deviations)
                }
            });
        }
        if how.unsigned {
            drop_signs(model, &watched, &seen);
        }
        let found =
            Found { watched: &watched, seen: &seen, kept: &kept, samples: ranges.samples, shifts: how.shifts, by_energy: how.activations != Method::Entropy };
        let (method, best, said) = match (how.activations, data) {
            (Method::Auto, Some(_)) => {
                let trial = match wanted {
                    Some(wanted) => Trial::with(few, probes, wanted, how.threads),
                    None => Trial::new(model, few, how.threads)?,
                };
                best_of(model, &found, compared.insert(trial), progress)?
            }
            (Method::Auto, None) => {
                let method = chosen_before(saved)?;
                let (model, mut said) = fitted(model, &measured(method, ranges.samples), &found)?;
                said.changed("", format!("ranges by {method}, as chosen when they were saved"));
                (method, model, said)
            }
            (method, _) => {
                let (model, said) = fitted(model, &|h, scheme| method.range(h, scheme), &found)?;
                (method, model, said)
            }
        };
        ranges.chosen = (how.activations == Method::Auto).then(|| method.to_string());
        *model = best;
        notes.append(said);
    } else {
        saturate(model, &[], (&masks, &constant_masks), &mut [], &mut notes)?;
        super::settle(model, &mut notes)?;
        super::shifts::hold(model, how.shifts, &[], &mut notes)?;
    }
    notes.changed("", format!("{} quantizers have their scales", model.quantizers.ids().filter(|&q| model.quantizers[q].params.is_some()).count()));
    Ok(Calibrated { notes, ranges, passed, trial: compared })
}

/// What saved ranges hold for these values.
fn recall(model: &Model, how: &Calibrate, watched: &[(ValueId, QuantizerId)], saved: &Ranges) -> Result<Vec<Seen>> {
    let one = |(v, q): &(ValueId, QuantizerId)| {
        let blocks = &model.quantizers[*q].scheme.blocks;
        saved.seen(&model.graph.value(*v).name, &blocks.to_string(), blocks.is_tensor(), how.activations)
    };
    watched.iter().map(one).collect()
}

/// The method that `auto` chose when ranges were saved.
fn chosen_before(saved: Option<&Ranges>) -> Result<Method> {
    let said = saved.and_then(|s| s.chosen.as_deref());
    let known = said.and_then(|said| Method::COMPARED.into_iter().chain(Method::HARDER).find(|m| m.to_string() == said));
    known.ok_or_else(|| Error::usage("method `auto` compares methods on samples, and the saved ranges do not say which it chose: give --data"))
}

/// Values that flow into FakeQuants whose static quantizer has no parameters yet, but for those that a Relu or Clip cuts before they reach it again.
fn watched_values(model: &Model) -> Vec<(ValueId, QuantizerId)> {
    let g = &model.graph;
    let only = |v: ValueId| if let ([p], false) = (g.value(v).uses(), g.is_output(v)) { g.get_node(p.node) } else { None };
    let cut = |node: &Node, q: QuantizerId| {
        let y = node.output(0).and_then(only).filter(|n| bounds(g, n).is_some()).and_then(|n| n.output(0));
        y.and_then(only).and_then(|n| n.quantizer()).is_some_and(|again| model.quantizers.root(again) == q)
    };
    let mut list: Vec<(ValueId, QuantizerId)> = g
        .nodes()
        .filter_map(|(_, node)| {
            let q = model.quantizers.root(node.quantizer()?);
            let x = node.input(0)?;
            let row = &model.quantizers[q];
            (row.params.is_none() && row.scheme.timing == Timing::Static && g.constant(x).is_none() && !cut(node, q)).then_some((x, q))
        })
        .collect();
    list.sort();
    list.dedup();
    list
}

/// What a pass over the samples looks at: values under quantizers, values whose first samples are kept, and what others want to see.
type Watched<'a> = (&'a [(ValueId, QuantizerId)], &'a [ValueId], Option<&'a dyn Beside>);

/// Runs the float model over the samples and watches the values. Per-tensor quantizers are watched as the method needs, per-channel ones by extremes.
/// With what was seen come the values `probed`, of each of the first samples; what is looked at beside keeps what it saw.
fn watch(
    model: &Model,
    how: &Calibrate,
    (watched, probed, beside): Watched,
    masks: &Masks,
    (data, samples): (&Dataset, &[usize]),
    progress: &dyn Progress,
) -> Result<(Vec<Seen>, Vec<Vec<Tensor>>)> {
    let outputs: Vec<ValueId> = watched.iter().map(|(v, _)| *v).chain(probed.iter().copied()).chain(beside.iter().flat_map(|b| b.values()).copied()).collect();
    let plans = Plans::new(model, &outputs, RunnerOptions { float: true, ..RunnerOptions::default() });
    let is_counted = |q: QuantizerId| model.quantizers[q].scheme.blocks.is_tensor() && how.activations.wants_histogram();
    // Counts go on growing in whatever thread is free: their sum does not depend on the order.
    let counts: Mutex<Vec<Vec<Histogram>>> = Mutex::default();
    let lent = || counts.lock().unwrap_or_else(PoisonError::into_inner);
    let mut total: Vec<Option<Seen>> = watched.iter().map(|_| None).collect();
    let mut wanted = Vec::new();
    progress.begin("calibrate", samples.len() as u64);
    over_samples(
        samples.len(),
        how.threads,
        || Ok(Running::default()),
        |running, i| {
            let sample = data.sample(samples[i])?;
            let mut tensors = plans.run(running, &sample, &model.quantizers).at(|| format!("sample {}", samples[i]))?;
            let free = lent().pop();
            let mut histograms = free.unwrap_or_else(|| vec![Histogram::default(); watched.len()]);
            let see = |((t, (v, q)), histogram): ((&Tensor, &(ValueId, QuantizerId)), &mut Histogram)| -> Result<Seen> {
                let x = t.to_f32()?;
                let nan = |k: usize| {
                    let name = &model.graph.value(*v).name;
                    Err(Error::failed(format!("sample {}: tensor {name} is NaN at element {k} in the float model", samples[i])))
                };
                let scheme = &model.quantizers[*q].scheme;
                let seen = |e| if let Method::MovingAverage { .. } = how.activations { Seen::Average(e) } else { Seen::Extremes(e) };
                let saturated = if scheme.blocks.is_tensor() { masks.saturate(*v, &x, t.shape()) } else { None };
                let counted = is_counted(*q);
                if (!counted || saturated.is_some())
                    && let Some(k) = first_nan(&x)
                {
                    return nan(k);
                }
                if scheme.blocks.is_tensor() {
                    let x = saturated.as_deref().unwrap_or(&x);
                    let mut e = Extremes::default();
                    if counted {
                        let before = histogram.total();
                        e = histogram.observe(x);
                        // All but NaN is counted.
                        if histogram.total() - before < x.len() as u64 {
                            return nan(first_nan(x).unwrap_or(0));
                        }
                    } else {
                        e.observe(x);
                    }
                    return Ok(seen(vec![e]));
                }
                let layout = scheme.blocks.layout(t.shape())?;
                let (lo, hi) = quant::block_ranges(&x, t.shape(), &layout);
                Ok(seen(lo.into_iter().zip(hi).map(|(lo, hi)| Extremes { lo, hi }).collect()))
            };
            let seen = tensors.iter().zip(watched).zip(&mut histograms).map(see).collect::<Result<Vec<_>>>()?;
            lent().push(histograms);
            let others = tensors.split_off(watched.len() + probed.len());
            let turn = beside.map(|b| b.see(i, &others)).transpose()?;
            Ok((seen, (i < COMPARED_ON).then(|| tensors.split_off(watched.len())), turn))
        },
        |_, (seen, probed, turn): (Vec<Seen>, Option<Vec<Tensor>>, Option<Turn>)| {
            wanted.extend(probed);
            turn.into_iter().for_each(|take| take());
            for (have, new) in total.iter_mut().zip(seen) {
                merge(have, new, how.activations)?;
            }
            progress.tick(1);
            Ok(())
        },
    )?;
    progress.end();
    let mut seen = total.into_iter().map(|s| s.ok_or_else(|| Error::usage("there is no sample to calibrate on"))).collect::<Result<Vec<_>>>()?;
    let mut counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter();
    let mut histograms = counts.next().unwrap_or_default();
    for more in counts {
        histograms.iter_mut().zip(&more).for_each(|(all, more)| all.merge(more));
    }
    for ((seen, mut histogram), (_, q)) in seen.iter_mut().zip(histograms).zip(watched) {
        if let (true, Seen::Extremes(e)) = (is_counted(*q), &*seen) {
            // Of two zeros the first was taken, in the order of the samples.
            histogram.extremes = e[0];
            *seen = Seen::Histogram(Box::new(histogram));
        }
    }
    Ok((seen, wanted))
}

/// Where the first NaN stands.
fn first_nan(x: &[f32]) -> Option<usize> {
    // Without a way out of the inner loop it vectorises.
    const CHUNK: usize = 1024;
    let any = |c: &[f32]| {
        wide(
            #[inline(always)]
            || {
                let mut any = false;
                for v in c {
                    any |= v.is_nan();
                }
                any
            },
        )
    };
    let at = x.chunks(CHUNK).position(any)? * CHUNK;
    x[at..].iter().position(|v| v.is_nan()).map(|i| at + i)
}

/// Zero becomes the lowest code of tensors that are never negative, where it was to lie in the middle of unsigned codes.
fn drop_signs(model: &mut Model, watched: &[(ValueId, QuantizerId)], seen: &[Seen]) {
    let mut lowest: BTreeMap<QuantizerId, f32> = BTreeMap::new();
    for ((_, id), seen) in watched.iter().zip(seen) {
        let lo = match seen {
            Seen::Extremes(e) | Seen::Average(e) => e.iter().map(|e| e.lo).fold(f32::INFINITY, f32::min),
            Seen::Histogram(h) => h.extremes.lo,
        };
        let have = lowest.entry(*id).or_insert(f32::INFINITY);
        *have = have.min(lo);
    }
    let constants: BTreeSet<QuantizerId> = model.constant_sites().into_iter().map(|(_, id)| model.quantizers.root(id)).collect();
    for (id, _) in lowest.into_iter().filter(|(id, lo)| *lo >= 0.0 && !constants.contains(id)) {
        let scheme = &mut model.quantizers[id].scheme;
        if let (Format::Int { signed: false, .. }, Zero::Fixed(z)) = (scheme.format, &mut scheme.zero) {
            *z = 0;
        }
    }
}

fn merge(have: &mut Option<Seen>, new: Seen, method: Method) -> Result<()> {
    match (have, new) {
        (have @ None, new) => *have = Some(new),
        (Some(Seen::Extremes(a)), Seen::Extremes(b)) if a.len() == b.len() => a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b)),
        (Some(Seen::Average(a)), Seen::Average(b)) if a.len() == b.len() => {
            let Method::MovingAverage { constant } = method else { unreachable!("averages are kept for moving averages alone") };
            let mean = |a: f32, b: f32| (a as f64 + constant * (b as f64 - a as f64)) as f32;
            for (a, b) in a.iter_mut().zip(&b).filter(|(_, b)| !b.is_empty()) {
                *a = if a.is_empty() { *b } else { Extremes { lo: mean(a.lo, b.lo), hi: mean(a.hi, b.hi) } };
            }
        }
        _ => return Err(Error::failed("samples of different shapes have different numbers of blocks; a static scale must not depend on the sample")),
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

    fn how(activations: Method, threads: usize) -> Calibrate<'static> {
        Calibrate { activations, weights: Weights::MinMax, outliers: None, unsigned: false, shifts: &[], threads }
    }

    #[test]
    fn what_is_cut_before_it_is_rounded_again_sets_no_range() {
        let (mut m, [first, ..]) = placed();
        let watched = |m: &Model| watched_values(m).iter().map(|(v, _)| m.graph.value(*v).name.clone()).collect::<Vec<_>>();
        assert_eq!(watched(&m), ["x", "r"], "under a quantizer each");
        let (last, y) = m.graph.nodes().find(|(_, n)| n.name == "fy").map(|(id, n)| (id, n.output(0))).unwrap();
        let r = m.graph.remove_node(last).input(0);
        m.graph.add_node(Node::fake_quant(first, "fy"), &[r], &[y]);
        assert_eq!(watched(&m), ["r"]);
        m.graph.outputs.push(r.unwrap());
        assert_eq!(watched(&m), ["x", "r"], "somebody else reads it");
    }

    #[test]
    fn ranges_become_scales_the_same_on_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let data = data(dir.path(), 200);
        let all: Vec<usize> = (0..200).collect();
        for (method, x, y) in [(Method::MinMax, (101.0, -1.0), (100.0, 0.0)), (Method::Percentile(99.0), (2.0, -1.0), (1.0, 0.0))] {
            let mut seen = Vec::new();
            for threads in [1, 3] {
                let (mut m, ids) = placed();
                let calibrated = calibrate(&mut m, &how(method, threads), Some((&data, &all)), None, None, &Silent).unwrap();
                seen.push(serde_json::to_string(&calibrated.ranges).unwrap());
                let of = |id: QuantizerId| m.quantizers[id].params.clone().unwrap();
                // A percentile is read from buckets of one part in 128.
                let near = |a: f32, b: f32| (a - b).abs() <= b / 64.0;
                let (px, py) = (of(ids[0]), of(ids[1]));
                assert!(near(px.scale[0], x.0 / 255.0) && near(py.scale[0], y.0 / 255.0), "{method:?}: {px} {py}");
                assert_eq!(px.zero_at(0), (-x.1 / px.scale[0]).round(), "the float model is watched: its quantizers do not clip");
                assert_eq!((py.zero_at(0), of(ids[2]).scale), (0.0, vec![2.54 / 127.0, 0.127 / 127.0]));
            }
            seen.dedup();
            assert!(seen.len() == 1 && (method == Method::MinMax || seen[0].contains("\"counts\":[200,200,200,199,1]")), "{seen:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let (mut m, _) = placed();
        assert!(calibrate(&mut m, &how(Method::MinMax, 1), None, None, None, &Silent).unwrap_err().to_string().contains("--data"));
        let (mut m, _) = placed();
        let w = m.graph.find_value("w").unwrap();
        m.graph.value_mut(w).constant = Some(Tensor::of_f32(&[2, 2], vec![1.0, f32::NAN, 0.0, 0.0]).into());
        let e = calibrate(&mut m, &how(Method::MinMax, 1), None, None, None, &Silent).unwrap_err().to_string();
        assert!(e.contains("weight w: element 1 is NaN"), "{e}");
    }

    /// ids → Gather of a table by row → FakeQuant: the samples read two rows of three, and the scale covers all three and nothing more.
    #[test]
    fn a_table_sets_the_range_of_its_rows() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let (rows, out) = (m.quantizers.add("table", Scheme::int(8, true)), m.quantizers.add("e", Scheme::int(8, false)));
        m.quantizers[rows].scheme.blocks = Blocks::channel(0);
        let g = &mut m.graph;
        let tensor = |dtype, shape: &[usize]| Type::Tensor { dtype: Some(dtype), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        let [ids, t, e, y] = ["ids", "t", "e", "y"].map(|n| g.add_value(n));
        g.value_mut(ids).ty = tensor(DType::I64, &[1, 2]);
        g.value_mut(t).ty = tensor(DType::F32, &[3, 2]);
        [e, y].into_iter().for_each(|v| g.value_mut(v).ty = tensor(DType::F32, &[1, 2, 2]));
        let table = g.add_constant("table", Tensor::of_f32(&[3, 2], vec![0.5, -0.5, 0.25, 0.5, -1.0, 4.1]));
        (g.inputs, g.outputs) = (vec![ids], vec![y]);
        g.add_node(Node::fake_quant(rows, "ft"), &[Some(table)], &[Some(t)]);
        g.add_node(Node::new(Op::Gather, "gather"), &[Some(t), Some(ids)], &[Some(e)]);
        g.add_node(Node::fake_quant(out, "fe"), &[Some(e)], &[Some(y)]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.npy");
        std::fs::write(&path, npy("<i8", false, &[4, 2], &[0i64, 1, 1, 0, 0, 0, 1, 1].map(i64::to_le_bytes).concat())).unwrap();
        let input = InputInfo { name: "ids".into(), dtype: DType::I64, shape: Some(vec![Dim::Known(1), Dim::Known(2)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        for method in [Method::MinMax, Method::Percentile(90.0), Method::Tail, Method::Auto] {
            let mut m = m.clone();
            let how = Calibrate { activations: method, weights: Weights::MinMax, outliers: None, unsigned: false, shifts: &[], threads: 1 };
            calibrate(&mut m, &how, Some((&data, &[0, 1, 2, 3])), None, None, &Silent).unwrap();
            let p = m.quantizers[out].params.as_ref().unwrap();
            assert_eq!((p.scale[0], p.zero_at(0)), (5.1 / 255.0, 50.0), "{method}");
        }
    }
}
