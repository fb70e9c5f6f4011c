//! Small graphs under a small profile, and where quantizers stand in them.

mod dynamic;
mod floors;

use super::{Rules, place};
use crate::graph::{Dim, Graph, Model, Node, Op, Type, ValueId};
use crate::note::NoteKind;
use crate::quant::{Blocks, Origin, Scheme, Timing};
use crate::target::{Fixed, Fuse, Granularity, Keep, Limit, Must, Override, Place, Profile, ScaleKey, SchemeKeys, Select, Spelling, Wish, ZeroKey};
use crate::tensor::{DType, Tensor};

fn keys(format: &str) -> SchemeKeys {
    SchemeKeys { format: Some(format.into()), ..SchemeKeys::default() }
}

fn profile() -> Profile {
    Profile {
        name: "test".into(),
        quantize: vec![Op::Conv, Op::MatMul, Op::Gemm, Op::Add, Op::Relu, Op::Clip, Op::Softmax, Op::Sigmoid, Op::Concat, Op::GlobalAveragePool],
        moves: vec![Op::Reshape, Op::MaxPool, Op::Gather, Op::Resize, Op::Transpose],
        join: vec![Op::Concat],
        fuse: vec![Fuse { producers: vec![Op::Conv, Op::Add], followers: vec![Op::Relu, Op::Clip], last: false, floor: false, exact: false }],
        fixed: vec![Fixed {
            ops: vec![Op::Softmax, Op::Sigmoid],
            output: SchemeKeys { scale: Some(ScaleKey::Fixed(1.0 / 256.0)), zero_point: Some(ZeroKey::Fixed(0)), ..keys("uint8") },
        }],
        ..Profile::default()
    }
}

/// Weights int8 per channel, activations uint8, biases int32.
struct Asked {
    profile: Profile,
    weights: Option<SchemeKeys>,
    activations: Option<SchemeKeys>,
    overrides: Vec<Override>,
}

impl Asked {
    fn new() -> Self {
        let weights = SchemeKeys { granularity: Some(Granularity::Channel), ..keys("int8") };
        Asked { profile: profile(), weights: Some(weights), activations: Some(keys("uint8")), overrides: vec![] }
    }

    fn with(select: Select, set: Wish) -> Self {
        let overrides = vec![Override { select, set, optional: false, origin: "overrides[0]".into() }];
        Asked { overrides, ..Asked::new() }
    }

    fn place(&self, m: &mut Model) -> crate::Result<(crate::note::Notes, Vec<super::Decision>)> {
        let bias = keys("int32");
        let rules =
            Rules { profile: &self.profile, weights: self.weights.as_ref(), activations: self.activations.as_ref(), bias: &bias, overrides: &self.overrides };
        place(m, &rules)
    }
}

/// A graph built up node by node; every value is float32 of shape [1,2,4,4] unless said.
struct Built(Model);

impl Built {
    fn new() -> Self {
        Built(Model { opsets: vec![(String::new(), 13)], ..Model::default() })
    }

    fn g(&mut self) -> &mut Graph {
        &mut self.0.graph
    }

    fn value(&mut self, name: &str) -> ValueId {
        let v = self.g().add_value(name);
        self.g().value_mut(v).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, 2, 4, 4].map(Dim::Known).to_vec()) };
        v
    }

    fn input(&mut self, name: &str) -> ValueId {
        let v = self.value(name);
        self.g().inputs.push(v);
        v
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let n = shape.iter().product();
        self.g().add_constant(name, Tensor::of_f32(shape, (0..n).map(|i| i as f32 * 0.1 - 0.3).collect()))
    }

    fn node(&mut self, op: Op, inputs: &[ValueId], out: &str) -> ValueId {
        self.with(Node::new(op, format!("/{out}")), inputs, out)
    }

    fn with(&mut self, node: Node, inputs: &[ValueId], out: &str) -> ValueId {
        let y = self.value(out);
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.g().add_node(node, &inputs, &[Some(y)]);
        y
    }

    fn output(mut self, v: ValueId) -> Model {
        self.g().outputs.push(v);
        self.0
    }
}

