use super::super::testing::{noise, result, rounded, sqnr, value};
use super::*;
use crate::data::{DataSettings, InputInfo};
use crate::tensor::DType;

const HOW: Equalize = Equalize { sweeps: 20, absorb: None, samples: 8, threads: 2 };

#[allow(clippy::too_many_arguments)]
fn layer(g: &mut Graph, op: Op, name: &str, x: ValueId, weight: (&[usize], Vec<f32>), bias: Vec<f32>, y: &[usize], attrs: &[(&str, Vec<i64>)]) -> ValueId {
    let y = value(g, name, y);
    let (w, b) =
        (g.add_constant(&format!("{name}_w"), Tensor::of_f32(weight.0, weight.1)), g.add_constant(&format!("{name}_b"), Tensor::of_f32(&[bias.len()], bias)));
    let mut node = Node::new(op, name);
    for (k, v) in attrs {
        if v.len() == 1 { node.set_attr(k, v[0]) } else { node.set_attr(k, v.clone()) }
    }
    g.add_node(node, &[Some(x), Some(w), Some(b)], &[Some(y)]);
    y
}

fn unary(g: &mut Graph, op: Op, name: &str, x: ValueId, shape: &[usize]) -> ValueId {
    let y = value(g, name, shape);
    g.add_node(Node::new(op, name), &[Some(x)], &[Some(y)]);
    y
}

/// Conv → Relu → depthwise Conv → LeakyRelu → Conv → GlobalAveragePool → Flatten → Gemm, channels spread over a factor of 1000.
fn spread_out() -> Model {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut m.graph;
    let f: Vec<f32> = (0..8).map(|i| 10f32.powf(i as f32 * 3.0 / 7.0 - 1.5)).collect();
    let by = |w: Vec<f32>, of: &dyn Fn(usize) -> f32| w.into_iter().enumerate().map(|(i, w)| w * of(i)).collect::<Vec<_>>();
    let x = value(g, "x", &[1, 4, 6, 6]);
    g.inputs.push(x);
    let h = layer(g, Op::Conv, "a", x, (&[8, 4, 1, 1], by(noise(&[8, 4], 1), &|i| f[i / 4])), by(noise(&[8], 2), &|i| f[i]), &[1, 8, 6, 6], &[]);
    let h = unary(g, Op::Relu, "relu", h, &[1, 8, 6, 6]);
    let attrs = [("group", vec![8]), ("pads", vec![1, 1, 1, 1])];
    let h =
        layer(g, Op::Conv, "b", h, (&[8, 1, 3, 3], by(noise(&[8, 9], 3), &|i| f[7 - i / 9])), by(noise(&[8], 4), &|i| f[i] * f[7 - i]), &[1, 8, 6, 6], &attrs);
    let h = unary(g, Op::LeakyRelu, "leaky", h, &[1, 8, 6, 6]);
    let h = layer(g, Op::Conv, "c", h, (&[5, 8, 1, 1], by(noise(&[5, 8], 5), &|i| 1.0 / (f[i % 8] * f[7 - i % 8]))), noise(&[5], 6), &[1, 5, 6, 6], &[]);
    let h = unary(g, Op::GlobalAveragePool, "pool", h, &[1, 5, 1, 1]);
    let h = unary(g, Op::Flatten, "flat", h, &[1, 5]);
    let y = layer(g, Op::Gemm, "d", h, (&[5, 3], noise(&[5, 3], 7)), noise(&[3], 8), &[1, 3], &[]);
    g.outputs.push(y);
    m
}

