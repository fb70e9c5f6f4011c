//! What each operator records on a tape, for fixed shapes. An op, form or attribute that is not covered is refused with the reason, never guessed.

mod moves;
#[cfg(test)]
mod tests;
mod windows;

use super::tape::{Tape, Var};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Op, ValueId};

/// Records one node: given its inputs, by slot, it makes its outputs.
pub(super) type Kernel = Box<dyn Fn(&mut Tape, &[Option<Var>]) -> Result<Vec<Var>> + Send + Sync>;

/// A kernel, or why there is none.
type Made = std::result::Result<Kernel, String>;

/// A node of a specialised graph, whose kernel is wanted.
#[derive(Clone, Copy)]
struct Call<'a> {
    g: &'a Graph,
    node: &'a Node,
    opset: i64,
}

/// Operators that some form of is covered.
#[rustfmt::skip]
const KNOWN: &[Op] = &[
    Op::Abs, Op::Add, Op::AveragePool, Op::BatchNormalization, Op::BiasGelu, Op::Cast, Op::Celu, Op::Clip, Op::Concat, Op::Conv, Op::ConvTranspose, Op::Cos,
    Op::DepthToSpace, Op::Div, Op::Dropout, Op::Elu, Op::Erf, Op::Exp, Op::Expand, Op::FastGelu, Op::Flatten, Op::Gather, Op::Gelu, Op::Gemm,
    Op::GlobalAveragePool, Op::GlobalMaxPool, Op::GroupNormalization, Op::HardSigmoid, Op::HardSwish, Op::Identity, Op::InstanceNormalization,
    Op::LayerNormalization, Op::LeakyRelu, Op::Log, Op::LogSoftmax, Op::MatMul, Op::Max, Op::MaxPool, Op::Mean, Op::Min, Op::MsGelu, Op::Mul, Op::Neg,
    Op::PRelu, Op::Pad, Op::Pow, Op::QuickGelu, Op::RMSNormalization, Op::Reciprocal, Op::ReduceL1, Op::ReduceL2, Op::ReduceLogSum, Op::ReduceLogSumExp,
    Op::ReduceMax, Op::ReduceMean, Op::ReduceMin, Op::ReduceSum, Op::ReduceSumSquare, Op::Relu, Op::Reshape, Op::Resize, Op::Selu, Op::Sigmoid,
    Op::SimplifiedLayerNormalization, Op::Sin, Op::Slice, Op::Softmax, Op::Softplus, Op::SpaceToDepth, Op::Split, Op::Sqrt, Op::Squeeze, Op::Sub, Op::Sum,
    Op::Swish, Op::Tanh, Op::Tile, Op::Transpose, Op::Unsqueeze, Op::Upsample, Op::Where,
];

/// Whether some form of the operator is covered.
pub(super) fn is_known(node: &Node) -> bool {
    KNOWN.contains(&node.op)
}

/// Whether the op gives integers on as they are.
pub(super) fn moves(op: Op) -> bool {
    matches!(op, Op::Reshape | Op::Flatten | Op::Squeeze | Op::Unsqueeze | Op::Identity | Op::Transpose | Op::Slice | Op::Concat | Op::Gather | Op::Expand)
}

