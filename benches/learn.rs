//! Speed of forward and backward passes, one sample a pass, on one core: what reconstruction and tuning repeat thousands of times.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use requant::learn::{Tape, Var, Window};
use std::hint::black_box;
use std::sync::Arc;

/// Numbers between −1 and 1.
fn numbers(n: usize) -> Arc<Vec<f32>> {
    Arc::new((0..n).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0).collect())
}

/// A convolution's shape: channels in and out, groups, kernel, side of the (square) input, stride.
#[derive(Clone, Copy)]
struct Layer(usize, usize, usize, usize, usize, usize);

impl Layer {
    fn macs(self) -> u64 {
        let Layer(c, m, g, k, side, s) = self;
        (c / g * m * k * k * (side / s) * (side / s)) as u64
    }

    fn weight(self, tape: &mut Tape, values: &Arc<Vec<f32>>) -> Var {
        let Layer(c, m, g, k, ..) = self;
        tape.parameter(values.clone(), &[m, c / g, k, k])
    }

    fn record(self, tape: &mut Tape, x: Var, w: Var) -> Var {
        let Layer(_, _, g, k, _, s) = self;
        let pad = vec![k / 2; 2];
        tape.conv(x, w, None, &Window { strides: vec![s; 2], begin: pad.clone(), end: pad, ..Window::of(&[k, k]) }, g)
    }
}

/// Layers one after the other, each with a Relu behind it, and the input added at the end where shapes allow: gradients of input and all weights.
fn block(layers: &[Layer], x: &Arc<Vec<f32>>, weights: &[Arc<Vec<f32>>]) -> f32 {
    let mut tape = Tape::new();
    let Layer(c, _, _, _, side, _) = layers[0];
    let input = tape.parameter(x.clone(), &[1, c, side, side]);
    let vars: Vec<Var> = layers.iter().zip(weights).map(|(l, w)| l.weight(&mut tape, w)).collect();
    let mut y = input;
    for (layer, w) in layers.iter().zip(&vars) {
        y = layer.record(&mut tape, y, *w);
        y = tape.relu(y);
    }
    if tape.shape(y) == tape.shape(input) {
        y = tape.add(y, input);
    }
    let shape = tape.shape(y).to_vec();
    let zeros = tape.constant(vec![0.0; tape.value(y).len()], &shape);
    let loss = tape.mean_square(y, zeros);
    tape.backward(loss).of(input).map_or(0.0, |g| g[0])
}

fn convolutions(c: &mut Criterion) {
    let blocks: [(&str, Vec<Layer>); 4] = [
        ("resnet20-block-16x32x32", vec![Layer(16, 16, 1, 3, 32, 1); 2]),
        ("resnet20-block-64x8x8", vec![Layer(64, 64, 1, 3, 8, 1); 2]),
        ("resnet18-block-64x56x56", vec![Layer(64, 64, 1, 3, 56, 1); 2]),
        ("inverted-residual-24x56x56", vec![Layer(24, 144, 1, 1, 56, 1), Layer(144, 144, 144, 3, 56, 1), Layer(144, 24, 1, 1, 56, 1)]),
    ];
    let mut group = c.benchmark_group("learn");
    group.sample_size(20);
    for (name, layers) in blocks {
        let Layer(c, _, _, _, side, _) = layers[0];
        let x = numbers(c * side * side);
        let weights: Vec<Arc<Vec<f32>>> = layers.iter().map(|Layer(c, m, g, k, ..)| numbers(c / g * m * k * k)).collect();
        // Forward, and backward to input and weight.
        group.throughput(Throughput::Elements(3 * layers.iter().map(|l| l.macs()).sum::<u64>()));
        group.bench_function(name, |b| b.iter(|| block(black_box(&layers), &x, &weights)));
    }
    group.finish();
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
