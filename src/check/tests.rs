//! Each rule on a small model that breaks it.

use super::*;
use crate::graph::{Dim, Flow, Graph, Model, Node, Op, Type, ValueId};
use crate::target::{Fuse, Granularity, Legal, Limit, Must, Slot, Spelling};
use crate::tensor::{DType, Tensor, pack};

fn profile() -> Profile {
    Profile {
        name: "test".into(),
        quantize: vec![Op::Conv, Op::MatMul, Op::Add, Op::Relu, Op::Mul],
        moves: vec![Op::Reshape, Op::MaxPool, Op::Concat],
        fuse: vec![Fuse { producers: vec![Op::Conv], followers: vec![Op::Relu], last: false, floor: false, exact: false }],
        ..Profile::default()
    }
}

/// How a file is quantized.
#[derive(Clone)]
struct Spelled {
    /// Type and zero point of activations.
    activations: (DType, i32),
    /// Type, zero point, and the axis of scales.
    weights: (DType, i32, Option<i64>),
    /// Scale of what the pool makes; that of what it reads is 0.5.
    pooled: f32,
    bias: Option<DType>,
    /// Whether the last result is quantized.
    closed: bool,
}

const GOOD: Spelled = Spelled { activations: (DType::U8, 3), weights: (DType::I8, 0, Some(0)), pooled: 0.5, bias: Some(DType::I32), closed: true };

struct Built(Model);

impl Built {
    fn g(&mut self) -> &mut Graph {
        &mut self.0.graph
    }

    fn value(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let v = self.g().add_value(name);
        self.g().value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(shape.iter().map(|d| Dim::Known(*d)).collect()) };
        v
    }

    fn pair(&mut self, name: &str, scales: Tensor, dtype: DType, zero: i32) -> [ValueId; 2] {
        let (shape, n) = (scales.shape().to_vec(), scales.len());
        let scale = self.g().add_constant(&format!("{name}_scale"), scales);
        let zeros = Tensor::new(dtype, shape, pack::pack(&vec![zero; n], dtype).into()).unwrap();
        [scale, self.g().add_constant(&format!("{name}_zero"), zeros)]
    }

    /// x → Q → DQ
    fn qdq(&mut self, x: ValueId, name: &str, scale: f32, (dtype, zero): (DType, i32)) -> ValueId {
        let [s, z] = self.pair(name, Tensor::scalar(scale), dtype, zero);
        let [q, y] = ["q", "dq"].map(|n| self.g().add_value(&format!("{name}_{n}")));
        self.g().add_node(Node::new(Op::QuantizeLinear, format!("{name}_Q")), &[Some(x), Some(s), Some(z)], &[Some(q)]);
        self.g().add_node(Node::new(Op::DequantizeLinear, format!("{name}_DQ")), &[Some(q), Some(s), Some(z)], &[Some(y)]);
        y
    }

    fn codes(&mut self, name: &str, shape: &[usize], dtype: DType, zero: i32, axis: Option<i64>) -> ValueId {
        let n = axis.map(|a| shape[a as usize]);
        let scales = n.map_or(Tensor::scalar(0.25), |n| Tensor::of_f32(&[n], (1..=n).map(|i| i as f32).collect()));
        let [s, z] = self.pair(name, scales, dtype, zero);
        let codes = pack::pack(&vec![1; shape.iter().product()], dtype);
        let c = self.g().add_constant(&format!("{name}_codes"), Tensor::new(dtype, shape.to_vec(), codes.into()).unwrap());
        let y = self.g().add_value(name);
        let node = Node::new(Op::DequantizeLinear, format!("{name}_DQ"));
        let node = axis.map_or(node.clone(), |a| node.with("axis", a));
        self.g().add_node(node, &[Some(c), Some(s), Some(z)], &[Some(y)]);
        y
    }
}