/// The node that makes `value`; the one before its quantizer, where `value` is a graph's output.
fn maker<'m>(m: &'m Model, value: &str) -> &'m Node {
    let g = &m.graph;
    let of = |v: ValueId| g.node(g.value(v).producer().unwrap().0);
    let node = of(g.find_value(value).unwrap());
    if node.op == Op::FakeQuant { of(node.input(0).unwrap()) } else { node }
}

/// What stands on the edge from `value` to the node that makes `reader`: the quantizer's name, if one does.
fn quantizer_between<'m>(m: &'m Model, value: &str, reader: &str) -> Option<&'m str> {
    let g = &m.graph;
    let v = g.find_value(value).unwrap();
    for input in maker(m, reader).inputs().iter().flatten() {
        if *input == v {
            return None;
        }
        if let Some((p, _)) = g.value(*input).producer()
            && g.node(p).input(0) == Some(v)
            && let Some(q) = g.node(p).quantizer()
        {
            return Some(&m.quantizers[q].name);
        }
    }
    panic!("{reader} does not read {value}")
}

fn scheme<'m>(m: &'m Model, name: &str) -> &'m Scheme {
    &m.quantizers[m.quantizers.ids().find(|q| m.quantizers[*q].name == name).unwrap_or_else(|| panic!("no quantizer {name}"))].scheme
}

/// x → Conv(w, b) → Relu → y
fn conv_relu() -> Model {
    let mut b = Built::new();
    let x = b.input("x");
    let (w, bias) = (b.weight("w", &[2, 2, 1, 1]), b.weight("b", &[2]));
    let c = b.node(Op::Conv, &[x, w, bias], "c");
    let y = b.node(Op::Relu, &[c], "y");
    b.output(y)
}

#[test]
fn nothing_stands_between_a_conv_and_its_activation() {
    let mut m = conv_relu();
    Asked::new().place(&mut m).unwrap();
    assert_eq!(quantizer_between(&m, "x", "c"), Some("x"));
    assert_eq!(quantizer_between(&m, "w", "c"), Some("w"));
    assert_eq!(quantizer_between(&m, "b", "c"), Some("b"));
    let g = &m.graph;
    let (relu, _) = g.nodes().find(|(_, n)| n.op == Op::Relu).unwrap();
    assert_eq!(g.node(relu).input(0), g.find_value("c"));
    // The output keeps its name; what the Relu makes has another.
    let (fake, _) = g.value(g.outputs[0]).producer().unwrap();
    assert_eq!((g.value(g.outputs[0]).name.as_str(), g.node(fake).op), ("y", Op::FakeQuant));
    assert_eq!(scheme(&m, "w").blocks, Blocks::channel(0));
    assert_eq!(*scheme(&m, "x"), Scheme::int(8, false));
    let bias = m.quantizers.ids().find(|q| m.quantizers[*q].name == "b").unwrap();
    assert!(matches!(m.quantizers[bias].params.as_ref().unwrap().origin, Origin::Product(..)));
    assert_eq!(m.quantizers.len(), 4);
}

#[test]
fn a_value_that_two_read_is_a_value_of_its_own_before_the_activation() {
    let mut b = Built::new();
    let x = b.input("x");
    let w = b.weight("w", &[2, 2, 1, 1]);
    let c = b.node(Op::Conv, &[x, w], "c");
    let r = b.node(Op::Relu, &[c], "r");
    let y = b.node(Op::Add, &[c, r], "y");
    let mut m = b.output(y);
    Asked::new().place(&mut m).unwrap();
    assert_eq!(quantizer_between(&m, "c", "r"), Some("c"));
    assert_eq!(quantizer_between(&m, "c", "y"), Some("c"));
}

