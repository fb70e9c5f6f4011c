//! Small graphs, run: FakeQuant under changing tables, weights, segments, and what is refused.

use super::*;
use crate::graph::{AttrValue, Dim, Graph, InputShapes, Model, Node, Op, Site, Type, ValueId};
use crate::quant::{self, Blocks, Codes, Params, QuantizerId, Scheme};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

struct Built {
    m: Model,
}

impl Built {
    fn new() -> Self {
        Built { m: Model { opsets: vec![(String::new(), 13)], ..Model::default() } }
    }

    fn value(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let v = self.m.graph.add_value(name);
        self.m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        v
    }

    fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let v = self.value(name, shape);
        self.m.graph.inputs.push(v);
        v
    }

    fn node(&mut self, node: Node, inputs: &[ValueId], out: &str, shape: &[usize]) -> ValueId {
        let y = self.value(out, shape);
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.m.graph.add_node(node, &inputs, &[Some(y)]);
        y
    }

    fn quantizer(&mut self, scale: f32) -> QuantizerId {
        let id = self.m.quantizers.add("q", Scheme::int(8, true));
        self.m.quantizers[id].params = Some(Params::tensor(scale, None));
        id
    }

    fn fake(&mut self, x: ValueId, scale: f32, out: &str, shape: &[usize]) -> (ValueId, QuantizerId) {
        let q = self.quantizer(scale);
        (self.node(Node::fake_quant(q, out), &[x], out, shape), q)
    }
}

fn feed(name: &str, t: Tensor) -> BTreeMap<String, Tensor> {
    BTreeMap::from([(name.to_string(), t)])
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37) % 101) as f32 * 0.07 - 3.0).collect()
}

/// x[2,8] → FakeQuant → MatMul(FakeQuant(w[8,4])) → h → Softmax → FakeQuant → y
fn net() -> (Model, [ValueId; 3], [QuantizerId; 3]) {
    let mut b = Built::new();
    let x = b.input("x", &[2, 8]);
    let w = b.m.graph.add_constant("w", Tensor::of_f32(&[8, 4], numbers(32)));
    let (xq, q0) = b.fake(x, 0.05, "xq", &[2, 8]);
    let (wq, q1) = b.fake(w, 0.03, "wq", &[8, 4]);
    b.m.quantizers[q1].scheme.blocks = Blocks::tensor();
    let h = b.node(Node::new(Op::MatMul, "mm"), &[xq, wq], "h", &[2, 4]);
    let s = b.node(Node::new(Op::Softmax, "sm").with("axis", 1i64), &[h], "s", &[2, 4]);
    let (y, q2) = b.fake(s, 1.0 / 127.0, "y", &[2, 4]);
    b.m.graph.outputs.push(y);
    (b.m, [xq, h, y], [q0, q1, q2])
}

#[test]
fn fake_quant_reads_the_table_at_each_run_and_is_the_quantizers_own_arithmetic() {
    let (m, [xq, h, y], [q0, _, q2]) = net();
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let runner = Runner::new(&m, &shapes_of(&sample), &[xq, h, y]).unwrap();
    let mut state = runner.spawn();
    let mut table = m.quantizers.clone();
    for scale in [0.05, 0.5, 0.013] {
        table[q0].params = Some(Params::tensor(scale, None));
        let out = runner.run(&mut state, &sample, &table).unwrap();
        let mut want = numbers(16);
        quant::fake_quantize(&mut want, &[2, 8], &table[q0].scheme, table[q0].params.as_ref()).unwrap();
        assert_eq!(&*out[0].to_f32().unwrap(), &want[..], "{scale}");
        // Softmax between two quantizers: tract's own rewriting of Q and DQ gets this wrong.
        let h = out[1].to_f32().unwrap();
        let mut soft: Vec<f32> = h
            .chunks(4)
            .flat_map(|r| {
                let e: Vec<f32> = r.iter().map(|v| v.exp()).collect();
                let sum: f32 = e.iter().sum();
                e.into_iter().map(move |v| v / sum)
            })
            .collect();
        quant::fake_quantize(&mut soft, &[2, 4], &table[q2].scheme, table[q2].params.as_ref()).unwrap();
        let found = out[2].to_f32().unwrap();
        assert!(found.iter().zip(&soft).all(|(a, b)| (a - b).abs() <= 1.0001 / 127.0), "{found:?} {soft:?}");
    }
    table[q0].scheme = Scheme::int(4, true);
    let coarse = runner.run(&mut state, &sample, &table).unwrap();
    assert!(coarse[0].to_f32().unwrap().iter().all(|v| (v / 0.013).round().abs() <= 8.0), "another width needs no new plan");
}