/// x → Conv → Relu → MaxPool → y, quantized before, between and behind.
fn file(how: &Spelled) -> Model {
    let mut b = Built(Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() });
    let shape = [1, 2, 4, 4];
    let [x, c, r, p] = ["x", "c", "r", "p"].map(|n| b.value(n, &shape));
    b.g().inputs.push(x);
    let xq = b.qdq(x, "x", 0.5, how.activations);
    let (dtype, zero, axis) = how.weights;
    let w = b.codes("w", &[2, 2, 1, 1], dtype, zero, axis);
    let bias = match how.bias {
        Some(dtype) => b.codes("b", &[2], dtype, 0, axis.map(|_| 0)),
        None => b.g().add_constant("b", Tensor::of_f32(&[2], vec![0.0; 2])),
    };
    b.g().add_node(Node::new(Op::Conv, "conv"), &[Some(xq), Some(w), Some(bias)], &[Some(c)]);
    b.g().add_node(Node::new(Op::Relu, "relu"), &[Some(c)], &[Some(r)]);
    let rq = b.qdq(r, "r", 0.5, how.activations);
    b.g().add_node(Node::new(Op::MaxPool, "pool").with("kernel_shape", vec![1, 1]), &[Some(rq)], &[Some(p)]);
    let y = if how.closed { b.qdq(p, "p", how.pooled, how.activations) } else { p };
    b.g().outputs.push(y);
    b.0
}

/// Verdict and rule of each node, the model's rows first.
fn verdicts(m: &Model, p: &Profile) -> Vec<(String, Verdict, String)> {
    check(m, p).nodes.into_iter().map(|r| (r.node, r.verdict, r.rule)).collect()
}

fn all_integer(m: &Model, p: &Profile) -> bool {
    let c = check(m, p);
    (c.integer, c.nodes.len(), c.findings().count()) == (3, 3, 0)
}

/// The one finding, by node.
fn finding(m: &Model, p: &Profile) -> (String, Verdict, String, String) {
    let c = check(m, p);
    let found: Vec<&Row> = c.findings().collect();
    // A follower repeats its producer's reason.
    let first = found.first().unwrap_or_else(|| panic!("nothing is found"));
    (first.node.clone(), first.verdict, first.rule.clone(), first.reason.clone())
}

#[test]
fn what_is_quantized_throughout_runs_on_codes() {
    assert!(all_integer(&file(&GOOD), &profile()));
    let c = check(&file(&GOOD), &profile());
    assert!(c.quantized && c.line() == "3 nodes run on codes");
}

#[test]
fn a_float_model_is_judged_by_its_ops() {
    let mut m = file(&GOOD);
    for id in m.graph.order().to_vec() {
        if matches!(m.graph.node(id).op, Op::QuantizeLinear | Op::DequantizeLinear) && m.graph.node(id).input(0).is_some_and(|v| m.graph.constant(v).is_none())
        {
            m.graph.bypass(id);
        } else if m.graph.node(id).op == Op::DequantizeLinear {
            let y = m.graph.node(id).output(0).unwrap();
            m.graph.remove_node(id);
            m.graph.value_mut(y).constant = Some(Tensor::of_f32(&[2, 2, 1, 1], vec![1.0; 4]).into());
        }
    }
    let c = check(&m, &profile());
    assert!(!c.quantized && c.line() == "3 nodes could run on codes", "{c:?}");
    let p = Profile { float: vec![Op::Relu], others: Fate::Split, moves: vec![], ..profile() };
    assert_eq!(
        verdicts(&m, &p),
        [("conv", Verdict::Integer, "quantize"), ("relu", Verdict::Float, "float"), ("pool", Verdict::Split, "others")].map(|(n, v, r)| (
            n.into(),
            v,
            r.into()
        ))
    );
}

#[test]
fn lists_and_limits_decide_first() {
    let m = file(&GOOD);
    for (fate, verdict) in [(Fate::Float, Verdict::Float), (Fate::Split, Verdict::Split), (Fate::Refused, Verdict::Refused)] {
        let p = Profile { quantize: vec![Op::Conv, Op::Relu], moves: vec![], others: fate, ..profile() };
        assert_eq!(finding(&m, &p).1, verdict);
        let limit = Limit { ops: vec![Op::MaxPool], must: Must::Rank(3), then: fate, why: "three dimensions only".into(), ..Limit::default() };
        let p = Profile { limits: vec![limit], ..profile() };
        assert_eq!(finding(&m, &p), ("pool".into(), verdict, "limits".into(), "three dimensions only".into()));
    }
}

