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
pub fn written(from: &Path, to: &Path, target: &str, recipe: Option<&str>, set: &[&str], data: Option<&Path>) -> requant::error::Result<Outcome> {
    let sources =
        Sources { recipe: recipe.map(str::to_string), target: Some(target.into()), set: set.iter().map(|s| s.to_string()).collect(), ..Sources::default() };
    let data = data.map(|d| d.display().to_string());
    let request = Request { model: from.into(), data, output: Some(to.into()), sources, ..Request::default() };
    convert(&request, &Silent)
}

pub fn lifted(path: &Path) -> Model {
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

/// From chip to chip. The first two hold each other's formats: what their files have in codes computes the same; the third shifts, and is near.
#[test]
fn codes_stay_from_chip_to_chip_where_they_are_held() {
    let dir = tempfile::tempdir().unwrap();
    let at = |f: String| -> PathBuf { dir.path().join(f) };
    models(dir.path());
    for name in ["conv_bn_relu", "conv_clip6_dw", "residual", "gemm", "pools", "concat", "split", "resize", "reshape_tr", "towers", "moves"] {
        let npz = at(format!("{name}.npz"));
        let first = at(format!("{name}.q.onnx"));
        written(&at(format!("{name}.onnx")), &first, "generic", Some("int8-fast"), &[], Some(&npz)).unwrap();
        let mut from = first.clone();
        let hops = [("ort", &[][..], true), ("qnn", &[], true), ("xint8", &[], false), ("generic", &["lower.form=qoperator"], false), ("generic", &[], false)];
        for (i, (target, set, exact)) in hops.into_iter().enumerate() {
            let to = at(format!("{name}.{i}.onnx"));
            // Codes that a QOperator file cuts by arithmetic of their own bring no quantizer: their range needs samples.
            let alone = match written(&from, &to, target, None, set, None) {
                Err(e) if i == 4 && e.to_string().contains("give --data") => false,
                other => other.map(|_| true).unwrap_or_else(|e| panic!("{name} {target}: {e}")),
            };
            if !alone {
                written(&from, &to, target, None, set, Some(&npz)).unwrap_or_else(|e| panic!("{name} {target}: {e}"));
            }
            let found = check(&to, target, None).unwrap();
            assert_eq!(found.refused, 0, "{name} {target}: {:?}", found.findings().collect::<Vec<_>>());
            let off = differ(&first, &to, &npz);
            println!("{name} {target}: {}; {off} of its largest from the first", found.line());
            if exact {
                assert_eq!((off, codes(&to)), (0.0, codes(&first)), "{name} {target}");
            }
            assert!(off < 0.08, "{name} {target}: {off}");
            // From one spelling to another no number changes, but where the target fixes the range of shares that powers of two had held in part.
            if i > 2 && alone && (i, name) != (3, "towers") {
                assert_eq!(differ(&from, &to, &npz), 0.0, "{name} {target} {set:?}");
            }
            from = to;
        }
    }
}

/// Codes around 0 leave Relu and Clip something to cut, which a chip that drops them would run in float: the same codes stand before them then.
#[test]
fn symmetric_codes_run_in_integers_where_relus_vanish_and_compute_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |f: String| -> PathBuf { dir.path().join(f) };
    models(dir.path());
    for name in ["conv_bn_relu", "conv_clip6_dw", "residual", "gemm", "concat"] {
        let npz = at(format!("{name}.npz"));
        let (q, to) = (at(format!("{name}.q.onnx")), at(format!("{name}.qnn.onnx")));
        let set = ["activations.format=int8", "activations.symmetric=true"];
        written(&at(format!("{name}.onnx")), &q, "generic", Some("int8-fast"), &set, Some(&npz)).unwrap();
        written(&q, &to, "qnn", None, &[], None).unwrap();
        let found = check(&to, "qnn", None).unwrap();
        assert_eq!(found.integer, found.nodes.len(), "{name}: {:?}", found.findings().collect::<Vec<_>>());
        assert_eq!((differ(&q, &to, &npz), codes(&to)), (0.0, codes(&q)), "{name}");
    }
}

#[test]
fn what_the_file_leaves_float_needs_samples_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let at = |f: &str| dir.path().join(f);
    written(&at("gemm.onnx"), &at("w.onnx"), "generic", Some("w8"), &[], None).unwrap();
    let e = written(&at("w.onnx"), &at("q.onnx"), "ort", None, &[], None).unwrap_err();
    assert_eq!(e.exit_code(), 2);
    assert!(e.to_string().contains("give --data"), "{e}");
    written(&at("w.onnx"), &at("q.onnx"), "ort", None, &[], Some(&at("gemm.npz"))).unwrap();
    let (w, q) = (codes(&at("w.onnx")), codes(&at("q.onnx")));
    assert!(!w.is_empty() && w.iter().all(|(name, c)| q[name] == *c), "weights keep their codes");
}

