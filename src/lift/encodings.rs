//! AIMET's encodings of a float model → FakeQuant nodes. Versions 1.0.0, in lists or by name, and 2.0.0.
//! Source: AIMET's encoding specification. In 1.0.0 codes are unsigned, `q = x/scale − offset`, and symmetric ones signed; neither axis is said: channels
//! are those that the layer gives out, blocks run along what it sums over.

use crate::error::{At, Error, Result};
use crate::graph::{Flow, Graph, Linear, Model, Node, NodeId, ValueId};
use crate::quant::{Blocks, Curve, Format, Origin, Params, Rounding, ScaleKind, Scheme, Timing, Zero, Zeros};
use crate::tensor::DType;
use serde_json::Value;

/// Puts a FakeQuant behind every tensor that an entry names.
///
/// # Errors
/// Text that is no encodings file; entries of tensors that the model does not have, or that do not fit them.
pub fn apply_encodings(model: &mut Model, text: &str) -> Result<()> {
    let json: Value = serde_json::from_str(text).map_err(|e| Error::usage(format!("is no JSON: {e}")))?;
    let version = json["version"].as_str().unwrap_or_default();
    let second = match version.split('.').next() {
        Some("1") => false,
        Some("2") => true,
        _ => return Err(Error::usage(format!("version {version:?} of encodings cannot be read; 1.0.0 and 2.0.0 can"))),
    };
    if let Some((_, n)) = model.graph.nodes().find(|(_, n)| n.op.flow() == Flow::Quantize) {
        return Err(Error::usage(format!("the model is quantized already (node {} is a {}): encodings speak of float models", n.name, n.op_type)));
    }
    let mut count = 0;
    for key in if second { &["encodings"][..] } else { &["activation_encodings", "param_encodings"] } {
        for (name, entry) in entries(&json[*key]) {
            apply(model, &name, entry, second).at(|| format!("entry {name}"))?;
            count += 1;
        }
    }
    if count == 0 {
        return Err(Error::usage("holds no encoding"));
    }
    model.graph.sort().map_err(|node| Error::failed(format!("node {node} stands on a cycle")))
}

/// Entries of a list, or of an object by name.
fn entries(v: &Value) -> Vec<(String, &Value)> {
    match v {
        Value::Array(list) => list.iter().map(|e| (e["name"].as_str().unwrap_or_default().to_string(), e)).collect(),
        Value::Object(map) => map.iter().map(|(k, e)| (k.clone(), e)).collect(),
        _ => vec![],
    }
}

fn apply(model: &mut Model, name: &str, entry: &Value, second: bool) -> Result<()> {
    let g = &model.graph;
    let v = g.find_value(name).ok_or_else(|| Error::usage("the model has no such tensor"))?;
    let shape = g.constant(v).map(|c| c.tensor.shape().to_vec());
    let layer = g.value(v).uses().iter().find_map(|p| Linear::of(g, p.node).filter(|l| l.weight == v));
    let said = if second { of_second(entry, shape.as_deref())? } else { of_first(entry, shape.as_deref(), layer)? };
    // A float entry: nothing becomes codes.
    let Some((scheme, params)) = said else { return Ok(()) };
    if let Some(shape) = &shape {
        let n = scheme.blocks.layout(shape)?.len();
        if n != params.scale.len() {
            return Err(Error::usage(format!("its {} scales do not fit shape {shape:?}, which has {n} {}", params.scale.len(), scheme.blocks)));
        }
    } else if !scheme.blocks.is_tensor() {
        return Err(Error::usage("a value that flows has more than one scale"));
    }
    let q = model.quantizers.add(name, scheme);
    model.quantizers[q].params = Some(params);
    put(&mut model.graph, v, Node::fake_quant(q, format!("{name}_FakeQuant")))
}

/// Puts a node behind a value: its readers read the node's result. An output of the graph keeps its name.
fn put(g: &mut Graph, v: ValueId, node: Node) -> Result<()> {
    let name = g.value(v).name.clone();
    let ty = g.value(v).ty.clone();
    match g.value(v).producer() {
        Some((maker, slot)) if g.is_output(v) => {
            let raw = g.add_value(&format!("{name}_float"));
            g.value_mut(raw).ty = ty;
            g.set_output(maker, slot as usize, raw);
            let _: NodeId = g.add_node(node, &[Some(raw)], &[Some(v)]);
        }
        _ => {
            let y = g.add_value(&format!("{name}_dequantized"));
            g.value_mut(y).ty = ty;
            g.replace_uses(v, y);
            g.add_node(node, &[Some(v)], &[Some(y)]);
        }
    }
    Ok(())
}