#[test]
fn operands_and_results_must_be_codes() {
    let m = file(&Spelled { closed: false, ..GOOD });
    assert_eq!(finding(&m, &profile()), ("pool".into(), Verdict::Float, "results".into(), "its result p leaves the model as float".into()));
    let p = Profile { float_results: vec![Op::MaxPool], ..profile() };
    assert!(all_integer(&m, &p));
    // Without its first pair, the convolution and what is computed with it are float.
    let mut m = file(&GOOD);
    let first: Vec<_> = m.graph.nodes().filter(|(_, n)| n.name.starts_with("x_")).map(|(id, _)| id).collect();
    first.into_iter().for_each(|id| assert!(m.graph.bypass(id)));
    let found = verdicts(&m, &profile());
    assert_eq!(found.iter().map(|f| f.1).collect::<Vec<_>>(), [Verdict::Float, Verdict::Float, Verdict::Integer]);
    // Without the one in the middle, all three.
    let mut m = file(&GOOD);
    let middle: Vec<_> = m.graph.nodes().filter(|(_, n)| n.name.starts_with("r_")).map(|(id, _)| id).collect();
    middle.into_iter().for_each(|id| assert!(m.graph.bypass(id)));
    assert_eq!(check(&m, &profile()).float, 3);
}

#[test]
fn codes_must_be_legal_at_their_slot() {
    let with = |how: Spelled, set: &dyn Fn(&mut Profile)| {
        let mut p = profile();
        p.legal.otherwise = Fate::Refused;
        set(&mut p);
        (file(&how), p)
    };
    let texts = |t: &[&str]| t.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    let refused = |(m, p): (Model, Profile), rule: &str, words: &str| {
        let (node, verdict, by, reason) = finding(&m, &p);
        assert_eq!((node.as_str(), verdict, by.as_str()), ("conv", Verdict::Refused, rule), "{reason}");
        assert!(reason.contains(words), "{reason}");
    };
    refused(with(GOOD, &|p| p.legal.activations = texts(&["int8"])), "legal", "is uint8; of activations the target holds int8");
    refused(with(GOOD, &|p| p.legal.weights = texts(&["int4"])), "legal", "w is int8");
    refused(with(GOOD, &|p| p.legal.bias = texts(&["none"])), "legal", "b is int32; of bias the target holds float");
    refused(with(Spelled { bias: None, ..GOOD }, &|p| p.legal.bias = texts(&["int32"])), "legal", "b is float");
    refused(with(GOOD, &|p| p.legal.symmetric = vec![Slot::Activations]), "legal", "has a zero point");
    refused(with(Spelled { weights: (DType::U8, 7, None), ..GOOD }, &|p| p.legal.symmetric = vec![Slot::Weights]), "legal", "has a zero point");
    assert!(all_integer(&file(&Spelled { weights: (DType::U8, 128, None), ..GOOD }), &with(GOOD, &|p| p.legal.symmetric = vec![Slot::Weights]).1));
    let pow2 = with(Spelled { pooled: 0.75, ..GOOD }, &|p| p.legal.pow2 = vec![Slot::Weights, Slot::Activations]);
    assert!(finding(&pow2.0, &pow2.1).3.contains("no power of two"));
    assert!(all_integer(&file(&GOOD), &pow2.1));
    refused(with(GOOD, &|p| p.legal.granularity = vec![Granularity::Tensor]), "legal", "a scale a channel");
    refused(with(Spelled { weights: (DType::I8, 0, Some(1)), ..GOOD }, &|_| ()), "axis", "scales along axis 1");
    let limit =
        Limit { ops: vec![Op::Conv], must: Must::Granularity(vec![Granularity::Tensor]), then: Fate::Refused, why: "axis 0".into(), ..Limit::default() };
    refused(with(GOOD, &|p| p.limits = vec![limit.clone()]), "limits", "a scale a channel: axis 0");
}

