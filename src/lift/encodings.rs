//! AIMET's encodings of a float model → FakeQuant nodes. Versions 1.0.0, in lists or by name, 2.0.0 and 2.1.0.
//! Source: AIMET's encoding specification. In 1.0.0 codes are unsigned, `q = x/scale − offset`, and symmetric ones signed; neither axis is said: channels
//! are those that the layer gives out, blocks run along what it sums over. LPBQ: a block's scale is its integer times its channel's float.

use crate::error::{At, Error, Result};
use crate::graph::{Flow, Graph, Linear, Model, Node, NodeId, ValueId};
use crate::quant::{Blocks, Curve, Format, NestedScale, Origin, Params, ScaleKind, Scheme, Zero, Zeros, dequantize, quantize};
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

/// The scales of an entry, one a block.
struct Scales {
    kind: ScaleKind,
    values: Vec<f32>,
    nested: Option<Box<NestedScale>>,
}

fn scales(values: Vec<f64>) -> Result<Scales> {
    let values: Vec<f32> = values.into_iter().map(|s| s as f32).collect();
    if values.is_empty() || values.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::usage("its scales are not all positive numbers"));
    }
    Ok(Scales { kind: ScaleKind::Exact(DType::F32), values, nested: None })
}

/// Scales that are codes of `format`, which stand for `values` in the grid of blocks, under one `scale` for each of `blocks`.
fn nested(values: Vec<f64>, grid: &[usize], format: Format, scale: Vec<f64>, blocks: Blocks) -> Result<Scales> {
    let n = blocks.layout(grid)?.len();
    if grid.iter().product::<usize>() != values.len() || n != scale.len() {
        return Err(Error::usage(format!("{} codes of scales under {} scales do not fit its blocks {grid:?}", values.len(), scale.len())));
    }
    let inner = plain(format, blocks);
    let params = Params { scale: scales(scale)?.values, ..Params::tensor(1.0, None) };
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    let one = (plain(format, Blocks::tensor()), Params::tensor(1.0, None));
    let codes = quantize(&values, grid, &one.0, &one.1)?;
    if dequantize(&codes, &one.0, &one.1)? != values {
        return Err(Error::usage(format!("the codes of its scales are no numbers of {format}")));
    }
    let outer = scales(dequantize(&codes, &inner, &params)?.into_iter().map(f64::from).collect())?;
    let params = Params { origin: Origin::Fixed, ..params };
    Ok(Scales { kind: ScaleKind::Nested(Box::new(inner)), nested: Some(Box::new(NestedScale { codes, params })), ..outer })
}

/// The least unsigned format that holds whole numbers, which LPBQ does not name.
fn whole(list: &[f64]) -> Result<Format> {
    let most = list.iter().fold(0.0, |a: f64, b| a.max(*b));
    let bits = [4u8, 8, 16].into_iter().find(|b| most < f64::from(1 << b));
    let bits = bits
        .filter(|_| list.iter().all(|v| *v >= 1.0 && v.fract() == 0.0))
        .ok_or_else(|| Error::usage("its per_block_int_scale are no integers of 1 to 65535"))?;
    Ok(Format::Int { bits, signed: false, narrow: false })
}

/// Codes as they are stored, under float32 scales without zero points.
fn plain(format: Format, blocks: Blocks) -> Scheme {
    Scheme { format, blocks, zero: Zero::None, ..Scheme::int(8, false) }
}

fn said(format: Format, scales: Scales, zeros: Vec<i32>, blocks: Blocks) -> Result<Said> {
    if zeros.len() != scales.values.len() {
        return Err(Error::usage(format!("its {} zero points do not pair with its {} scales", zeros.len(), scales.values.len())));
    }
    if let Some((low, high)) = format.code_range().filter(|(l, h)| zeros.iter().any(|z| z < l || z > h)) {
        return Err(Error::usage(format!("a zero point lies outside of {low} … {high}")));
    }
    let none = format.code_range().is_none_or(|(low, _)| low < 0) && zeros.iter().all(|z| *z == 0);
    let scheme = Scheme { scale: scales.kind, zero: if none { Zero::None } else { Zero::Integer }, ..plain(format, blocks) };
    let zero = if none { Zeros::None } else { Zeros::Integer(zeros) };
    Ok(Some((scheme, Params { scale: scales.values, nested: scales.nested, zero, curve: Curve::Linear, origin: Origin::Fixed })))
}

