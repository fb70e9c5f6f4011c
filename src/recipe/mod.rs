//! Recipes: YAML text → checked and merged layers → steps, and the driver that carries them out.

mod again;
mod check;
mod configs;
mod diff;
mod driver;
mod estimate;
mod eval;
mod legal;
mod lowering;
mod output;
mod parse;
mod preprocess;
mod profile;
mod ranges;
mod read;
mod resolve;
mod schema;
mod search;
mod set;
mod shape;
mod start;
mod step_table;
mod steps;
mod table;
mod tail;
#[cfg(test)]
mod target_tests;
#[cfg(test)]
mod tests;
mod tie;

pub use check::check;
pub use configs::{recipe_text, recipes, scheme_text, schemes, target_text, targets};
pub use diff::{DiffRequest, diff};
pub use driver::{Outcome, Request, convert, dry_run, explain};
pub use output::write_text;
pub use profile::profile;
pub use resolve::resolve;
pub use schema::schema;
pub use search::{Found, Minimize, SearchRequest, search};
pub use start::declared_inputs;
pub use step_table::{STEPS, StepRow, step_keys};

use crate::data::{Fill, Preprocess};
use crate::graph::Op;
use crate::target::{Override, Profile, SchemeKeys};
use crate::tensor::DType;
use shape::Tree;
use std::collections::BTreeMap;

/// How far `extends` may go.
const MAX_LAYERS: usize = 16;

/// Where a recipe comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A shipped recipe's name, or a path; `None`: the target's own.
    pub recipe: Option<String>,
    pub target: Option<String>,
    /// `--set KEY=VALUE`, in order.
    pub set: Vec<String>,
    pub exclude: Vec<String>,
    /// `--fix-dim NAME=N`.
    pub fix_dims: Vec<String>,
    pub seed: Option<u64>,
}

/// A recipe, every layer merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub name: String,
    pub target: Profile,
    /// `None`: weights stay float.
    pub weights: Option<SchemeKeys>,
    /// `None`: only weights are quantized.
    pub activations: Option<SchemeKeys>,
    pub bias: SchemeKeys,
    /// The type of what stays float; `None`: float32.
    pub float: Option<FloatRecipe>,
    pub inputs: BTreeMap<String, InputRecipe>,
    pub fix_dims: BTreeMap<String, usize>,
    pub data: DataRecipe,
    /// Bytes that statistics and caches may take.
    pub memory: u64,
    pub steps: Vec<Step>,
    pub overrides: Vec<Override>,
    pub gate: Gate,
    pub seed: u64,
    pub origins: Vec<Origin>,
    /// The merged recipe as YAML.
    pub resolved: String,
}

/// `inputs.X`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InputRecipe {
    pub shape: Option<Vec<usize>>,
    pub fix: bool,
    pub from: Option<String>,
    pub fill: Option<Fill>,
    pub preprocess: Option<Preprocess>,
    /// State: the output whose result of the run before this input takes.
    pub tie: Option<String>,
}

/// `float:`, where it is not float32.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatRecipe {
    /// float16 or bfloat16.
    pub dtype: DType,
    /// Inputs and outputs of the model stay float32.
    pub keep_io: bool,
    /// Operators that stay float32.
    pub keep: Vec<Op>,
}

/// `data:`
#[derive(Debug, Clone, PartialEq)]
pub struct DataRecipe {
    pub samples: usize,
    pub validate: Option<usize>,
    pub shuffle: bool,
}

pub use crate::report::{Gate, Origin};

/// One entry of `steps`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub name: &'static str,
    pub id: Option<String>,
    pub args: Args,
    /// For complaints.
    pub origin: String,
}

impl Step {
    /// Whether `--stop-after name` means it.
    pub fn is(&self, name: &str) -> bool {
        self.name == name || self.id.as_deref() == Some(name)
    }
}

/// A step's keys, nested ones dotted: `activations.method`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Args(BTreeMap<String, Tree>);

impl Args {
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.text()
    }

    pub fn int(&self, key: &str) -> Option<i64> {
        self.0.get(key)?.int()
    }

    /// A whole number above 0; `none` where it is not given.
    pub fn count(&self, key: &str, none: usize) -> usize {
        self.int(key).map_or(none, |n| n as usize)
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.flag()
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.number()
    }

    pub fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        Some(self.0.get(key)?.list().iter().filter_map(Tree::number).collect())
    }

    /// `activations.method minmax, weights.method minmax`, for people.
    pub fn show(&self) -> String {
        self.0.iter().map(|(k, v)| format!("{k} {}", v.show())).collect::<Vec<_>>().join(", ")
    }
}
