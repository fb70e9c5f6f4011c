//! Runs N bare inferences in the engine: batch norms folded, the model's outputs asked for and nothing watched.
//! What `benches/versus_ort.py` compares a pass over the data with.
//!
//! usage: bare MODEL.onnx DATA N

use requant::data::{DataSettings, Dataset};
use requant::engine::{Plans, RunnerOptions, Running};
use requant::onnx::{self, ReadOptions};
use requant::recipe::declared_inputs;
use requant::transform::{fold_batch_norm, fold_constants};
use requant::{Error, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, n] = &args[..] else { return Err(Error::usage("usage: bare MODEL.onnx DATA N")) };
    let n: usize = n.parse().map_err(|_| Error::usage(format!("`{n}` is no number of inferences")))?;
    let mut model = onnx::read(model.as_ref(), &ReadOptions::default())?;
    let data = Dataset::open(data, &declared_inputs(&model)?, &DataSettings::default())?;
    fold_constants(&mut model)?;
    fold_batch_norm(&mut model)?;
    let plans = Plans::new(&model, &model.graph.outputs, RunnerOptions::default());
    let mut running = Running::default();
    for i in 0..n {
        plans.run(&mut running, &data.sample(i % data.len())?, &model.quantizers)?;
    }
    Ok(())
}
