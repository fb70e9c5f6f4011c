//! Every operation's gradient against central differences of its own value.

use super::*;
use crate::quant::{Blocks, Curve, Format, Origin, Params, Scheme, Specials, Zeros};

/// Numbers of a fixed sequence between −1 and 1.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / 8_388_608.0 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], lo: f32, hi: f32) -> (Vec<f32>, Vec<usize>) {
        let n = shape.iter().product();
        ((0..n).map(|_| lo + (hi - lo) * (0.5 * self.next() + 0.5)).collect(), shape.to_vec())
    }
}

type Operand = (Vec<f32>, Vec<usize>);

/// Compares the gradients of `Σ r · f(x)`, for fixed random `r`, with respect to every element of every operand, with central differences.
fn check(what: &str, operands: &[Operand], f: impl Fn(&mut Tape, &[Var]) -> Var) {
    let record = |operands: &[Operand]| {
        let mut tape = Tape::new();
        let vars: Vec<Var> = operands.iter().map(|(x, s)| tape.parameter(x.clone(), s)).collect();
        let y = f(&mut tape, &vars);
        (tape, vars, y)
    };
    let (tape, vars, y) = record(operands);
    let mut numbers = Numbers(99);
    let weights: Vec<f32> = tape.value(y).iter().map(|_| numbers.next()).collect();
    let loss = |operands: &[Operand]| -> f64 {
        let (tape, _, y) = record(operands);
        tape.value(y).iter().zip(&weights).map(|(y, w)| *y as f64 * *w as f64).sum()
    };
    let mut grads = tape.backward_from(vec![(y, weights.clone())]);
    const STEP: f32 = 4e-3;
    for (i, (x, shape)) in operands.iter().enumerate() {
        let grad = grads.take(vars[i], x.len());
        let largest = grad.iter().fold(1.0f32, |a, g| a.max(g.abs()));
        for (k, found) in grad.iter().enumerate() {
            let moved = |by: f32| {
                let mut all = operands.to_vec();
                all[i].0[k] += by;
                (loss(&all), all[i].0[k] as f64)
            };
            let ((up, a), (down, b)) = (moved(STEP), moved(-STEP));
            let slope = ((up - down) / (a - b)) as f32;
            let error = (slope - found).abs() / largest;
            assert!(error < 1e-3, "{what}: operand {i} {shape:?} element {k}: {found} by the tape, {slope} by differences");
        }
    }
}

fn unary(what: &str, lo: f32, hi: f32, f: impl Fn(&mut Tape, Var) -> Var) {
    check(what, &[Numbers(7).tensor(&[3, 7], lo, hi)], |t, v| f(t, v[0]));
}

#[test]
fn functions_of_one_element() {
    unary("relu", 0.1, 1.0, |t, x| t.relu(x));
    unary("relu below", -1.0, -0.1, |t, x| t.relu(x));
    unary("clip", -0.4, 0.4, |t, x| t.clip(x, -0.5, 0.5));
    unary("clip above", 0.6, 1.0, |t, x| t.clip(x, -0.5, 0.5));
    unary("sigmoid", -3.0, 3.0, |t, x| t.sigmoid(x));
    unary("tanh", -2.0, 2.0, |t, x| t.tanh(x));
    unary("exp", -2.0, 1.0, |t, x| t.exp(x));
    unary("log", 0.5, 3.0, |t, x| t.log(x));
    unary("sqrt", 0.5, 3.0, |t, x| t.sqrt(x));
    unary("erf", -3.0, 3.0, |t, x| t.erf(x));
    unary("abs", -2.0, -0.1, |t, x| t.abs(x));
    unary("neg", -2.0, 2.0, |t, x| t.neg(x));
    unary("reciprocal", 0.7, 2.0, |t, x| t.reciprocal(x));
    unary("sin", -2.0, 2.0, |t, x| t.sin(x));
    unary("cos", -2.0, 2.0, |t, x| t.cos(x));
    unary("softplus", -3.0, 3.0, |t, x| t.softplus(x));
    unary("leaky relu", -2.0, -0.1, |t, x| t.leaky_relu(x, 0.1));
    unary("elu", -2.0, -0.1, |t, x| t.elu(x, 1.5, 1.2));
    unary("elu above", 0.1, 1.0, |t, x| t.elu(x, 1.5, 1.2));
    unary("hard sigmoid", -2.0, 2.0, |t, x| t.hard_sigmoid(x, 0.2, 0.5));
    unary("hard swish", -2.9, 2.9, |t, x| t.hard_swish(x));
    unary("hard swish above", 3.1, 4.0, |t, x| t.hard_swish(x));
    unary("swish", -3.0, 3.0, |t, x| t.swish(x, 1.3));
    unary("gelu", -3.0, 3.0, |t, x| t.gelu(x));
    unary("gelu by tanh", -3.0, 3.0, |t, x| t.gelu_tanh(x));
    unary("scale", -3.0, 3.0, |t, x| t.scale(x, -2.0, 1.0));
}

