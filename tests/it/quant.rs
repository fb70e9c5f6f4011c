//! The quantizer's arithmetic against ml_dtypes and onnx's reference evaluator.

use requant::quant::{Blocks, Format, Params, ScaleKind, Scheme, Specials, Timing, Zero, Zeros, dequantize, quantize};
use requant::quant::{Rounding, e8m0_value};
use requant::tensor::{DType, pack};
use serde_json::{Value, json};

/// What a script of `tests/python` answers to `asked`: JSON in, JSON out.
pub fn ask(script: &str, asked: &Value) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("asked.json");
    std::fs::write(&file, asked.to_string()).unwrap();
    serde_json::from_str(&crate::python::run(script, &[file.to_str().unwrap()])).unwrap()
}

/// Numbers as their bits, which JSON carries exactly.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The numbers of an answer's bits.
pub fn floats(answer: &Value) -> Vec<f32> {
    integers(answer).into_iter().map(|b| f32::from_bits(b as u32)).collect()
}

pub fn integers(answer: &Value) -> Vec<i64> {
    answer.as_array().expect("a list").iter().map(|v| v.as_i64().expect("an integer")).collect()
}

/// Pseudo-random numbers between −1 and 1, the same on every machine.
pub fn uniform(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Whether two numbers are the same bits, or both NaN.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    if let Some(i) = got.iter().zip(want).position(|(a, b)| !same(*a, *b)) {
        panic!("{what}: element {i} is {:e}, not {:e}", got[i], want[i]);
    }
}

fn plain(format: Format) -> Scheme {
    Scheme { format, ..Scheme::int(8, true) }
}

const FLOATS: [DType; 7] = [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F4E2M1, DType::F6E2M3, DType::F6E3M2];
const INTEGERS: [DType; 6] = [DType::I2, DType::U2, DType::I4, DType::U4, DType::I8, DType::U8];

/// All values of all formats with the midpoints between them and their neighbours, and numbers of every magnitude.
fn numbers() -> Vec<f32> {
    let mut list = Vec::new();
    for dtype in FLOATS {
        let format = Format::of_dtype(dtype).unwrap();
        let mut values: Vec<f32> = (0..1 << format.bits()).map(|c| format.value(c)).filter(|v| v.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        for pair in values.windows(2) {
            let mid = (pair[0] + pair[1]) / 2.0;
            list.extend([pair[0], mid, mid.next_up(), mid.next_down()]);
        }
    }
    list.extend((0..50_000u32).map(|i| f32::from_bits(i.wrapping_mul(85_899))).filter(|x| !x.is_nan())); // 2^32 / 50 000
    list.extend(uniform(10_000, 1).iter().map(|x| x * 8.0));
    list
}

#[test]
fn every_code_and_many_numbers_of_every_float_format_are_those_of_ml_dtypes() {
    let x = numbers();
    let none: Vec<u8> = Vec::new();
    let asked = json!({ "x": bits(&x), "codes": FLOATS.iter().map(|d| (d.name().to_string(), json!(none))).collect::<serde_json::Map<_, _>>() });
    let answer = ask("formats.py", &asked);
    for dtype in FLOATS {
        let format = Format::of_dtype(dtype).unwrap();
        let values: Vec<f32> = (0..1 << format.bits()).map(|c| format.value(c)).collect();
        assert_same(&values, &floats(&answer[dtype.name()]["values"]), dtype.name());
        let (scheme, params) = (plain(format), Params::tensor(1.0, None));
        let codes = quantize(&x, &[x.len()], &scheme, &params).unwrap().unpack();
        for (i, want) in integers(&answer[dtype.name()]["encoded"]).into_iter().enumerate() {
            assert_eq!(codes[i] as i64, want, "{dtype} of {:e}", x[i]);
        }
    }
}

#[test]
fn e8m0_and_nan_are_those_of_ml_dtypes() {
    let mut asked = serde_json::Map::new();
    asked.insert("float8e8m0".into(), json!(Vec::<u8>::new()));
    let answer = ask("formats.py", &json!({ "x": [], "codes": asked }));
    assert_same(&(0..=255).map(e8m0_value).collect::<Vec<_>>(), &floats(&answer["float8e8m0"]["values"]), "float8e8m0");
    let with_nan = ["float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"];
    let asked = with_nan.iter().map(|d| (d.to_string(), json!(Vec::<u8>::new()))).collect::<serde_json::Map<_, _>>();
    let answer = ask("formats.py", &json!({ "x": [f32::NAN.to_bits()], "codes": asked }));
    for name in with_nan {
        let scheme = plain(Format::of_dtype(DType::of_name(name).unwrap()).unwrap());
        let codes = quantize(&[f32::NAN], &[1], &scheme, &Params::tensor(1.0, None)).unwrap().unpack();
        assert_eq!(vec![codes[0] as i64], integers(&answer[name]["encoded"]), "{name}");
    }
}

#[test]
fn packing_is_onnx_own() {
    for n in [0, 1, 2, 3, 4, 5, 7, 8, 13, 64, 257] {
        let codes_of = |dtype: DType| -> Vec<i32> {
            let bits = dtype.bits() as u32;
            let raw = (0..n).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 7) & ((1 << bits) - 1));
            raw.map(|c| if pack::is_signed(dtype) { (c << (32 - bits)) as i32 >> (32 - bits) } else { c as i32 }).collect()
        };
        let all = || FLOATS.into_iter().chain(INTEGERS);
        let asked = all().map(|d| (d.name().to_string(), json!(codes_of(d)))).collect::<serde_json::Map<_, _>>();
        let answer = ask("formats.py", &json!({ "x": [], "codes": asked }));
        for dtype in all() {
            let (codes, want) = (codes_of(dtype), &answer[dtype.name()]);
            let bytes = pack::pack(&codes, dtype);
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(Some(hex.as_str()), want["packed"].as_str(), "{n} codes of {dtype}");
            assert_eq!(pack::unpack(&bytes, dtype, codes.len()).into_iter().map(i64::from).collect::<Vec<_>>(), integers(&want["unpacked"]), "{dtype}");
        }
    }
}

