//! Ranges of weights: from their values, or from what their layers' outputs lose. The entries of a codebook that is learnt come from the values too.

use super::clip::{Clip, Met};
use super::pow2;
use crate::data::Dataset;
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId};
use crate::note::Notes;
use crate::quant::{self, Format, Params, QuantizerId, Scheme};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Lowest and highest number of each block, over the blocks' grid.
pub struct Blocks {
    grid: Vec<usize>,
    lo: Vec<f32>,
    hi: Vec<f32>,
}

impl Blocks {
    /// Parameters that cover the ranges.
    fn params(&self, scheme: &Scheme) -> Result<Params> {
        quant::fit_grid(scheme, &self.grid, &quant::first_curve(scheme), &self.lo, &self.hi)
    }

    /// The ranges, each cut to a share of itself.
    fn cut(&self, by: impl Fn((f32, f32), f32) -> (f32, f32), share: impl Fn(usize) -> f32) -> Blocks {
        let (lo, hi) = self.lo.iter().zip(&self.hi).enumerate().map(|(b, (l, h))| by((*l, *h), share(b))).unzip();
        Blocks { grid: self.grid.clone(), lo, hi }
    }

    /// Every block is cut by one share, all at once, and keeps that under which it lost least, the first of several; `losses` says what each loses where
    /// other numbers stand for `x`.
    pub fn least(
        &self,
        x: &[f32],
        shape: &[usize],
        scheme: &Scheme,
        shares: &[f32],
        cut: impl Fn((f32, f32), f32) -> (f32, f32),
        losses: impl Fn(&[f32]) -> Vec<f64>,
    ) -> Result<Blocks> {
        let mut best = vec![(f64::INFINITY, 1.0f32); self.lo.len()];
        for &share in shares {
            let mut y = x.to_vec();
            quant::fake_quantize(&mut y, shape, scheme, Some(&self.cut(&cut, |_| share).params(scheme)?))?;
            for (best, loss) in best.iter_mut().zip(losses(&y)) {
                if loss < best.0 {
                    *best = (loss, share);
                }
            }
        }
        Ok(self.cut(&cut, |b| best[b].1))
    }
}

/// How ranges are taken from weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weights {
    /// All values.
    MinMax,
    /// Least squares of the weights.
    Mse,
    /// Least squares of their layers' outputs over samples.
    Clip(Clip),
}

/// Gives every quantizer that only constants flow into its parameters, block by block over every constant that shares it.
/// Those in `shared` see activations too (Concat with a constant) and wait for the data.
pub fn fit_weights(
    model: &mut Model,
    how: Weights,
    shared: &BTreeSet<QuantizerId>,
    data: Option<(&Dataset, &[usize])>,
    threads: usize,
    notes: &mut Notes,
) -> Result<()> {
    let open: Vec<_> = model
        .constant_sites()
        .into_iter()
        .map(|(node, id)| (node, model.quantizers.root(id)))
        .filter(|(_, id)| model.quantizers[*id].params.is_none() && !shared.contains(id))
        .collect();
    let read: &Model = model;
    let met = if let Weights::Clip(clip) = how { Met::look(read, &open, &clip, data, threads, notes)? } else { Met::default() };
    let found = open.par_iter().map(|&(node, id)| weight_ranges(read, node, id, how, &met)).collect::<Result<Vec<_>>>()?;
    let mut ranges: BTreeMap<QuantizerId, Blocks> = BTreeMap::new();
    let mut sites: BTreeMap<QuantizerId, Vec<NodeId>> = BTreeMap::new();
    for (&(node, id), new) in open.iter().zip(found) {
        sites.entry(id).or_default().push(node);
        match ranges.get_mut(&id) {
            None => {
                ranges.insert(id, new);
            }
            Some(have) if have.grid == new.grid => {
                have.lo.iter_mut().zip(new.lo).for_each(|(a, b)| *a = a.min(b));
                have.hi.iter_mut().zip(new.hi).for_each(|(a, b)| *a = a.max(b));
            }
            Some(_) => return Err(Error::failed("two constants of different shapes share one quantizer").at(&model.quantizers[id].name)),
        }
    }
    for (id, blocks) in ranges {
        let q = &model.quantizers[id];
        let mut params = blocks.params(&q.scheme).at(|| &q.name)?;
        if let Format::Codebook { .. } = q.scheme.format {
            let tensors = sites[&id].iter().map(|node| constant(model, *node, id)).collect::<Result<Vec<_>>>()?;
            let tensors = tensors.into_iter().map(|t| Ok((t.to_f32()?, t.shape()))).collect::<Result<Vec<_>>>()?;
            quant::fit_codebook(&tensors, &q.scheme, &mut params).at(|| &q.name)?;
        }
        model.quantizers[id].params = Some(params);
    }
    Ok(())
}

