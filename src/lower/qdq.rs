//! QDQ: every FakeQuant becomes QuantizeLinear → DequantizeLinear; one over a constant becomes DequantizeLinear of its codes.
//! Scale and zero point are one pair of initializers a quantizer. The opset is raised only as far as the formats ask.
//! Source: ONNX operators QuantizeLinear and DequantizeLinear.
//! Needs: parameters for every quantizer, codes for every constant. Declines: nothing; a scheme that Q/DQ cannot say is an error.

use super::spelled;
use crate::error::{At, Error, Result};
use crate::graph::{Constant, Graph, Model, Node, NodeId, Op, Site, ValueId};
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
pub fn lower_qdq(model: &mut Model) -> Result<Notes> {
    let mut notes = super::dynamic::dynamic(model)?;
    let table = std::mem::take(&mut model.quantizers);
    let codes = std::mem::take(&mut model.codes);
    let mut need = Need { opset: 0, ir: 0 };
    lower_graph(&mut model.graph, &mut Vec::new(), &table, &codes, &mut need)?;
    let have = model.opset("").unwrap_or(0);
    if need.opset > have {
        return Err(Error::failed(format!(
            "the formats asked for need opset {}, the model has opset {have}; per-tensor uint8 or int8 needs 10, per-channel 13: convert the model to opset {} first",
            need.opset, need.opset
        )));
    }
    model.ir_version = model.ir_version.max(need.ir);
    notes.changed("", format!("written as QuantizeLinear and DequantizeLinear of opset {have}"));
    Ok(notes)
}

/// From this opset on ReduceMax and ReduceMin take 8-bit codes: ONNX Runtime gives them codes wherever they stand between quantizers, and refuses the file
/// where they take none.
const LARGEST_OF_CODES: i64 = 12;

/// The lowest opset of ONNX's own domain in which every quantizer of the model can be written.
pub fn qdq_opset(model: &Model) -> Result<i64> {
    graph_opset(&model.graph, &model.quantizers)
}

fn graph_opset(g: &Graph, table: &Table) -> Result<i64> {
    let mut need = 0;
    for (_, node) in g.nodes() {
        for (_, body) in node.bodies() {
            need = need.max(graph_opset(body, table)?);
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
        let constant = node.input(0).and_then(|v| g.constant(v)).map(|c| c.tensor.shape());
        need = need.max(spelling::qdq_opset(&quantizer.scheme, constant).map_err(Error::failed).at(|| &quantizer.name)?);
    }
    Ok(need)
}

/// The lowest opset and IR version that hold everything written so far.
struct Need {
    opset: i64,
    ir: i64,
}

type Path = Vec<(NodeId, std::sync::Arc<str>, u32)>;

fn lower_graph(g: &mut Graph, path: &mut Path, table: &Table, codes: &BTreeMap<Site, Codes>, need: &mut Need) -> Result<()> {
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
                    lower_graph(body, path, table, codes, need)?;
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
        lower_node(g, id, q, quantizer, codes.get(&site), &mut pairs, &mut quantized, need).at(|| &quantizer.name)?;
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
    pairs: &mut HashMap<QuantizerId, Pair>,
    quantized: &mut HashMap<(ValueId, QuantizerId), ValueId>,
    need: &mut Need,
) -> Result<()> {
    let scheme = &quantizer.scheme;
    let params = quantizer.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `lower`"))?;
    let (x, y) = match (g.node(id).input(0), g.node(id).output(0)) {
        (Some(x), Some(y)) => (x, y),
        _ => return Err(Error::failed("a FakeQuant without input or output")),
    };
    let shape = g.constant(x).map(|c| c.tensor.shape().to_vec());
    let constant = shape.is_some();
    let opset = spelling::qdq_opset(scheme, shape.as_deref()).map_err(Error::failed)?;
    let blocks = spelling::qdq_blocks(scheme, shape.as_deref());
    let storage = scheme.format.storage().expect("qdq_opset checked it");
    // A scale of exponents is no type to compute in.
    let (exponents, float32) = (scheme.scale == ScaleKind::Pow2(DType::F8E8M0), DType::F32.onnx() as i64);
    need.opset = need.opset.max(opset);
    need.ir = need.ir.max(spelling::ir_of_opset(opset)).max(storage.min_ir());

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
            let p = write_pair(g, &mut at, &name, shape.as_deref(), scheme, storage, params)?;
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
                let node = Node::new(Op::QuantizeLinear, format!("{name}_QuantizeLinear"));
                let node = with_blocks(if exponents { node.with("precision", float32) } else { node }, &blocks, opset);
                g.insert_node(at, node, &inputs(x, pair), &[Some(v)]);
                quantized.insert((x, q), v);
                v
            }
        },
    };
    let after = if constant || g.value(code_value).producer().is_none() { at } else { g.position(g.value(code_value).producer().unwrap().0) + 1 };
    let node = Node::new(Op::DequantizeLinear, format!("{name}_DequantizeLinear"));
    let node = with_blocks(if exponents { node.with("output_dtype", float32) } else { node }, &blocks, opset);
    g.insert_node(after.max(at), node, &inputs(code_value, pair), &[Some(y)]);
    Ok(())
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
        (Some(axis), _) if opset >= 13 => node.with("axis", axis as i64),
        (_, Some((axis, size))) => node.with("axis", axis as i64).with("block_size", size as i64),
        _ => node,
    }
}

