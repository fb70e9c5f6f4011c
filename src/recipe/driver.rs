//! Carries a recipe out: read, run the steps in order, write, read back, judge, report.

use super::{Args, Recipe, Sources};
use crate::data::{self, DataSettings, Dataset, InputInfo};
use crate::error::{At, Error, Result};
use crate::graph::{Dim, Flow, Model, Type};
use crate::note::{NoteKind, Notes};
use crate::onnx::{self, ReadOptions, WriteOptions};
use crate::pass::{Progress, State};
use crate::place::{self, Decision, Rules};
use crate::range::{self, Calibrate, Method};
use crate::report::Report;
use crate::{lower, round, transform};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What one call of `convert` was asked.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub model: PathBuf,
    pub data: Option<String>,
    pub sources: Sources,
    /// Default: `MODEL.<recipe>.onnx` beside the model.
    pub output: Option<PathBuf>,
    /// Default: `OUT.report.json`.
    pub report: Option<PathBuf>,
    pub labels: Option<PathBuf>,
    pub validate_data: Option<String>,
    pub strict: bool,
    pub force: bool,
    pub keep_failed: bool,
    pub dry_run: bool,
    pub drop_unknown: bool,
    pub stop_after: Option<String>,
    pub dump: Option<PathBuf>,
    pub threads: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub output: PathBuf,
    /// Whether the model lies at `output`.
    pub written: bool,
    /// Why the result is below the recipe's gate; empty if it is not.
    pub gate_failures: Vec<String>,
}

/// The model on its way, and what its steps may use.
pub struct Work<'a> {
    pub recipe: &'a Recipe,
    pub model: Model,
    /// The float graph as it was before quantizers were placed.
    pub prepared: Option<Model>,
    pub data: Option<&'a Dataset>,
    /// Samples of `data` to calibrate on.
    pub calibration: &'a [usize],
    pub threads: usize,
    pub progress: &'a dyn Progress,
    pub notes: Notes,
    pub decisions: Vec<Decision>,
}

// ---- the steps: each looks its keys up and calls the room that knows how

pub fn fold_constants(w: &mut Work, _: &Args) -> Result<()> {
    w.notes.append(transform::fold_constants(&mut w.model)?);
    Ok(())
}

pub fn fold_batch_norm(w: &mut Work, _: &Args) -> Result<()> {
    w.notes.append(transform::fold_batch_norm(&mut w.model)?);
    Ok(())
}

pub fn place(w: &mut Work, _: &Args) -> Result<()> {
    if let Some((_, node)) = w.model.graph.nodes().find(|(_, n)| n.op.flow() == Flow::Quantize) {
        return Err(Error::usage(format!("the model is quantized already (node {} is a {}): start from the float model", node.name, node.op_type)));
    }
    w.prepared = Some(w.model.clone());
    let r = w.recipe;
    let rules = Rules { profile: &r.target, weights: r.weights.as_ref(), activations: r.activations.as_ref(), bias: &r.bias, overrides: &r.overrides };
    let (notes, decisions) = place::place(&mut w.model, &rules)?;
    w.notes.append(notes);
    w.decisions = decisions;
    Ok(())
}
