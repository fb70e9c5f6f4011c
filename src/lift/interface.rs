//! Inputs and outputs that are codes, by what the file's metadata says of them, as real numbers again: for whoever compares the file with a float one.

use crate::error::{At, Error, Result};
use crate::graph::{Model, Node, Op, Type, ValueId};
use crate::tensor::{DType, Tensor, pack};

/// Key of the metadata about an input or output, before its name.
const KEY: &str = "requant.io.";

/// Puts QuantizeLinear behind every input, and DequantizeLinear before every output, of which the metadata says scale and zero point.
///
/// # Errors
/// Metadata that cannot be read, or that names what the file does not have.
pub fn real_interface(model: &mut Model) -> Result<()> {
    let said: Vec<(String, String)> = model.metadata.iter().filter_map(|(k, v)| Some((k.strip_prefix(KEY)?.to_string(), v.clone()))).collect();
    for (name, text) in said {
        real(model, &name, &text).at(|| format!("metadata {KEY}{name}"))?;
    }
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
