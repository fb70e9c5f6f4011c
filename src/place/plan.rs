//! The plan: which values become codes, which of them share one quantizer, and why. Pure: the model is only read.

use super::Rules;
use super::exact::exact_ports;
use super::fused::Floor;
use super::heads::keep_heads_apart;
use super::kind::{Kind, is_real, kind_of, table_axis};
use super::suits::{self, granular, without_zero};
use super::wishes::Wishes;
use crate::error::{At, Result};
use crate::graph::{self, Flow, Form, Inferred, InputShapes, Linear, Model, Node, NodeId, Recurrent, Role, Sets, ValueId};
use crate::note::Notes;
use crate::quant::{Blocks, Params, Scheme};
use crate::target::{Granularity, Limit, SchemeKeys};
use std::collections::{BTreeMap, BTreeSet};

/// One decision about a node or value, and the rule behind it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Decision {
    /// Name of the node.
    pub node: String,
    pub what: String,
    pub rule: String,
}

/// A quantizer to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub name: String,
    pub scheme: Scheme,
    /// Known already: a fixed range.
    pub params: Option<Params>,
}

/// What to insert. Indices into `quantizers` stand for ids.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub kinds: BTreeMap<NodeId, Kind>,
    pub quantizers: Vec<Planned>,
    /// Values that are codes wherever somebody reads them.
    pub stored: BTreeMap<ValueId, usize>,
    /// Values that stay float where float nodes read them.
    pub read: BTreeMap<ValueId, usize>,
    /// Ports that read a value under a quantizer of their own: weights, biases, constants, conversions.
    pub ports: BTreeMap<(NodeId, usize), PortPlan>,
    /// What vanishes into the quantizer behind it.
    pub floors: Vec<Floor>,
    /// Ports that read a value as it is, whatever becomes of it for others.
    pub exact: BTreeSet<(NodeId, usize)>,
    pub decisions: Vec<Decision>,
    pub notes: Notes,
}

/// A quantizer at one port.
#[derive(Debug, Clone, PartialEq)]
pub enum PortPlan {
    Own(usize),
    /// A bias: scale is that of the port's activation times that of its weight.
    Product {
        bias: usize,
        input: usize,
        weight: usize,
    },
}

/// Decides for every node of the outermost graph; bodies of If, Loop and Scan stay as they are.
pub fn plan(model: &Model, rules: &Rules) -> Result<Plan> {
    let inferred = graph::infer(model, &InputShapes::new());
    let wishes = Wishes::of(model, rules)?;
    let mut plan = Plan { notes: Notes::of("place"), ..Plan::default() };
    for (id, node) in model.graph.nodes() {
        plan.kinds.insert(id, kind_of(model, id, node, &inferred, rules, &wishes));
    }
    for (id, limit) in rules.profile.barred(model, &inferred).into_iter().filter(|(_, l)| !l.emulated) {
        if !matches!(plan.kinds[&id], Kind::Exact | Kind::Float(_)) {
            plan.kinds.insert(id, Kind::Float(format!("target {}: {}", rules.profile.name, limit.why)));
        }
    }
    keep_heads_apart(&model.graph, rules.profile, &mut plan.kinds);
    plan.exact = exact_ports(&model.graph, &inferred, &mut plan.kinds);
    let dynamic = super::dynamic::is_asked(rules)?;
    if dynamic {
        super::dynamic::keep_to_layers(model, &mut plan.kinds);
    }
    let mut groups = rules.profile.grouped(model, &inferred);
    groups.retain(|f| f.nodes.iter().all(|n| plan.kinds[n] == Kind::Quantized));
    let bound = rules.profile.bound(model);
    let zeroless = suits::zeroless(model, &plan.kinds, &bound);
    let mut p = Planner { model, rules, inferred: &inferred, wishes: &wishes, groups, bound, zeroless, plan };
    p.weights()?;
    if dynamic {
        p.dynamic_inputs()?;
    } else if rules.activations.is_some() {
        let fused = p.fused();
        let coded = p.coded_values(&fused.inner);
        p.activations(&coded, &fused.cut)?;
        p.plan.floors = fused.floors;
        p.biases()?;
    }
    p.explain();
    Ok(p.plan)
}

pub(super) struct Planner<'a> {
    pub(super) model: &'a Model,
    pub(super) rules: &'a Rules<'a>,
    inferred: &'a Inferred,
    pub(super) wishes: &'a Wishes<'a>,
    /// Functions that stand spelled out, and that the target computes as one.
    pub(super) groups: Vec<Form>,
    /// What the target's limits ask of codes.
    bound: BTreeMap<NodeId, Vec<&'a Limit>>,
    /// Values whose zero point must be 0.
    zeroless: BTreeSet<ValueId>,
    pub(super) plan: Plan,
}

