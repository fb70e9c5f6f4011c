//! Convolutions, pools and interpolation.

use super::{Call, Made, make, need, one};
use crate::graph::{AttrValue, Op};
use crate::learn::conv::Window;
use crate::learn::moves::Taps;

impl Call<'_> {
    pub(super) fn windows(&self) -> Made {
        let from = self.shape(0)?;
        if from.len() < 3 {
            return Err("of a tensor without spatial axes is not differentiated".into());
        }
        match self.node.op {
            Op::Conv | Op::ConvTranspose => self.conv(&from),
            Op::MaxPool | Op::AveragePool => self.pool(&from),
            Op::GlobalAveragePool | Op::GlobalMaxPool => {
                let axes: Vec<usize> = (2..from.len()).collect();
                let mean = self.node.op == Op::GlobalAveragePool;
                one(move |t, x| if mean { t.mean_over(x, &axes) } else { t.max_over(x, &axes) })
            }
            _ => self.resize(&from),
        }
    }

    /// The window as attributes say; `lengths` are those of what it slides over, `to` the number of positions.
    fn window(&self, kernel: &[usize], lengths: &[usize], to: &[usize]) -> std::result::Result<Window, String> {
        let n = kernel.len();
        let list = |name: &str, len: usize, none: usize| -> std::result::Result<Vec<usize>, String> {
            match self.node.ints(name) {
                None => Ok(vec![none; len]),
                Some(v) => v
                    .iter()
                    .map(|d| usize::try_from(*d).ok())
                    .collect::<Option<Vec<usize>>>()
                    .filter(|v| v.len() == len)
                    .ok_or_else(|| format!("with {name} {v:?} is not differentiated")),
            }
        };
        let (strides, dilations, pads) = (list("strides", n, 1)?, list("dilations", n, 1)?, list("pads", 2 * n, 0)?);
        if strides.contains(&0) || dilations.contains(&0) || kernel.contains(&0) || lengths.len() != n || to.len() != n {
            return Err("with a window that does not fit is not differentiated".into());
        }
        let (mut begin, mut end) = (pads[..n].to_vec(), pads[n..].to_vec());
        match self.node.str("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" if self.node.op == Op::ConvTranspose && self.node.attr("output_shape").is_none() => {}
            "NOTSET" if self.node.op != Op::ConvTranspose => {}
            "VALID" => (begin, end) = (vec![0; n], vec![0; n]),
            auto => {
                for i in 0..n {
                    let reach = (kernel[i] - 1) * dilations[i] + 1;
                    let extra = self.node.ints("output_padding").and_then(|v| v.get(i)).map_or(0, |v| *v as usize);
                    let total = ((to[i] - 1) * strides[i] + extra + reach).saturating_sub(lengths[i]);
                    // The odd one stands behind where the name says so, and before it otherwise; ConvTranspose without a name counts as the latter.
                    begin[i] = if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                    end[i] = total - begin[i];
                }
            }
        }
        Ok(Window { kernel: kernel.to_vec(), strides, dilations, begin, end })
    }

    fn conv(&self, from: &[usize]) -> Made {
        let (w, to) = (self.shape(1)?, self.made()?);
        let groups = self.node.int("group").and_then(|g| usize::try_from(g).ok()).unwrap_or(1);
        let transposed = self.node.op == Op::ConvTranspose;
        if from.len() > 5 || w.len() != from.len() || to.len() != from.len() || to[2..].contains(&0) {
            return Err(format!("of {} spatial axes is not differentiated", from.len() - 2));
        }
        let (inner, outer) = if transposed { (w[0], w[1] * groups) } else { (w[1] * groups, w[0]) };
        if groups == 0 || from[1] != inner || to[1] != outer || w[0] % groups != 0 {
            return Err(format!("of {from:?} with a weight {w:?} is not differentiated"));
        }
        if transposed {
            let window = self.window(&w[2..], &to[2..], &from[2..])?;
            let lengths = to[2..].to_vec();
            return make(move |t, ins| Ok(vec![t.conv_transpose(need(ins, 0)?, need(ins, 1)?, ins.get(2).copied().flatten(), &window, groups, &lengths)]));
        }
        let window = self.window(&w[2..], &from[2..], &to[2..])?;
        if window.positions(&from[2..]) != to[2..] {
            return Err(format!("from {from:?} to {to:?} is not differentiated"));
        }
        make(move |t, ins| Ok(vec![t.conv(need(ins, 0)?, need(ins, 1)?, ins.get(2).copied().flatten(), &window, groups)]))
    }

    fn pool(&self, from: &[usize]) -> Made {
        let to = self.made()?;
        if self.node.outputs().iter().skip(1).any(|v| v.is_some_and(|v| !self.g.value(v).uses().is_empty() || self.g.is_output(v))) {
            return Err("whose indices are read is not differentiated".into());
        }
        let kernel = self.node.ints("kernel_shape").unwrap_or_default();
        let kernel: Vec<usize> = kernel.iter().map(|k| usize::try_from(*k).unwrap_or(0)).collect();
        let (lengths, positions) = (&from[2..], to[2..].to_vec());
        let window = self.window(&kernel, lengths, &positions)?;
        let (largest, padding) = (self.node.op == Op::MaxPool, self.node.int("count_include_pad").unwrap_or(0) != 0);
        one(move |t, x| if largest { t.max_pool(x, &window, &positions) } else { t.average_pool(x, &window, &positions, padding) })
    }

    /// Resize and Upsample, one axis after the other.
    fn resize(&self, from: &[usize]) -> Made {
        let to = self.made()?;
        let old = self.node.op == Op::Upsample || self.opset < 11;
        let text = |name: &str, none: &'static str| self.node.str(name).unwrap_or(none).to_string();
        let mode = text("mode", "nearest");
        let coordinates = if old { "asymmetric".to_string() } else { text("coordinate_transformation_mode", "half_pixel") };
        let rounding = if old { "floor".to_string() } else { text("nearest_mode", "round_prefer_floor") };
        if ["antialias", "exclude_outside"].iter().any(|a| self.node.int(a).unwrap_or(0) != 0) || self.node.attr("axes").is_some() {
            return Err("with antialias, exclude_outside or axes is not differentiated".into());
        }
        let scales = match (self.node.input(if old { 1 } else { 2 }).and_then(|v| self.constant(v)), self.node.attr("scales")) {
            (Some(t), _) => t.to_f32().map_err(|e| e.to_string())?.into_owned(),
            (None, Some(AttrValue::Floats(v))) => v.clone(),
            _ => Vec::new(),
        };
        let scale = |i: usize| scales.get(i).map_or(to[i] as f64 / from[i] as f64, |s| *s as f64);
        let changed = (0..from.len()).filter(|i| from[*i] != to[*i]);
        let axes = changed.map(|i| Ok((i, taps(from[i], to[i], scale(i), &mode, &coordinates, &rounding, self.node.float("cubic_coeff_a").unwrap_or(-0.75))?)));
        let axes = axes.collect::<std::result::Result<Vec<(usize, Taps)>, String>>()?;
        let same = from.to_vec();
        one(move |t, x| {
            let mut y = t.reshape(x, &same);
            for (axis, taps) in &axes {
                y = t.blend(y, *axis, taps);
            }
            y
        })
    }
}

