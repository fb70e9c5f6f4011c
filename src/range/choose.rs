//! From what was seen to scales: one range a quantizer, over all values that share it; and which method finds the ranges, by what the outputs lose.

use super::Method;
use super::pow2;
use super::saved::Seen;
use crate::engine::Trial;
use crate::error::{At, Error, Result};
use crate::graph::{Flow, Model, NodeId, ValueId, constant_behind};
use crate::note::Notes;
use crate::observe::{Extremes, Histogram};
use crate::pass::Progress;
use crate::quant::{self, QuantizerId, Scheme};
use crate::target::Shift;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Fewer values than this say little of the ends that cost the least: a normal distribution's in 8 bits lie where one value in 16 384 is beyond, and four
/// should be.
const FEW: u64 = 4 * 16_384;
/// Fewer samples than this say nothing of such ends either when methods are compared on them: what was seen in them all was seen by the ranges.
const FEW_SAMPLES: usize = 32;

/// What was seen of the values that flow into quantizers.
pub struct Found<'a> {
    pub watched: &'a [(ValueId, QuantizerId)],
    /// One a watched value.
    pub seen: &'a [Seen],
    /// Intervals beyond which no reader can tell values apart.
    pub kept: &'a BTreeMap<QuantizerId, Extremes>,
    pub samples: usize,
    pub shifts: &'a [Shift],
    /// Of tensors that share a quantizer, whether each counts by its energy: so methods want it that make errors least. Otherwise by its number of values.
    pub by_energy: bool,
}

/// How a range is taken from what was seen of a tensor.
pub type Range<'a> = &'a (dyn Fn(&Histogram, &Scheme) -> Result<Extremes> + Sync);

/// A method chosen by comparison, as it is applied to what was seen in so many samples: where that is little, no comparison can tell whose ends are right,
/// and the distribution must.
pub fn measured(method: Method, samples: usize) -> impl Fn(&Histogram, &Scheme) -> Result<Extremes> + Sync {
    move |h, scheme| if samples < FEW_SAMPLES && h.total() < FEW { Method::Tail } else { method }.range(h, scheme)
}

/// Samples on which methods are compared.
pub const COMPARED_ON: usize = 8;
/// What loses this many times as much as the best on half of them is compared no further; where outputs are a few scores, which tell little. Where they
/// are next to no numbers, all are compared on all.
const HOPELESS: (f64, f64) = (1.5, 4.0);
/// A harder cut than the methods compared must leave this much of the loss at most: what few samples show is no reason to cut off what others hold.
const CLEARLY: f64 = 0.8;

/// The model under the method whose outputs come nearest to the float model's.
pub fn best_of(model: &Model, found: &Found, trial: &Trial, progress: &dyn Progress) -> Result<(Method, Model, Notes)> {
    progress.begin("compare ranges", Method::COMPARED.len() as u64);
    // Weights stay float here: what their rounding shifts is not the ranges' fault, and may be corrected later.
    let mut activations = model.clone();
    model.constant_sites().into_iter().for_each(|(node, _)| {
        activations.graph.bypass(node);
    });
    // Methods differ in the table alone, which constants that flow follow.
    let plans = trial.live_plans(&activations);
    let (all, half) = (trial.samples().len(), trial.samples().len().div_ceil(2));
    let mut candidates = Vec::new();
    for method in Method::COMPARED {
        let (candidate, notes) = fitted(model, &measured(method, found.samples), found)?;
        let lost = trial.lost(&plans, &candidate.quantizers, 0..half)?;
        candidates.push((lost.compared()?, lost, method, candidate, notes));
        progress.tick(1);
    }
    // All speak of the same numbers.
    let told = &candidates[0].1;
    let least = candidates.iter().map(|c| c.0).fold(f64::INFINITY, f64::min);
    let within = match (told.is_chance(), told.is_of_few()) {
        (true, _) => f64::INFINITY,
        (_, true) => HOPELESS.1 * least,
        _ => HOPELESS.0 * least,
    };
    let mut best: Option<(f64, Method, Model, Notes)> = None;
    let mut figures = Vec::new();
    for (mut loss, mut lost, method, candidate, notes) in candidates {
        let hopeful = loss <= within;
        let so_far = if hopeful { "" } else { " on half of them" };
        if hopeful {
            lost.merge(&trial.lost(&plans, &candidate.quantizers, half..all)?);
            loss = lost.compared()?;
        }
        figures.push(format!("{method} {loss:.2e}{so_far}"));
        if hopeful && best.as_ref().is_none_or(|b| loss < b.0) {
            best = Some((loss, method, candidate, notes));
        }
    }
    let mut best = best.expect("there are methods to compare");
    // Where the hardest cut loses least, a harder one may lose much less.
    let further: &[Method] = if best.1 == Method::HARDEST { &Method::HARDER } else { &[] };
    for &harder in further {
        let (candidate, notes) = fitted(model, &measured(harder, found.samples), found)?;
        let loss = trial.lost(&plans, &candidate.quantizers, 0..all)?.compared()?;
        figures.push(format!("{harder} {loss:.2e}"));
        if loss > CLEARLY * best.0 {
            break;
        }
        best = (loss, harder, candidate, notes);
    }
    progress.end();
    let (_, method, model, mut notes) = best;
    notes.changed("", format!("ranges by {method}, which loses least on {all} samples: {}", figures.join(", ")));
    Ok((method, model, notes))
}

