//! Keeps the few activations wider that 8 bits harm most. With all others wide, groups of activations are made narrow and measured on a few samples,
//! and the noisiest group is halved again and again. What causes most noise for its cost becomes wider, within the limits.
//! Source: sensitivity analysis, a part of the model quantized at a time (Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 6.1).
//! Needs: scales, samples. Declines: where no few activations cause the loss.

use crate::data::Dataset;
use crate::engine::{Staged, Trial, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{self, Flow, InputShapes, Linear, Model, Op, Recurrent, ValueId};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::{self, Format, Origin, QuantizerId, Table, Timing};
use crate::range;
use crate::target::SchemeKeys;
use std::collections::{BTreeMap, BTreeSet};

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widen<'a> {
    /// Largest share of the elements of all activations that may be wider.
    pub share: f64,
    /// Largest share of the multiply-adds whose operand may be wider.
    pub macs: f64,
    /// Groups whose noise is found.
    pub tries: usize,
    /// Samples to measure on.
    pub samples: usize,
    /// Models that lose less than this need nothing wider.
    pub loss: f64,
    /// What wider ones become; `None`: float.
    pub wide: Option<&'a SchemeKeys>,
    /// Ops whose operands and results stay as they are.
    pub never: &'a [Op],
    pub threads: usize,
}

/// Of the noise that is left, what a wider tensor must be the cause of.
const WORTH: f64 = 0.05;
/// Loss below which the noises of a group's halves add up to its own. Above it, each half alone may do all the harm.
const ADDS: f64 = 0.1;
/// The chosen ones together must make the loss smaller by this factor.
const TOGETHER: f64 = 0.93;

/// One quantizer and the activations that flow through it.
struct Candidate {
    id: QuantizerId,
    name: String,
    elements: u64,
    /// Multiply-adds that read it.
    macs: u64,
}

/// Candidates that follow each other in the graph, and the loss if they alone are narrow, above that if all are wide.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Group {
    from: usize,
    to: usize,
    noise: f64,
}

