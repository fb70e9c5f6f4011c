//! Adam (Kingma & Ba 2015, algorithm 1).

/// Running moments of one vector of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Adam {
    betas: (f32, f32),
    epsilon: f32,
    steps: i32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    /// For `len` parameters, with the paper's β₁ = 0.9, β₂ = 0.999 and ε = 1e-8.
    pub fn new(len: usize) -> Adam {
        Adam::with(len, (0.9, 0.999), 1e-8)
    }

    /// With decay rates and ε of one's own.
    pub fn with(len: usize, betas: (f32, f32), epsilon: f32) -> Adam {
        Adam { betas, epsilon, steps: 0, mean: vec![0.0; len], square: vec![0.0; len] }
    }

    /// One step of `lr` against the gradient.
    pub fn step(&mut self, params: &mut [f32], grad: &[f32], lr: f32) {
        self.steps += 1;
        let (b1, b2) = self.betas;
        let unbias = |b: f32| (1.0 - (b as f64).powi(self.steps)) as f32;
        let (c1, c2) = (unbias(b1), unbias(b2));
        for (((p, g), m), v) in params.iter_mut().zip(grad).zip(&mut self.mean).zip(&mut self.square) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *p -= lr * (*m / c1) / ((*v / c2).sqrt() + self.epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_worked_by_hand() {
        let mut adam = Adam::new(2);
        let mut p = [1.0, -1.0];
        adam.step(&mut p, &[0.5, -4.0], 0.1);
        // m/c1 = g and √(v/c2) = |g|: a first step is as long as the rate.
        assert!((p[0] - 0.9).abs() < 1e-6 && (p[1] + 0.9).abs() < 1e-6, "{p:?}");
        adam.step(&mut p, &[-0.5, -4.0], 0.1);
        // m = 0.9·0.05 − 0.05 = −0.005, over 1 − 0.81; v = 0.25 · 0.001 · 1.999, over 1 − 0.998001.
        let step = 0.1 * (-0.005 / 0.19) / 0.5;
        assert!((p[0] - (0.9 - step)).abs() < 1e-5 && (p[1] + 0.8).abs() < 1e-5, "{p:?}");
    }

    #[test]
    fn it_finds_the_lowest_point_of_a_bowl() {
        let (mut adam, mut p) = (Adam::new(2), [3.0f32, -2.0]);
        for i in 0..400 {
            let grad = [2.0 * (p[0] - 1.0), 20.0 * (p[1] - 0.5)];
            adam.step(&mut p, &grad, 0.1 * (1.0 - i as f32 / 400.0));
        }
        assert!((p[0] - 1.0).abs() < 1e-3 && (p[1] - 0.5).abs() < 1e-3, "{p:?}");
    }
}
