//! Codes ↔ ONNX's packed bytes. 4-bit: low nibble first; 2-bit: lowest bits first; 6-bit: four codes in three bytes, lowest bits first;
//! the flattened tensor is packed as a whole, unused bits of the last byte are zero. Source: onnx.proto, `TensorProto.int32_data` and `raw_data`.

use super::DType;

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
            let (pairs, rest) = codes.as_chunks::<2>();
            pairs.iter().map(|[a, b]| a & 15 | b << 4).chain(rest.iter().map(|a| a & 15)).collect()
        }
        _ => pack(&codes.iter().map(|&c| c as i32).collect::<Vec<_>>(), dtype),
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
