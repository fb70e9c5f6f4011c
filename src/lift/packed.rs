//! com.microsoft's operators whose weights are codes packed into bytes: MatMulNBits, MatMulBnb4, GatherBlockQuantized.

use super::params::{params, scale_numbers, scheme, zero_numbers};
use super::qdq::{made, need};
use super::work::Work;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeId, Op, ValueId};
use crate::quant::{Blocks, Curve, Format, NF4, Params, ScaleKind, Scheme, Timing, Zeros};
use crate::tensor::{DType, Tensor, numel, pack};
use std::sync::Arc;

/// bitsandbytes' 4-bit floats by code. Source: onnxruntime, blockwise_quant_block_bnb4.h.
const FP4: [f32; 8] = [0.0, 0.005_208_333_3, 0.666_666_7, 1.0, 0.333_333_34, 0.5, 0.166_666_67, 0.25];

/// A positive attribute.
fn size(n: &Node, name: &str) -> Result<usize> {
    n.int(name).and_then(|i| usize::try_from(i).ok()).filter(|i| *i > 0).ok_or_else(|| Error::usage(format!("its attribute {name} is missing or not positive")))
}

fn constant(w: &mut Work, v: ValueId) -> Result<Tensor> {
    w.constant(v).ok_or_else(|| Error::usage(format!("its input {} is no constant", w.name(v))))
}

/// The bytes of a uint8 tensor of `want` elements, however many dimensions it has.
fn bytes_of(t: &Tensor, want: Option<usize>, what: &str) -> Result<bytes::Bytes> {
    if t.dtype() != DType::U8 || Some(t.len()) != want {
        return Err(Error::usage(format!("its {what} are {} {:?}, not {} bytes", t.dtype(), t.shape(), want.map_or("so many".into(), |n| n.to_string()))));
    }
    Ok(t.bytes().clone())
}

/// `rows` rows of `columns` codes of `bits`, each row padded to `stride` bytes, lowest bits first.
fn unpack_rows(bytes: &[u8], rows: usize, columns: usize, stride: usize, bits: usize) -> Vec<u8> {
    let (each, mask) = (8 / bits, ((1u16 << bits) - 1) as u8);
    let code = |row: &[u8], c: usize| row[c / each] >> (c % each * bits) & mask;
    bytes.chunks_exact(stride).take(rows).flat_map(|row| (0..columns).map(move |c| code(row, c))).collect()
}

