//! Images as samples: decoded when asked for, resized to the last bit as Pillow does it, normalised.

use super::sample::made;
use crate::error::{Error, Result};
use crate::graph::{Dim, shape_text};
use crate::tensor::{DType, Tensor};
use std::path::Path;

/// How an image is brought to its size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resize {
    /// The shorter side becomes `size`, the other follows; then the middle is cut out.
    ShortSide,
    /// Both sides become `size`.
    Stretch,
    /// As large as fits into `size`; the rest is filled.
    Letterbox,
}

/// How pixels between pixels are found. All but `Nearest` smooth when they shrink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filter {
    Nearest,
    Bilinear,
    Bicubic,
}

/// From an image file to a model's input: resize, crop, `(x / scale − mean) / std`.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    pub resize: Resize,
    pub filter: Filter,
    /// Height and width after resizing; for `ShortSide` the first counts. `None`: the model's own.
    pub size: Option<[usize; 2]>,
    /// Height and width of the middle that is kept. `None`: the model's own, for `ShortSide`; else all.
    pub crop: Option<[usize; 2]>,
    /// Letterbox: gray level around the image, and whether the image lies in the middle or in the top left corner.
    pub pad: u8,
    pub center: bool,
    pub scale: f32,
    /// One number a channel, or one for all, in the order of `bgr`.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub bgr: bool,
    /// Whether channels come last. `None`: as the model's shape says.
    pub channels_last: Option<bool>,
}

impl Default for Preprocess {
    fn default() -> Self {
        Preprocess {
            resize: Resize::Stretch,
            filter: Filter::Bilinear,
            size: None,
            crop: None,
            pad: 114,
            center: true,
            scale: 1.0,
            mean: vec![0.0],
            std: vec![1.0],
            bgr: false,
            channels_last: None,
        }
    }
}

/// Files that are taken for images, by extension.
pub const EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp"];

/// Preprocessing fitted to one input of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    how: Preprocess,
    /// Of a resized image, and of what is kept of it.
    size: [usize; 2],
    crop: [usize; 2],
    channels: usize,
    channels_last: bool,
    pub shape: Vec<usize>,
    pub dtype: DType,
}

/// Rows of red, green and blue bytes.
#[derive(Debug, Clone, PartialEq)]
struct Pixels {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Preprocess {
    /// What it makes for an input of that declared shape and type, or why it cannot.
    pub fn fit(&self, declared: Option<&[Dim]>, dtype: DType) -> Result<Fitted> {
        let shape = declared.ok_or_else(|| Error::usage("the model does not say the input's rank; images need inputs.X.shape in the recipe"))?;
        let [_, a, b, c] = shape else {
            return Err(Error::usage(format!("images need an input of four dimensions, the model wants {}", shape_text(shape))));
        };
        let colour = |d: &Dim| matches!(d, Dim::Known(1 | 3));
        let channels_last = self.channels_last.unwrap_or(!colour(a) && colour(c));
        let (channels, h, w) = if channels_last { (c, a, b) } else { (a, b, c) };
        let channels = match channels {
            Dim::Known(n @ (1 | 3)) => *n,
            Dim::Known(n) => return Err(Error::usage(format!("images have 3 channels or 1, the model wants {n} in {}", shape_text(shape)))),
            _ => 3,
        };
        let own = match (h, w) {
            (Dim::Known(h), Dim::Known(w)) => Some([*h, *w]),
            _ => None,
        };
        let unknown = |key: &str| Error::usage(format!("the model does not say how large images are ({}): say preprocess.{key}", shape_text(shape)));
        let (size, crop) = match self.resize {
            Resize::ShortSide => {
                let crop = self.crop.or(own).ok_or_else(|| unknown("crop"))?;
                (self.size.unwrap_or([crop[0].max(crop[1]); 2]), crop)
            }
            _ => {
                let size = self.size.or(if self.crop.is_none() { own } else { None }).ok_or_else(|| unknown("size"))?;
                (size, self.crop.unwrap_or(size))
            }
        };
        let most = if self.resize == Resize::ShortSide { [size[0]; 2] } else { size };
        if crop[0] > most[0] || crop[1] > most[1] {
            return Err(Error::usage(format!("preprocess.crop {crop:?} is larger than what preprocess.size {most:?} leaves")));
        }
        if own.is_some_and(|own| own != crop) {
            return Err(Error::usage(format!("preprocess makes images of {crop:?}, the model wants {}: mend preprocess.size and crop", shape_text(shape))));
        }
        for (key, list) in [("mean", &self.mean), ("std", &self.std)] {
            if list.len() != 1 && list.len() != channels {
                return Err(Error::usage(format!("preprocess.{key} has {} numbers, the input {channels} channels", list.len())));
            }
        }
        let shape = if channels_last { vec![1, crop[0], crop[1], channels] } else { vec![1, channels, crop[0], crop[1]] };
        Ok(Fitted { how: self.clone(), size, crop, channels, channels_last, shape, dtype })
    }
}

/// What is done, for people.
impl std::fmt::Display for Fitted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let p = &self.how;
        let [h, w] = self.size;
        match p.resize {
            Resize::ShortSide => write!(f, "short side {h}")?,
            Resize::Stretch => write!(f, "stretched to {h} x {w}")?,
            Resize::Letterbox => write!(f, "letterbox {h} x {w} on gray {}", p.pad)?,
        }
        write!(f, " ({}), the middle {} x {}, ", format!("{:?}", p.filter).to_lowercase(), self.crop[0], self.crop[1])?;
        write!(
            f,
            "(x / {} - {:?}) / {:?}, {}",
            p.scale,
            p.mean,
            p.std,
            if self.channels == 1 {
                "gray"
            } else if p.bgr {
                "BGR"
            } else {
                "RGB"
            }
        )
    }
}