#[test]
fn functions_of_two_elements_under_broadcasting() {
    let shapes: [(&[usize], &[usize]); 7] =
        [(&[3, 4], &[3, 4]), (&[2, 3, 4], &[4]), (&[2, 3, 2, 2], &[3, 1, 1]), (&[3, 1], &[1, 4]), (&[], &[2, 2]), (&[2, 1, 3], &[2, 4, 1]), (&[1], &[])];
    let mut n = Numbers(3);
    for (a, b) in shapes {
        for (a, b) in [(a, b), (b, a)] {
            let pair = [n.tensor(a, -2.0, 2.0), n.tensor(b, 0.5, 2.0)];
            check("add", &pair, |t, v| t.add(v[0], v[1]));
            check("sub", &pair, |t, v| t.sub(v[0], v[1]));
            check("mul", &pair, |t, v| t.mul(v[0], v[1]));
            check("div", &pair, |t, v| t.div(v[0], v[1]));
            check("prelu", &[n.tensor(a, -2.0, -0.1), n.tensor(b, 0.5, 2.0)], |t, v| t.prelu(v[0], v[1]));
            check("pow", &[n.tensor(a, 0.5, 2.0), n.tensor(b, -1.0, 2.0)], |t, v| t.pow(v[0], v[1]));
            check("max", &[n.tensor(a, 0.0, 0.4), n.tensor(b, 0.5, 1.0)], |t, v| t.max(v[0], v[1]));
            check("min", &[n.tensor(a, 0.0, 0.4), n.tensor(b, 0.5, 1.0)], |t, v| t.min(v[0], v[1]));
            check("choose", &pair, |t, v| {
                let condition = t.constant(vec![1.0, 0.0, 1.0, 1.0], &[4, 1, 1, 1, 1]);
                t.choose(condition, v[0], v[1])
            });
        }
    }
    check("an operand twice", &[n.tensor(&[5], 0.5, 2.0)], |t, v| t.mul(v[0], v[0]));
    check("squares of negative numbers", &[n.tensor(&[5], -2.0, -0.5)], |t, v| {
        let two = t.constant(vec![2.0], &[]);
        t.pow(v[0], two)
    });
}

