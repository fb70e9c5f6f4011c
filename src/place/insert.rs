//! Carries a plan out: makes the quantizers and puts FakeQuant nodes into the graph. Values that were read before stay, with their names.

use super::plan::{Plan, PortPlan};
use crate::error::{Error, Result};
use crate::graph::{Graph, Model, Node, NodeId, ValueId};
use crate::place::Kind;
use crate::quant::{Curve, Origin, Params, QuantizerId, Zeros};
use std::collections::BTreeMap;

/// Inserts what the plan says. Graph outputs keep their names: the value before the quantizer gets a new one.
pub fn insert(model: &mut Model, plan: Plan) -> Result<()> {
    let mut used = vec![false; plan.quantizers.len()];
    plan.stored.values().chain(plan.read.values()).for_each(|&q| used[q] = true);
    for port in plan.ports.values() {
        match port {
            PortPlan::Own(q) => used[*q] = true,
            PortPlan::Product { bias, .. } => used[*bias] = true,
        }
    }
    let ids: Vec<Option<QuantizerId>> = plan
        .quantizers
        .iter()
        .zip(used)
        .map(|(q, used)| {
            used.then(|| {
                let id = model.quantizers.add(&q.name, q.scheme.clone());
                model.quantizers[id].params = q.params.clone();
                id
            })
        })
        .collect();
    let id_of = |q: usize| ids[q].expect("used quantizers have ids");
    for port in plan.ports.values() {
        if let PortPlan::Product { bias, input, weight } = port {
            let origin = Origin::Product(id_of(*input), id_of(*weight));
            model.quantizers[id_of(*bias)].params = Some(Params { scale: vec![0.0], nested: None, zero: Zeros::None, curve: Curve::Linear, origin });
        }
    }
    let g = &mut model.graph;
    // Own quantizers first: where the value itself becomes codes, they read those.
    let mut by_value: BTreeMap<(ValueId, QuantizerId), ValueId> = BTreeMap::new();
    for (&(node, slot), port) in &plan.ports {
        let q = match port {
            PortPlan::Own(q) => id_of(*q),
            PortPlan::Product { bias, .. } => id_of(*bias),
        };
        let v = g.node(node).input(slot).ok_or_else(|| Error::failed("the plan names an empty slot"))?;
        let read = *by_value.entry((v, q)).or_insert_with(|| add_fake_quant(g, v, q));
        g.set_input(node, slot, Some(read));
    }
    for (&v, &q) in &plan.read {
        let readers: Vec<(NodeId, usize)> = readers(g, &plan, v);
        let y = add_fake_quant(g, v, id_of(q));
        for (node, slot) in readers {
            g.set_input(node, slot, Some(y));
        }
    }
    for (&v, &q) in &plan.stored {
        let exact: Vec<_> = g.value(v).uses().iter().map(|p| (p.node, p.slot as usize)).filter(|p| plan.exact.contains(p)).collect();
        if g.is_output(v) {
            let (producer, slot) = g.value(v).producer().ok_or_else(|| Error::failed("a stored value that nobody makes"))?;
            let name = format!("{}_float", g.value(v).name);
            let raw = g.add_value(&name);
            g.value_mut(raw).ty = g.value(v).ty.clone();
            g.set_output(producer, slot as usize, raw);
            exact.iter().for_each(|&(node, slot)| g.set_input(node, slot, Some(raw)));
            g.add_node(Node::fake_quant(id_of(q), format!("{name}_FakeQuant")), &[Some(raw)], &[Some(v)]);
        } else {
            let y = new_value(g, v);
            g.replace_uses(v, y);
            exact.iter().for_each(|&(node, slot)| g.set_input(node, slot, Some(v)));
            let name = format!("{}_FakeQuant", g.value(v).name);
            g.add_node(Node::fake_quant(id_of(q), name), &[Some(v)], &[Some(y)]);
        }
    }
    g.sort().map_err(|node| Error::failed(format!("node {node} stands on a cycle")))
}

/// Ports of quantized and moving nodes that read `v` as a flowing operand.
fn readers(g: &Graph, plan: &Plan, v: ValueId) -> Vec<(NodeId, usize)> {
    let coded = |p: &&crate::graph::Port| matches!(plan.kinds.get(&p.node), Some(Kind::Quantized | Kind::Moves));
    let flows = |p: &&crate::graph::Port| g.node(p.node).flows(p.slot as usize);
    let mut ports: Vec<_> =
        g.value(v).uses().iter().filter(|p| p.slot != crate::graph::Port::CAPTURE).filter(coded).filter(flows).map(|p| (p.node, p.slot as usize)).collect();
    // A moving node hands codes on only if its own result is codes.
    ports.retain(|port| !plan.exact.contains(port));
    ports.retain(|(node, _)| plan.kinds[node] == Kind::Quantized || g.node(*node).output(0).is_some_and(|y| plan.stored.contains_key(&y)));
    ports.sort();
    ports
}

fn new_value(g: &mut Graph, v: ValueId) -> ValueId {
    let y = g.add_value(&format!("{}_dequantized", g.value(v).name));
    g.value_mut(y).ty = g.value(v).ty.clone();
    y
}

fn add_fake_quant(g: &mut Graph, v: ValueId, q: QuantizerId) -> ValueId {
    let y = new_value(g, v);
    let name = format!("{}_FakeQuant", g.value(v).name);
    g.add_node(Node::fake_quant(q, name), &[Some(v)], &[Some(y)]);
    y
}
