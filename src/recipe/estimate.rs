//! What a conversion will take, from one timed inference.

use super::start::Samples;
use crate::engine::{Runner, shapes_of};
use crate::error::Result;
use crate::graph::{Model, ValueId, infer};
use crate::quant::Table;
use crate::report::NODE_SAMPLES;
use std::time::Instant;

/// Lines about time and memory, for people. `model` is the float graph before quantizers were placed.
pub fn estimate(model: &Model, samples: &Samples, threads: usize) -> Result<String> {
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
    // Calibration runs the float model once a sample; judging runs both models, and some three more a sample to measure every node.
    let passes = samples.calibration.len() + 3 * samples.validation.len() + 4 * samples.validation.len().min(NODE_SAMPLES);
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
