//! Quantizers that a file brings with it: taken off the graph, so that it can be placed for another target, and kept beside it.
//! Codes of constants become the numbers that they stand for. Where a quantizer alone cut below zero what a layer makes, as a Relu that somebody left to
//! it did, a Clip stands in its place.

use crate::error::{At, Error, Result};
use crate::graph::{Flow, Graph, Model, Node, NodeId, Op, Port, Site, ValueId};
use crate::note::Notes;
use crate::quant::{self, Codes, Params, QuantizerId, Scheme, Table, Timing, View, Zeros};
use crate::tensor::{Tensor, pack};
use std::collections::{BTreeMap, BTreeSet};

/// What a file said of codes, by the values of its float graph.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Every quantizer of the file, with its parameters.
    pub table: Table,
    /// Values that flow, and the quantizer that they meet first.
    pub values: BTreeMap<ValueId, QuantizerId>,
    /// Ports that read such a value under another quantizer.
    pub reads: BTreeMap<(NodeId, usize), QuantizerId>,
    /// Constants, with their codes where the file stores these.
    pub constants: BTreeMap<ValueId, Held>,
    /// Clips that stand for what a quantizer cut.
    pub cuts: Vec<NodeId>,
}

/// A constant of the file.
#[derive(Debug, Clone)]
pub struct Held {
    pub quantizer: QuantizerId,
    pub codes: Option<Codes>,
    /// What the codes stand for: a step that changes the constant makes them void.
    pub stands: Tensor,
}

/// Whether a lifted model holds quantizers that can be taken off: those of its outermost graph.
pub fn is_quantized(model: &Model) -> bool {
    model.graph.nodes().any(|(_, n)| n.op == Op::FakeQuant)
}

/// Takes the FakeQuants of the outermost graph off a lifted model. Those of bodies stay as they are.
///
/// # Errors
/// A FakeQuant whose quantizer has no parameters.
pub fn take_off(model: &mut Model) -> Result<(Standing, Notes)> {
    let mut notes = Notes::of("place");
    let mut standing = Standing { table: model.quantizers.clone(), ..Standing::default() };
    let g = &mut model.graph;
    let mut open: BTreeSet<ValueId> = g.nodes().filter(|(_, n)| n.op != Op::FakeQuant).flat_map(|(_, n)| n.inputs().iter().flatten().copied()).collect();
    open.extend(g.outputs.iter().copied());
    for id in g.order().to_vec() {
        let Some(q) = g.get_node(id).and_then(Node::quantizer).map(|q| standing.table.root(q)) else { continue };
        let row = &standing.table[q];
        let y = g.node(id).output(0).ok_or_else(|| Error::failed("a FakeQuant without output")).at(|| &row.name)?;
        match g.node(id).input(0) {
            None => {
                let codes = model.codes.remove(&Site::of(id)).ok_or_else(|| Error::failed("a FakeQuant without codes")).at(|| &row.name)?;
                let params = row.params.as_ref().ok_or_else(|| Error::failed("codes without a scale")).at(|| &row.name)?;
                let stands = Tensor::of_f32(codes.0.shape(), quant::dequantize(&codes, &row.scheme, params).at(|| &row.name)?);
                if g.is_output(y) || g.value(y).dtype().is_some_and(|t| t != crate::tensor::DType::F32) {
                    notes.declined(&row.name, "these codes are left as they are: they are an output, or read as another type than float32");
                    model.codes.insert(Site::of(id), codes);
                    continue;
                }
                g.remove_node(id);
                let name = base_name(g, &row.name);
                let c = g.add_constant(&name, stands.clone());
                g.replace_uses(y, c);
                g.remove_value(y);
                standing.constants.insert(c, Held { quantizer: q, codes: Some(codes), stands });
            }
            Some(x) => {
                let first = match g.constant(x).map(|c| c.tensor.clone()) {
                    Some(stands) => standing.constants.entry(x).or_insert(Held { quantizer: q, codes: None, stands }).quantizer,
                    None => *standing.values.entry(x).or_insert(q),
                };
                let ports: Vec<Port> = g.value(y).uses().to_vec();
                let renamed = g.is_output(y);
                if !g.bypass(id) {
                    notes.declined(&row.name, "this quantizer is left as it is: it stands between an input and an output");
                    standing.values.remove(&x);
                    continue;
                }
                if renamed {
                    // The output's name is its value now.
                    standing.values.remove(&x);
                    standing.values.insert(y, first);
                    if open.remove(&x) {
                        open.insert(y);
                    } else {
                        open.remove(&y);
                    }
                }
                let reads = |p: &&Port| first != q && p.slot != Port::CAPTURE && g.get_node(p.node).is_some_and(|n| n.op != Op::FakeQuant);
                standing.reads.extend(ports.iter().filter(reads).map(|p| ((p.node, p.slot as usize), q)));
            }
        }
    }
    turn_matrices(g, &mut standing).at(|| "transposed codes")?;
    let cut: Vec<(ValueId, QuantizerId)> = standing.values.iter().map(|(v, q)| (*v, *q)).filter(|(v, _)| !open.contains(v)).collect();
    for (v, q) in cut {
        let row = &standing.table[q];
        if let Some((lo, hi)) = ends(&row.scheme, row.params.as_ref()).filter(|(lo, _)| *lo == 0.0)
            && goes_below_zero(&model.graph, v)
        {
            let clip = put_clip(model, v, lo, hi);
            standing.cuts.push(clip);
        }
    }
    if model.graph.nodes().all(|(_, n)| n.op != Op::FakeQuant && n.bodies().next().is_none()) {
        model.quantizers = Table::default();
    }
    let (n, c) = (standing.values.len(), standing.constants.len());
    notes.changed("", format!("the file is quantized: {n} values and {c} constants bring codes of their own"));
    Ok((standing, notes))
}