type Said = Option<(Scheme, Params)>;

fn numbers(v: &Value, what: &str) -> Result<Vec<f64>> {
    let bad = || Error::usage(format!("its {what} are no numbers"));
    match v {
        Value::Array(list) => list.iter().map(|x| numbers(x, what)).collect::<Result<Vec<_>>>().map(|l| l.concat()),
        v => Ok(vec![v.as_f64().ok_or_else(bad)?]),
    }
}

fn said(format: Format, scale: Vec<f64>, zeros: Vec<i32>, blocks: Blocks) -> Result<Said> {
    let scale: Vec<f32> = scale.into_iter().map(|s| s as f32).collect();
    if scale.is_empty() || scale.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::usage("its scales are not all positive numbers"));
    }
    if zeros.len() != scale.len() {
        return Err(Error::usage(format!("its {} zero points do not pair with its {} scales", zeros.len(), scale.len())));
    }
    if let Some((low, high)) = format.code_range().filter(|(l, h)| zeros.iter().any(|z| z < l || z > h)) {
        return Err(Error::usage(format!("a zero point lies outside of {low} … {high}")));
    }
    let none = format.code_range().is_none_or(|(low, _)| low < 0) && zeros.iter().all(|z| *z == 0);
    let scheme = Scheme {
        format,
        scale: ScaleKind::Exact(DType::F32),
        zero: if none { Zero::None } else { Zero::Integer },
        blocks,
        timing: Timing::Static,
        rounding: Rounding::HalfEven,
    };
    let zero = if none { Zeros::None } else { Zeros::Integer(zeros) };
    Ok(Some((scheme, Params { scale, nested: None, zero, curve: Curve::Linear, origin: Origin::Fixed })))
}

fn of_first(e: &Value, shape: Option<&[usize]>, layer: Option<Linear>) -> Result<Said> {
    if e["dtype"].as_str() == Some("FLOAT") {
        return Ok(None);
    }
    let bits = e["bw"].as_u64().filter(|b| (2..=32).contains(b)).ok_or_else(|| Error::usage("its `bw` is no width of 2 to 32 bits"))? as u8;
    let (mut scale, mut offset) = (numbers(&e["scale"], "scales")?, numbers(&e["offset"], "offsets")?);
    if offset.len() == 1 {
        offset = vec![offset[0]; scale.len()];
    }
    let (out, sum) = layer.map_or((0, 1), |l| (l.out_axis as i32, l.in_axis as i32));
    let blocks = match e["enc_type"].as_str() {
        Some("PER_TENSOR") | None => Blocks::tensor(),
        Some("PER_CHANNEL") => Blocks::channel(out),
        Some("PER_BLOCK") => {
            let size = e["block_size"].as_u64().filter(|n| *n > 0).ok_or_else(|| Error::usage("it says no block_size"))? as usize;
            let blocks = Blocks::block(sum, size);
            let grid = shape
                .filter(|s| s.len() == 2)
                .map(|s| blocks.layout(s))
                .transpose()?
                .map(|l| l.grid)
                .ok_or_else(|| Error::usage("blocks of a tensor that is no constant matrix cannot be read"))?;
            if sum == 0 && grid[0] * grid[1] == scale.len() && offset.len() == scale.len() {
                let turned = |v: &[f64]| (0..grid[0]).flat_map(|r| (0..grid[1]).map(move |c| (r, c))).map(|(r, c)| v[c * grid[0] + r]).collect::<Vec<_>>();
                (scale, offset) = (turned(&scale), turned(&offset));
            }
            blocks
        }
        Some(other) => return Err(Error::usage(format!("enc_type {other} cannot be read; PER_TENSOR, PER_CHANNEL and PER_BLOCK can"))),
    };
    let half = 1i64 << (bits - 1);
    let signed = e["is_sym"].as_bool() == Some(true) && offset.iter().all(|o| *o == -(half as f64));
    let zeros = offset.iter().map(|o| if signed { 0 } else { -*o as i32 }).collect();
    said(Format::Int { bits, signed, narrow: false }, scale, zeros, blocks)
}

