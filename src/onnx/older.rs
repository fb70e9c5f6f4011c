//! Lowers a model's opset to what a target reads: nodes whose operator changed on the way, or came on it, are rewritten; where no older opset has words for
//! one, it is named.
//! Source: the changes between versions of each operator in onnx 1.23's schemas, and the function bodies of operators that came.

use super::opset::{HIGHEST, REDUCE};
use super::spelled::{AXES_AS_INPUT, Undo, spell_out};
use crate::error::{Error, Result};
use crate::graph::{AttrValue, Graph, Inferred, InputShapes, Model, NodeId, Op, half_since, infer, infer_body};
use crate::note::Notes;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// The lowest opset that models are lowered to.
const LOWEST: i64 = 13;

/// Converts the model to opset `to` of ONNX's own domain; one that has it, or a lower one, stays as it is. `lifted`: QuantizeLinear and DequantizeLinear will
/// be taken off and written anew, so that they do not count.
///
/// # Errors
/// A node that opset `to` has no words for.
pub fn lower_opset(model: &mut Model, to: i64, lifted: bool) -> Result<Notes> {
    let mut notes = Notes::of("opset");
    let from = model.opset("").unwrap_or(1);
    if from <= to {
        return Ok(notes);
    }
    if to < LOWEST || from > HIGHEST {
        return Err(Error::failed(format!("opset {from} cannot be lowered to opset {to}: that is known from opset {HIGHEST} on, and down to {LOWEST}")));
    }
    let inferred = infer(model, &InputShapes::new());
    let changed = lower_graph(&mut model.graph, &inferred, &Way { from, to, lifted })?;
    model.set_opset("", to);
    model.ir_version = model.ir_version.min(crate::target::spelling::ir_of_opset(to).max(8));
    notes.changed("", format!("opset {from} lowered to {to}; {changed} nodes rewritten"));
    Ok(notes)
}

struct Way {
    from: i64,
    to: i64,
    lifted: bool,
}

fn lower_graph(g: &mut Graph, inferred: &Inferred, way: &Way) -> Result<usize> {
    let mut changed = 0;
    for id in g.order().to_vec() {
        let node = g.node(id);
        if way.lifted && matches!(node.op, Op::QuantizeLinear | Op::DequantizeLinear) {
            continue;
        }
        let (name, op_type) = (node.name.clone(), node.op_type.clone());
        let fail = |why: String| Error::failed(format!("node {name} ({op_type}) cannot be written in opset {}: {why}", way.to));
        if let Some(why) = untyped(g, id, inferred, way) {
            return Err(fail(why));
        }
        let scope = inferred.around(g, g.node(id), &BTreeMap::new());
        for body in g.node_mut(id).bodies_mut() {
            let inner = infer_body(body, &scope);
            changed += lower_graph(body, &inner, way)?;
        }
        g.refresh_captures(id);
        for (version, ops, change) in CHANGES {
            if *version <= way.to || *version > way.from || g.get_node(id).is_none_or(|n| !ops.contains(&n.op)) {
                continue;
            }
            let before = g.node(id).clone();
            undo(g, id, change, inferred, way.to).map_err(&fail)?;
            changed += g.get_node(id).is_none_or(|n| *n != before) as usize;
        }
    }
    Ok(changed)
}

/// Why the types around a node are none of the opset's, if they are not.
fn untyped(g: &Graph, id: NodeId, inferred: &Inferred, way: &Way) -> Option<String> {
    let node = g.node(id);
    if node.op == Op::Other && node.domain.is_empty() {
        return Some("the operator is not known".into());
    }
    if !node.domain.is_empty() {
        return None;
    }
    let types = node.inputs().iter().chain(node.outputs()).flatten().filter_map(|v| inferred.get(*v).dtype);
    types.into_iter().find_map(|t| {
        let since = match t {
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19,
            DType::I4 | DType::U4 => 21,
            DType::F4E2M1 => 23,
            DType::F8E8M0 => 24,
            DType::I2 | DType::U2 => 25,
            DType::BF16 => half_since(node.op, t).unwrap_or(0),
            DType::U16 | DType::I16 if matches!(node.op, Op::QuantizeLinear | Op::DequantizeLinear) => 21,
            DType::U8 | DType::I8 | DType::U16 | DType::I16 if matches!(node.op, Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Relu) => 14,
            DType::Bool if matches!(node.op, Op::ReduceMax | Op::ReduceMin) => 20,
            _ => 0,
        };
        (since > way.to).then(|| format!("its {t} is of opset {since}"))
    })
}

