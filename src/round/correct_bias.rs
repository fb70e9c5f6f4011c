//! Restores the mean of each layer's output, channel by channel, in the order of execution and with everything before it quantized: the mean
//! difference between the float model and the quantized one, over samples and positions, goes into the layer's bias.
//! Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2 (the empirical form, appendix D).
//! Needs: weights with codes, samples. An approximation: its loss is measured with the result.
//! Declines: layers whose bias is computed, shared or has no slot; samples of rarer shapes than the commonest eight; all of it, where weights have less
//! than 8 bits and the outputs are farther from the float model's afterwards.

use super::biases::{Biases, layers};
use super::inputs::Gathered;
use super::moments::{Moments, moved, of_float};
use super::samples::{KEPT, same_shapes, walks, within};
use crate::data::Dataset;
use crate::engine::{RunnerOptions, Trial};
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId};
use crate::note::Notes;
use crate::pass::Progress;

/// What the step may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorrectBias<'a> {
    /// Samples at most: means settle early, and what a layer reads is kept for all of them.
    pub samples: usize,
    pub biases: Biases<'a>,
    /// What has been gathered of the float model before.
    pub gathered: Option<&'a Gathered>,
    /// Bytes that the kept tensors may take.
    pub memory: u64,
    pub threads: usize,
}

/// Samples that judge what was restored, and how many times as large the loss on them may be: on so few it says no less for sure.
pub const JUDGES: usize = 4;
const WORSE: f64 = 1.5;

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
    let known = how.gathered.and_then(|g| g.outputs.of(&layers, &chosen));
    progress.begin("correct-bias", (if known.is_some() { 0 } else { chosen.len() } + layers.len()) as u64);
    // Errors of eight bits are small. Those of fewer may have been made up for by the layers behind, of which a mean says nothing.
    let doubtful = model.constant_sites().into_iter().any(|(_, q)| model.quantizers[q].scheme.format.bits() < 8);
    // The last samples judge: where there are enough, no mean is taken over them.
    let judge = || -> Result<(Trial, f64, Model)> {
        let judges = samples.iter().rev().take(JUDGES).map(|&i| data.sample(i)).collect::<Result<Vec<_>>>()?;
        let trial = Trial::new(model, judges, how.threads)?;
        let before = trial.loss(&trial.plans(model), &model.quantizers)?;
        Ok((trial, before, model.clone()))
    };
    let judged = doubtful.then(judge).transpose()?;
    let wanted = match known {
        Some(known) => known,
        None => of_float(model, &layers, data, &chosen, how.threads, progress)?,
    };
    let mut walks = walks(model, data, &groups, RunnerOptions::default(), how.threads)?;
    let mut corrected = 0;
    for (layer, wanted) in layers.iter().zip(&wanted) {
        crate::interrupt::check()?;
        let mut got = Moments::new(layer.channels);
        for walk in &mut walks {
            walk.to(layer.node, layer.output)?.iter().try_for_each(|t| got.add(t, layer.axis))?;
        }
        let shift: Vec<f64> = wanted.mean().iter().zip(got.mean()).map(|(w, g)| w - g).collect();
        let added = how.biases.add(model, layer, &shift).at(|| &model.graph.node(layer.node).name)?;
        if added.iter().any(|a| *a != 0.0) {
            corrected += 1;
            for walk in &mut walks {
                walk.to(layer.node, layer.output)?.iter_mut().try_for_each(|t| moved(t, layer.axis, &[], &added).map(|s| *t = s))?;
            }
        }
        progress.tick(1);
    }
    drop(walks);
    progress.end();
    if let Some((trial, before, kept)) = judged {
        let after = trial.loss(&trial.plans(model), &model.quantizers)?;
        if after > WORSE * before {
            *model = kept;
            notes.declined("", format!("biases stay as they were: with the layers' means restored the loss would grow from {before:.2e} to {after:.2e}"));
            return Ok(notes);
        }
    }
    notes.changed("", format!("the means of {corrected} layers restored, over {} samples", chosen.len()));
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InputInfo;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Node, Op, Site, Type};
    use crate::pass::Silent;
    use crate::quant::{self, Origin, Params, QuantizerId, Scheme};
    use crate::round::biases::stands_for;
    use crate::tensor::{DType, Tensor};

    /// x[N,2] → FakeQuant → Gemm(w, bias) → h → FakeQuant → Gemm(w2) → y. Weights are rounded to whole numbers, all else is exact.
    fn rounded(bits: u8) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let names = ["x", "h", "w", "w2", "bias"];
        let width = |n: &str| match n {
            "bias" => 32,
            "w" | "w2" => bits,
            _ => 16,
        };
        let [qx, qh, qw, qw2, qb] = names.map(|n| m.quantizers.add(n, Scheme::int(width(n), true)));
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
            let mut m = rounded(16);
            let how = CorrectBias { samples: 8, biases: Biases { bias: None, float: false, shifts: &[] }, gathered: None, memory: 1 << 20, threads };
            let notes = correct_bias(&mut m, &how, Some((&data, &[0, 1])), &Silent).unwrap();
            assert!(notes.list().iter().any(|n| n.text.contains("means of 2 layers restored")), "{notes:?}");
            // 0.375 became 0 and 0.625 became 1: on inputs of mean 1 that lost 0.375 of the one, and gave as much to the other.
            assert_eq!(bias(&m, "first"), [0.375, 0.5 - 0.375]);
            // Its outputs have their means again, 0.375 and 1.125; 0.75 and 1.25 became 1. The layer had no bias.
            assert_eq!(bias(&m, "second"), [-0.25 * 0.375, 0.25 * 1.125]);
        }
    }

    /// What is right for the first two samples makes it worse for the others, and they judge.
    #[test]
    fn where_the_outputs_go_astray_all_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let rows = [1.0f32, 1.5, -1.0, -1.5, -0.5, -1.0].map(|x| [x, 0.5 * x]).concat();
        std::fs::write(&path, npy("<f4", false, &[6, 2], &rows.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())).unwrap();
        let input = InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        let mut m = rounded(4);
        let how = CorrectBias { samples: 2, biases: Biases { bias: None, float: false, shifts: &[] }, gathered: None, memory: 1 << 20, threads: 1 };
        let notes = correct_bias(&mut m, &how, Some((&data, &[0, 1, 2, 3, 4, 5])), &Silent).unwrap();
        assert!(notes.list().iter().any(|n| n.text.contains("the loss would grow from")), "{notes:?}");
        assert_eq!(m, rounded(4));
    }
}
