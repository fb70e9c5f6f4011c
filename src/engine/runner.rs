//! One optimised plan, run by any number of threads under any quantizer table.

use super::fake_quant::{Rows, with_rows};
use super::planning::{self, Plan, guarded};
use super::segment::{Given, cut};
use super::tensors::{of_tract, to_tract};
use super::weights::{self, Row, Weight};
use super::{prepare, support};
use crate::error::{Error, Result};
use crate::graph::{Flow, InputShapes, Model, Node, ValueId, specialize};
use crate::quant::{QuantizerId, Table};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use tract_onnx::prelude::{IntoArcTensor, IntoTValue, TValue, TVec};
use tract_onnx::tract_hir::internal::{SimpleState, TypedFact, TypedOp};

/// How FakeQuant nodes are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunnerOptions {
    /// Fake-quantized constants follow the table of each run, at the price of packing them anew at each run.
    /// Otherwise they are baked into the plan, and a run under a table that differs for them is refused.
    pub live_weights: bool,
    /// Every FakeQuant passes its input through, whatever the table says; one that has only codes gives what they stand for.
    pub float: bool,
}

/// What the plan is given, in its order.
enum Source {
    Input { name: String, dtype: DType, shape: Vec<usize> },
    Weight(Box<Weight>),
}

/// Where a requested value comes from.
enum Output {
    Plan(usize),
    Input(String),
    Constant(Tensor),
    /// What the plan is given at this place.
    Given(usize),
}

/// An optimised plan for fixed input shapes that returns chosen values.
pub struct Runner {
    plan: Option<Arc<Plan>>,
    sources: Vec<Source>,
    outputs: Vec<Output>,
    /// Quantizers read at each run.
    live: Vec<QuantizerId>,
    /// Quantizers whose constants are part of the plan, as they were then.
    baked: Vec<(QuantizerId, Row)>,
    /// tract's recurrent operators go on, at the next run, from where the last one ended; a run here starts anew.
    remembers: bool,
    /// Names of the nodes, by number.
    labels: BTreeMap<u32, String>,
}

/// What one thread needs to run a plan. Made by [`Runner::spawn`], for that runner alone.
#[derive(Default)]
pub struct State {
    plan: Option<SimpleState<TypedFact, Box<dyn TypedOp>>>,
    rows: Rc<Rows>,
}

impl Runner {
    /// A plan of `model` for inputs of these shapes that returns `outputs`, any values of the outermost graph. Weights are baked in as the
    /// model's own quantizer table and codes say.
    ///
    /// # Errors
    /// Names every node that the engine cannot run; the quantizer of a weight that has no parameters; inputs without a shape.
    pub fn new(model: &Model, fixed: &InputShapes, outputs: &[ValueId]) -> Result<Runner> {
        Self::with(model, fixed, outputs, RunnerOptions::default())
    }

    /// The same under options.
    pub fn with(model: &Model, fixed: &InputShapes, outputs: &[ValueId], options: RunnerOptions) -> Result<Runner> {
        let mut model = model.clone();
        model.graph.outputs = dedup(outputs);
        let flowing = flowing(&model);
        build(specialize(model, fixed)?, outputs, options, &flowing)
    }

    /// A plan of the nodes between `inputs` and `outputs`, where the values of `inputs` are given at each run under their names.
    /// Shapes that are computed outside the segment must be constants already, as `graph::specialize` leaves them; `flows` are the quantizers of what was
    /// none before.
    pub(super) fn segment(model: &Model, inputs: &[Given], outputs: &[ValueId], options: RunnerOptions, flows: &BTreeSet<QuantizerId>) -> Result<Runner> {
        let part = cut(model, inputs, &dedup(outputs))?;
        let fixed = inputs.iter().map(|i| (part.graph.value(i.value).name.clone(), i.shape.clone())).collect();
        build(specialize(part, &fixed)?, outputs, options, flows)
    }

    /// A state for one thread.
    pub fn spawn(&self) -> State {
        State::default()
    }

    /// Runs once. `inputs` by name; entries the plan does not need are ignored. The values asked for, in the order they were asked for.
    ///
    /// # Errors
    /// An input that is missing or of another type or shape; a static quantizer without parameters, by name; baked weights whose
    /// quantizer is not in `table` as it was when they were baked.
    pub fn run(&self, state: &mut State, inputs: &BTreeMap<String, Tensor>, table: &Table) -> Result<Vec<Tensor>> {
        if let Some((id, _)) = self.baked.iter().find(|(id, row)| id.0 as usize >= table.len() || !weights::is_current(table, *id, row)) {
            let name = if (id.0 as usize) < table.len() { table[*id].name.as_str() } else { "a weight" };
            return Err(Error::failed(format!("the quantizer of {name} has changed since its weights were built into the plan; build a new one")));
        }
        if let Some(rows) = weights::rows(table, &self.live, &state.rows)? {
            state.rows = Rc::new(rows);
        }
        let made = match &self.plan {
            None => TVec::new(),
            Some(plan) => {
                let given = self.sources.iter().map(|s| s.value(inputs, table)).collect::<Result<TVec<TValue>>>()?;
                let State { plan: running, rows } = state;
                let result = guarded(|| {
                    let running = match running {
                        Some(r) => r,
                        none => none.insert(plan.spawn()?),
                    };
                    with_rows(rows, || running.run(given))
                });
                if result.is_err() || self.remembers {
                    // What a run has left behind must not show in the next, nor what an interrupted one has.
                    state.plan = None;
                }
                result.map_err(|complaint| self.failed(&complaint))?
            }
        };
        self.outputs
            .iter()
            .map(|o| match o {
                Output::Plan(i) => of_tract(made[*i].clone().into_arc_tensor()),
                Output::Constant(t) => Ok(t.clone()),
                Output::Given(i) => of_tract(self.sources[*i].value(inputs, table)?.into_arc_tensor()),
                Output::Input(name) => inputs.get(name).cloned().ok_or_else(|| missing(name)),
            })
            .collect()
    }

