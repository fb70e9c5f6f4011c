//! Type and shape of each op's outputs from those of its inputs. Where a rule does not know, it says nothing.

use super::super::eval::{axis_of, resolve_shape, slice_axis, split_lengths};
use super::super::{AttrValue, Dim, Flow, Node, Op};
use super::Fact;
use super::windows;
use crate::tensor::DType;

pub(super) type Shape = Option<Vec<Dim>>;

/// Facts of a node's outputs, in order; missing ones are unknown.
pub fn outputs(node: &Node, inputs: &[Option<&Fact>]) -> Vec<Fact> {
    let n = Inputs { node, inputs };
    let x = n.fact(0);
    let dtype = x.and_then(|f| f.dtype);
    let shape = x.and_then(|f| f.shape.clone());
    let one = |dtype, shape| vec![Fact::of(dtype, shape)];
    match node.op {
        Op::Shape | Op::Size | Op::NonZero => one(Some(DType::I64), if node.op == Op::Shape { n.rank(0).map(|r| vec![Dim::Known(r)]) } else { None }),
        Op::Equal | Op::Less | Op::LessOrEqual | Op::Greater | Op::GreaterOrEqual | Op::And | Op::Or | Op::Xor => one(Some(DType::Bool), n.broadcast(&[0, 1])),
        Op::Not | Op::IsNaN | Op::IsInf => one(Some(DType::Bool), shape),
        Op::Cast => one(node.int("to").and_then(|t| DType::of_onnx(t as i32)), shape),
        Op::CastLike => one(n.fact(1).and_then(|f| f.dtype), shape),
        Op::ConstantOfShape => {
            let dtype = match node.attr("value") {
                Some(AttrValue::Tensor(t)) => t.tensor.dtype(),
                _ => DType::F32,
            };
            one(Some(dtype), n.shape_from(0))
        }
        Op::Range => one(dtype, Some(vec![Dim::Unknown])),
        Op::Where => one(n.fact(1).and_then(|f| f.dtype), n.broadcast(&[0, 1, 2])),
        Op::Reshape => one(dtype, n.reshape()),
        Op::Expand => one(dtype, n.expand()),
        Op::Flatten => one(dtype, n.flatten()),
        Op::Squeeze => one(dtype, n.squeeze()),
        Op::Unsqueeze => one(dtype, n.unsqueeze()),
        Op::Transpose => one(dtype, n.transpose()),
        Op::Slice => one(dtype, n.slice()),
        Op::Gather => one(dtype, n.gather()),
        Op::Concat => one(dtype, n.concat()),
        Op::Split => n.split(dtype),
        Op::Tile => one(dtype, n.tile()),
        Op::Pad => one(dtype, n.pad()),
        Op::GatherElements => one(dtype, n.fact(1).and_then(|f| f.shape.clone())),
        Op::GatherND => one(dtype, n.gather_nd()),
        Op::GridSample => one(dtype, n.grid_sample()),
        Op::RoiAlign => one(dtype, n.roi_align()),
        Op::Attention => one(dtype, n.attention()),
        Op::EyeLike | Op::RandomNormalLike | Op::RandomUniformLike | Op::Bernoulli => one(node.int("dtype").map_or(dtype, |t| DType::of_onnx(t as i32)), shape),
        Op::OneHot => one(n.fact(2).and_then(|f| f.dtype), n.one_hot()),
        Op::ArgMax | Op::ArgMin => {
            let axes = [node.int("axis").unwrap_or(0)];
            one(Some(DType::I64), n.reduced(Some(&axes), false))
        }
        Op::TopK => vec![Fact::of(dtype, n.top_k()), Fact::of(Some(DType::I64), n.top_k())],
        Op::Conv | Op::ConvInteger | Op::FusedConv => {
            one(if node.op == Op::ConvInteger { Some(DType::I32) } else { dtype }, windows::conv(node, n.shape(0), n.shape(1)))
        }
        Op::QLinearConv | Op::MsQLinearConv => one(n.fact(7).and_then(|f| f.dtype), windows::conv(node, n.shape(0), n.shape(3))),
        Op::ConvTranspose => one(dtype, windows::conv_transpose(node, n.shape(0), n.shape(1))),
        Op::MaxPool | Op::AveragePool | Op::LpPool => {
            vec![Fact::of(dtype, windows::pool(node, n.shape(0))), Fact::of(Some(DType::I64), windows::pool(node, n.shape(0)))]
        }
        Op::QLinearAveragePool => one(dtype, windows::pool(node, n.shape(0))),
        Op::GlobalAveragePool | Op::GlobalMaxPool | Op::GlobalLpPool | Op::QLinearGlobalAveragePool => one(dtype, n.global_pool()),
        Op::Resize | Op::Upsample => one(dtype, n.resize()),
        Op::DepthToSpace | Op::SpaceToDepth => one(dtype, n.depth_space()),
        Op::MatMul | Op::FusedMatMul => one(dtype, n.matmul(0, 1)),
        Op::MatMulInteger => one(Some(DType::I32), n.matmul(0, 1)),
        Op::MatMulIntegerToFloat | Op::DynamicQuantizeMatMul => one(Some(DType::F32), n.matmul(0, 1)),
        Op::QLinearMatMul => one(n.fact(7).and_then(|f| f.dtype), n.matmul(0, 3)),
        Op::MatMulNBits | Op::MatMulBnb4 => one(dtype, n.replace_last(node.int("N"))),
        Op::Gemm | Op::FusedGemm => one(dtype, n.gemm(1)),
        Op::QGemm => one(n.fact(8).and_then(|f| f.dtype).or(Some(DType::F32)), n.gemm(3)),
        Op::LSTM | Op::GRU | Op::RNN | Op::DynamicQuantizeLSTM => n.recurrent(dtype),
        Op::ReduceSum
        | Op::ReduceMean
        | Op::ReduceMax
        | Op::ReduceMin
        | Op::ReduceProd
        | Op::ReduceL1
        | Op::ReduceL2
        | Op::ReduceLogSum
        | Op::ReduceLogSumExp
        | Op::ReduceSumSquare => one(dtype, n.reduce()),
        Op::QuantizeLinear | Op::MsQuantizeLinear => one(n.quantized(), shape),
        Op::DequantizeLinear | Op::MsDequantizeLinear => {
            let said = n.node.int("output_dtype").and_then(|t| DType::of_onnx(t as i32));
            one(said.or_else(|| n.fact(1).and_then(|f| f.dtype)), shape)
        }
        Op::DynamicQuantizeLinear => vec![Fact::of(Some(DType::U8), shape), Fact::of(Some(DType::F32), Some(vec![])), Fact::of(Some(DType::U8), Some(vec![]))],
        Op::QLinearAdd | Op::QLinearMul => one(dtype, n.broadcast(&[0, 3])),
        Op::QLinearConcat => one(n.fact(1).and_then(|f| f.dtype), None),
        Op::GatherBlockQuantized => one(n.fact(2).and_then(|f| f.dtype), None),
        Op::BatchNormalization | Op::LayerNormalization | Op::Dropout | Op::SkipLayerNormalization | Op::SimplifiedLayerNormalization => one(dtype, shape),
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Mod
        | Op::Pow
        | Op::Max
        | Op::Min
        | Op::Sum
        | Op::Mean
        | Op::PRelu
        | Op::BitwiseAnd
        | Op::BitwiseOr
        | Op::BitwiseXor => one(dtype, n.broadcast(&(0..inputs.len()).collect::<Vec<_>>())),
        Op::Einsum => one(dtype, n.einsum()),
        _ if matches!(node.op.flow(), Flow::Pointwise | Flow::Clamp | Flow::Normalize) => one(dtype, shape),
        Op::Identity
        | Op::FakeQuant
        | Op::ActivationPOTQuantizer
        | Op::ActivationSymmetricQuantizer
        | Op::WeightsPOTQuantizer
        | Op::WeightsSymmetricQuantizer
        | Op::CumSum
        | Op::CumProd
        | Op::ReverseSequence
        | Op::Trilu
        | Op::ScatterElements
        | Op::ScatterND
        | Op::Scatter
        | Op::QLinearSigmoid
        | Op::QLinearLeakyRelu
        | Op::QLinearSoftmax
        | Op::BitwiseNot
        | Op::RotaryEmbedding => one(dtype, shape),
        _ if matches!(node.op.flow(), Flow::Compute | Flow::Move) => one(dtype, None),
        _ => Vec::new(),
    }
}

