//! Activation to weight: a channel that stands far above the others takes up the whole range of its tensor; what makes it gives it smaller, and the
//! weights that read it grow: `s_j = max|x_j|^α / max_i|W_ji|^(1−α)`, `x ← x/s`, `W ← diag(s)·W`. α is searched by what the layers lose in 8 bits.
//! Source: Xiao et al. 2023, SmoothQuant, section 4 (equation 4); the search is per value here.
//! Exact up to the rounding of constants. Needs: samples, and constant weights in MatMul or Gemm layers that alone read the value; the value is made
//! by a normalization with constants of one number a channel, or by its last Mul and Add. Declines, with the reason: everything else.

use super::channels::{Seen, Value, found, look, rows_of, scale};
use crate::data::Dataset;
use crate::error::Result;
use crate::graph::{self, Graph, InputShapes, Model};
use crate::note::Notes;

/// What the step was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Smooth {
    /// How much of the range moves into the weights, 0 … 1; `None`: searched for each value.
    pub alpha: Option<f64>,
    /// Samples looked at, at most.
    pub samples: usize,
    pub threads: usize,
}

const SEARCHED: [f64; 7] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// The `smooth` step.
pub fn smooth(model: &mut Model, how: &Smooth, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("smooth");
    let Some((data, samples)) = data else {
        notes.declined("", "nothing is smoothed: that needs sample inputs (--data)");
        return Ok(notes);
    };
    let inferred = graph::infer(model, &InputShapes::new());
    let chosen = found(&model.graph, &inferred, false, "smoothed", &mut notes);
    if chosen.is_empty() {
        return Ok(notes);
    }
    let seen = look(model, &chosen, how.threads, data, &samples[..samples.len().min(how.samples)])?;
    let mut done = 0;
    for (value, seen) in chosen.iter().zip(&seen) {
        let g = &mut model.graph;
        let name = g.value(value.id).name.clone();
        match search(g, value, seen, how.alpha)? {
            None => notes.declined(name, "is not smoothed: its layers would lose more in 8 bits"),
            Some((alpha, gain, s)) => {
                scale(g, &inferred, value, &s, "smoothed")?;
                notes.changed(name, format!("smoothed with α {alpha}: its layers' error in 8 bits is {gain:.2} times smaller"));
                done += 1;
            }
        }
    }
    notes.changed("", format!("{done} of {} values smoothed", chosen.len()));
    Ok(notes)
}

/// The α whose layers lose least, how many times less than without, and the scales. `None`: no α is better for the layers together and worse for none.
fn search(g: &Graph, value: &Value, seen: &Seen, alpha: Option<f64>) -> Result<Option<(f64, f64, Vec<f64>)>> {
    let weights = value.readers.iter().map(|l| rows_of(g, l)).collect::<Result<Vec<_>>>()?;
    let most: Vec<f64> = seen.lo.iter().zip(&seen.hi).map(|(lo, hi)| (-lo).max(*hi) as f64).collect();
    let largest = |c: usize| weights.iter().flat_map(|(w, n)| &w[c * n..(c + 1) * n]).fold(0f64, |a, w| a.max(w.abs()));
    let largest: Vec<f64> = (0..value.channels).map(largest).collect();
    if most.iter().any(|m| !m.is_finite()) {
        return Ok(None);
    }
    let before = losses(&weights, seen, &vec![1.0; value.channels]);
    let mut best: Option<(f64, f64, Vec<f64>)> = None;
    for alpha in alpha.as_slice().iter().chain(if alpha.is_some() { &[] } else { &SEARCHED[..] }) {
        crate::interrupt::check()?;
        let one = |(x, w): (&f64, &f64)| if *x == 0.0 || *w == 0.0 { 1.0 } else { (x.powf(*alpha) / w.powf(1.0 - alpha)).clamp(1e-5, 1e5) };
        let s: Vec<f64> = most.iter().zip(&largest).map(one).collect();
        let now = losses(&weights, seen, &s);
        let gain = before.iter().sum::<f64>() / now.iter().sum::<f64>();
        if now.iter().zip(&before).all(|(a, b)| a <= b) && gain > best.as_ref().map_or(1.0, |b| b.1) {
            best = Some((*alpha, gain, s));
        }
    }
    Ok(best)
}

