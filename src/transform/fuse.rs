//! Writes functions that stand spelled out in several nodes (Gelu, LayerNorm, HardSwish …) as the one operator that ONNX has for them, where the target
//! has it too: what lies between their nodes is then never rounded. Raises the opset as far as those operators ask.
//! Exact up to the order of float sums. Needs nothing. Declines, with the reason: operators newer than the target reads, and models whose opset cannot
//! be raised; those stay spelled out.

use crate::error::Result;
use crate::graph::{self, Form, InputShapes, Model, Node, Op};
use crate::note::Notes;
use crate::onnx;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// The `fuse` step. `ops` are the operators that the target has, `limit` is the highest opset it reads.
pub fn fuse(model: &mut Model, ops: &[Op], limit: Option<i64>) -> Result<Notes> {
    let mut notes = Notes::of("fuse");
    let found = |m: &Model| graph::forms(&m.graph, &graph::infer(m, &InputShapes::new())).into_iter().filter(|f| ops.contains(&f.op)).collect::<Vec<_>>();
    let mut wanted: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for f in found(model) {
        wanted.entry(graph::since(f.op).unwrap_or(i64::MAX)).or_default().push(format!("{} ({})", model.graph.value(f.output).name, f.op.spelling().1));
    }
    // As far as model and target go along.
    let mut decline = |need: i64, forms: Vec<String>, why: String| {
        let more = if forms.len() > 1 { format!(" and {} more", forms.len() - 1) } else { String::new() };
        notes.declined(&forms[0], format!("it{more} stays spelled out: the operator is of opset {need}, {why}"));
    };
    let mut have = model.opset("").unwrap_or(1);
    for (need, forms) in wanted {
        if let Some(limit) = limit.filter(|l| *l < need) {
            decline(need, forms, format!("and the target reads at most opset {limit}"));
        } else if have < need {
            let mut raised = model.clone();
            match onnx::raise_opset(&mut raised, need) {
                Ok(_) => (*model, have) = (raised, need),
                Err(why) => decline(need, forms, format!("and {why}")),
            }
        }
    }
    let mut done: BTreeMap<&str, usize> = BTreeMap::new();
    for form in found(model).into_iter().filter(|f| graph::since(f.op).is_some_and(|since| since <= have)) {
        *done.entry(form.op.spelling().1).or_default() += 1;
        write(model, form);
    }
    if !done.is_empty() {
        let list: Vec<String> = done.iter().map(|(op, n)| format!("{n} {op}")).collect();
        notes.changed("", format!("written as one operator each: {}; opset {have}", list.join(", ")));
    }
    Ok(notes)
}

