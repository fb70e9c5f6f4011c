//! What a target does not run although its lists name the op: by attribute, place, rank or granularity. Asked before placing, and of finished files.

use super::{Fate, Granularity, Place, Profile, Select};
use crate::graph::{AttrValue, Flow, Form, Graph, Inferred, Model, Node, NodeId, Op, ValueId, constant_behind, forms, pads};
use std::collections::{BTreeMap, BTreeSet};

/// What must hold of some nodes, and what becomes of those of which it does not.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limit {
    /// Empty: every op.
    pub ops: Vec<Op>,
    pub place: Option<Place>,
    /// Not those of which one of these makes an operand.
    pub unless_after: Vec<Op>,
    pub must: Must,
    pub then: Fate,
    /// Quantizers stand around the nodes all the same.
    pub emulated: bool,
    pub why: String,
    pub remedy: String,
}

/// What must not make an operand of a node, directly or through what moves numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Apart {
    pub makers: Vec<Op>,
    /// More ops that lie between, with one operand that flows, and do not help.
    pub across: Vec<Op>,
    /// Only what nobody else reads.
    pub alone: bool,
    /// Only of products that are cheaper piece by piece: of what makers join, a piece but the last has a number of channels that this does not divide, or the
    /// product makes fewer channels than pieces have on average. 0: of all.
    pub pieces: usize,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Must {
    /// Nothing helps: the nodes are not run.
    #[default]
    Never,
    /// An attribute, where it is given, is one of these words or numbers; of a list, each is.
    Attribute { name: String, values: Vec<String> },
    /// It is written, and not left at its default.
    Given(String),
    /// … is not above this.
    AtMost { name: String, most: i64 },
    /// Operands and results have at most so many dimensions.
    Rank(usize),
    /// The input at this slot is a constant.
    Constant(usize),
    /// A Pad puts nothing before this axis.
    Unpadded(usize),
    /// No operand is made by one of these.
    Apart(Apart),
    // Those below speak of codes. Placing obeys granularity and zeroless by itself.
    /// The weight's format is one of these.
    Weights(Vec<String>),
    /// The formats of operands and results are among these.
    Activations(Vec<String>),
    /// The weight's scales are one of these.
    Granularity(Vec<Granularity>),
    /// The zero points of operands are 0.
    Zeroless,
    /// Operands are unsigned, or signed, flowing and read by nobody else.
    Unsigned,
    /// The codes of the result end at the least and the most that the op makes, or are cut at both ends.
    Floor,
    /// Operands, constants that must be codes included, and results have one format, and one scale each.
    Alike,
    /// It runs on codes: what is left in float is not run.
    Codes,
}

impl Profile {
    /// What the target takes as one operator though it stands spelled out, with no quantizer within.
    pub fn grouped(&self, model: &Model, inferred: &Inferred) -> Vec<Form> {
        let all = if self.groups.is_empty() { vec![] } else { forms(&model.graph, inferred) };
        all.into_iter().filter(|f| self.groups.contains(&f.op)).collect()
    }

    /// Nodes that a limit keeps from running as they stand, whatever their codes; what is [`grouped`](Self::grouped) stands as the one operator.
    pub fn barred(&self, model: &Model, inferred: &Inferred) -> BTreeMap<NodeId, &Limit> {
        let mut barred = BTreeMap::new();
        let grouped: BTreeSet<NodeId> = self.grouped(model, inferred).into_iter().flat_map(|f| f.nodes).collect();
        for limit in self.limits.iter().filter(|l| !l.must.is_of_codes()) {
            for id in limit.nodes(model) {
                if !grouped.contains(&id) && !limit.must.holds(model, model.graph.node(id), inferred) {
                    barred.entry(id).or_insert(limit);
                }
            }
        }
        barred
    }

