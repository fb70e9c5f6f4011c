//! What DequantizeLinear cannot say, spelled out: codebooks and real zero points of constants.
//!
//! `Mul(Sub(number, zero), scale)`, the number being `Gather(table, Cast(codes))` or `Cast(codes)`; without a zero point no Sub. Scales and zero points in
//! blocks are themselves gathered, one index for each place along the blocked axis.
//! Needs: codes. Declines: nothing; what this cannot say was refused when the opset was asked for.

use super::qdq::write_scale;
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Op, ValueId};
use crate::quant::{Codes, Curve, Layout, Params, ScaleKind, Scheme, Zeros};
use crate::tensor::{DType, Tensor};

/// Makes `y` of the codes, before position `at`.
pub fn write(g: &mut Graph, at: usize, name: &str, codes: &Codes, scheme: &Scheme, params: &Params, y: ValueId) -> Result<()> {
    let (ScaleKind::Exact(dtype) | ScaleKind::Pow2(dtype)) = &scheme.scale else {
        return Err(Error::failed("scales that are codes cannot be spelled out"));
    };
    let mut s = Speller { g, at, name, layout: scheme.blocks.layout(codes.0.shape())?, blocks: scheme.blocks.block_axis(), block: None };
    let stored = s.g.add_constant(&format!("{name}_quantized"), codes.0.clone());
    let cast = |to: DType| Node::new(Op::Cast, format!("{name}_Cast")).with("to", to.onnx() as i64);
    let mut numbers = match &params.curve {
        Curve::Linear => s.node(cast(DType::F32), &[stored], "numbers"),
        Curve::Table(table) => {
            let indices = s.node(cast(DType::I32), &[stored], "indices");
            let table = s.g.add_constant(&format!("{name}_table"), Tensor::of_f32(&[table.len()], table.to_vec()));
            s.node(Node::new(Op::Gather, format!("{name}_Gather")).with("axis", 0i64), &[table, indices], "numbers")
        }
        Curve::Power(_) => return Err(Error::failed("a power curve has no spelling")),
    };
    if let Zeros::Real(z) = &params.zero {
        let zero = s.each(z.clone(), DType::F32, "zero_point")?;
        numbers = s.node(Node::new(Op::Sub, format!("{name}_Sub")), &[numbers, zero], "centred");
    }
    let scale = s.each(params.scale.clone(), *dtype, "scale")?;
    let (g, at) = (s.g, s.at);
    g.insert_node(at, Node::new(Op::Mul, format!("{name}_Mul")), &[Some(numbers), Some(scale)], &[Some(y)]);
    Ok(())
}

struct Speller<'a> {
    g: &'a mut Graph,
    /// Where the next node stands.
    at: usize,
    name: &'a str,
    layout: Layout,
    blocks: Option<(i32, usize)>,
    /// Which block each place along the blocked axis lies in.
    block: Option<ValueId>,
}

impl Speller<'_> {
    fn node(&mut self, node: Node, inputs: &[ValueId], what: &str) -> ValueId {
        let inputs: Vec<_> = inputs.iter().map(|v| Some(*v)).collect();
        let out = self.g.add_value(&format!("{}_{what}", self.name));
        self.g.insert_node(self.at, node, &inputs, &[Some(out)]);
        self.at += 1;
        out
    }

    /// Numbers, one a block, as a value that broadcasts over the elements.
    fn each(&mut self, numbers: Vec<f32>, dtype: DType, what: &str) -> Result<ValueId> {
        let one = numbers.len() == 1;
        let grid = if one { vec![] } else { self.layout.grid.clone() };
        let stored = write_scale(self.g, &mut self.at, &format!("{}_{what}", self.name), &grid, numbers, dtype)?;
        let Some((axis, size)) = self.blocks.filter(|_| !one) else { return Ok(stored) };
        let axis = if axis < 0 { axis + grid.len() as i32 } else { axis } as usize;
        let length = self.layout.view[axis];
        let block = *self.block.get_or_insert_with(|| {
            let of = (0..length).map(|i| (i / size) as i64).collect();
            self.g.add_constant(&format!("{}_block", self.name), Tensor::of_i64(&[length], of))
        });
        let gather = Node::new(Op::Gather, format!("{}_{what}_Gather", self.name)).with("axis", axis as i64);
        Ok(self.node(gather, &[stored, block], &format!("{what}s")))
    }
}
