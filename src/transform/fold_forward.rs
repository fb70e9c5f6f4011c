//! Folds BatchNormalization into the layers behind it: `W·(f·x + o) = (W·f)·x + W·o`, in float64. Where a Conv pads, the padding would be normalised
//! too, so there only a norm without offset goes in. Transposes between are followed.
//! Exact up to the rounding of the new weights. Needs: constant weights in every reader. Declines, with the reason: everything else.

use super::edit::{rename, replace};
use super::fold_batch_norm::factors;
use crate::graph::{Constant, Graph, Inferred, Linear, Node, NodeId, Op, ValueId, bias_behind};
use crate::tensor::Tensor;

/// A reader that takes the norm in: its new weight, and what is added to its output channels.
pub(super) struct Fold {
    pub linear: Linear,
    weight: Tensor,
    offset: Vec<f64>,
}

/// Folds one norm into everything that reads it, or says why not.
pub fn fold_forward(g: &mut Graph, inferred: &Inferred, id: NodeId) -> Result<(), String> {
    let bn = g.node(id);
    let (x, y) = (bn.input(0).ok_or("it has no input")?, bn.output(0).ok_or("it has no output")?);
    let (factor, offset) = factors(g, bn)?;
    let rank = inferred.get(y).shape.as_ref().map(Vec::len).ok_or("its rank is not known")?;
    let mut folds = Vec::new();
    collect(g, inferred, y, 1, rank, (&factor, &offset), &mut folds)?;
    if folds.is_empty() {
        return Err("nothing reads it".into());
    }
    // What lies between now holds other numbers: those before the norm, or a product before its bias.
    let mut changed = Vec::new();
    moved(g, y, &mut changed);
    if offset.iter().any(|o| *o != 0.0) {
        changed.extend(
            folds.iter().filter(|f| g.node(f.linear.node).op == Op::MatMul).filter_map(|f| g.node(f.linear.node).output(0)).filter(|v| !g.is_output(*v)),
        );
    }
    rename(g, changed, "unnormalized");
    let name = g.node(id).name.clone();
    for fold in folds {
        apply(g, fold, &name);
    }
    g.replace_uses(y, x);
    g.remove_node(id);
    g.remove_value(y);
    Ok(())
}

/// What Transposes make of `v`.
fn moved(g: &Graph, v: ValueId, found: &mut Vec<ValueId>) {
    for node in g.value(v).uses().iter().filter_map(|p| g.get_node(p.node)).filter(|n| n.op == Op::Transpose) {
        if let Some(y) = node.output(0) {
            found.push(y);
            moved(g, y, found);
        }
    }
}

/// Readers of `v`, whose channels lie along `axis`.
fn collect(g: &Graph, inferred: &Inferred, v: ValueId, axis: usize, rank: usize, norm: (&[f64], &[f64]), folds: &mut Vec<Fold>) -> Result<(), String> {
    if g.is_output(v) {
        return Err("it is an output of the model".into());
    }
    for port in g.value(v).uses() {
        let node = g.get_node(port.node).ok_or("a body reads it")?;
        if node.op == Op::Transpose {
            let perm: Vec<usize> = match node.ints("perm") {
                Some(p) => p.iter().map(|i| *i as usize).collect(),
                None => (0..rank).rev().collect(),
            };
            let to = perm.iter().position(|i| *i == axis).ok_or("a Transpose behind it makes no sense")?;
            collect(g, inferred, node.output(0).ok_or("a Transpose has no output")?, to, rank, norm, folds)?;
            continue;
        }
        let linear = Linear::of(g, port.node).filter(|l| l.input_slot == port.slot as usize).ok_or(format!("a {} reads it", node.op_type))?;
        folds.push(into(g, inferred, linear, axis, rank, norm)?);
    }
    Ok(())
}

