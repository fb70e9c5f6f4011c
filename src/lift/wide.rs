//! Models whose tensors are float16 or bfloat16, as float32 models that compute the same: each result is rounded to the type it had, by a Narrow behind
//! the node that makes it. So do CPUs and accelerators: operands are widened, products summed in float32, results stored narrow.
//! Inputs and outputs become float32; constants are exact in it. Source: ONNX operator Cast.

use crate::graph::{AttrValue, Constant, Fact, Flow, Graph, Inferred, InputShapes, Model, Node, NodeId, Op, Port, ValueId, eval, infer, infer_body};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// Rewrites the graph and its bodies; a model without such tensors is left as it is.
pub fn wide_floats(model: &mut Model) {
    let inferred = infer(model, &InputShapes::new());
    widen(&mut model.graph, &inferred, &BTreeMap::new(), true);
}

fn is_half(dtype: Option<DType>) -> bool {
    matches!(dtype, Some(DType::F16 | DType::BF16))
}

fn widen(g: &mut Graph, inferred: &Inferred, outer: &BTreeMap<String, Fact>, outermost: bool) {
    let half = |v: ValueId| inferred.get(v).dtype.filter(|t| is_half(Some(*t)));
    // A scale that its reader takes as float32 keeps its type: `lift` reads it so.
    let to_float = |g: &Graph, p: &Port| g.get_node(p.node).is_some_and(|n| n.op == Op::Cast && n.int("to") == Some(DType::F32.onnx() as i64));
    let left: Vec<ValueId> = g.values().filter(|(_, v)| v.constant.is_some() && v.uses().iter().all(|p| to_float(g, p))).map(|(v, _)| v).collect();
    if outermost {
        for v in g.inputs.clone() {
            if let Some(to) = half(v) {
                let rounded = g.add_value(&format!("{}_rounded", g.value(v).name));
                g.value_mut(rounded).ty = g.value(v).ty.clone();
                g.value_mut(rounded).set_dtype(DType::F32);
                g.replace_uses(v, rounded);
                g.insert_node(0, narrow(to, ""), &[Some(v)], &[Some(rounded)]);
            }
        }
    }
    for id in g.order().to_vec() {
        bodies(g, id, inferred, outer);
        let Some(n) = g.get_node(id) else { continue };
        let (op, y, x) = (n.op, n.output(0), n.input(0));
        let made: Vec<(usize, DType)> = n.outputs().iter().enumerate().filter_map(|(slot, v)| Some((slot, half((*v)?)?))).collect();
        match (op, y, made.first()) {
            (Op::Constant, Some(y), Some(_)) => {
                if let Some(t) = eval(g.node(id), &[]).and_then(|t| t.into_iter().next()) {
                    g.remove_node(id);
                    g.value_mut(y).constant = Some(Constant::from(float32(&t)));
                }
            }
            (Op::Cast, Some(_), to) => cast(g, id, x.filter(|x| !left.contains(x)), to.map(|t| t.1), inferred),
            (_, _, Some(_)) => {
                attributes(g, id);
                if !matches!(op.flow(), Flow::Move | Flow::Control) {
                    made.into_iter().for_each(|(slot, to)| behind(g, id, slot, to));
                }
            }
            _ => {}
        }
    }
    let all: Vec<ValueId> = g.values().map(|(v, _)| v).filter(|v| half(*v).is_some() && !left.contains(v)).collect();
    for v in all {
        if let Some(c) = &mut g.value_mut(v).constant {
            c.tensor = float32(&c.tensor);
        }
        g.value_mut(v).set_dtype(DType::F32);
    }
}

fn bodies(g: &mut Graph, id: NodeId, inferred: &Inferred, outer: &BTreeMap<String, Fact>) {
    if g.get_node(id).is_none_or(|n| n.bodies().next().is_none()) {
        return;
    }
    let mut scope = outer.clone();
    for v in g.node(id).captures() {
        scope.insert(g.value(*v).name.clone(), inferred.get(*v).clone());
    }
    for body in g.node_mut(id).bodies_mut() {
        let inner = infer_body(body, &scope);
        widen(body, &inner, &scope, false);
    }
    g.refresh_captures(id);
}

