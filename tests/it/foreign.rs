//! Files of ONNX Runtime's own quantizers on their way to our targets (`tests/python/foreign.py`): what they hold in codes stays, no chip refuses them, and
//! they compute what they did.

use crate::retarget::{lifted, written};
use requant::graph::{Linear, Site};
use requant::quant::dequantize;
use requant::recipe::check;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// What the weights of products stand for where they have codes of 8 bits, by the name that they had before they were codes.
fn weights(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let m = lifted(path);
    let products = m.graph.nodes().filter_map(|(id, _)| Linear::of(&m.graph, id)).map(|l| l.weight);
    let fakes = products.filter_map(|v| Some(m.graph.value(v).producer()?.0));
    let coded = fakes.filter_map(|id| Some((m.graph.node(id).quantizer()?, m.codes.get(&Site::of(id))?)));
    let named = coded.map(|(q, codes)| {
        let row = &m.quantizers[m.quantizers.root(q)];
        (row.name.trim_end_matches("_quantized").to_string(), dequantize(codes, &row.scheme, row.params.as_ref().unwrap()).unwrap())
    });
    named.collect()
}

/// Models that a target's own placement leaves as they are: no sums that share a scale, nothing that becomes one operator or stays float.
const SAME: [&str; 13] = [
    "conv_bn_relu",
    "conv_clip6_dw",
    "conv_nobias_out",
    "deconv",
    "gather_emb",
    "gelu20",
    "gemm",
    "matmul_w_add",
    "pools",
    "reshape_tr",
    "residual",
    "residual_skip",
    "resize",
];

#[test]
fn files_of_onnx_runtimes_quantizers_go_to_any_target() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let made: BTreeMap<String, Vec<String>> = serde_json::from_str(crate::python::run("foreign.py", &["make", folder]).lines().last().unwrap()).unwrap();
    let at = |f: String| dir.path().join(f);
    let mut faults = vec![];
    for (form, name) in made.iter().flat_map(|(form, names)| names.iter().map(move |name| (form, name))) {
        let from = at(format!("{name}.{form}.onnx"));
        let before = weights(&from);
        for target in ["ort", "qnn", "openvino", "xint8"] {
            let to = at(format!("{name}.{form}.{target}.onnx"));
            // What the file leaves float, or quantizes when it runs, needs samples.
            let done = match written(&from, &to, target, None, &[], None) {
                Err(e) if e.to_string().contains("give --data") => written(&from, &to, target, None, &[], Some(&at(format!("{name}.npz")))),
                other => other,
            };
            done.unwrap_or_else(|e| panic!("{name}.{form} for {target}: {e}"));
            let found = check(&to, target, None).unwrap();
            // No recurrent layer runs on that chip, and the check says so.
            let refused = usize::from(target == "qnn" && name == "lstm");
            assert_eq!(found.refused, refused, "{name}.{form} for {target}: {:?}", found.findings().collect::<Vec<_>>());
            // All the rest of it runs in integers there.
            if target == "qnn" && found.float + found.split > 0 {
                faults.push(format!("{name}.{form} for {target}: {:?}", found.findings().collect::<Vec<_>>()));
            }
            // One holds symmetric weights alone, one powers of two alone: what they do not hold is made anew.
            let after = weights(&to);
            let moved: Vec<&String> = before.iter().filter(|(name, stands)| after.get(*name) != Some(stands)).map(|(name, _)| name).collect();
            if target != "xint8" && (target, form.as_str()) != ("openvino", "u8u8") && !moved.is_empty() {
                faults.push(format!("{name}.{form}.{target}: {moved:?} moved"));
            }
        }
        if before.is_empty() && name != "lstm" && !(name == "deconv" && matches!(form.as_str(), "qop" | "dynamic")) {
            faults.push(format!("{name}.{form}: no weights are compared"));
        }
    }
    let rows: BTreeMap<String, Json> = serde_json::from_str(crate::python::run("foreign.py", &["compare", folder]).lines().last().unwrap()).unwrap();
    assert_eq!(rows.len(), made.values().map(|names| names.len() * 4).sum::<usize>());
    for (which, row) in &rows {
        println!("{which}: {row}");
        let [name, form, target] = which.split('.').collect::<Vec<_>>()[..] else { panic!("{which}") };
        let [own, file, from_file] = ["own", "file", "from_file"].map(|key| row[key].as_f64().unwrap());
        // Ranges that no sample showed become the next power of two; dynamic ranges are tighter than static ones.
        let bar = match (form, target) {
            (_, "xint8") => 24.0,
            ("dynamic", _) => 27.0,
            _ => (file - 1.0).min(35.0),
        };
        let same = SAME.contains(&name) && matches!((form, target), ("u8s8" | "s8s8", "ort" | "qnn"));
        if own < bar || same && from_file < 250.0 {
            faults.push(format!("{which}: {row}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
