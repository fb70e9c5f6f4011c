//! Stores the constant weight of a Gemm the way a target reads it: as [inputs, outputs] (`transB` 0), or as [outputs, inputs] (`transB` 1).
//! Exact. Needs nothing. Declines: weights that are computed.

use crate::graph::{InputShapes, Model, Node, Op, eval, infer};
use crate::note::Notes;
use crate::target::{Must, Profile};

const WHICH: &str = "transB";

/// Turns each Gemm's weight whose `transB` a limit of the target bars.
pub fn orient(model: &mut Model, target: &Profile) -> Notes {
    let mut notes = Notes::of("fuse");
    let inferred = infer(model, &InputShapes::new());
    let bars = |must: &Must| matches!(must, Must::Attribute { name, .. } if name == WHICH);
    let barred = target.barred(model, &inferred).into_iter().filter(|(id, limit)| bars(&limit.must) && model.graph.node(*id).op == Op::Gemm);
    let barred: Vec<_> = barred.map(|(id, _)| id).collect();
    let mut turned = 0;
    for id in barred {
        let g = &mut model.graph;
        let weight = g
            .node(id)
            .input(1)
            .and_then(|w| g.constant(w))
            .filter(|c| c.tensor.rank() == 2)
            .and_then(|c| eval(&Node::new(Op::Transpose, ""), &[Some(&c.tensor)])?.pop());
        let Some(weight) = weight else {
            notes.declined(&g.node(id).name, "its weight is computed, and stays as it lies");
            continue;
        };
        let old = g.node(id).input(1).expect("its weight was found there");
        let name = format!("{}_turned", g.value(old).name);
        let new = g.add_constant(&name, weight);
        g.set_input(id, 1, Some(new));
        g.remove_idle(old);
        let is = g.node(id).int(WHICH).unwrap_or(0);
        g.node_mut(id).set_attr(WHICH, 1 - is);
        turned += 1;
    }
    if turned > 0 {
        notes.changed("", format!("weights of {turned} Gemm are stored transposed, as the target reads them"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Fate, Limit};
    use crate::tensor::Tensor;

    #[test]
    fn a_weight_that_lies_wrong_is_turned() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, y, z] = ["x", "y", "z"].map(|n| g.add_value(n));
        let w = g.add_constant("w", Tensor::of_f32(&[3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        g.inputs.push(x);
        g.outputs.extend([y, z]);
        let a = g.add_node(Node::new(Op::Gemm, "a").with(WHICH, 1i64), &[Some(x), Some(w)], &[Some(y)]);
        let b = g.add_node(Node::new(Op::Gemm, "b").with(WHICH, 1i64), &[Some(x), Some(x)], &[Some(z)]);
        let must = Must::Attribute { name: WHICH.into(), values: vec!["0".into()] };
        let target = Profile { limits: vec![Limit { ops: vec![Op::Gemm], must, then: Fate::Refused, ..Limit::default() }], ..Profile::default() };
        let notes = orient(&mut m, &target);
        assert_eq!((m.graph.node(a).int(WHICH), m.graph.node(b).int(WHICH)), (Some(0), Some(1)));
        let turned = &m.graph.constant(m.graph.node(a).input(1).unwrap()).unwrap().tensor;
        assert_eq!((turned.shape(), &turned.to_f32().unwrap()[..]), (&[2, 3][..], &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0][..]));
        assert_eq!(notes.list().len(), 2);
        assert!(orient(&mut m, &Profile::default()).list().is_empty());
    }
}