/// What a node records.
pub(super) fn kernel(g: &Graph, node: &Node, opset: i64) -> Made {
    if !is_known(node) {
        return Err("is not differentiated".into());
    }
    let c = Call { g, node, opset };
    let float = |name: &str, none: f32| node.float(name).unwrap_or(none);
    let alpha = |none: f32| float("alpha", none);
    match node.op {
        Op::Relu => one(|t, x| t.relu(x)),
        Op::Clip => {
            let (lo, hi) = crate::graph::bounds(g, node).ok_or("with bounds computed at run time is not differentiated")?;
            one(move |t, x| t.clip(x, lo, hi))
        }
        Op::Sigmoid => one(|t, x| t.sigmoid(x)),
        Op::Tanh => one(|t, x| t.tanh(x)),
        Op::Exp => one(|t, x| t.exp(x)),
        Op::Log => one(|t, x| t.log(x)),
        Op::Sqrt => one(|t, x| t.sqrt(x)),
        Op::Erf => one(|t, x| t.erf(x)),
        Op::Abs => one(|t, x| t.abs(x)),
        Op::Neg => one(|t, x| t.neg(x)),
        Op::Reciprocal => one(|t, x| t.reciprocal(x)),
        Op::Sin => one(|t, x| t.sin(x)),
        Op::Cos => one(|t, x| t.cos(x)),
        Op::Softplus => one(|t, x| t.softplus(x)),
        Op::HardSwish => one(|t, x| t.hard_swish(x)),
        Op::LeakyRelu => {
            let a = alpha(0.01);
            one(move |t, x| t.leaky_relu(x, a))
        }
        Op::Elu => {
            let a = alpha(1.0);
            one(move |t, x| t.elu(x, a, 1.0))
        }
        Op::Selu => {
            let (a, gamma) = (alpha(1.673_263_2), float("gamma", 1.050_701));
            one(move |t, x| t.elu(x, a, gamma))
        }
        Op::Celu => {
            let a = alpha(1.0);
            one(move |t, x| {
                let inner = t.scale(x, 1.0 / a, 0.0);
                let y = t.elu(inner, 1.0, 1.0);
                t.scale(y, a, 0.0)
            })
        }
        Op::HardSigmoid => {
            let (a, b) = (alpha(0.2), float("beta", 0.5));
            one(move |t, x| t.hard_sigmoid(x, a, b))
        }
        Op::Swish => {
            let a = alpha(1.0);
            one(move |t, x| t.swish(x, a))
        }
        Op::QuickGelu => {
            let a = alpha(1.702);
            one(move |t, x| t.swish(x, a))
        }
        Op::Gelu if node.str("approximate") == Some("tanh") => one(|t, x| t.gelu_tanh(x)),
        Op::Gelu | Op::MsGelu => one(|t, x| t.gelu(x)),
        Op::BiasGelu | Op::FastGelu => {
            let by_tanh = node.op == Op::FastGelu;
            make(move |t, ins| {
                let x = match (need(ins, 0)?, ins.get(1).copied().flatten()) {
                    (x, Some(b)) => t.add(x, b),
                    (x, None) => x,
                };
                Ok(vec![if by_tanh { t.gelu_tanh(x) } else { t.gelu(x) }])
            })
        }
        Op::Add => two(|t, a, b| t.add(a, b)),
        Op::Sub => two(|t, a, b| t.sub(a, b)),
        Op::Mul => two(|t, a, b| t.mul(a, b)),
        Op::Div => two(|t, a, b| t.div(a, b)),
        Op::Pow => two(|t, a, b| t.pow(a, b)),
        Op::PRelu => two(|t, a, b| t.prelu(a, b)),
        Op::MatMul => two(|t, a, b| t.matmul(a, b)),
        Op::Sum => several(|t, a, b| t.add(a, b), false),
        Op::Mean => several(|t, a, b| t.add(a, b), true),
        Op::Max => several(|t, a, b| t.max(a, b), false),
        Op::Min => several(|t, a, b| t.min(a, b), false),
        Op::Where => make(|t, ins| Ok(vec![t.choose(need(ins, 0)?, need(ins, 1)?, need(ins, 2)?)])),
        Op::Gemm => c.gemm(),
        Op::Softmax | Op::LogSoftmax => c.softmax(),
        Op::BatchNormalization => c.batch_norm(),
        Op::LayerNormalization | Op::RMSNormalization | Op::SimplifiedLayerNormalization => c.layer_norm(),
        Op::InstanceNormalization | Op::GroupNormalization => c.group_norm(),
        Op::Conv | Op::ConvTranspose | Op::MaxPool | Op::AveragePool | Op::GlobalAveragePool | Op::GlobalMaxPool | Op::Resize | Op::Upsample => c.windows(),
        _ => c.moves(),
    }
}

