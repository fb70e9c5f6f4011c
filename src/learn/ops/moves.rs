//! What moves elements, and reductions.

use super::{Call, Made, make, need, one};
use crate::graph::{Op, eval};
use crate::learn::moves::FILLED;
use crate::learn::tape::{Tape, Var};
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

impl Call<'_> {
    pub(super) fn moves(&self) -> Made {
        match self.node.op {
            Op::Reshape | Op::Flatten | Op::Squeeze | Op::Unsqueeze | Op::Identity | Op::Dropout => {
                if self.node.outputs().iter().skip(1).flatten().any(|v| !self.g.value(*v).uses().is_empty()) {
                    return Err("whose mask is read is not differentiated".into());
                }
                let shape = self.made()?;
                one(move |t, x| t.reshape(x, &shape))
            }
            Op::Cast => {
                let ty = self.node.output(0).and_then(|v| self.g.value(v).dtype());
                if ty != Some(DType::F32) {
                    return Err("to anything but float32 is not differentiated".into());
                }
                one(|_, x| x)
            }
            Op::Concat => {
                let rank = self.made()?.len();
                let axis = self.axis(self.node.int("axis").unwrap_or(0), rank)?;
                make(move |t, ins| {
                    let parts = (0..ins.len()).map(|i| need(ins, i)).collect::<crate::Result<Vec<Var>>>()?;
                    Ok(vec![t.concat(&parts, axis)])
                })
            }
            Op::Gather if self.node.input(1).is_some_and(|v| self.constant(v).is_none()) => {
                if self.node.int("axis").unwrap_or(0) != 0 {
                    return Err("along any axis but the first, by indices computed at run time, is not differentiated".into());
                }
                make(|t, ins| {
                    let y = t.gather_rows(need(ins, 0)?, need(ins, 1)?);
                    Ok(vec![y.ok_or_else(|| crate::Error::failed("an index lies outside its table"))?])
                })
            }
            Op::DepthToSpace | Op::SpaceToDepth => self.depth_space(),
            Op::Transpose | Op::Slice | Op::Gather | Op::Expand | Op::Tile | Op::Split | Op::Pad => self.rearranged(),
            _ => self.reduced(),
        }
    }

    /// Asks the constant evaluator where each element comes from, by letting it move their numbers.
    fn rearranged(&self) -> Made {
        let from = self.shape(0)?;
        let count: usize = from.iter().product();
        let numbers = i32::try_from(count).map_err(|_| "of so many elements is not differentiated")?;
        let own: Vec<Option<&Tensor>> = self.node.inputs().iter().map(|v| v.and_then(|v| self.constant(v))).collect();
        let numbered = Tensor::of(DType::I32, &from, (1..=numbers).collect());
        let none = Tensor::of(DType::I32, &[], vec![0i32]);
        let mut node = self.node.clone();
        let mut inputs = own.clone();
        inputs[0] = Some(&numbered);
        let mut filler = 0.0;
        if self.node.op == Op::Pad {
            filler = node.float("value").unwrap_or(0.0);
            node.remove_attr("value");
            if let Some(v) = self.node.input(2) {
                let given = own[2].and_then(|t| t.to_f32().ok()?.first().copied());
                filler = given.ok_or_else(|| format!("with {} computed at run time is not differentiated", self.g.value(v).name))?;
                inputs[2] = Some(&none);
            }
        }
        let parts = eval(&node, &inputs).ok_or("of this form is not differentiated")?;
        let parts = parts
            .iter()
            .map(|p| Ok((Arc::new(p.to_i64().map_err(|e| e.to_string())?.iter().map(|i| (*i as u32).wrapping_sub(1)).collect()), p.shape().to_vec())))
            .collect::<std::result::Result<Vec<(Arc<Vec<u32>>, Vec<usize>)>, String>>()?;
        const { assert!(FILLED == 0u32.wrapping_sub(1)) };
        make(move |t, ins| {
            let x = need(ins, 0)?;
            Ok(parts.iter().map(|(source, shape)| t.pick(x, source.clone(), shape, filler)).collect())
        })
    }

    fn depth_space(&self) -> Made {
        let (from, to) = (self.shape(0)?, self.made()?);
        let b = self.node.int("blocksize").and_then(|b| usize::try_from(b).ok()).unwrap_or(1).max(1);
        let [n, c, h, w] = from[..] else { return Err("of any rank but 4 is not differentiated".into()) };
        let columns_first = self.node.str("mode").unwrap_or("DCR") == "CRD";
        let (split, order): (Vec<usize>, [usize; 6]) = match (self.node.op, columns_first) {
            (Op::SpaceToDepth, false) => (vec![n, c, h / b, b, w / b, b], [0, 3, 5, 1, 2, 4]),
            (Op::SpaceToDepth, true) => (vec![n, c, h / b, b, w / b, b], [0, 1, 3, 5, 2, 4]),
            (_, false) => (vec![n, b, b, c / (b * b), h, w], [0, 3, 4, 1, 5, 2]),
            (_, true) => (vec![n, c / (b * b), b, b, h, w], [0, 1, 4, 2, 5, 3]),
        };
        if split.iter().product::<usize>() != from.iter().product::<usize>() {
            return Err(format!("cannot cut {from:?} into blocks of {b}"));
        }
        one(move |t, x| {
            let x = t.reshape(x, &split);
            let y = t.transpose(x, &order);
            t.reshape(y, &to)
        })
    }

    fn reduced(&self) -> Made {
        let (from, to) = (self.shape(0)?, self.made()?);
        let axes = self.ints(1, "axes")?.unwrap_or_default();
        if axes.is_empty() && self.node.int("noop_with_empty_axes") == Some(1) {
            return Err("over no axes is not differentiated".into());
        }
        let axes: Vec<usize> = match axes.is_empty() {
            true => (0..from.len()).collect(),
            false => axes.iter().map(|a| self.axis(*a, from.len())).collect::<std::result::Result<_, _>>()?,
        };
        type Reduce = fn(&mut Tape, Var, &[usize]) -> Var;
        let reduce: Reduce = match self.node.op {
            Op::ReduceSum => |t, x, a| t.sum_over(x, a),
            Op::ReduceMean => |t, x, a| t.mean_over(x, a),
            Op::ReduceMax => |t, x, a| t.max_over(x, a),
            Op::ReduceMin => |t, x, a| {
                let x = t.neg(x);
                let y = t.max_over(x, a);
                t.neg(y)
            },
            Op::ReduceL1 => |t, x, a| {
                let x = t.abs(x);
                t.sum_over(x, a)
            },
            Op::ReduceSumSquare => |t, x, a| {
                let x = t.mul(x, x);
                t.sum_over(x, a)
            },
            Op::ReduceL2 => |t, x, a| {
                let x = t.mul(x, x);
                let y = t.sum_over(x, a);
                t.sqrt(y)
            },
            Op::ReduceLogSum => |t, x, a| {
                let y = t.sum_over(x, a);
                t.log(y)
            },
            Op::ReduceLogSumExp => |t, x, a| {
                // Less the largest, whose own gradient cancels out.
                let top = t.max_over(x, a);
                let less = t.sub(x, top);
                let e = t.exp(less);
                let sum = t.sum_over(e, a);
                let y = t.log(sum);
                t.add(y, top)
            },
            _ => return Err("is not differentiated".into()),
        };
        one(move |t, x| {
            let y = reduce(t, x, &axes);
            t.reshape(y, &to)
        })
    }
}
