//! Convolutions and their transposes: groups, strides, dilations, asymmetric pads, one to three spatial axes. Products over gathered patches, a strip of
//! positions at a time so that it stays in the cache; depthwise ones elsewhere (`depthwise`).

use super::buffers;
use super::tape::{Tape, Var};
use crate::math::{Matrix, multiply};
use std::ops::Range;

/// Numbers of a strip of patches at most.
const STRIP: usize = 64 << 10;

/// How windows slide, for each spatial axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Padding before the first element.
    pub begin: Vec<usize>,
    /// Padding behind the last.
    pub end: Vec<usize>,
}

impl Window {
    /// A window of this kernel that moves by one and stays inside.
    pub fn of(kernel: &[usize]) -> Window {
        let n = kernel.len();
        Window { kernel: kernel.to_vec(), strides: vec![1; n], dilations: vec![1; n], begin: vec![0; n], end: vec![0; n] }
    }

    /// The number of positions along each axis of an input of these lengths.
    pub fn positions(&self, lengths: &[usize]) -> Vec<usize> {
        let reach = |i: usize| (self.kernel[i] - 1) * self.dilations[i] + 1;
        (0..lengths.len()).map(|i| ((lengths[i] + self.begin[i] + self.end[i] + 1).saturating_sub(reach(i))).div_ceil(self.strides[i])).collect()
    }
}

/// Between an image `[C, …]`, through which windows slide, and a map `[M, …]` with one position a window; the weight is `[M, C / groups, …]`.
/// A convolution goes from image to map, its transpose from map to image. Always three spatial axes, of length 1 where there are fewer.
#[derive(Debug, Clone)]
pub(super) struct Slide {
    pub groups: usize,
    pub channels: usize,
    pub maps: usize,
    pub image: [usize; 3],
    pub map: [usize; 3],
    pub kernel: [usize; 3],
    pub strides: [usize; 3],
    pub dilations: [usize; 3],
    pub begin: [usize; 3],
}

