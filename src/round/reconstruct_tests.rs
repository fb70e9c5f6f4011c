use super::reconstruct::{Reconstruct, reconstruct};
use super::round_nearest;
use super::scales::Moving;
use super::task::{Iterations, Learnt, Visits, visit};
use super::testing::{models, numbers, open_model, samples, weight_codes};
use super::units::{blocks, layers};
use crate::data::tests::npy;
use crate::data::{Dataset, InputInfo};
use crate::graph::{Dim, Model, Node, Op, Site, Type};
use crate::note::Notes;
use crate::pass::Silent;
use crate::quant::{self, Blocks, Origin, Params, QuantizerId, ScaleKind, Scheme};
use crate::tensor::{DType, Tensor};
use std::path::Path;
use std::sync::Arc;

/// Channels of the layer, rows of a sample, samples.
pub const N: usize = 64;
pub const ROWS: usize = 16;
pub const COUNT: usize = 64;

pub fn visits(iterations: usize, threads: usize) -> Visits {
    Visits { samples: COUNT, iterations: Iterations::Exactly(iterations), batch: 8, seed: 1, memory: 1 << 26, threads }
}

fn how(iterations: usize, threads: usize) -> Reconstruct {
    Reconstruct { blocks: false, lambda: 0.01, visits: visits(iterations, threads) }
}

fn typed(m: &mut Model, name: &str, shape: &[usize]) -> crate::graph::ValueId {
    let v = m.graph.add_value(name);
    m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
    v
}

pub fn open(dir: &Path, x: &[f32], shape: &[usize]) -> Dataset {
    let path = dir.join("x.npy");
    std::fs::write(&path, npy("<f4", false, shape, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())).unwrap();
    let dims = [1].iter().chain(&shape[1..]).map(|d| Dim::Known(*d)).collect();
    Dataset::open(path.to_str().unwrap(), &[InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(dims) }], &Default::default()).unwrap()
}

/// Rows whose channels follow each other with a correlation of 0.9, cut at 0.
pub fn rows(count: usize, seed: u32) -> Vec<f32> {
    let noise = numbers(count * N, seed);
    let mut now = 0.0;
    noise
        .iter()
        .map(|e| {
            now = 0.9 * now + 0.436 * e * 1.732;
            f32::max(now, 0.0)
        })
        .collect()
}

fn layer() -> (Model, Vec<f32>) {
    layer_of(4)
}

/// x[1,16,64] → MatMul with weights of so many bits, whose scales lose least of the weights → y.
pub fn layer_of(bits: u8) -> (Model, Vec<f32>) {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let w = numbers(N * N, 5);
    let q = m.quantizers.add("w", Scheme { blocks: Blocks::channel(1), ..Scheme::int(bits, true) });
    let top = ((1 << (bits - 1)) - 1) as f32;
    let lost = |j: usize, s: f32| (0..N).map(|i| w[i * N + j]).map(|w| (w - (w / s).round_ties_even().clamp(-top - 1.0, top) * s).powi(2)).sum::<f32>();
    let scale = (0..N).map(|j| (0..40).map(|k| (0.6 + 0.01 * k as f32) / top).min_by(|a, b| lost(j, *a).total_cmp(&lost(j, *b))).unwrap()).collect();
    m.quantizers[q].params = Some(Params { scale, ..Params::tensor(1.0, None) });
    let (x, y) = (typed(&mut m, "x", &[1, ROWS, N]), typed(&mut m, "y", &[1, ROWS, N]));
    let g = &mut m.graph;
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    let (c, wq) = (g.add_constant("w", Tensor::of_f32(&[N, N], w.clone())), g.add_value("wq"));
    g.add_node(Node::fake_quant(q, "fw"), &[Some(c)], &[Some(wq)]);
    g.add_node(Node::new(Op::MatMul, "matmul"), &[Some(x), Some(wq)], &[Some(y)]);
    (m, w)
}

/// Squared error of the layer's outputs on rows it has not seen.
pub fn error(m: &Model, w: &[f32]) -> f64 {
    let (fake, q) = m.constant_sites()[0];
    let row = &m.quantizers[q];
    let stands = quant::dequantize(&m.codes[&Site::of(fake)], &row.scheme, row.params.as_ref().unwrap()).unwrap();
    let x = rows(512, 99);
    let one = |r: usize, j: usize| (0..N).map(|i| x[r * N + i] * (w[i * N + j] - stands[i * N + j])).sum::<f32>();
    (0..512 * N).map(|at| one(at / N, at % N).powi(2) as f64).sum()
}