fn of_second(e: &Value, shape: Option<&[usize]>) -> Result<Said> {
    let Some(dtype) = e["output_dtype"].as_str() else { return Ok(None) };
    if e.get("per_block_int_scale").is_some_and(|v| !v.is_null()) {
        return Err(Error::usage("scales that are codes themselves (per_block_int_scale) cannot be read"));
    }
    let unknown = || Error::usage(format!("output_dtype {dtype} is no format of codes"));
    let format = match dtype.strip_prefix("uint").map(|b| (b, false)).or(dtype.strip_prefix("int").map(|b| (b, true))) {
        Some((bits, signed)) => Format::Int { bits: bits.parse().ok().filter(|b| (2..=32).contains(b)).ok_or_else(unknown)?, signed, narrow: false },
        None => DType::of_name(dtype).and_then(Format::of_dtype).ok_or_else(unknown)?,
    };
    let scale = numbers(&e["y_scale"], "scales")?;
    let zeros = match e.get("y_zero_point").filter(|v| !v.is_null()) {
        Some(z) => numbers(z, "zero points")?.into_iter().map(|z| z as i32).collect(),
        None => vec![0; scale.len()],
    };
    let axis = e["axis"].as_i64().and_then(|a| i32::try_from(a).ok());
    let rank = shape.map_or(0, <[usize]>::len) as i32;
    let axis = axis.map(|a| if a < 0 { a + rank } else { a });
    let blocks = match (axis, e["block_size"].as_u64()) {
        (Some(axis), Some(size)) if size > 0 => Blocks::block(axis, size as usize),
        (Some(axis), _) => Blocks::channel(axis),
        (None, _) => Blocks::tensor(),
    };
    said(format, scale, zeros, blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Op;
    use crate::lift::sample::{model, node};
    use crate::tensor::Tensor;

    /// x[1,2] → MatMul(w[2,3]) → y
    fn layer() -> Model {
        let w = [("w", Tensor::of_f32(&[2, 3], vec![1.0; 6]))];
        model(13, &[("x", DType::F32, &[1, 2])], &w, vec![(node(Op::MatMul), &["x", "w"], &["y"])], &["y"])
    }

    fn of(text: &str) -> Result<Vec<(String, Scheme, Params)>> {
        let mut m = layer();
        apply_encodings(&mut m, text)?;
        Ok(m.quantizers.ids().map(|q| (m.quantizers[q].name.clone(), m.quantizers[q].scheme.clone(), m.quantizers[q].params.clone().unwrap())).collect())
    }

    const FIRST: &str = r#"{"version": "1.0.0", "activation_encodings": [
        {"name": "x", "dtype": "INT", "enc_type": "PER_TENSOR", "bw": 8, "is_sym": false, "scale": [0.5], "offset": [-3]},
        {"name": "y", "dtype": "FLOAT", "enc_type": "PER_TENSOR", "bw": 16}],
      "param_encodings": [
        {"name": "w", "dtype": "INT", "enc_type": "PER_CHANNEL", "bw": 4, "is_sym": true, "scale": [0.1, 0.2, 0.3], "offset": [-8, -8, -8]}]}"#;

    #[test]
    fn offsets_are_zero_points_with_the_other_sign_and_symmetric_codes_are_signed() {
        let found = of(FIRST).unwrap();
        assert_eq!(found.len(), 2, "a float entry makes no quantizer");
        let (x, w) = (&found[0], &found[1]);
        assert_eq!((x.0.as_str(), x.1.format, &x.2.zero), ("x", Format::Int { bits: 8, signed: false, narrow: false }, &Zeros::Integer(vec![3])));
        assert_eq!((w.1.format, &w.1.blocks, &w.2.zero), (Format::Int { bits: 4, signed: true, narrow: false }, &Blocks::channel(1), &Zeros::None));
        assert_eq!(w.2.scale, [0.1, 0.2, 0.3]);
    }

    #[test]
    fn version_2_says_its_types_and_axes() {
        let text = r#"{"version": "2.0.0", "encodings": [
            {"name": "x", "output_dtype": "uint16", "y_scale": 0.5, "y_zero_point": 7},
            {"name": "w", "output_dtype": "int4", "y_scale": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "axis": 0, "block_size": 1}]}"#;
        let found = of(text).unwrap();
        assert_eq!((found[0].1.format.bits(), &found[0].2.zero), (16, &Zeros::Integer(vec![7])));
        assert_eq!((&found[1].1.blocks, found[1].2.scale.len()), (&Blocks::block(0, 1), 6));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (from, to, word) in [
            ("\"1.0.0\"", "\"3.0\"", "3.0"),
            ("\"name\": \"x\"", "\"name\": \"q\"", "entry q: the model has no such tensor"),
            ("[0.5]", "[0.0]", "positive"),
            ("[0.1, 0.2, 0.3]", "[0.1, 0.2]", "do not"),
            ("PER_CHANNEL", "LPBQ", "LPBQ"),
            ("\"bw\": 8", "\"bw\": 99", "bw"),
            ("[-3]", "[-300]", "outside"),
        ] {
            let e = of(&FIRST.replace(from, to)).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(word), "{e}");
        }
        assert!(of("[]").is_err() && of("{").is_err());
    }
}