#[test]
fn weights_are_baked_or_follow_the_table() {
    let (m, [_, h, _], [_, q1, _]) = net();
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let mut table = m.quantizers.clone();
    table[q1].params = Some(Params::tensor(0.3, None));
    let baked = Runner::new(&m, &shapes_of(&sample), &[h]).unwrap();
    let e = baked.run(&mut baked.spawn(), &sample, &table).unwrap_err().to_string();
    assert!(e.contains("has changed since"), "{e}");
    let live = Runner::with(&m, &shapes_of(&sample), &[h], RunnerOptions { live_weights: true, ..Default::default() }).unwrap();
    let mut state = live.spawn();
    let same = |a: &[Tensor], b: &[Tensor]| a[0].to_f32().unwrap().iter().zip(b[0].to_f32().unwrap().iter()).all(|(a, b)| (a - b).abs() < 1e-5);
    let first = live.run(&mut state, &sample, &m.quantizers).unwrap();
    assert!(same(&first, &baked.run(&mut baked.spawn(), &sample, &m.quantizers).unwrap()));
    let second = live.run(&mut state, &sample, &table).unwrap();
    assert!(!same(&first, &second));
    let mut other = m.clone();
    other.quantizers = table.clone();
    let fresh = Runner::new(&other, &shapes_of(&sample), &[h]).unwrap();
    assert!(same(&second, &fresh.run(&mut fresh.spawn(), &sample, &table).unwrap()));
}

/// Pad(FakeQuant(x), pads, FakeQuant(0)) under one quantizer: the engine pads with constants alone.
#[test]
fn the_zero_that_pad_writes_stays_a_constant() {
    let mut b = Built::new();
    let x = b.input("x", &[1, 2]);
    let (zero, pads) = (b.m.graph.add_constant("zero", Tensor::scalar(0.0)), b.m.graph.add_constant("pads", Tensor::of_i64(&[4], vec![0, 1, 0, 1])));
    let (xq, q) = b.fake(x, 0.5, "xq", &[1, 2]);
    let zq = b.node(Node::fake_quant(q, "zq"), &[zero], "zq", &[]);
    let y = b.node(Node::new(Op::Pad, "pad"), &[xq, pads, zq], "y", &[1, 4]);
    let sample = feed("x", Tensor::of_f32(&[1, 2], vec![1.0, 2.0]));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
    assert_eq!(r.run(&mut r.spawn(), &sample, &b.m.quantizers).unwrap()[0].to_f32().unwrap().to_vec(), [0.0, 1.0, 2.0, 0.0]);
}

/// Concat(FakeQuant(x), FakeQuant(c)) under one quantizer.
#[test]
fn a_constant_that_shares_a_quantizer_with_what_flows_changes_with_it() {
    let mut b = Built::new();
    let x = b.input("x", &[2, 8]);
    let c = b.m.graph.add_constant("c", Tensor::of_f32(&[2, 8], numbers(16)));
    let (xq, q) = b.fake(x, 0.05, "xq", &[2, 8]);
    let cq = b.node(Node::fake_quant(q, "cq"), &[c], "cq", &[2, 8]);
    let y = b.node(Node::new(Op::Concat, "cat").with("axis", 0i64), &[xq, cq], "y", &[4, 8]);
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
    let mut table = b.m.quantizers.clone();
    for scale in [0.05, 0.4] {
        table[q].params = Some(Params::tensor(scale, None));
        let y = r.run(&mut r.spawn(), &sample, &table).unwrap();
        let y = y[0].to_f32().unwrap();
        assert_eq!(y[..16], y[16..], "{scale}");
        assert!(y.iter().all(|v| (v / scale - (v / scale).round()).abs() < 1e-4), "{scale} {y:?}");
    }
}

