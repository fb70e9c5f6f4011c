//! What a model is rewritten to before tract gets it: what tract would do wrongly, or cannot do, said in other words. Each rewrite is exact.

use super::reverse;
use crate::error::Result;
use crate::graph::{self, Constant, Graph, Model, Node, NodeId, Op, Site, ValueId};
use crate::onnx;
use crate::quant;
use crate::tensor::{DType, Tensor};

/// Rewrites a specialised model, bodies included.
pub fn prepare(model: &mut Model) -> Result<()> {
    let opset = model.opset("").unwrap_or(0);
    for id in model.graph.order().to_vec() {
        if model.graph.node(id).op == Op::Pad && rounded_filler(model, id)?.is_some_and(|number| number != 0.0) {
            fill_by_mask(&mut model.graph, id);
        }
    }
    // Tract knows no Attention with a mask of truths.
    let truths = |n: &Node| n.op == Op::Attention && n.input(3).is_some_and(|m| model.graph.value(m).dtype() == Some(DType::Bool));
    let spelled: Vec<NodeId> = model.graph.nodes().filter(|(_, n)| truths(n)).map(|(id, _)| id).collect();
    if !spelled.is_empty() {
        let inferred = graph::infer(model, &graph::InputShapes::new());
        for id in spelled {
            // What cannot be written so is left, for `support` to judge.
            let _ = onnx::attention_exactly(&mut model.graph, id, &inferred);
        }
    }
    prepare_graph(&mut model.graph, opset);
    Ok(())
}

fn prepare_graph(g: &mut Graph, opset: i64) {
    for id in g.order().to_vec() {
        g.node_mut(id).bodies_mut().for_each(|body| prepare_graph(body, opset));
        let _ = through_float64(g, id);
        // What cannot be rewritten is left, for `support` to judge.
        let _: Option<()> = match g.node(id).op {
            Op::Constant => take_constant(g, id),
            Op::Celu => scaled_elu(g, id),
            Op::GatherND => count_from_the_front(g, id),
            Op::IsInf => compare_with_infinity(g, id),
            Op::Mod => spread_dividend(g, id),
            Op::Pad => scalar_filler(g, id),
            Op::ReduceL1
            | Op::ReduceL2
            | Op::ReduceLogSum
            | Op::ReduceLogSumExp
            | Op::ReduceMax
            | Op::ReduceMean
            | Op::ReduceMin
            | Op::ReduceProd
            | Op::ReduceSum
            | Op::ReduceSumSquare => no_empty_axes(g, id),
            Op::Resize => sizes_for_corners(g, id, opset),
            Op::Slice => gather_every_nth(g, id),
            Op::Squeeze => leave_ones_out(g, id),
            Op::Upsample => repeat_neighbours(g, id),
            Op::GRU | Op::LSTM | Op::RNN => reverse::rewrite(g, id),
            _ => None,
        };
    }
}

/// Inserts a node before `at`, under `at`'s name; its output.
pub(super) fn before(g: &mut Graph, at: NodeId, op: Node, inputs: &[ValueId]) -> ValueId {
    let mut node = op;
    node.name = g.node(at).name.clone();
    let y = g.add_value(&format!("{}_before", g.node(at).name));
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    g.insert_node(g.position(at), node, &inputs, &[Some(y)]);
    y
}

/// Makes node `at` compute a new value, and `op` its output `slot` from that.
pub(super) fn behind(g: &mut Graph, at: NodeId, slot: usize, op: Node, more: &[ValueId]) -> Option<()> {
    insert_behind(g, at, slot, op, |x| std::iter::once(x).chain(more.iter().copied()).collect())
}

/// The same of an op that reads the new value among these.
fn insert_behind(g: &mut Graph, at: NodeId, slot: usize, op: Node, inputs: impl FnOnce(ValueId) -> Vec<ValueId>) -> Option<()> {
    let y = g.node(at).output(slot)?;
    let x = g.add_value(&format!("{}_inner", g.value(y).name));
    g.value_mut(x).ty = g.value(y).ty.clone();
    g.set_output(at, slot, x);
    let inputs: Vec<_> = inputs(x).into_iter().map(Some).collect();
    let mut node = op;
    node.name = g.node(at).name.clone();
    g.insert_node(g.position(at) + 1, node, &inputs, &[Some(y)]);
    Some(())
}

