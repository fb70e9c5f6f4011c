//! Which elements of a tensor share one scale. Tensor, channel, block, token, gate and flat blocks are one geometry:
//! an extent per dimension, over an optional reshaped view.

use crate::error::{Error, Result};
use crate::tensor::numel;
use std::ops::Range;

/// Granularity, independent of the tensor's rank until [`Blocks::layout`] meets a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    pub view: View,
    /// Extent along every dimension (of the view) that `along` does not name.
    pub rest: Extent,
    /// Extents along named dimensions of the view; negative axes count from the end.
    pub along: Vec<(i32, Extent)>,
}

/// The shape in which the extents are meant. Never moves an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The tensor as it is.
    Own,
    /// `axis` split into `[parts, length / parts]`: the gates of an LSTM.
    Split { axis: i32, parts: usize },
    /// One dimension: blocks run over the flattened tensor.
    Flat,
}

/// How many neighbours along a dimension share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Whole,
    One,
    /// Blocks of so many; the last may be shorter.
    Size(usize),
}

/// [`Blocks`] resolved against a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Shape of the view: row-major, as many elements as the tensor.
    pub view: Vec<usize>,
    /// Elements of a block along each dimension of the view; at least 1.
    pub extent: Vec<usize>,
    /// Blocks along each dimension of the view: the shape of the scale, in row-major order.
    pub grid: Vec<usize>,
}

impl Blocks {
    /// One scale for the whole tensor.
    pub fn tensor() -> Self {
        Blocks { view: View::Own, rest: Extent::Whole, along: Vec::new() }
    }

    /// One scale an index of `axis`.
    pub fn channel(axis: i32) -> Self {
        Blocks { along: vec![(axis, Extent::One)], ..Self::tensor() }
    }

    /// One scale for `size` neighbours along `axis` and each index of the other dimensions: ONNX's blocked quantization.
    pub fn block(axis: i32, size: usize) -> Self {
        Blocks { view: View::Own, rest: Extent::One, along: vec![(axis, Extent::Size(size))] }
    }

    /// One scale for each vector along the last dimension.
    pub fn token() -> Self {
        Blocks { view: View::Own, rest: Extent::One, along: vec![(-1, Extent::Whole)] }
    }

    /// One scale a direction and gate of recurrent weights `[directions, gates · hidden, …]`.
    pub fn gate(gates: usize) -> Self {
        Blocks { view: View::Split { axis: 1, parts: gates }, rest: Extent::Whole, along: vec![(0, Extent::One), (1, Extent::One)] }
    }

    /// One scale for `size` neighbours of the flattened tensor.
    pub fn flat(size: usize) -> Self {
        Blocks { view: View::Flat, rest: Extent::Size(size), along: Vec::new() }
    }

    /// Whether one scale serves the whole tensor, whatever its shape.
    pub fn is_tensor(&self) -> bool {
        self.rest == Extent::Whole && self.along.iter().all(|(_, e)| *e == Extent::Whole)
    }

    /// The axis with one scale an index, if this is per-channel granularity.
    pub fn channel_axis(&self) -> Option<i32> {
        match self.along[..] {
            [(axis, Extent::One)] if self.view == View::Own && self.rest == Extent::Whole => Some(axis),
            _ => None,
        }
    }

    /// The number of gates, if this is one scale a direction and gate.
    pub fn gates(&self) -> Option<usize> {
        match self.view {
            View::Split { axis: 1, parts } if *self == Self::gate(parts) => Some(parts),
            _ => None,
        }
    }

    /// Axis and size, if this is ONNX's blocked granularity.
    pub fn block_axis(&self) -> Option<(i32, usize)> {
        match self.along[..] {
            [(axis, Extent::Size(n))] if self.view == View::Own && self.rest == Extent::One => Some((axis, n)),
            _ => None,
        }
    }

    /// The blocks of a tensor of `shape`. Fails where an axis or a split does not fit it.
    pub fn layout(&self, shape: &[usize]) -> Result<Layout> {
        let axis_of = |axis: i32, rank: usize| {
            let a = if axis < 0 { axis + rank as i32 } else { axis };
            (0..rank as i32).contains(&a).then_some(a as usize).ok_or_else(|| Error::usage(format!("axis {axis} does not exist in shape {shape:?}")))
        };
        let mut view = shape.to_vec();
        match self.view {
            View::Own => {}
            View::Flat => view = vec![numel(shape).ok_or_else(|| Error::usage(format!("shape {shape:?} has too many elements")))?],
            View::Split { axis, parts } => {
                let a = axis_of(axis, view.len())?;
                if parts == 0 || !view[a].is_multiple_of(parts) {
                    return Err(Error::usage(format!("axis {axis} of shape {shape:?} does not split into {parts} equal parts")));
                }
                view.splice(a..=a, [parts, shape[a] / parts]);
            }
        }
        let mut extents = vec![self.rest; view.len()];
        for &(axis, e) in &self.along {
            extents[axis_of(axis, view.len())?] = e;
        }
        let extent: Vec<usize> = extents
            .iter()
            .zip(&view)
            .map(|(e, &d)| match *e {
                Extent::Whole => d.max(1),
                Extent::One => 1,
                Extent::Size(n) => n.clamp(1, d.max(1)),
            })
            .collect();
        let grid = view.iter().zip(&extent).map(|(&d, &e)| d.div_ceil(e)).collect();
        Ok(Layout { view, extent, grid })
    }
}

