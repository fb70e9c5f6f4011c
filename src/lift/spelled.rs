//! Dequantization spelled out → FakeQuant without input: `Mul(Sub(number, zero), scale)`, the number being `Gather(table, Cast(codes))`, or, with a zero,
//! `Cast(codes)`. Scales and zeros are one number, one a channel, or, by a Gather of their own, in blocks along one axis.

use super::params::{params, scale_numbers, scheme};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeId, Op, ValueId};
use crate::quant::{Blocks, Curve, Format, NF4, Params, Zeros};
use crate::tensor::{DType, Tensor};

/// Whether any node of the graph ends such a chain.
pub fn any(g: &Graph) -> bool {
    g.nodes().any(|(id, _)| is_at(g, id))
}

/// Whether a node does.
pub fn is_at(g: &Graph, id: NodeId) -> bool {
    parts(g, id).is_some()
}

struct Parts {
    codes: Tensor,
    table: Option<Vec<f32>>,
    zero: Option<ValueId>,
    scale: ValueId,
    blocks: Blocks,
}

fn maker(g: &Graph, v: ValueId, op: Op) -> Option<&Node> {
    g.value(v).producer().map(|(n, _)| g.node(n)).filter(|n| n.op == op)
}

fn parts(g: &Graph, id: NodeId) -> Option<Parts> {
    let n = g.node(id);
    let (a, b) = (n.input(0).filter(|_| n.op == Op::Mul)?, n.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(centred, scale)| {
        let (numbers, zero) = match maker(g, centred, Op::Sub) {
            Some(sub) => (sub.input(0)?, Some(sub.input(1)?)),
            None => (centred, None),
        };
        let (table, cast) = match maker(g, numbers, Op::Gather) {
            Some(gather) if gather.int("axis").unwrap_or(0) == 0 => (Some(&g.constant(gather.input(0)?)?.tensor), maker(g, gather.input(1)?, Op::Cast)?),
            Some(_) => return None,
            None => (None, maker(g, numbers, Op::Cast).filter(|c| zero.is_some() && c.int("to") == Some(DType::F32.onnx() as i64))?),
        };
        let codes = &g.constant(cast.input(0)?)?.tensor;
        let table = match table {
            Some(t) => {
                let book = matches!(codes.dtype(), DType::U2 | DType::U4 | DType::U8) && t.rank() == 1 && t.dtype() == DType::F32;
                let fits = |t: &[f32]| book && t.len() <= 1 << codes.dtype().bits() && t.is_sorted() && t.iter().all(|x| x.is_finite());
                Some(t.to_f32().ok().filter(|t| fits(t))?.to_vec())
            }
            None => None,
        };
        if !matches!(codes.dtype(), DType::U2 | DType::U4 | DType::U8 | DType::I2 | DType::I4 | DType::I8) {
            return None;
        }
        let (scale, blocks) = along(g, scale, codes.shape())?;
        let zero = match zero.map(|z| along(g, z, codes.shape())) {
            None => None,
            Some(Some((z, own))) if own == blocks || own.is_tensor() => Some(z),
            Some(_) => return None,
        };
        Some(Parts { codes: codes.clone(), table, zero, scale, blocks })
    })
}

/// The constant value of scales or zeros, and what they are for.
fn along(g: &Graph, v: ValueId, shape: &[usize]) -> Option<(ValueId, Blocks)> {
    let stored = |v: ValueId| g.constant(maker(g, v, Op::Cast).and_then(|n| n.input(0)).unwrap_or(v)).map(|c| c.tensor.shape());
    if let Some(own) = stored(v) {
        let long: Vec<usize> = (0..own.len()).filter(|a| own[*a] != 1).collect();
        return match long[..] {
            [] => Some((v, Blocks::tensor())),
            [axis] if own.len() == shape.len() && own[axis] == shape[axis] => Some((v, Blocks::channel(axis as i32))),
            _ => None,
        };
    }
    let gather = maker(g, v, Op::Gather)?;
    let (data, axis) = (gather.input(0)?, usize::try_from(gather.int("axis").unwrap_or(0)).ok()?);
    let block = g.constant(gather.input(1)?)?.tensor.to_i64().ok()?;
    let size = block.iter().take_while(|b| **b == 0).count();
    let blocks = Blocks::block(i32::try_from(axis).ok()?, size.max(1));
    let fits = shape.get(axis) == Some(&block.len()) && size > 0 && block.iter().enumerate().all(|(i, b)| *b == (i / size) as i64);
    (fits && stored(data)? == blocks.layout(shape).ok()?.grid).then_some((data, blocks))
}

/// Rewrites such a node.
pub fn mul(w: &mut Work, id: NodeId) -> Result<()> {
    let (Some(Parts { codes, table, zero, scale, blocks }), Some(y)) = (parts(w.g, id), w.g.node(id).output(0)) else {
        return Err(Error::failed("it ends no spelled-out dequantization"));
    };
    let mut known = |v: ValueId| w.stored_scale(v).ok_or_else(|| Error::failed("its scale is no constant"));
    let (scales, kind) = scale_numbers(&known(scale)?)?;
    let zeros = match zero {
        Some(z) => Zeros::Real(known(z)?.to_f32()?.into_owned()),
        None => Zeros::None,
    };
    let format = match &table {
        Some(t) if t[..] == NF4 => Format::NF4,
        Some(_) => Format::codebook(codes.dtype().bits() as u8),
        None => Format::of_dtype(codes.dtype()).ok_or_else(|| Error::failed("its codes have no format"))?,
    };
    w.take(id);
    let name = w.name(y);
    let q = w.all.table.add(&name, scheme(format, kind, &zeros, blocks));
    let curve = table.map_or(Curve::Linear, |t| Curve::Table(t.into()));
    w.all.table[q].params = Some(Params { curve, ..params(scales, zeros) });
    w.constant_real(codes, q, DType::F32, Some(y), &name)?;
    Ok(())
}
