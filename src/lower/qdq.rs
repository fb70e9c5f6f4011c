//! QDQ: every FakeQuant becomes QuantizeLinear → DequantizeLinear; one over a constant becomes DequantizeLinear of its codes.
//! Scale and zero point are one pair of initializers a quantizer. The opset is raised only as far as the formats ask.
//! Source: ONNX operators QuantizeLinear and DequantizeLinear.
//! Needs: parameters for every quantizer, codes for every constant. Declines: nothing; a scheme that Q/DQ cannot say is an error.

#[cfg(test)]
mod tests;

use super::spelled;
use crate::error::{At, Error, Result};
use crate::graph::{Constant, Graph, InputShapes, Model, Node, NodeId, Op, Site, ValueId, infer};
use crate::note::Notes;
use crate::quant::{Blocks, Codes, Format, NestedScale, Params, Quantizer, QuantizerId, ScaleKind, Scheme, Table, Timing, Zeros, e8m0_code};
use crate::target::spelling;
use crate::tensor::{DType, Tensor, pack};
use std::collections::{BTreeMap, HashMap};

/// Scale and zero point of one quantizer, as values of the graph.
#[derive(Clone, Copy)]
struct Pair {
    scale: ValueId,
    zero: Option<ValueId>,
}

/// Rewrites every FakeQuant of the model, those of dynamic quantizers as integer products. Afterwards the table and the codes are empty: the file says it all.
/// `ceiling`: as for [`qdq_opset`].
pub fn lower_qdq(model: &mut Model, ceiling: Option<i64>) -> Result<Notes> {
    let mut notes = super::dynamic::dynamic(model)?;
    let table = std::mem::take(&mut model.quantizers);
    let codes = std::mem::take(&mut model.codes);
    let shapes = block_shapes(model, &table);
    let mut written = Written { opset: 0, ir: 0, microsoft: 0, ceiling };
    lower_graph(&mut model.graph, &mut Vec::new(), &table, &codes, &shapes, &mut written)?;
    let have = model.opset("").unwrap_or(0);
    if written.opset > have {
        return Err(Error::failed(format!(
            "the formats asked for need opset {}, the model has opset {have}; per-tensor uint8 or int8 needs 10, per-channel 13: convert the model to opset {} first",
            written.opset, written.opset
        )));
    }
    model.ir_version = model.ir_version.max(written.ir);
    notes.changed("", format!("written as QuantizeLinear and DequantizeLinear of opset {have}"));
    if written.microsoft > 0 {
        model.import_used(Op::MsQuantizeLinear.spelling().0);
        notes.changed("", format!("{} of these are com.microsoft's: ONNX's own would need a later opset than the target reads", written.microsoft));
    }
    Ok(notes)
}

/// Shapes of what flows into quantizers with blocks, where they are known.
type Shapes = BTreeMap<ValueId, Vec<usize>>;

fn block_shapes(model: &Model, table: &Table) -> Shapes {
    let flows = |(_, n): (NodeId, &Node)| {
        let q = n.quantizer()?;
        n.input(0).filter(|v| model.graph.constant(*v).is_none() && table[table.root(q)].scheme.blocks.block_axis().is_some())
    };
    let wanted: Vec<ValueId> = model.graph.nodes().filter_map(flows).collect();
    if wanted.is_empty() {
        return Shapes::new();
    }
    let inferred = infer(model, &InputShapes::new());
    wanted.into_iter().filter_map(|v| Some((v, inferred.shape(v)?))).collect()
}

/// From this opset on ReduceMax and ReduceMin take 8-bit codes: ONNX Runtime gives them codes wherever they stand between quantizers, and refuses the file
/// where they take none.
const LARGEST_OF_CODES: i64 = 12;

/// The lowest opset of ONNX's own domain in which every quantizer of the model can be written, or an error of usage that names one that cannot.
/// `ceiling`: the opset above which com.microsoft's operators say what they hold instead of ONNX's own; `None`: they never do.
pub fn qdq_opset(model: &Model, ceiling: Option<i64>) -> Result<i64> {
    graph_opset(&model.graph, &model.quantizers, &block_shapes(model, &model.quantizers), ceiling)
}

