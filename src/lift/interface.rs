//! Inputs and outputs that are codes, by what the file's metadata says of them, as real numbers again: for whoever compares the file with a float one.

use crate::error::{At, Error, Result};
use crate::graph::{Graph, Model, Node, Op, Type, ValueId};
use crate::tensor::{DType, Tensor, pack};

/// Key of the metadata about an input or output, before its name.
const KEY: &str = "requant.io.";
/// Key of the metadata about an input that takes images as bytes, before its name.
const IMAGE: &str = "requant.image.";

/// Puts QuantizeLinear behind every input, and DequantizeLinear before every output, of which the metadata says scale and zero point; inputs that
/// take images as bytes take preprocessed ones again.
///
/// # Errors
/// Metadata that cannot be read, or that names what the file does not have.
pub fn real_interface(model: &mut Model) -> Result<()> {
    for (name, text) in taken(model, KEY) {
        real(model, &name, &text).at(|| format!("metadata {KEY}{name}"))?;
    }
    for (name, text) in taken(model, IMAGE) {
        image(&mut model.graph, &name, &text).at(|| format!("metadata {IMAGE}{name}"))?;
    }
    Ok(())
}

/// Takes out the metadata under keys that begin so, by what follows: it is undone, and no longer true.
fn taken(model: &mut Model, key: &str) -> Vec<(String, String)> {
    let found = model.metadata.iter().filter_map(|(k, v)| Some((k.strip_prefix(key)?.to_string(), v.clone()))).collect();
    model.metadata.retain(|(k, _)| !k.starts_with(key));
    found
}

/// Puts before an input that takes bytes what makes bytes of a preprocessed image: `round((x · std + mean) · scale)`, exact for what was made of bytes.
fn image(g: &mut Graph, name: &str, text: &str) -> Result<()> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::usage(format!("is no JSON: {e}")))?;
    let broken = || Error::usage("says no layout, channels_last, scale, mean and std");
    let numbers = |key: &str| -> Option<Vec<f32>> { json[key].as_array()?.iter().map(|n| n.as_f64().map(|n| n as f32)).collect() };
    let (mean, std) = (numbers("mean").ok_or_else(broken)?, numbers("std").ok_or_else(broken)?);
    let scale = json["scale"].as_f64().ok_or_else(broken)? as f32;
    let (last, nhwc) = (json["channels_last"].as_bool().ok_or_else(broken)?, json["layout"].as_str().ok_or_else(broken)? == "nhwc");
    let v = g.find_value(name).filter(|v| g.value(*v).dtype() == Some(DType::U8) && g.inputs.contains(v));
    let v = v.ok_or_else(|| Error::usage("the file has no uint8 input of that name"))?;
    let (perm, from): (Option<Vec<i64>>, [usize; 4]) = match (last, nhwc) {
        (false, true) => (Some(vec![0, 2, 3, 1]), [0, 3, 1, 2]),
        (true, false) => (Some(vec![0, 3, 1, 2]), [0, 2, 3, 1]),
        _ => (None, [0, 1, 2, 3]),
    };
    let shape = match &g.value(v).ty {
        Type::Tensor { shape: Some(shape), .. } if shape.len() == 4 => shape.clone(),
        _ => return Err(Error::usage("it is no batch of images")),
    };
    let bytes = g.fresh_name(&format!("{name}_bytes"));
    g.rename_value(v, &bytes);
    let real = g.add_value(name);
    g.value_mut(real).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(from.map(|i| shape[i].clone()).to_vec()) };
    g.inputs.iter_mut().filter(|x| **x == v).for_each(|x| *x = real);
    let mut steps: Vec<(Node, Option<Tensor>)> = Vec::new();
    for (op, numbers) in [(Op::Mul, std), (Op::Add, mean), (Op::Mul, vec![scale])] {
        let dims = if numbers.len() == 1 { vec![] } else { [vec![numbers.len()], if last { vec![] } else { vec![1, 1] }].concat() };
        steps.push((Node::new(op, ""), Some(Tensor::of_f32(&dims, numbers))));
    }
    steps.push((Node::new(Op::Round, ""), None));
    steps.extend([(Op::Max, 0.0), (Op::Min, 255.0)].map(|(op, bound)| (Node::new(op, ""), Some(Tensor::scalar(bound)))));
    steps.extend(perm.map(|perm| (Node::new(Op::Transpose, "").with("perm", perm), None)));
    let mut y = real;
    for (at, (mut node, constant)) in steps.into_iter().enumerate() {
        node.name = format!("{name}_undone_{at}");
        let constant = constant.map(|t| g.add_constant(&format!("{name}_undone"), t));
        let next = g.add_value(&node.name);
        g.insert_node(at, node, &std::iter::once(Some(y)).chain(constant.map(Some)).collect::<Vec<_>>(), &[Some(next)]);
        y = next;
    }
    let at = g.value(y).producer().map_or(0, |(node, _)| g.position(node) + 1);
    g.insert_node(at, Node::new(Op::Cast, format!("{name}_bytes")).with("to", DType::U8.onnx() as i64), &[Some(y)], &[Some(v)]);
    Ok(())
}

fn real(model: &mut Model, name: &str, text: &str) -> Result<()> {
    let g = &mut model.graph;
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| Error::usage(format!("is no JSON: {e}")))?;
    let broken = || Error::usage("says no dtype, scale and zero_point");
    let dtype = json["dtype"].as_str().and_then(DType::of_name).ok_or_else(broken)?;
    let scale = json["scale"].as_f64().ok_or_else(broken)? as f32;
    let zero = json["zero_point"].as_i64().and_then(|z| i32::try_from(z).ok()).ok_or_else(broken)?;
    let v = g.find_value(name).filter(|v| g.value(*v).dtype() == Some(dtype));
    let v = v.ok_or_else(|| Error::usage(format!("the file has no {dtype} input or output of that name")))?;
    let (at_input, at_output) = (g.inputs.iter().position(|x| *x == v), g.outputs.iter().position(|x| *x == v));
    let codes = g.fresh_name(&format!("{name}_codes"));
    g.rename_value(v, &codes);
    let shape = g.value(v).ty.clone();
    let real = g.add_value(name);
    g.value_mut(real).ty = match shape {
        Type::Tensor { shape, .. } => Type::Tensor { dtype: Some(DType::F32), shape },
        other => other,
    };
    let scale = g.add_constant(&format!("{name}_scale"), Tensor::scalar(scale));
    let zero = g.add_constant(&format!("{name}_zero_point"), Tensor::new(dtype, vec![], pack::pack(&[zero], dtype).into())?);
    let ends = |a: ValueId| [Some(a), Some(scale), Some(zero)];
    if let Some(i) = at_input {
        g.inputs[i] = real;
        g.insert_node(0, Node::new(Op::QuantizeLinear, format!("{name}_QuantizeLinear")), &ends(real), &[Some(v)]);
    } else if let Some(i) = at_output {
        g.outputs[i] = real;
        g.add_node(Node::new(Op::DequantizeLinear, format!("{name}_DequantizeLinear")), &ends(v), &[Some(real)]);
    } else {
        return Err(Error::usage("it is neither input nor output"));
    }
    Ok(())
}
