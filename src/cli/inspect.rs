//! `requant inspect`: what is in a model file, without touching its weights.

use super::args::Inspect;
use super::print;
use crate::error::Result;
use crate::graph::{Constant, Dim, Graph, Storage, Type, Value};
use crate::onnx;
use crate::report::size;
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

/// The page for people.
fn text(found: &Inspection) -> String {
    let opsets: Vec<String> = found.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
    let mut sizes = size(found.bytes);
    if found.external.tensors > 0 {
        sizes += &format!(" and {} in {} external tensors", size(found.external.bytes), found.external.tensors);
    }
    let producer = if found.producer.is_empty() { "not stated" } else { &found.producer };
    let mut facts = vec![row(["size", &sizes]), row(["producer", producer]), row(["ONNX", &format!("IR {}, opset {}", found.ir_version, opsets.join(", "))])];
    for (key, value) in &found.metadata {
        facts.push(row([&format!("metadata {key}"), &first(value.as_str().unwrap_or_default(), 70)]));
    }
    let ports = |ports: &[Port]| ports.iter().map(|p| row([&p.name, p.dtype.unwrap_or("?"), &p.shape_text()])).collect();
    let constants = found.constants.iter().map(|(dtype, c)| row([dtype, &format!("{} tensors", c.tensors), &size(c.bytes)])).collect();
    let mut ops: Vec<_> = found.ops.iter().collect();
    ops.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let ops = ops.iter().map(|(op, n)| row([op, &n.to_string()])).collect();
    [
        section(&found.file, &["", ""], facts),
        section("inputs", &["", "", ""], ports(&found.inputs)),
        section("outputs", &["", "", ""], ports(&found.outputs)),
        section(&format!("{} nodes", found.nodes), &["", ">"], ops),
        section("constants", &["", ">", ">"], constants),
    ]
    .concat()
}

/// A title and its rows, indented; nothing where there are no rows.
fn section(title: &str, header: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let body: String = print::table(header, &rows).lines().map(|l| format!("  {l}\n")).collect();
    format!("{title}\n{body}")
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// At most `n` characters of the first line.
fn first(text: &str, n: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(n) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_string(),
    }
}

impl Port {
    fn shape_text(&self) -> String {
        let Some(shape) = &self.shape else { return "rank unknown".to_string() };
        let dims: Vec<String> =
            shape.iter().map(|d| d.as_str().map_or_else(|| if d.is_null() { "?".to_string() } else { d.to_string() }, String::from)).collect();
        if dims.is_empty() { "scalar".to_string() } else { dims.join(" × ") }
    }
}
