use super::*;
use crate::graph::Attr;

/// x → FakeQuant → Conv(FakeQuant(w)) → y
fn placed() -> (Model, NodeId) {
    let mut m = Model { opsets: vec![(String::new(), 13)], ir_version: 7, ..Model::default() };
    let a = m.quantizers.add("x", Scheme::int(8, false));
    let w = m.quantizers.add("w", Scheme { blocks: Blocks::channel(0), ..Scheme::int(8, true) });
    m.quantizers[a].params = Some(Params::tensor(0.5, Some(3)));
    m.quantizers[w].params = Some(Params { scale: vec![0.25, 0.5], ..Params::tensor(1.0, None) });
    let g = &mut m.graph;
    let [x, xq, wq, y] = ["x", "xq", "wq", "y"].map(|n| g.add_value(n));
    let wv = g.add_constant("w", Tensor::of_f32(&[2, 1, 1, 1], vec![1.0, 1.0]));
    g.inputs.push(x);
    g.outputs.push(y);
    g.add_node(Node::fake_quant(a, "fx"), &[Some(x)], &[Some(xq)]);
    let f = g.add_node(Node::fake_quant(w, "fw"), &[Some(wv)], &[Some(wq)]);
    g.add_node(Node::new(Op::Conv, "conv"), &[Some(xq), Some(wq)], &[Some(y)]);
    let codes = Codes(Tensor::new(DType::I8, vec![2, 1, 1, 1], vec![4, 2].into()).unwrap());
    m.codes.insert(Site::of(f), codes);
    (m, f)
}

#[test]
fn activations_become_pairs_and_weights_become_codes() {
    let (mut m, _) = placed();
    lower_qdq(&mut m, None).unwrap();
    let g = &m.graph;
    let ops: Vec<Op> = g.nodes().map(|(_, n)| n.op).collect();
    assert_eq!(ops, [Op::QuantizeLinear, Op::DequantizeLinear, Op::DequantizeLinear, Op::Conv]);
    let (_, dq) = g.nodes().nth(2).unwrap();
    assert_eq!(dq.attrs, [Attr::new("axis", 0i64)]);
    assert_eq!(g.constant(dq.input(0).unwrap()).unwrap().tensor.to_i64().unwrap(), [4, 2]);
    assert!(g.find_value("w").is_none(), "the float weight is gone");
    assert_eq!(m.ir_version, 7);
}

/// A fixed scale serves every channel and block: it is written once.
#[test]
fn one_scale_for_all_blocks_is_that_of_the_tensor() {
    for blocks in [Blocks::channel(0), Blocks::block(2, 1)] {
        let (mut m, _) = placed();
        m.opsets[0].1 = 21;
        let ids: Vec<QuantizerId> = m.quantizers.ids().collect();
        m.quantizers[ids[1]].scheme.blocks = blocks;
        m.quantizers[ids[1]].params = Some(Params::tensor(0.25, None));
        lower_qdq(&mut m, None).unwrap();
        let (_, dq) = m.graph.nodes().nth(2).unwrap();
        let scale = m.graph.constant(dq.input(1).unwrap()).unwrap();
        assert!(dq.attrs.is_empty() && scale.tensor.shape().is_empty(), "{:?} {:?}", dq.attrs, scale.tensor.shape());
    }
}

/// One scale a gate stands once a row; with directions, in blocks of a gate's rows.
#[test]
fn gates_are_spelled_in_rows_or_blocks() {
    let scale_of = |directions: usize| {
        let mut m = Model { opsets: vec![(String::new(), 21)], ir_version: 10, ..Model::default() };
        let q = m.quantizers.add("w", Scheme { blocks: Blocks::gate(2), ..Scheme::int(8, true) });
        m.quantizers[q].params = Some(Params { scale: (1..=2 * directions).map(|i| i as f32).collect(), ..Params::tensor(1.0, None) });
        let shape = [directions, 4, 3];
        let n = 12 * directions;
        let w = m.graph.add_constant("w", Tensor::of_f32(&shape, vec![1.0; n]));
        let y = m.graph.add_value("y");
        m.graph.outputs.push(y);
        let f = m.graph.add_node(Node::fake_quant(q, "f"), &[Some(w)], &[Some(y)]);
        m.codes.insert(Site::of(f), Codes(Tensor::new(DType::I8, shape.to_vec(), vec![1; n].into()).unwrap()));
        lower_qdq(&mut m, None).unwrap();
        let (_, dq) = m.graph.nodes().next().unwrap();
        let scale = &m.graph.constant(dq.input(1).unwrap()).unwrap().tensor;
        (dq.int("axis"), dq.int("block_size"), scale.shape().to_vec(), scale.to_f32().unwrap().into_owned())
    };
    assert_eq!(scale_of(1), (Some(1), None, vec![4], vec![1.0, 1.0, 2.0, 2.0]));
    let each = [1.0, 2.0, 3.0, 4.0].iter().flat_map(|s| [*s; 3]).collect();
    assert_eq!(scale_of(2), (Some(1), Some(2), vec![2, 2, 3], each));
}