    /// What limits ask of the codes of each node.
    pub fn bound(&self, model: &Model) -> BTreeMap<NodeId, Vec<&Limit>> {
        let mut bound: BTreeMap<NodeId, Vec<&Limit>> = BTreeMap::new();
        for limit in self.limits.iter().filter(|l| l.must.is_of_codes()) {
            limit.nodes(model).into_iter().for_each(|id| bound.entry(id).or_default().push(limit));
        }
        bound
    }

    /// Granularities that the weight of a node may have, which these limits bind, with the limit that says so; empty: any.
    pub fn granularities<'a>(&'a self, bound: &[&'a Limit]) -> (&'a [Granularity], Option<&'a Limit>) {
        let own = bound.iter().find_map(|l| if let Must::Granularity(list) = &l.must { Some((&list[..], Some(*l))) } else { None });
        own.unwrap_or((&self.legal.granularity, None))
    }
}

impl Limit {
    fn nodes(&self, model: &Model) -> Vec<NodeId> {
        let select = Select { ops: (!self.ops.is_empty()).then(|| self.ops.clone()), place: self.place, ..Select::default() };
        // Neither names nor patterns are asked for: nothing can be wrong with them.
        let chosen = if select == Select::default() { None } else { select.nodes(model).ok() };
        let speaks = |n: &Node| !matches!(n.op.flow(), Flow::Meta | Flow::Quantize) || self.ops.contains(&n.op);
        let after = |n: &Node| n.inputs().iter().flatten().any(|v| maker(&model.graph, *v).is_some_and(|op| self.unless_after.contains(&op)));
        model.graph.nodes().filter(|(id, n)| speaks(n) && !after(n) && chosen.as_ref().is_none_or(|c| c.contains(id))).map(|(id, _)| id).collect()
    }
}

impl Must {
    fn is_of_codes(&self) -> bool {
        use Must::*;
        matches!(self, Weights(_) | Activations(_) | Granularity(_) | Zeroless | Unsigned | Floor | Alike | Codes)
    }

    fn holds(&self, model: &Model, node: &Node, inferred: &Inferred) -> bool {
        match self {
            Must::Never => false,
            _ if self.is_of_codes() => true,
            Must::Attribute { name, values } => node.attr(name).is_none_or(|a| words(a).iter().all(|w| values.contains(w))),
            Must::Given(name) => node.attr(name).is_some(),
            Must::AtMost { name, most } => node.attr(name).is_none_or(|a| match a {
                AttrValue::Int(i) => i <= most,
                AttrValue::Ints(list) => list.iter().all(|i| i <= most),
                _ => true,
            }),
            Must::Rank(most) => {
                let rank = |v: &crate::graph::ValueId| inferred.get(*v).shape.as_ref().map_or(0, Vec::len);
                node.inputs().iter().chain(node.outputs()).flatten().all(|v| rank(v) <= *most)
            }
            Must::Apart(apart) => apart.made_of(model, node, inferred).is_empty(),
            Must::Unpadded(axis) => pads(&model.graph, node).and_then(|p| p.get(*axis).copied()).is_none_or(|n| n <= 0),
            Must::Constant(slot) => node.input(*slot).is_none_or(|v| constant_behind(&model.graph, v).is_some()),
            _ => true,
        }
    }
}

