//! The engine: runs a model, or any part of it, on the CPU. The only room that knows tract.
//!
//! A [`Runner`] is one optimised plan for fixed input shapes; a [`State`] is what one thread needs to run it. FakeQuant reads the
//! quantizer table it is given at each run, so a plan serves every scale and bit width. What tract cannot run, or would run wrongly
//! without saying so, is named node by node before any work is done ([`check_supported`]).

mod fake_quant;
mod narrow;
mod patches;
mod piece;
mod planning;
mod plans;
mod prepare;
mod proto;
mod reverse;
mod runner;
mod samples;
mod segment;
mod staged;
mod support;
mod tensors;
#[cfg(test)]
mod tests;
mod trial;
mod walk;
mod weights;

/// Engines that models may run in.
pub const NAMES: [&str; 1] = ["tract"];

pub use patches::Patches;
pub use plans::{Plans, Running, shapes_of};
pub use runner::{Runner, RunnerOptions, State};
pub use samples::{each_sample, over_samples};
pub use segment::{Given, cut, cut_at};
pub use staged::Staged;
pub use support::{check_supported, label};
pub use trial::{Probe, Trial};
pub use walk::Walk;
