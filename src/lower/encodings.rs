//! Encodings: a float model, and beside it what AIMET's JSON says of every quantizer, by the name of its tensor. Biases that are the product of two scales
//! have no entry: QNN's converters derive them.
//! Source: AIMET's encoding specification 1.0.0, 2.0.0 and, for scales that are codes other than LPBQ's, 2.1.0. In 1.0.0 codes are unsigned,
//! `q = x/scale − offset`: the offset is the negative of ONNX's zero point, and −2^(bits−1) for symmetric signed codes. LPBQ: blocks have integers, channels
//! the floats that these count; `bw` is the width that a code times its block's integer needs.
//! Needs: parameters, codes for every constant. Declines: nothing; what the JSON cannot say is an error.

use crate::error::{At, Error, Result};
use crate::graph::{Linear, Model, Op, Site};
use crate::note::Notes;
use crate::quant::{self, Blocks, Format, NestedScale, Origin, Params, ScaleKind, Scheme, Timing, Zeros};
use crate::target::name_of;
use crate::tensor::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Takes all quantizers off the graph, whose constants then hold what their codes stand for, and returns the JSON of `version` 1 (1.0.0) or 2 (2.0.0, or
/// 2.1.0 where that alone has the words).
pub fn encodings(model: &mut Model, version: i64) -> Result<(String, Notes)> {
    let mut notes = Notes::of("lower");
    let (mut activations, mut params): (BTreeMap<String, Value>, BTreeMap<String, Value>) = Default::default();
    let table = std::mem::take(&mut model.quantizers);
    let codes = std::mem::take(&mut model.codes);
    let g = &mut model.graph;
    for id in g.order().to_vec() {
        if g.get_node(id).is_none_or(|n| n.op != Op::FakeQuant) {
            continue;
        }
        let node = g.node(id);
        let (Some(q), Some(x), Some(y)) = (node.quantizer(), node.input(0), node.output(0)) else {
            return Err(Error::failed("a FakeQuant without input or output"));
        };
        let row = &table[table.root(q)];
        let p = row.params.as_ref().ok_or_else(|| Error::failed("has no scale yet; `calibrate` must stand before `lower`")).at(|| &row.name)?;
        let named = if g.is_output(y) { y } else { x };
        let name = g.value(named).name.clone();
        let shape = g.constant(x).map(|c| c.tensor.shape().to_vec());
        if let Some(shape) = shape {
            let layer = g.value(y).uses().iter().find_map(|p| Linear::of(g, p.node).filter(|l| l.weight == y));
            let c = codes.get(&Site::of(id)).ok_or_else(|| Error::failed("its weights have no codes yet; `round` must stand before `lower`")).at(|| &name)?;
            let stands = Tensor::of_f32(&shape, quant::dequantize(c, &row.scheme, p).at(|| &name)?);
            // The tensor may be read elsewhere under other codes.
            let own = if g.value(x).uses().len() > 1 || g.value(x).constant.is_none() {
                g.add_constant(&name, stands)
            } else {
                g.value_mut(x).constant = Some(stands.into());
                x
            };
            let name = g.value(own).name.clone();
            if !matches!(p.origin, Origin::Product(..)) {
                let axes = layer.map_or((0, 1), |l| (l.out_axis, l.in_axis));
                params.insert(name.clone(), Said { name: &name, scheme: &row.scheme, params: p, shape, axes }.entry(version).at(|| &name)?);
            }
            g.remove_node(id);
            g.replace_uses(y, own);
            g.remove_value(y);
            continue;
        }
        let said = Said { name: &name, scheme: &row.scheme, params: p, shape: vec![], axes: (0, 1) }.entry(version).at(|| &name)?;
        if activations.insert(name.clone(), said.clone()).is_some_and(|before| before != said) {
            return Err(Error::usage(format!(
                "tensor {name} has codes of two kinds, and encodings say one of each tensor: convert without overrides of its readers and without `widen`"
            )));
        }
        if !g.bypass(id) {
            return Err(Error::usage(format!("tensor {name} is an input and an output of the model, of which encodings cannot speak")));
        }
    }
    let list = |m: BTreeMap<String, Value>| m.into_values().collect::<Vec<_>>();
    notes.changed("", format!("written as a float model with encodings of {} activations and {} parameters", activations.len(), params.len()));
    let all = match version {
        1 => json!({ "version": "1.0.0", "activation_encodings": list(activations), "param_encodings": list(params) }),
        _ => {
            activations.extend(params);
            let last = activations.values().any(|e| e["y_scale"].is_object());
            json!({ "version": if last { "2.1.0" } else { "2.0.0" }, "encodings": list(activations) })
        }
    };
    Ok((serde_json::to_string_pretty(&all).map_err(|e| Error::failed(e.to_string()))? + "\n", notes))
}

/// What is to be said of one tensor.
struct Said<'a> {
    name: &'a str,
    scheme: &'a Scheme,
    params: &'a Params,
    /// Of a constant; empty for what flows, which has one scale.
    shape: Vec<usize>,
    /// The axis of channels that the layer gives out, and the one that it sums over.
    axes: (usize, usize),
}

