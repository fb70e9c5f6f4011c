//! Loops compiled for the registers of the machine they run on.

use faer::traits::pulp;

/// What `f` returns; loops inside it are compiled for the widest registers that this machine has, and give the same bytes on every one: no sum is
/// taken in another order, and no product is fused. Closures and functions that are called in it must be inlined to gain.
#[inline(always)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
