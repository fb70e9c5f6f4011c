//! Rounding up or down as something that can be learnt: `w = offset + step · clip(⌊code⌋ + h(V))` with the rectified sigmoid `h(V) = clip(σ(V)·(ζ − γ) + γ)`,
//! and the regulariser `λ Σ 1 − |2h − 1|^β`, which drives `h` to 0 or 1.
//! Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, section 3.2.

use super::adam::Adam;

/// The rectified sigmoid reaches from γ to ζ before it is cut to 0 … 1.
const ZETA: f32 = 1.1;
const GAMMA: f32 = -0.1;

/// Weights on their way between the codes below and above them.
pub struct SoftRound {
    /// By weight: `value = offset + code · step`.
    step: Vec<f32>,
    offset: Vec<f32>,
    /// The lowest code and the highest.
    codes: (f32, f32),
    floor: Vec<f32>,
    v: Vec<f32>,
    adam: Adam,
}

impl SoftRound {
    /// Weights `w` where they lie between their codes. `step` and `offset` are as long as they.
    pub fn new(w: &[f32], step: Vec<f32>, offset: Vec<f32>, codes: (f32, f32)) -> SoftRound {
        let at: Vec<f32> = w.iter().enumerate().map(|(i, w)| (w - offset[i]) / step[i]).map(|c| if c.is_finite() { c } else { 0.0 }).collect();
        let floor: Vec<f32> = at.iter().map(|c| c.floor()).collect();
        let v = at.iter().zip(&floor).map(|(c, f)| -((ZETA - GAMMA) / (c - f - GAMMA) - 1.0).ln()).collect();
        SoftRound { step, offset, codes, floor, v, adam: Adam::new(w.len()) }
    }

    /// The weights between their codes.
    pub fn soft(&self) -> Vec<f32> {
        self.values(rectified)
    }

    /// The weights at the nearer of both codes.
    pub fn hard(&self) -> Vec<f32> {
        self.values(|v| if v >= 0.0 { 1.0 } else { 0.0 })
    }

    fn values(&self, up: impl Fn(f32) -> f32) -> Vec<f32> {
        let (lo, hi) = self.codes;
        let one = |i: usize| self.offset[i] + (self.floor[i] + up(self.v[i])).clamp(lo, hi) * self.step[i];
        (0..self.v.len()).map(one).collect()
    }

    /// A step of `rate` against a gradient by the weights, and the regulariser's.
    pub fn step(&mut self, grad: &[f32], lambda: f64, beta: f64, rate: f64) {
        let (lo, hi) = self.codes;
        let slope = |i: usize| {
            let s = 1.0 / (1.0 + (-self.v[i]).exp());
            let h = s * (ZETA - GAMMA) + GAMMA;
            if !(0.0..=1.0).contains(&h) {
                return 0.0;
            }
            let code = self.floor[i] + h;
            let data = if code >= lo && code <= hi { grad[i] * self.step[i] } else { 0.0 };
            let d = 2.0 * h - 1.0;
            let decided = if lambda == 0.0 { 0.0 } else { -2.0 * lambda as f32 * beta as f32 * d.abs().powf(beta as f32 - 1.0) * d.signum() };
            (data + decided) * (ZETA - GAMMA) * s * (1.0 - s)
        };
        let slopes: Vec<f32> = (0..self.v.len()).map(slope).collect();
        self.adam.step(&mut self.v, &slopes, rate as f32);
    }

    /// Whether all but one in a hundred weights are up or down.
    pub fn is_decided(&self) -> bool {
        let open = self.v.iter().filter(|v| (0.01..0.99).contains(&rectified(**v))).count();
        100 * open < self.v.len()
    }
}

/// How far up a code is.
fn rectified(v: f32) -> f32 {
    ((ZETA - GAMMA) / (1.0 + (-v).exp()) + GAMMA).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first step of Adam is as long as the rate and goes against the gradient of Σ g·w + λ Σ 1 − |2h − 1|^β, here by central differences; of the last
    /// two weights the regulariser decides.
    #[test]
    fn steps_go_against_the_gradient_of_loss_and_regulariser() {
        let (w, grad, lambda, beta) = ([0.1f32, 0.45, -0.72, 0.26], [0.3f32, -0.2, 0.0, 0.0], 0.01, 3.0);
        let new = || SoftRound::new(&w, vec![0.2; 4], vec![0.0; 4], (-8.0, 7.0));
        let total = |r: &SoftRound| {
            let of = |(w, v): (f32, f32)| (w as f64, 1.0 - (2.0 * rectified(v) as f64 - 1.0).abs().powf(beta));
            let all = r.soft().into_iter().zip(r.v.clone()).map(of);
            all.zip(grad).map(|((w, open), g)| g as f64 * w + lambda * open).sum::<f64>()
        };
        let mut stepped = new();
        stepped.step(&grad, lambda, beta, 0.01);
        for i in 0..w.len() {
            let at = |by: f32| {
                let mut r = new();
                r.v[i] += by;
                total(&r)
            };
            let moved = stepped.v[i] - new().v[i];
            assert!((moved.abs() - 0.01).abs() < 1e-4 && (at(0.01) - at(-0.01)).signum() == -(moved as f64).signum(), "{i}: {moved}");
        }
        assert_eq!(new().hard(), [0.2, 0.4, -0.8, 0.2], "the nearer codes at first");
    }
}