/// Makes a node one of another op, without attributes.
fn turn_into(g: &mut Graph, id: NodeId, op: Op, inputs: &[ValueId]) {
    let n = g.node_mut(id);
    let (domain, op_type) = op.spelling();
    (n.op, n.op_type, n.domain, n.attrs) = (op, op_type.into(), domain.into(), Vec::new());
    g.truncate_inputs(id, inputs.len());
    inputs.iter().enumerate().for_each(|(slot, v)| g.set_input(id, slot, Some(*v)));
}

fn ints(g: &mut Graph, values: &[usize]) -> ValueId {
    g.add_constant("", Tensor::of_i64(&[values.len()], values.iter().map(|d| *d as i64).collect()))
}

fn scalar(g: &mut Graph, dtype: DType, value: f32) -> Option<ValueId> {
    Some(g.add_constant("", super::fake_quant::of_f32(dtype, &[], vec![value]).ok()?))
}

/// Constant nodes become constants, which never go through protobuf.
fn take_constant(g: &mut Graph, id: NodeId) -> Option<()> {
    let value = g.node(id).output(0)?;
    let constant = match g.constant(value) {
        Some(c) => c.clone(),
        None => Constant::from(graph::eval(g.node(id), &[])?.pop()?),
    };
    g.remove_node(id);
    g.value_mut(value).constant = Some(constant);
    Some(())
}

/// tract takes int64 for expressions of dimensions, with which it cannot compute all that it can with numbers. Exact up to 2⁵³.
fn through_float64(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let slots: &[usize] = match n.op {
        Op::ArgMax | Op::ArgMin | Op::CumSum | Op::EyeLike | Op::ReduceSumSquare | Op::Sign | Op::TopK => &[0],
        // tract makes a square of it.
        Op::Mul if n.input(0) == n.input(1) => &[0, 1],
        Op::MatMul | Op::Einsum => &[0, 1],
        Op::Pad => &[0, 2],
        _ => return None,
    };
    let y = n.output(0)?;
    let is_int64 = |v: ValueId| g.value(v).dtype() == Some(DType::I64);
    n.input(0).filter(|x| is_int64(*x))?;
    let cast = |to: DType| Node::new(Op::Cast, "").with("to", to.onnx() as i64);
    let whole = is_int64(y) && !matches!(n.op, Op::ArgMax | Op::ArgMin | Op::EyeLike);
    for &slot in slots {
        let Some(x) = g.node(id).input(slot) else { continue };
        let real = match g.constant(x) {
            Some(c) => {
                let (shape, numbers) = (c.tensor.shape().to_vec(), c.tensor.to_i64().ok()?);
                g.add_constant("", Tensor::of(DType::F64, &shape, numbers.into_iter().map(|n| n as f64).collect()))
            }
            None => before(g, id, cast(DType::F64), &[x]),
        };
        g.set_input(id, slot, Some(real));
    }
    if whole { behind(g, id, 0, cast(DType::I64), &[]) } else { Some(()) }
}

/// tract's Celu forgets a factor α: `celu(x) = α · elu(x / α)`.
fn scaled_elu(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let (x, alpha) = (n.input(0)?, n.float("alpha").unwrap_or(1.0));
    let dtype = g.value(x).dtype().filter(|_| alpha != 1.0)?;
    let alpha = scalar(g, dtype, alpha)?;
    let divided = before(g, id, Node::new(Op::Div, ""), &[x, alpha]);
    turn_into(g, id, Op::Elu, &[divided]);
    behind(g, id, 0, Node::new(Op::Mul, ""), &[alpha])
}

/// tract's GatherND does not know that −1 is the last index.
fn count_from_the_front(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let (x, index, skip) = (n.input(0)?, n.input(1)?, usize::try_from(n.int("batch_dims").unwrap_or(0)).ok()?);
    let shape = g.value(x).known_shape()?;
    let depth = *g.value(index).known_shape()?.last()?;
    let lengths = shape.get(skip..skip + depth)?.to_vec();
    let (lengths, zero) = (ints(g, &lengths), g.add_constant("", Tensor::of_i64(&[1], vec![0])));
    let negative = before(g, id, Node::new(Op::Less, ""), &[index, zero]);
    let wrapped = before(g, id, Node::new(Op::Add, ""), &[index, lengths]);
    let chosen = before(g, id, Node::new(Op::Where, ""), &[negative, wrapped, index]);
    g.set_input(id, 1, Some(chosen));
    Some(())
}

/// tract's IsInf stops at run time.
fn compare_with_infinity(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let x = n.input(0)?;
    let wants = |name: &str| n.int(name).unwrap_or(1) != 0;
    let (positive, negative) = (wants("detect_positive"), wants("detect_negative"));
    let dtype = g.value(x).dtype().filter(|_| positive || negative)?;
    let infinity = scalar(g, dtype, if positive { f32::INFINITY } else { f32::NEG_INFINITY })?;
    let compared = if positive && negative { before(g, id, Node::new(Op::Abs, ""), &[x]) } else { x };
    turn_into(g, id, Op::Equal, &[compared, infinity]);
    Some(())
}

