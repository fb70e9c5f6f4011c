//! `requant convert` and `requant explain`.

use super::args::{Convert, Explain, RecipeArgs};
use super::print;
use super::progress::Shown;
use crate::error::{Error, Result};
use crate::pass::{Progress, Silent};
use crate::recipe::{self, Request, Sources};
use std::process::ExitCode;

impl RecipeArgs {
    pub(super) fn sources(&self) -> Sources {
        Sources {
            recipe: self.recipe.clone(),
            target: self.target.clone(),
            set: self.set.clone(),
            exclude: self.exclude.clone(),
            fix_dims: self.fix_dim.clone(),
            seed: self.seed,
        }
    }
}

pub fn convert(args: &Convert) -> Result<ExitCode> {
    let progress = Shown::of(args.loudness);
    let request = Request {
        model: args.model.clone(),
        data: args.data.clone(),
        validate_data: args.validate_data.clone(),
        labels: args.labels.clone(),
        sources: args.recipe.sources(),
        output: args.output.clone(),
        report: args.report.clone(),
        html: args.html.clone(),
        eval: args.eval.clone(),
        save_ranges: args.save_ranges.clone(),
        ranges: args.ranges.clone(),
        encodings: args.encodings.clone(),
        strict: args.strict,
        force: args.force,
        keep_failed: args.keep_failed,
        drop_unknown: args.drop_unknown,
        stop_after: args.stop_after.clone(),
        dump: args.dump.clone(),
        threads: args.threads.unwrap_or(0).into(),
    };
    if args.dry_run {
        print::results(&recipe::dry_run(&request, &progress)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = recipe::convert(&request, &progress)?;
    if args.loudness.verbose {
        outcome.report.remarks().iter().for_each(|line| progress.say(line));
    }
    if !args.loudness.quiet {
        print::results(&outcome.report.page())?;
    }
    if outcome.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let kept = if outcome.written { "it was written because of --keep-failed" } else { "it was not written; --keep-failed writes it" };
    Err(Error::failed(format!(
        "the result is below the recipe's gate ({}): {kept}; {} says where the loss is",
        outcome.failures.join("; "),
        outcome.report_path.display()
    )))
}

pub fn explain(args: &Explain) -> Result<()> {
    let request = Request { model: args.model.clone(), sources: args.recipe.sources(), ..Request::default() };
    let decisions = recipe::explain(&request, &args.node, &Silent)?;
    let lines = decisions.iter().map(|d| format!("{}\n  {}\n  because: {}\n", d.node, d.what.replace("; ", "\n  "), d.rule));
    print::results(&lines.collect::<String>())
}
