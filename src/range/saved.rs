//! What calibration saw, as a file: `--save-ranges` writes it, `--ranges` reads it, docs/ranges.md describes it.
//! What is kept are statistics, not scales: another width, or another method that reads the same statistics, needs no data again.

use super::Method;
use crate::error::{At, Error, Result};
use crate::observe::{Extremes, Histogram};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What was seen at one value.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Of each block.
    Extremes(Vec<Extremes>),
    /// A mean of samples' extremes, of which the one in the other hand is one.
    Average(Vec<Extremes>),
    Histogram(Box<Histogram>),
}

impl Seen {
    /// The histogram, where one was counted.
    pub fn histogram(&self) -> Option<&Histogram> {
        if let Seen::Histogram(h) = self { Some(h) } else { None }
    }
}

/// Statistics by tensor, and what they were taken from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// Of this format: [`Ranges::VERSION`].
    pub ranges_version: u32,
    pub requant_version: String,
    pub model: Source,
    pub data: Source,
    /// The data was made up: the ranges mean nothing.
    pub random: bool,
    /// Samples that were seen.
    pub samples: usize,
    /// What method `auto` chose, spelled as in the report.
    pub chosen: Option<String>,
    /// By the tensor's name in the model as it was when quantizers had been placed.
    /// One row for each way in which a scale of it is shared.
    pub tensors: BTreeMap<String, Vec<Row>>,
}

/// A file, or files.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub path: String,
    pub sha256: String,
}

/// One tensor. Exactly one of `extremes` and `histogram` is there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What shares a scale, as the report spells it.
    pub blocks: String,
    /// Smallest and largest value of each block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extremes: Option<Vec<[Bound; 2]>>,
    /// Of a moving average: the weight of a sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    constant: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    histogram: Option<Buckets>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Buckets {
    extremes: [Bound; 2],
    buckets: Vec<u16>,
    counts: Vec<u64>,
}

/// A number, or the word for one that JSON does not have. Stored in double precision, in which every float32 is exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Bound {
    Number(f64),
    Word(Infinite),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Infinite {
    #[serde(rename = "inf")]
    Positive,
    #[serde(rename = "-inf")]
    Negative,
}

impl Bound {
    fn of(x: f32) -> Bound {
        match x {
            f32::INFINITY => Bound::Word(Infinite::Positive),
            f32::NEG_INFINITY => Bound::Word(Infinite::Negative),
            x => Bound::Number(x.into()),
        }
    }

    fn value(self) -> f32 {
        match self {
            Bound::Number(x) => x as f32,
            Bound::Word(Infinite::Positive) => f32::INFINITY,
            Bound::Word(Infinite::Negative) => f32::NEG_INFINITY,
        }
    }
}

fn bounds(e: &Extremes) -> [Bound; 2] {
    [Bound::of(e.lo), Bound::of(e.hi)]
}

fn extremes([lo, hi]: [Bound; 2]) -> Extremes {
    Extremes { lo: lo.value(), hi: hi.value() }
}

impl Row {
    /// A row of what `method` saw.
    pub(super) fn new(seen: &Seen, blocks: String, method: Method) -> Row {
        let list = |e: &[Extremes]| Some(e.iter().map(bounds).collect());
        match seen {
            Seen::Extremes(e) => Row { blocks, extremes: list(e), ..Row::default() },
            Seen::Average(e) => Row { blocks, extremes: list(e), constant: method.constant(), ..Row::default() },
            Seen::Histogram(h) => {
                let (buckets, counts) = h.counts().unzip();
                Row { blocks, histogram: Some(Buckets { extremes: bounds(&h.extremes), buckets, counts }), ..Row::default() }
            }
        }
    }

    /// The extremes of all blocks, and those of `e`.
    pub(super) fn merged(&self, mut e: Extremes) -> Extremes {
        self.extremes.iter().flatten().chain(self.histogram.iter().map(|h| &h.extremes)).for_each(|b| e.merge(&extremes(*b)));
        e
    }

