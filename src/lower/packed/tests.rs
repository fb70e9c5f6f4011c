//! What is packed reads back as it was.

use super::*;
use crate::lift::lift;
use crate::lower::{lower_qdq, qdq_opset};
use crate::quant::{self, Blocks, Scheme, Zero, dequantize};

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 * 0.618_034).fract() - 0.4) * (1.0 + (i % 7) as f32)).collect()
}

/// x → op(FakeQuant(w), perhaps a bias) → y, fitted and rounded.
fn placed(op: Node, shape: [usize; 2], scheme: Scheme, slot: usize, bias: Option<&[usize]>) -> Model {
    let mut m = Model { opsets: vec![(String::new(), 21)], ir_version: 10, ..Model::default() };
    let q = m.quantizers.add("w", scheme.clone());
    let w = wave(shape[0] * shape[1]);
    let params = quant::fit(&w, &shape, &scheme).unwrap();
    let codes = quant::quantize(&w, &shape, &scheme, &params).unwrap();
    m.quantizers[q].params = Some(params);
    let g = &mut m.graph;
    let [x, wq, y] = ["x", "wq", "y"].map(|n| g.add_value(n));
    let w = g.add_constant("w", Tensor::of_f32(&shape, w));
    (g.inputs, g.outputs) = (vec![x], vec![y]);
    let f = g.add_node(Node::fake_quant(q, "f"), &[Some(w)], &[Some(wq)]);
    let mut inputs = if slot == 0 { vec![Some(wq), Some(x)] } else { vec![Some(x), Some(wq)] };
    inputs.extend(bias.map(|shape| Some(g.add_constant("b", Tensor::of_f32(shape, vec![0.5; shape.iter().product()])))));
    g.add_node(op, &inputs, &[Some(y)]);
    m.codes.insert(Site::of(f), codes);
    m
}

fn ops(m: &Model) -> Vec<Op> {
    m.graph.nodes().map(|(_, n)| n.op).collect()
}

fn node(op: Op) -> Node {
    Node::new(op, "n")
}

/// What the one weight of a model stands for, and its scales in the order of its own blocks.
fn stands(m: &Model) -> (Vec<f32>, Vec<f32>) {
    let (site, codes) = m.codes.first_key_value().expect("a weight in codes");
    let q = &m.quantizers[m.quantizers.root(m.quantizer_of(site.node).unwrap())];
    let params = q.params.as_ref().unwrap();
    (dequantize(codes, &q.scheme, params).unwrap(), params.scale.clone())
}

fn blocked(bits: u8, signed: bool, zero: Zero, axis: i32, size: usize) -> Scheme {
    Scheme { blocks: Blocks::block(axis, size), zero, ..Scheme::int(bits, signed) }
}

#[test]
fn every_width_sign_and_zero_point_reads_back_bit_for_bit() {
    for bits in [2, 3, 4, 7, 8] {
        for (signed, zero) in
            [(true, Zero::None), (false, Zero::Integer), (true, Zero::Integer), (false, Zero::Fixed(1 << (bits - 1))), (false, Zero::Real), (true, Zero::Real)]
        {
            for length in [64, 70, 20] {
                let mut m = placed(node(Op::MatMul), [length, 5], blocked(bits, signed, zero, 0, 32), 1, None);
                let before = stands(&m);
                if zero == Zero::Real && bits > 4 {
                    lower_packed(&mut m, None).unwrap();
                    assert_eq!(ops(&m), [Op::FakeQuant, Op::MatMul]);
                    continue;
                }
                lower_packed(&mut m, Some(1)).unwrap();
                let raised = zero == Zero::Real && signed;
                if raised && ops(&m) != [Op::MatMulNBits] {
                    continue;
                }
                assert_eq!(ops(&m), [Op::MatMulNBits], "{bits} {signed} {zero:?}");
                assert!(m.codes.is_empty() && m.graph.find_value("w").is_none(), "the float weight is gone");
                assert_eq!(m.opset("com.microsoft"), Some(1));
                let (_, n) = m.graph.nodes().next().unwrap();
                assert_eq!((n.int("accuracy_level"), n.int("K"), n.int("N")), (Some(1), Some(length as i64), Some(5)));
                let middle = zero == Zero::None || zero == Zero::Fixed(1 << (bits - 1)) && bits != 3 && bits != 7;
                assert_eq!(n.input(3).is_none(), middle, "{bits} {signed} {zero:?}");
                lift(&mut m).unwrap();
                assert_eq!(stands(&m), before, "{bits} {signed} {zero:?} {length}");
            }
        }
    }
}

#[test]
fn gemm_has_its_bias_inside_and_a_wider_one_behind() {
    for (trans, shape, axis) in [(0i64, [64, 5], 0), (1, [5, 64], 1)] {
        let gemm = || node(Op::Gemm).with("transB", trans);
        for (bias, want) in [(None, vec![Op::MatMulNBits]), (Some(&[5][..]), vec![Op::MatMulNBits]), (Some(&[1, 5]), vec![Op::MatMulNBits, Op::Add])] {
            let mut m = placed(gemm(), shape, blocked(4, false, Zero::Integer, axis, 16), 1, bias);
            let before = stands(&m);
            lower_packed(&mut m, None).unwrap();
            assert_eq!(ops(&m), want, "{trans} {bias:?}");
            let (_, n) = m.graph.nodes().next().unwrap();
            assert_eq!((n.input(5).is_some(), n.name.as_str()), (bias == Some(&[5]), "n"));
            lift(&mut m).unwrap();
            let turned = |(v, s): (Vec<f32>, Vec<f32>)| (sorted(v), sorted(s));
            assert_eq!(turned(stands(&m)), turned(before));
        }
        let mut m = placed(gemm().with("alpha", 2.0f32), shape, blocked(4, false, Zero::Integer, axis, 16), 1, None);
        lower_packed(&mut m, None).unwrap();
        assert_eq!(ops(&m), [Op::FakeQuant, Op::Gemm]);
    }
}

