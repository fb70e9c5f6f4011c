//! What a layer multiplies its weights with: rows of its input, or the patches under its kernel, at some of its places.

use crate::graph::{Linear, Node, Op};

/// How a layer reads its input.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// Length of the kernel, step, and distance of its elements, by axis; empty for products of matrices.
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    pads: Vec<i64>,
    auto: String,
    pub groups: usize,
    /// Input channels of a group.
    ins: usize,
}

/// An offset beyond every tensor, where nothing but zero lies.
const OUTSIDE: usize = usize::MAX;

impl Patches {
    /// Of a layer whose weight has this shape; `None` where rows of the input do not meet rows of the weight.
    pub fn of(node: &Node, linear: &Linear, weight: &[usize]) -> Option<Patches> {
        let ints = |name: &str, n: usize, default: i64| node.ints(name).filter(|v| v.len() == n).map_or(vec![default; n], <[i64]>::to_vec);
        let sizes = |v: Vec<i64>| v.into_iter().map(|i| usize::try_from(i).ok().filter(|i| *i > 0)).collect::<Option<Vec<_>>>();
        if weight.contains(&0) {
            return None;
        }
        let plain =
            Patches { kernel: vec![], strides: vec![], dilations: vec![], pads: vec![], auto: String::new(), groups: 1, ins: *weight.get(linear.in_axis)? };
        match node.op {
            Op::Conv if weight.len() > 2 => {
                let n = weight.len() - 2;
                let (strides, dilations) = (sizes(ints("strides", n, 1))?, sizes(ints("dilations", n, 1))?);
                let auto = node.str("auto_pad").unwrap_or("NOTSET").to_string();
                Some(Patches { kernel: weight[2..].to_vec(), strides, dilations, pads: ints("pads", 2 * n, 0), auto, groups: linear.groups, ..plain })
            }
            Op::Gemm if node.int("transA").unwrap_or(0) == 0 && weight.len() == 2 => Some(plain),
            Op::MatMul if linear.input_slot == 0 && weight.len() == 2 => Some(plain),
            _ => None,
        }
    }

    /// Numbers that one output is summed over.
    pub fn width(&self) -> usize {
        self.ins * self.kernel.iter().product::<usize>()
    }

    /// What each group reads of an input at `most` places at most, spread over the tensor: a column of so many values for each number that an output is
    /// summed over, group by group; and how many. None of an input that the layer cannot read.
    pub fn columns(&self, x: &[f32], shape: &[usize], most: usize) -> (Vec<f32>, usize) {
        let n = self.kernel.len();
        if n == 0 {
            let chosen = spread(x.len() / self.ins, most);
            let offsets: Vec<usize> = chosen.iter().map(|r| r * self.ins).collect();
            return (gather(x, &offsets, self.ins, 1), chosen.len());
        }
        if shape.len() != n + 2 || shape[1] != self.ins * self.groups {
            return (Vec::new(), 0);
        }
        let sides = &shape[2..];
        let axes: Vec<(usize, i64)> = (0..n).map(|a| self.along(a, sides[a])).collect();
        let places: usize = axes.iter().map(|(out, _)| out).product();
        let plane: usize = sides.iter().product();
        let chosen = spread(shape[0] * places, most);
        // Where an element of the kernel reads in the first channel; `None` where the input is padded with zeros.
        let offset = |element: usize, chosen: usize| {
            let (sample, mut place, mut k) = (chosen / places, chosen % places, element);
            let (mut at, mut stride) = (sample * shape[1] * plane, 1);
            for a in (0..n).rev() {
                let (out, begin) = axes[a];
                let i = (place % out * self.strides[a] + k % self.kernel[a] * self.dilations[a]) as i64 - begin;
                at += usize::try_from(i).ok().filter(|i| *i < sides[a])? * stride;
                (place, k, stride) = (place / out, k / self.kernel[a], stride * sides[a]);
            }
            Some(at)
        };
        let elements: usize = self.kernel.iter().product();
        let offsets: Vec<usize> = (0..elements).flat_map(|e| chosen.iter().map(move |c| (e, *c))).map(|(e, c)| offset(e, c).unwrap_or(OUTSIDE)).collect();
        (gather(x, &offsets, shape[1], plane), chosen.len())
    }

    /// Places along one axis, and how far the first lies before the input.
    fn along(&self, a: usize, side: usize) -> (usize, i64) {
        let reach = ((self.kernel[a] - 1) * self.dilations[a] + 1) as i64;
        let (side, stride) = (side as i64, self.strides[a] as i64);
        let (begin, all) = match self.auto.as_str() {
            "SAME_UPPER" | "SAME_LOWER" => {
                let all = (((side + stride - 1) / stride - 1) * stride + reach - side).max(0);
                (if self.auto == "SAME_UPPER" { all / 2 } else { all - all / 2 }, all)
            }
            "VALID" => (0, 0),
            _ => (self.pads[a], self.pads[a] + self.pads[a + self.kernel.len()]),
        };
        (((side + all - reach) / stride + 1).max(0) as usize, begin)
    }
}

/// By channel, `plane` apart, what lies at the offsets.
fn gather(x: &[f32], offsets: &[usize], channels: usize, plane: usize) -> Vec<f32> {
    let mut columns = Vec::with_capacity(channels * offsets.len());
    for c in 0..channels {
        let x = &x[(c * plane).min(x.len())..];
        columns.extend(offsets.iter().map(|at| x.get(*at).copied().unwrap_or(0.0)));
    }
    columns
}

