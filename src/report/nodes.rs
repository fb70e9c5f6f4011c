//! What each node loses: with everything before it quantized, and by its own quantizers alone, in one pass over the samples.
//!
//! Two graphs run beside the quantized one: the float graph, and in it, for each quantized node, a copy that reads the float graph's values through its
//! own quantizers. A node's output is what its readers read: behind its quantizer, if it has one; an attention mask is compared as Softmax sees it.

use crate::data::Dataset;
use crate::engine::{Plans, RunnerOptions, Running, over_samples, shapes_of};
use crate::error::{At, Result};
use crate::graph::{Flow, Graph, Model, Node, NodeId, Op, Site, ValueId};
use crate::observe::{Db, Sums};
use crate::onnx;
use crate::pass::Progress;
use crate::quant::{self, Format, Params, QuantizerId, Scheme, Timing};
use crate::range::Masks;
use crate::tensor::{DType, Tensor};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Samples on which every node is measured: a share of those that judge.
pub const NODE_SAMPLES: usize = 16;

/// One node of the float graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    pub name: String,
    pub op: String,
    /// The tensor measured.
    pub output: String,
    /// With everything before it quantized.
    pub sqnr_db: Db,
    /// With float inputs: the loss of its own quantizers. `None` where the node cannot be run by itself.
    pub own_sqnr_db: Option<Db>,
    /// Share of the float values outside the range that its output's quantizer covers.
    pub clipped: Option<f64>,
    /// Share of its output's codes that no sample used; integers of at most 8 bits.
    pub dead_codes: Option<f64>,
    /// The scheme of its output's quantizer.
    pub scheme: Option<String>,
}

/// A value measured, in all three graphs.
struct Probe {
    node: NodeId,
    float: ValueId,
    /// What its readers read in the reference: behind its quantizer, where that has quantizers too.
    reference: ValueId,
    /// In the quantized graph.
    read: ValueId,
    /// In the graph of copies.
    own: Option<ValueId>,
    quantizer: Option<QuantizerId>,
}

/// What is counted at one value.
#[derive(Clone, Default)]
struct Seen {
    total: Sums,
    own: Sums,
    clipped: u64,
    elements: u64,
    codes: Option<Vec<bool>>,
}

/// Rows of the nodes that compute real numbers, worst first. `prepared`: the float graph before quantizers were placed; `quantized`: the written file,
/// lifted. Nodes whose output the quantized graph has no value for are left out.
pub fn node_errors(prepared: &Model, quantized: &Model, data: &Dataset, samples: &[usize], threads: usize, progress: &dyn Progress) -> Result<Vec<NodeRow>> {
    let (prepared, quantized) = (&at_opset(prepared, quantized)?, &at_opset(quantized, prepared)?);
    let (copies, probes) = beside(prepared, quantized);
    let floats: Vec<ValueId> = probes.iter().map(|p| p.reference).chain(probes.iter().filter_map(|p| p.own)).collect();
    let reads: Vec<ValueId> = probes.iter().map(|p| p.read).collect();
    let plans = (Plans::new(&copies, &floats, RunnerOptions::default()), Plans::new(quantized, &reads, RunnerOptions::default()));
    let shapes = samples.first().map(|&i| data.sample(i)).transpose()?.map(|sample| shapes_of(&sample));
    let masks = Masks::of(prepared, &shapes.unwrap_or_default());
    let mut total = vec![Seen::default(); probes.len()];
    progress.begin("measure nodes", samples.len() as u64);
    over_samples(
        samples.len(),
        threads,
        || Ok((Running::default(), Running::default())),
        |(a, b), i| {
            let sample = data.sample(samples[i])?;
            let mut run = || -> Result<_> {
                let x = plans.0.run(a, &sample, &copies.quantizers)?;
                let y = plans.1.run(b, &sample, &quantized.quantizers)?;
                let (floats, mut owns) = (&x[..probes.len()], x[probes.len()..].iter());
                let mut seen = Vec::with_capacity(probes.len());
                for ((p, x), y) in probes.iter().zip(floats).zip(&y) {
                    seen.push(see(quantized, &masks, p, x, y, p.own.and_then(|_| owns.next()))?);
                }
                Ok(seen)
            };
            run().at(|| data.name(samples[i]))
        },
        |_, seen| {
            total.iter_mut().zip(seen).for_each(|(t, s)| t.merge(s));
            progress.tick(1);
            Ok(())
        },
    )?;
    progress.end();
    let g = &prepared.graph;
    let row = |(p, s): (&Probe, Seen)| {
        let n = g.node(p.node);
        let output = g.value(p.float).name.clone();
        NodeRow {
            name: if n.name.is_empty() { output.clone() } else { n.name.clone() },
            op: n.op_type.to_string(),
            output,
            sqnr_db: s.total.sqnr(),
            own_sqnr_db: p.own.map(|_| s.own.sqnr()),
            clipped: p.quantizer.filter(|_| s.elements > 0).map(|_| s.clipped as f64 / s.elements as f64),
            dead_codes: s.codes.map(|c| c.iter().filter(|used| !**used).count() as f64 / c.len() as f64),
            scheme: p.quantizer.map(|q| quantized.quantizers[q].scheme.to_string()),
        }
    };
    let mut rows: Vec<NodeRow> = probes.iter().zip(total).map(row).collect();
    rows.sort_by(|a, b| a.sqnr_db.0.total_cmp(&b.sqnr_db.0));
    Ok(rows)
}

