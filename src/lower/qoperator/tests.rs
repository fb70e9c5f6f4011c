use super::*;
use crate::graph::{Attr, Type};
use crate::lift::lift;

/// A model whose values are made as they are named; scales and zero points are called after the number.
struct Made(Model);

impl Made {
    fn new() -> Self {
        Made(Model { opsets: vec![(String::new(), 13)], ir_version: 7, ..Model::default() })
    }

    fn v(&mut self, name: &str) -> ValueId {
        self.0.graph.find_value(name).unwrap_or_else(|| self.0.graph.add_value(name))
    }

    fn put(&mut self, name: &str, t: Tensor) -> &mut Self {
        self.0.graph.add_constant(name, t);
        self
    }

    fn node(&mut self, op: Op, attrs: &[Attr], reads: &[&str], makes: &[&str]) -> &mut Self {
        let reads: Vec<_> = reads.iter().map(|n| Some(self.v(n))).collect();
        let outs: Vec<_> = makes.iter().map(|n| Some(self.v(n))).collect();
        let mut node = Node::new(op, format!("make_{}", makes[0]));
        node.attrs = attrs.to_vec();
        self.0.graph.add_node(node, &reads, &outs);
        self
    }

    /// Scale and zero point called `s` and `z` before `of`.
    fn pair(&mut self, of: &str, dtype: DType, scale: f32, zero: i32) {
        self.put(&format!("s{of}"), Tensor::scalar(scale)).put(&format!("z{of}"), scalar_code(dtype, zero));
    }

    /// float `x` → Q → DQ → `x.`, under the pair called `of`.
    fn coded(&mut self, x: &str, of: &str) -> &mut Self {
        let (scale, zero, codes) = (format!("s{of}"), format!("z{of}"), format!("{x}:q"));
        self.node(Op::QuantizeLinear, &[], &[x, &scale, &zero], &[&codes]);
        let (v, z) = (self.v(&codes), self.v(&zero));
        let dtype = self.0.graph.value(z).dtype();
        self.0.graph.value_mut(v).ty = Type::Tensor { dtype, shape: None };
        self.node(Op::DequantizeLinear, &[], &[&codes, &scale, &zero], &[&format!("{x}.")])
    }

    fn done(mut self, output: &str) -> (Model, Vec<Op>, Notes) {
        let (x, y) = (self.v("x"), self.v(output));
        self.0.graph.inputs.push(x);
        self.0.graph.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, 2, 4, 4].map(crate::graph::Dim::Known).to_vec()) };
        self.0.graph.outputs.push(y);
        let notes = qoperator(&mut self.0);
        let ops = self.0.graph.nodes().map(|(_, n)| n.op).collect();
        (self.0, ops, notes)
    }
}

/// x → Q/DQ → Conv(codes, int32 bias) → then → Q/DQ.
fn conv(dtype: DType, zero: i32, bias_scale: f32, then: Op) -> (Model, Vec<Op>, Notes) {
    let mut m = Made::new();
    m.pair("x", dtype, 0.5, 3);
    m.pair("y", dtype, 0.25, zero);
    m.put("w", Tensor::of(DType::I8, &[2, 2, 1, 1], vec![1i8, -2, 3, -4])).put("sw", Tensor::of_f32(&[2], vec![0.1, 0.2]));
    m.put("zw", Tensor::of(DType::I8, &[2], vec![0i8, 0])).put("b", Tensor::of(DType::I32, &[2], vec![7i32, -9]));
    m.put("sb", Tensor::of_f32(&[2], vec![0.5 * 0.1, bias_scale]));
    m.coded("x", "x");
    m.node(Op::DequantizeLinear, &[Attr::new("axis", 0i64)], &["w", "sw", "zw"], &["w."]);
    m.node(Op::DequantizeLinear, &[Attr::new("axis", 0i64)], &["b", "sb"], &["b."]);
    m.node(Op::Conv, &[Attr::new("group", 1i64)], &["x.", "w.", "b."], &["c"]).node(then, &[], &["c"], &["y"]).coded("y", "y");
    m.done("y.")
}

