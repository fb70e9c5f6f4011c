//! Sony's mct_quantizers: every FakeQuant becomes an operator that rounds floats to its grid. Constants hold what their codes stand for.
//! Source: mct_quantizers 1.6, operators ActivationPOTQuantizer, ActivationSymmetricQuantizer, WeightsPOTQuantizer and WeightsSymmetricQuantizer: the scale is
//! `threshold / 2^(num_bits − signed)`, thresholds of weights one a channel. Their reader takes files of PyTorch's name, all of whose nodes have names.
//! Needs: parameters, codes for every constant. Declines: nothing; what these operators cannot say is an error.

use crate::error::{At, Error, Result};
use crate::graph::{InputShapes, Model, Node, Op, Site, Type, ValueId, infer};
use crate::note::Notes;
use crate::onnx;
use crate::quant::{self, Format, Params, QuantizerId, ScaleKind, Scheme, Timing, Zeros};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// The lowest opset that the reader takes, and the program of whose files it is sure.
pub const OPSET: i64 = 15;
const PRODUCER: (&str, &str) = ("pytorch", "2.0.0");
/// The package's version, which Sony's converter wants every operator to say.
const VERSION: (&str, &str) = ("mctq_version", "1.6.0");

/// Rewrites every FakeQuant of the outermost graph. Afterwards the table and the codes are empty: the file says it all.
pub fn mct_quantizers(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("lower");
    let (table, codes) = (std::mem::take(&mut model.quantizers), std::mem::take(&mut model.codes));
    if let Some((_, node)) = model.graph.nodes().find(|(_, n)| n.bodies().any(|(_, b)| b.nodes().any(|(_, n)| n.op == Op::FakeQuant))) {
        return Err(Error::usage(format!("node {}: mct_quantizers cannot stand in its body: keep what is in it float by an override", node.name)));
    }
    let inferred = infer(model, &InputShapes::new());
    let g = &mut model.graph;
    let mut written: BTreeMap<(ValueId, QuantizerId), ValueId> = BTreeMap::new();
    let mut weights = 0;
    for id in g.order().to_vec() {
        let Some(q) = g.node(id).quantizer().map(|q| table.root(q)) else { continue };
        let row = &table[q];
        let (Some(x), Some(y)) = (g.node(id).input(0), g.node(id).output(0)) else { return Err(Error::failed("a FakeQuant without input or output")) };
        let params = row.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `lower`")).at(|| &row.name)?;
        // One operator serves all that read one value under one quantizer.
        if let Some(&first) = written.get(&(x, q)).filter(|_| !g.is_output(y)) {
            g.remove_node(id);
            g.replace_uses(y, first);
            g.remove_value(y);
            continue;
        }
        let shape = g.constant(x).map(|c| c.tensor.shape().to_vec());
        let name = format!("{}_quantizer", g.value(y).name);
        let (node, thresholds) = operator(&row.scheme, params, shape.as_deref(), name).at(|| &row.name)?;
        let mut inputs = vec![Some(x)];
        if let Some(shape) = shape {
            weights += 1;
            let codes =
                codes.get(&Site::of(id)).ok_or_else(|| Error::failed("its weights have no codes yet; `round` must stand before `lower`")).at(|| &row.name)?;
            let stands = Tensor::of_f32(&shape, quant::dequantize(codes, &row.scheme, params).at(|| &row.name)?);
            let of = g.value(x).name.clone();
            inputs[0] = Some(g.add_constant(&format!("{of}_rounded"), stands));
            inputs.push(Some(g.add_constant(&format!("{of}_threshold"), Tensor::of_f32(&[thresholds.len()], thresholds))));
        }
        // The reader wants to know what its own operators give.
        let known = inferred.get(x).shape.clone().or_else(|| inferred.get(y).shape.clone());
        g.value_mut(y).ty = Type::Tensor { dtype: Some(DType::F32), shape: known };
        if !g.is_output(y) && !g.value_info.contains(&y) {
            g.value_info.push(y);
        }
        let at = g.position(id);
        g.remove_node(id);
        g.insert_node(at, node.with(VERSION.0, VERSION.1), &inputs, &[Some(y)]);
        if inputs.len() > 1 {
            g.remove_idle(x);
        }
        written.insert((x, q), y);
    }
    for id in g.order().to_vec() {
        if let (true, Some(y)) = (g.node(id).name.is_empty(), g.node(id).outputs().iter().flatten().next()) {
            g.node_mut(id).name = format!("make_{}", g.value(*y).name);
        }
    }
    // Whatever nobody reads is refused.
    model.graph.remove_dead();
    model.import_used(Op::ActivationPOTQuantizer.spelling().0);
    onnx::set_producer(model, PRODUCER.0, PRODUCER.1)?;
    notes.changed("", format!("written in mct_quantizers: {} activations, {weights} weights", written.len() - weights));
    Ok(notes)
}