/// At most `most` of `n` indices, evenly and without a period.
fn spread(n: usize, most: usize) -> Vec<usize> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    if n <= most { (0..n).collect() } else { (1..=most).map(|i| ((i as f64 * GOLDEN).fract() * n as f64) as usize).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::Runner;
    use super::*;
    use crate::graph::{Dim, InputShapes, Model, Type, ValueId};
    use crate::tensor::{DType, Tensor};
    use std::collections::BTreeMap;

    /// Patches times weights are what the engine makes of the layer.
    fn holds(node: Node, x_shape: &[usize], w_shape: &[usize], by_row: bool) {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let noise = |shape: &[usize], k: f32| Tensor::of_f32(shape, (0..shape.iter().product()).map(|i| (i as f32 * k).fract() - 0.4).collect());
        let g = &mut m.graph;
        let typed = |g: &mut crate::graph::Graph, name: &str, shape: Option<&[usize]>| -> ValueId {
            let v = g.add_value(name);
            g.value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: shape.map(|s| s.iter().map(|d| Dim::Known(*d)).collect()) };
            v
        };
        let (x, y) = (typed(g, "x", Some(x_shape)), typed(g, "y", None));
        let weight = noise(w_shape, 0.618_034);
        let w = g.add_constant("w", weight.clone());
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        let id = g.add_node(node, &[Some(x), Some(w)], &[Some(y)]);
        let input = noise(x_shape, 0.414_214);
        let shapes = InputShapes::from([("x".to_string(), x_shape.to_vec())]);
        let runner = Runner::new(&m, &shapes, &[y]).unwrap();
        let out = runner.run(&mut runner.spawn(), &BTreeMap::from([("x".to_string(), input.clone())]), &m.quantizers).unwrap().remove(0);
        let linear = Linear::of(&m.graph, id).unwrap();
        let p = Patches::of(m.graph.node(id), &linear, w_shape).unwrap();
        let (w, want) = (weight.to_f32().unwrap(), out.to_f32().unwrap());
        let outs = linear.out_channels(&m.graph);
        let (n, mut seen) = (p.width(), 0);
        let (columns, rows) = p.columns(&input.to_f32().unwrap(), x_shape, usize::MAX);
        for (group, columns) in columns.chunks(n * rows).enumerate() {
            for o in group * outs / p.groups..(group + 1) * outs / p.groups {
                for r in 0..rows {
                    let sum: f32 = (0..n).map(|c| columns[c * rows + r] * if by_row { w[o * n + c] } else { w[c * outs + o] }).sum();
                    let places: usize = out.shape().iter().skip(2).product();
                    let at = if w_shape.len() > 2 { (r / places * outs + o) * places + r % places } else { r * outs + o };
                    assert!((sum - want[at]).abs() < 1e-4, "{o} {r}: {sum} {}", want[at]);
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, want.len());
    }

    #[test]
    fn patches_times_weights_are_the_layer() {
        let conv = |attrs: &[(&str, Vec<i64>)]| {
            let mut n = Node::new(Op::Conv, "conv");
            attrs.iter().for_each(|(k, v)| n.set_attr(k, v.clone()));
            n
        };
        holds(conv(&[]), &[2, 3, 5, 4], &[4, 3, 2, 3], true);
        holds(conv(&[("pads", vec![1, 0, 2, 1]), ("strides", vec![2, 1]), ("dilations", vec![1, 2])]), &[1, 3, 6, 7], &[2, 3, 3, 2], true);
        holds(conv(&[]).with("auto_pad", "SAME_UPPER").with("strides", vec![2i64, 2]), &[1, 2, 5, 6], &[3, 2, 3, 3], true);
        holds(conv(&[("pads", vec![1, 1, 1, 1])]).with("group", 3i64), &[1, 6, 4, 4], &[3, 2, 3, 3], true);
        holds(conv(&[]), &[1, 2, 9], &[3, 2, 4], true);
        holds(Node::new(Op::Gemm, "gemm").with("transB", 1i64), &[3, 5], &[4, 5], true);
        holds(Node::new(Op::Gemm, "gemm"), &[3, 5], &[5, 4], false);
        holds(Node::new(Op::MatMul, "product"), &[2, 3, 5], &[5, 4], false);
    }

    #[test]
    fn a_kernel_without_elements_has_no_patches() {
        let mut g = crate::graph::Graph::default();
        let (x, y) = (g.add_value("x"), g.add_value("y"));
        let w = g.add_constant("w", Tensor::of_f32(&[2, 3, 0], vec![]));
        let id = g.add_node(Node::new(Op::Conv, "conv"), &[Some(x), Some(w)], &[Some(y)]);
        assert!(Patches::of(g.node(id), &Linear::of(&g, id).unwrap(), &[2, 3, 0]).is_none());
    }

    #[test]
    fn places_are_few_and_far_between() {
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        let s = spread(1000, 50);
        assert!(s.len() == 50 && s.iter().all(|i| *i < 1000) && (0..10).all(|k| s.iter().filter(|i| *i / 100 == k).count() == 5), "{s:?}");
    }
}
