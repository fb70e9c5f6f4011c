//! Cholesky factorization.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par};

/// Turns the lower triangle of a symmetric `n × n` matrix, column by column, into `L` with `L·Lᵀ` equal to it. What lies above the diagonal means
/// nothing, before and after. `false` if the matrix is not positive definite: the triangle is then half done.
pub fn cholesky(a: &mut [f64], n: usize) -> bool {
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let matrix = MatMut::from_column_major_slice_mut(a, n, n);
    let done = cholesky_in_place(matrix, Default::default(), Par::Seq, MemStack::new(&mut memory), Default::default()).is_ok();
    done && (0..n).all(|k| a[k * n + k].is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        for n in [0, 1, 2, 7, 64, 65, 150] {
            let noise = |i: usize| (i as f64 * 0.618_033_988_7).fract() - 0.5;
            let b: Vec<f64> = (0..n * n).map(noise).collect();
            let a: Vec<f64> =
                (0..n * n).map(|k| (0..n).map(|m| b[k / n * n + m] * b[k % n * n + m]).sum::<f64>() + if k / n == k % n { 0.5 } else { 0.0 }).collect();
            let mut l = a.clone();
            assert!(cholesky(&mut l, n));
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let product: f64 = (0..=j).map(|k| l[k * n + i] * l[k * n + j]).sum();
                assert!((product - a[i * n + j]).abs() < 1e-9, "{n}: {i} {j} {product} {}", a[i * n + j]);
            }
        }
        assert!(!cholesky(&mut [1.0, 2.0, 0.0, 1.0], 2));
        assert!(!cholesky(&mut [f64::NAN], 1));
    }
}
