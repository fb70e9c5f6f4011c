//! Products of matrices: MatMul with broadcasting stacks, and Gemm.

use super::buffers;
use super::tape::{Tape, Var};
use crate::graph::broadcast;
use crate::math::{Matrix, multiply};

/// A product of stacks of matrices, resolved against two shapes.
struct Stacks {
    shape: Vec<usize>,
    /// Rows, inner length and columns of each product.
    rows: usize,
    inner: usize,
    cols: usize,
    /// For each product of the stack, which matrix of the first operand and which of the second.
    pairs: Vec<(usize, usize)>,
}

impl Stacks {
    fn new(a: &[usize], b: &[usize]) -> Stacks {
        // A vector is a matrix of one row or column, which the result has not.
        let (full_a, full_b) = (if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() }, if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() });
        let (outer_a, outer_b) = (&full_a[..full_a.len() - 2], &full_b[..full_b.len() - 2]);
        let (mut rows, inner, cols) = (full_a[full_a.len() - 2], full_b[full_b.len() - 2], full_b[full_b.len() - 1]);
        assert_eq!(full_a[full_a.len() - 1], inner, "{a:?} times {b:?}");
        let outer = broadcast(outer_a, outer_b).unwrap_or_else(|| panic!("{a:?} and {b:?} do not broadcast"));
        let mut shape = outer.clone();
        shape.extend((a.len() > 1).then_some(rows));
        shape.extend((b.len() > 1).then_some(cols));
        let pairs = if outer_b.iter().all(|d| *d == 1) {
            // One matrix serves them all: one product.
            rows *= outer_a.iter().product::<usize>();
            vec![(0, 0)]
        } else {
            let index = |own: &[usize], mut i: usize| {
                let (mut at, mut stride) = (0, 1);
                for (d, n) in outer.iter().enumerate().rev() {
                    let (k, lead) = (i % n, outer.len() - own.len());
                    i /= n;
                    if d >= lead {
                        at += if own[d - lead] == 1 { 0 } else { k * stride };
                        stride *= own[d - lead];
                    }
                }
                at
            };
            (0..outer.iter().product()).map(|i| (index(outer_a, i), index(outer_b, i))).collect()
        };
        Stacks { shape, rows, inner, cols, pairs }
    }
}

impl Tape {
    /// ONNX's and NumPy's matrix product.
    pub fn matmul(&mut self, a: Var, b: Var) -> Var {
        let s = Stacks::new(self.shape(a), self.shape(b));
        let (size_a, size_b, size_y) = (s.rows * s.inner, s.inner * s.cols, s.rows * s.cols);
        let mut value = buffers::zeros(s.shape.iter().product());
        let (x, y) = (self.value(a), self.value(b));
        for (out, (i, j)) in value.chunks_exact_mut(size_y.max(1)).zip(&s.pairs) {
            let (x, y) = (Matrix::new(&x[i * size_a..], s.rows, s.inner), Matrix::new(&y[j * size_b..], s.inner, s.cols));
            multiply(out, s.cols, x, y, false);
        }
        let shape = s.shape.clone();
        self.push(value, &shape, &[a, b], move |tape, grad, grads| {
            let (x, y) = (tape.value(a), tape.value(b));
            let products = || grad.chunks_exact(size_y.max(1)).zip(&s.pairs);
            grads.add_to(a, x.len(), |sum| {
                for (g, (i, j)) in products() {
                    let y = Matrix::new(&y[j * size_b..], s.inner, s.cols).transposed();
                    multiply(&mut sum[i * size_a..], s.inner, Matrix::new(g, s.rows, s.cols), y, true);
                }
            });
            grads.add_to(b, y.len(), |sum| {
                for (g, (i, j)) in products() {
                    let x = Matrix::new(&x[i * size_a..], s.rows, s.inner).transposed();
                    multiply(&mut sum[j * size_b..], s.cols, x, Matrix::new(g, s.rows, s.cols), true);
                }
            });
        })
    }

    /// `a · b` of two matrices, each read transposed if so wished.
    pub fn product(&mut self, a: Var, transposed_a: bool, b: Var, transposed_b: bool) -> Var {
        let pair = |s: &[usize]| (s[0], s[1]);
        let (of_a, of_b) = (pair(self.shape(a)), pair(self.shape(b)));
        let (rows, inner) = if transposed_a { (of_a.1, of_a.0) } else { of_a };
        let cols = if transposed_b { of_b.0 } else { of_b.1 };
        assert_eq!(inner, if transposed_b { of_b.1 } else { of_b.0 }, "{of_a:?} times {of_b:?}");
        let mut value = buffers::zeros(rows * cols);
        let x = Matrix::new(self.value(a), of_a.0, of_a.1).transposed_if(transposed_a);
        let y = Matrix::new(self.value(b), of_b.0, of_b.1).transposed_if(transposed_b);
        multiply(&mut value, cols, x, y, false);
        self.push(value, &[rows, cols], &[a, b], move |tape, grad, grads| {
            let grad = Matrix::new(grad, rows, cols);
            grads.add_to(a, of_a.0 * of_a.1, |sum| {
                let y = Matrix::new(tape.value(b), of_b.0, of_b.1).transposed_if(!transposed_b);
                match transposed_a {
                    false => multiply(sum, of_a.1, grad, y, true),
                    true => multiply(sum, of_a.1, y.transposed(), grad.transposed(), true),
                }
            });
            grads.add_to(b, of_b.0 * of_b.1, |sum| {
                let x = Matrix::new(tape.value(a), of_a.0, of_a.1).transposed_if(!transposed_a);
                match transposed_b {
                    false => multiply(sum, of_b.1, x, grad, true),
                    true => multiply(sum, of_b.1, grad.transposed(), x.transposed(), true),
                }
            });
        })
    }
}
