//! Target profiles.
pub mod spelling;