/// The norm taken into one layer.
pub(super) fn into(g: &Graph, inferred: &Inferred, linear: Linear, axis: usize, rank: usize, (factor, offset): (&[f64], &[f64])) -> Result<Fold, String> {
    let node = g.node(linear.node);
    let weight = g.constant(linear.weight).ok_or("the weight of a layer behind it is no constant")?;
    let shape = weight.tensor.shape().to_vec();
    let along = match node.op {
        Op::MatMul => axis + 1 == rank && shape.len() == 2 && inferred.get(node.output(0).ok_or("a layer has no output")?).shape.is_some(),
        Op::Gemm => axis == 1 && node.int("transA").unwrap_or(0) == 0 && node.float("alpha").unwrap_or(1.0) == 1.0 && node.float("beta").unwrap_or(1.0) == 1.0,
        Op::Conv => axis == 1,
        _ => false,
    };
    let per_group = *shape.get(linear.in_axis).ok_or("a weight has no input axis")?;
    if !along || per_group * linear.groups != factor.len() {
        return Err(format!("the {} behind it does not sum over its channels", node.op_type));
    }
    let pads = node.ints("pads").is_some_and(|p| p.iter().any(|n| *n != 0)) || !matches!(node.str("auto_pad").unwrap_or("NOTSET"), "NOTSET" | "VALID");
    if node.op == Op::Conv && pads && offset.iter().any(|o| *o != 0.0) {
        return Err("a Conv behind it pads with zeros, which its offset would change".into());
    }
    if let Some(b) = linear.bias
        && g.constant(b).is_none_or(|c| c.tensor.len() != linear.out_channels(g))
    {
        return Err("the bias of a layer behind it is not one constant a channel".into());
    }
    let w = weight.tensor.to_f32().map_err(|e| e.to_string())?;
    let channel = linear.channels(g, &shape);
    let mut sums = vec![0f64; shape[linear.out_axis]];
    let scaled = w.iter().enumerate().map(|(i, w)| {
        let (input, out) = channel(i);
        sums[out] += *w as f64 * offset[input];
        (*w as f64 * factor[input]) as f32
    });
    let weight = Tensor::of_f32(&shape, scaled.collect());
    Ok(Fold { linear, weight, offset: sums })
}

/// Makes a layer read what lies along `axis` of `rank` as if each channel had been times `factor`, plus `offset`; `from`: the node that this comes from.
pub(super) fn fold_into(
    g: &mut Graph,
    inferred: &Inferred,
    linear: Linear,
    (axis, rank): (usize, usize),
    norm: (&[f64], &[f64]),
    from: &str,
) -> crate::error::Result<()> {
    let fold = into(g, inferred, linear, axis, rank, norm).map_err(crate::error::Error::failed)?;
    apply(g, fold, from);
    Ok(())
}

/// Gives the layer what was folded into it.
fn apply(g: &mut Graph, fold: Fold, norm: &str) {
    let layer = fold.linear.node;
    replace(g, layer, fold.linear.weight_slot, "weight", fold.weight);
    let n = fold.offset.len();
    let sum = |old: Option<&Constant>, shape: &[usize]| {
        let old = old.and_then(|c| c.tensor.to_f32().ok()).map_or(vec![0.0; n], |b| b.into_owned());
        Tensor::of_f32(shape, old.iter().zip(&fold.offset).map(|(b, o)| (*b as f64 + o) as f32).collect())
    };
    if fold.offset.iter().any(|o| *o != 0.0) {
        if g.node(layer).op != Op::MatMul {
            let bias = sum(fold.linear.bias.and_then(|b| g.constant(b)), &[n]);
            replace(g, layer, 2, "bias", bias);
        } else if let Some((add, slot)) = own_bias(g, layer, n) {
            let old = g.node(add).input(slot).and_then(|b| g.constant(b));
            let shape = old.map_or(vec![n], |c| c.tensor.shape().to_vec());
            let bias = sum(old, &shape);
            replace(g, add, slot, "bias", bias);
        } else {
            let y = g.node(layer).output(0).expect("a MatMul has an output");
            let name = g.node(layer).name.clone();
            let inner = g.add_value(&format!("{}_product", g.value(y).name));
            g.value_mut(inner).ty = g.value(y).ty.clone();
            g.set_output(layer, 0, inner);
            let bias = g.add_constant(&format!("{name}_bias"), sum(None, &[n]));
            let at = g.position(layer) + 1;
            g.insert_node(at, Node::new(Op::Add, format!("{name}_offset")), &[Some(inner), Some(bias)], &[Some(y)]);
        }
    }
    let own = g.node(layer).name.clone();
    let node = g.node_mut(layer);
    if node.came_from.is_empty() {
        node.came_from.push(own);
    }
    node.came_from.push(norm.to_string());
}

