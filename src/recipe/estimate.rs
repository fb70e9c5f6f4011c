//! What a conversion will take, from one timed inference.

use super::Step;
use super::start::Samples;
use super::steps::{LEARNT_FROM, pace};
use crate::allocate;
use crate::engine::{Runner, shapes_of};
use crate::error::Result;
use crate::graph::{Linear, Model, ValueId, infer};
use crate::quant::Table;
use crate::range::{self, Method};
use crate::report::NODE_SAMPLES;
use crate::round;
use std::time::Instant;

/// What counts of a model: its layers, and their multiply-adds for one sample.
struct Layers {
    count: usize,
    macs: u64,
}

/// Inferences that a step takes at most, with `n` samples to calibrate on; `saved`: their ranges are known. A way back counts for two. What gptq and
/// correct-bias want of the float model they see in the pass for ranges, if there is one.
fn inferences(step: &Step, layers: &Layers, n: usize, saved: bool, passes: bool) -> usize {
    let count = |key: &str, default: usize| step.args.int(key).map_or(default, |k| k as usize);
    match step.name {
        "calibrate" => {
            let compares = step.args.text("activations.method") == Some("auto");
            let clips = step.args.text("weights.method") == Some("clip");
            (if saved { 0 } else { n })
                + if compares { (saved as usize + Method::COMPARED.len()) * n.min(range::COMPARED_ON) } else { 0 }
                + if clips { n.min(count("weights.samples", 64)) } else { 0 }
        }
        // The float model, the model as it is, with all wide, with the chosen wide.
        "widen" => (4 + count("tries", 24)) * n.min(count("samples", 4)),
        "round" if step.args.text("method") == Some("gptq") => {
            if passes {
                0
            } else {
                n.min(count("samples", 32))
            }
        }
        // The float model and the model as it is, and all steps of all layers, forward and backward.
        "round" if matches!(step.args.text("method"), Some("adaround" | "block" | "adaquant")) => {
            let (samples, (iterations, batch)) = (n.min(count("samples", LEARNT_FROM)), pace(&step.args));
            2 * samples + 3 * round::steps(layers.macs, batch, iterations) * batch.min(samples)
        }
        // What each layer loses in each width, and what three strategies and those of the front do.
        "allocate" => {
            let samples = n.min(count("samples", 32));
            let widths = step.args.numbers("bits").map_or(2, |bits| bits.len());
            let tried = 5 + step.args.numbers("front").map_or(0, |front| front.len());
            samples * tried
                + samples * if step.args.text("sensitivity") == Some("hessian-trace") { 3 * allocate::DRAWS.1 as usize } else { widths * layers.count }
        }
        "balance" | "shift-negatives" => n.min(count("samples", 64)),
        // Where weights have less than 8 bits, some samples judge the float model, and the model before and after.
        "correct-bias" => (2 - passes as usize) * n.min(count("samples", 32)) + 3 * n.min(round::JUDGES),
        "tune-batch-norm" => 3 * n.min(count("samples", 64)),
        // Three quarters of the samples forward and backward, the others forward.
        "tune-bias" => count("epochs", 20) * n.min(count("samples", 128)) * 5 / 2,
        _ => 0,
    }
}

