//! Which samples calibrate and which judge.

use super::random;

/// Which samples calibrate and which validate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Split {
    pub calibration: Vec<usize>,
    pub validation: Vec<usize>,
    /// Said to the user: too few samples, or samples that serve both.
    pub remarks: Vec<String>,
}

/// Samples that judge, where nobody says how many.
const MOST: usize = 512;
/// Fewer samples leave ranges to chance.
const FEW: usize = 16;

/// Splits `n` samples, in an order shuffled with the seed, or as they are: the first `samples` calibrate, the next `validate` (default: those that are
/// left, at most 512) judge. Where none is left, those that calibrate judge too, and that is said.
pub fn split(n: usize, samples: usize, validate: Option<usize>, shuffle: Option<u64>) -> Split {
    let mut order: Vec<usize> = (0..n).collect();
    if let Some(seed) = shuffle {
        random::shuffle(&mut order, seed);
    }
    let calibration = order[..samples.min(n)].to_vec();
    let left = &order[calibration.len()..];
    let wanted = validate.unwrap_or(MOST);
    let mut remarks = Vec::new();
    if calibration.len() < FEW {
        remarks.push(format!("only {} samples calibrate; ranges found on so few may clip: give at least {FEW}", calibration.len()));
    }
    let validation = if wanted > 0 && left.is_empty() {
        remarks.push("the samples that calibrate judge too, which flatters the result; --validate-data gives others".to_string());
        calibration[..wanted.min(calibration.len())].to_vec()
    } else {
        left[..wanted.min(left.len())].to_vec()
    };
    Split { calibration, validation, remarks }
}