/// The model in the opset of the other, if that is the higher one: copies of nodes must mean the same in either.
fn at_opset<'m>(model: &'m Model, other: &Model) -> Result<Cow<'m, Model>> {
    let (own, wanted) = (model.opset("").unwrap_or(0), other.opset("").unwrap_or(0));
    if own >= wanted {
        return Ok(Cow::Borrowed(model));
    }
    let mut raised = model.clone();
    onnx::raise_opset(&mut raised, wanted)?;
    Ok(Cow::Owned(raised))
}

impl Seen {
    fn merge(&mut self, o: Seen) {
        self.total.merge(&o.total);
        self.own.merge(&o.own);
        self.clipped += o.clipped;
        self.elements += o.elements;
        match (&mut self.codes, o.codes) {
            (Some(a), Some(b)) => a.iter_mut().zip(b).for_each(|(a, b)| *a |= b),
            (mine @ None, theirs) => *mine = theirs,
            _ => {}
        }
    }
}

fn see(m: &Model, masks: &Masks, p: &Probe, x: &Tensor, y: &Tensor, own: Option<&Tensor>) -> Result<Seen> {
    let mut float = x.to_f32()?;
    // A mask's −3.4e38 would be all of the signal.
    let sums = |other: &Tensor| -> Result<(Sums, Option<Vec<f32>>)> {
        let (x, y) = (x.to_f32()?, other.to_f32()?);
        Ok(match masks.seen_by_softmax(p.float, &x, &y, other.shape()) {
            Some((a, b)) => (Sums::of(&a, &b), Some(a)),
            None => (Sums::of(&x, &y), None),
        })
    };
    let (total, saturated) = sums(y)?;
    let mut seen = Seen { total, ..Seen::default() };
    if let Some(own) = own {
        seen.own = sums(own)?.0;
    }
    if let Some(saturated) = saturated {
        float = saturated.into();
    }
    let Some(q) = p.quantizer else { return Ok(seen) };
    let row = &m.quantizers[m.quantizers.root(q)];
    if let Some(params) = row.params.as_ref().filter(|_| row.scheme.timing == Timing::Static && row.scheme.blocks.is_tensor()) {
        if let Some((lo, hi)) = covered(&row.scheme, params) {
            seen.clipped = float.iter().filter(|v| **v < lo || **v > hi).count() as u64;
            seen.elements = float.len() as u64;
        }
        if let (Format::Int { bits: ..=8, .. }, Some((lo, hi))) = (row.scheme.format, row.scheme.format.code_range()) {
            let mut used = vec![false; (hi - lo + 1) as usize];
            let codes = quant::quantize(&float, &[float.len()], &row.scheme, params)?;
            codes.unpack().into_iter().for_each(|c| used[(c - lo) as usize] = true);
            seen.codes = Some(used);
        }
    }
    Ok(seen)
}

/// The values whose nearest code is not an end that they lie beyond.
fn covered(scheme: &Scheme, params: &Params) -> Option<(f32, f32)> {
    let (lo, hi) = scheme.format.code_range()?;
    let (s, z) = (params.scale_at(0), params.zero_at(0));
    Some(((lo as f32 - z - 0.5) * s, (hi as f32 - z + 0.5) * s))
}

