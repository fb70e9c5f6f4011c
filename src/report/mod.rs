//! What a conversion cost: metrics, coverage, what each node lost, and the pages that say so. Every figure was measured on the file as written.

mod compare;
mod coverage;
mod diff;
mod gate;
mod html;
mod metrics;
mod nodes;
mod page;
mod parts;

pub use crate::observe::{Db, Sums};
pub use compare::{Accuracy, OutputRow, PartRow, compare};
pub use coverage::{Coverage, coverage};
pub use diff::{Diff, diff};
pub use gate::Gate;
pub use nodes::{NODE_SAMPLES, NodeRow, node_errors};
pub use page::size;

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::note::{Note, NoteKind, Notes};
use crate::quant::Zeros;
use serde::Serialize;
use std::time::Duration;

/// `report.json`; each key is explained in docs/report.md.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema_version: u32,
    pub requant_version: String,
    pub input: FileRow,
    pub output: FileRow,
    /// What was cut off the model and lies beside it, in float.
    pub tail: Option<FileRow>,
    pub recipe: RecipeRow,
    pub target: String,
    pub data: Option<DataRow>,
    pub ranges: Option<RangesRow>,
    pub seed: u64,
    pub threads: usize,
    /// Whether the written file ran beside the input.
    pub validated: bool,
    pub unvalidated_because: Option<String>,
    pub outputs: Vec<OutputRow>,
    pub eval: Option<Eval>,
    pub coverage: Coverage,
    /// What the target makes of the written file: everything that does not simply run on codes.
    pub check: Vec<crate::check::Row>,
    /// The same in one line.
    #[serde(skip)]
    pub check_line: String,
    /// Worst first.
    pub nodes: Vec<NodeRow>,
    pub quantizers: Vec<QuantizerRow>,
    pub declined: usize,
    pub fell_back: usize,
    pub notes: Vec<Note>,
    pub steps: Vec<StepRow>,
    pub seconds: f64,
}

/// A model file.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FileRow {
    pub path: String,
    pub sha256: String,
    pub bytes: u64,
    /// Of its external data.
    pub data_bytes: u64,
}

/// The recipe that was carried out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RecipeRow {
    pub name: String,
    /// YAML, every layer merged.
    pub resolved: String,
    pub origins: Vec<Origin>,
}

/// Where a value of the resolved recipe came from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    pub key: String,
    pub value: String,
    pub from: String,
}

/// The samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DataRow {
    pub path: String,
    pub sha256: String,
    pub validate_path: Option<String>,
    pub validate_sha256: Option<String>,
    /// Made up: no figure means anything.
    pub random: bool,
    pub calibration: Vec<String>,
    pub validation: Vec<String>,
    pub remarks: Vec<String>,
}

/// The saved ranges that stood for a pass over data.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RangesRow {
    pub path: String,
    pub sha256: String,
    /// Of the data that they were taken from.
    pub data_path: String,
    pub data_sha256: String,
    pub samples: usize,
    pub random: bool,
}

/// What the user's own command says of both models; more is better.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Eval {
    pub command: String,
    pub reference: f64,
    pub converted: f64,
}

/// One quantizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantizerRow {
    pub name: String,
    pub scheme: String,
    /// The first scales, at most 16.
    pub scale: Vec<f32>,
    pub scales: usize,
    pub scale_min: f32,
    pub scale_max: f32,
    /// The first zero points, at most 16; empty: none.
    pub zero_point: Vec<f32>,
    pub origin: String,
}

/// One step that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRow {
    pub step: String,
    pub seconds: f64,
    /// Highest resident memory of the process so far, in bytes; where the system tells.
    pub peak_bytes: Option<u64>,
}

impl Origin {
    pub fn new(key: &str, value: &str, from: &str) -> Self {
        Origin { key: key.into(), value: value.into(), from: from.into() }
    }
}

impl StepRow {
    pub fn new(step: &str, time: Duration) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        StepRow { step: step.into(), seconds: time.as_secs_f64(), peak_bytes: kib.map(|k| k * 1024) }
    }
}

