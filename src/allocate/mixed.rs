//! A width for each layer's weights, so that the outputs lose least within a limit on their size, on bit operations or on time.
//! Losses of layers come from [`sensitivity`]; an integer program (multiple-choice knapsack) finds the widths; what the whole choice loses is then measured, beside
//! two simpler ones, and the best of the three stands.
//! Source: HAWQ-V3 (Yao et al. 2021, section 3.4) and CalibTIP (Hubara et al. 2021, section 4.2) for the program, HAWQ-V3 for bit operations.
//! Needs: scales, samples. Declines: layers whose weights the target holds in one width only.

use super::layers::{Layer, Rows, bit_operations, bytes, layer_at, layers, legal_widths};
use super::sensitivity::{Sensitivity, sensitivity};
use crate::data::Dataset;
use crate::engine::{Plans, Trial, shapes_of};
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::math::knapsack::{self, Choice};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::Table;
use crate::range;
use crate::target::Profile;
use std::collections::BTreeMap;

/// How much of something.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// A share of what all layers take at their widest.
    Share(f64),
    /// In its own unit.
    Whole(f64),
}

/// How widths are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// By the integer program.
    Program,
    /// From the widest, the layer that loses least for what it saves becomes narrower, until the limits hold.
    Greedy,
    /// The widest width that fits for all.
    Uniform,
}

/// Time of a layer by the bits of its weights, in the user's unit.
pub type Latencies = BTreeMap<String, BTreeMap<u8, f64>>;

/// What the step was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocate<'a> {
    /// Widths to choose from.
    pub bits: Vec<u8>,
    /// Bits of the recipe's weights: layers of another width have it by an override, and keep it.
    pub base: u8,
    /// Limit on the bytes of the layers' weights.
    pub size: Option<Amount>,
    /// Limit on multiply-adds times the bits of both operands.
    pub bitops: Option<Amount>,
    /// Limit on the sum of the table's times.
    pub latency: Option<f64>,
    pub latencies: Option<&'a Latencies>,
    /// Limits as shares of all layers at their widest, for which what is lost is told too.
    pub front: Vec<f64>,
    pub strategy: Strategy,
    pub sensitivity: Sensitivity,
    /// Samples to measure on.
    pub samples: usize,
    pub profile: &'a Profile,
    pub threads: usize,
}

/// The layers, their widths, and the knapsack that they make.
struct Problem {
    layers: Vec<Layer>,
    widths: Vec<Vec<u8>>,
    /// By layer and width: the quantizers of its weights, fitted.
    rows: Vec<Vec<Rows>>,
    items: Vec<Vec<Choice>>,
    limits: Vec<Bound>,
}

/// One limit: its name, unit and amount.
struct Bound {
    what: &'static str,
    unit: &'static str,
    most: f64,
    /// What all layers take at their widest.
    full: f64,
}

