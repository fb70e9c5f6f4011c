//! One graph within another: behind it, or in the place of an If whose condition is known.

use super::infer::Inferred;
use super::{AttrValue, Graph, Model, Node, NodeId, Op, ValueId};
use std::collections::BTreeMap;

/// Where the values and nodes of a graph went.
struct Grafted {
    values: BTreeMap<ValueId, ValueId>,
    nodes: BTreeMap<NodeId, NodeId>,
}

impl Graph {
    /// Adds the nodes of a graph whose inputs are values of this one, by name, and its outputs to the outputs of this one. The name of a constant or of
    /// something between that is taken gets a number behind it.
    ///
    /// # Errors
    /// The name of an input that is no value here.
    pub fn append(&mut self, other: &Graph) -> Result<(), String> {
        let read = |v: &ValueId| self.find_value(&other.value(*v).name).map(|here| (*v, here)).ok_or_else(|| other.value(*v).name.clone());
        let read = other.inputs.iter().map(read).collect::<Result<_, _>>()?;
        let grafted = self.graft(self.order().len(), other, read);
        self.outputs.extend(other.outputs.iter().map(|v| grafted.values[v]));
        Ok(())
    }

    /// Inserts the nodes of a graph before position `at`. Values in `read` are those of this graph; others are added.
    fn graft(&mut self, at: usize, other: &Graph, read: BTreeMap<ValueId, ValueId>) -> Grafted {
        let mut values = read;
        for (v, value) in other.values() {
            values.entry(v).or_insert_with(|| match &value.constant {
                Some(c) => self.add_constant(&value.name, c.clone()),
                None => {
                    let new = self.add_value(&value.name);
                    self.value_mut(new).ty = value.ty.clone();
                    new
                }
            });
        }
        let renamed: Vec<(&str, String)> =
            values.iter().map(|(old, new)| (other.value(*old).name.as_str(), self.value(*new).name.clone())).filter(|(old, new)| old != new).collect();
        let mut nodes = BTreeMap::new();
        for (i, (id, node)) in other.nodes().enumerate() {
            let mut node = node.clone();
            for (old, new) in &renamed {
                node.bodies_mut().for_each(|body| body.rename_captured(old, new));
            }
            let of = |list: &[Option<ValueId>]| list.iter().map(|v| v.map(|v| values[&v])).collect::<Vec<_>>();
            let (inputs, outputs) = (of(node.inputs()), of(node.outputs()));
            nodes.insert(id, self.insert_node(at + i, node, &inputs, &outputs));
        }
        Grafted { values, nodes }
    }

    /// Puts a body of a node without inputs of its own in the node's place; each output of the node is handed on by an Identity.
    fn inline(&mut self, id: NodeId, body: &Graph) -> Grafted {
        let at = self.position(id);
        let node = self.remove_node(id);
        let around = body.values().filter(|(v, _)| body.is_outer(*v));
        let read = around.filter_map(|(v, value)| Some((v, self.find_value(&value.name)?))).collect();
        let grafted = self.graft(at, body, read);
        let behind = at + grafted.nodes.len();
        for (made, output) in body.outputs.iter().zip(node.outputs()) {
            if output.is_some() {
                self.insert_node(behind, Node::new(Op::Identity, node.name.clone()), &[Some(grafted.values[made])], &[*output]);
            }
        }
        grafted
    }

    /// Puts the branch that is always taken in the place of each If whose condition is known. For each, its id, the branch, and where its nodes went.
    pub(super) fn inline_taken(&mut self, inferred: &Inferred) -> Vec<(NodeId, &'static str, BTreeMap<NodeId, NodeId>)> {
        let mut inlined = Vec::new();
        for id in self.order().to_vec() {
            let node = self.node(id);
            let Some(branch) = inferred.taken_branch(node) else { continue };
            let Some(AttrValue::Graph(body)) = node.attr(branch).cloned() else { continue };
            inlined.push((id, branch, self.inline(id, &body).nodes));
        }
        inlined
    }
}