#[test]
fn convolutions_with_groups_strides_dilations_and_pads_of_every_side() {
    let mut n = Numbers(11);
    // (image, maps, kernel, groups, strides, dilations, begin, end)
    type Case = (&'static [usize], usize, &'static [usize], usize, &'static [usize], &'static [usize], &'static [usize], &'static [usize]);
    let cases: [Case; 13] = [
        (&[2, 3, 9], 2, &[3, 3], 2, &[1, 1], &[1, 1], &[1, 1], &[1, 1]),
        (&[2, 2, 12], 4, &[2, 3], 2, &[1, 1], &[1, 2], &[0, 3], &[1, 1]),
        (&[3, 5, 4], 4, &[3, 3], 1, &[1, 1], &[1, 1], &[1, 1], &[1, 1]),
        (&[2, 6, 5], 2, &[3, 2], 1, &[2, 1], &[1, 2], &[0, 2], &[1, 0]),
        (&[4, 5, 5], 6, &[2, 3], 2, &[1, 2], &[2, 1], &[2, 0], &[0, 1]),
        (&[4, 6, 6], 4, &[3, 3], 4, &[2, 2], &[1, 1], &[1, 0], &[1, 1]),
        (&[3, 5, 5], 6, &[3, 3], 3, &[1, 1], &[2, 2], &[2, 2], &[2, 2]),
        (&[4, 3, 3], 5, &[1, 1], 1, &[1, 1], &[1, 1], &[0, 0], &[0, 0]),
        (&[4, 5, 5], 2, &[1, 1], 2, &[2, 2], &[1, 1], &[0, 0], &[0, 0]),
        (&[3, 9], 2, &[4], 1, &[2], &[1], &[3], &[0]),
        (&[2, 3, 4, 3], 2, &[2, 2, 2], 1, &[1, 2, 1], &[1, 1, 1], &[0, 1, 1], &[1, 0, 0]),
        (&[2, 3, 4, 3], 2, &[2, 2, 2], 2, &[1, 2, 1], &[1, 1, 2], &[0, 1, 1], &[1, 0, 0]),
        (&[2, 7, 6], 2, &[3, 2], 2, &[2, 3], &[3, 2], &[2, 1], &[1, 3]),
    ];
    for (image, maps, kernel, groups, strides, dilations, begin, end) in cases {
        let window = Window { kernel: kernel.to_vec(), strides: strides.to_vec(), dilations: dilations.to_vec(), begin: begin.to_vec(), end: end.to_vec() };
        let what = format!("{image:?} {maps} {window:?} {groups}");
        let shape = |first: usize, second: usize, rest: &[usize]| [&[first, second], rest].concat();
        let x = n.tensor(&shape(2, image[0], &image[1..]), -1.0, 1.0);
        let w = n.tensor(&shape(maps, image[0] / groups, kernel), -1.0, 1.0);
        check(&format!("conv {what}"), &[x.clone(), w.clone(), n.tensor(&[maps], -1.0, 1.0)], |t, v| t.conv(v[0], v[1], Some(v[2]), &window, groups));
        // By definition: each position is the sum over channels and taps.
        let mut tape = Tape::new();
        let vars = [&x, &w].map(|(x, s)| tape.constant(x.clone(), s));
        let y = tape.conv(vars[0], vars[1], None, &window, groups);
        let to = window.positions(&image[1..]);
        assert_eq!(tape.shape(y), shape(2, maps, &to));
        let unravel = |mut i: usize, s: &[usize]| {
            let mut index = vec![0; s.len()];
            s.iter().enumerate().rev().for_each(|(d, n)| (index[d], i) = (i % n, i / n));
            index
        };
        for (i, got) in tape.value(y).iter().enumerate() {
            let at = unravel(i, tape.shape(y));
            let mut sum = 0.0;
            for (k, weight) in w.0.iter().enumerate().filter(|(k, _)| unravel(*k, &w.1)[0] == at[1]) {
                let tap = unravel(k, &w.1);
                let channel = at[1] / (maps / groups) * (image[0] / groups) + tap[1];
                let place: Option<Vec<usize>> = (0..kernel.len())
                    .map(|d| (at[d + 2] * strides[d] + tap[d + 2] * dilations[d]).checked_sub(begin[d]).filter(|p| *p < image[d + 1]))
                    .collect();
                let Some(place) = place else { continue };
                let flat = place.iter().zip(&image[1..]).fold(at[0] * image[0] + channel, |f, (p, n)| f * n + p);
                sum += x.0[flat] * weight;
            }
            assert!((sum - got).abs() < 1e-5, "{what} {at:?}: {got} {sum}");
        }
        // The transpose goes back to the image.
        let map = n.tensor(&shape(2, maps, &to), -1.0, 1.0);
        check(&format!("transposed {what}"), &[map, w, n.tensor(&[image[0]], -1.0, 1.0)], |t, v| {
            t.conv_transpose(v[0], v[1], Some(v[2]), &window, groups, &image[1..])
        });
    }
}