/// tract's Mod is wrong where its first operand is broadcast.
fn spread_dividend(g: &mut Graph, id: NodeId) -> Option<()> {
    let (a, y) = (g.node(id).input(0)?, g.node(id).output(0)?);
    let shape = g.value(y).known_shape().filter(|s| g.value(a).known_shape().as_ref() != Some(s))?;
    let shape = ints(g, &shape);
    let spread = before(g, id, Node::new(Op::Expand, ""), &[a, shape]);
    g.set_input(id, 0, Some(spread));
    Some(())
}

/// tract's Pad wants its filler as a scalar; files have vectors of one.
fn scalar_filler(g: &mut Graph, id: NodeId) -> Option<()> {
    let filler = g.constant(g.node(id).input(2)?).filter(|c| c.tensor.rank() > 0)?.tensor.reshaped(vec![]).ok()?;
    let filler = g.add_constant("", filler);
    g.set_input(id, 2, Some(filler));
    Some(())
}

/// The number that a Pad pads with, if that is rounded.
fn rounded_filler(model: &Model, pad: NodeId) -> Result<Option<f32>> {
    let g = &model.graph;
    let Some((fake, _)) = g.node(pad).input(2).and_then(|v| g.value(v).producer()) else { return Ok(None) };
    let Some(q) = g.node(fake).quantizer() else { return Ok(None) };
    let row = &model.quantizers[model.quantizers.root(q)];
    Ok(match (model.codes.get(&Site::of(fake)), &row.params, g.node(fake).input(0).and_then(|x| g.constant(x))) {
        (Some(codes), Some(params), _) => quant::dequantize(codes, &row.scheme, params)?.first().copied(),
        (_, _, Some(c)) => c.tensor.to_f32()?.first().copied(),
        _ => None,
    })
}

/// tract's Pad wants its filler when it plans. One that comes later, as what is rounded with what flows does, is put where zeros were padded.
fn fill_by_mask(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let filler = n.input(2)?;
    if n.str("mode").unwrap_or("constant") != "constant" {
        return None;
    }
    let to = g.value(n.output(0)?).known_shape()?;
    let pads = match n.input(1) {
        Some(v) => g.constant(v)?.tensor.to_i64().ok()?,
        None => n.ints("pads")?.to_vec(),
    };
    if pads.len() != 2 * to.len() || n.input(3).is_some() {
        return None;
    }
    // What was there before, padded alike; axes that are not padded stay one long. What is cut off is not there.
    let added: Vec<i64> = pads.iter().map(|p| (*p).max(0)).collect();
    let left = |i: usize| match added[i] + added[i + to.len()] {
        0 => Some(1),
        more => to[i].checked_sub(more as usize),
    };
    let shape = (0..to.len()).map(left).collect::<Option<Vec<usize>>>()?;
    let inside = Tensor::of(DType::Bool, &shape, vec![1u8; shape.iter().product()]);
    let mask = graph::eval(&Node::new(Op::Pad, "").with("pads", added), &[Some(&inside)])?.pop()?;
    let mask = g.add_constant("", mask);
    g.truncate_inputs(id, 2);
    insert_behind(g, id, 0, Node::new(Op::Where, ""), |padded| vec![mask, padded, filler])
}

/// tract's reductions do nothing over an empty list of axes, which means all of them unless the node says otherwise.
fn no_empty_axes(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let listed = n.input(1).and_then(|v| g.constant(v));
    let empty = n.ints("axes").is_some_and(<[i64]>::is_empty) || listed.is_some_and(|c| c.tensor.is_empty());
    if !empty || n.int("noop_with_empty_axes") == Some(1) {
        return None;
    }
    g.node_mut(id).remove_attr("axes");
    g.truncate_inputs(id, 1);
    Some(())
}

