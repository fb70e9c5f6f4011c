//! Weights whose codes are chosen one by one, and where these codes lie.

use crate::error::{Error, Result};
use crate::graph::{Linear, Model, NodeId, Site};
use crate::math::wide;
use crate::quant::{self, Codes, Curve, Format, Quantizer, Rounding};
use crate::tensor::{Tensor, pack};

/// The FakeQuant that holds the weight of a layer, where that is a constant without codes yet; or why its codes cannot be chosen one by one.
pub fn chosen(model: &Model, id: NodeId) -> Option<std::result::Result<(NodeId, Linear), &'static str>> {
    let g = &model.graph;
    let linear = Linear::of(g, id).filter(|l| l.constant)?;
    let (fake, _) = g.value(linear.weight).producer()?;
    g.constant(g.node(fake).input(0)?)?;
    let quantizer = &model.quantizers[model.quantizers.root(g.node(fake).quantizer()?)];
    if model.codes.contains_key(&Site::of(fake)) {
        return None;
    }
    let integers = matches!(quantizer.scheme.format, Format::Int { bits, .. } if bits <= 16) && quantizer.scheme.rounding == Rounding::HalfEven;
    let even = quantizer.params.as_ref().is_some_and(|p| p.curve == Curve::Linear);
    let fault = if !integers || !even {
        Some("its codes are no evenly spaced integers")
    } else if g.value(linear.weight).uses().len() != 1 {
        Some("several layers read its weight")
    } else {
        None
    };
    Some(fault.map_or(Ok((fake, linear)), Err))
}

/// Where the codes of each weight lie: `value = offset + code · step`.
pub struct Grid {
    pub step: Vec<f32>,
    pub offset: Vec<f32>,
    pub codes: (f32, f32),
}

impl Grid {
    pub fn of(q: &Quantizer, shape: &[usize]) -> Result<Grid> {
        let (Some(params), Some((first, last)), Some(storage)) = (&q.params, q.scheme.format.code_range(), q.scheme.format.storage()) else {
            return Err(Error::failed("has no scale yet; `calibrate` must stand before `round`"));
        };
        let all = |code: i32| {
            let n = shape.iter().product();
            quant::dequantize(&Codes(Tensor::new(storage, shape.to_vec(), pack::pack(&vec![code; n], storage).into())?), &q.scheme, params)
        };
        let offset = all(0)?;
        let step = all(1)?.iter().zip(&offset).map(|(a, b)| a - b).collect();
        Ok(Grid { step, offset, codes: (first as f32, last as f32) })
    }

    /// What the codes nearest to these numbers stand for, at these places.
    pub fn nearest<const N: usize>(&self, at: &[usize; N], x: &[f32; N]) -> [f32; N] {
        let (step, offset) = (at.map(|at| self.step[at]), at.map(|at| self.offset[at]));
        let codes = self.codes;
        wide(
            #[inline(always)]
            move || {
                let mut q = [0f32; N];
                for i in 0..N {
                    q[i] = nearest(x[i], step[i], offset[i], codes);
                }
                q
            },
        )
    }
}

/// Codes have at most 16 bits: what is cut off before it is rounded is what would be afterwards. Without a branch, so that it is SIMD.
#[inline(always)]
fn nearest(x: f32, step: f32, offset: f32, (first, last): (f32, f32)) -> f32 {
    let code = (x - offset) / step;
    let code = if code < first { first } else { code };
    offset + quant::half_even(if code > last { last } else { code }) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_code_is_the_even_one_of_two() {
        let grid = Grid { step: vec![1.0], offset: vec![0.0], codes: (-32768.0, 32767.0) };
        let halves = (-4_000_000..4_000_000).map(|i| i as f32 / 100.0).chain((-66_000..66_000).map(|i| i as f32 / 2.0));
        for x in halves.chain([0.499_999_97, -0.499_999_97, 1e30, -1e30]) {
            assert_eq!(grid.nearest(&[0, 0], &[x, 1.2]), [x.round_ties_even().clamp(-32768.0, 32767.0), 1.0], "{x}");
        }
    }
}
