//! Biases of layers, and how they are written under their quantizers.

use crate::error::{Error, Result};
use crate::graph::{self, InputShapes, Linear, Model, NodeId, Op, Site, ValueId, bias_behind, constant_behind};
use crate::note::Notes;
use crate::quant::{self, Blocks, Curve, Origin, Params, QuantizerId, Scheme, Zeros};
use crate::range;
use crate::target::Shift;
use crate::tensor::Tensor;

/// A layer with a bias: the node whose output is looked at, and the slot that holds the bias.
pub(super) struct Layer {
    pub node: NodeId,
    pub slot: usize,
    pub output: ValueId,
    /// The node that multiplies: the same, or the MatMul before an Add.
    pub product: NodeId,
    /// Axis of the output with one index a bias.
    pub axis: usize,
    pub channels: usize,
}

/// Under what biases are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Biases<'a> {
    /// What a bias becomes where a layer has none; `None`: int32 under the product of its scales.
    pub bias: Option<&'a Scheme>,
    /// Whether it stays float.
    pub float: bool,
    /// Windows for the positions of power-of-two scales.
    pub shifts: &'a [Shift],
}

/// The layers whose bias can take a correction, in execution order.
pub(super) fn layers(model: &Model, notes: &mut Notes) -> Vec<Layer> {
    let g = &model.graph;
    let inferred = graph::infer(model, &InputShapes::new());
    let mut layers = Vec::new();
    for (id, node) in g.nodes() {
        let Some(linear) = Linear::of(g, id).filter(|l| l.constant) else { continue };
        if linear.weight_slot == 0 {
            continue;
        }
        let Some(output) = node.output(0) else { continue };
        let channels = linear.out_channels(g);
        match node.op {
            Op::Conv | Op::ConvTranspose | Op::Gemm => {
                let plain = node.float("beta").unwrap_or(1.0) == 1.0;
                let fits = match linear.bias {
                    None => true,
                    Some(b) => constant_behind(g, b).and_then(|c| g.constant(c)).is_some_and(|c| c.tensor.len() == channels) && g.value(b).uses().len() == 1,
                };
                if channels > 0 && plain && fits {
                    layers.push(Layer { node: id, slot: 2, output, product: id, axis: 1, channels });
                } else {
                    notes.declined(&node.name, "its bias is computed, shared, or not one value a channel");
                }
            }
            Op::MatMul => {
                // The Add that follows holds the bias.
                let Some((add, slot)) = bias_behind(g, output, channels) else { continue };
                let (Some(bias), Some(y)) = (g.node(add).input(slot), g.node(add).output(0)) else { continue };
                if g.value(bias).uses().len() != 1 {
                    continue;
                }
                let Some(rank) = inferred.get(y).shape.as_ref().map(Vec::len).filter(|r| *r > 0) else { continue };
                layers.push(Layer { node: add, slot, output: y, product: id, axis: rank - 1, channels });
            }
            _ => {}
        }
    }
    layers
}

/// What the codes of a FakeQuant over a constant stand for.
pub(super) fn stands_for(model: &Model, fake: NodeId) -> Result<Option<Vec<f32>>> {
    let Some(codes) = model.codes.get(&Site::of(fake)) else { return Ok(None) };
    let row = &model.quantizers[model.quantizers.root(model.graph.node(fake).quantizer().expect("a FakeQuant has a quantizer"))];
    let Some(params) = &row.params else { return Ok(None) };
    Ok(Some(quant::dequantize(codes, &row.scheme, params)?))
}

/// Biases whose scale is the product of this quantizer's and another's follow it; codes that they have are found anew.
pub(super) fn follow(model: &mut Model, id: QuantizerId) {
    let roots: Vec<(NodeId, QuantizerId)> = model.constant_sites().into_iter().map(|(n, q)| (n, model.quantizers.root(q))).collect();
    for (node, q) in roots {
        let table = &model.quantizers;
        let Some(Params { origin: Origin::Product(x, w), .. }) = table[q].params else { continue };
        let (x, w) = (table.root(x), table.root(w));
        let (Some(of_x), Some(of_w), true) = (&table[x].params, &table[w].params, [x, w].contains(&id)) else { continue };
        let scale: Vec<f32> = of_w.scale.iter().map(|s| s * of_x.scale_at(0)).collect();
        let Ok(values) = stands_for(model, node) else { continue };
        let row = &mut model.quantizers[q];
        let Some(params) = row.params.as_mut().filter(|p| p.scale.len() == scale.len()) else { continue };
        params.scale = scale;
        let Some(values) = values else { continue };
        let shape = model.codes[&Site::of(node)].0.shape().to_vec();
        if let Ok(codes) = quant::quantize(&values, &shape, &row.scheme, params) {
            model.codes.insert(Site::of(node), codes);
        }
    }
}

/// The FakeQuant that gives a value.
pub(super) fn fake_of(model: &Model, v: ValueId) -> Option<NodeId> {
    model.graph.value(v).producer().map(|(n, _)| n).filter(|n| model.graph.node(*n).op == Op::FakeQuant)
}

/// What the bias of a layer is as it is computed with: what its codes stand for; zeros where there is none.
pub(super) fn current(model: &Model, layer: &Layer) -> Result<Vec<f32>> {
    model.graph.node(layer.node).input(layer.slot).map_or_else(|| Ok(vec![0.0; layer.channels]), |port| computed_with(model, port))
}

/// The same of the value that holds a bias.
pub(super) fn computed_with(model: &Model, port: ValueId) -> Result<Vec<f32>> {
    match fake_of(model, port).map(|f| stands_for(model, f)).transpose()?.flatten() {
        Some(values) => Ok(values),
        None => Ok(constant_of(model, port)?.0.to_f32()?.into_owned()),
    }
}

