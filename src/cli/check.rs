//! `requant check`: what a target's compiler would make of a model.

use super::args::Check;
use super::print;
use crate::check::Row;
use crate::error::Result;
use crate::recipe;
use std::process::ExitCode;

/// 1 where anything is refused.
pub fn run(args: &Check) -> Result<ExitCode> {
    let check = recipe::check(&args.model, &args.target, args.encodings.as_deref())?;
    match args.json {
        true => print::json(&check)?,
        false => print::results(&page(&check))?,
    }
    Ok(if check.refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn page(check: &crate::check::Check) -> String {
    let proven = if check.proven.is_empty() || check.proven == "no" { "not proven by any client".to_string() } else { format!("proven by {}", check.proven) };
    let mut text = format!("target {}, {proven}: {}\n", check.target, check.line());
    let mut findings: Vec<&Row> = check.findings().collect();
    findings.sort_by_key(|r| std::cmp::Reverse(r.verdict));
    let cells = |r: &&Row| {
        let node = if r.node.is_empty() { "the model" } else { &r.node };
        let remedy = if r.remedy.is_empty() { String::new() } else { format!("; {}", r.remedy) };
        vec![r.verdict.word().to_string(), node.to_string(), r.op.clone(), format!("{} ({}){remedy}", r.reason, r.rule)]
    };
    if !findings.is_empty() {
        text += &format!("\n{}", print::table(&["verdict", "node", "op", "reason (rule); remedy"], &findings.iter().map(cells).collect::<Vec<_>>()));
    }
    text
}
