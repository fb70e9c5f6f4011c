//! Scale and zero point, as a file gives them → the table's quantizers.

use super::work::{Key, Work};
use crate::error::{Error, Result};
use crate::graph::{Dim, Op, ValueId};
use crate::quant::{
    Blocks, Codes, Curve, Format, NestedScale, Origin, Params, QuantizerId, Rounding, ScaleKind, Scheme, Timing, Zero, Zeros, dequantize, e8m0_value,
};
use crate::tensor::{DType, Tensor, numel};

/// How a node says its parameters.
#[derive(Clone, Copy)]
pub struct Ask {
    pub scale: ValueId,
    pub zero: Option<ValueId>,
    /// Axis of one-dimensional and blocked scales; negative ones count from the end.
    pub axis: i64,
    /// Elements of a block; 0 for none.
    pub block: i64,
}

/// A scale that is known.
struct Scale {
    values: Vec<f32>,
    shape: Vec<usize>,
    kind: ScaleKind,
    nested: Option<Box<NestedScale>>,
}

/// A scheme of static parameters that the file gives.
pub fn scheme(format: Format, scale: ScaleKind, zero: &Zeros, blocks: Blocks) -> Scheme {
    let zero = match zero {
        Zeros::None => Zero::None,
        Zeros::Integer(_) => Zero::Integer,
        Zeros::Real(_) => Zero::Real,
    };
    Scheme { format, scale, zero, blocks, timing: Timing::Static, rounding: Rounding::HalfEven }
}

/// Parameters that the file gives.
pub fn params(scale: Vec<f32>, zero: Zeros) -> Params {
    Params { scale, nested: None, zero, curve: Curve::Linear, origin: Origin::Fixed }
}

/// A constant scale's numbers and what they may be.
pub fn scale_numbers(t: &Tensor) -> Result<(Vec<f32>, ScaleKind)> {
    Ok(match t.dtype() {
        DType::F8E8M0 => (t.bytes().iter().map(|b| e8m0_value(*b)).collect(), ScaleKind::Pow2(DType::F8E8M0)),
        dtype @ (DType::F32 | DType::F16 | DType::BF16) => (t.to_f32()?.into_owned(), ScaleKind::Exact(dtype)),
        other => return Err(Error::usage(format!("its scale is of type {other}; scales are float32, float16, bfloat16 or float8e8m0"))),
    })
}

/// Constant zero points; none where all are 0 and codes lie around it anyway.
pub fn zero_numbers(t: &Tensor, format: Format) -> Result<Zeros> {
    if Format::of_dtype(t.dtype()).is_none() {
        return Err(Error::usage(format!("its zero point is of type {}, which holds no codes", t.dtype())));
    }
    let codes = Codes(t.clone()).unpack();
    match format {
        Format::Float { .. } | Format::Codebook { .. } => match codes.iter().find(|c| format.value(**c) != 0.0) {
            Some(_) => Err(Error::usage(format!("its zero point is not 0, which {format} does not allow"))),
            None => Ok(Zeros::None),
        },
        Format::Int { signed: true, .. } if codes.iter().all(|c| *c == 0) => Ok(Zeros::None),
        Format::Int { .. } => Ok(Zeros::Integer(codes)),
    }
}

