//! `requant diff`: two models of anyone, end to end and node by node.

use super::args::Diff;
use super::print;
use super::progress::Shown;
use crate::error::Result;
use crate::recipe::{self, DiffRequest};

pub fn run(args: &Diff) -> Result<()> {
    let request = DiffRequest {
        a: args.a.clone(),
        b: args.b.clone(),
        data: args.data.clone(),
        labels: args.labels.clone(),
        recipe: args.recipe.clone(),
        threads: args.threads.unwrap_or(0).into(),
        seed: args.seed,
    };
    let diff = recipe::diff(&request, &Shown::of(args.loudness))?;
    if let Some(path) = &args.json {
        recipe::write_text(path, &diff.to_json()?)?;
    }
    if let Some(path) = &args.html {
        recipe::write_text(path, &diff.html())?;
    }
    print::results(&diff.page())
}
