//! Weights block by block, for methods that find scales and zero points anew from the weights alone and leave the codes to nearest rounding.

use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId, Site};
use crate::note::Notes;
use crate::quant::{Format, Params, QuantizerId, ScaleKind, Scheme, Zero, Zeros, nearest_scale};
use crate::tensor::DType;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The weights of one quantizer, gathered by block, and the parameters that cover their ranges: `w ≈ (code − zero) · scale`.
pub struct Weights {
    pub values: Vec<f32>,
    /// Where each block ends.
    pub ends: Vec<usize>,
    pub scale: Vec<f32>,
    pub zero: Vec<f32>,
    /// Lowest and highest code.
    pub codes: (f32, f32),
    /// What a zero point may be.
    pub kind: Zero,
    /// The type that scales are stored in.
    pub stored: DType,
}

impl Weights {
    /// Each block with its number.
    pub fn blocks(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.ends.iter().enumerate().map(|(b, &end)| (b, &self.values[if b == 0 { 0 } else { self.ends[b - 1] }..end]))
    }

    /// `w` as its nearest code stands for it.
    pub fn fake(&self, w: f32, scale: f32, zero: f32) -> f32 {
        ((w / scale + zero).round_ties_even().clamp(self.codes.0, self.codes.1) - zero) * scale
    }

    /// A zero point as it can be stored.
    pub fn storable_zero(&self, zero: f32) -> f32 {
        if self.kind == Zero::Real { zero } else { zero.round_ties_even().clamp(self.codes.0, self.codes.1) }
    }

    /// Squared error of a block.
    pub fn loss(&self, block: &[f32], scale: f32, zero: f32) -> f64 {
        block.iter().map(|w| ((self.fake(*w, scale, zero) - w) as f64).powi(2)).sum()
    }
}

/// Calls `fit` for every quantizer of one constant weight that allows it, which changes scales and zero points in place; the others keep theirs, with the reason.
/// A block that nearest codes under the old ones serve better, by squared error, keeps these; `name` is the method, for people.
pub fn refit(model: &mut Model, name: &str, moves_scale: bool, fit: impl Fn(&mut Weights) + Sync) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let mut sites: BTreeMap<QuantizerId, Vec<NodeId>> = BTreeMap::new();
    for (node, id) in model.constant_sites().into_iter().filter(|(node, _)| !model.codes.contains_key(&Site::of(*node))) {
        sites.entry(model.quantizers.root(id)).or_default().push(node);
    }
    let mut open = Vec::new();
    for (id, nodes) in sites {
        let row = &model.quantizers[id];
        match (&nodes[..], suits(&row.scheme, moves_scale)) {
            (_, Err("a bias")) => {}
            (_, Err(why)) => notes.declined(&row.name, format!("is not refitted by {name}: {why}")),
            ([node], Ok(stored)) => open.push((id, *node, stored)),
            _ => notes.declined(&row.name, format!("is not refitted by {name}: several constants share its scales")),
        }
    }
    let read: &Model = model;
    let found = open.par_iter().map(|&(id, node, stored)| one(read, id, node, stored, &fit).at(|| &read.quantizers[id].name)).collect::<Result<Vec<_>>>()?;
    let (mut better, mut all) = (0, 0);
    for ((id, ..), (params, changed)) in open.into_iter().zip(found) {
        (better, all) = (better + changed, all + params.scale.len());
        model.quantizers[id].params = Some(params);
    }
    notes.changed("", format!("{name}: {better} of {all} blocks fitted anew; the others lose less as they are"));
    Ok(notes)
}

/// The type in which scales of this scheme are stored, if it leaves anything to find.
fn suits(scheme: &Scheme, moves_scale: bool) -> std::result::Result<DType, &'static str> {
    match (scheme.format, &scheme.scale, scheme.zero) {
        (Format::Int { bits: 17.., .. }, ..) => Err("a bias"),
        (Format::Int { .. }, ScaleKind::Exact(t), Zero::Real | Zero::Integer) => Ok(*t),
        (Format::Int { .. }, ScaleKind::Exact(t), _) if moves_scale => Ok(*t),
        (Format::Int { .. }, ScaleKind::Exact(_), _) => Err("its scheme has no zero point to move (zero_point: real or integer)"),
        (Format::Int { .. }, ..) => Err("its scales are not free"),
        _ => Err("its format has no even steps"),
    }
}