/// The float graph with a copy of every quantized node in it, and what is measured. A reference that is quantized itself gets no copies.
fn beside(prepared: &Model, quantized: &Model) -> (Model, Vec<Probe>) {
    let mut copies = prepared.clone();
    let copied = prepared.quantizers.is_empty();
    if copied {
        copies.quantizers = quantized.quantizers.clone();
        copies.codes.clear();
    }
    let (f, q) = (&prepared.graph, &quantized.graph);
    // Values of the quantized graph that are, without their quantizer, values of the float graph.
    let mut twins: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (v, value) in q.values() {
        let made_by_quantizer = |v: ValueId| q.value(v).producer().is_some_and(|(n, _)| q.node(n).op == Op::FakeQuant);
        if let Some(twin) = f.find_value(&value.name).filter(|_| !made_by_quantizer(v)) {
            twins.insert(v, twin);
        } else if let Some(twin) = readers(q, v).iter().filter_map(|n| n.output(0)).filter(|y| q.is_output(*y)).find_map(|y| f.find_value(&q.value(y).name)) {
            // A graph's output is quantized under its own name; before its quantizer it has another.
            twins.insert(v, twin);
        }
    }
    let mut copy: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (id, n) in q.nodes() {
        if !copied || n.bodies().next().is_some() {
            continue;
        }
        let reads = |c: &mut Graph, v: ValueId| match (copy.get(&v), twins.get(&v), q.value(v).constant.as_ref()) {
            (_, Some(twin), None) => Some(*twin),
            (Some(own), ..) => Some(*own),
            (None, _, Some(constant)) => Some(c.add_constant(&format!("{} (own)", q.value(v).name), constant.clone())),
            _ => None,
        };
        // What reads float values alone and has no quantizers is the float graph's own node: its copy would be computed twice.
        let as_in_float = |v: &ValueId| match &q.value(*v).constant {
            Some(c) => f.find_value(&q.value(*v).name).and_then(|t| f.constant(t)).is_some_and(|t| t.tensor == c.tensor),
            None => twins.contains_key(v),
        };
        if n.op != Op::FakeQuant && n.inputs().iter().chain(n.outputs()).flatten().all(as_in_float) {
            copy.extend(n.outputs().iter().flatten().map(|v| (*v, twins[v])));
            continue;
        }
        let c = &mut copies.graph;
        let inputs: Vec<Option<Option<ValueId>>> = n.inputs().iter().map(|v| v.map(|v| reads(c, v))).collect();
        if inputs.iter().any(|v| matches!(v, Some(None))) {
            continue;
        }
        let inputs: Vec<Option<ValueId>> = inputs.into_iter().map(Option::flatten).collect();
        let outputs: Vec<Option<ValueId>> = n.outputs().iter().map(|v| v.map(|v| add_copy(c, q, v))).collect();
        copy.extend(n.outputs().iter().zip(&outputs).filter_map(|(v, own)| Some(((*v)?, (*own)?))));
        let made = c.add_node(bare(n), &inputs, &outputs);
        if let Some(codes) = quantized.codes.get(&Site::of(id)) {
            copies.codes.insert(Site::of(made), codes.clone());
        }
    }
    let mut probes = Vec::new();
    let by_twin: BTreeMap<ValueId, ValueId> = twins.iter().map(|(v, t)| (*t, *v)).collect();
    for (node, n) in f.nodes() {
        let computes = !matches!(n.op.flow(), Flow::Meta | Flow::Quantize);
        let Some(float) = n.output(0).filter(|_| computes) else { continue };
        let Some(&raw) = by_twin.get(&float) else { continue };
        if q.value(raw).producer().is_none() || f.value(float).dtype().is_some_and(|t| t != DType::F32) {
            continue;
        }
        // Of several quantizers at one value, the first is its own; the others are conversions.
        let fake = readers(q, raw).into_iter().next();
        let read = fake.and_then(|n| n.output(0)).unwrap_or(raw);
        let quantizer = fake.and_then(Node::quantizer);
        let own = copy.get(&raw).copied().map(|own| match quantizer {
            None => own,
            Some(id) => {
                let c = &mut copies.graph;
                let y = add_copy(c, q, read);
                c.add_node(Node::fake_quant(id, ""), &[Some(own)], &[Some(y)]);
                y
            }
        });
        let reference = readers(f, float).into_iter().next().and_then(|n| n.output(0)).unwrap_or(float);
        probes.push(Probe { node, float, reference, read, own, quantizer });
    }
    (copies, probes)
}

/// The FakeQuants that read a value.
fn readers(g: &Graph, v: ValueId) -> Vec<&Node> {
    let mut nodes: Vec<NodeId> = g.value(v).uses().iter().map(|p| p.node).collect();
    nodes.sort();
    nodes.into_iter().filter_map(|n| g.get_node(n)).filter(|n| n.op == Op::FakeQuant).collect()
}

/// A value of the same type and another name.
fn add_copy(c: &mut Graph, q: &Graph, v: ValueId) -> ValueId {
    let own = c.add_value(&format!("{} (own)", q.value(v).name));
    c.value_mut(own).ty = q.value(v).ty.clone();
    own
}