impl Report {
    pub fn new(version: &str) -> Self {
        Report {
            schema_version: 1,
            requant_version: version.into(),
            input: FileRow::default(),
            output: FileRow::default(),
            tail: None,
            recipe: RecipeRow::default(),
            target: String::new(),
            data: None,
            ranges: None,
            seed: 0,
            threads: 1,
            validated: false,
            unvalidated_because: None,
            outputs: Vec::new(),
            eval: None,
            coverage: Coverage::default(),
            check: Vec::new(),
            check_line: String::new(),
            nodes: Vec::new(),
            quantizers: Vec::new(),
            declined: 0,
            fell_back: 0,
            notes: Vec::new(),
            steps: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Whether the samples were made up.
    pub fn is_random(&self) -> bool {
        self.data.as_ref().is_some_and(|d| d.random)
    }

    pub fn add_notes(&mut self, notes: &Notes) {
        self.notes.extend(notes.list().iter().cloned());
        self.declined = self.notes.iter().filter(|n| n.kind == NoteKind::Declined).count();
        self.fell_back = self.notes.iter().filter(|n| n.kind == NoteKind::FellBack).count();
    }

    /// What the target makes of the written file.
    pub fn add_check(&mut self, check: &crate::check::Check) {
        self.check = check.findings().cloned().collect();
        self.check_line = check.line();
    }

    /// Rows of a lifted model's quantizers.
    pub fn add_quantizers(&mut self, model: &Model) {
        let t = &model.quantizers;
        for id in t.ids() {
            let q = &t[id];
            let Some(p) = &t[t.root(id)].params else { continue };
            let zero_point = match &p.zero {
                Zeros::None => vec![],
                Zeros::Integer(z) => z.iter().take(16).map(|z| *z as f32).collect(),
                Zeros::Real(z) => z.iter().take(16).copied().collect(),
            };
            self.quantizers.push(QuantizerRow {
                name: q.name.clone(),
                scheme: q.scheme.to_string(),
                scale: p.scale.iter().take(16).copied().collect(),
                scales: p.scale.len(),
                scale_min: p.scale.iter().copied().fold(f32::INFINITY, f32::min),
                scale_max: p.scale.iter().copied().fold(0.0, f32::max),
                zero_point,
                origin: p.origin.to_string(),
            });
        }
    }

    /// All of it as JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map(|t| t + "\n").map_err(Error::failed)
    }

    /// Every remark, a line each.
    pub fn remarks(&self) -> Vec<String> {
        self.notes.iter().map(Note::to_string).collect()
    }

    /// The page for people: at most 100 columns.
    pub fn page(&self) -> String {
        page::report(self)
    }

    /// One self-contained page for a browser. `failures`: why the result is below the gate.
    pub fn html(&self, failures: &[String]) -> String {
        html::report(self, failures)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    /// A report in which every key stands.
    pub fn full() -> Report {
        let mut r = Report::new("0");
        r.data = Some(DataRow::default());
        r.ranges = Some(RangesRow::default());
        r.recipe.origins.push(Origin::new("a", "b", "c"));
        let accuracy = Some(Accuracy { reference: 0.9, converted: 0.8 });
        let output = OutputRow {
            name: "y".into(),
            sqnr_db: Db(20.0),
            cosine: 0.99,
            largest_error: 1.0,
            mean_error: 0.0,
            nan: 0,
            agreement: Some(0.95),
            accuracy,
            equal: None,
            samples: 4,
            parts: vec![PartRow { name: "p".into(), sqnr_db: Db(21.0), cosine: 0.99, agreement: None }],
        };
        r.outputs.push(output);
        r.eval = Some(Eval { command: "c".into(), reference: 0.52, converted: 0.5 });
        let node = NodeRow {
            name: "n".into(),
            op: "o".into(),
            output: "y".into(),
            sqnr_db: Db(20.0),
            own_sqnr_db: None,
            clipped: None,
            dead_codes: None,
            scheme: None,
        };
        r.nodes.push(node);
        let verdict = crate::check::Verdict::Float;
        r.check.push(crate::check::Row { node: "n".into(), op: "o".into(), verdict, rule: "r".into(), reason: "why".into(), remedy: String::new() });
        let mut notes = Notes::of("place");
        notes.declined("n", "why");
        notes.fell_back("m", "why");
        r.add_notes(&notes);
        let mut m = Model::default();
        let q = m.quantizers.add("x", crate::quant::Scheme::int(8, false));
        m.quantizers[q].params = Some(crate::quant::Params::tensor(0.5, Some(3)));
        r.add_quantizers(&m);
        r.steps.push(StepRow::new("place", Duration::from_millis(5)));
        r
    }

    fn keys(v: &Value, found: &mut BTreeSet<String>) {
        match v {
            Value::Object(m) => m.iter().for_each(|(k, v)| {
                found.insert(k.clone());
                keys(v, found);
            }),
            Value::Array(l) => l.iter().for_each(|v| keys(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_key_is_explained() {
        let docs = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.md")).unwrap();
        let mut found = BTreeSet::new();
        keys(&serde_json::from_str(&full().to_json().unwrap()).unwrap(), &mut found);
        assert!(found.len() > 60);
        let missing: Vec<&String> = found.iter().filter(|k| !docs.contains(&format!("`{k}`"))).collect();
        assert!(missing.is_empty(), "docs/report.md does not explain {missing:?}");
    }

    #[test]
    fn remarks_and_quantizers_are_counted() {
        let r = full();
        assert_eq!((r.declined, r.fell_back), (1, 1));
        let q = &r.quantizers[0];
        assert_eq!((q.scale.as_slice(), q.zero_point.as_slice(), q.origin.as_str()), (&[0.5][..], &[3.0][..], "fitted"));
        assert_eq!(r.remarks(), ["place: n: declined: why", "place: m: fell back: why"]);
    }
}