/// New parameters of one quantizer, and how many of its blocks they are better for.
fn one(model: &Model, id: QuantizerId, node: NodeId, stored: DType, fit: &(impl Fn(&mut Weights) + Sync)) -> Result<(Params, usize)> {
    crate::interrupt::check()?;
    let row = &model.quantizers[id];
    let params = row.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `round`"))?;
    let tensor = &model.graph.node(node).input(0).and_then(|v| model.graph.constant(v)).ok_or_else(|| Error::failed("reads no constant"))?.tensor;
    let members = row.scheme.blocks.layout(tensor.shape())?.members();
    let blocks = members.iter().copied().max().map_or(0, |b| b as usize + 1);
    let mut ends = vec![0usize; blocks];
    members.iter().for_each(|b| ends[*b as usize] += 1);
    let mut at: Vec<usize> = ends
        .iter_mut()
        .scan(0, |sum, n| {
            let start = *sum;
            *sum += *n;
            *n = *sum;
            Some(start)
        })
        .collect();
    let mut values = vec![0f32; members.len()];
    for (b, x) in members.iter().zip(tensor.to_f32()?.iter()) {
        values[at[*b as usize]] = *x;
        at[*b as usize] += 1;
    }
    let (lo, hi) = row.scheme.format.code_range().ok_or_else(|| Error::failed("its format has no even steps"))?;
    let (scale, zero): (Vec<f32>, Vec<f32>) = (0..blocks).map(|b| (params.scale_at(b), params.zero_at(b))).unzip();
    let mut weights = Weights { values, ends, scale: scale.clone(), zero: zero.clone(), codes: (lo as f32, hi as f32), kind: row.scheme.zero, stored };
    fit(&mut weights);
    let mut changed = 0;
    let better: Vec<bool> = weights
        .blocks()
        .map(|(b, block)| {
            let (s, z) = (nearest_scale(weights.scale[b], stored), weights.storable_zero(weights.zero[b]));
            s > 0.0 && s.is_finite() && z.is_finite() && weights.loss(block, s, z) < weights.loss(block, scale[b], zero[b])
        })
        .collect();
    let (mut scales, mut zeros) = (scale, zero);
    for (b, _) in better.iter().enumerate().filter(|(_, better)| **better) {
        (scales[b], zeros[b]) = (nearest_scale(weights.scale[b], stored), weights.storable_zero(weights.zero[b]));
        changed += 1;
    }
    let zero = match row.scheme.zero {
        Zero::Real => Zeros::Real(zeros),
        Zero::Integer => Zeros::Integer(zeros.iter().map(|z| *z as i32).collect()),
        _ => params.zero.clone(),
    };
    Ok((Params { scale: scales, zero, ..params.clone() }, changed))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::graph::{Graph, Node};
    use crate::quant::{self, Blocks};
    use crate::tensor::Tensor;

    /// 64 × 96 weights near a bell under a fitted quantizer of `bits` in blocks of 32, the last of a row short of none.
    pub fn weights(bits: u8, zero: Zero) -> Model {
        let mut m = Model::default();
        let signed = zero == Zero::None;
        let q = m.quantizers.add("w", Scheme { zero, blocks: Blocks::block(1, 32), ..Scheme::int(bits, signed) });
        let u = |i: usize, k: f32| (i as f32 * k).fract() - 0.5;
        let w: Vec<f32> = (0..64 * 96).map(|i| u(i, 0.618_034) + u(i, 0.414_214) + u(i, 0.732_051) + 0.1 * u(i, 0.236_068)).collect();
        let g: &mut Graph = &mut m.graph;
        let (v, y) = (g.add_constant("w", Tensor::of_f32(&[64, 96], w.clone())), g.add_value("y"));
        g.add_node(Node::fake_quant(q, "f"), &[Some(v)], &[Some(y)]);
        m.quantizers[q].params = Some(quant::fit(&w, &[64, 96], &m.quantizers[q].scheme).unwrap());
        m
    }

    /// Squared error of the weights under their quantizer as it is now.
    pub fn loss(m: &Model) -> f64 {
        let (node, id) = m.constant_sites()[0];
        let t = &m.graph.constant(m.graph.node(node).input(0).unwrap()).unwrap().tensor;
        let x = t.to_f32().unwrap();
        let mut y = x.to_vec();
        quant::fake_quantize(&mut y, t.shape(), &m.quantizers[id].scheme, m.quantizers[id].params.as_ref()).unwrap();
        x.iter().zip(&y).map(|(a, b)| ((a - b) as f64).powi(2)).sum()
    }

    #[test]
    fn blocks_are_gathered_whatever_their_axis() {
        let mut m = weights(4, Zero::Real);
        let (_, id) = m.constant_sites()[0];
        m.quantizers[id].scheme.blocks = Blocks::block(0, 24);
        let t = m.graph.constant(m.graph.find_value("w").unwrap()).unwrap().tensor.clone();
        m.quantizers[id].params = Some(quant::fit(&t.to_f32().unwrap(), &[64, 96], &m.quantizers[id].scheme).unwrap());
        let x = t.to_f32().unwrap().into_owned();
        refit(&mut m, "test", true, |w| {
            assert_eq!(w.ends.len(), 3 * 96);
            let (b, block) = w.blocks().nth(2 * 96 + 5).unwrap();
            assert_eq!((b, block.len()), (197, 16));
            assert!(block.iter().enumerate().all(|(i, v)| *v == x[(48 + i) * 96 + 5]));
        })
        .unwrap();
    }
}
