//! How far one tensor is from another, over a stream of samples. Sums are float64 and merge in the order of the samples.

use serde::{Serialize, Serializer};

/// A signal-to-quantization-noise ratio. Equal tensors have no noise: that is written as the word `exact`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Db(pub f64);

impl Serialize for Db {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            x if x == f64::INFINITY => s.serialize_str("exact"),
            x if x.is_finite() => s.serialize_f64(x),
            _ => s.serialize_none(),
        }
    }
}

impl std::fmt::Display for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.0 {
            x if x == f64::INFINITY => f.pad("exact"),
            x if x.is_finite() => f.pad(&format!("{x:.1} dB")),
            _ => f.pad("NaN"),
        }
    }
}

/// Sums over pairs of numbers, reference first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    signal: f64,
    noise: f64,
    other: f64,
    cross: f64,
    error: f64,
    largest: f64,
    n: u64,
    /// Pairs with a NaN on either side; they are in no other sum.
    pub nan: u64,
}

impl Sums {
    /// The sums of one pair of tensors.
    pub fn of(reference: &[f32], other: &[f32]) -> Sums {
        let mut s = Sums::default();
        for (&a, &b) in reference.iter().zip(other) {
            let (a, b) = (f64::from(a), f64::from(b));
            // Equal infinities differ by nothing.
            let e = if a == b { 0.0 } else { b - a };
            if a.is_nan() || b.is_nan() {
                s.nan += 1;
                continue;
            }
            s.signal += a * a;
            s.other += b * b;
            s.cross += a * b;
            s.noise += e * e;
            s.error += e;
            s.largest = s.largest.max(e.abs());
            s.n += 1;
        }
        s
    }

    pub fn merge(&mut self, o: &Sums) {
        self.signal += o.signal;
        self.noise += o.noise;
        self.other += o.other;
        self.cross += o.cross;
        self.error += o.error;
        self.largest = self.largest.max(o.largest);
        self.n += o.n;
        self.nan += o.nan;
    }

    /// `10 log10(signal / noise)`.
    pub fn sqnr(&self) -> Db {
        Db(match (self.nan, self.noise == 0.0) {
            (0, true) => f64::INFINITY,
            (0, false) => 10.0 * (self.signal / self.noise).log10(),
            _ => f64::NAN,
        })
    }

    /// Cosine of the angle between the two; 1 where both are zero.
    pub fn cosine(&self) -> f64 {
        let length = (self.signal * self.other).sqrt();
        if length > 0.0 { self.cross / length } else { (self.signal == self.other) as u8 as f64 }
    }

    /// Pairs counted.
    pub fn pairs(&self) -> u64 {
        self.n + self.nan
    }

    pub fn largest_error(&self) -> f64 {
        self.largest
    }

    pub fn mean_error(&self) -> f64 {
        if self.n > 0 { self.error / self.n as f64 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_worked_by_hand() {
        let mut s = Sums::of(&[3.0, 4.0], &[3.0, 3.5]);
        assert_eq!(s.sqnr(), Db(20.0));
        assert_eq!((s.largest_error(), s.mean_error()), (0.5, -0.25));
        assert!((s.cosine() - 23.0 / (5.0 * 21.25f64.sqrt())).abs() < 1e-12);
        s.merge(&Sums::of(&[0.0], &[0.5]));
        assert_eq!(s.sqnr(), Db(10.0 * 50f64.log10()));
        assert_eq!(Sums::of(&[1.0, f32::INFINITY], &[1.0, f32::INFINITY]).sqnr().to_string(), "exact");
    }

    #[test]
    fn nan_is_not_averaged_away() {
        let s = Sums::of(&[1.0, 2.0], &[1.0, f32::NAN]);
        assert_eq!(s.nan, 1);
        assert_eq!(s.sqnr().to_string(), "NaN");
        assert_eq!(serde_json::to_string(&s.sqnr()).unwrap(), "null");
        assert_eq!(serde_json::to_string(&Db(f64::INFINITY)).unwrap(), "\"exact\"");
    }
}
