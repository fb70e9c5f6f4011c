//! Model → ModelProto: `extra` is decoded and the modelled fields are put back into it.

use super::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};
use super::rest::{put_text, unpack_rest};
use super::tensor::Place;
use super::{attr, tensor, types};
use crate::error::{At, Result};
use crate::graph::{Graph, Model, Node, ValueId};
use std::mem::take;

/// The message of a model. Tensors share their bytes with it.
pub fn export(model: &Model, place: &mut Place) -> Result<ModelProto> {
    let mut p: ModelProto = unpack_rest(&model.extra).at(|| "the model")?;
    if model.ir_version != 0 {
        p.ir_version = Some(model.ir_version);
    }
    let kept = take(&mut p.opset_import);
    p.opset_import = Vec::from_iter(model.opsets.iter().map(|(domain, version)| {
        let kept = kept.iter().find(|k| k.domain() == domain && (k.version.is_some() || *version == 0));
        let written = |k: &OperatorSetIdProto| OperatorSetIdProto { version: k.version.map(|_| *version), ..k.clone() };
        kept.map_or_else(|| OperatorSetIdProto { domain: (!domain.is_empty()).then(|| domain.clone()), version: Some(*version) }, written)
    }));
    let kept = take(&mut p.metadata_props);
    p.metadata_props = Vec::from_iter(model.metadata.iter().map(|(key, value)| {
        let kept = kept.iter().find(|k| k.key() == key && k.value() == value);
        kept.cloned().unwrap_or_else(|| StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) })
    }));
    p.graph = Some(graph(&model.graph, place)?);
    Ok(p)
}

/// The message of a graph or body.
pub fn graph(g: &Graph, place: &mut Place) -> Result<GraphProto> {
    let mut p: GraphProto = unpack_rest(&g.extra).at(|| format!("graph {:?}", g.name))?;
    put_text(&mut p.name, &g.name);
    p.input = declarations(g, &g.inputs, Vec::new())?;
    p.output = declarations(g, &g.outputs, take(&mut p.output))?;
    p.value_info = declarations(g, &g.value_info, take(&mut p.value_info))?;
    for &id in &g.initializers {
        let value = g.value(id);
        let Some(constant) = &value.constant else { continue };
        let mut t = tensor::export(constant, place).at(|| format!("initializer {:?}", value.name))?;
        t.name = Some(value.name.clone());
        p.initializer.push(t);
    }
    for (_, n) in g.nodes() {
        p.node.push(node(g, n, place).at(|| format!("node {:?}", n.name))?);
    }
    Ok(p)
}

/// Declarations of `ids`. `kept` has those that say something else than the value itself, and nameless ones.
fn declarations(g: &Graph, ids: &[ValueId], mut kept: Vec<ValueInfoProto>) -> Result<Vec<ValueInfoProto>> {
    let mut infos = Vec::with_capacity(ids.len());
    for &id in ids {
        let value = g.value(id);
        infos.push(match kept.iter().position(|k| k.name() == value.name) {
            Some(i) => kept.remove(i),
            None => types::export(value)?,
        });
    }
    infos.extend(kept.into_iter().filter(|k| k.name().is_empty()));
    Ok(infos)
}

fn node(g: &Graph, n: &Node, place: &mut Place) -> Result<NodeProto> {
    let mut p: NodeProto = unpack_rest(&n.extra)?;
    let names = |ids: &[Option<ValueId>]| Vec::from_iter(ids.iter().map(|id| id.map(|id| g.value(id).name.clone()).unwrap_or_default()));
    (p.input, p.output) = (names(n.inputs()), names(n.outputs()));
    put_text(&mut p.name, &n.name);
    put_text(&mut p.domain, &n.domain);
    put_text(&mut p.op_type, &n.op_type);
    for a in &n.attrs {
        p.attribute.push(attr::export(a, place)?);
    }
    Ok(p)
}
