//! Groups: values whose channels can only be scaled together, the layers that make them and those that read them.

use super::super::equalize::passes;
use super::super::fold_forward::into;
use crate::graph::{Dim, Graph, Inferred, Linear, Node, NodeId, Op, Sets, ValueId, bounds};
use std::collections::{BTreeMap, BTreeSet};

/// A layer with a constant weight, output channel by input channel.
pub struct Layer {
    pub linear: Linear,
    pub x: ValueId,
    pub y: ValueId,
    pub outs: usize,
    /// Input channels that an output channel sums over.
    pub ins: usize,
    /// Elements of a kernel.
    pub kernel: usize,
    /// Largest size of the weights that join two channels, `outs × ins`; and the sum of their squares.
    pub largest: Vec<f64>,
    pub squares: Vec<f64>,
    /// Groups of what it reads and of what it makes.
    pub input: Option<usize>,
    pub output: Option<usize>,
}

impl Layer {
    fn of(g: &Graph, linear: Linear) -> Option<Layer> {
        let node = g.node(linear.node);
        let weight = &g.constant(linear.weight)?.tensor;
        if linear.input_slot != 0 || weight.rank() < 2 || node.op == Op::MatMul && weight.rank() != 2 {
            return None;
        }
        let (shape, outs) = (weight.shape(), linear.out_channels(g));
        let of_all = shape[linear.in_axis] * if node.op == Op::ConvTranspose { 1 } else { linear.groups };
        let ins = of_all / linear.groups;
        let values = weight.to_f32().ok()?;
        let channel = linear.channels(g, shape);
        let (mut largest, mut squares) = (vec![0f64; outs * ins], vec![0f64; outs * ins]);
        for (i, w) in values.iter().enumerate() {
            let (input, out) = channel(i);
            let at = out * ins + input % ins.max(1);
            largest[at] = largest[at].max(w.abs() as f64);
            squares[at] += (*w as f64).powi(2);
        }
        let kernel = values.len() / (outs * ins).max(1);
        Some(Layer { linear, x: node.input(0)?, y: node.output(0)?, outs, ins, kernel, largest, squares, input: None, output: None })
    }

    /// The input channels that output channel `o` sums over.
    pub fn inputs(&self, o: usize) -> std::ops::Range<usize> {
        let first = o / (self.outs / self.linear.groups).max(1) * self.ins;
        first..first + self.ins
    }
}

/// A cut at an upper bound, the lower being 0.
pub struct Cut {
    pub node: NodeId,
    pub x: ValueId,
    pub bound: f64,
}

/// Values that share their channels' scales.
#[derive(Default)]
pub struct Group {
    pub channels: usize,
    pub values: Vec<ValueId>,
    pub writers: Vec<usize>,
    pub readers: Vec<usize>,
    pub cuts: Vec<Cut>,
}

/// All layers with constant weights, and the groups between them that may be scaled; where nothing `bounded` may, those that no upper bound cuts.
pub fn groups(g: &Graph, inferred: &Inferred, bounded: bool) -> (Vec<Layer>, Vec<Group>) {
    let mut sets = Sets::default();
    // Values that cannot be scaled, and whatever is scaled together with them.
    let mut frozen: BTreeSet<ValueId> = g.inputs.iter().chain(&g.outputs).copied().collect();
    let mut layers: Vec<Layer> = Vec::new();
    let mut cuts: Vec<Cut> = Vec::new();
    for (id, node) in g.nodes() {
        let flowing = |slots: &[Option<ValueId>]| slots.iter().flatten().copied().filter(|v| g.constant(*v).is_none()).collect::<Vec<_>>();
        let (read, made) = (flowing(node.inputs()), flowing(node.outputs()));
        frozen.extend(node.captures().iter().copied());
        if let Some(layer) = Linear::of(g, id).and_then(|l| Layer::of(g, l)) {
            if !reads(g, inferred, &layer) {
                frozen.insert(layer.x);
            }
            if !writes(g, &layer) {
                frozen.insert(layer.y);
            }
            layers.push(layer);
            continue;
        }
        match (joined(g, inferred, node), read.first()) {
            (Joined::All, Some(&x)) => {
                match bound(g, node) {
                    Some(bound) if bounded => cuts.push(Cut { node: id, x, bound }),
                    Some(_) => drop(frozen.insert(x)),
                    None => {}
                }
                read.iter().skip(1).chain(&made).for_each(|v| sets.join(x, *v));
            }
            (Joined::ShapeAlone, _) => {}
            _ => frozen.extend(read.into_iter().chain(made)),
        }
    }
    let frozen: BTreeSet<ValueId> = frozen.into_iter().map(|v| sets.root(v)).collect();
    let mut of_root: BTreeMap<ValueId, Group> = BTreeMap::new();
    for (i, l) in layers.iter().enumerate() {
        let (x, y) = (sets.root(l.x), sets.root(l.y));
        of_root.entry(x).or_default().readers.push(i);
        of_root.entry(y).or_default().writers.push(i);
    }
    of_root.retain(|root, group| {
        let channels: BTreeSet<usize> =
            group.writers.iter().map(|w| layers[*w].outs).chain(group.readers.iter().map(|r| layers[*r].ins * layers[*r].linear.groups)).collect();
        group.channels = channels.first().copied().unwrap_or(0);
        !frozen.contains(root) && channels.len() == 1 && !group.writers.is_empty() && !group.readers.is_empty()
    });
    for (v, _) in g.values() {
        if let Some(group) = of_root.get_mut(&sets.root(v)) {
            group.values.push(v);
        }
    }
    for cut in cuts {
        if let Some(group) = of_root.get_mut(&sets.root(cut.x)) {
            group.cuts.push(cut);
        }
    }
    let groups: Vec<Group> = of_root.into_values().collect();
    for (i, group) in groups.iter().enumerate() {
        group.writers.iter().for_each(|w| layers[*w].output = Some(i));
        group.readers.iter().for_each(|r| layers[*r].input = Some(i));
    }
    (layers, groups)
}

