//! Overrides: which nodes and tensors, and what is wished of them.

use super::SchemeKeys;
use crate::error::{Error, Result};
use crate::graph::{Graph, Linear, Model, NodeId, Op, Recurrent, ValueId};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::{BTreeMap, BTreeSet};

/// One entry of a recipe's `overrides`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    pub select: Select,
    pub set: Wish,
    /// Matching nothing is no error.
    pub optional: bool,
    /// Where it was written, for messages: `recipe.yaml:12`.
    pub origin: String,
}

/// Nodes and tensors by name, op or place. All that is set must match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Select {
    /// Glob over node names; `*` stops at `/`, `**` does not.
    pub nodes: Option<String>,
    pub ops: Option<Vec<Op>>,
    /// Glob over tensor names.
    pub tensors: Option<String>,
    /// Nodes on a path from the first tensor to the second.
    pub between: Option<(String, String)>,
    pub place: Option<Place>,
}

/// `where:` nodes by what they multiply, and where they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Products of two operands that flow, as in attention.
    DynamicOperands,
    /// Products with a constant weight, recurrent layers among them.
    ConstantWeight,
    /// MatMuls whose constant weight is the first operand.
    WeightFirst,
    /// MatMuls whose constant weight is several matrices.
    WeightStacked,
    /// Convolutions with a group an input channel.
    Depthwise,
    /// Products that no other stands before: the first layers.
    First,
    /// Products that no other stands behind: the last layers.
    Last,
}

impl Place {
    /// Every place with the word for it.
    pub const NAMES: [(&'static str, Place); 7] = [
        ("dynamic-operands", Place::DynamicOperands),
        ("constant-weight", Place::ConstantWeight),
        ("weight-first", Place::WeightFirst),
        ("weight-stacked", Place::WeightStacked),
        ("depthwise", Place::Depthwise),
        ("first", Place::First),
        ("last", Place::Last),
    ];
    /// The words alone.
    pub const WORDS: [&'static str; Place::NAMES.len()] = {
        let mut words = [""; Place::NAMES.len()];
        let mut i = 0;
        while i < words.len() {
            words[i] = Place::NAMES[i].0;
            i += 1;
        }
        words
    };
}

/// What is wished of the selected.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wish {
    pub keep: Option<Keep>,
    pub weights: Option<SchemeKeys>,
    pub activations: Option<SchemeKeys>,
    pub bias: Option<SchemeKeys>,
    pub inputs: BTreeMap<usize, SchemeKeys>,
    pub outputs: BTreeMap<usize, SchemeKeys>,
}

/// `keep:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// In the recipe's float type.
    Float,
    /// As in the input file.
    Input,
}

fn glob(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|e| Error::usage(format!("`{pattern}` is not a pattern ({e})")))?.compile_matcher())
}

/// The pattern that matches this name and no other.
pub fn literal(name: &str) -> String {
    globset::escape(name)
}

impl Select {
    /// The nodes of the outermost graph that match; none where only tensors are selected.
    pub fn nodes(&self, model: &Model) -> Result<BTreeSet<NodeId>> {
        let g = &model.graph;
        if self.nodes.is_none() && self.ops.is_none() && self.between.is_none() && self.place.is_none() {
            return Ok(BTreeSet::new());
        }
        let name = self.nodes.as_deref().map(glob).transpose()?;
        let inside = match &self.between {
            Some((from, to)) => Some(between(g, from, to)?),
            None => None,
        };
        let there = self.place.map(|place| standing(g, place));
        let matches = |id: NodeId| {
            let node = g.node(id);
            let named = |m: &GlobMatcher| m.is_match(&node.name) || node.came_from.iter().any(|n| m.is_match(n));
            name.as_ref().is_none_or(named)
                && self.ops.as_ref().is_none_or(|o| o.contains(&node.op))
                && [&inside, &there].into_iter().flatten().all(|s| s.contains(&id))
        };
        Ok(g.order().iter().copied().filter(|id| matches(*id)).collect())
    }