/// FakeQuant(Cast(Shape(x))): a constant, once the shape of x is given, and no weight.
#[test]
fn what_shapes_give_is_rounded_as_the_table_says() {
    let mut b = Built::new();
    let x = b.input("x", &[2, 8]);
    let dims = b.m.graph.add_value("dims");
    b.m.graph.add_node(Node::new(Op::Shape, "shape"), &[Some(x)], &[Some(dims)]);
    let real = b.node(Node::new(Op::Cast, "cast").with("to", 1i64), &[dims], "real", &[2]);
    let (y, q) = b.fake(real, 1.0, "y", &[2]);
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
    let mut table = b.m.quantizers.clone();
    for (scale, expected) in [(1.0, [2.0, 8.0]), (5.0, [0.0, 10.0])] {
        table[q].params = Some(Params::tensor(scale, None));
        assert_eq!(r.run(&mut r.spawn(), &sample, &table).unwrap()[0].to_f32().unwrap().to_vec(), expected);
    }
}

/// Cast(x) → op → Cast: tract takes whole numbers for dimensions, with which some ops do not compute.
#[test]
fn ops_compute_with_whole_numbers() {
    let cast = |to: DType| Node::new(Op::Cast, "cast").with("to", to.onnx() as i64);
    let whole = |values: &[i64], shape: &[usize]| Tensor::of_i64(shape, values.to_vec());
    let cases: &[(Node, &[Tensor], &[f32])] = &[
        (Node::new(Op::CumSum, "op"), &[whole(&[1], &[])], &[3.0, 1.0, 5.0, -2.0, -2.0, 5.0]),
        (Node::new(Op::Sign, "op"), &[], &[1.0, -1.0, 1.0, -1.0, 0.0, 1.0]),
        (Node::new(Op::Pad, "op"), &[whole(&[0, 0, 1, 0], &[4]), whole(&[9], &[])], &[3.0, -2.0, 4.0, -2.0, 0.0, 7.0, 9.0, 9.0, 9.0]),
        (Node::new(Op::ReduceSumSquare, "op").with("axes", vec![1i64]).with("keepdims", 0i64), &[], &[29.0, 53.0]),
        (Node::new(Op::ArgMax, "op").with("axis", 1i64).with("keepdims", 0i64), &[], &[2.0, 2.0]),
        (Node::new(Op::TopK, "op"), &[whole(&[2], &[1])], &[4.0, 3.0, 7.0, 0.0]),
        (Node::new(Op::MatMul, "op"), &[whole(&[1, 2, 3], &[3, 1])], &[11.0, 19.0]),
    ];
    for (op, more, wanted) in cases {
        let mut b = Built::new();
        let x = b.input("x", &[2, 3]);
        let value = |b: &mut Built, name: &str, dtype: DType, shape: Option<Vec<Dim>>| {
            let v = b.m.graph.add_value(name);
            b.m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(dtype), shape };
            v
        };
        let w = value(&mut b, "w", DType::I64, Some(vec![Dim::Known(2), Dim::Known(3)]));
        b.m.graph.add_node(cast(DType::I64), &[Some(x)], &[Some(w)]);
        let more = more.iter().enumerate().map(|(i, t)| b.m.graph.add_constant(&format!("c{i}"), t.clone()));
        let inputs: Vec<_> = std::iter::once(w).chain(more.collect::<Vec<_>>()).map(Some).collect();
        let z = value(&mut b, "z", DType::I64, None);
        let indices = (op.op == Op::TopK).then(|| value(&mut b, "indices", DType::I64, None));
        b.m.graph.add_node(op.clone(), &inputs, &[vec![Some(z)], indices.map(Some).into_iter().collect()].concat());
        let y = value(&mut b, "y", DType::F32, None);
        b.m.graph.add_node(cast(DType::F32), &[Some(z)], &[Some(y)]);
        let sample = feed("x", Tensor::of_f32(&[2, 3], vec![3.0, -2.0, 4.0, -2.0, 0.0, 7.0]));
        let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
        assert_eq!(r.run(&mut r.spawn(), &sample, &b.m.quantizers).unwrap()[0].to_f32().unwrap().to_vec(), *wanted, "{}", op.op_type);
    }
}

