//! Spellings besides QDQ: small models in two of them, in ONNX Runtime without optimisations.

use requant::pass::Silent;
use requant::recipe::{Request, Sources, convert};
use serde_json::Value as Json;
use std::path::Path;

/// Converts DIR/NAME.onnx with its samples to DIR/NAME.TAG.onnx.
fn written(dir: &Path, name: &str, tag: &str, recipe: &str, set: &[&str]) {
    let [model, data, output] = [format!("{name}.onnx"), format!("{name}.npz"), format!("{name}.{tag}.onnx")].map(|f| dir.join(f));
    let sources = Sources { recipe: Some(recipe.into()), set: set.iter().map(|s| s.to_string()).collect(), ..Sources::default() };
    let request = Request { model, data: Some(data.display().to_string()), output: Some(output), sources, ..Request::default() };
    convert(&request, &Silent).unwrap_or_else(|e| panic!("{name} {tag}: {e}"));
}

fn json(said: &str) -> Json {
    serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn names(list: &Json) -> Vec<String> {
    list.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_string()).collect()
}

/// What stays between DequantizeLinear and QuantizeLinear, as there is no operator on codes for it; everything else is one.
const LEFT: &[(&str, &[&str])] = &[
    ("deconv", &["ConvTranspose"]),
    ("gather_emb", &["Gather"]),
    ("gelu20", &["Gelu"]),
    ("gelu_erf", &["Gelu"]),
    ("layernorm", &["LayerNormalization"]),
    ("lstm", &["LSTM"]),
];

fn operators_on_codes(set: &[&str], spoilt: &[(&str, &[&str])]) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for name in names(&json(&crate::python::run("spellings.py", &["make", folder]))) {
        for form in ["qdq", "qoperator"] {
            written(dir.path(), &name, form, "int8-fast", &[set, &[&format!("lower.form={form}")]].concat());
        }
    }
    let rows = json(&crate::python::run("spellings.py", &["compare", folder]));
    let rows = rows.as_object().unwrap();
    assert_eq!(rows.len(), 25);
    for (name, row) in rows {
        println!("{name}: {row}");
        assert!(row["steps"].as_f64().unwrap() < 1.01, "{name}: {row}");
        let left = spoilt.iter().chain(LEFT).find(|(n, _)| n == name).map_or(&[][..], |(_, ops)| ops);
        assert_eq!(names(&row["left"]), left, "{name}: {row}");
    }
    let has = |name: &str, op: &str| assert!(rows[name]["ops"][op].as_u64().is_some(), "{name} has no {op}");
    for (name, op) in [("attn", "QLinearMatMul"), ("gemm", "QGemm"), ("matmul_w_add", "MatMulIntegerToFloat"), ("residual", "QLinearAdd")] {
        has(name, op);
    }
    for (name, op) in [("pools", "QLinearAveragePool"), ("towers", "QLinearGlobalAveragePool"), ("silu_hswish", "QLinearSigmoid"), ("lines", "QLinearConv")] {
        has(name, op);
    }
}

#[test]
fn operators_on_codes_are_one_step_from_qdq_at_most() {
    operators_on_codes(&[], &[]);
}

#[test]
fn operators_on_int8_codes_too() {
    // A softmax of int8 has the range of its data, which the kernel's overflow rules out.
    operators_on_codes(&["activations.format=int8", "activations.symmetric=true"], &[("attn", &["Softmax"]), ("towers", &["Softmax"])]);
}

/// Converts the small models with `int8-dynamic`, and returns what `spellings.py dynamic` says of them.
fn dynamic(set: &[&str]) -> serde_json::Map<String, Json> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for name in names(&json(&crate::python::run("spellings.py", &["make", folder]))) {
        written(dir.path(), &name, "dynamic", "int8-dynamic", set);
    }
    let rows = json(&crate::python::run("spellings.py", &["dynamic", folder, "dynamic"]));
    let rows = rows.as_object().unwrap().clone();
    rows.iter().for_each(|(name, row)| println!("{name}: {row}"));
    rows
}

#[test]
fn dynamic_activations_lose_no_more_than_those_of_onnx_runtime_and_run_in_its_kernels() {
    for (name, row) in &dynamic(&[]) {
        let (ours, rival) = (row["sqnr_db"].as_f64().unwrap(), row["rival"].as_f64().unwrap());
        assert!(ours > rival - 0.1, "{name}: {row}");
        let count = |which: &str, op: &str| row[which][op].as_u64().unwrap_or(0);
        let kernels = count("fused", "DynamicQuantizeMatMul") + count("fused", "MatMulIntegerToFloat");
        assert_eq!(kernels, count("ops", "MatMulInteger"), "{name}: {row}");
        assert_eq!(count("ops", "Conv") + count("ops", "Gemm") + count("ops", "LSTM"), 0, "{name}: {row}");
    }
}

