//! Cholesky factorization, in blocks of columns, rows in parallel.

use rayon::prelude::*;

/// Columns of a block.
const BLOCK: usize = 64;

/// Turns the lower triangle of a symmetric matrix into `L` with `L·Lᵀ` equal to it. What lies above the diagonal is not touched.
/// `false` if the matrix is not positive definite: the triangle is then half done.
pub fn cholesky(a: &mut [f64], n: usize) -> bool {
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        for k in from..to {
            let (above, row) = a.split_at_mut(k * n);
            let row = &mut row[..n];
            for j in from..k {
                row[j] = (row[j] - dot(&row[from..j], &above[j * n + from..j * n + j])) / above[j * n + j];
            }
            let pivot = row[k] - dot(&row[from..k], &row[from..k]);
            if pivot <= 0.0 || !pivot.is_finite() {
                return false;
            }
            row[k] = pivot.sqrt();
        }
        let (done, below) = a.split_at_mut(to * n);
        let block = |j: usize| &done[j * n + from..];
        below.par_chunks_mut(n).for_each(|row| {
            for j in from..to {
                let known = dot(&row[from..j], &block(j)[..j - from]);
                row[j] = (row[j] - known) / block(j)[j - from];
            }
        });
        // What the block has to do with the rest, before the rest is changed.
        let panel: Vec<f64> = below.chunks(n).flat_map(|row| row[from..to].iter().copied()).collect();
        let width = to - from;
        below.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            let own = &panel[i * width..(i + 1) * width];
            for (j, other) in panel.chunks_exact(width).take(i + 1).enumerate() {
                row[to + j] -= dot(own, other);
            }
        });
    }
    true
}

/// In lanes, which the compiler makes SIMD of.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (x, y) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
    for (x, y) in x.zip(y) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        for n in [1, 2, 7, 64, 65, 150] {
            let noise = |i: usize| (i as f64 * 0.618_033_988_7).fract() - 0.5;
            let b: Vec<f64> = (0..n * n).map(noise).collect();
            let a: Vec<f64> =
                (0..n * n).map(|k| (0..n).map(|m| b[k / n * n + m] * b[k % n * n + m]).sum::<f64>() + if k / n == k % n { 0.5 } else { 0.0 }).collect();
            let mut l = a.clone();
            assert!(cholesky(&mut l, n));
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let product: f64 = (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                assert!((product - a[i * n + j]).abs() < 1e-9, "{n}: {i} {j} {product} {}", a[i * n + j]);
            }
        }
        assert!(!cholesky(&mut [1.0, 0.0, 2.0, 1.0], 2));
    }
}