fn of_first(e: &Value, shape: Option<&[usize]>, layer: Option<Linear>) -> Result<Said> {
    if e["dtype"].as_str() == Some("FLOAT") {
        return Ok(None);
    }
    let width =
        |key: &str, v: &Value| v.as_u64().filter(|b| (2..=32).contains(b)).ok_or_else(|| Error::usage(format!("its `{key}` is no width of 2 to 32 bits")));
    let bits = width("bw", &e["bw"])? as u8;
    let (mut scale, mut offset) = (numbers(&e["scale"], "scales")?, numbers(&e["offset"], "offsets")?);
    if offset.len() == 1 {
        offset = vec![offset[0]; scale.len()];
    }
    let half = 1i64 << (bits - 1);
    let signed = e["is_sym"].as_bool() == Some(true) && offset.iter().all(|o| *o == -(half as f64));
    let (out, sum) = layer.map_or((0, 1), |l| (l.out_axis as i32, l.in_axis as i32));
    let kind = e["enc_type"].as_str().unwrap_or("PER_TENSOR");
    let blocks = match kind {
        "PER_TENSOR" => Blocks::tensor(),
        "PER_CHANNEL" => Blocks::channel(out),
        "PER_BLOCK" | "LPBQ" => {
            let size = e["block_size"].as_u64().filter(|n| *n > 0).ok_or_else(|| Error::usage("it says no block_size"))? as usize;
            Blocks::block(sum, size)
        }
        other => return Err(Error::usage(format!("enc_type {other} cannot be read; PER_TENSOR, PER_CHANNEL, PER_BLOCK and LPBQ can"))),
    };
    if blocks.block_axis().is_some() {
        let grid = grid_of_matrix(&blocks, shape)?;
        let (rows, columns) = (grid[0], grid[1]);
        // Blocks of one channel follow each other.
        let turned = |v: Vec<f64>| match sum == 0 && rows * columns == v.len() {
            true => (0..rows).flat_map(|r| (0..columns).map(move |c| c * rows + r)).map(|i| v[i]).collect(),
            false => v,
        };
        if kind == "LPBQ" {
            let codes = width("compressed_bw", &e["compressed_bw"])? as u8;
            if codes >= bits || !signed {
                return Err(Error::usage("LPBQ is symmetric codes of `compressed_bw` bits, fewer than `bw`, with offsets of −2^(bw−1)"));
            }
            let int = numbers(&e["per_block_int_scale"], "per_block_int_scale")?;
            let format = whole(&int)?;
            if int.iter().any(|v| *v > f64::from(1u32 << (bits - codes).min(16))) {
                return Err(Error::usage(format!("its per_block_int_scale exceed what {codes} bits may be stretched by to fill {bits}")));
            }
            let scales = nested(turned(int), &grid, format, scale, Blocks::channel(out))?;
            let zeros = vec![0; scales.values.len()];
            return said(Format::Int { bits: codes, signed, narrow: false }, scales, zeros, blocks);
        }
        (scale, offset) = (turned(scale), turned(offset));
    }
    let zeros = offset.iter().map(|o| if signed { 0 } else { -*o as i32 }).collect();
    said(Format::Int { bits, signed, narrow: false }, scales(scale)?, zeros, blocks)
}

/// Blocks of a constant matrix, perhaps of a layer whose kernel is a point.
fn grid_of_matrix(blocks: &Blocks, shape: Option<&[usize]>) -> Result<Vec<usize>> {
    let matrix = shape.filter(|s| s.len() >= 2 && s[2..].iter().all(|n| *n == 1));
    let layout = matrix.map(|s| blocks.layout(s)).transpose()?;
    layout.map(|l| l.grid).ok_or_else(|| Error::usage("blocks of a tensor that is no constant matrix cannot be read"))
}

