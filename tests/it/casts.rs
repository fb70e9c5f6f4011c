//! Recipes that write what stays float in another type.

use requant::pass::Silent;
use requant::recipe::{Outcome, Request, Sources, convert};
use requant::report::Db;
use serde_json::Value as Json;
use std::path::Path;

/// The repository's model under a recipe, and what ONNX and ONNX Runtime say of the file.
fn converted(recipe: &str, set: &[&str]) -> (Outcome, Json) {
    converted_twice(None, recipe, set)
}

/// The same of what another recipe made of it before.
fn converted_twice(first: Option<&str>, recipe: &str, set: &[&str]) -> (Outcome, Json) {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = (crate::repository("models/kws_dscnn.onnx"), crate::repository("models/kws_calibration.npz"), dir.path().join("out.onnx"));
    let text = data.display().to_string();
    let by = |recipe: &str, set: &[&str], model: &Path, out: &Path| {
        let set = ["data.samples=4", "data.validate=4"].iter().chain(set).map(|s| s.to_string()).collect();
        let sources = Sources { recipe: Some(recipe.into()), set, ..Sources::default() };
        convert(&Request { model: model.into(), data: Some(text.clone()), sources, output: Some(out.into()), ..Request::default() }, &Silent).unwrap()
    };
    let model = first.map_or(model.clone(), |first| {
        let made = dir.path().join("first.onnx");
        by(first, &[], &model, &made);
        made
    });
    let outcome = by(recipe, set, &model, &out);
    // The same samples as the report's: float16's noise differs a hundredfold between them.
    let judged: Vec<String> =
        outcome.report.data.as_ref().unwrap().validation.iter().map(|name| name[name.rfind('[').unwrap() + 1..name.len() - 1].into()).collect();
    let said = crate::python::run("casts.py", &[model.to_str().unwrap(), out.to_str().unwrap(), &text, &judged.join(",")]);
    (outcome, serde_json::from_str(said.trim()).unwrap_or_else(|e| panic!("{e}: {said}")))
}

fn sqnr(outcome: &Outcome) -> f64 {
    let Db(db) = outcome.report.outputs[0].sqnr_db;
    db
}

#[test]
fn float16_keeps_every_class_and_runs_in_onnx_runtime_as_the_report_says() {
    let (outcome, said) = converted("float16", &[]);
    assert_eq!((&said["input"], &said["output"], &said["casts"]), (&"FLOAT".into(), &"FLOAT".into(), &2.into()), "{said}");
    assert_eq!(said["float32_constants"], 0, "{said}");
    let (ours, theirs) = (sqnr(&outcome), said["sqnr_db"].as_f64().unwrap());
    assert!(ours > 55.0 && theirs > 55.0, "{ours} {said}");
    let (_, said) = converted("float16", &["float.keep_io=false"]);
    assert_eq!((&said["input"], &said["output"], &said["casts"]), (&"FLOAT16".into(), &"FLOAT16".into(), &0.into()), "{said}");
}

/// What a quantized file leaves float is written in halves, its codes stay.
#[test]
fn float16_of_a_quantized_file_is_near_it() {
    let (outcome, said) = converted_twice(Some("int8-fast"), "float16", &[]);
    let (ours, theirs) = (sqnr(&outcome), said["sqnr_db"].as_f64().unwrap());
    assert!(ours > 30.0 && theirs > 30.0, "{ours} {said}");
}

/// No runtime at hand computes in bfloat16; ONNX's checker knows its types.
#[test]
fn bfloat16_raises_the_opset_and_passes_the_checker() {
    let (outcome, said) = converted("bfloat16", &[]);
    assert_eq!((&said["opset"], &said["casts"], &said["float32_constants"]), (&22.into(), &2.into(), &0.into()), "{said}");
    assert!(sqnr(&outcome) > 30.0, "{}", sqnr(&outcome));
}

#[test]
fn operators_that_the_recipe_keeps_stay_float32_and_codes_stay_codes() {
    let (_, said) = converted("float16", &["float.keep=[Softmax]"]);
    assert_eq!(said["casts"], 2, "the Cast before the Softmax makes the output float32: {said}");
    let (outcome, said) = converted("int8-fast", &["float={format: float16, keep_io: true}", "overrides+={ops: [Conv], where: first, keep: float}"]);
    assert!(said["casts"].as_u64() >= Some(2), "{said}");
    assert!(sqnr(&outcome) > 15.0 && said["sqnr_db"].as_f64() > Some(15.0), "{said}");
}