/// What an opset changed of an operator.
enum Change {
    /// It came then.
    Came,
    /// It came then, and is a function of operators that were there.
    Function,
    /// Attributes came, which mean what was before where they are absent or have these values.
    Attributes(&'static [(&'static str, Usual)]),
    /// An attribute may have these values since then.
    Values(&'static str, &'static [&'static str]),
    /// An input came.
    Input(usize, &'static str),
    /// Something else.
    Rewritten(Undo),
}

enum Usual {
    Int(i64),
    Word(&'static str),
    Ones,
    Absent,
}

use Change::{Attributes, Came, Function, Input, Rewritten, Values};
use Usual::{Absent, Int, Ones, Word};

const CODES: &[Op] = &[Op::QuantizeLinear, Op::DequantizeLinear];
const SCATTER: &[Op] = &[Op::ScatterND, Op::ScatterElements];
const RECURRENT: &[Op] = &[Op::LSTM, Op::GRU, Op::RNN];

/// (version, operators, what it changed), the last version first.
const CHANGES: &[(i64, &[Op], Change)] = &[
    (25, &[Op::Attention], Attributes(&[("left_window_size", Int(-1)), ("right_window_size", Int(-1))])),
    (24, &[Op::Attention], Input(6, "nonpad_kv_seqlen")),
    (24, &[Op::Cast, Op::CastLike], Attributes(&[("round_mode", Word("up"))])),
    (24, &[Op::Swish], Function),
    (23, &[Op::Attention], Function),
    (23, &[Op::RotaryEmbedding], Came),
    (23, &[Op::RMSNormalization], Function),
    (23, CODES, Attributes(&[("precision", Int(0)), ("output_dtype", Int(0))])),
    (21, CODES, Attributes(&[("block_size", Int(0)), ("output_dtype", Int(0))])),
    (21, &[Op::GroupNormalization], Came),
    (20, &[Op::Gelu], Function),
    (20, &[Op::GridSample], Rewritten(rename_interpolation)),
    (20, &[Op::DFT], Came),
    (19, &[Op::AveragePool], Attributes(&[("dilations", Ones)])),
    (19, &[Op::Cast, Op::CastLike, Op::QuantizeLinear], Attributes(&[("saturate", Int(1))])),
    (19, &[Op::DeformConv], Came),
    (19, &[Op::Pad], Values("mode", &["wrap"])),
    (19, &[Op::Resize], Values("coordinate_transformation_mode", &["half_pixel_symmetric"])),
    (AXES_AS_INPUT, REDUCE, Rewritten(axes_to_attribute)),
    (18, &[Op::Split], Rewritten(equal_parts)),
    (18, &[Op::Pad], Input(3, "axes")),
    (18, &[Op::Resize], Attributes(&[("antialias", Int(0)), ("axes", Absent), ("keep_aspect_ratio_policy", Word("stretch"))])),
    (18, &[Op::LpPool], Attributes(&[("ceil_mode", Int(0)), ("dilations", Ones)])),
    (18, SCATTER, Values("reduction", &["max", "min"])),
    (18, &[Op::Mish], Function),
    (18, &[Op::BitwiseAnd, Op::BitwiseNot, Op::BitwiseOr, Op::BitwiseXor, Op::CenterCropPad, Op::Col2Im], Came),
    (17, &[Op::LayerNormalization, Op::DFT, Op::STFT, Op::BlackmanWindow, Op::HammingWindow, Op::HannWindow, Op::MelWeightMatrix], Came),
    (16, SCATTER, Attributes(&[("reduction", Word("none"))])),
    (16, &[Op::GridSample], Came),
    (16, &[Op::RoiAlign], Came),
    (15, &[Op::CastLike, Op::Bernoulli], Came),
    (15, &[Op::Shape], Attributes(&[("start", Int(0)), ("end", Absent)])),
    (14, &[Op::Trilu], Came),
    (14, &[Op::HardSwish], Function),
    (14, &[Op::Reshape], Attributes(&[("allowzero", Int(0))])),
    (14, RECURRENT, Attributes(&[("layout", Int(0))])),
    (14, &[Op::BatchNormalization], Attributes(&[("training_mode", Int(0))])),
];

fn undo(g: &mut Graph, id: NodeId, change: &Change, inferred: &Inferred, to: i64) -> Result<(), String> {
    match change {
        Came => Err("the operator came later".into()),
        Function => spell_out(g, id, inferred, to),
        Rewritten(rewrite) => rewrite(g, id, inferred, to),
        Attributes(list) => list.iter().try_for_each(|(name, usual)| {
            let node = g.node_mut(id);
            let as_before = match (node.attr(name), usual) {
                (None, _) => true,
                (Some(AttrValue::Int(n)), Int(usual)) => n == usual,
                (Some(_), Word(usual)) => node.str(name) == Some(usual),
                (Some(AttrValue::Ints(list)), Ones) => list.iter().all(|n| *n == 1),
                _ => false,
            };
            node.remove_attr(name);
            if as_before { Ok(()) } else { Err(format!("its `{name}` came later")) }
        }),
        Values(name, later) => match g.node(id).str(name).filter(|value| later.contains(value)) {
            Some(value) => Err(format!("its {name} `{value}` came later")),
            None => Ok(()),
        },
        Input(slot, name) => match g.node(id).input(*slot) {
            Some(_) => Err(format!("its input `{name}` came later")),
            None => Ok(()),
        },
    }
}

fn rename_interpolation(g: &mut Graph, id: NodeId, _: &Inferred, _: i64) -> Result<(), String> {
    let mode = match g.node(id).str("mode") {
        None | Some("linear") => "bilinear",
        Some("cubic") => "bicubic",
        Some(_) => return Ok(()),
    };
    g.node_mut(id).set_attr("mode", mode);
    Ok(())
}

fn axes_to_attribute(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let axes = match g.node(id).input(1) {
        Some(v) => {
            let known = inferred.get(v).constant.as_ref().and_then(|t| t.to_i64().ok());
            Some(known.ok_or("its axes are computed")?)
        }
        None => None,
    };
    let node = g.node_mut(id);
    let nothing = node.int("noop_with_empty_axes").unwrap_or(0) != 0;
    node.remove_attr("noop_with_empty_axes");
    match axes.filter(|a| !a.is_empty()) {
        Some(axes) => node.set_attr("axes", axes),
        None if nothing => return Err("without axes it does nothing, which came later".into()),
        None => {}
    }
    if let Some(v) = g.node(id).input(1) {
        g.truncate_inputs(id, 1);
        g.remove_idle(v);
    }
    Ok(())
}

fn equal_parts(g: &mut Graph, id: NodeId, inferred: &Inferred, _: i64) -> Result<(), String> {
    let node = g.node(id);
    let parts = node.outputs().len() as i64;
    if node.int("num_outputs").is_some() && node.input(1).is_none() {
        let axis = node.int("axis").unwrap_or(0);
        let shape = node.input(0).and_then(|x| inferred.get(x).shape.clone()).ok_or("its parts have no known size")?;
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        match shape.get(axis as usize) {
            Some(crate::graph::Dim::Known(n)) => {
                let size = (*n as i64 + parts - 1) / parts;
                let sizes: Vec<i64> = (0..parts).map(|i| size.min(*n as i64 - i * size).max(0)).collect();
                let v = g.add_constant(&format!("{}_split", g.node(id).name), Tensor::of_i64(&[sizes.len()], sizes));
                g.set_input(id, 1, Some(v));
            }
            _ => return Err("its parts have no known size".into()),
        }
    }
    g.node_mut(id).remove_attr("num_outputs");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, ValueId};

    fn one(op: Op, attrs: &[(&'static str, AttrValue)], inputs: usize) -> (Model, NodeId) {
        let mut m = Model { ir_version: 11, opsets: vec![(String::new(), 23)], ..Model::default() };
        let values: Vec<ValueId> = (0..=inputs).map(|i| m.graph.add_value(&format!("v{i}"))).collect();
        m.graph.inputs = values[..inputs].to_vec();
        m.graph.outputs.push(values[inputs]);
        let mut node = Node::new(op, "n");
        attrs.iter().for_each(|(k, v)| node.set_attr(k, v.clone()));
        let operands: Vec<Option<ValueId>> = values[..inputs].iter().copied().map(Some).collect();
        let id = m.graph.add_node(node, &operands, &[Some(values[inputs])]);
        (m, id)
    }

    #[test]
    fn what_later_opsets_alone_can_say_is_named() {
        for (op, attrs, inputs, to, why) in [
            (Op::RotaryEmbedding, vec![], 3, 22, "the operator came later"),
            (Op::Attention, vec![], 3, 22, "the rank of its query is not known"),
            (Op::AveragePool, vec![("dilations", vec![2i64, 1].into())], 1, 18, "its `dilations` came later"),
            (Op::Pad, vec![("mode", "wrap".into())], 2, 18, "its mode `wrap` came later"),
            (Op::Pad, vec![], 4, 17, "its input `axes` came later"),
            (Op::ReduceMean, vec![], 2, 17, "its axes are computed"),
            (Op::ReduceMean, vec![("noop_with_empty_axes", 1i64.into())], 1, 17, "without axes it does nothing"),
            (Op::Split, vec![("num_outputs", 1i64.into())], 1, 17, "its parts have no known size"),
            (Op::Gelu, vec![], 1, 19, "its type is not known"),
        ] {
            let (mut m, _) = one(op, &attrs, inputs);
            let e = lower_opset(&mut m, to, false).unwrap_err().to_string();
            assert!(e.contains("node n (") && e.contains(why), "{op:?}: {e}");
        }
    }

    #[test]
    fn what_means_the_same_is_renumbered() {
        let (mut m, id) = one(Op::AveragePool, &[("dilations", vec![1i64, 1].into())], 1);
        lower_opset(&mut m, 17, false).unwrap();
        assert!(m.graph.node(id).attrs.is_empty() && m.opset("") == Some(17) && m.ir_version == 8);
        assert!(lower_opset(&mut m, 17, false).unwrap().list().is_empty());
        // Codes that will be written anew do not count.
        let (mut m, _) = one(Op::DequantizeLinear, &[("block_size", 32i64.into())], 3);
        assert!(lower_opset(&mut m.clone(), 17, false).is_err());
        lower_opset(&mut m, 17, true).unwrap();
    }
}