/// Writes scale and zero point, before position `at` where that takes nodes. A zero point is always written, so that the file names its type, except
/// for int32. `shape`: of a constant; `storage`: the type of its codes.
fn write_pair(g: &mut Graph, at: &mut usize, name: &str, shape: Option<&[usize]>, scheme: &Scheme, storage: DType, params: &Params) -> Result<Pair> {
    let blocks = spelling::qdq_blocks(scheme, shape);
    // Which scale stands where: each at its own place, but those of gates, which are repeated.
    let from: Vec<usize> = match (scheme.blocks.gates(), shape) {
        (Some(gates), Some(&[directions, rows, columns])) => {
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
        (_, None, None) => return Err(Error::failed("an activation in blocks needs a known shape")),
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
    let pair = write_pair(g, at, name, Some(&grid), inner, codes.dtype(), &nested.params)?;
    let opset = spelling::qdq_opset(inner, Some(&grid)).map_err(Error::failed)?;
    let node = with_blocks(Node::new(Op::DequantizeLinear, format!("{name}_DequantizeLinear")), &spelling::qdq_blocks(inner, Some(&grid)), opset);
    let (codes, scale) = (g.add_constant(&format!("{name}_quantized"), codes), g.add_value(&format!("{name}_dequantized")));
    g.insert_node(*at, node, &inputs(codes, pair), &[Some(scale)]);
    *at += 1;
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Attr;

    /// x → FakeQuant → Conv(FakeQuant(w)) → y
    fn placed() -> (Model, NodeId) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ir_version: 7, ..Model::default() };
        let a = m.quantizers.add("x", Scheme::int(8, false));
        let w = m.quantizers.add("w", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
        m.quantizers[a].params = Some(Params::tensor(0.5, Some(3)));
        m.quantizers[w].params = Some(Params { scale: vec![0.25, 0.5], ..Params::tensor(1.0, None) });
        let g = &mut m.graph;
        let [x, xq, wq, y] = ["x", "xq", "wq", "y"].map(|n| g.add_value(n));
        let wv = g.add_constant("w", Tensor::of_f32(&[2, 1, 1, 1], vec![1.0, 1.0]));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::fake_quant(a, "fx"), &[Some(x)], &[Some(xq)]);
        let f = g.add_node(Node::fake_quant(w, "fw"), &[Some(wv)], &[Some(wq)]);
        g.add_node(Node::new(Op::Conv, "conv"), &[Some(xq), Some(wq)], &[Some(y)]);
        let codes = Codes(Tensor::new(DType::I8, vec![2, 1, 1, 1], vec![4, 2].into()).unwrap());
        m.codes.insert(Site::of(f), codes);
        (m, f)
    }

    #[test]
    fn activations_become_pairs_and_weights_become_codes() {
        let (mut m, _) = placed();
        lower_qdq(&mut m).unwrap();
        let g = &m.graph;
        let ops: Vec<Op> = g.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::QuantizeLinear, Op::DequantizeLinear, Op::DequantizeLinear, Op::Conv]);
        let (_, dq) = g.nodes().nth(2).unwrap();
        assert_eq!(dq.attrs, [Attr::new("axis", 0i64)]);
        assert_eq!(g.constant(dq.input(0).unwrap()).unwrap().tensor.to_i64().unwrap(), [4, 2]);
        assert!(g.find_value("w").is_none(), "the float weight is gone");
        assert_eq!(m.ir_version, 7);
    }

    /// One scale a gate stands once a row; with directions, in blocks of a gate's rows.
    #[test]
    fn gates_are_spelled_in_rows_or_blocks() {
        let scale_of = |directions: usize| {
            let mut m = Model { opsets: vec![(String::new(), 21)], ir_version: 10, ..Model::default() };
            let q = m.quantizers.add("w", Scheme { blocks: Blocks::gate(2), ..Scheme::int(8, true) });
            m.quantizers[q].params = Some(Params { scale: (1..=2 * directions).map(|i| i as f32).collect(), ..Params::tensor(1.0, None) });
            let shape = [directions, 4, 3];
            let n = 12 * directions;
            let w = m.graph.add_constant("w", Tensor::of_f32(&shape, vec![1.0; n]));
            let y = m.graph.add_value("y");
            m.graph.outputs.push(y);
            let f = m.graph.add_node(Node::fake_quant(q, "f"), &[Some(w)], &[Some(y)]);
            m.codes.insert(Site::of(f), Codes(Tensor::new(DType::I8, shape.to_vec(), vec![1; n].into()).unwrap()));
            lower_qdq(&mut m).unwrap();
            let (_, dq) = m.graph.nodes().next().unwrap();
            let scale = &m.graph.constant(dq.input(1).unwrap()).unwrap().tensor;
            (dq.int("axis"), dq.int("block_size"), scale.shape().to_vec(), scale.to_f32().unwrap().into_owned())
        };
        assert_eq!(scale_of(1), (Some(1), None, vec![4], vec![1.0, 1.0, 2.0, 2.0]));
        let each = [1.0, 2.0, 3.0, 4.0].iter().flat_map(|s| [*s; 3]).collect();
        assert_eq!(scale_of(2), (Some(1), Some(2), vec![2, 2, 3], each));
    }

    /// Scales in their own types, and as codes, read back bit for bit; the last block is short.
    #[test]
    fn narrow_and_nested_scales_read_back_as_they_were() {
        use crate::quant::{self, Specials, Timing, Zero};
        let scheme = |format, scale, blocks| Scheme { format, scale, zero: Zero::None, blocks, timing: Timing::Static, rounding: quant::Rounding::HalfEven };
        let real = |format, blocks| Scheme { zero: Zero::Real, ..scheme(format, ScaleKind::Exact(DType::F32), blocks) };
        let (tensor, blocks) = (Blocks::tensor, || Blocks::block(0, 16));
        let (e2m1, e4m3) =
            (Format::Float { exponent: 2, mantissa: 1, specials: Specials::None }, Format::Float { exponent: 4, mantissa: 3, specials: Specials::Fn });
        let (int4, uint4) = (Scheme::int(4, true).format, Scheme::int(4, false).format);
        let f32s = || ScaleKind::Exact(DType::F32);
        let nested = |format, blocks| ScaleKind::Nested(Box::new(scheme(format, ScaleKind::Exact(DType::F32), blocks)));
        for (case, ops) in [
            (scheme(int4, f32s(), blocks()), vec![Op::DequantizeLinear]),
            (scheme(int4, ScaleKind::Exact(DType::F16), blocks()), vec![Op::Cast, Op::DequantizeLinear]),
            (scheme(int4, ScaleKind::Exact(DType::BF16), Blocks::channel(1)), vec![Op::Cast, Op::DequantizeLinear]),
            (scheme(e2m1, ScaleKind::Pow2(DType::F8E8M0), blocks()), vec![Op::DequantizeLinear]),
            (scheme(e2m1, nested(e4m3, tensor()), blocks()), vec![Op::DequantizeLinear; 2]),
            (scheme(int4, nested(uint4, Blocks::channel(1)), blocks()), vec![Op::DequantizeLinear; 2]),
            (scheme(int4, nested(Scheme::int(8, false).format, Blocks::block(0, 2)), blocks()), vec![Op::DequantizeLinear; 2]),
            (scheme(Format::codebook(4), ScaleKind::Exact(DType::F16), blocks()), vec![Op::Cast, Op::Gather, Op::Cast, Op::Gather, Op::Mul]),
            (scheme(Format::NF4, f32s(), Blocks::channel(1)), vec![Op::Cast, Op::Gather, Op::Mul]),
            (scheme(Format::codebook(2), f32s(), tensor()), vec![Op::Cast, Op::Gather, Op::Mul]),
            (real(uint4, blocks()), vec![Op::Cast, Op::Gather, Op::Sub, Op::Gather, Op::Mul]),
            (real(int4, Blocks::channel(1)), vec![Op::Cast, Op::Sub, Op::Mul]),
            (real(Scheme::int(8, false).format, tensor()), vec![Op::Cast, Op::Sub, Op::Mul]),
        ] {
            let mut m = Model { opsets: vec![(String::new(), 28)], ir_version: 14, ..Model::default() };
            let (shape, q) = ([70, 3], m.quantizers.add("w", case.clone()));
            let w: Vec<f32> = (0..210).map(|i| ((i as f32 * 0.618_034).fract() - 0.4) * (1.0 + (i % 3) as f32)).collect();
            let params = quant::fit(&w, &shape, &case).unwrap();
            let codes = quant::quantize(&w, &shape, &case, &params).unwrap();
            m.quantizers[q].params = Some(params.clone());
            let w = m.graph.add_constant("w", Tensor::of_f32(&shape, w));
            let y = m.graph.add_value("y");
            m.graph.outputs.push(y);
            let f = m.graph.add_node(Node::fake_quant(q, "f"), &[Some(w)], &[Some(y)]);
            m.codes.insert(Site::of(f), codes.clone());
            lower_qdq(&mut m).unwrap();
            assert_eq!(m.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), ops, "{case}");
            crate::lift::lift(&mut m).unwrap();
            let (id, _) = m.graph.nodes().next().unwrap();
            let back = &m.quantizers[m.quantizer_of(id).unwrap()];
            let p = back.params.as_ref().unwrap();
            assert_eq!((&m.codes[&Site::of(id)], &p.scale, &p.curve, &p.zero), (&codes, &params.scale, &params.curve, &params.zero), "{case}");
            assert_eq!((back.scheme.format, &back.scheme.blocks), (case.format, &case.blocks), "{case}");
            match (&back.scheme.scale, &case.scale) {
                (ScaleKind::Nested(_), ScaleKind::Nested(_)) => {
                    let (a, b) = (p.nested.as_ref().unwrap(), params.nested.as_ref().unwrap());
                    assert_eq!((a.codes.unpack(), &a.params.scale), (b.codes.unpack(), &b.params.scale), "{case}");
                }
                (a, b) => assert_eq!(a, b, "{case}"),
            }
        }
    }

    #[test]
    fn an_opset_that_cannot_say_it_is_refused() {
        let (mut m, _) = placed();
        m.set_opset("", 12);
        let e = lower_qdq(&mut m).unwrap_err().to_string();
        assert!(e.contains("opset 13"), "{e}");
    }

    #[test]
    fn weights_without_codes_are_refused() {
        let (mut m, f) = placed();
        m.codes.remove(&Site::of(f));
        assert!(lower_qdq(&mut m).unwrap_err().to_string().contains("round"));
    }
}