impl Slide {
    pub(super) fn new(window: &Window, groups: usize, channels: usize, image: &[usize], maps: usize, map: &[usize]) -> Slide {
        let three = |v: &[usize], one: usize| std::array::from_fn(|i| if i + v.len() < 3 { one } else { v[i + v.len() - 3] });
        Slide {
            groups,
            channels,
            maps,
            image: three(image, 1),
            map: three(map, 1),
            kernel: three(&window.kernel, 1),
            strides: three(&window.strides, 1),
            dilations: three(&window.dilations, 1),
            begin: three(&window.begin, 0),
        }
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    pub(super) fn positions(&self) -> usize {
        self.map.iter().product()
    }

    pub(super) fn image_len(&self) -> usize {
        self.channels * self.image.iter().product::<usize>()
    }

    pub(super) fn map_len(&self) -> usize {
        self.maps * self.positions()
    }

    fn is_depthwise(&self) -> bool {
        self.channels == self.groups
    }

    /// Whether a patch is the image itself.
    fn is_plain(&self) -> bool {
        self.taps() == 1 && self.strides == [1; 3] && self.begin == [0; 3] && self.image == self.map
    }

    /// Positions along `axis` at which tap `k` lies inside the image.
    pub(super) fn inside(&self, axis: usize, k: usize) -> Range<usize> {
        let (offset, begin, stride) = (k * self.dilations[axis], self.begin[axis], self.strides[axis]);
        let first = begin.saturating_sub(offset).div_ceil(stride);
        let last = (self.image[axis] + begin).saturating_sub(offset).div_ceil(stride);
        first.min(self.map[axis])..last.min(self.map[axis])
    }

    /// Where tap `k` at `position` lies along `axis`.
    pub(super) fn at(&self, axis: usize, k: usize, position: usize) -> usize {
        position * self.strides[axis] + k * self.dilations[axis] - self.begin[axis]
    }

    /// The tap's index along each axis.
    pub(super) fn tap(&self, t: usize) -> [usize; 3] {
        let [_, h, w] = self.kernel;
        [t / (h * w), t / w % h, t % w]
    }

    /// Calls `f` for each run of a tap inside the image, of the rows of positions `rows` (counted over the first two axes): first position (counted
    /// from the first of the rows), first element of the channel's image, and length.
    fn runs(&self, t: usize, rows: &Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let [kd, kh, kw] = self.tap(t);
        let (deep, high, wide) = (self.inside(0, kd), self.inside(1, kh), self.inside(2, kw));
        if wide.is_empty() {
            return;
        }
        for row in rows.clone() {
            let (d, h) = (row / self.map[1], row % self.map[1]);
            if !deep.contains(&d) || !high.contains(&h) {
                continue;
            }
            let line = (self.at(0, kd, d) * self.image[1] + self.at(1, kh, h)) * self.image[2];
            f((row - rows.start) * self.map[2] + wide.start, line + self.at(2, kw, wide.start), wide.len());
        }
    }

    /// Strips of rows of positions.
    fn strips(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.map[0] * self.map[1];
        let patch = self.channels / self.groups * self.taps();
        let step = if self.is_plain() { rows } else { (STRIP / (patch * self.map[2]).max(1)).max(1) };
        (0..rows).step_by(step.max(1)).map(move |r| r..(r + step).min(rows))
    }

    /// The patches of group `g` at the rows: one row a channel and tap, one column a position.
    fn gather(&self, image: &[f32], g: usize, rows: &Range<usize>, patches: &mut Vec<f32>) {
        let (plane, columns) = (self.image.iter().product::<usize>(), rows.len() * self.map[2]);
        let own = self.channels / self.groups;
        patches.clear();
        patches.resize(own * self.taps() * columns, 0.0);
        let stride = self.strides[2];
        for (i, out) in patches.chunks_exact_mut(columns.max(1)).enumerate() {
            let image = &image[(g * own + i / self.taps()) * plane..][..plane];
            self.runs(i % self.taps(), rows, |to, from, n| match stride {
                1 => out[to..to + n].copy_from_slice(&image[from..from + n]),
                _ => out[to..to + n].iter_mut().zip(image[from..].iter().step_by(stride)).for_each(|(o, x)| *o = *x),
            });
        }
    }

    /// Adds patches back to the image they would be gathered from.
    fn scatter(&self, patches: &[f32], g: usize, rows: &Range<usize>, image: &mut [f32]) {
        let (plane, columns) = (self.image.iter().product::<usize>(), rows.len() * self.map[2]);
        let own = self.channels / self.groups;
        let stride = self.strides[2];
        for (i, patch) in patches.chunks_exact(columns.max(1)).enumerate() {
            let image = &mut image[(g * own + i / self.taps()) * plane..][..plane];
            self.runs(i % self.taps(), rows, |from, to, n| match stride {
                1 => image[to..to + n].iter_mut().zip(&patch[from..from + n]).for_each(|(x, p)| *x += p),
                _ => image[to..].iter_mut().step_by(stride).zip(&patch[from..from + n]).for_each(|(x, p)| *x += p),
            });
        }
    }

    /// Maps from an image: the convolution. `map` is overwritten.
    pub(super) fn to_map(&self, image: &[f32], weight: &[f32], map: &mut [f32]) {
        if self.is_depthwise() {
            return self.depthwise_map(image, weight, map);
        }
        self.products(image, |g, rows, patches, columns| {
            let (out, patch) = (self.maps / self.groups, self.channels / self.groups * self.taps());
            let weight = Matrix::new(&weight[g * out * patch..], out, patch);
            let at = g * out * self.positions() + rows.start * self.map[2];
            multiply(&mut map[at..], self.positions(), weight, Matrix::new(patches, patch, columns), false);
        });
    }

    /// Adds to `weight` the gradient of the weight, for the gradient of the map.
    pub(super) fn to_weight(&self, image: &[f32], map: &[f32], weight: &mut [f32]) {
        if self.is_depthwise() {
            return self.depthwise_weight(image, map, weight);
        }
        self.products(image, |g, rows, patches, columns| {
            let (out, patch) = (self.maps / self.groups, self.channels / self.groups * self.taps());
            let at = g * out * self.positions() + rows.start * self.map[2];
            let grad = Matrix::strided(&map[at..], out, columns, self.positions());
            multiply(&mut weight[g * out * patch..], patch, grad, Matrix::new(patches, patch, columns).transposed(), true);
        });
    }

    /// Adds to `image` what the map passes back: the transposed convolution.
    pub(super) fn to_image(&self, map: &[f32], weight: &[f32], image: &mut [f32]) {
        if self.is_depthwise() {
            return self.depthwise_image(map, weight, image);
        }
        let (out, own) = (self.maps / self.groups, self.channels / self.groups);
        let (patch, plane) = (own * self.taps(), self.image.iter().product::<usize>());
        let mut patches = Vec::new();
        for g in 0..self.groups {
            let weight = Matrix::new(&weight[g * out * patch..], out, patch).transposed();
            for rows in self.strips() {
                let columns = rows.len() * self.map[2];
                let at = g * out * self.positions() + rows.start * self.map[2];
                let map = Matrix::strided(&map[at..], out, columns, self.positions());
                if self.is_plain() {
                    multiply(&mut image[g * own * plane..], plane, weight, map, true);
                } else {
                    patches.resize(patch * columns, 0.0);
                    multiply(&mut patches, columns, weight, map, false);
                    self.scatter(&patches, g, &rows, image);
                }
            }
        }
    }

    /// Calls `f` with each group's patches, a strip at a time: group, rows, patches and the number of positions.
    fn products(&self, image: &[f32], mut f: impl FnMut(usize, &Range<usize>, &[f32], usize)) {
        let own = self.image_len() / self.groups;
        let mut patches = Vec::new();
        for g in 0..self.groups {
            for rows in self.strips() {
                let columns = rows.len() * self.map[2];
                if self.is_plain() {
                    f(g, &rows, &image[g * own..(g + 1) * own], columns);
                } else {
                    self.gather(image, g, &rows, &mut patches);
                    f(g, &rows, &patches, columns);
                }
            }
        }
    }
}

impl Tape {
    /// Convolution of `x` `[N, C, …]` with `weight` `[M, C / groups, …]` and a bias `[M]`.
    pub fn conv(&mut self, x: Var, weight: Var, bias: Option<Var>, window: &Window, groups: usize) -> Var {
        let (from, w) = (self.shape(x).to_vec(), self.shape(weight).to_vec());
        let map = window.positions(&from[2..]);
        let slide = Slide::new(window, groups, from[1], &from[2..], w[0], &map);
        let mut shape = vec![from[0], w[0]];
        shape.extend(&map);
        let mut value = buffers::zeros(shape.iter().product());
        for (x, y) in self.value(x).chunks_exact(slide.image_len().max(1)).zip(value.chunks_exact_mut(slide.map_len().max(1))) {
            slide.to_map(x, self.value(weight), y);
        }
        self.add_bias(bias, &mut value, slide.positions());
        let operands: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
        self.push(value, &shape, &operands, move |tape, grad, grads| {
            let (xs, ws) = (tape.value(x), tape.value(weight));
            let samples = || xs.chunks_exact(slide.image_len().max(1)).zip(grad.chunks_exact(slide.map_len().max(1)));
            grads.add_to(weight, ws.len(), |sum| samples().for_each(|(x, g)| slide.to_weight(x, g, sum)));
            grads.add_to(x, xs.len(), |sum| {
                sum.chunks_exact_mut(slide.image_len().max(1)).zip(samples()).for_each(|(s, (_, g))| slide.to_image(g, ws, s));
            });
            if let Some(b) = bias {
                grads.add_to(b, slide.maps, |sum| sum_planes(grad, slide.positions(), sum));
            }
        })
    }

