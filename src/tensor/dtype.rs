//! ONNX element types: number, name, width, and the first opset and IR version that know each.

/// An element type of ONNX (`TensorProto.DataType`, opset 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    U8,
    I8,
    U16,
    I16,
    I32,
    I64,
    Str,
    Bool,
    F16,
    F64,
    U32,
    U64,
    C64,
    C128,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    U4,
    I4,
    F4E2M1,
    F8E8M0,
    U2,
    I2,
    F6E2M3,
    F6E3M2,
}

/// One row a type: (type, ONNX number, name as users and onnx write it, bits, first IR version).
const ROWS: [(DType, i32, &str, usize, i64); 28] = {
    use DType::*;
    [
        (F32, 1, "float32", 32, 3),
        (U8, 2, "uint8", 8, 3),
        (I8, 3, "int8", 8, 3),
        (U16, 4, "uint16", 16, 3),
        (I16, 5, "int16", 16, 3),
        (I32, 6, "int32", 32, 3),
        (I64, 7, "int64", 64, 3),
        (Str, 8, "string", 0, 3),
        (Bool, 9, "bool", 8, 3),
        (F16, 10, "float16", 16, 3),
        (F64, 11, "float64", 64, 3),
        (U32, 12, "uint32", 32, 3),
        (U64, 13, "uint64", 64, 3),
        (C64, 14, "complex64", 64, 3),
        (C128, 15, "complex128", 128, 3),
        (BF16, 16, "bfloat16", 16, 4),
        (F8E4M3FN, 17, "float8e4m3fn", 8, 9),
        (F8E4M3FNUZ, 18, "float8e4m3fnuz", 8, 9),
        (F8E5M2, 19, "float8e5m2", 8, 9),
        (F8E5M2FNUZ, 20, "float8e5m2fnuz", 8, 9),
        (U4, 21, "uint4", 4, 10),
        (I4, 22, "int4", 4, 10),
        (F4E2M1, 23, "float4e2m1", 4, 11),
        (F8E8M0, 24, "float8e8m0", 8, 12),
        (U2, 25, "uint2", 2, 13),
        (I2, 26, "int2", 2, 13),
        (F6E2M3, 27, "float6e2m3", 6, 14),
        (F6E3M2, 28, "float6e3m2", 6, 14),
    ]
};

impl DType {
    /// Every type, in the order of ONNX's numbers.
    pub fn all() -> impl Iterator<Item = DType> {
        ROWS.iter().map(|r| r.0)
    }

    /// The type with ONNX's number `n`.
    pub fn of_onnx(n: i32) -> Option<DType> {
        ROWS.iter().find(|r| r.1 == n).map(|r| r.0)
    }

    /// The type called `name` (`float32`, `int4` …).
    pub fn of_name(name: &str) -> Option<DType> {
        ROWS.iter().find(|r| r.2 == name).map(|r| r.0)
    }

    fn row(self) -> &'static (DType, i32, &'static str, usize, i64) {
        &ROWS[self as usize]
    }

    /// ONNX's number.
    pub fn onnx(self) -> i32 {
        self.row().1
    }

    /// The name that users and onnx write.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Bits an element takes in packed storage; 0 for strings.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// The first IR version whose models may hold this type.
    pub fn min_ir(self) -> i64 {
        self.row().4
    }

    /// Bytes of `n` packed elements (a tail of less than a byte is rounded up); `None` where that overflows.
    pub fn packed_len(self, n: usize) -> Option<usize> {
        Some(n.checked_mul(self.bits())?.div_ceil(8))
    }

    /// Whether values are real numbers in a floating-point format.
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F32 | F16 | F64 | BF16 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F4E2M1 | F8E8M0 | F6E2M3 | F6E3M2)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_at_their_own_index() {
        for (i, t) in DType::all().enumerate() {
            assert_eq!(t as usize, i, "{t}");
            assert_eq!(t.onnx(), i as i32 + 1);
            assert_eq!(DType::of_onnx(t.onnx()), Some(t));
            assert_eq!(DType::of_name(t.name()), Some(t));
        }
    }

    #[test]
    fn odd_tails_take_a_whole_byte() {
        assert_eq!(DType::I4.packed_len(3), Some(2));
        assert_eq!(DType::F6E2M3.packed_len(5), Some(4));
        assert_eq!(DType::U2.packed_len(5), Some(2));
        assert_eq!(DType::F64.packed_len(usize::MAX), None);
    }
}
