//! Bodies of If, Loop and Scan: what they read from the graph around them keeps its meaning inside.

use super::held::{Held, Real, Under};
use super::work::{Home, Work};
use crate::error::Result;
use crate::graph::{AttrValue, Fact, Flow, Graph, Inferred, NodeId, ValueId};
use crate::quant::QuantizerId;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// What a body can know of the values around it, by name.
#[derive(Default, Clone)]
pub struct Outer {
    pub constants: BTreeMap<String, (Tensor, Home)>,
    pub facts: BTreeMap<String, Fact>,
    held: BTreeMap<String, Captured>,
}

/// A value with codes, as a body sees it.
#[derive(Clone)]
struct Captured {
    dtype: DType,
    /// Name and type of the real numbers, and their quantizer.
    real: Option<(String, DType, QuantizerId)>,
    numbers: Option<String>,
}

/// Lifts the bodies of a node.
pub fn lift_bodies(w: &mut Work, id: NodeId) -> Result<()> {
    let captures = w.g.node(id).captures().to_vec();
    let codes = captures.iter().any(|v| w.held.contains_key(v) || w.outer.held.contains_key(&w.g.value(*v).name));
    if !codes && !w.g.node(id).bodies().any(|(_, b)| quantized(b)) {
        return Ok(());
    }
    let mut outer = w.outer.clone();
    for v in captures {
        let name = w.name(v);
        if let Some(t) = w.constant(v) {
            let home = w.home(v);
            outer.constants.insert(name.clone(), (t, home));
        }
        if let Some(h) = w.held.get(&v).cloned() {
            let real = match h.real {
                Some(Real { value, float, under: Under::Static(q) }) => Some((w.name(value), float, q)),
                _ => None,
            };
            let numbers = if real.is_none() { Some(w.numbers(v)?) } else { None };
            let numbers = numbers.map(|n| w.name(n));
            outer.held.insert(name.clone(), Captured { dtype: h.dtype, real, numbers });
        }
        let mut fact = Fact::default();
        (fact.dtype, fact.shape) = (w.dtype(v), w.dims(v));
        outer.facts.insert(name, fact);
    }
    let mut attrs = std::mem::take(&mut w.g.node_mut(id).attrs);
    let mut result = Ok(());
    for attr in &mut attrs {
        let graphs: &mut [Graph] = match &mut attr.value {
            AttrValue::Graph(b) => std::slice::from_mut(b),
            AttrValue::Graphs(b) => b,
            _ => continue,
        };
        for (i, body) in graphs.iter_mut().enumerate() {
            let mut path = w.path.clone();
            path.push((id, attr.name.as_str().into(), i as u32));
            result = result.and_then(|()| super::lift_graph(body, w.all, path, Inferred::default(), &outer));
        }
    }
    w.g.node_mut(id).attrs = attrs;
    w.g.refresh_captures(id);
    result
}

fn quantized(g: &Graph) -> bool {
    g.nodes().any(|(_, n)| n.op.flow() == Flow::Quantize || n.bodies().any(|(_, b)| quantized(b)))
}

impl Work<'_> {
    /// Learns what stands for the codes that this body reads from the graphs around it.
    pub fn receive(&mut self) {
        let captured: Vec<ValueId> = self.g.values().map(|(v, _)| v).filter(|v| self.is_captured(*v)).collect();
        for v in captured {
            let name = self.name(v);
            let Some(c) = self.outer.held.get(&name).cloned() else { continue };
            let mut local = |stand_in: &str| if stand_in == name { v } else { self.g.find_value(stand_in).unwrap_or_else(|| self.g.add_value(stand_in)) };
            let real = c.real.map(|(name, float, q)| Real { value: local(&name), float, under: Under::Static(q) });
            let numbers = c.numbers.map(|name| local(&name));
            self.held.insert(v, Held { dtype: c.dtype, real, numbers, integers: None });
        }
    }

    /// A body that hands out codes of the graphs around it hands out codes in their own type.
    pub fn hand_out(&mut self) -> Result<()> {
        for i in 0..self.g.outputs.len() {
            let v = self.g.outputs[i];
            if self.held.contains_key(&v) && self.is_captured(v) {
                self.g.outputs[i] = self.integers(v)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Op, Site};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, model, node};

    /// An If whose branches dequantize codes, scale and weight of the graph around them, and hand out codes.
    fn branch(makes: &str) -> Graph {
        let mut g = Graph::default();
        let [q, s, z, a, w, d, y] = ["q", "s", "z", "a", "w", "d", makes].map(|n| g.add_value(n));
        g.add_node(node(Op::DequantizeLinear), &[Some(q), Some(s), Some(z)], &[Some(a)]);
        g.add_node(node(Op::DequantizeLinear), &[Some(w), Some(s)], &[Some(d)]);
        g.add_node(node(Op::Add), &[Some(a), Some(d)], &[Some(y)]);
        g.outputs = vec![y, q];
        g
    }

    #[test]
    fn what_is_captured_keeps_its_meaning_and_its_quantizer() {
        let constants = [("s", f32s(&[0.5])), ("z", bytes(DType::U8, &[], &[3])), ("w", bytes(DType::I8, &[2], &[1, 2]))];
        let choose = node(Op::If).with("then_branch", branch("t")).with("else_branch", branch("e"));
        let nodes: Vec<(crate::graph::Node, &[&str], &[&str])> = vec![(node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]), (choose, &["c"], &["y", "codes"])];
        let mut m = model(13, &[("x", DType::F32, &[2]), ("c", DType::Bool, &[])], &constants, nodes, &["y", "codes"]);
        lift(&mut m).unwrap();
        let (id, n) = m.graph.nodes().find(|(_, n)| n.op == Op::If).unwrap();
        assert_eq!(n.captures().iter().map(|v| m.graph.value(*v).name.as_str()).collect::<Vec<_>>(), ["q"], "scales are gone, codes became real numbers");
        assert_eq!(m.quantizers.len(), 2, "one of the activation, one of the weight, however often they are named");
        for (attr, body) in n.bodies() {
            let ops: Vec<Op> = body.nodes().map(|(_, n)| n.op).collect();
            assert_eq!(ops.iter().filter(|op| **op == Op::Cast).count(), 1, "{attr} hands out codes: {ops:?}");
            let weight = body.nodes().find(|(_, n)| n.op == Op::FakeQuant).unwrap().0;
            let site = Site { path: vec![(id, attr.into(), 0)], node: weight, slot: 0 };
            assert_eq!(m.codes[&site].unpack(), [1, 2]);
        }
    }
}