#[test]
fn packed_weights_become_dequantized_ones_and_back() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let at = |f: &str| dir.path().join(f);
    let set = ["weights.symmetric=true", "weights.format=uint4", "weights.block_size=16"];
    written(&at("matmul_w_add.onnx"), &at("n.onnx"), "ort", Some("w4"), &set, None).unwrap();
    let qdq = ["lower.form=qdq"];
    // accuracy_level 4 rounds inputs when the model runs: what is dynamic does not stay in a weight-only file.
    written(&at("n.onnx"), &at("d.onnx"), "ort", Some("w4"), &[&set[..], &qdq, &["steps=[place, calibrate, {round: nearest}, {lower: qdq}]"]].concat(), None)
        .unwrap();
    assert!(!codes(&at("n.onnx")).is_empty());
    assert_eq!(codes(&at("n.onnx")), codes(&at("d.onnx")));
    written(&at("d.onnx"), &at("back.onnx"), "ort", Some("w4"), &set, None).unwrap();
    assert_eq!(codes(&at("n.onnx")), codes(&at("back.onnx")));
    assert!(differ(&at("n.onnx"), &at("back.onnx"), &at("matmul_w_add.npz")) < 1e-6, "engine noise");
}

/// The quantizers of a file under its encodings, as far as these say them, by name.
fn under(model: &Path, encodings: &Path) -> BTreeMap<String, (String, Vec<f32>)> {
    let mut m = onnx::read(model, &ReadOptions::default()).unwrap();
    requant::lift::apply_encodings(&mut m, &std::fs::read_to_string(encodings).unwrap()).unwrap();
    let row = |q: requant::quant::QuantizerId| {
        let (row, p) = (&m.quantizers[q], m.quantizers[q].params.as_ref().unwrap());
        let zeros: Vec<f32> = (0..p.scale.len()).map(|i| p.zero_at(i)).collect();
        let nested = p.nested.as_ref().map(|n| (n.codes.unpack(), n.params.scale.clone()));
        (row.name.clone(), (format!("{:?} {:?} {:?}", row.scheme.format, zeros, nested), p.scale.clone()))
    };
    m.quantizers.ids().map(row).collect()
}

/// Converts small models to both versions of encodings, and these to what Q/DQ would have said at once. Returns all tables.
fn through_encodings(names: &[&str], target: &str, recipe: Option<&str>, set: &[&str]) -> Vec<BTreeMap<String, (String, Vec<f32>)>> {
    let dir = tempfile::tempdir().unwrap();
    let at = |f: String| -> PathBuf { dir.path().join(f) };
    models(dir.path());
    let mut tables = Vec::new();
    for name in names {
        let (float, npz) = (at(format!("{name}.onnx")), at(format!("{name}.npz")));
        let wanted = at(format!("{name}.q.onnx"));
        written(&float, &wanted, target, recipe, set, Some(&npz)).unwrap();
        let mut before = None;
        for version in ["1", "2"] {
            let e = at(format!("{name}.{version}.onnx"));
            let which = format!("lower.version={version}");
            written(&float, &e, target, recipe, &[set, &["lower.form=encodings", &which]].concat(), Some(&npz)).unwrap();
            let side = at(format!("{name}.{version}.onnx.encodings"));
            assert!(onnx::read(&e, &ReadOptions::default()).unwrap().graph.nodes().all(|(_, n)| n.op.flow() != requant::graph::Flow::Quantize));
            // Complete, and the same quantizers in both.
            let found = check(&e, target, Some(&side)).unwrap();
            assert_eq!(found.refused, 0, "{name}: {:?}", found.findings().collect::<Vec<_>>());
            let table = under(&e, &side);
            assert_eq!(*before.get_or_insert(table.clone()), table, "{name}");
            // Taken up again they make the file that Q/DQ would have made.
            let back = at(format!("{name}.back{version}.onnx"));
            let sources = Sources { target: Some(target.into()), ..Sources::default() };
            let request = Request { model: e.clone(), encodings: Some(side.clone()), output: Some(back.clone()), sources, ..Request::default() };
            convert(&request, &Silent).unwrap_or_else(|e| panic!("{name} {version}: {e}"));
            assert_eq!(codes(&back), codes(&wanted), "{name} {version}");
            assert_eq!(differ(&back, &wanted, &npz), 0.0, "{name} {version}");
            // One entry less, and the chip would make it up.
            let text = std::fs::read_to_string(&side).unwrap();
            let lists: &[&str] = if version == "1" { &["activation_encodings", "param_encodings"] } else { &["encodings"] };
            for list in lists {
                let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
                json[*list].as_array_mut().unwrap().remove(0);
                std::fs::write(&side, json.to_string()).unwrap();
                let found = check(&e, target, Some(&side)).unwrap();
                assert!(found.refused > 0 && found.findings().any(|r| r.rule == "encodings"), "{name} {version} {list}");
            }
        }
        tables.extend(before);
    }
    tables
}

