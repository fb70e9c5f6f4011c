//! Weights as codes packed into bytes: com.microsoft's MatMulNBits, MatMulBnb4 and GatherBlockQuantized.
//!
//! `y = A · Wᵀ`, W = (code − zero) · scale in blocks along the axis that is summed over; signed codes and their zero points are raised by half their range.
//! Source: ONNX Runtime 1.31's contrib operators, and what its CPU kernels run.
//! Needs: codes at every weight. Declines, for QDQ to write: what these operators cannot say, and who reads a weight otherwise.

use crate::error::{Error, Result};
use crate::graph::{Graph, Model, Node, NodeId, Op, Port, Site, ValueId};
use crate::note::Notes;
use crate::quant::{Codes, Curve, Format, NF4, Params, Quantizer, ScaleKind, Timing, Zeros};
use crate::tensor::{DType, Tensor, pack};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Blocks of MatMulBnb4.
const BNB4_BLOCKS: [usize; 5] = [16, 32, 64, 128, 256];
/// Rows that are packed together, so that what is read and written stays in the cache.
const TILE: usize = 32;

/// Rewrites every product and Gather whose constant operand the operators can hold. `accuracy`: MatMulNBits' accuracy_level.
pub fn lower_packed(model: &mut Model, accuracy: Option<i64>) -> Result<Notes> {
    let mut notes = Notes::of("lower");
    let mut written: BTreeMap<&str, usize> = BTreeMap::new();
    let mut declined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let weights: Vec<NodeId> = model.codes.keys().filter(|s| s.path.is_empty()).map(|s| s.node).collect();
    for id in weights {
        crate::interrupt::check()?;
        let (Some(q), Some(y)) = (model.quantizer_of(id), model.graph.get_node(id).and_then(|n| n.output(0))) else { continue };
        let quantizer = &model.quantizers[model.quantizers.root(q)];
        let mut found = Vec::new();
        readers(&model.graph, y, false, &mut found);
        // One packing serves all who read the weight alike.
        let mut made: Vec<(Use, Vec<Option<ValueId>>)> = Vec::new();
        for (port, flipped) in found {
            let reader = match Reader::of(&model.graph, port, flipped) {
                Some(Ok(reader)) => reader,
                Some(Err(why)) => {
                    declined.entry(why).or_default().push(model.graph.node(port.node).name.clone());
                    continue;
                }
                None => continue,
            };
            let (codes, name) = (&model.codes[&Site::of(id)], quantizer.name.clone());
            let weight = match Weight::of(quantizer, codes, reader.as_used()) {
                Ok(weight) => weight,
                Err(why) => {
                    declined.entry(why).or_default().push(model.graph.node(port.node).name.clone());
                    continue;
                }
            };
            let node = weight.node(accuracy);
            *written.entry(node.op.spelling().1).or_default() += 1;
            let operands = match made.iter().find(|(used, _)| *used == reader.as_used()) {
                Some((_, operands)) => operands.clone(),
                None => {
                    let operands = weight.write(&mut model.graph, &name)?;
                    made.push((reader.as_used(), operands.clone()));
                    operands
                }
            };
            reader.rewrite(&mut model.graph, node, &operands);
        }
        if !made.is_empty() {
            remove_unread(model, id, y);
        }
    }
    model.import_used(Op::MatMulNBits.spelling().0);
    for (op, n) in written {
        notes.changed("", format!("{n} nodes written as {op}"));
    }
    for (why, names) in declined {
        notes.declined_alike(&names, |more| format!("its weight{more} is left to qdq: {why}"));
    }
    Ok(notes)
}

/// Ports that read `v`, seen through transposes of matrices; with each whether it reads the matrix transposed.
fn readers(g: &Graph, v: ValueId, flipped: bool, found: &mut Vec<(Port, bool)>) {
    for port in g.value(v).uses() {
        let turned = g.get_node(port.node).filter(|n| n.op == Op::Transpose && n.ints("perm") == Some(&[1, 0]));
        match turned.and_then(|n| n.output(0)).filter(|y| !g.is_output(*y)) {
            Some(y) => readers(g, y, !flipped, found),
            None => found.push((*port, flipped)),
        }
    }
}