/// Matrices that are transposed before they are read hold their codes the other way round, so that a layer reads them as its weight.
fn turn_matrices(g: &mut Graph, standing: &mut Standing) -> Result<()> {
    for (c, held) in standing.constants.clone() {
        let row = standing.table[held.quantizer].clone();
        let (Some(codes), &[rows, columns], Some(params)) = (&held.codes, held.stands.shape(), &row.params) else { continue };
        let readers: Vec<NodeId> = g.value(c).uses().iter().map(|p| p.node).collect();
        let turns = |id: &NodeId| {
            let n = g.node(*id);
            n.op == Op::Transpose && n.ints("perm").is_none_or(|p| p == [1, 0]) && n.output(0).is_some_and(|y| !g.is_output(y))
        };
        if readers.is_empty() || !readers.iter().all(turns) || row.scheme.blocks.view != View::Own || params.nested.is_some() {
            continue;
        }
        let grid = row.scheme.blocks.layout(&[rows, columns])?.grid;
        let mut scheme = row.scheme.clone();
        scheme.blocks.along.iter_mut().for_each(|(axis, _)| *axis = 1 - axis.rem_euclid(2));
        let zero = match &params.zero {
            Zeros::Integer(z) if z.len() > 1 => Zeros::Integer(transposed(z, grid[0], grid[1])),
            Zeros::Real(z) if z.len() > 1 => Zeros::Real(transposed(z, grid[0], grid[1])),
            z => z.clone(),
        };
        let scale = if params.scale.len() > 1 { transposed(&params.scale, grid[0], grid[1]) } else { params.scale.clone() };
        let dtype = codes.0.dtype();
        let bytes = pack::pack(&transposed(&codes.unpack(), rows, columns), dtype);
        let codes = Codes(Tensor::new(dtype, vec![columns, rows], bytes.into())?);
        let stands = Tensor::of_f32(&[columns, rows], transposed(&held.stands.to_f32()?, rows, columns));
        let name = g.value(c).name.clone();
        let quantizer = standing.table.add(&name, scheme);
        standing.table[quantizer].params = Some(Params { scale, zero, ..params.clone() });
        let turned = g.add_constant(&format!("{name}_transposed"), stands.clone());
        for id in readers {
            let y = g.remove_node(id).output(0).expect("asked before");
            g.replace_uses(y, turned);
            g.remove_value(y);
        }
        g.remove_idle(c);
        standing.constants.remove(&c);
        standing.constants.insert(turned, Held { quantizer, codes: Some(codes), stands });
    }
    Ok(())
}

fn transposed<T: Copy>(v: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| v[r * columns + c])).collect()
}

/// The name that a constant had before it was codes, where that is free.
fn base_name(g: &Graph, name: &str) -> String {
    let base = name.strip_suffix("_quantized").unwrap_or(name);
    if g.find_value(base).is_some() { name.to_string() } else { base.to_string() }
}

/// Lowest and highest number that codes with one static scale stand for.
pub fn ends(scheme: &Scheme, params: Option<&Params>) -> Option<(f32, f32)> {
    let p = params.filter(|p| scheme.timing == Timing::Static && p.scale.len() == 1)?;
    Some(quant::ends(scheme, p))
}

/// Whether a layer or sum makes the value, which may be negative. Shares never are, nor is what ends at −1 and is lifted by 1, as within a Gelu.
fn goes_below_zero(g: &Graph, v: ValueId) -> bool {
    let may = |op: Op| matches!(op.flow(), Flow::Linear | Flow::Arithmetic | Flow::Normalize) && !matches!(op, Op::Softmax | Op::Hardmax);
    let maker = |v: ValueId| g.value(v).producer().map(|(n, _)| g.node(n));
    let swings = |v: ValueId| maker(v).is_some_and(|n| matches!(n.op, Op::Erf | Op::Tanh));
    let one = |v: ValueId| g.constant(v).and_then(|c| c.tensor.to_f32().ok().map(|t| t.iter().all(|x| *x >= 1.0))) == Some(true);
    let lifted = |n: &Node| n.op == Op::Add && (0..2).any(|i| n.input(i).is_some_and(swings) && n.other(i).is_some_and(one));
    maker(v).is_some_and(|n| may(n.op) && !lifted(n))
}