impl Layout {
    /// Number of blocks, that is of scales.
    pub fn len(&self) -> usize {
        self.grid.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of squared differences between `x` and `y` in each block.
    pub fn losses(&self, x: &[f32], y: &[f32]) -> Vec<f64> {
        let mut loss = vec![0f64; self.len()];
        let square = |i: usize| ((x[i] - y[i]) as f64).powi(2);
        self.runs(|r, share| match share {
            Share::One(b) => loss[b] += r.map(square).sum::<f64>(),
            Share::Each(b) => r.clone().for_each(|i| loss[b + i - r.start] += square(i)),
        });
        loss
    }

    /// The block of each element.
    pub fn members(&self) -> Vec<u32> {
        let mut members = vec![0u32; self.view.iter().product()];
        self.runs(|r, share| match share {
            Share::One(b) => members[r].fill(b as u32),
            Share::Each(b) => members[r].iter_mut().enumerate().for_each(|(i, m)| *m = (b + i) as u32),
        });
        members
    }

    /// Calls `f` for each stretch of neighbouring elements, in order, with the block or blocks they belong to.
    pub(super) fn runs(&self, mut f: impl FnMut(Range<usize>, Share)) {
        if self.view.contains(&0) {
            return;
        }
        // Neighbouring dimensions that share or separate scales alike are one dimension.
        let mut dims: Vec<(usize, usize)> = Vec::new();
        for (&d, &e) in self.view.iter().zip(&self.extent).filter(|(d, _)| **d != 1) {
            match dims.last_mut() {
                Some((outer, extent)) if e >= d || (*extent == 1 && e == 1) => (*outer, *extent) = (*outer * d, *extent * e.min(d)),
                _ => dims.push((d, e.min(d))),
            }
        }
        let Some((length, extent)) = dims.pop() else { return f(0..1, Share::One(0)) };
        let row_blocks = length.div_ceil(extent);
        let mut strides = vec![row_blocks; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i].0.div_ceil(dims[i].1);
        }
        let rows: usize = dims.iter().map(|d| d.0).product();
        let mut index = vec![0; dims.len()];
        for row in 0..rows {
            let start = row * length;
            let first: usize = index.iter().zip(&dims).zip(&strides).map(|((i, (_, e)), s)| i / e * s).sum();
            if extent == 1 {
                f(start..start + length, Share::Each(first));
            } else {
                for b in 0..row_blocks {
                    f(start + b * extent..start + length.min((b + 1) * extent), Share::One(first + b));
                }
            }
            for i in (0..dims.len()).rev() {
                index[i] += 1;
                if index[i] < dims[i].0 {
                    break;
                }
                index[i] = 0;
            }
        }
    }
}

/// Which blocks a stretch of elements belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// All to this one.
    One(usize),
    /// Each to its own: the first to this, the next to the next.
    Each(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The block of every element, by the definition: index over extent, row-major over the grid.
    fn by_definition(l: &Layout) -> Vec<usize> {
        let n = l.view.iter().product();
        let of = |mut i: usize| {
            let (mut block, mut stride) = (0, 1);
            for d in (0..l.view.len()).rev() {
                block += i % l.view[d] / l.extent[d] * stride;
                stride *= l.grid[d];
                i /= l.view[d];
            }
            block
        };
        (0..n).map(of).collect()
    }

    #[test]
    fn runs_visit_every_element_once_with_its_block() {
        let shapes: [&[usize]; 9] = [&[], &[1], &[7], &[2, 12, 5], &[3, 4], &[1, 8, 1, 3], &[2, 0, 3], &[5, 1], &[2, 8, 3, 2]];
        let blocks = [
            Blocks::tensor(),
            Blocks::channel(0),
            Blocks::channel(1),
            Blocks::channel(-1),
            Blocks::block(0, 2),
            Blocks::block(1, 3),
            Blocks::block(-1, 2),
            Blocks::token(),
            Blocks::gate(4),
            Blocks::flat(4),
            Blocks { view: View::Own, rest: Extent::Size(2), along: vec![] },
            Blocks { view: View::Own, rest: Extent::Whole, along: vec![(0, Extent::Size(2))] },
        ];
        let mut seen = 0;
        for shape in shapes {
            for b in &blocks {
                let Ok(l) = b.layout(shape) else { continue };
                let mut got = Vec::new();
                l.runs(|r, share| {
                    assert_eq!(r.start, got.len(), "in order");
                    got.extend(r.clone().map(|i| match share {
                        Share::One(b) => b,
                        Share::Each(b) => b + i - r.start,
                    }));
                });
                assert_eq!(got, by_definition(&l), "{b:?} over {shape:?}");
                assert!(got.iter().all(|&b| b < l.len()));
                seen += 1;
            }
        }
        assert!(seen > 70, "{seen}");
    }

    #[test]
    fn what_does_not_fit_a_shape_is_refused() {
        assert!(Blocks::channel(2).layout(&[3, 4]).is_err());
        assert!(Blocks::token().layout(&[]).is_err());
        assert!(Blocks::gate(4).layout(&[1, 6, 2]).is_err());
        assert!(Blocks::flat(4).layout(&[usize::MAX, 2]).is_err());
    }
}
