//! Preprocessing in the graph: bytes of images in ONNX Runtime, beside preprocessed floats.

use requant::pass::Silent;
use requant::recipe::{Outcome, Request, Sources, convert};
use serde_json::{Value as Json, json};
use std::path::Path;

fn json(text: &str) -> Json {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn written(dir: &Path, model: &str, tag: &str, set: &[&str]) -> requant::error::Result<Outcome> {
    let sources = Sources { recipe: Some("int8-fast".into()), set: set.iter().map(|s| s.to_string()).collect(), ..Sources::default() };
    let data = Some(dir.join("images").display().to_string());
    let request = Request { model: dir.join(format!("{model}.onnx")), data, output: Some(dir.join(format!("{tag}.onnx"))), sources, ..Request::default() };
    convert(&request, &Silent)
}

#[test]
fn bytes_in_are_what_preprocessed_floats_were() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let cases = json(&crate::python::run("raw_images.py", &["make", folder]));
    for (name, case) in cases.as_object().unwrap() {
        let [model, layout, keys] = [0, 1, 2].map(|i| case[i].as_str().unwrap());
        let how = format!("inputs.x.preprocess={keys}");
        let floats = written(dir.path(), model, &format!("{name}.qdq"), &[&how]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = written(dir.path(), model, &format!("{name}.raw"), &[&how, &format!("lower.images={layout}")]).unwrap();
        let measured = |o: &Outcome| serde_json::to_value(&o.report.outputs).unwrap();
        assert_eq!(measured(&floats), measured(&bytes), "{name}: the report's samples become the bytes they came from");
    }
    let rows = json(&crate::python::run("raw_images.py", &["compare", folder]));
    for (name, row) in rows.as_object().unwrap() {
        println!("{name}: {row}");
        assert_eq!(row["largest"], 0.0, "{name}: {row}");
        assert!(row["sqnr_db"].as_f64().unwrap() > 30.0, "{name}: {row}");
        assert_eq!(row["type"], "tensor(uint8)", "{name}: {row}");
        let nhwc = cases[name][1] == "nhwc";
        assert_eq!(row["shape"], if nhwc { json!([1, 16, 16, 3]) } else { json!([1, 3, 16, 16]) }, "{name}: {row}");
        let said = &row["said"];
        assert_eq!((&said["layout"], said["channels"] == "bgr"), (&cases[name][1], name == "bgr" || name == "one_mean"), "{name}: {row}");
        let computes = row["ops"].as_array().unwrap().iter().any(|op| op == "Cast");
        assert_eq!(computes, !name.starts_with("unit"), "bytes are codes where the range is 0 … 1: {name}: {row}");
    }
    assert_eq!(rows.as_object().unwrap().len(), cases.as_object().unwrap().len());
}
