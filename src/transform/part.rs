//! Puts an operator that changes nothing, Max of a value with itself, between what a target's compiler takes together and then cannot run.
//! Exact. Needs nothing. Declines nothing.

use crate::graph::{InputShapes, Model, Node, Op, ValueId, infer};
use crate::note::Notes;
use crate::target::{Must, Profile};
use std::collections::BTreeSet;

/// Parts what limits of the target want apart.
pub fn part(model: &mut Model, target: &Profile) -> Notes {
    let mut notes = Notes::of("fuse");
    let inferred = infer(model, &InputShapes::new());
    let mut made: BTreeSet<ValueId> = BTreeSet::new();
    for (id, limit) in target.barred(model, &inferred) {
        if let Must::Apart(apart) = &limit.must {
            made.extend(apart.made_of(model, model.graph.node(id), &inferred));
        }
    }
    let g = &mut model.graph;
    for v in &made {
        let (maker, _) = g.value(*v).producer().expect("a node makes it");
        let name = format!("{}_apart", g.value(*v).name);
        let apart = g.add_value(&name);
        g.value_mut(apart).ty = g.value(*v).ty.clone();
        g.replace_uses(*v, apart);
        let at = g.position(maker) + 1;
        g.insert_node(at, Node::new(Op::Max, name), &[Some(*v), Some(*v)], &[Some(apart)]);
    }
    if !made.is_empty() {
        notes.changed("", format!("{} results pass a Max with themselves, which keeps apart what the compiler would take together", made.len()));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Apart, Fate, Limit};
    use crate::tensor::Tensor;
    use crate::transform::testing::{noise, result, value};

    /// x[1,2,6] → Split → (Sigmoid → Reshape to `shape` → y, z), and Slices of x
    fn model(shape: &[i64]) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 17)], ..Model::default() };
        let g = &mut m.graph;
        let x = value(g, "x", &[1, 2, 6]);
        let [a, b, y, z] = ["a", "b", "y", "z"].map(|n| g.add_value(n));
        let s = value(g, "s", &[1, 2, 3]);
        g.inputs.push(x);
        g.outputs.extend([y, z]);
        let parts = g.add_constant("parts", Tensor::of_i64(&[2], vec![3, 3]));
        let to = g.add_constant("to", Tensor::of_i64(&[shape.len()], shape.to_vec()));
        g.add_node(Node::new(Op::Split, "split").with("axis", 2), &[Some(x), Some(parts)], &[Some(a), Some(b)]);
        g.add_node(Node::new(Op::Sigmoid, "sigmoid"), &[Some(a)], &[Some(s)]);
        g.add_node(Node::new(Op::Reshape, "reshape"), &[Some(s), Some(to)], &[Some(y)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(b)], &[Some(z)]);
        m
    }

    fn target(across: &[Op]) -> Profile {
        let apart = Apart { makers: vec![Op::Split], across: across.to_vec(), ..Apart::default() };
        Profile { limits: vec![Limit { ops: vec![Op::Reshape], must: Must::Apart(apart), then: Fate::Refused, ..Limit::default() }], ..Profile::default() }
    }

    #[test]
    fn a_max_parts_what_must_not_meet_and_changes_nothing() {
        // (shape of the Reshape, what lies between and does not help, where a Max stands then)
        let cases: [(&[i64], &[Op], Option<usize>); 3] = [(&[1, 6], &[Op::Sigmoid], Some(1)), (&[1, 6], &[], None), (&[2, 1, 3], &[Op::Sigmoid], None)];
        for (shape, across, at) in cases {
            let before = model(shape);
            let mut after = before.clone();
            let notes = part(&mut after, &target(across));
            assert_eq!(after.graph.nodes().position(|(_, n)| n.op == Op::Max), at, "{shape:?}");
            assert_eq!(notes.list().len(), at.iter().len());
            assert!(target(across).barred(&after, &infer(&after, &InputShapes::new())).is_empty());
            let x = Tensor::of_f32(&[1, 2, 6], noise(&[1, 2, 6], 1));
            assert_eq!(result(&before, &x), result(&after, &x));
        }
    }
}
