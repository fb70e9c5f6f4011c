//! What becomes of each node.

use super::Rules;
use super::wishes::Wishes;
use crate::graph::{Flow, Graph, Inferred, Model, Node, NodeId, Op, Role, ValueId};
use crate::tensor::DType;

/// How a node takes part.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Runs on codes: its operands and results are quantized.
    Quantized,
    /// Its constant weights are codes; everything that flows stays float.
    Weights,
    /// Hands codes on: output and input share one quantizer if the input has one.
    Moves,
    /// Stays in float, for this reason.
    Float(String),
    /// Deals in shapes, indices and conditions: not touched.
    Exact,
}

/// Whether a value is made of real numbers that may be quantized.
pub fn is_real(inferred: &Inferred, v: ValueId) -> bool {
    inferred.get(v).dtype == Some(DType::F32)
}

/// The kind of one node.
pub fn kind_of(model: &Model, id: NodeId, node: &Node, inferred: &Inferred, rules: &Rules, wishes: &Wishes) -> Kind {
    if matches!(node.op.flow(), Flow::Meta | Flow::Quantize) {
        return Kind::Exact;
    }
    if let Some(why) = wishes.keep(id) {
        return Kind::Float(why.to_string());
    }
    if matches!(node.op.flow(), Flow::Opaque | Flow::Control) {
        return Kind::Float(format!("{} is not an operator that can be quantized", node.op_type));
    }
    let outputs: Vec<ValueId> = node.outputs().iter().flatten().copied().collect();
    if !outputs.first().is_some_and(|v| is_real(inferred, *v)) {
        return Kind::Exact;
    }
    let profile = rules.profile;
    if profile.float.contains(&node.op) {
        return Kind::Float(format!("target {} runs {} in float", profile.name, node.op_type));
    }
    if profile.moves.contains(&node.op) {
        match table_axis(&model.graph, node) {
            Some(_) if !profile.code_constants.contains(&node.op) => return Kind::Quantized,
            Some(_) => return Kind::Moves,
            None if moves_values(model, node) => return Kind::Moves,
            None => {}
        }
    }
    if profile.weights_only.contains(&node.op) {
        return Kind::Weights;
    }
    if profile.quantize.contains(&node.op) {
        return match first_unreal(model, node, inferred) {
            None => Kind::Quantized,
            Some(name) => Kind::Float(format!("its operand {name} is not float32")),
        };
    }
    Kind::Float(format!("target {} does not run {} on codes", profile.name, node.op_type))
}

/// The axis along which a Gather picks rows of a constant table: the table is a weight, and its rows have scales of their own.
pub fn table_axis(g: &Graph, node: &Node) -> Option<i32> {
    let table = g.constant(node.input(0).filter(|_| node.op == Op::Gather)?)?;
    let (axis, rank) = (node.int("axis").unwrap_or(0), table.tensor.rank() as i64);
    let axis = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&axis).then_some(axis as i32)
}

/// An operand that should be real and is not.
fn first_unreal(model: &Model, node: &Node, inferred: &Inferred) -> Option<String> {
    node.inputs()
        .iter()
        .enumerate()
        .filter(|(slot, _)| matches!(node.op.role(*slot), Role::Activation | Role::Weight | Role::Bias))
        .filter_map(|(_, v)| *v)
        .find(|v| !is_real(inferred, *v))
        .map(|v| model.graph.value(v).name.clone())
}

fn one_number(model: &Model, v: ValueId) -> Option<f32> {
    let constant = model.graph.constant(v)?.tensor.to_f32().ok()?;
    constant.first().copied().filter(|_| constant.len() == 1)
}

/// The constant that was added to what a node reads: what 0 has become there, and as good a code.
fn shifted_by(model: &Model, node: &Node) -> Option<f32> {
    let add = model.graph.node(model.graph.value(node.input(0)?).producer()?.0);
    let constant = |slot: usize| add.input(slot).and_then(|v| one_number(model, v));
    (add.op == Op::Add).then(|| constant(0).or(constant(1))).flatten()
}

/// Whether an op that can move values does nothing else here.
fn moves_values(model: &Model, node: &Node) -> bool {
    match node.op {
        // Linear and cubic interpolation compute; a padding value other than zero is not a code of every range.
        Op::Resize | Op::Upsample => node.str("mode").unwrap_or("nearest") == "nearest",
        Op::Pad => match (node.str("mode").unwrap_or("constant"), node.input(2)) {
            ("constant", value) => {
                let padding = value.map_or(node.float("value"), |v| one_number(model, v)).unwrap_or(if value.is_none() { 0.0 } else { f32::NAN });
                padding == 0.0 || shifted_by(model, node) == Some(padding)
            }
            _ => true,
        },
        Op::Gather | Op::GatherElements | Op::GatherND => node.input(0).is_some_and(|v| model.graph.constant(v).is_none()),
        _ => true,
    }
}