#[test]
fn what_moves_codes_keeps_their_scale() {
    let m = file(&Spelled { pooled: 0.75, ..GOOD });
    let (node, verdict, rule, reason) = finding(&m, &profile());
    assert_eq!((node.as_str(), verdict, rule.as_str()), ("pool", Verdict::Requantizes, "moves"), "{reason}");
    let mut joins = Profile { quantize: vec![Op::Conv, Op::Relu, Op::MaxPool], moves: vec![], join: vec![Op::MaxPool], ..profile() };
    assert_eq!(finding(&m, &joins).2, "join");
    joins.join.clear();
    assert!(all_integer(&m, &joins));
}

#[test]
fn the_file_itself_must_be_readable() {
    let m = file(&GOOD);
    let refused = |m: &Model, p: Profile, rule: &str, words: &str| {
        let (node, verdict, by, reason) = finding(m, &p);
        assert_eq!((node.as_str(), verdict, by.as_str()), ("", Verdict::Refused, rule), "{reason}");
        assert!(reason.contains(words), "{reason}");
    };
    refused(&m, Profile { opset: Some(13), ..profile() }, "opset", "opset 17");
    refused(&m, Profile { ir: Some(7), ..profile() }, "ir", "IR version 8");
    refused(&m, Profile { forms: Some(vec![Spelling::QOperator]), ..profile() }, "forms", "spelled as qdq, and the target reads qoperator");
    let mut open = m.clone();
    let x = open.graph.inputs[0];
    open.graph.value_mut(x).ty =
        Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2), Dim::Known(4), Dim::Known(4)]) };
    refused(&open, Profile { static_shapes: true, ..profile() }, "static", "dimension N of input x");
    refused(&m, Profile { batch: Some(4), ..profile() }, "batch", "input x has batch 1");
    let all = Profile { opset: Some(17), ir: Some(8), forms: Some(vec![Spelling::Qdq]), static_shapes: true, batch: Some(1), ..profile() };
    assert!(all_integer(&m, &all));
}

#[test]
fn what_cannot_be_lifted_is_said_and_judged_by_its_ops() {
    let mut m = file(&GOOD);
    let y = m.graph.add_value("attended");
    let x = m.graph.inputs[0];
    m.graph.add_node(Node::new(Op::QAttention, "attention"), &[Some(x)], &[Some(y)]);
    let c = check(&m, &profile());
    assert_eq!((c.refused, c.float, c.integer), (0, 1, 4));
    assert!(c.nodes[0].reason.contains("attention"), "{}", c.nodes[0].reason);
}

#[test]
fn limits_speak_of_codes_too() {
    let limit = |must| Limit { ops: vec![Op::Conv], must, then: Fate::Split, why: "why".into(), ..Limit::default() };
    let with = |must: Must| Profile { limits: vec![limit(must)], ..profile() };
    let formats = |f: &str| vec![f.to_string()];
    for (must, rule) in [(Must::Activations(formats("int8")), "limits"), (Must::Weights(formats("int4")), "limits"), (Must::Zeroless, "limits")] {
        let (node, verdict, by, reason) = finding(&file(&GOOD), &with(must));
        assert_eq!((node.as_str(), verdict, by.as_str()), ("conv", Verdict::Split, rule), "{reason}");
    }
    for must in [Must::Activations(formats("uint8")), Must::Weights(formats("int8"))] {
        assert!(all_integer(&file(&GOOD), &with(must)));
    }
    assert!(all_integer(&file(&Spelled { activations: (DType::U8, 0), ..GOOD }), &with(Must::Zeroless)));
    // Of a result nobody asks it.
    let both = Profile { limits: vec![limit(Must::Activations(formats("uint8"))), Limit { ops: vec![Op::MaxPool], ..limit(Must::Zeroless) }], ..profile() };
    assert_eq!(check(&file(&GOOD), &both).findings().map(|r| r.node.as_str()).collect::<Vec<_>>(), ["pool"]);
    // Signed codes are fine for one reader, and no more.
    let mut m = file(&Spelled { activations: (DType::I8, -5), ..GOOD });
    assert!(all_integer(&m, &with(Must::Unsigned)));
    let (x, z) = (m.graph.find_value("x_dq").unwrap(), m.graph.add_value("z"));
    m.graph.add_node(Node::new(Op::MaxPool, "other"), &[Some(x)], &[Some(z)]);
    m.graph.outputs.push(z);
    assert_eq!(finding(&m, &with(Must::Unsigned)).0, "conv");
}