impl Work<'_> {
    /// The quantizer of codes of type `dtype` under constant parameters; `None` where they are computed when the model runs. `dims`: of the
    /// quantized tensor, as far as known; `name`: the tensor's.
    pub fn quantizer(&mut self, ask: Ask, dtype: DType, dims: Option<&[Dim]>, name: &str) -> Result<Option<QuantizerId>> {
        let format = Format::of_dtype(dtype).ok_or_else(|| Error::usage(format!("{dtype} tensors hold no codes")))?;
        let zero = match ask.zero {
            None => None,
            Some(v) => match self.constant(v) {
                Some(t) => Some(t),
                None => return Ok(None),
            },
        };
        let Some(scale) = self.scale(ask.scale, ask.block > 0)? else { return Ok(None) };
        if let Some(z) = &zero
            && z.dtype() != dtype
        {
            return Err(Error::usage(format!("its zero point is of type {}, its codes of type {dtype}", z.dtype())));
        }
        let zeros = zero.as_ref().map_or(Ok(Zeros::None), |z| zero_numbers(z, format))?;
        if let Zeros::Integer(z) = &zeros
            && z.len() != 1
            && z.len() != scale.values.len()
        {
            return Err(Error::usage(format!("its {} zero points do not pair with its {} scales", z.len(), scale.values.len())));
        }
        let blocks = blocks(&scale.shape, ask.axis, ask.block, dims)?;
        let key: Key = (self.home(ask.scale), ask.zero.map(|z| self.home(z)), format!("{format} {blocks:?}"));
        if let Some(id) = self.all.ids.get(&key) {
            return Ok(Some(*id));
        }
        let id = self.all.table.add(name, scheme(format, scale.kind, &zeros, blocks));
        self.all.table[id].params = Some(Params { nested: scale.nested, ..params(scale.values, zeros) });
        self.all.ids.insert(key, id);
        Ok(Some(id))
    }

    /// The constant behind a scale: as stored, where a Cast widens it to float32.
    pub fn stored_scale(&mut self, v: ValueId) -> Option<Tensor> {
        let cast = self.g.value(v).producer().map(|(n, _)| self.g.node(n)).filter(|n| n.op == Op::Cast && n.int("to") == Some(DType::F32.onnx() as i64));
        let narrow = cast.and_then(|n| n.input(0)).and_then(|x| self.constant(x)).filter(|t| matches!(t.dtype(), DType::F16 | DType::BF16));
        narrow.or_else(|| self.constant(v))
    }

    /// A scale that is a constant, or codes of a coarser quantizer (`nests`: whether it may stay so).
    fn scale(&mut self, v: ValueId, nests: bool) -> Result<Option<Scale>> {
        if let Some(t) = self.stored_scale(v) {
            let (values, kind) = scale_numbers(&t)?;
            if values.is_empty() {
                return Err(Error::usage("its scale is empty"));
            }
            return Ok(Some(Scale { values, shape: t.shape().to_vec(), kind, nested: None }));
        }
        let Some((node, _)) = self.g.value(v).producer() else { return Ok(None) };
        let (Some(id), None, Some(codes)) = (self.g.node(node).quantizer(), self.g.node(node).input(0), self.all.codes.get(&self.site(node))) else {
            return Ok(None);
        };
        let inner = &self.all.table[id];
        let Some(inner_params) = &inner.params else { return Ok(None) };
        let values = dequantize(codes, &inner.scheme, inner_params)?;
        let (mut kind, mut nested) = (ScaleKind::Exact(DType::F32), None);
        if nests {
            kind = ScaleKind::Nested(Box::new(inner.scheme.clone()));
            nested = Some(Box::new(NestedScale { codes: codes.clone(), params: inner_params.clone() }));
        }
        Ok(Some(Scale { values, shape: codes.0.shape().to_vec(), kind, nested }))
    }

    /// Whether two quantizers are the same in all that matters.
    pub fn equal(&self, a: QuantizerId, b: QuantizerId) -> bool {
        let (p, q) = (&self.all.table[a], &self.all.table[b]);
        let same = |p: &Params, q: &Params| p.scale == q.scale && p.zero == q.zero && p.curve == q.curve;
        a == b
            || p.scheme.format == q.scheme.format
                && p.scheme.blocks == q.scheme.blocks
                && p.scheme.timing == q.scheme.timing
                && matches!((&p.params, &q.params), (Some(p), Some(q)) if same(p, q))
    }

    /// Numbers, one a block of quantizer `q`, as a constant that broadcasts against `like`.
    pub fn spread(&mut self, numbers: Vec<f32>, q: QuantizerId, like: ValueId, name: &str) -> Result<ValueId> {
        if let [one] = numbers[..] {
            return Ok(self.scalar(one, name));
        }
        let blocks = self.all.table[q].scheme.blocks.clone();
        let Some(axis) = blocks.channel_axis() else {
            let shape = self.dims(like).and_then(|d| known(&d));
            let each = match shape {
                Some(shape) => each_element(&numbers, &blocks, &shape)?,
                None => None,
            };
            let each = each.ok_or_else(|| Error::usage(format!("{} is read as codes in blocks, which needs a fixed shape", self.name(like))))?;
            return Ok(self.g.add_constant(name, each));
        };
        let behind = match (axis, self.rank(like)) {
            (a @ ..0, _) => (-1 - a) as usize,
            (a, Some(rank)) if (a as usize) < rank => rank - 1 - a as usize,
            _ => return Err(Error::usage(format!("the rank of {} is not known, which codes per channel need here", self.g.value(like).name))),
        };
        let mut shape = vec![numbers.len()];
        shape.resize(1 + behind, 1);
        Ok(self.g.add_constant(name, Tensor::of_f32(&shape, numbers)))
    }

    /// Whether a value is surely one number, to which everything broadcasts.
    pub fn is_one_number(&self, v: ValueId) -> bool {
        self.dims(v).is_some_and(|d| d.len() <= 1 && d.iter().all(|d| *d == Dim::Known(1)))
    }
}

/// The shape, where every dimension is a number.
fn known(dims: &[Dim]) -> Option<Vec<usize>> {
    dims.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect()
}

/// Numbers, one a block, as a tensor with one for each element; `None` where they do not fit.
fn each_element(numbers: &[f32], blocks: &Blocks, shape: &[usize]) -> Result<Option<Tensor>> {
    let layout = blocks.layout(shape)?;
    if layout.view != shape || layout.len() != numbers.len() {
        return Ok(None);
    }
    let mut each = Vec::with_capacity(shape.iter().product());
    let mut index = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        let block = index.iter().zip(&layout.extent).zip(&layout.grid).fold(0, |b, ((i, e), g)| b * g + i / e);
        each.push(numbers[block]);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Ok(Some(Tensor::of_f32(shape, each)))
}

