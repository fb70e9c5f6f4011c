//! Restores the mean of each layer's output, channel by channel, in the order of execution and with everything before it quantized: the mean
//! difference between the float model and the quantized one, over samples and positions, goes into the layer's bias.
//! Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2 (the empirical form, appendix D).
//! Needs: weights with codes, samples. An approximation: its loss is measured with the result.
//! Declines: layers whose bias is computed, shared or has no slot; samples of rarer shapes than the commonest eight.

use crate::data::Dataset;
use crate::engine::{RunnerOptions, Walk, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{self, InputShapes, Linear, Model, NodeId, Op, Site, ValueId, bias_behind, constant_behind};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::{self, Blocks, Curve, Origin, Params, QuantizerId, Scheme, Zeros};
use crate::range;
use crate::target::Shift;
use crate::tensor::Tensor;

/// What the step may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorrectBias<'a> {
    /// Samples at most: means settle early, and what a layer reads is kept for all of them.
    pub samples: usize,
    /// What a bias becomes where a layer has none; `None`: int32 under the product of its scales.
    pub bias: Option<&'a Scheme>,
    /// Windows for the positions of power-of-two scales.
    pub shifts: &'a [Shift],
    /// Bytes that the kept tensors may take.
    pub memory: u64,
    pub threads: usize,
}

/// Shapes of samples that are walked, the commonest first.
const SHAPES: usize = 8;
/// Bytes that the kept tensors take at most, however much memory there is: more samples than this holds tell little more.
const KEPT: u64 = 256 << 20;

/// A layer with a bias: the node whose output is looked at, and the slot that holds the bias.
struct Layer {
    node: NodeId,
    slot: usize,
    output: ValueId,
    /// Axis of the output with one index a bias.
    axis: usize,
    channels: usize,
}

/// The `correct-bias` step.
pub fn correct_bias(model: &mut Model, how: &CorrectBias, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("correct-bias");
    let (data, samples) = data.ok_or_else(|| Error::usage("correct-bias needs sample inputs: give --data"))?;
    let layers = layers(model, &mut notes);
    if layers.is_empty() {
        return Ok(notes);
    }
    let stops: Vec<NodeId> = layers.iter().map(|l| l.node).collect();
    let groups = same_shapes(data, &samples[..samples.len().min(how.samples)])?;
    let groups = within(model, data, groups, &stops, how.memory.min(KEPT))?;
    let chosen: Vec<usize> = groups.iter().flatten().copied().collect();
    progress.begin("correct-bias", (chosen.len() + layers.len()) as u64);
    let wanted = float_means(model, &layers, data, &chosen, how.threads, progress)?;

    let read = |group: &Vec<usize>| group.iter().map(|&i| data.sample(i)).collect::<Result<Vec<_>>>();
    let mut walks = groups.iter().map(|group| Walk::new(model, read(group)?, RunnerOptions::default(), how.threads)).collect::<Result<Vec<_>>>()?;
    let mut corrected = 0;
    for (layer, wanted) in layers.iter().zip(&wanted) {
        crate::interrupt::check()?;
        let mut got = Means::new(layer.channels);
        for walk in &mut walks {
            walk.to(layer.node, layer.output)?.iter().try_for_each(|t| got.add(t, layer.axis))?;
        }
        let shift: Vec<f64> = wanted.mean().iter().zip(got.mean()).map(|(w, g)| w - g).collect();
        let added = add_to_bias(model, layer, &shift, how).at(|| &model.graph.node(layer.node).name)?;
        if added.iter().any(|a| *a != 0.0) {
            corrected += 1;
            for walk in &mut walks {
                walk.to(layer.node, layer.output)?.iter_mut().try_for_each(|t| shifted(t, layer.axis, &added).map(|s| *t = s))?;
            }
        }
        progress.tick(1);
    }
    progress.end();
    notes.changed("", format!("the means of {corrected} layers restored, over {} samples", chosen.len()));
    Ok(notes)
}

/// Sum and count by channel.
#[derive(Debug, Clone, PartialEq)]
struct Means {
    sum: Vec<f64>,
    count: f64,
}

impl Means {
    fn new(channels: usize) -> Self {
        Means { sum: vec![0.0; channels], count: 0.0 }
    }