/// The axis along which a constant's numbers lie, if all others have one index.
fn lone_axis(shape: &[usize]) -> Option<i32> {
    let mut long = shape.iter().enumerate().filter(|(_, d)| **d != 1);
    let (axis, _) = long.next()?;
    long.next().is_none().then_some(axis as i32)
}

/// What the rules say of activations: which values are codes, and whether float readers see the codes too.
struct Coded {
    /// Value → whether its producer hands it out as codes.
    values: BTreeMap<ValueId, bool>,
}

impl Planner<'_> {
    pub(super) fn is_quantized(&self, id: NodeId) -> bool {
        self.plan.kinds[&id] == Kind::Quantized
    }

    /// Slots of a quantized or moving node that read real values that flow, with those values.
    pub(super) fn operands(&self, node: &Node) -> Vec<(usize, ValueId)> {
        let flows = |slot: usize, v: ValueId| node.flows(slot) && self.model.graph.constant(v).is_none() && is_real(self.inferred, v);
        node.inputs().iter().enumerate().filter_map(|(slot, v)| v.filter(|v| flows(slot, *v)).map(|v| (slot, v))).collect()
    }

    /// Constants under quantized nodes: weights by channel, other operands by tensor.
    fn weights(&mut self) -> Result<()> {
        let Some(keys) = self.rules.weights else { return Ok(()) };
        let mut made: Vec<(ValueId, Scheme, usize)> = Vec::new();
        for (id, node) in self.model.graph.nodes() {
            if !self.is_quantized(id) && self.plan.kinds[&id] != Kind::Weights {
                continue;
            }
            // The constants of a function are its own affair.
            if self.groups.iter().any(|f| f.nodes.contains(&id)) {
                continue;
            }
            let g = &self.model.graph;
            let (linear, recurrent, table) = (Linear::of(g, id), Recurrent::of(g, id), table_axis(g, node));
            for (slot, v) in node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
                let Some(constant) = self.model.graph.constant(v).filter(|_| is_real(self.inferred, v)) else { continue };
                let arithmetic = node.op.flow() == Flow::Arithmetic && !self.rules.profile.join.contains(&node.op);
                let all_codes = self.rules.profile.code_constants.contains(&node.op);
                let (axis, base) = match node.op.role(slot) {
                    Role::Weight | Role::Activation if linear.as_ref().is_some_and(|l| l.weight_slot == slot) => {
                        (Some(linear.as_ref().unwrap().out_axis as i32), keys)
                    }
                    Role::Weight if recurrent.is_some() && Recurrent::WEIGHTS.contains(&slot) => (Some(Recurrent::OUT_AXIS), keys),
                    _ if recurrent.is_some() => continue,
                    Role::Activation if table.is_some() && slot == 0 => (table, keys),
                    Role::Activation if node.op.flow() == Flow::Linear => (None, keys),
                    Role::Activation if self.rules.activations.is_none() => continue,
                    Role::Activation if self.rules.profile.float_constants.contains(&node.op) => continue,
                    // One number is folded into the operation's own scales; one a channel, under one scale a channel, is itself.
                    Role::Activation if arithmetic && constant.tensor.len() == 1 && !all_codes => continue,
                    Role::Activation if arithmetic && !all_codes && lone_axis(constant.tensor.shape()).is_some() => (lone_axis(constant.tensor.shape()), keys),
                    Role::Activation => (None, self.rules.activations.unwrap_or(keys)),
                    Role::Constant if all_codes => (None, self.rules.activations.unwrap_or(keys)),
                    Role::Constant if slot == 1 && node.scales() => match &self.rules.profile.normalization {
                        Some(keys) => (None, keys),
                        None => continue,
                    },
                    _ => continue,
                };
                let weight = axis.is_some() || matches!(node.op.flow(), Flow::Linear | Flow::Normalize);
                let bound = self.bound.get(&id).map_or(&[][..], Vec::as_slice);
                let keys = if weight { self.wishes.weights(id, slot, &granular(self.rules.profile, bound, base)) } else { self.wishes.input(id, slot, base) };
                let Some(keys) = keys else { continue };
                let name = self.model.graph.value(v).name.clone();
                let shape = constant.tensor.shape();
                let along = match linear.as_ref().filter(|l| l.weight_slot == slot) {
                    Some(l) => Some(l.in_axis as i32),
                    None if recurrent.is_some() || table.is_some() => Some(shape.len() as i32 - 1),
                    None => axis,
                };
                let mut scheme = keys.scheme_along(axis, along).at(|| &name)?;
                if let (Some((a, _)), Some(channels)) = (scheme.blocks.block_axis(), axis)
                    && shape.get(a as usize) == Some(&1)
                {
                    scheme.blocks = Blocks::channel(channels);
                    self.plan.notes.fell_back(&node.name, format!("weight {name} has one element along axis {a}: one scale a channel instead of blocks"));
                }
                if let (Some(r), Some(Granularity::Gate), None) = (recurrent, keys.granularity, keys.axis) {
                    scheme.blocks = Blocks::gate(r.gates);
                }
                let q = self.once(&mut made, v, scheme, &keys)?;
                self.plan.ports.insert((id, slot), PortPlan::Own(q));
            }
        }
        Ok(())
    }

    /// The quantizer of `v` under a scheme: one for all ports that read it so.
    pub(super) fn once(&mut self, made: &mut Vec<(ValueId, Scheme, usize)>, v: ValueId, scheme: Scheme, keys: &SchemeKeys) -> Result<usize> {
        if let Some((.., q)) = made.iter().find(|(w, s, _)| *w == v && *s == scheme) {
            return Ok(*q);
        }
        let name = self.model.graph.value(v).name.clone();
        let params = keys.params(&scheme).at(|| &name)?;
        let q = self.quantizer(name, scheme.clone(), params);
        made.push((v, scheme, q));
        Ok(q)
    }

    fn quantizer(&mut self, name: String, scheme: Scheme, params: Option<Params>) -> usize {
        self.plan.quantizers.push(Planned { name, scheme, params });
        self.plan.quantizers.len() - 1
    }

    /// Which values become codes: what quantized nodes make, what they read, and what lies between through moves.
    fn coded_values(&self, inner: &BTreeSet<ValueId>) -> Coded {
        let g = &self.model.graph;
        let mut need: BTreeSet<ValueId> = BTreeSet::new();
        for (id, node) in g.nodes().rev() {
            let wanted = match self.plan.kinds[&id] {
                Kind::Quantized => true,
                Kind::Moves => node.outputs().iter().flatten().any(|v| need.contains(v)),
                _ => false,
            };
            if wanted {
                need.extend(self.operands(node).into_iter().map(|(_, v)| v).filter(|v| !inner.contains(v)));
            }
        }
        let mut values = BTreeMap::new();
        for &v in need.iter().filter(|v| g.value(**v).producer().is_none()) {
            values.insert(v, false);
        }
        for (id, node) in g.nodes() {
            let operands = self.operands(node);
            let by_moving = || !operands.is_empty() && operands.iter().all(|(_, v)| values.contains_key(v));
            let made_as_codes = match self.plan.kinds[&id] {
                Kind::Quantized => true,
                Kind::Moves => by_moving(),
                _ => false,
            };
            for (slot, v) in node.outputs().iter().enumerate().filter_map(|(slot, v)| Some((slot, (*v)?))) {
                let made_as_codes = made_as_codes && (slot == 0 || node.op.flow() != Flow::Recurrent);
                if is_real(self.inferred, v) && !inner.contains(&v) && (made_as_codes || need.contains(&v)) {
                    values.insert(v, made_as_codes);
                }
            }
        }
        Coded { values }
    }

    /// Quantizers for the coded values, one for each set that shares, and conversions where a reader wants another scheme.
    fn activations(&mut self, coded: &Coded, cut: &[(ValueId, ValueId)]) -> Result<()> {
        let base = self.rules.activations.expect("asked before");
        let g = &self.model.graph;
        let mut sets = Sets::default();
        // Blocks and channels are other ones behind an operator that moves them.
        let alike = |v: ValueId, y: ValueId| {
            let keys = self.wishes.value(v, base);
            matches!(keys.granularity, None | Some(Granularity::Tensor)) && keys == self.wishes.value(y, base)
        };
        cut.iter().filter(|(v, y)| alike(*v, *y)).for_each(|(v, y)| sets.join(*v, *y));
        for (id, node) in g.nodes() {
            let moves = self.plan.kinds[&id] == Kind::Moves;
            let joins = self.rules.profile.join.contains(&node.op);
            if !moves && !joins {
                continue;
            }
            let Some(out) = node.output(0).filter(|v| coded.values.contains_key(v)) else { continue };
            for (_, v) in self.operands(node).into_iter().filter(|(_, v)| coded.values.contains_key(v)) {
                if alike(v, out) {
                    sets.join(v, out);
                }
            }
            for &v in node.outputs()[1..].iter().flatten().filter(|v| coded.values.contains_key(v)) {
                if alike(v, out) {
                    sets.join(v, out);
                }
            }
        }
        // A fixed range holds for a set only if every value that is computed, not moved, has it.
        let mut fixed: BTreeMap<ValueId, Vec<Option<&SchemeKeys>>> = BTreeMap::new();
        for &v in coded.values.keys() {
            let producer = g.value(v).producer().map(|(n, _)| n);
            if producer.is_some_and(|n| self.plan.kinds[&n] == Kind::Moves) {
                continue;
            }
            let format = self.wishes.value(v, base).format;
            let known = |n| self.rules.profile.fixed.iter().find(|f| f.ops.contains(&g.node(n).op) && f.output.format == format);
            let keys = producer.and_then(known).map(|f| &f.output);
            fixed.entry(sets.root(v)).or_default().push(keys);
        }
        let zeroless: BTreeSet<ValueId> = self.zeroless.iter().map(|v| sets.root(*v)).collect();
        let mut quantizer_of_set: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (&v, &stored) in &coded.values {
            let root = sets.root(v);
            let q = match quantizer_of_set.get(&root) {
                Some(&q) => q,
                None => {
                    let name = g.value(v).name.clone();
                    let mut keys = self.wishes.value(v, base);
                    // Who asked for another width gets the range of the data in that width, where none is known.
                    if let Some(Some(first)) = fixed.get(&root).and_then(|f| f.first().filter(|k| f.iter().all(|x| x == *k))) {
                        keys = self.wishes.fixed(v, base, first);
                    }
                    if zeroless.contains(&root) {
                        keys = without_zero(&keys);
                    }
                    let scheme = keys.scheme(None).at(|| &name)?;
                    let params = keys.params(&scheme).at(|| &name)?;
                    let q = self.quantizer(name, scheme, params);
                    quantizer_of_set.insert(root, q);
                    q
                }
            };
            if stored { &mut self.plan.stored } else { &mut self.plan.read }.insert(v, q);
        }
        self.constant_members(&mut sets, &quantizer_of_set);
        self.conversions(base)
    }

    /// Constants that enter a joining op (Concat) share its quantizer.
    fn constant_members(&mut self, sets: &mut Sets, quantizers: &BTreeMap<ValueId, usize>) {
        for (id, node) in self.model.graph.nodes() {
            let joins = self.rules.profile.join.contains(&node.op) || self.plan.kinds[&id] == Kind::Moves;
            let float = self.rules.profile.float_constants.contains(&node.op);
            let Some(q) = node.output(0).filter(|_| joins && !float).and_then(|v| quantizers.get(&sets.root(v))) else { continue };
            for (slot, v) in node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
                if node.op.role(slot) == Role::Activation && self.model.graph.constant(v).is_some() && is_real(self.inferred, v) {
                    self.plan.ports.insert((id, slot), PortPlan::Own(*q));
                }
            }
        }
    }

    /// Where a node was asked to read another scheme than the value has, a conversion stands on the edge.
    fn conversions(&mut self, base: &SchemeKeys) -> Result<()> {
        let mut made: Vec<(ValueId, Scheme, usize)> = Vec::new();
        for (id, node) in self.model.graph.nodes() {
            if !self.is_quantized(id) {
                continue;
            }
            for (slot, v) in self.operands(node) {
                let Some(&q) = self.plan.stored.get(&v).or(self.plan.read.get(&v)) else { continue };
                let Some(keys) = self.wishes.input(id, slot, base).filter(|k| self.wishes.names_input(id, slot) && *k != *base) else { continue };
                let scheme = keys.scheme(None)?;
                if self.plan.quantizers[q].scheme == scheme {
                    continue;
                }
                let own = self.once(&mut made, v, scheme, &keys)?;
                self.plan.ports.insert((id, slot), PortPlan::Own(own));
            }
        }
        Ok(())
    }

    /// Biases whose input and weight are codes become integers under the product of both scales.
    fn biases(&mut self) -> Result<()> {
        let mut made: Vec<(ValueId, usize, usize, usize)> = Vec::new();
        for (id, node) in self.model.graph.nodes() {
            if !self.is_quantized(id) {
                continue;
            }
            let linear = Linear::of(&self.model.graph, id);
            let (input_slot, weight_slot) = match &linear {
                Some(l) => (l.input_slot, l.weight_slot),
                None if node.scales() => (0, 1),
                None => continue,
            };
            let role = if linear.is_some() { Role::Bias } else { Role::Constant };
            let Some(slot) = (weight_slot + 1..node.inputs().len()).find(|s| node.op.role(*s) == role) else { continue };
            let Some(bias) = node.input(slot) else { continue };
            let name = self.model.graph.value(bias).name.clone();
            let Some(constant) = self.model.graph.constant(bias) else {
                self.plan.notes.declined(&node.name, format!("its bias {name} is computed, so it stays float"));
                continue;
            };
            let Some(&PortPlan::Own(weight)) = self.plan.ports.get(&(id, weight_slot)) else { continue };
            let Some(x) = node.input(input_slot) else { continue };
            let input = match self.plan.ports.get(&(id, input_slot)) {
                Some(PortPlan::Own(q)) => *q,
                _ => match self.plan.stored.get(&x).or(self.plan.read.get(&x)) {
                    Some(&q) => q,
                    None => continue,
                },
            };
            let Some(keys) = self.wishes.bias(id, self.rules.bias) else { continue };
            let channels = constant.tensor.len();
            let scales = self.plan.quantizers[weight].scheme.blocks.clone();
            let plain = node.float("alpha").unwrap_or(1.0) == 1.0 && node.float("beta").unwrap_or(1.0) == 1.0;
            if !plain
                || linear.is_some_and(|l| channels != l.out_channels(&self.model.graph))
                || scales.block_axis().is_some()
                || !self.plan.quantizers[input].scheme.blocks.is_tensor()
            {
                self.plan.notes.declined(&node.name, format!("its bias {name} stays float: it is not one value an output channel"));
                continue;
            }
            let axis = scales.channel_axis().map(|_| constant.tensor.rank() as i32 - 1);
            let mut scheme = keys.scheme(axis).at(|| &name)?;
            if axis.is_none() {
                scheme.blocks = crate::quant::Blocks::tensor();
            }
            let own = scheme.has_own_bias_scale();
            let q = match made.iter().find(|(v, i, w, _)| *v == bias && (own || (*i, *w) == (input, weight))) {
                Some((.., q)) => *q,
                None => {
                    let q = self.quantizer(name, scheme, None);
                    made.push((bias, input, weight, q));
                    q
                }
            };
            self.plan.ports.insert((id, slot), if own { PortPlan::Own(q) } else { PortPlan::Product { bias: q, input, weight } });
        }
        Ok(())
    }

    /// Says of each node what was decided.
    fn explain(&mut self) {
        let mut declined: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (id, node) in self.model.graph.nodes() {
            let name =
                if node.name.is_empty() { node.output(0).map(|v| self.model.graph.value(v).name.clone()).unwrap_or_default() } else { node.name.clone() };
            let (what, rule) = match &self.plan.kinds[&id] {
                Kind::Quantized if self.rules.activations.is_none() => ("computes in float".to_string(), "activations: none".to_string()),
                Kind::Quantized => ("runs on codes".to_string(), format!("target {} quantizes {}", self.rules.profile.name, node.op_type)),
                Kind::Weights => (
                    "has weights that are codes, and computes in float".to_string(),
                    format!("target {}: only weights of {}", self.rules.profile.name, node.op_type),
                ),
                Kind::Moves => ("hands its input's codes on".to_string(), format!("target {}: {} moves values", self.rules.profile.name, node.op_type)),
                Kind::Float(why) => {
                    declined.entry(why.clone()).or_default().push(name.clone());
                    ("stays float".to_string(), why.clone())
                }
                Kind::Exact => ("is left exact".to_string(), format!("{} deals in shapes, indices or conditions here", node.op_type)),
            };
            let mut details = vec![what];
            for (slot, v) in node.inputs().iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?))) {
                let value = &self.model.graph.value(v).name;
                let q = match self.plan.ports.get(&(id, slot)) {
                    Some(PortPlan::Own(q)) => Some(*q),
                    Some(PortPlan::Product { bias, .. }) => Some(*bias),
                    None if matches!(self.plan.kinds[&id], Kind::Quantized | Kind::Moves) => self.plan.stored.get(&v).or(self.plan.read.get(&v)).copied(),
                    None => None,
                };
                if let Some(q) = q {
                    details.push(format!("input {slot} {value}: {}", self.plan.quantizers[q].scheme));
                }
            }
            for &v in node.outputs().iter().flatten() {
                if let Some(q) = self.plan.stored.get(&v).or(self.plan.read.get(&v)) {
                    details.push(format!("output {}: {}", self.model.graph.value(v).name, self.plan.quantizers[*q].scheme));
                }
            }
            self.plan.decisions.push(Decision { node: name, what: details.join("; "), rule });
        }
        for (why, names) in declined {
            self.plan.notes.declined_alike(&names, |more| format!("stays float{more}: {why}"));
        }
    }
}
