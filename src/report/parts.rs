//! What an output is made of: the stretches of it that hold the tensors it joins, such as a detector's boxes and scores. Beside the larger numbers the
//! smaller ones would not count, so each is judged by itself.

use crate::graph::{Flow, Graph, Inferred, Op, ValueId};
use crate::tensor::Tensor;

/// Tensors that an output joins at most, or it is judged as a whole.
const PARTS: usize = 32;

/// A stretch of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Of the tensor that was joined.
    pub name: String,
    /// Of the output, as inferred.
    shape: Vec<usize>,
    /// First index and the one behind the last, along each axis.
    within: Vec<(usize, usize)>,
}

/// The parts of output `v`, where two or more are known by the shapes inferred; else none.
pub fn parts(g: &Graph, inferred: &Inferred, v: ValueId) -> Vec<Part> {
    let Some(shape) = inferred.shape(v) else { return vec![] };
    let whole = Part { name: g.value(v).name.clone(), within: shape.iter().map(|d| (0, *d)).collect(), shape: shape.clone() };
    let axes = (0..shape.len()).map(Some).collect();
    let mut found = Vec::new();
    divide(g, inferred, v, axes, whole, &mut found);
    if (2..=PARTS).contains(&found.len()) { found } else { vec![] }
}

/// Collects what `v` joins. `part`: the stretch of the output that `v` is; `axes`: for each axis of `v`, that of the output which it became, where one did.
fn divide(g: &Graph, inferred: &Inferred, v: ValueId, axes: Vec<Option<usize>>, part: Part, found: &mut Vec<Part>) {
    let node = g.value(v).producer().map(|(n, _)| g.node(n));
    let shapes = |w: ValueId| Some((inferred.shape(w)?, inferred.shape(v)?));
    match node.and_then(|n| Some((n, n.op, n.input(0)?))) {
        Some((_, Op::FakeQuant | Op::Identity, x)) => return divide(g, inferred, x, axes, part, found),
        Some((n, Op::Transpose, x)) => {
            let order = n.ints("perm").map_or_else(|| (0..axes.len()).rev().collect(), |p| p.iter().map(|a| *a as usize).collect::<Vec<_>>());
            let mut before = vec![None; axes.len()];
            if order.len() == axes.len() && order.iter().all(|a| *a < axes.len()) {
                order.iter().zip(&axes).for_each(|(from, to)| before[*from] = *to);
                return divide(g, inferred, x, before, part, found);
            }
        }
        Some((_, Op::Reshape | Op::Flatten | Op::Squeeze | Op::Unsqueeze, x)) => {
            if let Some((from, to)) = shapes(x) {
                let place = |s: &[usize], a: usize| (s[..a].iter().product::<usize>(), s[a]);
                // An axis stays what it was where as much stands before it. Of several axes of size 1 either will do.
                let kept = |a: usize| (0..to.len()).find(|b| place(&from, a) == place(&to, *b)).and_then(|b| axes[b]);
                let before = (0..from.len()).map(kept).collect();
                return divide(g, inferred, x, before, part, found);
            }
        }
        Some((n, Op::Concat, _)) => {
            let axis = n.int("axis").unwrap_or(0);
            let axis = usize::try_from(if axis < 0 { axis + axes.len() as i64 } else { axis }).unwrap_or(usize::MAX);
            let sizes: Option<Vec<(ValueId, usize)>> = n.inputs().iter().map(|x| Some(((*x)?, inferred.shape((*x)?)?.get(axis).copied()?))).collect();
            if let (Some(sizes), Some(Some(at))) = (sizes, axes.get(axis).copied()) {
                let (mut first, end) = part.within[at];
                if sizes.iter().map(|s| s.1).sum::<usize>() == end - first {
                    for (x, size) in sizes {
                        let mut own = Part { name: g.value(x).name.clone(), ..part.clone() };
                        own.within[at] = (first, first + size);
                        first += size;
                        divide(g, inferred, x, axes.clone(), own, found);
                    }
                    return;
                }
            }
        }
        _ => {}
    }
    // Constants that are joined, such as an empty class token, tell nothing.
    let made = node.is_some_and(|n| n.op.flow() != Flow::Meta) || g.inputs.contains(&v);
    if made && g.constant(v).is_none() && part.within.iter().all(|(a, b)| a < b) {
        found.push(part);
    }
}

