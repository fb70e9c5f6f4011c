//! From a prepared model to tract's optimised plan; where that fails, which nodes are at fault.

use super::tensors::{datum_type, to_tract};
use super::{fake_quant, narrow};
use super::{proto, support};
use crate::error::{At, Error, Result};
use crate::graph::{Graph, Model, Node, NodeId, ValueId};
use crate::tensor::{DType, Tensor};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Once};
use tract_onnx::prelude::{InferenceModelExt, IntoArcTensor, TractResult, TypedModel};
use tract_onnx::tract_core::knobs::KnobScope;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::dummy::Dummy;
use tract_onnx::tract_hir::internal::{InferenceFact, InferenceModel, InferenceOp, SimplePlan, TypedFact, TypedOp};

pub type Plan = SimplePlan<TypedFact, Box<dyn TypedOp>>;

/// A value that the plan is given at each run.
pub type Source = (ValueId, DType, Vec<usize>);

/// One error that names every node of the list.
pub fn refuse(unsupported: &[(String, String)]) -> Result<()> {
    if unsupported.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = unsupported.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    Err(Error::failed(format!("the engine cannot run {} of the model's nodes: {}", list.len(), list.join("; "))))
}

/// tract's plan of the nodes of `model`, which returns the values `wanted`.
///
/// # Errors
/// Names every node that tract cannot plan.
pub fn plan(model: &Model, given: &[Source], wanted: &[ValueId]) -> Result<Arc<Plan>> {
    let complaint = match attempt(model, given, wanted)? {
        Ok(plan) => return Ok(plan),
        Err(complaint) => complaint,
    };
    refuse(&faulty(model, given))?;
    let g = &model.graph;
    let node = proto::node_of(&complaint).and_then(|i| g.get_node(NodeId(i)));
    let about = node.map_or("the model".to_string(), |n| format!("{} ({})", support::label(g, n), n.op_type));
    Err(Error::failed(format!("the engine cannot run {about}: {}", plain(&complaint))))
}

/// Parsed, pinned, optimised; or tract's complaint.
fn attempt(model: &Model, given: &[Source], wanted: &[ValueId]) -> Result<Result<Arc<Plan>, String>> {
    let g = &model.graph;
    let sources: BTreeSet<ValueId> = given.iter().map(|s| s.0).collect();
    let constants: Vec<(ValueId, &Tensor)> = g
        .values()
        .filter(|(v, value)| !value.uses().is_empty() && !sources.contains(v))
        .filter_map(|(v, value)| Some((v, &value.constant.as_ref()?.tensor)))
        .filter(|(_, t)| datum_type(t.dtype()).is_some())
        .collect();
    let mut declared = given.to_vec();
    declared.extend(constants.iter().map(|(v, t)| (*v, t.dtype(), t.shape().to_vec())));
    let proto = proto::encode(model, &declared, wanted)?;
    let constants = constants.into_iter().map(|(v, t)| Ok((v, to_tract(t).at(|| g.value(v).name.clone())?))).collect::<Result<Vec<_>>>()?;
    let name = |v: ValueId| g.value(v).name.as_str();
    Ok(guarded(|| {
        let mut onnx = tract_onnx::onnx();
        onnx.op_register.insert(fake_quant::name(), fake_quant::parse);
        onnx.op_register.insert(narrow::name(), narrow::parse);
        let parsed = onnx.parse(&proto, None)?;
        let mut m: InferenceModel = parsed.model;
        for (v, t) in constants {
            let outlet = parsed.outlets_by_name[name(v)];
            let t = t.into_arc_tensor();
            let node = m.node_mut(outlet.node);
            node.outputs[outlet.slot].fact = InferenceFact::from(&TypedFact::try_from(t.clone())?);
            node.op = Box::new(tract_onnx::tract_hir::ops::konst::Const::new(t)?) as Box<dyn InferenceOp>;
            m.inputs.retain(|o| *o != outlet);
        }
        m.select_output_outlets(&wanted.iter().map(|&v| parsed.outlets_by_name[name(v)]).collect::<Vec<_>>())?;
        let typed: TypedModel = m.into_typed()?;
        let products = if products_are_faster(&typed) { "true" } else { "false" };
        let optimized = KnobScope::new([("TRACT_DISABLE_DIRECT_SPATIAL", products)])?.enter(|| typed.clone().into_optimized())?;
        // tract 0.23's optimizer may leave a hole where a wanted value was fused away.
        SimplePlan::new(if has_holes(&optimized)? { typed } else { optimized })
    }))
}