#[test]
fn quantize_and_dequantize_are_those_of_onnx_reference() {
    let mut x = uniform(3 * 70 * 4, 2).iter().map(|x| x * 40.0).collect::<Vec<_>>();
    for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
        *x = (i as f32 / 3.0 - 100.0) / 8.0; // with scales of 1/4 and 1/2: ties in abundance
    }
    let shape = [3, 70, 4];
    let granularities = [
        (Blocks::tensor(), 1, 0),
        (Blocks::channel(0), 0, 0),
        (Blocks::channel(1), 1, 0),
        (Blocks::channel(-1), -1, 0),
        (Blocks::block(0, 2), 0, 2),
        (Blocks::block(1, 32), 1, 32), // the last block is short
        (Blocks::block(-1, 3), -1, 3),
    ];
    let (mut asked, mut ours) = (Vec::new(), Vec::new());
    for dtype in FLOATS.into_iter().chain(INTEGERS).chain([DType::I16, DType::U16]) {
        let format = Format::of_dtype(dtype).unwrap();
        for (blocks, axis, block_size) in &granularities {
            let layout = blocks.layout(&shape).unwrap();
            let n = layout.len();
            let scale: Vec<f32> = (0..n).map(|b| [0.25, 0.5, 0.37, 0.01, 3.0][b % 5]).collect();
            for has_zero in [false, true] {
                let (zeros, scheme_zero) = match format.code_range() {
                    Some((lo, hi)) if has_zero => {
                        (Zeros::Integer((0..n as i32).map(|b| [lo, hi, (lo + hi) / 2, lo + 1][b as usize % 4]).collect()), Zero::Integer)
                    }
                    None if has_zero => continue,
                    _ => (Zeros::None, Zero::None),
                };
                let scale_shape = match (blocks.is_tensor(), *block_size) {
                    (true, _) => vec![],
                    (false, 0) => vec![n],
                    _ => layout.grid.clone(),
                };
                let zero = if let Zeros::Integer(z) = &zeros { json!(z) } else { Value::Null };
                let dtype = dtype.name();
                asked.push(json!({
                    "x": bits(&x), "shape": shape, "scale": bits(&scale), "scale_shape": scale_shape, "zero": zero,
                    "dtype": dtype, "axis": axis, "block_size": block_size, "opset": if dtype.starts_with("float6") { 28 } else { 25 },
                }));
                let scheme = Scheme { blocks: blocks.clone(), zero: scheme_zero, ..plain(format) };
                ours.push((scheme, Params { scale: scale.clone(), zero: zeros, ..Params::tensor(1.0, None) }));
            }
        }
    }
    let answers = ask("qdq.py", &Value::Array(asked));
    assert_eq!(answers.as_array().unwrap().len(), ours.len());
    for (answer, (scheme, params)) in answers.as_array().unwrap().iter().zip(&ours) {
        let codes = quantize(&x, &shape, scheme, params).unwrap();
        let want = integers(&answer["codes"]);
        for (i, c) in codes.unpack().into_iter().enumerate() {
            assert_eq!(c as i64, want[i], "{scheme}, {params}: element {i}, {}", x[i]);
        }
        assert_same(&dequantize(&codes, scheme, params).unwrap(), &floats(&answer["values"]), &scheme.to_string());
    }
}

/// A scheme from its parts, in the order in which the design lists them.
pub fn scheme(format: Format, scale: ScaleKind, zero: Zero, blocks: Blocks) -> Scheme {
    Scheme { format, scale, zero, blocks, timing: Timing::Static, rounding: Rounding::HalfEven }
}

pub const E2M1: Format = Format::Float { exponent: 2, mantissa: 1, specials: Specials::None };
pub const E4M3: Format = Format::Float { exponent: 4, mantissa: 3, specials: Specials::Fn };
