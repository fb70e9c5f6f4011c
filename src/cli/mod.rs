//! The command line: parse, call, print. The only room that prints.

mod args;
mod check;
mod convert;
mod diff;
mod inspect;
mod lists;
mod print;
mod progress;
mod search;

use crate::error::Result;
use crate::{interrupt, recipe};
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the command that was typed. 0: done; 1: failed; 2: what was handed in is not usable; 130: interrupted.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    stop_on_signals();
    match run(&cli) {
        Ok(code) => code,
        Err(e) => {
            print::error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Convert(args) => return convert::convert(args),
        Command::Check(args) => return check::run(args),
        Command::Diff(args) => diff::run(args)?,
        Command::Search(args) => search::run(args)?,
        Command::Inspect(args) => inspect::run(args)?,
        Command::Explain(args) => convert::explain(args)?,
        Command::Recipes { name } => lists::recipes(name.as_deref())?,
        Command::Targets { name } => lists::targets(name.as_deref())?,
        Command::Steps { name } => lists::steps(name.as_deref())?,
        Command::Formats { name } => lists::formats(name.as_deref())?,
        Command::Schema => print::json(&recipe::schema())?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "requant", &mut script);
            print::results(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The first signal asks the running loops to stop and to clean up; the second ends the process at once.
fn stop_on_signals() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    // Fails only where a handler is set already; then that one serves.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        interrupt::request();
    });
}
