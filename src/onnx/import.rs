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
    let graph = p.graph.take().ok_or_else(|| Error::usage("it is not an ONNX model (it has no graph); export the model to ONNX first"))?;
    if p.opset_import.is_empty() {
        return Err(Error::usage("it is not a complete ONNX model (it declares no operator set); export or download the model again"));
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

#[cfg(test)]
mod tests {
    use super::super::proto::*;
    use super::super::sample::{add, assert_kept, assert_refused, entry, graph as x_to_y, info, initializer, model, node, read, text};
    use crate::graph::{Op, Type};

    fn with(change: impl FnOnce(&mut GraphProto)) -> ModelProto {
        let mut p = add();
        change(p.graph.as_mut().unwrap());
        p
    }

    fn body_of(nodes: Vec<NodeProto>) -> AttributeProto {
        let mut g = x_to_y(nodes);
        g.input.clear();
        AttributeProto { name: text("body"), r#type: Some(attribute_proto::AttributeType::Graph as i32), g: Some(g), ..Default::default() }
    }

    #[test]
    fn what_the_graph_has_no_field_for() {
        let mut p = with(|g| {
            g.doc_string = text("");
            g.name = text("");
            g.metadata_props = vec![entry("k", "v")];
            g.quantization_annotation = vec![TensorAnnotation { tensor_name: text("w"), quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "s")] }];
            g.node[0].name = text("");
            g.node[0].domain = text("");
            g.node[0].overload = text("o");
            g.node[0].device_configurations = vec![NodeDeviceConfigurationProto { configuration_id: text("c"), ..Default::default() }];
            g.node[0].metadata_props = vec![entry("namespace", "a/b")];
            g.initializer[0].doc_string = text("weight");
        });
        p.producer_name = text("someone");
        p.domain = text("");
        p.opset_import = vec![
            OperatorSetIdProto { domain: text(""), version: Some(17) },
            OperatorSetIdProto { domain: text("com.microsoft"), version: None },
            OperatorSetIdProto { domain: text("local"), version: Some(1) },
        ];
        p.metadata_props = vec![entry("a", "b"), StringStringEntryProto { key: text("empty"), value: None }, entry("", "")];
        p.functions = vec![FunctionProto { name: text("f"), node: vec![node("Relu", &["a"], &["b"])], ..Default::default() }];
        p.training_info = vec![TrainingInfoProto { algorithm: Some(x_to_y(vec![])), ..Default::default() }];
        p.configuration = vec![DeviceConfigurationProto { num_devices: Some(2), ..Default::default() }];
        assert_kept(p.clone());
        let m = read(p).unwrap();
        assert_eq!((m.opset(""), m.opset("local")), (Some(17), Some(1)));
        assert_eq!(m.metadata[1], ("empty".to_string(), String::new()));
    }

    #[test]
    fn slots_left_out_and_unknown_ops() {
        let p = with(|g| g.node[0] = node("Clip", &["x", "", "w", ""], &["y", ""]));
        assert_kept(p.clone());
        let m = read(p).unwrap();
        let (_, clip) = m.graph.nodes().next().unwrap();
        assert_eq!((clip.op, clip.inputs().len(), clip.input(1)), (Op::Clip, 4, None));
        assert_kept(with(|g| {
            g.node[0].op_type = text("Mystery");
            g.node[0].domain = text("org.example");
        }));
    }

    #[test]
    fn declarations_that_meet_in_one_value() {
        // An initializer that is an input too, and one that value_info describes.
        assert_kept(with(|g| g.input.push(info("w", &[2, 3]))));
        assert_kept(with(|g| g.value_info.push(info("w", &[2, 3]))));
        // value_info that says the same as the output, something else, or speaks of a tensor that is not there.
        assert_kept(with(|g| g.value_info = vec![info("y", &[2, 3]), info("gone", &[1])]));
        assert_kept(with(|g| g.value_info = vec![info("gone", &[1]), info("y", &[7]), info("x", &[2, 3]), info("", &[])]));
        // A graph that hands out its input, declared otherwise.
        assert_kept(with(|g| g.output.insert(0, info("x", &[6]))));
    }

    #[test]
    fn sparse_initializers_may_be_read() {
        let values = |name| Some(TensorProto { name, data_type: Some(1), dims: vec![1], float_data: vec![2.0], ..Default::default() });
        let p = with(|g| {
            g.initializer.clear();
            g.sparse_initializer = vec![SparseTensorProto { values: values(text("w")), indices: None, dims: vec![2, 3] }];
        });
        assert_kept(p.clone());
        let m = read(p).unwrap();
        assert_eq!(m.graph.value(m.graph.find_value("w").unwrap()).ty, Type::Other);
    }

    #[test]
    fn bodies_read_the_tensors_around_them() {
        let mut inner = node("If", &["x"], &["y"]);
        inner.attribute.push(body_of(vec![node("Add", &["x", "w"], &["y"])]));
        let mut outer = node("If", &["x"], &["y"]);
        outer.attribute.push(body_of(vec![inner]));
        let p = with(|g| g.node[0] = outer.clone());
        assert_kept(p.clone());
        let m = read(p).unwrap();
        assert_eq!(m.graph.nodes().next().unwrap().1.captures().len(), 2);
        assert_refused(model(x_to_y(vec![outer])), &["\"w\"", "no node makes it"]);
    }

    #[test]
    fn nodes_out_of_order_are_put_in_order() {
        let p = model(x_to_y(vec![node("Relu", &["h"], &["y"]), node("Abs", &["x"], &["h"])]));
        let ops: Vec<_> = read(p).unwrap().graph.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::Abs, Op::Relu]);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        assert_refused(ModelProto::default(), &["no graph"]);
        assert_refused(ModelProto { opset_import: vec![], ..add() }, &["no operator set"]);
        assert_refused(with(|g| g.node[0].op_type = None), &["node 0", "no operator"]);
        assert_refused(with(|g| g.node[0].input[1] = "nobody".into()), &["\"nobody\"", "no node makes it"]);
        assert_refused(with(|g| g.output.push(info("nobody", &[1]))), &["\"nobody\""]);
        let cycle = vec![NodeProto { name: text("a"), ..node("Relu", &["h"], &["y"]) }, node("Relu", &["y"], &["h"])];
        assert_refused(model(x_to_y(cycle)), &["cycle"]);
    }

    #[test]
    fn duplicate_and_missing_names_are_refused_by_name() {
        assert_refused(with(|g| g.input.push(info("x", &[1]))), &["input \"x\"", "twice"]);
        assert_refused(with(|g| g.initializer.push(initializer("w", &[1]))), &["initializer \"w\"", "twice"]);
        assert_refused(with(|g| g.node.push(node("Relu", &["x"], &["y"]))), &["node 1 (Relu)", "\"y\"", "second time"]);
        assert_refused(with(|g| g.node.push(node("Relu", &["x"], &["w"]))), &["node 1 (Relu)", "\"w\""]);
        assert_refused(with(|g| g.node.push(node("Split", &["x"], &["z", "z"]))), &["\"z\""]);
        assert_refused(with(|g| g.node.push(node("Relu", &["w"], &["x"]))), &["\"x\""]);
        assert_refused(with(|g| g.input.push(info("", &[1]))), &["input has no name"]);
        assert_refused(with(|g| g.initializer.push(initializer("", &[1]))), &["initializer has no name"]);
        assert_refused(with(|g| g.output.push(info("", &[1]))), &["output has no name"]);
    }
}
