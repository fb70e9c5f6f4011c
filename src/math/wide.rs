//! Loops compiled for the registers of the machine they run on.

use faer::traits::pulp;

/// What `f` returns, with its loops compiled for the widest registers that this machine has. The bytes are the same on every machine: no sum is taken in
/// another order, and no product is fused. `f`, and all that it calls, must be marked `#[inline(always)]`; what is not inlined gains nothing.
#[inline(always)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `Σ f(a, b, c)` over elements of three slices of one length, in float64 and an order that does not depend on the machine.
#[inline(always)]
pub fn sum_of<A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C], f: impl Fn(A, B, C) -> f64) -> f64 {
    const LANES: usize = 8;
    let ((a, rest_a), (b, rest_b), (c, rest_c)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    wide(
        #[inline(always)]
        || {
            let mut sums = [0f64; LANES];
            for ((a, b), c) in a.iter().zip(b).zip(c) {
                for i in 0..LANES {
                    sums[i] += f(a[i], b[i], c[i]);
                }
            }
            for (((s, a), b), c) in sums.iter_mut().zip(rest_a).zip(rest_b).zip(rest_c) {
                *s += f(*a, *b, *c);
            }
            sums.iter().sum()
        },
    )
}

/// Sum and sum of squares, in float64 and an order that does not depend on the machine.
pub fn moments(values: &[f32]) -> (f64, f64) {
    const PARTS: usize = 8;
    let (whole, remainder) = values.as_chunks::<PARTS>();
    let mut rest = [0f32; PARTS];
    rest[..remainder.len()].copy_from_slice(remainder);
    let (sum, square) = wide(
        #[inline(always)]
        move || {
            let (mut sum, mut square) = ([0f64; PARTS], [0f64; PARTS]);
            for part in whole.iter().chain(std::iter::once(&rest)) {
                for i in 0..PARTS {
                    let v = part[i] as f64;
                    sum[i] += v;
                    square[i] += v * v;
                }
            }
            (sum, square)
        },
    );
    (sum.iter().sum(), square.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_the_sum_once() {
        for n in [0usize, 1, 7, 8, 9, 100] {
            let [a, b, c] = [1.0, 10.0, 100.0].map(|k| (0..n).map(|i| i as f32 * k).collect::<Vec<f32>>());
            assert_eq!(sum_of(&a, &b, &c, |a, b, c| (a + b + c) as f64), 111.0 * (n * n.saturating_sub(1) / 2) as f64, "{n}");
        }
    }
}
