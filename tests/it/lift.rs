//! Quantized models of other tools, read, lifted and run by the engine, against onnxruntime or onnx's reference: `tests/python/quantized.py`.

use requant::engine::Runner;
use requant::graph::{Flow, Graph, Model, Op};
use requant::lift::lift;
use requant::onnx::{self, ReadOptions};
use requant::tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn tensor(folder: &Path, v: &Value) -> (String, Tensor) {
    let dtype = DType::of_name(v["dtype"].as_str().unwrap()).unwrap();
    let shape = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let bytes = std::fs::read(folder.join(v["file"].as_str().unwrap())).unwrap();
    (v["name"].as_str().unwrap().to_string(), Tensor::new(dtype, shape, bytes.into()).unwrap())
}

fn count(g: &Graph, wanted: &dyn Fn(Op) -> bool) -> u64 {
    g.nodes().map(|(_, n)| wanted(n.op) as u64 + n.bodies().map(|(_, b)| count(b, wanted)).sum::<u64>()).sum()
}

/// Lifts a case, and says in one line what is wrong with it.
fn check(folder: &Path, case: &Value) -> Result<(), String> {
    let name = case["name"].as_str().unwrap();
    let mut model = onnx::read(&folder.join(format!("{name}.onnx")), &ReadOptions::default()).map_err(|e| e.to_string())?;
    let interface = |m: &Model| m.graph.outputs.iter().map(|v| m.graph.value(*v).name.clone()).collect::<Vec<_>>();
    let before = interface(&model);
    lift(&mut model).map_err(|e| e.to_string())?;
    if before != interface(&model) {
        return Err("other outputs than before".into());
    }
    if count(&model.graph, &|op| op.flow() == Flow::Quantize && op != Op::FakeQuant) > 0 {
        return Err("quantized operators are left".into());
    }
    let found = [
        ("codes", model.codes.len() as u64),
        ("fakes", count(&model.graph, &|op| op == Op::FakeQuant)),
        ("quantizers", model.quantizers.len() as u64),
        ("casts", count(&model.graph, &|op| op == Op::Cast)),
    ];
    for (what, n) in found {
        if case[what].as_u64().is_some_and(|want| want != n) {
            return Err(format!("{n} {what}, not {}", case[what]));
        }
    }
    let inputs: BTreeMap<String, Tensor> = case["inputs"].as_array().unwrap().iter().map(|v| tensor(folder, v)).collect();
    let shapes = inputs.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    let outputs = model.graph.outputs.clone();
    let runner = Runner::new(&model, &shapes, &outputs).map_err(|e| e.to_string())?;
    let answers = runner.run(&mut runner.spawn(), &inputs, &model.quantizers).map_err(|e| e.to_string())?;
    for (got, want) in answers.iter().zip(case["outputs"].as_array().unwrap()) {
        let (output, want) = tensor(folder, want);
        compare(case, got, &want).map_err(|e| format!("output {output}: {e}"))?;
    }
    Ok(())
}

fn compare(case: &Value, got: &Tensor, want: &Tensor) -> Result<(), String> {
    if (got.dtype(), got.shape()) != (want.dtype(), want.shape()) {
        return Err(format!("{got:?}, not {want:?}"));
    }
    let (a, b) = (got.to_f32().map_err(|e| e.to_string())?, want.to_f32().map_err(|e| e.to_string())?);
    let worst = a
        .iter()
        .zip(&*b)
        .map(|(a, b)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() as f64 })
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m });
    let largest = b.iter().fold(0.0f64, |m, b| m.max(b.abs() as f64));
    if let Some(db) = case["db"].as_f64() {
        let power: f64 = b.iter().map(|b| (*b as f64).powi(2)).sum();
        let noise: f64 = a.iter().zip(&*b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
        let found = 10.0 * (power / noise.max(1e-30)).log10();
        println!("{}: {found:.1} dB", case["name"]);
        return if found >= db { Ok(()) } else { Err(format!("{found:.1} dB")) };
    }
    let allowed = match (case["relative"].as_f64(), case["steps"].as_f64()) {
        (Some(r), _) => r * largest,
        (None, steps) => steps.unwrap_or(0.0) * case["step"].as_f64().unwrap_or(1.0) * 1.0001,
    };
    let apart = a.iter().zip(&*b).filter(|(a, b)| a != b).count();
    if worst <= allowed {
        Ok(())
    } else {
        Err(format!("{apart} of {} differ, by up to {worst:e} where {allowed:e} is allowed and {largest} is largest", a.len()))
    }
}

/// Single operators are bit-exact or within one step of the output's scale, products within float rounding, whole nets at 30 dB or better.
#[test]
fn quantized_models_of_other_tools_compute_what_they_compute_there() {
    let folder = tempfile::tempdir().unwrap();
    crate::python::run("quantized.py", &[folder.path().to_str().unwrap()]);
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.path().join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    let wrong: Vec<String> = cases.iter().filter_map(|c| check(folder.path(), c).err().map(|e| format!("{}: {e}", c["name"]))).collect();
    assert!(wrong.is_empty(), "{} of {} models are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