/// Takes out the FakeQuant `id` that makes `y`, the transposes behind it and the constant before it, where nobody reads them any more.
fn remove_unread(model: &mut Model, id: NodeId, y: ValueId) {
    let g = &mut model.graph;
    for port in g.value(y).uses().to_vec() {
        let turned = g.get_node(port.node).filter(|n| n.op == Op::Transpose).and_then(|n| n.output(0));
        if let Some(t) = turned.filter(|t| g.value(*t).uses().is_empty() && !g.is_output(*t)) {
            g.remove_node(port.node);
            g.remove_value(t);
        }
    }
    if !g.value(y).uses().is_empty() || g.is_output(y) {
        return;
    }
    let x = g.remove_node(id).input(0);
    g.remove_value(y);
    model.codes.remove(&Site::of(id));
    if let Some(x) = x {
        g.remove_idle(x);
    }
}

/// How a weight is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    /// Summed over along this axis of two.
    Product { along: usize },
    /// Rows are picked.
    Table,
}

/// A node whose constant operand may be packed.
enum Reader {
    Product { node: NodeId, input: ValueId, bias: Option<ValueId>, along: usize },
    Table { node: NodeId, indices: ValueId },
}

impl Reader {
    /// The reader at a port; `None` where the operand is no weight, an error where the operators do not say what the node does.
    fn of(g: &Graph, port: Port, flipped: bool) -> Option<Result<Reader, String>> {
        let n = g.get_node(port.node).filter(|_| port.slot != Port::CAPTURE)?;
        let (node, plain) = (port.node, |name: &str, default: f32| n.float(name).unwrap_or(default) == 1.0);
        let along = |axis: usize| if flipped { 1 - axis } else { axis };
        match (n.op, port.slot) {
            (Op::MatMul, 1) => Some(Reader::product(g, node, n.input(0)?, None, along(0))),
            (Op::MatMul, _) => Some(Err("the weight is the left operand".into())),
            (Op::Gemm, 1) if n.int("transA").unwrap_or(0) != 0 || !plain("alpha", 1.0) || n.input(2).is_some() && !plain("beta", 1.0) => {
                Some(Err("Gemm transposes its input or scales its result".into()))
            }
            (Op::Gemm, 1) => Some(Reader::product(g, node, n.input(0)?, n.input(2), along((n.int("transB").unwrap_or(0) != 0) as usize))),
            (Op::Gather, 0) if n.int("axis").unwrap_or(0) == 0 && !flipped => Some(Ok(Reader::Table { node, indices: n.input(1)? })),
            (Op::Gather, 0) => Some(Err("Gather picks columns".into())),
            (Op::Conv | Op::ConvTranspose, 1) => Some(Err(format!("{} has no such form", n.op_type))),
            _ => None,
        }
    }

    fn product(g: &Graph, node: NodeId, input: ValueId, bias: Option<ValueId>, along: usize) -> Result<Reader, String> {
        match &g.value(input).ty {
            crate::graph::Type::Tensor { shape: Some(s), .. } if s.len() < 2 => Err("its input has one dimension".into()),
            crate::graph::Type::Tensor { dtype: Some(t), .. } if *t != DType::F32 => Err(format!("its input is {t}")),
            _ => Ok(Reader::Product { node, input, bias, along }),
        }
    }

    fn as_used(&self) -> Use {
        match self {
            Reader::Product { along, .. } => Use::Product { along: *along },
            Reader::Table { .. } => Use::Table,
        }
    }