/// The `allocate` step.
pub fn allocate(model: &mut Model, how: &Allocate, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("allocate");
    let (data, samples) = data.ok_or_else(|| Error::usage("allocate measures on sample inputs: give --data"))?;
    let few = samples.iter().take(how.samples).map(|&i| data.sample(i)).collect::<Result<Vec<_>>>()?;
    let Some(first) = few.first() else { return Err(Error::usage("allocate measures on sample inputs, and there are none")) };
    let mut problem = Problem::of(model, how, layers(model, &shapes_of(first)), &mut notes)?;
    if problem.layers.is_empty() {
        return Ok(notes);
    }
    problem.check()?;
    for (layer, widths) in problem.layers.iter().zip(&problem.widths) {
        problem.rows.push(widths.iter().map(|bits| layer_at(model, layer, *bits)).collect::<Result<_>>()?);
    }
    let trial = Trial::new(model, few, how.threads)?;
    let losses = sensitivity(model, &problem.layers, (&problem.widths, &problem.rows), how.sensitivity, &trial, progress)?;
    for (choices, losses) in problem.items.iter_mut().zip(&losses) {
        choices.iter_mut().zip(losses).for_each(|(c, l)| c.loss = *l);
    }
    if let Some((layer, _)) = problem.layers.iter().zip(&losses).find(|(_, l)| l.iter().any(|l| !l.is_finite())) {
        return Err(Error::failed(format!("layer {}: what it loses is no finite number; the model's outputs overflow or are NaN on the samples", layer.name)));
    }
    let most: Vec<f64> = problem.limits.iter().map(|l| l.most).collect();
    let table = {
        let plans = trial.live_plans(model);
        let try_out = |strategy| problem.decide(strategy, &most).map(|c| problem.measured(model, &trial, &plans, c)).transpose();
        let mut best = try_out(how.strategy)?.ok_or_else(|| problem.cannot(how.strategy))?;
        if how.strategy == Strategy::Program {
            for (name, strategy) in [("greedy", Strategy::Greedy), ("uniform", Strategy::Uniform)] {
                if let Some(other) = try_out(strategy)?.filter(|other| other.loss < best.loss) {
                    notes.declined("", format!("the integer program's widths lose {:.3e}, the {name} ones {:.3e}: these stand", best.loss, other.loss));
                    best = other;
                }
            }
        }
        for share in &how.front {
            let limits: Vec<f64> = problem.limits.iter().map(|l| l.full * share).collect();
            let found = problem.decide(how.strategy, &limits).map(|c| problem.measured(model, &trial, &plans, c)).transpose()?;
            let text = found.map_or("nothing fits".to_string(), |m| format!("{} lose {:.3e}", problem.spent(&m.chosen), m.loss));
            notes.changed("", format!("front: at {share} of the widest, {text}"));
        }
        problem.tell(model, &best, &mut notes);
        best.table
    };
    model.quantizers = table;
    // The scales of biases are products of the weights'.
    range::settle(model, &mut notes)?;
    Ok(notes)
}

/// A selection, its table and what it loses.
struct Measured {
    chosen: Vec<usize>,
    table: Table,
    loss: f64,
}

impl Problem {
    fn of(model: &Model, how: &Allocate, all: Vec<Layer>, notes: &mut Notes) -> Result<Problem> {
        let mut problem = Problem { layers: Vec::new(), widths: Vec::new(), rows: Vec::new(), items: Vec::new(), limits: Vec::new() };
        let (mut fixed, mut set) = (Vec::new(), Vec::new());
        let bound = how.profile.bound(model);
        for layer in all {
            let mut legal = legal_widths(model, how.profile, &bound, &layer, &how.bits);
            if layer.bits(model) != how.base {
                set.push(layer.name.clone());
                legal.clear();
            } else if legal.len() < 2 {
                fixed.push(layer.name.clone());
            }
            // What cannot be chosen counts as it is.
            problem.widths.push(if legal.is_empty() { vec![layer.bits(model)] } else { legal });
            problem.layers.push(layer);
        }
        let target = &how.profile.name;
        notes.declined_alike(&fixed, |more| format!("its weights keep one width{more}: target {target} holds them in no other of those asked for"));
        notes.declined_alike(&set, |more| format!("its weights keep their width{more}: an override set it"));
        if problem.layers.is_empty() {
            notes.declined("", "no weights are integer codes with scales of their own: there is nothing to allocate");
            return Ok(problem);
        }
        let mut measures: Vec<(Bound, Vec<Vec<f64>>)> = Vec::new();
        let table = |cost: &dyn Fn(&Layer, u8) -> f64| -> Vec<Vec<f64>> {
            problem.layers.iter().zip(&problem.widths).map(|(l, w)| w.iter().map(|b| cost(l, *b)).collect()).collect()
        };
        let mut limit = |what, unit, amount: Amount, costs: Vec<Vec<f64>>| {
            let full = costs.iter().filter_map(|c| c.last()).sum::<f64>();
            let most = match amount {
                Amount::Share(s) => s * full,
                Amount::Whole(n) => n,
            };
            measures.push((Bound { what, unit, most, full }, costs));
        };
        let size = how.size.or((how.bitops.is_none() && how.latency.is_none()).then_some(Amount::Share(0.75)));
        if let Some(amount) = size {
            limit("size", "bytes of weights", amount, table(&|l, b| bytes(l, b)));
        }
        if let Some(amount) = how.bitops {
            if problem.layers.iter().all(|l| l.macs == 0) {
                return Err(Error::usage("bitops: the multiply-adds of this model cannot be counted, as its shapes are not all known; limit `size` instead"));
            }
            limit("bitops", "bit operations", amount, table(&|l, b| bit_operations(l, b, l.input_bits(model))));
        }
        if let Some(most) = how.latency {
            let times = how.latencies.ok_or_else(|| Error::usage("latency: say in `latency_table` which file holds the times"))?;
            let mut costs = Vec::new();
            for (layer, widths) in problem.layers.iter().zip(&problem.widths) {
                costs.push(widths.iter().map(|b| latency(times, layer, *b)).collect::<Result<Vec<f64>>>()?);
            }
            limit("latency", "of time", Amount::Whole(most), costs);
        }
        for i in 0..problem.layers.len() {
            let choice = |k: usize| Choice { loss: 0.0, costs: measures.iter().map(|(_, c)| c[i][k]).collect() };
            problem.items.push((0..problem.widths[i].len()).map(choice).collect());
        }
        problem.limits = measures.into_iter().map(|(l, _)| l).collect();
        Ok(problem)
    }

