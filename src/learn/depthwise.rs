//! Convolutions with a group a channel. The padded image of a channel is split, by what places leave when divided by the strides, into planes in which every
//! tap reads neighbours; and a plane is one long row, so that one loop makes all positions (and what lies between rows, which nobody reads).

use super::buffers;
use super::conv::Slide;
use crate::math::wide;
use std::ops::Range;

/// Sums that run beside each other.
const LANES: usize = 32;
/// Numbers of a result that are made together.
const PIECE: usize = 1024;

/// How the padded images of channels lie in planes.
struct Planes<'a> {
    slide: &'a Slide,
    /// Lengths of a plane.
    lengths: [usize; 3],
    /// Numbers of a plane, and of a row of all positions, rounded up to lanes.
    size: usize,
    row: usize,
    /// For each tap its plane, and how far from its position it reads there; and the farthest of these.
    taps: Vec<(usize, usize)>,
    reach: usize,
}

impl Slide {
    /// Maps from an image. `map` is overwritten.
    pub(super) fn depthwise_map(&self, image: &[f32], weight: &[f32], map: &mut [f32]) {
        let planes = Planes::of(self);
        let (mut x, mut y) = (planes.image(), buffers::zeros(planes.row));
        for (m, (map, w)) in map.chunks_exact_mut(self.positions().max(1)).zip(weight.chunks_exact(self.taps())).enumerate() {
            planes.load(self.channel(m), image, &mut x);
            let taps: Vec<(f32, usize)> = w.iter().zip(&planes.taps).map(|(w, (plane, far))| (*w, plane * planes.size + far)).collect();
            combine(&mut y, &taps, &x);
            planes.rows(|at, from| map[at..at + self.map[2]].copy_from_slice(&y[from..from + self.map[2]]));
        }
        [x, y].into_iter().for_each(buffers::give_back);
    }

    /// Adds to `image` what the map passes back.
    pub(super) fn depthwise_image(&self, map: &[f32], weight: &[f32], image: &mut [f32]) {
        let planes = Planes::of(self);
        let (mut x, mut y) = (planes.image(), buffers::zeros(planes.reach + planes.size + LANES));
        for (m, (map, w)) in map.chunks_exact(self.positions().max(1)).zip(weight.chunks_exact(self.taps())).enumerate() {
            planes.rows(|at, to| y[planes.reach + to..][..self.map[2]].copy_from_slice(&map[at..at + self.map[2]]));
            for (p, x) in x.chunks_exact_mut(planes.size).enumerate() {
                let own = w.iter().zip(&planes.taps).filter(|(_, (plane, _))| *plane == p);
                combine(x, &own.map(|(w, (_, far))| (*w, planes.reach - far)).collect::<Vec<_>>(), &y);
            }
            planes.unload(self.channel(m), &x, image);
        }
        [x, y].into_iter().for_each(buffers::give_back);
    }

    /// Adds to `weight` the gradient of the weight, for the gradient of the map.
    pub(super) fn depthwise_weight(&self, image: &[f32], map: &[f32], weight: &mut [f32]) {
        let planes = Planes::of(self);
        let (mut x, mut y) = (planes.image(), buffers::zeros(planes.row));
        for (m, (map, w)) in map.chunks_exact(self.positions().max(1)).zip(weight.chunks_exact_mut(self.taps())).enumerate() {
            planes.load(self.channel(m), image, &mut x);
            planes.rows(|at, to| y[to..to + self.map[2]].copy_from_slice(&map[at..at + self.map[2]]));
            w.iter_mut().zip(&planes.taps).for_each(|(w, (plane, far))| *w += dot(&y, &x[plane * planes.size + far..]));
        }
        [x, y].into_iter().for_each(buffers::give_back);
    }

    /// Where the image of the channel that map `m` looks at lies.
    fn channel(&self, m: usize) -> Range<usize> {
        let plane = self.image.iter().product::<usize>();
        let c = m * self.groups / self.maps;
        c * plane..(c + 1) * plane
    }
}

