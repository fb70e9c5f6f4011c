//! Shapes, folding and the engine on real models: every tensor of every model, beside what ONNX Runtime makes of it.

use requant::data::{DataSettings, Dataset, InputInfo};
use requant::engine::{Runner, RunnerOptions};
use requant::graph::{Dim, InputShapes, Model, Op, Type, ValueId, infer};
use requant::onnx::{self, ReadOptions};
use requant::quant::Table;
use requant::report::Sums;
use requant::tensor::Tensor;
use requant::transform::{fold_batch_norm, fold_constants};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;

/// What ONNX Runtime computes.
struct Computed {
    said: serde_json::Map<String, Json>,
    floats: Vec<f32>,
}

impl Computed {
    fn of(model: &Path, inputs: &Path) -> Computed {
        let out = tempfile::NamedTempFile::new().unwrap();
        let args = [model, inputs, out.path()].map(|p| p.to_str().unwrap());
        let said: Json = serde_json::from_str(&crate::python::run("intermediates.py", &args)).unwrap();
        let bytes = std::fs::read(out.path()).unwrap();
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Computed { said: said.as_object().unwrap().clone(), floats }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.said.get(name)?["shape"].as_array()?.iter().map(|d| d.as_u64().unwrap() as usize).collect())
    }

    fn values(&self, name: &str) -> Option<&[f32]> {
        let at = self.said.get(name)?["at"].as_u64()? as usize;
        Some(&self.floats[at..at + self.shape(name)?.iter().product::<usize>()])
    }
}

/// The first sample of a file of arrays, for a model's inputs.
pub fn first_sample(model: &Model, data: &Path) -> BTreeMap<String, Tensor> {
    let g = &model.graph;
    let info = |v: &ValueId| match &g.value(*v).ty {
        Type::Tensor { dtype: Some(dtype), shape } => InputInfo { name: g.value(*v).name.clone(), dtype: *dtype, shape: shape.clone() },
        other => panic!("{other:?}"),
    };
    let inputs: Vec<InputInfo> = g.inputs.iter().filter(|v| g.value(**v).constant.is_none()).map(info).collect();
    Dataset::open(data.to_str().unwrap(), &inputs, &DataSettings::default()).unwrap().sample(0).unwrap()
}

/// Runs every float tensor of the model that is still there; the worst SQNR against ONNX Runtime, in dB, and of which tensor.
fn worst(model: &Model, sample: &BTreeMap<String, Tensor>, computed: &Computed) -> (f64, String) {
    let shapes: InputShapes = sample.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    let g = &model.graph;
    let wanted: Vec<ValueId> = g
        .values()
        .filter(|(v, value)| value.producer().is_some() && g.constant(*v).is_none() && computed.values(&value.name).is_some())
        .map(|(v, _)| v)
        .collect();
    assert!(!wanted.is_empty());
    let runner = Runner::with(model, &shapes, &wanted, RunnerOptions::default()).unwrap();
    let found = runner.run(&mut runner.spawn(), sample, &Table::default()).unwrap();
    let mut worst = (f64::INFINITY, String::new());
    for (v, t) in wanted.iter().zip(&found) {
        let name = &g.value(*v).name;
        assert_eq!(Some(t.shape().to_vec()), computed.shape(name), "shape of {name} as run");
        let reference = computed.values(name).unwrap();
        // A tensor of zeros, or of nothing but a mask's −∞, has no noise to measure.
        let db = Sums::of(reference, &t.to_f32().unwrap()).sqnr().0;
        if reference.iter().any(|x| *x != 0.0) && db < worst.0 {
            worst = (db, name.clone());
        }
    }
    worst
}

