//! How many bits each tensor gets.

mod widen;

pub use widen::{Widen, widen};
