//! Cuts off what a detector does with the grids of its heads: boxes and scores that are put together and decoded become a float model of their own, and
//! the last convolutions are what the model gives. Compilers of many chips run that part in float, on the CPU, or not at all.
//! Exact: model and tail, one after the other, are the model as it was. Needs shapes that are numbers.
//! A tail begins where a Concat joins results of convolutions over different grids that nothing has brought to one size. All that is made of it belongs
//! to it, and so does what is read by it alone and is no product; of products only those with one result, as that which takes the mean of a distribution.
//! Declines: tails that read of the rest what is no float tensor.

use crate::graph::{Flow, Graph, Inferred, InputShapes, Linear, Model, NodeId, Op, Type, ValueId, infer};
use crate::note::Notes;
use std::collections::BTreeSet;

/// The `cut-tail` step. What is cut off; `None`: nothing was.
pub fn cut_tail(model: &mut Model) -> (Notes, Option<Model>) {
    let mut notes = Notes::of("cut-tail");
    let inferred = infer(model, &InputShapes::new());
    let cut = tail(&model.graph, &inferred);
    let Some(last) = cut.last() else { return (notes, None) };
    let g = &model.graph;
    let read: Vec<ValueId> = g.values().filter(|(v, _)| is_read(g, *v, &cut) && !is_made(g, *v, &cut)).map(|(v, _)| v).collect();
    let given = |v: &ValueId| g.value(*v).producer().is_none();
    let heads: Vec<ValueId> = read.iter().copied().filter(|v| !given(v)).collect();
    if let Some(v) = heads.iter().find(|v| !inferred.get(**v).dtype.is_some_and(|t| t.is_float())) {
        let why =
            format!("what makes boxes and scores of the heads is not cut off: it reads {}, which is no float tensor; give static shapes", g.value(*v).name);
        notes.declined(&g.node(*last).name, why);
        return (notes, None);
    }
    let names: Vec<&str> = heads.iter().map(|v| g.value(*v).name.as_str()).collect();
    notes.changed("", format!("{} nodes behind the heads are cut off, as a float model of their own; outputs are now {}", cut.len(), names.join(", ")));
    let mut tail = model.clone();
    for (m, keep) in [(&mut tail, true), (&mut *model, false)] {
        let made: Vec<ValueId> = m.graph.outputs.iter().copied().filter(|v| is_made(&m.graph, *v, &cut) == keep).collect();
        m.graph.outputs = made;
        let g = &mut m.graph;
        for &v in &heads {
            g.value_mut(v).ty = Type::Tensor { dtype: inferred.get(v).dtype, shape: inferred.get(v).shape.clone() };
        }
        if keep {
            let inputs = g.inputs.iter().copied().filter(|v| read.contains(v));
            g.inputs = heads.iter().copied().chain(inputs).collect();
        } else {
            let new: Vec<ValueId> = heads.iter().copied().filter(|v| !g.outputs.contains(v)).collect();
            g.outputs.extend(new);
        }
        for id in g.order().to_vec().into_iter().rev().filter(|id| cut.contains(id) != keep) {
            let made: Vec<ValueId> = g.node(id).outputs().iter().flatten().copied().collect();
            g.remove_node(id);
            made.into_iter().for_each(|v| g.remove_idle(v));
        }
        g.remove_dead();
    }
    (notes, Some(tail))
}

fn is_read(g: &Graph, v: ValueId, nodes: &BTreeSet<NodeId>) -> bool {
    g.constant(v).is_none() && g.value(v).uses().iter().any(|p| nodes.contains(&p.node))
}

fn is_made(g: &Graph, v: ValueId, nodes: &BTreeSet<NodeId>) -> bool {
    g.value(v).producer().is_some_and(|(id, _)| nodes.contains(&id))
}

/// The nodes to cut off, in order.
fn tail(g: &Graph, inferred: &Inferred) -> BTreeSet<NodeId> {
    let mut cut = BTreeSet::new();
    for (id, node) in g.nodes().filter(|(_, n)| n.op == Op::Concat) {
        if !cut.contains(&id) && grids(g, inferred, node.inputs()).is_some_and(|grids| grids.len() > 1) {
            let behind = behind(g, id);
            if behind.iter().all(|id| Linear::of(g, *id).is_none_or(|l| !l.constant || l.out_channels(g) == 1)) {
                cut.extend(behind);
            }
        }
    }
    for (id, node) in g.nodes().rev().filter(|_| !cut.is_empty()).collect::<Vec<_>>() {
        let alone = |v: &ValueId| !g.is_output(*v) && g.value(*v).uses().iter().all(|p| cut.contains(&p.node));
        if node.op.flow() != Flow::Meta && Linear::of(g, id).is_none() && !resamples(node.op) && node.outputs().iter().flatten().all(alone) {
            cut.insert(id);
        }
    }
    cut
}