fn format_of(dtype: &str) -> Result<Format> {
    let unknown = || Error::usage(format!("{dtype} is no format of codes"));
    match dtype.strip_prefix("uint").map(|b| (b, false)).or(dtype.strip_prefix("int").map(|b| (b, true))) {
        Some((bits, signed)) => Ok(Format::Int { bits: bits.parse().ok().filter(|b| (2..=32).contains(b)).ok_or_else(unknown)?, signed, narrow: false }),
        None => DType::of_name(dtype).and_then(Format::of_dtype).ok_or_else(unknown),
    }
}

/// Blocks by `axis` and `block_size`, for a tensor of that rank.
fn blocks_of(e: &Value, rank: usize) -> Blocks {
    let axis = e["axis"].as_i64().and_then(|a| i32::try_from(a).ok()).map(|a| if a < 0 { a + rank as i32 } else { a });
    match (axis, e["block_size"].as_u64()) {
        (Some(axis), Some(size)) if size > 0 => Blocks::block(axis, size as usize),
        (Some(axis), _) => Blocks::channel(axis),
        (None, _) => Blocks::tensor(),
    }
}

fn of_second(e: &Value, shape: Option<&[usize]>) -> Result<Said> {
    let Some(dtype) = e["output_dtype"].as_str() else { return Ok(None) };
    let format = format_of(dtype).at(|| "output_dtype")?;
    let blocks = blocks_of(e, shape.map_or(0, <[usize]>::len));
    let grid = || shape.map(|s| blocks.layout(s)).transpose()?.map(|l| l.grid).ok_or_else(|| Error::usage("scales of a value that flows cannot be codes"));
    let meta = &e["y_scale"];
    let scales = if e.get("per_block_int_scale").is_some_and(|v| !v.is_null()) {
        let (axis, _) = blocks.block_axis().ok_or_else(|| Error::usage("LPBQ says no axis and block_size"))?;
        let int = numbers(&e["per_block_int_scale"], "per_block_int_scale")?;
        let float = numbers(&e["per_channel_float_scale"], "per_channel_float_scale")?;
        let format = whole(&int)?;
        nested(int, &grid_of_matrix(&blocks, shape)?, format, float, Blocks::channel(1 - axis))?
    } else if meta.is_object() {
        if meta.get("x_zero_point").is_some_and(|z| numbers(z, "x_zero_point").map_or(true, |z| z.iter().any(|z| *z != 0.0))) {
            return Err(Error::usage("zero points of scales (x_zero_point) cannot be read"));
        }
        let x = numbers(&meta["x"], "x")?;
        let format = meta["input_dtype"].as_str().map_or_else(|| whole(&x), |t| format_of(t).at(|| "input_dtype"))?;
        let grid = grid()?;
        let inner = blocks_of(meta, grid.len());
        nested(x, &grid, format, numbers(&meta["x_scale"], "x_scale")?, inner)?
    } else {
        scales(numbers(meta, "scales")?)?
    };
    let zeros = match e.get("y_zero_point").filter(|v| !v.is_null()) {
        Some(z) => numbers(z, "zero points")?.into_iter().map(|z| z as i32).collect(),
        None => vec![0; scales.values.len()],
    };
    said(format, scales, zeros, blocks)
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

    /// AIMET's own forms of the same quantizer: integers of blocks times floats of channels.
    const LPBQ: [&str; 3] = [
        r#"{"version": "1.0.0", "param_encodings": [{"name": "w", "dtype": "INT", "enc_type": "LPBQ", "bw": 8, "compressed_bw": 4, "is_sym": true,
            "block_size": 1, "scale": [0.5, 0.25, 0.1], "offset": [-128, -128, -128], "per_block_int_scale": [3, 16, 5, 6, 7, 8]}]}"#,
        r#"{"version": "2.0.0", "encodings": [{"name": "w", "output_dtype": "int4", "per_block_int_scale": [[3, 5, 7], [16, 6, 8]],
            "per_channel_float_scale": [[0.5, 0.25, 0.1]], "axis": 0, "block_size": 1}]}"#,
        r#"{"version": "2.1.0", "encodings": [{"name": "w", "output_dtype": "int4", "axis": 0, "block_size": 1,
            "y_scale": {"x": [[3, 5, 7], [16, 6, 8]], "x_scale": [0.5, 0.25, 0.1], "axis": 1}}]}"#,
    ];

    #[test]
    fn scales_that_are_codes_are_one_quantizer_in_three_versions() {
        for text in LPBQ {
            let found = of(text).unwrap();
            let (_, scheme, p) = &found[0];
            assert_eq!((scheme.format, &scheme.blocks, &p.zero), (Format::Int { bits: 4, signed: true, narrow: false }, &Blocks::block(0, 1), &Zeros::None));
            let nested = p.nested.as_ref().unwrap();
            // 16 is one more than four bits hold.
            assert_eq!((nested.codes.0.dtype(), nested.codes.unpack()), (DType::U8, vec![3, 5, 7, 16, 6, 8]));
            assert_eq!(nested.params.scale, [0.5, 0.25, 0.1]);
            assert_eq!(p.scale, [1.5, 1.25, 7.0 * 0.1, 8.0, 1.5, 8.0 * 0.1], "{text}");
        }
        let four = &of(&LPBQ[0].replace("16", "15")).unwrap()[0].2;
        assert_eq!(four.nested.as_ref().unwrap().codes.0.dtype(), DType::U4);
    }

    #[test]
    fn scales_that_are_codes_of_floats_say_their_type() {
        let text = r#"{"version": "2.1.0", "encodings": [{"name": "w", "output_dtype": "float4e2m1", "axis": 0, "block_size": 2,
            "y_scale": {"x": [[0.5, 1.5, 448]], "x_scale": 0.25, "input_dtype": "float8e4m3fn"}}]}"#;
        let p = &of(text).unwrap()[0].2;
        assert_eq!((&p.scale[..], p.nested.as_ref().unwrap().codes.0.dtype()), (&[0.125, 0.375, 112.0][..], DType::F8E4M3FN));
        let e = of(&text.replace("1.5", "1.53")).unwrap_err();
        assert!(e.to_string().contains("are no numbers of"), "{e}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (i, from, to, word) in [
            (0, "-128, -128]", "-128, -8]", "LPBQ is symmetric"),
            (0, "\"compressed_bw\": 4, ", "", "`compressed_bw`"),
            (0, "16", "17", "exceed"),
            (0, ", 8]", "]", "5 codes of scales under 3"),
            (1, "16", "0", "1 to 65535"),
            (1, ", 0.1]", "]", "under 2 scales"),
            (1, ", \"block_size\": 1", "", "says no axis"),
            (2, "0.25", "-0.25", "positive"),
            (2, "\"axis\": 1", "\"x_zero_point\": 1, \"axis\": 1", "x_zero_point"),
            (2, "\"w\"", "\"x\"", "flows"),
        ] {
            let e = of(&LPBQ[i].replace(from, to)).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(word), "{from} {to}: {e}");
        }
        for (from, to, word) in [
            ("\"1.0.0\"", "\"3.0\"", "3.0"),
            ("\"name\": \"x\"", "\"name\": \"q\"", "entry q: the model has no such tensor"),
            ("[0.5]", "[0.0]", "positive"),
            ("[0.1, 0.2, 0.3]", "[0.1, 0.2]", "do not"),
            ("PER_CHANNEL", "LPBQ", "block_size"),
            ("PER_CHANNEL", "PER_CLUSTER", "LPBQ can"),
            ("\"bw\": 8", "\"bw\": 99", "bw"),
            ("[-3]", "[-300]", "outside"),
        ] {
            let e = of(&FIRST.replace(from, to)).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(word), "{e}");
        }
        assert!(of("[]").is_err() && of("{").is_err());
    }
}