impl Said<'_> {
    fn entry(&self, version: i64) -> Result<Value> {
        let scheme = self.scheme;
        if scheme.timing == Timing::Dynamic || matches!(self.params.zero, Zeros::Real(_)) {
            return Err(self.cannot("scales found at inference or real zero points"));
        }
        let grid = scheme.blocks.layout(&self.shape).map(|l| l.grid).map_err(|_| self.cannot("these blocks"))?;
        let e = if version == 1 { self.first(&grid)? } else { self.second(&grid)? };
        Ok(e.into())
    }

    fn cannot(&self, what: &str) -> Error {
        Error::usage(format!("encodings cannot say {what} ({}): take another format, or `lower: qdq`", self.scheme))
    }

    fn first(&self, grid: &[usize]) -> Result<Map<String, Value>> {
        let Format::Int { bits, signed, .. } = self.scheme.format else { return Err(self.cannot("a format that is no integer in version 1")) };
        let (b, (out, sum)) = (&self.scheme.blocks, self.axes);
        let along = |axis: i32, meant: usize| -> Result<()> {
            let fits = axis.rem_euclid(self.shape.len().max(1) as i32) as usize == meant;
            let why = || format!("version 1 of encodings says no axis and means axis {meant} here ({}): take `version: 2`", self.scheme);
            if fits { Ok(()) } else { Err(Error::usage(why())) }
        };
        let mut order: Vec<usize> = (0..grid.iter().product()).collect();
        let mut e = Map::new();
        let mut kind = "PER_TENSOR";
        if let Some(axis) = b.channel_axis() {
            along(axis, out)?;
            kind = "PER_CHANNEL";
        } else if let Some((axis, size)) = b.block_axis().filter(|_| grid.len() > 1 && grid[2..].iter().all(|n| *n == 1)) {
            along(axis, sum)?;
            kind = "PER_BLOCK";
            e.insert("block_size".into(), json!(size));
            if sum == 0 {
                // Blocks of one channel follow each other.
                order = (0..grid[1]).flat_map(|c| (0..grid[0]).map(move |r| r * grid[1] + c)).collect();
            }
        } else if !b.is_tensor() {
            return Err(self.cannot("these blocks in version 1"));
        }
        let zeros: Vec<i64> = order.iter().map(|i| self.params.zero_at(*i) as i64).collect();
        let mut scale: Vec<f32> = order.iter().map(|i| self.params.scale_at(*i)).collect();
        let mut offset: Vec<i64> = zeros.iter().map(|z| -(z + if signed { 1 << (bits - 1) } else { 0 })).collect();
        let mut width = bits;
        if let (ScaleKind::Nested(_), nested) = (&self.scheme.scale, self.lpbq(grid)) {
            let nested =
                nested.filter(|_| signed && zeros.iter().all(|z| *z == 0)).ok_or_else(|| self.cannot("scales that are codes, but LPBQ's, in version 1"))?;
            let whole = nested.codes.unpack();
            let most = whole.iter().max().map_or(1, |m| *m as u64);
            width = [8, 16, 32].into_iter().find(|w| *w > bits && most <= 1 << (w - bits)).ok_or_else(|| self.cannot("integers that wide"))?;
            kind = "LPBQ";
            scale = nested.params.scale.clone();
            offset = vec![-(1 << (width - 1)); scale.len()];
            e.insert("compressed_bw".into(), json!(bits));
            e.insert("per_block_int_scale".into(), json!(order.iter().map(|i| whole[*i]).collect::<Vec<_>>()));
        }
        e.insert("name".into(), json!(self.name));
        e.insert("dtype".into(), json!("INT"));
        e.insert("enc_type".into(), json!(kind));
        e.insert("bw".into(), json!(width));
        e.insert("is_sym".into(), json!(signed && zeros.iter().all(|z| *z == 0)));
        e.insert("scale".into(), doubles(&scale).into());
        e.insert("offset".into(), json!(offset));
        Ok(e)
    }

    fn second(&self, grid: &[usize]) -> Result<Map<String, Value>> {
        let mut e = Map::new();
        e.insert("name".into(), json!(self.name));
        e.insert("output_dtype".into(), json!(self.word(self.scheme.format)?));
        self.pair(&mut e, "y", self.scheme, self.params, grid)?;
        if let (ScaleKind::Nested(inner), Some(nested)) = (&self.scheme.scale, &self.params.nested) {
            let (of, inner_grid) = (&nested.codes, inner.blocks.layout(grid)?.grid);
            if self.lpbq(grid).is_some() {
                e.remove("y_scale");
                e.insert("per_block_int_scale".into(), arrayed(&of.unpack().into_iter().map(Value::from).collect::<Vec<_>>(), grid));
                e.insert("per_channel_float_scale".into(), arrayed(&doubles(&nested.params.scale), &inner_grid));
            } else {
                let plain = Scheme { blocks: Blocks::tensor(), scale: ScaleKind::Exact(DType::F32), ..(**inner).clone() };
                let mut meta = Map::new();
                meta.insert("x".into(), arrayed(&doubles(&quant::dequantize(of, &plain, &Params::tensor(1.0, None))?), grid));
                meta.insert("input_dtype".into(), json!(self.word(inner.format)?));
                self.pair(&mut meta, "x", inner, &nested.params, &inner_grid)?;
                e.insert("y_scale".into(), meta.into());
            }
        }
        Ok(e)
    }

    fn word(&self, format: Format) -> Result<&'static str> {
        name_of(format).filter(|_| !matches!(format, Format::Codebook { .. })).ok_or_else(|| self.cannot("a codebook"))
    }

    /// Scale, zero point and blocks, as the operators say them; keys begin with `of`.
    fn pair(&self, e: &mut Map<String, Value>, of: &str, scheme: &Scheme, p: &Params, grid: &[usize]) -> Result<()> {
        let b = &scheme.blocks;
        let shape = match (b.channel_axis(), b.block_axis()) {
            (Some(axis), _) => {
                e.insert("axis".into(), json!(axis));
                vec![grid.iter().product()]
            }
            (_, Some((axis, size))) => {
                e.insert("axis".into(), json!(axis));
                e.insert("block_size".into(), json!(size));
                grid.to_vec()
            }
            _ if b.is_tensor() => vec![],
            _ => return Err(self.cannot("these blocks")),
        };
        let all = 0..grid.iter().product();
        e.insert(format!("{of}_scale"), arrayed(&doubles(&all.clone().map(|i| p.scale_at(i)).collect::<Vec<_>>()), &shape));
        let zeros: Vec<i64> = all.map(|i| p.zero_at(i) as i64).collect();
        if zeros.iter().any(|z| *z != 0) {
            e.insert(format!("{of}_zero_point"), arrayed(&zeros.into_iter().map(Value::from).collect::<Vec<_>>(), &shape));
        }
        Ok(())
    }

    /// The codes of scales that are whole numbers of one float a channel.
    fn lpbq(&self, grid: &[usize]) -> Option<&NestedScale> {
        let (ScaleKind::Nested(inner), Some(nested)) = (&self.scheme.scale, &self.params.nested) else { return None };
        let rank = grid.len() as i32;
        let (axis, _) = self.scheme.blocks.block_axis()?;
        let channel = inner.blocks.channel_axis()?;
        let other = axis.rem_euclid(rank) + channel.rem_euclid(rank) == 1 && grid[2..].iter().all(|n| *n == 1);
        (other && matches!(inner.format, Format::Int { .. }) && nested.params.zero == Zeros::None).then_some(nested)
    }
}

