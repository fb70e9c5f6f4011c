//! Layers whose widths can be chosen: what multiplies with constant weights, or reads a table, and the quantizers around it. What a width costs.

use crate::error::{At, Error, Result};
use crate::graph::{Graph, InputShapes, Linear, Model, NodeId, Op, Recurrent, infer};
use crate::quant::{Format, Origin, Quantizer, QuantizerId, Timing, Zero};
use crate::range::{self, Weights};
use crate::target::{Legal, Limit, Must, Profile, Slot, name_of};
use crate::tensor::DType;
use std::collections::{BTreeMap, BTreeSet};

/// A layer, or several that share their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The first node's name; where it has none, that of its weight.
    pub name: String,
    pub nodes: Vec<NodeId>,
    /// Quantizers of its weights.
    pub weights: Vec<QuantizerId>,
    /// Quantizers of what flows in.
    pub inputs: BTreeSet<QuantizerId>,
    /// Weights.
    pub elements: u64,
    /// Multiply-adds, as far as shapes are known.
    pub macs: u64,
}

impl Layer {
    /// Bits that its weights have now.
    pub fn bits(&self, model: &Model) -> u8 {
        self.weights.iter().map(|q| model.quantizers[*q].scheme.format.bits()).max().unwrap_or(0)
    }

    /// The widest of what flows in: bits, 32 where it stays float.
    pub fn input_bits(&self, model: &Model) -> u8 {
        self.inputs.iter().map(|q| model.quantizers[*q].scheme.format.bits()).max().unwrap_or(32)
    }
}

/// Every layer whose weights are integer codes of at most 16 bits with scales from their values, in the order of the graph.
pub fn layers(model: &Model, shapes: &InputShapes) -> Vec<Layer> {
    let g = &model.graph;
    let inferred = infer(model, shapes);
    let mut constants: BTreeMap<QuantizerId, Vec<NodeId>> = BTreeMap::new();
    model.constant_sites().into_iter().for_each(|(node, id)| constants.entry(model.quantizers.root(id)).or_default().push(node));
    let mut layers: Vec<Layer> = Vec::new();
    for (id, node) in g.nodes() {
        let (linear, recurrent) = (Linear::of(g, id), Recurrent::of(g, id));
        let slots: &[usize] = match (&linear, recurrent) {
            (Some(l), _) => &[l.weight_slot],
            (None, Some(_)) => &Recurrent::WEIGHTS,
            (None, None) if node.op == Op::Gather => &[0],
            _ => continue,
        };
        let behind = |slot: usize| Some(model.quantizer_behind(node.input(slot)?)?.1);
        let mut weights = Vec::new();
        for q in slots.iter().filter_map(|slot| behind(*slot)) {
            // One that several constants share has no range of its own to fit.
            let one = constants.get(&q).is_some_and(|sites| sites.len() == 1);
            if one && chosen(&model.quantizers[q]) && !weights.contains(&q) {
                weights.push(q);
            }
        }
        if weights.is_empty() {
            continue;
        }
        let flows = |slot: &usize| !slots.contains(slot) && node.flows(*slot);
        let inputs: BTreeSet<QuantizerId> = (0..node.inputs().len()).filter(flows).filter_map(behind).collect();
        let macs = linear.map_or(recurrent.map_or(Some(0), |r| r.macs(g, &inferred)), |l| l.macs(g, &inferred)).unwrap_or(0);
        if let Some(same) = layers.iter_mut().find(|l| l.weights.iter().any(|q| weights.contains(q))) {
            same.nodes.push(id);
            same.macs += macs;
            same.inputs.extend(inputs);
            weights.retain(|q| !same.weights.contains(q));
            same.elements += elements(g, &constants, &weights);
            same.weights.extend(weights);
            continue;
        }
        let name = if node.name.is_empty() { model.quantizers[weights[0]].name.clone() } else { node.name.clone() };
        let elements = elements(g, &constants, &weights);
        layers.push(Layer { name, nodes: vec![id], elements, weights, inputs, macs });
    }
    layers
}

fn elements(g: &Graph, constants: &BTreeMap<QuantizerId, Vec<NodeId>>, ids: &[QuantizerId]) -> u64 {
    ids.iter().flat_map(|q| &constants[q]).filter_map(|n| g.constant(g.node(*n).input(0)?)).map(|c| c.tensor.len() as u64).sum()
}

