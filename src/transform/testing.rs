//! What the tests of this room share.

use crate::engine::Runner;
use crate::graph::{Dim, Graph, InputShapes, Linear, Model, Type, ValueId};
use crate::observe::Sums;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// A float32 value of known shape.
pub fn value(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    let v = g.add_value(name);
    g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
    v
}

/// Numbers between −1 and 1, other ones for each seed.
pub fn noise(shape: &[usize], seed: usize) -> Vec<f32> {
    (0..shape.iter().product()).map(|i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// The model with its weights in 8 bits, one scale a tensor; `step`: of the largest size of a weight.
pub fn rounded(m: &Model, step: impl Fn(f32) -> f32) -> Model {
    let mut m = m.clone();
    let weights: Vec<ValueId> = m.graph.nodes().filter_map(|(id, _)| Some(Linear::of(&m.graph, id)?.weight)).collect();
    for v in weights {
        let t = m.graph.constant(v).unwrap().tensor.clone();
        let w = t.to_f32().unwrap();
        let scale = step(w.iter().fold(0f32, |a, w| a.max(w.abs())));
        m.graph.value_mut(v).constant = Some(Tensor::of_f32(t.shape(), w.iter().map(|w| (w / scale).round_ties_even() * scale).collect()).into());
    }
    m
}

/// In dB.
pub fn sqnr(a: &[f32], b: &[f32]) -> f64 {
    Sums::of(a, b).sqnr().0
}

/// All outputs of a model whose only input is called x, one after the other.
pub fn result(m: &Model, x: &Tensor) -> Vec<f32> {
    let runner = Runner::new(m, &InputShapes::from([("x".to_string(), x.shape().to_vec())]), &m.graph.outputs).unwrap();
    let all = runner.run(&mut runner.spawn(), &BTreeMap::from([("x".to_string(), x.clone())]), &m.quantizers).unwrap();
    all.iter().flat_map(|t| t.to_f32().unwrap().into_owned()).collect()
}
