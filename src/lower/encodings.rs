//! Encodings: a float model, and beside it what AIMET's JSON says of every quantizer, by the name of its tensor. Biases that are the product of two scales
//! have no entry: QNN's converters derive them.
//! Source: AIMET's encoding specification 1.0.0 and 2.0.0. In 1.0.0 codes are unsigned, `q = x/scale − offset`: the offset is the negative of ONNX's zero
//! point, and −2^(bits−1) for symmetric signed codes.
//! Needs: parameters, codes for every constant. Declines: nothing; what the JSON cannot say is an error.

use crate::error::{At, Error, Result};
use crate::graph::{Model, Op, Site};
use crate::note::Notes;
use crate::quant::{self, Format, Origin, Params, ScaleKind, Scheme, Timing, Zeros};
use crate::target::name_of;
use crate::tensor::Tensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Takes all quantizers off the graph, whose constants then hold what their codes stand for, and returns the JSON of `version` 1 (1.0.0) or 2 (2.0.0).
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
        if let Some(shape) = &shape {
            let c = codes.get(&Site::of(id)).ok_or_else(|| Error::failed("its weights have no codes yet; `round` must stand before `lower`")).at(|| &name)?;
            let stands = Tensor::of_f32(shape, quant::dequantize(c, &row.scheme, p).at(|| &name)?);
            // The tensor may be read elsewhere under other codes.
            let own = if g.value(x).uses().len() > 1 || g.value(x).constant.is_none() {
                g.add_constant(&name, stands)
            } else {
                g.value_mut(x).constant = Some(stands.into());
                x
            };
            let name = g.value(own).name.clone();
            if !matches!(p.origin, Origin::Product(..)) {
                params.insert(name.clone(), entry(&name, &row.scheme, p, Some(shape), version).at(|| &name)?);
            }
            g.remove_node(id);
            g.replace_uses(y, own);
            g.remove_value(y);
            continue;
        }
        let said = entry(&name, &row.scheme, p, None, version).at(|| &name)?;
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
            json!({ "version": "2.0.0", "encodings": list(activations) })
        }
    };
    Ok((serde_json::to_string_pretty(&all).map_err(|e| Error::failed(e.to_string()))? + "\n", notes))
}

fn entry(name: &str, scheme: &Scheme, p: &Params, shape: Option<&[usize]>, version: i64) -> Result<Value> {
    let cannot = |what: &str| Error::usage(format!("encodings cannot say {what} ({scheme}): take another format, or `lower: qdq`"));
    if scheme.timing == Timing::Dynamic || matches!(scheme.scale, ScaleKind::Nested(_)) || matches!(p.zero, Zeros::Real(_)) {
        return Err(cannot("scales found at inference, scales that are codes, or real zero points"));
    }
    let b = &scheme.blocks;
    if !(b.is_tensor() || b.channel_axis().is_some() || b.block_axis().is_some() && shape.is_some_and(|s| s.len() == 2)) {
        return Err(cannot("these blocks"));
    }
    let zeros: Vec<i64> = (0..p.scale.len()).map(|i| p.zero_at(i) as i64).collect();
    let scale: Vec<f64> = p.scale.iter().map(|s| *s as f64).collect();
    if version == 1 { first(name, scheme, scale, zeros, shape, cannot) } else { second(name, scheme, scale, zeros, shape, cannot) }
}

fn first(name: &str, scheme: &Scheme, scale: Vec<f64>, zeros: Vec<i64>, shape: Option<&[usize]>, cannot: impl Fn(&str) -> Error) -> Result<Value> {
    let Format::Int { bits, signed, .. } = scheme.format else { return Err(cannot("a format that is no integer in version 1")) };
    let half = if signed { 1i64 << (bits - 1) } else { 0 };
    let (b, mut order) = (&scheme.blocks, (0..scale.len()).collect::<Vec<_>>());
    let kind = if b.is_tensor() {
        "PER_TENSOR"
    } else if b.channel_axis().is_some() {
        "PER_CHANNEL"
    } else {
        "PER_BLOCK"
    };
    if let (Some((axis, _)), Some(shape)) = (b.block_axis(), shape) {
        // Blocks of one channel follow each other.
        let grid = b.layout(shape)?.grid;
        if axis == 0 || axis == -2 {
            order = (0..grid[1]).flat_map(|c| (0..grid[0]).map(move |r| (r, c))).map(|(r, c)| r * grid[1] + c).collect();
        }
    }
    let mut e = Map::new();
    e.insert("name".into(), json!(name));
    e.insert("dtype".into(), json!("INT"));
    e.insert("enc_type".into(), json!(kind));
    e.insert("bw".into(), json!(bits));
    e.insert("is_sym".into(), json!(signed && zeros.iter().all(|z| *z == 0)));
    e.insert("scale".into(), json!(order.iter().map(|i| scale[*i]).collect::<Vec<_>>()));
    e.insert("offset".into(), json!(order.iter().map(|i| -(zeros[*i] + half)).collect::<Vec<_>>()));
    if let Some((_, size)) = b.block_axis() {
        e.insert("block_size".into(), json!(size));
    }
    Ok(e.into())
}

fn second(name: &str, scheme: &Scheme, scale: Vec<f64>, zeros: Vec<i64>, shape: Option<&[usize]>, cannot: impl Fn(&str) -> Error) -> Result<Value> {
    let format = name_of(scheme.format).filter(|_| !matches!(scheme.format, Format::Codebook { .. })).ok_or_else(|| cannot("a codebook"))?;
    let b = &scheme.blocks;
    let rows = match (b.block_axis(), shape) {
        (Some(_), Some(shape)) => Some(b.layout(shape)?.grid[1]),
        _ => None,
    };
    let shaped = |list: Vec<Value>| match rows {
        _ if b.is_tensor() => list.into_iter().next().unwrap_or(Value::Null),
        Some(n) => list.chunks(n).map(|row| Value::from(row.to_vec())).collect(),
        None => list.into(),
    };
    let mut e = Map::new();
    e.insert("name".into(), json!(name));
    e.insert("output_dtype".into(), json!(format));
    e.insert("y_scale".into(), shaped(scale.into_iter().map(Value::from).collect()));
    if zeros.iter().any(|z| *z != 0) {
        e.insert("y_zero_point".into(), shaped(zeros.into_iter().map(Value::from).collect()));
    }
    match (b.channel_axis(), b.block_axis()) {
        (Some(axis), _) => drop(e.insert("axis".into(), json!(axis))),
        (_, Some((axis, size))) => {
            e.insert("axis".into(), json!(axis));
            e.insert("block_size".into(), json!(size));
        }
        _ => {}
    }
    Ok(e.into())
}
