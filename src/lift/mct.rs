//! Sony's mct_quantizers: operators that round floats to a grid whose scale is `threshold / 2^(num_bits − signed)`.

use super::params::{params, scheme};
use super::qdq::{made, need};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeId, Op};
use crate::quant::{self, Blocks, Format, QuantizerId, ScaleKind, Zeros};
use crate::tensor::DType;

/// A quantizer operator → FakeQuant, which takes its place; over a constant, with its codes.
pub fn quantizer(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (x, y) = (need(&n, 0)?, made(&n, 0)?);
    let signed = n.int("signed").unwrap_or(1) != 0;
    let bits = n.int("num_bits").and_then(|b| u8::try_from(b).ok()).filter(|b| (1..=16).contains(b));
    let bits = bits.ok_or_else(|| Error::usage("its num_bits is no number from 1 to 16"))?;
    let half = 2f32.powi(bits as i32 - signed as i32);
    let weights = matches!(n.op, Op::WeightsPOTQuantizer | Op::WeightsSymmetricQuantizer);
    let thresholds = match weights {
        true => need(&n, 1).map(|v| w.constant(v))?.ok_or_else(|| Error::usage("its threshold is no constant"))?.to_f32()?.into_owned(),
        false => vec![n.float("threshold").ok_or_else(|| Error::usage("it has no threshold"))?],
    };
    let scale: Vec<f32> = thresholds.iter().map(|t| t / half).collect();
    if scale.is_empty() || scale.iter().any(|s| !(*s > 0.0 && s.is_finite())) {
        return Err(Error::usage("its threshold is no positive number"));
    }
    let blocks = match (weights && n.int("per_channel").unwrap_or(0) != 0, n.int("channel_axis").map(i32::try_from)) {
        (false, _) => Blocks::tensor(),
        (true, Some(Ok(axis))) => Blocks::channel(axis),
        (true, _) => return Err(Error::usage("it is per channel, and names no channel_axis")),
    };
    if blocks.is_tensor() && scale.len() != 1 {
        return Err(Error::usage(format!("it has {} thresholds, and is not per channel", scale.len())));
    }
    let pow2 = matches!(n.op, Op::ActivationPOTQuantizer | Op::WeightsPOTQuantizer);
    let kind = if pow2 { ScaleKind::Pow2(DType::F32) } else { ScaleKind::Exact(DType::F32) };
    let name = w.g.value(x).name.clone();
    let (scheme, params) = (scheme(Format::Int { bits, signed, narrow: false }, kind, &Zeros::None, blocks), params(scale, Zeros::None));
    let codes = match weights {
        true => {
            let t = w.constant(x).ok_or_else(|| Error::usage("it quantizes weights, and reads no constant"))?;
            Some(quant::quantize(&t.to_f32()?, t.shape(), &scheme, &params)?)
        }
        false => None,
    };
    let q: QuantizerId = w.all.table.add(&name, scheme);
    w.all.table[q].params = Some(params);
    let inputs = if codes.is_some() { vec![] } else { vec![Some(x)] };
    let fake = w.emit_into(Node::fake_quant(q, n.name.clone()), &inputs, y);
    if let Some(codes) = codes {
        let site = w.site(fake);
        w.all.codes.insert(site, codes);
    }
    Ok(())
}