fn make(run: impl Fn(&mut Tape, &[Option<Var>]) -> Result<Vec<Var>> + Send + Sync + 'static) -> Made {
    Ok(Box::new(run))
}

fn one(f: impl Fn(&mut Tape, Var) -> Var + Send + Sync + 'static) -> Made {
    make(move |t, ins| Ok(vec![f(t, need(ins, 0)?)]))
}

fn two(f: impl Fn(&mut Tape, Var, Var) -> Var + Send + Sync + 'static) -> Made {
    make(move |t, ins| Ok(vec![f(t, need(ins, 0)?, need(ins, 1)?)]))
}

/// Any number of operands, one after the other.
fn several(f: fn(&mut Tape, Var, Var) -> Var, mean: bool) -> Made {
    make(move |t, ins| {
        let mut y = need(ins, 0)?;
        for i in 1..ins.len() {
            y = f(t, y, need(ins, i)?);
        }
        Ok(vec![if mean { t.scale(y, 1.0 / ins.len() as f32, 0.0) } else { y }])
    })
}

/// The operand at `slot`, which must be there.
fn need(inputs: &[Option<Var>], slot: usize) -> Result<Var> {
    inputs.get(slot).copied().flatten().ok_or_else(|| Error::failed(format!("its input {slot} is not a tensor of numbers")))
}

impl<'a> Call<'a> {
    fn shape(&self, slot: usize) -> std::result::Result<Vec<usize>, String> {
        super::segment::shape_of(self.g, self.node.input(slot)).ok_or_else(|| "reads a tensor of unknown shape".to_string())
    }

    fn made(&self) -> std::result::Result<Vec<usize>, String> {
        super::segment::shape_of(self.g, self.node.output(0)).ok_or_else(|| "makes a tensor of unknown shape".to_string())
    }

    /// A non-negative axis of a tensor of `rank`.
    fn axis(&self, axis: i64, rank: usize) -> std::result::Result<usize, String> {
        let a = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(a).ok().filter(|a| *a < rank).ok_or_else(|| format!("has no axis {axis}"))
    }

    /// Integers of a constant input or an attribute; `Ok(None)` where it is left out.
    fn ints(&self, slot: usize, name: &str) -> std::result::Result<Option<Vec<i64>>, String> {
        match self.node.input(slot) {
            Some(v) => match self.constant(v) {
                Some(t) => t.to_i64().map(Some).map_err(|e| e.to_string()),
                None => Err(format!("with {name} computed at run time is not differentiated")),
            },
            None => Ok(self.node.ints(name).map(<[i64]>::to_vec)),
        }
    }

