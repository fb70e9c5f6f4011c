//! Integer inputs and outputs: the QuantizeLinear behind an input and the DequantizeLinear before an output fall away, and codes go in and come out.
//! Names stay. The file's metadata says of each such input and output, under `requant.io.NAME`, its type, scale and zero point, as JSON.
//! Needs: a model in ONNX's own ops, with one scale for the whole tensor. Declines: what is read or made as real numbers too, or in another type.

use super::coded::{Coded, numbers, take_out};
use crate::graph::{Graph, Model, Node, Op, Port, ValueId};
use crate::note::Notes;
use crate::tensor::DType;

/// Key of the metadata about an input or output, without its name.
const KEY: &str = "requant.io.";

/// Makes codes of type `dtype` the interface, wherever inputs and outputs are quantized to that type.
pub fn integer_interface(model: &mut Model, dtype: DType) -> Notes {
    let mut notes = Notes::of("lower");
    let g = &model.graph;
    let real = |g: &Graph, v: &ValueId| g.value(*v).dtype() == Some(DType::F32) && g.value(*v).constant.is_none();
    let ins: Vec<ValueId> = g.inputs.iter().filter(|v| real(g, v)).copied().collect();
    let outs: Vec<ValueId> = g.outputs.iter().filter(|v| real(g, v)).copied().collect();
    let named = ins.into_iter().map(|v| (v, true)).chain(outs.into_iter().map(|v| (v, false)));
    for (v, is_input) in named {
        let g = &mut model.graph;
        let name = g.value(v).name.clone();
        let coded = if is_input { input(g, v, dtype) } else { output(g, v, dtype) };
        match coded {
            Ok((scale, zero)) => {
                let said = format!("{{\"dtype\": \"{}\", \"scale\": {scale:?}, \"zero_point\": {zero}}}", dtype.name());
                model.set_metadata(&format!("{KEY}{name}"), &said);
                notes.changed(&name, format!("is {} now: (code − {zero}) · {scale:?}", dtype.name()));
            }
            Err(why) => notes.fell_back(&name, format!("stays float32: {why}")),
        }
    }
    notes
}

/// One scale and zero point of the type asked for.
fn plain(g: &Graph, coded: &Coded, dtype: DType) -> Result<(f32, i32), String> {
    let scale = g.constant(coded.scale).and_then(|c| c.tensor.to_f32().ok()?.first().copied());
    let zero = coded.zero.and_then(|z| g.constant(z)).and_then(|c| numbers(&c.tensor).first().copied());
    match (scale, zero, coded.axis) {
        (Some(scale), Some(zero), None) if coded.dtype == dtype => Ok((scale, zero)),
        (Some(_), Some(_), None) => Err(format!("its codes are {}", coded.dtype)),
        _ => Err("its codes have more than one scale".into()),
    }
}

fn input(g: &mut Graph, x: ValueId, dtype: DType) -> Result<(f32, i32), String> {
    let reads = g.value(x).uses();
    let quantizes = |p: &Port| p.slot == 0 && g.node(p.node).op == Op::QuantizeLinear;
    let [Port { node, .. }] = reads[..] else { return Err(format!("{} nodes read it", reads.len())) };
    if !reads.iter().all(quantizes) || g.is_output(x) {
        return Err(format!("{} reads it as real numbers", g.node(node).op_type));
    }
    let codes = g.node(node).output(0).ok_or("nothing is made of it")?;
    let coded = Coded::of(g, g.node(node), codes).ok_or("its scale is no constant")?;
    let params = plain(g, &coded, dtype)?;
    if g.is_output(codes) {
        return Err("its codes are an output".into());
    }
    take_out(g, &[node], &[codes, x]);
    g.replace_uses(codes, x);
    g.remove_value(codes);
    g.value_mut(x).set_dtype(dtype);
    Ok(params)
}

