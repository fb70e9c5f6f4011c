//! Integer vectors of which only some elements are known, as Shape of a tensor with a symbolic batch gives them.

use super::Fact;
use crate::graph::eval::{axis_of, shape_window, slice_axis};
use crate::graph::{Dim, Node, Op};

type Elements = Vec<Option<i64>>;

/// The elements of a node's first output, if it is such a vector.
pub fn elements(node: &Node, inputs: &[Option<&Fact>]) -> Option<Elements> {
    let x = inputs.first().copied().flatten()?;
    let ints = |slot: usize| inputs.get(slot).copied().flatten().and_then(|f| f.constant.as_ref()).and_then(|t| t.to_i64().ok());
    match node.op {
        Op::Shape => {
            let dims = x.shape.as_ref()?;
            let (a, b) = shape_window(node.int("start"), node.int("end"), dims.len());
            Some(dims[a..b].iter().map(|d| if let Dim::Known(n) = d { Some(*n as i64) } else { None }).collect())
        }
        Op::Identity | Op::Cast | Op::Squeeze | Op::Unsqueeze | Op::Reshape => {
            let e = x.elements()?;
            (node.op != Op::Cast || node.int("to") == Some(7)).then_some(e)
        }
        Op::Gather => {
            let (e, index) = (x.elements()?, ints(1)?);
            (x.rank() == Some(1)).then(|| index.iter().map(|i| axis_of(*i, e.len()).and_then(|i| e[i])).collect())
        }
        Op::Concat => {
            let parts: Option<Vec<Elements>> = inputs.iter().map(|f| (*f)?.elements()).collect();
            let vectors = inputs.iter().flatten().all(|f| f.rank() == Some(1));
            parts.filter(|_| vectors).map(|p| p.concat())
        }
        Op::Slice => {
            let e = x.elements().filter(|_| x.rank() == Some(1))?;
            let attr = |slot: usize, name: &str| ints(slot).or_else(|| node.ints(name).map(<[i64]>::to_vec));
            let (start, end) = (*attr(1, "starts")?.first()?, *attr(2, "ends")?.first()?);
            let step = attr(4, "steps").map_or(Some(1), |s| s.first().copied())?;
            let (first, count) = slice_axis(e.len(), start, end, step)?;
            Some((0..count as i64).map(|i| e[(first as i64 + i * step) as usize]).collect())
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            let (a, b) = (x.elements()?, inputs.get(1).copied().flatten()?.elements()?);
            let n = a.len().max(b.len());
            if (a.len() != n && a.len() != 1) || (b.len() != n && b.len() != 1) {
                return None;
            }
            let at = |v: &Elements, i: usize| if v.len() == 1 { v[0] } else { v[i] };
            let each = |i: usize| {
                let (p, q) = (at(&a, i)?, at(&b, i)?);
                match node.op {
                    Op::Add => p.checked_add(q),
                    Op::Sub => p.checked_sub(q),
                    Op::Mul => p.checked_mul(q),
                    _ => p.checked_div(q),
                }
            };
            Some((0..n).map(each).collect())
        }
        _ => None,
    }
}