/// The Add behind a MatMul whose constant, at its very slot, can take an offset in.
pub(super) fn own_bias(g: &Graph, layer: NodeId, n: usize) -> Option<(NodeId, usize)> {
    let product = g.node(layer).output(0).filter(|y| !g.is_output(*y))?;
    bias_behind(g, product, n).filter(|(add, slot)| g.node(*add).input(*slot).is_some_and(|b| g.constant(b).is_some()))
}

/// A norm that nothing takes in, as what it computes: a Mul and an Add with one constant a channel. Exact up to the rounding of its constants.
pub fn spell_out(g: &mut Graph, inferred: &Inferred, id: NodeId) -> Result<(), String> {
    let bn = g.node(id);
    let (x, y) = (bn.input(0).ok_or("it has no input")?, bn.output(0).ok_or("it has no output")?);
    let rank = inferred.get(x).shape.as_ref().map(Vec::len).filter(|r| *r >= 2).ok_or("its rank is not known")?;
    let (factor, offset) = factors(g, bn)?;
    let shape: Vec<usize> = std::iter::once(factor.len()).chain(std::iter::repeat_n(1, rank - 2)).collect();
    let name = bn.name.clone();
    let constant = |g: &mut Graph, what: &str, values: &[f64]| {
        g.add_constant(&format!("{name}_{what}"), Tensor::of_f32(&shape, values.iter().map(|v| *v as f32).collect()))
    };
    let (f, o) = (constant(g, "factor", &factor), constant(g, "offset", &offset));
    let at = g.position(id);
    let ty = g.value(y).ty.clone();
    g.remove_node(id);
    let scaled = g.add_value(&format!("{}_scaled", g.value(y).name));
    g.value_mut(scaled).ty = ty;
    let node = |op: Op, what: &str| {
        let mut n = Node::new(op, format!("{name}_{what}"));
        n.came_from.push(name.clone());
        n
    };
    g.insert_node(at, node(Op::Mul, "mul"), &[Some(x), Some(f)], &[Some(scaled)]);
    g.insert_node(at + 1, node(Op::Add, "add"), &[Some(scaled), Some(o)], &[Some(y)]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{result, value};
    use super::*;
    use crate::graph::{InputShapes, Model, infer};

    fn ramp(shape: &[usize], from: f32) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor::of_f32(shape, (0..n).map(|i| from + ((i * 7) % 11) as f32 * 0.25).collect())
    }

    /// x[2,3,…] → norm → layer → y, the layer made by `then`.
    fn model(x_shape: &[usize], then: impl Fn(&mut Graph, ValueId)) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let (x, h) = (value(g, "x", x_shape), value(g, "h", x_shape));
        g.inputs.push(x);
        let stats: Vec<Option<ValueId>> = [("scale", 2.0), ("offset", 0.5), ("mean", 1.0), ("variance", 4.0)]
            .iter()
            .map(|(n, v)| Some(g.add_constant(n, Tensor::of_f32(&[3], vec![*v, 2.0 * v, 0.5 * v]))))
            .collect();
        g.add_node(Node::new(Op::BatchNormalization, "norm").with("epsilon", 0.0f32), &[vec![Some(x)], stats].concat(), &[Some(h)]);
        then(g, h);
        m
    }

    fn norms(m: &Model) -> usize {
        m.graph.nodes().filter(|(_, n)| n.op == Op::BatchNormalization).count()
    }

    /// Folds, demands the same result, and gives back the node count.
    fn folds(mut m: Model, x_shape: &[usize]) -> usize {
        let x = ramp(x_shape, -1.0);
        let before = result(&m, &x);
        let inferred = infer(&m, &InputShapes::new());
        let id = m.graph.nodes().find(|(_, n)| n.op == Op::BatchNormalization).unwrap().0;
        fold_forward(&mut m.graph, &inferred, id).unwrap();
        assert_eq!(norms(&m), 0);
        for (a, b) in before.iter().zip(result(&m, &x)) {
            assert!((a - b).abs() <= 2e-6 * a.abs().max(10.0), "{a} {b}");
        }
        m.graph.nodes().count()
    }

    fn conv(g: &mut Graph, h: ValueId, weight: &[usize], attrs: &[(&str, Vec<i64>)], y_shape: &[usize]) {
        let y = value(g, "y", y_shape);
        g.outputs.push(y);
        let w = g.add_constant("w", ramp(weight, -0.5));
        let mut node = Node::new(Op::Conv, "conv");
        attrs.iter().for_each(|(k, v)| node.set_attr(k, v.clone()));
        g.add_node(node, &[Some(h), Some(w)], &[Some(y)]);
    }

    #[test]
    fn a_conv_behind_takes_the_norm_in_unless_it_pads() {
        let shape = [1, 3, 4, 4];
        assert_eq!(folds(model(&shape, |g, h| conv(g, h, &[2, 3, 2, 2], &[], &[1, 2, 3, 3])), &shape), 1);
        let mut grouped = model(&shape, |g, h| conv(g, h, &[6, 1, 1, 1], &[], &[1, 6, 4, 4]));
        let id = grouped.graph.nodes().find(|(_, n)| n.op == Op::Conv).unwrap().0;
        grouped.graph.node_mut(id).set_attr("group", 3i64);
        assert_eq!(folds(grouped, &shape), 1);
        let mut padded = model(&shape, |g, h| conv(g, h, &[2, 3, 3, 3], &[("pads", vec![1, 1, 1, 1])], &[1, 2, 4, 4]));
        let inferred = infer(&padded, &InputShapes::new());
        let id = padded.graph.nodes().next().unwrap().0;
        assert!(fold_forward(&mut padded.graph, &inferred, id).unwrap_err().contains("pads with zeros"));
        assert_eq!(norms(&padded), 1);
    }

    #[test]
    fn products_behind_a_transpose_take_it_in_and_get_a_bias() {
        let shape = [2, 3, 5];
        let two = |bias: bool| {
            model(&shape, move |g, h| {
                let t = value(g, "t", &[2, 5, 3]);
                let (a, b, y) = (value(g, "a", &[2, 5, 4]), value(g, "b", &[2, 5, 4]), value(g, "y", &[2, 5, 4]));
                g.outputs.push(y);
                let (w, v) = (g.add_constant("w", ramp(&[3, 4], -1.0)), g.add_constant("v", ramp(&[3, 4], 0.5)));
                g.add_node(Node::new(Op::Transpose, "t").with("perm", vec![0i64, 2, 1]), &[Some(h)], &[Some(t)]);
                g.add_node(Node::new(Op::MatMul, "a"), &[Some(t), Some(w)], &[Some(a)]);
                g.add_node(Node::new(Op::MatMul, "b"), &[Some(t), Some(v)], &[Some(b)]);
                let mut last = a;
                if bias {
                    let (c, s) = (g.add_constant("c", ramp(&[4], 3.0)), value(g, "s", &[2, 5, 4]));
                    g.add_node(Node::new(Op::Add, "bias"), &[Some(c), Some(a)], &[Some(s)]);
                    last = s;
                }
                g.add_node(Node::new(Op::Add, "sum"), &[Some(last), Some(b)], &[Some(y)]);
            })
        };
        assert_eq!(folds(two(true), &shape), 6, "one Add more, for the product without a bias");
        assert_eq!(folds(two(false), &shape), 6);
    }

    #[test]
    fn what_no_layer_takes_in_is_spelled_out() {
        let shape = [2, 3, 5];
        let mut m = model(&shape, |g, h| {
            let y = value(g, "y", &shape);
            g.outputs.push(y);
            g.add_node(Node::new(Op::Relu, "relu"), &[Some(h)], &[Some(y)]);
        });
        let x = ramp(&shape, -2.0);
        let before = result(&m, &x);
        let inferred = infer(&m, &InputShapes::new());
        let id = m.graph.nodes().next().unwrap().0;
        assert!(fold_forward(&mut m.graph, &inferred, id).unwrap_err().contains("a Relu reads it"));
        spell_out(&mut m.graph, &inferred, id).unwrap();
        assert_eq!(m.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), [Op::Mul, Op::Add, Op::Relu]);
        for (a, b) in before.iter().zip(result(&m, &x)) {
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{a} {b}");
        }
    }
}
