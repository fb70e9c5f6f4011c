//! Two files of anyone, held against each other.

use super::{Coverage, NODE_SAMPLES, NodeRow, OutputRow, compare, coverage, html, node_errors, page};
use crate::data::Dataset;
use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::lift::{lift, real_interface, wide_floats};
use crate::pass::Progress;
use serde::Serialize;

/// How far `b` is from `a`.
#[derive(Debug, Serialize)]
pub struct Diff {
    pub a: String,
    pub b: String,
    pub samples: usize,
    pub random: bool,
    pub outputs: Vec<OutputRow>,
    /// Of a and of b.
    pub coverage: (Coverage, Coverage),
    /// Nodes of a whose output tensor b has too, worst first.
    pub nodes: Vec<NodeRow>,
}

/// Compares two models as read from their files, (name, model) each, end to end over all samples and node by node over the first.
pub fn diff(a: (&str, &Model), b: (&str, &Model), data: &Dataset, labels: Option<&[i64]>, threads: usize, progress: &dyn Progress) -> Result<Diff> {
    let lifted = |(name, m): (&str, &Model)| {
        let mut m = m.clone();
        real_interface(&mut m).at(|| name)?;
        wide_floats(&mut m);
        lift(&mut m).at(|| name).map(|_| m)
    };
    let (la, lb) = (lifted(a)?, lifted(b)?);
    let all: Vec<usize> = (0..data.len()).collect();
    Ok(Diff {
        a: a.0.into(),
        b: b.0.into(),
        samples: all.len(),
        random: data.is_random(),
        outputs: compare(&la, &lb, data, &all, labels, threads, progress)?,
        coverage: (coverage(a.1), coverage(b.1)),
        nodes: node_errors(&la, &lb, data, &all[..all.len().min(NODE_SAMPLES)], threads, progress)?,
    })
}

impl Diff {
    /// All of it as JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map(|t| t + "\n").map_err(Error::failed)
    }

    /// The page for people: at most 100 columns.
    pub fn page(&self) -> String {
        page::diff(self)
    }

    /// One self-contained page for a browser.
    pub fn html(&self) -> String {
        html::diff(self)
    }
}
