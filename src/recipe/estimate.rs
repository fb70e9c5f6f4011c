//! What a conversion will take, from one timed inference.

use super::Step;
use super::start::Samples;
use crate::engine::{Runner, shapes_of};
use crate::error::Result;
use crate::graph::{Model, ValueId, infer};
use crate::quant::Table;
use crate::range::{self, Method};
use crate::report::NODE_SAMPLES;
use std::time::Instant;

/// Inferences that a step takes at most, with `n` samples to calibrate on; `saved`: their ranges are known.
fn inferences(step: &Step, n: usize, saved: bool) -> usize {
    let count = |key: &str, default: usize| step.args.int(key).map_or(default, |k| k as usize);
    match step.name {
        "calibrate" => {
            let compares = step.args.text("activations.method") == Some("auto");
            let clips = step.args.text("weights.method") == Some("clip");
            (if saved { 0 } else { n })
                + if compares { (1 + Method::COMPARED.len()) * n.min(range::COMPARED_ON) } else { 0 }
                + if clips { n.min(count("weights.samples", 64)) } else { 0 }
        }
        // The float model, the model as it is, with all wide, with the chosen wide.
        "widen" => (4 + count("tries", 24)) * n.min(count("samples", 4)),
        "round" if step.args.text("method") == Some("gptq") => n.min(count("samples", 32)),
        "balance" | "shift-negatives" => n.min(count("samples", 64)),
        "correct-bias" => 2 * n.min(count("samples", 32)),
        "tune-batch-norm" => 3 * n.min(count("samples", 64)),
        // Three quarters of the samples forward and backward, the others forward.
        "tune-bias" => count("epochs", 20) * n.min(count("samples", 128)) * 5 / 2,
        _ => 0,
    }
}

/// Lines about time and memory, for people. `model` is the float graph before quantizers were placed, `steps` are those carried out.
pub fn estimate(model: &Model, steps: &[Step], samples: &Samples, saved: bool, threads: usize) -> Result<String> {
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
    let working: usize = steps.iter().map(|s| inferences(s, samples.calibration.len(), saved)).sum();
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

    #[test]
    fn steps_take_what_their_keys_say() {
        let of = |recipe: &str, set: &[&str], saved| {
            let set = set.iter().map(|s| s.to_string()).collect();
            let recipe = resolve(&Sources { recipe: Some(recipe.into()), set, ..Sources::default() }).unwrap();
            recipe.steps.iter().map(|s| inferences(s, 64, saved)).sum::<usize>()
        };
        assert_eq!(of("int8-fast", &[], false), 64);
        assert_eq!(of("int8-fast", &[], true), 0);
        let int8 = of("int8", &[], false);
        assert_eq!(of("int8", &["widen.tries=34"], false), int8 + 40);
        assert_eq!(of("int8", &["correct-bias.samples=64"], false), int8 + 64);
        assert_eq!(of("int8", &["calibrate.activations.method=mse"], false), int8 - 40);
    }
}