    fn add(&mut self, t: &Tensor, axis: usize) -> Result<()> {
        let shape = t.shape();
        if shape.get(axis) != Some(&self.sum.len()) {
            return Err(Error::failed(format!("its output has shape {shape:?}, which has not {} channels in axis {axis}", self.sum.len())));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let x = t.to_f32()?;
        for (row, values) in x.chunks_exact(inner.max(1)).enumerate() {
            self.sum[row % shape[axis]] += values.iter().map(|v| *v as f64).sum::<f64>();
        }
        self.count += (x.len() / shape[axis]) as f64;
        Ok(())
    }

    fn merge(&mut self, o: &Means) {
        self.sum.iter_mut().zip(&o.sum).for_each(|(a, b)| *a += b);
        self.count += o.count;
    }

    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1.0)).collect()
    }
}

/// `t` with a number a channel added.
fn shifted(t: &Tensor, axis: usize, by: &[f32]) -> Result<Tensor> {
    let inner: usize = t.shape()[axis + 1..].iter().product();
    let mut x = t.to_f32()?.into_owned();
    for (row, values) in x.chunks_exact_mut(inner.max(1)).enumerate() {
        let by = by[row % by.len()];
        values.iter_mut().for_each(|v| *v += by);
    }
    Ok(Tensor::of_f32(t.shape(), x))
}

/// The layers whose bias can take a correction, in execution order.
fn layers(model: &Model, notes: &mut Notes) -> Vec<Layer> {
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
                    layers.push(Layer { node: id, slot: 2, output, axis: 1, channels });
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
                layers.push(Layer { node: add, slot, output: y, axis: rank - 1, channels });
            }
            _ => {}
        }
    }
    layers
}