/// Lines about time and memory, for people. `model` is the float graph before quantizers were placed, `steps` are those carried out, `watched` says whether
/// activations get ranges.
pub fn estimate(model: &Model, steps: &[Step], samples: &Samples, (saved, watched): (bool, bool), threads: usize) -> Result<String> {
    let sample = samples.data.sample(samples.calibration.first().copied().unwrap_or(0))?;
    let shapes = shapes_of(&sample);
    let begun = Instant::now();
    let runner = Runner::new(model, &shapes, &model.graph.outputs)?;
    let build = begun.elapsed().as_secs_f64();
    let mut state = runner.spawn();
    runner.run(&mut state, &sample, &Table::default())?;
    let begun = Instant::now();
    runner.run(&mut state, &sample, &Table::default())?;
    let run = begun.elapsed().as_secs_f64();

    let g = &model.graph;
    let inferred = infer(model, &shapes);
    let bytes = |v: ValueId| inferred.shape(v).map_or(0, |s| s.iter().product::<usize>() * inferred.get(v).dtype.map_or(4, |t| t.bits() / 8));
    let activations: usize = g.nodes().flat_map(|(_, n)| n.outputs().iter().flatten().copied().collect::<Vec<_>>()).map(bytes).sum();
    let weights: usize = g.values().filter_map(|(_, v)| v.constant.as_ref()).map(|c| c.tensor.bytes().len()).sum();
    // Judging runs both models, and some three more a sample to measure every node.
    let macs: Vec<u64> = g.nodes().filter_map(|(id, _)| Linear::of(g, id).filter(|l| l.constant)?.macs(g, &inferred)).collect();
    let layers = Layers { count: macs.len(), macs: macs.iter().sum() };
    let working: usize = steps.iter().map(|s| inferences(s, &layers, samples.calibration.len(), saved, watched && !saved)).sum();
    let passes = working + 3 * samples.validation.len() + 4 * samples.validation.len().min(NODE_SAMPLES);
    let seconds = 4.0 * build + passes as f64 * run / threads.max(1) as f64;
    let mib = |n: usize| n as f64 / (1 << 20) as f64;
    Ok(format!(
        "one inference takes {:.1} ms and {:.1} MiB of activations; with {} inferences on {threads} threads about {seconds:.1} s\n\
         memory about {:.0} MiB: {:.1} MiB of weights, held up to three times, and the activations of one sample a thread, up to three times\n",
        run * 1e3,
        mib(activations),
        passes,
        mib(3 * weights + 3 * threads * activations) + 20.0,
        mib(weights),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, resolve};
    use super::*;
    use crate::recipe::steps::learning;

    #[test]
    fn steps_take_what_their_keys_say() {
        let of = |recipe: &str, set: &[&str], saved| {
            let set = set.iter().map(|s| s.to_string()).collect();
            let recipe = resolve(&Sources { recipe: Some(recipe.into()), set, ..Sources::default() }).unwrap();
            recipe.steps.iter().map(|s| inferences(s, &Layers { count: 10, macs: 1 << 20 }, 64, saved, !saved)).sum::<usize>()
        };
        assert_eq!(of("int8-fast", &[], false), 64);
        assert_eq!(of("int8-fast", &[], true), 0);
        let int8 = of("int8", &[], false);
        assert_eq!(of("int8", &["widen.tries=34"], false), int8 + 40);
        assert_eq!(of("int8", &["correct-bias.samples=64"], false), int8 + 32);
        // Without a pass for ranges, `auto`, rounding and biases see the float model for themselves: 8, 64 and 32 samples of it.
        assert_eq!(of("int8", &[], true), int8 - 64 + 8 + 64 + 32);
        assert_eq!(of("int8", &["calibrate.activations.method=mse"], false), int8 - 32);
        assert_eq!(of("w4", &["calibrate.weights.method=clip", "calibrate.weights.samples=16"], false), of("w4", &[], false) + 16);
        // Ten layers in two widths, and in three; the draws of signs, forward and backward.
        let mixed = of("mixed", &[], false);
        assert_eq!(of("mixed", &["allocate.bits=[2, 4, 8]"], false), mixed + 10 * 32);
        assert_eq!(of("mixed", &["allocate.sensitivity=hessian-trace"], false), mixed - 20 * 32 + 3 * allocate::DRAWS.1 as usize * 32);
        // A thousand steps of 50 samples, and of 5; as many as all work allows.
        let adaquant = |set: &str| of("int8-fast", &["round.method=adaquant", set], false);
        assert_eq!(adaquant("round.iterations=1000"), 64 + 2 * 64 + 3 * 1000 * 50);
        assert_eq!(adaquant("round.batch=5"), 64 + 2 * 64 + 3 * 1000 * 5);
        assert_eq!(adaquant("round.iterations=100000"), 64 + 2 * 64 + 3 * 100_000 * 50);
        let affordable = |method: &str| {
            let (iterations, batch) = learning(method);
            assert_eq!(round::steps(1 << 40, batch, iterations), 300);
            round::steps(1 << 20, batch, iterations)
        };
        assert_eq!(of("int8-fast", &["round.method=adaround"], false), 64 + 2 * 64 + 3 * affordable("adaround") * 8);
        assert_eq!(of("int8-fast", &["round.method=block"], false), 64 + 2 * 64 + 3 * affordable("block") * 8);
        assert!((300..affordable("block")).contains(&affordable("adaround")));
        let tuned = |set: &str| of("xint8-tuned", &[set], false);
        assert_eq!(tuned("tune-bias.epochs=20"), tuned("tune-bias.epochs=10") + 10 * 64 * 5 / 2);
    }
}