    /// Transposed convolution of `x` `[N, C, …]` with `weight` `[C, M / groups, …]` and a bias `[M]`, to spatial lengths `to`.
    pub fn conv_transpose(&mut self, x: Var, weight: Var, bias: Option<Var>, window: &Window, groups: usize, to: &[usize]) -> Var {
        let (from, w) = (self.shape(x).to_vec(), self.shape(weight).to_vec());
        let slide = Slide::new(window, groups, w[1] * groups, to, from[1], &from[2..]);
        let mut shape = vec![from[0], slide.channels];
        shape.extend(to);
        let plane = to.iter().product::<usize>();
        let mut value = buffers::zeros(shape.iter().product());
        for (x, y) in self.value(x).chunks_exact(slide.map_len().max(1)).zip(value.chunks_exact_mut(slide.image_len().max(1))) {
            slide.to_image(x, self.value(weight), y);
        }
        self.add_bias(bias, &mut value, plane);
        let operands: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
        self.push(value, &shape, &operands, move |tape, grad, grads| {
            let (xs, ws) = (tape.value(x), tape.value(weight));
            let samples = || xs.chunks_exact(slide.map_len().max(1)).zip(grad.chunks_exact(slide.image_len().max(1)));
            grads.add_to(weight, ws.len(), |sum| samples().for_each(|(x, g)| slide.to_weight(g, x, sum)));
            grads.give_with(x, || {
                let mut to = buffers::zeros(xs.len());
                to.chunks_exact_mut(slide.map_len().max(1)).zip(samples()).for_each(|(t, (_, g))| slide.to_map(g, ws, t));
                to
            });
            if let Some(b) = bias {
                grads.add_to(b, slide.channels, |sum| sum_planes(grad, plane, sum));
            }
        })
    }

    fn add_bias(&self, bias: Option<Var>, value: &mut [f32], plane: usize) {
        let Some(b) = bias.map(|b| self.value(b)) else { return };
        for (i, y) in value.chunks_exact_mut(plane.max(1)).enumerate() {
            y.iter_mut().for_each(|v| *v += b[i % b.len()]);
        }
    }
}

/// Adds the sum of each plane to its channel's.
fn sum_planes(grad: &[f32], plane: usize, sum: &mut [f32]) {
    let channels = sum.len();
    for (i, g) in grad.chunks_exact(plane.max(1)).enumerate() {
        sum[i % channels] += g.iter().sum::<f32>();
    }
}