#[test]
fn a_result_that_cannot_be_negative_has_no_codes_for_it() {
    let limit = Limit { ops: vec![Op::Relu], must: Must::Floor, then: Fate::Split, why: "why".into(), ..Limit::default() };
    let p = Profile { limits: vec![limit], ..profile() };
    let checked = check(&file(&GOOD), &p);
    let found: Vec<_> = checked.findings().map(|r| (r.node.as_str(), r.verdict, r.rule.as_str())).collect();
    // What is computed with it cannot be on codes either.
    assert_eq!(found, [("conv", Verdict::Float, "limits"), ("relu", Verdict::Split, "limits")]);
    assert!(all_integer(&file(&Spelled { activations: (DType::U8, 0), ..GOOD }), &p));
    assert!(all_integer(&file(&Spelled { activations: (DType::I8, -128), ..GOOD }), &p));
}

#[test]
fn formats_that_are_taken_are_not_refused() {
    let legal = Legal { activations: vec!["int8".into()], otherwise: Fate::Refused, ..Legal::default() };
    let p = Profile { legal, ..profile() };
    assert_eq!(finding(&file(&GOOD), &p).1, Verdict::Refused);
    let legal = Legal { taken: vec!["uint8".into()], ..p.legal.clone() };
    assert!(all_integer(&file(&GOOD), &Profile { legal, ..p }));
}

#[test]
fn a_node_of_two_formats_is_said() {
    let limit = Limit { must: Must::Alike, then: Fate::Float, why: "why".into(), ..Limit::default() };
    let p = Profile { limits: vec![limit], ..profile() };
    // The weight of a product may be in other codes.
    assert!(all_integer(&file(&GOOD), &p));
    let mut m = file(&GOOD);
    let wide = m.graph.add_constant("wide_zero", Tensor::new(DType::U16, vec![], vec![0, 0].into()).unwrap());
    let into: Vec<_> = m.graph.nodes().filter(|(_, n)| n.input(0).is_some_and(|v| m.graph.value(v).name.starts_with('x'))).map(|(id, _)| id).collect();
    let quantizing: Vec<_> = into.into_iter().filter(|id| m.graph.node(*id).op.flow() == Flow::Quantize).collect();
    quantizing.into_iter().for_each(|id| m.graph.set_input(id, 2, Some(wide)));
    let (node, verdict, by, reason) = finding(&m, &p);
    assert_eq!((node.as_str(), verdict, by.as_str()), ("conv", Verdict::Float, "limits"), "{reason}");
    assert!(reason.contains("r and its operand x_dq differ: uint8 and uint16: why"), "{reason}");
}

/// x → Add(a constant) → y, codes throughout.
fn sum(constant: (DType, i32), axis: Option<i64>) -> Model {
    let mut b = Built(Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() });
    let [x, y] = ["x", "y"].map(|n| b.value(n, &[1, 2, 4, 4]));
    b.g().inputs.push(x);
    let xq = b.qdq(x, "x", 0.5, GOOD.activations);
    let c = b.codes("c", &[2, 1, 1], constant.0, constant.1, axis);
    b.g().add_node(Node::new(Op::Add, "add"), &[Some(xq), Some(c)], &[Some(y)]);
    let out = b.qdq(y, "y", 0.5, GOOD.activations);
    b.g().outputs.push(out);
    b.0
}

#[test]
fn constants_that_must_be_codes_are_alike_too() {
    let limit = Limit { must: Must::Alike, then: Fate::Float, why: "why".into(), ..Limit::default() };
    let p = Profile { limits: vec![limit], code_constants: vec![Op::Add], ..profile() };
    let verdict = |m: &Model, p: &Profile| verdicts(m, p)[0].1;
    assert_eq!(verdict(&sum((DType::U8, 0), None), &p), Verdict::Integer);
    assert_eq!(verdict(&sum((DType::I8, 0), None), &p), Verdict::Float);
    assert_eq!(verdict(&sum((DType::U8, 0), Some(0)), &p), Verdict::Float, "a scale a channel");
    // Elsewhere constants may be as they like.
    assert_eq!(verdict(&sum((DType::I8, 0), None), &Profile { code_constants: vec![], ..p }), Verdict::Integer);
}

