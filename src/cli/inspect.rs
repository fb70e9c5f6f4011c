//! `requant inspect`: what is in a model file, without touching its weights.

use super::args::Inspect;
use super::print;
use crate::error::Result;
use crate::graph::{Constant, Dim, Flow, Graph, Storage, Type, Value};
use crate::onnx;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What `inspect` found; printed as JSON as it stands here.
#[derive(Debug, Serialize)]
struct Inspection {
    file: String,
    /// Of the model file itself.
    bytes: u64,
    producer: String,
    ir_version: i64,
    /// Domain → version; `""` is spelled `ai.onnx`.
    opsets: Map<String, Json>,
    metadata: Map<String, Json>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    nodes: usize,
    /// Op → number of nodes, bodies included.
    ops: BTreeMap<String, usize>,
    /// Element type → what constants of it there are.
    constants: BTreeMap<String, Constants>,
    external: Constants,
}

#[derive(Debug, Serialize)]
struct Port {
    name: String,
    dtype: Option<&'static str>,
    /// Sizes, names of symbolic dimensions, or null; absent where the rank is unknown.
    shape: Option<Vec<Json>>,
}

#[derive(Debug, Default, Serialize)]
struct Constants {
    tensors: usize,
    elements: u64,
    bytes: u64,
}

pub fn run(args: &Inspect) -> Result<()> {
    let inspection = inspect(&args.model)?;
    match args.json {
        true => print::json(&inspection),
        false => print::results(&text(&inspection)),
    }
}

fn inspect(path: &Path) -> Result<Inspection> {
    let model = onnx::read(path, &onnx::ReadOptions { drop_unknown: true })?;
    let domain = |d: &str| if d.is_empty() { "ai.onnx".to_string() } else { d.to_string() };
    let mut found = Inspection {
        file: path.display().to_string(),
        bytes: path.metadata().map_or(0, |m| m.len()),
        producer: onnx::producer(&model)?,
        ir_version: model.ir_version,
        opsets: model.opsets.iter().map(|(d, v)| (domain(d), json!(v))).collect(),
        metadata: model.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect(),
        inputs: model.graph.inputs.iter().map(|&v| model.graph.value(v)).filter(|v| v.constant.is_none()).map(port).collect(),
        outputs: model.graph.outputs.iter().map(|&v| port(model.graph.value(v))).collect(),
        nodes: 0,
        ops: BTreeMap::new(),
        constants: BTreeMap::new(),
        external: Constants::default(),
    };
    count(&model.graph, &mut found);
    Ok(found)
}

fn port(value: &Value) -> Port {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => json!(n),
        Dim::Symbol(s) => json!(&**s),
        Dim::Unknown => Json::Null,
    };
    let shape = match &value.ty {
        Type::Tensor { shape, .. } => shape.as_ref().map(|s| s.iter().map(dim).collect()),
        _ => None,
    };
    Port { name: value.name.clone(), dtype: value.dtype().map(|t| t.name()), shape }
}

/// Counts nodes and constants of a graph and of the bodies in it.
fn count(graph: &Graph, found: &mut Inspection) {
    for (_, value) in graph.values() {
        if let Some(c) = &value.constant {
            count_constant(c, found);
        }
    }
    for (_, node) in graph.nodes() {
        found.nodes += 1;
        let name = if node.domain.is_empty() { node.op_type.to_string() } else { format!("{}.{}", node.domain, node.op_type) };
        *found.ops.entry(name).or_default() += 1;
        for attr in &node.attrs {
            if let crate::graph::AttrValue::Tensor(c) = &attr.value {
                count_constant(c, found);
            }
        }
        node.bodies().for_each(|(_, body)| count(body, found));
    }
}

fn count_constant(constant: &Constant, found: &mut Inspection) {
    let t = &constant.tensor;
    found.constants.entry(t.dtype().name().to_string()).or_default().add(t);
    if constant.storage == Storage::External {
        found.external.add(t);
    }
}

impl Constants {
    fn add(&mut self, t: &crate::tensor::Tensor) {
        self.tensors += 1;
        self.elements += t.len() as u64;
        self.bytes += t.bytes().len() as u64;
    }
}