impl Fitted {
    /// The input that a file's image makes.
    pub fn read(&self, path: &Path) -> Result<Tensor> {
        let image = self.sized(decode(path)?);
        let (h, w) = (self.crop[0], self.crop[1]);
        let at = |n: usize| if self.how.mean.len() > n { n } else { 0 };
        let std = |n: usize| if self.how.std.len() > n { n } else { 0 };
        let tables: Vec<Vec<f32>> =
            (0..self.channels).map(|c| (0..256).map(|v| (v as f32 / self.how.scale - self.how.mean[at(c)]) / self.how.std[std(c)]).collect()).collect();
        let mut values = vec![0f32; h * w * self.channels];
        for (i, p) in image.rgb.chunks_exact(3).enumerate() {
            for c in 0..self.channels {
                let v = match (self.channels, self.how.bgr) {
                    // Luma as Pillow rounds it.
                    (1, _) => ((p[0] as u32 * 19595 + p[1] as u32 * 38470 + p[2] as u32 * 7471 + 0x8000) >> 16) as u8,
                    (_, false) => p[c],
                    (_, true) => p[2 - c],
                };
                values[if self.channels_last { i * self.channels + c } else { c * h * w + i }] = tables[c][v as usize];
            }
        }
        match self.dtype {
            DType::F32 => Ok(Tensor::of_f32(&self.shape, values)),
            dtype => made(dtype, &self.shape, |i| if dtype.is_float() { values[i] as f64 } else { values[i].round() as f64 }),
        }
    }

    fn sized(&self, image: Pixels) -> Pixels {
        let (h, w) = (image.height as f64, image.width as f64);
        match self.how.resize {
            Resize::Stretch => resample(&image, self.size, self.how.filter).middle(self.crop),
            Resize::ShortSide => {
                let short = self.size[0];
                let long = (short as f64 * h.max(w) / h.min(w)) as usize;
                let to = if h < w { [short, long] } else { [long, short] };
                resample(&image, to, self.how.filter).middle(self.crop)
            }
            Resize::Letterbox => {
                let ratio = (self.size[0] as f64 / h).min(self.size[1] as f64 / w);
                let side = |n: f64| (if self.how.center { (n * ratio).round() } else { n * ratio } as usize).max(1);
                let small = resample(&image, [side(h), side(w)], self.how.filter);
                let from = |whole: usize, part: usize| if self.how.center { ((whole - part) as f64 / 2.0 - 0.1).round().max(0.0) as usize } else { 0 };
                let (top, left) = (from(self.size[0], small.height), from(self.size[1], small.width));
                let mut rgb = vec![self.how.pad; self.size[0] * self.size[1] * 3];
                for (y, row) in small.rgb.chunks_exact(small.width * 3).enumerate() {
                    let start = ((top + y) * self.size[1] + left) * 3;
                    rgb[start..start + row.len()].copy_from_slice(row);
                }
                Pixels { width: self.size[1], height: self.size[0], rgb }.middle(self.crop)
            }
        }
    }
}