impl Model {
    /// The same of the outermost graph; codes that a branch stores move with it. Returns how many Ifs went; what was inferred says nothing of the new
    /// nodes.
    pub fn inline_branches(&mut self, inferred: &Inferred) -> usize {
        let inlined = self.graph.inline_taken(inferred);
        for (id, taken, nodes) in &inlined {
            for (mut site, codes) in std::mem::take(&mut self.codes) {
                match site.path.first() {
                    Some((holder, branch, _)) if holder == id => {
                        if **branch != **taken {
                            continue;
                        }
                        site.path.remove(0);
                        let first = site.path.first_mut().map_or(&mut site.node, |(holder, _, _)| holder);
                        *first = nodes[first];
                    }
                    _ => {}
                }
                self.codes.insert(site, codes);
            }
        }
        inlined.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{InputShapes, Site, Type, infer};
    use crate::quant::QuantizerId;
    use crate::tensor::{DType, Tensor};

    fn names(g: &Graph, list: &[ValueId]) -> Vec<String> {
        list.iter().map(|v| g.value(*v).name.clone()).collect()
    }

    #[test]
    fn a_graph_reads_what_the_one_before_it_makes() {
        let graph = |x: &str, y: &str, n: f32| {
            let mut g = Graph::default();
            let [x, y] = [x, y].map(|n| g.add_value(n));
            let c = g.add_constant("c", Tensor::scalar(n));
            (g.inputs, g.outputs) = (vec![x], vec![y]);
            g.add_node(Node::new(Op::Add, "n"), &[Some(x), Some(c)], &[Some(y)]);
            g
        };
        let mut g = graph("x", "y", 1.0);
        g.append(&graph("y", "z", 2.0)).unwrap();
        assert_eq!((names(&g, &g.inputs), names(&g, &g.outputs)), (vec!["x".to_string()], vec!["y".to_string(), "z".to_string()]));
        let (_, last) = g.nodes().last().unwrap();
        assert_eq!(names(&g, &[last.input(0).unwrap(), last.input(1).unwrap()]), ["y", "c_1"]);
        assert_eq!(g.constant(last.input(1).unwrap()).unwrap().tensor.to_f32().unwrap()[0], 2.0);
        assert_eq!(g.clone().append(&graph("w", "v", 0.0)), Err("w".to_string()));
    }

    /// If(yes) { t = x + c; y = If(yes) { t } else { x } } else { x }, where `c` and `t` are taken outside; in the inner branch stands a FakeQuant.
    fn nested(condition: bool) -> Model {
        let mut inner = Graph::default();
        let t = inner.add_value("t");
        let q = inner.add_value("q");
        inner.add_node(Node::new(Op::FakeQuant, "quantize").with("quantizer", 0i64), &[Some(t)], &[Some(q)]);
        inner.outputs.push(q);
        let mut other = Graph::default();
        let x = other.add_value("x");
        other.outputs.push(x);
        let mut then = Graph::default();
        let [x, t, y, yes] = ["x", "t", "y_", "yes"].map(|n| then.add_value(n));
        let c = then.add_constant("c", Tensor::scalar(3.0));
        then.add_node(Node::new(Op::Add, "add"), &[Some(x), Some(c)], &[Some(t)]);
        then.add_node(Node::new(Op::If, "inner").with("then_branch", inner).with("else_branch", other.clone()), &[Some(yes)], &[Some(y)]);
        then.outputs.push(y);

        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let x = g.add_value("x");
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![]) };
        let yes = g.add_constant("yes", Tensor::of(DType::Bool, &[], vec![condition as u8]));
        let c = g.add_constant("c", Tensor::scalar(1.0));
        let [t, y] = ["t", "y"].map(|n| g.add_value(n));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::Mul, "mul"), &[Some(x), Some(c)], &[Some(t)]);
        let outer = g.add_node(Node::new(Op::If, "outer").with("then_branch", then).with("else_branch", other), &[Some(yes)], &[Some(y)]);
        let site = Site { path: vec![(outer, "then_branch".into(), 0), (NodeId(1), "then_branch".into(), 0)], node: NodeId(0), slot: 0 };
        m.codes.insert(site, crate::quant::Codes(Tensor::scalar(0.0)));
        m
    }

    #[test]
    fn branches_that_are_always_taken_stand_in_the_place_of_their_ifs() {
        let mut m = nested(true);
        for left in [1, 0] {
            let inferred = infer(&m, &InputShapes::new());
            assert_eq!(m.inline_branches(&inferred), 1);
            assert_eq!(m.graph.nodes().filter(|(_, n)| n.op == Op::If).count(), left);
        }
        let g = &m.graph;
        let ops: Vec<Op> = g.nodes().map(|(_, n)| n.op).collect();
        assert_eq!(ops, [Op::Mul, Op::Add, Op::FakeQuant, Op::Identity, Op::Identity]);
        let (quantize, node) = g.nodes().nth(2).unwrap();
        // The branch's own `t` is quantized, not the one outside.
        assert_eq!(names(g, &[node.input(0).unwrap()]), ["t_1"]);
        assert_eq!(m.codes.keys().collect::<Vec<_>>(), [&Site::of(quantize)]);
        assert_eq!(node.quantizer(), Some(QuantizerId(0)));
        assert_eq!(names(g, &g.outputs), ["y"]);

        let mut m = nested(false);
        let inferred = infer(&m, &InputShapes::new());
        assert_eq!(m.inline_branches(&inferred), 1);
        assert!(m.codes.is_empty());
        assert_eq!(m.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::Mul, Op::Identity]);
    }

    #[test]
    fn nodes_of_one_name_are_told_apart() {
        let mut g = Graph::default();
        for (i, name) in ["a", "a_1", "a", "", "a", ""].into_iter().enumerate() {
            let y = g.add_value(&format!("y{i}"));
            g.add_node(Node::new(Op::Constant, name), &[], &[Some(y)]);
        }
        g.name_nodes_apart();
        assert_eq!(g.nodes().map(|(_, n)| n.name.as_str()).collect::<Vec<_>>(), ["a", "a_1", "a_2", "", "a_3", ""]);
    }
}
