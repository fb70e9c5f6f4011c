//! Where dynamic quantizers stand.

use super::*;

/// conv → Relu → Reshape → MatMul with a constant and, of its result, with itself.
fn layers(activations: SchemeKeys, overrides: Vec<Override>) -> crate::Result<(Model, crate::note::Notes)> {
    let mut b = Built::new();
    let x = b.input("x");
    let (w, v, c) = (b.weight("w", &[2, 2, 1, 1]), b.weight("v", &[4, 4]), b.weight("c", &[2]));
    let a = b.node(Op::Conv, &[x, w, c], "a");
    let r = b.node(Op::Relu, &[a], "r");
    let p = b.node(Op::MatMul, &[r, v], "p");
    let q = b.node(Op::MatMul, &[r, v], "q");
    let y = b.node(Op::MatMul, &[p, q], "y");
    let mut m = b.output(y);
    let (notes, _) = Asked { activations: Some(activations), overrides, ..Asked::new() }.place(&mut m)?;
    Ok((m, notes))
}

#[test]
fn dynamic_quantizers_stand_before_layers_with_constant_weights_alone() {
    let dynamic = SchemeKeys { timing: Some(Timing::Dynamic), ..keys("uint8") };
    let (m, _) = layers(dynamic.clone(), vec![]).unwrap();
    let between = [("x", "a"), ("w", "a"), ("a", "r"), ("r", "p"), ("r", "q"), ("p", "y"), ("q", "y")].map(|(v, reader)| quantizer_between(&m, v, reader));
    assert_eq!(between, [Some("x"), Some("w"), None, Some("r"), Some("r"), None, None]);
    assert_eq!(quantizer_between(&m, "c", "a"), None, "biases stay float");
    assert_eq!(m.quantizers.ids().filter(|q| m.quantizers[*q].name == "r").count(), 1, "one for both readers");
    assert_eq!(scheme(&m, "x").timing, Timing::Dynamic);

    let token = SchemeKeys { granularity: Some(Granularity::Token), timing: Some(Timing::Dynamic), ..keys("int8") };
    let (m, notes) = layers(token, vec![]).unwrap();
    assert_eq!([quantizer_between(&m, "x", "a"), quantizer_between(&m, "w", "a"), quantizer_between(&m, "r", "p")], [None, None, Some("r")]);
    assert!(notes.list().iter().any(|n| n.about == "/a" && n.text.contains("scale a token")), "{:?}", notes.list());
}

#[test]
fn dynamic_schemes_that_no_operator_has_are_refused() {
    let refused = |activations: SchemeKeys, set: Option<Wish>| {
        let select = Select { nodes: Some("/p".into()), ..Select::default() };
        let overrides = set.map(|set| Override { select, set, optional: false, origin: "overrides[0]".into() }).into_iter().collect();
        let e = layers(activations, overrides).map(drop).unwrap_err();
        assert_eq!(e.exit_code(), 2);
        e.to_string()
    };
    let dynamic = |format| SchemeKeys { timing: Some(Timing::Dynamic), ..keys(format) };
    let mut qdq = Asked { activations: Some(dynamic("uint8")), ..Asked::new() };
    qdq.profile.forms = Some(vec![Spelling::Qdq]);
    assert!(qdq.place(&mut conv_relu()).unwrap_err().to_string().contains("target test has no operators"));
    assert!(refused(dynamic("uint16"), None).contains("uint8 with a zero point"));
    let four = Wish { weights: Some(keys("int4")), ..Wish::default() };
    assert!(refused(dynamic("uint8"), Some(four)).starts_with("node /p (MatMul): a weight of int4"));
    let mixed = Wish { activations: Some(dynamic("uint8")), ..Wish::default() };
    assert!(refused(keys("uint8"), Some(mixed)).contains("overrides[0]: dynamic activations are for the whole model"));
}

#[test]
fn a_recurrent_layer_may_have_dynamic_inputs() {
    let mut asked = Asked { activations: Some(SchemeKeys { timing: Some(Timing::Dynamic), ..keys("uint8") }), ..Asked::new() };
    asked.profile.weights_only.push(Op::LSTM);
    let m = lstm(asked);
    assert_eq!(["x", "w", "r", "bias", "h"].map(|v| quantizer_between(&m, v, "y")), [Some("x"), Some("w"), Some("r"), None, None]);
    assert_eq!(quantizer_between(&m, "y", "z"), None);
}