/// Puts a Clip behind the node that makes `v`; `v` is its result.
fn put_clip(model: &mut Model, v: ValueId, lo: f32, hi: f32) -> NodeId {
    let opset = model.opset("").unwrap_or(0);
    let g = &mut model.graph;
    let name = g.value(v).name.clone();
    let (producer, slot) = g.value(v).producer().expect("a layer makes it");
    let raw = g.add_value(&format!("{name}_uncut"));
    g.value_mut(raw).ty = g.value(v).ty.clone();
    g.set_output(producer, slot as usize, raw);
    let node = Node::new(Op::Clip, format!("{name}_Clip"));
    let at = g.position(producer) + 1;
    if opset < 11 {
        return g.insert_node(at, node.with("min", lo).with("max", hi), &[Some(raw)], &[Some(v)]);
    }
    let [low, high] = [("lowest", lo), ("highest", hi)].map(|(n, x)| g.add_constant(&format!("{name}_{n}"), Tensor::scalar(x)));
    g.insert_node(at, node, &[Some(raw), Some(low), Some(high)], &[Some(v)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Type};
    use crate::quant::Blocks;
    use crate::tensor::DType;

    /// x[1,3] → MatMul(Transpose(codes [2,3], a scale a row)) → FakeQuant from 0 → y
    fn file() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let w = m.quantizers.add("w_quantized", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
        let y8 = m.quantizers.add("y", Scheme::int(8, false));
        m.quantizers[w].params = Some(Params { scale: vec![0.5, 2.0], ..Params::tensor(1.0, None) });
        m.quantizers[y8].params = Some(Params::tensor(0.5, Some(0)));
        let g = &mut m.graph;
        let [x, wd, wt, a, y] = ["x", "wd", "wt", "a", "y"].map(|n| {
            let v = g.add_value(n);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Unknown, Dim::Unknown]) };
            v
        });
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let site = g.add_node(Node::fake_quant(w, "fw"), &[], &[Some(wd)]);
        g.add_node(Node::new(Op::Transpose, "t").with("perm", vec![1i64, 0]), &[Some(wd)], &[Some(wt)]);
        g.add_node(Node::new(Op::MatMul, "m"), &[Some(x), Some(wt)], &[Some(a)]);
        g.add_node(Node::fake_quant(y8, "fy"), &[Some(a)], &[Some(y)]);
        m.codes.insert(Site::of(site), Codes(Tensor::new(DType::I8, vec![2, 3], vec![1, 2, 3, 4, 5, 6].into()).unwrap()));
        m
    }

    #[test]
    fn shares_need_no_clip() {
        let mut m = file();
        let (matmul, _) = m.graph.nodes().find(|(_, n)| n.op == Op::MatMul).unwrap();
        let a = m.graph.node(matmul).output(0).unwrap();
        let reads = m.graph.value(a).uses()[0];
        let shares = m.graph.add_value("shares");
        let at = m.graph.position(matmul) + 1;
        m.graph.insert_node(at, Node::new(Op::Softmax, "s"), &[Some(a)], &[Some(shares)]);
        m.graph.set_input(reads.node, reads.slot as usize, Some(shares));
        let (standing, _) = take_off(&mut m).unwrap();
        assert!(standing.cuts.is_empty() && m.graph.nodes().all(|(_, n)| n.op != Op::Clip));
    }

    #[test]
    fn what_a_quantizer_cut_a_clip_cuts_and_codes_stand_as_the_layer_reads_them() {
        let mut m = file();
        let (standing, _) = take_off(&mut m).unwrap();
        let ops: Vec<Op> = m.graph.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::MatMul, Op::Clip]);
        let clip = m.graph.node(standing.cuts[0]);
        assert_eq!((crate::graph::bounds(&m.graph, clip), m.graph.value(clip.output(0).unwrap()).name.as_str()), (Some((0.0, 127.5)), "y"));
        let (c, held) = standing.constants.iter().next().unwrap();
        let row = &standing.table[held.quantizer];
        assert_eq!((m.graph.value(*c).name.as_str(), &row.scheme.blocks), ("w_transposed", &Blocks::channel(1)));
        assert_eq!(held.codes.as_ref().unwrap().unpack(), [1, 4, 2, 5, 3, 6]);
        let stands = quant::dequantize(held.codes.as_ref().unwrap(), &row.scheme, row.params.as_ref().unwrap()).unwrap();
        assert_eq!(stands, m.graph.constant(*c).unwrap().tensor.to_f32().unwrap().to_vec());
        assert_eq!(stands, [0.5, 8.0, 1.0, 10.0, 1.5, 12.0]);
    }
}