/// Samples by the shapes of their inputs, the commonest shapes first.
pub(super) fn same_shapes(data: &Dataset, samples: &[usize]) -> Result<Vec<Vec<usize>>> {
    let mut groups: Vec<(InputShapes, Vec<usize>)> = Vec::new();
    for &i in samples {
        let shapes = shapes_of(&data.sample(i)?);
        match groups.iter_mut().find(|(s, _)| *s == shapes) {
            Some((_, group)) => group.push(i),
            None => groups.push((shapes, vec![i])),
        }
    }
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
    groups.truncate(SHAPES);
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// As many samples of each group as `memory` holds; at least one of the first.
fn within(model: &Model, data: &Dataset, groups: Vec<Vec<usize>>, stops: &[NodeId], memory: u64) -> Result<Vec<Vec<usize>>> {
    let mut left = memory;
    let mut kept = Vec::new();
    for mut group in groups {
        let bytes = Walk::kept_bytes(model, &shapes_of(&data.sample(group[0])?), stops)?.max(1);
        group.truncate(((left / bytes) as usize).max(kept.is_empty() as usize));
        left = left.saturating_sub(bytes * group.len() as u64);
        if !group.is_empty() {
            kept.push(group);
        }
    }
    Ok(kept)
}

fn float_means(model: &Model, layers: &[Layer], data: &Dataset, samples: &[usize], threads: usize, progress: &dyn Progress) -> Result<Vec<Means>> {
    let outputs: Vec<ValueId> = layers.iter().map(|l| l.output).collect();
    let mut total: Vec<Means> = layers.iter().map(|l| Means::new(l.channels)).collect();
    let see = |tensors: &[Tensor]| {
        let mut means: Vec<Means> = layers.iter().map(|l| Means::new(l.channels)).collect();
        means.iter_mut().zip(layers).zip(tensors).try_for_each(|((m, l), t)| m.add(t, l.axis))?;
        Ok(means)
    };
    data.watch(model, &outputs, samples, threads, see, |means| {
        total.iter_mut().zip(&means).for_each(|(t, m)| t.merge(m));
        progress.tick(1);
    })?;
    Ok(total)
}

/// Adds `shift` to the layer's bias, and says what was added once the bias is codes again.
fn add_to_bias(model: &mut Model, layer: &Layer, shift: &[f64], how: &CorrectBias) -> Result<Vec<f32>> {
    if shift.iter().any(|s| !s.is_finite()) {
        return Ok(vec![0.0; layer.channels]);
    }
    let Some(port) = model.graph.node(layer.node).input(layer.slot) else { return new_bias(model, layer, shift, how) };
    let fake = model.graph.value(port).producer().map(|(n, _)| n).filter(|n| model.graph.node(*n).op == Op::FakeQuant);
    let constant = constant_behind(&model.graph, port).ok_or_else(|| Error::failed("its bias is no constant"))?;
    let old = &model.graph.constant(constant).ok_or_else(|| Error::failed("its bias is no constant"))?.tensor;
    let shape = old.shape().to_vec();
    let before = old.to_f32()?.into_owned();
    let after: Vec<f32> = before.iter().zip(shift).map(|(b, s)| (*b as f64 + s) as f32).collect();
    let name = format!("{}_corrected", model.graph.value(constant).name);
    let own = model.graph.add_constant(&name, Tensor::of_f32(&shape, after.clone()));
    let Some(fake) = fake else {
        model.graph.set_input(layer.node, layer.slot, Some(own));
        return Ok(after.iter().zip(&before).map(|(a, b)| a - b).collect());
    };
    let stood = stands_for(model, fake)?.unwrap_or(before);
    model.graph.set_input(fake, 0, Some(own));
    let id = model.quantizers.root(model.graph.node(fake).quantizer().expect("a FakeQuant has a quantizer"));
    if !matches!(model.quantizers[id].params, Some(Params { origin: Origin::Product(..), .. })) {
        // Scales of its own follow the values.
        model.quantizers[id].params = Some(range::fit_bias(model, how.shifts, layer.node, &after, &shape, &model.quantizers[id].scheme)?);
    }
    let row = &model.quantizers[id];
    let params = row.params.as_ref().ok_or_else(|| Error::failed("its bias has no scale"))?;
    model.codes.insert(Site::of(fake), quant::quantize(&after, &shape, &row.scheme, params)?);
    let stands = stands_for(model, fake)?.unwrap_or(after);
    Ok(stands.iter().zip(&stood).map(|(a, b)| a - b).collect())
}

/// What the codes of a FakeQuant over a constant stand for.
fn stands_for(model: &Model, fake: NodeId) -> Result<Option<Vec<f32>>> {
    let Some(codes) = model.codes.get(&Site::of(fake)) else { return Ok(None) };
    let row = &model.quantizers[model.quantizers.root(model.graph.node(fake).quantizer().expect("a FakeQuant has a quantizer"))];
    let Some(params) = &row.params else { return Ok(None) };
    Ok(Some(quant::dequantize(codes, &row.scheme, params)?))
}

/// A bias for a layer that has none: codes where both its operands are codes, by the scheme asked for or int32 under the product of its scales; float otherwise.
fn new_bias(model: &mut Model, layer: &Layer, shift: &[f64], how: &CorrectBias) -> Result<Vec<f32>> {
    let values: Vec<f32> = shift.iter().map(|s| *s as f32).collect();
    let name = format!("{}_bias", model.graph.node(layer.node).name);
    let constant = model.graph.add_constant(&name, Tensor::of_f32(&[layer.channels], values.clone()));
    let factor = |slot: usize| -> Option<QuantizerId> {
        let (n, _) = model.graph.value(model.graph.node(layer.node).input(slot)?).producer()?;
        Some(model.quantizers.root(model.graph.node(n).quantizer()?))
    };
    let (Some(x), Some(w)) = (factor(0), factor(1)) else {
        model.graph.set_input(layer.node, layer.slot, Some(constant));
        return Ok(values);
    };
    let (scheme, params) = match how.bias.filter(|s| s.has_own_bias_scale()) {
        Some(scheme) => (scheme.clone(), range::fit_bias(model, how.shifts, layer.node, &values, &[layer.channels], scheme)?),
        None => {
            let scales =
                |q: QuantizerId| model.quantizers[q].params.as_ref().map(|p| p.scale.clone()).ok_or_else(|| Error::failed("its operands have no scales"));
            let (sx, sw) = (scales(x)?, scales(w)?);
            if sx.len() != 1 || ![1, layer.channels].contains(&sw.len()) {
                return Ok(vec![0.0; layer.channels]);
            }
            let blocks = if sw.len() == 1 { Blocks::tensor() } else { Blocks::channel(0) };
            let scale = sw.iter().map(|w| w * sx[0]).collect();
            (Scheme { blocks, ..Scheme::int(32, true) }, Params { scale, nested: None, zero: Zeros::None, curve: Curve::Linear, origin: Origin::Product(x, w) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Type};
    use crate::pass::Silent;
    use crate::tensor::DType;

    /// x[N,2] → FakeQuant → Gemm(w, bias) → h → FakeQuant → Gemm(w2) → y. Weights are rounded to whole numbers, all else is exact.
    fn rounded() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let names = ["x", "h", "w", "w2", "bias"];
        let [qx, qh, qw, qw2, qb] = names.map(|n| m.quantizers.add(n, Scheme::int(if n == "bias" { 32 } else { 16 }, true)));
        for (q, scale) in [(qx, 1.0 / 256.0), (qh, 1.0 / 256.0), (qw, 1.0), (qw2, 1.0), (qb, 1.0 / 256.0)] {
            m.quantizers[q].params = Some(Params::tensor(scale, None));
        }
        m.quantizers[qb].params.as_mut().unwrap().origin = Origin::Product(qx, qw);
        let value = |m: &mut Model, name: &str| {
            let v = m.graph.add_value(name);
            m.graph.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2)]) };
            v
        };
        let constant = |m: &mut Model, q: QuantizerId, name: &str, shape: &[usize], x: &[f32]| {
            let c = m.graph.add_constant(name, Tensor::of_f32(shape, x.to_vec()));
            let y = m.graph.add_value(&format!("{name}_dequantized"));
            let fake = m.graph.add_node(Node::fake_quant(q, format!("f{name}")), &[Some(c)], &[Some(y)]);
            let row = &m.quantizers[q];
            m.codes.insert(Site::of(fake), quant::quantize(x, shape, &row.scheme, row.params.as_ref().unwrap()).unwrap());
            y
        };
        let w = constant(&mut m, qw, "w", &[2, 2], &[0.375, 0.0, 0.0, 0.625]);
        let w2 = constant(&mut m, qw2, "w2", &[2, 2], &[0.75, 0.0, 0.0, 1.25]);
        let bias = constant(&mut m, qb, "bias", &[2], &[0.0, 0.5]);
        let [x, xq, h, hq, y] = ["x", "xq", "h", "hq", "y"].map(|n| value(&mut m, n));
        let g = &mut m.graph;
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(qx, "fx"), &[Some(x)], &[Some(xq)]);
        g.add_node(Node::new(Op::Gemm, "first"), &[Some(xq), Some(w), Some(bias)], &[Some(h)]);
        g.add_node(Node::fake_quant(qh, "fh"), &[Some(h)], &[Some(hq)]);
        g.add_node(Node::new(Op::Gemm, "second"), &[Some(hq), Some(w2)], &[Some(y)]);
        m
    }

    /// What the bias of the layer called `name` stands for.
    fn bias(m: &Model, name: &str) -> Vec<f32> {
        let (_, node) = m.graph.nodes().find(|(_, n)| n.name == name).unwrap();
        let fake = m.graph.value(node.input(2).unwrap()).producer().unwrap().0;
        stands_for(m, fake).unwrap().unwrap()
    }

    #[test]
    fn means_are_restored_layer_by_layer_behind_what_was_restored_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        // Both columns have mean 1.
        std::fs::write(&path, npy("<f4", false, &[2, 2], &[0.5f32, 0.25, 1.5, 1.75].map(f32::to_le_bytes).concat())).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        for threads in [1, 2] {
            let mut m = rounded();
            let how = CorrectBias { samples: 8, bias: None, shifts: &[], memory: 1 << 20, threads };
            let notes = correct_bias(&mut m, &how, Some((&data, &[0, 1])), &Silent).unwrap();
            assert!(notes.list().iter().any(|n| n.text.contains("means of 2 layers restored")), "{notes:?}");
            // 0.375 became 0 and 0.625 became 1: on inputs of mean 1 that lost 0.375 of the one, and gave as much to the other.
            assert_eq!(bias(&m, "first"), [0.375, 0.5 - 0.375]);
            // Its outputs have their means again, 0.375 and 1.125; 0.75 and 1.25 became 1. The layer had no bias.
            assert_eq!(bias(&m, "second"), [-0.25 * 0.375, 0.25 * 1.125]);
        }
    }

    #[test]
    fn means_by_channel_and_what_has_other_channels_is_refused() {
        let mut means = Means::new(2);
        means.add(&Tensor::of_f32(&[1, 2, 2], vec![1.0, 3.0, -2.0, -4.0]), 1).unwrap();
        means.add(&Tensor::of_f32(&[2, 2, 1], vec![5.0, 0.0, 7.0, 0.0]), 1).unwrap();
        assert_eq!(means.mean(), [4.0, -1.5]);
        assert!(means.add(&Tensor::of_f32(&[1, 3], vec![0.0; 3]), 1).unwrap_err().to_string().contains("not 2 channels"));
        let t = shifted(&Tensor::of_f32(&[1, 2, 2], vec![0.0; 4]), 1, &[1.0, -1.0]).unwrap();
        assert_eq!(&t.to_f32().unwrap()[..], [1.0, 1.0, -1.0, -1.0]);
    }
}