#[test]
fn the_result_stays_and_weights_of_one_scale_lose_far_less() {
    let (before, mut after) = (spread_out(), spread_out());
    let notes = equalize(&mut after, &HOW, None).unwrap();
    assert_eq!(notes.list().iter().filter(|n| n.text.contains("3 layers equalized")).count(), 1, "{notes:?}");
    assert!(after.graph.find_value("relu").is_none() && after.graph.find_value("relu_equalized").is_some());
    let x = Tensor::of_f32(&[1, 4, 6, 6], noise(&[144], 9));
    let (y, z) = (result(&before, &x), result(&after, &x));
    assert!(y.iter().zip(&z).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)), "{y:?} {z:?}");
    let (plain, equalized) = (sqnr(&y, &result(&rounded(&before, |w| w / 127.0), &x)), sqnr(&y, &result(&rounded(&after, |w| w / 127.0), &x)));
    assert!(equalized > plain + 20.0, "{plain} {equalized}");
}

#[test]
fn what_does_not_commute_with_scaling_is_left_alone_with_the_reason() {
    for (op, why) in [(Op::Sigmoid, "relu is a Sigmoid"), (Op::Clip, "relu is a Clip"), (Op::Identity, "")] {
        let mut m = spread_out();
        let id = m.graph.nodes().find(|(_, n)| n.name == "relu").unwrap().0;
        (m.graph.node_mut(id).op, m.graph.node_mut(id).op_type) = (op, Node::new(op, "").op_type);
        let notes = equalize(&mut m, &HOW, None).unwrap();
        let declined: Vec<&str> = notes.list().iter().filter(|n| n.about == "a").map(|n| n.text.as_str()).collect();
        assert!(if why.is_empty() { declined.is_empty() } else { declined[0].contains(why) }, "{declined:?}");
    }
    let mut shared = spread_out();
    let (a, c) = (shared.graph.find_value("c_w").unwrap(), shared.graph.nodes().find(|(_, n)| n.name == "c").unwrap().0);
    let twice = value(&mut shared.graph, "twice", &[1, 5, 6, 6]);
    let x = shared.graph.node(c).input(0);
    shared.graph.add_node(Node::new(Op::Conv, "twice"), &[x, Some(a)], &[Some(twice)]);
    let notes = equalize(&mut shared, &HOW, None).unwrap();
    assert!(notes.list().iter().any(|n| n.about == "c" && n.text.contains("its weight is shared")), "{notes:?}");
    assert!(notes.list().iter().any(|n| n.about == "b" && n.text.contains("the weight of c is shared")), "{notes:?}");
}

/// x → Conv → Relu → Conv, whose first channel is always large.
#[test]
fn what_is_always_there_goes_into_the_next_bias() {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut m.graph;
    let x = value(g, "x", &[1, 2, 4, 4]);
    g.inputs.push(x);
    let h = layer(g, Op::Conv, "a", x, (&[3, 2, 1, 1], noise(&[6], 1)), vec![30.0, 0.0, -1.0], &[1, 3, 4, 4], &[]);
    let h = unary(g, Op::Relu, "relu", h, &[1, 3, 4, 4]);
    let y = layer(g, Op::Conv, "b", h, (&[2, 3, 1, 1], noise(&[6], 2)), vec![0.0, 1.0], &[1, 2, 4, 4], &[]);
    g.outputs.push(y);
    let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Known(1), Dim::Known(2), Dim::Known(4), Dim::Known(4)]) };
    let data = Dataset::open("random:8", &[info], &DataSettings::default()).unwrap();
    let samples: Vec<usize> = (0..8).collect();
    let mut after = m.clone();
    equalize(&mut after, &Equalize { absorb: Some(3.0), ..HOW }, Some((&data, &samples))).unwrap();
    let bias = |m: &Model| m.graph.constant(m.graph.find_value("a_b").unwrap()).unwrap().tensor.to_f32().unwrap().into_owned();
    let mut scaled = m.clone();
    equalize(&mut scaled, &HOW, None).unwrap();
    let (b, without) = (bias(&after), bias(&scaled));
    assert!(b[0] < 0.3 * without[0] && b[1..] == without[1..], "{b:?} {without:?}");
    let x = &data.sample(0).unwrap()["x"];
    assert!(result(&m, x).iter().zip(result(&after, x)).all(|(a, b)| (a - b).abs() < 1e-4), "{b:?}");
}
