//! Runners by input shapes, for data whose samples differ in shape.

use super::{Runner, RunnerOptions, State};
use crate::error::Result;
use crate::graph::{InputShapes, Model, ValueId};
use crate::quant::Table;
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Plans kept at once: a plan holds the model's weights.
const KEPT: usize = 8;

/// The shapes of a sample's inputs.
pub fn shapes_of(inputs: &BTreeMap<String, Tensor>) -> InputShapes {
    inputs.iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect()
}

/// Builds a [`Runner`] when a shape is first met, and keeps the few that were asked for last.
pub struct Plans<'a> {
    model: &'a Model,
    outputs: Vec<ValueId>,
    options: RunnerOptions,
    /// Most recent last.
    kept: Mutex<Vec<(InputShapes, Arc<Runner>)>>,
}

impl<'a> Plans<'a> {
    /// No plan yet. `outputs` as in [`Runner::new`].
    pub fn new(model: &'a Model, outputs: &[ValueId], options: RunnerOptions) -> Self {
        Plans { model, outputs: outputs.to_vec(), options, kept: Mutex::new(Vec::new()) }
    }

    /// The runner for these input shapes. Threads that ask for a new shape at the same time wait for one of them to build it.
    pub fn get(&self, shapes: &InputShapes) -> Result<Arc<Runner>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match kept.iter().position(|(s, _)| s == shapes) {
            Some(at) => kept.remove(at),
            None => (shapes.clone(), Arc::new(Runner::with(self.model, shapes, &self.outputs, self.options)?)),
        };
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        let runner = entry.1.clone();
        kept.push(entry);
        Ok(runner)
    }

    /// Runs the plan for the shapes of `inputs`; `running` keeps what the thread can use again for the next sample of the same shapes.
    pub fn run(&self, running: &mut Running, inputs: &BTreeMap<String, Tensor>, table: &Table) -> Result<Vec<Tensor>> {
        let shapes = shapes_of(inputs);
        let (_, runner, state) = match &mut running.0 {
            Some(last) if last.0 == shapes => last,
            other => {
                let runner = self.get(&shapes)?;
                let state = runner.spawn();
                other.insert((shapes, runner, state))
            }
        };
        runner.run(state, inputs, table)
    }
}

/// The plan that a thread ran last, and its state.
#[derive(Default)]
pub struct Running(Option<(InputShapes, Arc<Runner>, State)>);
