//! Target `ort`: what ONNX Runtime's optimizer makes of our files.

use crate::retarget::written;
use requant::check::Verdict;
use requant::pass::Silent;
use requant::recipe::{Request, Sources, check, convert};
use serde_json::Value as Json;
use std::collections::BTreeSet;

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

/// Layers with each function that may stand behind one (`tests/python/followers.py`): no product is left in float, and of files for no target in particular
/// `check` foretells which ones are.
#[test]
fn products_are_integer_kernels_whatever_stands_behind_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let names: Vec<String> = serde_json::from_str(crate::python::run("followers.py", &[folder]).trim()).unwrap();
    let at = |f: String| dir.path().join(f);
    for (target, set) in [("ort", &[][..]), ("generic", &["weights.granularity=tensor"])] {
        let mut files: Vec<String> = Vec::new();
        for name in &names {
            let [model, data, out] = [format!("{name}.onnx"), format!("{name}.npz"), format!("{name}.{target}.onnx")].map(at);
            written(&model, &out, target, Some("int8-fast"), &[set, &["data.validate=0"]].concat(), Some(&data)).unwrap_or_else(|e| panic!("{name}: {e}"));
            files.extend([out, data].map(|f| f.display().to_string()));
        }
        let said = crate::python::run("fused.py", &files.iter().map(String::as_str).collect::<Vec<_>>());
        let rows: Vec<Json> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(rows.len(), names.len());
        let (mut faults, mut float) = (vec![], 0);
        for (name, row) in names.iter().zip(&rows) {
            let found = check(&at(format!("{name}.{target}.onnx")), "ort", None).unwrap();
            let product = |op: &str| ["Conv", "Gemm", "MatMul"].contains(&op);
            let foretold: BTreeSet<&str> = found.nodes.iter().filter(|r| product(&r.op) && r.verdict > Verdict::Requantizes).map(|r| &*r.node).collect();
            // As the optimizer renames what it joins.
            let own = |name: &Json| name.as_str().unwrap().trim_start_matches("fused ").trim_end_matches("/MatMulAddFusion").to_string();
            let left: BTreeSet<String> = row["float"].as_array().unwrap().iter().map(|n| own(&n[1])).collect();
            float += left.len();
            if !left.iter().eq(&foretold) || target == "ort" && !left.is_empty() {
                faults.push(format!("{name} for {target}: in float {left:?}, foretold {foretold:?}"));
            }
        }
        println!("{target}: {} files, {float} products in float", names.len());
        assert!(faults.is_empty(), "{faults:#?}");
        assert!(target == "ort" || float > 0, "a check that never says float would pass");
    }
}
