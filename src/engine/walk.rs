//! A walk through a model: it is run piece by piece, on several samples at once, and stops after each piece, so that what comes next can depend on
//! what was seen. Only the values that later pieces read are kept. The cost is that of one inference a sample, whatever the number of pieces.

use super::piece::Piece;
use super::plans::shapes_of;
use super::runner::flowing;
use super::{RunnerOptions, State, over_samples};
use crate::error::{Error, Result};
use crate::graph::{InputShapes, Model, NodeId, ValueId, specialize};
use crate::quant::QuantizerId;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Samples of one shape on their way through a model.
pub struct Walk {
    /// With shapes as the samples have them.
    fixed: Model,
    /// Quantizers of what flows.
    flows: BTreeSet<QuantizerId>,
    position: BTreeMap<NodeId, usize>,
    options: RunnerOptions,
    threads: usize,
    /// By value, one tensor a sample.
    kept: BTreeMap<ValueId, Vec<Tensor>>,
    samples: usize,
    /// Nodes of the order that are behind us.
    at: usize,
}

impl Walk {
    /// Starts with samples whose inputs all have the same shapes.
    pub fn new(model: &Model, samples: Vec<BTreeMap<String, Tensor>>, options: RunnerOptions, threads: usize) -> Result<Walk> {
        let shapes: InputShapes = samples.first().map(shapes_of).ok_or_else(|| Error::failed("a walk needs a sample"))?;
        let fixed = specialize(model.clone(), &shapes)?;
        let g = &model.graph;
        let count = samples.len();
        let mut kept: BTreeMap<ValueId, Vec<Tensor>> = BTreeMap::new();
        for mut sample in samples {
            for &v in g.inputs.iter().filter(|v| g.constant(**v).is_none()) {
                let name = &g.value(v).name;
                kept.entry(v).or_default().push(sample.remove(name).ok_or_else(|| Error::failed(format!("input {name} is not given")))?);
            }
        }
        let position = fixed.graph.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
        Ok(Walk { fixed, flows: flowing(model), position, options, threads, kept, samples: count, at: 0 })
    }

    /// Bytes that a walk keeps of each sample of these shapes, at most, if it stops at `stops`.
    pub fn kept_bytes(model: &Model, shapes: &InputShapes, stops: &[NodeId]) -> Result<u64> {
        let g = specialize(model.clone(), shapes)?.graph;
        let position: BTreeMap<NodeId, usize> = g.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let stops: BTreeSet<usize> = stops.iter().filter_map(|n| position.get(n).copied()).collect();
        // What is made before a stop and read behind it is kept there.
        let mut at: BTreeMap<usize, u64> = BTreeMap::new();
        for (_, value) in g.values().filter(|(v, _)| g.constant(*v).is_none()) {
            let made = value.producer().map_or(0, |(n, _)| position[&n]);
            let last = value.uses().iter().filter_map(|p| position.get(&p.node)).copied().max().unwrap_or(made);
            let bytes = value.known_shape().unwrap_or_default().iter().product::<usize>() * value.dtype().map_or(4, |t| t.bits().div_ceil(8));
            for &stop in stops.range(made..last.max(made + 1)) {
                *at.entry(stop).or_default() += bytes as u64;
            }
        }
        Ok(at.into_values().max().unwrap_or(0))
    }

    /// A value that later pieces read, of every sample.
    pub fn kept(&self, value: ValueId) -> Option<&Vec<Tensor>> {
        self.kept.get(&value)
    }

    /// Runs all nodes up to and with `node`; the value `stop` of every sample, which may be changed before the walk goes on.
    ///
    /// # Errors
    /// As [`Runner::run`]; a node or value that is not part of the model at these shapes.
    pub fn to(&mut self, node: NodeId, stop: ValueId) -> Result<&mut Vec<Tensor>> {
        let g = &self.fixed.graph;
        // In the place of an If stands the branch that is taken at these shapes.
        let maker = || g.has_value(stop).then(|| g.value(stop).producer()).flatten().and_then(|(n, _)| self.position.get(&n));
        let upto = self.position.get(&node).or_else(maker).ok_or_else(|| Error::failed("the walk does not pass a node"))? + 1;
        let nodes = &g.order()[self.at.min(upto)..upto];
        self.at = self.at.max(upto);
        let later = |v: ValueId| v == stop || g.is_output(v) || g.value(v).uses().iter().any(|p| self.position.get(&p.node).is_some_and(|i| *i >= upto));
        if let Some(piece) = Piece::new(&self.fixed, nodes, &later, |v| self.kept.get(&v)?.first(), (self.options, &self.flows))? {
            let mut results: Vec<Vec<Tensor>> = piece.made.iter().map(|_| Vec::with_capacity(self.samples)).collect();
            over_samples(
                self.samples,
                self.threads,
                || Ok(piece.spawn()),
                |state: &mut State, i| piece.run(state, |v| self.kept.get(&v).map(|all| &all[i]), &self.fixed.quantizers),
                |_, tensors| {
                    results.iter_mut().zip(tensors).for_each(|(all, t)| all.push(t));
                    Ok(())
                },
            )?;
            self.kept.retain(|v, _| later(*v));
            self.kept.extend(piece.made.iter().copied().zip(results));
        }
        let name = &g.value(stop).name;
        self.kept.get_mut(&stop).ok_or_else(|| Error::failed(format!("the walk does not pass {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Node, Op, Type};
    use crate::tensor::DType;

    /// y = relu(x + 1) + x, walked in two pieces; what is changed between them shows in the second.
    #[test]
    fn pieces_make_the_whole_and_changes_carry_on() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, a, r, y] = ["x", "a", "r", "y"].map(|n| {
            let v = g.add_value(n);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2)]) };
            v
        });
        let one = g.add_constant("one", Tensor::of_f32(&[1], vec![1.0]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let add = g.add_node(Node::new(Op::Add, "add"), &[Some(x), Some(one)], &[Some(a)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(a)], &[Some(r)]);
        let last = g.add_node(Node::new(Op::Add, "last"), &[Some(r), Some(x)], &[Some(y)]);
        let sample = |v: [f32; 2]| BTreeMap::from([("x".to_string(), Tensor::of_f32(&[1, 2], v.to_vec()))]);
        for threads in [1, 2] {
            let mut walk = Walk::new(&m, vec![sample([0.5, -3.0]), sample([2.0, 0.0])], RunnerOptions::default(), threads).unwrap();
            let made = walk.to(add, a).unwrap();
            assert_eq!(made[0].to_f32().unwrap()[..], [1.5, -2.0]);
            made[1] = Tensor::of_f32(&[1, 2], vec![10.0, 10.0]);
            let end = walk.to(last, y).unwrap();
            assert_eq!(end[0].to_f32().unwrap()[..], [2.0, -3.0]);
            assert_eq!(end[1].to_f32().unwrap()[..], [12.0, 10.0]);
        }
    }
}