/// The `widen` step. `trial`: what the float model is known to give for the first samples.
pub fn widen(model: &mut Model, how: &Widen, data: Option<(&Dataset, &[usize])>, trial: Option<Trial>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("widen");
    let (data, samples) = data.ok_or_else(|| Error::usage("widen measures on sample inputs: give --data"))?;
    let trial = match trial.filter(|t| t.samples().len() >= how.samples.min(samples.len())) {
        Some(known) => known.first(how.samples),
        None => Trial::new(model, samples.iter().take(how.samples).map(|&i| data.sample(i)).collect::<Result<_>>()?, how.threads)?,
    };
    let shapes = shapes_of(&trial.samples()[0]);
    let mut staged = Staged::new(&trial, model)?;
    let (half, count) = (trial.samples().len().div_ceil(2), trial.samples().len());
    // The loss on the first half of the samples, and on all.
    let losses = |staged: &Staged, table: &Table| -> Result<(f64, f64)> {
        let mut lost = staged.lost(table, 0..half)?;
        let on_half = lost.mean()?;
        lost.merge(&staged.lost(table, half..count)?);
        Ok((on_half, lost.mean()?))
    };
    let base = losses(&staged, &model.quantizers)?;
    if base.1 < how.loss {
        return Ok(notes);
    }
    // Where noises add up, half of the samples tell them apart.
    let adds = base.1 < ADDS;
    let told = |(on_half, on_all): (f64, f64)| if adds { on_half } else { on_all };
    let costs = costs(model, &shapes, how.never);
    let wide: Table = costs.candidates.iter().fold(model.quantizers.clone(), |mut table, c| {
        wide_row(&mut table, c.id);
        table
    });
    progress.begin("widen", how.tries as u64);
    staged.know(&wide)?;
    let least = losses(&staged, &wide)?;
    // The noise of these candidates if they are narrow, and all others wide.
    let measure = |from: usize, to: usize| {
        let mut table = wide.clone();
        costs.candidates[from..to].iter().for_each(|c| table[c.id] = model.quantizers[c.id].clone());
        progress.tick(1);
        Ok(staged.lost(&table, 0..if adds { half } else { count })?.mean()? - told(least))
    };
    let groups = noisiest(costs.candidates.len(), told(base) - told(least), adds, how.tries, measure)?;
    let (base, least) = (base.1, least.1);
    let chosen = choose(&groups, &costs, how);
    let mut table = model.quantizers.clone();
    let ids: BTreeSet<QuantizerId> = chosen.iter().flat_map(|g| &costs.candidates[g.from..g.to]).map(|c| c.id).collect();
    ids.iter().for_each(|id| wide_row(&mut table, *id));
    let loss = if ids.is_empty() { base } else { staged.lost(&table, 0..count)?.mean()? };
    progress.end();
    if loss > base * TOGETHER {
        notes.declined("", format!("nothing is kept wider: no few activations cause the loss (all of them would take it from {base:.2e} to {least:.2e})"));
        return Ok(notes);
    }
    let all = groups.iter().map(|g| g.noise).sum::<f64>();
    for g in &chosen {
        let part = 100.0 * g.noise / all;
        for c in &costs.candidates[g.from..g.to] {
            let with = if g.to - g.from > 1 { format!(" together with {} beside it", g.to - g.from - 1) } else { String::new() };
            let share = 100.0 * c.elements as f64 / costs.elements.max(1) as f64;
            notes.changed(&c.name, format!("kept wider, as in 8 bits it causes {part:.0} % of the outputs' noise{with} ({share:.1} % of the activations)"));
        }
    }
    notes.changed("", format!("{} wider activations take the loss from {base:.2e} to {loss:.2e}", ids.len()));
    match how.wide {
        None => remove(model, &ids),
        Some(keys) => {
            for &id in &ids {
                let row = &mut model.quantizers[id];
                let scheme = keys.scheme(None).at(|| &row.name)?;
                let (lo, hi) = covered(&table, id);
                (row.params, row.scheme) = (Some(quant::fit_range(&scheme, &[lo], &[hi]).at(|| &row.name)?), scheme);
            }
            // The scales of biases are products of theirs.
            range::settle(model, &mut notes)?;
        }
    }
    Ok(notes)
}

/// Splits the noisiest group of candidates in two, again and again, until the noise of `tries` groups is known or none that is left matters.
/// Small noises of different origin add up, which is why a part can be measured by itself; where it `adds`, what it leaves of the whole is the other part's.
fn noisiest(n: usize, noise: f64, adds: bool, tries: usize, mut measure: impl FnMut(usize, usize) -> Result<f64>) -> Result<Vec<Group>> {
    let mut groups = vec![Group { from: 0, to: n, noise }];
    let mut left = tries;
    while left >= 2 {
        let all = groups.iter().map(|g| g.noise).sum::<f64>();
        let splits = |g: &&Group| g.to - g.from > 1 && g.noise > WORTH * all;
        let Some(&worst) = groups.iter().filter(splits).max_by(|a, b| a.noise.total_cmp(&b.noise).then(b.from.cmp(&a.from))) else { break };
        let middle = worst.from.midpoint(worst.to);
        let half = |from, to, noise: f64| Group { from, to, noise: noise.max(0.0) };
        let first = measure(worst.from, middle)?;
        let second = if adds { worst.noise - first } else { measure(middle, worst.to)? };
        let halves = [half(worst.from, middle, first), half(middle, worst.to, second)];
        groups.retain(|g| *g != worst);
        groups.extend(halves);
        left -= 2;
    }
    Ok(groups)
}