#[test]
fn a_float_constant_keeps_what_computes_from_codes_and_not_what_moves() {
    let mut m = sum((DType::U8, 0), None);
    let add = m.graph.nodes().find(|(_, n)| n.op == Op::Add).unwrap().0;
    let one = m.graph.add_constant("one", Tensor::scalar(1.0));
    m.graph.set_input(add, 1, Some(one));
    let p = Profile { float_constants: vec![Op::Add, Op::Concat], ..profile() };
    let verdict = |m: &Model, p: &Profile| verdicts(m, p)[0].1;
    assert_eq!((verdict(&m, &p), verdict(&m, &profile())), (Verdict::Float, Verdict::Integer));
    let node = m.graph.node_mut(add);
    (node.op, node.op_type) = (Op::Concat, Node::new(Op::Concat, "").op_type);
    assert_eq!(verdict(&m, &p), Verdict::Integer);
}

#[test]
fn what_would_run_in_float_is_barred_where_codes_are_asked() {
    let limit = Limit { ops: vec![Op::MaxPool], must: Must::Codes, then: Fate::Refused, why: "why".into(), ..Limit::default() };
    let p = Profile { limits: vec![limit], ..profile() };
    assert!(all_integer(&file(&GOOD), &p));
    let (node, verdict, by, reason) = finding(&file(&Spelled { closed: false, ..GOOD }), &p);
    assert_eq!((node.as_str(), verdict, by.as_str()), ("pool", Verdict::Refused, "limits"));
    assert!(reason.contains("leaves the model as float: why"), "{reason}");
}

#[test]
fn a_follower_is_dropped_where_the_quantizer_cuts_as_it_does() {
    let mut p = profile();
    p.fuse[0].floor = true;
    // With zero point 3 the lowest code is −1.5: Relu is more than the quantizer, and the convolution's result is float.
    assert_eq!(check(&file(&GOOD), &p).float, 2);
    assert!(all_integer(&file(&Spelled { activations: (DType::U8, 0), ..GOOD }), &p));
    assert!(all_integer(&file(&Spelled { activations: (DType::I8, -128), ..GOOD }), &p));
    assert_eq!(check(&file(&Spelled { activations: (DType::I8, 0), ..GOOD }), &p).float, 2);
}

/// Codes from −1.5 on, a half apart.
#[test]
fn a_clip_is_dropped_where_its_bounds_are_rounded_to_the_ends_of_all_codes() {
    let mut p = profile();
    (p.fuse[0].floor, p.fuse[0].followers) = (true, vec![Op::Clip]);
    p.quantize.push(Op::Clip);
    let dropped = |least: Option<f32>, most: Option<f32>| {
        let mut m = file(&GOOD);
        let relu = m.graph.nodes().find(|(_, n)| n.op == Op::Relu).unwrap().0;
        let (x, y) = (m.graph.node(relu).input(0), m.graph.node(relu).output(0));
        let bounds = [("least", least), ("most", most)].map(|(name, at)| at.map(|at| m.graph.add_constant(name, Tensor::scalar(at))));
        let at = m.graph.position(relu);
        m.graph.remove_node(relu);
        m.graph.insert_node(at, Node::new(Op::Clip, "clip"), &[x, bounds[0], bounds[1]], &[y]);
        all_integer(&m, &p)
    };
    for (least, most) in [(Some(-1.7), Some(200.0)), (Some(-1.3), Some(125.8)), (None, Some(125.8)), (None, None), (Some(-1.5), None)] {
        assert!(dropped(least, most), "{least:?} {most:?}");
    }
    for (least, most) in [(Some(-1.2), Some(200.0)), (Some(-1.7), Some(125.7)), (None, Some(100.0)), (Some(-1.49), None), (Some(0.0), None)] {
        assert!(!dropped(least, most), "{least:?} {most:?}");
    }
}

#[test]
fn a_result_may_be_float_unless_something_cuts_it() {
    let mut p = Profile { float_results: vec![Op::Conv], ..profile() };
    p.fuse[0].floor = true;
    let conv = |p: &Profile| verdicts(&file(&GOOD), p)[0].1;
    assert_eq!(conv(&p), Verdict::Float, "the Relu cuts more than the codes, which begin at −1.5");
    p.fuse.clear();
    assert_eq!(conv(&p), Verdict::Integer, "it is a node of its own");
}

