//! The fifteen quantizers that the core types must express before any method exists: each is built, fake-quantizes a tensor as
//! `tests/python/day_one.py` does without us, and prints itself.

use crate::quant::{E2M1, E4M3, ask, assert_same, bits, floats, integers, scheme, uniform};
use requant::graph::{Graph, Model, Node, NodeId, Op, Site};
use requant::quant::{
    Blocks, Curve, Format, Origin, Params, QuantizerId, Rounding, ScaleKind, Scheme, Table, Timing, Zero, block_ranges, dequantize, fake_quantize, fit,
    fit_grid, fit_range, quantize,
};
use requant::tensor::{DType, Tensor};
use serde_json::{Value, json};

const F32: ScaleKind = ScaleKind::Exact(DType::F32);

fn int(bits: u8, signed: bool) -> Format {
    Format::Int { bits, signed, narrow: false }
}

fn normal(n: usize, seed: u32) -> Vec<f32> {
    (0..6).map(|k| uniform(n, seed + 31 * k)).reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap()
}

fn oracle(case: &str, x: &[f32], shape: &[usize], mut more: Value) -> Value {
    let asked = more.as_object_mut().unwrap();
    asked.insert("case".into(), json!(case));
    asked.insert("x".into(), json!(bits(x)));
    asked.insert("shape".into(), json!(shape));
    ask("day_one.py", &more)
}

fn faked(x: &[f32], shape: &[usize], scheme: &Scheme, params: Option<&Params>) -> Vec<f32> {
    let mut y = x.to_vec();
    fake_quantize(&mut y, shape, scheme, params).unwrap();
    y
}

/// Fits, checks that fake-quantizing, the codes and the oracle all give the same numbers, and returns the oracle's answer.
fn check(case: &str, x: &[f32], shape: &[usize], scheme: &Scheme, params: &Params, more: Value) -> Value {
    let answer = oracle(case, x, shape, more);
    let y = faked(x, shape, scheme, Some(params));
    assert_same(&y, &floats(&answer["values"]), case);
    let codes = quantize(x, shape, scheme, params).unwrap();
    assert_same(&dequantize(&codes, scheme, params).unwrap(), &y, case);
    assert!(y.iter().any(|y| *y != 0.0) && y != x, "{case} does something");
    answer
}

#[test]
fn int8_per_channel() {
    let (x, shape) = (normal(72, 1), [4, 6, 3]);
    let s = scheme(int(8, true), F32, Zero::None, Blocks::channel(0));
    let params = fit(&x, &shape, &s).unwrap();
    let answer = check("int8_per_channel", &x, &shape, &s, &params, json!({}));
    assert_same(&params.scale, &floats(&answer["scale"]), "scales");
    assert_eq!(s.to_string(), "int8 per channel (axis 0), symmetric, scale float32");
}

#[test]
fn uint8_zero_128() {
    let (x, shape) = (normal(60, 2), [60]);
    let s = scheme(int(8, false), F32, Zero::Fixed(128), Blocks::tensor());
    let params = fit(&x, &shape, &s).unwrap();
    check("uint8_zero_128", &x, &shape, &s, &params, json!({}));
    assert_eq!(s.to_string(), "uint8 per tensor, zero_point 128, scale float32");
    assert_eq!(params.to_string(), format!("scale {}, zero_point 128, fitted", params.scale[0]));
}

#[test]
fn nvfp4() {
    let shape = [3, 72];
    let mut x: Vec<f32> = normal(216, 3).iter().enumerate().map(|(i, x)| x * [1.0, 0.01, 30.0][i / 16 % 3]).collect();
    x[16..32].fill(0.0);
    let inner = scheme(E4M3, F32, Zero::None, Blocks::tensor());
    let s = scheme(E2M1, ScaleKind::Nested(Box::new(inner)), Zero::None, Blocks::block(1, 16));
    let params = fit(&x, &shape, &s).unwrap();
    let answer = check("nvfp4", &x, &shape, &s, &params, json!({}));
    let nested = params.nested.as_ref().unwrap();
    assert_eq!(nested.codes.unpack().into_iter().map(i64::from).collect::<Vec<_>>(), integers(&answer["codes"]));
    assert_eq!(nested.codes.0.shape(), [3, 5], "the last block of a row is short");
    assert_eq!(s.to_string(), "float4e2m1 per block of 16 (axis 1), symmetric, scale (float8e4m3fn per tensor, symmetric, scale float32)");
}

