//! Edits that rewrites of weights share.

use crate::error::Result;
use crate::graph::{Constant, Graph, NodeId, ValueId};
use crate::tensor::Tensor;

/// Gives a slot a new constant: under the old one's name if nobody else reads that.
pub fn replace(g: &mut Graph, node: NodeId, slot: usize, what: &str, tensor: Tensor) {
    let old = g.node(node).input(slot);
    match old {
        Some(v) if g.value(v).uses().len() == 1 && g.value(v).constant.is_some() && !g.inputs.contains(&v) && !g.is_output(v) => {
            g.value_mut(v).constant = Some(Constant::from(tensor))
        }
        _ => {
            let name = old.map_or_else(|| format!("{}_{what}", g.node(node).name), |v| format!("{}_folded", g.value(v).name));
            let v = g.add_constant(&name, tensor);
            g.set_input(node, slot, Some(v));
        }
    }
}

/// The same, number by number: the constant at the slot with its `i`-th becoming `by(i, number)`. `what`: as for [`replace`].
pub fn replace_each(g: &mut Graph, node: NodeId, slot: usize, what: &str, by: impl Fn(usize, f32) -> f32) -> Result<()> {
    let Some(old) = g.node(node).input(slot).and_then(|v| g.constant(v)).map(|c| &c.tensor) else { return Ok(()) };
    let new = Tensor::of_f32(old.shape(), old.to_f32()?.iter().enumerate().map(|(i, x)| by(i, *x)).collect());
    replace(g, node, slot, what, new);
    Ok(())
}

/// Gives values that hold other numbers now other names.
pub fn rename(g: &mut Graph, values: impl IntoIterator<Item = ValueId>, what: &str) {
    for v in values {
        let name = g.fresh_name(&format!("{}_{what}", g.value(v).name));
        g.rename_value(v, &name);
    }
}
