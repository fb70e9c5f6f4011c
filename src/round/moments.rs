//! Means and deviations of a layer's outputs, channel by channel.

use super::biases::Layer;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::graph::{Model, ValueId};
use crate::math::{moments, wide};
use crate::pass::Progress;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Sums, sums of squares and count by channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    sum: Vec<f64>,
    square: Vec<f64>,
    count: f64,
}

impl Moments {
    pub fn new(channels: usize) -> Self {
        Moments { sum: vec![0.0; channels], square: vec![0.0; channels], count: 0.0 }
    }

    /// Of what a layer gave out.
    pub fn of(t: &Tensor, layer: &Layer) -> Result<Self> {
        let mut moments = Moments::new(layer.channels);
        moments.add(t, layer.axis)?;
        Ok(moments)
    }

    /// Takes in a tensor with one index of `axis` a channel.
    pub fn add(&mut self, t: &Tensor, axis: usize) -> Result<()> {
        let shape = t.shape();
        if shape.get(axis) != Some(&self.sum.len()) {
            return Err(Error::failed(format!("its output has shape {shape:?}, which has not {} channels in axis {axis}", self.sum.len())));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let x = t.to_f32()?;
        let (sum, square) = (&mut self.sum[..], &mut self.square[..]);
        if inner == 1 {
            let x = &x[..];
            wide(
                #[inline(always)]
                move || {
                    for row in x.chunks_exact(sum.len().max(1)) {
                        for ((sum, square), v) in sum.iter_mut().zip(&mut square[..]).zip(row) {
                            let v = *v as f64;
                            *sum += v;
                            *square += v * v;
                        }
                    }
                },
            );
        } else {
            for (row, values) in x.chunks_exact(inner.max(1)).enumerate() {
                let (s, q) = moments(values);
                sum[row % shape[axis]] += s;
                square[row % shape[axis]] += q;
            }
        }
        self.count += (x.len() / shape[axis]) as f64;
        Ok(())
    }

    pub fn merge(&mut self, o: &Moments) {
        let add = |a: &mut [f64], b: &[f64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        add(&mut self.sum, &o.sum);
        add(&mut self.square, &o.square);
        self.count += o.count;
    }

    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1.0)).collect()
    }

    /// Standard deviations.
    pub fn deviation(&self) -> Vec<f64> {
        let n = self.count.max(1.0);
        self.sum.iter().zip(&self.square).map(|(s, q)| (q / n - (s / n) * (s / n)).max(0.0).sqrt()).collect()
    }
}

/// What layers of the float model gave out, by sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct FloatMoments(BTreeMap<usize, Vec<(ValueId, Moments)>>);

impl FloatMoments {
    pub fn add(&mut self, sample: usize, seen: Vec<(ValueId, Moments)>) {
        self.0.insert(sample, seen);
    }

    /// Of these layers over these samples, if they were all seen.
    pub fn of(&self, layers: &[Layer], samples: &[usize]) -> Option<Vec<Moments>> {
        let mut total: Vec<Moments> = layers.iter().map(|l| Moments::new(l.channels)).collect();
        for sample in samples {
            let seen: BTreeMap<ValueId, &Moments> = self.0.get(sample)?.iter().map(|(v, m)| (*v, m)).collect();
            total.iter_mut().zip(layers).try_for_each(|(total, l)| seen.get(&l.output).map(|m| total.merge(m)))?;
        }
        Some(total)
    }
}

/// What each layer of the float model gives out over samples; a tick of `progress` for each.
pub(super) fn of_float(float: &Model, layers: &[Layer], data: &Dataset, samples: &[usize], threads: usize, progress: &dyn Progress) -> Result<Vec<Moments>> {
    let outputs: Vec<ValueId> = layers.iter().map(|l| l.output).collect();
    let mut total: Vec<Moments> = layers.iter().map(|l| Moments::new(l.channels)).collect();
    let see = |tensors: &[Tensor]| layers.iter().zip(tensors).map(|(l, t)| Moments::of(t, l)).collect::<Result<Vec<_>>>();
    data.watch(float, &outputs, samples, threads, see, |moments| {
        total.iter_mut().zip(&moments).for_each(|(t, m)| t.merge(m));
        progress.tick(1);
    })?;
    Ok(total)
}

/// `t` times a factor a channel (one for all where there are none), and a number a channel added.
pub(super) fn moved(t: &Tensor, axis: usize, factor: &[f32], by: &[f32]) -> Result<Tensor> {
    let inner: usize = t.shape()[axis + 1..].iter().product();
    let mut x = t.to_f32()?.into_owned();
    let ones = vec![1.0; by.len()];
    let factor = if factor.is_empty() { &ones[..] } else { factor };
    for values in x.chunks_mut((inner * by.len()).max(1)) {
        if inner == 1 {
            values.iter_mut().zip(factor).zip(by).for_each(|((v, factor), by)| *v = *v * factor + by);
            continue;
        }
        for ((values, factor), by) in values.chunks_exact_mut(inner.max(1)).zip(factor).zip(by) {
            values.iter_mut().for_each(|v| *v = *v * factor + by);
        }
    }
    Ok(Tensor::of_f32(t.shape(), x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_by_channel_and_what_has_other_channels_is_refused() {
        let mut m = Moments::new(2);
        m.add(&Tensor::of_f32(&[1, 2, 2], vec![1.0, 3.0, -2.0, -4.0]), 1).unwrap();
        let mut other = Moments::new(2);
        other.add(&Tensor::of_f32(&[2, 2, 1], vec![5.0, 0.0, 7.0, 0.0]), 1).unwrap();
        m.merge(&other);
        assert_eq!(m.mean(), [4.0, -1.5]);
        // (9 + 1 + 1 + 9) / 4 and (0.25 + 6.25 + 2.25 + 2.25) / 4.
        assert_eq!(m.deviation(), [5f64.sqrt(), 2.75f64.sqrt()]);
        assert!(m.add(&Tensor::of_f32(&[1, 3], vec![0.0; 3]), 1).unwrap_err().to_string().contains("not 2 channels"));
        let t = Tensor::of_f32(&[1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!(&moved(&t, 1, &[], &[1.0, -1.0]).unwrap().to_f32().unwrap()[..], [2.0, 3.0, 2.0, 3.0]);
        assert_eq!(&moved(&t, 1, &[2.0, 0.5], &[1.0, -1.0]).unwrap().to_f32().unwrap()[..], [3.0, 5.0, 0.5, 1.0]);
    }
}
