//! Sums of products of columns.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of the result that are made together.
const TILE: usize = 128;
/// Numbers up to which products are summed one by one.
const FEW: usize = 16;

/// Adds `⟨column i, column j⟩` to the lower triangle of the `n × n` matrix `sums`; `columns` holds `n` columns of `rows` numbers, one after the other.
/// Tiles run in parallel; the bytes do not depend on how many.
pub fn add_gram(sums: &mut [f32], columns: &[f32], n: usize, rows: usize) {
    if rows == 0 {
        return;
    }
    if n <= FEW {
        let columns: Vec<&[f32]> = columns.chunks_exact(rows).collect();
        for (i, sums) in sums.chunks_exact_mut(n).enumerate() {
            sums.iter_mut().zip(&columns[..=i]).for_each(|(sum, c)| *sum += dot(columns[i], c));
        }
        return;
    }
    let all = MatRef::from_column_major_slice(columns, rows, n);
    sums.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, sums)| {
        let (first, height) = (tile * TILE, sums.len() / n);
        // What lies above the diagonal is made with the tile, and means nothing.
        let tile = MatMut::from_column_major_slice_with_stride_mut(sums, first + height, height, n);
        matmul(tile, Accum::Add, all.subcols(0, first + height).transpose(), all.subcols(first, height), 1.0, Par::Seq);
    });
}

/// The sum of products, in as many parts as the processor adds at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        parts.iter_mut().zip(a.iter().zip(b)).for_each(|(p, (a, b))| *p += a * b);
    }
    parts.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_columns_add_up() {
        for (n, rows) in [(37, 21), (131, 5), (3, 1200)] {
            let x: Vec<f32> = (0..n * rows).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            let mut sums = vec![1.0; n * n];
            add_gram(&mut sums, &x, n, rows);
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let want = 1.0 + (0..rows).map(|r| x[i * rows + r] * x[j * rows + r]).sum::<f32>();
                assert_eq!(sums[i * n + j], want);
            }
        }
    }
}