/// The groups to widen: most noise for their cost first, while they fit and are worth it.
fn choose(groups: &[Group], costs: &Costs, how: &Widen) -> Vec<Group> {
    let of = |g: &Group| costs.candidates[g.from..g.to].iter().fold((0u64, 0u64), |(e, m), c| (e + c.elements, m.saturating_add(c.macs)));
    // In parts of what may be spent.
    let (elements, macs) = (how.share * costs.elements as f64, how.macs * costs.macs as f64);
    let cost = |(e, m): (u64, u64)| (e as f64 / elements.max(1.0)).max(m as f64 / macs.max(1.0));
    let mut ranked: Vec<&Group> = groups.iter().filter(|g| cost(of(g)) <= 1.0).collect();
    let value = |g: &Group| g.noise / cost(of(g)).max(1e-3);
    ranked.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.from.cmp(&b.from)));
    let mut left = groups.iter().map(|g| g.noise).sum::<f64>();
    let mut spent = (costs.float, 0u64);
    let mut chosen = Vec::new();
    for g in ranked {
        let with = (spent.0 + of(g).0, spent.1.saturating_add(of(g).1));
        if left > how.loss && g.noise > WORTH * left && cost(with) <= 1.0 {
            (spent, left) = (with, left - g.noise);
            chosen.push(*g);
        }
    }
    chosen.sort_by_key(|g| g.from);
    chosen
}

/// What may be widened, in the order of the graph, and what counts against the limits.
struct Costs {
    candidates: Vec<Candidate>,
    /// Elements of all activations, and of those that stay float.
    elements: u64,
    float: u64,
    /// Multiply-adds of the model.
    macs: u64,
}

/// Static activations of at most 8 bits per tensor whose range came from data and which no op of `never` reads or makes, on inputs of these shapes.
fn costs(model: &Model, shapes: &InputShapes, never: &[Op]) -> Costs {
    let g = &model.graph;
    let inferred = graph::infer(model, shapes);
    let size = |v: ValueId| inferred.shape(v).map_or(0, |s| s.iter().product::<usize>() as u64);
    let (by_quantizer, macs) = multiply_adds(model, &inferred);
    let touched = touched(model, never);
    let mut costs = Costs { candidates: Vec::new(), elements: 0, float: 0, macs };
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    let mut at: BTreeMap<QuantizerId, usize> = BTreeMap::new();
    for (_, node) in g.nodes() {
        if node.op.flow() != Flow::Move && node.quantizer().is_none() {
            costs.float += node.outputs().iter().flatten().filter(|y| stays_float(g, **y)).map(|y| size(*y)).sum::<u64>();
        }
        let (Some(q), Some(x)) = (node.quantizer(), node.input(0)) else { continue };
        if g.constant(x).is_some() || !seen.insert(x) {
            continue;
        }
        costs.elements += size(x);
        let id = model.quantizers.root(q);
        let row = &model.quantizers[id];
        let fitted = row.params.as_ref().is_some_and(|p| p.origin == Origin::Fitted);
        if fitted && !touched.contains(&id) && row.scheme.blocks.is_tensor() && row.scheme.timing == Timing::Static && row.scheme.format.bits() <= 8 {
            let i = *at.entry(id).or_insert(costs.candidates.len());
            if i == costs.candidates.len() {
                costs.candidates.push(Candidate { id, name: row.name.clone(), elements: 0, macs: by_quantizer.get(&id).copied().unwrap_or(0) });
            }
            costs.candidates[i].elements += size(x);
        }
    }
    costs.elements += costs.float;
    costs
}

/// Whether a computed value is stored in float: nobody quantizes it, and it is an output or is moved elsewhere.
fn stays_float(g: &graph::Graph, y: ValueId) -> bool {
    let value = g.value(y);
    let flow = |p: &graph::Port| g.get_node(p.node).map(|n| n.op.flow());
    value.dtype().is_none_or(|d| d.is_float())
        && !value.uses().iter().any(|p| flow(p) == Some(Flow::Quantize))
        && (g.is_output(y) || value.uses().iter().any(|p| flow(p) == Some(Flow::Move)))
}

