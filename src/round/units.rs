//! Pieces of a model whose weights are rounded together: layers, and blocks between values that all data passes.

use super::grid::chosen;
use crate::graph::{Graph, Linear, Model, NodeId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What lies between two values.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    pub input: ValueId,
    pub output: ValueId,
    /// The node that makes the output.
    pub last: NodeId,
    /// FakeQuants of weights, and the layers that read them.
    pub weights: Vec<(NodeId, NodeId)>,
}

/// Functions of one element that belong to the layer before them.
const ACTIVATIONS: &[Op] = &[Op::Relu, Op::Clip, Op::LeakyRelu, Op::PRelu, Op::HardSwish, Op::HardSigmoid, Op::Sigmoid, Op::Tanh, Op::Gelu, Op::Elu];

/// The layers whose weights may be rounded up or down, in the order of the graph, each with the activation behind it.
pub fn layers(model: &Model) -> Vec<Unit> {
    let g = &model.graph;
    let nodes: Vec<NodeId> = g.order().to_vec();
    let mut units = Vec::new();
    for (at, &id) in nodes.iter().enumerate() {
        let Some(Ok((fake, linear))) = chosen(model, id) else { continue };
        let (Some(input), Some(output)) = (g.node(id).input(linear.input_slot), g.node(id).output(0)) else { continue };
        let (output, last) = with_activation(g, &nodes[at + 1..], output, id);
        units.push(Unit { input, output, last, weights: vec![(fake, id)] });
    }
    units
}

/// The output of a piece that ends at `node`, and that node: with the activation behind it, if it stands before the next layer.
pub fn with_activation(g: &Graph, rest: &[NodeId], output: ValueId, node: NodeId) -> (ValueId, NodeId) {
    let [port] = g.value(output).uses() else { return (output, node) };
    let before = rest.iter().take_while(|n| Linear::of(g, **n).is_none()).any(|n| *n == port.node);
    match g.get_node(port.node).filter(|n| before && port.slot == 0 && ACTIVATIONS.contains(&n.op) && !g.is_output(output)).and_then(|n| n.output(0)) {
        Some(y) => (y, port.node),
        None => (output, node),
    }
}

/// Layers that lie between two neighbouring articulation values become one unit, if together they have at most `most` weights.
pub fn blocks(model: &Model, most: usize) -> Vec<Unit> {
    let (g, layers) = (&model.graph, layers(model));
    let place: BTreeMap<NodeId, usize> = g.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let passes = articulations(g);
    let mut units: Vec<Unit> = Vec::new();
    let mut at = 0;
    while at < layers.len() {
        let layer = place[&layers[at].weights[0].1];
        let start = passes.iter().rfind(|(i, _)| *i <= layer);
        let end = passes.iter().find(|(i, _)| *i > layer);
        let within = |u: &&Unit| end.is_some_and(|(i, _)| place[&u.weights[0].1] < *i);
        let count = layers[at..].iter().take_while(within).count();
        let size: usize = layers[at..at + count.max(1)].iter().map(|u| size(g, u)).sum();
        match (start, end) {
            (Some((_, input)), Some((_, output))) if count > 1 && size <= most && g.value(*output).producer().is_some() => {
                let node = g.value(*output).producer().expect("asked above").0;
                let (output, last) = with_activation(g, &g.order()[place[&node] + 1..], *output, node);
                let weights = layers[at..at + count].iter().flat_map(|u| u.weights.clone()).collect();
                units.push(Unit { input: *input, output, last, weights });
                at += count;
            }
            _ => {
                units.extend(layers[at..at + count.max(1)].iter().cloned());
                at += count.max(1);
            }
        }
    }
    units
}

fn size(g: &Graph, unit: &Unit) -> usize {
    unit.weights.iter().filter_map(|(f, _)| g.constant(g.node(*f).input(0)?)).map(|c| c.tensor.len()).sum()
}

/// Values that all data passes, each with the number of nodes that stand before it.
fn articulations(g: &Graph) -> Vec<(usize, ValueId)> {
    let place: BTreeMap<NodeId, usize> = g.order().iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let last = |v: ValueId| match g.is_output(v) {
        true => usize::MAX,
        false => g.value(v).uses().iter().filter_map(|p| place.get(&p.node)).max().map_or(0, |i| i + 1),
    };
    let mut live: BTreeSet<ValueId> = g.inputs.iter().copied().filter(|v| g.constant(*v).is_none() && last(*v) > 0).collect();
    let mut flows = live.clone();
    let mut found = Vec::new();
    for (i, &id) in g.order().iter().enumerate() {
        // What does not flow is no data: it is there beforehand.
        if let [one] = live.iter().copied().collect::<Vec<_>>()[..]
            && found.last().is_none_or(|(_, v)| *v != one)
        {
            found.push((i, one));
        }
        let node = g.node(id);
        if node.inputs().iter().flatten().chain(node.captures()).any(|v| flows.contains(v)) {
            let made: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
            flows.extend(made.iter().copied());
            live.extend(made);
        }
        live.retain(|v| last(*v) > i + 1);
    }
    if let [one] = live.iter().copied().collect::<Vec<_>>()[..] {
        found.push((g.order().len(), one));
    }
    found
}