/// A Cast to a narrow type rounds; one from it does nothing.
fn cast(g: &mut Graph, id: NodeId, x: Option<ValueId>, to: Option<DType>, inferred: &Inferred) {
    let Some(x) = x else { return };
    let from = inferred.get(x).dtype;
    match to {
        Some(to) if from == Some(DType::F32) || is_half(from) => {
            let node = if from == Some(to) { Node::new(Op::Identity, "") } else { narrow(to, "") };
            become_like(g, id, node);
        }
        Some(to) => {
            g.node_mut(id).set_attr("to", DType::F32.onnx() as i64);
            behind(g, id, 0, to);
        }
        None if is_half(from) && g.node(id).int("to") == Some(DType::F32.onnx() as i64) => become_like(g, id, Node::new(Op::Identity, "")),
        None => {}
    }
}

fn become_like(g: &mut Graph, id: NodeId, like: Node) {
    let n = g.node_mut(id);
    (n.op, n.op_type, n.domain, n.attrs) = (like.op, like.op_type, like.domain, like.attrs);
}

fn narrow(to: DType, name: &str) -> Node {
    Node::new(Op::Narrow, name).with("to", to.onnx() as i64)
}

/// Attributes that say a narrow type.
fn attributes(g: &mut Graph, id: NodeId) {
    let n = g.node_mut(id);
    match (n.op, n.attr("value")) {
        (Op::ConstantOfShape, Some(AttrValue::Tensor(c))) => {
            let wide = float32(&c.tensor);
            n.set_attr("value", wide);
        }
        _ if n.int("dtype").is_some() => n.set_attr("dtype", DType::F32.onnx() as i64),
        _ => {}
    }
}

/// Puts a Narrow behind a node, which makes the value that others know.
fn behind(g: &mut Graph, id: NodeId, slot: usize, to: DType) {
    let Some(y) = g.node(id).output(slot) else { return };
    let x = g.add_value(&format!("{}_float32", g.value(y).name));
    g.value_mut(x).ty = g.value(y).ty.clone();
    g.value_mut(x).set_dtype(DType::F32);
    g.set_output(id, slot, x);
    let name = g.node(id).name.clone();
    g.insert_node(g.position(id) + 1, narrow(to, &name), &[Some(x)], &[Some(y)]);
}

fn float32(t: &Tensor) -> Tensor {
    match t.to_f32() {
        Ok(values) => Tensor::of_f32(t.shape(), values.into_owned()),
        Err(_) => t.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::sample::{model, node, ops};

    #[test]
    fn each_result_is_rounded_to_the_type_it_had() {
        let nodes: Vec<(Node, &[&str], &[&str])> = vec![
            (node(Op::Cast).with("to", DType::BF16.onnx() as i64), &["x"], &["h"]),
            (node(Op::Exp), &["h"], &["e"]),
            (node(Op::Reshape), &["e", "s"], &["r"]),
            (node(Op::Mul), &["r", "k"], &["m"]),
            (node(Op::Cast).with("to", DType::F32.onnx() as i64), &["m"], &["y"]),
        ];
        let k = Tensor::of(DType::BF16, &[], vec![half::bf16::from_f32(2.5).to_bits()]);
        let shape = Tensor::of_i64(&[1], vec![2]);
        let mut m = model(13, &[("x", DType::F32, &[2])], &[("k", k), ("s", shape)], nodes, &["y"]);
        wide_floats(&mut m);
        assert_eq!(ops(&m), [Op::Narrow, Op::Exp, Op::Narrow, Op::Reshape, Op::Mul, Op::Narrow, Op::Identity]);
        let k = m.graph.constant(m.graph.find_value("k").unwrap()).unwrap();
        assert_eq!((k.tensor.dtype(), k.tensor.to_f32().unwrap()[0]), (DType::F32, 2.5));
        assert!(infer(&m, &InputShapes::new()).get(m.graph.find_value("e").unwrap()).dtype == Some(DType::F32));
    }

    #[test]
    fn narrow_inputs_become_float32_and_are_rounded() {
        let mut m = model(13, &[("x", DType::F16, &[2])], &[], vec![(node(Op::Relu), &["x"], &["y"])], &["y"]);
        wide_floats(&mut m);
        assert_eq!(ops(&m), [Op::Narrow, Op::Relu, Op::Narrow]);
        assert_eq!(m.graph.value(m.graph.inputs[0]).dtype(), Some(DType::F32));
        let mut plain = model(13, &[("x", DType::F32, &[2])], &[], vec![(node(Op::Relu), &["x"], &["y"])], &["y"]);
        let before = plain.clone();
        wide_floats(&mut plain);
        assert!(plain == before);
    }
}
