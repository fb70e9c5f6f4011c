//! Sums of products of columns, and products of matrices.

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

/// `c = a·b`, in float32: `c` of `rows × columns` numbers, row by row; `a` of `rows × inner` and `b` of `inner × columns`, whose rows lie `a_stride` and
/// `columns` numbers apart.
pub fn product(c: &mut [f32], (a, a_stride): (&[f32], usize), b: &[f32], (rows, inner, columns): (usize, usize, usize)) {
    if inner == 0 || rows == 0 || columns == 0 {
        return c.fill(0.0);
    }
    // Seen as columns, each of them is its transpose.
    let a = MatRef::from_column_major_slice_with_stride(a, inner, rows, a_stride);
    let b = MatRef::from_column_major_slice(&b[..inner * columns], columns, inner);
    let c = MatMut::from_column_major_slice_mut(&mut c[..rows * columns], columns, rows);
    matmul(c, Accum::Replace, b, a, 1.0, Par::Seq);
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

    #[test]
    fn a_part_of_a_matrix_times_another() {
        let a: Vec<f32> = (0..15).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..6).map(|i| 1.0 - i as f32).collect();
        let mut c = vec![9.0; 6];
        // Columns 1 … 3 of a, which is 3 × 5.
        product(&mut c, (&a[1..14], 5), &b, (3, 3, 2));
        let want = |r: usize, c: usize| (0..3).map(|k| a[r * 5 + 1 + k] * b[k * 2 + c]).sum::<f32>();
        assert_eq!(c, (0..6).map(|i| want(i / 2, i % 2)).collect::<Vec<_>>());
        product(&mut c, (&[], 5), &[], (3, 0, 2));
        assert_eq!(c, [0.0; 6]);
    }
}
