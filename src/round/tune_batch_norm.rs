//! Restores mean and deviation of each layer's output, channel by channel, in the order of execution and with everything before it quantized: what
//! folding a batch normalization back in would give whose running statistics were taken anew behind the quantized layer.
//! Source: Hubara et al. 2021, Accurate Post Training Quantization With Small Calibration Sets, section 3.5 (Para-Normalization). The float model's own
//! statistics over the samples stand for the normalization's scale and offset, which folding leaves nothing of and which layers without one never had.
//! Weights keep their codes: a channel's factor goes into its scale, and into its bias. Needs: weights with codes, samples.
//! Declines: factors where a channel has no scale of its own to take it, or a scale must be a power of two (its mean is restored all the same);
//! everything, where held-out samples are served worse.

use super::biases::{Biases, Layer, current, follow, layers};
use super::moments::{Moments, moved, of_float};
use super::samples::{KEPT, held_out, same_shapes, walks, within};
use crate::data::Dataset;
use crate::engine::{RunnerOptions, Trial};
use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, NodeId, Site};
use crate::note::Notes;
use crate::pass::Progress;
use crate::quant::{QuantizerId, ScaleKind, nearest_scale};
use crate::tensor::Tensor;

/// What the step may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TuneBatchNorm<'a> {
    /// Samples at most, those held out to judge by included.
    pub samples: usize,
    pub biases: Biases<'a>,
    /// Bytes that the kept tensors may take.
    pub memory: u64,
    pub threads: usize,
}

/// Factors beyond which a channel's statistics say nothing of it.
const MOST: f64 = 4.0;

/// The `tune-batch-norm` step. `float` is the model before it was placed.
pub fn tune_batch_norm(model: &mut Model, how: &TuneBatchNorm, float: &Model, data: Option<(&Dataset, &[usize])>, progress: &dyn Progress) -> Result<Notes> {
    let mut notes = Notes::of("tune-batch-norm");
    let (data, samples) = data.ok_or_else(|| Error::usage("tune-batch-norm needs sample inputs: give --data"))?;
    let Some((seen, held)) = held_out(&samples[..samples.len().min(how.samples)], 4, &mut notes) else { return Ok(notes) };
    let layers: Vec<Layer> = layers(model, &mut notes).into_iter().filter(|l| float.graph.has_value(l.output)).collect();
    if layers.is_empty() {
        return Ok(notes);
    }
    let stops: Vec<NodeId> = layers.iter().map(|l| l.node).collect();
    let groups = within(model, data, same_shapes(data, &seen)?, &stops, how.memory.min(KEPT))?;
    let chosen: Vec<usize> = groups.iter().flatten().copied().collect();
    progress.begin("tune-batch-norm", (chosen.len() + layers.len()) as u64);
    let wanted = of_float(float, &layers, data, &chosen, how.threads, progress)?;
    let trial = Trial::new(float, held.iter().map(|i| data.sample(*i)).collect::<Result<_>>()?, how.threads)?;
    let before = trial.loss(&trial.plans(model), &model.quantizers)?;
    let kept = model.clone();

    let mut walks = walks(model, data, &groups, RunnerOptions::default(), how.threads)?;
    let (mut scaled, mut refused) = (0, Vec::new());
    for (layer, wanted) in layers.iter().zip(&wanted) {
        crate::interrupt::check()?;
        let name = model.graph.node(layer.node).name.clone();
        let mut got = Moments::new(layer.channels);
        for walk in &mut walks {
            walk.to(layer.node, layer.output).at(|| &name)?.iter().try_for_each(|t| got.add(t, layer.axis)).at(|| &name)?;
        }
        let bias = current(model, layer)?;
        let factor = match scales(model, layer) {
            Some(scale) => {
                scaled += 1;
                let factor: Vec<f64> = wanted.deviation().iter().zip(got.deviation()).map(|(w, g)| factor(*w, g)).collect();
                scale.multiply(model, &factor)
            }
            None => {
                refused.push(name.clone());
                vec![1.0; layer.channels]
            }
        };
        // y' = factor · (y − its mean) + the mean wanted, of which the weights now make factor · (y − bias).
        let (means, aims) = (got.mean(), wanted.mean());
        let aim = |c: usize| (factor[c] as f64 * (bias[c] as f64 - means[c]) + aims[c]) as f32;
        how.biases.set(model, layer, (0..layer.channels).map(aim).collect()).at(|| &name)?;
        let now = current(model, layer)?;
        let by: Vec<f32> = (0..layer.channels).map(|c| now[c] - factor[c] * bias[c]).collect();
        for walk in &mut walks {
            walk.to(layer.node, layer.output)?.iter_mut().try_for_each(|t: &mut Tensor| moved(t, layer.axis, &factor, &by).map(|m| *t = m))?;
        }
        progress.tick(1);
    }
    let after = trial.loss(&trial.plans(model), &model.quantizers)?;
    progress.end();
    notes.declined_alike(&refused, |more| format!("the deviations of its channels stay{more}: no scale of their own takes a factor; the means are restored"));
    let told = format!("{before:.4} → {after:.4} on {} held-out samples", held.len());
    if after.is_nan() || after > before {
        *model = kept;
        notes.declined("", format!("all is left as it was, since the loss would grow: {told}"));
    } else {
        notes.changed("", format!("the means of {} layers restored, over {} samples, and the deviations of {scaled}: loss {told}", layers.len(), chosen.len()));
    }
    Ok(notes)
}

