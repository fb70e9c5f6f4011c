//! What a model is rewritten to before tract gets it: what tract would do wrongly, or cannot do, said in other words.

use crate::error::Result;
use crate::graph::{Graph, Model, Op};

/// Rewrites a specialised model.
pub fn prepare(model: &mut Model) -> Result<()> {
    take_constants(&mut model.graph);
    Ok(())
}

/// Constant nodes become constants, which never go through protobuf.
fn take_constants(g: &mut Graph) {
    for id in g.order().to_vec() {
        let n = g.node(id);
        let Some(value) = n.output(0) else { continue };
        if n.op == Op::Constant
            && let Some(c) = g.constant(value).cloned()
        {
            g.remove_node(id);
            g.value_mut(value).constant = Some(c);
        }
    }
}
