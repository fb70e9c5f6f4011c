//! What stands for a value that held codes: real numbers, codes as float32 numbers, codes in their own type. Each is made when first asked for.

use super::params::Ask;
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Dim, Node, Op, Type, ValueId};
use crate::quant::{Blocks, Codes, Format, QuantizerId, ScaleKind, Zeros};
use crate::tensor::{DType, Tensor};

/// What stands for a value that held codes. Numbers or real numbers are always there.
#[derive(Clone)]
pub struct Held {
    /// Type of the codes.
    pub dtype: DType,
    pub real: Option<Real>,
    /// The codes as float32.
    pub numbers: Option<ValueId>,
    pub integers: Option<ValueId>,
}

/// Real numbers on a quantizer's grid.
#[derive(Clone, Copy)]
pub struct Real {
    pub value: ValueId,
    /// The numbers' own type.
    pub float: DType,
    pub under: Under,
}

/// Whose grid it is.
#[derive(Clone, Copy, PartialEq)]
pub enum Under {
    Static(QuantizerId),
    /// Fitted when the model runs; the file hands scale and zero point around as these values.
    Dynamic {
        scale: ValueId,
        zero: ValueId,
    },
}

impl Held {
    pub fn real(dtype: DType, value: ValueId, float: DType, under: Under) -> Self {
        Held { dtype, real: Some(Real { value, float, under }), numbers: None, integers: None }
    }

    pub fn numbers(dtype: DType, numbers: ValueId) -> Self {
        Held { dtype, real: None, numbers: Some(numbers), integers: None }
    }
}