    /// Puts `new` in the node's place. `operands`: packed codes, scales, and zero points if there are any.
    fn rewrite(self, g: &mut Graph, mut new: Node, operands: &[Option<ValueId>]) {
        let (Reader::Product { node, .. } | Reader::Table { node, .. }) = self;
        let at = g.position(node);
        let old = g.remove_node(node);
        let y = old.output(0);
        (new.name, new.came_from, new.extra) = (old.name, old.came_from, old.extra);
        let name = new.name.clone();
        match self {
            Reader::Table { indices, .. } => {
                let inputs = [&[operands[0], Some(indices)], &operands[1..]].concat();
                g.insert_node(at, new, &inputs, &[y]);
            }
            Reader::Product { input, bias, .. } => {
                let mut inputs = [&[Some(input)], operands].concat();
                let columns = new.int("N").unwrap_or(0) as usize;
                let inside = bias.filter(|b| new.op == Op::MatMulNBits && g.value(*b).known_shape().is_some_and(|s| s == [columns]));
                if inside.is_some() {
                    inputs.resize(5, None);
                    inputs.push(inside);
                }
                let Some(bias) = bias.filter(|_| inside.is_none()) else {
                    g.insert_node(at, new, &inputs, &[y]);
                    return;
                };
                let product = g.add_value(&format!("{name}_product"));
                g.value_mut(product).ty = y.map(|y| g.value(y).ty.clone()).unwrap_or_default();
                let mut add = Node::new(Op::Add, format!("{name}_bias"));
                add.came_from = vec![name];
                g.insert_node(at, new, &inputs, &[Some(product)]);
                g.insert_node(at + 1, add, &[Some(product), Some(bias)], &[y]);
            }
        }
    }
}

/// A weight that one of the operators can hold: `rows` times `length` codes, in blocks along the rows.
struct Weight<'a> {
    codes: &'a Codes,
    params: &'a Params,
    form: Form,
    /// Whether the tensor has the rows as its columns.
    turned: bool,
    rows: usize,
    length: usize,
    block: usize,
    bits: usize,
    /// What raises signed codes to unsigned ones.
    raise: i32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    NBits,
    Bnb4,
    Table,
}

impl<'a> Weight<'a> {
    /// Or why it cannot.
    fn of(quantizer: &'a Quantizer, codes: &'a Codes, used: Use) -> Result<Self, String> {
        let (scheme, Some(params)) = (&quantizer.scheme, &quantizer.params) else { return Err("it has no scale".into()) };
        let &[a, b] = codes.0.shape() else { return Err(format!("it has {} dimensions, not two", codes.0.rank())) };
        let along = if let Use::Product { along } = used { along } else { 1 };
        let (rows, length) = if along == 0 { (b, a) } else { (a, b) };
        let bits = codes.0.dtype().bits();
        let book = matches!(scheme.format, Format::Codebook { .. });
        let form = match (used, scheme.format) {
            (Use::Table, Format::Int { .. }) => Form::Table,
            (Use::Product { .. }, Format::Int { .. }) => Form::NBits,
            (Use::Product { .. }, Format::Codebook { .. }) if params.curve == Curve::Table(NF4.into()) && bits == 4 => Form::Bnb4,
            (Use::Table, format) => return Err(format!("GatherBlockQuantized holds no {format}")),
            (Use::Product { .. }, format) => return Err(format!("MatMulNBits holds no {format}")),
        };
        if !matches!(bits, 2 | 4 | 8) || params.curve != Curve::Linear && !book {
            return Err(format!("codes of {bits} bits, as {} is stored in, cannot be packed", scheme.format));
        }
        if matches!(scheme.scale, ScaleKind::Nested(_)) || scheme.timing == Timing::Dynamic {
            return Err("its scales must be numbers".into());
        }
        let axis = |axis: i32| if axis < 0 { axis + 2 } else { axis } as usize;
        let block = match (scheme.blocks.block_axis(), form) {
            (Some((_, size)), _) if !size.is_power_of_two() || size < 16 => return Err(format!("its blocks hold {size}, no power of two of at least 16")),
            (Some((_, size)), Form::Bnb4) if !BNB4_BLOCKS.contains(&size) || !length.is_multiple_of(size) => {
                return Err(format!("NF4 needs rows of whole blocks of {BNB4_BLOCKS:?}, not {length} in blocks of {size}"));
            }
            (Some((a, size)), _) if axis(a) == along => size,
            _ => return Err(format!("it is quantized {}, not in blocks along axis {along}", scheme.blocks)),
        };
        let raise = if pack::is_signed(codes.0.dtype()) { 1 << (bits - 1) } else { 0 };
        let weight = Weight { codes, params, form, turned: along == 0, rows, length, block, bits, raise };
        match &params.zero {
            Zeros::Real(_) if form == Form::Table || bits == 8 => Err("it has real zero points".into()),
            Zeros::Real(z) if raise != 0 && z.iter().any(|z| z + raise as f32 - raise as f32 != *z) => {
                Err("its real zero points cannot be raised exactly".into())
            }
            Zeros::Integer(z) if z.iter().any(|z| !(0..1 << bits).contains(&(z + raise))) => Err("a zero point is no code".into()),
            Zeros::None => Ok(weight),
            _ if form == Form::Bnb4 => Err("NF4 has no zero points".into()),
            _ if form == Form::Table && !(length * bits).is_multiple_of(8) => Err("a row does not fill whole bytes".into()),
            _ => Ok(weight),
        }
    }

