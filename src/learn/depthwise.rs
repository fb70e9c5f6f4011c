//! Convolutions with a group a channel: each row of positions takes in the rows of the image that its window meets.

use super::conv::Slide;
use std::ops::Range;

impl Slide {
    /// Maps from an image. `map` is overwritten.
    pub(super) fn depthwise_map(&self, image: &[f32], weight: &[f32], map: &mut [f32]) {
        map.fill(0.0);
        let ranges = self.ranges();
        self.each_row(|c, m, k, row, line| {
            let w = &weight[m * self.taps() + k..][..self.kernel[2]];
            let (out, x) = (&mut map[m * self.positions() + row..][..self.map[2]], &image[c * self.plane() + line..][..self.image[2]]);
            match *w {
                [w0, w1, w2] if self.strides[2] == 1 => {
                    let all = shared(&ranges);
                    let [a, b, c] = [0, 1, 2].map(|k| &x[self.at(2, k, all.start)..]);
                    for (((y, a), b), c) in out[all.clone()].iter_mut().zip(a).zip(b).zip(c) {
                        *y += w0 * a + w1 * b + w2 * c;
                    }
                    self.each_edge(&ranges, &all, |k, i| out[i] += w[k] * x[self.at(2, k, i)]);
                }
                _ => self.each_tap(&ranges, |k, range| {
                    let x = x[self.at(2, k, range.start)..].iter().step_by(self.strides[2]);
                    out[range].iter_mut().zip(x).for_each(|(y, x)| *y += w[k] * x);
                }),
            }
        });
    }

    /// Adds to `image` what the map passes back.
    pub(super) fn depthwise_image(&self, map: &[f32], weight: &[f32], image: &mut [f32]) {
        let ranges = self.ranges();
        self.each_row(|c, m, k, row, line| {
            let w = &weight[m * self.taps() + k..][..self.kernel[2]];
            let (y, x) = (&map[m * self.positions() + row..][..self.map[2]], &mut image[c * self.plane() + line..][..self.image[2]]);
            let all = shared(&ranges);
            match *w {
                // In the middle each element takes in three positions.
                [w0, w1, w2] if self.strides[2] == 1 && all.len() > 2 * self.dilations[2] => {
                    let reach = 2 * self.dilations[2];
                    let [a, b, c] = [0, 1, 2].map(|k| &y[all.start + reach - k * self.dilations[2]..]);
                    let n = all.len() - reach;
                    let to = self.at(2, 2, all.start);
                    for (((x, a), b), c) in x[to..to + n].iter_mut().zip(a).zip(b).zip(c) {
                        *x += w0 * a + w1 * b + w2 * c;
                    }
                    // Positions whose tap lies before or behind the middle.
                    for (k, range) in ranges.iter().enumerate() {
                        let first = all.start + reach - k * self.dilations[2];
                        (range.start..first).chain(first + n..range.end).for_each(|i| x[self.at(2, k, i)] += w[k] * y[i]);
                    }
                }
                _ => self.each_tap(&ranges, |k, range| {
                    let x = x[self.at(2, k, range.start)..].iter_mut().step_by(self.strides[2]);
                    x.zip(&y[range]).for_each(|(x, y)| *x += w[k] * y);
                }),
            }
        });
    }

    /// Adds to `weight` the gradient of the weight, for the gradient of the map.
    pub(super) fn depthwise_weight(&self, image: &[f32], map: &[f32], weight: &mut [f32]) {
        let ranges = self.ranges();
        self.each_row(|c, m, k, row, line| {
            let w = &mut weight[m * self.taps() + k..][..self.kernel[2]];
            let (y, x) = (&map[m * self.positions() + row..][..self.map[2]], &image[c * self.plane() + line..][..self.image[2]]);
            self.each_tap(&ranges, |k, range| {
                let x = &x[self.at(2, k, range.start)..];
                w[k] += match self.strides[2] {
                    1 => dot(&y[range.clone()], &x[..range.len()]),
                    s => y[range].iter().zip(x.iter().step_by(s)).map(|(y, x)| y * x).sum(),
                };
            });
        });
    }

    fn plane(&self) -> usize {
        self.image.iter().product()
    }

    /// For each tap along the last axis, the positions at which it lies inside the image.
    fn ranges(&self) -> Vec<Range<usize>> {
        (0..self.kernel[2]).map(|k| self.inside(2, k)).collect()
    }

    fn each_tap(&self, ranges: &[Range<usize>], mut f: impl FnMut(usize, Range<usize>)) {
        ranges.iter().enumerate().filter(|(_, r)| !r.is_empty()).for_each(|(k, r)| f(k, r.clone()));
    }

    /// Taps and positions that lie inside while those of other taps do not.
    fn each_edge(&self, ranges: &[Range<usize>], all: &Range<usize>, mut f: impl FnMut(usize, usize)) {
        for (k, range) in ranges.iter().enumerate() {
            (range.start..all.start.min(range.end)).chain(all.end.max(range.start)..range.end).for_each(|i| f(k, i));
        }
    }

    /// Calls `f` for each map, row of positions and row of the image that its window meets: channel, map, the first tap of the kernel's row, first
    /// position of the row, first element of the line.
    fn each_row(&self, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
        let [depth, height, width] = self.kernel;
        for m in 0..self.maps {
            let channel = m * self.groups / self.maps;
            for (kd, kh) in (0..depth).flat_map(|d| (0..height).map(move |h| (d, h))) {
                for d in self.inside(0, kd) {
                    for h in self.inside(1, kh) {
                        let line = (self.at(0, kd, d) * self.image[1] + self.at(1, kh, h)) * self.image[2];
                        f(channel, m, (kd * height + kh) * width, (d * self.map[1] + h) * self.map[2], line);
                    }
                }
            }
        }
    }
}

/// The positions at which every tap lies inside.
fn shared(ranges: &[Range<usize>]) -> Range<usize> {
    let (start, end) = (ranges.iter().map(|r| r.start).max().unwrap_or(0), ranges.iter().map(|r| r.end).min().unwrap_or(0));
    start..end.max(start)
}

/// A sum of products, in lanes that the compiler makes SIMD of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (x, y) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
    for (x, y) in x.zip(y) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}