/// A convolution is linear in the image and in the weight: `⟨g, y⟩ = ⟨∂x, x⟩ = ⟨∂w, w⟩` on images of more than one piece of any loop.
#[test]
fn large_depthwise_convolutions_pass_back_what_they_are() {
    for (kernel, stride, dilation) in [(3, 1, 1), (5, 1, 1), (5, 2, 1), (3, 2, 3)] {
        let mut n = Numbers(5);
        let pads = vec![kernel / 2; 2];
        let window = Window { strides: vec![stride; 2], dilations: vec![dilation; 2], begin: pads.clone(), end: pads, ..Window::of(&[kernel, kernel]) };
        let (x, w) = (n.tensor(&[1, 3, 90, 71], -1.0, 1.0), n.tensor(&[3, 1, kernel, kernel], -1.0, 1.0));
        let mut tape = Tape::new();
        let vars = [&x, &w].map(|(v, s)| tape.parameter(v.clone(), s));
        let y = tape.conv(vars[0], vars[1], None, &window, 3);
        // The same with the channels as groups of two of which one is empty: by products of patches.
        let wide: Vec<f32> = x.0.chunks(90 * 71).flat_map(|c| [c, &vec![0.0; c.len()][..]].concat()).collect();
        let twice: Vec<f32> = w.0.chunks(kernel * kernel).flat_map(|c| [c, c].concat()).collect();
        let wide = [tape.constant(wide, &[1, 6, 90, 71]), tape.constant(twice, &[3, 2, kernel, kernel])];
        let same = tape.conv(wide[0], wide[1], None, &window, 3);
        assert!(tape.value(y).iter().zip(tape.value(same)).all(|(a, b)| (a - b).abs() < 1e-5), "{kernel} {stride} {dilation}");
        let g = n.tensor(tape.shape(y), -1.0, 1.0).0;
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
        let whole = product(&g, tape.value(y));
        let grads = tape.backward_from(vec![(y, g)]);
        for (v, (values, _)) in vars.iter().zip([&x, &w]) {
            let back = product(grads.of(*v).unwrap(), values);
            assert!((back - whole).abs() < 1e-4 * (1.0 + whole.abs()), "{kernel} {stride} {dilation}: {back} {whole}");
        }
    }
}

#[test]
fn products_of_matrices() {
    let mut n = Numbers(5);
    let shapes: [(&[usize], &[usize]); 8] = [
        (&[2, 3], &[3, 4]),
        (&[2, 2, 3], &[3, 4]),
        (&[2, 2, 3], &[2, 3, 2]),
        (&[3, 1, 2, 3], &[2, 3, 2]),
        (&[2, 3], &[2, 3, 2]),
        (&[3], &[3, 2]),
        (&[2, 2, 3], &[3]),
        (&[3], &[3]),
    ];
    for (a, b) in shapes {
        check(&format!("{a:?} · {b:?}"), &[n.tensor(a, -1.0, 1.0), n.tensor(b, -1.0, 1.0)], |t, v| t.matmul(v[0], v[1]));
    }
    for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
        let a = n.tensor(if ta { &[3, 2] } else { &[2, 3] }, -1.0, 1.0);
        let b = n.tensor(if tb { &[4, 3] } else { &[3, 4] }, -1.0, 1.0);
        check(&format!("product {ta} {tb}"), &[a, b], |t, v| t.product(v[0], ta, v[1], tb));
    }
}

#[test]
fn normalisation() {
    let x = Numbers(13).tensor(&[2, 3, 4], -2.0, 2.0);
    for axis in 0..3 {
        check("softmax", std::slice::from_ref(&x), |t, v| t.softmax(v[0], axis));
        check("log softmax", std::slice::from_ref(&x), |t, v| t.log_softmax(v[0], axis));
    }
    for length in [4, 12] {
        check("layer norm", std::slice::from_ref(&x), |t, v| t.normalize(v[0], length, 1e-5, false));
        check("rms norm", std::slice::from_ref(&x), |t, v| t.normalize(v[0], length, 1e-5, true));
    }
}

#[test]
fn pools_and_reductions() {
    let mut n = Numbers(17);
    // No two elements of a window so close that a step changes which is larger.
    let mut order: Vec<usize> = (0..2 * 2 * 5 * 6).collect();
    order.sort_by_key(|i| i * 7919 % 1009);
    let spread = (order.iter().map(|i| *i as f32 * 0.02).collect::<Vec<f32>>(), vec![2, 2, 5, 6]);
    // (kernel, strides, dilations, begin, end, positions): the last two as ceil_mode makes them.
    let windows = [
        ([2, 3], [2, 1], [1, 1], [0, 1], [1, 1]),
        ([3, 3], [2, 2], [1, 1], [1, 1], [1, 1]),
        ([2, 2], [1, 2], [2, 2], [1, 0], [0, 1]),
        ([3, 2], [2, 4], [1, 1], [0, 0], [2, 1]),
    ];
    for (kernel, strides, dilations, begin, end) in windows {
        let window = Window { kernel: kernel.into(), strides: strides.into(), dilations: dilations.into(), begin: begin.into(), end: end.into() };
        let to = window.positions(&[5, 6]);
        check("max pool", std::slice::from_ref(&spread), |t, v| t.max_pool(v[0], &window, &to));
        for padded in [false, true] {
            check("average pool", std::slice::from_ref(&spread), |t, v| t.average_pool(v[0], &window, &to, padded));
        }
    }
    // A window that ends behind the declared padding (ceil_mode) divides by what is there.
    let mut t = Tape::new();
    let x = t.constant(vec![1.0, 2.0, 3.0, 4.0, 5.0], &[1, 1, 5]);
    let window = Window { strides: vec![2], ..Window::of(&[2]) };
    let y = t.average_pool(x, &window, &[3], true);
    assert_eq!(t.value(y), [1.5, 3.5, 5.0]);
    for axes in [&[0][..], &[2], &[1, 3], &[0, 1, 2, 3], &[2, 3]] {
        check("sum", std::slice::from_ref(&spread), |t, v| t.sum_over(v[0], axes));
        check("mean", std::slice::from_ref(&spread), |t, v| t.mean_over(v[0], axes));
        check("max", std::slice::from_ref(&spread), |t, v| t.max_over(v[0], axes));
    }
    check("sum of all", &[n.tensor(&[3, 2], -1.0, 1.0)], |t, v| t.sum(v[0]));
}

