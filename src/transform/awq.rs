//! Activation-aware scales: weights that meet large inputs lose least when they grow before they are rounded and their inputs shrink as much:
//! `s_j = (mean|x_j|)^r`, over `√(max s · min s)`; `x ← x/s`, `W ← diag(s)·W`. `r` is the one of 20 in 0 … 0.95 whose layers' outputs change least.
//! Source: Lin et al. 2024, AWQ, section 3.2 (equations 4 and 5); the outputs compared are those of the layers that read the value.
//! Exact up to the rounding of constants. Needs: samples; constant weights in MatMul or Gemm layers that alone read the value; the value is made by a
//! normalization with constants of one number a channel, by its last Mul and Add, or by a layer, with Relu between or times something else.
//! Declines, with the reason: everything else, and values for which no `r` is better than 0.

use super::channels::{Seen, Value, found, look, rows_of, scale};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{self, Graph, InputShapes, Model};
use crate::math::{Matrix, multiply};
use crate::note::Notes;
use crate::quant::{self, Scheme};
use rayon::prelude::*;

/// What the step was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Awq {
    /// The scheme of a weight that stands as rows of input channels: channels along axis 1, blocks along axis 0.
    pub scheme: Scheme,
    /// Exponents tried, from 0 on, evenly below 1.
    pub grid: usize,
    /// Samples looked at, at most.
    pub samples: usize,
    pub threads: usize,
}

/// The smallest scale before all are divided by their middle.
const LEAST: f64 = 1e-4;

/// The `awq` step.
pub fn awq(model: &mut Model, how: &Awq, data: Option<(&Dataset, &[usize])>) -> Result<Notes> {
    let mut notes = Notes::of("awq");
    let (data, samples) = data.ok_or_else(|| Error::usage("awq scales weights by the inputs they meet: give --data"))?;
    let inferred = graph::infer(model, &InputShapes::new());
    // Output channels that share a scale with others would pay for being divided.
    let chosen = found(&model.graph, &inferred, !how.scheme.blocks.is_tensor(), "scaled", &mut notes);
    if chosen.is_empty() {
        return Ok(notes);
    }
    let seen = look(model, &chosen, how.threads, data, &samples[..samples.len().min(how.samples)])?;
    let mut done = 0;
    for (value, seen) in chosen.iter().zip(&seen) {
        crate::interrupt::check()?;
        let g = &mut model.graph;
        let name = g.value(value.id).name.clone();
        match search(g, value, seen, how)? {
            None => notes.declined(name, "is not scaled: its layers would lose no less"),
            Some((r, gain, s)) => {
                scale(g, &inferred, value, &s, "scaled")?;
                notes.changed(name, format!("scaled with exponent {r:.2}: its layers' error is {gain:.2} times smaller"));
                done += 1;
            }
        }
    }
    notes.changed("", format!("{done} of {} values scaled by the size of their channels", chosen.len()));
    Ok(notes)
}

/// The exponent whose layers lose least, how many times less than without, and the scales; `None`: none is better than 0.
fn search(g: &Graph, value: &Value, seen: &Seen, how: &Awq) -> Result<Option<(f64, f64, Vec<f64>)>> {
    let n = value.channels;
    let count = seen.rows.len() / n.max(1);
    if count == 0 || seen.rows.iter().any(|x| !x.is_finite()) || seen.sizes.iter().any(|x| !x.is_finite()) {
        return Ok(None);
    }
    let mut layers = Vec::new();
    for reader in &value.readers {
        let (w, outs) = rows_of(g, reader)?;
        let w: Vec<f32> = w.into_iter().map(|w| w as f32).collect();
        let energy = energy_of(&seen.rows, &w, (count, n, outs));
        layers.push((w, outs, if energy > 0.0 { energy } else { 1.0 }));
    }
    let mean = seen.sizes.iter().sum::<f64>() / n as f64;
    let scales = |r: f64| {
        let s: Vec<f64> = seen.sizes.iter().map(|a| (a / mean.max(f64::MIN_POSITIVE)).powf(r).max(LEAST)).collect();
        let (lo, hi) = s.iter().fold((f64::INFINITY, 0f64), |(lo, hi), s| (lo.min(*s), hi.max(*s)));
        s.iter().map(|s| s / (lo * hi).sqrt()).collect::<Vec<_>>()
    };
    let loss = |s: &[f64]| -> Result<f64> {
        let mut sum = 0.0;
        for (w, outs, energy) in &layers {
            let mut change: Vec<f32> = w.iter().enumerate().map(|(i, w)| (*w as f64 * s[i / outs]) as f32).collect();
            let params = quant::fit(&change, &[n, *outs], &how.scheme)?;
            quant::fake_quantize(&mut change, &[n, *outs], &how.scheme, Some(&params))?;
            change.iter_mut().enumerate().for_each(|(i, q)| *q = (*q as f64 / s[i / outs]) as f32 - w[i]);
            sum += energy_of(&seen.rows, &change, (count, n, *outs)) / energy;
        }
        Ok(sum)
    };
    let tried = (0..how.grid).into_par_iter().map(|i| {
        let r = i as f64 / how.grid as f64;
        let s = scales(r);
        Ok((loss(&s)?, r, s))
    });
    let mut tried = tried.collect::<Result<Vec<_>>>()?.into_iter();
    let Some((before, ..)) = tried.next() else { return Ok(None) };
    let best = tried.fold(None, |best: Option<(f64, f64, Vec<f64>)>, new| if new.0 < best.as_ref().map_or(before, |b| b.0) { Some(new) } else { best });
    Ok(best.map(|(now, r, s)| (r, before / now.max(f64::MIN_POSITIVE), s)))
}