/// Whether a layer's output channels can be scaled.
fn writes(g: &Graph, layer: &Layer) -> bool {
    let node = g.node(layer.linear.node);
    let bias = layer.linear.bias.is_none_or(|b| g.constant(b).is_some_and(|c| c.tensor.len() == layer.outs));
    matches!(node.op, Op::Conv | Op::ConvTranspose | Op::Gemm) && g.value(layer.linear.weight).uses().len() == 1 && bias
}

/// Whether a layer can undo that its input channels are scaled.
fn reads(g: &Graph, inferred: &Inferred, layer: &Layer) -> bool {
    let Some(rank) = inferred.get(layer.x).shape.as_ref().map(Vec::len) else { return false };
    let n = layer.ins * layer.linear.groups;
    g.node(layer.linear.node).op != Op::MatMul
        && g.value(layer.linear.weight).uses().len() == 1
        && into(g, inferred, layer.linear, 1, rank, (&vec![1.0; n], &vec![0.0; n])).is_ok()
}

/// What a node's operands and results have to do with each other's channels.
enum Joined {
    /// Scaling all operands scales all results.
    All,
    /// The numbers do not count.
    ShapeAlone,
    None,
}

fn joined(g: &Graph, inferred: &Inferred, node: &Node) -> Joined {
    let shape = |v: ValueId| inferred.get(v).shape.clone();
    let Some(y) = node.output(0) else { return Joined::None };
    match node.op {
        Op::Shape | Op::Size => Joined::ShapeAlone,
        Op::Add | Op::Sub | Op::Sum => {
            let all: Vec<_> = node.inputs().iter().flatten().map(|v| (g.constant(*v).is_none(), shape(*v))).collect();
            let same = shape(y).is_some_and(|s| s.len() > 1) && all.iter().all(|(flows, s)| *flows && *s == shape(y));
            if same { Joined::All } else { Joined::None }
        }
        Op::Clip if bound(g, node).is_some() => Joined::All,
        Op::ReduceMean if over_places(g, inferred, node) => Joined::All,
        _ => {
            let channels = node.input(0).and_then(shape).and_then(|s| s.get(1).cloned());
            let passes = matches!(channels, Some(Dim::Known(c)) if passes(g, inferred, node, 1, c) == Some(1));
            if passes { Joined::All } else { Joined::None }
        }
    }
}

/// The upper bound of a Clip whose lower one is 0.
pub fn bound(g: &Graph, node: &Node) -> Option<f64> {
    let (low, high) = bounds(g, node)?;
    (low == 0.0 && high > 0.0 && high.is_finite()).then_some(high as f64)
}

/// Whether a mean leaves samples and channels apart.
fn over_places(g: &Graph, inferred: &Inferred, node: &Node) -> bool {
    let axes = match node.input(1) {
        Some(v) => g.constant(v).and_then(|c| c.tensor.to_i64().ok()),
        None => node.ints("axes").map(<[i64]>::to_vec),
    };
    let rank = node.input(0).and_then(|x| inferred.get(x).shape.as_ref().map(Vec::len)).unwrap_or(0) as i64;
    axes.is_some_and(|a| !a.is_empty() && a.iter().all(|a| if *a < 0 { a + rank } else { *a } >= 2))
}
