//! Evaluates operators on constants: what shape chains, masks, position tables and dynamic padding need, and cheap arithmetic on weights.
//! Results are those of ONNX's own definitions; an op, type or form that is not covered gives `None`, never a guess.

mod arithmetic;
mod movement;
mod numbers;
mod reduce;

use super::{Flow, Node, Op};
use crate::tensor::{DType, Tensor, numel};
pub use movement::{resolve_shape, shape_window, slice_axis, split_lengths};
pub use reduce::{reduced_axes, reduced_shape};

/// Results may not be larger than this many elements, unless an input is.
const MOST: usize = 16 << 20;

/// The outputs of a node whose inputs are constants; `None` for what is not evaluated here.
pub fn eval(node: &Node, inputs: &[Option<&Tensor>]) -> Option<Vec<Tensor>> {
    if !node.domain.is_empty() && &*node.domain != "ai.onnx"
        || matches!(node.op.flow(), Flow::Quantize | Flow::Linear | Flow::Recurrent | Flow::Opaque | Flow::Control) && !matches!(node.op, Op::MatMul)
    {
        return None;
    }
    let limit = inputs.iter().flatten().map(|t| t.len()).max().unwrap_or(0).max(MOST);
    Call { node, inputs, limit }.run()
}

/// One call: the node, its constant inputs, and how large a result may be.
struct Call<'a> {
    node: &'a Node,
    inputs: &'a [Option<&'a Tensor>],
    limit: usize,
}

impl<'a> Call<'a> {
    fn run(&self) -> Option<Vec<Tensor>> {
        match self.node.op {
            Op::Split => movement::split(self),
            Op::BatchNormalization => reduce::batch_norm(self),
            Op::TopK | Op::Unique => None,
            _ => {
                let one = movement::eval(self).or_else(|| arithmetic::eval(self)).or_else(|| reduce::eval(self))?;
                (self.node.outputs().iter().skip(1).all(Option::is_none)).then(|| vec![one])
            }
        }
    }

    /// Input `slot`, which must be there.
    fn input(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Integers of input `slot` or, in older opsets, of attribute `name`. `Some(None)`: left out.
    fn ints(&self, slot: usize, name: &str) -> Option<Option<Vec<i64>>> {
        match (self.input(slot), self.node.ints(name)) {
            (Some(t), _) => Some(Some(t.to_i64().ok()?)),
            (None, Some(v)) => Some(Some(v.to_vec())),
            // An input that is there but not constant.
            (None, None) => {
                if self.node.input(slot).is_some() {
                    None
                } else {
                    Some(None)
                }
            }
        }
    }

    /// The number of elements of `shape`, if it is within bounds.
    fn allow(&self, shape: &[usize]) -> Option<usize> {
        numel(shape).filter(|n| *n <= self.limit)
    }
}

/// A non-negative axis, or `None` where it does not fit the rank.
pub fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    (0..rank as i64).contains(&a).then_some(a as usize)
}

/// ONNX's (NumPy's) broadcast of two shapes.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Row-major strides, in elements.
pub fn strides(shape: &[usize]) -> Vec<isize> {
    let mut s = vec![1isize; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        s[i] = s[i + 1] * shape[i + 1] as isize;
    }
    s
}

/// Strides that read `shape` as if broadcast to `to`.
pub fn broadcast_strides(shape: &[usize], to: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let lead = to.len() - shape.len();
    (0..to.len()).map(|i| if i < lead || shape[i - lead] == 1 { 0 } else { own[i - lead] }).collect()
}

/// Calls `f` with the source offset of each element of `shape` in row-major order, read from `start` with `strides`.
pub fn walk(shape: &[usize], start: isize, strides: &[isize], mut f: impl FnMut(usize)) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0usize; shape.len()];
    let mut at = start;
    loop {
        f(at as usize);
        let mut d = shape.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            at += strides[d];
            if index[d] < shape[d] {
                break;
            }
            at -= strides[d] * shape[d] as isize;
            index[d] = 0;
        }
    }
}

/// Bytes of an element, for types that are not packed.
pub fn width(dtype: DType) -> Option<usize> {
    (dtype.bits() >= 8).then(|| dtype.bits() / 8)
}

#[cfg(test)]
mod tests {
    use super::super::{Graph, ValueId};
    use super::*;

    /// Evaluates a node on tensors.
    pub fn call(node: Node, inputs: &[Option<Tensor>], outputs: usize) -> Option<Vec<Tensor>> {
        let mut g = Graph::default();
        let ins: Vec<Option<ValueId>> = inputs.iter().map(|t| t.as_ref().map(|_| g.add_value("in"))).collect();
        let outs: Vec<Option<ValueId>> = (0..outputs).map(|_| Some(g.add_value("out"))).collect();
        let id = g.add_node(node, &ins, &outs);
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        eval(g.node(id), &inputs)
    }

    fn i(shape: &[usize], v: &[i64]) -> Option<Tensor> {
        Some(Tensor::of_i64(shape, v.to_vec()))
    }