fn sorted(mut v: Vec<f32>) -> Vec<f32> {
    v.sort_by(f32::total_cmp);
    v
}

#[test]
fn a_transpose_between_is_no_hindrance() {
    let mut m = placed(node(Op::Transpose).with("perm", vec![1i64, 0]), [5, 64], blocked(4, true, Zero::None, 1, 16), 0, None);
    let g = &mut m.graph;
    let (t, x) = (g.outputs[0], g.inputs[0]);
    let turn = g.value(t).producer().unwrap().0;
    g.truncate_inputs(turn, 1);
    let y = g.add_value("z");
    g.add_node(node(Op::MatMul), &[Some(x), Some(t)], &[Some(y)]);
    g.outputs = vec![y];
    lower_packed(&mut m, None).unwrap();
    assert_eq!(ops(&m), [Op::MatMulNBits]);
}

#[test]
fn tables_are_gathered_from_packed_rows() {
    for (bits, signed, zero) in [(2, false, Zero::Integer), (4, true, Zero::None), (8, false, Zero::Integer), (8, true, Zero::None)] {
        let mut m = placed(node(Op::Gather), [9, 72], blocked(bits, signed, zero, -1, 32), 0, None);
        let before = stands(&m);
        lower_packed(&mut m, Some(4)).unwrap();
        assert_eq!(ops(&m), [Op::GatherBlockQuantized]);
        lift(&mut m).unwrap();
        assert_eq!(stands(&m), before, "{bits}");
    }
    let mut m = placed(node(Op::Gather), [9, 33], blocked(4, false, Zero::Integer, 1, 16), 0, None);
    let notes = lower_packed(&mut m, None).unwrap();
    assert!(notes.list()[0].text.ends_with("a row does not fill whole bytes"), "{:?}", notes.list());
}

#[test]
fn nf4_reads_back_bit_for_bit_in_either_spelling() {
    let scheme = |size| Scheme { format: Format::NF4, ..blocked(4, true, Zero::None, 0, size) };
    for (length, want) in [(64, Op::MatMulBnb4), (70, Op::MatMul)] {
        let mut m = placed(node(Op::MatMul), [length, 5], scheme(32), 1, None);
        let before = stands(&m);
        lower_packed(&mut m, None).unwrap();
        assert_eq!(ops(&m).last(), Some(&want));
        assert_eq!(qdq_opset(&m, None).unwrap(), if want == Op::MatMul { 21 } else { 0 });
        lower_qdq(&mut m, None).unwrap();
        lift(&mut m).unwrap();
        assert_eq!((sorted(stands(&m).0), sorted(stands(&m).1)), (sorted(before.0), sorted(before.1)), "{length}");
    }
}

#[test]
fn what_the_operators_cannot_say_is_left_and_named() {
    let nested = ScaleKind::Nested(Box::new(Scheme { zero: Zero::None, ..Scheme::int(4, false) }));
    for (scheme, why) in [
        (blocked(4, true, Zero::None, 0, 24), "no power of two"),
        (blocked(4, true, Zero::None, 0, 8), "no power of two"),
        (blocked(4, true, Zero::None, 1, 16), "not in blocks along axis 0"),
        (Scheme { blocks: Blocks::channel(1), ..Scheme::int(4, true) }, "not in blocks along axis 0"),
        (blocked(16, true, Zero::None, 0, 16), "codes of 16 bits"),
        (Scheme { format: Format::codebook(4), ..blocked(4, true, Zero::None, 0, 16) }, "MatMulNBits holds no codebook4"),
        (Scheme { scale: nested, ..blocked(4, true, Zero::None, 0, 16) }, "its scales must be numbers"),
    ] {
        let mut m = placed(node(Op::MatMul), [64, 32], scheme, 1, None);
        let notes = lower_packed(&mut m, None).unwrap();
        assert_eq!((ops(&m), m.codes.len(), m.opset("com.microsoft")), (vec![Op::FakeQuant, Op::MatMul], 1, None));
        assert!(notes.list()[0].about == "n" && notes.list()[0].text.contains(why), "{:?}", notes.list());
    }
    let mut m = placed(node(Op::MatMul), [5, 64], blocked(4, true, Zero::None, 1, 16), 0, None);
    assert!(lower_packed(&mut m, None).unwrap().list()[0].text.contains("left operand"));
}

#[test]
fn rows_are_packed_from_either_side_and_filled_up() {
    let codes = [1, 2, 3, 4, 5, 6];
    assert_eq!(pack_rows(&codes, [2, 3], false, 4, 2, &[8, 9]), [0x21, 0x83, 0x54, 0x96]);
    assert_eq!(pack_rows(&[1, 4, 2, 5, 3, 6], [2, 3], true, 4, 2, &[8, 9]), [0x21, 0x83, 0x54, 0x96]);
    assert_eq!(pack_rows(&[0, 1, 2, 3, 1], [1, 5], false, 2, 2, &[2]), [0b11_10_01_00, 0b10_10_10_01]);
    assert_eq!(pack_rows(&[7, 9], [2, 1], true, 8, 2, &[1, 2]), [7, 1, 9, 2]);
}