impl Apart {
    /// What makers make and this node takes: what should stand apart from it, and does not. A Reshape that only adds or takes away axes of one element
    /// takes nothing, and a Slice is a maker where it is not the only one that cuts its operand.
    pub fn made_of(&self, model: &Model, node: &Node, inferred: &Inferred) -> BTreeSet<ValueId> {
        let g = &model.graph;
        let flows = |n: &Node| -> Vec<ValueId> { (0..n.inputs().len()).filter(|s| n.flows(*s)).filter_map(|s| n.input(s)).collect() };
        let constant = |v: &ValueId| constant_behind(g, *v).is_some();
        let long = |v: Option<ValueId>| inferred.shape(v?).map(|s| s.into_iter().filter(|n| *n != 1).collect::<Vec<_>>());
        let idle = node.op == Op::Reshape && long(node.input(0)).is_some_and(|s| Some(s) == long(node.output(0)));
        if idle {
            return BTreeSet::new();
        }
        let cuts = |v: ValueId| g.value(v).uses().iter().filter(|p| g.get_node(p.node).is_some_and(|n| n.op == Op::Slice)).count();
        let is_maker = |n: &Node| self.makers.contains(&n.op) && (n.op != Op::Slice || n.input(0).is_some_and(|x| cuts(x) > 1));
        let mut found = BTreeSet::new();
        let mut open: Vec<ValueId> = flows(node);
        while let Some(v) = open.pop() {
            let Some(maker) = g.value(v).producer().and_then(|(id, _)| g.get_node(id)) else { continue };
            if is_maker(maker) {
                let one = !self.alone || readers(g, v) == 1;
                found.extend((one && self.is_cheaper_in_pieces(node, maker, inferred)).then_some(v));
            } else if matches!(maker.op.flow(), Flow::Move | Flow::Quantize) || self.across.contains(&maker.op) {
                let operands: Vec<ValueId> = flows(maker).into_iter().filter(|v| !constant(v)).collect();
                open.extend(operands.iter().filter(|_| operands.len() == 1));
            }
        }
        found
    }

    fn is_cheaper_in_pieces(&self, node: &Node, maker: &Node, inferred: &Inferred) -> bool {
        let channels = |v: &Option<ValueId>| inferred.shape((*v)?)?.get(1).copied();
        let pieces: Option<Vec<usize>> = maker.inputs().iter().map(channels).collect();
        let (Some(pieces), Some(made)) = (pieces, node.outputs().first().and_then(channels)) else { return self.pieces == 0 };
        let even = pieces.iter().rev().skip(1).all(|n| n % self.pieces.max(1) == 0);
        self.pieces == 0 || node.int("group").unwrap_or(1) == 1 && (!even || made * pieces.len() < pieces.iter().sum())
    }
}

/// What makes a value, quantizers behind it aside.
fn maker(g: &Graph, v: ValueId) -> Option<Op> {
    let node = g.get_node(g.value(v).producer()?.0)?;
    if node.op == Op::FakeQuant { maker(g, node.input(0)?) } else { Some(node.op) }
}

/// How many read a value, a quantizer behind it aside.
fn readers(g: &Graph, v: ValueId) -> usize {
    let through = |p: &crate::graph::Port| match g.get_node(p.node) {
        Some(n) if n.op == Op::FakeQuant => n.output(0).map_or(0, |q| readers(g, q)),
        _ => 1,
    };
    usize::from(g.is_output(v)) + g.value(v).uses().iter().map(through).sum::<usize>()
}