#[test]
fn mxfp4_activations() {
    let (x, shape) = (normal(480, 4), [2, 3, 80]);
    let mut s = scheme(E2M1, ScaleKind::Pow2(DType::F8E8M0), Zero::None, Blocks::block(-1, 32));
    s.timing = Timing::Dynamic;
    let answer = oracle("mxfp4", &x, &shape, json!({}));
    assert_same(&faked(&x, &shape, &s, None), &floats(&answer["values"]), "mxfp4");
    assert_eq!(s.to_string(), "float4e2m1 per block of 32 (axis -1), symmetric, scale power of two (float8e8m0), dynamic");
}

#[test]
fn lpbq() {
    let (x, shape) = (normal(192, 5), [3, 64]);
    let inner = scheme(int(4, false), F32, Zero::None, Blocks::channel(0));
    let s = scheme(int(4, true), ScaleKind::Nested(Box::new(inner)), Zero::None, Blocks::block(1, 16));
    let params = fit(&x, &shape, &s).unwrap();
    let answer = check("lpbq", &x, &shape, &s, &params, json!({}));
    assert_eq!(params.nested.as_ref().unwrap().codes.unpack().into_iter().map(i64::from).collect::<Vec<_>>(), integers(&answer["codes"]));
    assert_eq!(s.to_string(), "int4 per block of 16 (axis 1), symmetric, scale (uint4 per channel (axis 0), symmetric, scale float32)");
}

#[test]
fn int4_block_32_with_a_real_zero() {
    let (x, shape) = (normal(140, 6).iter().map(|x| x + 5.0).collect::<Vec<_>>(), [2, 70]);
    let s = scheme(int(4, true), F32, Zero::Real, Blocks::block(1, 32));
    let params = fit(&x, &shape, &s).unwrap();
    check("int4_real_zero", &x, &shape, &s, &params, json!({}));
    assert_eq!(s.to_string(), "int4 per block of 32 (axis 1), zero_point real, scale float32");
}

#[test]
fn a_fitted_codebook_of_16_entries_with_block_scale() {
    let (x, shape) = (normal(64 * 200, 7), [50, 256]);
    let s = scheme(Format::codebook(4), F32, Zero::None, Blocks::block(1, 64));
    let params = fit(&x, &shape, &s).unwrap();
    let Curve::Table(table) = &params.curve else { panic!("a table") };
    assert_eq!(table.len(), 16);
    let answer = check("codebook", &x, &shape, &s, &params, json!({ "table": bits(table) }));
    assert!(answer["drift"][0].as_f64().unwrap() < 1e-3, "every entry is the mean of what goes to it");
    let loss = |y: Vec<f32>| x.iter().zip(y).map(|(x, y)| ((x - y) as f64).powi(2)).sum::<f64>();
    let even = faked(&x, &shape, &Scheme { format: int(4, true), ..s.clone() }, Some(&fit(&x, &shape, &Scheme { format: int(4, true), ..s.clone() }).unwrap()));
    assert!(loss(faked(&x, &shape, &s, Some(&params))) < 0.8 * loss(even), "a fitted table beats even steps");
    assert_eq!(s.to_string(), "codebook4 per block of 64 (axis 1), symmetric, scale float32");
}

#[test]
fn a_power_exponent_quantizer() {
    let (x, shape) = (normal(300, 8), [300]);
    let s = scheme(int(8, true), F32, Zero::None, Blocks::tensor());
    let (lo, hi) = block_ranges(&x, &shape, &s.blocks.layout(&shape).unwrap());
    let params = fit_grid(&s, &[1], &Curve::Power(0.5), &lo, &hi).unwrap();
    check("power", &x, &shape, &s, &params, json!({}));
    assert_eq!(params.to_string(), format!("scale {}, power 0.5, fitted", params.scale[0]));
}