/// What a scale's shape says, as ONNX reads it.
fn blocks(scale: &[usize], axis: i64, block: i64, dims: Option<&[Dim]>) -> Result<Blocks> {
    if numel(scale) == Some(1) {
        return Ok(Blocks::tensor());
    }
    let rank = dims.map(<[Dim]>::len);
    let axis = match rank {
        Some(1) => 0,
        Some(rank) => {
            let a = if axis < 0 { axis + rank as i64 } else { axis };
            if !(0..rank as i64).contains(&a) {
                return Err(Error::usage(format!("its axis {axis} does not exist in a tensor of {rank} dimensions")));
            }
            a
        }
        None => axis,
    };
    let axis = i32::try_from(axis).map_err(|_| Error::usage(format!("its axis {axis} is beyond any tensor's dimensions")))?;
    let length = match (dims, usize::try_from(axis)) {
        (Some(d), Ok(a)) => d.get(a).and_then(|d| if let Dim::Known(n) = d { Some(*n) } else { None }),
        _ => None,
    };
    match (scale, usize::try_from(block)) {
        ([n], Ok(0)) => match length {
            Some(d) if d != *n => Err(Error::usage(format!("its {n} scales do not fit the {d} indices of axis {axis}"))),
            _ => Ok(Blocks::channel(axis)),
        },
        (s, Ok(0)) => Err(Error::usage(format!("its scale of shape {s:?} is neither per tensor nor per axis, and it has no block_size"))),
        (s, Ok(block)) => {
            if rank.is_some_and(|r| r != s.len()) {
                return Err(Error::usage(format!("its scale of shape {s:?} has not as many dimensions as what it scales")));
            }
            let blocks = Blocks::block(axis, block);
            if let Some(shape) = dims.and_then(known)
                && blocks.layout(&shape)?.grid != s
            {
                return Err(Error::usage(format!("its scale of shape {s:?} does not fit blocks of {block} along axis {axis} of shape {shape:?}")));
            }
            Ok(blocks)
        }
        (_, Err(_)) => Err(Error::usage(format!("its block_size {block} is negative"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(d: &[usize]) -> Vec<Dim> {
        d.iter().map(|d| Dim::Known(*d)).collect()
    }

    #[test]
    fn the_shape_of_a_scale_says_its_granularity() {
        let shape = dims(&[4, 70]);
        let of = |scale: &[usize], axis, block| blocks(scale, axis, block, Some(&shape)).map_err(|e| e.to_string());
        assert_eq!(of(&[], 1, 0), Ok(Blocks::tensor()));
        assert_eq!(of(&[1], 7, 0), Ok(Blocks::tensor()));
        assert_eq!(of(&[70], -1, 0), Ok(Blocks::channel(1)));
        assert_eq!(of(&[4, 3], 1, 32), Ok(Blocks::block(1, 32)));
        assert!(of(&[4, 2], 1, 32).unwrap_err().contains("does not fit"));
        assert!(of(&[69], 1, 0).unwrap_err().contains("69 scales"));
        assert!(of(&[4], 2, 0).unwrap_err().contains("axis 2"));
        assert!(of(&[4, 3], 1, 0).unwrap_err().contains("block_size"));
        assert_eq!(blocks(&[5], 1, 0, Some(&dims(&[5]))).unwrap(), Blocks::channel(0), "a vector has one axis");
        assert_eq!(blocks(&[5], -1, 0, None).unwrap(), Blocks::channel(-1));
    }

    #[test]
    fn every_element_finds_its_block() {
        let t = each_element(&[1.0, 2.0, 3.0, 4.0], &Blocks::block(1, 2), &[2, 3]).unwrap().unwrap();
        assert_eq!(t.to_f32().unwrap()[..], [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]);
        assert!(each_element(&[1.0], &Blocks::block(1, 2), &[2, 3]).unwrap().is_none());
    }

    #[test]
    fn zero_points_around_which_codes_lie_are_none() {
        let zero = |dtype, byte: u8| zero_numbers(&Tensor::new(dtype, vec![], vec![byte].into()).unwrap(), Format::of_dtype(dtype).unwrap());
        assert_eq!(zero(DType::I8, 0).unwrap(), Zeros::None);
        assert_eq!(zero(DType::I8, 0xfd).unwrap(), Zeros::Integer(vec![-3]));
        assert_eq!(zero(DType::U8, 0).unwrap(), Zeros::Integer(vec![0]));
        assert_eq!(zero(DType::F8E4M3FN, 0x80).unwrap(), Zeros::None, "minus zero is zero");
        assert!(zero(DType::F8E4M3FN, 0x38).is_err());
    }
}