impl Part {
    /// The stretch of the output's tensor; `None` where that has another shape than was inferred.
    pub fn of(&self, t: &Tensor) -> Option<Tensor> {
        if t.shape() != self.shape {
            return None;
        }
        let x = t.to_f32().ok()?;
        let mut kept: Vec<f32> = x.into_owned();
        // One axis after the other, the last first: what stands behind an axis is cut already.
        let mut shape = self.shape.clone();
        for (axis, &(first, end)) in self.within.iter().enumerate().rev() {
            let behind: usize = shape[axis + 1..].iter().product();
            let whole = (shape[axis] * behind).max(1);
            kept = kept.chunks(whole).flat_map(|c| c[first * behind..end * behind].to_vec()).collect();
            shape[axis] = end - first;
        }
        Some(Tensor::of_f32(&shape, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, InputShapes, Model, Node, Type, infer};
    use crate::tensor::DType;

    /// y[1,6,5] = Transpose(Concat(Reshape(Concat(a[1,2,2,2], b[1,3,2,2])), c[1,5,2])): two axes are joined, with moves between.
    #[test]
    fn what_is_joined_is_found_through_moves() {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let mut input = |name: &str, shape: &[usize]| {
            let v = g.add_value(name);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
            g.inputs.push(v);
            v
        };
        let (a, b, c) = (input("a", &[1, 2, 2, 2]), input("b", &[1, 3, 2, 2]), input("c", &[1, 5, 2]));
        let [ab, flat, all, y] = ["ab", "flat", "all", "y"].map(|n| g.add_value(n));
        let to = g.add_constant("to", Tensor::of_i64(&[3], vec![1, 5, -1]));
        g.outputs = vec![y];
        g.add_node(Node::new(Op::Concat, "ab").with("axis", 1), &[Some(a), Some(b)], &[Some(ab)]);
        g.add_node(Node::new(Op::Reshape, "flat"), &[Some(ab), Some(to)], &[Some(flat)]);
        g.add_node(Node::new(Op::Concat, "all").with("axis", 2), &[Some(flat), Some(c)], &[Some(all)]);
        g.add_node(Node::new(Op::Transpose, "y").with("perm", vec![0, 2, 1]), &[Some(all)], &[Some(y)]);
        let inferred = infer(&m, &InputShapes::default());
        let found = parts(&m.graph, &inferred, y);
        let view: Vec<_> = found.iter().map(|p| (p.name.as_str(), &p.within[..])).collect();
        assert_eq!(view, [("a", &[(0, 1), (0, 4), (0, 2)][..]), ("b", &[(0, 1), (0, 4), (2, 5)][..]), ("c", &[(0, 1), (4, 6), (0, 5)][..])]);
        let t = Tensor::of_f32(&[1, 6, 5], (0..30).map(|i| i as f32).collect());
        let part = found[1].of(&t).unwrap();
        assert_eq!((part.shape(), &part.to_f32().unwrap()[..]), (&[1, 4, 3][..], &[2.0, 3.0, 4.0, 7.0, 8.0, 9.0, 12.0, 13.0, 14.0, 17.0, 18.0, 19.0][..]));
        assert!(found[0].of(&Tensor::of_f32(&[1, 5, 6], vec![0.0; 30])).is_none());
        assert!(parts(&m.graph, &inferred, ab).len() == 2 && parts(&m.graph, &inferred, a).is_empty());
    }
}