    fn blocks(&self) -> usize {
        self.length.div_ceil(self.block)
    }

    /// The operator, without its operands.
    fn node(&self, accuracy: Option<i64>) -> Node {
        let int = |n: usize| n as i64;
        let product = |op| Node::new(op, "").with("K", int(self.length)).with("N", int(self.rows));
        let node = match self.form {
            Form::NBits => product(Op::MatMulNBits).with("bits", int(self.bits)),
            Form::Bnb4 => product(Op::MatMulBnb4).with("quant_type", 1i64),
            Form::Table => Node::new(Op::GatherBlockQuantized, "").with("bits", int(self.bits)).with("gather_axis", 0i64).with("quantize_axis", 1i64),
        };
        let node = node.with("block_size", int(self.block));
        match (self.form, accuracy) {
            (Form::NBits, Some(level)) => node.with("accuracy_level", level),
            _ => node,
        }
    }

    /// One number a block, as `[rows, blocks]`.
    fn per_block<T: Copy>(&self, numbers: &[T]) -> Vec<T> {
        let (rows, blocks) = (self.rows, self.blocks());
        match numbers {
            [one] => vec![*one; rows * blocks],
            many if self.turned => (0..rows).flat_map(|r| (0..blocks).map(move |b| many[b * rows + r])).collect(),
            many => many.to_vec(),
        }
    }

    /// Adds codes, scales and zero points to the graph.
    fn write(&self, g: &mut Graph, name: &str) -> Result<Vec<Option<ValueId>>> {
        let (rows, blocks) = (self.rows, self.blocks());
        let count = if self.params.scale.len() == 1 { 1 } else { rows * blocks };
        if self.params.scale.len() != count {
            return Err(Error::failed(format!("{name} has {} scales for {rows} rows of {blocks} blocks", self.params.scale.len())));
        }
        let middle = 1 << (self.bits - 1);
        let zeros: Vec<u8> = match &self.params.zero {
            Zeros::Integer(z) => self.per_block(z).into_iter().map(|z| (z + self.raise) as u8).collect(),
            Zeros::None => vec![self.raise as u8; rows * blocks],
            Zeros::Real(_) => vec![middle; rows * blocks],
        };
        let codes = self.packed(&zeros)?;
        let scales = self.per_block(&self.params.scale);
        let scales = Tensor::of_f32(if self.form == Form::Bnb4 { vec![rows * blocks] } else { vec![rows, blocks] }.as_slice(), scales);
        let zero = match &self.params.zero {
            Zeros::Real(z) => Some(Tensor::of_f32(&[rows, blocks], self.per_block(z).into_iter().map(|z| z + self.raise as f32).collect())),
            _ if self.form == Form::Bnb4 || zeros.iter().all(|z| *z == middle) => None,
            _ => {
                let stride = (blocks * self.bits).div_ceil(8);
                Some(Tensor::new(DType::U8, vec![rows, stride], pack_rows(&zeros, [rows, blocks], false, self.bits, stride, &vec![0; rows]).into())?)
            }
        };
        let mut operands = vec![Some(g.add_constant(&format!("{name}_quantized"), codes)), Some(g.add_constant(&format!("{name}_scale"), scales))];
        operands.extend(zero.map(|z| Some(g.add_constant(&format!("{name}_zero_point"), z))));
        Ok(operands)
    }

