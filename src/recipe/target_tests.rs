//! Profiles: what they may say, what each shipped one makes of a small model, and the page about them.

use super::tests::blessed;
use super::*;
use crate::check::Verdict;
use crate::graph::Op;
use crate::target::{Fate, Limit, Must, Place, Slot, Spelling};

#[test]
fn targets_come_from_files_and_build_on_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let mine = write("mine.yaml", "# mine\nextends: generic\nactivations: { bits: 16 }\nopset: 21\n");
    let p = profile(&mine).unwrap();
    assert_eq!((p.name.as_str(), p.activations.format.as_deref(), p.opset), ("mine", Some("uint16"), Some(21)));
    assert!(p.quantize.contains(&crate::graph::Op::Conv) && p.recipe == "int8");
    let refused = |text: &str, want: &str| {
        let e = profile(&write("bad.yaml", text)).unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    };
    refused("extends: generic\nquantise: []\n", "bad.yaml:2:1: unknown key `quantise`; did you mean `quantize`?");
    refused(
        "extends: generic\nlegal: { activations: [int8] }\n",
        "bad.yaml:2:23: activations.format is uint8, which its own legal.activations does not list (int8)",
    );
    refused("doc: nothing\n", "bad.yaml: it names no `recipe`");
    refused(
        "extends: generic\nfixed: [ { ops: [Softmax], output: { format: uint8, scale: 1/256 } } ]\n",
        "bad.yaml:2:10: fixed: a fixed scale needs a zero_point",
    );
    for (line, want) in [
        ("activations: { format: uint16 }\nopset: 19\n", "bad.yaml:2:14: activations need opset 21, and the target reads at most opset 19"),
        ("activations: { symmetric: false }\nlegal: { symmetric: [activations] }\n", "bad.yaml:2:27: activations.symmetric is false"),
        ("weights: { granularity: channel }\nlegal: { granularity: [tensor] }\n", "bad.yaml:2:25: weights.granularity is channel"),
        ("bias: none\nlegal: { bias: [int32] }\n", "bad.yaml:2:7: bias.format is none"),
        ("quantize: [Conv, Erf]\nfloat: [Erf]\n", "bad.yaml:3:8: Erf stands in `float` and in `quantize`"),
        ("join: [Cast]\n", "bad.yaml:2:7: `join` lists Cast, which the target does not run on codes"),
        ("limits:\n  - { then: float, why: w }\n", "bad.yaml:3:5: limits[0]: it names no `ops`"),
        ("limits: [ { ops: [Conv], why: w } ]\n", "limits[0]: it says not what becomes of the nodes"),
        ("limits: [ { ops: [Conv], alone: true, then: float, why: w } ]\n", "limits[0]: `alone` wants `apart` beside it"),
        ("limits: [ { ops: [Conv], attribute: group, then: float, why: w } ]\n", "limits[0]: `attribute` wants `values`, `at_most` or `given` beside it"),
        ("limits: [ { ops: [Conv], values: [1], then: float, why: w } ]\n", "limits[0]: `values`, `at_most` and `given` want the `attribute`"),
        ("limits: [ { ops: [Conv], rank: 4, constant: 1, then: float, why: w } ]\n", "limits[0]: `constant` is a second condition"),
        ("limits: [ { ops: [Conv], then: perhaps, why: w } ]\n", "then: unknown value `perhaps`"),
    ] {
        refused(&format!("extends: generic\n{line}"), want);
    }
    // A contradiction is shown in the file that speaks of it.
    let base = write("base.yaml", "extends: generic\nlegal: { activations: [uint8] }\n");
    let e = profile(&write("child.yaml", &format!("extends: {base}\nactivations: {{ format: int8 }}\n"))).unwrap_err().to_string();
    assert!(e.contains("child.yaml:2:24: activations.format is int8"), "{e}");
}