/// The opset that a quantizer asks for, and whether com.microsoft's operators say it.
fn opset_of(scheme: &Scheme, constant: Option<&[usize]>, ceiling: Option<i64>) -> Result<(i64, bool)> {
    let own = spelling::qdq_opset(scheme, constant).map_err(Error::usage)?;
    let microsoft = ceiling.is_some_and(|most| own > most) && spelling::is_microsoft(scheme);
    Ok((if microsoft { 0 } else { own }, microsoft))
}

fn graph_opset(g: &Graph, table: &Table, shapes: &Shapes, ceiling: Option<i64>) -> Result<i64> {
    let mut need = 0;
    for (_, node) in g.nodes() {
        for (_, body) in node.bodies() {
            need = need.max(graph_opset(body, table, &Shapes::new(), ceiling)?);
        }
        let of_codes = |v: ValueId| g.value(v).producer().is_some_and(|(n, _)| g.node(n).quantizer().is_some());
        if matches!(node.op, Op::ReduceMax | Op::ReduceMin) && node.input(0).is_some_and(of_codes) {
            need = need.max(LARGEST_OF_CODES);
        }
        let Some(id) = node.quantizer() else { continue };
        let quantizer = &table[table.root(id)];
        if quantizer.scheme.timing == Timing::Dynamic {
            need = need.max(spelling::DYNAMIC_OPSET);
            continue;
        }
        let x = node.input(0);
        let constant = x.and_then(|v| g.constant(v)).map(|c| c.tensor.shape());
        need = need.max(opset_of(&quantizer.scheme, constant, ceiling).at(|| &quantizer.name)?.0);
        if constant.is_none() && quantizer.scheme.blocks.block_axis().is_some() && !x.is_some_and(|v| shapes.contains_key(&v)) {
            return Err(no_shape()).at(|| &quantizer.name);
        }
    }
    Ok(need)
}

/// The lowest opset and IR version that hold everything written so far, and how many pairs com.microsoft's operators say.
struct Written {
    opset: i64,
    ir: i64,
    microsoft: usize,
    ceiling: Option<i64>,
}

type Path = Vec<(NodeId, std::sync::Arc<str>, u32)>;