/// What FakeQuant `node` reads.
fn constant(model: &Model, node: NodeId, id: QuantizerId) -> Result<&Tensor> {
    let constant = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v));
    Ok(&constant.ok_or_else(|| Error::failed("reads no constant")).at(|| &model.quantizers[id].name)?.tensor)
}

/// The range of each block of one constant.
fn weight_ranges(model: &Model, node: NodeId, id: QuantizerId, how: Weights, met: &Met) -> Result<Blocks> {
    crate::interrupt::check()?;
    let quantizer = &model.quantizers[id];
    let tensor = constant(model, node, id)?;
    let x = tensor.to_f32().at(|| &quantizer.name)?;
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::usage(format!("weight {}: element {i} is {}; a model with such weights cannot be quantized", quantizer.name, x[i])));
    }
    let (shape, scheme) = (tensor.shape(), &quantizer.scheme);
    let ends = block_ends(&x, shape, scheme, how).and_then(|whole| met.ends(node, &x, shape, scheme, &whole).unwrap_or(Ok(whole)));
    ends.at(|| &quantizer.name)
}

/// Parameters for one constant alone.
pub fn fit_constant(x: &[f32], shape: &[usize], scheme: &Scheme, how: Weights) -> Result<Params> {
    block_ends(x, shape, scheme, how)?.params(scheme)
}

/// The range of each block of finite numbers by what these alone say: the whole, or that of least squares.
fn block_ends(x: &[f32], shape: &[usize], scheme: &Scheme, how: Weights) -> Result<Blocks> {
    let layout = scheme.blocks.layout(shape)?;
    let (lo, hi) = quant::block_ranges(x, shape, &layout);
    let blocks = Blocks { grid: layout.grid.clone(), lo, hi };
    if how != Weights::Mse {
        return Ok(blocks);
    }
    // In steps of 2 %, or of one power of two.
    let shares: Vec<f32> = match pow2::applies(scheme) {
        true => (0..pow2::HALVINGS.1).map(|i| 0.5f32.powi(i as i32)).collect(),
        false => (0..31).map(|i| 1.0 - 0.02 * i as f32).collect(),
    };
    blocks.least(x, shape, scheme, &shares, |(lo, hi), share| (lo * share, hi * share), |y| layout.losses(x, y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::quant::Blocks;
    use crate::tensor::Tensor;

    #[test]
    fn least_squares_cuts_the_outlier_of_its_own_channel_alone() {
        let mut m = Model::default();
        let q = m.quantizers.add("w", Scheme { blocks: Blocks::channel(0), ..Scheme::int(4, true) });
        let row: Vec<f32> = (0..512).map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * 2.0).collect();
        let mut w = [row.clone(), row].concat();
        w[3] = 2.0;
        let v = m.graph.add_constant("w", Tensor::of_f32(&[2, 512], w));
        let y = m.graph.add_value("y");
        m.graph.add_node(Node::fake_quant(q, "f"), &[Some(v)], &[Some(y)]);
        let scales = |how| {
            let mut m = m.clone();
            fit_weights(&mut m, how, &BTreeSet::new(), None, 1, &mut Notes::of("calibrate")).unwrap();
            m.quantizers[q].params.clone().unwrap().scale
        };
        let (all, least) = (scales(Weights::MinMax), scales(Weights::Mse));
        assert_eq!(all[0], 2.0 / 7.0);
        assert!(least[0] < 0.75 * all[0] && least[1] > 0.9 * all[1], "{all:?} {least:?}");
    }
}
