//! Segments with quantizers in them: the engine's numbers, gradients by what is replaced, refusals by name.

use super::*;
use crate::engine::{Runner, RunnerOptions};
use crate::graph::{Dim, InputShapes, Model, Node, NodeId, Op, Site, Type, ValueId};
use crate::quant::{Blocks, Params, QuantizerId, Scheme, Zeros, fit, quantize};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// x[N,2,3] → FakeQuant(uint8, zero 100) → Reshape by the shape's own first number → MatMul(w: int4 a channel, codes) → Add(b) → FakeQuant(int4, blocks) → y
struct Quantized {
    model: Model,
    /// x, what the weight's FakeQuant makes, y.
    values: [ValueId; 3],
    input: QuantizerId,
    weight: NodeId,
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.618_034 + 0.2).fract() * 2.0 - 1.0).collect()
}

fn quantized() -> Quantized {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let input = m.quantizers.add("x", Scheme::int(8, false));
    m.quantizers[input].params = Some(Params { zero: Zeros::Integer(vec![100]), ..Params::tensor(0.01, None) });
    let w = m.quantizers.add("w", Scheme { blocks: Blocks::channel(1), ..Scheme::int(4, true) });
    let output = m.quantizers.add("y", Scheme { blocks: Blocks::block(1, 2), ..Scheme::int(4, true) });
    m.quantizers[output].params = Some(Params { scale: vec![0.1, 0.2, 0.05, 0.3], ..Params::tensor(1.0, None) });
    let values = numbers(24);
    let params = fit(&values, &[6, 4], &m.quantizers[w].scheme).unwrap();
    let codes = quantize(&values, &[6, 4], &m.quantizers[w].scheme, &params).unwrap();
    m.quantizers[w].params = Some(params);
    let g = &mut m.graph;
    let [x, xq, shape, first, to, flat, wq, product, sum, y] = ["x", "xq", "s", "f", "t", "r", "wq", "p", "a", "y"].map(|n| g.add_value(n));
    let dims = vec![Dim::Symbol("N".into()), Dim::Known(2), Dim::Known(3)];
    g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(dims) };
    let zero = g.add_constant("zero", Tensor::of_i64(&[1], vec![0]));
    let rest = g.add_constant("rest", Tensor::of_i64(&[1], vec![-1]));
    let weight = g.add_constant("w", Tensor::of_f32(&[6, 4], values));
    let bias = g.add_constant("b", Tensor::of_f32(&[4], vec![0.1, -0.2, 0.3, 0.0]));
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    g.add_node(Node::fake_quant(input, "fx"), &[Some(x)], &[Some(xq)]);
    g.add_node(Node::new(Op::Shape, "shape"), &[Some(xq)], &[Some(shape)]);
    g.add_node(Node::new(Op::Gather, "gather"), &[Some(shape), Some(zero)], &[Some(first)]);
    g.add_node(Node::new(Op::Concat, "concat").with("axis", 0i64), &[Some(first), Some(rest)], &[Some(to)]);
    g.add_node(Node::new(Op::Reshape, "reshape"), &[Some(xq), Some(to)], &[Some(flat)]);
    let fake = g.add_node(Node::fake_quant(w, "fw"), &[Some(weight)], &[Some(wq)]);
    g.add_node(Node::new(Op::MatMul, "matmul"), &[Some(flat), Some(wq)], &[Some(product)]);
    g.add_node(Node::new(Op::Add, "add"), &[Some(product), Some(bias)], &[Some(sum)]);
    g.add_node(Node::fake_quant(output, "fy"), &[Some(sum)], &[Some(y)]);
    m.codes.insert(Site::of(fake), codes);
    Quantized { model: m, values: [x, wq, y], input, weight: fake }
}

