//! What moves elements: every rearrangement is a table of sources, every interpolation a table of weighted ones.

use super::buffers;
use super::tape::{Tape, Var};
use std::sync::Arc;

/// A table of sources: no element of the operand, but the filler.
pub const FILLED: u32 = u32::MAX;

/// Weighted sources along one axis: for each index of the result, (index of the operand, weight).
pub type Taps = Vec<Vec<(usize, f32)>>;

impl Tape {
    /// The same elements under another shape.
    pub fn reshape(&mut self, x: Var, shape: &[usize]) -> Var {
        let value = self.shared(x);
        assert_eq!(value.len(), shape.iter().product::<usize>(), "{:?} as {shape:?}", self.shape(x));
        self.push(value, shape, &[x], move |_, grad, grads| grads.give_with(x, || buffers::copy(grad)))
    }

    /// Element `i` of the result is element `source[i]` of `x`, or `filler` at [`FILLED`]: transpositions, slices, pads, repetitions.
    pub fn pick(&mut self, x: Var, source: impl Into<Arc<Vec<u32>>>, shape: &[usize], filler: f32) -> Var {
        let source: Arc<Vec<u32>> = source.into();
        let values = self.value(x);
        let value = buffers::collect(source.len(), source.iter().map(|i| if *i == FILLED { filler } else { values[*i as usize] }));
        self.push(value, shape, &[x], move |tape, grad, grads| {
            grads.add_to(x, tape.value(x).len(), |sum| {
                for (i, g) in source.iter().zip(grad).filter(|(i, _)| **i != FILLED) {
                    sum[*i as usize] += g;
                }
            });
        })
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]` of `x`.
    pub fn transpose(&mut self, x: Var, order: &[usize]) -> Var {
        let from = self.shape(x).to_vec();
        let shape: Vec<usize> = order.iter().map(|a| from[*a]).collect();
        let strides: Vec<usize> = order.iter().map(|a| from[a + 1..].iter().product()).collect();
        let mut source = vec![0u32];
        for (n, stride) in shape.iter().zip(&strides) {
            source = source.iter().flat_map(|at| (0..*n).map(move |i| at + (i * stride) as u32)).collect();
        }
        self.pick(x, source, &shape, 0.0)
    }

    /// Rows of `x` along its first axis, by the numbers in `indices`, which has no gradient; negative ones count from the end.
    pub fn gather_rows(&mut self, x: Var, indices: Var) -> Option<Var> {
        let from = self.shape(x).to_vec();
        let row: usize = from[1..].iter().product();
        let mut source = Vec::with_capacity(self.value(indices).len() * row);
        for i in self.value(indices) {
            let i = if *i < 0.0 { *i as i64 + from[0] as i64 } else { *i as i64 };
            let i = usize::try_from(i).ok().filter(|i| *i < from[0])?;
            source.extend((i * row..(i + 1) * row).map(|k| k as u32));
        }
        let shape: Vec<usize> = self.shape(indices).iter().chain(&from[1..]).copied().collect();
        Some(self.pick(x, source, &shape, 0.0))
    }

    /// Tensors one behind the other along `axis`.
    pub fn concat(&mut self, parts: &[Var], axis: usize) -> Var {
        let mut shape = self.shape(parts[0]).to_vec();
        shape[axis] = parts.iter().map(|p| self.shape(*p)[axis]).sum();
        let rows: usize = shape[..axis].iter().product();
        let widths: Vec<usize> = parts.iter().map(|p| self.shape(*p)[axis..].iter().product()).collect();
        let mut value = buffers::empty(shape.iter().product());
        for r in 0..rows {
            parts.iter().zip(&widths).for_each(|(p, w)| value.extend_from_slice(&self.value(*p)[r * w..(r + 1) * w]));
        }
        let (parts, width) = (parts.to_vec(), widths.iter().sum::<usize>());
        self.push(value, &shape, &parts.clone(), move |_, grad, grads| {
            let mut at = 0;
            for (p, w) in parts.iter().zip(&widths) {
                grads.give_with(*p, || buffers::collect(rows * w, (0..rows).flat_map(|r| &grad[r * width + at..][..*w]).copied()));
                at += w;
            }
        })
    }

    /// Weighted sums of neighbours along `axis`: interpolation.
    pub fn blend(&mut self, x: Var, axis: usize, taps: &Taps) -> Var {
        let from = self.shape(x).to_vec();
        let mut shape = from.clone();
        shape[axis] = taps.len();
        let inner: usize = from[axis + 1..].iter().product();
        let mut value = buffers::zeros(shape.iter().product());
        let (width, wide) = ((from[axis] * inner).max(1), (taps.len() * inner).max(1));
        for (x, y) in self.value(x).chunks_exact(width).zip(value.chunks_exact_mut(wide)) {
            for (y, taps) in y.chunks_exact_mut(inner.max(1)).zip(taps) {
                for (i, w) in taps {
                    y.iter_mut().zip(&x[i * inner..]).for_each(|(y, x)| *y += w * x);
                }
            }
        }
        let taps = taps.clone();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.add_to(x, tape.value(x).len(), |sum| {
                for (x, g) in sum.chunks_exact_mut(width).zip(grad.chunks_exact(wide)) {
                    for (g, taps) in g.chunks_exact(inner.max(1)).zip(&taps) {
                        for (i, w) in taps {
                            x[i * inner..].iter_mut().zip(g).for_each(|(x, g)| *x += w * g);
                        }
                    }
                }
            });
        })
    }
}
