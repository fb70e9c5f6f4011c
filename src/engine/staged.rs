//! A trial of a model in pieces: what a table leaves as it was under another, up to the first piece that it changes, is not computed again.

use super::piece::Piece;
use super::runner::flowing;
use super::trial::{Lost, Trial};
use super::{RunnerOptions, State, each_sample, shapes_of};
use crate::error::{Error, Result};
use crate::graph::{Graph, InputShapes, Model, NodeId, ValueId, specialize};
use crate::quant::Table;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Pieces of a model, each with about as many numbers to make, and bytes that may be kept at their borders.
const PIECES: usize = 6;
const KEPT: usize = 256 << 20;

/// What was made before a piece and is needed from there on.
type Values = BTreeMap<ValueId, Tensor>;

/// The samples of a trial, and what is known of them under one table.
pub struct Staged<'t> {
    trial: &'t Trial,
    /// By the shapes of inputs, and which of them each sample has.
    stages: Vec<Stages>,
    of: Vec<usize>,
    table: Table,
    /// Of each sample, what stands before each piece, where that is kept; and what comes out.
    known: Vec<(Vec<Option<Values>>, Vec<Tensor>)>,
}

/// A model for inputs of these shapes.
struct Stages {
    shapes: InputShapes,
    inputs: Vec<(String, ValueId)>,
    pieces: Vec<Piece>,
    /// By piece: values that it or later ones read, or that are looked at.
    needed: Vec<BTreeSet<ValueId>>,
    /// What is looked at, and what of it is constant.
    probes: Vec<ValueId>,
    constants: Values,
}

/// What one thread needs to run the pieces, by the samples' shapes.
#[derive(Default)]
struct States(BTreeMap<usize, Vec<State>>);

impl<'t> Staged<'t> {
    /// Runs all samples under the model's own table. The model's weights are built in.
    ///
    /// # Errors
    /// As [`super::Runner::run`].
    pub fn new(trial: &'t Trial, model: &Model) -> Result<Self> {
        let mut staged = Staged { trial, stages: Vec::new(), of: Vec::new(), table: model.quantizers.clone(), known: Vec::new() };
        for sample in trial.samples() {
            let shapes = shapes_of(sample);
            let at = staged.stages.iter().position(|s| s.shapes == shapes).unwrap_or(staged.stages.len());
            if at == staged.stages.len() {
                staged.stages.push(Stages::new(model, shapes, sample, trial)?);
            }
            staged.of.push(at);
        }
        staged.know(&model.quantizers)?;
        Ok(staged)
    }

    /// Runs all samples under a table, from which later ones differ little.
    pub fn know(&mut self, table: &Table) -> Result<()> {
        self.known.clear();
        let run = |states: &mut States, i: usize| {
            let stages = &self.stages[self.of[i]];
            let (mut before, mut left) = (vec![None; stages.pieces.len()], KEPT / self.of.len());
            let out = stages.run(states.of(self, i), (0, self.inputs(i)), table, |piece, values| {
                let bytes: usize = values.values().map(|t| t.bytes().len()).sum();
                if bytes <= left {
                    left -= bytes;
                    before[piece] = Some(values.clone());
                }
            })?;
            Ok((before, out))
        };
        self.known = each_sample(self.of.len(), self.trial.threads(), || Ok(States::default()), run)?;
        self.table = table.clone();
        Ok(())
    }

    /// What is lost under `table` on some of the samples.
    pub fn lost(&self, table: &Table, samples: Range<usize>) -> Result<Lost> {
        let run = |states: &mut States, i: usize| {
            let (stages, (before, out)) = (&self.stages[self.of[i]], &self.known[i]);
            let Some(changed) = stages.pieces.iter().position(|p| !p.same_under(table, &self.table)) else { return Ok(out.clone()) };
            let kept = (0..=changed).rev().find_map(|p| Some((p, before[p].clone()?)));
            stages.run(states.of(self, i), kept.unwrap_or_else(|| (0, self.inputs(i))), table, |_, _| ())
        };
        self.trial.lost_by(samples, run)
    }

    /// A sample's inputs by value.
    fn inputs(&self, i: usize) -> Values {
        self.stages[self.of[i]].inputs(&self.trial.samples()[i])
    }
}

impl States {
    fn of(&mut self, staged: &Staged, sample: usize) -> &mut [State] {
        let at = staged.of[sample];
        self.0.entry(at).or_insert_with(|| staged.stages[at].pieces.iter().map(Piece::spawn).collect())
    }
}

impl Stages {
    /// Builds the pieces one by one, while a sample runs through them.
    fn new(model: &Model, shapes: InputShapes, sample: &BTreeMap<String, Tensor>, trial: &Trial) -> Result<Stages> {
        let (fixed, flows) = (specialize(model.clone(), &shapes)?, flowing(model));
        let g = &fixed.graph;
        let probes: Vec<ValueId> = trial.probes().iter().map(|p| p.value).collect();
        let position: BTreeMap<NodeId, usize> = g.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let needed = |v: ValueId, from: usize| probes.contains(&v) || g.value(v).uses().iter().any(|p| position.get(&p.node).is_some_and(|i| *i >= from));
        let inputs = g.inputs.iter().filter(|v| g.constant(**v).is_none()).map(|v| (g.value(*v).name.clone(), *v)).collect();
        let constants = probes.iter().filter_map(|v| Some((*v, g.constant(*v)?.tensor.clone()))).collect();
        let mut stages = Stages { shapes, inputs, pieces: Vec::new(), needed: Vec::new(), probes: probes.clone(), constants };
        let mut values = stages.inputs(sample);
        for nodes in borders(g).windows(2) {
            let later = |v: ValueId| needed(v, nodes[1]);
            let Some(piece) = Piece::new(&fixed, &g.order()[nodes[0]..nodes[1]], &later, |v| values.get(&v), (RunnerOptions::default(), &flows))? else {
                continue;
            };
            let made = piece.run(&mut piece.spawn(), |v| values.get(&v), &fixed.quantizers)?;
            stages.needed.push(values.keys().copied().filter(|v| needed(*v, nodes[0])).collect());
            values.extend(piece.made.iter().copied().zip(made));
            stages.pieces.push(piece);
        }
        Ok(stages)
    }

