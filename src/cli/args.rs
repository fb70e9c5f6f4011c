//! What can be typed: help, man page and completions are made from these declarations.

use crate::engine;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

/// Convert a float ONNX model into the quantized ONNX model that a chip runs, and report what it cost.
#[derive(Debug, Parser)]
#[command(name = "requant", version, max_term_width = 100, infer_subcommands = false, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Convert a model as a recipe says
    Convert(Box<Convert>),
    /// Find the fewest layers that must be wider for the result to be good enough
    Search(Box<Search>),
    /// Compare two models, end to end and node by node
    Diff(Diff),
    /// Say which nodes of a model a target runs in float, elsewhere or not at all
    Check(Check),
    /// Say what is in a model file
    Inspect(Inspect),
    /// Say what was decided about a node, and by which rule
    Explain(Explain),
    /// List the recipes, or print one
    Recipes {
        /// The recipe to print
        name: Option<String>,
    },
    /// List the targets, or print one
    Targets {
        /// The target to print
        name: Option<String>,
    },
    /// List the steps that a recipe may have, or the keys of one
    Steps {
        /// The step to describe
        name: Option<String>,
    },
    /// List the formats of codes, or describe one
    Formats {
        /// The format to describe
        name: Option<String>,
    },
    /// Print the JSON schema of recipes
    Schema,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What is resolved to a recipe.
#[derive(Debug, Clone, Default, Args)]
pub struct RecipeArgs {
    /// A shipped recipe's name, or the path of one [default: the target's own]
    #[arg(short, long, value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// A target's name, or the path of a profile [default: the recipe's own, else generic]
    #[arg(short, long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Set one key of the recipe, such as calibrate.activations.method=percentile
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Leave the nodes whose names match in float (* stops at /, ** does not)
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Give a symbolic dimension a size, in the written model too
    #[arg(long, value_name = "NAME=N")]
    pub fix_dim: Vec<String>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Loudness {
    /// Say errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say every remark
    #[arg(short, long)]
    pub verbose: bool,
}

/// `requant convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// The model; never changed
    pub model: PathBuf,
    /// Sample inputs: .npz, .npy, a folder of them, ONNX test sets, or random:N
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// The converted model [default: MODEL.<recipe>.onnx beside the model]
    #[arg(short, long, value_name = "OUT.onnx")]
    pub output: Option<PathBuf>,
    /// Other sample inputs to judge the result on
    #[arg(long, value_name = "PATH")]
    pub validate_data: Option<String>,
    /// Class labels of the samples that judge: .npy, or CSV lines file,class
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// The report [default: OUT.report.json beside the output]
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// The report as one page for a browser
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
    /// Run this on the float and on the converted model, and report the number that it prints last; such as 'python map.py {model}'
    #[arg(long, value_name = "COMMAND")]
    pub eval: Option<String>,
    /// Write what calibration saw, so that a second run needs no data
    #[arg(long, value_name = "FILE.json", conflicts_with = "ranges")]
    pub save_ranges: Option<PathBuf>,
    /// Take what an earlier calibration saw, instead of a pass over the data
    #[arg(long, value_name = "FILE.json")]
    pub ranges: Option<PathBuf>,
    /// AIMET's encodings of the model, which is float: its quantizers are these, wherever the target holds them
    #[arg(long, value_name = "FILE")]
    pub encodings: Option<PathBuf>,
    /// Write the model even where the result is below the recipe's gate
    #[arg(long)]
    pub keep_failed: bool,
    /// A fall-back is an error
    #[arg(long)]
    pub strict: bool,
    /// Replace an existing output that requant did not write
    #[arg(long)]
    pub force: bool,
    /// Leave out fields of the file that ONNX does not define, rather than refuse it
    #[arg(long)]
    pub drop_unknown: bool,
    /// Print the resolved recipe, the plan node by node and an estimate; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write the graph as it is after this step
    #[arg(long, value_name = "STEP")]
    pub stop_after: Option<String>,
    /// Write the graph after each step into this folder
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// The engine that runs models
    #[arg(long, value_name = "NAME", default_value = engine::NAMES[0], value_parser = engine::NAMES)]
    pub engine: String,
    /// Threads [default: one a core]; the result does not depend on them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub loudness: Loudness,
}

/// `requant search`.
#[derive(Debug, Args)]
pub struct Search {
    /// The model; never changed
    pub model: PathBuf,
    /// Largest loss: of accuracy with --labels, of the command's number with --eval, else the share of samples whose class changes, or noise over signal
    #[arg(long, value_name = "LOSS", allow_negative_numbers = true)]
    pub max_drop: f64,
    /// Sample inputs, as for convert
    #[arg(long, value_name = "PATH")]
    pub data: Option<String>,
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// What is to be least: the number of layers raised, bytes of weights, multiply-adds times bits, or the times of --latency-table
    #[arg(long, value_name = "WHAT", default_value = "layers", value_parser = ["layers", "size", "bitops", "latency"])]
    pub minimize: String,
    /// Times of layers by the bits of their weights, YAML or JSON: { /conv1/Conv: { 8: 1.5, 16: 2.5 } }
    #[arg(long, value_name = "FILE")]
    pub latency_table: Option<PathBuf>,
    /// The recipe that reproduces the result [default: MODEL.<recipe>.search.yaml beside the model]
    #[arg(short, long, value_name = "OUT.yaml")]
    pub output: Option<PathBuf>,
    /// Other sample inputs to judge results on
    #[arg(long, value_name = "PATH")]
    pub validate_data: Option<String>,
    /// Class labels of the samples that judge: .npy, or CSV lines file,class
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Judge by the number that this prints last, more being better; such as 'python map.py {model}'
    #[arg(long, value_name = "COMMAND")]
    pub eval: Option<String>,
    /// Conversions at most
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    pub tries: u32,
    /// Samples to rank layers by
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Replace an existing file that search did not write
    #[arg(long)]
    pub force: bool,
    /// Leave out fields of the file that ONNX does not define, rather than refuse it
    #[arg(long)]
    pub drop_unknown: bool,
    /// Threads [default: one a core]; the result does not depend on them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub loudness: Loudness,
}

/// `requant diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The reference
    pub a: PathBuf,
    /// The model held against it
    pub b: PathBuf,
    /// Sample inputs, as for convert
    #[arg(long, value_name = "PATH", default_value = "random:8")]
    pub data: String,
    /// Class labels of the samples
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// A recipe whose `inputs` say how the samples are read
    #[arg(short = 'r', long, value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the comparison as one page for a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Seed of random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub loudness: Loudness,
}

/// `requant check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The model, float or quantized
    pub model: PathBuf,
    /// A target's name, or the path of a profile
    #[arg(short, long, value_name = "TARGET")]
    pub target: String,
    /// AIMET's encodings of the model, which is float: a tensor without an entry, which the chip would calibrate anew without a word, is refused
    #[arg(long, value_name = "FILE")]
    pub encodings: Option<PathBuf>,
    /// Print JSON, every node included
    #[arg(long)]
    pub json: bool,
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
    /// The node, by its name or the name of a tensor it makes; a pattern may match several
    pub node: String,
    #[command(flatten)]
    pub recipe: RecipeArgs,
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