#[test]
fn encodings_are_written_and_read_in_both_versions() {
    through_encodings(&["residual", "conv_clip6_dw", "gemm", "attn", "towers"], "qnn", Some("int8-fast"), &[]);
}

#[test]
fn encodings_hold_scales_that_are_codes() {
    for table in through_encodings(&["gemm", "matmul_w_add", "gelu20", "attn"], "qnn-lpbq4", None, &["weights.block_size=8"]) {
        let nested = |said: &str| said.starts_with("Int { bits: 4") && said.contains("Some(");
        assert!(table.values().any(|(said, scales)| nested(said) && scales.len() >= 32), "{table:?}");
    }
}

/// A target that stays at an older opset gets operators that came or changed later in words of its own; what has none is named.
#[test]
fn models_of_a_late_opset_are_lowered_to_what_the_target_reads() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    crate::python::run("older.py", &["make", folder]);
    let target = dir.path().join("old.yaml");
    std::fs::write(&target, "extends: generic\nopset: 17\nrecipe: copy\n").unwrap();
    let mut models: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().unwrap() == "onnx").collect();
    models.sort();
    let lowered = |model: &Path, recipe: Option<&str>| {
        let sources = Sources { recipe: recipe.map(String::from), target: Some(target.display().to_string()), ..Sources::default() };
        let (data, output) = (Some(model.with_extension("npz").display().to_string()), Some(model.with_extension("old.onnx")));
        convert(&Request { model: model.into(), sources, data, output, force: true, ..Request::default() }, &Silent)
    };
    for model in &models {
        lowered(model, None).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    }
    let told: BTreeMap<String, f64> = serde_json::from_str(&crate::python::run("older.py", &["judge", folder, "17"])).unwrap();
    assert_eq!(told.len(), models.len());
    for (name, far) in &told {
        println!("{name}: {far:.1e}");
        assert!(*far < 1e-6, "{name}: {far}");
    }
    // Codes are placed on what was lowered.
    for model in &models {
        lowered(model, Some("int8-fast")).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
    }
    let told: BTreeMap<String, f64> = serde_json::from_str(&crate::python::run("older.py", &["judge", folder, "17"])).unwrap();
    assert!(told.iter().all(|(name, far)| *far < 0.2 || name == "cast"), "{told:?}");
    std::fs::write(&target, "extends: generic\nopset: 13\nrecipe: copy\n").unwrap();
    lowered(&models[0], None).unwrap();
    // An Attention's products run on codes, whatever the opset.
    for name in ["heads", "truths", "shared"] {
        let [model, data, output] = ["onnx", "npz", "int8.onnx"].map(|end| dir.path().join(format!("{name}.{end}")));
        let outcome = written(&model, &output, "generic", Some("int8-fast"), &[], Some(&data)).unwrap();
        assert!(outcome.report.coverage.cov8 > 0.99, "{name}: {:?}", outcome.report.coverage);
    }
}

/// Compilers that calibrate by themselves get the float model that a quantized file stands for.
#[test]
fn a_target_of_float_models_gets_one_of_a_quantized_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (crate::repository("models/kws_dscnn.onnx"), crate::repository("models/kws_calibration.npz"));
    let [codes, float] = ["codes.onnx", "float.onnx"].map(|f| dir.path().join(f));
    written(&model, &codes, "generic", Some("int8-fast"), &["data.samples=8", "data.validate=4"], Some(&data)).unwrap();
    let outcome = written(&codes, &float, "hailo-float", None, &["data.samples=8", "data.validate=4"], Some(&data)).unwrap();
    let ops: Vec<String> = onnx::read(&float, &ReadOptions::default()).unwrap().graph.nodes().map(|(_, n)| n.op_type.to_string()).collect();
    assert!(!ops.iter().any(|op| op.contains("Quantize") || op.contains("Dequantize")), "{ops:?}");
    // What is lost are the activations' roundings.
    assert!(outcome.report.outputs[0].sqnr_db.0 > 25.0, "{:?}", outcome.report.outputs);
}