/// The squared sum of `x·w`: `x` of `count × n` numbers, `w` of `n × outs`.
fn energy_of(x: &[f32], w: &[f32], (count, n, outs): (usize, usize, usize)) -> f64 {
    let mut y = vec![0f32; count * outs];
    multiply(&mut y, outs, Matrix::new(x, count, n), Matrix::new(w, n, outs), false);
    y.iter().map(|y| (*y as f64).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, result, value};
    use super::*;
    use crate::data::{DataSettings, InputInfo};
    use crate::graph::{Dim, Linear, Node, Op, ValueId};
    use crate::quant::Blocks;
    use crate::tensor::{DType, Tensor};

    const N: usize = 16;

    /// x → Mul (the fourth channel thirty times the others) → (up, gate) → Relu of gate → up · gate → down → y.
    fn gated() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, h, up, gate, act, both, y] = ["x", "h", "up", "gate", "act", "both", "y"].map(|name| value(g, name, &[1, 4, N]));
        g.inputs.push(x);
        g.outputs.push(y);
        let factor = g.add_constant("f", Tensor::of_f32(&[N], (0..N).map(|c| if c == 3 { 30.0 } else { 1.0 }).collect()));
        g.add_node(Node::new(Op::Mul, "mul"), &[Some(x), Some(factor)], &[Some(h)]);
        let layer = |g: &mut Graph, name: &str, seed: usize, from: ValueId, to: ValueId, loud: usize| {
            let w = noise(&[N, N], seed).iter().enumerate().map(|(i, w)| if i % N == loud { 20.0 * w } else { *w }).collect();
            let w = g.add_constant(&format!("{name}_w"), Tensor::of_f32(&[N, N], w));
            g.add_node(Node::new(Op::MatMul, name), &[Some(from), Some(w)], &[Some(to)]);
        };
        layer(g, "up_", 1, h, up, 5);
        layer(g, "gate_", 2, h, gate, N);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(gate)], &[Some(act)]);
        g.add_node(Node::new(Op::Mul, "times"), &[Some(act), Some(up)], &[Some(both)]);
        layer(g, "down_", 3, both, y, N);
        m
    }

    fn how() -> Awq {
        Awq { scheme: Scheme { blocks: Blocks::block(0, 8), ..Scheme::int(4, false) }, grid: 20, samples: 8, threads: 2 }
    }

    fn scaled(m: &mut Model, how: &Awq) -> Notes {
        let info = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some([1, 4, N].map(Dim::Known).to_vec()) };
        let data = Dataset::open("random:8", &[info], &DataSettings::default()).unwrap();
        awq(m, how, Some((&data, &[0, 1, 2, 3, 4, 5, 6, 7]))).unwrap()
    }

    /// The model with its weights as their codes stand for them.
    fn rounded(m: &Model) -> Model {
        let mut m = m.clone();
        let weights: Vec<ValueId> = m.graph.nodes().filter_map(|(id, _)| Some(Linear::of(&m.graph, id)?.weight)).collect();
        for v in weights {
            let t = m.graph.constant(v).unwrap().tensor.clone();
            let mut w = t.to_f32().unwrap().into_owned();
            let params = quant::fit(&w, t.shape(), &how().scheme).unwrap();
            quant::fake_quantize(&mut w, t.shape(), &how().scheme, Some(&params)).unwrap();
            m.graph.value_mut(v).constant = Some(Tensor::of_f32(t.shape(), w).into());
        }
        m
    }

    #[test]
    fn values_behind_norms_and_products_lose_less_and_the_result_stays() {
        let (before, mut after) = (gated(), gated());
        let notes = scaled(&mut after, &how());
        assert!(notes.list().iter().any(|n| n.text == "2 of 2 values scaled by the size of their channels"), "{notes:?}");
        let x = Tensor::of_f32(&[1, 4, N], noise(&[1, 4, N], 9));
        let want = result(&before, &x);
        let largest = want.iter().fold(0f32, |a, w| a.max(w.abs()));
        for (a, b) in want.iter().zip(result(&after, &x)) {
            assert!((a - b).abs() <= 1e-5 * largest, "{a} {b}");
        }
        let error = |m: &Model| {
            let rounded = rounded(m);
            let one = |seed: usize| {
                let x = Tensor::of_f32(&[1, 4, N], noise(&[1, 4, N], seed));
                result(&rounded, &x).iter().zip(result(&before, &x)).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
            };
            (20..52).map(one).sum::<f32>()
        };
        assert!(error(&after) < 0.85 * error(&before), "{} {}", error(&after), error(&before));
        let names = |n: &str| after.graph.find_value(n).is_some();
        assert!(["h_scaled", "both_scaled", "act_scaled", "gate_scaled", "up"].into_iter().all(names), "what holds other numbers has another name");
    }

    #[test]
    fn without_exponents_or_with_one_scale_a_weight_layers_stay_as_they_are() {
        let mut m = gated();
        let notes = scaled(&mut m, &Awq { grid: 1, ..how() });
        assert!(notes.list().iter().any(|n| n.text.starts_with("0 of 2")), "{notes:?}");
        assert!(m.graph.find_value("h").is_some());
        let notes = scaled(&mut m, &Awq { scheme: Scheme::int(4, false), ..how() });
        assert!(notes.list().iter().any(|n| n.about == "both" && n.text.starts_with("is not scaled: ")), "{notes:?}");
        assert!(awq(&mut m, &how(), None).unwrap_err().to_string().contains("--data"));
    }
}
