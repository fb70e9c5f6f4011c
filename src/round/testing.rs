//! A small model with coarse weights, for tests.

use crate::data::tests::npy;
use crate::data::{Dataset, InputInfo};
use crate::graph::{Dim, Model, Node, NodeId, Op, Site, Type};
use crate::quant::{Blocks, Origin, Params, QuantizerId, Scheme, fit};
use crate::tensor::{DType, Tensor};
use std::path::Path;

/// Numbers of a fixed sequence between −1 and 1.
pub fn numbers(n: usize, mut seed: u32) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// x[N,8] → Gemm(16) → Relu → Gemm(5) → y as it was and under quantizers: 2-bit weights in `blocks`, 16-bit activations, int32 biases.
pub fn models(blocks: &Blocks) -> (Model, Model) {
    models_before(blocks, None)
}

/// The same with another node, which reads y twice, at the end.
pub fn models_before(blocks: &Blocks, last: Option<Node>) -> (Model, Model) {
    let mut float = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut float.graph;
    let [x, h, r, y] = ["x", "h", "r", "y"].map(|n| g.add_value(n));
    g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(8)]) };
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    let tensor = |shape: &[usize], seed: u32| Tensor::of_f32(shape, numbers(shape.iter().product(), seed));
    let [w1, b1, w2, b2] = [("w1", [16, 8].as_slice()), ("b1", &[16]), ("w2", &[5, 16]), ("b2", &[5])].map(|(n, s)| g.add_constant(n, tensor(s, s[0] as u32)));
    let first = g.add_node(Node::new(Op::Gemm, "first").with("transB", 1i64), &[Some(x), Some(w1), Some(b1)], &[Some(h)]);
    g.add_node(Node::new(Op::Relu, "relu"), &[Some(h)], &[Some(r)]);
    let second = g.add_node(Node::new(Op::Gemm, "second").with("transB", 1i64), &[Some(r), Some(w2), Some(b2)], &[Some(y)]);
    if let Some(last) = last {
        let z = g.add_value("z");
        g.add_node(last, &[Some(y), Some(y)], &[Some(z)]);
        g.outputs = vec![z];
    }
    let mut m = float.clone();
    let of_bias = if blocks.is_tensor() { Blocks::tensor() } else { Blocks::channel(0) };
    for (node, spread) in [(first, 1.0), (second, 4.0)] {
        let x = m.quantizers.add("x", Scheme::int(16, true));
        m.quantizers[x].params = Some(Params::tensor(spread / 32767.0, None));
        let w = m.quantizers.add("w", Scheme { blocks: blocks.clone(), ..Scheme::int(2, true) });
        let b = m.quantizers.add("b", Scheme { blocks: of_bias.clone(), ..Scheme::int(32, true) });
        let values = m.graph.node(node).input(1).map(|v| m.graph.constant(v).unwrap().tensor.clone()).unwrap();
        let params = fit(&values.to_f32().unwrap(), values.shape(), &m.quantizers[w].scheme).unwrap();
        let scale: Vec<f32> =
            if of_bias.is_tensor() { vec![params.scale[0]] } else { params.scale.iter().step_by(params.scale.len() / values.shape()[0]).copied().collect() };
        let scale = scale.iter().map(|s| s * spread / 32767.0).collect();
        m.quantizers[b].params = Some(Params { scale, origin: Origin::Product(x, w), ..Params::tensor(1.0, None) });
        m.quantizers[w].params = Some(params);
        for (slot, q) in [(0, x), (1, w), (2, b)] {
            let from = m.graph.node(node).input(slot).unwrap();
            let to = m.graph.add_value("");
            let at = m.graph.position(node);
            m.graph.insert_node(at, Node::fake_quant(q, ""), &[Some(from)], &[Some(to)]);
            m.graph.set_input(node, slot, Some(to));
        }
    }
    super::round_nearest(&mut m).unwrap();
    (float, m)
}

/// The model with one scale a channel, as it was and without codes; by layer, its quantizers of input, weight and bias.
pub fn open_model() -> (Model, Model, Vec<(QuantizerId, QuantizerId, QuantizerId)>) {
    let (float, mut m) = models(&Blocks::channel(0));
    m.codes.clear();
    let found = m.quantizers.ids().filter_map(|b| match m.quantizers[b].params.as_ref()?.origin {
        Origin::Product(x, w) => Some((x, w, b)),
        _ => None,
    });
    let found = found.collect();
    (float, m, found)
}

/// Samples of it; every fourth is nothing but zeros if so wished, so that biases alone decide, and what serves the others does not serve it.
pub fn samples(dir: &Path, count: usize, zeros: bool) -> Dataset {
    let path = dir.join(format!("x{count}{zeros}.npy"));
    let x: Vec<f32> = numbers(count * 8, 77).iter().enumerate().map(|(i, v)| (0.5 * v + 0.5) * if zeros && i / 8 % 4 == 3 { 0.0 } else { 1.0 }).collect();
    std::fs::write(&path, npy("<f4", false, &[count, 8], &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())).unwrap();
    let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(8)]) };
    Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap()
}

/// The codes of weights: at the FakeQuant nodes over constants of two dimensions.
pub fn weight_codes(m: &Model) -> Vec<Vec<i32>> {
    let sites: Vec<NodeId> = m.constant_sites().into_iter().map(|s| s.0).collect();
    sites.into_iter().map(|n| &m.codes[&Site::of(n)]).filter(|c| c.0.rank() == 2).map(|c| c.unpack()).collect()
}
