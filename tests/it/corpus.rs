//! The corpus of small models, one operator each: what is inferred, folded or run is what ONNX Runtime computes, or it is refused by name.

use requant::engine::Runner;
use requant::graph::{Dim, InputShapes, Model, ValueId, infer};
use requant::onnx::{self, ReadOptions};
use requant::quant::Table;
use requant::tensor::{DType, Tensor};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The values that `corpus.py` wrote, by name.
fn values(path: &Path) -> BTreeMap<String, Tensor> {
    let model = onnx::read(path, &ReadOptions::default()).unwrap();
    model.graph.values().filter_map(|(_, v)| Some((v.name.clone(), v.constant.as_ref()?.tensor.clone()))).collect()
}

/// What is different, if it is more than another order of summation makes.
fn difference(found: &Tensor, truth: &Tensor) -> Option<String> {
    if (found.dtype(), found.shape()) != (truth.dtype(), truth.shape()) {
        return Some(format!("{found:?}, not {truth:?}"));
    }
    let tolerance = match truth.dtype() {
        DType::F16 => 2e-3,
        DType::F32 | DType::F64 => 5e-5,
        _ => return (found != truth).then(|| format!("other integers: {:?} not {:?}", head(found), head(truth))),
    };
    let (a, b) = (found.to_f32().unwrap(), truth.to_f32().unwrap());
    let peak = b.iter().filter(|x| x.is_finite()).fold(1e-3f32, |m, x| m.max(x.abs()));
    let same = |(x, y): (&f32, &f32)| x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * peak;
    (!a.iter().zip(b.iter()).all(same)).then(|| format!("other numbers: {:?} not {:?}", head(found), head(truth)))
}

fn head(t: &Tensor) -> Vec<f32> {
    t.to_f32().map(|v| v.iter().take(6).copied().collect()).unwrap_or_default()
}

/// Wrong facts of the values whose truth is known.
fn wrong_facts(model: &Model, shapes: &InputShapes, truth: &BTreeMap<String, Tensor>) -> Vec<String> {
    let inferred = infer(model, shapes);
    let mut wrong = Vec::new();
    for (v, value) in model.graph.values().filter(|(_, value)| value.producer().is_some()) {
        let Some(t) = truth.get(&value.name) else { continue };
        let fact = inferred.get(v);
        let name = &value.name;
        if fact.dtype.is_some_and(|d| d != t.dtype()) {
            wrong.push(format!("{name} is inferred as {:?}, not {t:?}", fact.dtype));
        }
        if let Some(s) = &fact.shape
            && (s.len() != t.rank() || s.iter().zip(t.shape()).any(|(d, n)| matches!(d, Dim::Known(k) if k != n)))
        {
            wrong.push(format!("{name} is inferred as {s:?}, not {t:?}"));
        }
        if let Some(difference) = fact.constant.as_ref().and_then(|c| difference(c, t)) {
            wrong.push(format!("{name} is folded to {difference}"));
        }
    }
    wrong
}

/// Runs all values at once; the refusal, or what is wrong.
fn run(model: &Model, shapes: &InputShapes, truth: &BTreeMap<String, Tensor>) -> Result<Vec<String>, String> {
    let wanted: Vec<ValueId> = model.graph.values().filter(|(_, v)| v.producer().is_some() && truth.contains_key(&v.name)).map(|(v, _)| v).collect();
    let runner = Runner::new(model, shapes, &wanted).map_err(|e| e.to_string())?;
    let found = runner.run(&mut runner.spawn(), truth, &Table::default()).map_err(|e| e.to_string())?;
    let name = |v: ValueId| &model.graph.value(v).name;
    let wrong = |(v, t): (&ValueId, &Tensor)| difference(t, &truth[name(*v)]).map(|d| format!("{} is computed as {d}", name(*v)));
    Ok(wanted.iter().zip(&found).filter_map(wrong).collect())
}

#[test]
fn nothing_is_computed_wrongly_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let archive = crate::shared("corpus/onnx-single-ops.tar.xz");
    assert!(std::process::Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(dir.path()).status().unwrap().success());
    let (ran, refused) = compare(dir.path());
    println!("{ran} run, {} refused", refused.len());
}

fn compare(dir: &Path) -> (usize, Vec<String>) {
    let out = tempfile::tempdir().unwrap();
    let report: Json = serde_json::from_str(&crate::python::run("corpus.py", &[dir.to_str().unwrap(), out.path().to_str().unwrap()])).unwrap();
    let (mut ran, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for entry in report.as_array().unwrap() {
        let [path, truth] = ["model", "out"].map(|k| entry[k].as_str().unwrap());
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        if truth.is_empty() {
            continue;
        }
        let work = || {
            let Ok(model) = onnx::read(Path::new(path), &ReadOptions::default()) else { return Ok(Vec::new()) };
            let truth = values(Path::new(truth));
            let inputs = model.graph.inputs.iter().map(|v| model.graph.value(*v)).filter(|v| v.constant.is_none());
            let shapes: InputShapes = inputs.filter_map(|v| Some((v.name.clone(), truth.get(&v.name)?.shape().to_vec()))).collect();
            let mut list = wrong_facts(&model, &shapes, &truth);
            run(&model, &shapes, &truth)
                .map(|more| {
                    list.extend(more);
                    std::mem::take(&mut list)
                })
                .or_else(|refusal| if list.is_empty() { Err(refusal) } else { Ok(list) })
        };
        match catch_unwind(AssertUnwindSafe(work)) {
            Err(panic) => wrong.push(format!("{name}: panics: {:?}", panic.downcast_ref::<String>())),
            Ok(Err(e)) => refused.push(format!("{name}: {e}")),
            Ok(Ok(list)) => {
                ran += 1;
                wrong.extend(list.into_iter().map(|w| format!("{name}: {w}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    (ran, refused)
}
