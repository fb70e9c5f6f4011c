//! Sums of products of columns.

use super::wide;
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
        let column = |i: usize| &columns[i * rows..(i + 1) * rows];
        wide(
            #[inline(always)]
            || {
                for (i, sums) in sums.chunks_exact_mut(n).enumerate() {
                    for (j, sum) in sums[..=i].iter_mut().enumerate() {
                        *sum += dot(column(i), column(j));
                    }
                }
            },
        );
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
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 16];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    for (a, b) in a.iter().zip(b) {
        for ((p, a), b) in parts.iter_mut().zip(a).zip(b) {
            *p += a * b;
        }
    }
    parts.iter().sum::<f32>() + rest
}

/// Adds the sum of each column to `sums`; `columns` holds columns of `rows` numbers, one after the other.
pub fn add_columns(sums: &mut [f64], columns: &[f32], rows: usize) {
    wide(
        #[inline(always)]
        move || {
            for (sum, column) in sums.iter_mut().zip(columns.chunks(rows.max(1))) {
                let mut parts = [0f64; 8];
                let (chunks, rest) = column.as_chunks::<8>();
                for chunk in chunks {
                    for i in 0..8 {
                        parts[i] += chunk[i] as f64;
                    }
                }
                let rest: f64 = rest.iter().map(|v| *v as f64).sum();
                *sum += parts.iter().sum::<f64>() + rest;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_add_up() {
        for (n, rows) in [(19, 5), (8, 1), (3, 40), (16, 0)] {
            let x: Vec<f32> = (0..n * rows).map(|i| ((i * 7) % 11) as f32 - 4.0).collect();
            let mut sums = vec![0.5; n];
            add_columns(&mut sums, &x, rows);
            let want = |c: usize| 0.5 + x[c * rows..(c + 1) * rows].iter().map(|v| *v as f64).sum::<f64>();
            assert_eq!(sums, (0..n).map(want).collect::<Vec<_>>(), "{n} of {rows}");
        }
    }

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