#[test]
fn rearrangements_and_interpolation() {
    let mut n = Numbers(19);
    let x = n.tensor(&[2, 3, 4], -1.0, 1.0);
    check("reshape", std::slice::from_ref(&x), |t, v| t.reshape(v[0], &[6, 4]));
    check("transpose", std::slice::from_ref(&x), |t, v| t.transpose(v[0], &[2, 0, 1]));
    check("pick", std::slice::from_ref(&x), |t, v| t.pick(v[0], vec![3, 3, FILLED, 0], &[2, 2], 7.0));
    check("rows", std::slice::from_ref(&x), |t, v| {
        let rows = t.constant(vec![1.0, -1.0, 0.0], &[3]);
        t.gather_rows(v[0], rows).unwrap()
    });
    for axis in 0..3 {
        let mut other = x.1.clone();
        other[axis] = 2;
        check("concat", &[x.clone(), n.tensor(&other, -1.0, 1.0)], |t, v| t.concat(&[v[0], v[1], v[0]], axis));
        let taps = vec![vec![(0, 1.0)], vec![(0, 0.25), (1, 0.75)], vec![(1, 1.0)]];
        check("blend", std::slice::from_ref(&x), |t, v| t.blend(v[0], axis, &taps));
    }
    let mut t = Tape::new();
    let x = t.constant((0..6).map(|i| i as f32).collect::<Vec<f32>>(), &[2, 3]);
    let y = t.transpose(x, &[1, 0]);
    assert_eq!((t.shape(y), t.value(y)), (&[3, 2][..], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0][..]));
    let outside = t.constant(vec![2.0], &[1]);
    assert!(t.gather_rows(x, outside).is_none());
}

#[test]
fn losses() {
    let mut n = Numbers(23);
    let pair = [n.tensor(&[3, 4], -2.0, 2.0), n.tensor(&[3, 4], -2.0, 2.0)];
    check("mean square", &pair, |t, v| t.mean_square(v[0], v[1]));
    check("divergence", &pair[..1], |t, v| {
        let reference = t.constant(pair[1].0.clone(), &[3, 4]);
        t.kl_divergence(v[0], reference)
    });
    // p = (1/2, 1/2), q = (1/4, 3/4).
    let mut t = Tape::new();
    let (q, p) = (t.constant(vec![0.0, 3f32.ln()], &[1, 2]), t.constant(vec![0.0, 0.0], &[1, 2]));
    let kl = t.kl_divergence(q, p);
    assert!((t.scalar(kl) - (0.5 * 2f32.ln() + 0.5 * (2f32 / 3.0).ln())).abs() < 1e-6);
}

fn params(scale: Vec<f32>, zero: Zeros) -> Params {
    Params { scale, nested: None, zero, curve: Curve::Linear, origin: Origin::Fitted }
}

/// The straight-through gradients, worked by hand: int4 at scale 0.5 and zero 1 holds −4.5 … 3.
#[test]
fn fake_quantization_passes_through_within_and_learns_its_steps_outside() {
    let scheme = Scheme::int(4, true);
    let mut t = Tape::new();
    let x = t.parameter(vec![0.6, -4.4, 3.2, -9.0], &[4]);
    let (scale, zero) = (t.parameter(vec![0.5], &[1]), t.parameter(vec![1.2], &[1]));
    let y = t.fake_quant(x, scale, Some(zero), &scheme, &params(vec![1.0], Zeros::Integer(vec![0]))).unwrap();
    assert_eq!(t.value(y), [0.5, -4.5, 3.0, -4.5]);
    let grads = t.backward_from(vec![(y, vec![1.0, 10.0, 100.0, 1000.0])]);
    assert_eq!(grads.of(x).unwrap(), [1.0, 10.0, 0.0, 0.0]);
    // (x̂ − x) / s within: −0.2, −0.2; the codes' ends less the zero point outside: 6, −9.
    let by_scale = -0.2 - 0.2 * 10.0 + 6.0 * 100.0 - 9.0 * 1000.0;
    assert!((grads.of(scale).unwrap()[0] - by_scale).abs() < 1e-2, "{:?} {by_scale}", grads.of(scale));
    assert_eq!(grads.of(zero).unwrap(), [-0.5 * 1100.0]);
}