/// x → Conv → Relu → MaxPool → Conv → Add(x) → GlobalAveragePool → Flatten → Gemm → Softmax
fn small_cnn() -> crate::graph::Model {
    use crate::graph::{Dim, Model, Node, Op, Type};
    use crate::tensor::{DType, Tensor};
    let mut m = Model { ir_version: 8, opsets: vec![(String::new(), 13)], ..Model::default() };
    let g = &mut m.graph;
    let names = ["x", "c1", "r", "p", "c2", "a", "g", "f", "d", "y"];
    let v = names.map(|n| g.add_value(n));
    for (v, shape) in [(v[0], vec![1, 4, 6, 6]), (v[9], vec![1, 3])] {
        g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.into_iter().map(Dim::Known).collect()) };
    }
    (g.inputs, g.outputs) = (vec![v[0]], vec![v[9]]);
    let weight = |g: &mut crate::graph::Graph, name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        Some(g.add_constant(name, Tensor::of_f32(shape, (0..n).map(|i| ((i * 7919 % 97) as f32 - 48.0) / 60.0).collect())))
    };
    let (w1, w2, w3) = (weight(g, "w1", &[4, 4, 3, 3]), weight(g, "w2", &[4, 4, 1, 1]), weight(g, "w3", &[4, 3]));
    let (b1, b2, b3) = (weight(g, "b1", &[4]), weight(g, "b2", &[4]), weight(g, "b3", &[3]));
    let pads = || vec![1i64; 4];
    g.add_node(Node::new(Op::Conv, "conv1").with("pads", pads()), &[Some(v[0]), w1, b1], &[Some(v[1])]);
    g.add_node(Node::new(Op::Relu, "relu"), &[Some(v[1])], &[Some(v[2])]);
    g.add_node(Node::new(Op::MaxPool, "pool").with("kernel_shape", vec![3i64, 3]).with("pads", pads()), &[Some(v[2])], &[Some(v[3])]);
    g.add_node(Node::new(Op::Conv, "conv2"), &[Some(v[3]), w2, b2], &[Some(v[4])]);
    g.add_node(Node::new(Op::Add, "add"), &[Some(v[4]), Some(v[0])], &[Some(v[5])]);
    g.add_node(Node::new(Op::GlobalAveragePool, "gap"), &[Some(v[5])], &[Some(v[6])]);
    g.add_node(Node::new(Op::Flatten, "flatten"), &[Some(v[6])], &[Some(v[7])]);
    g.add_node(Node::new(Op::Gemm, "gemm"), &[Some(v[7]), w3, b3], &[Some(v[8])]);
    g.add_node(Node::new(Op::Softmax, "softmax"), &[Some(v[8])], &[Some(v[9])]);
    m
}

/// Each shipped target writes a small CNN by its own recipe, and does not refuse what it wrote. Where the target runs on codes, all layers do.
#[test]
fn every_target_takes_what_is_written_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("cnn.onnx");
    crate::onnx::write(&small_cnn(), &model, &crate::onnx::WriteOptions::default()).unwrap();
    for (name, _) in targets() {
        let request = Request {
            model: model.clone(),
            data: Some("random:4".into()),
            sources: Sources { target: Some(name.clone()), ..Sources::default() },
            output: Some(dir.path().join(format!("{name}.onnx"))),
            threads: 1,
            ..Request::default()
        };
        let report = convert(&request, &crate::pass::Silent).unwrap_or_else(|e| panic!("{name}: {e}")).report;
        let refused: Vec<String> = report.check.iter().filter(|r| r.verdict == Verdict::Refused).map(|r| r.reason.clone()).collect();
        assert!(refused.is_empty(), "{name}: {refused:?}");
        let found = check(&request.output.unwrap(), &name, None).unwrap();
        let layers: Vec<_> = found.nodes.iter().filter(|r| r.node.starts_with("conv") || r.node == "gemm").map(|r| (r.verdict, &r.reason)).collect();
        assert_eq!(report.coverage.cov8 + report.coverage.cov16 == 1.0, !name.ends_with("-float"), "{name}: {:?}", report.coverage);
        assert!(!found.quantized || layers.iter().all(|(v, _)| *v == Verdict::Integer), "{name}: {layers:?}");
    }
}

#[test]
fn schema_and_docs_know_every_target() {
    blessed("docs/targets.md", &targets().iter().map(|(name, _)| section(name)).collect::<String>());
}