    fn constant(&self, v: ValueId) -> Option<&'a crate::tensor::Tensor> {
        self.g.constant(v).map(|c| &c.tensor)
    }

    fn gemm(&self) -> Made {
        let flag = |name: &str| self.node.int(name).unwrap_or(0) != 0;
        let (ta, tb) = (flag("transA"), flag("transB"));
        let (alpha, beta) = (self.node.float("alpha").unwrap_or(1.0), self.node.float("beta").unwrap_or(1.0));
        make(move |t, ins| {
            let mut y = t.product(need(ins, 0)?, ta, need(ins, 1)?, tb);
            if alpha != 1.0 {
                y = t.scale(y, alpha, 0.0);
            }
            if let Some(c) = ins.get(2).copied().flatten() {
                let c = if beta != 1.0 { t.scale(c, beta, 0.0) } else { c };
                y = t.add(y, c);
            }
            Ok(vec![y])
        })
    }

    fn softmax(&self) -> Made {
        let (shape, log) = (self.shape(0)?, self.node.op == Op::LogSoftmax);
        let old = self.opset < 13;
        let axis = self.axis(self.node.int("axis").unwrap_or(if old { 1 } else { -1 }), shape.len())?;
        // Before opset 13 all axes from this one on are one.
        let flat = [shape[..axis].iter().product(), shape[axis..].iter().product()];
        one(move |t, x| {
            let (x, a) = if old { (t.reshape(x, &flat), 1) } else { (x, axis) };
            let y = if log { t.log_softmax(x, a) } else { t.softmax(x, a) };
            if old { t.reshape(y, &shape) } else { y }
        })
    }

    fn batch_norm(&self) -> Made {
        if self.node.int("training_mode").unwrap_or(0) != 0 || self.node.outputs().iter().skip(1).any(Option::is_some) {
            return Err("in training mode is not differentiated".into());
        }
        let (rank, epsilon) = (self.shape(0)?.len(), self.node.float("epsilon").unwrap_or(1e-5));
        make(move |t, ins| {
            let [x, scale, offset, mean, var] = [need(ins, 0)?, need(ins, 1)?, need(ins, 2)?, need(ins, 3)?, need(ins, 4)?];
            let spread = t.scale(var, 1.0, epsilon);
            let spread = t.sqrt(spread);
            let factor = t.div(scale, spread);
            let moved = t.mul(mean, factor);
            let offset = t.sub(offset, moved);
            Ok(vec![affine(t, x, Some(factor), Some(offset), rank, 1)])
        })
    }

    fn layer_norm(&self) -> Made {
        let shape = self.shape(0)?;
        if self.node.outputs().iter().skip(1).any(|v| v.is_some_and(|v| !self.g.value(v).uses().is_empty() || self.g.is_output(v))) {
            return Err("whose mean or deviation is read is not differentiated".into());
        }
        let axis = self.axis(self.node.int("axis").unwrap_or(-1), shape.len())?;
        let (length, epsilon) = (shape[axis..].iter().product(), self.node.float("epsilon").unwrap_or(1e-5));
        let keep_mean = self.node.op != Op::LayerNormalization;
        make(move |t, ins| {
            let mut y = t.normalize(need(ins, 0)?, length, epsilon, keep_mean);
            if let Some(scale) = ins.get(1).copied().flatten() {
                y = t.mul(y, scale);
            }
            if let Some(offset) = ins.get(2).copied().flatten() {
                y = t.add(y, offset);
            }
            Ok(vec![y])
        })
    }

    fn group_norm(&self) -> Made {
        let (shape, grouped) = (self.shape(0)?, self.node.op == Op::GroupNormalization);
        let channels = *shape.get(1).ok_or("of a tensor without channels is not differentiated")?;
        let groups = if grouped { self.node.int("num_groups").and_then(|n| usize::try_from(n).ok()).unwrap_or(1) } else { channels };
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(format!("cannot make {groups} groups of {channels} channels"));
        }
        let (length, epsilon) = (shape[1..].iter().product::<usize>() / groups, self.node.float("epsilon").unwrap_or(1e-5));
        make(move |t, ins| {
            let y = t.normalize(need(ins, 0)?, length, epsilon, false);
            // Before opset 21 scale and offset of GroupNormalization are one a group.
            let each = |t: &mut Tape, v: Var| match t.value(v).len() {
                n if n == channels => v,
                _ => t.pick(v, (0..channels).map(|c| (c / (channels / groups)) as u32).collect::<Vec<u32>>(), &[channels], 0.0),
            };
            let (scale, offset) = (each(t, need(ins, 1)?), each(t, need(ins, 2)?));
            Ok(vec![affine(t, y, Some(scale), Some(offset), shape.len(), 1)])
        })
    }
}

/// `x · factor + offset` with one of each an index of `axis`.
fn affine(t: &mut Tape, x: Var, factor: Option<Var>, offset: Option<Var>, rank: usize, axis: usize) -> Var {
    let along = |t: &mut Tape, v: Var| {
        let mut shape = vec![1; rank - axis];
        shape[0] = t.value(v).len();
        t.reshape(v, &shape)
    };
    let mut y = x;
    if let Some(f) = factor {
        let f = along(t, f);
        y = t.mul(y, f);
    }
    if let Some(o) = offset {
        let o = along(t, o);
        y = t.add(y, o);
    }
    y
}
