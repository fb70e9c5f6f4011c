//! Codebooks: the nearest entry, and entries fitted to data.
//! Fitting is Lloyd's algorithm on a histogram of the scaled values (S. Lloyd, Least squares quantization in PCM, 1982), so it takes one run over the data.

use super::Rounding;

/// The 16 entries of `nf4`: quantiles of the normal distribution, scaled to ±1. Source: Dettmers et al., QLoRA (2023), Appendix E.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Index of the entry nearest to `x`. Entries ascend. Ties go to the even index (half-even), the higher entry (half-up) or the one further
/// from zero (half-away); `Floor` takes the highest entry that is not above `x`. NaN is taken for 0.
pub(super) fn nearest(table: &[f32], x: f32, rounding: Rounding) -> i32 {
    let x = if x.is_nan() { 0.0 } else { x };
    // Counting has no branches to mispredict.
    let above = if table.len() <= 32 { table.iter().map(|&t| (t <= x) as u32).sum::<u32>() as usize } else { table.partition_point(|&t| t <= x) };
    if above == 0 || above == table.len() {
        return above.saturating_sub(1) as i32;
    }
    let below = above - 1;
    let (down, up) = (x as f64 - table[below] as f64, table[above] as f64 - x as f64);
    let tie_goes_up = match rounding {
        Rounding::HalfEven => above.is_multiple_of(2),
        Rounding::HalfUp => true,
        Rounding::HalfAway => x >= 0.0,
        Rounding::Floor => return below as i32,
    };
    (if up < down || (up == down && tie_goes_up) { above } else { below }) as i32
}

/// `2^bits` entries at even distances over −1…1, before any data is seen.
pub(super) fn even(bits: u8) -> Vec<f32> {
    let n = 1usize << bits.min(16);
    (0..n).map(|i| (2.0 * i as f64 / (n - 1).max(1) as f64 - 1.0) as f32).collect()
}

/// Bins of the histogram over −1…1.
const BINS: usize = 1 << 14;

/// Values in −1…1 by bin: how many and their sum.
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    pub fn new() -> Self {
        Histogram(vec![(0.0, 0.0); BINS])
    }

    pub fn add(&mut self, x: f32) {
        let bin = ((x.clamp(-1.0, 1.0) + 1.0) * (BINS as f32 / 2.0)) as usize;
        let (count, sum) = &mut self.0[bin.min(BINS - 1)];
        (*count, *sum) = (*count + 1.0, *sum + x as f64);
    }

    /// Entries that lessen the squared error, from even ones: each moves to the mean of the values nearest to it, until none moves.
    /// An entry that is nearest to nothing stays.
    pub fn fit(&self, bits: u8) -> Vec<f32> {
        let mut table = even(bits);
        for _ in 0..100 {
            let mut cells = vec![(0.0, 0.0); table.len()];
            for &(count, sum) in self.0.iter().filter(|b| b.0 > 0.0) {
                let cell = &mut cells[nearest(&table, (sum / count) as f32, Rounding::HalfEven) as usize];
                *cell = (cell.0 + count, cell.1 + sum);
            }
            let moved: Vec<f32> = cells.iter().zip(&table).map(|(&(count, sum), &t)| if count > 0.0 { (sum / count) as f32 } else { t }).collect();
            if moved == table {
                break;
            }
            table = moved;
        }
        table.sort_by(f32::total_cmp);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_entry_and_the_four_ways_to_break_a_tie() {
        let t = [-2.0, -1.0, 1.0, 4.0];
        assert_eq!([-9.0, -2.0, -1.4, 0.9, 1.1, 2.4, 2.6, 9.0].map(|x| nearest(&t, x, Rounding::HalfEven)), [0, 0, 1, 2, 2, 2, 3, 3]);
        let tie = |x, r| nearest(&t, x, r);
        assert_eq!([-1.5, 0.0, 2.5].map(|x| tie(x, Rounding::HalfEven)), [0, 2, 2]);
        assert_eq!([-1.5, 0.0, 2.5].map(|x| tie(x, Rounding::HalfUp)), [1, 2, 3]);
        assert_eq!([-1.5, 0.0, 2.5].map(|x| tie(x, Rounding::HalfAway)), [0, 2, 3]);
        assert_eq!([-1.5, 0.9, 3.9].map(|x| tie(x, Rounding::Floor)), [0, 1, 2]);
        assert_eq!(nearest(&NF4, f32::NAN, Rounding::HalfEven), 7);
    }

    #[test]
    fn a_fitted_codebook_finds_the_levels_of_data_that_has_few() {
        let levels = [-0.9f32, -0.2, 0.1, 0.7];
        let mut h = Histogram::new();
        (0..400).for_each(|i| h.add(levels[i % 4]));
        let t = h.fit(2);
        assert!(t.iter().zip(levels).all(|(a, b)| (a - b).abs() < 1e-6), "{t:?}");
    }
}
