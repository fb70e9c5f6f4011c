//! Loops compiled for the registers of the machine they run on.

use faer::traits::pulp;

/// What `f` returns, with its loops compiled for the widest registers that this machine has. The bytes are the same on every machine: no sum is taken in
/// another order, and no product is fused. `f`, and all that it calls, must be marked `#[inline(always)]`; what is not inlined gains nothing.
#[inline(always)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
