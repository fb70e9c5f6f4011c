//! Which elements of a tensor share one scale. Tensor, channel, block, token, gate and flat blocks are one geometry:
//! an extent per dimension, over an optional reshaped view.

use crate::error::{Error, Result};

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
            View::Flat => view = vec![shape.iter().product()],
            View::Split { axis, parts } => {
                let a = axis_of(axis, view.len())?;
                if parts == 0 || view[a] % parts != 0 {
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
}
