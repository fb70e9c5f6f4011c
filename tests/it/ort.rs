//! Target `ort`: what ONNX Runtime's optimizer makes of our files.

use requant::pass::Silent;
use requant::recipe::{Request, Sources, convert};
use serde_json::Value as Json;

/// Converts the repository's model for `ort` and returns what `fused.py` says of it.
fn fused(exclude: &[&str], set: &[&str]) -> Json {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (crate::repository("models/kws_calibration.npz"), dir.path().join("out.onnx"));
    let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    let mut set: Vec<String> = owned(set);
    set.push("data.validate=0".into());
    let sources = Sources { recipe: Some("int8-fast".into()), target: Some("ort".into()), set, exclude: owned(exclude), ..Sources::default() };
    let request = Request {
        model: crate::repository("models/kws_dscnn.onnx"),
        data: Some(data.display().to_string()),
        sources,
        output: Some(out.clone()),
        ..Request::default()
    };
    convert(&request, &Silent).unwrap();
    let said = crate::python::run("fused.py", &[out.to_str().unwrap(), data.to_str().unwrap()]);
    serde_json::from_str(said.trim()).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn every_product_becomes_an_integer_kernel() {
    let found = fused(&[], &[]);
    assert_eq!(found["float"], serde_json::json!([]), "{found}");
    assert!(found["ops"]["QLinearConv"].as_u64() >= Some(9), "{found}");
}

/// Without the shield ONNX Runtime quantizes the weights that an override kept float, and the results part.
#[test]
fn what_an_override_keeps_float_stays_float() {
    let found = fused(&[], &["overrides+={ops: [Conv], keep: float}"]);
    let left = found["float"].as_array().unwrap().len();
    assert!(left >= 9, "{found}");
    assert!(found["on_off_db"].as_f64().is_none_or(|db| db > 40.0), "{found}");
}