impl Planes<'_> {
    fn of(slide: &Slide) -> Planes<'_> {
        let lengths: [usize; 3] = std::array::from_fn(|a| slide.map[a] + (slide.kernel[a] - 1) * slide.dilations[a] / slide.strides[a]);
        let along = |at: [usize; 3]| (at[0] * lengths[1] + at[1]) * lengths[2] + at[2];
        let tap = |t: usize| {
            let place: [usize; 3] = std::array::from_fn(|a| slide.tap(t)[a] * slide.dilations[a]);
            let [_, high, wide] = slide.strides;
            let rest: [usize; 3] = std::array::from_fn(|a| place[a] % slide.strides[a]);
            ((rest[0] * high + rest[1]) * wide + rest[2], along(std::array::from_fn(|a| place[a] / slide.strides[a])))
        };
        let taps: Vec<(usize, usize)> = (0..slide.taps()).map(tap).collect();
        let reach = taps.iter().map(|t| t.1).max().unwrap_or(0);
        let row = along(slide.map.map(|n| n.saturating_sub(1))) + 1;
        Planes { slide, lengths, size: (row + reach).next_multiple_of(LANES), row: row.next_multiple_of(LANES), taps, reach }
    }

    /// Room for an image; what lies outside of it is 0.
    fn image(&self) -> Vec<f32> {
        buffers::zeros(self.slide.strides.iter().product::<usize>() * self.size + LANES)
    }

    fn load(&self, channel: Range<usize>, image: &[f32], planes: &mut [f32]) {
        let (image, stride) = (&image[channel], self.slide.strides[2]);
        self.runs(|to, from, n| match stride {
            1 => planes[to..to + n].copy_from_slice(&image[from..from + n]),
            _ => planes[to..to + n].iter_mut().zip(image[from..].iter().step_by(stride)).for_each(|(p, x)| *p = *x),
        });
    }

    /// Adds to the image.
    fn unload(&self, channel: Range<usize>, planes: &[f32], image: &mut [f32]) {
        let (image, stride) = (&mut image[channel], self.slide.strides[2]);
        self.runs(|from, to, n| match stride {
            1 => image[to..to + n].iter_mut().zip(&planes[from..from + n]).for_each(|(x, p)| *x += p),
            _ => image[to..].iter_mut().step_by(stride).zip(&planes[from..from + n]).for_each(|(x, p)| *x += p),
        });
    }

    /// Calls `f` for each run of the image in a plane: where it begins in all planes and in the image, and its length.
    fn runs(&self, mut f: impl FnMut(usize, usize, usize)) {
        let Slide { strides, begin, image, .. } = self.slide;
        // Of an axis, the places of a plane that lie inside the image.
        let inside = |a: usize, rest: usize| {
            let first = begin[a].saturating_sub(rest).div_ceil(strides[a]);
            first..(image[a] + begin[a]).saturating_sub(rest).div_ceil(strides[a]).min(self.lengths[a])
        };
        let at = |a: usize, rest: usize, i: usize| i * strides[a] + rest - begin[a];
        let rests = (0..strides[0]).flat_map(|d| (0..strides[1]).flat_map(move |h| (0..strides[2]).map(move |w| (d, h, w))));
        for (plane, (d, h, w)) in rests.enumerate() {
            let wide = inside(2, w);
            for (i, j) in inside(0, d).flat_map(|i| inside(1, h).map(move |j| (i, j))).filter(|_| !wide.is_empty()) {
                let line = (at(0, d, i) * image[1] + at(1, h, j)) * image[2];
                f(plane * self.size + (i * self.lengths[1] + j) * self.lengths[2] + wide.start, line + at(2, w, wide.start), wide.len());
            }
        }
    }

    /// Calls `f` for each row of positions: where it begins in the map, and in the row of all positions.
    fn rows(&self, mut f: impl FnMut(usize, usize)) {
        let [deep, high, wide] = self.slide.map;
        (0..deep * high).for_each(|r| f(r * wide, (r / high * self.lengths[1] + r % high) * self.lengths[2]));
    }
}

/// `y[i] = Σ w · x[i + far]` over taps `(w, far)`, three of them at a time over pieces that stay in the cache.
fn combine(y: &mut [f32], taps: &[(f32, usize)], x: &[f32]) {
    wide(
        #[inline(always)]
        || {
            for (i, y) in y.chunks_mut(PIECE).enumerate() {
                let x = &x[i * PIECE..];
                y.fill(0.0);
                let threes = taps.chunks_exact(3);
                for (w, far) in threes.remainder() {
                    y.iter_mut().zip(&x[*far..]).for_each(|(y, x)| *y += w * x);
                }
                for t in threes {
                    let [a, b, c] = [0, 1, 2].map(|k| &x[t[k].1..]);
                    for (((y, a), b), c) in y.iter_mut().zip(a).zip(b).zip(c) {
                        *y += t[0].0 * a + t[1].0 * b + t[2].0 * c;
                    }
                }
            }
        },
    );
}

/// The sum of products of `a`, which is whole lanes, and as much of `b`.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    wide(
        #[inline(always)]
        || {
            let mut sums = [0f32; LANES];
            for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
                for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *s += a * b;
                }
            }
            sums.iter().sum()
        },
    )
}