/// Numbers as JSON has them: every float32 comes back as it was.
fn doubles(list: &[f32]) -> Vec<Value> {
    list.iter().map(|s| Value::from(*s as f64)).collect()
}

/// A list in lists, as an array of that shape stands in JSON.
fn arrayed(list: &[Value], shape: &[usize]) -> Value {
    match shape {
        [] => list.first().cloned().unwrap_or(Value::Null),
        [_] => list.into(),
        [n, rest @ ..] => list.chunks((list.len() / n.max(&1)).max(1)).map(|part| arrayed(part, rest)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::apply_encodings;
    use crate::quant::{Codes, Specials, Zero};

    fn layer(scheme: Scheme) -> Model {
        layer_of(Op::MatMul, &[4, 2], scheme)
    }

    /// x → op(FakeQuant(w)) → y, with the codes that `scheme` gives w.
    fn layer_of(op: Op, shape: &[usize], scheme: Scheme) -> Model {
        let w: Vec<f32> = [5.0, -0.1, -3.0, 0.25, 0.7, 2.0, 0.3, -1.0].into();
        let params = quant::fit(&w, shape, &scheme).unwrap();
        let codes: Codes = quant::quantize(&w, shape, &scheme, &params).unwrap();
        let mut m = Model { opsets: vec![(String::new(), 21)], ..Model::default() };
        let q = m.quantizers.add("w", scheme);
        m.quantizers[q].params = Some(params);
        let g = &mut m.graph;
        let [x, wq, y] = ["x", "wq", "y"].map(|n| g.add_value(n));
        let wv = g.add_constant("w", Tensor::of_f32(shape, w));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let fake = g.add_node(crate::graph::Node::fake_quant(q, "f"), &[Some(wv)], &[Some(wq)]);
        g.add_node(crate::graph::Node::new(op, "m"), &[Some(x), Some(wq)], &[Some(y)]);
        m.codes.insert(Site::of(fake), codes);
        m
    }

    fn nested(format: Format, inner: Format, blocks: Blocks) -> Scheme {
        let inner = Scheme { format: inner, zero: Zero::None, blocks, ..Scheme::int(8, false) };
        Scheme { format, scale: ScaleKind::Nested(Box::new(inner)), blocks: Blocks::block(0, 2), ..Scheme::int(4, true) }
    }

    const INT4: Format = Format::Int { bits: 4, signed: true, narrow: false };
    const UINT4: Format = Format::Int { bits: 4, signed: false, narrow: false };

    /// Writes, reads back, and returns the JSON; scheme and parameters come back bit for bit.
    fn through(mut m: Model, version: i64) -> Value {
        let before = m.quantizers.clone();
        let (text, _) = encodings(&mut m, version).unwrap();
        apply_encodings(&mut m, &text).unwrap();
        let (a, b) = (&before[before.ids().next().unwrap()], &m.quantizers[m.quantizers.ids().next().unwrap()]);
        let p = |p: &Option<Params>| p.clone().map(|p| (p.scale, p.nested.map(|n| (n.codes, n.params.scale))));
        assert_eq!(p(&a.params), p(&b.params));
        assert_eq!(a.scheme, b.scheme);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn lpbq_has_the_keys_of_aimet() {
        let one = through(layer(nested(INT4, UINT4, Blocks::channel(1))), 1);
        let e = &one["param_encodings"][0];
        assert_eq!((&e["enc_type"], &e["bw"], &e["compressed_bw"], &e["block_size"]), (&json!("LPBQ"), &json!(8), &json!(4), &json!(2)));
        // Blocks of one channel follow each other; the offsets are of 8 bits, one a channel.
        assert_eq!((&e["per_block_int_scale"], &e["offset"], &e["is_sym"]), (&json!([15, 2, 2, 15]), &json!([-128, -128]), &json!(true)));
        assert_eq!(e["scale"], json!([(5f32 / 7.0 / 15.0) as f64, (2f32 / 7.0 / 15.0) as f64]));
        let two = through(layer(nested(INT4, UINT4, Blocks::channel(1))), 2);
        let e = &two["encodings"][0];
        assert_eq!((&two["version"], &e["per_block_int_scale"], &e["axis"]), (&json!("2.0.0"), &json!([[15, 2], [2, 15]]), &json!(0)));
        assert!(e["per_channel_float_scale"][0].as_array().is_some_and(|list| list.len() == 2) && e["y_scale"].is_null(), "{e}");
    }

    #[test]
    fn a_layer_whose_kernel_is_a_point_is_a_matrix() {
        let scheme = || Scheme { blocks: Blocks::block(1, 2), ..nested(INT4, UINT4, Blocks::channel(0)) };
        let one = through(layer_of(Op::Conv, &[2, 4, 1, 1], scheme()), 1);
        assert_eq!(one["param_encodings"][0]["per_block_int_scale"], json!([15, 9, 15, 8]));
        let two = through(layer_of(Op::Conv, &[2, 4, 1, 1], scheme()), 2);
        assert_eq!(two["encodings"][0]["per_block_int_scale"], json!([[[[15]], [[9]]], [[[15]], [[8]]]]));
        let e = encodings(&mut layer_of(Op::Conv, &[1, 2, 2, 2], scheme()), 1).unwrap_err();
        assert!(e.to_string().contains("these blocks in version 1"), "{e}");
    }

    #[test]
    fn other_scales_that_are_codes_need_version_2_1() {
        let e4m3 = Format::Float { exponent: 4, mantissa: 3, specials: Specials::Fn };
        let e2m1 = Format::Float { exponent: 2, mantissa: 1, specials: Specials::None };
        let said = through(layer(nested(e2m1, e4m3, Blocks::tensor())), 2);
        assert_eq!((&said["version"], &said["encodings"][0]["y_scale"]["input_dtype"]), (&json!("2.1.0"), &json!("float8e4m3fn")));
        let e = encodings(&mut layer(nested(INT4, e4m3, Blocks::tensor())), 1).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("but LPBQ's"), "{e}");
    }

    #[test]
    fn what_version_1_would_mean_otherwise_is_refused() {
        let blocks = Scheme { blocks: Blocks::block(1, 2), ..Scheme::int(4, true) };
        for scheme in [blocks, Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) }] {
            let e = encodings(&mut layer(scheme.clone()), 1).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("take `version: 2`"), "{e}");
            through(layer(scheme), 2);
        }
        let flat = Scheme { blocks: Blocks::flat(2), ..Scheme::int(4, true) };
        assert!(encodings(&mut layer(flat), 2).unwrap_err().to_string().contains("these blocks"));
    }
}