/// A node and what is known of what it reads.
pub(super) struct Inputs<'a> {
    pub(super) node: &'a Node,
    pub(super) inputs: &'a [Option<&'a Fact>],
}

/// Product of dimensions, if all are known.
fn product(dims: &[Dim]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, d| if let Dim::Known(k) = d { n.checked_mul(*k) } else { None })
}

pub(super) fn size(n: Option<usize>) -> Dim {
    n.map_or(Dim::Unknown, Dim::Known)
}

impl<'a> Inputs<'a> {
    pub(super) fn fact(&self, slot: usize) -> Option<&'a Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    pub(super) fn shape(&self, slot: usize) -> Option<&'a [Dim]> {
        self.fact(slot)?.shape.as_deref()
    }

    pub(super) fn rank(&self, slot: usize) -> Option<usize> {
        Some(self.shape(slot)?.len())
    }

    pub(super) fn ints(&self, slot: usize, name: &str) -> Option<Vec<i64>> {
        match self.fact(slot).and_then(|f| f.constant.as_ref()) {
            Some(t) => t.to_i64().ok(),
            None => self.node.ints(name).map(<[i64]>::to_vec),
        }
    }

    /// Whether an input, or the attribute it replaced, is there at all.
    pub(super) fn has(&self, slot: usize, name: &str) -> bool {
        self.fact(slot).is_some() || self.node.ints(name).is_some()
    }

