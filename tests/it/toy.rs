//! Methods for weights side by side on one layer whose inputs go together and whose weights have heavy tails, in 4, 3 and 2 bits.

use requant::data::{DataSettings, Dataset, InputInfo, mix};
use requant::engine::Runner;
use requant::graph::{Dim, InputShapes, Linear, Model, Node, Op, Type};
use requant::note::Notes;
use requant::pass::Silent;
use requant::quant::{Blocks, Scheme, Zero};
use requant::range::{Calibrate, Clip, Method, Weights, calibrate};
use requant::round::{Gptq, gptq, hqq, k_quant, round_nearest};
use requant::tensor::{DType, Tensor};
use requant::transform::{Awq, awq};
use std::collections::BTreeMap;

/// Inputs, outputs, weights that share a scale, rows of a sample.
const K: usize = 256;
const N: usize = 128;
const BLOCK: usize = 64;
const ROWS: usize = 64;

/// Numbers near a normal distribution, of chance.
fn normal(n: usize, seed: u64) -> Vec<f64> {
    let u = |i: usize| (mix(seed ^ mix(i as u64)) >> 11) as f64 / (1u64 << 53) as f64;
    (0..n).map(|i| (-2.0 * (1.0 - u(2 * i)).ln()).sqrt() * (std::f64::consts::TAU * u(2 * i + 1)).cos()).collect()
}

/// Rows of inputs: of decaying energies along directions of chance, and six of them loud.
fn inputs(rows: usize, seed: u64) -> Vec<f32> {
    let mut u = normal(K * K, 1);
    for i in 0..K {
        for j in 0..i {
            let dot: f64 = (0..K).map(|k| u[i * K + k] * u[j * K + k]).sum();
            (0..K).for_each(|k| u[i * K + k] -= dot * u[j * K + k]);
        }
        let length = (0..K).map(|k| u[i * K + k].powi(2)).sum::<f64>().sqrt();
        (0..K).for_each(|k| u[i * K + k] /= length);
    }
    let root: Vec<f64> = (0..K).map(|i| ((-(i as f64) / 32.0).exp() + 0.01).sqrt()).collect();
    let loud = BTreeMap::from([(7, 20.0), (50, 15.0), (99, 10.0), (130, 30.0), (177, 12.0), (240, 8.0)]);
    let g = normal(rows * K, seed);
    let mut x = Vec::with_capacity(rows * K);
    for g in g.chunks_exact(K) {
        let mut row = vec![0f64; K];
        for i in 0..K {
            row.iter_mut().zip(&u[i * K..]).for_each(|(x, u)| *x += g[i] * root[i] * u);
        }
        x.extend(row.iter().enumerate().map(|(k, x)| (x * loud.get(&k).copied().unwrap_or(1.0)) as f32));
    }
    x
}

/// x → Mul by ones → MatMul → y, of weights by Student's distribution with five degrees of freedom.
fn layer() -> Model {
    let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut m.graph;
    let [x, h, y] = [("x", K), ("h", K), ("y", N)].map(|(name, n)| {
        let v = g.add_value(name);
        g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(ROWS), Dim::Known(n)]) };
        v
    });
    let (z, chi) = (normal(K * N, 2), normal(5 * K * N, 3));
    let w = z.iter().zip(chi.chunks_exact(5)).map(|(z, c)| (0.02 * z / (c.iter().map(|c| c * c).sum::<f64>() / 5.0).sqrt()) as f32).collect();
    let ones = g.add_constant("ones", Tensor::of_f32(&[K], vec![1.0; K]));
    let w = g.add_constant("w", Tensor::of_f32(&[K, N], w));
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    g.add_node(Node::new(Op::Mul, "scale"), &[Some(x), Some(ones)], &[Some(h)]);
    g.add_node(Node::new(Op::MatMul, "layer"), &[Some(h), Some(w)], &[Some(y)]);
    m
}

fn answer(m: &Model, x: &[f32]) -> Vec<f32> {
    let shape = [1, ROWS, K];
    let runner = Runner::new(m, &InputShapes::from([("x".to_string(), shape.to_vec())]), &m.graph.outputs).unwrap();
    let one = |x: &[f32]| {
        let given = BTreeMap::from([("x".to_string(), Tensor::of_f32(&shape, x.to_vec()))]);
        runner.run(&mut runner.spawn(), &given, &m.quantizers).unwrap()[0].to_f32().unwrap().into_owned()
    };
    x.chunks_exact(ROWS * K).flat_map(one).collect()
}

struct Toy {
    float: Model,
    data: Dataset,
    samples: Vec<usize>,
    held: Vec<f32>,
    _folder: tempfile::TempDir,
}