/// Pad(FakeQuant(x), FakeQuant(0)) under one quantizer.
#[test]
fn zeros_that_fill_share_a_quantizer_with_what_flows() {
    let mut b = Built::new();
    let x = b.input("x", &[2, 8]);
    let c = b.m.graph.add_constant("c", Tensor::scalar(0.0));
    let pads = b.m.graph.add_constant("pads", Tensor::of_i64(&[4], vec![0, 1, 0, 1]));
    let (xq, q) = b.fake(x, 0.05, "xq", &[2, 8]);
    let cq = b.node(Node::fake_quant(q, "cq"), &[c], "cq", &[]);
    let y = b.node(Node::new(Op::Pad, "pad"), &[xq, pads, cq], "y", &[2, 10]);
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
    let mut table = b.m.quantizers.clone();
    for scale in [0.05, 0.4] {
        table[q].params = Some(Params::tensor(scale, None));
        let y = r.run(&mut r.spawn(), &sample, &table).unwrap();
        assert_eq!((y[0].to_f32().unwrap()[0], y[0].len()), (0.0, 20));
    }
}

/// Pad(FakeQuant(x), FakeQuant(c)) under one quantizer, c not zero: from a shift of what flows, whose padding is shifted too. As a number and as a code.
#[test]
fn what_fills_is_rounded_with_what_flows() {
    for as_code in [false, true] {
        let mut b = Built::new();
        let x = b.input("x", &[2, 2, 3]);
        let c = b.m.graph.add_constant("c", Tensor::scalar(0.3));
        let pads = b.m.graph.add_constant("pads", Tensor::of_i64(&[6], vec![0, 0, 1, 0, 0, 2]));
        let (xq, q) = b.fake(x, 0.1, "xq", &[2, 2, 3]);
        let cq = b.node(Node::fake_quant(q, "cq"), if as_code { &[] } else { std::slice::from_ref(&c) }, "cq", &[]);
        if as_code {
            let (fake, _) = b.m.graph.value(cq).producer().unwrap();
            b.m.codes.insert(Site::of(fake), Codes(Tensor::new(DType::I8, vec![], vec![3].into()).unwrap()));
        }
        let y = b.node(Node::new(Op::Pad, "pad"), &[xq, pads, cq], "y", &[2, 2, 6]);
        let sample = feed("x", Tensor::of_f32(&[2, 2, 3], vec![1.0; 12]));
        check_supported(&b.m).unwrap();
        let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
        let mut table = b.m.quantizers.clone();
        for (scale, filler) in [(0.1, 0.3), (0.2, if as_code { 0.6 } else { 0.4 })] {
            table[q].params = Some(Params::tensor(scale, None));
            let y = r.run(&mut r.spawn(), &sample, &table).unwrap();
            let y = y[0].to_f32().unwrap();
            for row in y.chunks(6) {
                let expected = [filler, 1.0, 1.0, 1.0, filler, filler];
                assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{as_code} {scale} {row:?}");
            }
        }
    }
}

/// Pad of a lifted file: what it pads with is a FakeQuant that has only codes.
#[test]
fn what_pads_may_stand_as_codes() {
    let mut b = Built::new();
    let x = b.input("x", &[1, 2]);
    let pads = b.m.graph.add_constant("pads", Tensor::of_i64(&[4], vec![0, 1, 0, 0]));
    let q = b.quantizer(0.5);
    let zero = b.node(Node::fake_quant(q, "zero"), &[], "zero", &[]);
    let (fake, _) = b.m.graph.value(zero).producer().unwrap();
    b.m.codes.insert(Site::of(fake), Codes(Tensor::new(DType::I8, vec![], vec![0].into()).unwrap()));
    let y = b.node(Node::new(Op::Pad, "pad"), &[x, pads, zero], "y", &[1, 3]);
    check_supported(&b.m).unwrap();
    let sample = feed("x", Tensor::of_f32(&[1, 2], vec![3.0, 4.0]));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
    assert_eq!(r.run(&mut r.spawn(), &sample, &b.m.quantizers).unwrap()[0].to_f32().unwrap()[..], [0.0, 3.0, 4.0]);
}

#[test]
fn float_passes_every_quantizer() {
    let (m, [xq, ..], _) = net();
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let r = Runner::with(&m, &shapes_of(&sample), &[xq], RunnerOptions { float: true, ..Default::default() }).unwrap();
    assert_eq!(&*r.run(&mut r.spawn(), &sample, &Default::default()).unwrap()[0].to_f32().unwrap(), &numbers(16)[..]);
}

