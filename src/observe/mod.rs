//! Statistics that accumulate over a stream of tensors. Merging two observers gives what one over both streams would have,
//! in any order, so results do not depend on threads.

mod beside;
mod extremes;
mod histogram;
mod sums;

pub use beside::{Beside, Turn};
pub use extremes::Extremes;
pub use histogram::Histogram;
pub use sums::{Db, Sums};