/// Multiply-adds by the quantizer of each operand that flows in, and those of the model.
fn multiply_adds(model: &Model, inferred: &graph::Inferred) -> (BTreeMap<QuantizerId, u64>, u64) {
    let g = &model.graph;
    let (mut macs, mut all): (BTreeMap<QuantizerId, u64>, u64) = Default::default();
    for (id, node) in g.nodes() {
        let n = match (Linear::of(g, id), Recurrent::of(g, id)) {
            (Some(linear), _) => linear.macs(g, inferred),
            (None, Some(recurrent)) => recurrent.macs(g, inferred),
            (None, None) => continue,
        };
        // Where they cannot be counted, they are too many to be widened.
        let n = n.unwrap_or(u64::MAX / 1024);
        all = all.saturating_add(n);
        let operands: BTreeSet<QuantizerId> = node.inputs().iter().flatten().filter_map(|v| source(model, *v)).collect();
        operands.into_iter().for_each(|q| *macs.entry(q).or_default() += n);
    }
    (macs, all)
}

/// Quantizers of what these ops read, and of what becomes of their results.
fn touched(model: &Model, ops: &[Op]) -> BTreeSet<QuantizerId> {
    let g = &model.graph;
    let (mut touched, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (_, node) in g.nodes().filter(|(_, n)| ops.contains(&n.op)) {
        touched.extend(node.inputs().iter().flatten().filter_map(|v| source(model, *v)));
        let mut results: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
        while let Some(y) = results.pop() {
            let new = seen.insert(y);
            for reader in g.value(y).uses().iter().filter(|_| new).filter_map(|p| g.get_node(p.node)) {
                match reader.quantizer() {
                    Some(q) => drop(touched.insert(model.quantizers.root(q))),
                    // An activation function computed with it, or a bias behind it.
                    None => results.extend(reader.output(0).filter(|_| !ops.contains(&reader.op))),
                }
            }
        }
    }
    touched
}

/// The quantizer that a value which flows comes from, seen through moves.
fn source(model: &Model, v: ValueId) -> Option<QuantizerId> {
    let (fake, id) = model.quantizer_behind(v)?;
    model.graph.constant(model.graph.node(fake).input(0)?).is_none().then_some(id)
}

/// The same range in 16 bits.
pub(super) fn wide_row(table: &mut Table, id: QuantizerId) {
    let (lo, hi) = covered(table, id);
    let row = &mut table[id];
    if let Format::Int { signed, narrow, .. } = row.scheme.format {
        row.scheme.format = Format::Int { bits: 16, signed, narrow };
    } else {
        row.scheme.format = Format::Int { bits: 16, signed: true, narrow: false };
    }
    if let quant::Zero::Fixed(z) = &mut row.scheme.zero {
        *z *= 256;
    }
    if let Ok(p) = quant::fit_range(&row.scheme, &[lo], &[hi]) {
        row.params = Some(p);
    }
}

/// The range that a quantizer's codes cover.
fn covered(table: &Table, id: QuantizerId) -> (f32, f32) {
    let row = &table[id];
    row.params.as_ref().map_or((0.0, 0.0), |p| quant::ends(&row.scheme, p))
}

/// Takes the quantizers' nodes out of the graph.
fn remove(model: &mut Model, ids: &BTreeSet<QuantizerId>) {
    let g = &model.graph;
    let nodes: Vec<_> = g
        .nodes()
        .filter(|(_, n)| n.quantizer().is_some_and(|q| ids.contains(&model.quantizers.root(q))))
        .filter(|(_, n)| n.input(0).is_some_and(|x| g.constant(x).is_none()))
        .map(|(id, _)| id)
        .collect();
    for n in nodes {
        model.graph.bypass(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Op, Type};
    use crate::pass::Silent;
    use crate::quant::{Params, Scheme};
    use crate::tensor::DType;

    const HOW: Widen = Widen { share: 0.1, macs: 0.02, tries: 24, samples: 4, loss: 0.01, wide: None, never: &[], threads: 1 };

    /// x[1,8] → FakeQuant → Relu → FakeQuant → Relu → FakeQuant → Relu → FakeQuant → y; all but the second hold the values exactly.
    #[test]
    fn the_one_quantizer_that_harms_is_widened_and_no_other() {
        let x: Vec<f32> = [13, 40, 77, 101, 140, 190, 222, 250].iter().map(|i| *i as f32 / 256.0).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        std::fs::write(&path, npy("<f4", false, &[1, 8], &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())).unwrap();
        let shape = Some(vec![Dim::Known(1), Dim::Known(8)]);
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: shape.clone() };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        let build = || {
            let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
            let mut at = m.graph.add_value("x");
            m.graph.inputs = vec![at];
            for i in 0..4 {
                let q = m.quantizers.add(format!("q{i}"), Scheme::int(8, false));
                m.quantizers[q].params = Some(Params::tensor(if i == 1 { 0.5 } else { 1.0 / 256.0 }, Some(0)));
                let [fq, relu] = [format!("f{i}"), format!("r{i}")].map(|n| m.graph.add_value(&n));
                m.graph.add_node(Node::fake_quant(q, format!("f{i}")), &[Some(at)], &[Some(fq)]);
                at = fq;
                if i < 3 {
                    m.graph.add_node(Node::new(Op::Relu, format!("r{i}")), &[Some(fq)], &[Some(relu)]);
                    at = relu;
                }
            }
            m.graph.outputs = vec![at];
            for v in m.graph.values().map(|(v, _)| v).collect::<Vec<_>>() {
                m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: shape.clone() };
            }
            m
        };
        let names = |m: &Model| m.graph.nodes().filter(|(_, n)| n.quantizer().is_some()).map(|(_, n)| n.name.clone()).collect::<Vec<_>>();
        let run = |m: &mut Model, how: &Widen| super::widen(m, how, Some((&data, &[0])), None, &Silent).unwrap();
        let how = Widen { share: 0.3, ..HOW };

        let mut m = build();
        let notes = run(&mut m, &how);
        assert_eq!(names(&m), ["f0", "f2", "f3"]);
        let said: Vec<_> = notes.list().iter().map(|n| n.about.as_str()).collect();
        assert!(said == ["q1", ""] && notes.list()[0].text.contains("causes 100 %") && notes.list()[0].text.contains("25.0 % of the activations"), "{notes:?}");

        let keys = SchemeKeys { format: Some("uint16".into()), ..SchemeKeys::default() };
        let mut m = build();
        run(&mut m, &Widen { wide: Some(&keys), ..how });
        assert_eq!(names(&m).len(), 4);
        let bits: Vec<u8> = m.quantizers.ids().map(|q| m.quantizers[q].scheme.format.bits()).collect();
        assert_eq!(bits, [8, 16, 8, 8]);
        // The same range in more codes.
        let q = m.quantizers.ids().nth(1).unwrap();
        assert_eq!(m.quantizers[q].params.as_ref().unwrap().scale, [127.5 / 65535.0]);

        // It is too large a share, or nothing is to be gained.
        for how in [Widen { share: 0.2, ..how }, Widen { loss: 0.5, ..how }] {
            let mut m = build();
            run(&mut m, &how);
            assert_eq!(names(&m).len(), 4, "{how:?}");
        }
    }

    /// Noises that add up, by candidate.
    fn split(noises: &[f64], adds: bool, tries: usize) -> (Vec<Group>, usize) {
        let mut measured = 0;
        let sum = |from: usize, to: usize| noises[from..to].iter().sum::<f64>();
        let groups = noisiest(noises.len(), sum(0, noises.len()), adds, tries, |from, to| {
            measured += 1;
            Ok(sum(from, to))
        });
        (groups.unwrap(), measured)
    }

    fn costs(elements: &[u64], macs: &[u64]) -> Costs {
        let one = |(i, (e, m)): (usize, (&u64, &u64))| Candidate {
            id: Table::default().add(i.to_string(), crate::quant::Scheme::int(8, false)),
            name: i.to_string(),
            elements: *e,
            macs: *m,
        };
        Costs { candidates: elements.iter().zip(macs).enumerate().map(one).collect(), elements: elements.iter().sum(), float: 0, macs: macs.iter().sum() }
    }

    #[test]
    fn the_noisiest_candidates_are_isolated_and_the_limit_on_measurements_kept() {
        let mut noises = [0.001; 300];
        (noises[7], noises[200]) = (0.5, 0.4);
        // Where they are known to add up, half of them are measured.
        for (adds, most) in [(false, 40), (true, 20)] {
            let (groups, measured) = split(&noises, adds, 40);
            for i in [7, 200] {
                assert!(groups.iter().any(|g| (g.from, g.to) == (i, i + 1)), "{i} of {groups:?}");
            }
            assert!(measured <= most && groups.iter().map(|g| g.to - g.from).sum::<usize>() == 300, "{measured} {groups:?}");
        }
        assert_eq!([split(&noises, false, 5).1, split(&noises, true, 5).1], [4, 2]);
        assert_eq!(split(&[0.3], false, 9), (vec![Group { from: 0, to: 1, noise: 0.3 }], 0));
    }

    /// x → FQ → Conv → Relu → FQ → Add → FQ → y
    #[test]
    fn what_an_op_reads_and_makes_is_touched() {
        let mut m = Model::default();
        let [a, b, c] = ["a", "b", "c"].map(|n| m.quantizers.add(n, crate::quant::Scheme::int(8, false)));
        let g = &mut m.graph;
        let [x, xq, k, r, rq, s, y] = ["x", "xq", "k", "r", "rq", "s", "y"].map(|n| g.add_value(n));
        for (node, from, to) in [
            (graph::Node::fake_quant(a, "a"), x, xq),
            (graph::Node::new(Op::Conv, "conv"), xq, k),
            (graph::Node::new(Op::Relu, "relu"), k, r),
            (graph::Node::fake_quant(b, "b"), r, rq),
            (graph::Node::new(Op::Add, "add"), rq, s),
            (graph::Node::fake_quant(c, "c"), s, y),
        ] {
            g.add_node(node, &[Some(from)], &[Some(to)]);
        }
        assert_eq!(touched(&m, &[Op::Conv]), BTreeSet::from([a, b]));
        assert_eq!(touched(&m, &[]), BTreeSet::new());
    }

    #[test]
    fn what_causes_most_for_its_cost_is_chosen_within_the_limits() {
        let (groups, _) = split(&[0.5, 0.4, 0.0, 0.05, 0.0, 0.0, 0.0, 0.0], false, 24);
        let chosen = |elements: &[u64], macs: &[u64], how: &Widen| choose(&groups, &costs(elements, macs), how).iter().map(|g| g.from).collect::<Vec<_>>();
        let (even, none) = ([4, 4, 4, 4, 80, 80, 80, 80], [0; 8]);
        assert_eq!(chosen(&even, &none, &HOW), [0, 1, 3]);
        // The first is too large, the second feeds too many multiply-adds.
        assert_eq!(chosen(&[40, 4, 4, 4, 80, 80, 80, 80], &none, &HOW), [1, 3]);
        assert_eq!(chosen(&even, &[0, 5, 0, 0, 95, 0, 0, 0], &HOW), [0, 3]);
        // There is room for one, and no need of more than two.
        assert_eq!(chosen(&even, &none, &Widen { share: 0.02, ..HOW }), [0]);
        assert_eq!(chosen(&even, &none, &Widen { loss: 0.06, ..HOW }), [0, 1]);
        // What stays float counts.
        let with_float = Costs { float: 30, ..costs(&even, &none) };
        assert_eq!(choose(&groups, &with_float, &HOW).len(), 0);
    }
}