/// Whether the width of a weight's codes may be chosen.
fn chosen(row: &Quantizer) -> bool {
    matches!(row.scheme.format, Format::Int { bits: ..=16, .. })
        && row.scheme.timing == Timing::Static
        && row.params.as_ref().is_some_and(|p| p.origin == Origin::Fitted)
}

/// The same quantizer in `bits` bits, its scales fitted to the constant: below the width it has now by least squared error. As it is for its own width.
pub fn weight_at(model: &Model, id: QuantizerId, bits: u8) -> Result<Quantizer> {
    let mut row = model.quantizers[id].clone();
    let Format::Int { bits: now, signed, narrow } = row.scheme.format else { return Err(Error::failed("its codes are no integers")).at(|| &row.name) };
    if bits == now {
        return Ok(row);
    }
    row.scheme.format = Format::Int { bits, signed, narrow };
    if let Zero::Fixed(z) = &mut row.scheme.zero {
        *z = if bits > now { *z << (bits - now) } else { *z >> (now - bits) };
    }
    let site = model.constant_sites().into_iter().find(|(_, q)| model.quantizers.root(*q) == id);
    let constant = site.and_then(|(node, _)| model.graph.constant(model.graph.node(node).input(0)?));
    let tensor = &constant.ok_or_else(|| Error::failed("reads no constant")).at(|| &row.name)?.tensor;
    let how = if bits < now { Weights::Mse } else { Weights::MinMax };
    row.params = Some(range::fit_constant(&tensor.to_f32().at(|| &row.name)?, tensor.shape(), &row.scheme, how).at(|| &row.name)?);
    Ok(row)
}

/// Quantizers of a layer's weights.
pub type Rows = Vec<(QuantizerId, Quantizer)>;

/// The layer's weights in `bits` bits.
pub fn layer_at(model: &Model, layer: &Layer, bits: u8) -> Result<Rows> {
    layer.weights.iter().map(|&q| Ok((q, weight_at(model, q, bits)?))).collect()
}

/// The limits that bind each node.
pub type Bound<'a> = BTreeMap<NodeId, Vec<&'a Limit>>;

/// Of `widths`, those in which the target holds the layer's weights, ascending. `bound`: what [`Profile::bound`] says of the model.
pub fn legal_widths(model: &Model, profile: &Profile, bound: &Bound, layer: &Layer, widths: &[u8]) -> Vec<u8> {
    let limits = layer.nodes.iter().flat_map(|n| bound.get(n).into_iter().flatten());
    let lists: Vec<&[String]> = limits.filter_map(|l| if let Must::Weights(list) = &l.must { Some(&list[..]) } else { None }).collect();
    // Operators that find their input's scale when the model runs have 8-bit types.
    let dynamic = layer.inputs.iter().any(|q| model.quantizers[*q].scheme.timing == Timing::Dynamic);
    let holds = |bits: &u8| {
        let typed = stored(*bits).is_some_and(|t| !dynamic || t.bits() == 8);
        typed && layer.weights.iter().all(|q| holds(&profile.legal, Slot::Weights, &lists, model.quantizers[*q].scheme.format, *bits))
    };
    let mut legal: Vec<u8> = widths.iter().copied().filter(holds).collect();
    legal.sort_unstable();
    legal.dedup();
    legal
}

/// Whether a slot and all of `lists` hold the format in `bits` bits.
pub fn holds(legal: &Legal, slot: Slot, lists: &[&[String]], format: Format, bits: u8) -> bool {
    let Format::Int { signed, .. } = format else { return false };
    let Some(name) = name_of(Format::Int { bits, signed, narrow: false }) else { return false };
    legal.refuses_format(slot, name).is_none() && lists.iter().all(|l| l.iter().any(|f| f == name))
}

/// The type that stores integers of `bits` bits.
fn stored(bits: u8) -> Option<DType> {
    Format::Int { bits, signed: true, narrow: false }.storage()
}

/// Bytes of the layer's weights as they are stored in `bits` bits.
pub fn bytes(layer: &Layer, bits: u8) -> f64 {
    layer.elements as f64 * stored(bits).map_or(32, |d| d.bits()) as f64 / 8.0
}

/// Bit operations of the layer (HAWQ-V3): multiply-adds times the bits of both operands.
pub fn bit_operations(layer: &Layer, weight_bits: u8, input_bits: u8) -> f64 {
    layer.macs as f64 * f64::from(weight_bits) * f64::from(input_bits)
}