#[test]
fn moving_ops_and_concat_share_one_quantizer() {
    let mut b = Built::new();
    let x = b.input("x");
    let w = b.weight("w", &[2, 2, 1, 1]);
    let c = b.node(Op::Conv, &[x, w], "c");
    let p = b.node(Op::MaxPool, &[c], "p");
    let t = b.with(Node::new(Op::Concat, "/t").with("axis", 1i64), &[p, x], "t");
    let y = b.node(Op::Relu, &[t], "y");
    let mut m = b.output(y);
    Asked::new().place(&mut m).unwrap();
    let of = |value: &str, reader: &str| {
        let g = &m.graph;
        let read = maker(&m, reader).inputs().iter().flatten().filter_map(|v| g.value(*v).producer()).map(|(p, _)| g.node(p));
        read.filter(|n| n.input(0) == g.find_value(value)).find_map(|n| n.quantizer())
    };
    let shared = of("c", "p");
    assert!(shared.is_some());
    assert_eq!(of("p", "t"), shared);
    assert_eq!(of("x", "t"), shared);
    assert_eq!(of("t", "y"), shared);
}

#[test]
fn what_a_pad_puts_in_is_codes_unless_the_target_reads_it_as_a_number() {
    let placed = |float: Vec<Op>| {
        let mut b = Built::new();
        let x = b.input("x");
        let w = b.weight("w", &[2, 2, 1, 1]);
        let pads = b.g().add_constant("pads", Tensor::of_i64(&[8], vec![0; 8]));
        let value = b.g().add_constant("value", Tensor::scalar(0.0));
        let c = b.node(Op::Conv, &[x, w], "c");
        let p = b.node(Op::Pad, &[c, pads, value], "p");
        let y = b.node(Op::Conv, &[p, w], "y");
        let mut m = b.output(y);
        let mut asked = Asked::new();
        asked.profile.moves.push(Op::Pad);
        asked.profile.float_constants = float;
        asked.place(&mut m).unwrap();
        (quantizer_between(&m, "c", "p").map(str::to_string), quantizer_between(&m, "value", "p").map(str::to_string))
    };
    let c = Some("c".to_string());
    assert_eq!(placed(vec![]), (c.clone(), c.clone()));
    assert_eq!(placed(vec![Op::Pad]), (c, None));
}

#[test]
fn a_fixed_range_needs_no_data_and_falls_where_it_is_shared() {
    let mut b = Built::new();
    let x = b.input("x");
    let s = b.node(Op::Softmax, &[x], "s");
    let mut m = b.output(s);
    Asked::new().place(&mut m).unwrap();
    let q = m.quantizers.ids().find(|q| m.quantizers[*q].name == "s").unwrap();
    let p = m.quantizers[q].params.as_ref().unwrap();
    assert_eq!((p.scale[0], p.zero_at(0), p.origin), (1.0 / 256.0, 0.0, Origin::Fixed));

    let mut b = Built::new();
    let x = b.input("x");
    let s = b.node(Op::Sigmoid, &[x], "s");
    let t = b.with(Node::new(Op::Concat, "/t").with("axis", 1i64), &[s, x], "t");
    let mut m = b.output(t);
    Asked::new().place(&mut m).unwrap();
    assert!(m.quantizers.ids().all(|q| m.quantizers[q].params.is_none()), "the other input of the Concat has another range");
}

#[test]
fn weights_only_leaves_activations_and_biases_alone() {
    let mut m = conv_relu();
    Asked { activations: None, ..Asked::new() }.place(&mut m).unwrap();
    assert_eq!(m.quantizers.len(), 1);
    assert_eq!(quantizer_between(&m, "w", "c"), Some("w"));
    assert_eq!(quantizer_between(&m, "x", "c"), None);
}

#[test]
fn a_node_that_is_kept_float_is_a_remark_and_its_neighbours_are_codes() {
    let keep = Wish { keep: Some(Keep::Float), ..Wish::default() };
    let mut b = Built::new();
    let x = b.input("x");
    let w = b.weight("w", &[2, 2, 1, 1]);
    let c = b.node(Op::Conv, &[x, w], "c");
    let s = b.node(Op::Softmax, &[c], "s");
    let y = b.node(Op::Add, &[s, c], "y");
    let mut m = b.output(y);
    let (notes, decisions) = Asked::with(Select { nodes: Some("/s".into()), ..Select::default() }, keep).place(&mut m).unwrap();
    assert_eq!(notes.count(NoteKind::Declined), 1);
    assert!(notes.list()[0].text.contains("overrides[0]"), "{:?}", notes.list());
    let d = decisions.iter().find(|d| d.node == "/s").unwrap();
    assert!(d.what.contains("float") && d.rule.contains("overrides[0]"), "{d:?}");
    // The Add reads the Softmax's result as codes all the same: under a quantizer of its own range.
    assert_eq!(quantizer_between(&m, "s", "y"), Some("s"));
}