/// The operator of a quantizer, of a constant of that shape if it has one, and its thresholds.
fn operator(scheme: &Scheme, p: &Params, constant: Option<&[usize]>, name: String) -> Result<(Node, Vec<f32>)> {
    let cannot = |what: &str| Error::usage(format!("mct_quantizers cannot say {what} ({scheme}): take another format, or `lower: qdq`"));
    let Format::Int { bits: bits @ ..=16, signed, .. } = scheme.format else { return Err(cannot("other formats than integers of at most 16 bits")) };
    // Unsigned codes around the middle one are signed ones.
    let all = |zero: f32| !matches!(p.zero, Zeros::Real(_)) && (0..p.scale.len()).all(|i| p.zero_at(i) == zero);
    let middle = !signed && all(2f32.powi(bits as i32 - 1));
    let signed = signed || middle;
    if scheme.timing == Timing::Dynamic || matches!(scheme.scale, ScaleKind::Nested(_)) {
        return Err(cannot("scales found at inference or scales that are codes"));
    }
    if !all(0.0) && !middle {
        return Err(cannot("zero points"));
    }
    let half = 2f32.powi(bits as i32 - signed as i32);
    let thresholds: Vec<f32> = p.scale.iter().map(|s| s * half).collect();
    let exponents = p.scale.iter().all(|s| s.to_bits().trailing_zeros() >= 23);
    let axis = match (constant, scheme.blocks.channel_axis()) {
        (_, None) if scheme.blocks.is_tensor() => None,
        (Some(shape), Some(axis)) => Some(if axis < 0 { axis as i64 + shape.len() as i64 } else { axis as i64 }),
        _ => return Err(cannot("these blocks")),
    };
    if constant.is_none() {
        let op = if exponents { Op::ActivationPOTQuantizer } else { Op::ActivationSymmetricQuantizer };
        let node = Node::new(op, name).with("num_bits", bits as i64).with("signed", signed as i64).with("threshold", thresholds[0]);
        return Ok((node, thresholds));
    }
    if !signed {
        return Err(cannot("unsigned weights"));
    }
    let op = if exponents { Op::WeightsPOTQuantizer } else { Op::WeightsSymmetricQuantizer };
    let node = Node::new(op, name).with("num_bits", bits as i64).with("per_channel", axis.is_some() as i64);
    Ok((node.with("channel_axis", axis.unwrap_or(0)).with("signed", 1i64), thresholds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Dim;
    use crate::lift::lift;
    use crate::quant::{Blocks, Table};

    /// x → FakeQuant → MatMul with W under a scale a channel → FakeQuant → y; a second reader of the first.
    fn model(activation: (Scheme, Params), weight: Scheme) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 15)], ..Model::default() };
        let ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(1), Dim::Known(3)]) };
        let (xq, wq, yq) = (m.quantizers.add("x", activation.0), m.quantizers.add("w", weight), m.quantizers.add("y", Scheme::int(8, true)));
        m.quantizers[xq].params = Some(activation.1);
        m.quantizers[yq].params = Some(Params::tensor(0.3, None));
        let scale = if m.quantizers[wq].scheme.blocks.is_tensor() { vec![0.25] } else { vec![0.1, 0.07, 0.0123] };
        m.quantizers[wq].params = Some(Params { scale, ..Params::tensor(1.0, None) });
        let w: Vec<f32> = (0..9).map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * 1.4).collect();
        let g = &mut m.graph;
        let [x, a, b, c, t, y] = ["x", "a", "b", "c", "t", "y"].map(|n| g.add_value(n));
        [x, t, y].iter().for_each(|v| g.value_mut(*v).ty = ty.clone());
        let w = g.add_constant("w", Tensor::of_f32(&[3, 3], w));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(xq, "fx"), &[Some(x)], &[Some(a)]);
        g.add_node(Node::fake_quant(xq, "fx2"), &[Some(x)], &[Some(b)]);
        g.add_node(Node::fake_quant(wq, "fw"), &[Some(w)], &[Some(c)]);
        let [p, s] = ["p", "s"].map(|n| g.add_value(n));
        g.add_node(Node::new(Op::MatMul, ""), &[Some(a), Some(c)], &[Some(p)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(b)], &[Some(s)]);
        g.add_node(Node::new(Op::Add, "add"), &[Some(p), Some(s)], &[Some(t)]);
        g.add_node(Node::fake_quant(yq, "fy"), &[Some(t)], &[Some(y)]);
        crate::round::round_nearest(&mut m).unwrap();
        m
    }

    fn pow2() -> (Scheme, Params) {
        (Scheme { scale: ScaleKind::Pow2(DType::F32), ..Scheme::int(8, false) }, Params::tensor(0.0625, None))
    }

    fn by_name<'a>(table: &'a Table, name: &str) -> &'a quant::Quantizer {
        table.ids().map(|id| &table[id]).find(|q| q.name == name).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_with_the_same_scales_and_codes() {
        let m = model(pow2(), Scheme { blocks: Blocks::channel(1), ..Scheme::int(4, true) });
        let (want, codes) = (m.quantizers.clone(), m.codes.values().next().unwrap().unpack());
        let mut file = m;
        file.graph.add_constant("idle", Tensor::scalar(1.0));
        mct_quantizers(&mut file).unwrap();
        assert!(file.graph.find_value("idle").is_none());
        let g = &file.graph;
        let of = |op: Op| g.nodes().filter(|(_, n)| n.op == op).map(|(_, n)| n.clone()).collect::<Vec<_>>();
        let pot = of(Op::ActivationPOTQuantizer);
        assert_eq!((pot.len(), pot[0].float("threshold"), pot[0].int("signed"), pot[0].int("num_bits")), (1, Some(16.0), Some(0), Some(8)));
        assert_eq!(of(Op::ActivationSymmetricQuantizer)[0].float("threshold"), Some(0.3 * 128.0));
        assert!(g.nodes().filter(|(_, n)| &*n.domain == "mct_quantizers").all(|(_, n)| n.attr("mctq_version").is_some()));
        assert_eq!(g.value_info.len(), 2);
        assert_eq!(g.value(pot[0].output(0).unwrap()).known_shape(), Some(vec![1, 3]));
        let weight = &of(Op::WeightsSymmetricQuantizer)[0];
        assert_eq!(["num_bits", "per_channel", "channel_axis", "signed"].map(|k| weight.int(k)), [Some(4), Some(1), Some(1), Some(1)]);
        let threshold = &g.constant(weight.input(1).unwrap()).unwrap().tensor;
        assert_eq!((threshold.shape(), &threshold.to_f32().unwrap()[..]), (&[3][..], &[0.8, 0.56, 0.0984][..]));
        assert!(g.nodes().all(|(_, n)| !n.name.is_empty()) && file.opset("mct_quantizers") == Some(1) && file.codes.is_empty());
        assert_eq!(onnx::producer(&file).unwrap(), "pytorch 2.0.0");
        lift(&mut file).unwrap();
        // They are called after what they read.
        for (was, is) in [("x", "x"), ("y", "t")] {
            let (a, b) = (by_name(&want, was), by_name(&file.quantizers, is));
            assert_eq!((a.scheme.format, &a.params.as_ref().unwrap().scale), (b.scheme.format, &b.params.as_ref().unwrap().scale));
        }
        let (node, id) = file.graph.nodes().find_map(|(n, node)| Some((n, node.quantizer()?)).filter(|(n, _)| file.codes.contains_key(&Site::of(*n)))).unwrap();
        assert_eq!(file.codes[&Site::of(node)].unpack(), codes);
        assert_eq!(file.quantizers[id].params.as_ref().unwrap().scale, by_name(&want, "w").params.as_ref().unwrap().scale);
        assert_eq!(file.quantizers[id].scheme.blocks.channel_axis(), Some(1));
    }

    #[test]
    fn unsigned_codes_around_the_middle_are_signed_ones() {
        let middle = (Scheme { zero: quant::Zero::Integer, ..Scheme::int(8, false) }, Params::tensor(0.5, Some(128)));
        let mut file = model(middle, Scheme::int(8, true));
        mct_quantizers(&mut file).unwrap();
        let (_, node) = file.graph.nodes().find(|(_, n)| n.op == Op::ActivationPOTQuantizer).unwrap();
        assert_eq!((node.float("threshold"), node.int("signed")), (Some(64.0), Some(1)));
        let (_, weight) = file.graph.nodes().find(|(_, n)| n.op == Op::WeightsPOTQuantizer).unwrap();
        assert_eq!((weight.int("per_channel"), weight.int("channel_axis")), (Some(0), Some(0)));
    }

    #[test]
    fn what_cannot_be_said_is_told_by_tensor() {
        let refused = |activation: (Scheme, Params), weight: Scheme, words: &[&str]| {
            let e = mct_quantizers(&mut model(activation, weight)).unwrap_err();
            assert!(e.exit_code() == 2 && words.iter().all(|w| e.to_string().contains(w)), "{e}");
        };
        let zero = (Scheme { zero: quant::Zero::Integer, ..Scheme::int(8, false) }, Params::tensor(0.5, Some(3)));
        refused(zero, Scheme::int(8, true), &["x", "zero points"]);
        refused(pow2(), Scheme::int(32, true), &["w", "at most 16 bits"]);
        refused(pow2(), Scheme { zero: quant::Zero::None, ..Scheme::int(8, false) }, &["w", "unsigned weights"]);
    }
}