/// The same codes as `[columns, rows]`, a square of them at a time.
fn unpack_turned(bytes: &[u8], rows: usize, columns: usize, stride: usize, bits: usize) -> Vec<u8> {
    const SIDE: usize = 64;
    let (each, mask) = (8 / bits, ((1u16 << bits) - 1) as u8);
    let mut out = vec![0; rows * columns];
    for first in (0..rows).step_by(SIDE) {
        let rows_here = SIDE.min(rows - first);
        let square = &bytes[first * stride..];
        for c in 0..columns {
            let (byte, shift) = (c / each, c % each * bits);
            let line = &mut out[c * rows + first..][..rows_here];
            line.iter_mut().zip(square[byte..].iter().step_by(stride)).for_each(|(o, b)| *o = b >> shift & mask);
        }
    }
    out
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

fn unsigned(bits: usize) -> Format {
    Format::Int { bits: bits as u8, signed: false, narrow: false }
}

/// Codes of at most 8 bits as a tensor of the format's type.
fn codes_tensor(codes: Vec<u8>, shape: Vec<usize>, format: Format) -> Result<Tensor> {
    let dtype = format.storage().ok_or_else(|| Error::failed(format!("ONNX has no type for {format}")))?;
    Tensor::new(dtype, shape, pack::pack_bytes(codes, dtype).into())
}

/// Adds the quantizer and its codes as a FakeQuant without input.
fn weight(w: &mut Work, name: &str, codes: Tensor, scheme: Scheme, params: Params) -> Result<ValueId> {
    let id = w.all.table.add(name, scheme);
    w.all.table[id].params = Some(params);
    w.constant_real(codes, id, DType::F32, None, &format!("{name}_dequantized"))
}

/// `A · Wᵀ + bias` → MatMul with a weight `[K, N]` in blocks along K.
pub fn mat_mul_n_bits(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (a, b, y) = (need(&n, 0)?, need(&n, 1)?, made(&n, 0)?);
    let (k, columns, block) = (size(&n, "K")?, size(&n, "N")?, size(&n, "block_size")?);
    let bits = n.int("bits").unwrap_or(4);
    if !matches!(bits, 2 | 4 | 8) {
        return Err(Error::usage(format!("its weights have {bits} bits; 2, 4 and 8 can be read")));
    }
    let bits = bits as usize;
    if n.input(4).is_some() {
        return Err(Error::usage("it reorders its channels (g_idx), which no quantizer here does; export it without act-order"));
    }
    if n.int("weight_prepacked").unwrap_or(0) != 0 {
        return Err(Error::usage("its weights are packed for one machine (weight_prepacked); export them unpacked"));
    }
    let blocks = k.div_ceil(block);
    let blob = block.checked_mul(bits).filter(|b| b.is_multiple_of(8)).map(|b| b / 8);
    let blob = blob.ok_or_else(|| Error::usage(format!("its blocks of {block} do not fill whole bytes")))?;
    let want = blocks.checked_mul(blob).and_then(|s| s.checked_mul(columns));
    let bytes = bytes_of(&constant(w, b)?, want, "weights")?;
    let codes = unpack_turned(&bytes, columns, k, blocks * blob, bits);
    let scale = constant(w, need(&n, 2)?)?;
    let (scales, kind) = scale_numbers(&scale)?;
    if Some(scales.len()) != blocks.checked_mul(columns) {
        return Err(Error::usage(format!("its {} scales do not fit {columns} columns of {blocks} blocks", scales.len())));
    }
    let zeros = match n.input(3) {
        None => Zeros::Integer(vec![1 << (bits - 1)]),
        Some(z) => {
            let z = constant(w, z)?;
            if z.dtype() == DType::U8 {
                let stride = (blocks * bits).div_ceil(8);
                let packed = bytes_of(&z, stride.checked_mul(columns), "zero points")?;
                Zeros::Integer(transposed(&unpack_rows(&packed, columns, blocks, stride, bits), columns, blocks).into_iter().map(i32::from).collect())
            } else {
                let z = z.to_f32()?;
                if z.len() != scales.len() {
                    return Err(Error::usage(format!("its {} zero points do not pair with its {} scales", z.len(), scales.len())));
                }
                Zeros::Real(transposed(&z, columns, blocks))
            }
        }
    };
    let format = unsigned(bits);
    // With real zero points the kernels compute in float, whatever the accuracy_level.
    let whole = !matches!(zeros, Zeros::Real(_));
    let scheme = scheme(format, kind, &zeros, Blocks::block(0, block));
    let params = params(transposed(&scales, columns, blocks), zeros);
    let name = w.name(b);
    let codes = codes_tensor(codes, vec![k, columns], format)?;
    let mut weight = weight(w, &name, codes, scheme, params)?;
    if let Some(t @ (DType::F16 | DType::BF16)) = w.dtype(a) {
        weight = w.cast(weight, t, &format!("{name}_float"));
    }
    let a = if n.int("accuracy_level") == Some(4) && whole { rounded_input(w, a, block) } else { a };
    multiply(w, &n, a, weight, n.input(5), y)
}

/// What accuracy_level 4 makes of an input: int8 codes in blocks along the last axis, fitted when the model runs. Source: ONNX Runtime 1.31 on x86-64, measured.
fn rounded_input(w: &mut Work, a: ValueId, block: usize) -> ValueId {
    let name = w.name(a);
    let scheme = Scheme { blocks: Blocks::block(-1, block), timing: Timing::Dynamic, ..Scheme::int(8, true) };
    let id = w.all.table.add(&name, scheme);
    w.emit(Node::fake_quant(id, ""), &[Some(a)], &format!("{name}_rounded"))
}

fn multiply(w: &mut Work, n: &Node, a: ValueId, weight: ValueId, bias: Option<ValueId>, y: ValueId) -> Result<()> {
    let product = Node::new(Op::MatMul, n.name.clone());
    let Some(bias) = bias else {
        w.emit_into(product, &[Some(a), Some(weight)], y);
        return Ok(());
    };
    let name = w.name(y);
    let t = w.emit(product, &[Some(a), Some(weight)], &format!("{name}_product"));
    w.emit_into(Node::new(Op::Add, format!("{}_bias", n.name)), &[Some(t), Some(bias)], y);
    Ok(())
}

/// NF4 and bitsandbytes' FP4: a codebook, in blocks of the flattened weight `[N, K]`; of two codes in a byte the first is the high one.
pub fn mat_mul_bnb4(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (a, b, y) = (need(&n, 0)?, need(&n, 1)?, made(&n, 0)?);
    let (k, columns, block) = (size(&n, "K")?, size(&n, "N")?, size(&n, "block_size")?);
    let count = k.checked_mul(columns).ok_or_else(|| Error::usage(format!("its weight [{columns}, {k}] is too large")))?;
    if n.int("transB") == Some(0) {
        return Err(Error::usage("its weight is not transposed (transB = 0), a form that is not documented"));
    }
    let table: Vec<f32> = match n.int("quant_type") {
        Some(1) => NF4.to_vec(),
        Some(0) => FP4.iter().copied().chain(FP4.iter().map(|x| -x)).collect(),
        other => return Err(Error::usage(format!("its quant_type {other:?} is neither FP4 (0) nor NF4 (1)"))),
    };
    let bytes = bytes_of(&constant(w, b)?, Some(count.div_ceil(2)), "weights")?;
    let (scales, kind) = scale_numbers(&constant(w, need(&n, 2)?)?)?;
    if scales.len() != count.div_ceil(block) {
        return Err(Error::usage(format!("its {} scales do not fit {} blocks", scales.len(), count.div_ceil(block))));
    }
    // Entries of a codebook ascend.
    let mut order: Vec<u8> = (0..16).collect();
    order.sort_by(|a, b| table[*a as usize].total_cmp(&table[*b as usize]));
    let mut rank = [0u8; 16];
    order.iter().enumerate().for_each(|(i, c)| rank[*c as usize] = i as u8);
    let codes = (0..count).map(|i| rank[(if i % 2 == 0 { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 }) as usize]).collect();
    let format = if n.int("quant_type") == Some(1) { Format::NF4 } else { Format::codebook(4) };
    let curve: Arc<[f32]> = order.iter().map(|c| table[*c as usize]).collect();
    let params = Params { curve: Curve::Table(curve), ..params(scales, Zeros::None) };
    let name = w.name(b);
    let codes = codes_tensor(codes, vec![columns, k], format)?;
    let weight = weight(w, &name, codes, scheme(format, kind, &Zeros::None, Blocks::flat(block)), params)?;
    let mut weight = w.emit(Node::new(Op::Transpose, "").with("perm", vec![1i64, 0]), &[Some(weight)], &format!("{name}_transposed"));
    if let Some(t @ (DType::F16 | DType::BF16)) = w.dtype(a) {
        weight = w.cast(weight, t, &format!("{name}_float"));
    }
    multiply(w, &n, a, weight, None, y)
}

/// A table in blocks along one axis → Gather of what its codes stand for.
pub fn gather_block_quantized(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.take(id);
    let (data, indices, y) = (need(&n, 0)?, need(&n, 1)?, made(&n, 0)?);
    let name = w.name(data);
    let mut codes = constant(w, data)?;
    let scale = constant(w, need(&n, 2)?)?;
    let mut zero = n.input(3).map(|z| constant(w, z)).transpose()?;
    let block = n.int("block_size").map_or(Ok(128), |_| size(&n, "block_size"))?;
    let mut default = Zeros::None;
    if codes.dtype() == DType::U8 {
        let bits = n.int("bits").unwrap_or(4);
        if !matches!(bits, 2 | 4 | 8) {
            return Err(Error::usage(format!("its table has {bits} bits; 2, 4 and 8 can be read")));
        }
        default = Zeros::Integer(vec![1 << (bits - 1)]);
        let last = *scale.shape().last().ok_or_else(|| Error::usage("its scale has no dimension"))?;
        codes = unpack_table(&codes, bits as usize, None)?;
        zero = zero.map(|z| unpack_table(&z, bits as usize, Some(last))).transpose()?;
    }
    let format = Format::of_dtype(codes.dtype()).ok_or_else(|| Error::usage(format!("its table is of type {}", codes.dtype())))?;
    let axis = n.int("quantize_axis").unwrap_or(1);
    let axis = i32::try_from(axis).map_err(|_| Error::usage(format!("its quantize_axis {axis} does not exist")))?;
    let blocks = Blocks::block(axis, block);
    let (scales, kind) = scale_numbers(&scale)?;
    let zeros = match &zero {
        Some(z) => zero_numbers(z, format)?,
        None => default,
    };
    let grid = blocks.layout(codes.shape())?.grid;
    let count = if let Zeros::Integer(z) = &zeros { z.len() } else { 1 };
    if grid != scale.shape() || count != 1 && Some(count) != numel(&grid) {
        return Err(Error::usage(format!("its scales {:?} or {count} zero points do not fit its blocks {grid:?}", scale.shape())));
    }
    let to = if let ScaleKind::Exact(t) = kind { t } else { DType::F32 };
    let id = w.all.table.add(&name, scheme(format, kind, &zeros, blocks));
    w.all.table[id].params = Some(params(scales, zeros));
    let table = w.constant_real(codes, id, to, None, &format!("{name}_dequantized"))?;
    let gather = Node::new(Op::Gather, n.name.clone()).with("axis", n.int("gather_axis").unwrap_or(0));
    w.emit_into(gather, &[Some(table), Some(indices)], y);
    Ok(())
}

/// Bytes of several codes along the last axis → one code each; the last axis is cut to `last`, if that is given.
fn unpack_table(t: &Tensor, bits: usize, last: Option<usize>) -> Result<Tensor> {
    let (Some((&stride, rest)), DType::U8) = (t.shape().split_last(), t.dtype()) else {
        return Err(Error::usage(format!("{} {:?} holds no packed codes", t.dtype(), t.shape())));
    };
    let each = 8 / bits;
    let full = stride.checked_mul(each).ok_or_else(|| Error::usage(format!("a table of shape {:?} is too large", t.shape())))?;
    let columns = last.unwrap_or(full);
    if columns > full || stride == 0 {
        return Err(Error::usage(format!("{full} packed codes a row are fewer than {columns}")));
    }
    let rows = t.len() / stride;
    let mut shape = rest.to_vec();
    shape.push(columns);
    codes_tensor(unpack_rows(t.bytes(), rows, columns, stride, bits), shape, unsigned(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Model, Site};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, maker, model, node, read};

    #[test]
    fn rows_are_unpacked_from_their_lowest_bits_and_without_their_padding() {
        assert_eq!(unpack_rows(&[0x21, 0xf3, 0x54, 0xf6], 2, 3, 2, 4), [1, 2, 3, 4, 5, 6]);
        assert_eq!(unpack_rows(&[0b11_10_01_00], 1, 4, 1, 2), [0, 1, 2, 3]);
        assert_eq!(unpack_rows(&[7, 9], 2, 1, 1, 8), [7, 9]);
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
        let bytes: Vec<u8> = (0..70 * 40u32).map(|i| (i * 37 % 251) as u8).collect();
        for bits in [2, 4, 8] {
            assert_eq!(unpack_turned(&bytes, 70, 37, 40, bits), transposed(&unpack_rows(&bytes, 70, 37, 40, bits), 70, 37));
        }
    }

    fn n_bits(constants: &[(&str, Tensor)], reads: &'static [&'static str], attrs: &[(&str, i64)]) -> Result<Model> {
        let op = attrs.iter().fold(node(Op::MatMulNBits), |n, (name, i)| n.with(name, *i));
        let mut m = model(13, &[("x", DType::F32, &[2, 5])], constants, vec![(op, reads, &["y"])], &["y"]);
        lift(&mut m).map(|_| m)
    }

    /// N = 2, K = 5, blocks of 4.
    fn packed() -> Vec<(&'static str, Tensor)> {
        let w = [0x21, 0x43, 0x05, 0, 0x87, 0xa9, 0x0b, 0];
        vec![("w", bytes(DType::U8, &[2, 2, 2], &w)), ("s", f32s(&[0.1, 0.2, 0.3, 0.4])), ("z", bytes(DType::U8, &[2, 1], &[0x21, 0x43])), ("g", f32s(&[1.0]))]
    }

    const SIZES: &[(&str, i64)] = &[("K", 5), ("N", 2), ("bits", 4), ("block_size", 4)];

    #[test]
    fn mat_mul_n_bits_has_its_weight_the_way_mat_mul_reads_it() {
        let m = n_bits(&packed(), &["x", "w", "s", "z"], SIZES).unwrap();
        let (id, f) = maker(&m, read(&m, "y", 1));
        let codes = &m.codes[&Site::of(id)];
        assert_eq!((codes.0.dtype(), codes.0.shape()), (DType::U4, &[5, 2][..]));
        assert_eq!(codes.unpack(), [1, 7, 2, 8, 3, 9, 4, 10, 5, 11]);
        let q = &m.quantizers[f.quantizer().unwrap()];
        let p = q.params.as_ref().unwrap();
        assert_eq!((&q.scheme.blocks, &p.scale[..]), (&Blocks::block(0, 4), &[0.1, 0.3, 0.2, 0.4][..]));
        assert_eq!(p.zero, Zeros::Integer(vec![1, 3, 2, 4]));
        let m = n_bits(&packed(), &["x", "w", "s"], SIZES).unwrap();
        assert_eq!(m.quantizers[m.quantizers.ids().next().unwrap()].params.as_ref().unwrap().zero, Zeros::Integer(vec![8]));
    }

    #[test]
    fn sizes_that_do_not_fit_and_reordered_channels_are_refused() {
        let wrong = |reads, name: &'static str, i: i64| {
            let attrs: Vec<_> = SIZES.iter().map(|(n, v)| (*n, if *n == name { i } else { *v })).collect();
            n_bits(&packed(), reads, &attrs).unwrap_err().to_string()
        };
        let plain: &[&str] = &["x", "w", "s", "z"];
        assert!(wrong(&["x", "w", "s", "z", "g"], "", 0).contains("g_idx"));
        assert!(wrong(plain, "bits", 3).contains("3 bits"));
        for (name, i) in [("K", 50), ("K", 0), ("N", i64::MAX), ("block_size", i64::MAX), ("block_size", -1), ("K", i64::MAX)] {
            assert!(wrong(plain, name, i).starts_with("node make_y (MatMulNBits): its"), "{name} {i}");
        }
    }

    #[test]
    fn the_entries_of_a_codebook_ascend_and_the_high_nibble_comes_first() {
        let constants = [("w", bytes(DType::U8, &[2], &[0x3b, 0x80])), ("s", f32s(&[2.0]))];
        let op = node(Op::MatMulBnb4).with("K", 2i64).with("N", 2i64).with("block_size", 16i64).with("quant_type", 0i64);
        let mut m = model(13, &[("x", DType::F32, &[2, 2])], &constants, vec![(op, &["x", "w", "s"], &["y"])], &["y"]);
        lift(&mut m).unwrap();
        let (id, f) = maker(&m, read(&m, read(&m, "y", 1), 0));
        let q = &m.quantizers[f.quantizer().unwrap()];
        let values = crate::quant::dequantize(&m.codes[&Site::of(id)], &q.scheme, q.params.as_ref().unwrap()).unwrap();
        assert_eq!(values, [2.0, -2.0, 0.0, 0.0]);
    }

    #[test]
    fn a_table_that_is_cut_short_is_refused() {
        let t = Tensor::new(DType::U8, vec![2, 2], vec![0x21, 0x43, 0x65, 0x87].into()).unwrap();
        let u = unpack_table(&t, 4, Some(3)).unwrap();
        assert_eq!((u.dtype(), u.shape()), (DType::U4, &[2, 3][..]));
        assert_eq!(u.to_i64().unwrap(), [1, 2, 3, 5, 6, 7]);
        assert!(unpack_table(&t, 4, Some(5)).is_err());
    }
}