#[test]
fn a_constant_has_one_scale_where_a_limit_asks_for_one() {
    let limit = Limit { ops: vec![Op::Add], must: Must::Granularity(vec![Granularity::Tensor]), then: Fate::Refused, why: "why".into(), ..Limit::default() };
    let p = Profile { limits: vec![limit], ..profile() };
    assert!(check(&sum((DType::U8, 0), None), &p).refused == 0);
    let c = check(&sum((DType::U8, 0), Some(0)), &p);
    assert!(c.refused == 1 && c.nodes[0].rule == "limits" && c.nodes[0].reason.ends_with("has more than one scale: why"), "{c:?}");
}

#[test]
fn what_computes_in_float_between_codes_is_float() {
    let m = file(&GOOD);
    let found = finding(&m, &Profile { emulated: vec![Op::MaxPool], ..profile() });
    assert_eq!((found.0.as_str(), found.1, found.2.as_str()), ("pool", Verdict::Float, "emulated"));
    assert!(all_integer(&m, &Profile { emulated: vec![Op::Relu], ..profile() }), "a follower is computed with its producer");
}

#[test]
fn float_weights_between_codes_are_quantized_by_some() {
    let mut m = file(&GOOD);
    let w = m.graph.find_value("w").unwrap();
    let (dq, _) = m.graph.value(w).producer().unwrap();
    m.graph.remove_node(dq);
    m.graph.value_mut(w).constant = Some(Tensor::of_f32(&[2, 2, 1, 1], vec![1.0; 4]).into());
    assert_eq!(finding(&m, &profile()).1, Verdict::Float);
    let found = finding(&m, &Profile { shield: vec![Op::Conv], ..profile() });
    assert_eq!((found.0.as_str(), found.1, found.2.as_str()), ("conv", Verdict::Integer, "shield"), "{}", found.3);
}

/// x → DynamicQuantizeLinear → MatMulInteger(w) → y
#[test]
fn operators_on_codes_are_judged_by_their_own_names() {
    let mut b = Built(Model { ir_version: 8, opsets: vec![(String::new(), 17)], ..Model::default() });
    let (x, y) = (b.value("x", &[1, 2]), b.g().add_value("y"));
    let [q, s, z] = ["q", "s", "z"].map(|n| b.g().add_value(n));
    let w = b.g().add_constant("w", Tensor::new(DType::I8, vec![2, 2], vec![1u8; 4].into()).unwrap());
    (b.g().inputs, b.g().outputs) = (vec![x], vec![y]);
    b.g().add_node(Node::new(Op::DynamicQuantizeLinear, "dql"), &[Some(x)], &[Some(q), Some(s), Some(z)]);
    b.g().add_node(Node::new(Op::MatMulInteger, "product"), &[Some(q), Some(w), Some(z)], &[Some(y)]);
    let of = |p: &Profile| verdicts(&b.0, p).into_iter().find(|v| v.0 == "product").map(|v| (v.1, v.2));
    assert_eq!(of(&profile()), Some((Verdict::Integer, "forms".into())));
    let limit = Limit { ops: vec![Op::MatMulInteger], then: Fate::Split, why: "why".into(), ..Limit::default() };
    assert_eq!(of(&Profile { limits: vec![limit], ..profile() }), Some((Verdict::Split, "limits".into())));
    let c = check(&b.0, &Profile { forms: Some(vec![Spelling::Qdq]), ..profile() });
    assert!(c.refused == 1 && c.nodes[0].rule == "forms");
}

#[test]
fn open_shapes_split_all_where_the_chip_splits() {
    let mut m = file(&GOOD);
    let x = m.graph.inputs[0];
    m.graph.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Symbol("N".into()), Dim::Known(2), Dim::Known(4), Dim::Known(4)]) };
    let c = check(&m, &Profile { static_shapes: true, others: Fate::Split, ..profile() });
    assert_eq!((c.refused, c.split), (0, 4), "the model and its three nodes");
}