#[test]
fn a_segment_from_cached_inputs_is_bit_for_bit_the_whole() {
    let (m, [_, h, y], _) = net();
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let whole = Runner::new(&m, &shapes_of(&sample), &[h, y]).unwrap();
    let out = whole.run(&mut whole.spawn(), &sample, &m.quantizers).unwrap();
    let given = [Given { value: h, dtype: DType::F32, shape: vec![2, 4] }];
    let part = Runner::segment(&m, &given, &[y], RunnerOptions::default(), &BTreeSet::new()).unwrap();
    let again = part.run(&mut part.spawn(), &feed("h", out[0].clone()), &m.quantizers).unwrap();
    assert!(again[0] == out[1]);
    let s = m.graph.find_value("s").unwrap();
    let wrong = [Given { value: s, dtype: DType::F32, shape: vec![2, 4] }];
    let e = Runner::segment(&m, &wrong, &[h], RunnerOptions::default(), &BTreeSet::new()).err().unwrap().to_string();
    assert!(e.contains("needs x"), "{e}");
}

#[test]
fn a_quantizer_inside_a_branch_runs() {
    let mut b = Built::new();
    let x = b.input("x", &[4]);
    let q = b.quantizer(0.5);
    let branch = |fake: bool| {
        let mut g = Graph::default();
        let (read, out) = (g.add_value("x"), g.add_value("out"));
        g.value_mut(out).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(4)]) };
        g.outputs.push(out);
        let node = if fake { Node::fake_quant(q, "inner") } else { Node::new(Op::Neg, "neg") };
        g.add_node(node, &[Some(read)], &[Some(out)]);
        g
    };
    let c = b.m.graph.add_value("c");
    b.m.graph.value_mut(c).ty = Type::Tensor { dtype: Some(DType::Bool), shape: Some(vec![]) };
    b.m.graph.inputs.push(c);
    let node = Node::new(Op::If, "if").with("then_branch", branch(true)).with("else_branch", branch(false));
    let y = b.node(node, &[c], "y", &[4]);
    b.m.graph.outputs.push(y);
    let _ = x;
    let run = |on: u8| {
        let mut sample = feed("x", Tensor::of_f32(&[4], vec![0.3, 0.6, -0.9, 2.0]));
        sample.insert("c".into(), Tensor::new(DType::Bool, vec![], vec![on].into()).unwrap());
        let r = Runner::new(&b.m, &shapes_of(&sample), &[y]).unwrap();
        r.run(&mut r.spawn(), &sample, &b.m.quantizers).unwrap()[0].to_f32().unwrap().into_owned()
    };
    assert_eq!(run(1), [0.5, 0.5, -1.0, 2.0]);
    assert_eq!(run(0), [-0.3, -0.6, 0.9, -2.0]);
}

#[test]
fn every_node_that_cannot_run_is_named_in_one_error() {
    let mut b = Built::new();
    let x = b.input("x", &[2, 2]);
    let odd = b.node(Node::spelled("my.domain", "Dream", "dream"), &[x], "odd", &[2, 2]);
    let far = b.node(Node::new(Op::Conv, "conv").with("colour", AttrValue::Int(3)), &[odd, x], "far", &[2, 2]);
    let y = b.node(Node::new(Op::Relu, "fine"), &[far], "y", &[2, 2]);
    b.m.graph.outputs.push(y);
    let e = Runner::new(&b.m, &InputShapes::from([("x".to_string(), vec![2, 2])]), &[y]).err().unwrap();
    assert_eq!(e.exit_code(), 1);
    for word in ["2 of the model's nodes", "dream", "my.domain.Dream", "conv", "colour = 3"] {
        assert!(e.to_string().contains(word), "{word}: {e}");
    }
}

#[test]
fn inputs_are_checked_and_a_state_outlives_an_error() {
    let (m, [_, h, _], _) = net();
    let sample = feed("x", Tensor::of_f32(&[2, 8], numbers(16)));
    let r = Runner::new(&m, &shapes_of(&sample), &[h]).unwrap();
    let mut state = r.spawn();
    let wrong = |state: &mut State, s: BTreeMap<String, Tensor>, word: &str| {
        let e = r.run(state, &s, &m.quantizers).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    };
    wrong(&mut state, BTreeMap::new(), "input x is not given");
    wrong(&mut state, feed("x", Tensor::of_f32(&[1, 8], numbers(8))), "the plan was built for");
    wrong(&mut state, feed("x", Tensor::of_i64(&[2, 8], vec![0; 16])), "float32[2, 8]");
    r.run(&mut state, &sample, &m.quantizers).unwrap();
}

