//! What an output says as classes.

use crate::tensor::Tensor;

/// Classes that an output gives, one for each entry of its first axis: where the largest of its numbers stands. `None` where it does not look like
/// classes: of another rank than 2 once axes of size 1 behind the first are left out, or of fewer than two columns.
pub fn classes(t: &Tensor) -> Option<Vec<usize>> {
    let (first, rest) = t.shape().split_first()?;
    let columns: Vec<usize> = rest.iter().copied().filter(|d| *d != 1).collect();
    let &[columns] = &columns[..] else { return None };
    if *first == 0 || columns < 2 || !t.dtype().is_float() {
        return None;
    }
    let x = t.to_f32().ok()?;
    let largest = |row: &[f32]| row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0;
    Some(x.chunks(columns).map(largest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_classes() {
        assert_eq!(classes(&Tensor::of_f32(&[2, 3], vec![0.0, 2.0, 1.0, 5.0, 4.0, 3.0])), Some(vec![1, 0]));
        assert_eq!(classes(&Tensor::of_f32(&[1, 2, 1, 1], vec![0.0, 2.0])), Some(vec![1]));
        assert_eq!(classes(&Tensor::of_f32(&[2, 2, 2], vec![0.0; 8])), None);
        assert_eq!(classes(&Tensor::of_f32(&[3, 1], vec![0.0; 3])), None);
    }
}
