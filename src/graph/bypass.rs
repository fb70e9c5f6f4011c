//! The float graph behind a placed one.

use super::{Graph, Model, NodeId, Op};

impl Graph {
    /// Takes a FakeQuant node out: its readers read what it read; a graph output keeps its name and takes the place of the value before it. All other ids stay.
    pub fn bypass(&mut self, id: NodeId) {
        let (Some(x), Some(y)) = (self.node(id).input(0), self.node(id).output(0)) else { return };
        self.remove_node(id);
        self.replace_uses(y, x);
        if self.is_output(y) {
            match self.value(x).producer() {
                // The producer makes the output itself; others that read the inner value follow.
                Some((producer, slot)) if !self.is_output(x) => {
                    self.replace_uses(x, y);
                    self.set_output(producer, slot as usize, y);
                    self.remove_value(x);
                }
                _ => {
                    self.add_node(super::Node::new(Op::Identity, ""), &[Some(x)], &[Some(y)]);
                }
            }
        } else {
            self.remove_value(y);
        }
    }
}

impl Model {
    /// This model without its FakeQuant nodes, in the outermost graph and in bodies.
    pub fn without_fake_quant(&self) -> Model {
        let mut model = self.clone();
        model.codes.clear();
        strip(&mut model.graph);
        model
    }
}

fn strip(graph: &mut Graph) {
    for id in graph.order().to_vec() {
        if graph.node(id).op == Op::FakeQuant {
            graph.bypass(id);
        } else {
            graph.node_mut(id).bodies_mut().for_each(strip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Node, Value};
    use super::*;
    use crate::quant::Scheme;

    #[test]
    fn a_stripped_graph_keeps_its_interface_and_ids() {
        let mut m = Model::default();
        let q = m.quantizers.add("x", Scheme::int(8, false));
        let g = &mut m.graph;
        let [x, xq, h, y] = ["x", "xq", "h", "y"].map(|n| g.add_value(n));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::fake_quant(q, "f0"), &[Some(x)], &[Some(xq)]);
        let relu = g.add_node(Node::new(Op::Relu, "relu"), &[Some(xq)], &[Some(h)]);
        g.add_node(Node::fake_quant(q, "f1"), &[Some(h)], &[Some(y)]);
        let float = m.without_fake_quant();
        let g = &float.graph;
        assert_eq!(g.order(), [relu]);
        assert_eq!((g.node(relu).input(0), g.node(relu).output(0)), (Some(x), Some(y)));
        let name = |v: &Value| v.name.clone();
        assert_eq!(name(g.value(g.outputs[0])), "y");
    }

    #[test]
    fn an_input_that_is_also_an_output_is_passed_on() {
        let mut m = Model::default();
        let q = m.quantizers.add("x", Scheme::int(8, false));
        let g = &mut m.graph;
        let [x, y] = ["x", "y"].map(|n| g.add_value(n));
        g.inputs.push(x);
        g.outputs.push(y);
        g.add_node(Node::fake_quant(q, "f0"), &[Some(x)], &[Some(y)]);
        let float = m.without_fake_quant();
        let (_, n) = float.graph.nodes().next().unwrap();
        assert_eq!((n.op, n.input(0), n.output(0)), (Op::Identity, Some(x), Some(y)));
    }
}
