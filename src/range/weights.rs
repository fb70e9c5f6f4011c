//! Ranges of weights: from their values alone. The entries of a codebook that is learnt come from the values too.

use super::{Method, pow2};
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId};
use crate::quant::{self, Format, Params, QuantizerId, Scheme};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Lowest and highest number of each block, over the blocks' grid.
struct Blocks {
    grid: Vec<usize>,
    lo: Vec<f32>,
    hi: Vec<f32>,
}

impl Blocks {
    /// Parameters that cover the ranges, each shrunk to `share` of itself.
    fn params(&self, scheme: &Scheme, share: f32) -> Result<Params> {
        let shrunk = |v: &[f32]| v.iter().map(|v| v * share).collect::<Vec<_>>();
        quant::fit_grid(scheme, &self.grid, &quant::first_curve(scheme), &shrunk(&self.lo), &shrunk(&self.hi))
    }
}

/// Gives every quantizer that only constants flow into its parameters, by min-max or least squares per block over every constant that shares it.
/// Those in `shared` see activations too (Concat with a constant) and wait for the data.
pub fn fit_weights(model: &mut Model, method: Method, shared: &BTreeSet<QuantizerId>) -> Result<()> {
    let open: Vec<_> = model
        .constant_sites()
        .into_iter()
        .map(|(node, id)| (node, model.quantizers.root(id)))
        .filter(|(_, id)| model.quantizers[*id].params.is_none() && !shared.contains(id))
        .collect();
    let read: &Model = model;
    let found = open.par_iter().map(|&(node, id)| weight_ranges(read, node, id, method)).collect::<Result<Vec<_>>>()?;
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
        let mut params = blocks.params(&q.scheme, 1.0).at(|| &q.name)?;
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
fn weight_ranges(model: &Model, node: NodeId, id: QuantizerId, method: Method) -> Result<Blocks> {
    crate::interrupt::check()?;
    let quantizer = &model.quantizers[id];
    let tensor = constant(model, node, id)?;
    let x = tensor.to_f32().at(|| &quantizer.name)?;
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::usage(format!("weight {}: element {i} is {}; a model with such weights cannot be quantized", quantizer.name, x[i])));
    }
    block_ends(&x, tensor.shape(), &quantizer.scheme, method).at(|| &quantizer.name)
}

/// Parameters for one constant alone.
pub fn fit_constant(x: &[f32], shape: &[usize], scheme: &Scheme, method: Method) -> Result<Params> {
    block_ends(x, shape, scheme, method)?.params(scheme, 1.0)
}

/// The range of each block of finite numbers.
fn block_ends(x: &[f32], shape: &[usize], scheme: &Scheme, method: Method) -> Result<Blocks> {
    let layout = scheme.blocks.layout(shape)?;
    let (lo, hi) = quant::block_ranges(x, shape, &layout);
    let mut blocks = Blocks { grid: layout.grid.clone(), lo, hi };
    if method != Method::Mse {
        return Ok(blocks);
    }
    // Every block is shrunk in steps of 2 %, or of one power of two, all at once, and keeps the step that lost least.
    let mut best = vec![(f64::INFINITY, 1.0f32); layout.len()];
    let halved = pow2::applies(scheme);
    for i in 0..if halved { pow2::HALVINGS.1 } else { 31 } {
        let share = if halved { 0.5f32.powi(i as i32) } else { 1.0 - 0.02 * i as f32 };
        let params = blocks.params(scheme, share)?;
        let mut y = x.to_vec();
        quant::fake_quantize(&mut y, shape, scheme, Some(&params))?;
        for (best, loss) in best.iter_mut().zip(layout.losses(x, &y)) {
            if loss < best.0 {
                *best = (loss, share);
            }
        }
    }
    for ((l, h), (_, share)) in blocks.lo.iter_mut().zip(&mut blocks.hi).zip(&best) {
        (*l, *h) = (*l * share, *h * share);
    }
    Ok(blocks)
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
        let scales = |method| {
            let mut m = m.clone();
            fit_weights(&mut m, method, &BTreeSet::new()).unwrap();
            m.quantizers[q].params.clone().unwrap().scale
        };
        let (all, least) = (scales(Method::MinMax), scales(Method::Mse));
        assert_eq!(all[0], 2.0 / 7.0);
        assert!(least[0] < 0.75 * all[0] && least[1] > 0.9 * all[1], "{all:?} {least:?}");
    }
}
