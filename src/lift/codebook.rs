//! Constant codes that pick entries of a table, times scales, → FakeQuant without input: `Mul(Gather(table, Cast(codes)), scale)`. Scales are one number,
//! one a channel, or, by a Gather of their own, in blocks along one axis.

use super::params::{params, scale_numbers, scheme};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeId, Op, ValueId};
use crate::quant::{Blocks, Curve, Format, NF4, Params, Zeros};
use crate::tensor::{DType, Tensor};

/// Whether any node of the graph reads a codebook.
pub fn any(g: &Graph) -> bool {
    g.nodes().any(|(id, _)| is_at(g, id))
}

/// Whether a node multiplies what a table gives with constant scales.
pub fn is_at(g: &Graph, id: NodeId) -> bool {
    parts(g, id).is_some()
}

/// Codes, table and scale.
struct Parts {
    codes: Tensor,
    table: Vec<f32>,
    scale: ValueId,
    blocks: Blocks,
}

fn maker(g: &Graph, v: ValueId, op: Op) -> Option<&Node> {
    g.value(v).producer().map(|(n, _)| g.node(n)).filter(|n| n.op == op)
}

fn parts(g: &Graph, id: NodeId) -> Option<Parts> {
    let n = g.node(id);
    let (a, b) = (n.input(0).filter(|_| n.op == Op::Mul)?, n.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(values, scale)| {
        let gather = maker(g, values, Op::Gather).filter(|n| n.int("axis").unwrap_or(0) == 0)?;
        let table = &g.constant(gather.input(0)?)?.tensor;
        let cast = maker(g, gather.input(1)?, Op::Cast)?;
        let codes = &g.constant(cast.input(0)?)?.tensor;
        let book = matches!(codes.dtype(), DType::U2 | DType::U4 | DType::U8) && table.rank() == 1 && table.dtype() == DType::F32;
        let table = table.to_f32().ok().filter(|t| book && t.len() <= 1 << codes.dtype().bits() && t.is_sorted() && t.iter().all(|x| x.is_finite()))?;
        let (scale, blocks) = scales(g, scale, codes.shape())?;
        Some(Parts { codes: codes.clone(), table: table.to_vec(), scale, blocks })
    })
}

/// The value that holds the scales, and what they are for.
fn scales(g: &Graph, v: ValueId, shape: &[usize]) -> Option<(ValueId, Blocks)> {
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
    let blocks = Blocks::block(axis as i32, size.max(1));
    let fits = shape.get(axis) == Some(&block.len()) && size > 0 && block.iter().enumerate().all(|(i, b)| *b == (i / size) as i64);
    (fits && stored(data)? == blocks.layout(shape).ok()?.grid).then_some((data, blocks))
}

/// Rewrites such a node.
pub fn mul(w: &mut Work, id: NodeId) -> Result<()> {
    let (Some(Parts { codes, table, scale, blocks }), Some(y)) = (parts(w.g, id), w.g.node(id).output(0)) else {
        return Err(Error::failed("it is no codebook"));
    };
    let scale = w.stored_scale(scale).ok_or_else(|| Error::failed("its scale is no constant"))?;
    let (scales, kind) = scale_numbers(&scale)?;
    let format = if table[..] == NF4 { Format::NF4 } else { Format::codebook(codes.dtype().bits() as u8) };
    w.take(id);
    let name = w.name(y);
    let q = w.all.table.add(&name, scheme(format, kind, &Zeros::None, blocks));
    w.all.table[q].params = Some(Params { curve: Curve::Table(table.into()), ..params(scales, Zeros::None) });
    w.constant_real(codes, q, DType::F32, Some(y), &name)?;
    Ok(())
}
