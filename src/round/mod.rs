//! Which code stands for each weight.

mod adaquant;
#[cfg(test)]
mod adaquant_tests;
mod biases;
mod correct_bias;
mod factor;
mod gptq;
mod grid;
mod hqq;
mod inputs;
mod k_quant;
mod moments;
mod reconstruct;
#[cfg(test)]
mod reconstruct_tests;
mod refit;
mod samples;
mod scales;
mod task;
#[cfg(test)]
mod testing;
mod tune_batch_norm;
mod tune_bias;
mod units;

pub use adaquant::{AdaQuant, adaquant};
pub use biases::Biases;
pub use correct_bias::{CorrectBias, JUDGES, correct_bias};
pub use gptq::{Gptq, gptq};
pub use hqq::hqq;
pub use inputs::{Gather, Gathered};
pub use k_quant::k_quant;
pub use reconstruct::{Reconstruct, reconstruct};
pub use task::{Iterations, Visits, steps};
pub use tune_batch_norm::{TuneBatchNorm, tune_batch_norm};
pub use tune_bias::{TuneBias, tune_bias};

use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId, Op, Site};
use crate::note::Notes;
use crate::quant::{self, Codes, QuantizerId};
use rayon::prelude::*;

/// Gives every constant the nearest code of its quantizer. Sites that have codes keep them.
pub fn round_nearest(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("round");
    let open: Vec<_> = model.constant_sites().into_iter().filter(|(node, _)| !model.codes.contains_key(&Site::of(*node))).collect();
    let shared: &Model = model;
    let codes = open.par_iter().map(|&(node, id)| nearest(shared, node, id)).collect::<Result<Vec<_>>>()?;
    let count: usize = codes.iter().map(|c| c.0.len()).sum();
    model.codes.extend(open.iter().map(|(node, _)| Site::of(*node)).zip(codes));
    debug_assert!(model.graph.nodes().all(|(_, n)| n.op != Op::FakeQuant || n.quantizer().is_some()));
    notes.changed("", format!("{count} weights rounded to their nearest codes"));
    Ok(notes)
}

/// The codes of one constant.
fn nearest(model: &Model, node: NodeId, id: QuantizerId) -> Result<Codes> {
    crate::interrupt::check()?;
    let quantizer = &model.quantizers[model.quantizers.root(id)];
    let constant = model.graph.node(node).input(0).and_then(|v| model.graph.constant(v));
    let constant = constant.ok_or_else(|| Error::failed("reads no constant")).at(|| &quantizer.name)?;
    let params = quantizer.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `round`")).at(|| &quantizer.name)?;
    let shape = constant.tensor.shape();
    let mut x = constant.tensor.to_f32().at(|| &quantizer.name)?;
    // A table whose rows are moved to another quantizer holds what that one will make of them: they are rounded once, not twice.
    let again = model.graph.node(node).output(0).and_then(|v| model.moved_to(v)).map(|id| &model.quantizers[id]);
    if let Some(later) = again.filter(|q| q.scheme.blocks.is_tensor() && q.params.is_some()) {
        quant::fake_quantize(x.to_mut(), shape, &later.scheme, later.params.as_ref()).at(|| &later.name)?;
    }
    quant::quantize(&x, shape, &quantizer.scheme, params).at(|| &quantizer.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::quant::{Blocks, Params, Scheme};
    use crate::tensor::Tensor;

    /// table → FakeQuant per row → Gather → FakeQuant: what leaves the Gather is the nearest code of the second, though the first has other scales.
    #[test]
    fn a_table_that_is_rounded_again_is_rounded_once() {
        let mut m = Model::default();
        let rows = m.quantizers.add("table", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
        let out = m.quantizers.add("out", Scheme::int(8, true));
        let x: Vec<f32> = (0..400).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0).map(|u| u * 0.9).collect();
        m.quantizers[rows].params = Some(Params { scale: (0..4).map(|i| 0.9 / 127.0 * (1.0 - 0.09 * i as f32)).collect(), ..Params::tensor(1.0, None) });
        m.quantizers[out].params = Some(Params::tensor(1.0 / 127.0, None));
        let x: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * (1.0 - 0.09 * (i / 100) as f32)).collect();
        let g = &mut m.graph;
        let table = g.add_constant("table", Tensor::of_f32(&[4, 100], x.clone()));
        let [t, i, e, y] = ["t", "i", "e", "y"].map(|n| g.add_value(n));
        let site = Site::of(g.add_node(Node::fake_quant(rows, ""), &[Some(table)], &[Some(t)]));
        g.add_node(Node::new(Op::Gather, ""), &[Some(t), Some(i)], &[Some(e)]);
        g.add_node(Node::fake_quant(out, ""), &[Some(e)], &[Some(y)]);
        round_nearest(&mut m).unwrap();
        let again = |id: QuantizerId, x: &[f32]| quant::quantize(x, &[4, 100], &m.quantizers[id].scheme, m.quantizers[id].params.as_ref().unwrap()).unwrap();
        let stands = quant::dequantize(&m.codes[&site], &m.quantizers[rows].scheme, m.quantizers[rows].params.as_ref().unwrap()).unwrap();
        assert_eq!(again(out, &stands).unpack(), again(out, &x).unpack());
        let twice = quant::dequantize(&again(rows, &x), &m.quantizers[rows].scheme, m.quantizers[rows].params.as_ref().unwrap()).unwrap();
        assert_ne!(again(out, &twice).unpack(), again(out, &x).unpack(), "the plain nearest codes are rounded twice");
    }

    #[test]
    fn every_weight_gets_its_nearest_code_and_codes_that_stand_are_kept() {
        let mut m = Model::default();
        let q = m.quantizers.add("w", Scheme::int(8, true));
        let mut sites = Vec::new();
        for i in 0..20 {
            let w = m.graph.add_constant(&format!("w{i}"), Tensor::of_f32(&[3], vec![0.26 * i as f32, -1.0, 100.0]));
            let y = m.graph.add_value(&format!("y{i}"));
            sites.push(Site::of(m.graph.add_node(Node::fake_quant(q, ""), &[Some(w)], &[Some(y)])));
        }
        assert!(round_nearest(&mut m).unwrap_err().to_string().contains("`calibrate` must stand before"));
        m.quantizers[q].params = Some(Params::tensor(0.5, None));
        let kept = quant::quantize(&[0.0, 0.5, 1.0], &[3], &m.quantizers[q].scheme, m.quantizers[q].params.as_ref().unwrap()).unwrap();
        m.codes.insert(sites[7].clone(), kept.clone());
        round_nearest(&mut m).unwrap();
        for (i, site) in sites.iter().enumerate() {
            let want = if i == 7 { kept.unpack() } else { vec![(0.52 * i as f32).round_ties_even() as i32, -2, 127] };
            assert_eq!(m.codes[site].unpack(), want, "{i}");
        }
    }
}