#[test]
fn an_output_may_be_an_input_or_a_constant() {
    let mut b = Built::new();
    let x = b.input("x", &[2]);
    let c = b.m.graph.add_constant("c", Tensor::of_f32(&[1], vec![5.0]));
    let y = b.node(Node::new(Op::Add, "add"), &[x, c], "y", &[2]);
    b.m.graph.outputs = vec![x, c, y];
    let sample = feed("x", Tensor::of_f32(&[2], vec![1.0, 2.0]));
    let r = Runner::new(&b.m, &shapes_of(&sample), &[y, x, c, y]).unwrap();
    let out: Vec<Vec<f32>> = r.run(&mut r.spawn(), &sample, &Default::default()).unwrap().iter().map(|t| t.to_f32().unwrap().into_owned()).collect();
    assert_eq!(out, [vec![6.0, 7.0], vec![1.0, 2.0], vec![5.0], vec![6.0, 7.0]]);
}

#[test]
fn a_fillers_quantizer_does_not_make_it_a_value_of_the_run() {
    let mut b = Built::new();
    let x = b.input("x", &[1, 2]);
    let pads = b.m.graph.add_constant("pads", Tensor::of_i64(&[4], vec![0, 1, 0, 1]));
    let filler = b.m.graph.add_constant("filler", Tensor::of_f32(&[], vec![0.6]));
    let (filled, _) = b.fake(filler, 0.5, "filled", &[]);
    let y = b.node(Node::new(Op::Pad, "pad"), &[x, pads, filled], "y", &[1, 4]);
    b.m.graph.outputs.push(y);
    let sample = feed("x", Tensor::of_f32(&[1, 2], vec![1.0, 2.0]));
    for (float, edge) in [(true, 0.6), (false, 0.5)] {
        let r = Runner::with(&b.m, &shapes_of(&sample), &[y], RunnerOptions { float, ..Default::default() }).unwrap();
        let out = r.run(&mut r.spawn(), &sample, &b.m.quantizers).unwrap();
        assert_eq!(&*out[0].to_f32().unwrap(), &[edge, 1.0, 2.0, edge]);
    }
}

#[test]
fn recurrence_starts_anew_at_each_run() {
    let mut b = Built::new();
    let x = b.input("x", &[2, 1, 2]);
    let w = b.m.graph.add_constant("w", Tensor::of_f32(&[1, 2, 2], vec![0.5, -0.25, 0.75, 1.0]));
    let r = b.m.graph.add_constant("r", Tensor::of_f32(&[1, 2, 2], vec![0.9, 0.1, -0.4, 0.8]));
    let y = b.node(Node::new(Op::RNN, "rnn").with("hidden_size", 2i64), &[x, w, r], "y", &[2, 1, 1, 2]);
    b.m.graph.outputs.push(y);
    let sample = |s: f32| feed("x", Tensor::of_f32(&[2, 1, 2], [1.0, -2.0, 0.5, 3.0].map(|v| s * v).to_vec()));
    let runner = Runner::new(&b.m, &shapes_of(&sample(1.0)), &[y]).unwrap();
    let fresh = |s: f32| runner.run(&mut runner.spawn(), &sample(s), &b.m.quantizers).unwrap();
    let mut state = runner.spawn();
    for s in [1.0, 0.3, -1.0, 1.0] {
        assert!(runner.run(&mut state, &sample(s), &b.m.quantizers).unwrap()[0] == fresh(s)[0], "what ran before must not show: {s}");
    }
}

/// x[1,64,2,128] → Conv 64 × 3 × 3 → y: tract would compute it four output channels at a time, and read the input sixteen times.
#[test]
fn wide_convolutions_of_long_rows_are_products_of_matrices() {
    let mut b = Built::new();
    let shape = [1, 64, 2, 128];
    let x = b.input("x", &shape);
    let w = b.m.graph.add_constant("w", Tensor::of_f32(&[64, 64, 3, 3], numbers(64 * 64 * 9)));
    let y = b.node(Node::new(Op::Conv, "conv").with("pads", vec![1i64; 4]), &[x, w], "y", &shape);
    let plan = planning::plan(&b.m, &[(x, DType::F32, shape.to_vec())], &[y]).unwrap();
    let ops: Vec<String> = plan.model().nodes().iter().map(|n| n.op.name().into_owned()).collect();
    assert!(ops.len() > 1 && !ops.iter().any(|op| op.contains("Direct")), "{ops:?}");
}
