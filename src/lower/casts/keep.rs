//! What stays float32 among narrower tensors, and why: what ONNX does not define on the type, what runs on codes, what leaves the type's range by what
//! samples showed, constants that would be lost, and numbers made of integers that sines and comparisons need as they are.

use super::{All, constant_of, is_real, largest};
use crate::engine::label;
use crate::graph::{Flow, Graph, Inferred, NodeId, Op, Port, ValueId, half_since};
use crate::tensor::DType;
use std::collections::{BTreeMap, BTreeSet};

/// One graph's nodes that stay float32.
pub fn kept(g: &Graph, inferred: &Inferred, all: &mut All) -> BTreeSet<NodeId> {
    let mut k = Keep { g, inferred, dtype: all.how.dtype, opset: all.opset, why: BTreeMap::new(), silent: BTreeSet::new() };
    for (id, _) in g.nodes() {
        k.by_kind(id, all);
    }
    k.quantized();
    if k.dtype == DType::F16 {
        k.out_of_range(all);
        k.constants();
    }
    k.of_integers();
    k.between();
    let undefined = k.undefined();
    for (&op, nodes) in &undefined {
        let since = half_since(op, k.dtype).map_or(String::new(), |since| format!(" before opset {since}"));
        let op_type = &g.node(nodes[0]).op_type;
        let names: Vec<String> = nodes.iter().map(|id| label(g, g.node(*id))).collect();
        all.notes.declined_alike(&names, |more| format!("stays float32{more}: {op_type} is not defined on {}{since}", all.how.dtype));
    }
    for (id, why) in k.why.iter().filter(|(_, why)| *why != UNDEFINED) {
        all.notes.declined(label(g, g.node(*id)), format!("stays float32: {why}"));
    }
    k.why.into_keys().chain(k.silent).collect()
}

/// The reason of operators that the type is not defined for; told together.
const UNDEFINED: &str = "not defined on the type";

struct Keep<'a> {
    g: &'a Graph,
    inferred: &'a Inferred,
    dtype: DType,
    opset: i64,
    why: BTreeMap<NodeId, String>,
    /// Those of which there is nothing to say.
    silent: BTreeSet<NodeId>,
}