/// What makes a deviation of `got` one of `wanted`; 1 where either says nothing.
fn factor(wanted: f64, got: f64) -> f64 {
    let f = wanted / got;
    if f.is_finite() && (1.0 / MOST..=MOST).contains(&f) { f } else { 1.0 }
}

/// The scales of a layer's weight, each of one output channel alone.
struct Scales {
    id: QuantizerId,
    /// The output channel of each scale.
    channel: Vec<usize>,
}

/// The scales that a factor a channel may go into; `None` where there are none.
fn scales(model: &Model, layer: &Layer) -> Option<Scales> {
    let g = &model.graph;
    if layer.product != layer.node && g.node(layer.product).output(0)? != g.node(layer.node).other(layer.slot)? {
        // What the product gives is quantized before the bias comes.
        return None;
    }
    let linear = Linear::of(g, layer.product)?;
    let (fake, _) = g.value(linear.weight).producer()?;
    let id = model.quantizers.root(g.node(fake).quantizer()?);
    let row = &model.quantizers[id];
    let (params, codes) = (row.params.as_ref()?, model.codes.get(&Site::of(fake))?);
    let alone =
        g.value(linear.weight).uses().len() == 1 && g.nodes().filter(|(_, n)| n.quantizer().is_some_and(|q| model.quantizers.root(q) == id)).count() == 1;
    if !alone || params.nested.is_some() || !matches!(row.scheme.scale, ScaleKind::Exact(_)) {
        return None;
    }
    let shape = codes.0.shape();
    let members = row.scheme.blocks.layout(shape).ok()?.members();
    let channels = linear.channels(g, shape);
    let mut channel: Vec<Option<usize>> = vec![None; params.scale.len()];
    for (i, block) in members.iter().enumerate() {
        let (_, out) = channels(i);
        let of = channel.get_mut(*block as usize)?;
        if of.is_some_and(|c| c != out) {
            return None;
        }
        *of = Some(out);
    }
    Some(Scales { id, channel: channel.into_iter().collect::<Option<_>>()? })
}

impl Scales {
    /// Multiplies each scale; the factors as the scales' type holds them. Of several scales a channel the first decides, so that all grow alike.
    fn multiply(&self, model: &mut Model, factor: &[f64]) -> Vec<f32> {
        let mut held = vec![1.0; factor.len()];
        let row = &mut model.quantizers[self.id];
        let (ScaleKind::Exact(dtype), Some(params)) = (&row.scheme.scale, &mut row.params) else { return held };
        let mut first = vec![true; factor.len()];
        for (scale, c) in params.scale.iter_mut().zip(&self.channel) {
            let new = nearest_scale((*scale as f64 * factor[*c]) as f32, *dtype);
            if std::mem::take(&mut first[*c]) {
                held[*c] = new / *scale;
            }
            *scale = new;
        }
        follow(model, self.id);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Plans, Running};
    use crate::note::NoteKind;
    use crate::pass::Silent;
    use crate::quant::Blocks;
    use crate::round::testing::{models, samples, weight_codes};

