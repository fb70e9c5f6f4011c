//! `requant recipes | targets | steps | formats`: lists made from the tables that the program dispatches on.

use super::print;
use crate::error::{Error, Result};
use crate::quant::{Format, NF4};
use crate::{recipe, target};

pub fn recipes(name: Option<&str>) -> Result<()> {
    let known = recipe::recipes();
    match name {
        None => print::results(&page(&known)),
        Some(name) => print::results(&recipe::recipe_text(name).ok_or_else(|| unknown("recipe", name, known.iter().map(|k| k.0.as_str())))?),
    }
}

pub fn targets(name: Option<&str>) -> Result<()> {
    let known = recipe::targets();
    match name {
        None => {
            let row = |name: &String| {
                let p = recipe::profile(name)?;
                let proven = if p.proven == "no" { "—".to_string() } else { p.proven };
                Ok(vec![name.clone(), p.doc, proven])
            };
            print::results(&print::table(&["target", "what it is", "proven by"], &known.iter().map(|(name, _)| row(name)).collect::<Result<Vec<_>>>()?))
        }
        Some(name) => print::results(&recipe::target_text(name).ok_or_else(|| unknown("target", name, known.iter().map(|k| k.0.as_str())))?),
    }
}

pub fn steps(name: Option<&str>) -> Result<()> {
    match name {
        None => print::results(&page(&recipe::STEPS.iter().map(|s| (s.name.to_string(), s.doc.to_string())).collect::<Vec<_>>())),
        Some(name) => {
            let row = recipe::STEPS.iter().find(|s| s.name == name).ok_or_else(|| unknown("step", name, recipe::STEPS.iter().map(|s| s.name)))?;
            let keys: Vec<Vec<String>> = recipe::step_keys(row).into_iter().map(|(key, wants, doc)| vec![key, wants, doc]).collect();
            let keys = if keys.is_empty() { "It has no keys.\n".to_string() } else { print::table(&["key", "value", "meaning"], &keys) };
            print::results(&format!("{}: {}\n\n{keys}", row.name, row.doc))
        }
    }
}

pub fn formats(name: Option<&str>) -> Result<()> {
    let row = |f: &target::NamedFormat| {
        let stored = f.format.storage().map_or("—".to_string(), |t| t.name().to_string());
        vec![f.name.to_string(), f.format.bits().to_string(), stored, f.doc.to_string()]
    };
    let header = ["format", "bits>", "stored as", "values"];
    let schemes = recipe::schemes();
    let Some(name) = name else {
        let formats = print::table(&header, &target::FORMATS.iter().map(row).collect::<Vec<_>>());
        return print::results(&format!("{formats}\nSchemes that `format:` may name, keys beside it winning:\n\n{}", page(&schemes)));
    };
    let (format, scheme) = (target::FORMATS.iter().find(|f| f.name == name), recipe::scheme_text(name));
    if format.is_none() && scheme.is_none() {
        return Err(unknown("format", name, target::FORMATS.iter().map(|f| f.name).chain(schemes.iter().map(|s| s.0.as_str()))));
    }
    let format = format.map(|f| format!("{}{}", print::table(&header, &[row(f)]), codes(f.format)));
    print::results(&format.into_iter().chain(scheme.map(str::to_string)).collect::<Vec<_>>().join("\n"))
}

/// The values of a small format's codes.
fn codes(format: Format) -> String {
    let bits = format.bits();
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ");
    match format.code_range() {
        _ if format == Format::NF4 => format!("\nA code stands for the entry of that index, times the scale:\n{}\n", list(&NF4)),
        _ if matches!(format, Format::Codebook { .. }) => "\nA code stands for the entry of that index, times the scale.\n".to_string(),
        Some((lo, hi)) => format!("\nCodes {lo} … {hi}; a code stands for (code − zero_point) · scale.\n"),
        None if bits <= 8 => {
            let mut values: Vec<f32> = (0..1 << bits).map(|c| format.value(c)).filter(|v| v.is_finite() && *v >= 0.0).collect();
            values.sort_by(f32::total_cmp);
            values.dedup();
            format!("\nA code stands for value · scale. Values, each with either sign:\n{}\n", list(&values))
        }
        None => String::new(),
    }
}

fn page(rows: &[(String, String)]) -> String {
    print::table(&["", ""], &rows.iter().map(|(n, d)| vec![n.clone(), d.clone()]).collect::<Vec<_>>())
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    let near = known.iter().map(|k| (strsim::jaro_winkler(k, name), *k)).filter(|(s, _)| *s > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    let remedy = match near {
        Some((_, near)) => format!("did you mean {near}?"),
        None => format!("there are {}", known.join(", ")),
    };
    Error::usage(format!("there is no {what} {name}: {remedy}"))
}
