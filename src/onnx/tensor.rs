//! TensorProto ↔ constant: whichever field of the message holds the elements.
//!
//! Which field a type prescribes, and how `int32_data` holds types narrower than 32 bits: onnx.proto, `TensorProto.int32_data`.

use super::external::{Files, Layout, can_be_external};
use super::proto::TensorProto;
use super::proto::tensor_proto::DataLocation;
use super::rest::{pack_rest, unpack_rest};
use crate::error::{At, Error, Result};
use crate::graph::{Constant, Storage};
use crate::tensor::{DType, Tensor, numel, pack};
use bytemuck::NoUninit;
use bytes::Bytes;
use std::mem::take;

/// Reads a tensor; its name stays in `extra` unless the caller took it. Errors do not name the tensor.
pub fn import(mut p: TensorProto, files: &mut Files) -> Result<Constant> {
    let number = p.data_type.take().unwrap_or(0);
    let dtype = DType::of_onnx(number).ok_or_else(|| Error::usage(format!("element type {number} does not exist in ONNX 1.23; export with another type")))?;
    let shape = take(&mut p.dims).into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| Error::usage("a dimension is negative"))?;
    let n = numel(&shape).and_then(|n| Some((n, dtype.packed_len(n)?)));
    let (_, len) = n.ok_or_else(|| Error::usage(format!("shape {shape:?} is too large for any memory")))?;

    let (tensor, storage) = if p.data_location == Some(DataLocation::External as i32) {
        if !can_be_external(dtype) {
            return Err(Error::usage("strings cannot lie in an external file"));
        }
        let bytes = files.take(&mut p, len)?;
        p.data_location = None;
        (Tensor::new(dtype, shape, bytes)?, Storage::External)
    } else if p.raw_data.as_ref().is_some_and(|raw| !raw.is_empty() || !is_typed(&p)) {
        (Tensor::new(dtype, shape, p.raw_data.take().unwrap_or_default())?, Storage::Raw)
    } else {
        (typed(dtype, shape, &mut p)?, Storage::Typed)
    };
    if is_typed(&p) || p.raw_data.as_ref().is_some_and(|raw| !raw.is_empty()) {
        return Err(Error::usage("its elements stand in more than one field of the file, or in the wrong one; export the model again"));
    }
    Ok(Constant { tensor, storage, extra: pack_rest(&p) })
}

/// Whether a field for elements, other than `raw_data`, is used.
fn is_typed(p: &TensorProto) -> bool {
    !(p.float_data.is_empty()
        && p.int32_data.is_empty()
        && p.string_data.is_empty()
        && p.int64_data.is_empty()
        && p.double_data.is_empty()
        && p.uint64_data.is_empty())
}

/// The elements from the field that `dtype` prescribes.
fn typed(dtype: DType, shape: Vec<usize>, p: &mut TensorProto) -> Result<Tensor> {
    use DType::*;
    fn whole<T: NoUninit + Send + 'static>(dtype: DType, shape: Vec<usize>, values: Vec<T>) -> Result<Tensor> {
        if numel(&shape) != Some(values.len()) {
            return Err(wrong_count(dtype, &shape, values.len()));
        }
        Ok(Tensor::of(dtype, &shape, values))
    }
    fn pairs<T: NoUninit>(dtype: DType, shape: Vec<usize>, values: &[T]) -> Result<Tensor> {
        Tensor::new(dtype, shape, Bytes::copy_from_slice(bytemuck::cast_slice(values)))
    }
    match dtype {
        F32 => whole(dtype, shape, take(&mut p.float_data)),
        F64 => whole(dtype, shape, take(&mut p.double_data)),
        I64 => whole(dtype, shape, take(&mut p.int64_data)),
        I32 => whole(dtype, shape, take(&mut p.int32_data)),
        U64 => whole(dtype, shape, take(&mut p.uint64_data)),
        U32 => {
            let values = take(&mut p.uint64_data).into_iter().map(u32::try_from).collect::<Result<Vec<_>, _>>();
            whole(dtype, shape, values.map_err(|_| Error::usage("an element is too large for its type"))?)
        }
        C64 => pairs(dtype, shape, &take(&mut p.float_data)),
        C128 => pairs(dtype, shape, &take(&mut p.double_data)),
        Str => Tensor::of_strings(shape, take(&mut p.string_data)),
        _ => narrow(dtype, shape, take(&mut p.int32_data)),
    }
}

