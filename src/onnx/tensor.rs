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

#[cfg(test)]
mod tests {
    use super::super::sample::{add, assert_kept, assert_refused, entry, text};
    use super::*;

    fn plain(dtype: DType, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: Some(dtype.onnx()), dims: dims.to_vec(), ..Default::default() }
    }

    /// Imports, asserts that exporting gives the same message, and hands out the tensor.
    fn kept(p: TensorProto) -> Tensor {
        let c = import(p.clone(), &mut Files::of(None)).unwrap();
        assert_eq!(export(&c, &mut Place::Inline).unwrap(), p);
        c.tensor
    }

    fn refused(p: TensorProto, words: &str) {
        let e = import(p, &mut Files::of(None)).expect_err("it is refused").to_string();
        assert!(e.contains(words), "{e}");
    }

    fn with(dtype: DType, dims: &[i64], fill: impl FnOnce(&mut TensorProto)) -> TensorProto {
        let mut p = plain(dtype, dims);
        fill(&mut p);
        p
    }

    #[test]
    fn typed_fields_of_wide_types() {
        use DType::*;
        let t = kept(with(F32, &[2], |p| p.float_data = vec![1.5, -0.0]));
        assert_eq!(t, Tensor::of_f32(&[2], vec![1.5, -0.0]));
        let t = kept(with(I64, &[], |p| p.int64_data = vec![i64::MIN]));
        assert_eq!(t.to_i64().unwrap(), [i64::MIN]);
        assert_eq!(kept(with(F64, &[1], |p| p.double_data = vec![0.1])).values::<f64>()[0], 0.1);
        assert_eq!(kept(with(I32, &[1], |p| p.int32_data = vec![-7])).to_i64().unwrap(), [-7]);
        assert_eq!(kept(with(U64, &[1], |p| p.uint64_data = vec![u64::MAX])).values::<u64>()[0], u64::MAX);
        assert_eq!(kept(with(U32, &[1], |p| p.uint64_data = vec![u32::MAX.into()])).values::<u32>()[0], u32::MAX);
        assert_eq!(kept(with(C64, &[1], |p| p.float_data = vec![1.0, 2.0])).bytes()[4..], 2f32.to_le_bytes());
        assert_eq!(kept(with(C128, &[1], |p| p.double_data = vec![1.0, 2.0])).bytes().len(), 16);
        let t = kept(with(Str, &[2], |p| p.string_data = vec!["a".into(), Bytes::from_static(b"\xff")]));
        assert_eq!(t.strings().unwrap()[1], Bytes::from_static(b"\xff"));
    }

    #[test]
    fn typed_fields_of_narrow_types() {
        use DType::*;
        assert_eq!(kept(with(I8, &[2], |p| p.int32_data = vec![-128, 127])).to_i64().unwrap(), [-128, 127]);
        assert_eq!(kept(with(U8, &[2], |p| p.int32_data = vec![0, 255])).to_i64().unwrap(), [0, 255]);
        assert_eq!(kept(with(Bool, &[2], |p| p.int32_data = vec![1, 0])).to_i64().unwrap(), [1, 0]);
        assert_eq!(kept(with(I16, &[1], |p| p.int32_data = vec![-3])).to_i64().unwrap(), [-3]);
        assert_eq!(kept(with(U16, &[1], |p| p.int32_data = vec![65535])).to_i64().unwrap(), [65535]);
        assert_eq!(kept(with(F16, &[1], |p| p.int32_data = vec![0xbc00])).to_f32().unwrap()[0], -1.0);
        assert_eq!(kept(with(BF16, &[1], |p| p.int32_data = vec![0xbf80])).to_f32().unwrap()[0], -1.0);
        // Two 4-bit and four 2-bit elements an entry, one 6-bit element an entry.
        assert_eq!(kept(with(I4, &[3], |p| p.int32_data = vec![0x8f, 0x07])).to_i64().unwrap(), [-1, -8, 7]);
        assert_eq!(kept(with(U4, &[2], |p| p.int32_data = vec![0xf1])).to_i64().unwrap(), [1, 15]);
        assert_eq!(kept(with(I2, &[4], |p| p.int32_data = vec![0b11_10_01_00])).to_i64().unwrap(), [0, 1, -2, -1]);
        assert_eq!(kept(with(U2, &[5], |p| p.int32_data = vec![0b11_10_01_00, 2])).to_i64().unwrap(), [0, 1, 2, 3, 2]);
        assert_eq!(kept(with(F6E2M3, &[5], |p| p.int32_data = vec![63, 1, 2, 3, 32])).bytes().len(), 4);
        for dtype in [F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0] {
            assert_eq!(kept(with(dtype, &[2], |p| p.int32_data = vec![0x80, 0x7f])).bytes()[..], [0x80, 0x7f]);
        }
        assert_eq!(kept(with(F4E2M1, &[2], |p| p.int32_data = vec![0x9f])).bytes()[..], [0x9f]);
        // Some writers extend the sign of unsigned bytes: the same bytes.
        let t = import(with(U8, &[1], |p| p.int32_data = vec![-1]), &mut Files::of(None)).unwrap();
        assert_eq!(t.tensor.to_i64().unwrap(), [255]);
    }

    #[test]
    fn empty_tensors_and_what_stands_beside_the_elements() {
        kept(plain(DType::F32, &[0, 4]));
        kept(with(DType::F32, &[0], |p| p.raw_data = Some(Bytes::new())));
        kept(with(DType::F32, &[1], |p| (p.float_data, p.raw_data) = (vec![1.0], Some(Bytes::new()))));
        kept(with(DType::U8, &[1], |p| {
            p.raw_data = Some(Bytes::from_static(&[1]));
            p.name = text("");
            p.doc_string = text("why");
            p.data_location = Some(DataLocation::Default as i32);
            p.metadata_props = vec![entry("k", "v")];
        }));
    }

    #[test]
    fn raw_data_is_a_slice_of_the_file() {
        let raw = Bytes::from(vec![0u8; 64]);
        let c = import(with(DType::F32, &[16], |p| p.raw_data = Some(raw.clone())), &mut Files::of(None)).unwrap();
        assert_eq!(c.tensor.bytes().as_ptr(), raw.as_ptr());
        assert_eq!(export(&c, &mut Place::Inline).unwrap().raw_data.unwrap().as_ptr(), raw.as_ptr());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use DType::*;
        refused(with(F32, &[3], |p| p.float_data = vec![1.0]), "cannot have 1 stored elements");
        refused(with(F32, &[3], |p| p.raw_data = Some(Bytes::from_static(&[0; 8]))), "cannot have 8 bytes");
        refused(plain(F32, &[3]), "cannot have 0 stored elements");
        refused(with(F32, &[1], |p| p.int32_data = vec![1]), "cannot have 0 stored elements");
        refused(with(F32, &[1], |p| (p.float_data, p.int32_data) = (vec![1.0], vec![1])), "more than one field");
        refused(with(F32, &[1], |p| (p.float_data, p.raw_data) = (vec![1.0], Some(Bytes::from_static(&[0; 4])))), "more than one field");
        refused(with(I8, &[1], |p| p.int32_data = vec![300]), "does not fit type int8");
        refused(with(U32, &[1], |p| p.uint64_data = vec![1 << 40]), "too large for its type");
        refused(with(I4, &[3], |p| p.int32_data = vec![1, 2, 3]), "cannot have 3 stored elements");
        refused(plain(F32, &[-1]), "negative");
        refused(plain(F32, &[i64::MAX, i64::MAX]), "too large");
        refused(with(Str, &[2], |p| p.string_data = vec!["a".into()]), "cannot have 1 elements");
        refused(with(F32, &[1], |p| p.data_type = Some(99)), "element type 99");
        refused(TensorProto::default(), "element type 0");
        let mut p = add();
        p.graph.as_mut().unwrap().initializer[0].data_type = Some(99);
        assert_refused(p, &["initializer \"w\"", "element type 99"]);
    }

    #[test]
    fn an_initializer_keeps_its_storage_in_a_model() {
        let mut p = add();
        let t = &mut p.graph.as_mut().unwrap().initializer[0];
        (t.raw_data, t.float_data) = (None, vec![0.5; 6]);
        assert_kept(p);
    }
}