impl Pixels {
    fn middle(self, [h, w]: [usize; 2]) -> Pixels {
        if (h, w) == (self.height, self.width) {
            return self;
        }
        let half = |whole: usize, part: usize| ((whole - part) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (half(self.height, h), half(self.width, w));
        let rows = (top..top + h).flat_map(|y| &self.rgb[(y * self.width + left) * 3..(y * self.width + left + w) * 3]);
        Pixels { width: w, height: h, rgb: rows.copied().collect() }
    }
}

/// An image file as red, green and blue; transparency is dropped, and how the camera was held is not looked at, as Pillow does.
fn decode(path: &Path) -> Result<Pixels> {
    let bytes = std::fs::read(path).map_err(|e| Error::usage(format!("{} cannot be read: {e}", path.display())))?;
    let damaged = |e: &dyn std::fmt::Display| Error::usage(format!("{} is no image that can be read: {e}", path.display()));
    if bytes.starts_with(&[0xff, 0xd8]) {
        let image = libjpeg_turbo_rs::decompress_to(&bytes, libjpeg_turbo_rs::PixelFormat::Rgb).map_err(|e| damaged(&e))?;
        return Ok(Pixels { width: image.width, height: image.height, rgb: image.data });
    }
    let image = image::load_from_memory(&bytes).map_err(|e| damaged(&e))?.into_rgb8();
    Ok(Pixels { width: image.width() as usize, height: image.height() as usize, rgb: image.into_raw() })
}

/// Fraction bits of a weight (Pillow, Resample.c).
const BITS: u32 = 22;

/// One output pixel along one axis: the first input pixel that counts, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    if filter == Filter::Nearest {
        return (0..to).map(|x| Taps { first: (((x as f64 + 0.5) * scale) as usize).min(from - 1), weights: vec![1 << BITS] }).collect();
    }
    let wide = scale.max(1.0);
    let support = if filter == Filter::Bicubic { 2.0 } else { 1.0 } * wide;
    let one = |x: f64| {
        let x = x.abs();
        match filter {
            Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    };
    let pixel = |x: usize| {
        let center = (x as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let last = ((center + support + 0.5) as usize).min(from);
        let raw: Vec<f64> = (first..last).map(|i| one((i as f64 - center + 0.5) * (1.0 / wide))).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |w: &f64| {
            let w = (if sum == 0.0 { *w } else { w / sum }) * (1u64 << BITS) as f64;
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i64
        };
        Taps { first, weights: raw.iter().map(fixed).collect() }
    };
    (0..to).map(pixel).collect()
}

/// Resized to height and width: rows first, then columns, each rounded to bytes, with weights of 22 bits. (Pillow 13 takes columns first where the height
/// shrinks far more than the width, which may differ by 1 in a byte.)
fn resample(image: &Pixels, [height, width]: [usize; 2], filter: Filter) -> Pixels {
    let byte = |sum: i64| ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8;
    let rows = if width == image.width {
        image.clone()
    } else {
        let taps = taps(image.width, width, filter);
        let mut rgb = Vec::with_capacity(width * image.height * 3);
        for row in image.rgb.chunks_exact(image.width * 3) {
            for t in &taps {
                for c in 0..3 {
                    rgb.push(byte(t.weights.iter().enumerate().map(|(i, w)| row[(t.first + i) * 3 + c] as i64 * w).sum()));
                }
            }
        }
        Pixels { width, height: image.height, rgb }
    };
    if height == rows.height {
        return rows;
    }
    let mut rgb = Vec::with_capacity(width * height * 3);
    let stride = width * 3;
    for t in taps(rows.height, height, filter) {
        let mut sums = vec![0i64; stride];
        for (i, w) in t.weights.iter().enumerate() {
            let row = &rows.rgb[(t.first + i) * stride..(t.first + i + 1) * stride];
            sums.iter_mut().zip(row).for_each(|(s, p)| *s += *p as i64 * w);
        }
        rgb.extend(sums.into_iter().map(byte));
    }
    Pixels { width, height, rgb }
}
