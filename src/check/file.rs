//! What the file itself says that a target does not read: opset, IR version, shapes, spellings of codes.

use super::{Row, Verdict, row};
use crate::graph::{Dim, Flow, Graph, Model, Node, Type};
use crate::onnx;
use crate::target::{Fate, Profile, Spelling};
use std::collections::BTreeMap;

/// Rows about the whole model, and about operators of a spelling that the target does not read.
pub fn rows(model: &Model, profile: &Profile) -> Vec<Row> {
    let mut rows = Vec::new();
    // A chip that hands what it does not know to another processor does so with shapes that it does not know.
    let open = if profile.others == Fate::Split { Verdict::Split } else { Verdict::Refused };
    let mut say = |verdict: Verdict, rule: &str, reason: String, remedy: &str| rows.push(Row { reason, remedy: remedy.to_string(), ..row(verdict, rule) });
    let mut refuse = |rule: &str, reason: String, remedy: &str| say(if rule == "static" { open } else { Verdict::Refused }, rule, reason, remedy);
    let opset = model.opset("").unwrap_or(0);
    if let Some(most) = profile.opset.filter(|most| *most < opset) {
        let remedy = match onnx::lower_opset(&mut model.clone(), most, true) {
            Ok(_) => format!("`requant convert` for this target writes opset {most}"),
            Err(e) => format!("export the model again with a lower opset: {e}"),
        };
        refuse("opset", format!("the model has opset {opset}; the target reads at most {most}"), &remedy);
    }
    if let Some(most) = profile.ir.filter(|most| *most < model.ir_version) {
        refuse("ir", format!("the model has IR version {}; the target reads at most {most}", model.ir_version), "export the model again with a lower opset");
    }
    for (name, shape) in inputs(&model.graph) {
        let unknown = shape.iter().find(|d| !matches!(d, Dim::Known(_)));
        if let Some(d) = unknown.filter(|_| profile.static_shapes) {
            let (what, remedy) = match d {
                Dim::Symbol(s) => (format!("dimension {s} of input {name} has no size"), format!("--fix-dim {s}=N")),
                _ => (format!("a dimension of input {name} has no size"), format!("in the recipe, inputs: {{ {name}: {{ shape: […], fix: true }} }}")),
            };
            refuse("static", what, &remedy);
        }
        if let (Some(want), Some(Dim::Known(have))) = (profile.batch, shape.first())
            && shape.len() > 1
            && want != *have
        {
            refuse("batch", format!("input {name} has batch {have}; the target wants {want}"), "export the model again with that batch");
        }
    }
    let mut spelled: BTreeMap<Spelling, Vec<&Node>> = BTreeMap::new();
    forms(&model.graph, &mut spelled);
    for (form, nodes) in spelled {
        let Some(read) = profile.forms.as_ref().filter(|f| !f.contains(&form)) else { continue };
        let known: Vec<&str> = read.iter().map(|f| f.word()).collect();
        let known = if known.is_empty() { "float models only".to_string() } else { known.join(", ") };
        let (first, n) = (nodes[0], nodes.len());
        let more = if n > 1 { format!(" and {} more", n - 1) } else { String::new() };
        let reason = format!("{} {}{more}: codes are spelled as {}, and the target reads {known}", first.op_type, first.name, form.word());
        refuse("forms", reason, "convert the float model for this target");
    }
    rows
}

/// Inputs that a user gives, with their declared shapes.
fn inputs(g: &Graph) -> Vec<(&str, &[Dim])> {
    let declared = |v: &crate::graph::ValueId| match &g.value(*v).ty {
        Type::Tensor { shape: Some(s), .. } if g.value(*v).constant.is_none() => Some((g.value(*v).name.as_str(), &s[..])),
        _ => None,
    };
    g.inputs.iter().filter_map(declared).collect()
}

fn forms<'a>(g: &'a Graph, found: &mut BTreeMap<Spelling, Vec<&'a Node>>) {
    for (_, n) in g.nodes() {
        if n.op.flow() == Flow::Quantize {
            found.entry(Spelling::of(n.op)).or_default().push(n);
        }
        n.bodies().for_each(|(_, body)| forms(body, found));
    }
}