    /// The tensors that match.
    pub fn tensors(&self, model: &Model) -> Result<BTreeSet<ValueId>> {
        let Some(pattern) = &self.tensors else { return Ok(BTreeSet::new()) };
        let m = glob(pattern)?;
        Ok(model.graph.values().filter(|(_, v)| m.is_match(&v.name)).map(|(id, _)| id).collect())
    }
}

/// The nodes at a place.
fn standing(g: &Graph, place: Place) -> BTreeSet<NodeId> {
    let linear = |id: NodeId| Linear::of(g, id);
    let is = |id: NodeId| linear(id).is_some() || Recurrent::of(g, id).is_some();
    let products = || g.order().iter().copied().filter(|id| is(*id));
    let weight = |l: &Linear| g.constant(crate::graph::constant_behind(g, l.weight)?);
    match place {
        Place::DynamicOperands => products().filter(|id| linear(*id).is_some_and(|l| !l.constant)).collect(),
        Place::ConstantWeight => products().filter(|id| linear(*id).is_none_or(|l| l.constant)).collect(),
        Place::WeightFirst => products().filter(|id| linear(*id).is_some_and(|l| l.constant && l.weight_slot == 0)).collect(),
        Place::WeightStacked => {
            products().filter(|id| g.node(*id).op == Op::MatMul && linear(*id).is_some_and(|l| weight(&l).is_some_and(|c| c.tensor.rank() > 2))).collect()
        }
        Place::Depthwise => products()
            .filter(|id| {
                // Of a Conv's weight, the axis that is summed over holds the channels of one group; of a ConvTranspose's, all.
                linear(*id).is_some_and(|l| {
                    let own = weight(&l).and_then(|c| c.tensor.shape().get(l.in_axis).copied());
                    l.groups > 1 && own == Some(if g.node(*id).op == Op::ConvTranspose { l.groups } else { 1 })
                })
            })
            .collect(),
        Place::First | Place::Last => {
            let mut touched: BTreeSet<ValueId> = BTreeSet::new();
            let mut ends = BTreeSet::new();
            let mut order = g.order().to_vec();
            let last = place == Place::Last;
            if last {
                order.reverse();
            }
            for id in order {
                let node = g.node(id);
                let (from, to) = if last { (node.outputs(), node.inputs()) } else { (node.inputs(), node.outputs()) };
                let beyond = from.iter().flatten().any(|v| touched.contains(v));
                if is(id) && !beyond {
                    ends.insert(id);
                }
                if is(id) || beyond {
                    touched.extend(to.iter().flatten());
                }
            }
            ends
        }
    }
}