    /// Refuses a limit that nothing meets, with the smallest that is possible.
    fn check(&self) -> Result<()> {
        for (j, l) in self.limits.iter().enumerate() {
            let least = knapsack::least(&self.items, j);
            if least > l.most {
                return Err(Error::usage(format!(
                    "{}: nothing fits into {} {}; the smallest possible is {least} ({:.4} of the widest)",
                    l.what,
                    l.most,
                    l.unit,
                    least / l.full
                )));
            }
        }
        Ok(())
    }

    fn cannot(&self, strategy: Strategy) -> Error {
        let all = self.limits.iter().map(|l| l.what).collect::<Vec<_>>().join(" and ");
        Error::usage(match strategy {
            Strategy::Program => format!("no widths meet the limits on {all} together; raise one of them"),
            _ => format!("the strategy finds no widths that meet the limit on {all}; take `strategy: program`"),
        })
    }

    /// Widths within `limits`, as indices; `None` where the strategy finds none.
    fn decide(&self, strategy: Strategy, limits: &[f64]) -> Option<Vec<usize>> {
        match strategy {
            Strategy::Program => knapsack::choose(&self.items, limits),
            Strategy::Greedy => greedy(&self.items, limits),
            Strategy::Uniform => {
                let mut all: Vec<u8> = self.widths.iter().flatten().copied().collect();
                all.sort_unstable();
                all.dedup();
                let at = |bits: u8| -> Vec<usize> { self.widths.iter().map(|w| w.iter().rposition(|b| *b <= bits).unwrap_or(0)).collect() };
                all.into_iter().rev().map(at).find(|c| within(&self.items, c, limits))
            }
        }
    }

    fn measured(&self, model: &Model, trial: &Trial, plans: &Plans, chosen: Vec<usize>) -> Result<Measured> {
        let mut table = model.quantizers.clone();
        for (rows, &k) in self.rows.iter().zip(&chosen) {
            rows[k].iter().for_each(|(q, row)| table[*q] = row.clone());
        }
        let loss = trial.loss(plans, &table)?;
        Ok(Measured { chosen, table, loss })
    }

    /// `123 bytes of weights (0.5 of the widest)`
    fn spent(&self, chosen: &[usize]) -> String {
        let costs = knapsack::costs(&self.items, chosen, self.limits.len());
        let one = |(l, c): (&Bound, &f64)| format!("{} {} ({:.3} of the widest)", (c * 1000.0).round() / 1000.0, l.unit, c / l.full);
        self.limits.iter().zip(&costs).map(one).collect::<Vec<_>>().join(", ")
    }

    fn tell(&self, model: &Model, best: &Measured, notes: &mut Notes) {
        let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
        for (i, ((layer, widths), &k)) in self.layers.iter().zip(&self.widths).zip(&best.chosen).enumerate() {
            *counts.entry(widths[k]).or_default() += 1;
            if widths[k] != layer.bits(model) {
                notes.changed(&layer.name, format!("weights in {} bits, estimated to lose {:.2e}", widths[k], self.items[i][k].loss));
            }
        }
        let counts = counts.iter().map(|(b, n)| format!("{n} in {b} bits")).collect::<Vec<_>>().join(", ");
        let estimate = knapsack::loss(&self.items, &best.chosen);
        notes.changed(
            "",
            format!(
                "layers: {counts}; {}; loss {:.3e} as measured, with that of activations, {estimate:.3e} as estimated of weights alone",
                self.spent(&best.chosen),
                best.loss
            ),
        );
    }
}