fn output(g: &mut Graph, y: ValueId, dtype: DType) -> Result<(f32, i32), String> {
    let coded = Coded::read(g, y).ok_or("it is made as real numbers")?;
    let params = plain(g, &coded, dtype)?;
    if !g.value(y).uses().is_empty() {
        return Err("it is read as real numbers too".into());
    }
    let (node, _) = g.value(y).producer().ok_or("nobody makes it")?;
    let at = g.position(node);
    take_out(g, &[node], &[coded.codes, y]);
    match g.value(coded.codes).producer() {
        Some((maker, slot)) if !g.is_output(coded.codes) => {
            g.replace_uses(coded.codes, y);
            g.set_output(maker, slot as usize, y);
            g.remove_value(coded.codes);
        }
        // Codes that are an input or another output already.
        _ => drop(g.insert_node(at, Node::new(Op::Identity, format!("{}_Identity", g.value(y).name)), &[Some(coded.codes)], &[Some(y)])),
    }
    g.value_mut(y).set_dtype(dtype);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Type};
    use crate::lift::{lift, real_interface};
    use crate::tensor::Tensor;

    /// x → Q → DQ → Relu → Q → DQ → y; with `seen`, a Neg reads x as well.
    fn model(seen: bool) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, a, b, c, d, y, z] = ["x", "a", "b", "c", "d", "y", "z"].map(|n| g.add_value(n));
        for v in [x, y] {
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(2)]) };
        }
        let [s, t] = [("s", 0.1), ("t", 0.2)].map(|(n, s)| g.add_constant(n, Tensor::scalar(s)));
        let zero = g.add_constant("zero", Tensor::of(DType::U8, &[], vec![3u8]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::QuantizeLinear, "q"), &[Some(x), Some(s), Some(zero)], &[Some(a)]);
        g.add_node(Node::new(Op::DequantizeLinear, "d"), &[Some(a), Some(s), Some(zero)], &[Some(b)]);
        g.add_node(Node::new(Op::Relu, "r"), &[Some(b)], &[Some(c)]);
        g.add_node(Node::new(Op::QuantizeLinear, "e"), &[Some(c), Some(t), Some(zero)], &[Some(d)]);
        g.add_node(Node::new(Op::DequantizeLinear, "f"), &[Some(d), Some(t), Some(zero)], &[Some(y)]);
        if seen {
            g.add_node(Node::new(Op::Neg, "n"), &[Some(x)], &[Some(z)]);
            m.graph.outputs.push(z);
        }
        m
    }

    fn ops(m: &Model) -> Vec<Op> {
        m.graph.nodes().map(|(_, n)| n.op).collect()
    }

    #[test]
    fn the_pairs_at_the_interface_fall_away_and_the_file_says_what_codes_mean() {
        let mut m = model(false);
        let notes = integer_interface(&mut m, DType::U8);
        assert_eq!(ops(&m), [Op::DequantizeLinear, Op::Relu, Op::QuantizeLinear]);
        let types = [m.graph.inputs[0], m.graph.outputs[0]].map(|v| (m.graph.value(v).name.clone(), m.graph.value(v).dtype()));
        assert_eq!(types, [("x".to_string(), Some(DType::U8)), ("y".to_string(), Some(DType::U8))]);
        assert_eq!(m.metadata[0], ("requant.io.x".to_string(), "{\"dtype\": \"uint8\", \"scale\": 0.1, \"zero_point\": 3}".to_string()));
        assert_eq!(notes.list().len(), 2);

        let wanted = {
            let mut plain = model(false);
            lift(&mut plain).unwrap();
            plain
        };
        real_interface(&mut m).unwrap();
        let types = [m.graph.inputs[0], m.graph.outputs[0]].map(|v| (m.graph.value(v).name.clone(), m.graph.value(v).dtype()));
        assert_eq!(types, [("x".to_string(), Some(DType::F32)), ("y".to_string(), Some(DType::F32))]);
        lift(&mut m).unwrap();
        assert_eq!(ops(&m), ops(&wanted));
        let mut params: Vec<_> = m.quantizers.ids().map(|q| m.quantizers[q].params.clone()).collect();
        params.dedup();
        assert_eq!(params, wanted.quantizers.ids().map(|q| wanted.quantizers[q].params.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_read_as_real_numbers_stays() {
        let mut m = model(true);
        let notes = integer_interface(&mut m, DType::U8);
        assert!(notes.list().iter().any(|n| n.about == "x" && n.text.contains("2 nodes read it")), "{:?}", notes.list());
        assert_eq!(m.graph.value(m.graph.inputs[0]).dtype(), Some(DType::F32));
        let notes = integer_interface(&mut model(false), DType::I8);
        assert!(notes.list().iter().all(|n| n.text.contains("its codes are uint8")), "{:?}", notes.list());
    }
}