    fn inputs(&self, sample: &BTreeMap<String, Tensor>) -> Values {
        self.inputs.iter().filter_map(|(name, v)| Some((*v, sample.get(name)?.clone()))).collect()
    }

    /// Runs from a piece on, given what stands before it; `pass` sees what stands before each.
    fn run(&self, states: &mut [State], (from, mut values): (usize, Values), table: &Table, mut pass: impl FnMut(usize, &Values)) -> Result<Vec<Tensor>> {
        for (at, piece) in self.pieces.iter().enumerate().skip(from) {
            values.retain(|v, _| self.needed[at].contains(v));
            pass(at, &values);
            let made = piece.run(&mut states[at], |v| values.get(&v), table)?;
            values.extend(piece.made.iter().copied().zip(made));
        }
        let out = |v: &ValueId| values.get(v).or(self.constants.get(v)).cloned().ok_or_else(|| Error::failed("a value that is looked at was not made"));
        self.probes.iter().map(out).collect()
    }
}

/// Where pieces begin in the order of nodes, and its end.
fn borders(g: &Graph) -> Vec<usize> {
    let numbers = |n: &NodeId| -> usize {
        let made = g.node(*n).outputs().iter().flatten().filter(|v| g.constant(**v).is_none());
        made.map(|v| g.value(*v).known_shape().map_or(1, |s| s.iter().product())).sum()
    };
    let all: usize = g.order().iter().map(numbers).sum();
    let (mut borders, mut made) = (vec![0], 0);
    for (i, n) in g.order().iter().enumerate() {
        if made * PIECES > all * borders.len() {
            borders.push(i);
        }
        made += numbers(n);
    }
    borders.push(g.order().len());
    borders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Node, Op, Type};
    use crate::quant::{Params, QuantizerId, Scheme};
    use crate::tensor::DType;

    /// x[N,2] → eight times FakeQuant, and x added → y; what the first gives is added at the end instead.
    fn chain() -> (Model, Vec<QuantizerId>) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let value = |m: &mut Model, name: String| {
            let v = m.graph.add_value(&name);
            m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2)]) };
            v
        };
        let x = value(&mut m, "x".into());
        let (mut at, mut ids, mut first) = (x, Vec::new(), None);
        for i in 0..8 {
            let q = m.quantizers.add(format!("q{i}"), Scheme::int(8, true));
            m.quantizers[q].params = Some(Params::tensor(0.05, None));
            let [y, z] = ["y", "z"].map(|n| value(&mut m, format!("{n}{i}")));
            m.graph.add_node(Node::fake_quant(q, format!("f{i}")), &[Some(at)], &[Some(y)]);
            let other = if i == 7 { first.unwrap() } else { x };
            m.graph.add_node(Node::new(Op::Add, format!("add{i}")), &[Some(y), Some(other)], &[Some(z)]);
            first.get_or_insert(y);
            (at, ids) = (z, [ids, vec![q]].concat());
        }
        (m.graph.inputs, m.graph.outputs) = (vec![x], vec![at]);
        (m, ids)
    }

    #[test]
    fn losses_are_those_of_the_whole_wherever_a_table_differs() {
        let (m, ids) = chain();
        let sample =
            |n: usize| BTreeMap::from([("x".to_string(), Tensor::of_f32(&[n, 2], (0..2 * n).map(|i| (i as f32 * 0.618_034).fract() - 0.4).collect()))]);
        for threads in [1, 2] {
            // Of two shapes.
            let trial = Trial::new(&m, vec![sample(1), sample(3), sample(1)], threads).unwrap();
            let plans = trial.plans(&m);
            let mut staged = Staged::new(&trial, &m).unwrap();
            assert!(staged.stages.len() == 2 && staged.stages.iter().all(|s| s.pieces.len() > 3), "{}", staged.stages[0].pieces.len());
            let coarse = |base: &Table, id: QuantizerId, scale: f32| {
                let mut table = base.clone();
                table[id].params = Some(Params::tensor(scale, None));
                table
            };
            // Under the model's own table, and under one that has become known.
            let mut base = m.quantizers.clone();
            for round in 0..2 {
                let plain = |table: &Table| trial.lost(&plans, table, 1..3).unwrap().mean().unwrap();
                let mut seen = vec![plain(&base)];
                for table in std::iter::once(base.clone()).chain(ids.iter().map(|id| coarse(&base, *id, 0.4))) {
                    seen.push(plain(&table));
                    assert_eq!(staged.lost(&table, 1..3).unwrap().mean().unwrap(), plain(&table), "round {round}");
                }
                seen.dedup();
                assert!(seen.len() > 7, "what is changed shows: {seen:?}");
                base = coarse(&base, ids[3], 0.1);
                staged.know(&base).unwrap();
            }
        }
    }
}
