//! What the tests of this room share.

use crate::engine::Runner;
use crate::graph::{Dim, Graph, InputShapes, Model, Type, ValueId};
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

/// All outputs of a model whose only input is called x, one after the other.
pub fn result(m: &Model, x: &Tensor) -> Vec<f32> {
    let runner = Runner::new(m, &InputShapes::from([("x".to_string(), x.shape().to_vec())]), &m.graph.outputs).unwrap();
    let all = runner.run(&mut runner.spawn(), &BTreeMap::from([("x".to_string(), x.clone())]), &m.quantizers).unwrap();
    all.iter().flat_map(|t| t.to_f32().unwrap().into_owned()).collect()
}
