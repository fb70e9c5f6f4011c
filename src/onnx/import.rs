//! ModelProto → Model. Each step takes the fields it models out of the message; what remains is kept as `extra`.

use super::external::Files;
use super::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use super::rest::{pack_rest, take_text};
use super::{attr, tensor, types};
use crate::error::{At, Error, Result};
use crate::graph::{Graph, Model, Node, Type, ValueId};
use std::collections::HashSet;
use std::mem::take;

/// The model in the message. Errors name the tensor or node, not the file.
pub fn import(mut p: ModelProto, files: &mut Files) -> Result<Model> {
    let graph = p.graph.take().ok_or_else(|| Error::usage("it is not an ONNX model (it has no graph)"))?;
    if p.opset_import.is_empty() {
        return Err(Error::usage("it is not an ONNX model (it declares no operator set)"));
    }
    let mut model = Model { ir_version: p.ir_version.take_if(|v| *v != 0).unwrap_or_default(), ..Model::default() };
    model.opsets = p.opset_import.iter().map(|o| (o.domain().to_string(), o.version())).collect();
    p.opset_import.retain(|o| o.domain.as_deref() == Some("") || o.version.is_none());
    model.metadata = p.metadata_props.iter().map(|e| (e.key().to_string(), e.value().to_string())).collect();
    p.metadata_props.retain(|e| e.key.is_none() || e.value.is_none());
    let mut scope = Scope { files, sparse: HashSet::new() };
    model.graph = self::graph(graph, &mut scope)?;
    model.extra = pack_rest(&p);
    let unmade = model.graph.captured().into_iter().find(|name| !scope.sparse.contains(name));
    match unmade {
        Some(name) => Err(Error::usage(format!("tensor {name:?} is read, but no node makes it and it is neither input nor initializer"))),
        None => Ok(model),
    }
}

/// What graphs within graphs share.
pub struct Scope<'a> {
    pub files: &'a mut Files,
    /// Names of sparse initializers, which stay in `extra`.
    sparse: HashSet<String>,
}

/// A graph, or the body of a node.
pub fn graph(mut p: GraphProto, scope: &mut Scope) -> Result<Graph> {
    let mut g = Graph::default();
    g.name = take_text(&mut p.name);
    let mut declared = HashSet::new();
    for info in take(&mut p.input) {
        let (name, ty, extra) = types::import(info);
        if name.is_empty() || g.find_value(&name).is_some() {
            return Err(twice_or_nameless("input", &name));
        }
        let id = g.add_value(&name);
        (g.value_mut(id).ty, g.value_mut(id).extra) = (ty, extra);
        declared.insert(id);
        g.inputs.push(id);
    }
    for mut t in take(&mut p.initializer) {
        let name = t.name.take().unwrap_or_default();
        let id = find_or_add(&mut g, &name);
        if name.is_empty() || g.value(id).constant.is_some() {
            return Err(twice_or_nameless("initializer", &name));
        }
        g.value_mut(id).constant = Some(tensor::import(t, scope.files).at(|| format!("initializer {name:?}"))?);
        g.initializers.push(id);
    }
    for s in &p.sparse_initializer {
        let name = s.values.as_ref().map(|v| v.name()).unwrap_or_default();
        if !name.is_empty() {
            let id = find_or_add(&mut g, name);
            g.value_mut(id).ty = Type::Other;
            scope.sparse.insert(name.to_string());
        }
    }
    let nodes = take(&mut p.node);
    make_outputs(&mut g, &nodes)?;
    // A second declaration that says something else than the first stays in the message.
    for (infos, output) in [(take(&mut p.output), true), (take(&mut p.value_info), false)] {
        for info in infos {
            let second = declare(&mut g, info, output, &mut declared)?;
            (if output { &mut p.output } else { &mut p.value_info }).extend(second);
        }
    }
    for (i, node) in nodes.into_iter().enumerate() {
        add_node(&mut g, node, i, scope)?;
    }
    g.extra = pack_rest(&p);
    g.sort().map_err(|node| Error::usage(format!("node {node:?} depends on its own output; a model must have no cycles")))?;
    Ok(g)
}

fn twice_or_nameless(what: &str, name: &str) -> Error {
    match name {
        "" => Error::usage(format!("an {what} has no name; export the model again")),
        _ => Error::usage(format!("{what} {name:?} is defined twice; every tensor needs a name of its own")),
    }
}

fn find_or_add(g: &mut Graph, name: &str) -> ValueId {
    g.find_value(name).unwrap_or_else(|| g.add_value(name))
}

/// Adds the values that nodes make, each made once.
fn make_outputs(g: &mut Graph, nodes: &[NodeProto]) -> Result<()> {
    let mut made: HashSet<&str> = HashSet::new();
    for (i, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            let taken = g.find_value(name).is_some_and(|id| g.value(id).constant.is_some() || g.inputs.contains(&id));
            if taken || !made.insert(name) {
                let who = label(node, i);
                return Err(Error::usage(format!("{who}: its output {name:?} is defined a second time; every tensor needs a name of its own")));
            }
            find_or_add(g, name);
        }
    }
    Ok(())
}

/// Enters an `output` or `value_info`. Hands it back if the value has been declared otherwise before, or has no name.
fn declare(g: &mut Graph, info: ValueInfoProto, output: bool, declared: &mut HashSet<ValueId>) -> Result<Option<ValueInfoProto>> {
    if info.name().is_empty() {
        return if output { Err(twice_or_nameless("output", "")) } else { Ok(Some(info)) };
    }
    let (name, ty, extra) = types::import(info.clone());
    let id = find_or_add(g, &name);
    (if output { &mut g.outputs } else { &mut g.value_info }).push(id);
    let value = g.value_mut(id);
    if declared.insert(id) {
        (value.ty, value.extra) = (ty, extra);
        return Ok(None);
    }
    Ok((value.ty != ty || value.extra != extra).then_some(info))
}

/// How messages call a node: by name, or by operator and index.
fn label(node: &NodeProto, index: usize) -> String {
    match node.name() {
        "" => format!("node {index} ({})", node.op_type()),
        name => format!("node {name:?}"),
    }
}

fn add_node(g: &mut Graph, mut p: NodeProto, index: usize, scope: &mut Scope) -> Result<()> {
    let who = label(&p, index);
    let mut values = |names: Vec<String>| -> Vec<_> { names.iter().map(|n| (!n.is_empty()).then(|| find_or_add(g, n))).collect() };
    let (inputs, outputs) = (values(take(&mut p.input)), values(take(&mut p.output)));
    let (domain, op_type) = (take_text(&mut p.domain), take_text(&mut p.op_type));
    if op_type.is_empty() {
        return Err(Error::usage(format!("{who}: it has no operator; export the model again")));
    }
    let mut node = Node::spelled(&domain, &op_type, take_text(&mut p.name));
    for a in take(&mut p.attribute) {
        let name = a.name().to_string();
        node.attrs.push(attr::import(a, scope).at(|| format!("{who}, attribute {name:?}"))?);
    }
    node.extra = pack_rest(&p);
    g.add_node(node, &inputs, &outputs);
    Ok(())
}