#[test]
fn a_quantized_segment_computes_what_the_engine_does() {
    let Quantized { model, values: [x, _, y], .. } = quantized();
    let segment = Segment::of(&model, &[x], &[y]).unwrap();
    let input = Tensor::of_f32(&[2, 2, 3], numbers(12).iter().map(|v| v * 2.0).collect());
    let mut tape = Tape::new();
    let v = tape.constant(input.to_f32().unwrap().into_owned(), input.shape());
    let found = segment.run(&mut tape, &[v], &BTreeMap::new(), &BTreeMap::new()).unwrap();
    let runner = Runner::with(&model, &InputShapes::from([("x".into(), vec![2, 2, 3])]), &[y], RunnerOptions::default()).unwrap();
    let wanted = runner.run(&mut runner.spawn(), &BTreeMap::from([("x".into(), input)]), &model.quantizers).unwrap();
    assert_eq!(tape.shape(found[0]), wanted[0].shape());
    tape.value(found[0]).iter().zip(wanted[0].to_f32().unwrap().iter()).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
}

/// Up to the last quantizer, whose steps would hide small changes.
#[test]
fn gradients_reach_what_takes_the_place_of_weights_and_scales() {
    let Quantized { model, values: [x, wq, y], input, weight } = quantized();
    let sum = model.graph.node(model.graph.value(y).producer().unwrap().0).input(0).unwrap();
    let segment = Segment::of(&model, &[x], &[sum]).unwrap();
    let codes = &model.codes[&Site::of(weight)];
    let row = &model.quantizers[model.graph.node(weight).quantizer().unwrap()];
    let stands = crate::quant::dequantize(codes, &row.scheme, row.params.as_ref().unwrap()).unwrap();
    // All of x lies outside the range, where the function of the scale is smooth.
    let outside = || numbers(12).iter().map(|v| 5.0 * v.signum() + v).collect::<Vec<f32>>();
    let record = |weights: &[f32], scale: f32| {
        let mut tape = Tape::new();
        let v = tape.constant(outside(), &[2, 2, 3]);
        let (w, s) = (tape.parameter(weights.to_vec(), &[6, 4]), tape.parameter(vec![scale], &[1]));
        let zero = tape.constant(vec![100.0], &[1]);
        let scales = BTreeMap::from([(input, Scales { scale: s, zero: Some(zero) })]);
        let found = segment.run(&mut tape, &[v], &BTreeMap::from([(wq, w)]), &scales).unwrap();
        let loss = tape.sum(found[0]);
        (tape.scalar(loss) as f64, tape, loss, w, s)
    };
    let (_, tape, loss, w, s) = record(&stands, 0.01);
    let grads = tape.backward(loss);
    let near = |found: f32, up: f64, down: f64, step: f64| {
        let slope = (up - down) / (2.0 * step);
        assert!((found as f64 - slope).abs() < 1e-2 * slope.abs().max(1.0), "{found} {slope}");
    };
    for k in [0, 7, 23] {
        let moved = |by: f32| {
            let mut w = stands.clone();
            w[k] += by;
            record(&w, 0.01).0
        };
        near(grads.of(w).unwrap()[k], moved(0.1), moved(-0.1), 0.1);
    }
    near(grads.of(s).unwrap()[0], record(&stands, 0.011).0, record(&stands, 0.009).0, 0.001);
    // Left alone, they are what the table says.
    let mut plain = Tape::new();
    let v = plain.constant(outside(), &[2, 2, 3]);
    let found = segment.run(&mut plain, &[v], &BTreeMap::new(), &BTreeMap::new()).unwrap();
    let total: f32 = plain.value(found[0]).iter().sum();
    assert!((total as f64 - record(&stands, 0.01).0).abs() < 1e-4);
}

#[test]
fn what_is_not_covered_is_refused_by_name() {
    let Quantized { mut model, values: [x, _, y], .. } = quantized();
    let z = model.graph.add_value("z");
    model.graph.add_node(Node::new(Op::TopK, "top"), &[Some(y)], &[Some(z)]);
    let refusal = |outputs: &[ValueId]| Segment::of(&model, &[x], outputs).err().map(|e| e.to_string());
    assert_eq!(refusal(&[z]).unwrap(), "top: TopK is not differentiated");
    assert_eq!(refusal(&[y]), None);
    // Nothing gives x.
    assert!(Segment::of(&model, &[], &[y]).err().unwrap().to_string().contains("needs x"));
}
