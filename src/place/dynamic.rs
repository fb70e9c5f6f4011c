//! Dynamic activations: quantizers whose scale is found when the model runs stand before layers with constant weights, and nowhere else. Results, biases
//! and whatever lies between stay float, so that no data is needed.
//! Source: ONNX operators DynamicQuantizeLinear, MatMulInteger, ConvInteger; com.microsoft's DynamicQuantizeLSTM.
//! Needs: operators for both schemes, `target::spelling::dynamic`. Declines: layers that have no integer operator, and products of two values that flow.

use super::Rules;
use super::kind::Kind;
use super::plan::{Planner, PortPlan};
use crate::error::{At, Error, Result};
use crate::graph::{Flow, Graph, Linear, Model, Node, NodeId, Op, Recurrent, ValueId};
use crate::quant::{Blocks, Scheme, Timing};
use crate::target::{SchemeKeys, Spelling, spelling};
use std::collections::BTreeMap;

/// Whether the rules ask for dynamic activations. Fails where only some overrides do.
pub fn is_asked(rules: &Rules) -> Result<bool> {
    let dynamic = |keys: &SchemeKeys| keys.timing == Some(Timing::Dynamic);
    if rules.activations.is_some_and(dynamic) {
        if rules.profile.forms.as_ref().is_some_and(|read| !read.contains(&Spelling::Dynamic)) {
            return Err(Error::usage(format!("target {} has no operators that find a scale when the model runs: say `timing: static`", rules.profile.name)));
        }
        let weights = rules.weights.map(|_| true);
        return weights
            .ok_or_else(|| Error::usage("dynamic activations are multiplied with weights that are codes, and `weights` says none: give them a format"));
    }
    for o in rules.overrides {
        if o.set.activations.iter().chain(o.set.inputs.values()).chain(o.set.outputs.values()).any(dynamic) {
            return Err(Error::usage(format!(
                "{}: dynamic activations are for the whole model: say `activations: {{ timing: dynamic }}` there, and `timing: static` in overrides",
                o.origin
            )));
        }
    }
    Ok(false)
}

/// Makes every node stay float that is no layer with constant weights.
pub fn keep_to_layers(model: &Model, kinds: &mut BTreeMap<NodeId, Kind>) {
    for (id, node) in model.graph.nodes() {
        if !matches!(kinds[&id], Kind::Quantized | Kind::Weights | Kind::Moves) {
            continue;
        }
        let kind = match unfit(&model.graph, id, node) {
            None => Kind::Quantized,
            Some(why) => Kind::Float(format!("activations are dynamic, and {why}")),
        };
        kinds.insert(id, kind);
    }
}

/// Why a node has no integer operator for a scale found when the model runs.
fn unfit(g: &Graph, id: NodeId, node: &Node) -> Option<String> {
    let constant = |slot: &usize| node.input(*slot).is_some_and(|v| g.constant(v).is_some());
    let plain = |attr: &str| node.float(attr).unwrap_or(1.0) == 1.0;
    let fits = match node.op {
        Op::Conv | Op::MatMul | Op::Gemm => {
            let linear = Linear::of(g, id);
            let rank = linear.and_then(|l| g.constant(l.weight)).map_or(0, |c| c.tensor.rank());
            linear.is_some_and(|l| l.weight_slot == 1) && constant(&1) && !constant(&0) && rank > 1
        }
        Op::LSTM => Recurrent::WEIGHTS.iter().all(constant),
        _ if matches!(node.op.flow(), Flow::Linear | Flow::Recurrent) => return Some(format!("{} has no integer operator for them", node.op_type)),
        _ => return Some("only layers with constant weights run on codes then".into()),
    };
    if !fits {
        return Some("its weight is not a constant that stands second".into());
    }
    let usual = plain("alpha") && plain("beta") && node.int("transA").unwrap_or(0) == 0 && node.int("layout").unwrap_or(0) == 0;
    (!usual).then(|| "its alpha, beta, transA or layout is one that the integer operator lacks".into())
}

impl Planner<'_> {
    /// Quantizers before the layers. One that serves several is one.
    pub(super) fn dynamic_inputs(&mut self) -> Result<()> {
        let base = self.rules.activations.expect("they are asked for");
        let mut made: Vec<(ValueId, Scheme, usize)> = Vec::new();
        for (id, node) in self.model.graph.nodes() {
            let Some(v) = node.input(0).filter(|_| self.plan.kinds[&id] == Kind::Quantized) else { continue };
            let slots: &[usize] = if node.op == Op::LSTM { &Recurrent::WEIGHTS } else { &[1] };
            let weights: Vec<(usize, Scheme)> = slots.iter().filter_map(|slot| Some((*slot, self.port_scheme(id, *slot)?))).collect();
            let keys = self.wishes.input(id, 0, base);
            let (Some(keys), true) = (keys, weights.len() == slots.len()) else {
                self.plan.kinds.insert(id, Kind::Weights);
                continue;
            };
            let name = &self.model.graph.value(v).name;
            let scheme = keys.scheme(None).at(|| name)?;
            if scheme.blocks == Blocks::token() && !matches!(node.op, Op::MatMul | Op::Gemm) {
                let why = format!("activations have a scale a token, which {} has no integer operator for", node.op_type);
                self.plan.ports.retain(|(node, _), _| *node != id);
                self.plan.kinds.insert(id, Kind::Float(why));
                continue;
            }
            if scheme.timing == Timing::Dynamic {
                for (slot, weight) in &weights {
                    let shape = node.input(*slot).and_then(|w| self.model.graph.value(w).known_shape()).unwrap_or_default();
                    let axis = Linear::of(&self.model.graph, id).map_or(Recurrent::OUT_AXIS as usize, |l| l.out_axis);
                    spelling::dynamic(node.op, &scheme, weight, &shape, axis).map_err(Error::usage).at(|| format!("node {} ({})", node.name, node.op_type))?;
                }
            }
            let q = self.once(&mut made, v, scheme, &keys)?;
            self.plan.ports.insert((id, 0), PortPlan::Own(q));
        }
        Ok(())
    }

    fn port_scheme(&self, id: NodeId, slot: usize) -> Option<Scheme> {
        match self.plan.ports.get(&(id, slot))? {
            PortPlan::Own(q) => Some(self.plan.quantizers[*q].scheme.clone()),
            PortPlan::Product { .. } => None,
        }
    }
}
