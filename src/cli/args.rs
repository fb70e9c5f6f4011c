//! What can be typed: help, man page and completions are made from these declarations.

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
    /// Say what is in a model file
    Inspect(Inspect),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_hold_together() {
        Cli::command().debug_assert();
    }
}