/// Where nothing is rounded to another code, the gradient by scale and zero point is that of the function itself outside the range.
#[test]
fn gradients_of_scales_outside_the_range_are_those_of_differences() {
    let mut n = Numbers(29);
    let blocks = Scheme { blocks: Blocks::block(1, 2), ..Scheme::int(4, false) };
    let all_out = |lo: f32, hi: f32, n: &mut Numbers| n.tensor(&[3, 5], lo, hi);
    for (lo, hi) in [(9.0, 12.0), (-12.0, -9.0)] {
        let x = all_out(lo, hi, &mut n);
        let scale = n.tensor(&[9], 0.2, 0.5);
        check("blocks", &[scale], |t, v| {
            let xs = t.constant(x.0.clone(), &x.1);
            let zero = t.constant(vec![3.0], &[1]);
            t.fake_quant(xs, v[0], Some(zero), &blocks, &params(vec![1.0], Zeros::Integer(vec![0]))).unwrap()
        });
        let real = Scheme { zero: crate::quant::Zero::Real, ..blocks.clone() };
        check("real zero points", &[n.tensor(&[9], 0.2, 0.5), n.tensor(&[9], 2.0, 6.0)], |t, v| {
            let xs = t.constant(x.0.clone(), &x.1);
            t.fake_quant(xs, v[0], Some(v[1]), &real, &params(vec![1.0], Zeros::Real(vec![0.0]))).unwrap()
        });
        let float = Scheme { format: Format::Float { exponent: 2, mantissa: 1, specials: Specials::None }, ..Scheme::int(4, true) };
        check("floats", &[n.tensor(&[1], 0.2, 0.5)], |t, v| {
            let xs = t.constant(x.0.clone(), &x.1);
            t.fake_quant(xs, v[0], None, &float, &params(vec![1.0], Zeros::None)).unwrap()
        });
    }
}

#[test]
fn gradients_stop_where_no_parameter_lies_behind_and_stay_where_they_are_kept() {
    let mut t = Tape::new();
    let (a, b) = (t.constant(vec![1.0, 2.0], &[2]), t.parameter(vec![3.0, 4.0], &[2]));
    let c = t.add(a, a);
    t.keep(c);
    let d = t.mul(c, b);
    let e = t.exp(a);
    let f = t.mul(d, e);
    t.keep(f);
    let loss = t.sum(f);
    let grads = t.backward(loss);
    assert!(grads.of(a).is_none() && grads.of(d).is_none() && grads.of(e).is_none());
    assert_eq!(grads.of(c).unwrap()[0], 3.0 * 1f32.exp());
    assert_eq!(grads.of(b).unwrap()[1], 4.0 * 2f32.exp());
    assert_eq!(grads.of(f).unwrap(), [1.0, 1.0]);
}

#[test]
fn batches_add_up_in_order_on_any_number_of_threads() {
    let run = |i: usize| {
        let x = 0.1 + i as f32 * 0.37;
        Ok((x as f64, vec![vec![x, x * x], vec![1.0 / x]]))
    };
    let samples: Vec<usize> = (0..23).rev().collect();
    let one = over_batch(&samples, 1, run).unwrap();
    let sums = (0..23).map(|i| 0.1 + i as f32 * 0.37).fold((0.0, 0.0), |(a, b), x| (a + x, b + x * x));
    assert!((one.0 - sums.0 as f64).abs() < 1e-3 && (one.1[0][1] - sums.1).abs() < 1e-2 && one.1[1].len() == 1, "{one:?}");
    for threads in [2, 5] {
        assert_eq!(over_batch(&samples, threads, run).unwrap(), one);
    }
    assert_eq!(over_batch(&[], 2, run).unwrap(), (0.0, vec![]));
}