/// Reads, infers, runs, folds and runs again.
fn assert_right(name: &str, path: &Path, data: &Path) {
    let mut model = onnx::read(path, &ReadOptions::default()).unwrap();
    let sample = first_sample(&model, data);
    let computed = Computed::of(path, data);
    let shapes: InputShapes = sample.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    let inferred = infer(&model, &shapes);
    let mut wrong = Vec::new();
    for (v, value) in model.graph.values() {
        let Some(truth) = computed.shape(&value.name) else { continue };
        let fact = inferred.get(v);
        let dtype = fact.dtype.map(|t| t.name());
        let shape: Option<Vec<usize>> = fact.shape.as_ref().and_then(|s| s.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect());
        if shape.as_ref() != Some(&truth) || dtype != computed.said[&value.name]["dtype"].as_str() {
            wrong.push(format!("{}: {dtype:?}{:?}, not {truth:?}", value.name, fact.shape));
        }
    }
    assert!(wrong.is_empty(), "{name}: {} of {} tensors are inferred wrongly:\n{}", wrong.len(), computed.said.len(), wrong.join("\n"));
    let before = worst(&model, &sample, &computed);
    fold_constants(&mut model).unwrap();
    fold_batch_norm(&mut model).unwrap();
    let after = worst(&model, &sample, &computed);
    println!("{name}: {} tensors, worst {:.1} dB ({}), folded {:.1} dB ({})", computed.said.len(), before.0, before.1, after.0, after.1);
    assert!(before.0 >= 80.0 && after.0 >= 80.0, "{name}: {before:?} {after:?}");
    let left = model.graph.nodes().filter(|(_, n)| n.op == Op::BatchNormalization).count();
    assert!(left == 0 || name == "vit_pgd_cifar10", "{name}: {left} batch norms are left");
}

#[test]
fn the_model_of_the_repository_is_computed_as_by_onnx_runtime() {
    assert_right("kws", &crate::repository("models/kws_dscnn.onnx"), &crate::repository("models/kws_calibration.npz"));
}

/// Models of the shared folder: the name of their samples, and their file.
#[cfg(feature = "shared")]
pub const MODELS: [(&str, &str); 15] = [
    ("effnet_lite0", "effnet_lite/effnet_lite0.onnx"),
    ("effnet_lite0_dynamo", "effnet_lite/effnet_lite0_dynamo_op20.onnx"),
    ("darknet_tiny", "darknet_tiny/darknet_tiny.onnx"),
    ("mobilenetv2_cifar10", "mobilenetv2/mobilenetv2_160_cifar10.onnx"),
    ("resnet20_cifar10", "cifar_resnet/resnet20_cifar10.onnx"),
    ("resnet20_bn", "cifar_resnet/resnet20_cifar10_bn.onnx"),
    ("vit_pgd_cifar10", "vnn_cifar/vit_pgd_2_3_16.onnx"),
    ("ic_resnet8", "mlperf_tiny/ic_resnet8.onnx"),
    ("minilm_l3", "minilm_l3/paraphrase_minilm_l3.onnx"),
    ("aidreams260k", "aidreams260k/aidreams260k.onnx"),
    ("charrnn_shakespeare", "charrnn/charrnn_shakespeare.onnx"),
    ("kws_dscnn", "mlperf_tiny/kws_dscnn.onnx"),
    ("ppocr_cls", "ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    ("yolox_nano", "yolox_nano/yolox_nano_416.onnx"),
    ("unet_simp_small", "carvana_unet/unet_simp_small.onnx"),
];

/// A folder with one sample for each of these models, `NAME.npz`.
#[cfg(feature = "shared")]
pub fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let python = crate::python::interpreter();
    let prepare = crate::shared("models/eval/prepare.py");
    assert!(std::process::Command::new(python).arg("-B").arg(prepare).arg(dir.path()).args(["--n", "1"]).status().unwrap().success());
    dir
}

#[cfg(feature = "shared")]
#[test]
fn real_models_are_computed_as_by_onnx_runtime() {
    let dir = prepared();
    for (name, file) in MODELS {
        assert_right(name, &crate::shared(&format!("models/{file}")), &dir.path().join(format!("{name}.npz")));
    }
}
