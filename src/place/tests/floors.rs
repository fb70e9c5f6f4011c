//! Functions that vanish into the quantizer behind them, and those that cut more.

use super::*;

/// Whether a node reads what a quantizer makes.
fn parted(m: &Model, name: &str) -> bool {
    let node = m.graph.nodes().find(|(_, n)| n.name == name).unwrap().1;
    m.graph.value(node.input(0).unwrap()).producer().is_some_and(|(n, _)| m.graph.node(n).op == Op::FakeQuant)
}

/// Conv → Relu → y: together where the lowest code is the floor; apart where zero lies in the middle.
#[test]
fn a_floor_must_be_a_code() {
    for symmetric in [false, true] {
        let mut b = Built::new();
        let (x, w) = (b.input("x"), b.weight("w", &[2, 2, 1, 1]));
        let (c, y) = (b.value("c"), b.value("y"));
        b.g().add_node(Node::new(Op::Conv, "conv"), &[Some(x), Some(w)], &[Some(c)]);
        b.g().add_node(Node::new(Op::Relu, "relu"), &[Some(c)], &[Some(y)]);
        b.g().outputs.push(y);
        let mut asked = Asked::new();
        asked.profile.fuse[0].floor = true;
        asked.activations = Some(SchemeKeys { symmetric: Some(symmetric), ..keys("int8") });
        asked.place(&mut b.0).unwrap();
        // Under one quantizer the first rounding changes nothing.
        assert_eq!((b.0.quantizers.len(), parted(&b.0, "relu")), (3, symmetric), "symmetric: {symmetric}");
    }
}

/// Conv → Clip → y: together where codes end at what it cuts at, whatever the samples show; Conv → Relu → Max(x): the result shares its range.
#[test]
fn a_floor_is_one_for_all_samples() {
    let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
    let together = |least: f32, most: f32, max: bool| {
        let mut b = Built::new();
        let (x, w) = (b.input("x"), b.weight("w", &[2, 2, 1, 1]));
        let bound = |b: &mut Built, name: &str, at: f32| at.is_finite().then(|| b.g().add_constant(name, Tensor::scalar(at)));
        let (least, most) = (bound(&mut b, "least", least), bound(&mut b, "most", most));
        let (c, r) = (b.node(Op::Conv, &[x, w], "c"), b.value("r"));
        b.g().add_node(Node::new(Op::Clip, "clip"), &[Some(c), least, most], &[Some(r)]);
        let y = if max { b.node(Op::Max, &[r, x], "y") } else { r };
        let mut m = b.output(y);
        let mut asked = Asked::new();
        asked.profile.quantize.push(Op::Max);
        asked.profile.join = vec![Op::Max];
        asked.profile.fuse[0].floor = true;
        asked.activations = Some(SchemeKeys { symmetric: Some(false), ..keys("uint8") });
        asked.place(&mut m).unwrap();
        !parted(&m, "clip")
    };
    for (least, most) in [(0.0, 6.0), (0.0, high), (-1.1, 0.7), (low, 0.5)] {
        assert!(together(least, most, false), "{least} {most}");
    }
    for (least, most) in [(0.25, 2.0), (-3.0, -1.0), (-0.5, high)] {
        assert!(!together(least, most, false), "{least} {most}");
    }
    assert!(!together(0.0, high, true));
}