/// Puts one node in the place of a form's.
fn write(model: &mut Model, form: Form) {
    let g = &mut model.graph;
    let last = *form.nodes.last().expect("a form has nodes");
    let mut node = Node::new(form.op, g.node(last).name.clone());
    node.attrs = form.attrs;
    for id in &form.nodes {
        let n = g.node(*id);
        node.came_from.extend(if n.came_from.is_empty() { vec![n.name.clone()] } else { n.came_from.clone() });
    }
    let mut inputs = vec![Some(form.input)];
    for c in form.constants {
        // One axis, as these operators want it.
        let t = g.constant(c).expect("it is one").tensor.clone();
        let flat = if t.rank() == 1 {
            c
        } else {
            g.add_constant(&g.value(c).name.clone(), Tensor::new(t.dtype(), vec![t.len()], t.bytes().clone()).expect("as long"))
        };
        inputs.push(Some(flat));
    }
    let at = g.position(last) + 1 - form.nodes.len();
    for id in form.nodes.iter().rev() {
        let inner: Vec<_> = g.node(*id).outputs().iter().flatten().copied().filter(|v| *v != form.output).collect();
        g.remove_node(*id);
        inner.into_iter().for_each(|v| g.remove_value(v));
    }
    g.insert_node(at, node, &inputs, &[Some(form.output)]);
    g.remove_dead();
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, result, value};
    use super::*;
    use crate::graph::{Graph, ValueId};

    const WIDTH: usize = 6;

    /// A graph under construction; every value is [2, 3, 6], but for means.
    struct Build(Model);

    impl Build {
        fn g(&mut self) -> &mut Graph {
            &mut self.0.graph
        }
        fn number(&mut self, x: f64) -> ValueId {
            let name = self.g().fresh_name("n");
            self.g().add_constant(&name, Tensor::scalar(x as f32))
        }
        fn row(&mut self, shape: &[usize], seed: usize) -> ValueId {
            let name = self.g().fresh_name("row");
            self.g().add_constant(&name, Tensor::of_f32(shape, noise(shape, seed)))
        }
        fn op(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
            self.node(Node::new(op, ""), inputs)
        }
        fn node(&mut self, mut node: Node, inputs: &[ValueId]) -> ValueId {
            let name = self.g().fresh_name("v");
            let widths = inputs.iter().filter_map(|v| self.0.graph.value(*v).known_shape().filter(|s| s.len() == 3)).map(|s| s[2]);
            let last = if node.op == Op::ReduceMean { 1 } else { widths.max().expect("one operand flows") };
            let y = value(self.g(), &name, &[2, 3, last]);
            node.name = name;
            let inputs: Vec<_> = inputs.iter().map(|v| Some(*v)).collect();
            self.g().add_node(node, &inputs, &[Some(y)]);
            y
        }
        fn mean(&mut self, x: ValueId) -> ValueId {
            self.node(Node::new(Op::ReduceMean, "").with("axes", vec![-1i64]), &[x])
        }
    }

    /// x → what `build` makes of it.
    fn model(build: impl Fn(&mut Build, ValueId) -> ValueId) -> Model {
        let mut b = Build(Model { opsets: vec![(String::new(), 13)], ..Model::default() });
        let x = value(b.g(), "x", &[2, 3, WIDTH]);
        b.g().inputs.push(x);
        let y = build(&mut b, x);
        b.g().outputs.push(y);
        b.0
    }

    const ALL: &[Op] = &[Op::Gelu, Op::Swish, Op::HardSwish, Op::Mish, Op::LayerNormalization, Op::RMSNormalization];

    /// Fuses all that opset 21 has, demands the same result, and gives back what stands there then.
    fn fused(build: impl Fn(&mut Build, ValueId) -> ValueId) -> Vec<Op> {
        let mut m = model(build);
        let x = Tensor::of_f32(&[2, 3, WIDTH], noise(&[2, 3, WIDTH], 3).iter().map(|v| v * 4.0).collect());
        let before = result(&m, &x);
        fuse(&mut m, ALL, None).unwrap();
        for (a, b) in before.iter().zip(result(&m, &x)) {
            assert!((a - b).abs() <= 4e-6 * a.abs().max(1.0), "{a} {b}");
        }
        m.graph.nodes().map(|(_, n)| n.op).collect()
    }

    /// The gate of a Gelu by Erf.
    fn erf(b: &mut Build, x: ValueId) -> ValueId {
        let (root, one) = (b.number(2f64.sqrt()), b.number(1.0));
        let d = b.op(Op::Div, &[x, root]);
        let e = b.op(Op::Erf, &[d]);
        b.op(Op::Add, &[e, one])
    }

    #[test]
    fn gelu_in_every_order_of_its_factors() {
        type Order = fn(&mut Build, ValueId, ValueId, ValueId) -> ValueId;
        let orders: [Order; 3] = [
            |b, x, gate, half| {
                let m = b.op(Op::Mul, &[x, gate]);
                b.op(Op::Mul, &[m, half])
            },
            |b, x, gate, half| {
                let m = b.op(Op::Mul, &[half, gate]);
                b.op(Op::Mul, &[m, x])
            },
            |b, x, gate, half| {
                let m = b.op(Op::Mul, &[x, half]);
                b.op(Op::Mul, &[m, gate])
            },
        ];
        for order in orders {
            let ops = fused(|b, x| {
                let (gate, half) = (erf(b, x), b.number(0.5));
                order(b, x, gate, half)
            });
            assert_eq!(ops, [Op::Gelu]);
        }
    }

    #[test]
    fn gelu_by_tanh_with_a_power_or_with_products() {
        for power in [true, false] {
            let ops = fused(|b, x| {
                let [a, c, one, half] = [0.044715, 0.797_884_56, 1.0, 0.5].map(|v| b.number(v));
                let cube = if power {
                    let three = b.number(3.0);
                    b.op(Op::Pow, &[x, three])
                } else {
                    let square = b.op(Op::Mul, &[x, x]);
                    b.op(Op::Mul, &[square, x])
                };
                let term = b.op(Op::Mul, &[cube, a]);
                let sum = b.op(Op::Add, &[x, term]);
                let inner = b.op(Op::Mul, &[sum, c]);
                let t = b.op(Op::Tanh, &[inner]);
                let gate = b.op(Op::Add, &[t, one]);
                let m = b.op(Op::Mul, &[half, x]);
                b.op(Op::Mul, &[m, gate])
            });
            assert_eq!(ops, [Op::Gelu]);
        }
    }

    #[test]
    fn hard_swish_and_mish() {
        let clipped = fused(|b, x| {
            let [three, low, high, six] = [3.0, 0.0, 6.0, 6.0].map(|v| b.number(v));
            let s = b.op(Op::Add, &[x, three]);
            let c = b.op(Op::Clip, &[s, low, high]);
            let m = b.op(Op::Mul, &[x, c]);
            b.op(Op::Div, &[m, six])
        });
        assert_eq!(clipped, [Op::HardSwish]);
        let sigmoid = fused(|b, x| {
            let s = b.node(Node::new(Op::HardSigmoid, "").with("alpha", 1.0f32 / 6.0).with("beta", 0.5f32), &[x]);
            b.op(Op::Mul, &[s, x])
        });
        assert_eq!(sigmoid, [Op::HardSwish]);
        let mish = fused(|b, x| {
            let s = b.op(Op::Softplus, &[x]);
            let t = b.op(Op::Tanh, &[s]);
            b.op(Op::Mul, &[x, t])
        });
        assert_eq!(mish, [Op::Mish]);
    }

    /// A norm of `x`: centred or not, by Div or by Reciprocal, with scale and offset of these shapes.
    fn norm(b: &mut Build, x: ValueId, centred: bool, reciprocal: bool, shapes: [&[usize]; 2]) -> ValueId {
        let d = match centred {
            true => {
                let m = b.mean(x);
                b.op(Op::Sub, &[x, m])
            }
            false => x,
        };
        let (two, epsilon) = (b.number(2.0), b.number(1e-5));
        let s = b.op(Op::Pow, &[d, two]);
        let v = b.mean(s);
        let v = b.op(Op::Add, &[v, epsilon]);
        let r = b.op(Op::Sqrt, &[v]);
        let n = match reciprocal {
            true => {
                let r = b.op(Op::Reciprocal, &[r]);
                b.op(Op::Mul, &[d, r])
            }
            false => b.op(Op::Div, &[d, r]),
        };
        let (scale, offset) = (b.row(shapes[0], 5), b.row(shapes[1], 6));
        let n = b.op(Op::Mul, &[scale, n]);
        b.op(Op::Add, &[n, offset])
    }

    #[test]
    fn a_layer_norm_with_scale_and_offset() {
        for reciprocal in [false, true] {
            assert_eq!(fused(|b, x| norm(b, x, true, reciprocal, [&[WIDTH], &[1, 1, WIDTH]])), [Op::LayerNormalization]);
        }
        // An offset for each row is no offset of the norm.
        assert_eq!(fused(|b, x| norm(b, x, true, false, [&[WIDTH], &[3, WIDTH]])), [Op::LayerNormalization, Op::Add]);
    }

    #[test]
    fn what_only_looks_like_a_form_stays() {
        let other_root = |b: &mut Build, x| {
            let (root, one, half) = (b.number(1.5), b.number(1.0), b.number(0.5));
            let d = b.op(Op::Div, &[x, root]);
            let e = b.op(Op::Erf, &[d]);
            let gate = b.op(Op::Add, &[e, one]);
            let m = b.op(Op::Mul, &[x, gate]);
            b.op(Op::Mul, &[m, half])
        };
        assert_eq!(fused(other_root).len(), 5);
        let read_within = |b: &mut Build, x| {
            let (gate, half) = (erf(b, x), b.number(0.5));
            let m = b.op(Op::Mul, &[x, gate]);
            let y = b.op(Op::Mul, &[m, half]);
            b.op(Op::Add, &[y, gate])
        };
        assert_eq!(fused(read_within).len(), 6);
        let over_all = |b: &mut Build, x| {
            let y = norm(b, x, true, false, [&[WIDTH], &[WIDTH]]);
            for id in b.0.graph.order().to_vec() {
                if b.0.graph.node(id).op == Op::ReduceMean {
                    b.0.graph.node_mut(id).set_attr("axes", vec![1i64, 2]);
                }
            }
            y
        };
        assert_eq!(fused(over_all).len(), 9);
    }

    #[test]
    fn a_target_that_reads_no_such_opset_keeps_the_nodes_and_is_told() {
        let mut m = model(|b, x| norm(b, x, true, false, [&[WIDTH], &[WIDTH]]));
        let notes = fuse(&mut m, ALL, Some(16)).unwrap();
        assert_eq!((m.opset(""), m.graph.nodes().count()), (Some(13), 9));
        assert!(notes.list()[0].text.contains("of opset 17, and the target reads at most opset 16"), "{notes:?}");
        // An opset from which nothing is known to be raised.
        let mut m = model(|b, x| norm(b, x, false, false, [&[WIDTH], &[WIDTH]]));
        m.set_opset("", 6);
        let notes = fuse(&mut m, ALL, None).unwrap();
        assert!(notes.list()[0].text.contains("of opset 23, and opset 6 cannot be converted"), "{notes:?}");
        // Where the model has the opset already, nothing stands in the way; its offset stays an Add.
        m.set_opset("", 23);
        fuse(&mut m, ALL, None).unwrap();
        assert_eq!(m.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::RMSNormalization, Op::Add]);
    }
}
