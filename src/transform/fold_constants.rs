//! Folds what depends on constants alone into initializers, and takes out nodes that do nothing or that nothing depends on.
//! Exact: constants are computed in the type of the model. Needs nothing. Declines: results larger than both 16 Mi elements and every input.

use crate::error::Result;
use crate::graph::{self, Graph, Inferred, InputShapes, Model, Node, NodeId, Op};
use crate::note::Notes;

/// The `fold-constants` step. Symbolic shapes stay symbolic: only what holds for every input is folded.
pub fn fold_constants(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("fold-constants");
    let inferred = graph::infer(model, &InputShapes::new());
    let folded = graph::fold(&mut model.graph, &inferred);
    let passed = remove_idle(&mut model.graph);
    let pools = name_global_pools(&mut model.graph, &inferred);
    let dead = model.graph.remove_dead();
    if folded + passed + dead > 0 {
        notes.changed("", format!("{folded} nodes folded into constants, {passed} that only pass their input on and {dead} that nothing reads removed"));
    }
    if pools > 0 {
        notes.changed("", format!("{pools} average pools over their whole input are global ones"));
    }
    Ok(notes)
}

/// An average pool whose window is its whole input is a global one, to which targets have other rules.
fn name_global_pools(g: &mut Graph, inferred: &Inferred) -> usize {
    let whole = |n: &Node| {
        let shape = n.input(0).and_then(|x| inferred.shape(x)).filter(|s| s.len() > 2)?;
        let kernel = n.ints("kernel_shape")?;
        let fills = kernel.len() == shape.len() - 2 && kernel.iter().zip(&shape[2..]).all(|(k, d)| *k == *d as i64);
        let plain = n.ints("pads").is_none_or(|p| p.iter().all(|p| *p == 0)) && n.ints("dilations").is_none_or(|d| d.iter().all(|d| *d == 1));
        (fills && plain && matches!(n.str("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID")).then_some(())
    };
    let pools: Vec<NodeId> = g.nodes().filter(|(_, n)| n.op == Op::AveragePool && whole(n).is_some()).map(|(id, _)| id).collect();
    for id in &pools {
        let node = g.node_mut(*id);
        (node.op, node.op_type) = (Op::GlobalAveragePool, Node::new(Op::GlobalAveragePool, "").op_type);
        node.attrs.clear();
    }
    pools.len()
}

/// Takes out Identity and inference-time Dropout. One that makes a graph output of a graph input stays.
fn remove_idle(g: &mut Graph) -> usize {
    let idle = |g: &Graph, id: NodeId| {
        let n = g.node(id);
        matches!(n.op, Op::Identity | Op::Dropout)
            && n.outputs().len() == 1
            && n.input(2).is_none_or(|v| g.constant(v).is_some_and(|c| c.tensor.bytes().iter().all(|b| *b == 0)))
    };
    let mut removed = 0;
    for id in g.order().to_vec() {
        if !idle(g, id) {
            continue;
        }
        removed += g.bypass(id) as usize;
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn constants_fold_and_idle_nodes_go() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, s, i, h, y] = ["x", "s", "i", "h", "y"].map(|n| g.add_value(n));
        let a = g.add_constant("a", Tensor::scalar(2.0));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::new(Op::Mul, "square"), &[Some(a), Some(a)], &[Some(s)]);
        g.add_node(Node::new(Op::Identity, "pass"), &[Some(x)], &[Some(i)]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(i), Some(s)], &[Some(h)]);
        g.add_node(Node::new(Op::Identity, "last"), &[Some(h)], &[Some(y)]);
        let notes = fold_constants(&mut m).unwrap();
        let g = &m.graph;
        assert_eq!(g.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::Add]);
        let (_, add) = g.nodes().next().unwrap();
        assert_eq!((add.input(0), add.output(0)), (Some(x), Some(y)));
        assert_eq!(g.constant(add.input(1).unwrap()).unwrap().tensor, Tensor::scalar(4.0));
        assert!(g.find_value("a").is_none());
        assert_eq!(notes.list().len(), 1);
    }
}
