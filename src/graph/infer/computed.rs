//! Shapes of what is computed: reductions, pools, products, recurrence.

use super::super::eval::{reduced_axes, reduced_shape};
use super::super::{AttrValue, Dim, Op};
use super::Fact;
use super::rules::{Inputs, Shape, size};
use crate::tensor::DType;
use std::collections::BTreeMap;

impl<'a> Inputs<'a> {
    pub(super) fn reduced(&self, axes: Option<&[i64]>, noop: bool) -> Shape {
        let x = self.shape(0)?;
        let axes = reduced_axes(axes, noop, x.len())?;
        let keep = self.node.int("keepdims").unwrap_or(1) != 0;
        let index: Vec<usize> = (0..x.len()).collect();
        let kept = reduced_shape(&index, &axes, false);
        if keep {
            Some((0..x.len()).map(|i| if axes.contains(&i) { Dim::Known(1) } else { x[i].clone() }).collect())
        } else {
            Some(kept.into_iter().map(|i| x[i].clone()).collect())
        }
    }

    pub(super) fn reduce(&self) -> Shape {
        let axes = match (self.ints(1, "axes"), self.has(1, "axes")) {
            (None, true) => return None,
            (axes, _) => axes,
        };
        self.reduced(axes.as_deref(), self.node.int("noop_with_empty_axes") == Some(1))
    }

    pub(super) fn global_pool(&self) -> Shape {
        let x = self.shape(0)?;
        Some((0..x.len()).map(|i| if i < 2 { x[i].clone() } else { Dim::Known(1) }).collect())
    }

    pub(super) fn resize(&self) -> Shape {
        let x = self.shape(0)?;
        let (scales, sizes) = match self.node.op {
            Op::Upsample => (self.fact(1), None),
            _ if self.inputs.len() == 2 => (self.fact(1), None),
            _ => (self.fact(2), self.fact(3)),
        };
        if let Some(s) = sizes.and_then(Fact::elements)
            && self.node.ints("axes").is_none()
            && s.len() == x.len()
        {
            return Some(s.into_iter().map(|d| size(d.and_then(|d| usize::try_from(d).ok()))).collect());
        }
        let s = scales.and_then(|f| f.constant.as_ref()).and_then(|t| t.to_f32().ok().map(|v| v.into_owned()));
        let s = s.or_else(|| match self.node.attr("scales") {
            Some(AttrValue::Floats(v)) => Some(v.clone()),
            _ => None,
        });
        match s {
            Some(s) if s.len() == x.len() => Some(
                (0..x.len())
                    .map(|i| match (&x[i], s[i]) {
                        (d, 1.0) => d.clone(),
                        (Dim::Known(n), s) => Dim::Known((*n as f32 * s).floor() as usize),
                        _ => Dim::Unknown,
                    })
                    .collect(),
            ),
            _ => Some(vec![Dim::Unknown; x.len()]),
        }
    }

    pub(super) fn depth_space(&self) -> Shape {
        let x = self.shape(0)?;
        let b = usize::try_from(self.node.int("blocksize")?).ok().filter(|b| *b > 0)?;
        let scale = |d: &Dim, f: &dyn Fn(usize) -> usize| if let Dim::Known(n) = d { Dim::Known(f(*n)) } else { Dim::Unknown };
        let [n, c, h, w] = x else { return None };
        Some(match self.node.op {
            Op::DepthToSpace => vec![n.clone(), scale(c, &|c| c / (b * b)), scale(h, &|h| h * b), scale(w, &|w| w * b)],
            _ => vec![n.clone(), scale(c, &|c| c * b * b), scale(h, &|h| h / b), scale(w, &|w| w / b)],
        })
    }

    pub(super) fn matmul(&self, a: usize, b: usize) -> Shape {
        let (x, y) = (self.shape(a)?, self.shape(b)?);
        let (m, n) = (x.len() >= 2, y.len() >= 2);
        let outer_x = if m { &x[..x.len() - 2] } else { &[] };
        let outer_y = if n { &y[..y.len() - 2] } else { &[] };
        let facts = [Fact::of(None, Some(outer_x.to_vec())), Fact::of(None, Some(outer_y.to_vec()))];
        let refs = [Some(&facts[0]), Some(&facts[1])];
        let rank = outer_x.len().max(outer_y.len());
        let outer = if rank == 0 { Vec::new() } else { Inputs { node: self.node, inputs: &refs }.join_two()? };
        let mut shape = outer;
        if m {
            shape.push(x[x.len() - 2].clone());
        }
        if n {
            shape.push(y[y.len() - 1].clone());
        }
        Some(shape)
    }