    /// What `method` needs.
    ///
    /// # Errors
    /// Where the statistics are others than the method reads, or damaged.
    fn seen(&self, per_tensor: bool, method: Method) -> Result<Seen> {
        if let Some(h) = &self.histogram {
            if method.constant().is_some() {
                return Err(Error::usage(format!("{method} needs the mean of the samples' extremes, and a histogram was saved")));
            }
            let pairs = h.buckets.iter().copied().zip(h.counts.iter().copied()).collect();
            let h = Histogram::of_counts(extremes(h.extremes), pairs).filter(|_| h.buckets.len() == h.counts.len());
            return h.map(|h| Seen::Histogram(Box::new(h))).ok_or_else(|| Error::usage("its histogram is damaged"));
        }
        let list: Vec<Extremes> = self.extremes.iter().flatten().copied().map(extremes).collect();
        if list.is_empty() || per_tensor && list.len() != 1 {
            return Err(Error::usage("its statistics are damaged"));
        }
        if self.constant != method.constant() {
            let of = |c: Option<f64>| c.map_or("the extremes of all samples".to_string(), |c| format!("a moving average of constant {c}"));
            return Err(Error::usage(format!("{method} needs {}, and {} were saved", of(method.constant()), of(self.constant))));
        }
        if per_tensor && method.wants_histogram() {
            return Err(Error::usage(format!("{method} needs a histogram, and only extremes were saved")));
        }
        Ok(if self.constant.is_some() { Seen::Average(list) } else { Seen::Extremes(list) })
    }
}

impl Ranges {
    pub const VERSION: u32 = 1;

    /// Reads what [`Ranges::to_json`] wrote.
    pub fn read(path: &Path) -> Result<Ranges> {
        let place = || path.display();
        let text = std::fs::read(path).map_err(|e| Error::usage(format!("cannot be read: {e}"))).at(place)?;
        let said: serde_json::Value = serde_json::from_slice(&text).map_err(|e| Error::usage(format!("is no JSON: {e}"))).at(place)?;
        match said.get("ranges_version").map(serde_json::Value::as_u64) {
            None => return Err(Error::usage("is no file of ranges; --save-ranges makes one")).at(place),
            Some(version) if version != Some(Self::VERSION.into()) => {
                return Err(Error::usage(format!("is of another version than {}; make it anew with --save-ranges", Self::VERSION))).at(place);
            }
            _ => {}
        }
        serde_json::from_slice(&text).map_err(|e| Error::usage(format!("is no file of ranges: {e}"))).at(place)
    }

    /// Refuses ranges of another model.
    pub fn check_model(&self, path: &Path, sha256: &str) -> Result<()> {
        if self.model.sha256 == sha256 {
            return Ok(());
        }
        let short = |h: &str| h.chars().take(12).collect::<String>();
        Err(Error::usage(format!(
            "the ranges are of another model ({}, SHA-256 {}…) than {} (SHA-256 {}…); make them anew with --save-ranges",
            self.model.path,
            short(&self.model.sha256),
            path.display(),
            short(sha256)
        )))
    }

    /// What was seen at a tensor, for `method`.
    pub(super) fn seen(&self, tensor: &str, blocks: &str, per_tensor: bool, method: Method) -> Result<Seen> {
        let unknown = || Error::usage("the ranges do not know this tensor; make them anew with this recipe and --save-ranges");
        let other = |rows: &[Row]| {
            let have: Vec<&str> = rows.iter().map(|r| r.blocks.as_str()).collect();
            Error::usage(format!("its statistics are {}, and a scale {blocks} is asked for; make them anew with --save-ranges", have.join(" and ")))
        };
        let row = self.tensors.get(tensor).ok_or_else(unknown).and_then(|rows| rows.iter().find(|r| r.blocks == blocks).ok_or_else(|| other(rows)));
        row.and_then(|row| row.seen(per_tensor, method)).at(|| format!("tensor {tensor}"))
    }

