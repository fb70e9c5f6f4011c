//! Fake quantization with gradients: straight through to what is quantized (Bengio et al. 2013), and Learned Step Size Quantization's to the scale (Esser
//! et al. 2020, eq. 3) and, by the same argument, to the zero point (Jain et al. 2020; Bhalgat et al. 2020).

use super::buffers;
use super::tape::{Tape, Var};
use crate::error::Result;
use crate::math::sum_of;
use crate::quant::{self, Params, Scheme, Timing, Zeros, fake_quantize};

impl Tape {
    /// `x` as its codes stand for it, under `scale` and, where it has one, `zero` (one element a block of the scheme, or one for all), by the engine's
    /// own arithmetic. `params` says the rest: what kind of zero point it is, and the curve. A zero point that is a code is rounded to one.
    ///
    /// With `v = x / scale + zero`: the gradient passes through to `x` where `v` lies within the codes' range and is 0 outside. By the scale it is
    /// `(x̂ − x) / scale` within and `x̂ / scale` outside; by the zero point `−scale` outside and 0 within.
    ///
    /// # Errors
    /// Scales that do not fit the blocks.
    pub fn fake_quant(&mut self, x: Var, scale: Var, zero: Option<Var>, scheme: &Scheme, params: &Params) -> Result<Var> {
        let zeros = |tape: &Tape, v: Var| match &params.zero {
            Zeros::Real(_) => Zeros::Real(tape.value(v).to_vec()),
            _ => Zeros::Integer(tape.value(v).iter().map(|z| z.round_ties_even() as i32).collect()),
        };
        let params = Params {
            scale: self.value(scale).to_vec(),
            nested: None,
            zero: zero.map_or(Zeros::None, |v| zeros(self, v)),
            curve: params.curve.clone(),
            origin: params.origin,
        };
        let shape = self.shape(x).to_vec();
        let mut value = buffers::copy(self.value(x));
        fake_quantize(&mut value, &shape, scheme, Some(&params))?;
        let (lo, hi) = quant::span(scheme, &params)?;
        let layout = scheme.blocks.layout(&shape)?;
        let blocks = layout.len();
        let y = self.next();
        let operands: Vec<Var> = [x, scale].into_iter().chain(zero).collect();
        Ok(self.push(value, &shape, &operands, move |tape, grad, grads| {
            let (x_values, y_values) = (tape.value(x), tape.value(y));
            let members = if blocks > 1 { layout.members() } else { Vec::new() };
            let block = |i: usize| members.get(i).map_or(0, |b| *b as usize);
            let inside = |i: usize| {
                let b = block(i);
                let v = x_values[i] / params.scale_at(b) + params.zero_at(b);
                v >= lo && v <= hi
            };
            let ends = |b: usize| ((lo - params.zero_at(b)) * params.scale_at(b), (hi - params.zero_at(b)) * params.scale_at(b));
            grads.give_with(x, || match blocks {
                0 | 1 => {
                    let (lo, hi) = ends(0);
                    buffers::collect(grad.len(), grad.iter().zip(x_values).map(|(g, x)| if *x >= lo && *x <= hi { *g } else { 0.0 }))
                }
                _ => grad.iter().enumerate().map(|(i, g)| if inside(i) { *g } else { 0.0 }).collect(),
            });
            let gather = |of: Var, slope: &dyn Fn(usize) -> f32| {
                let one = tape.value(of).len() == 1;
                let mut sums = vec![0f64; tape.value(of).len()];
                grad.iter().enumerate().for_each(|(i, g)| sums[if one { 0 } else { block(i) }] += (g * slope(i)) as f64);
                sums.into_iter().map(|s| s as f32).collect::<Vec<f32>>()
            };
            grads.give_with(scale, || match blocks {
                0 | 1 => {
                    let (by, (lo, hi)) = (1.0 / params.scale_at(0), ends(0));
                    let slope = |g: f32, x: f32, y: f32| (g * (y - if x >= lo && x <= hi { x } else { 0.0 }) * by) as f64;
                    vec![sum_of(grad, x_values, y_values, slope) as f32]
                }
                _ => gather(scale, &|i| (y_values[i] - if inside(i) { x_values[i] } else { 0.0 }) / params.scale_at(block(i))),
            });
            if let Some(zero) = zero {
                grads.give_with(zero, || gather(zero, &|i| if inside(i) { 0.0 } else { -params.scale_at(block(i)) }));
            }
        }))
    }

    /// The same under a quantizer of the table, whose scales and zero points are constants; a dynamic one fits them to `x` first.
    pub fn fake_quant_under(&mut self, x: Var, scheme: &Scheme, params: Option<&Params>) -> Result<Var> {
        let fitted;
        let params = match params {
            None if scheme.timing == Timing::Dynamic => {
                fitted = quant::fit(self.value(x), self.shape(x), scheme)?;
                &fitted
            }
            None => return Err(crate::Error::failed(format!("a static quantizer ({scheme}) has no parameters: calibrate it first"))),
            Some(p) => p,
        };
        let scale = self.constant(params.scale.clone(), &[params.scale.len()]);
        let zero = match &params.zero {
            Zeros::None => None,
            Zeros::Integer(z) => Some(self.constant(z.iter().map(|z| *z as f32).collect::<Vec<f32>>(), &[z.len()])),
            Zeros::Real(z) => Some(self.constant(z.clone(), &[z.len()])),
        };
        self.fake_quant(x, scale, zero, scheme, params)
    }
}
