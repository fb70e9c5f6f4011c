//! How many bits each tensor gets.

mod fewest;
mod layers;
mod mixed;
mod raise;
mod sensitivity;
mod trace;
mod widen;

pub use fewest::{Fewest, Outcome, Raised, fewest};
pub use mixed::{Allocate, Amount, Latencies, Strategy, allocate};
pub use raise::{Unit, added_bytes, bit_operations_of, noises, units};
pub use sensitivity::Sensitivity;
pub use trace::DRAWS;
pub use widen::{Widen, widen};