    /// The codes as bytes. What lies behind the end of a row stands for 0.
    fn packed(&self, zeros: &[u8]) -> Result<Tensor> {
        let (rows, length, blocks) = (self.rows, self.length, self.blocks());
        let tensor = &self.codes.0;
        let mut codes = pack::unpack_bytes(tensor.bytes(), tensor.dtype(), tensor.len());
        if self.raise != 0 {
            codes.to_mut().iter_mut().for_each(|c| *c ^= self.raise as u8);
        }
        let size = [rows, length];
        if self.form == Form::Bnb4 {
            // The first of two codes is the high one.
            let mut bytes = pack_rows(&codes, size, self.turned, 4, length / 2, &vec![0; rows]);
            bytes.iter_mut().for_each(|b| *b = b.rotate_left(4));
            return Tensor::new(DType::U8, vec![bytes.len(), 1], bytes.into());
        }
        let tail: Vec<u8> = zeros.chunks_exact(blocks.max(1)).map(|z| z[blocks - 1]).collect();
        let (stride, shape) = match self.form {
            Form::Table => (length * self.bits / 8, vec![rows, length * self.bits / 8]),
            _ => (blocks * self.block * self.bits / 8, vec![rows, blocks, self.block * self.bits / 8]),
        };
        Tensor::new(DType::U8, shape, pack_rows(&codes, size, self.turned, self.bits, stride, &tail).into())
    }
}

/// `[rows, length]` codes, one a byte, as rows of `stride` bytes, lowest bits first, filled up with each row's `tail`. `turned`: the codes lie as
/// `[length, rows]`.
fn pack_rows(codes: &[u8], [rows, length]: [usize; 2], turned: bool, bits: usize, stride: usize, tail: &[u8]) -> Vec<u8> {
    let each = 8 / bits;
    let mut out = vec![0u8; rows * stride];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(stride * TILE).zip(tail.par_chunks(TILE)).enumerate().for_each(|(tile, (out, tail))| {
        let first = tile * TILE;
        if turned {
            let line = |i: usize| &codes[i * rows + first..][..tail.len()];
            for i in (0..length).step_by(each) {
                let column = &mut out[i / each..];
                if each == 2 && i + 1 < length {
                    column.iter_mut().step_by(stride).zip(line(i)).zip(line(i + 1)).for_each(|((o, a), b)| *o = a | b << 4);
                    continue;
                }
                for j in i..length.min(i + each) {
                    column.iter_mut().step_by(stride).zip(line(j)).for_each(|(o, c)| *o |= c << (j % each * bits));
                }
            }
        } else {
            for (r, row) in out.chunks_exact_mut(stride).enumerate() {
                let line = &codes[(first + r) * length..][..length];
                row.iter_mut().zip(line.chunks(each)).for_each(|(o, c)| *o = c.iter().rev().fold(0, |o, c| o << (bits % 8) | c));
            }
        }
        for (row, t) in out.chunks_exact_mut(stride).zip(tail) {
            for i in length..stride * each {
                row[i / each] |= t << (i % each * bits);
            }
        }
    });
    out
}

#[cfg(test)]
mod tests;