/// The constant behind a bias.
fn constant_of(model: &Model, port: ValueId) -> Result<(Tensor, ValueId)> {
    let constant = constant_behind(&model.graph, port).and_then(|v| Some((model.graph.constant(v)?.tensor.clone(), v)));
    constant.ok_or_else(|| Error::failed("its bias is no constant"))
}

impl Biases<'_> {
    /// Adds `shift` to the layer's bias, and says what was added once the bias is codes again.
    pub(super) fn add(&self, model: &mut Model, layer: &Layer, shift: &[f64]) -> Result<Vec<f32>> {
        let float = match model.graph.node(layer.node).input(layer.slot) {
            Some(port) => constant_of(model, port)?.0.to_f32()?.into_owned(),
            None => vec![0.0; layer.channels],
        };
        self.set(model, layer, float.iter().zip(shift).map(|(b, s)| (*b as f64 + s) as f32).collect())
    }

    /// Makes `values` the layer's bias, and says what was added once they are codes. What is not finite changes nothing.
    pub(super) fn set(&self, model: &mut Model, layer: &Layer, after: Vec<f32>) -> Result<Vec<f32>> {
        if after.iter().any(|s| !s.is_finite()) {
            return Ok(vec![0.0; layer.channels]);
        }
        let Some(port) = model.graph.node(layer.node).input(layer.slot) else { return self.make(model, layer, after) };
        let fake = fake_of(model, port);
        let (old, constant) = constant_of(model, port)?;
        let (shape, before) = (old.shape().to_vec(), old.to_f32()?.into_owned());
        let name = format!("{}_corrected", model.graph.value(constant).name);
        let own = model.graph.add_constant(&name, Tensor::of_f32(&shape, after.clone()));
        let Some(fake) = fake else {
            model.graph.set_input(layer.node, layer.slot, Some(own));
            model.graph.remove_idle(constant);
            return Ok(after.iter().zip(&before).map(|(a, b)| a - b).collect());
        };
        let stood = stands_for(model, fake)?.unwrap_or(before);
        model.graph.set_input(fake, 0, Some(own));
        model.graph.remove_idle(constant);
        let id = model.quantizers.root(model.graph.node(fake).quantizer().expect("a FakeQuant has a quantizer"));
        if !matches!(model.quantizers[id].params, Some(Params { origin: Origin::Product(..), .. })) {
            // Scales of its own follow the values.
            model.quantizers[id].params = Some(range::fit_bias(model, self.shifts, layer.node, &after, &shape, &model.quantizers[id].scheme)?);
        }
        let row = &model.quantizers[id];
        let params = row.params.as_ref().ok_or_else(|| Error::failed("its bias has no scale"))?;
        model.codes.insert(Site::of(fake), quant::quantize(&after, &shape, &row.scheme, params)?);
        let stands = stands_for(model, fake)?.unwrap_or(after);
        Ok(stands.iter().zip(&stood).map(|(a, b)| a - b).collect())
    }

    /// A bias for a layer that has none: codes where both its operands are codes, by the scheme asked for or int32 under the product of its scales;
    /// float otherwise, and where biases stay float.
    fn make(&self, model: &mut Model, layer: &Layer, values: Vec<f32>) -> Result<Vec<f32>> {
        let name = format!("{}_bias", model.graph.node(layer.node).name);
        let constant = model.graph.add_constant(&name, Tensor::of_f32(&[layer.channels], values.clone()));
        let factor = |slot: usize| -> Option<QuantizerId> {
            let (n, _) = model.graph.value(model.graph.node(layer.node).input(slot)?).producer()?;
            Some(model.quantizers.root(model.graph.node(n).quantizer()?))
        };
        let (Some(x), Some(w), false) = (factor(0), factor(1), self.float) else {
            model.graph.set_input(layer.node, layer.slot, Some(constant));
            return Ok(values);
        };
        let (scheme, params) = match self.bias.filter(|s| s.has_own_bias_scale()) {
            Some(scheme) => (scheme.clone(), range::fit_bias(model, self.shifts, layer.node, &values, &[layer.channels], scheme)?),
            None => {
                let scales =
                    |q: QuantizerId| model.quantizers[q].params.as_ref().map(|p| p.scale.clone()).ok_or_else(|| Error::failed("its operands have no scales"));
                let (sx, sw) = (scales(x)?, scales(w)?);
                if sx.len() != 1 || ![1, layer.channels].contains(&sw.len()) {
                    return Ok(vec![0.0; layer.channels]);
                }
                let blocks = if sw.len() == 1 { Blocks::tensor() } else { Blocks::channel(0) };
                let scale = sw.iter().map(|w| w * sx[0]).collect();
                (
                    Scheme { blocks, ..Scheme::int(32, true) },
                    Params { scale, nested: None, zero: Zeros::None, curve: Curve::Linear, origin: Origin::Product(x, w) },
                )
            }
        };
        let id = model.quantizers.add(&name, scheme);
        let codes = quant::quantize(&values, &[layer.channels], &model.quantizers[id].scheme, &params)?;
        let stands = quant::dequantize(&codes, &model.quantizers[id].scheme, &params)?;
        model.quantizers[id].params = Some(params);
        let g = &mut model.graph;
        let y = g.add_value(&format!("{name}_dequantized"));
        g.value_mut(y).ty = g.value(constant).ty.clone();
        let at = g.position(layer.node);
        let fake = g.insert_node(at, crate::graph::Node::fake_quant(id, format!("{name}_FakeQuant")), &[Some(constant)], &[Some(y)]);
        g.set_input(layer.node, layer.slot, Some(y));
        model.codes.insert(Site::of(fake), codes);
        Ok(stands)
    }
}