    fn how(threads: usize) -> TuneBatchNorm<'static> {
        TuneBatchNorm { samples: 64, biases: Biases { bias: None, float: false, shifts: &[] }, memory: 1 << 20, threads }
    }

    /// Moments of the layers' outputs over the samples that are learnt from.
    fn moments(m: &Model, data: &Dataset, samples: &[usize]) -> Vec<Moments> {
        let layers = layers(m, &mut Notes::default());
        let plans = Plans::new(m, &layers.iter().map(|l| l.output).collect::<Vec<_>>(), RunnerOptions::default());
        let mut all: Vec<Moments> = layers.iter().map(|l| Moments::new(l.channels)).collect();
        for i in samples.iter().filter(|i| *i % 4 != 3) {
            let tensors = plans.run(&mut Running::default(), &data.sample(*i).unwrap(), &m.quantizers).unwrap();
            all.iter_mut().zip(&layers).zip(&tensors).for_each(|((a, l), t)| a.add(t, l.axis).unwrap());
        }
        all
    }

    #[test]
    fn means_and_deviations_are_those_of_the_float_model() {
        let dir = tempfile::tempdir().unwrap();
        let data = samples(dir.path(), 64, false);
        let all: Vec<usize> = (0..64).collect();
        for blocks in [Blocks::channel(0), Blocks::block(1, 4)] {
            let (float, m) = models(&blocks);
            // A bias has one scale a channel whatever the weights have.
            let (mut one, mut two) = (m.clone(), m.clone());
            let notes = tune_batch_norm(&mut one, &how(1), &float, Some((&data, &all)), &Silent).unwrap();
            tune_batch_norm(&mut two, &how(3), &float, Some((&data, &all)), &Silent).unwrap();
            assert!(one == two, "the result depends on the number of threads");
            assert!(notes.list().iter().any(|n| n.text.contains("means of 2 layers") && n.text.contains("deviations of 2")), "{notes:?}");
            assert_eq!(weight_codes(&one), weight_codes(&m));
            let (wanted, before, got) = (moments(&float, &data, &all), moments(&m, &data, &all), moments(&one, &data, &all));
            let mut far = 0;
            for ((w, b), g) in wanted.iter().zip(&before).zip(&got) {
                for c in 0..w.mean().len() {
                    let spread = w.deviation()[c];
                    far += ((b.mean()[c] - w.mean()[c]).abs() > 0.05 * spread) as usize;
                    assert!((g.mean()[c] - w.mean()[c]).abs() < 0.01 * spread, "{} {}", g.mean()[c], w.mean()[c]);
                    assert!((g.deviation()[c] / spread - 1.0).abs() < 0.02, "{} {spread}", g.deviation()[c]);
                }
            }
            assert!(far > 10, "nothing was wrong before");
        }
    }

    #[test]
    fn one_scale_for_all_channels_restores_means_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = samples(dir.path(), 64, false);
        let all: Vec<usize> = (0..64).collect();
        let (float, mut m) = models(&Blocks::tensor());
        let before = m.clone();
        let notes = tune_batch_norm(&mut m, &how(1), &float, Some((&data, &all)), &Silent).unwrap();
        assert!(notes.list().iter().any(|n| n.kind == NoteKind::Declined && n.about == "first" && n.text.contains("and 1 more")), "{notes:?}");
        for (w, g) in moments(&float, &data, &all).iter().zip(moments(&m, &data, &all)) {
            (0..w.mean().len()).for_each(|c| assert!((g.mean()[c] - w.mean()[c]).abs() < 0.01 * w.deviation()[c]));
        }
        let scales = |m: &Model| m.quantizers.ids().filter_map(|q| m.quantizers[q].params.clone()).map(|p| p.scale).collect::<Vec<_>>();
        assert_eq!(scales(&m), scales(&before));
    }

    #[test]
    fn what_does_not_serve_samples_it_has_not_seen_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (float, m) = models(&Blocks::channel(0));
        let all: Vec<usize> = (0..16).collect();
        let mut tuned = m.clone();
        let notes = tune_batch_norm(&mut tuned, &how(1), &float, Some((&samples(dir.path(), 16, true), &all)), &Silent).unwrap();
        assert!(tuned == m && notes.list().iter().any(|n| n.text.contains("left as it was")), "{notes:?}");
        assert_eq!((factor(1.0, 0.0), factor(0.0, 1.0), factor(9.0, 1.0), factor(3.0, 2.0)), (1.0, 1.0, 1.0, 1.5));
    }
}
