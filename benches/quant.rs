//! Speed of the quantizer's arithmetic on 64 Mi numbers, beside copying them. One core. The last lines say how many copies a fake quantization in place costs.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use requant::quant::{Blocks, Format, Rounding, ScaleKind, Scheme, Specials, Zero, dequantize, fake_quantize, fit, quantize};
use requant::tensor::DType;
use std::hint::black_box;
use std::time::Instant;

const SHAPE: [usize; 2] = [16 << 10, 4 << 10];

fn schemes() -> Vec<(&'static str, Scheme)> {
    let float = |exponent, mantissa, specials| Scheme { format: Format::Float { exponent, mantissa, specials }, ..Scheme::int(8, true) };
    let mxfp4 = Scheme { scale: ScaleKind::Pow2(DType::F8E8M0), blocks: Blocks::block(1, 32), ..float(2, 1, Specials::None) };
    let nvfp4 = Scheme { scale: ScaleKind::Nested(Box::new(float(4, 3, Specials::Fn))), blocks: Blocks::block(1, 16), ..float(2, 1, Specials::None) };
    vec![
        ("int8-tensor", Scheme::int(8, true)),
        ("uint8-tensor", Scheme::int(8, false)),
        ("int8-channel-first", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) }),
        ("int8-channel-last", Scheme { blocks: Blocks::channel(1), ..Scheme::int(8, true) }),
        ("int4-block32-last", Scheme { blocks: Blocks::block(1, 32), ..Scheme::int(4, true) }),
        ("uint4-block32-first", Scheme { blocks: Blocks::block(0, 32), ..Scheme::int(4, false) }),
        ("uint4-block32-real-zero", Scheme { blocks: Blocks::block(1, 32), zero: Zero::Real, ..Scheme::int(4, false) }),
        ("int16-half-up", Scheme { rounding: Rounding::HalfUp, ..Scheme::int(16, true) }),
        ("float8e4m3fn-tensor", float(4, 3, Specials::Fn)),
        ("mxfp4", mxfp4),
        ("nvfp4", nvfp4),
    ]
}

/// Uniform in −1…1.
fn numbers() -> Vec<f32> {
    let mut seed = 1u32;
    let mut uniform = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..SHAPE.iter().product::<usize>()).map(|_| uniform()).collect()
}

/// Seconds of the fastest of several runs.
fn fastest(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..15).map(time).fold(f64::INFINITY, f64::min)
}

fn beside_a_copy(_: &mut Criterion) {
    let x = numbers();
    let mut y = x.clone();
    let copy = fastest(|| y.copy_from_slice(black_box(&x)));
    println!("a copy of {} numbers: {:.1} ms", x.len(), copy * 1e3);
    for (name, scheme) in schemes() {
        let params = fit(&x, &SHAPE, &scheme).expect("finite numbers");
        let fake = fastest(|| fake_quantize(black_box(&mut y), &SHAPE, &scheme, Some(&params)).expect("what was fitted to it"));
        println!("{name}: {:.1} ms, {:.2} copies", fake * 1e3, fake / copy);
    }
}

fn arithmetic(c: &mut Criterion) {
    let x = numbers();
    let mut y = x.clone();
    let mut group = c.benchmark_group("quant");
    group.sample_size(10).throughput(Throughput::Elements(x.len() as u64));
    group.bench_function("copy", |b| b.iter(|| y.copy_from_slice(black_box(&x))));
    for (name, scheme) in schemes() {
        let params = fit(&x, &SHAPE, &scheme).expect("finite numbers");
        let codes = quantize(&x, &SHAPE, &scheme, &params).expect("a format that ONNX has");
        group.bench_function(format!("{name}/fit"), |b| b.iter(|| fit(black_box(&x), &SHAPE, &scheme)));
        group.bench_function(format!("{name}/fake-quantize"), |b| b.iter(|| fake_quantize(black_box(&mut y), &SHAPE, &scheme, Some(&params))));
        group.bench_function(format!("{name}/quantize"), |b| b.iter(|| quantize(black_box(&x), &SHAPE, &scheme, &params)));
        group.bench_function(format!("{name}/dequantize"), |b| b.iter(|| dequantize(black_box(&codes), &scheme, &params)));
    }
    group.finish();
}

criterion_group!(benches, arithmetic, beside_a_copy);
criterion_main!(benches);
