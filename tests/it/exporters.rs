//! Forms that exporters write and small test models seldom have: `tests/python/exporters.py`.

use requant::pass::Silent;
use requant::recipe::{Request, Sources, convert};
use std::collections::BTreeMap;

/// What one recipe makes of a form; the samples are few.
fn one(name: &str, recipe: &str, set: &[&str]) -> requant::Result<requant::recipe::Outcome> {
    let dir = tempfile::tempdir().unwrap();
    crate::python::run("exporters.py", &["make", dir.path().to_str().unwrap()]);
    let [model, data] = ["onnx", "npz"].map(|end| dir.path().join(format!("{name}.{end}")));
    let set = set.iter().chain(&["data.samples=8"]).map(|s| s.to_string()).collect();
    let sources = Sources { recipe: Some(recipe.into()), set, ..Sources::default() };
    convert(&Request { model, data: Some(data.display().to_string()), sources, threads: 1, ..Request::default() }, &Silent)
}

/// A walk through the model at the samples' shapes meets the branch that is taken in the place of an If.
#[test]
fn weights_behind_an_if_are_learnt() {
    for recipe in ["adaquant", "gptq-w4"] {
        let outcome = one("squeeze_if", recipe, &[]).unwrap_or_else(|e| panic!("{recipe}: {e}"));
        assert!(outcome.report.outputs[0].sqnr_db.0 > 12.0, "{recipe}: {:?}", outcome.report.outputs);
    }
}

/// −∞ as a bound sets no range, folded away or not.
#[test]
fn an_infinite_constant_saturates() {
    let steps = "steps=[place, calibrate, { round: nearest }, { lower: qdq }]";
    let outcome = one("bounded_softmax", "int8-fast", &[steps]).unwrap();
    assert!(outcome.report.outputs[0].sqnr_db.0 > 18.0, "{:?}", outcome.report.outputs);
}

/// Casts of one value in both branches have names of their own, as ONNX wants.
#[test]
fn both_branches_of_an_if_become_halves() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    crate::python::run("exporters.py", &["make", folder]);
    let [model, data, output] = ["squeeze_if.onnx", "squeeze_if.npz", "squeeze_if.int8.onnx"].map(|f| dir.path().join(f));
    let set = ["float=float16", "weights.granularity=tensor", "activations.scale=e8m0"].map(String::from).to_vec();
    let sources = Sources { recipe: Some("int8-fast".into()), set, ..Sources::default() };
    convert(&Request { model, data: Some(data.display().to_string()), output: Some(output.clone()), sources, ..Request::default() }, &Silent).unwrap();
    crate::python::run("exporters.py", &["check", output.to_str().unwrap()]);
}

#[test]
fn what_exporters_write_is_converted_loads_and_computes_the_same() {
    // One measures wider activations in every model.
    for (recipe, set) in [("int8", None), ("int8-fast", None), ("int8", Some("widen.loss=1e-12")), ("xint8", None)] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        crate::python::run("exporters.py", &["make", folder]);
        let mut models: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().unwrap() == "onnx").collect();
        models.sort();
        for model in &models {
            let sources = Sources { recipe: Some(recipe.into()), set: set.map(String::from).into_iter().collect(), ..Sources::default() };
            let (data, output) = (Some(model.with_extension("npz").display().to_string()), Some(model.with_extension("int8.onnx")));
            let request = Request { model: model.clone(), sources, data, output, threads: 1, ..Request::default() };
            let outcome = convert(&request, &Silent).unwrap_or_else(|e| panic!("{recipe}, {}: {e}", model.display()));
            // ONNX Runtime warns of each initializer that nobody reads.
            let g = requant::onnx::read(&outcome.output, &Default::default()).unwrap().graph;
            let idle: Vec<&str> = g.initializers.iter().filter(|v| g.value(**v).uses().is_empty() && !g.is_output(**v)).map(|v| &*g.value(*v).name).collect();
            assert!(idle.is_empty(), "{recipe}, {}: {idle:?}", model.display());
        }
        let judged: BTreeMap<String, (f64, u64)> = serde_json::from_str(&crate::python::run("exporters.py", &["judge", folder])).unwrap();
        assert_eq!(judged.len(), models.len());
        for (name, (db, ifs)) in judged {
            println!("{recipe}: {name} {db:.1} dB, {ifs} Ifs");
            assert!(db > 18.0, "{recipe}: {name} has {db} dB");
            // Which branch is taken is known from declared shapes in one of them.
            assert_eq!(ifs, matches!(name.as_str(), "squeeze_if" | "rate_if") as u64, "{name}");
        }
    }
}

/// Paddle writes `?` for every size that it does not know: they are no one dimension.
#[test]
fn sizes_without_a_name_are_fixed_apart() {
    let outcome = |set: &[&str]| one("nameless", "int8-fast", &[&["target=webnn"], set].concat());
    let e = outcome(&[]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("under inputs.x"), "{e}");
    let outcome = outcome(&["inputs={ x: { shape: [1, 4, 6, 8], fix: true } }"]).unwrap();
    assert!(outcome.report.outputs[0].sqnr_db.0 > 25.0 && !outcome.report.check.iter().any(|row| row.rule == "static"), "{:?}", outcome.report.check);
}
