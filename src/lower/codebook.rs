//! Codebooks in ONNX's own ops: a table, gathered from by the codes, times the scale of each code's block.
//!
//! `Mul(Gather(table, Cast(codes)), scale)`; scales in blocks are themselves gathered, one index for each place along the blocked axis.
//! Needs: codes. Declines: nothing; what this cannot say was refused when the opset was asked for.

use super::qdq::write_scale;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Op, ValueId};
use crate::quant::{Codes, Curve, Params, ScaleKind, Scheme};
use crate::tensor::{DType, Tensor};

/// Makes `y` of the codes, before position `at`.
pub fn write(g: &mut Graph, mut at: usize, name: &str, codes: &Codes, scheme: &Scheme, params: &Params, y: ValueId) -> Result<()> {
    let (Curve::Table(table), ScaleKind::Exact(dtype) | ScaleKind::Pow2(dtype)) = (&params.curve, &scheme.scale) else {
        return Err(Error::failed("a codebook without its table"));
    };
    let shape = codes.0.shape().to_vec();
    let layout = scheme.blocks.layout(&shape)?;
    let one = params.scale.len() == 1;
    let grid = if one { &[][..] } else { &layout.grid };
    let mut add = |g: &mut Graph, op: Node, inputs: &[ValueId], out: ValueId| {
        let inputs: Vec<_> = inputs.iter().map(|v| Some(*v)).collect();
        g.insert_node(at, op, &inputs, &[Some(out)]);
        at += 1;
    };
    let stored = g.add_constant(&format!("{name}_quantized"), codes.0.clone());
    let entries = g.add_constant(&format!("{name}_table"), Tensor::of_f32(&[table.len()], table.to_vec()));
    let (indices, values) = (g.add_value(&format!("{name}_indices")), g.add_value(&format!("{name}_entries")));
    add(g, Node::new(Op::Cast, format!("{name}_Cast")).with("to", DType::I32.onnx() as i64), &[stored], indices);
    add(g, Node::new(Op::Gather, format!("{name}_Gather")).with("axis", 0i64), &[entries, indices], values);
    let mut scale = write_scale(g, &mut at, &format!("{name}_scale"), grid, params.scale.clone(), *dtype)?;
    if let (Some((axis, size)), false) = (scheme.blocks.block_axis(), one) {
        let axis = if axis < 0 { axis + shape.len() as i32 } else { axis } as usize;
        let block = (0..shape[axis]).map(|i| (i / size) as i64).collect();
        let block = g.add_constant(&format!("{name}_block"), Tensor::of_i64(&[shape[axis]], block));
        let each = g.add_value(&format!("{name}_scales"));
        let gather = Node::new(Op::Gather, format!("{name}_scale_Gather")).with("axis", axis as i64);
        g.insert_node(at, gather, &[Some(scale), Some(block)], &[Some(each)]);
        (scale, at) = (each, at + 1);
    }
    g.insert_node(at, Node::new(Op::Mul, format!("{name}_Mul")), &[Some(values), Some(scale)], &[Some(y)]);
    Ok(())
}