/// The extents of the grids whose convolutions values are made of, products behind left out; `None` where something else than convolutions of known
/// shape is behind them, or something that brings grids to one size.
fn grids(g: &Graph, inferred: &Inferred, of: &[Option<ValueId>]) -> Option<BTreeSet<Vec<usize>>> {
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut next: Vec<ValueId> = of.iter().flatten().copied().collect();
    while let Some(v) = next.pop() {
        let Some((id, _)) = g.value(v).producer().filter(|_| seen.insert(v)) else { continue };
        let node = g.node(id);
        if resamples(node.op) {
            return None;
        }
        match Linear::of(g, id) {
            Some(_) if matches!(node.op, Op::Conv | Op::ConvTranspose) => found.insert(inferred.shape(v).filter(|s| s.len() > 3)?[2..].to_vec()),
            Some(_) => return None,
            None => {
                next.extend(node.inputs().iter().flatten());
                true
            }
        };
    }
    Some(found)
}

/// A node and all that is made of its results.
fn behind(g: &Graph, id: NodeId) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::from([id]);
    let mut next = vec![id];
    while let Some(id) = next.pop() {
        let readers = g.node(id).outputs().iter().flatten().flat_map(|v| g.value(*v).uses()).map(|p| p.node);
        next.extend(readers.filter(|id| found.insert(*id)).collect::<Vec<_>>());
    }
    found
}

