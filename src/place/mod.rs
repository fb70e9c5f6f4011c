//! Where quantizers stand, and under which scheme: the target's rules, then the recipe's wishes, applied to every node.
//! Nothing is deleted from the graph here. Every decision is kept with its rule, so that it can be explained.

mod dynamic;
mod exact;
mod fused;
mod heads;
mod insert;
mod kind;
mod plan;
mod retarget;
mod standing;
mod suits;
#[cfg(test)]
mod tests;
mod wishes;

pub use kind::Kind;
pub use plan::{Decision, Plan, plan};
pub use retarget::{Retarget, retarget};
pub use standing::{Held, Standing, is_quantized, take_off};

use crate::error::Result;
use crate::graph::Model;
use crate::note::Notes;
use crate::target::{Override, Profile, SchemeKeys};

/// Everything that placing asks for besides the model.
pub struct Rules<'a> {
    pub profile: &'a Profile,
    /// `None`: weights stay float.
    pub weights: Option<&'a SchemeKeys>,
    /// `None`: only weights are quantized.
    pub activations: Option<&'a SchemeKeys>,
    pub bias: &'a SchemeKeys,
    pub overrides: &'a [Override],
}

/// Puts FakeQuant nodes where the rules want them, and their quantizers into the table.
pub fn place(model: &mut Model, rules: &Rules) -> Result<(Notes, Vec<Decision>)> {
    let plan = plan(model, rules)?;
    let notes = plan.notes.clone();
    let decisions = plan.decisions.clone();
    insert::insert(model, plan)?;
    Ok((notes, decisions))
}
