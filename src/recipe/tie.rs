//! State that an input takes from an output of the run before (`inputs.X.tie`): the float model is run once over the samples, file by file and in their
//! order, and each sample is given the state that it would meet. The first of a file meets zeros, or what the data holds.
//! Calibration and judging then see whole sequences though their samples run in any order; the converted model meets the float model's states.

use super::Recipe;
use super::shape::unknown;
use super::start::Samples;
use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running};
use crate::error::{At, Error, Result};
use crate::graph::{Model, ValueId};
use crate::pass::Progress;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Gives the samples that will be used their states. Does nothing where no input is tied.
///
/// # Errors
/// An output that the model does not have; a state whose type or fixed shape the input cannot take; a model that the engine cannot run.
pub fn tie(model: &Model, recipe: &Recipe, samples: &mut Samples, progress: &dyn Progress) -> Result<()> {
    let tied = tied(model, recipe)?;
    if tied.is_empty() {
        return Ok(());
    }
    let apart = samples.judging.is_some();
    let mut used: BTreeSet<usize> = samples.calibration.iter().copied().collect();
    if !apart {
        used.extend(&samples.validation);
    }
    hold(model, &tied, &mut samples.data, &used, progress)?;
    if let Some(judging) = &mut samples.judging {
        hold(model, &tied, judging, &samples.validation.iter().copied().collect(), progress)?;
    }
    Ok(())
}

/// The tied inputs, and the outputs that they take.
fn tied(model: &Model, recipe: &Recipe) -> Result<Vec<(String, ValueId)>> {
    let g = &model.graph;
    let mut tied = Vec::new();
    for (name, output) in recipe.inputs.iter().filter_map(|(name, i)| Some((name, i.tie.as_ref()?))) {
        let found = g.outputs.iter().copied().find(|v| g.value(*v).name == *output);
        let known = || g.outputs.iter().map(|v| g.value(*v).name.as_str());
        tied.push((name.clone(), found.ok_or_else(|| Error::usage(format!("inputs.{name}.tie: {}", unknown("output", output, known()))))?));
    }
    Ok(tied)
}

fn hold(model: &Model, tied: &[(String, ValueId)], data: &mut Dataset, used: &BTreeSet<usize>, progress: &dyn Progress) -> Result<()> {
    let outputs: Vec<ValueId> = tied.iter().map(|(_, v)| *v).collect();
    let plans = Plans::new(model, &outputs, RunnerOptions::default());
    let mut running = Running::default();
    let mut states: BTreeMap<usize, BTreeMap<String, Tensor>> = BTreeMap::new();
    progress.begin("states of tied inputs", used.len() as u64);
    for sequence in data.sequences() {
        let Some(&last) = used.range(sequence.clone()).next_back() else { continue };
        let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
        for i in sequence.start..=last {
            let mut sample = data.sample(i)?;
            if i == sequence.start && data.is_random() {
                state = tied.iter().filter_map(|(name, _)| Some((name.clone(), zeros(sample.get(name)?)))).collect();
            }
            sample.extend(state.clone());
            if used.contains(&i) {
                states.insert(i, state);
                progress.tick(1);
            }
            if i == last {
                break;
            }
            let results = plans.run(&mut running, &sample, &model.quantizers).at(|| data.name(i))?;
            state = tied.iter().map(|(name, _)| name.clone()).zip(results).collect();
            for (name, next) in &state {
                let before = &sample[name];
                if next.dtype() != before.dtype() || next.rank() != before.rank() {
                    return Err(Error::usage(format!(
                        "inputs.{name}.tie: the output is {} {:?}, the input {} {:?}",
                        next.dtype(),
                        next.shape(),
                        before.dtype(),
                        before.shape()
                    )));
                }
            }
        }
    }
    progress.end();
    data.hold(states);
    Ok(())
}

fn zeros(like: &Tensor) -> Tensor {
    Tensor::new(like.dtype(), like.shape().to_vec(), vec![0; like.bytes().len()].into()).expect("as long as the other")
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, resolve};
    use super::*;
    use crate::data::tests::npy;
    use crate::data::{InputInfo, InputSettings};
    use crate::graph::{Dim, Node, Op, Type};
    use crate::pass::Silent;
    use crate::recipe::start;
    use crate::tensor::DType;

    /// present = x + state
    fn model() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, s, y] = ["x", "state", "present"].map(|n| g.add_value(n));
        for v in [x, s, y] {
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(2)]) };
        }
        (g.inputs, g.outputs) = (vec![x, s], vec![y]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(x), Some(s)], &[Some(y)]);
        m
    }

    fn recipe(output: &str) -> Recipe {
        resolve(&Sources { set: vec![format!("inputs.state.tie={output}"), "data.samples=3".into(), "data.validate=3".into()], ..Sources::default() }).unwrap()
    }

    #[test]
    fn each_sample_meets_the_state_that_the_one_before_left_and_each_file_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["a", "b"] {
            let values: Vec<u8> = (1..=6).flat_map(|v| (v as f32).to_le_bytes()).collect();
            std::fs::write(dir.path().join(format!("{file}.npy")), npy("<f4", false, &[3, 2], &values)).unwrap();
        }
        let (m, recipe) = (model(), recipe("present"));
        // A .npy holds one input; the state is filled.
        let from = |name: &str| InputSettings { from: (name == "x").then(|| "".into()), ..start::settings(&recipe).inputs.remove(name).unwrap_or_default() };
        let settings = crate::data::DataSettings { inputs: [("x".to_string(), from("x")), ("state".to_string(), from("state"))].into(), seed: 0 };
        let info = |name: &str| InputInfo { name: name.into(), dtype: DType::F32, shape: Some(vec![Dim::Known(1), Dim::Known(2)]) };
        let data = Dataset::open(dir.path().to_str().unwrap(), &[info("x"), info("state")], &settings).unwrap();
        let mut samples = Samples { data, calibration: vec![5, 0, 2], judging: None, validation: vec![1, 3, 4], remarks: vec![] };
        tie(&m, &recipe, &mut samples, &Silent).unwrap();
        let state = |i: usize| samples.data.sample(i).unwrap()["state"].to_f32().unwrap().into_owned();
        assert_eq!((0..6).map(state).collect::<Vec<_>>(), [[0., 0.], [1., 2.], [4., 6.], [0., 0.], [1., 2.], [4., 6.]]);
    }

    #[test]
    fn an_output_that_is_none_is_refused_with_the_nearest() {
        let m = model();
        let e = tied(&m, &recipe("presnt")).unwrap_err().to_string();
        assert!(e.contains("inputs.state.tie") && e.contains("present"), "{e}");
    }
}