/// The table's time of a layer.
fn latency(times: &Latencies, layer: &Layer, bits: u8) -> Result<f64> {
    let of_layer = times.get(&layer.name).ok_or_else(|| Error::usage(format!("latency_table: layer {} is missing", layer.name)))?;
    of_layer.get(&bits).copied().ok_or_else(|| Error::usage(format!("latency_table: layer {} has no time for {bits} bits", layer.name)))
}

fn within(items: &[Vec<Choice>], chosen: &[usize], limits: &[f64]) -> bool {
    knapsack::costs(items, chosen, limits.len()).iter().zip(limits).all(|(c, l)| c <= l)
}

/// From the last choice of each, the step down that loses least for what it saves of limits that are overrun, until all hold.
fn greedy(items: &[Vec<Choice>], limits: &[f64]) -> Option<Vec<usize>> {
    let mut chosen: Vec<usize> = items.iter().map(|c| c.len() - 1).collect();
    while !within(items, &chosen, limits) {
        let spent = knapsack::costs(items, &chosen, limits.len());
        let saved = |i: usize| -> f64 {
            let (now, then) = (&items[i][chosen[i]], &items[i][chosen[i] - 1]);
            (0..limits.len()).filter(|j| spent[*j] > limits[*j]).map(|j| (now.costs[j] - then.costs[j]) / limits[j].max(f64::MIN_POSITIVE)).sum()
        };
        let price = |i: usize| (items[i][chosen[i] - 1].loss - items[i][chosen[i]].loss) / saved(i);
        let open = (0..items.len()).filter(|i| chosen[*i] > 0 && saved(*i) > 0.0);
        let next = open.min_by(|a, b| price(*a).total_cmp(&price(*b)))?;
        chosen[next] -= 1;
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Op, Type, ValueId};
    use crate::pass::Silent;
    use crate::quant::{Params, QuantizerId, Scheme};
    use crate::tensor::{DType, Tensor};

    const N: usize = 8;

    /// Four products of 8×8, Relu between; the weights of the second are fine-grained, those of the others nearly fit 4 bits.
    fn model() -> (Model, Vec<QuantizerId>) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let typed = |m: &mut Model, name: &str| -> ValueId {
            let v = m.graph.add_value(name);
            m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(N)]) };
            v
        };
        let mut at = typed(&mut m, "x");
        m.graph.inputs = vec![at];
        let mut ids = Vec::new();
        for i in 0..4 {
            let u = |k: usize| ((k * 7 + i * 13) as f32 * 0.618_034).fract() * 2.0 - 1.0;
            let w: Vec<f32> = (0..N * N).map(|k| if i == 1 { u(k) } else { (u(k) * 7.0).round() / 7.0 + 0.02 * u(k + 3) }).collect();
            let q = m.quantizers.add(format!("w{i}"), Scheme::int(8, true));
            m.quantizers[q].params = Some(Params::tensor(1.0 / 127.0, None));
            let [c, wq] = [m.graph.add_constant(&format!("w{i}"), Tensor::of_f32(&[N, N], w)), m.graph.add_value(&format!("wq{i}"))];
            m.graph.add_node(Node::fake_quant(q, format!("f{i}")), &[Some(c)], &[Some(wq)]);
            let y = typed(&mut m, &format!("y{i}"));
            m.graph.add_node(Node::new(Op::MatMul, format!("layer{i}")), &[Some(at), Some(wq)], &[Some(y)]);
            at = typed(&mut m, &format!("r{i}"));
            m.graph.add_node(Node::new(Op::LeakyRelu, format!("relu{i}")), &[Some(y)], &[Some(at)]);
            ids.push(q);
        }
        m.graph.outputs = vec![at];
        (m, ids)
    }

    fn run(how: &Allocate) -> Result<(Vec<u8>, Notes)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let x: Vec<u8> = (0..4 * N).flat_map(|k| ((k as f32 * 0.754_877).fract() * 2.0 - 1.0).to_le_bytes()).collect();
        std::fs::write(&path, npy("<f4", false, &[4, N], &x)).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Known(1), Dim::Known(N)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        let (mut m, ids) = model();
        let notes = allocate(&mut m, how, Some((&data, &[0, 1, 2, 3])), &Silent)?;
        Ok((ids.iter().map(|q| m.quantizers[*q].scheme.format.bits()).collect(), notes))
    }

    fn how(profile: &Profile) -> Allocate<'_> {
        Allocate {
            bits: vec![4, 8],
            base: 8,
            size: Some(Amount::Share(0.63)),
            bitops: None,
            latency: None,
            latencies: None,
            front: vec![],
            strategy: Strategy::Program,
            sensitivity: Sensitivity::OneAtATime,
            samples: 4,
            profile,
            threads: 1,
        }
    }

    #[test]
    fn the_layer_that_needs_width_gets_it_under_each_limit_and_by_each_measure() {
        let profile = Profile::default();
        for sensitivity in [Sensitivity::OneAtATime, Sensitivity::LayerMse, Sensitivity::HessianTrace] {
            for strategy in [Strategy::Program, Strategy::Greedy] {
                assert_eq!(run(&Allocate { sensitivity, strategy, ..how(&profile) }).unwrap().0, [4, 8, 4, 4]);
            }
        }
        assert_eq!(run(&Allocate { strategy: Strategy::Uniform, ..how(&profile) }).unwrap().0, [4, 4, 4, 4]);
        assert_eq!(run(&Allocate { size: None, bitops: Some(Amount::Share(0.63)), ..how(&profile) }).unwrap().0, [4, 8, 4, 4]);
        let free = run(&Allocate { size: Some(Amount::Share(1.0)), ..how(&profile) }).unwrap().0;
        assert_eq!(free[..2], [8, 8], "those that lose by 4 bits: {free:?}");
        // 8 bits take no longer in the first three; in the last they do.
        let times = |eight: f64| BTreeMap::from([(4, 1.0), (8, eight)]);
        let latencies: Latencies = (0..4).map(|i| (format!("layer{i}"), times(if i == 3 { 2.0 } else { 1.0 }))).collect();
        let by_time = Allocate { size: None, latency: Some(4.5), latencies: Some(&latencies), ..how(&profile) };
        let found = run(&by_time).unwrap().0;
        assert!(found[1] == 8 && found[3] == 4, "{found:?}");
        let (_, notes) = run(&Allocate { front: vec![0.5, 0.75, 0.1], ..how(&profile) }).unwrap();
        let front: Vec<_> = notes.list().iter().filter(|n| n.text.starts_with("front: ")).collect();
        assert!(front.len() == 3 && front[1].text.contains("192 bytes") && front[2].text.contains("nothing fits"), "{front:?}");
    }

    #[test]
    fn what_cannot_be_met_is_told_with_the_smallest_possible() {
        let profile = Profile::default();
        let fails = |how: &Allocate, words: &[&str]| {
            let e = run(how).unwrap_err();
            assert!(e.exit_code() == 2 && words.iter().all(|w| e.to_string().contains(w)), "{e}");
        };
        fails(&Allocate { size: Some(Amount::Whole(100.0)), ..how(&profile) }, &["size", "smallest possible is 128", "0.5"]);
        fails(&Allocate { size: None, latency: Some(9.0), ..how(&profile) }, &["latency_table"]);
        let latencies = Latencies::from([("layer0".to_string(), BTreeMap::from([(4, 1.0)]))]);
        fails(&Allocate { size: None, latency: Some(9.0), latencies: Some(&latencies), ..how(&profile) }, &["layer0", "8 bits"]);
        // An override set all widths.
        assert_eq!(run(&Allocate { base: 6, ..how(&profile) }).unwrap_err().exit_code(), 2);
        assert_eq!(run(&Allocate { base: 6, size: Some(Amount::Share(1.0)), ..how(&profile) }).unwrap().0, [8, 8, 8, 8]);
        // A target that holds 8 bits alone.
        let narrow = Profile { legal: crate::target::Legal { weights: vec!["int8".into()], ..Default::default() }, ..Profile::default() };
        let (bits, notes) = run(&Allocate { size: Some(Amount::Share(1.0)), ..how(&narrow) }).unwrap();
        assert_eq!(bits, [8, 8, 8, 8]);
        assert!(notes.list().iter().any(|n| n.text.contains("(and 3 more)")), "{notes:?}");
    }
}
