use super::adaquant::{AdaQuant, adaquant};
use super::reconstruct_tests::{COUNT, N, ROWS, error, layer_of, open, rows, visits};
use super::round_nearest;
use super::task::Visits;
use super::testing::{open_model, samples};
use crate::data::Dataset;
use crate::engine::Trial;
use crate::graph::{Model, Op, Site};
use crate::pass::Silent;
use crate::quant::{self, QuantizerId, ScaleKind};
use crate::tensor::DType;

fn how(iterations: usize, threads: usize) -> AdaQuant {
    AdaQuant { parallel: false, visits: Visits { batch: 16, ..visits(iterations, threads) } }
}

fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}

fn run(m: &mut Model, how: &AdaQuant, data: &Dataset, n: usize) -> String {
    let notes = adaquant(m, how, Some((data, &all(n))), &Silent).unwrap();
    notes.list().iter().map(|n| n.text.clone()).collect::<Vec<_>>().join("\n")
}

/// The error on rows that were not seen, as a share of that of nearest codes.
fn share(bits: u8, how: &AdaQuant) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let data = open(dir.path(), &rows(COUNT * ROWS, 7), &[COUNT, ROWS, N]);
    let (mut learnt, w) = layer_of(bits);
    let mut nearest = learnt.clone();
    round_nearest(&mut nearest).unwrap();
    run(&mut learnt, how, &data, COUNT);
    round_nearest(&mut learnt).unwrap();
    error(&learnt, &w) / error(&nearest, &w)
}

/// The thresholds of the table that the paper's method was measured by.
#[test]
fn a_layer_gives_less_error_on_rows_it_has_not_seen() {
    let shares = [(2, 0.35), (4, 0.95), (8, 1.0)].map(|(bits, most)| (bits, share(bits, &how(300, 2)), most));
    assert!(shares.iter().all(|(_, share, most)| share <= most), "{shares:?}");
}

#[test]
fn codes_scales_and_biases_stand_in_the_model_and_serve_it_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let data = samples(dir.path(), 96, false);
    let (float, m, triples) = open_model();
    let others = Trial::new(&float, (64..96).map(|i| data.sample(i).unwrap()).collect(), 1).unwrap();
    let loss = |m: &Model| others.loss(&others.plans(m), &m.quantizers).unwrap();
    let mut nearest = m.clone();
    round_nearest(&mut nearest).unwrap();
    for parallel in [false, true] {
        let of = |threads| AdaQuant { parallel, ..how(30, threads) };
        let (mut one, mut two) = (m.clone(), m.clone());
        let notes = run(&mut one, &of(1), &data, 64);
        run(&mut two, &of(3), &data, 64);
        assert!(one == two, "the result depends on the number of threads");
        assert!(notes.contains("of 2 layers learnt"), "{notes}");
        round_nearest(&mut one).unwrap();
        assert!(loss(&one) < 0.8 * loss(&nearest), "{parallel}: {} {}", loss(&one), loss(&nearest));
        for &(x, w, b) in &triples {
            let scale = |m: &Model, q: QuantizerId| m.quantizers[q].params.clone().unwrap().scale;
            assert_ne!(scale(&one, x), scale(&m, x));
            assert_ne!(scale(&one, w), scale(&m, w));
            assert!(scale(&one, w).iter().all(|s| s.is_finite() && *s > 0.0));
            let product: Vec<f32> = scale(&one, w).iter().map(|s| s * scale(&one, x)[0]).collect();
            assert_eq!(scale(&one, b), product);
            let biases = |m: &Model| {
                let (node, _) = m.constant_sites().into_iter().find(|(_, q)| *q == b).unwrap();
                quant::dequantize(&m.codes[&Site::of(node)], &m.quantizers[b].scheme, m.quantizers[b].params.as_ref().unwrap()).unwrap()
            };
            // By more than another scale moves them.
            assert!(biases(&one).iter().zip(biases(&nearest)).any(|(a, b)| (a - b).abs() > 1e-3));
        }
    }
}

#[test]
fn scales_stay_that_are_powers_of_two_shared_or_barely_hold_a_bias() {
    let dir = tempfile::tempdir().unwrap();
    let data = samples(dir.path(), 64, false);
    let (_, m, triples) = open_model();
    let (x, w, b) = triples[1];
    let moved = |mut m: Model| {
        let before = m.clone();
        run(&mut m, &how(20, 1), &data, 64);
        [x, w].map(|q| m.quantizers[q].params != before.quantizers[q].params)
    };
    assert_eq!(moved(m.clone()), [true, true]);
    let mut two = m.clone();
    for q in [x, w] {
        two.quantizers[q].scheme.scale = ScaleKind::Pow2(DType::F32);
    }
    assert_eq!(moved(two), [false, false]);
    let mut shared = m.clone();
    let reader = shared.graph.nodes().find(|(_, n)| n.op == Op::FakeQuant && n.quantizer() == Some(x)).unwrap().0;
    let (v, y) = (shared.graph.node(reader).input(0), shared.graph.add_value("again"));
    let at = shared.graph.position(reader);
    shared.graph.insert_node(at, crate::graph::Node::fake_quant(x, "again"), &[v], &[Some(y)]);
    assert_eq!(moved(shared), [false, true]);
    let mut barely = m.clone();
    let scale = &mut barely.quantizers[b].params.as_mut().unwrap().scale;
    scale.iter_mut().for_each(|s| *s = 1e-9);
    assert_eq!(moved(barely), [false, false]);
}

#[test]
fn layers_that_held_out_samples_do_not_serve_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (_, m, _) = open_model();
    let data = samples(dir.path(), 32, true);
    let few = run(&mut m.clone(), &how(20, 1), &data, 7);
    assert!(few.contains("at least 8 samples, and gets 7"), "{few}");
    assert!(adaquant(&mut m.clone(), &how(20, 1), None, &Silent).unwrap_err().to_string().contains("--data"));
    // One step as long as this leaves every layer worse.
    let mut wide = m.clone();
    for q in wide.quantizers.ids().filter(|q| wide.quantizers[*q].scheme.format.bits() == 2).collect::<Vec<_>>() {
        wide.quantizers[q].scheme.format = quant::Format::Int { bits: 16, signed: true, narrow: false };
        let scale = &mut wide.quantizers[q].params.as_mut().unwrap().scale;
        scale.iter_mut().for_each(|s| *s /= 16384.0);
    }
    let mut learnt = wide.clone();
    let notes = run(&mut learnt, &how(1, 1), &data, 32);
    assert!(notes.contains("no others are better") && notes.contains("2 keep nearest codes"), "{notes}");
    assert!(learnt == wide);
}

#[test]
fn a_loss_beyond_all_numbers_ends_it_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let mut x = rows(COUNT * ROWS, 7);
    x[3 * ROWS * N] = 1e30;
    let data = open(dir.path(), &x, &[COUNT, ROWS, N]);
    let error = adaquant(&mut layer_of(4).0, &how(20, 1), Some((&data, &all(COUNT))), &Silent).unwrap_err().to_string();
    assert!(error.contains("matmul") && error.contains("not a finite number"), "{error}");
}