/// Scales in their own types, and as codes, read back bit for bit; the last block is short.
#[test]
fn narrow_and_nested_scales_read_back_as_they_were() {
    use crate::quant::{self, Specials, Timing, Zero};
    let scheme = |format, scale, blocks| Scheme { format, scale, zero: Zero::None, blocks, timing: Timing::Static, rounding: quant::Rounding::HalfEven };
    let real = |format, blocks| Scheme { zero: Zero::Real, ..scheme(format, ScaleKind::Exact(DType::F32), blocks) };
    let (tensor, blocks) = (Blocks::tensor, || Blocks::block(0, 16));
    let (e2m1, e4m3) =
        (Format::Float { exponent: 2, mantissa: 1, specials: Specials::None }, Format::Float { exponent: 4, mantissa: 3, specials: Specials::Fn });
    let (int4, uint4) = (Scheme::int(4, true).format, Scheme::int(4, false).format);
    let f32s = || ScaleKind::Exact(DType::F32);
    let nested = |format, blocks| ScaleKind::Nested(Box::new(scheme(format, ScaleKind::Exact(DType::F32), blocks)));
    for (case, ops) in [
        (scheme(int4, f32s(), blocks()), vec![Op::DequantizeLinear]),
        (scheme(int4, ScaleKind::Exact(DType::F16), blocks()), vec![Op::Cast, Op::DequantizeLinear]),
        (scheme(int4, ScaleKind::Exact(DType::BF16), Blocks::channel(1)), vec![Op::Cast, Op::DequantizeLinear]),
        (scheme(e2m1, ScaleKind::Pow2(DType::F8E8M0), blocks()), vec![Op::DequantizeLinear]),
        (scheme(e2m1, nested(e4m3, tensor()), blocks()), vec![Op::DequantizeLinear; 2]),
        (scheme(int4, nested(uint4, Blocks::channel(1)), blocks()), vec![Op::DequantizeLinear; 2]),
        (scheme(int4, nested(Scheme::int(8, false).format, Blocks::block(0, 2)), blocks()), vec![Op::DequantizeLinear; 2]),
        (scheme(Format::codebook(4), ScaleKind::Exact(DType::F16), blocks()), vec![Op::Cast, Op::Gather, Op::Cast, Op::Gather, Op::Mul]),
        (scheme(Format::NF4, f32s(), Blocks::channel(1)), vec![Op::Cast, Op::Gather, Op::Mul]),
        (scheme(Format::codebook(2), f32s(), tensor()), vec![Op::Cast, Op::Gather, Op::Mul]),
        (real(uint4, blocks()), vec![Op::Cast, Op::Gather, Op::Sub, Op::Gather, Op::Mul]),
        (real(int4, Blocks::channel(1)), vec![Op::Cast, Op::Sub, Op::Mul]),
        (real(Scheme::int(8, false).format, tensor()), vec![Op::Cast, Op::Sub, Op::Mul]),
    ] {
        let mut m = Model { opsets: vec![(String::new(), 28)], ir_version: 14, ..Model::default() };
        let (shape, q) = ([70, 3], m.quantizers.add("w", case.clone()));
        let w: Vec<f32> = (0..210).map(|i| ((i as f32 * 0.618_034).fract() - 0.4) * (1.0 + (i % 3) as f32)).collect();
        let params = quant::fit(&w, &shape, &case).unwrap();
        let codes = quant::quantize(&w, &shape, &case, &params).unwrap();
        m.quantizers[q].params = Some(params.clone());
        let w = m.graph.add_constant("w", Tensor::of_f32(&shape, w));
        let y = m.graph.add_value("y");
        m.graph.outputs.push(y);
        let f = m.graph.add_node(Node::fake_quant(q, "f"), &[Some(w)], &[Some(y)]);
        m.codes.insert(Site::of(f), codes.clone());
        lower_qdq(&mut m, None).unwrap();
        assert_eq!(m.graph.nodes().map(|(_, n)| n.op).collect::<Vec<_>>(), ops, "{case}");
        crate::lift::lift(&mut m).unwrap();
        let (id, _) = m.graph.nodes().next().unwrap();
        let back = &m.quantizers[m.quantizer_of(id).unwrap()];
        let p = back.params.as_ref().unwrap();
        assert_eq!((&m.codes[&Site::of(id)], &p.scale, &p.curve, &p.zero), (&codes, &params.scale, &params.curve, &params.zero), "{case}");
        assert_eq!((back.scheme.format, &back.scheme.blocks), (case.format, &case.blocks), "{case}");
        match (&back.scheme.scale, &case.scale) {
            (ScaleKind::Nested(_), ScaleKind::Nested(_)) => {
                let (a, b) = (p.nested.as_ref().unwrap(), params.nested.as_ref().unwrap());
                assert_eq!((a.codes.unpack(), &a.params.scale), (b.codes.unpack(), &b.params.scale), "{case}");
            }
            (a, b) => assert_eq!(a, b, "{case}"),
        }
    }
}

#[test]
fn an_opset_that_cannot_say_it_is_refused() {
    let (mut m, _) = placed();
    m.set_opset("", 12);
    let e = lower_qdq(&mut m, None).unwrap_err().to_string();
    assert!(e.contains("opset 13"), "{e}");
}

#[test]
fn weights_without_codes_are_refused() {
    let (mut m, f) = placed();
    m.codes.remove(&Site::of(f));
    assert!(lower_qdq(&mut m, None).unwrap_err().to_string().contains("round"));
}
