//! Raises a model's opset: every node whose meaning or form changed on the way is rewritten, nothing is merely renumbered.
//! Source: the changes between versions of each operator in onnx 1.23's schemas. Goes up to opset 28 from 7 or later; from 22 on types were only added.

use crate::error::{Error, Result};
use crate::graph::{AttrValue, Flow, Graph, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;
use crate::tensor::Tensor;

/// The highest opset whose changes are known here.
pub const HIGHEST: i64 = 28;
const LOWEST: i64 = 7;

/// Converts the model to opset `to` of ONNX's own domain; one that has it, or a higher one, stays as it is.
pub fn raise_opset(model: &mut Model, to: i64) -> Result<Notes> {
    let mut notes = Notes::of("opset");
    let from = model.opset("").unwrap_or(1);
    if from >= to {
        return Ok(notes);
    }
    if from < LOWEST || to > HIGHEST {
        return Err(Error::failed(format!("opset {from} cannot be converted to opset {to}: conversions from opset {LOWEST} on and up to {HIGHEST} are known")));
    }
    if !model.extra.is_empty() && model.graph.nodes().any(|(_, n)| n.op == Op::Other && n.domain.is_empty()) {
        return Err(Error::failed(format!("opset {from} cannot be converted to opset {to}: the model calls functions or operators of its own")));
    }
    let changed = raise_graph(&mut model.graph, from, to)?;
    model.set_opset("", to);
    model.ir_version = model.ir_version.max(crate::target::spelling::ir_of_opset(to));
    notes.changed("", format!("opset {from} converted to {to}; {changed} nodes rewritten"));
    Ok(notes)
}

fn raise_graph(g: &mut Graph, from: i64, to: i64) -> Result<usize> {
    let mut changed = 0;
    for id in g.order().to_vec() {
        for body in g.node_mut(id).bodies_mut() {
            changed += raise_graph(body, from, to)?;
        }
        g.refresh_captures(id);
        for &(version, ops, rewrite) in STEPS {
            if from < version && version <= to && ops.contains(&g.node(id).op) {
                let name = g.node(id).name.clone();
                rewrite(g, id, version)
                    .map_err(|why| Error::failed(format!("node {name} ({}) cannot be raised to opset {version}: {why}", g.node(id).op_type)))?;
                changed += 1;
                if g.get_node(id).is_none() {
                    break;
                }
            }
        }
    }
    Ok(changed)
}

/// Rewrites one node for the version given.
type Rewrite = fn(&mut Graph, NodeId, i64) -> Result<(), String>;

pub(super) const REDUCE: &[Op] =
    &[Op::ReduceMean, Op::ReduceMax, Op::ReduceMin, Op::ReduceProd, Op::ReduceL1, Op::ReduceL2, Op::ReduceLogSum, Op::ReduceLogSumExp, Op::ReduceSumSquare];

/// (version, ops, what changed), ascending.
const STEPS: &[(i64, &[Op], Rewrite)] = &[
    (9, &[Op::Upsample], scales_to_input),
    (10, &[Op::Slice], slice_to_inputs),
    (10, &[Op::TopK], k_to_input),
    (10, &[Op::Upsample], upsample_to_resize),
    (11, &[Op::Clip], bounds_to_inputs),
    (11, &[Op::Pad], pads_to_inputs),
    (11, &[Op::Resize], resize_10_to_11),
    (11, &[Op::Scatter], rename_scatter),
    (12, &[Op::Dropout], ratio_to_input),
    (13, &[Op::Squeeze, Op::Unsqueeze, Op::ReduceSum], axes_to_input),
    (13, &[Op::Split], split_to_input),
    (13, &[Op::Softmax, Op::LogSoftmax, Op::Hardmax], softmax_over_one_axis),
    (14, &[Op::BatchNormalization], inference_only),
    (18, REDUCE, axes_to_input),
    (18, &[Op::Split], name_number_of_outputs),
    (20, &[Op::GridSample], rename_interpolation),
    (20, &[Op::DFT], not_known),
    (21, &[Op::GroupNormalization], not_known),
];

fn not_known(_: &mut Graph, _: NodeId, _: i64) -> Result<(), String> {
    Err("its change is not one that can be rewritten yet".into())
}

fn add_ints(g: &mut Graph, id: NodeId, slot: usize, what: &str, values: Vec<i64>) {
    let name = format!("{}_{what}", g.node(id).name);
    let v = g.add_constant(&name, Tensor::of_i64(&[values.len()], values));
    g.set_input(id, slot, Some(v));
}

fn take_ints(g: &mut Graph, id: NodeId, name: &str) -> Option<Vec<i64>> {
    let v = g.node(id).ints(name)?.to_vec();
    g.node_mut(id).remove_attr(name);
    Some(v)
}

fn axes_to_input(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    if let Some(axes) = take_ints(g, id, "axes") {
        add_ints(g, id, 1, "axes", axes);
    }
    Ok(())
}

fn split_to_input(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    if let Some(split) = take_ints(g, id, "split") {
        add_ints(g, id, 1, "split", split);
    }
    Ok(())
}

fn name_number_of_outputs(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    if g.node(id).input(1).is_none() {
        let n = g.node(id).outputs().len() as i64;
        g.node_mut(id).set_attr("num_outputs", n);
    }
    Ok(())
}

fn slice_to_inputs(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let (Some(starts), Some(ends)) = (take_ints(g, id, "starts"), take_ints(g, id, "ends")) else { return Err("it has no starts or ends".into()) };
    add_ints(g, id, 1, "starts", starts);
    add_ints(g, id, 2, "ends", ends);
    if let Some(axes) = take_ints(g, id, "axes") {
        add_ints(g, id, 3, "axes", axes);
    }
    Ok(())
}

fn k_to_input(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let k = g.node(id).int("k").ok_or("it has no k")?;
    g.node_mut(id).remove_attr("k");
    add_ints(g, id, 1, "k", vec![k]);
    Ok(())
}

fn scales_to_input(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let Some(AttrValue::Floats(scales)) = g.node(id).attr("scales").cloned() else { return Err("it has no scales".into()) };
    g.node_mut(id).remove_attr("scales");
    let name = format!("{}_scales", g.node(id).name);
    let v = g.add_constant(&name, Tensor::of_f32(&[scales.len()], scales));
    g.set_input(id, 1, Some(v));
    Ok(())
}

/// Puts a node of another op in the place of `id`, with its inputs, outputs, attributes and name.
fn respell(g: &mut Graph, id: NodeId, op: Op) -> NodeId {
    let at = g.position(id);
    let old = g.remove_node(id);
    let mut new = Node::new(op, old.name.clone());
    new.attrs = old.attrs.clone();
    new.came_from = old.came_from.clone();
    g.insert_node(at, new, old.inputs(), old.outputs())
}

fn rename_scatter(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    respell(g, id, Op::ScatterElements);
    Ok(())
}

/// Upsample is Resize with the coordinates that Resize had in opset 10.
fn upsample_to_resize(g: &mut Graph, id: NodeId, version: i64) -> Result<(), String> {
    let new = respell(g, id, Op::Resize);
    resize_10_to_11(g, new, version)
}

fn resize_10_to_11(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let scales = g.node(id).input(1).ok_or("it has no scales")?;
    let name = format!("{}_roi", g.node(id).name);
    let roi = g.add_constant(&name, Tensor::of_f32(&[0], Vec::new()));
    g.set_input(id, 1, Some(roi));
    g.set_input(id, 2, Some(scales));
    let n = g.node_mut(id);
    n.set_attr("coordinate_transformation_mode", "asymmetric");
    if n.str("mode").unwrap_or("nearest") == "nearest" {
        n.set_attr("nearest_mode", "floor");
    }
    Ok(())
}

fn bounds_to_inputs(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        if let Some(bound) = g.node(id).float(name) {
            g.node_mut(id).remove_attr(name);
            let v = g.add_constant(&format!("{}_{name}", g.node(id).name), Tensor::scalar(bound));
            g.set_input(id, slot, Some(v));
        }
    }
    Ok(())
}