/// The model with one range a quantizer, over all values and constants that share it, and with what follows from them.
pub fn fitted(model: &Model, range: Range, found: &Found) -> Result<(Model, Notes)> {
    let Found { watched, kept, seen, .. } = found;
    let (mut model, mut notes) = (model.clone(), Notes::of("calibrate"));
    let ranges = watched.par_iter().zip(*seen).map(|((_, id), seen)| match seen {
        Seen::Extremes(e) | Seen::Average(e) => Ok(e.clone()),
        Seen::Histogram(h) => {
            let range = range(h, &model.quantizers[*id].scheme)?;
            Ok(vec![kept.get(id).map_or(range, |i| range.within(i))])
        }
    });
    let ends = ranges.collect::<Result<Vec<_>>>()?;
    let ends = alike(&model, found, range, ends)?;
    let mut ranges: BTreeMap<QuantizerId, Vec<Extremes>> = BTreeMap::new();
    for ((value, id), new) in watched.iter().zip(ends) {
        let name = &model.graph.value(*value).name;
        match ranges.get_mut(id) {
            None => {
                ranges.insert(*id, new);
            }
            Some(have) if have.len() == new.len() => have.iter_mut().zip(&new).for_each(|(a, b)| a.merge(b)),
            Some(_) => return Err(Error::failed("shares its quantizer with a tensor of another number of blocks").at(name)),
        }
    }
    let mut tables: BTreeMap<QuantizerId, Extremes> = BTreeMap::new();
    for (node, id) in model.constant_sites() {
        let moved = model.graph.node(node).output(0).and_then(|v| model.moved_to(v));
        let id = moved.unwrap_or_else(|| model.quantizers.root(id));
        if let Some([have]) = ranges.get_mut(&id).map(Vec::as_mut_slice) {
            let value = model.graph.node(node).input(0).expect("a FakeQuant reads something");
            let mut own = Extremes::default();
            // An infinity, as a bound or a mask, saturates.
            let mut numbers = model.graph.constant(value).expect("it is a constant site").tensor.to_f32()?;
            if numbers.iter().any(|x| x.is_infinite()) {
                numbers.to_mut().retain(|x| x.is_finite());
            }
            own.observe(&numbers);
            let own = kept.get(&id).map_or(own, |i| own.within(i));
            have.merge(&own);
            if moved.is_some() {
                tables.entry(id).or_default().merge(&own);
            }
        }
    }
    // Where nothing but rows of tables comes, whatever row may come, and nothing beyond.
    for (id, table) in tables {
        if watched.iter().filter(|(_, q)| *q == id).all(|(v, _)| is_row(model.graph.value(*v).producer().map(|(n, _)| n), &model)) {
            ranges.insert(id, vec![table]);
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
    super::settle(&mut model, &mut notes)?;
    let seen: Vec<_> = watched.iter().map(|(_, q)| *q).zip(*seen).collect();
    super::shifts::hold(&mut model, found.shifts, &seen, &mut notes)?;
    Ok((model, notes))
}

/// One power-of-two threshold for all values that share a quantizer: that of their distributions together, in which each counts by how much of it an
/// error is. The largest of their own would leave those of smaller numbers few codes.
fn alike(model: &Model, found: &Found, range: Range, mut ends: Vec<Vec<Extremes>>) -> Result<Vec<Vec<Extremes>>> {
    let mut sharing: BTreeMap<QuantizerId, Vec<usize>> = BTreeMap::new();
    for (i, (_, id)) in found.watched.iter().enumerate() {
        if pow2::applies(&model.quantizers[*id].scheme) && matches!(found.seen[i], Seen::Histogram(_)) {
            sharing.entry(*id).or_default().push(i);
        }
    }
    for (id, members) in sharing.into_iter().filter(|(_, m)| m.len() > 1) {
        let mut all = Histogram::default();
        for i in &members {
            let Seen::Histogram(h) = &found.seen[*i] else { continue };
            if !found.by_energy {
                all.merge(h);
                continue;
            }
            let energy = h.energy();
            all.merge(&h.weighed(if energy > 0.0 { 1e9 / energy } else { 0.0 }));
        }
        let one = range(&all, &model.quantizers[id].scheme)?;
        let one = found.kept.get(&id).map_or(one, |i| one.within(i));
        members.iter().for_each(|i| ends[*i].iter_mut().for_each(|e| *e = if e.is_empty() { *e } else { one }));
    }
    Ok(ends)
}

/// Whether a node moves rows of a constant table.
fn is_row(node: Option<NodeId>, model: &Model) -> bool {
    let Some(node) = node.map(|n| model.graph.node(n)) else { return false };
    let source = node.input(0).filter(|_| node.op.flow() == Flow::Move);
    source.is_some_and(|v| constant_behind(&model.graph, v).is_some() || is_row(model.graph.value(v).producer().map(|(n, _)| n), model))
}

#[cfg(test)]
mod tests {
    use super::super::{Calibrate, Weights, calibrate};
    use super::*;
    use crate::data::tests::npy;
    use crate::data::{Dataset, InputInfo};
    use crate::graph::{Dim, Node, Op, Type};
    use crate::pass::Silent;
    use crate::tensor::{DType, Tensor};

    /// x[1,64,64] → FakeQuant → MatMul → Relu, or its mean: one number of 3000 is large, and no weight but zero reads it. All methods that are compared at
    /// first keep some of these. What is told of the comparison, and the step between codes. `all`: what every number is instead.
    fn chosen(mean: bool, all: Option<f32>) -> (String, f32) {
        let dir = tempfile::tempdir().unwrap();
        let (samples, side) = (40usize, 64usize);
        let x = (0..samples * side * side).map(|i| match i % 3008 {
            _ if all.is_some() => all.unwrap_or_default(),
            0 => 50.0 + (i / 3008) as f32,
            _ => (i as f32 * 0.618_034).fract() - 0.5,
        });
        let path = dir.path().join("x.npy");
        std::fs::write(&path, npy("<f4", false, &[samples, side, side], &x.flat_map(f32::to_le_bytes).collect::<Vec<_>>())).unwrap();
        let shape = vec![Dim::Known(1), Dim::Known(side), Dim::Known(side)];
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(shape.clone()) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();

        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let q = m.quantizers.add("x", Scheme::int(8, false));
        let g = &mut m.graph;
        let [x, xq, p, y] = ["x", "xq", "p", "y"].map(|n| {
            let v = g.add_value(n);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: None };
            v
        });
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape) };
        let w: Vec<f32> = (0..side * 4).map(|i| if i / 4 % 64 == 0 { 0.0 } else { (i as f32 * 0.414_214).fract() - 0.5 }).collect();
        let w = g.add_constant("w", Tensor::of_f32(&[side, 4], w));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(q, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::MatMul, "product"), &[Some(xq), Some(w)], &[Some(p)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(p)], &[Some(y)]);
        if mean {
            let z = g.add_value("z");
            g.add_node(Node::new(Op::ReduceMean, "mean"), &[Some(y)], &[Some(z)]);
            g.outputs = vec![z];
        }
        let how = Calibrate { activations: Method::Auto, weights: Weights::MinMax, outliers: None, unsigned: false, shifts: &[], threads: 1 };
        let all: Vec<usize> = (0..samples).collect();
        let notes = calibrate(&mut m, &how, Some((&data, &all)), None, None, &Silent).unwrap().notes;
        let told = notes.list().iter().find(|n| n.text.starts_with("ranges by")).unwrap().text.clone();
        (told, m.quantizers[q].params.as_ref().unwrap().scale_at(0))
    }

    #[test]
    fn harder_cuts_are_tried_where_the_hardest_loses_least() {
        let (told, step) = chosen(false, None);
        assert!(told.contains("ranges by percentile 99.95") && step < 1.1 / 255.0, "{told} {step}");
    }

    /// Four samples of one number each may come out right by chance.
    #[test]
    fn next_to_no_numbers_make_no_method_hopeless() {
        let on_half = |mean| chosen(mean, None).0.contains("on half of them");
        assert_eq!([on_half(false), on_half(true)], [true, false]);
    }

    /// Where codes hold all numbers exactly, nothing is lost, and any method will do.
    #[test]
    fn outputs_that_come_out_exactly_are_no_obstacle() {
        for mean in [false, true] {
            assert!(chosen(mean, Some(1.0)).0.contains(" 0.00e0"), "{}", chosen(mean, Some(1.0)).0);
        }
    }
}
