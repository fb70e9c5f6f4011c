//! Pools over windows, and reductions over axes.

use super::conv::Window;
use super::moves::FILLED;
use super::tape::{Tape, Var};

/// For each position of a window's walk over one axis: the range of taps inside the input, and the lowest index with padding.
struct Walk {
    taps: Vec<Vec<usize>>,
    /// Elements of the window that lie in the input or its declared padding.
    padded: Vec<usize>,
}

impl Walk {
    fn new(window: &Window, axis: usize, length: usize, positions: usize) -> Walk {
        let (k, s, d, begin, end) = (window.kernel[axis], window.strides[axis], window.dilations[axis], window.begin[axis], window.end[axis]);
        let at = |p: usize| (0..k).map(move |t| p * s + t * d);
        Walk {
            taps: (0..positions).map(|p| at(p).filter(|i| (begin..begin + length).contains(i)).map(|i| i - begin).collect()).collect(),
            padded: (0..positions).map(|p| at(p).filter(|i| *i < begin + length + end).count()).collect(),
        }
    }
}

impl Tape {
    /// The largest element of each window over the last axes of `x` `[N, C, …]`; `to` counts the positions along each. The first of equals has the gradient.
    pub fn max_pool(&mut self, x: Var, window: &Window, to: &[usize]) -> Var {
        let from = self.shape(x).to_vec();
        let (shape, plane, positions) = pooled(&from, to);
        let values = self.value(x);
        let mut source = Vec::with_capacity(shape.iter().product());
        let walks: Vec<Walk> = (0..to.len()).map(|i| Walk::new(window, i, from[i + 2], to[i])).collect();
        let windows: Vec<Vec<u32>> = windows(&walks, &from[2..], to);
        for image in 0..from[0] * from[1] {
            let pixels = &values[image * plane..(image + 1) * plane];
            for w in &windows {
                let best = w.iter().copied().reduce(|a, b| if pixels[b as usize] > pixels[a as usize] { b } else { a });
                source.push(best.map_or(FILLED, |b| (image * plane) as u32 + b));
            }
        }
        debug_assert_eq!(source.len(), from[0] * from[1] * positions);
        self.pick(x, source, &shape, f32::NEG_INFINITY)
    }

    /// The mean of each window over the last axes of `x` `[N, C, …]`; with `count_padding` the padding counts as zeros.
    pub fn average_pool(&mut self, x: Var, window: &Window, to: &[usize], count_padding: bool) -> Var {
        let from = self.shape(x).to_vec();
        let (shape, plane, positions) = pooled(&from, to);
        let walks: Vec<Walk> = (0..to.len()).map(|i| Walk::new(window, i, from[i + 2], to[i])).collect();
        let windows: Vec<Vec<u32>> = windows(&walks, &from[2..], to);
        let weights: Vec<f32> = windows
            .iter()
            .enumerate()
            .map(|(mut p, w)| {
                let mut padded = 1;
                for (i, n) in to.iter().enumerate().rev() {
                    padded *= walks[i].padded[p % n];
                    p /= n;
                }
                1.0 / (if count_padding { padded } else { w.len() }).max(1) as f32
            })
            .collect();
        let mut value = Vec::with_capacity(shape.iter().product());
        for pixels in self.value(x).chunks_exact(plane.max(1)) {
            value.extend(windows.iter().zip(&weights).map(|(w, f)| w.iter().map(|i| pixels[*i as usize]).sum::<f32>() * f));
        }
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.add_to(x, tape.value(x).len(), |sum| {
                for (pixels, grad) in sum.chunks_exact_mut(plane.max(1)).zip(grad.chunks_exact(positions.max(1))) {
                    for ((w, f), g) in windows.iter().zip(&weights).zip(grad) {
                        w.iter().for_each(|i| pixels[*i as usize] += g * f);
                    }
                }
            });
        })
    }

    /// The sum over `axes`, which stay with length 1.
    pub fn sum_over(&mut self, x: Var, axes: &[usize]) -> Var {
        let from = self.shape(x).to_vec();
        let (shape, members) = reduced(&from, axes);
        let mut value = vec![0f64; shape.iter().product()];
        each(&from, &members, self.value(x).len(), |i, to| value[to] += self.value(x)[i] as f64);
        let value: Vec<f32> = value.into_iter().map(|v| v as f32).collect();
        self.push(value, &shape, &[x], move |tape, grad, grads| {
            grads.add_to(x, tape.value(x).len(), |sum| each(&from, &members, sum.len(), |i, to| sum[i] += grad[to]));
        })
    }

    /// The mean over `axes`, which stay with length 1.
    pub fn mean_over(&mut self, x: Var, axes: &[usize]) -> Var {
        let count: usize = axes.iter().map(|a| self.shape(x)[*a]).product();
        let sum = self.sum_over(x, axes);
        self.scale(sum, 1.0 / count.max(1) as f32, 0.0)
    }

    /// The largest over `axes`, which stay with length 1; the first of equals has the gradient.
    pub fn max_over(&mut self, x: Var, axes: &[usize]) -> Var {
        let from = self.shape(x).to_vec();
        let (shape, members) = reduced(&from, axes);
        let values = self.value(x);
        let mut source = vec![FILLED; shape.iter().product()];
        each(&from, &members, values.len(), |i, to| {
            if source[to] == FILLED || values[i] > values[source[to] as usize] {
                source[to] = i as u32;
            }
        });
        self.pick(x, source, &shape, f32::NEG_INFINITY)
    }
}

/// Shape of a pool's result, and elements of a plane before and after.
fn pooled(from: &[usize], to: &[usize]) -> (Vec<usize>, usize, usize) {
    let shape: Vec<usize> = from[..2].iter().chain(to).copied().collect();
    (shape, from[2..].iter().product(), to.iter().product())
}

/// The elements of a plane in each window.
fn windows(walks: &[Walk], from: &[usize], to: &[usize]) -> Vec<Vec<u32>> {
    (0..to.iter().product())
        .map(|mut p: usize| {
            let mut index = vec![0; to.len()];
            for (i, n) in to.iter().enumerate().rev() {
                index[i] = p % n;
                p /= n;
            }
            let mut at = vec![0u32];
            for (i, walk) in walks.iter().enumerate() {
                at = at.iter().flat_map(|a| walk.taps[index[i]].iter().map(move |t| a * from[i] as u32 + *t as u32)).collect();
            }
            at
        })
        .collect()
}

/// The shape without `axes`, and for each dimension its stride in the result: 0 along those that are reduced.
fn reduced(from: &[usize], axes: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let shape: Vec<usize> = from.iter().enumerate().map(|(i, d)| if axes.contains(&i) { 1 } else { *d }).collect();
    let mut stride = 1;
    let mut strides = vec![0; shape.len()];
    for i in (0..shape.len()).rev() {
        strides[i] = if axes.contains(&i) { 0 } else { stride };
        stride *= shape[i];
    }
    (shape, strides)
}

/// Calls `f` with each element and where it goes.
fn each(from: &[usize], strides: &[usize], len: usize, mut f: impl FnMut(usize, usize)) {
    let mut index = vec![0; from.len()];
    let mut to = 0;
    for i in 0..len {
        f(i, to);
        for d in (0..from.len()).rev() {
            index[d] += 1;
            to += strides[d];
            if index[d] < from[d] {
                break;
            }
            to -= strides[d] * from[d];
            index[d] = 0;
        }
    }
}