    pub(super) fn broadcast(&self, slots: &[usize]) -> Shape {
        let shapes: Vec<&[Dim]> = slots.iter().filter(|s| self.node.input(**s).is_some()).map(|s| self.shape(*s)).collect::<Option<_>>()?;
        let rank = shapes.iter().map(|s| s.len()).max()?;
        let at = |s: &[Dim], i: usize| if i + s.len() < rank { Dim::Known(1) } else { s[i + s.len() - rank].clone() };
        let join = |a: Dim, b: Dim| match (a, b) {
            (a, b) if a == b => a,
            (Dim::Known(1), b) => b,
            (a, Dim::Known(1)) => a,
            // A number other than one wins over a dimension that must equal it or be one.
            (Dim::Known(n), _) | (_, Dim::Known(n)) => Dim::Known(n),
            _ => Dim::Unknown,
        };
        Some((0..rank).map(|i| shapes.iter().map(|s| at(s, i)).reduce(join).unwrap_or(Dim::Unknown)).collect())
    }

    /// A shape given as the values of an input.
    fn shape_from(&self, slot: usize) -> Shape {
        let f = self.fact(slot)?;
        match f.elements() {
            Some(e) => Some(e.into_iter().map(|d| size(d.and_then(|d| usize::try_from(d).ok()))).collect()),
            None => match f.shape.as_deref() {
                Some([Dim::Known(n)]) if *n < 64 => Some(vec![Dim::Unknown; *n]),
                _ => None,
            },
        }
    }

