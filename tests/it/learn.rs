//! Segments on real models: forward they are the engine, float and quantized, and they say what they do not cover.

use requant::data::{DataSettings, Dataset, InputInfo};
use requant::engine::{Runner, RunnerOptions, shapes_of};
#[cfg(feature = "shared")]
use requant::graph::Op;
use requant::graph::{Model, Type, ValueId};
use requant::learn::{Segment, Tape, Var};
use requant::onnx::{self, ReadOptions};
use requant::report::Sums;
use requant::tensor::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

fn first_sample(model: &Model, data: &Path) -> BTreeMap<String, Tensor> {
    let g = &model.graph;
    let info = |v: &ValueId| match &g.value(*v).ty {
        Type::Tensor { dtype: Some(dtype), shape } => InputInfo { name: g.value(*v).name.clone(), dtype: *dtype, shape: shape.clone() },
        other => panic!("{other:?}"),
    };
    let inputs: Vec<InputInfo> = g.inputs.iter().filter(|v| g.value(**v).constant.is_none()).map(info).collect();
    Dataset::open(data.to_str().unwrap(), &inputs, &DataSettings::default()).unwrap().sample(0).unwrap()
}

/// The noise of a segment from the inputs to `outputs` beside the engine, in dB.
fn compare(model: &Model, sample: &BTreeMap<String, Tensor>, outputs: &[ValueId]) -> f64 {
    let g = &model.graph;
    let inputs: Vec<ValueId> = g.inputs.iter().copied().filter(|v| g.constant(*v).is_none()).collect();
    let segment = Segment::of(model, &inputs, outputs).unwrap();
    let mut tape = Tape::new();
    let given: Vec<Var> = inputs
        .iter()
        .map(|v| {
            let t = &sample[&g.value(*v).name];
            tape.constant(t.to_f32().unwrap().into_owned(), t.shape())
        })
        .collect();
    let found = segment.run(&mut tape, &given, &BTreeMap::new(), &BTreeMap::new()).unwrap();
    let runner = Runner::with(model, &shapes_of(sample), outputs, RunnerOptions::default()).unwrap();
    let wanted = runner.run(&mut runner.spawn(), sample, &model.quantizers).unwrap();
    let mut worst = f64::INFINITY;
    for (v, t) in found.iter().zip(&wanted) {
        assert_eq!(tape.shape(*v), t.shape());
        worst = worst.min(Sums::of(&t.to_f32().unwrap(), tape.value(*v)).sqnr().0);
    }
    worst
}

/// The outputs, or the scores where classes are made of them.
#[cfg(feature = "shared")]
fn real_outputs(model: &Model) -> Vec<ValueId> {
    let scores: Vec<ValueId> = model.graph.nodes().filter(|(_, n)| n.op == Op::ArgMax).filter_map(|(_, n)| n.input(0)).collect();
    if scores.is_empty() { model.graph.outputs.clone() } else { scores }
}

#[test]
fn the_model_of_the_repository_is_the_engines() {
    let model = onnx::read(&crate::repository("models/kws_dscnn.onnx"), &ReadOptions::default()).unwrap();
    let sample = first_sample(&model, &crate::repository("models/kws_calibration.npz"));
    let db = compare(&model, &sample, &model.graph.outputs.clone());
    assert!(db > 90.0, "{db}");
}

#[cfg(feature = "shared")]
#[test]
fn real_models_are_the_engines() {
    const MODELS: [(&str, &str); 14] = [
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
        ("kws_dscnn", "mlperf_tiny/kws_dscnn.onnx"),
        ("ppocr_cls", "ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        ("yolox_nano", "yolox_nano/yolox_nano_416.onnx"),
        ("unet_simp_small", "carvana_unet/unet_simp_small.onnx"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let python = crate::python::interpreter();
    let prepare = crate::shared("models/eval/prepare.py");
    assert!(std::process::Command::new(python).arg("-B").arg(prepare).arg(dir.path()).args(["--n", "1"]).status().unwrap().success());
    let mut wrong = Vec::new();
    for (name, file) in MODELS {
        let model = onnx::read(&crate::shared(&format!("models/{file}")), &ReadOptions::default()).unwrap();
        let sample = first_sample(&model, &dir.path().join(format!("{name}.npz")));
        let outputs = real_outputs(&model);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compare(&model, &sample, &outputs)));
        println!("{name}: {found:?}");
        if !found.is_ok_and(|db| db > 80.0) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