/// Widths to choose from are those that operators with scales found at inference have.
#[test]
fn dynamic_activations_leave_their_weights_8_bits_where_widths_are_chosen() {
    let (model, data) = (crate::repository("models/kws_dscnn.onnx"), crate::repository("models/kws_calibration.npz").display().to_string());
    let set = ["activations.timing=dynamic", "data.samples=4"].map(String::from).to_vec();
    let sources = Sources { recipe: Some("mixed".into()), set, ..Sources::default() };
    let request = Request { model, data: Some(data), output: Some("never.onnx".into()), sources, ..Request::default() };
    let e = convert(&request, &Silent).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("the smallest possible is"), "{e}");
}

#[test]
fn tokens_have_scales_of_their_own_in_standard_operators() {
    let rows = dynamic(&["activations.format=int8", "activations.symmetric=true", "activations.granularity=token"]);
    // One token alone, as in `gemm`, has no scale but the tensor's, and half of its codes lie below zero.
    for (name, near) in [("gather_emb", 0.2), ("gelu20", 0.2), ("gelu_erf", 0.2), ("gemm", 2.0), ("layernorm", 0.2), ("matmul_w_add", 0.2)] {
        let row = &rows[name];
        assert!(row["ops"]["MatMulInteger"].as_u64().is_some() && row["ops"]["Abs"].as_u64().is_some(), "{name}: {row}");
        assert!(row["sqnr_db"].as_f64().unwrap() > row["rival"].as_f64().unwrap() - near, "{name}: {row}");
    }
}

#[test]
fn codes_go_in_and_come_out_as_the_metadata_says() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for name in names(&json(&crate::python::run("spellings.py", &["make", folder]))) {
        written(dir.path(), &name, "qdq", "int8-fast", &[]);
        written(dir.path(), &name, "io", "int8-fast", &["lower.io=uint8"]);
    }
    let rows = json(&crate::python::run("spellings.py", &["io", folder]));
    for (name, row) in rows.as_object().unwrap() {
        println!("{name}: {row}");
        assert_eq!(row["largest"].as_f64().unwrap(), 0.0, "{name}");
        assert_eq!(names(&row["outputs"]), ["tensor(uint8)"], "{name}");
        // Indices are no codes.
        let input = if name == "gather_emb" { "tensor(int64)" } else { "tensor(uint8)" };
        assert_eq!(names(&row["inputs"]), [input], "{name}");
    }
}

/// The operators of mct_quantizers round as Q/DQ does: what is left are results that float sums put on either side of a code.
#[test]
fn operators_that_round_floats_give_what_qdq_gives() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let made = names(&json(&crate::python::run("spellings.py", &["make", folder])));
    let taken = ["conv_bn_relu", "residual", "gemm", "pools", "conv_clip6_dw"];
    for name in taken {
        assert!(made.iter().any(|n| n == name), "{made:?}");
        for form in ["qdq", "mct-quantizers"] {
            let set = ["target=hptq", "bias=none", &format!("lower.form={form}")];
            written(dir.path(), name, form, "hptq", &set);
        }
    }
    let rows = json(&crate::python::run("mct.py", &[&[folder], &taken[..]].concat()));
    for name in taken {
        println!("{name}: {}", rows[name]);
        assert!(rows[name]["largest"].as_f64().unwrap() < 0.02 && rows[name]["sqnr_db"].as_f64().unwrap() > 40.0, "{name}: {}", rows[name]);
    }
    assert!(names(&rows["conv_bn_relu"]["ops"]).iter().any(|op| op == "WeightsPOTQuantizer"), "{rows}");
}

/// A detector's tail lies beside the model in float; one after the other they are the model as it was, to the bit where nothing else is changed.
#[test]
fn what_is_cut_off_a_detector_makes_of_its_heads_what_the_whole_did() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let made = names(&json(&crate::python::run("tail.py", &["make", folder])));
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    let recipe = dir.path().join("cut.yaml");
    std::fs::write(&recipe, "target: hailo-float\nweights: none\nactivations: none\nsteps: [cut-tail]\n").unwrap();
    for name in &made {
        written(dir.path(), name, "cut", recipe.to_str().unwrap(), &[]);
        written(dir.path(), name, "int8", "int8-fast", &["target=rknn"]);
    }
    let of = |tag: &str| json(&crate::python::run("tail.py", &[&["run", folder, tag], &made[..]].concat()));
    let (cut, quantized) = (of("cut"), of("int8"));
    for (name, heads) in [("anchored", &["head0", "head1"][..]), ("distributed", &["box0", "class0", "box1", "class1"])] {
        println!("{name}: {} {}", cut[name], quantized[name]);
        assert_eq!((cut[name]["largest"].as_f64(), &names(&cut[name]["heads"])[..]), (Some(0.0), &heads.iter().map(|h| h.to_string()).collect::<Vec<_>>()[..]));
        // The report judges both together, and measures what ONNX Runtime gives.
        let report: Json = serde_json::from_slice(&std::fs::read(dir.path().join(format!("{name}.int8.report.json"))).unwrap()).unwrap();
        let (said, is) = (report["outputs"][0]["sqnr_db"].as_f64().unwrap(), quantized[name]["sqnr_db"].as_f64().unwrap());
        assert!(report["outputs"][0]["name"] == "y" && is > 20.0 && (said - is).abs() < 3.0, "{name}: {said} and {is}");
        assert!(
            report["tail"]["path"].as_str().unwrap().ends_with(&format!("{name}.int8.tail.onnx")) && report["coverage"]["float"] == 0.0,
            "{}",
            report["coverage"]
        );
    }
    // A tail of an earlier run goes with it.
    written(dir.path(), "anchored", "cut", recipe.to_str().unwrap(), &["target=generic"]);
    assert!(!dir.path().join("anchored.cut.tail.onnx").exists());
}