fn pads_to_inputs(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let pads = take_ints(g, id, "pads").ok_or("it has no pads")?;
    add_ints(g, id, 1, "pads", pads);
    if let Some(value) = g.node(id).float("value") {
        g.node_mut(id).remove_attr("value");
        let v = g.add_constant(&format!("{}_value", g.node(id).name), Tensor::scalar(value));
        g.set_input(id, 2, Some(v));
    }
    Ok(())
}

fn ratio_to_input(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    if let Some(ratio) = g.node(id).float("ratio") {
        g.node_mut(id).remove_attr("ratio");
        let v = g.add_constant(&format!("{}_ratio", g.node(id).name), Tensor::scalar(ratio));
        g.set_input(id, 1, Some(v));
    }
    Ok(())
}

fn inference_only(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    if g.node(id).outputs().iter().skip(1).any(Option::is_some) {
        return Err("it is in training mode".into());
    }
    g.node_mut(id).remove_attr("spatial");
    Ok(())
}

fn rename_interpolation(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let mode = match g.node(id).str("mode") {
        None | Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some(_) => return Ok(()),
    };
    g.node_mut(id).set_attr("mode", mode);
    Ok(())
}

/// Before opset 13 these ran over the input flattened to two dimensions at `axis` (default 1). Where `axis` is not the last one, that flattening is written out.
fn softmax_over_one_axis(g: &mut Graph, id: NodeId, _: i64) -> Result<(), String> {
    let axis = g.node(id).int("axis").unwrap_or(1);
    let (x, y) = (g.node(id).input(0).ok_or("it has no input")?, g.node(id).output(0).ok_or("it has no output")?);
    let rank = rank_of(g, x).or_else(|| rank_of(g, y));
    if axis == -1 || rank == Some((axis + 1) as usize) {
        g.node_mut(id).set_attr("axis", axis);
        return Ok(());
    }
    let name = g.node(id).name.clone();
    let at = g.position(id);
    let add = |g: &mut Graph, what: &str| g.add_value(&format!("{name}_{what}"));
    let (flat, shape, soft) = (add(g, "flat"), add(g, "shape"), add(g, "soft"));
    g.insert_node(at, Node::new(Op::Shape, format!("{name}_Shape")), &[Some(x)], &[Some(shape)]);
    g.insert_node(at + 1, Node::new(Op::Flatten, format!("{name}_Flatten")).with("axis", axis), &[Some(x)], &[Some(flat)]);
    g.set_input(id, 0, Some(flat));
    g.set_output(id, 0, soft);
    g.node_mut(id).set_attr("axis", 1i64);
    g.insert_node(at + 3, Node::new(Op::Reshape, format!("{name}_Reshape")), &[Some(soft), Some(shape)], &[Some(y)]);
    Ok(())
}