    /// Whether runs under both tables do the same.
    pub fn same_under(&self, a: &Table, b: &Table) -> bool {
        let weights = self.sources.iter().filter_map(|s| if let Source::Weight(w) = s { Some(&w.id) } else { None });
        self.live.iter().chain(weights).all(|id| a[*id].scheme == b[*id].scheme && a[a.root(*id)].params == b[b.root(*id)].params)
    }

    /// The error that a complaint of tract's at run time is.
    fn failed(&self, complaint: &str) -> Error {
        let at = super::proto::node_of(complaint).and_then(|i| self.labels.get(&i)).map_or(String::new(), |name| format!(" at {name}"));
        Error::failed(format!("the engine failed{at}: {}", planning::plain(complaint)))
    }
}

impl Source {
    fn value(&self, inputs: &BTreeMap<String, Tensor>, table: &Table) -> Result<TValue> {
        match self {
            Source::Weight(w) => w.current(table),
            Source::Input { name, dtype, shape } => {
                let t = inputs.get(name).ok_or_else(|| missing(name))?;
                if t.dtype() != *dtype || t.shape() != shape {
                    return Err(Error::failed(format!("input {name} is {t:?}, but the plan was built for {dtype}{shape:?}")));
                }
                Ok(to_tract(t)?.into_tvalue())
            }
        }
    }
}

fn missing(name: &str) -> Error {
    Error::failed(format!("input {name} is not given"))
}

fn dedup(values: &[ValueId]) -> Vec<ValueId> {
    let mut seen = std::collections::BTreeSet::new();
    values.iter().copied().filter(|v| seen.insert(*v)).collect()
}

/// The quantizers of what flows. What is computed from shapes alone flows too, though it is a constant for inputs of fixed shapes.
pub(super) fn flowing(model: &Model) -> BTreeSet<QuantizerId> {
    let g = &model.graph;
    let flows = |n: &Node| n.input(0).is_some_and(|x| g.constant(x).is_none());
    g.nodes().filter(|(_, n)| flows(n)).filter_map(|(_, n)| Some(model.quantizers.root(n.quantizer()?))).collect()
}

/// Builds the plan of a specialised model that returns `outputs`. What constants share with values in `flowing` (a Concat's operands) changes with these.
fn build(mut model: Model, outputs: &[ValueId], options: RunnerOptions, flowing: &BTreeSet<QuantizerId>) -> Result<Runner> {
    let table = model.quantizers.clone();
    prepare::prepare(&mut model)?;
    let mut baked = weights::bake_bodies(&mut model, options.float)?;
    let mut sources = Vec::new();
    if options.float {
        baked.clear();
        weights::make_float(&mut model)?;
    } else {
        for w in weights::take(&mut model) {
            if let Some(zeros) = w.zeros(&table)? {
                model.graph.value_mut(w.value).constant = Some(zeros.into());
            } else if options.live_weights || flowing.contains(&table.root(w.id)) {
                sources.push((w.value, w.dtype, w.shape.clone(), Source::Weight(Box::new(w))));
            } else {
                let row = weights::row(&table, w.id)?;
                model.graph.value_mut(w.value).constant = Some(w.tensor(&row)?.into());
                baked.push((w.id, row));
            }
        }
    }
    planning::refuse(&support::refused(&model))?;

    let g = &model.graph;
    for &v in &g.inputs {
        let value = g.value(v);
        if g.constant(v).is_none() && value.uses().iter().any(|p| g.get_node(p.node).is_some()) {
            let dtype = value.dtype().ok_or_else(|| Error::usage(format!("input {} has no element type", value.name)))?;
            let shape = value.known_shape().ok_or_else(|| Error::usage(format!("input {} has no fixed shape", value.name)))?;
            sources.push((v, dtype, shape.clone(), Source::Input { name: value.name.clone(), dtype, shape }));
        }
    }
    let mut wanted = Vec::new();
    let outputs = outputs
        .iter()
        .map(|&v| {
            if let Some(c) = g.constant(v) {
                return Ok(Output::Constant(c.tensor.clone()));
            }
            match g.value(v).producer() {
                None if g.inputs.contains(&v) => Ok(Output::Input(g.value(v).name.clone())),
                None => match sources.iter().position(|s| s.0 == v) {
                    Some(at) => Ok(Output::Given(at)),
                    None => Err(Error::failed(format!("nothing makes {}", g.value(v).name))),
                },
                Some(_) => {
                    let at = wanted.iter().position(|&w| w == v).unwrap_or(wanted.len());
                    if at == wanted.len() {
                        wanted.push(v);
                    }
                    Ok(Output::Plan(at))
                }
            }
        })
        .collect::<Result<_>>()?;
    let live = weights::live(g);
    let given: Vec<_> = sources.iter().map(|(v, t, s, _)| (*v, *t, s.clone())).collect();
    let plan = if wanted.is_empty() { None } else { Some(planning::plan(&model, &given, &wanted)?) };
    let remembers = g.nodes().any(|(_, n)| matches!(n.op.flow(), Flow::Recurrent | Flow::Control));
    let labels = g.nodes().map(|(id, n)| (id.0, support::label(g, n))).collect();
    Ok(Runner { plan, sources: sources.into_iter().map(|s| s.3).collect(), outputs, live, baked, remembers, labels })
}