/// Nodes that lie on a path from tensor `from` to tensor `to`.
fn between(g: &Graph, from: &str, to: &str) -> Result<BTreeSet<NodeId>> {
    let find = |name: &str| g.find_value(name).ok_or_else(|| Error::usage(format!("`between` names tensor `{name}`, which the model does not have")));
    let (from, to) = (find(from)?, find(to)?);
    let mut behind = BTreeSet::from([from]);
    let mut nodes = BTreeSet::new();
    for (id, node) in g.nodes() {
        if node.inputs().iter().flatten().any(|v| behind.contains(v)) {
            nodes.insert(id);
            behind.extend(node.outputs().iter().flatten());
        }
    }
    let mut before = BTreeSet::from([to]);
    for (id, node) in g.nodes().rev() {
        if node.outputs().iter().flatten().any(|v| before.contains(v)) {
            before.extend(node.inputs().iter().flatten());
        } else {
            nodes.remove(&id);
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Node;
    use crate::tensor::Tensor;

    fn chain() -> Model {
        let mut m = Model::default();
        let g = &mut m.graph;
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|n| g.add_value(n));
        g.add_node(Node::new(Op::Relu, "/body/relu"), &[Some(a)], &[Some(b)]);
        g.add_node(Node::new(Op::Conv, "/body/deep/conv"), &[Some(b)], &[Some(c)]);
        g.add_node(Node::new(Op::Relu, "/head/relu"), &[Some(c)], &[Some(d)]);
        m
    }

    fn names(m: &Model, s: &Select) -> Vec<String> {
        s.nodes(m).unwrap().iter().map(|id| m.graph.node(*id).name.clone()).collect()
    }

    #[test]
    fn a_star_stops_at_a_slash_and_two_do_not() {
        let m = chain();
        let by = |p: &str| Select { nodes: Some(p.into()), ..Select::default() };
        assert_eq!(names(&m, &by("/body/*")), ["/body/relu"]);
        assert_eq!(names(&m, &by("/body/**")), ["/body/relu", "/body/deep/conv"]);
        assert!(by("[").nodes(&m).is_err());
    }

    /// a → Conv (3 groups of a channel) → MatMul with a constant → MatMul with itself → Relu → d; e → Conv → f.
    #[test]
    fn products_are_found_by_what_they_multiply_and_where_they_stand() {
        let mut m = Model::default();
        let g = &mut m.graph;
        let [a, b, c, p, d, e, f] = ["a", "b", "c", "p", "d", "e", "f"].map(|n| g.add_value(n));
        let depthwise = g.add_constant("wd", Tensor::of_f32(&[3, 1, 1, 1], vec![1.0; 3]));
        let full = g.add_constant("wf", Tensor::of_f32(&[3, 3, 1, 1], vec![1.0; 9]));
        let matrix = g.add_constant("wm", Tensor::of_f32(&[2, 2], vec![1.0; 4]));
        g.add_node(Node::new(Op::Conv, "depthwise").with("group", 3), &[Some(a), Some(depthwise)], &[Some(b)]);
        g.add_node(Node::new(Op::MatMul, "matmul"), &[Some(b), Some(matrix)], &[Some(c)]);
        g.add_node(Node::new(Op::MatMul, "attention"), &[Some(c), Some(c)], &[Some(p)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(p)], &[Some(d)]);
        g.add_node(Node::new(Op::Conv, "alone"), &[Some(e), Some(full)], &[Some(f)]);
        let at = |place| names(&m, &Select { place: Some(place), ..Select::default() });
        assert_eq!(at(Place::WeightFirst), [""; 0]);
        assert_eq!(at(Place::Depthwise), ["depthwise"]);
        assert_eq!(at(Place::DynamicOperands), ["attention"]);
        assert_eq!(at(Place::ConstantWeight), ["depthwise", "matmul", "alone"]);
        assert_eq!(at(Place::First), ["depthwise", "alone"]);
        assert_eq!(at(Place::Last), ["attention", "alone"]);
        assert_eq!(names(&m, &Select { place: Some(Place::Last), ops: Some(vec![Op::Conv]), ..Select::default() }), ["alone"]);
    }

    #[test]
    fn a_weight_may_be_the_first_operand_or_several_matrices() {
        let mut m = Model::default();
        let g = &mut m.graph;
        let [x, y, z] = ["x", "y", "z"].map(|n| g.add_value(n));
        let w = g.add_constant("w", Tensor::of_f32(&[2, 2], vec![1.0; 4]));
        let stack = g.add_constant("stack", Tensor::of_f32(&[3, 2, 2], vec![1.0; 12]));
        g.add_node(Node::new(Op::MatMul, "first"), &[Some(w), Some(x)], &[Some(y)]);
        g.add_node(Node::new(Op::MatMul, "second"), &[Some(y), Some(stack)], &[Some(z)]);
        assert_eq!(names(&m, &Select { place: Some(Place::WeightFirst), ..Select::default() }), ["first"]);
        assert_eq!(names(&m, &Select { place: Some(Place::WeightStacked), ..Select::default() }), ["second"]);
    }

    #[test]
    fn all_conditions_must_hold_and_between_is_a_stretch() {
        let m = chain();
        let s = Select { nodes: Some("/**".into()), ops: Some(vec![Op::Relu]), between: Some(("a".into(), "c".into())), ..Select::default() };
        assert_eq!(names(&m, &s), ["/body/relu"]);
        let unknown = Select { between: Some(("a".into(), "z".into())), ..Select::default() };
        assert!(unknown.nodes(&m).unwrap_err().to_string().contains("`z`"));
        let t = Select { tensors: Some("[bc]".into()), ..Select::default() };
        assert_eq!(t.tensors(&m).unwrap().len(), 2);
        assert!(t.nodes(&m).unwrap().is_empty());
    }
}
