//! Keeps float weights float in runtimes that quantize them unasked. Where such a runtime finds a layer whose input comes from DequantizeLinear, whose
//! result goes to QuantizeLinear and whose weight is float, it makes the weight int8 with one scale a tensor, whoever chose to keep it.
//! A Sum of one operand before the layer hides it, and is that operand: exact.
//! Source: ONNX Runtime 1.31, optimizer/qdq_transformer/weight_bias_quantization.cc, for what is recognised; measured, docs/performance.md.
//! Needs: a model in ONNX's own ops, and the target's list of such layers (`shield`). Declines: nothing.

use crate::graph::{Graph, Model, Node, NodeId, Op, ValueId};
use crate::note::Notes;

/// Puts a Sum before every layer of `ops` that would be taken for a quantized one.
pub fn shield(model: &mut Model, ops: &[Op]) -> Notes {
    let mut notes = Notes::of("lower");
    for id in model.graph.order().to_vec() {
        let g = &model.graph;
        let node = g.node(id);
        let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { continue };
        let maker = |v: ValueId| g.value(v).producer().map(|(n, _)| g.node(n).op);
        if !ops.contains(&node.op) || g.constant(w).is_none() || maker(x) != Some(Op::DequantizeLinear) || !is_quantized(g, id) {
            continue;
        }
        let g = &mut model.graph;
        let name = g.node(id).name.clone();
        let hidden = g.add_value(&format!("{name}_shielded"));
        g.value_mut(hidden).ty = g.value(x).ty.clone();
        g.insert_node(g.position(id), Node::new(Op::Sum, format!("{name}_Sum")), &[Some(x)], &[Some(hidden)]);
        g.set_input(id, 0, Some(hidden));
        notes.changed(&name, "its weight stays float: a Sum of one operand before it keeps the runtime from quantizing it");
    }
    notes
}

/// Whether the only reader of a node's result is QuantizeLinear, Relu and Clip passed over.
fn is_quantized(g: &Graph, mut id: NodeId) -> bool {
    loop {
        let Some(y) = g.node(id).output(0) else { return false };
        let ([port], false) = (g.value(y).uses(), g.is_output(y)) else { return false };
        match g.get_node(port.node).map(|n| n.op) {
            Some(Op::QuantizeLinear) => return true,
            Some(Op::Relu | Op::Clip) => id = port.node,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    /// x → Q → DQ → Conv(w) → Relu → Q → DQ → y; the weight a float constant, or behind a DequantizeLinear.
    fn layer(float: bool) -> (Model, NodeId) {
        let mut m = Model::default();
        let g = &mut m.graph;
        let [x, q, d, c, r, e, y, wd] = ["x", "q", "d", "c", "r", "e", "y", "wd"].map(|n| g.add_value(n));
        let w = g.add_constant("w", Tensor::of_f32(&[1, 1, 1, 1], vec![2.0]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::QuantizeLinear, "q"), &[Some(x)], &[Some(q)]);
        g.add_node(Node::new(Op::DequantizeLinear, "d"), &[Some(q)], &[Some(d)]);
        g.add_node(Node::new(Op::DequantizeLinear, "wd"), &[Some(w)], &[Some(wd)]);
        let conv = g.add_node(Node::new(Op::Conv, "conv"), &[Some(d), Some(if float { w } else { wd })], &[Some(c)]);
        g.add_node(Node::new(Op::Relu, "relu"), &[Some(c)], &[Some(r)]);
        g.add_node(Node::new(Op::QuantizeLinear, "e"), &[Some(r)], &[Some(e)]);
        g.add_node(Node::new(Op::DequantizeLinear, "y"), &[Some(e)], &[Some(y)]);
        (m, conv)
    }

    #[test]
    fn a_float_weight_between_codes_is_hidden_and_nothing_else_is() {
        let before = |m: &Model, conv: NodeId| m.graph.node(m.graph.value(m.graph.node(conv).input(0).unwrap()).producer().unwrap().0).op;
        for (float, ops, want) in [(true, &[Op::Conv][..], Op::Sum), (false, &[Op::Conv], Op::DequantizeLinear), (true, &[Op::Gemm], Op::DequantizeLinear)] {
            let (mut m, conv) = layer(float);
            shield(&mut m, ops);
            assert_eq!(before(&m, conv), want, "{float} {ops:?}");
        }
        // Read by somebody else as well, the result is no quantized layer's.
        let (mut m, conv) = layer(true);
        let c = m.graph.node(conv).output(0).unwrap();
        m.graph.outputs.push(c);
        shield(&mut m, &[Op::Conv]);
        assert_eq!(before(&m, conv), Op::DequantizeLinear);
    }
}
