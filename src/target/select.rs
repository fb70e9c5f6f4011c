//! Overrides: which nodes and tensors, and what is wished of them.

use super::SchemeKeys;
use crate::error::{Error, Result};
use crate::graph::{Graph, Model, NodeId, Op, ValueId};
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
    /// In float32.
    Float,
}

fn glob(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|e| Error::usage(format!("`{pattern}` is not a pattern ({e})")))?.compile_matcher())
}

impl Select {
    /// The nodes of the outermost graph that match; none where only tensors are selected.
    pub fn nodes(&self, model: &Model) -> Result<BTreeSet<NodeId>> {
        let g = &model.graph;
        if self.nodes.is_none() && self.ops.is_none() && self.between.is_none() {
            return Ok(BTreeSet::new());
        }
        let name = self.nodes.as_deref().map(glob).transpose()?;
        let inside = match &self.between {
            Some((from, to)) => Some(between(g, from, to)?),
            None => None,
        };
        let matches = |id: NodeId| {
            let node = g.node(id);
            let named = |m: &GlobMatcher| m.is_match(&node.name) || node.came_from.iter().any(|n| m.is_match(n));
            name.as_ref().is_none_or(named) && self.ops.as_ref().is_none_or(|o| o.contains(&node.op)) && inside.as_ref().is_none_or(|s| s.contains(&id))
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