/// tract moves strided slices to where they are cheapest, and stops at a Reshape that it cannot take them through. Those of inputs have nowhere to go.
fn gather_every_nth(g: &mut Graph, id: NodeId) -> Option<()> {
    let steps = g.constant(g.node(id).input(4)?)?.tensor.to_i64().ok()?;
    let mut from = g.node(id).input(0)?;
    while let Some((n, _)) = g.value(from).producer().filter(|(n, _)| g.node(*n).op == Op::Slice) {
        from = g.node(n).input(0)?;
    }
    g.value(from).producer().filter(|_| steps.iter().any(|s| s.abs() > 1))?;
    let shape = g.value(g.node(id).input(0)?).known_shape()?;
    let numbers = |slot: usize| g.constant(g.node(id).input(slot)?)?.tensor.to_i64().ok();
    let (starts, ends) = (numbers(1)?, numbers(2)?);
    let axes = g.node(id).input(3).map_or_else(|| Some((0..starts.len() as i64).collect()), |_| numbers(3))?;
    let mut taken = Vec::new();
    for (i, axis) in axes.iter().enumerate() {
        let axis = graph::axis_of(*axis, shape.len())?;
        let (start, count) = graph::slice_axis(shape[axis], *starts.get(i)?, *ends.get(i)?, *steps.get(i)?)?;
        taken.push((axis, (0..count as i64).map(|k| start as i64 + k * steps[i]).collect::<Vec<_>>()));
    }
    let (last, rest) = taken.split_last()?;
    let mut x = g.node(id).input(0)?;
    let gather = |axis: usize| Node::new(Op::Gather, "").with("axis", axis as i64);
    for (axis, indices) in rest {
        let indices = g.add_constant("", Tensor::of_i64(&[indices.len()], indices.clone()));
        x = before(g, id, gather(*axis), &[x, indices]);
    }
    let indices = g.add_constant("", Tensor::of_i64(&[last.1.len()], last.1.clone()));
    turn_into(g, id, Op::Gather, &[x, indices]);
    g.node_mut(id).set_attr("axis", last.0 as i64);
    Some(())
}

/// tract wants to be told which axes go.
fn leave_ones_out(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let x = n.input(0).filter(|_| n.input(1).is_none() && n.attr("axes").is_none())?;
    let left: Vec<usize> = g.value(x).known_shape()?.into_iter().filter(|d| *d != 1).collect();
    let left = ints(g, &left);
    turn_into(g, id, Op::Reshape, &[x, left]);
    Some(())
}

/// tract aligns corners to the size before rounding, ONNX to the one after it: given sizes, both agree.
fn sizes_for_corners(g: &mut Graph, id: NodeId, opset: i64) -> Option<()> {
    let n = g.node(id);
    let aligned = opset >= 11 && n.str("coordinate_transformation_mode") == Some("align_corners");
    let scales = n.input(2).and_then(|v| g.constant(v)).is_some_and(|c| !c.tensor.is_empty());
    let sizes = g.value(n.output(0)?).known_shape().filter(|_| aligned && scales && n.attr("axes").is_none())?;
    let (sizes, none) = (ints(g, &sizes), g.add_constant("", Tensor::of_f32(&[0], Vec::new())));
    g.set_input(id, 2, Some(none));
    g.set_input(id, 3, Some(sizes));
    Some(())
}

/// Upsample to the nearest neighbour by whole factors: `[n, c, h, w] → [n, 1, c, 1, h, 1, w, 1] → [n, 1, c, 1, h, 2, w, 2] → [n, c, 2h, 2w]`.
fn repeat_neighbours(g: &mut Graph, id: NodeId) -> Option<()> {
    let n = g.node(id);
    let (x, y) = (n.input(0)?, n.output(0)?);
    let (from, to) = (g.value(x).known_shape()?, g.value(y).known_shape()?);
    if n.str("mode").unwrap_or("nearest") != "nearest" || from.len() != to.len() {
        return None;
    }
    let scales = match (n.input(1), n.attr("scales")) {
        (Some(v), _) => g.constant(v)?.tensor.to_f32().ok()?.into_owned(),
        (None, Some(crate::graph::AttrValue::Floats(v))) => v.clone(),
        _ => return None,
    };
    let whole = |(i, s): (usize, &f32)| from.get(i).is_some_and(|d| *s >= 1.0 && s.fract() == 0.0 && (*d as f64 * *s as f64) == to[i] as f64);
    if scales.len() != from.len() || !scales.iter().enumerate().all(whole) {
        return None;
    }
    let split: Vec<usize> = from.iter().flat_map(|d| [*d, 1]).collect();
    let repeated: Vec<usize> = from.iter().zip(&scales).flat_map(|(d, s)| [*d, *s as usize]).collect();
    let [split, repeated, joined] = [&split, &repeated, &to].map(|s| ints(g, s));
    let h = before(g, id, Node::new(Op::Reshape, ""), &[x, split]);
    let h = before(g, id, Node::new(Op::Expand, ""), &[h, repeated]);
    turn_into(g, id, Op::Reshape, &[h, joined]);
    Some(())
}