/// Elements narrower than 32 bits from `int32_data`: 8, 16 and 6 bits one an entry; 4 and 2 bits a packed byte an entry.
fn narrow(dtype: DType, shape: Vec<usize>, entries: Vec<i32>) -> Result<Tensor> {
    let n = numel(&shape).unwrap_or(usize::MAX);
    let (want, low, high) = match dtype.bits() {
        16 => (n, -0x8000, 0xffff),
        8 => (n, -0x80, 0xff),
        6 => (n, 0, 0x3f),
        _ => (dtype.packed_len(n).unwrap_or(usize::MAX), -0x80, 0xff),
    };
    if entries.len() != want {
        return Err(wrong_count(dtype, &shape, entries.len()));
    }
    if entries.iter().any(|e| !(low..=high).contains(e)) {
        return Err(Error::usage(format!("an element does not fit type {dtype}")));
    }
    let bytes = match dtype.bits() {
        16 => entries.iter().flat_map(|&e| (e as u16).to_le_bytes()).collect(),
        6 => pack::pack(&entries, dtype),
        _ => entries.iter().map(|&e| e as u8).collect(),
    };
    Tensor::new(dtype, shape, bytes.into())
}

fn wrong_count(dtype: DType, shape: &[usize], n: usize) -> Error {
    Error::usage(format!("a {dtype} tensor of shape {shape:?} cannot have {n} stored elements"))
}

/// Where the elements of a constant are to be written.
pub enum Place<'a> {
    /// In the message.
    Inline,
    /// In a data file: those that were in one, and, if `at_least` is given, all of so many bytes or more.
    File { layout: &'a mut Layout, at_least: Option<usize> },
}

/// The message of a constant, without a name unless `extra` has one.
pub fn export(c: &Constant, place: &mut Place) -> Result<TensorProto> {
    let mut p: TensorProto = unpack_rest(&c.extra).at(|| "a constant")?;
    p.dims = c.tensor.shape().iter().map(|&d| d as i64).collect();
    p.data_type = Some(c.tensor.dtype().onnx());
    let bytes = c.tensor.bytes();
    match place {
        Place::File { layout, at_least }
            if can_be_external(c.tensor.dtype()) && (c.storage == Storage::External || at_least.is_some_and(|n| bytes.len() >= n)) =>
        {
            layout.put(&mut p, bytes);
            return Ok(p);
        }
        _ => {}
    }
    if c.storage == Storage::External {
        p.external_data.clear();
    }
    match (c.storage, c.tensor.strings()) {
        (_, Some(strings)) => p.string_data = strings.to_vec(),
        (Storage::Typed, None) => put_typed(&mut p, &c.tensor),
        (Storage::Raw | Storage::External, None) => p.raw_data = Some(bytes.clone()),
    }
    Ok(p)
}

fn put_typed(p: &mut TensorProto, t: &Tensor) {
    use DType::*;
    let n = t.len();
    match t.dtype() {
        F32 => p.float_data = t.values::<f32>().into_owned(),
        C64 => p.float_data = bytemuck::pod_collect_to_vec(t.bytes()),
        F64 => p.double_data = t.values::<f64>().into_owned(),
        C128 => p.double_data = bytemuck::pod_collect_to_vec(t.bytes()),
        I64 => p.int64_data = t.values::<i64>().into_owned(),
        I32 => p.int32_data = t.values::<i32>().into_owned(),
        U64 => p.uint64_data = t.values::<u64>().into_owned(),
        U32 => p.uint64_data = t.values::<u32>().iter().map(|&x| x.into()).collect(),
        I8 | I16 | F6E2M3 | F6E3M2 => p.int32_data = pack::unpack(t.bytes(), t.dtype(), n),
        U16 | F16 | BF16 => p.int32_data = t.values::<u16>().iter().map(|&x| x.into()).collect(),
        _ => p.int32_data = t.bytes().iter().map(|&b| b.into()).collect(),
    }
}