#[test]
fn neighbours_of_different_formats_have_one_conversion_on_the_edge() {
    let wide = Wish { activations: Some(SchemeKeys { bits: Some(16), ..SchemeKeys::default() }), ..Wish::default() };
    let mut b = Built::new();
    let x = b.input("x");
    let w = b.weight("w", &[2, 2, 1, 1]);
    let c = b.node(Op::Conv, &[x, w], "c");
    let y = b.node(Op::Add, &[c, c], "y");
    let mut m = b.output(y);
    Asked::with(Select { ops: Some(vec![Op::Add]), ..Select::default() }, wide).place(&mut m).unwrap();
    let schemes: Vec<_> = m.quantizers.ids().filter(|q| m.quantizers[*q].name == "c").map(|q| m.quantizers[q].scheme.format.bits()).collect();
    assert_eq!(schemes, [8, 16], "one for the Conv's result and one conversion, which both of the Add's slots read");
    assert_eq!(scheme(&m, "y").format.bits(), 16);
}

#[test]
fn a_weight_under_two_schemes_has_two_quantizers() {
    let wish = Wish { weights: Some(SchemeKeys { bits: Some(4), ..SchemeKeys::default() }), ..Wish::default() };
    let mut b = Built::new();
    let x = b.input("x");
    let w = b.weight("w", &[2, 2, 1, 1]);
    let c = b.node(Op::Conv, &[x, w], "c");
    let d = b.node(Op::Conv, &[c, w], "d");
    let mut m = b.output(d);
    Asked::with(Select { nodes: Some("/d".into()), ..Select::default() }, wish).place(&mut m).unwrap();
    let bits: Vec<_> = m.quantizers.ids().filter(|q| m.quantizers[*q].name == "w").map(|q| m.quantizers[q].scheme.format.bits()).collect();
    assert_eq!(bits, [8, 4]);
}

#[test]
fn integers_and_shapes_are_left_exact() {
    let mut b = Built::new();
    let x = b.input("x");
    let shape = b.g().add_value("shape");
    b.g().value_mut(shape).ty = Type::Tensor { dtype: Some(DType::I64), shape: Some(vec![Dim::Known(4)]) };
    b.g().add_node(Node::new(Op::Shape, "/shape"), &[Some(x)], &[Some(shape)]);
    let r = b.node(Op::Reshape, &[x, shape], "r");
    let y = b.node(Op::Relu, &[r], "y");
    let mut m = b.output(y);
    Asked::new().place(&mut m).unwrap();
    let g = &m.graph;
    let (reshape, _) = g.nodes().find(|(_, n)| n.op == Op::Reshape).unwrap();
    assert_eq!(g.node(reshape).input(1), g.find_value("shape"));
    assert_eq!(quantizer_between(&m, "x", "r"), Some("x"));
}

#[test]
fn an_override_that_matches_nothing_is_refused_unless_it_is_optional() {
    let select = || Select { nodes: Some("/none".into()), ..Select::default() };
    let mut asked = Asked::with(select(), Wish { keep: Some(Keep::Float), ..Wish::default() });
    let e = asked.place(&mut conv_relu()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("overrides[0]"), "{e}");
    asked.overrides[0].optional = true;
    asked.place(&mut conv_relu()).unwrap();
}

#[test]
fn what_is_compared_is_read_as_it_is() {
    let mut b = Built::new();
    let x = b.input("x");
    let (w, three) = (b.weight("w", &[2, 2, 1, 1]), b.weight("three", &[1]));
    let c = b.node(Op::Conv, &[x, w], "c");
    let t = b.node(Op::Transpose, &[x], "t");
    let f = b.with(Node::new(Op::Cast, "/f").with("to", 1i64), &[t], "f");
    let e = b.node(Op::Equal, &[f, three], "e");
    b.g().outputs.push(e);
    let mut m = b.output(c);
    Asked::new().place(&mut m).unwrap();
    assert_eq!(quantizer_between(&m, "x", "c"), Some("x"));
    assert_eq!([("x", "t"), ("t", "f"), ("f", "e")].map(|(v, reader)| quantizer_between(&m, v, reader)), [None; 3]);
}