    /// One tensor a line, sorted by name.
    pub fn to_json(&self) -> Result<String> {
        let head = Ranges { tensors: BTreeMap::new(), ..self.clone() };
        let mut text = serde_json::to_string_pretty(&head).map_err(Error::failed)?;
        let end = "{}\n}";
        if !text.ends_with(end) {
            return Err(Error::failed("the ranges' JSON does not end in its tensors"));
        }
        text.truncate(text.len() - end.len());
        let row = |(name, row): (&String, &Vec<Row>)| Ok(format!("    {}: {}", serde_json::to_string(name)?, serde_json::to_string(row)?));
        let rows = self.tensors.iter().map(row).collect::<Result<Vec<_>, serde_json::Error>>().map_err(Error::failed)?;
        Ok(text + &if rows.is_empty() { "{}\n}\n".to_string() } else { format!("{{\n{}\n  }}\n}}\n", rows.join(",\n")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(x: &[f32]) -> Seen {
        let mut h = Histogram::default();
        h.observe(x);
        Seen::Histogram(Box::new(h))
    }

    fn ranges() -> Ranges {
        let average = Method::MovingAverage { constant: 0.25 };
        let row = |seen: &Seen, method| Row::new(seen, "per tensor".into(), method);
        let pair = Extremes { lo: -0.1, hi: 1.0 / 3.0 };
        let tensors = [
            ("h", row(&histogram(&[-3.4e38, -0.1, 0.0, 1e-40, 0.1, 7.0]), Method::Mse)),
            ("a", row(&Seen::Average(vec![pair]), average)),
            ("e", row(&Seen::Extremes(vec![pair]), Method::MinMax)),
            ("c", Row::new(&Seen::Extremes(vec![pair, Extremes::default()]), "per channel of axis 1".into(), Method::MinMax)),
        ];
        let model = Source { path: "m.onnx".into(), sha256: "0123456789abcdef".into() };
        Ranges { ranges_version: 1, model, samples: 3, tensors: tensors.map(|(n, r)| (n.to_string(), vec![r])).into(), ..Ranges::default() }
    }

    fn through_a_file(r: &Ranges) -> Result<Ranges> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("r.json"), r.to_json()?).unwrap();
        Ranges::read(&dir.path().join("r.json"))
    }

    #[test]
    fn what_was_written_is_read_to_the_last_bit() {
        let r = ranges();
        assert_eq!(through_a_file(&r).unwrap(), r);
        assert_eq!(through_a_file(&Ranges { ranges_version: 1, ..Ranges::default() }).unwrap().tensors.len(), 0);
        let seen = |tensor: &str, method| {
            through_a_file(&r).unwrap().seen(tensor, if tensor == "c" { "per channel of axis 1" } else { "per tensor" }, tensor != "c", method)
        };
        assert_eq!(seen("h", Method::Entropy).unwrap(), histogram(&[-3.4e38, -0.1, 0.0, 1e-40, 0.1, 7.0]));
        assert_eq!(seen("h", Method::MinMax).unwrap(), seen("h", Method::Mse).unwrap());
        assert!(matches!(seen("e", Method::NoClip).unwrap(), Seen::Extremes(e) if e == [Extremes { lo: -0.1, hi: 1.0 / 3.0 }]));
        assert!(matches!(seen("a", Method::MovingAverage { constant: 0.25 }).unwrap(), Seen::Average(_)));
        assert!(matches!(seen("c", Method::Mse).unwrap(), Seen::Extremes(e) if e.len() == 2 && e[1].is_empty()));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let r = ranges();
        let refuses = |tensor: &str, blocks: &str, method, word: &str| {
            let e = r.seen(tensor, blocks, true, method).unwrap_err().to_string();
            assert!(e.contains(&format!("tensor {tensor}")) && e.contains(word), "{e}");
        };
        refuses("none", "per tensor", Method::MinMax, "do not know");
        refuses("e", "per tensor", Method::Mse, "needs a histogram");
        refuses("e", "per tensor", Method::MovingAverage { constant: 0.25 }, "a moving average of constant 0.25");
        refuses("a", "per tensor", Method::MovingAverage { constant: 0.5 }, "constant 0.5");
        refuses("a", "per tensor", Method::MinMax, "extremes of all samples");
        refuses("h", "per tensor", Method::MovingAverage { constant: 0.5 }, "histogram was saved");
        refuses("h", "per channel of axis 1", Method::Mse, "per tensor");
        let mut damaged = r.clone();
        let h = damaged.tensors.get_mut("h").unwrap()[0].histogram.as_mut().unwrap();
        h.buckets.swap(0, 1);
        assert!(damaged.seen("h", "per tensor", true, Method::Mse).unwrap_err().to_string().contains("damaged"));
        assert!(r.check_model(Path::new("m.onnx"), "0123456789abcdef").is_ok());
        assert!(r.check_model(Path::new("n.onnx"), "f").unwrap_err().to_string().contains("another model (m.onnx, SHA-256 0123456789ab…) than n.onnx"));
        assert!(through_a_file(&Ranges { ranges_version: 2, ..r }).unwrap_err().to_string().contains("another version"));
    }
}