/// Of each layer: squared error of its output over the output's energy, with x in 8 bits per tensor and the weight in 8 bits per output channel.
fn losses(weights: &[(Vec<f64>, usize)], seen: &Seen, s: &[f64]) -> Vec<f64> {
    let n = s.len();
    let lo = seen.lo.iter().zip(s).fold(0f64, |a, (x, s)| a.min(*x as f64 / s));
    let hi = seen.hi.iter().zip(s).fold(0f64, |a, (x, s)| a.max(*x as f64 / s));
    let step = ((hi - lo) / 255.0).max(f64::MIN_POSITIVE);
    let zero = (-lo / step).round_ties_even();
    let code = |x: f64| (((x / step).round_ties_even() + zero).clamp(0.0, 255.0) - zero) * step;
    let coded: Vec<f32> = seen.rows.iter().enumerate().map(|(i, x)| code(*x as f64 / s[i % n]) as f32).collect();
    let one = |(w, outs): &(Vec<f64>, usize)| {
        let mut scale = vec![0f64; *outs];
        w.iter().enumerate().for_each(|(i, w)| scale[i % outs] = scale[i % outs].max((w * s[i / outs]).abs()));
        let round = |(i, w): (usize, &f64)| {
            let step = (scale[i % outs] / 127.0).max(f64::MIN_POSITIVE);
            ((w * s[i / outs] / step).round_ties_even() * step) as f32
        };
        let (rounded, w): (Vec<f32>, Vec<f32>) = (w.iter().enumerate().map(round).collect(), w.iter().map(|w| *w as f32).collect());
        let (mut error, mut energy) = (0f64, 0f64);
        let (mut y, mut z) = (vec![0f32; *outs], vec![0f32; *outs]);
        for (x, q) in seen.rows.chunks_exact(n).zip(coded.chunks_exact(n)) {
            y.fill(0.0);
            z.fill(0.0);
            for c in 0..n {
                y.iter_mut().zip(&w[c * outs..]).for_each(|(y, w)| *y += x[c] * w);
                z.iter_mut().zip(&rounded[c * outs..]).for_each(|(z, w)| *z += q[c] * w);
            }
            for (y, z) in y.iter().zip(&z) {
                error += (*y as f64 - *z as f64).powi(2);
                energy += (*y as f64).powi(2);
            }
        }
        if energy > 0.0 { error / energy } else { error }
    };
    weights.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, result, value};
    use super::*;
    use crate::data::{DataSettings, InputInfo};
    use crate::graph::{Dim, Node, Op};
    use crate::tensor::{DType, Tensor};

    /// x → Mul → Add → two products; the fourth channel of the Mul is a hundred times the others.
    fn outlier() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, h, n, a, b] = [("x", 8), ("h", 8), ("n", 8), ("a", 6), ("b", 6)].map(|(name, c)| value(g, name, &[1, 4, c]));
        g.inputs.push(x);
        g.outputs.extend([a, b]);
        let factor = g.add_constant("f", Tensor::of_f32(&[8], (0..8).map(|c| if c == 3 { 100.0 } else { 1.0 }).collect()));
        let offset = g.add_constant("o", Tensor::of_f32(&[8], noise(&[8], 5)));
        g.add_node(Node::new(Op::Mul, "mul"), &[Some(x), Some(factor)], &[Some(h)]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(h), Some(offset)], &[Some(n)]);
        for (y, name, seed) in [(a, "q", 1), (b, "k", 2)] {
            let w = noise(&[8, 6], seed).iter().enumerate().map(|(i, w)| if i / 6 == 3 { w / 100.0 } else { *w }).collect();
            let w = g.add_constant(&format!("{name}_w"), Tensor::of_f32(&[8, 6], w));
            g.add_node(Node::new(Op::MatMul, name), &[Some(n), Some(w)], &[Some(y)]);
        }
        m
    }

    fn smoothed(m: &mut Model) -> Notes {
        let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, 4, 8].map(Dim::Known).to_vec()) };
        let data = Dataset::open("random:8", &[info], &DataSettings::default()).unwrap();
        smooth(m, &Smooth { alpha: None, samples: 8, threads: 2 }, Some((&data, &[0, 1, 2, 3, 4, 5, 6, 7]))).unwrap()
    }

    #[test]
    fn a_channel_that_stands_out_costs_five_times_less_and_the_result_stays() {
        let (before, mut after) = (outlier(), outlier());
        let notes = smoothed(&mut after);
        let x = Tensor::of_f32(&[1, 4, 8], noise(&[1, 4, 8], 9));
        for (a, b) in result(&before, &x).iter().zip(result(&after, &x)) {
            assert!((a - b).abs() <= 1e-5, "{a} {b}");
        }
        let text = notes.list().iter().find(|n| n.text.contains("times smaller")).expect("it is smoothed").text.clone();
        let gain: f64 = text.split("is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(gain >= 5.0, "{text}");
        assert!(after.graph.find_value("n").is_none() && after.graph.find_value("n_smoothed").is_some());
    }

    #[test]
    fn a_value_that_others_read_is_declined_with_the_reason() {
        let mut m = outlier();
        let n = m.graph.find_value("n").unwrap();
        let y = value(&mut m.graph, "r", &[1, 4, 8]);
        m.graph.add_node(Node::new(Op::Relu, "relu"), &[Some(n)], &[Some(y)]);
        m.graph.outputs.push(y);
        let notes = smoothed(&mut m);
        assert!(notes.list().iter().any(|n| n.text.contains("relu, a Relu, reads it")), "{notes:?}");
        assert!(m.graph.find_value("n").is_some());
    }
}