impl Work<'_> {
    /// Where the stand-in of `y`, a value of the file without a maker, is to be made, in type `float`: `y` itself, or, if it is an output, a new value.
    pub fn landing(&mut self, y: ValueId, float: DType) -> ValueId {
        if self.g.is_output(y) {
            let name = self.name(y);
            return self.g.add_value(&format!("{name}_float"));
        }
        self.retype(y, float);
        y
    }

    /// Notes what stands for `y`. An output gets its codes, in their own type.
    pub fn hold(&mut self, y: ValueId, held: Held) -> Result<()> {
        let dtype = held.dtype;
        self.held.insert(y, held);
        if self.g.is_output(y) && self.g.value(y).producer().is_none() {
            let n = self.numbers(y)?;
            self.emit_into(Node::new(Op::Cast, "").with("to", dtype.onnx() as i64), &[Some(n)], y);
            self.held.get_mut(&y).expect("inserted above").integers = Some(y);
        }
        Ok(())
    }

    /// The codes of `v` as float32 numbers: of a held value, a constant, or any integers.
    pub fn numbers(&mut self, v: ValueId) -> Result<ValueId> {
        let name = self.name(v);
        if let Some(t) = self.constant(v) {
            return Ok(self.g.add_constant(&format!("{name}_number"), code_numbers(&t)?));
        }
        let Some(held) = self.held.get(&v).cloned() else { return Ok(self.cast(v, DType::F32, &format!("{name}_number"))) };
        if let Some(n) = held.numbers {
            return Ok(n);
        }
        let Some(Real { value, float, under: Under::Static(q) }) = held.real else {
            return Err(Error::failed(format!("nothing stands for the codes of {name}")));
        };
        let value = if float == DType::F32 { value } else { self.cast(value, DType::F32, &format!("{name}_float")) };
        let params = self.all.table[q].params.clone().ok_or_else(|| Error::failed("its quantizer has no parameters"))?;
        let scale = self.spread(params.scale.clone(), q, v, &format!("{name}_scale"))?;
        let steps = self.op(Op::Div, &[value, scale], &format!("{name}_steps"));
        let mut n = self.round(steps, held.dtype, &name)?;
        if let Zeros::Integer(z) = params.zero {
            let zero = self.spread(z.iter().map(|z| *z as f32).collect(), q, v, &format!("{name}_zero"))?;
            n = self.op(Op::Add, &[n, zero], &format!("{name}_number"));
        }
        self.held.get_mut(&v).expect("it was there").numbers = Some(n);
        Ok(n)
    }

    /// Numbers rounded to what codes of `dtype` stand for at scale 1; integers are not yet cut to the type's range.
    pub fn round(&mut self, v: ValueId, dtype: DType, name: &str) -> Result<ValueId> {
        match Format::of_dtype(dtype) {
            Some(format @ Format::Float { .. }) => {
                let id = self.all.table.add(name, super::params::scheme(format, ScaleKind::Exact(DType::F32), &Zeros::None, Blocks::tensor()));
                self.all.table[id].params = Some(super::params::params(vec![1.0], Zeros::None));
                Ok(self.emit(Node::fake_quant(id, ""), &[Some(v)], &format!("{name}_rounded")))
            }
            _ => Ok(self.op(Op::Round, &[v], &format!("{name}_rounded"))),
        }
    }

    /// The codes of `v` in their own type, for nodes that know no quantization.
    pub fn integers(&mut self, v: ValueId) -> Result<ValueId> {
        let Some(held) = self.held.get(&v).cloned() else { return Ok(v) };
        if let Some(i) = held.integers {
            return Ok(i);
        }
        let n = self.numbers(v)?;
        let i = self.cast(n, held.dtype, &format!("{}_codes", self.name(v)));
        self.held.get_mut(&v).expect("it was there").integers = Some(i);
        Ok(i)
    }

    /// What the codes `v` stand for under the parameters of `ask`, as float32 or, for constants and DequantizeLinear, `to`; made as `into`, a value
    /// without a maker, if that is given. With it the quantizer, where the parameters are constants.
    pub fn real(&mut self, v: ValueId, ask: Ask, to: DType, into: Option<ValueId>) -> Result<(ValueId, Option<QuantizerId>)> {
        let zero_type = ask.zero.and_then(|z| self.dtype(z));
        let dtype = self.dtype(v).or(zero_type).ok_or_else(|| Error::usage(format!("the type of {} is not known", self.g.value(v).name)))?;
        let dims = self.dims(v);
        let name = self.name(v);
        let q = self.quantizer(ask, dtype, dims.as_deref(), &name)?;
        if let (Some(q), Some(t)) = (q, self.constant(v)) {
            if let (None, Some(known)) = (into, self.reals.get(&(v, q))) {
                return Ok((*known, Some(q)));
            }
            let made = self.constant_real(t, q, to, into, &format!("{name}_dequantized"))?;
            if to == DType::F32 {
                self.reals.entry((v, q)).or_insert(made);
            }
            return Ok((made, Some(q)));
        }
        if let Some(real) = self.held.get(&v).and_then(|h| h.real)
            && self.is_under(real.under, q, ask)
        {
            return Ok((self.alias(v, real, to, into), q));
        }
        if let Some(q) = q
            && let Some(made) = super::moves::pull(self, v, q)?
        {
            return Ok((self.converted(made, DType::F32, to, into), Some(q)));
        }
        let name = into.map_or(name, |v| self.name(v));
        let n = self.numbers(v)?;
        let (scale, zero) = match q {
            Some(q) => {
                let params = self.all.table[q].params.clone().ok_or_else(|| Error::failed("its quantizer has no parameters"))?;
                let zero = match params.zero {
                    Zeros::Integer(z) => Some(self.spread(z.iter().map(|z| *z as f32).collect(), q, v, &format!("{name}_zero"))?),
                    _ => None,
                };
                (self.spread(params.scale, q, v, &format!("{name}_scale"))?, zero)
            }
            None => self.computed(ask, v, &name)?,
        };
        let centred = match zero {
            Some(z) => self.op(Op::Sub, &[n, z], &format!("{name}_centred")),
            None => n,
        };
        let product = Node::new(Op::Mul, "");
        let inputs = [Some(centred), Some(scale)];
        let made = match (into, to) {
            (Some(out), DType::F32) => {
                self.emit_into(product, &inputs, out);
                out
            }
            _ => {
                let made = self.emit(product, &inputs, &format!("{name}_float"));
                self.converted(made, DType::F32, to, into)
            }
        };
        Ok((made, q))
    }

    /// Scale and zero point that are computed when the model runs, as float32 numbers that broadcast against `like`.
    pub fn computed(&mut self, ask: Ask, like: ValueId, name: &str) -> Result<(ValueId, Option<ValueId>)> {
        if ask.block != 0 && !self.is_one_number(ask.scale) {
            return Err(Error::usage(format!("the scales {} of its blocks are computed when the model runs", self.name(ask.scale))));
        }
        let scale = match self.dtype(ask.scale) {
            None | Some(DType::F32) => ask.scale,
            _ => self.cast(ask.scale, DType::F32, &format!("{name}_scale")),
        };
        let scale = self.along(scale, ask.scale, like, ask.axis)?;
        let Some(zero) = ask.zero else { return Ok((scale, None)) };
        let numbers = self.numbers(zero)?;
        Ok((scale, Some(self.along(numbers, zero, like, ask.axis)?)))
    }

    /// `numbers`, which stand for `parameter` of the file, in a shape that broadcasts against `like`: one for all, or one an index of `axis`.
    pub fn along(&mut self, numbers: ValueId, parameter: ValueId, like: ValueId, axis: i64) -> Result<ValueId> {
        if self.is_one_number(parameter) {
            return Ok(numbers);
        }
        let name = self.name(parameter);
        let (Some(1), Some(rank)) = (self.rank(parameter), self.rank(like)) else {
            return Err(Error::usage(format!("{name} is computed when the model runs, and is not known to be one number or one an index of an axis")));
        };
        let rank = rank as i64;
        let place = match (rank, axis) {
            (1, _) => 0,
            (_, ..0) => axis + rank,
            _ => axis,
        };
        if !(0..rank).contains(&place) {
            return Err(Error::usage(format!("its axis {axis} does not exist in a tensor of {rank} dimensions")));
        }
        let mut shape = vec![1; (rank - place) as usize];
        shape[0] = -1;
        let shape = self.g.add_constant(&format!("{name}_shape"), Tensor::of_i64(&[shape.len()], shape));
        Ok(self.op(Op::Reshape, &[numbers, shape], &format!("{name}_along")))
    }

    fn is_under(&self, under: Under, q: Option<QuantizerId>, ask: Ask) -> bool {
        match (under, q) {
            (Under::Static(own), Some(q)) => self.equal(own, q),
            (Under::Dynamic { scale, zero }, None) => ask.scale == scale && ask.zero == Some(zero),
            _ => false,
        }
    }

    /// Real numbers that stand for `v` once more as `into`: by the same FakeQuant of the same input, by taking over the node that makes them, or by
    /// Identity.
    fn alias(&mut self, v: ValueId, real: Real, to: DType, into: Option<ValueId>) -> ValueId {
        let value = real.value;
        let (Some(out), Some((node, slot)), true) = (into, self.g.value(value).producer(), real.float == to) else {
            return self.converted(value, real.float, to, into);
        };
        let n = self.g.node(node);
        if let (Some(q), Some(x)) = (n.quantizer(), n.input(0)) {
            let mut again = Node::fake_quant(q, self.from.clone());
            again.came_from = [n.came_from.clone(), vec![self.from.clone()]].concat();
            self.emit_into(again, &[Some(x)], out);
        } else if value == v && self.g.value(v).uses().is_empty() {
            self.g.set_output(node, slot as usize, out);
            self.drop_value(value);
            if let Some(Held { real: Some(r), .. }) = self.held.get_mut(&v) {
                r.value = out;
            }
        } else {
            return self.converted(value, to, to, into);
        }
        out
    }

    /// A value of float type `from` in type `to`, as `into` if that is given.
    fn converted(&mut self, v: ValueId, from: DType, to: DType, into: Option<ValueId>) -> ValueId {
        let node = if from == to { Node::new(Op::Identity, "") } else { Node::new(Op::Cast, "").with("to", to.onnx() as i64) };
        match into {
            Some(out) => {
                self.emit_into(node, &[Some(v)], out);
                out
            }
            None if from == to => v,
            None => {
                let name = self.name(v);
                self.emit(node, &[Some(v)], &name)
            }
        }
    }

    /// Constant codes as a FakeQuant without input.
    pub fn constant_real(&mut self, codes: Tensor, q: QuantizerId, to: DType, into: Option<ValueId>, name: &str) -> Result<ValueId> {
        let quantizer = &self.all.table[q];
        let layout = quantizer.scheme.blocks.layout(codes.shape())?;
        if let Some(p) = &quantizer.params
            && p.scale.len() != 1
            && p.scale.len() != layout.len()
        {
            return Err(Error::usage(format!("its {} scales do not fit the {} blocks of codes of shape {:?}", p.scale.len(), layout.len(), codes.shape())));
        }
        let out = into.unwrap_or_else(|| self.g.add_value(name));
        let shape = codes.shape().iter().map(|d| Dim::Known(*d)).collect();
        self.g.value_mut(out).ty = Type::Tensor { dtype: Some(to), shape: Some(shape) };
        let node_name = if into.is_some() { self.from.clone() } else { String::new() };
        let node = self.emit_into(Node::fake_quant(q, node_name), &[], out);
        let site = self.site(node);
        self.all.codes.insert(site, Codes(codes));
        Ok(out)
    }
}

/// What codes stand for at scale 1 without a zero point; plain numbers as they are.
fn code_numbers(t: &Tensor) -> Result<Tensor> {
    let values = match Format::of_dtype(t.dtype()) {
        Some(format) => Codes(t.clone()).unpack().into_iter().map(|c| format.value(c)).collect(),
        None => t.to_f32()?.into_owned(),
    };
    Ok(Tensor::of_f32(t.shape(), values))
}