#[test]
fn a_layer_is_one_operator_and_no_number_is_another() {
    let (mut m, ops, _) = conv(DType::U8, 0, 0.5 * 0.2, Op::Relu);
    assert_eq!(ops, [Op::QuantizeLinear, Op::QLinearConv, Op::DequantizeLinear]);
    let (_, node) = m.graph.nodes().nth(1).unwrap();
    let read: Vec<&str> = node.inputs().iter().map(|v| m.graph.value(v.unwrap()).name.as_str()).collect();
    assert_eq!(read, ["x:q", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"]);
    assert_eq!((node.name.as_str(), node.int("group")), ("make_c", Some(1)));
    assert!(m.graph.find_value("sb").is_none() && m.graph.find_value("c").is_none());
    lift(&mut m).unwrap();
    let scales: Vec<_> = m.quantizers.ids().map(|q| (m.quantizers[q].name.clone(), m.quantizers[q].params.as_ref().unwrap().scale.clone())).collect();
    assert!(scales.contains(&("w".into(), vec![0.1, 0.2])) && scales.contains(&("b".into(), vec![0.5 * 0.1, 0.5 * 0.2])), "{scales:?}");
    assert_eq!(m.codes.values().map(|c| c.unpack()).collect::<Vec<_>>(), [vec![1, -2, 3, -4], vec![7, -9]]);
}

#[test]
fn what_the_codes_do_not_cut_is_cut_among_them() {
    let (m, ops, _) = conv(DType::I8, 0, 0.5 * 0.2, Op::Relu);
    assert_eq!(ops, [Op::QuantizeLinear, Op::QLinearConv, Op::Clip, Op::DequantizeLinear]);
    let (_, cut) = m.graph.nodes().nth(2).unwrap();
    let bound = |slot: usize| numbers(&m.graph.constant(cut.input(slot).unwrap()).unwrap().tensor)[0];
    assert_eq!((bound(1), bound(2)), (0, 127));
}

#[test]
fn what_no_kernel_takes_stays_and_says_why() {
    let (_, ops, notes) = conv(DType::U8, 0, 0.11, Op::Relu);
    assert!(ops.contains(&Op::Conv));
    assert!(notes.list().iter().any(|n| n.about == "make_c" && n.text.contains("product of the scales")), "{:?}", notes.list());
    let (_, ops, notes) = conv(DType::U8, 0, 0.5 * 0.2, Op::Tanh);
    assert!(ops.contains(&Op::Conv) && notes.list().len() == 1, "its result is not codes");
    let mut m = Made::new();
    m.pair("a", DType::U8, 0.5, 3);
    m.coded("x", "a").node(Op::Tanh, &[], &["x."], &["y"]).coded("y", "a");
    let (_, ops, notes) = m.done("y.");
    assert!(ops.contains(&Op::Tanh) && notes.list()[1].text.contains("no Tanh on codes"), "{:?}", notes.list());
}

#[test]
fn each_operator_has_its_own() {
    let made = |op: Op, attrs: &[Attr], reads: &[&str]| {
        let mut m = Made::new();
        m.pair("a", DType::U8, 0.5, 3);
        m.pair("s", DType::U8, 1.0 / 256.0, 0);
        m.put("minus", Tensor::scalar(-1.5)).put("third", Tensor::scalar(3.0));
        m.coded("x", "a").node(Op::Neg, &[], &["x"], &["n"]).coded("n", "s").node(op, attrs, reads, &["y"]).coded("y", "s");
        let (m, ops, _) = m.done("y.");
        (ops.into_iter().filter(|op| !matches!(op, Op::QuantizeLinear | Op::DequantizeLinear | Op::Neg)).collect::<Vec<_>>(), m)
    };
    let window = [Attr::new("kernel_shape", vec![2i64, 2])];
    for (op, attrs, reads, want) in [
        (Op::Add, &[][..], &["x.", "n."][..], Op::QLinearAdd),
        (Op::Mul, &[], &["x.", "n."], Op::QLinearMul),
        (Op::Sub, &[], &["x.", "minus"], Op::QLinearAdd),
        (Op::Mul, &[], &["minus", "x."], Op::QLinearMul),
        (Op::Sigmoid, &[], &["x."], Op::QLinearSigmoid),
        (Op::LeakyRelu, &[], &["x."], Op::QLinearLeakyRelu),
        (Op::Softmax, &[], &["x."], Op::QLinearSoftmax),
        (Op::AveragePool, &window, &["x."], Op::QLinearAveragePool),
        (Op::GlobalAveragePool, &[], &["x."], Op::QLinearGlobalAveragePool),
        (Op::MatMul, &[], &["x.", "n."], Op::QLinearMatMul),
        (Op::Concat, &[Attr::new("axis", 1i64)], &["x.", "n."], Op::QLinearConcat),
        (Op::Div, &[], &["x.", "third"], Op::Div),
        (Op::Sub, &[], &["x.", "n."], Op::Sub),
    ] {
        let (ops, m) = made(op, attrs, reads);
        assert_eq!(ops, [want], "{op:?}");
        assert_eq!(m.opset("com.microsoft").is_some(), want.spelling().0 == "com.microsoft");
    }
    // −1.5 as a code, exactly: (0 − 1) · 1.5; subtracted, it is added as 1.5.
    let (_, m) = made(Op::Mul, &[], &["minus", "x."]);
    let (_, node) = m.graph.nodes().find(|(_, n)| n.op == Op::QLinearMul).unwrap();
    let number = |slot: usize| m.graph.constant(node.input(slot).unwrap()).unwrap().tensor.clone();
    assert_eq!((numbers(&number(0)), number(1), numbers(&number(2))), (vec![0], Tensor::scalar(1.5), vec![1]));
    let (ops, _) = made(Op::Softmax, &[], &["n."]);
    assert_eq!(ops, [Op::QLinearSoftmax]);
}

#[test]
fn a_softmax_that_the_kernel_would_spoil_stays() {
    let mut m = Made::new();
    m.pair("a", DType::U8, 0.5, 3);
    m.pair("s", DType::U8, 1.0 / 300.0, 0);
    m.coded("x", "a").node(Op::Softmax, &[], &["x."], &["y"]).coded("y", "s");
    assert!(m.done("y.").1.contains(&Op::Softmax));
}

#[test]
fn movement_is_of_codes_where_the_scale_is_one() {
    let moved = |to: &str| {
        let mut m = Made::new();
        m.pair("a", DType::U8, 0.5, 3);
        m.pair("b", DType::U8, 0.25, 3);
        m.put("pads", Tensor::of_i64(&[8], vec![1; 8]));
        m.coded("x", "a").node(Op::Pad, &[], &["x.", "pads"], &["p"]).coded("p", to).node(Op::Transpose, &[], &["p."], &["y"]).coded("y", to);
        m.done("y.")
    };
    let (m, ops, _) = moved("a");
    assert_eq!(ops, [Op::QuantizeLinear, Op::Pad, Op::Transpose, Op::DequantizeLinear]);
    let (_, pad) = m.graph.nodes().nth(1).unwrap();
    assert_eq!(m.graph.value(pad.input(2).unwrap()).name, "za", "zeros are the zero point");
    let (_, ops, _) = moved("b");
    assert_eq!(ops, [Op::QuantizeLinear, Op::DequantizeLinear, Op::Pad, Op::QuantizeLinear, Op::Transpose, Op::DequantizeLinear]);
}

#[test]
fn a_product_that_stays_float_takes_its_bias_along() {
    let mut m = Made::new();
    m.pair("a", DType::U8, 0.5, 3);
    m.put("w", Tensor::of(DType::I8, &[4, 2], vec![1i8; 8])).put("sw", Tensor::of_f32(&[2], vec![0.1, 0.2]));
    m.put("zw", Tensor::of(DType::I8, &[2], vec![0i8, 0])).put("b", Tensor::of_f32(&[2], vec![0.3, 0.4]));
    m.coded("x", "a").node(Op::DequantizeLinear, &[Attr::new("axis", 1i64)], &["w", "sw", "zw"], &["w."]);
    m.node(Op::MatMul, &[], &["x.", "w."], &["p"]).node(Op::Add, &[], &["b", "p"], &["y"]);
    let (m, ops, _) = m.done("y");
    assert_eq!(ops, [Op::QuantizeLinear, Op::MatMulIntegerToFloat]);
    let (_, node) = m.graph.nodes().nth(1).unwrap();
    let read: Vec<&str> = node.inputs().iter().map(|v| m.graph.value(v.unwrap()).name.as_str()).collect();
    assert_eq!(
        read,
        ["x:q", "w", "sx", "sw", "zx", "zw", "b"].map(|n| if n == "sx" {
            "sa"
        } else if n == "zx" {
            "za"
        } else {
            n
        })
    );
}