impl Toy {
    fn new() -> Toy {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {ROWS}, {K}), }}\n", 2048 / ROWS);
        let mut bytes = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
        bytes.extend(inputs(2048, 4).iter().flat_map(|v| v.to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, ROWS, K].map(Dim::Known).to_vec()) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &DataSettings::default()).unwrap();
        Toy { float: layer(), data, samples: (0..2048 / ROWS).collect(), held: inputs(1024, 5), _folder: folder }
    }

    /// Relative error of the layer's output on other inputs, behind AWQ's scales, ranges and codes as said.
    fn error(&self, bits: u8, scales: bool, zero: Zero, weights: Weights, round: impl Fn(&mut Model, (&Dataset, &[usize])) -> Notes) -> f64 {
        let mut m = self.float.clone();
        let scheme = Scheme { blocks: Blocks::block(0, BLOCK), zero, ..Scheme::int(bits, false) };
        let data = (&self.data, &self.samples[..]);
        if scales {
            awq(&mut m, &Awq { scheme: scheme.clone(), grid: 20, samples: 64, threads: 1 }, Some(data)).unwrap();
        }
        let q = m.quantizers.add("w", scheme);
        let (id, _) = m.graph.nodes().find(|(_, n)| n.name == "layer").unwrap();
        let (weight, wq) = (Linear::of(&m.graph, id).unwrap().weight, m.graph.add_value("wq"));
        m.graph.add_node(Node::fake_quant(q, "fake"), &[Some(weight)], &[Some(wq)]);
        m.graph.set_input(id, 1, Some(wq));
        let how = Calibrate { activations: Method::MinMax, weights, outliers: None, unsigned: false, shifts: &[], threads: 1 };
        calibrate(&mut m, &how, Some(data), None, None, &Silent).unwrap();
        round(&mut m, data);
        round_nearest(&mut m).unwrap();
        let (want, got) = (answer(&self.float, &self.held), answer(&m, &self.held));
        let square = |x: f32| (x as f64).powi(2);
        want.iter().zip(&got).map(|(a, b)| square(a - b)).sum::<f64>() / want.iter().map(|a| square(*a)).sum::<f64>()
    }
}

#[test]
fn methods_lose_less_than_nearest_codes_in_the_order_that_they_should() {
    let toy = Toy::new();
    let clip = Weights::Clip(Clip { shrink: 0.5, grid: 20, samples: 64 });
    let by_gptq = |m: &mut Model, data: (&Dataset, &[usize])| {
        gptq(m, &Gptq { damping: None, samples: 64, work: 1e12, memory: 1 << 30, threads: 1 }, Some(data), None, &Silent).unwrap()
    };
    let none = |_: &mut Model, _: (&Dataset, &[usize])| Notes::of("round");
    for bits in [4, 3, 2] {
        let plain = |weights| toy.error(bits, false, Zero::Integer, weights, none);
        let (nearest, mse, clipped) = (plain(Weights::MinMax), plain(Weights::Mse), plain(clip));
        let real = toy.error(bits, false, Zero::Real, Weights::MinMax, none);
        let hqq = toy.error(bits, false, Zero::Real, Weights::MinMax, |m, _| hqq(m).unwrap());
        let k_quant = toy.error(bits, false, Zero::Real, Weights::MinMax, |m, _| k_quant(m).unwrap());
        let scaled = toy.error(bits, true, Zero::Integer, Weights::MinMax, none);
        let awq = toy.error(bits, true, Zero::Integer, clip, none);
        let gptq = toy.error(bits, false, Zero::Integer, Weights::MinMax, by_gptq);
        let both = toy.error(bits, true, Zero::Integer, Weights::MinMax, by_gptq);
        let all = format!(
            "{bits} bits: nearest {nearest:.2e}, mse {mse:.2e}, clip {clipped:.2e}; real zero points {real:.2e}, hqq {hqq:.2e}, k-quant {k_quant:.2e}; \
             awq's scales {scaled:.2e}, and clip {awq:.2e}; gptq {gptq:.2e}, behind awq's scales {both:.2e}"
        );
        assert!(mse < 0.95 * nearest && clipped < 0.95 * mse, "{all}");
        assert!(hqq < 0.95 * real && k_quant < 0.95 * hqq, "{all}");
        assert!(scaled < 0.3 * nearest && awq < 0.92 * scaled, "{all}");
        assert!(gptq < 0.3 * nearest && both < 0.5 * gptq, "{all}");
        // Few codes leave most to find in the range.
        assert!(bits > 2 || mse < 0.6 * nearest && clipped < 0.5 * nearest && k_quant < 0.75 * real, "{all}");
    }
}