    fn f(shape: &[usize], v: &[f32]) -> Option<Tensor> {
        Some(Tensor::of_f32(shape, v.to_vec()))
    }

    #[test]
    fn integers_divide_towards_zero_and_broadcast() {
        let y = call(Node::new(Op::Div, ""), &[i(&[3], &[7, -7, 9]), i(&[], &[2])], 1).unwrap();
        assert_eq!(y[0].to_i64().unwrap(), [3, -3, 4]);
        assert!(call(Node::new(Op::Div, ""), &[i(&[1], &[7]), i(&[1], &[0])], 1).is_none(), "division by zero is left alone");
    }

    #[test]
    fn slices_run_backwards_and_clamp() {
        let x = i(&[5], &[0, 1, 2, 3, 4]);
        let y = call(Node::new(Op::Slice, ""), &[x.clone(), i(&[1], &[-1]), i(&[1], &[i64::MIN]), i(&[1], &[0]), i(&[1], &[-2])], 1).unwrap();
        assert_eq!(y[0].to_i64().unwrap(), [4, 2, 0]);
        let y = call(Node::new(Op::Slice, "").with("starts", vec![1i64]).with("ends", vec![99i64]), &[x], 1).unwrap();
        assert_eq!(y[0].to_i64().unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_bomb_is_not_expanded() {
        let y = call(Node::new(Op::Expand, ""), &[f(&[1], &[1.0]), i(&[2], &[1 << 20, 1 << 20])], 1);
        assert!(y.is_none());
        assert!(call(Node::new(Op::Range, ""), &[i(&[], &[0]), i(&[], &[i64::MAX]), i(&[], &[1])], 1).is_none());
    }

    #[test]
    fn reductions_and_products() {
        let x = f(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let y = call(Node::new(Op::ReduceMean, "").with("axes", vec![-1i64]).with("keepdims", 0i64), std::slice::from_ref(&x), 1).unwrap();
        assert_eq!((y[0].shape(), &*y[0].to_f32().unwrap()), (&[2][..], &[2.0, 5.0][..]));
        let y = call(Node::new(Op::MatMul, ""), &[x, f(&[3, 1], &[1.0, 0.0, -1.0])], 1).unwrap();
        assert_eq!((y[0].shape(), &*y[0].to_f32().unwrap()), (&[2, 1][..], &[-2.0, -2.0][..]));
    }

    #[test]
    fn weights_are_standardized_by_what_they_hold_or_by_what_is_told() {
        let x = f(&[1, 2, 4], &[1.0, 2.0, 3.0, 4.0, -3.0, -1.0, 1.0, 3.0]);
        let [scale, bias, mean, var] = [[2.0, 1.0], [0.0, 10.0], [4.0, 0.0], [1.0, 9.0]].map(|v: [f32; 2]| f(&[2], &v));
        let node = |training: i64| Node::new(Op::BatchNormalization, "").with("training_mode", training).with("epsilon", 0.0f32).with("momentum", 0.75f32);
        let inputs = [x, scale, bias, mean, var];
        let y = call(node(1), &inputs, 3).unwrap();
        // Channels of variance 1.25 and 5.
        let wanted =
            [-1.5, -0.5, 0.5, 1.5].map(|v: f32| v / 1.25f32.sqrt() * 2.0).into_iter().chain([-3.0, -1.0, 1.0, 3.0].map(|v: f32| v / 5f32.sqrt() + 10.0));
        assert!(y[0].to_f32().unwrap().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
        assert_eq!((&*y[1].to_f32().unwrap(), &*y[2].to_f32().unwrap()), (&[3.625, 0.0][..], &[1.0625, 8.0][..]));
        let y = call(node(0), &inputs, 1).unwrap();
        assert_eq!(*y[0].to_f32().unwrap(), [-6.0, -4.0, -2.0, 0.0, 9.0, 10.0 - 1.0 / 3.0, 10.0 + 1.0 / 3.0, 11.0]);
        assert!(call(node(0), &inputs, 3).is_none(), "it has one output");
    }

    #[test]
    fn movement_keeps_every_type() {
        let b = Tensor::of(DType::Bool, &[2, 2], vec![1u8, 0, 0, 1]);
        let y = call(Node::new(Op::Transpose, ""), &[Some(b.clone())], 1).unwrap();
        assert_eq!(y[0], b);
        let y = call(Node::new(Op::Concat, "").with("axis", 0i64), &[i(&[2], &[1, 2]), i(&[1], &[3])], 1).unwrap();
        assert_eq!(y[0].to_i64().unwrap(), [1, 2, 3]);
        let y = call(Node::new(Op::Split, "").with("axis", 0i64), &[i(&[4], &[1, 2, 3, 4])], 2).unwrap();
        assert_eq!((y[0].to_i64().unwrap(), y[1].to_i64().unwrap()), (vec![1, 2], vec![3, 4]));
        let y = call(Node::new(Op::Gather, "").with("axis", 0i64), &[i(&[3], &[5, 6, 7]), i(&[], &[-1])], 1).unwrap();
        assert_eq!((y[0].shape().len(), y[0].to_i64().unwrap()), (0, vec![7]));
    }
}