#[test]
fn per_token_dynamic_int8() {
    let (x, shape) = (normal(96, 9), [2, 3, 16]);
    let s = Scheme { timing: Timing::Dynamic, ..scheme(int(8, true), F32, Zero::None, Blocks::token()) };
    let answer = oracle("per_token", &x, &shape, json!({}));
    assert_same(&faked(&x, &shape, &s, None), &floats(&answer["values"]), "per token");
    assert_eq!(s.to_string(), "int8 per token, symmetric, scale float32, dynamic");
}

#[test]
fn lstm_weights_per_gate() {
    let (x, shape) = (normal(2 * 4 * 3 * 5, 10), [2, 12, 5]);
    let x: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * (1 << (i / 15 % 4)) as f32).collect();
    let s = scheme(int(8, true), F32, Zero::None, Blocks::gate(4));
    let params = fit(&x, &shape, &s).unwrap();
    assert_eq!(params.scale.len(), 8);
    check("lstm_gates", &x, &shape, &s, &params, json!({}));
    assert_eq!(s.to_string(), "int8 per gate (4), symmetric, scale float32");
}

#[test]
fn a_bias_as_product_with_int32_codes() {
    let mut table = Table::default();
    let input = table.add("x", Scheme::int(8, false));
    let weight = table.add("w", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
    let s = Scheme { blocks: Blocks::channel(0), ..Scheme::int(32, true) };
    let id = table.add("b", s.clone());
    table[input].params = Some(fit_range(&table[input].scheme, &[-1.0], &[3.0]).unwrap());
    table[weight].params = Some(fit(&normal(40, 11), &[5, 8], &table[weight].scheme).unwrap());
    let (of_input, of_weight) = (table[input].params.clone().unwrap(), table[weight].params.clone().unwrap());
    let scale = of_weight.scale.iter().map(|w| of_input.scale[0] * w).collect();
    table[id].params = Some(Params { scale, origin: Origin::Product(input, weight), ..Params::tensor(1.0, None) });
    let params = table[id].params.as_ref().unwrap();
    let x = [0.5, -300.0, 1e-5, 7.25, 4e6];
    let more = json!({ "input_scale": of_input.scale[0], "weight_scales": bits(&of_weight.scale) });
    let answer = check("bias", &x, &[5], &s, params, more);
    let codes = quantize(&x, &[5], &s, params).unwrap();
    assert_eq!(codes.0.dtype(), DType::I32);
    assert_eq!(codes.unpack().into_iter().map(i64::from).collect::<Vec<_>>(), integers(&answer["codes"]));
    assert!(params.to_string().ends_with("product of #0 and #1"), "{params}");
}

#[test]
fn inputs_of_concat_are_the_same_quantizer() {
    let (a, b) = (uniform(20, 12), normal(30, 13));
    let mut table = Table::default();
    let first = table.add("a", Scheme::int(8, false));
    let second = table.add("b", Scheme::int(8, false));
    let whole = [a.clone(), b.clone()].concat();
    let params = fit(&whole, &[50], &table[first].scheme).unwrap();
    table[second].params = Some(Params { origin: Origin::Same(first), ..params.clone() });
    table[first].params = Some(params.clone());
    assert_eq!(table.root(second), first);
    let part = |x: &[f32], id: QuantizerId| {
        let q = &table[table.root(id)];
        faked(x, &[x.len()], &q.scheme, q.params.as_ref())
    };
    let answer = oracle("concat", &whole, &[50], json!({}));
    assert_same(&[part(&a, first), part(&b, second)].concat(), &floats(&answer["values"]), "concat");
    assert!(table[second].params.as_ref().unwrap().to_string().ends_with("same as #0"));
}

/// Adds a FakeQuant of a value of `graph`, and returns it.
fn add_fake_quant(graph: &mut Graph, value: &str, id: QuantizerId) -> NodeId {
    let from = graph.find_value(value).unwrap();
    let to = graph.add_value(&format!("{value}_quantized"));
    graph.add_node(Node::fake_quant(id, ""), &[Some(from)], &[Some(to)])
}

#[test]
fn a_weight_shared_by_two_consumers_under_two_schemes() {
    let (x, shape) = (normal(280, 14), [4, 70]);
    let mut model = Model::default();
    model.graph.add_constant("w", Tensor::of_f32(&shape, x.clone()));
    let by_channel = model.quantizers.add("w", scheme(int(8, true), F32, Zero::None, Blocks::channel(0)));
    let by_block = model.quantizers.add("w", scheme(int(4, true), F32, Zero::None, Blocks::block(1, 32)));
    for id in [by_channel, by_block] {
        let node = add_fake_quant(&mut model.graph, "w", id);
        let q = &mut model.quantizers[id];
        let params = fit(&x, &shape, &q.scheme).unwrap();
        model.codes.insert(Site::of(node), quantize(&x, &shape, &q.scheme, &params).unwrap());
        q.params = Some(params);
    }
    let answer = oracle("shared_weight", &x, &shape, json!({}));
    let mut printed = Vec::new();
    for ((site, codes), want) in model.codes.iter().zip(["values", "block"]) {
        let q = &model.quantizers[model.quantizer_of(site.node).unwrap()];
        assert_same(&dequantize(codes, &q.scheme, q.params.as_ref().unwrap()).unwrap(), &floats(&answer[want]), want);
        printed.push(q.scheme.to_string());
    }
    assert_eq!(printed, ["int8 per channel (axis 0), symmetric, scale float32", "int4 per block of 32 (axis 1), symmetric, scale float32"]);
}

#[test]
fn int16_with_half_up_rounding() {
    let mut x = normal(200, 15);
    x.extend((-40..40).map(|i| (i as f32 + 0.5) * 0.25)); // ties
    x.extend([9000.0, -9000.0]);
    let s = Scheme { rounding: Rounding::HalfUp, ..Scheme::int(16, true) };
    check("int16_half_up", &x, &[x.len()], &s, &Params { origin: Origin::Fixed, ..Params::tensor(0.25, None) }, json!({ "scale": 0.25 }));
    assert_eq!(faked(&[-0.625, 0.625], &[2], &s, Some(&Params::tensor(0.25, None))), [-0.5, 0.75], "ties go up");
    assert_eq!(s.to_string(), "int16 per tensor, symmetric, scale float32, rounding half-up");
}

#[test]
fn a_quantizer_inside_an_if_branch() {
    let (x, shape) = (normal(24, 16), [4, 6]);
    let mut model = Model::default();
    let id = model.quantizers.add("w", Scheme::int(8, true));
    let mut branch = Graph::default();
    branch.add_constant("w", Tensor::of_f32(&shape, x.clone()));
    let inside = add_fake_quant(&mut branch, "w", id);
    branch.outputs = vec![branch.find_value("w_quantized").unwrap()];
    let condition = model.graph.add_value("condition");
    let out = model.graph.add_value("out");
    let node = Node::new(Op::If, "choose").with("then_branch", branch.clone()).with("else_branch", branch);
    let outer = model.graph.add_node(node, &[Some(condition)], &[Some(out)]);
    let params = fit(&x, &shape, &model.quantizers[id].scheme).unwrap();
    let codes = quantize(&x, &shape, &model.quantizers[id].scheme, &params).unwrap();
    model.quantizers[id].params = Some(params);
    let site = |branch: &str| Site { path: vec![(outer, branch.into(), 0)], node: inside, slot: 0 };
    model.codes.insert(site("then_branch"), codes);

    let answer = oracle("if_branch", &x, &shape, json!({}));
    for (attribute, body) in model.graph.node(outer).bodies() {
        let q = &model.quantizers[body.get_node(inside).unwrap().quantizer().unwrap()];
        let params = q.params.as_ref().unwrap();
        let y = match model.codes.get(&site(attribute)) {
            Some(codes) => dequantize(codes, &q.scheme, params).unwrap(),
            None => faked(&x, &shape, &q.scheme, Some(params)),
        };
        assert_same(&y, &floats(&answer["values"]), attribute);
        assert_eq!(q.scheme.to_string(), "int8 per tensor, symmetric, scale float32");
    }
    assert!(model.codes.contains_key(&site("then_branch")) && !model.codes.contains_key(&site("else_branch")), "one branch has codes, the other rounds");
}