/// An attribute's value or values, as profiles write them.
fn words(a: &AttrValue) -> Vec<String> {
    match a {
        AttrValue::Int(i) => vec![i.to_string()],
        AttrValue::Ints(list) => list.iter().map(i64::to_string).collect(),
        AttrValue::String(s) => vec![String::from_utf8_lossy(s).into_owned()],
        AttrValue::Float(f) => vec![f.to_string()],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{InputShapes, infer};
    use crate::tensor::Tensor;

    /// x[1,2] → Gemm(w, transB=1) → MaxPool(kernel 5) → MatMul(itself) → y
    fn model() -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, a, b, y] = ["x", "a", "b", "y"].map(|n| g.add_value(n));
        let w = g.add_constant("w", Tensor::of_f32(&[2, 2], vec![1.0; 4]));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::new(Op::Gemm, "gemm").with("transB", 1), &[Some(x), Some(w)], &[Some(a)]);
        g.add_node(Node::new(Op::MaxPool, "pool").with("kernel_shape", vec![3, 5]).with("auto_pad", "VALID"), &[Some(a)], &[Some(b)]);
        g.add_node(Node::new(Op::MatMul, "matmul"), &[Some(b), Some(b)], &[Some(y)]);
        m
    }

    fn barred(limits: Vec<Limit>) -> Vec<String> {
        let m = model();
        let p = Profile { limits, ..Profile::default() };
        let found = p.barred(&m, &infer(&m, &InputShapes::new()));
        found.keys().map(|id| m.graph.node(*id).name.clone()).collect()
    }

    #[test]
    fn each_condition_bars_what_breaks_it() {
        let on = |ops: &[Op], must: Must| barred(vec![Limit { ops: ops.to_vec(), must, ..Limit::default() }]);
        let attribute = |name: &str, values: &[&str]| Must::Attribute { name: name.into(), values: values.iter().map(|v| v.to_string()).collect() };
        assert_eq!(on(&[Op::Gemm], attribute("transB", &["0"])), ["gemm"]);
        assert!(on(&[Op::Gemm], attribute("transA", &["0"])).is_empty(), "an attribute that is not given is at its default");
        assert_eq!(on(&[Op::MaxPool], attribute("auto_pad", &["NOTSET"])), ["pool"]);
        assert_eq!(on(&[Op::MaxPool, Op::Gemm], Must::Given("transB".into())), ["pool"]);
        assert_eq!(on(&[Op::MaxPool], Must::AtMost { name: "kernel_shape".into(), most: 4 }), ["pool"]);
        assert!(on(&[Op::MaxPool], Must::AtMost { name: "kernel_shape".into(), most: 5 }).is_empty());
        assert_eq!(on(&[Op::MatMul], Must::Constant(1)), ["matmul"]);
        assert!(on(&[Op::Gemm], Must::Constant(1)).is_empty());
        assert_eq!(on(&[], Must::Rank(1)), ["gemm"], "of the others no rank is known");
        assert_eq!(on(&[Op::MaxPool, Op::Gemm], Must::Never), ["gemm", "pool"]);
        let behind = |op: Op| barred(vec![Limit { ops: vec![Op::MaxPool], unless_after: vec![op], ..Limit::default() }]);
        assert_eq!((behind(Op::MatMul), behind(Op::Gemm)), (vec!["pool".to_string()], vec![]));
        let made = |makers: &[Op], alone| Must::Apart(Apart { makers: makers.to_vec(), alone, ..Apart::default() });
        assert_eq!(on(&[Op::MatMul], made(&[Op::MaxPool], false)), ["matmul"]);
        assert!(on(&[Op::MatMul], made(&[Op::MaxPool], true)).is_empty(), "it reads it twice");
        assert_eq!(on(&[Op::MatMul], made(&[Op::Gemm], false)), ["matmul"], "a pool moves numbers");
        assert!(on(&[Op::MaxPool], made(&[Op::MatMul], false)).is_empty());
        let here = Limit { place: Some(Place::DynamicOperands), ..Limit::default() };
        assert_eq!(barred(vec![here]), ["matmul"]);
    }

    #[test]
    fn granularity_is_that_of_the_node_or_of_all() {
        let limit = Limit { ops: vec![Op::Gemm], must: Must::Granularity(vec![Granularity::Tensor]), ..Limit::default() };
        let mut p = Profile { limits: vec![limit], ..Profile::default() };
        p.legal.granularity = vec![Granularity::Channel];
        let m = model();
        let bound = p.bound(&m);
        let of = |name: &str| m.graph.nodes().find(|(_, n)| n.name == name).and_then(|(id, _)| bound.get(&id)).map_or(&[][..], Vec::as_slice);
        assert_eq!(p.granularities(of("gemm")).0, [Granularity::Tensor]);
        assert_eq!(p.granularities(of("matmul")).0, [Granularity::Channel]);
        assert!(p.barred(&m, &infer(&m, &InputShapes::new())).is_empty());
    }
}