#[test]
fn scores_and_boxes_keep_a_scale_each_on_their_way_out() {
    let head = |read_again: bool| {
        let mut b = Built::new();
        let x = b.input("x");
        let w = b.weight("w", &[2, 2, 1, 1]);
        let (s, c) = (b.node(Op::Sigmoid, &[x], "s"), b.node(Op::Conv, &[x, w], "c"));
        let j = b.with(Node::new(Op::Concat, "/j").with("axis", 1i64), &[s, c], "j");
        let y = if read_again { b.node(Op::Relu, &[j], "y") } else { b.node(Op::Reshape, &[j], "y") };
        let mut m = b.output(y);
        let mut asked = Asked::new();
        asked.profile.moves.push(Op::Concat);
        asked.place(&mut m).unwrap();
        let named = |v: &str| quantizer_between(&m, v, "j").map(str::to_string);
        (named("s"), named("c"))
    };
    let (s, c) = head(false);
    assert!(s.is_some() && c.is_some() && s != c, "{s:?} {c:?}");
    let (s, c) = head(true);
    assert_eq!(s, c, "codes are needed behind it: one scale");
}

/// x → LSTM(w, r, b, initial states h and c) → y, yh; the layer has two gates' worth of rows a direction of 4.
fn lstm(asked: Asked) -> Model {
    let mut b = Built::new();
    let (x, h) = (b.input("x"), b.input("h"));
    let (w, r, bias) = (b.weight("w", &[1, 16, 4]), b.weight("r", &[1, 16, 4]), b.weight("bias", &[1, 32]));
    let y = b.value("y");
    let yh = b.value("yh");
    let inputs = [Some(x), Some(w), Some(r), Some(bias), None, Some(h), Some(h)];
    b.g().add_node(Node::new(Op::LSTM, "/y").with("hidden_size", 4i64), &inputs, &[Some(y), Some(yh)]);
    b.g().outputs.push(yh);
    let z = b.node(Op::Add, &[y, yh], "z");
    let mut m = b.output(z);
    asked.place(&mut m).unwrap();
    m
}

#[test]
fn a_recurrent_layer_has_weights_by_row_and_keeps_its_state() {
    let mut asked = Asked::new();
    asked.profile.quantize.push(Op::LSTM);
    let m = lstm(asked);
    for weight in ["w", "r"] {
        assert_eq!(quantizer_between(&m, weight, "y"), Some(weight));
        assert_eq!(scheme(&m, weight).blocks, Blocks::channel(1));
    }
    assert_eq!([quantizer_between(&m, "x", "y"), quantizer_between(&m, "y", "z"), quantizer_between(&m, "yh", "z")], [Some("x"), Some("y"), Some("yh")]);
    assert_eq!([quantizer_between(&m, "bias", "y"), quantizer_between(&m, "h", "y")], [None, None]);
    // The state is codes where the Add reads it, and float as the model hands it out.
    let (maker, _) = m.graph.value(m.graph.outputs[0]).producer().unwrap();
    assert_eq!(m.graph.node(maker).op, Op::LSTM);
}

#[test]
fn a_target_may_ask_for_weights_only_and_a_recipe_for_gates() {
    let mut asked = Asked::new();
    asked.profile.weights_only.push(Op::LSTM);
    asked.weights = Some(SchemeKeys { granularity: Some(Granularity::Gate), ..keys("int8") });
    let m = lstm(asked);
    assert_eq!((scheme(&m, "w").blocks.clone(), scheme(&m, "r").blocks.clone()), (Blocks::gate(4), Blocks::gate(4)));
    assert_eq!(quantizer_between(&m, "x", "y"), None);
    assert_eq!(quantizer_between(&m, "y", "z"), Some("y"), "the Add reads codes all the same");
}

