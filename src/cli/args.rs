//! What can be typed: help, man page and completions are made from these declarations.

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

/// Convert a float ONNX model into the quantized ONNX model that a chip runs, and report what it cost.
#[derive(Debug, Parser)]
#[command(name = "requant", version, max_term_width = 100, infer_subcommands = false, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub volume: Volume,
}

/// How much is said.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Volume {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say every remark of every step
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize a model
    Convert(Box<Convert>),
    /// Compare two models, end to end and node by node
    Diff(Diff),
    /// Say what is in a model file
    Inspect(Inspect),
    /// Every decision about one node, and the rule behind it
    Explain(Explain),
    /// List the shipped recipes, or print one
    Recipes(Name),
    /// List the targets, or print one
    Targets(Name),
    /// List the steps a recipe may have, or explain one
    Steps(Name),
    /// List the number formats, or explain one
    Formats(Name),
    /// Print the JSON schema of recipes
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What settles a recipe.
#[derive(Debug, Default, Args)]
pub struct RecipeArgs {
    /// A shipped recipe's name, or the path of one [default: int8]
    #[arg(short, long, value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// What the model is for: a name of `requant targets`, or a path
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Change one key of the recipe: `weights.bits=4`, `calibrate.activations.method=entropy`
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub set: Vec<String>,
    /// Leave the nodes whose names match in float; `*` stops at `/`, `**` does not
    #[arg(long, value_name = "PATTERN", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Give a symbolic dimension its size
    #[arg(long, value_name = "NAME=N", action = ArgAction::Append)]
    pub fix_dim: Vec<String>,
}

/// `requant convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// The float model; it is never changed
    pub model: PathBuf,
    /// Inputs to calibrate on: .npz, .npy, a folder of them, an ONNX test set, or `random:N`
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Where the result goes [default: MODEL.<recipe>.onnx beside the model]
    #[arg(short, long, value_name = "OUT.onnx")]
    pub output: Option<PathBuf>,
    /// The class of each sample of --validate-data (or of --data): .npy
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Inputs to validate on, instead of a part of --data
    #[arg(long, value_name = "PATH")]
    pub validate_data: Option<String>,
    /// Where the report goes [default: OUT.report.json]
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// Fail where a step could not do what was asked and did the nearest
    #[arg(long)]
    pub strict: bool,
    /// Replace files that requant did not write
    #[arg(long)]
    pub force: bool,
    /// Write the model even if it fails the recipe's gate
    #[arg(long)]
    pub keep_failed: bool,
    /// Print the resolved recipe and the plan node by node; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Stop after a step and write the model as it is then
    #[arg(long, value_name = "STEP")]
    pub stop_after: Option<String>,
    /// Write the model after each step into a folder
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How a model is run.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// What runs the model
    #[arg(long, value_name = "NAME", value_parser = ["tract"], default_value = "tract")]
    pub engine: String,
    /// Threads; the result does not depend on them [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// `requant diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The reference
    pub a: PathBuf,
    /// What is compared with it
    pub b: PathBuf,
    /// Inputs to run both on: .npz, .npy, a folder of them, an ONNX test set, or `random:N`
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    /// The class of each sample: .npy
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Give a symbolic dimension its size
    #[arg(long, value_name = "NAME=N", action = ArgAction::Append)]
    pub fix_dim: Vec<String>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `requant inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The model
    pub model: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `requant explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The model
    pub model: PathBuf,
    /// A node, by its name in the file
    pub node: String,
    #[command(flatten)]
    pub recipe: RecipeArgs,
}

/// One entry of a list, or all.
#[derive(Debug, Args)]
pub struct Name {
    /// One entry
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_hold_together() {
        Cli::command().debug_assert();
    }
}