/// Whether the convolutions that tract would compute directly, four output channels in one reading of the input, take longer so than as products of
/// matrices. Measured (AVX-512): directly a multiply-add takes the same whatever the sizes, in products the less of it the more output channels share what is
/// packed, 27 of them break even, and small kernels spoil some of it. tract knows one answer for a whole plan.
fn products_are_faster(m: &TypedModel) -> bool {
    const EVEN: f64 = 27.0;
    const SPOILT: f64 = 16.0;
    /// What tract asks of a convolution that it computes directly: numbers in a row, and those that an output is summed over.
    const ROW: usize = 128;
    const SUMMED: usize = 576;
    let saved = m.nodes().iter().filter_map(|node| {
        let conv = node.op_as::<Conv>().filter(|c| c.group == 1 && c.pool_spec.kernel_shape.len() == 2)?;
        let elements: usize = conv.pool_spec.kernel_shape.iter().product();
        let (summed, outs) = (conv.input_channels() * elements, conv.output_channels());
        let shape = m.outlet_fact(node.inputs[0]).ok()?.shape.as_concrete()?;
        let places = node.outputs[0].fact.shape.as_concrete()?.iter().product::<usize>() as f64;
        let direct = elements > 1 && summed <= SUMMED && shape.last() >= Some(&ROW);
        direct.then(|| places * summed as f64 * (1.0 - EVEN / outs as f64 * (1.0 + SPOILT / summed as f64)))
    });
    saved.sum::<f64>() > 0.0
}

/// Whether a node that is run is one that tract took out.
fn has_holes(m: &TypedModel) -> TractResult<bool> {
    Ok(m.eval_order()?.into_iter().any(|n| m.node(n).op_is::<Dummy>()))
}

/// The nodes that tract cannot plan even alone, and its complaints.
fn faulty(model: &Model, given: &[Source]) -> Vec<(String, String)> {
    let g = &model.graph;
    let judged = |(_, n): (NodeId, &Node)| {
        let (one, sources, outputs) = alone(model, n, given)?;
        match attempt(&one, &sources, &outputs) {
            Ok(Ok(_)) => None,
            Ok(Err(complaint)) => Some((support::label(g, n), format!("{}: {}", n.op_type, plain(&complaint)))),
            Err(e) => Some((support::label(g, n), format!("{}: {e}", n.op_type))),
        }
    };
    g.nodes().filter_map(judged).collect()
}

/// A node as a model of its own. `None` where the shape of an input is not known.
fn alone(model: &Model, n: &Node, given: &[Source]) -> Option<(Model, Vec<Source>, Vec<ValueId>)> {
    let g = &model.graph;
    let mut small = Graph::default();
    let mut sources = Vec::new();
    for &v in n.inputs().iter().flatten().chain(n.captures()) {
        let value = g.value(v);
        if small.find_value(&value.name).is_some() {
            continue;
        }
        let here = small.add_value(&value.name);
        match (&value.constant, given.iter().find(|s| s.0 == v)) {
            (_, Some((_, dtype, shape))) => sources.push((here, *dtype, shape.clone())),
            (Some(c), None) => small.value_mut(here).constant = Some(c.clone()),
            (None, None) => sources.push((here, value.dtype()?, value.known_shape()?)),
        }
    }
    let inputs: Vec<_> = n.inputs().iter().map(|v| v.and_then(|v| small.find_value(&g.value(v).name))).collect();
    let outputs: Vec<_> = n.outputs().iter().map(|v| v.map(|v| small.add_value(&g.value(v).name))).collect();
    small.add_node(n.clone(), &inputs, &outputs);
    let one = Model { graph: small, opsets: model.opsets.clone(), ir_version: model.ir_version, ..Model::default() };
    Some((one, sources, outputs.into_iter().flatten().collect()))
}

/// A complaint without tract's own names of nodes.
pub fn plain(complaint: &str) -> String {
    let own = |w: &&str| w.contains('@') || w.strip_prefix('#').is_some_and(|n| n.parse::<u32>().is_ok());
    let line = complaint.split(' ').filter(|w| !own(w)).collect::<Vec<_>>().join(" ");
    if line.chars().count() > 300 { line.chars().take(300).chain("…".chars()).collect() } else { line }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something of tract's; its error, or its panic, as one line. Such a panic is caught, so nothing is written about it.
pub fn guarded<T>(f: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic)
            }
        }));
    });
    let outer = QUIET.replace(true);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    QUIET.set(outer);
    let complaint = match outcome {
        Ok(Ok(t)) => return Ok(t),
        Ok(Err(e)) => format!("{e:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            format!("tract panicked: {}", text.unwrap_or_default())
        }
    };
    Err(complaint.split_whitespace().collect::<Vec<_>>().join(" "))
}