#[test]
fn rows_of_a_table_have_scales_of_their_own() {
    let mut b = Built::new();
    let table = b.weight("table", &[3, 5, 2]);
    let i = b.g().add_value("i");
    b.g().value_mut(i).ty = Type::Tensor { dtype: Some(DType::I64), shape: Some(vec![Dim::Known(7)]) };
    b.g().inputs.push(i);
    let e = b.with(Node::new(Op::Gather, "/e").with("axis", -2i64), &[table, i], "e");
    let y = b.node(Op::Relu, &[e], "y");
    let mut m = b.output(y);
    Asked::new().place(&mut m).unwrap();
    assert_eq!(scheme(&m, "table").blocks, Blocks::channel(1));
    assert_eq!(quantizer_between(&m, "e", "y"), Some("e"));
}

#[test]
fn the_last_product_is_rounded_with_its_bias() {
    let mut b = Built::new();
    let x = b.input("x");
    let (w, c) = (b.weight("w", &[4, 4]), b.weight("c", &[4]));
    let p = b.node(Op::MatMul, &[x, w], "p");
    let s = b.node(Op::Add, &[c, p], "s");
    let q = b.node(Op::MatMul, &[s, w], "q");
    let y = b.node(Op::Add, &[c, q], "y");
    let mut m = b.output(y);
    let mut asked = Asked::new();
    asked.profile.fuse.push(Fuse { producers: vec![Op::MatMul], followers: vec![Op::Add], last: true, floor: false, exact: false });
    asked.place(&mut m).unwrap();
    assert_eq!([quantizer_between(&m, "p", "s"), quantizer_between(&m, "q", "y")], [Some("p"), None]);
}

/// x → MatMul(w) → q; MatMul(q, q) → y, under a target whose products of two activations want zero points of 0.
#[test]
fn zero_points_vanish_for_those_who_want_none() {
    let mut b = Built::new();
    let (x, w) = (b.input("x"), b.weight("w", &[4, 4]));
    let (q, y) = (b.value("q"), b.value("y"));
    b.g().add_node(Node::new(Op::MatMul, "first"), &[Some(x), Some(w)], &[Some(q)]);
    b.g().add_node(Node::new(Op::MatMul, "second"), &[Some(q), Some(q)], &[Some(y)]);
    b.g().outputs.push(y);
    let mut asked = Asked::new();
    asked.profile.limits = vec![Limit { place: Some(Place::DynamicOperands), must: Must::Zeroless, ..Limit::default() }];
    asked.place(&mut b.0).unwrap();
    let scheme = |name: &str| b.0.quantizers.ids().map(|id| &b.0.quantizers[id]).find(|q| q.name == name).unwrap().scheme.clone();
    assert_eq!((scheme("q"), scheme("x"), scheme("y")), (Scheme::int(8, true), Scheme::int(8, false), Scheme::int(8, false)));
}

/// x → LayerNormalization(scale, offset) → y: the scale by the target's own scheme, the offset a bias of both.
#[test]
fn normalizations_are_scaled_on_codes_where_the_target_says_how() {
    let mut b = Built::new();
    let (x, s, o) = (b.input("x"), b.weight("s", &[4]), b.weight("o", &[4]));
    let y = b.value("y");
    b.g().add_node(Node::new(Op::LayerNormalization, "norm"), &[Some(x), Some(s), Some(o)], &[Some(y)]);
    b.g().outputs.push(y);
    let mut asked = Asked::new();
    asked.profile.quantize.push(Op::LayerNormalization);
    let before = b.0.clone();
    asked.place(&mut b.0).unwrap();
    assert_eq!(b.0.quantizers.len(), 2, "scale and offset stay float");
    asked.profile.normalization = Some(keys("uint8"));
    b.0 = before;
    asked.place(&mut b.0).unwrap();
    let row = |name: &str| b.0.quantizers.ids().map(|id| &b.0.quantizers[id]).find(|q| q.name == name).unwrap();
    assert_eq!(row("s").scheme, Scheme::int(8, false));
    assert!(matches!(row("o").params.as_ref().unwrap().origin, Origin::Product(..)));
}