/// Whether an op makes a grid of another size.
fn resamples(op: Op) -> bool {
    use Op::*;
    matches!(op, Resize | Upsample | DepthToSpace | SpaceToDepth | MaxPool | AveragePool | LpPool | GlobalMaxPool | GlobalAveragePool)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, result, value};
    use super::*;
    use crate::graph::Node;
    use crate::tensor::Tensor;

    /// A graph under construction.
    struct Build(Model);

    impl Build {
        fn new() -> Build {
            let mut b = Build(Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() });
            let x = value(&mut b.0.graph, "x", &[1, 3, 8, 8]);
            b.0.graph.inputs.push(x);
            b
        }
        fn floats(&mut self, shape: &[usize]) -> ValueId {
            let name = self.0.graph.fresh_name("w");
            self.0.graph.add_constant(&name, Tensor::of_f32(shape, noise(shape, name.len())))
        }
        fn ints(&mut self, list: &[i64]) -> ValueId {
            let name = self.0.graph.fresh_name("shape");
            self.0.graph.add_constant(&name, Tensor::of_i64(&[list.len()], list.to_vec()))
        }
        fn node(&mut self, mut node: Node, inputs: &[ValueId], name: &str) -> ValueId {
            let y = self.0.graph.add_value(name);
            node.name = name.into();
            self.0.graph.add_node(node, &inputs.iter().map(|v| Some(*v)).collect::<Vec<_>>(), &[Some(y)]);
            y
        }
        fn op(&mut self, op: Op, inputs: &[ValueId], name: &str) -> ValueId {
            self.node(Node::new(op, ""), inputs, name)
        }
        fn conv(&mut self, x: ValueId, w: &[usize], stride: i64, name: &str) -> ValueId {
            let w = self.floats(w);
            self.node(Node::new(Op::Conv, "").with("strides", vec![stride; 2]), &[x, w], name)
        }
        fn concat(&mut self, parts: &[ValueId], axis: i64, name: &str) -> ValueId {
            self.node(Node::new(Op::Concat, "").with("axis", axis), parts, name)
        }
        fn done(mut self, outputs: &[ValueId]) -> Model {
            for &v in outputs {
                self.0.graph.value_mut(v).ty = Type::Tensor { dtype: Some(crate::tensor::DType::F32), shape: None };
            }
            self.0.graph.outputs = outputs.to_vec();
            self.0
        }
        /// Features over grids of 4 × 4 and 2 × 2; those of the coarse one are joined with the fine ones.
        fn features(&mut self) -> [ValueId; 2] {
            let a = self.conv(self.0.graph.inputs[0], &[4, 3, 1, 1], 2, "a");
            let a = self.op(Op::Relu, &[a], "a_relu");
            let b = self.conv(a, &[4, 4, 1, 1], 2, "b");
            let scales = self.0.graph.add_constant("scales", Tensor::of_f32(&[4], vec![1.0, 1.0, 2.0, 2.0]));
            let up = self.0.graph.add_value("up");
            let node = Node::new(Op::Resize, "up").with("coordinate_transformation_mode", "asymmetric").with("nearest_mode", "floor");
            self.0.graph.add_node(node, &[Some(b), None, Some(scales)], &[Some(up)]);
            [self.concat(&[a, up], 1, "neck"), b]
        }
        /// One head a grid, 8 numbers of boxes in two bins a side and 2 scores, with the grid flattened.
        fn heads(&mut self) -> ValueId {
            let [a, b] = self.features();
            let parts: Vec<ValueId> = [(a, 8, "fine"), (b, 4, "coarse")]
                .map(|(v, channels, name)| {
                    let boxes = self.conv(v, &[8, channels, 1, 1], 1, &format!("{name}_box"));
                    let scores = self.conv(v, &[2, channels, 1, 1], 1, &format!("{name}_score"));
                    let all = self.concat(&[boxes, scores], 1, &format!("{name}_all"));
                    let shape = self.ints(&[1, 10, -1]);
                    self.op(Op::Reshape, &[all, shape], &format!("{name}_flat"))
                })
                .into();
            self.concat(&parts, 2, "joined")
        }
        fn slice(&mut self, x: ValueId, from: i64, to: i64, name: &str) -> ValueId {
            let [a, b, axis] = [from, to, 1].map(|i| self.ints(&[i]));
            self.op(Op::Slice, &[x, a, b, axis], name)
        }
        /// Boxes are means over bins, found by a convolution; scores go through a Sigmoid.
        fn detector(mut self) -> Model {
            let all = self.heads();
            let (boxes, scores) = (self.slice(all, 0, 8, "boxes"), self.slice(all, 8, 10, "scores"));
            let shape = self.ints(&[1, 4, 2, 20]);
            let bins = self.op(Op::Reshape, &[boxes, shape], "bins");
            let turned = self.node(Node::new(Op::Transpose, "").with("perm", vec![0, 2, 1, 3]), &[bins], "turned");
            let soft = self.node(Node::new(Op::Softmax, "").with("axis", 1), &[turned], "soft");
            let mean = self.conv(soft, &[1, 2, 1, 1], 1, "mean");
            let shape = self.ints(&[1, 4, 20]);
            let mean = self.op(Op::Reshape, &[mean, shape], "sides");
            let scores = self.op(Op::Sigmoid, &[scores], "sure");
            let y = self.concat(&[mean, scores], 1, "y");
            self.done(&[y])
        }
    }

    fn names(g: &Graph, list: &[ValueId]) -> Vec<String> {
        list.iter().map(|v| g.value(*v).name.clone()).collect()
    }

    #[test]
    fn a_detectors_heads_are_what_the_model_gives_and_its_tail_makes_the_rest() {
        let before = Build::new().detector();
        let mut main = before.clone();
        let (notes, tail) = cut_tail(&mut main);
        let tail = tail.expect("it is a detector");
        let heads = ["fine_box", "fine_score", "coarse_box", "coarse_score"];
        assert_eq!(
            (names(&main.graph, &main.graph.outputs), names(&tail.graph, &tail.graph.inputs)),
            (heads.map(String::from).into(), heads.map(String::from).into())
        );
        assert_eq!((names(&tail.graph, &tail.graph.outputs), notes.list().len()), (vec!["y".to_string()], 1));
        assert!(
            main.graph.find_value("neck").is_some() && tail.graph.find_value("neck").is_none(),
            "what Resize brought to one size is joined for the layers behind"
        );
        assert!(tail.graph.nodes().all(|(_, n)| n.name != "a") && main.graph.nodes().all(|(_, n)| n.name != "mean"));
        let x = Tensor::of_f32(&[1, 3, 8, 8], noise(&[1, 3, 8, 8], 5));
        main.graph.append(&tail.graph).unwrap();
        main.graph.outputs = vec![main.graph.find_value("y").unwrap()];
        assert_eq!(result(&main, &x), result(&before, &x));
    }

    #[test]
    fn what_layers_read_is_no_tail() {
        // A layer of many results makes features of the joined grids.
        let mut b = Build::new();
        let all = b.heads();
        let w = b.floats(&[20, 3]);
        let y = b.op(Op::MatMul, &[all, w], "y");
        let mut m = b.done(&[y]);
        assert!(cut_tail(&mut m).1.is_none());
        let mut m = Build::new();
        let [a, b] = m.features();
        let mut m = m.done(&[a, b]);
        let before = m.clone();
        assert!(cut_tail(&mut m).1.is_none() && m == before);
    }

    #[test]
    fn a_tail_that_reads_shapes_is_declined() {
        let mut b = Build::new();
        let all = b.heads();
        let a = b.0.graph.find_value("a_relu").unwrap();
        let shape = b.op(Op::Shape, &[a], "grid");
        let y = b.op(Op::Expand, &[all, shape], "y");
        let mut m = b.done(&[y]);
        let (notes, tail) = cut_tail(&mut m);
        assert!(tail.is_none() && notes.list()[0].text.contains("reads grid"), "{:?}", notes.list());
    }

    #[test]
    fn an_output_before_the_tail_stays() {
        let mut b = Build::new();
        let all = b.heads();
        let head = b.0.graph.find_value("fine_box").unwrap();
        let mut m = b.done(&[head, all]);
        let tail = cut_tail(&mut m).1.unwrap();
        assert_eq!(names(&m.graph, &m.graph.outputs), ["fine_box", "fine_score", "coarse_box", "coarse_score"]);
        assert_eq!(names(&tail.graph, &tail.graph.outputs), ["joined"]);
    }
}
