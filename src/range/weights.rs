//! Ranges of weights: from their values alone.

use super::{Method, pow2};
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId};
use crate::quant::{self, Params, QuantizerId, Scheme};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Gives every quantizer that only constants flow into its parameters, by min-max or least squares per block over every constant that shares it.
/// Those in `shared` see activations too (Concat with a constant) and wait for the data.
pub fn fit_weights(model: &mut Model, method: Method, shared: &BTreeSet<QuantizerId>) -> Result<()> {
    let mut ranges: BTreeMap<QuantizerId, (Vec<f32>, Vec<f32>)> = BTreeMap::new();
    let open: Vec<_> = model
        .constant_sites()
        .into_iter()
        .map(|(node, id)| (node, model.quantizers.root(id)))
        .filter(|(_, id)| model.quantizers[*id].params.is_none() && !shared.contains(id))
        .collect();
    let read: &Model = model;
    let found = open.par_iter().map(|&(node, id)| weight_ranges(read, node, id, method)).collect::<Result<Vec<_>>>()?;
    for (&(_, id), (lo, hi)) in open.iter().zip(found) {
        let quantizer = &model.quantizers[id];
        match ranges.get_mut(&id) {
            None => {
                ranges.insert(id, (lo, hi));
            }
            Some((l, h)) if l.len() == lo.len() => {
                l.iter_mut().zip(lo).for_each(|(a, b)| *a = a.min(b));
                h.iter_mut().zip(hi).for_each(|(a, b)| *a = a.max(b));
            }
            Some(_) => return Err(Error::failed("two constants of different shapes share one quantizer").at(&quantizer.name)),
        }
    }
    for (id, (lo, hi)) in ranges {
        let q = &mut model.quantizers[id];
        q.params = Some(quant::fit_range(&q.scheme, &lo, &hi).at(|| &q.name)?);
    }
    Ok(())
}

/// The range of each block of one constant.
fn weight_ranges(model: &Model, node: NodeId, id: QuantizerId, method: Method) -> Result<(Vec<f32>, Vec<f32>)> {
    crate::interrupt::check()?;
    let quantizer = &model.quantizers[id];
    let constant = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v));
    let tensor = &constant.ok_or_else(|| Error::failed("reads no constant")).at(|| &quantizer.name)?.tensor;
    let x = tensor.to_f32().at(|| &quantizer.name)?;
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::usage(format!("weight {}: element {i} is {}; a model with such weights cannot be quantized", quantizer.name, x[i])));
    }
    block_ends(&x, tensor.shape(), &quantizer.scheme, method).at(|| &quantizer.name)
}

/// Parameters for one constant alone.
pub fn fit_constant(x: &[f32], shape: &[usize], scheme: &Scheme, method: Method) -> Result<Params> {
    let (lo, hi) = block_ends(x, shape, scheme, method)?;
    quant::fit_range(scheme, &lo, &hi)
}

/// The range of each block of finite numbers.
fn block_ends(x: &[f32], shape: &[usize], scheme: &Scheme, method: Method) -> Result<(Vec<f32>, Vec<f32>)> {
    let layout = scheme.blocks.layout(shape)?;
    let (lo, hi) = quant::block_ranges(x, shape, &layout);
    if method != Method::Mse {
        return Ok((lo, hi));
    }
    // Every block is shrunk in steps of 2 %, or of one power of two, all at once, and keeps the step that lost least.
    let mut best = vec![(f64::INFINITY, 1.0f32); lo.len()];
    let halved = pow2::applies(scheme);
    for i in 0..if halved { pow2::HALVINGS.1 } else { 31 } {
        let f = if halved { 0.5f32.powi(i as i32) } else { 1.0 - 0.02 * i as f32 };
        let shrunk = |v: &[f32]| v.iter().map(|v| v * f).collect::<Vec<_>>();
        let params = quant::fit_range(scheme, &shrunk(&lo), &shrunk(&hi))?;
        let mut y = x.to_vec();
        quant::fake_quantize(&mut y, shape, scheme, Some(&params))?;
        for (best, loss) in best.iter_mut().zip(layout.losses(x, &y)) {
            if loss < best.0 {
                *best = (loss, f);
            }
        }
    }
    Ok(lo.iter().zip(&hi).zip(&best).map(|((l, h), (_, f))| (l * f, h * f)).unzip())
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
