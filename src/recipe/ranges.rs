//! `--ranges` and `--save-ranges`: who made the statistics, and whether they fit.

use super::Recipe;
use super::driver::{Request, carried_out};
use super::output;
use super::start::Samples;
use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::onnx;
use crate::range::{Ranges, Source};
use crate::report::RangesRow;
use std::path::Path;

/// Ranges as read, and what the report says of them.
pub struct Saved {
    pub ranges: Ranges,
    pub row: RangesRow,
}

impl Saved {
    /// One line for people.
    pub fn show(&self) -> String {
        let RangesRow { path, samples, data_path, random, .. } = &self.row;
        let warning = if *random { "; they were made up, so the ranges mean nothing" } else { "" };
        format!("{path}: {samples} samples of {data_path} calibrated{warning}")
    }
}

/// Reads `--ranges` and refuses those of another model; looks whether `--save-ranges` can be written.
pub fn open(request: &Request, recipe: &Recipe, source: &Model, samples: Option<&Samples>) -> Result<Option<Saved>> {
    let asked = [("--save-ranges", &request.save_ranges), ("--ranges", &request.ranges)];
    for (option, path) in asked.into_iter().filter_map(|(o, p)| Some((o, p.as_ref()?))) {
        if !carried_out(recipe, request).iter().any(|s| s.name == "calibrate") {
            return Err(Error::usage(format!("{option} {}: no step `calibrate` is carried out, which alone takes ranges", path.display())));
        }
    }
    if let Some(path) = &request.save_ranges {
        if samples.is_none() {
            return Err(Error::usage(format!("--save-ranges {} needs --data beside it: the samples that ranges are taken from", path.display())));
        }
        output::check_text(path)?;
    }
    let Some(path) = &request.ranges else { return Ok(None) };
    let ranges = Ranges::read(path).at(|| "--ranges")?;
    ranges.check_model(&request.model, &onnx::sha256_model(&request.model, &source.graph)?).at(|| format!("--ranges {}", path.display()))?;
    let row = RangesRow {
        path: path.display().to_string(),
        sha256: onnx::sha256_file(path)?,
        data_path: ranges.data.path.clone(),
        data_sha256: ranges.data.sha256.clone(),
        samples: ranges.samples,
        random: ranges.random,
    };
    Ok(Some(Saved { ranges, row }))
}

/// Writes what calibration saw.
pub fn save(path: &Path, seen: Ranges, request: &Request, source: &Model, samples: Option<&Samples>) -> Result<()> {
    let ranges = Ranges {
        ranges_version: Ranges::VERSION,
        requant_version: env!("CARGO_PKG_VERSION").into(),
        model: Source { path: request.model.display().to_string(), sha256: onnx::sha256_model(&request.model, &source.graph)? },
        data: Source { path: request.data.clone().unwrap_or_default(), sha256: samples.map(|s| s.data.sha256()).transpose()?.unwrap_or_default() },
        random: samples.is_some_and(|s| s.data.is_random()),
        ..seen
    };
    output::write_text(path, &ranges.to_json()?)
}
