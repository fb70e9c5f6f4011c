//! A piece of a model between two points of its order, as a plan of its own.

use super::segment::Given;
use super::{Runner, RunnerOptions, State};
use crate::error::{Error, Result};
use crate::graph::{Model, Node, NodeId, Op, ValueId, constant_behind};
use crate::quant::{QuantizerId, Table};
use crate::tensor::Tensor;
use std::collections::BTreeSet;

/// Some nodes that follow each other.
pub(super) struct Piece {
    runner: Runner,
    given: Vec<(ValueId, String)>,
    /// What it makes that is needed behind it.
    pub made: Vec<ValueId>,
}

impl Piece {
    /// The piece of a model with shapes as samples have them. `later`: whether a value is needed behind it; `known`: what was made before it, of one
    /// sample; `flows`: the quantizers of what flows, before shapes were given. `None`: nothing that it makes is needed.
    pub fn new<'t>(
        model: &Model,
        nodes: &[NodeId],
        later: &impl Fn(ValueId) -> bool,
        known: impl Fn(ValueId) -> Option<&'t Tensor>,
        (options, flows): (RunnerOptions, &BTreeSet<QuantizerId>),
    ) -> Result<Option<Piece>> {
        let g = &model.graph;
        let values = |of: fn(&Node) -> Vec<ValueId>| nodes.iter().flat_map(|n| of(g.node(*n))).collect::<BTreeSet<ValueId>>();
        let made = values(|n| n.outputs().iter().flatten().copied().collect());
        // What is made of constants is left to the piece that reads it, where it is one.
        let codes = |v: ValueId| g.value(v).producer().is_some_and(|(n, _)| g.node(n).op == Op::FakeQuant && g.node(n).input(0).is_none());
        let constant = |v: ValueId| codes(v) || constant_behind(g, v).is_some();
        let made: Vec<ValueId> = made.into_iter().filter(|v| later(*v) && !constant(*v)).collect();
        if made.is_empty() {
            return Ok(None);
        }
        let read = values(|n| n.inputs().iter().flatten().chain(n.captures()).copied().collect());
        let given: Vec<Given> =
            read.into_iter().filter_map(|v| Some((v, known(v)?))).map(|(value, t)| Given { value, dtype: t.dtype(), shape: t.shape().to_vec() }).collect();
        let runner = Runner::segment(model, &given, &made, options, flows)?;
        Ok(Some(Piece { runner, given: given.into_iter().map(|v| (v.value, g.value(v.value).name.clone())).collect(), made }))
    }

    /// What one thread needs to run it.
    pub fn spawn(&self) -> State {
        self.runner.spawn()
    }

    /// What it makes of what was made before it.
    pub fn run<'t>(&self, state: &mut State, known: impl Fn(ValueId) -> Option<&'t Tensor>, table: &Table) -> Result<Vec<Tensor>> {
        let given = |(v, name): &(ValueId, String)| {
            let t = known(*v).ok_or_else(|| Error::failed(format!("{name} was not made before it is read")))?;
            Ok((name.clone(), t.clone()))
        };
        self.runner.run(state, &self.given.iter().map(given).collect::<Result<_>>()?, table)
    }

    /// Whether it does the same under both tables.
    pub fn same_under(&self, a: &Table, b: &Table) -> bool {
        self.runner.same_under(a, b)
    }
}
