//! Gradients, and nothing else of them anywhere: a tape that records float32 operations, pieces of a model as functions that record themselves on it,
//! and the optimiser that follows.
//!
//! A [`Tape`] holds one sample (or one batch); samples run beside each other, each on its own ([`over_batch`]). A [`Segment`] is what lies between some
//! values of a model and others, FakeQuant included, with the engine's numbers.

mod adam;
mod batch;
mod buffers;
mod conv;
mod depthwise;
mod elementwise;
mod fake_quant;
mod loss;
mod matmul;
mod moves;
mod norm;
mod ops;
mod pool;
mod segment;
#[cfg(test)]
mod segment_tests;
mod soft_round;
mod tape;
#[cfg(test)]
mod tests;

pub use adam::Adam;
pub use batch::over_batch;
pub use conv::Window;
pub use moves::{FILLED, Taps};
pub use segment::{Scales, Segment};
pub use soft_round::SoftRound;
pub use tape::{Grads, Tape, Var};
