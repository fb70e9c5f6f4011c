//! What may be raised from the width it has to 16 bits or float, and how much of the outputs' noise each causes: everything is held in 16 bits, and one layer
//! alone, its weights and what flows into it, is as it was. The table alone changes.

use super::layers::{Layer, bit_operations, bytes, holds, legal_widths};
use super::sensitivity::{WIDE, all_wide};
use crate::engine::Trial;
use crate::error::Result;
use crate::graph::{InputShapes, Model, NodeId};
use crate::pass::Progress;
use crate::quant::{QuantizerId, Timing};
use crate::target::{Must, Profile, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// A layer with what flows into it, or a tensor that flows into no layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    pub name: String,
    /// The layer's nodes; of a lone tensor those that make it.
    pub nodes: Vec<NodeId>,
    /// The layer; `None`: a lone tensor.
    pub layer: Option<Layer>,
    /// Quantizers of activations.
    pub values: Vec<QuantizerId>,
    /// Names of the tensors that they quantize.
    pub tensors: Vec<String>,
    /// Whether the target holds all of it in 16 bits.
    pub sixteen: bool,
}

/// Everything below 16 bits that can be raised, in the order of the graph.
pub fn units(model: &Model, profile: &Profile, shapes: &InputShapes) -> Vec<Unit> {
    let g = &model.graph;
    let mut tensors: BTreeMap<QuantizerId, Vec<String>> = BTreeMap::new();
    let mut around: BTreeMap<QuantizerId, Vec<NodeId>> = BTreeMap::new();
    let mut makers: BTreeMap<QuantizerId, Vec<NodeId>> = BTreeMap::new();
    let mut order = Vec::new();
    for (_, node) in g.nodes() {
        let (Some(q), Some(x), Some(y)) = (node.quantizer(), node.input(0), node.output(0)) else { continue };
        let id = model.quantizers.root(q);
        let scheme = &model.quantizers[id].scheme;
        if g.constant(x).is_some() || scheme.timing == Timing::Dynamic || scheme.format.bits() >= WIDE || !scheme.blocks.is_tensor() {
            continue;
        }
        if !tensors.contains_key(&id) {
            order.push(id);
        }
        let named = if g.is_output(y) { y } else { x };
        tensors.entry(id).or_default().push(g.value(named).name.clone());
        let readers = g.value(y).uses().iter().filter(|p| g.get_node(p.node).is_some()).map(|p| p.node);
        around.entry(id).or_default().extend(readers.chain(g.value(x).producer().map(|p| p.0)));
        makers.entry(id).or_default().extend(g.value(x).producer().map(|p| p.0));
    }
    let bound = profile.bound(model);
    let legal = |id: &QuantizerId| {
        let limits = around[id].iter().flat_map(|n| bound.get(n).into_iter().flatten());
        let lists: Vec<&[String]> = limits.filter_map(|l| if let Must::Activations(list) = &l.must { Some(&list[..]) } else { None }).collect();
        holds(&profile.legal, Slot::Activations, &lists, model.quantizers[*id].scheme.format, WIDE)
    };
    let mut units = Vec::new();
    let mut read = BTreeSet::new();
    for layer in super::layers::layers(model, shapes) {
        let values: Vec<QuantizerId> = layer.inputs.iter().copied().filter(|q| tensors.contains_key(q)).collect();
        read.extend(values.iter().copied());
        if layer.bits(model) >= WIDE && values.is_empty() {
            continue;
        }
        units.push(Unit {
            name: layer.name.clone(),
            nodes: layer.nodes.clone(),
            sixteen: legal_widths(model, profile, &bound, &layer, &[WIDE]) == [WIDE] && values.iter().all(legal),
            tensors: values.iter().flat_map(|q| tensors[q].clone()).collect(),
            layer: Some(layer),
            values,
        });
    }
    for id in order.into_iter().filter(|id| !read.contains(id)) {
        let name = model.quantizers[id].name.clone();
        units.push(Unit { name, nodes: makers[&id].clone(), layer: None, sixteen: legal(&id), tensors: tensors[&id].clone(), values: vec![id] });
    }
    units
}

/// The noise that each unit causes by itself, in the measure of [`Trial`].
pub fn noises(model: &Model, units: &[Unit], trial: &Trial, progress: &dyn Progress) -> Result<Vec<f64>> {
    let layers: Vec<Layer> = units.iter().filter_map(|u| u.layer.clone()).collect();
    let wide = all_wide(model, &layers)?;
    let plans = trial.live_plans(model);
    let least = trial.loss(&plans, &wide)?;
    progress.begin("sensitivity", units.len() as u64);
    let mut noises = Vec::new();
    for unit in units {
        let mut table = wide.clone();
        let own = unit.layer.iter().flat_map(|l| &l.weights).chain(&unit.values);
        own.for_each(|q| table[*q] = model.quantizers[*q].clone());
        noises.push((trial.loss(&plans, &table)? - least).max(0.0));
        progress.tick(1);
    }
    progress.end();
    Ok(noises)
}

/// Bytes by which the weights grow.
pub fn added_bytes(model: &Model, unit: &Unit) -> f64 {
    unit.layer.as_ref().map_or(0.0, |l| if unit.sixteen { bytes(l, WIDE) } else { l.elements as f64 * 4.0 } - bytes(l, l.bits(model)))
}

/// Bit operations of all layers where the units of `raised` are.
pub fn bit_operations_of(model: &Model, units: &[Unit], raised: &BTreeSet<usize>) -> f64 {
    let mut bits: BTreeMap<QuantizerId, u8> = BTreeMap::new();
    for unit in raised.iter().map(|i| &units[*i]) {
        let own = unit.layer.iter().flat_map(|l| &l.weights).chain(&unit.values);
        bits.extend(own.map(|q| (*q, if unit.sixteen { WIDE } else { 32 })));
    }
    let of = |q: &QuantizerId| bits.get(q).copied().unwrap_or(model.quantizers[*q].scheme.format.bits());
    let one = |l: &Layer| bit_operations(l, l.weights.iter().map(of).max().unwrap_or(32), l.inputs.iter().map(of).max().unwrap_or(32));
    units.iter().filter_map(|u| u.layer.as_ref()).map(one).sum()
}