/// What docs/targets.md says of one target.
fn section(name: &str) -> String {
    let p = profile(name).unwrap();
    let base = profile("generic").unwrap();
    let proven = if p.proven == "no" { "no client of it was at hand".to_string() } else { format!("proven by {}", p.proven) };
    let mut text = format!("\n## `{name}`\n\n{}. Facts: {}; {proven}.\n\n| | |\n|---|---|\n", p.doc, p.source);
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            text += &format!("| {key} | {} |\n", value.replace('|', "\\|"));
        }
    };
    let keys = |k: &SchemeKeys| read::scheme_tree(k).show();
    let ops = |list: &[Op]| list.iter().map(|o| o.spelling().1).collect::<Vec<_>>().join(", ");
    let changed = |list: &[Op], of: &[Op]| if list == of && name != "generic" { String::new() } else { ops(list) };
    row("recipe", format!("`{}`", p.recipe));
    row("weights", keys(&p.weights));
    row("activations", keys(&p.activations));
    row("bias", keys(&p.bias));
    row("wide", p.wide.as_ref().map_or(String::new(), keys));
    row("scale of normalizations", p.normalization.as_ref().map_or(String::new(), keys));
    let number = |n: Option<i64>| n.map_or(String::new(), |n| n.to_string());
    row("highest opset", number(p.opset));
    row("highest IR version", number(p.ir));
    let batch = p.batch.map_or(String::new(), |n| format!(", batch {n}"));
    row("shapes", if p.static_shapes { format!("static{batch}") } else { String::new() });
    let spellings =
        |f: &Vec<Spelling>| if f.is_empty() { "none: float models only".to_string() } else { f.iter().map(|f| f.word()).collect::<Vec<_>>().join(", ") };
    row("spellings", p.forms.as_ref().map_or(String::new(), spellings));
    for slot in Slot::ALL {
        let mut held = p.legal.formats(slot).join(", ").replace("none", "float");
        if held == base.legal.formats(slot).join(", ") && name != "generic" {
            held.clear();
        }
        let more = [(p.legal.symmetric.contains(&slot), "symmetric"), (p.legal.pow2.contains(&slot), "scales powers of two")];
        let more: Vec<&str> = more.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
        row(&format!("legal {}", slot.word()), [held, more.join(", ")].iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>().join("; "));
    }
    row("taken, not kept", p.legal.taken.join(", "));
    row("legal granularity", p.legal.granularity.iter().map(|g| read::granularity_name(*g)).collect::<Vec<_>>().join(", "));
    let fate = |f: Fate| Fate::WORDS[f as usize];
    row("other codes", if p.legal != base.legal { fate(p.legal.otherwise).to_string() } else { String::new() });
    row("on codes", changed(&p.quantize, &base.quantize));
    row("moves codes", changed(&p.moves, &base.moves));
    row("in float", ops(&p.float));
    row("in float, between codes", ops(&p.emulated));
    row("other operators", fate(p.others).to_string());
    for l in &p.limits {
        row(&format!("limit: {}", fate(l.then)), limit(l));
    }
    text
}

fn limit(l: &Limit) -> String {
    let ops = if l.ops.is_empty() { "all operators".to_string() } else { l.ops.iter().map(|o| o.spelling().1).collect::<Vec<_>>().join(", ") };
    let place = l.place.map_or(String::new(), |p| format!(" ({})", Place::NAMES.iter().find(|(_, q)| *q == p).unwrap().0));
    let names = |ops: &[Op]| ops.iter().map(|o| o.spelling().1).collect::<Vec<_>>().join(" or ");
    let place = if l.unless_after.is_empty() { place } else { format!("{place} not right behind {}", names(&l.unless_after)) };
    let unless = match &l.must {
        Must::Never => String::new(),
        Must::Attribute { name, values } => format!(" unless {name} is {}", values.join(" or ")),
        Must::AtMost { name, most } => format!(" with {name} above {most}"),
        Must::Given(name) => format!(" unless {name} is written"),
        Must::Rank(n) => format!(" of more than {n} dimensions"),
        Must::Constant(slot) => format!(" unless input {slot} is constant"),
        Must::Unpadded(axis) => format!(" that puts something before axis {axis}"),
        Must::Apart(apart) => {
            let across = if apart.across.is_empty() { String::new() } else { format!(", {} between or not", names(&apart.across)) };
            let alone = if apart.alone { ", which nobody else reads" } else { "" };
            let pieces = match apart.pieces {
                0 => String::new(),
                n => format!(", of pieces not all {n} channels long or wider than what it makes"),
            };
            format!(" behind {}{across}{alone}{pieces}", names(&apart.makers))
        }
        Must::Weights(list) => format!(" unless weights are {}", list.join(" or ")),
        Must::Activations(list) => format!(" unless activations are {}", list.join(" or ")),
        Must::Granularity(list) => format!(" unless scales are one a {}", list.iter().map(|g| read::granularity_name(*g)).collect::<Vec<_>>().join(" or a ")),
        Must::Unsigned => " unless operands are unsigned, or signed and read once".to_string(),
        Must::Zeroless => " unless zero points are 0".to_string(),
        Must::Floor => " unless the codes of the result end where it does, or are cut at both ends".to_string(),
        Must::Alike => " unless operands and results have one format, and one scale each".to_string(),
        Must::Codes => " unless on codes".to_string(),
    };
    let remedy = if l.remedy.is_empty() { String::new() } else { format!("; {}", l.remedy) };
    format!("{ops}{place}{unless}: {}{remedy}", l.why)
}