    fn reshape(&self) -> Shape {
        let x = self.shape(0);
        let target: Vec<Option<i64>> = match (self.fact(1), self.node.ints("shape")) {
            (Some(f), _) => match f.elements() {
                Some(e) => e,
                None => return self.shape_from(1),
            },
            (None, Some(v)) => v.iter().copied().map(Some).collect(),
            _ => return None,
        };
        let zero = self.node.int("allowzero") == Some(1);
        if let (Some(from), Some(to)) = (
            x.and_then(|x| x.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect::<Option<Vec<_>>>()),
            target.iter().copied().collect::<Option<Vec<_>>>(),
        ) {
            return resolve_shape(&from, &to, zero).map(|s| s.into_iter().map(Dim::Known).collect());
        }
        let mut dims: Vec<Dim> = target
            .iter()
            .enumerate()
            .map(|(i, d)| match d {
                Some(0) if !zero => x.and_then(|x| x.get(i).cloned()).unwrap_or(Dim::Unknown),
                Some(d) => size(usize::try_from(*d).ok()),
                None => Dim::Unknown,
            })
            .collect();
        // One gap closes where everything else cancels out.
        let gaps: Vec<usize> = (0..dims.len()).filter(|i| dims[*i] == Dim::Unknown).collect();
        if let ([gap], Some(x)) = (&gaps[..], x) {
            let mut left: Vec<Dim> = x.to_vec();
            let mut known = 1usize;
            for (i, d) in dims.iter().enumerate().filter(|(i, _)| i != gap) {
                match d {
                    Dim::Known(n) => known *= n,
                    other => match left.iter().position(|l| l == other && *l != Dim::Unknown) {
                        Some(p) => drop(left.remove(p)),
                        None => return Some(dims),
                    },
                }
                debug_assert!(i < dims.len());
            }
            if let Some(total) = product(&left).filter(|t| known > 0 && t % known == 0) {
                dims[*gap] = Dim::Known(total / known);
            } else if let [symbol] = &left.iter().filter(|d| !matches!(d, Dim::Known(_))).collect::<Vec<_>>()[..]
                && left.iter().filter_map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).product::<usize>() == known
            {
                dims[*gap] = (*symbol).clone();
            }
        }
        Some(dims)
    }

    fn expand(&self) -> Shape {
        let (x, to) = (self.shape(0)?, self.shape_from(1)?);
        let rank = x.len().max(to.len());
        let at = |s: &[Dim], i: usize| if i + s.len() < rank { Dim::Known(1) } else { s[i + s.len() - rank].clone() };
        let join = |a: Dim, b: Dim| match (a, b) {
            (Dim::Known(1), b) => b,
            (a, Dim::Known(1)) => a,
            (Dim::Unknown, b) => b,
            (a, _) => a,
        };
        Some((0..rank).map(|i| join(at(x, i), at(&to, i))).collect())
    }

    fn flatten(&self) -> Shape {
        let x = self.shape(0)?;
        let axis = self.node.int("axis").unwrap_or(1);
        let a = if axis == x.len() as i64 { x.len() } else { axis_of(axis, x.len())? };
        let whole = |d: &[Dim]| match d {
            [one] => one.clone(),
            d => size(product(d)),
        };
        Some(vec![whole(&x[..a]), whole(&x[a..])])
    }

    fn squeeze(&self) -> Shape {
        let x = self.shape(0)?;
        if !self.has(1, "axes") {
            return x.iter().all(|d| matches!(d, Dim::Known(_))).then(|| x.iter().filter(|d| **d != Dim::Known(1)).cloned().collect());
        }
        let axes: Vec<usize> = self.ints(1, "axes")?.iter().map(|a| axis_of(*a, x.len())).collect::<Option<_>>()?;
        Some((0..x.len()).filter(|i| !axes.contains(i)).map(|i| x[i].clone()).collect())
    }

    fn unsqueeze(&self) -> Shape {
        let (x, axes) = (self.shape(0)?, self.ints(1, "axes")?);
        let rank = x.len() + axes.len();
        let mut axes: Vec<usize> = axes.iter().map(|a| axis_of(*a, rank)).collect::<Option<_>>()?;
        axes.sort();
        let mut shape = x.to_vec();
        for a in axes {
            (a <= shape.len()).then(|| shape.insert(a, Dim::Known(1)))?;
        }
        Some(shape)
    }

    fn transpose(&self) -> Shape {
        let x = self.shape(0)?;
        match self.node.ints("perm") {
            Some(p) if p.len() == x.len() => p.iter().map(|a| axis_of(*a, x.len()).map(|a| x[a].clone())).collect(),
            Some(_) => None,
            None => Some(x.iter().rev().cloned().collect()),
        }
    }

    fn slice(&self) -> Shape {
        let x = self.shape(0)?;
        let mut shape = x.to_vec();
        let axes = match (self.ints(3, "axes"), self.has(3, "axes")) {
            (Some(a), _) => a,
            (None, false) => (0..self.ints(1, "starts").map(|s| s.len()).or_else(|| self.shape(1).and_then(product))? as i64).collect(),
            _ => return Some(vec![Dim::Unknown; x.len()]),
        };
        let (starts, ends, steps) = (self.ints(1, "starts"), self.ints(2, "ends"), self.ints(4, "steps"));
        for (i, a) in axes.iter().enumerate() {
            let a = axis_of(*a, x.len())?;
            let step = match (&steps, self.has(4, "steps")) {
                (Some(s), _) => *s.get(i)?,
                (None, false) => 1,
                _ => 0,
            };
            shape[a] = match (&x[a], &starts, &ends) {
                (Dim::Known(n), Some(s), Some(e)) => size(slice_axis(*n, *s.get(i)?, *e.get(i)?, step).map(|(_, count)| count)),
                (d, Some(s), Some(e)) if s.get(i) == Some(&0) && e.get(i).is_some_and(|e| *e >= i32::MAX as i64) && step == 1 => d.clone(),
                _ => Dim::Unknown,
            };
        }
        Some(shape)
    }

    fn gather(&self) -> Shape {
        let (x, index) = (self.shape(0)?, self.shape(1)?);
        let a = axis_of(self.node.int("axis").unwrap_or(0), x.len())?;
        Some([&x[..a], index, &x[a + 1..]].concat())
    }

    fn gather_nd(&self) -> Shape {
        let (x, index) = (self.shape(0)?, self.shape(1)?);
        let (Dim::Known(depth), rest) = index.split_last()? else { return None };
        let batch = usize::try_from(self.node.int("batch_dims").unwrap_or(0)).ok()?;
        Some([rest, x.get(batch + depth..)?].concat())
    }

    fn grid_sample(&self) -> Shape {
        let (x, grid) = (self.shape(0)?, self.shape(1)?);
        Some([x.get(..2)?, grid.get(1..grid.len().checked_sub(1)?)?].concat())
    }

    fn roi_align(&self) -> Shape {
        let side = |name: &str| Dim::Known(self.node.int(name).unwrap_or(1) as usize);
        Some(vec![self.shape(1)?.first()?.clone(), self.shape(0)?.get(1)?.clone(), side("output_height"), side("output_width")])
    }

    /// Of four axes, or of three of which the last holds all heads.
    fn attention(&self) -> Shape {
        let (q, v) = (self.shape(0)?, self.shape(2)?.last()?);
        let heads = |name: &str| self.node.int(name).and_then(|n| usize::try_from(n).ok());
        let last = match (q.len(), v) {
            (3, Dim::Known(v)) => size(heads("q_num_heads").zip(heads("kv_num_heads").filter(|n| *n > 0)).map(|(q, kv)| v / kv * q)),
            (3, _) => Dim::Unknown,
            (_, v) => v.clone(),
        };
        Some([q.get(..q.len().checked_sub(1)?)?, &[last]].concat())
    }

    fn concat(&self) -> Shape {
        let shapes: Vec<&[Dim]> = (0..self.inputs.len()).map(|s| self.shape(s)).collect::<Option<_>>()?;
        let first = *shapes.first()?;
        let a = axis_of(self.node.int("axis").unwrap_or(1), first.len())?;
        if shapes.iter().any(|s| s.len() != first.len()) {
            return None;
        }
        let pick = |i: usize| match i == a {
            true => size(shapes.iter().map(|s| if let Dim::Known(n) = s[i] { Some(n) } else { None }).sum::<Option<usize>>()),
            false => shapes.iter().map(|s| &s[i]).find(|d| matches!(d, Dim::Known(_))).unwrap_or(&first[i]).clone(),
        };
        Some((0..first.len()).map(pick).collect())
    }

    fn split(&self, dtype: Option<DType>) -> Vec<Fact> {
        let n = self.node.outputs().len();
        let shapes = || -> Option<Vec<Shape>> {
            let x = self.shape(0)?;
            let a = axis_of(self.node.int("axis").unwrap_or(0), x.len())?;
            let lengths = match (&x[a], self.ints(1, "split"), self.has(1, "split")) {
                (_, Some(s), _) => s.iter().map(|d| size(usize::try_from(*d).ok())).collect(),
                (Dim::Known(len), None, false) => split_lengths(*len, n, None)?.into_iter().map(Dim::Known).collect(),
                _ => vec![Dim::Unknown; n],
            };
            Some(lengths.into_iter().map(|d| Some([&x[..a], &[d], &x[a + 1..]].concat())).collect())
        };
        let shapes = shapes().unwrap_or_else(|| vec![None; n]);
        shapes.into_iter().map(|s| Fact::of(dtype, s)).collect()
    }

    fn tile(&self) -> Shape {
        let (x, r) = (self.shape(0)?, self.ints(1, "repeats"));
        Some(
            (0..x.len())
                .map(|i| match (&x[i], r.as_ref().and_then(|r| r.get(i))) {
                    (Dim::Known(n), Some(k)) => size(usize::try_from(*k).ok().and_then(|k| n.checked_mul(k))),
                    (d, Some(1)) => d.clone(),
                    _ => Dim::Unknown,
                })
                .collect(),
        )
    }

    fn pad(&self) -> Shape {
        let x = self.shape(0)?;
        if self.fact(3).is_some() {
            return Some(vec![Dim::Unknown; x.len()]);
        }
        let Some(p) = self.ints(1, "pads").filter(|p| p.len() == 2 * x.len()) else { return Some(vec![Dim::Unknown; x.len()]) };
        Some(
            (0..x.len())
                .map(|i| match (&x[i], p[i] + p[i + x.len()]) {
                    (d, 0) => d.clone(),
                    (Dim::Known(n), more) => size(usize::try_from(*n as i64 + more).ok()),
                    _ => Dim::Unknown,
                })
                .collect(),
        )
    }

    fn one_hot(&self) -> Shape {
        let x = self.shape(0)?;
        let axis = self.node.int("axis").unwrap_or(-1);
        let a = axis_of(axis, x.len() + 1)?;
        let depth = self.fact(1).and_then(|f| f.constant.as_ref()).and_then(|t| t.to_f32().ok().and_then(|v| v.first().copied()));
        let mut shape = x.to_vec();
        shape.insert(a, size(depth.map(|d| d as usize)));
        Some(shape)
    }

    fn top_k(&self) -> Shape {
        let x = self.shape(0)?;
        let a = axis_of(self.node.int("axis").unwrap_or(-1), x.len())?;
        let k = self.ints(1, "k").and_then(|k| k.first().copied()).or(self.node.int("k"));
        let mut shape = x.to_vec();
        shape[a] = size(k.and_then(|k| usize::try_from(k).ok()));
        Some(shape)
    }
}
