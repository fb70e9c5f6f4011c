//! Sums of products of columns.

use rayon::prelude::*;

/// Columns that are met by every other while they are in the cache.
const TILE: usize = 16;

/// Adds `⟨column i, column j⟩` to the lower triangle of the `n × n` matrix `sums`; `columns` holds `n` columns of `rows` numbers, one after the other.
pub fn add_gram(sums: &mut [f64], columns: &[f32], n: usize, rows: usize) {
    if rows == 0 {
        return;
    }
    let column = |i: usize| &columns[i * rows..(i + 1) * rows];
    sums.par_chunks_mut(TILE * n).enumerate().for_each(|(tile, sums)| {
        let first = tile * TILE;
        for j in 0..(first + TILE).min(n) {
            for (i, row) in sums.chunks_exact_mut(n).enumerate().map(|(i, row)| (first + i, row)).filter(|(i, _)| *i >= j) {
                row[j] += dot(column(i), column(j));
            }
        }
    });
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sum = 0f64;
    // Few enough terms that float32 holds their sum well.
    for (a, b) in a.chunks(512).zip(b.chunks(512)) {
        let mut lanes = [0f32; 16];
        let (x, y) = (a.chunks_exact(16), b.chunks_exact(16));
        let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
        for (x, y) in x.zip(y) {
            for i in 0..16 {
                lanes[i] += x[i] * y[i];
            }
        }
        sum += (lanes.iter().sum::<f32>() + rest) as f64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_columns_add_up() {
        let (n, rows) = (37, 21);
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
