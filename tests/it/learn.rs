//! Segments on real models: forward they are the engine, float and quantized, and they say what they do not cover.

use crate::engine::first_sample;
#[cfg(feature = "shared")]
use crate::engine::{MODELS, prepared};
use requant::engine::{Runner, RunnerOptions, shapes_of};
#[cfg(feature = "shared")]
use requant::graph::Op;
use requant::graph::{Model, ValueId};
use requant::learn::{Segment, Tape, Var};
use requant::onnx::{self, ReadOptions};
use requant::report::Sums;
use requant::tensor::Tensor;
use std::collections::BTreeMap;

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
    let dir = prepared();
    let mut wrong = Vec::new();
    // Recurrent layers are not differentiated.
    for (name, file) in MODELS.into_iter().filter(|(name, _)| *name != "charrnn_shakespeare") {
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