    pub(super) fn join_two(&self) -> Shape {
        let (a, b) = (self.shape(0)?, self.shape(1)?);
        let rank = a.len().max(b.len());
        let at = |s: &[Dim], i: usize| if i + s.len() < rank { Dim::Known(1) } else { s[i + s.len() - rank].clone() };
        Some(
            (0..rank)
                .map(|i| match (at(a, i), at(b, i)) {
                    (Dim::Known(1), d) | (d, Dim::Known(1)) => d,
                    (Dim::Known(n), _) | (_, Dim::Known(n)) => Dim::Known(n),
                    (x, y) if x == y => x,
                    _ => Dim::Unknown,
                })
                .collect(),
        )
    }

    /// Every letter of the equation has one size; `...` stands for axes that broadcast. Without `->`, letters that occur once come out in alphabetical order.
    pub(super) fn einsum(&self) -> Shape {
        let equation: String = self.node.str("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        let (terms, result) = equation.split_once("->").map_or((&*equation, None), |(terms, result)| (terms, Some(result)));
        let terms: Vec<&str> = terms.split(',').collect();
        let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
        let mut spread: Vec<Fact> = Vec::new();
        for (slot, term) in terms.iter().enumerate() {
            let x = self.shape(slot)?;
            let (before, behind) = term.split_once("...").unwrap_or((term, ""));
            let between = x.len().checked_sub(before.chars().count() + behind.chars().count()).filter(|n| *n == 0 || term.contains("..."))?;
            let (front, back) = (before.chars().count(), before.chars().count() + between);
            spread.push(Fact::of(None, Some(x[front..back].to_vec())));
            for (letter, d) in before.chars().zip(&x[..front]).chain(behind.chars().zip(&x[back..])) {
                let known = sizes.entry(letter).or_insert_with(|| d.clone());
                if *known == Dim::Known(1) || matches!(d, Dim::Known(n) if *n != 1) {
                    *known = d.clone();
                }
            }
        }
        let spread = spread.iter().map(Some).collect::<Vec<_>>();
        let rest = Inputs { node: self.node, inputs: &spread }.broadcast(&(0..terms.len()).collect::<Vec<_>>())?;
        let once = |c: &&char| terms.iter().flat_map(|t| t.chars()).filter(|x| x == *c).count() == 1;
        let result = result.map_or_else(|| format!("...{}", sizes.keys().filter(once).collect::<String>()), str::to_string);
        let (before, behind) = result.split_once("...").unwrap_or((&result, ""));
        let of = |part: &str| part.chars().map(|c| sizes.get(&c).cloned()).collect::<Shape>();
        let rest = if result.contains("...") { rest } else { Vec::new() };
        Some([of(before)?, rest, of(behind)?].concat())
    }

    pub(super) fn replace_last(&self, n: Option<i64>) -> Shape {
        let mut s = self.shape(0)?.to_vec();
        *s.last_mut()? = size(n.and_then(|n| usize::try_from(n).ok()));
        Some(s)
    }

    pub(super) fn gemm(&self, b: usize) -> Shape {
        let (x, y) = (self.shape(0)?, self.shape(b)?);
        let ([r0, r1], [c0, c1]) = (x, y) else { return None };
        let flag = |name: &str| self.node.int(name).unwrap_or(0) != 0;
        Some(vec![if flag("transA") { r1 } else { r0 }.clone(), if flag("transB") { c0 } else { c1 }.clone()])
    }

    pub(super) fn recurrent(&self, dtype: Option<DType>) -> Vec<Fact> {
        let Some([t, b, _]) = self.shape(0) else { return vec![Fact::of(dtype, None); 3] };
        let directions = Dim::Known(if self.node.str("direction") == Some("bidirectional") { 2 } else { 1 });
        let hidden = match self.node.int("hidden_size") {
            Some(h) => size(usize::try_from(h).ok()),
            None => self.shape(2).and_then(|r| r.last().cloned()).unwrap_or(Dim::Unknown),
        };
        let (t, b, d, h) = (t.clone(), b.clone(), directions, hidden);
        let (y, state) = if self.node.int("layout") == Some(1) {
            (vec![t.clone(), b, d.clone(), h.clone()], vec![t, d, h])
        } else {
            (vec![t, d.clone(), b.clone(), h.clone()], vec![d, b, h])
        };
        vec![Fact::of(dtype, Some(y)), Fact::of(dtype, Some(state.clone())), Fact::of(dtype, Some(state))]
    }

    /// Type of QuantizeLinear's codes.
    pub(super) fn quantized(&self) -> Option<DType> {
        match (self.fact(2), self.node.int("output_dtype")) {
            (Some(f), _) => f.dtype,
            (None, Some(t)) if t != 0 => DType::of_onnx(t as i32),
            _ => Some(DType::U8),
        }
    }
}
