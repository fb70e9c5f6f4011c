//! Which code stands for each weight.

use crate::error::{At, Error, Result};
use crate::graph::{Model, Op, Site};
use crate::note::Notes;
use crate::quant;

/// Gives every constant the nearest code of its quantizer. Sites that have codes keep them.
pub fn round_nearest(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let mut count = 0u64;
    for (node, id) in model.constant_sites() {
        if model.codes.contains_key(&Site::of(node)) {
            continue;
        }
        crate::interrupt::check()?;
        let quantizer = &model.quantizers[model.quantizers.root(id)];
        let value = model.graph.node(node).input(0).expect("a FakeQuant node reads something");
        let constant = model.graph.constant(value).expect("it is a constant site");
        let params = quantizer.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `round`")).at(|| &quantizer.name)?;
        let codes = quant::quantize(&constant.tensor.to_f32()?, constant.tensor.shape(), &quantizer.scheme, params).at(|| &quantizer.name)?;
        count += constant.tensor.len() as u64;
        model.codes.insert(Site::of(node), codes);
    }
    debug_assert!(model.graph.nodes().all(|(_, n)| n.op != Op::FakeQuant || n.quantizer().is_some()));
    notes.changed("", format!("{count} weights rounded to their nearest codes"));
    Ok(notes)
}