fn lower_graph(g: &mut Graph, path: &mut Path, table: &Table, codes: &BTreeMap<Site, Codes>, shapes: &Shapes, written: &mut Written) -> Result<()> {
    let mut pairs: HashMap<QuantizerId, Pair> = HashMap::new();
    // One QuantizeLinear serves all FakeQuants that read one value under one quantizer.
    let mut quantized: HashMap<(ValueId, QuantizerId), ValueId> = HashMap::new();
    for id in g.order().to_vec() {
        let Some(q) = g.node(id).quantizer() else {
            let mut bodies = std::mem::take(&mut g.node_mut(id).attrs);
            let mut index = 0;
            for attr in &mut bodies {
                let name: std::sync::Arc<str> = attr.name.as_str().into();
                let graphs: &mut [Graph] = match &mut attr.value {
                    crate::graph::AttrValue::Graph(b) => std::slice::from_mut(b),
                    crate::graph::AttrValue::Graphs(b) => b,
                    _ => continue,
                };
                for body in graphs {
                    path.push((id, name.clone(), index));
                    index += 1;
                    lower_graph(body, path, table, codes, &Shapes::new(), written)?;
                    path.pop();
                }
                index = 0;
            }
            g.node_mut(id).attrs = bodies;
            continue;
        };
        let q = table.root(q);
        let quantizer = &table[q];
        let site = Site { path: path.clone(), node: id, slot: 0 };
        lower_node(g, id, q, quantizer, codes.get(&site), shapes, &mut pairs, &mut quantized, written).at(|| &quantizer.name)?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn lower_node(
    g: &mut Graph,
    id: NodeId,
    q: QuantizerId,
    quantizer: &Quantizer,
    codes: Option<&Codes>,
    shapes: &Shapes,
    pairs: &mut HashMap<QuantizerId, Pair>,
    quantized: &mut HashMap<(ValueId, QuantizerId), ValueId>,
    written: &mut Written,
) -> Result<()> {
    let scheme = &quantizer.scheme;
    let params = quantizer.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `lower`"))?;
    let (x, y) = match (g.node(id).input(0), g.node(id).output(0)) {
        (Some(x), Some(y)) => (x, y),
        _ => return Err(Error::failed("a FakeQuant without input or output")),
    };
    let shape = g.constant(x).map(|c| c.tensor.shape().to_vec());
    let constant = shape.is_some();
    let (opset, microsoft) = opset_of(scheme, shape.as_deref(), written.ceiling)?;
    let shape = shape.or_else(|| shapes.get(&x).cloned());
    let blocks = written_blocks(scheme, params, shape.as_deref())?;
    let (quantize, dequantize) = if microsoft { (Op::MsQuantizeLinear, Op::MsDequantizeLinear) } else { (Op::QuantizeLinear, Op::DequantizeLinear) };
    let storage = scheme.format.storage().expect("qdq_opset checked it");
    // A scale of exponents is no type to compute in.
    let (exponents, float32) = (scheme.scale == ScaleKind::Pow2(DType::F8E8M0), DType::F32.onnx() as i64);
    written.opset = written.opset.max(opset);
    written.ir = written.ir.max(spelling::ir_of_opset(opset)).max(storage.min_ir());
    written.microsoft += microsoft as usize;

    let at = g.position(id);
    let name = g.value(x).name.clone();
    g.remove_node(id);
    if spelling::is_spelled_out(scheme) {
        let codes = codes.ok_or_else(no_codes)?;
        spelled::write(g, at, &name, codes, scheme, params, y)?;
        g.remove_idle(x);
        return Ok(());
    }
    let mut at = at;
    let pair = match pairs.get(&q) {
        Some(p) => *p,
        None => {
            let p = write_pair(g, &mut at, &name, shape.as_deref(), (scheme, &blocks), storage, params)?;
            pairs.insert(q, p);
            p
        }
    };
    let code_value = match (constant, codes) {
        (true, Some(codes)) => {
            let v = g.add_constant(&format!("{name}_quantized"), Constant::from(codes.0.clone()));
            g.remove_idle(x);
            v
        }
        (true, None) => return Err(no_codes()),
        (false, _) => match quantized.get(&(x, q)) {
            Some(&v) => v,
            None => {
                let v = g.add_value(&format!("{name}_quantized"));
                g.value_mut(v).ty = crate::graph::Type::Tensor { dtype: Some(storage), shape: None };
                let x = match spelling::saturates_by_itself(scheme) {
                    true => x,
                    false => saturated(g, &mut at, x, scheme, params),
                };
                let node = Node::new(quantize, format!("{name}_QuantizeLinear"));
                let node = with_blocks(if exponents { node.with("precision", float32) } else { node }, &blocks, opset);
                g.insert_node(at, node, &inputs(x, pair), &[Some(v)]);
                quantized.insert((x, q), v);
                v
            }
        },
    };
    let after = if constant || g.value(code_value).producer().is_none() { at } else { g.position(g.value(code_value).producer().unwrap().0) + 1 };
    let node = Node::new(dequantize, format!("{name}_DequantizeLinear"));
    let node = with_blocks(if exponents { node.with("output_dtype", float32) } else { node }, &blocks, opset);
    g.insert_node(after.max(at), node, &inputs(code_value, pair), &[Some(y)]);
    Ok(())
}

/// `x` within the ends of a format that is narrower than the type its codes are stored in, at which QuantizeLinear would saturate.
fn saturated(g: &mut Graph, at: &mut usize, x: ValueId, scheme: &Scheme, params: &Params) -> ValueId {
    let name = g.value(x).name.clone();
    let ty = g.value(x).ty.clone();
    let (lo, hi) = scheme.format.code_range().expect("only integers are narrower than their storage");
    let end = |code: i32| Tensor::of_f32(&[], vec![(code as f32 - params.zero_at(0)) * params.scale_at(0)]);
    let ends = [("low", lo), ("high", hi)].map(|(end_name, code)| g.add_constant(&format!("{name}_{end_name}"), end(code)));
    let y = g.add_value(&format!("{name}_saturated"));
    g.value_mut(y).ty = ty;
    g.insert_node(*at, Node::new(Op::Clip, format!("{name}_Clip")), &[Some(x), Some(ends[0]), Some(ends[1])], &[Some(y)]);
    *at += 1;
    y
}

fn no_codes() -> Error {
    Error::failed("its weights have no codes yet; `round` must stand before `lower`")
}

fn inputs(x: ValueId, pair: Pair) -> Vec<Option<ValueId>> {
    match pair.zero {
        Some(z) => vec![Some(x), Some(pair.scale), Some(z)],
        None => vec![Some(x), Some(pair.scale)],
    }
}

/// Adds the attributes that say the granularity.
fn with_blocks(node: Node, b: &Blocks, opset: i64) -> Node {
    match (b.channel_axis(), b.block_axis()) {
        (Some(axis), _) if opset >= 13 || matches!(node.op, Op::MsQuantizeLinear | Op::MsDequantizeLinear) => node.with("axis", axis as i64),
        (_, Some((axis, size))) => node.with("axis", axis as i64).with("block_size", size as i64),
        _ => node,
    }
}

fn no_shape() -> Error {
    Error::usage("an activation in blocks has a scale a place, and needs a known shape: say `--fix-dim NAME=N`, or give it one scale a tensor")
}

/// The granularity in which a quantizer is written: where one scale serves all blocks (a fixed one), that of the tensor.
fn written_blocks(scheme: &Scheme, params: &Params, shape: Option<&[usize]>) -> Result<Blocks> {
    let blocks = spelling::qdq_blocks(scheme, shape);
    let many = shape.map(|s| blocks.layout(s)).transpose()?.is_none_or(|l| l.grid.iter().product::<usize>() != 1);
    Ok(if params.scale.len() == 1 && params.nested.is_none() && many { Blocks::tensor() } else { blocks })
}

/// Writes scale and zero point, before position `at` where that takes nodes. A zero point is always written, so that the file names its type, except
/// for int32. `shape`: of a constant, or of what has blocks; `storage`: the type of its codes.
fn write_pair(
    g: &mut Graph,
    at: &mut usize,
    name: &str,
    shape: Option<&[usize]>,
    (scheme, blocks): (&Scheme, &Blocks),
    storage: DType,
    params: &Params,
) -> Result<Pair> {
    // Which scale stands where: each at its own place, but those of gates, which are repeated.
    let from: Vec<usize> = match (scheme.blocks.gates(), shape) {
        (Some(gates), Some(&[directions, rows, columns])) if !blocks.is_tensor() => {
            let (hidden, columns) = if directions == 1 { (rows / gates, 1) } else { (1, columns) };
            (0..directions * gates).flat_map(|gate| vec![gate; hidden * columns]).collect()
        }
        _ => (0..params.scale.len()).collect(),
    };
    let n = from.len();
    let shape = match (blocks.is_tensor(), blocks.channel_axis(), shape) {
        (true, ..) => vec![],
        (_, Some(_), _) => vec![n],
        (_, None, Some(shape)) => blocks.layout(shape)?.grid,
        (_, None, None) => return Err(no_shape()),
    };
    let scale = match (&scheme.scale, &params.nested) {
        (ScaleKind::Nested(inner), Some(nested)) => write_nested(g, at, &format!("{name}_scale"), inner, nested)?,
        (ScaleKind::Nested(_), None) => return Err(Error::failed("its scales have no codes")),
        (ScaleKind::Exact(dtype) | ScaleKind::Pow2(dtype), _) => {
            write_scale(g, at, &format!("{name}_scale"), &shape, from.iter().map(|i| params.scale[*i]).collect(), *dtype)?
        }
    };
    let zeros = match &params.zero {
        Zeros::None => vec![0; n],
        Zeros::Integer(z) if z.len() == 1 => vec![z[0]; n],
        Zeros::Integer(z) => from.iter().map(|i| z[*i]).collect(),
        Zeros::Real(_) => return Err(Error::failed("DequantizeLinear has no real zero point")),
    };
    let zero = match scheme.format {
        Format::Int { bits: 17.., .. } => None,
        _ => Some(g.add_constant(&format!("{name}_zero_point"), Tensor::new(storage, shape, pack::pack(&zeros, storage).into())?)),
    };
    Ok(Pair { scale, zero })
}

/// Scales in their own type. float16 and bfloat16 reach float32 by a Cast: as a scale's type they would become the result's, or, with `output_dtype`,
/// what ONNX Runtime's optimizer does not load.
pub(super) fn write_scale(g: &mut Graph, at: &mut usize, name: &str, shape: &[usize], scale: Vec<f32>, dtype: DType) -> Result<ValueId> {
    let odd = |s: &f32| Error::failed(format!("its scale {s} is not a number of {dtype}"));
    let bytes: Vec<u8> = match dtype {
        DType::F32 => return Ok(g.add_constant(name, Tensor::of_f32(shape, scale))),
        DType::F8E8M0 => scale.iter().map(|s| e8m0_code(*s).ok_or_else(|| odd(s))).collect::<Result<_>>()?,
        DType::F16 | DType::BF16 => {
            let code = |s: &f32| {
                let (bits, back) = match dtype {
                    DType::F16 => (half::f16::from_f32(*s).to_bits(), half::f16::from_f32(*s).to_f32()),
                    _ => (half::bf16::from_f32(*s).to_bits(), half::bf16::from_f32(*s).to_f32()),
                };
                if back == *s { Ok(bits.to_le_bytes()) } else { Err(odd(s)) }
            };
            scale.iter().map(code).collect::<Result<Vec<_>>>()?.concat()
        }
        other => return Err(Error::failed(format!("scales are not written as {other}"))),
    };
    let stored = g.add_constant(name, Tensor::new(dtype, shape.to_vec(), bytes.into())?);
    if dtype == DType::F8E8M0 {
        return Ok(stored);
    }
    let wide = g.add_value(&format!("{name}_float32"));
    let cast = Node::new(Op::Cast, format!("{name}_Cast")).with("to", DType::F32.onnx() as i64);
    g.insert_node(*at, cast, &[Some(stored)], &[Some(wide)]);
    *at += 1;
    Ok(wide)
}

/// Scales that are codes: DequantizeLinear of these. Integers of a few bits are stored as uint8, as the compilers that read such scales want them.
fn write_nested(g: &mut Graph, at: &mut usize, name: &str, inner: &Scheme, nested: &NestedScale) -> Result<ValueId> {
    let codes = match nested.codes.0.dtype() {
        DType::U2 | DType::U4 => {
            let t = &nested.codes.0;
            Tensor::new(DType::U8, t.shape().to_vec(), pack::unpack_bytes(t.bytes(), t.dtype(), t.len()).into_owned().into())?
        }
        _ => nested.codes.0.clone(),
    };
    let grid = codes.shape().to_vec();
    let blocks = spelling::qdq_blocks(inner, Some(&grid));
    let pair = write_pair(g, at, name, Some(&grid), (inner, &blocks), codes.dtype(), &nested.params)?;
    let opset = spelling::qdq_opset(inner, Some(&grid)).map_err(Error::failed)?;
    let node = with_blocks(Node::new(Op::DequantizeLinear, format!("{name}_DequantizeLinear")), &blocks, opset);
    let (codes, scale) = (g.add_constant(&format!("{name}_quantized"), codes), g.add_value(&format!("{name}_dequantized")));
    g.insert_node(*at, node, &inputs(codes, pair), &[Some(scale)]);
    *at += 1;
    Ok(scale)
}