#[test]
fn a_layer_gives_less_than_a_third_of_the_error_on_rows_it_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(dir.path(), &rows(COUNT * ROWS, 7), &[COUNT, ROWS, N]);
    let all: Vec<usize> = (0..COUNT).collect();
    let (m, w) = layer();
    let [mut nearest, mut learnt, mut again] = [m.clone(), m.clone(), m];
    round_nearest(&mut nearest).unwrap();
    reconstruct(&mut learnt, &how(800, 1), Some((&data, &all)), &Silent).unwrap();
    let (before, after) = (error(&nearest, &w), error(&learnt, &w));
    assert!(after < 0.3 * before, "{before} {after}");
    for m in [&mut learnt, &mut again] {
        m.codes.clear();
    }
    reconstruct(&mut learnt, &how(40, 1), Some((&data, &all)), &Silent).unwrap();
    reconstruct(&mut again, &how(40, 2), Some((&data, &all)), &Silent).unwrap();
    assert!(learnt == again, "the result depends on the number of threads");
}

#[test]
fn a_layer_that_held_out_samples_do_not_serve_keeps_nearest_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut m) = models(&Blocks::channel(0));
    let nearest = weight_codes(&m);
    m.codes.clear();
    let all: Vec<usize> = (0..32).collect();
    let few = reconstruct(&mut m.clone(), &how(20, 1), Some((&samples(dir.path(), 32, true), &all[..7])), &Silent).unwrap();
    assert!(few.list()[0].text.contains("at least 8 samples, and gets 7"), "{few:?}");
    // Nothing but zeros is held out: what the first layer gives for them no weight changes.
    let notes = reconstruct(&mut m, &how(20, 1), Some((&samples(dir.path(), 32, true), &all)), &Silent).unwrap();
    assert!(notes.list().iter().any(|n| n.text.contains("no others are better")), "{notes:?}");
    round_nearest(&mut m).unwrap();
    assert_eq!(weight_codes(&m)[0], nearest[0]);
    assert!(reconstruct(&mut m, &how(20, 1), None, &Silent).unwrap_err().to_string().contains("--data"));
}

#[test]
fn a_loss_beyond_all_numbers_ends_it_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let mut x = rows(COUNT * ROWS, 7);
    x[3 * ROWS * N] = 1e30;
    let data = open(dir.path(), &x, &[COUNT, ROWS, N]);
    let all: Vec<usize> = (0..COUNT).collect();
    let error = reconstruct(&mut layer().0, &how(20, 1), Some((&data, &all)), &Silent).unwrap_err().to_string();
    assert!(error.contains("matmul") && error.contains("not a finite number"), "{error}");
}

#[test]
fn a_residual_block_is_one_unit_and_its_layers_are_two() {
    let (mut m, _) = layer();
    let y = m.graph.outputs[0];
    let [r, z, s, out] = ["r", "z", "s", "out"].map(|n| typed(&mut m, n, &[1, ROWS, N]));
    let x = m.graph.inputs[0];
    let (q, c) = (m.constant_sites()[0].1, m.graph.find_value("w").unwrap());
    let v = m.graph.add_value("vq");
    m.graph.add_node(Node::new(Op::Relu, "relu"), &[Some(y)], &[Some(r)]);
    m.graph.add_node(Node::fake_quant(q, "fv"), &[Some(c)], &[Some(v)]);
    m.graph.add_node(Node::new(Op::MatMul, "second"), &[Some(r), Some(v)], &[Some(z)]);
    m.graph.add_node(Node::new(Op::Add, "add"), &[Some(z), Some(x)], &[Some(s)]);
    m.graph.add_node(Node::new(Op::Relu, "last"), &[Some(s)], &[Some(out)]);
    m.graph.outputs = vec![out];
    let ends = |units: Vec<super::units::Unit>| units.iter().map(|u| (u.input, u.output, u.weights.len())).collect::<Vec<_>>();
    assert_eq!(ends(layers(&m)), [(x, r, 1), (r, z, 1)]);
    assert_eq!(ends(blocks(&m, 1 << 20)), [(x, out, 2)]);
    assert_eq!(ends(blocks(&m, N * N)), [(x, r, 1), (r, z, 1)]);
}

/// x → FakeQuant of this scale → the layer of 4 bits → y: the model, and the quantizer of x.
fn layer_behind(scale: f32) -> (Model, Vec<f32>, QuantizerId) {
    let (mut m, w) = layer();
    let q = m.quantizers.add("x", Scheme::int(8, true));
    m.quantizers[q].params = Some(Params::tensor(scale, None));
    let x = m.graph.inputs[0];
    let reader = m.graph.nodes().find(|(_, n)| n.op == Op::MatMul).unwrap().0;
    let xq = typed(&mut m, "xq", &[1, ROWS, N]);
    m.graph.insert_node(0, Node::fake_quant(q, "fx"), &[Some(x)], &[Some(xq)]);
    m.graph.set_input(reader, 0, Some(xq));
    (m, w, q)
}

