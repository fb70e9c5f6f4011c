//! A model: the graph, what the file says around it, and the quantizers beside it.

use super::{Flow, Graph, Node, NodeId, ValueId};
use crate::quant::{Codes, QuantizerId, Table};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A model in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    pub graph: Graph,
    pub ir_version: i64,
    /// (domain, version) in the file's order; `""` is ONNX's own.
    pub opsets: Vec<(String, i64)>,
    /// `metadata_props`, in order.
    pub metadata: Vec<(String, String)>,
    /// As `Node::extra`, of the ModelProto: producer, functions, training info …
    pub extra: Bytes,
    pub quantizers: Table,
    /// Weights as codes: at these FakeQuant nodes, FakeQuant is `dequantize(codes)`.
    pub codes: BTreeMap<Site, Codes>,
}

/// Where codes are stored: a FakeQuant node, in the graph or in a body of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// From the outermost graph inwards: the node with the body, the body's attribute, and its index there.
    pub path: Vec<(NodeId, Arc<str>, u32)>,
    pub node: NodeId,
    pub slot: u32,
}

impl Site {
    /// The site of a FakeQuant node in the outermost graph.
    pub fn of(node: NodeId) -> Self {
        Site { path: Vec::new(), node, slot: 0 }
    }
}

impl Model {
    /// The opset version of a domain (`""` for ONNX's own, which may also be spelled `ai.onnx`).
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let own = |d: &str| if d == "ai.onnx" { String::new() } else { d.to_string() };
        self.opsets.iter().find(|(d, _)| own(d) == own(domain)).map(|(_, v)| *v)
    }

    /// Imports version 1 of a domain that a node of the outermost graph is of, where the model does not import it yet.
    pub fn import_used(&mut self, domain: &str) {
        if self.opset(domain).is_none() && self.graph.nodes().any(|(_, n)| &*n.domain == domain) {
            self.set_opset(domain, 1);
        }
    }

    /// Sets the opset version of a domain.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let own = |d: &str| if d == "ai.onnx" { String::new() } else { d.to_string() };
        match self.opsets.iter_mut().find(|(d, _)| own(d) == own(domain)) {
            Some((_, v)) => *v = version,
            None => self.opsets.push((domain.to_string(), version)),
        }
    }

    /// Sets one entry of the metadata.
    pub fn set_metadata(&mut self, key: &str, value: &str) {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value.to_string(),
            None => self.metadata.push((key.to_string(), value.to_string())),
        }
    }

    /// Every FakeQuant node over a constant in the outermost graph, in execution order, with its quantizer.
    pub fn constant_sites(&self) -> Vec<(NodeId, QuantizerId)> {
        let g = &self.graph;
        let site = |(id, node): (NodeId, &Node)| {
            g.constant(node.input(0)?)?;
            Some((id, node.quantizer()?))
        };
        g.nodes().filter_map(site).collect()
    }

    /// The one quantizer that a value is moved to, whoever reads it: where rows of an embedding table become codes on their way out of a Gather.
    pub fn moved_to(&self, v: ValueId) -> Option<QuantizerId> {
        let g = &self.graph;
        let mut found = None;
        for port in g.value(v).uses() {
            let node = g.get_node(port.node)?;
            let id = match node.quantizer() {
                Some(q) => self.quantizers.root(q),
                None if node.op.flow() == Flow::Move && port.slot == 0 && node.outputs().len() == 1 => self.moved_to(node.output(0)?)?,
                None => return None,
            };
            if found.is_some_and(|f| f != id) {
                return None;
            }
            found = Some(id);
        }
        found.filter(|_| !g.is_output(v))
    }

    /// The FakeQuant that a value comes from, seen through moves, and its quantizer.
    pub fn quantizer_behind(&self, v: ValueId) -> Option<(NodeId, QuantizerId)> {
        let id = self.graph.value(v).producer()?.0;
        let node = self.graph.node(id);
        match node.quantizer() {
            Some(q) => Some((id, self.quantizers.root(q))),
            None if node.op.flow() == Flow::Move => self.quantizer_behind(node.input(0)?),
            None => None,
        }
    }

    /// The id of a FakeQuant node of the outermost graph.
    pub fn quantizer_of(&self, node: NodeId) -> Option<QuantizerId> {
        self.graph.get_node(node)?.quantizer()
    }
}
