//! Vectors that a thread uses again: a pass over a sample needs the same sizes as the one before, and fresh memory costs more than filling it does.

use std::cell::RefCell;

/// Numbers that a thread keeps at most, and vectors too small to be worth it.
const KEPT: usize = 32 << 20;
const SMALL: usize = 4 << 10;

#[derive(Default)]
struct Pool {
    vectors: Vec<Vec<f32>>,
    numbers: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// An empty vector with room for `len` numbers.
pub(super) fn empty(len: usize) -> Vec<f32> {
    let fits = |v: &Vec<f32>| v.capacity() >= len && v.capacity() <= 2 * len;
    let used = (len >= SMALL).then(|| {
        POOL.with_borrow_mut(|pool| {
            let at = pool.vectors.iter().rposition(fits)?;
            let v = pool.vectors.swap_remove(at);
            pool.numbers -= v.capacity();
            Some(v)
        })
    });
    used.flatten().unwrap_or_else(|| Vec::with_capacity(len))
}

pub(super) fn zeros(len: usize) -> Vec<f32> {
    let mut v = empty(len);
    v.resize(len, 0.0);
    v
}

pub(super) fn copy(of: &[f32]) -> Vec<f32> {
    collect(of.len(), of.iter().copied())
}

/// `len` numbers.
pub(super) fn collect(len: usize, numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut v = empty(len);
    v.extend(numbers);
    v
}

/// Takes a vector that nobody needs any more.
pub(super) fn give_back(mut v: Vec<f32>) {
    if v.capacity() < SMALL {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        if pool.numbers + v.capacity() <= KEPT {
            v.clear();
            pool.numbers += v.capacity();
            pool.vectors.push(v);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_used_again_and_forgotten() {
        let v: Vec<f32> = collect(5000, (0..5000).map(|i| i as f32));
        let at = v.as_ptr();
        give_back(v);
        let small = empty(2000);
        assert_ne!(small.as_ptr(), at, "too small a vector to be kept");
        let v = zeros(4500);
        assert!(v.as_ptr() == at && v.len() == 4500 && v.iter().all(|x| *x == 0.0));
        give_back(v);
        give_back(Vec::with_capacity(KEPT));
        assert!(POOL.with_borrow(|p| p.numbers < KEPT && p.vectors.len() == 1));
    }
}
