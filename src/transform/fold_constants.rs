//! Folds what depends on constants alone into initializers, and takes out nodes that do nothing or that nothing depends on, and square roots that are squared;
//! puts the constants of sums and products second.
//! Exact: constants are computed in the type of the model; a square of a root is what the root was taken of, up to its rounding. Needs nothing. Declines: results larger than both 16 Mi elements and every input.

use super::edit::rename;
use crate::error::Result;
use crate::graph::{self, Graph, Inferred, InputShapes, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;

/// The `fold-constants` step. Symbolic shapes stay symbolic: only what holds for every input is folded.
pub fn fold_constants(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("fold-constants");
    let (inferred, branches) = graph::infer_inlined(model, &InputShapes::new());
    let folded = graph::fold(&mut model.graph, &inferred);
    let passed = remove_idle(&mut model.graph);
    let pools = name_global_pools(&mut model.graph, &inferred);
    let roots = drop_squared_roots(&mut model.graph);
    let turned = put_constants_second(&mut model.graph);
    let dead = model.graph.remove_dead();
    if folded + passed + dead > 0 {
        notes.changed("", format!("{folded} nodes folded into constants, {passed} that only pass their input on and {dead} that nothing reads removed"));
    }
    if branches > 0 {
        notes.changed("", format!("{branches} Ifs whose condition is always the same are the branch that they take"));
    }
    if roots > 0 {
        notes.changed("", format!("{roots} square roots that are squared again removed, with the squares"));
    }
    if turned > 0 {
        notes.changed("", format!("{turned} sums and products have their constant as second operand"));
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

/// The input slot that a node passes on as it is, if it does nothing else: Identity, inference-time Dropout, Max with −∞ and Min with +∞.
fn passed_on(g: &Graph, id: NodeId) -> Option<usize> {
    let n = g.node(id);
    let bound = match n.op {
        Op::Identity | Op::Dropout => {
            let idle = n.outputs().len() == 1 && n.input(2).is_none_or(|v| g.constant(v).is_some_and(|c| c.tensor.bytes().iter().all(|b| *b == 0)));
            return idle.then_some(0);
        }
        Op::Max => f32::NEG_INFINITY,
        Op::Min => f32::INFINITY,
        _ => return None,
    };
    let is_bound = |v: ValueId| g.constant(v).is_some_and(|c| c.tensor.rank() == 0 && c.tensor.to_f32().is_ok_and(|x| x[0] == bound));
    let slot = (0..2).find(|slot| n.other(*slot).is_some_and(is_bound))?;
    (n.inputs().len() == 2).then_some(slot)
}

/// Takes out what passes its input on. One that makes a graph output of a graph input stays.
fn remove_idle(g: &mut Graph) -> usize {
    let mut removed = 0;
    for id in g.order().to_vec() {
        let Some(slot) = passed_on(g, id) else { continue };
        if slot > 0 {
            let x = g.node(id).input(slot);
            g.set_input(id, 0, x);
        }
        removed += g.bypass(id) as usize;
    }
    removed
}

/// Lets the constant of an Add or Mul be the second operand, where compilers look for it: there is one that runs products with a constant first in float.
fn put_constants_second(g: &mut Graph) -> usize {
    let is_first = |n: &Node| n.input(0).is_some_and(|v| g.constant(v).is_some()) && n.input(1).is_some_and(|v| g.constant(v).is_none());
    let first: Vec<NodeId> = g.nodes().filter(|(_, n)| matches!(n.op, Op::Add | Op::Mul) && is_first(n)).map(|(id, _)| id).collect();
    for id in &first {
        let (constant, x) = (g.node(*id).input(0), g.node(*id).input(1));
        g.set_input(*id, 0, x);
        g.set_input(*id, 1, constant);
    }
    first.len()
}

/// Takes out each Sqrt of which nothing but a square is taken, behind moves or not: of the power of a spectrum, say, whose amplitude nobody asks for.
/// Only where the root is of what is never negative: of others it is no number.
fn drop_squared_roots(g: &mut Graph) -> usize {
    let mut dropped = 0;
    for id in g.order().to_vec() {
        let made = g.get_node(id).and_then(|n| n.output(0));
        let Some((x, square)) = made.and_then(|y| graph::square_of(g, y)) else { continue };
        let Some((root, between)) = root_behind(g, x, square) else { continue };
        rename(g, between, "squared");
        g.bypass(square);
        g.bypass(root);
        dropped += 1;
    }
    dropped
}

/// The Sqrt that makes what `reader` alone reads, and the values that moves hand on from it.
fn root_behind(g: &Graph, mut x: ValueId, mut reader: NodeId) -> Option<(NodeId, Vec<ValueId>)> {
    let mut moved = vec![];
    loop {
        if g.is_output(x) || g.value(x).uses().iter().any(|p| p.node != reader) {
            return None;
        }
        let (id, _) = g.value(x).producer()?;
        let node = g.node(id);
        match node.op {
            Op::Sqrt => return is_never_negative(g, node.input(0)?, 16).then_some((id, moved)),
            Op::Transpose | Op::Reshape | Op::Flatten | Op::Squeeze | Op::Unsqueeze | Op::Slice => moved.push(x),
            _ => return None,
        }
        (x, reader) = (node.input(0)?, id);
    }
}

/// Whether a value is a square, a magnitude, or made of such; looked for `depth` nodes back.
fn is_never_negative(g: &Graph, v: ValueId, depth: usize) -> bool {
    if let Some(c) = g.constant(v) {
        return c.tensor.to_f32().is_ok_and(|x| x.iter().all(|x| *x >= 0.0));
    }
    let Some((id, _)) = g.value(v).producer().filter(|_| depth > 0) else { return false };
    let node = g.node(id);
    let of = |slot: usize| node.input(slot).is_some_and(|v| is_never_negative(g, v, depth - 1));
    match node.op {
        Op::Relu | Op::Abs | Op::Exp | Op::Sigmoid => true,
        Op::Clip => graph::bounds(g, node).is_some_and(|(low, _)| low >= 0.0),
        Op::Max => of(0) || of(1),
        Op::Add | Op::Div => of(0) && of(1),
        Op::Mul | Op::Pow => graph::square_of(g, v).is_some() || node.op == Op::Mul && of(0) && of(1),
        Op::ReduceSum | Op::ReduceMean | Op::ReduceMax | Op::Transpose | Op::Reshape | Op::Squeeze | Op::Unsqueeze | Op::Slice => of(0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    /// x → first → Sqrt → Transpose → square → y; with `shared` the root is an output too.
    fn squared_root(first: Op, pow: bool, shared: bool) -> Vec<Op> {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, a, r, t, y] = ["x", "a", "r", "t", "y"].map(|n| g.add_value(n));
        let two = g.add_constant("two", Tensor::scalar(2.0));
        (g.inputs, g.outputs) = (vec![x], if shared { vec![r, y] } else { vec![y] });
        let operands = if first == Op::Mul { vec![Some(x), Some(x)] } else { vec![Some(x)] };
        g.add_node(Node::new(first, "first"), &operands, &[Some(a)]);
        g.add_node(Node::new(Op::Sqrt, "root"), &[Some(a)], &[Some(r)]);
        g.add_node(Node::new(Op::Transpose, "turn").with("perm", vec![1i64, 0]), &[Some(r)], &[Some(t)]);
        let square = if pow { [Some(t), Some(two)] } else { [Some(t), Some(t)] };
        g.add_node(Node::new(if pow { Op::Pow } else { Op::Mul }, "square"), &square, &[Some(y)]);
        fold_constants(&mut m).unwrap();
        assert!(m.graph.outputs.contains(&y) && m.graph.value(y).producer().is_some());
        m.graph.nodes().map(|(_, n)| n.op).collect()
    }

    #[test]
    fn a_root_that_is_squared_was_never_taken() {
        for pow in [true, false] {
            assert_eq!(squared_root(Op::Mul, pow, false), [Op::Mul, Op::Transpose]);
            assert_eq!(squared_root(Op::Relu, pow, false), [Op::Relu, Op::Transpose]);
            // Of numbers below zero it is none; and who reads it wants it.
            assert_eq!(squared_root(Op::Neg, pow, false).len(), 4);
            assert_eq!(squared_root(Op::Mul, pow, true).len(), 4);
        }
    }

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

    #[test]
    fn a_constant_stands_second_where_the_order_is_free() {
        let order = |op: Op| {
            let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
            let g = &mut m.graph;
            let [x, y] = ["x", "y"].map(|n| g.add_value(n));
            let c = g.add_constant("c", Tensor::of_f32(&[2], vec![2.0, 3.0]));
            (g.inputs, g.outputs) = (vec![x], vec![y]);
            g.add_node(Node::new(op, "node"), &[Some(c), Some(x)], &[Some(y)]);
            let notes = fold_constants(&mut m).unwrap();
            let (_, n) = m.graph.nodes().next().unwrap();
            (n.input(0) == Some(x) && n.input(1) == Some(c), notes.list().len())
        };
        assert_eq!([order(Op::Mul), order(Op::Add), order(Op::Sub)], [(true, 1), (true, 1), (false, 0)]);
    }

    #[test]
    fn what_bounds_nothing_goes_and_known_branches_stand_in_the_open() {
        let mut branch = Graph::default();
        let [x, r] = ["x", "r"].map(|n| branch.add_value(n));
        branch.add_node(Node::new(Op::Relu, "relu"), &[Some(x)], &[Some(r)]);
        branch.outputs.push(r);
        let mut other = Graph::default();
        let x = other.add_value("x");
        other.outputs.push(x);

        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, b, h, l, y] = ["x", "b", "h", "l", "y"].map(|n| g.add_value(n));
        let [yes, low, high, zero] = [
            ("yes", Tensor::of(crate::tensor::DType::Bool, &[], vec![1u8])),
            ("low", Tensor::scalar(f32::NEG_INFINITY)),
            ("high", Tensor::scalar(f32::INFINITY)),
            ("zero", Tensor::scalar(0.0)),
        ]
        .map(|(n, t)| g.add_constant(n, t));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::If, "if").with("then_branch", branch).with("else_branch", other), &[Some(yes)], &[Some(b)]);
        g.add_node(Node::new(Op::Max, "max"), &[Some(low), Some(b)], &[Some(h)]);
        g.add_node(Node::new(Op::Min, "min"), &[Some(h), Some(high)], &[Some(l)]);
        g.add_node(Node::new(Op::Min, "cut"), &[Some(l), Some(zero)], &[Some(y)]);
        fold_constants(&mut m).unwrap();
        let g = &m.graph;
        assert_eq!(g.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::Relu, Op::Min]);
        let nodes: Vec<&Node> = g.nodes().map(|(_, n)| n).collect();
        assert_eq!((nodes[0].input(0), nodes[1].input(0), nodes[1].output(0)), (Some(x), nodes[0].output(0), Some(y)));
    }
}
