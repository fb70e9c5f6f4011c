//! One graph behind another.

use super::{Graph, ValueId};
use std::collections::BTreeMap;

impl Graph {
    /// Adds the nodes of a graph whose inputs are values of this one, by name, and its outputs to the outputs of this one. The name of a constant or of
    /// something between that is taken gets a number behind it.
    ///
    /// # Errors
    /// The name of an input that is no value here.
    pub fn append(&mut self, other: &Graph) -> Result<(), String> {
        let mut here: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for (v, value) in other.values() {
            let new = match &value.constant {
                Some(c) => self.add_constant(&value.name, c.clone()),
                None if other.inputs.contains(&v) => self.find_value(&value.name).ok_or_else(|| value.name.clone())?,
                None => {
                    let new = self.add_value(&value.name);
                    self.value_mut(new).ty = value.ty.clone();
                    new
                }
            };
            here.insert(v, new);
        }
        for (_, node) in other.nodes() {
            let of = |list: &[Option<ValueId>]| list.iter().map(|v| v.map(|v| here[&v])).collect::<Vec<_>>();
            self.add_node(node.clone(), &of(node.inputs()), &of(node.outputs()));
        }
        self.outputs.extend(other.outputs.iter().map(|v| here[v]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, Op};
    use crate::tensor::Tensor;

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
        let names = |list: &[ValueId]| list.iter().map(|v| g.value(*v).name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&g.inputs), names(&g.outputs)), (vec!["x".to_string()], vec!["y".to_string(), "z".to_string()]));
        let (_, last) = g.nodes().last().unwrap();
        assert_eq!(names(&[last.input(0).unwrap(), last.input(1).unwrap()]), ["y", "c_1"]);
        assert_eq!(g.constant(last.input(1).unwrap()).unwrap().tensor.to_f32().unwrap()[0], 2.0);
        assert_eq!(g.clone().append(&graph("w", "v", 0.0)), Err("w".to_string()));
    }
}