/// Weighted sources along an axis that grows or shrinks from `from` to `to`.
fn taps(from: usize, to: usize, scale: f64, mode: &str, coordinates: &str, rounding: &str, a: f32) -> std::result::Result<Taps, String> {
    let (n, m) = (from as f64, to as f64);
    let source = |i: usize| {
        let x = i as f64;
        Some(match coordinates {
            "half_pixel" => (x + 0.5) / scale - 0.5,
            "pytorch_half_pixel" => {
                if to > 1 {
                    (x + 0.5) / scale - 0.5
                } else {
                    0.0
                }
            }
            "align_corners" => {
                if to > 1 {
                    x * (n - 1.0) / (m - 1.0)
                } else {
                    0.0
                }
            }
            "asymmetric" => x / scale,
            "half_pixel_symmetric" => {
                let adjusted = n * scale;
                n / 2.0 * (1.0 - m / adjusted) + (x + 0.5) / scale - 0.5
            }
            _ => return None,
        })
    };
    let inside = |i: f64| i.clamp(0.0, n - 1.0) as usize;
    (0..to)
        .map(|i| {
            let x = source(i).ok_or_else(|| format!("with coordinates {coordinates} is not differentiated"))?;
            Ok(match mode {
                "nearest" => {
                    let nearest = match rounding {
                        "floor" => x.floor(),
                        "ceil" => x.ceil(),
                        "round_prefer_ceil" => (x + 0.5).floor(),
                        _ => (x - 0.5).ceil(),
                    };
                    vec![(inside(nearest), 1.0)]
                }
                "linear" => {
                    let x = x.clamp(0.0, n - 1.0);
                    let part = (x - x.floor()) as f32;
                    let both = [(inside(x.floor()), 1.0 - part), (inside(x.floor() + 1.0), part)];
                    both.into_iter().filter(|(_, w)| *w != 0.0).collect()
                }
                "cubic" => {
                    let (base, t) = (x.floor(), (x - x.floor()) as f32);
                    let near = |t: f32| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
                    let far = |t: f32| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
                    let weights = [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)];
                    weights.iter().enumerate().map(|(k, w)| (inside(base - 1.0 + k as f64), *w)).collect()
                }
                other => return Err(format!("with mode {other} is not differentiated")),
            })
        })
        .collect()
}