impl Keep<'_> {
    fn is_kept(&self, id: NodeId) -> bool {
        self.why.contains_key(&id) || self.silent.contains(&id)
    }

    fn keep(&mut self, id: NodeId, why: impl Into<String>) {
        if !self.is_kept(id) && self.touches(id) {
            self.why.insert(id, why.into());
        }
    }

    fn real(&self, v: ValueId) -> bool {
        is_real(self.inferred, v)
    }

    fn touches(&self, id: NodeId) -> bool {
        let n = self.g.node(id);
        n.inputs().iter().chain(n.outputs()).flatten().any(|v| self.real(*v))
    }

    /// Operators that the type is not defined for, with their nodes.
    fn undefined(&self) -> BTreeMap<Op, Vec<NodeId>> {
        let mut by_op: BTreeMap<Op, Vec<NodeId>> = BTreeMap::new();
        for id in self.g.order().iter().filter(|id| self.why.get(id).is_some_and(|w| w == UNDEFINED)) {
            by_op.entry(self.g.node(*id).op).or_default().push(*id);
        }
        by_op
    }

    /// What flows: inputs that are real numbers and no constants.
    fn operands(&self, id: NodeId) -> impl Iterator<Item = ValueId> {
        self.g.node(id).inputs().iter().flatten().copied().filter(|v| self.real(*v) && constant_of(self.g, *v).is_none())
    }

    fn readers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.g.node(id).outputs().iter().flatten().flat_map(|v| self.g.value(*v).uses()).map(|p| p.node)
    }

    fn maker(&self, v: ValueId) -> Option<NodeId> {
        Some(self.g.value(v).producer()?.0)
    }

    fn by_kind(&mut self, id: NodeId, all: &All) {
        let n = self.g.node(id);
        let unknown = n.inputs().iter().chain(n.outputs()).flatten().find(|v| self.inferred.get(**v).dtype.is_none());
        if all.how.nodes.contains(&id) || all.how.ops.contains(&n.op) {
            self.keep(id, "the recipe says so");
        } else if matches!(n.op, Op::QuantizeLinear | Op::DequantizeLinear) {
            // A scale that is a number of the type loses nothing in it; the result then has its type.
            if self.opset < half_since(n.op, self.dtype).unwrap_or(i64::MAX) || !self.exact_scale(id) {
                self.silent.insert(id);
            }
        } else if n.op.flow() == Flow::Quantize {
            self.silent.insert(id);
        } else if let Some(v) = unknown {
            self.keep(id, format!("of {} the type is not known", self.g.value(*v).name));
        } else if n.op != Op::Constant && half_since(n.op, self.dtype).is_none_or(|since| self.opset < since) {
            self.keep(id, UNDEFINED);
        }
    }

    fn exact_scale(&self, id: NodeId) -> bool {
        let Some(mut scale) = self.g.node(id).input(1) else { return false };
        if let Some(maker) = self.maker(scale)
            && self.g.node(maker).op == Op::Cast
        {
            scale = self.g.node(maker).input(0).unwrap_or(scale);
        }
        let Some(t) = constant_of(self.g, scale) else { return false };
        let back = |x: &f32| if self.dtype == DType::F16 { half::f16::from_f32(*x).to_f32() } else { half::bf16::from_f32(*x).to_f32() };
        t.dtype() == self.dtype || t.dtype() == DType::F32 && t.to_f32().is_ok_and(|s| s.iter().all(|x| back(x) == *x))
    }

    /// Nodes between codes run in integers, and so their tensors are none of a float type. Integer accumulators are too large for a narrow one.
    fn quantized(&mut self) {
        let of_codes = |k: &Self, v: ValueId| k.maker(v).is_some_and(|m| k.g.node(m).op == Op::DequantizeLinear);
        for id in self.g.order().to_vec() {
            let n = self.g.node(id);
            let stored = |v: ValueId| self.maker(v).and_then(|m| self.g.node(m).input(0)).is_some_and(|c| constant_of(self.g, c).is_some());
            let operands: Vec<ValueId> = self.operands(id).collect();
            let from_codes = operands.iter().any(|v| !stored(*v)) && operands.iter().all(|v| of_codes(self, *v));
            if n.op.flow() != Flow::Quantize && from_codes && self.to_codes(id, 8) {
                self.silent.insert(id);
                self.silent_to_codes(id);
            }
            let accumulates = |v: &ValueId| self.maker(*v).is_some_and(|m| matches!(self.g.node(m).op, Op::MatMulInteger | Op::ConvInteger));
            if n.op == Op::Cast && n.inputs().iter().flatten().any(accumulates) {
                let scaled: Vec<NodeId> = self.readers(id).collect();
                self.silent.insert(id);
                self.silent.extend(scaled);
            }
        }
    }

    /// Whether every result goes to QuantizeLinear, perhaps behind what cuts or moves it.
    fn to_codes(&self, id: NodeId, depth: usize) -> bool {
        let mut any = false;
        let passes = |r: NodeId| {
            let op = self.g.node(r).op;
            op == Op::QuantizeLinear || depth > 0 && matches!(op.flow(), Flow::Clamp | Flow::Move) && self.to_codes(r, depth - 1)
        };
        let all = self.readers(id).inspect(|_| any = true).all(passes);
        any && all && !self.g.node(id).outputs().iter().flatten().any(|v| self.g.is_output(*v))
    }

    fn silent_to_codes(&mut self, id: NodeId) {
        for r in self.readers(id).collect::<Vec<_>>() {
            if self.g.node(r).op.flow() != Flow::Quantize && self.silent.insert(r) {
                self.silent_to_codes(r);
            }
        }
    }

    /// Tensors that samples drove beyond the type, or that are all below its normal numbers: who makes and who reads them.
    fn out_of_range(&mut self, all: &All) {
        let (limit, least) = (largest(self.dtype), half::f16::MIN_POSITIVE.to_f32());
        for (v, value) in self.g.values() {
            let Some(e) = all.how.seen.get(&value.name).filter(|e| self.real(v) && !e.is_empty()) else { continue };
            let peak = e.lo.abs().max(e.hi.abs());
            let why = match peak {
                p if p > limit => format!("{} reached {peak:.3e} on the samples, and {} ends at {limit}", value.name, self.dtype),
                p if p > 0.0 && p < least => format!("{} stayed below {peak:.3e} on the samples, where {} has few digits", value.name, self.dtype),
                _ => continue,
            };
            let nodes: Vec<NodeId> = value.producer().map(|p| p.0).into_iter().chain(value.uses().iter().map(|p| p.node)).collect();
            nodes.into_iter().for_each(|id| self.keep(id, why.clone()));
        }
        for id in self.g.order().to_vec() {
            if let Some(peak) = self.inner_peak(id, all).filter(|p| *p > limit) {
                self.keep(id, format!("inside it sums reach {peak:.3e} on the samples, and {} ends at {limit}", self.dtype));
            }
        }
    }

    /// The largest number that a reduction meets on its way, by what samples showed of its operand and result.
    fn inner_peak(&self, id: NodeId, all: &All) -> Option<f32> {
        let n = self.g.node(id);
        let peak = |v: ValueId| all.how.seen.get(&self.g.value(v).name).filter(|e| !e.is_empty()).map(|e| e.lo.abs().max(e.hi.abs()));
        let (x, y) = (n.input(0)?, n.output(0)?);
        let elements = |v: ValueId| self.inferred.shape(v).map(|s| s.iter().product::<usize>().max(1));
        match n.op {
            Op::ReduceMean => Some(peak(y)? * (elements(x)? / elements(y)?) as f32),
            Op::ReduceL2 => Some(peak(y)?.powi(2)),
            Op::ReduceLogSum | Op::ReduceLogSumExp => Some(peak(y)?.exp()),
            Op::InstanceNormalization | Op::GroupNormalization | Op::MeanVarianceNormalization | Op::LpNormalization | Op::LRN => Some(peak(x)?.powi(2)),
            _ => None,
        }
    }

    /// Constants that the type would lose: all zero in it, or beyond it where saturating them changes more than a bound or a mask.
    fn constants(&mut self) {
        let limit = largest(self.dtype);
        for id in self.g.order().to_vec() {
            if self.is_kept(id) {
                continue;
            }
            let n = self.g.node(id);
            for v in n.inputs() {
                let Some(v) = v.filter(|v| self.real(*v)) else { continue };
                let Some(t) = constant_of(self.g, v).filter(|t| t.dtype() == DType::F32) else { continue };
                let Ok(x) = t.to_f32() else { continue };
                let lost = |x: &f32| half::f16::from_f32(*x).to_bits() & 0x7fff == 0;
                let bounds = matches!(n.op, Op::Clip | Op::Min | Op::Max | Op::Where | Op::Pad | Op::Add | Op::Sub) || n.op == Op::Mul && x.len() == 1;
                if let Some(beyond) = x.iter().find(|x| x.is_finite() && x.abs() > limit && !(bounds && (**x < 0.0 || n.op != Op::Mul && n.op != Op::Add))) {
                    self.keep(id, format!("{} holds {beyond:e}, and {} ends at {limit}", self.g.value(v).name, self.dtype));
                } else if x.iter().any(|x| *x != 0.0) && x.iter().all(lost) {
                    let small = x.iter().copied().fold(0f32, |a, b| a.max(b.abs()));
                    let why = format!("{} holds {small:e}, which is 0 in {}", self.g.value(v).name, self.dtype);
                    self.keep_roots(id, &why);
                }
                if self.is_kept(id) {
                    break;
                }
            }
        }
    }

    /// A node that a tiny constant keeps away from zero, and the root, logarithm or quotient that needs it so.
    fn keep_roots(&mut self, id: NodeId, why: &str) {
        self.keep(id, why);
        for r in self.readers(id).collect::<Vec<_>>() {
            if matches!(self.g.node(r).op, Op::Sqrt | Op::Reciprocal | Op::Log | Op::Pow | Op::Div) && !self.is_kept(r) {
                self.keep_roots(r, why);
            }
        }
    }

    /// Positions and the like: float numbers computed from integers and constants alone, on their way to a sine, a comparison or an index.
    fn of_integers(&mut self) {
        let mut whole: BTreeSet<ValueId> = BTreeSet::new();
        for (_, n) in self.g.nodes() {
            let inputs = || n.inputs().iter().flatten();
            let starts = matches!(n.op, Op::Cast | Op::Range) && inputs().all(|v| !self.real(*v));
            let constant = |v: &ValueId| constant_of(self.g, *v).is_some() || !self.real(*v);
            let goes_on = matches!(n.op.flow(), Flow::Arithmetic | Flow::Move | Flow::Linear | Flow::Pointwise)
                && !matches!(n.op, Op::Gather)
                && inputs().any(|v| whole.contains(v))
                && inputs().all(|v| whole.contains(v) || constant(v));
            if starts || goes_on {
                whole.extend(n.outputs().iter().flatten().filter(|v| self.real(**v)));
            }
        }
        let needs = |n: &crate::graph::Node, slot: usize| matches!(n.op, Op::Sin | Op::Cos) || n.reads_exactly(slot);
        let mut exact: BTreeMap<NodeId, String> = BTreeMap::new();
        for (id, n) in self.g.nodes().rev() {
            let read = |v: ValueId| self.g.value(v).uses().iter().find_map(|p: &Port| exact.get(&p.node));
            let why = match n.inputs().iter().enumerate().find_map(|(slot, v)| v.filter(|v| whole.contains(v) && needs(n, slot))) {
                Some(v) => Some(format!("{} is made of integers, which {} would round", self.g.value(v).name, self.dtype)),
                None => n.outputs().iter().flatten().filter(|v| whole.contains(v)).find_map(|v| read(*v).cloned()),
            };
            exact.extend(why.map(|why| (id, why)));
        }
        exact.into_iter().for_each(|(id, why)| self.keep(id, why));
    }

    /// What only hands on from float32 to float32 needs no other type; integers become the type that all their readers share, or float32.
    fn between(&mut self) {
        loop {
            let before = self.silent.len();
            for id in self.g.order().to_vec() {
                let n = self.g.node(id);
                if self.is_kept(id) || !self.touches(id) {
                    continue;
                }
                let wide = |r: NodeId| self.is_kept(r);
                let outputs = n.outputs().iter().flatten();
                let leaves = outputs.clone().any(|v| self.g.is_output(*v));
                let operands: Vec<ValueId> = self.operands(id).collect();
                let from_wide = !operands.is_empty() && operands.iter().all(|v| self.maker(*v).is_some_and(wide));
                let hands_on = matches!(n.op.flow(), Flow::Move | Flow::Clamp) || n.op == Op::Cast;
                let readers: Vec<NodeId> = self.readers(id).collect();
                let any_wide = readers.iter().any(|r| wide(*r));
                let made_of_integers = n.op == Op::Cast && n.inputs().iter().flatten().all(|v| !self.inferred.get(*v).dtype.is_some_and(|t| t.is_float()));
                let silent = match n.op {
                    Op::DequantizeLinear => leaves || any_wide,
                    Op::QuantizeLinear => !operands.is_empty() && from_wide,
                    _ if made_of_integers => any_wide,
                    _ => hands_on && from_wide && !leaves && !readers.is_empty() && readers.iter().all(|r| wide(*r)),
                };
                if silent {
                    self.silent.insert(id);
                }
            }
            if self.silent.len() == before {
                return;
            }
        }
    }
}
