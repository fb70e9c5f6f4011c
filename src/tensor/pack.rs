//! Codes ↔ ONNX's packed bytes. 4-bit: low nibble first; 2-bit: lowest bits first; 6-bit: four codes in three bytes, lowest bits first;
//! the flattened tensor is packed as a whole, unused bits of the last byte are zero. Source: onnx.proto, `TensorProto.int32_data` and `raw_data`.

use super::DType;
use std::borrow::Cow;

/// Whether codes of `dtype` are two's complement.
pub fn is_signed(dtype: DType) -> bool {
    matches!(dtype, DType::I2 | DType::I4 | DType::I8 | DType::I16 | DType::I32)
}

/// Packs codes: integers by value, float formats by bit pattern. Bits above the type's width are dropped.
pub fn pack(codes: &[i32], dtype: DType) -> Vec<u8> {
    let bits = dtype.bits();
    match bits {
        8 => codes.iter().map(|&c| c as u8).collect(),
        16 => codes.iter().flat_map(|&c| (c as u16).to_le_bytes()).collect(),
        32 => codes.iter().flat_map(|&c| c.to_le_bytes()).collect(),
        _ => {
            let mut out = vec![0u8; (codes.len() * bits).div_ceil(8)];
            let mask = (1u32 << bits) - 1;
            for (i, &c) in codes.iter().enumerate() {
                let at = i * bits;
                let word = (c as u32 & mask) << (at % 8);
                out[at / 8] |= word as u8;
                if at % 8 + bits > 8 {
                    out[at / 8 + 1] |= (word >> 8) as u8;
                }
            }
            out
        }
    }
}

/// Packs codes of at most 8 bits, each in the low bits of its byte: the same bytes as [`pack`] gives.
pub fn pack_bytes(codes: Vec<u8>, dtype: DType) -> Vec<u8> {
    match dtype.bits() {
        8 => codes,
        4 => {
            let mut out = vec![0; codes.len().div_ceil(2)];
            let (pairs, rest) = codes.as_chunks::<2>();
            out.iter_mut().zip(pairs).for_each(|(o, [a, b])| *o = a & 15 | b << 4);
            if let ([a], Some(o)) = (rest, out.last_mut()) {
                *o = a & 15;
            }
            out
        }
        _ => pack(&codes.iter().map(|&c| c as i32).collect::<Vec<_>>(), dtype),
    }
}

/// The first `n` codes of at most 8 bits, each in the low bits of a byte, the other bits zero; borrowed where they lie so already.
///
/// # Panics
/// If there are fewer bytes than `n` codes need.
pub fn unpack_bytes(bytes: &[u8], dtype: DType, n: usize) -> Cow<'_, [u8]> {
    match dtype.bits() {
        8 => Cow::Borrowed(&bytes[..n]),
        4 => {
            let mut out = vec![0; n];
            let (pairs, rest) = out.as_chunks_mut::<2>();
            pairs.iter_mut().zip(bytes).for_each(|(o, b)| *o = [b & 15, b >> 4]);
            rest.iter_mut().for_each(|o| *o = bytes[n / 2] & 15);
            out.into()
        }
        bits => unpack(bytes, dtype, n).into_iter().map(|c| c as u8 & ((1 << bits) - 1)).collect(),
    }
}

/// The first `n` codes of packed bytes: integers by value, float formats by bit pattern.
///
/// # Panics
/// If there are fewer bytes than `n` codes need.
pub fn unpack(bytes: &[u8], dtype: DType, n: usize) -> Vec<i32> {
    let bits = dtype.bits();
    let signed = is_signed(dtype);
    let extend = |raw: u32| if signed { (raw << (32 - bits)) as i32 >> (32 - bits) } else { raw as i32 };
    match bits {
        8 => bytes[..n].iter().map(|&b| extend(b as u32)).collect(),
        16 => bytes[..2 * n].chunks_exact(2).map(|b| extend(u16::from_le_bytes([b[0], b[1]]) as u32)).collect(),
        32 => bytes[..4 * n].chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        _ => {
            let mask = (1u32 << bits) - 1;
            (0..n)
                .map(|i| {
                    let at = i * bits;
                    let mut word = bytes[at / 8] as u32;
                    if at % 8 + bits > 8 {
                        word |= (bytes[at / 8 + 1] as u32) << 8;
                    }
                    extend((word >> (at % 8)) & mask)
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: [DType; 7] = [DType::U2, DType::I2, DType::U4, DType::I4, DType::F4E2M1, DType::F6E2M3, DType::F6E3M2];

    #[test]
    fn bits_stand_where_onnx_puts_them() {
        assert_eq!(pack(&[1, 2, 3, 0, 2], DType::U2), [0b00_11_10_01, 0b10]);
        assert_eq!(pack(&[0x1, 0xf, -8], DType::I4), [0xf1, 0x08]);
        assert_eq!(pack(&[0x3f, 0, 0x3f, 1, 0x2a], DType::F6E2M3), [0x3f, 0xf0, 0x07, 0x2a]);
        assert_eq!(pack(&[-2, 0x1234], DType::I16), [0xfe, 0xff, 0x34, 0x12]);
        assert_eq!(pack(&[i32::MIN], DType::I32), [0, 0, 0, 0x80]);
    }

    #[test]
    fn unpacking_undoes_packing_for_every_length_of_tail() {
        for dtype in PACKED.into_iter().chain([DType::I8, DType::U8, DType::I16, DType::U16, DType::I32]) {
            let (bits, signed) = (dtype.bits() as u32, is_signed(dtype));
            for n in 0..20 {
                let codes: Vec<i32> = (0..n)
                    .map(
                        |i| if signed { ((i as u32).wrapping_mul(0x5bd1_e995) as i32) << (32 - bits) >> (32 - bits) } else { (i * 0x5bd1) & ((1 << bits) - 1) },
                    )
                    .collect();
                let bytes = pack(&codes, dtype);
                assert_eq!(Some(bytes.len()), dtype.packed_len(codes.len()), "{dtype} {n}");
                assert_eq!(unpack(&bytes, dtype, codes.len()), codes, "{dtype} {n}");
                if bits <= 8 {
                    let mask = (1 << bits) - 1;
                    assert_eq!(&unpack_bytes(&bytes, dtype, codes.len())[..], codes.iter().map(|c| (c & mask) as u8).collect::<Vec<_>>(), "{dtype} {n}");
                    assert_eq!(pack_bytes(codes.iter().map(|c| *c as u8).collect(), dtype), bytes, "{dtype} {n}");
                }
            }
        }
    }
}