/// The node without its place in the graph.
fn bare(n: &Node) -> Node {
    let mut node = Node::spelled(&n.domain, &n.op_type, format!("{} (own)", n.name));
    node.attrs = n.attrs.clone();
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::npy;
    use crate::graph::{Dim, Type};
    use crate::quant::Scheme as S;

    /// x → Relu → h → Neg → y; in the quantized graph x, h and y have quantizers.
    fn pair() -> (Model, Model) {
        let build = |quantized: bool| {
            let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
            let mut ids = Vec::new();
            if quantized {
                for (name, scale) in [("x", 0.5), ("h", 0.25), ("y", 0.25)] {
                    let id = m.quantizers.add(name, S::int(8, true));
                    m.quantizers[id].params = Some(Params::tensor(scale, None));
                    ids.push(id);
                }
            }
            let g = &mut m.graph;
            let value = |g: &mut Graph, name: &str| {
                let v = g.add_value(name);
                g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(4)]) };
                v
            };
            let (x, h, y) = (value(g, "x"), value(g, "h"), value(g, "y"));
            g.inputs.push(x);
            g.outputs.push(y);
            if !quantized {
                g.add_node(Node::new(Op::Relu, "relu"), &[Some(x)], &[Some(h)]);
                g.add_node(Node::new(Op::Neg, "neg"), &[Some(h)], &[Some(y)]);
                return m;
            }
            let (xq, hq, raw) = (value(g, "x_dequantized"), value(g, "h_dequantized"), value(g, "y_float"));
            g.add_node(Node::fake_quant(ids[0], "fx"), &[Some(x)], &[Some(xq)]);
            g.add_node(Node::new(Op::Relu, "relu"), &[Some(xq)], &[Some(h)]);
            g.add_node(Node::fake_quant(ids[1], "fh"), &[Some(h)], &[Some(hq)]);
            g.add_node(Node::new(Op::Neg, "neg"), &[Some(hq)], &[Some(raw)]);
            g.add_node(Node::fake_quant(ids[2], "fy"), &[Some(raw)], &[Some(y)]);
            m
        };
        (build(false), build(true))
    }

    #[test]
    fn each_node_is_measured_behind_everything_and_by_itself() {
        let (float, quantized) = pair();
        let (copies, probes) = beside(&float, &quantized);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        // 0.30 becomes 0.5 at the input; by itself, 0.25 at h.
        let bytes = npy("<f4", false, &[1, 4], &[0.3f32, 1.0, -1.0, 100.0].map(f32::to_le_bytes).concat());
        std::fs::write(&path, bytes).unwrap();
        let input = crate::data::InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Known(4)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        let rows = node_errors(&float, &quantized, &data, &[0], 1, &crate::pass::Silent).unwrap();
        assert_eq!((probes.len(), rows.len()), (2, 2));
        assert!(copies.graph.nodes().count() > float.graph.nodes().count());
        let relu = rows.iter().find(|r| r.name == "relu").unwrap();
        // The input's quantizer clips 100 to 63.5, that of h to 31.75.
        let db = |reference: &[f32], got: &[f32]| Sums::of(reference, got).sqnr();
        assert_eq!(relu.sqnr_db, db(&[0.3, 1.0, 0.0, 100.0], &[0.5, 1.0, 0.0, 31.75]));
        assert_eq!(relu.clipped, Some(0.25));
        assert_eq!(relu.dead_codes, Some(252.0 / 256.0));
        let neg = rows.iter().find(|r| r.name == "neg").unwrap();
        assert_eq!(neg.own_sqnr_db, Some(db(&[-0.3, -1.0, 0.0, -100.0], &[-0.25, -1.0, 0.0, -31.75])));
        assert_eq!(neg.sqnr_db, db(&[-0.3, -1.0, 0.0, -100.0], &[-0.5, -1.0, 0.0, -31.75]));
    }

    #[test]
    fn a_quantized_reference_is_held_against_itself() {
        let (_, quantized) = pair();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        std::fs::write(&path, npy("<f4", false, &[1, 4], &[0.3f32, 1.0, -1.0, 100.0].map(f32::to_le_bytes).concat())).unwrap();
        let input = crate::data::InputInfo { name: "x".into(), dtype: DType::F32, shape: Some(vec![Dim::Known(4)]) };
        let data = Dataset::open(path.to_str().unwrap(), &[input], &Default::default()).unwrap();
        let rows = node_errors(&quantized, &quantized, &data, &[0], 1, &crate::pass::Silent).unwrap();
        let view: Vec<_> = rows.iter().map(|r| (r.name.as_str(), r.sqnr_db, r.own_sqnr_db)).collect();
        assert_eq!(view, [("relu", Db(f64::INFINITY), None), ("neg", Db(f64::INFINITY), None)]);
        // Another scale is a loss.
        let mut coarser = quantized.clone();
        let h = coarser.quantizers.ids().nth(1).unwrap();
        coarser.quantizers[h].params = Some(Params::tensor(16.0, None));
        let rows = node_errors(&quantized, &coarser, &data, &[0], 1, &crate::pass::Silent).unwrap();
        assert!(rows.iter().all(|r| r.sqnr_db.0.is_finite()), "{rows:?}");
    }
}