/// Whatever ONNX can say of what flows: each format with one scale a tensor, a channel and a block, as onnx's reference computes the file. Narrow formats
/// and those stored wider saturate in a Clip, which has one range a tensor.
#[test]
fn activations_in_every_format_are_what_the_reference_makes_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    crate::python::run("activations.py", &["make", folder]);
    let granularities = [("tensor", "granularity: tensor"), ("channel", "granularity: channel, axis: 1"), ("block", "granularity: block, block_size: 4")];
    let mut said = std::collections::BTreeMap::new();
    for format in requant::target::FORMATS.iter().map(|f| f.name).filter(|f| !["int32", "nf4", "codebook4"].contains(f)) {
        for (tag, granularity) in granularities {
            let name = format!("{format}_{tag}");
            let set = vec!["data.samples=8".into(), "data.validate=4".into(), format!("activations={{ format: {format}, {granularity} }}")];
            let sources = Sources { recipe: Some("int8-fast".into()), set, ..Sources::default() };
            let [model, data, output] = ["model.onnx", "model.npz", &format!("{name}.onnx")].map(|f| dir.path().join(f));
            let request = Request { model, data: Some(data.display().to_string()), output: Some(output), sources, ..Request::default() };
            match convert(&request, &Silent) {
                Ok(outcome) => drop(said.insert(name, outcome.report.outputs[0].sqnr_db.0)),
                Err(e) => {
                    let stored_wider = ["3", "5", "6", "7"].iter().any(|bits| format.strip_prefix('u').unwrap_or(format) == format!("int{bits}"));
                    assert!(
                        stored_wider && tag != "tensor" && e.exit_code() == 2 && e.to_string().contains("a Clip before it has one range a tensor"),
                        "{name}: {e}"
                    );
                }
            }
        }
    }
    let judged = json(&crate::python::run("activations.py", &["judge", folder]));
    assert!(said.len() == judged.as_object().unwrap().len() && said.len() == 53, "{}", said.len());
    for (name, ours) in said {
        let theirs = judged[&name].as_f64().unwrap();
        println!("{name}: {ours:.2} dB, the reference {theirs:.2}");
        assert!((ours - theirs).abs() < 0.1, "{name}: {ours} dB, the reference {theirs}");
    }
}

/// A target that stays below opset 21 gets types that came then by com.microsoft's operators, if it reads them.
#[test]
fn sixteen_bits_below_opset_21_are_com_microsofts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    crate::python::run("spellings.py", &["make", folder]);
    let target = dir.path().join("old.yaml");
    let set = |forms: &str| {
        std::fs::write(&target, format!("extends: generic\nopset: 17\nforms: {forms}\n")).unwrap();
        [format!("target={}", target.display()), "activations.bits=16".into(), "weights.bits=4".into()]
    };
    for name in ["conv_bn_relu", "matmul_w_add", "residual"] {
        let set = set("[qdq, ms-qdq]");
        written(dir.path(), name, "old", "int8-fast", &set.each_ref().map(String::as_str));
        let report: Json = serde_json::from_slice(&std::fs::read(dir.path().join(format!("{name}.old.report.json"))).unwrap()).unwrap();
        let said = json(&crate::python::run("spellings.py", &["old", folder, name, "old"]));
        println!("{name}: {said}");
        assert!(
            said["opset"].as_i64().unwrap() <= 17 && said["own"].as_i64() < said["microsoft"].as_i64() && said["microsoft"].as_i64().unwrap() > 2,
            "{name}: {said}"
        );
        let (ours, theirs) = (report["outputs"][0]["sqnr_db"].as_f64().unwrap(), said["sqnr_db"].as_f64().unwrap());
        assert!(ours > 10.0 && (ours - theirs).abs() < 1.0, "{name}: {ours} {said}");
    }
    let set = set("[qdq]");
    let [model, data] = ["residual.onnx", "residual.npz"].map(|f| dir.path().join(f));
    let sources = Sources { recipe: Some("int8-fast".into()), set: set.to_vec(), ..Sources::default() };
    let e = convert(&Request { model, data: Some(data.display().to_string()), sources, ..Request::default() }, &Silent).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("need opset 21, and target old reads at most opset 17"), "{e}");
}