fn rank_of(g: &Graph, v: ValueId) -> Option<usize> {
    match &g.value(v).ty {
        crate::graph::Type::Tensor { shape: Some(s), .. } => Some(s.len()),
        _ => match g.value(v).producer() {
            // Layers whose results have a known rank, for models without shapes.
            Some((n, _)) if g.node(n).op == Op::Gemm => Some(2),
            Some((n, _)) if g.node(n).op == Op::Flatten => Some(2),
            Some((n, _)) if matches!(g.node(n).op.flow(), Flow::Pointwise | Flow::Clamp) => rank_of(g, g.node(n).input(0)?),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(op: Op, attrs: Vec<(&str, AttrValue)>, opset: i64) -> (Model, NodeId) {
        let mut m = Model { opsets: vec![(String::new(), opset)], ..Model::default() };
        let [x, y] = ["x", "y"].map(|n| m.graph.add_value(n));
        m.graph.inputs.push(x);
        m.graph.outputs.push(y);
        let mut node = Node::new(op, "n");
        attrs.into_iter().for_each(|(k, v)| node.set_attr(k, v));
        let id = m.graph.add_node(node, &[Some(x)], &[Some(y)]);
        (m, id)
    }

    fn ints(m: &Model, id: NodeId, slot: usize) -> Vec<i64> {
        m.graph.constant(m.graph.node(id).input(slot).unwrap()).unwrap().tensor.to_i64().unwrap()
    }

    #[test]
    fn attributes_become_inputs() {
        let (mut m, id) = one(Op::Slice, vec![("starts", vec![1i64].into()), ("ends", vec![3i64].into()), ("axes", vec![0i64].into())], 9);
        raise_opset(&mut m, 13).unwrap();
        assert_eq!((ints(&m, id, 1), ints(&m, id, 2), ints(&m, id, 3)), (vec![1], vec![3], vec![0]));
        assert!(m.graph.node(id).attrs.is_empty());
        assert_eq!(m.opset(""), Some(13));

        let (mut m, id) = one(Op::ReduceMean, vec![("axes", vec![2i64, 3].into())], 12);
        raise_opset(&mut m, 13).unwrap();
        assert!(m.graph.node(id).ints("axes").is_some(), "ReduceMean changes in 18 only");
        raise_opset(&mut m, 21).unwrap();
        assert_eq!(ints(&m, id, 1), [2, 3]);
    }

    #[test]
    fn clip_without_bounds_gets_none() {
        let (mut m, id) = one(Op::Clip, vec![("max", 6.0f32.into())], 10);
        raise_opset(&mut m, 13).unwrap();
        let n = m.graph.node(id);
        assert!(n.input(1).is_none() && n.input(2).is_some());
    }

    #[test]
    fn softmax_keeps_its_meaning() {
        let (mut m, _) = one(Op::Softmax, vec![], 11);
        raise_opset(&mut m, 13).unwrap();
        let ops: Vec<Op> = m.graph.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::Shape, Op::Flatten, Op::Softmax, Op::Reshape]);
        let (mut m, id) = one(Op::Softmax, vec![("axis", (-1i64).into())], 11);
        raise_opset(&mut m, 13).unwrap();
        assert_eq!(m.graph.node(id).int("axis"), Some(-1));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let (mut m, _) = one(Op::DFT, vec![], 17);
        let e = raise_opset(&mut m, 21).unwrap_err().to_string();
        assert!(e.contains("node n (DFT)"), "{e}");
        let (mut m, _) = one(Op::Relu, vec![], 13);
        assert!(raise_opset(&mut m, 29).is_err());
        assert!(raise_opset(&mut m, 13).unwrap().list().is_empty());
    }
}
