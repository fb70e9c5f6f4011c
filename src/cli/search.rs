//! `requant search`.

use super::args::Search;
use super::print;
use super::progress::Shown;
use crate::error::Result;
use crate::pass::Progress;
use crate::recipe::{self, Minimize, Request, SearchRequest};

pub fn run(args: &Search) -> Result<()> {
    let progress = Shown::of(args.loudness);
    let request = SearchRequest {
        convert: Request {
            model: args.model.clone(),
            data: args.data.clone(),
            validate_data: args.validate_data.clone(),
            labels: args.labels.clone(),
            sources: args.recipe.sources(),
            eval: args.eval.clone(),
            drop_unknown: args.drop_unknown,
            threads: args.threads.unwrap_or(0).into(),
            ..Request::default()
        },
        max_drop: args.max_drop,
        minimize: match args.minimize.as_str() {
            "size" => Minimize::Size,
            "bitops" => Minimize::BitOps,
            "latency" => Minimize::Latency,
            _ => Minimize::Layers,
        },
        latency_table: args.latency_table.clone(),
        output: args.output.clone(),
        force: args.force,
        tries: args.tries as usize,
        samples: args.samples as usize,
    };
    let found = recipe::search(&request, &progress)?;
    progress.say(&format!(
        "{} of {} layers raised: {} {:.4} → {:.4}, in {} conversions; {} reproduces it",
        found.raised,
        found.units,
        found.measure,
        found.before,
        found.drop,
        found.conversions,
        found.recipe.display()
    ));
    print::results(&found.overrides)
}
