//! Quantized files on their way to other targets: what stays, bit for bit, and what the result computes.

use requant::data::{DataSettings, Dataset, InputInfo};
use requant::engine::{Runner, shapes_of};
use requant::graph::{Model, Site};
use requant::lift::lift;
use requant::onnx::{self, ReadOptions};
use requant::pass::Silent;
use requant::recipe::{Outcome, Request, Sources, check, convert};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Converts a file as told, with its samples if `data`.
fn written(from: &Path, to: &Path, target: &str, recipe: Option<&str>, set: &[&str], data: Option<&Path>) -> requant::error::Result<Outcome> {
    let sources =
        Sources { recipe: recipe.map(str::to_string), target: Some(target.into()), set: set.iter().map(|s| s.to_string()).collect(), ..Sources::default() };
    let data = data.map(|d| d.display().to_string());
    let request = Request { model: from.into(), data, output: Some(to.into()), sources, ..Request::default() };
    convert(&request, &Silent)
}

fn lifted(path: &Path) -> Model {
    let mut m = onnx::read(path, &ReadOptions::default()).unwrap();
    lift(&mut m).unwrap();
    m
}

/// Numbers that constants stand for and codes that they have, by name.
fn codes(path: &Path) -> BTreeMap<String, Vec<i32>> {
    let m = lifted(path);
    let of = |site: &Site| m.quantizers[m.graph.node(site.node).quantizer().unwrap()].name.clone();
    m.codes.iter().map(|(site, codes)| (of(site).trim_end_matches("_quantized").to_string(), codes.unpack())).collect()
}

/// The outputs of a file on its samples, and the largest difference to another's in parts of their largest.
fn differ(a: &Path, b: &Path, npz: &Path) -> f32 {
    let (a, b) = (lifted(a), lifted(b));
    let infos: Vec<InputInfo> = requant::recipe::declared_inputs(&a).unwrap();
    let data = Dataset::open(&npz.display().to_string(), &infos, &DataSettings::default()).unwrap();
    let sample = data.sample(0).unwrap();
    let run = |m: &Model| {
        let outputs = m.graph.outputs.clone();
        let runner = Runner::new(m, &shapes_of(&sample), &outputs).unwrap();
        let out = runner.run(&mut runner.spawn(), &sample, &m.quantizers).unwrap();
        out.iter().flat_map(|t| t.to_f32().unwrap().into_owned()).collect::<Vec<f32>>()
    };
    let (x, y) = (run(&a), run(&b));
    assert_eq!(x.len(), y.len());
    let top = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    x.iter().zip(&y).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / top
}

/// The small models of `spellings.py` in a folder.
fn models(dir: &Path) -> Vec<String> {
    let said = crate::python::run("spellings.py", &["make", dir.to_str().unwrap()]);
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

#[test]
fn the_same_target_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |f: String| -> PathBuf { dir.path().join(f) };
    for name in models(dir.path()) {
        let npz = at(format!("{name}.npz"));
        let (q, again) = (at(format!("{name}.q.onnx")), at(format!("{name}.again.onnx")));
        written(&at(format!("{name}.onnx")), &q, "generic", Some("int8-fast"), &[], Some(&npz)).unwrap();
        written(&q, &again, "generic", None, &[], None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(codes(&q), codes(&again), "{name}");
        assert_eq!(differ(&q, &again, &npz), 0.0, "{name}");
    }
}