/// Of inputs that are 0 or beyond all codes, LSQ's gradient is that of the loss itself.
#[test]
fn gradients_of_a_unit_by_a_scale_are_those_of_differences() {
    let dir = tempfile::tempdir().unwrap();
    let x: Vec<f32> = rows(COUNT * ROWS, 7).iter().map(|v| if *v > 0.0 { v + 1.0 } else { 0.0 }).collect();
    let data = open(dir.path(), &x, &[COUNT, ROWS, N]);
    let (m, w, q) = layer_behind(0.002);
    let mut units = layers(&m);
    units[0].input = m.graph.inputs[0];
    let all: Vec<usize> = (0..COUNT).collect();
    let mut asked = 0;
    visit(&m, &units, (&visits(1, 2), false), (&data, &all), (&mut Notes::of("round"), &Silent), |_, mut task| {
        let (scale, _) = Moving::scales(&m, q, &[], 1.0).unwrap();
        task.scales = vec![scale];
        task.places = vec![(m.graph.find_value("wq").unwrap(), vec![N, N])];
        let w = Arc::new(w.clone());
        let at = |s: f32| vec![w.clone(), Arc::new(vec![s])];
        let held = task.held.clone();
        let by_tape = task.gradients(&at(0.002), &held).unwrap()[1][0] as f64 / held.len() as f64;
        let (a, b) = (0.0022f32, 0.0018f32);
        let by_differences = (task.judge(&at(a)).unwrap() - task.judge(&at(b)).unwrap()) / (a as f64 - b as f64);
        assert!((by_tape / by_differences - 1.0).abs() < 1e-3 && by_tape.abs() > 1.0, "{by_tape} {by_differences}");
        asked += 1;
        Ok(Learnt { before: 0.0, after: 0.0, outputs: None })
    })
    .unwrap();
    assert_eq!(asked, 1);
}

#[test]
fn a_block_mends_the_scale_of_an_activation_that_is_cut_off_and_a_layer_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(dir.path(), &rows(COUNT * ROWS, 7), &[COUNT, ROWS, N]);
    let all: Vec<usize> = (0..COUNT).collect();
    let (m, _, q) = layer_behind(1.2 / 127.0);
    let learnt = |blocks: bool, threads: usize| {
        let mut m = m.clone();
        let notes = reconstruct(&mut m, &Reconstruct { blocks, ..how(300, threads) }, Some((&data, &all)), &Silent).unwrap();
        assert_eq!(notes.list().iter().any(|n| n.text.contains("and 1 scales of activations learnt")), blocks, "{notes:?}");
        m
    };
    let (mended, again, layer) = (learnt(true, 1), learnt(true, 2), learnt(false, 1));
    assert!(mended == again, "the result depends on the number of threads");
    let scale = |m: &Model| m.quantizers[q].params.as_ref().unwrap().scale[0];
    assert_eq!(scale(&layer), scale(&m));
    assert!(scale(&mended) > 1.1 * scale(&m), "{} {}", scale(&m), scale(&mended));
}

#[test]
fn scales_of_blocks_stay_that_are_given_powers_of_two_felt_outside_or_barely_hold_a_bias_and_biases_follow_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let data = samples(dir.path(), 64, false);
    let all: Vec<usize> = (0..64).collect();
    let (_, mut m, triples) = open_model();
    let (x, w, b) = triples[1];
    // What is read is cut off.
    m.quantizers[x].params.as_mut().unwrap().scale[0] /= 8.0;
    m.quantizers[b].params.as_mut().unwrap().scale.iter_mut().for_each(|s| *s /= 8.0);
    let run = |mut m: Model| {
        reconstruct(&mut m, &Reconstruct { blocks: true, ..how(40, 1) }, Some((&data, &all)), &Silent).unwrap();
        m
    };
    let scale = |m: &Model, q: QuantizerId| m.quantizers[q].params.clone().unwrap().scale;
    let moved = |before: Model| scale(&run(before.clone()), x) != scale(&before, x);
    let after = run(m.clone());
    assert_ne!(scale(&after, x), scale(&m, x));
    assert_eq!(scale(&after, w), scale(&m, w));
    assert_eq!(scale(&after, b), scale(&after, w).iter().map(|s| s * scale(&after, x)[0]).collect::<Vec<f32>>());
    let with = |change: &dyn Fn(&mut Model)| {
        let mut m = m.clone();
        change(&mut m);
        m
    };
    assert!(!moved(with(&|m| m.quantizers[x].params.as_mut().unwrap().origin = Origin::Fixed)));
    assert!(!moved(with(&|m| m.quantizers[x].scheme.scale = ScaleKind::Pow2(DType::F32))));
    assert!(!moved(with(&|m| m.quantizers[b].params.as_mut().unwrap().scale.iter_mut().for_each(|s| *s = 1e-9))));
    // Another place, and another reader.
    let place = m.graph.nodes().find(|(_, n)| n.op == Op::FakeQuant && n.quantizer() == Some(x)).unwrap().0;
    assert!(!moved(with(&|m| {
        let (v, y) = (m.graph.node(place).input(0), m.graph.add_value("again"));
        let at = m.graph.position(place);
        m.graph.insert_node(at, Node::fake_quant(x, "again"), &[v], &[Some(y)]);
    })));
    assert!(!moved(with(&|m| {
        let v = m.graph.node(place).output(0).unwrap();
        m.graph.outputs.push(v);
    })));
}
