//! Weights in every format and spelling, from recipe to file: `tests/python/weights.py`.

use requant::graph::Op;
use requant::onnx::{ReadOptions, read};
use requant::pass::Silent;
use requant::recipe::{Request, Sources, convert};
use serde_json::Value as Json;

#[test]
fn every_format_in_every_spelling_is_what_numpy_rounds_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    crate::python::run("weights.py", &["make", folder]);
    let cases: Vec<String> = serde_json::from_slice(&std::fs::read(dir.path().join("cases.json")).unwrap()).unwrap();
    for name in &cases {
        let recipe = dir.path().join(format!("{name}.yaml")).display().to_string();
        let sources = Sources { recipe: Some(recipe), ..Sources::default() };
        let output = Some(dir.path().join(format!("{name}.onnx")));
        let request = Request { model: dir.path().join("model.onnx"), sources, output, threads: 1, ..Request::default() };
        let report = convert(&request, &Silent).unwrap_or_else(|e| panic!("{name}: {e}")).report;
        assert_eq!(report.steps.iter().map(|s| s.step.as_str()).collect::<Vec<_>>(), ["place", "calibrate", "round", "lower"]);
    }
    let judged: Json = serde_json::from_str(&crate::python::run("weights.py", &["judge", folder])).unwrap();
    let judged = judged.as_object().unwrap();
    assert_eq!(judged.len(), cases.len());
    let mut faults: Vec<String> = Vec::new();
    for (name, row) in judged {
        faults.extend(row[0].as_array().unwrap().iter().map(|complaint| format!("{name}: {complaint}")));
        let ops: Vec<&str> = row[1].as_array().unwrap().iter().filter_map(Json::as_str).collect();
        let integers = name.contains("int") && !name.contains("channel") && !name.starts_with("real_uint8");
        let packed = name.ends_with("matmul-nbits") && (integers || name.starts_with("nf4_16"));
        if packed != ops.iter().any(|op| matches!(*op, "MatMulNBits" | "MatMulBnb4")) || packed && ops.contains(&"MatMul") {
            faults.push(format!("{name}: written as {ops:?}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(cases.len() >= 90, "{}", cases.len());
}

/// The recipe for a language model: an override keeps the head in 8 bits, and nothing but `round` and `lower` is said.
#[test]
fn a_recipe_for_language_models_works_as_written() {
    let dir = tempfile::tempdir().unwrap();
    crate::python::run("weights.py", &["make", dir.path().to_str().unwrap()]);
    let (recipe, output) = (dir.path().join("mine.yaml"), dir.path().join("out.onnx"));
    let text = "target: ort\nactivations: none\nweights: { format: uint4, granularity: block, block_size: 32 }\n\
                steps: [ { round: nearest }, { lower: { form: matmul-nbits, accuracy_level: 4 } } ]\n\
                overrides: [ { nodes: \"prod**\", weights: { bits: 8 } } ]\n";
    std::fs::write(&recipe, text).unwrap();
    let sources = Sources { recipe: Some(recipe.display().to_string()), ..Sources::default() };
    convert(&Request { model: dir.path().join("model.onnx"), sources, output: Some(output.clone()), ..Request::default() }, &Silent).unwrap();
    let model = read(&output, &ReadOptions::default()).unwrap();
    let products = model.graph.nodes().filter(|(_, n)| n.op == Op::MatMulNBits);
    let found: Vec<_> = products.map(|(_, n)| (n.name.as_str(), n.int("bits"), n.int("accuracy_level"))).collect();
    assert_eq!(found, [("product", Some(8), Some(4)), ("turned", Some(4), Some(4)), ("plain", Some(4), Some(4))]);
}

/// Every value of a decoder that stays float is wanted at once, which tract's optimizer does not always survive.
#[cfg(feature = "shared")]
#[test]
fn a_decoder_with_packed_weights_is_judged_node_by_node() {
    let dir = tempfile::tempdir().unwrap();
    let set = ["data.samples=2", "data.validate=2"].map(String::from).to_vec();
    let sources = Sources { recipe: Some("w4".into()), set, ..Sources::default() };
    let (model, data) = (crate::shared("models/aidreams260k/aidreams260k.onnx"), Some("random:4".to_string()));
    let request = Request { model, data, sources, output: Some(dir.path().join("out.onnx")), ..Request::default() };
    let report = convert(&request, &Silent).unwrap().report;
    assert!(report.validated && report.nodes.len() > 100, "{} nodes", report.nodes.len());
    assert!(report.outputs[0].sqnr_db.0 > 10.0, "{:?}", report.outputs[0].sqnr_db);
}
