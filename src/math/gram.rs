//! Sums of products of columns.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of the result that are made together.
const TILE: usize = 128;
/// Terms whose sum float32 holds well.
const TERMS: usize = 512;

/// Adds `⟨column i, column j⟩` to the lower triangle of the `n × n` matrix `sums`; `columns` holds `n` columns of `rows` numbers, one after the other.
/// Products are summed in float32, [`TERMS`] at a time, and these sums in float64. Tiles run in parallel; the bytes do not depend on how many.
pub fn add_gram(sums: &mut [f64], columns: &[f32], n: usize, rows: usize) {
    if rows == 0 {
        return;
    }
    let all = MatRef::from_column_major_slice(columns, rows, n);
    sums.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, sums)| {
        let (first, height) = (tile * TILE, sums.len() / n);
        let width = first + height;
        let mut products = vec![0f32; width * height];
        for from in (0..rows).step_by(TERMS) {
            let terms = all.subrows(from, TERMS.min(rows - from));
            let result = MatMut::from_column_major_slice_mut(&mut products, width, height);
            matmul(result, Accum::Replace, terms.subcols(0, width).transpose(), terms.subcols(first, height), 1.0, Par::Seq);
            for (i, (row, products)) in sums.chunks_exact_mut(n).zip(products.chunks_exact(width)).enumerate() {
                row.iter_mut().zip(products).take(first + i + 1).for_each(|(sum, p)| *sum += *p as f64);
            }
        }
    });
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
                let want = 1.0 + (0..rows).map(|r| x[i * rows + r] as f64 * x[j * rows + r] as f64).sum::<f64>();
                assert_eq!(sums[i * n + j], want);
            }
            assert_eq!(sums[1], 1.0, "above the diagonal");
        }
    }
}
