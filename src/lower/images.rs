//! Preprocessing in the graph: an input takes images as they are, bytes in rows of pixels or in planes, and the graph computes `(x / scale − mean) / std`
//! in the order in which samples are made, so that the same floats reach the first layer. Where each byte is already the code that the first quantizer
//! gives it, the bytes are the codes, and nothing is computed.
//! The file's metadata says of such an input, under `requant.image.NAME`, layout, order of the channels, scale, mean and std, as JSON, and in what words the
//! recipe said it all: resizing stays with whoever hands the bytes in.
//! Needs: a model in ONNX's own ops. Declines: inputs that are no batch of images of the channels that mean and std are for.

use super::coded::{Coded, take_out};
use crate::graph::{Dim, Graph, Model, Node, Op, Port, Type, ValueId, shape_text};
use crate::note::Notes;
use crate::tensor::{DType, Tensor};

/// Key of the metadata, without the input's name.
const KEY: &str = "requant.image.";

/// How an image becomes an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    pub scale: f32,
    /// One number a channel, or one for all.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// Whether the model has channels last. `None`: as its shape says.
    pub channels_last: Option<bool>,
    /// Whether a pixel's bytes are blue, green, red.
    pub bgr: bool,
    /// The recipe's words, and those of them that say how an image gets its size.
    pub words: String,
    pub resize: &'static str,
}

/// Makes input `name` take uint8 images, of shape [n, h, w, c] if `nhwc`, else [n, c, h, w].
pub fn raw_image(model: &mut Model, name: &str, image: &Image, nhwc: bool) -> Notes {
    let mut notes = Notes::of("lower");
    match enter(&mut model.graph, name, image, nhwc) {
        Ok((last, how)) => {
            let layout = if nhwc { "nhwc" } else { "nchw" };
            let Image { scale, mean, std, words, resize, .. } = image;
            let channels = if image.bgr { "bgr" } else { "rgb" };
            let numbers = format!("\"channels_last\": {last}, \"scale\": {scale:?}, \"mean\": {mean:?}, \"std\": {std:?}");
            let said = format!("{{\"layout\": \"{layout}\", \"channels\": \"{channels}\", {numbers}, \"preprocess\": \"{words}\"}}");
            model.set_metadata(&format!("{KEY}{name}"), &said);
            notes.changed(name, format!("takes images of its size as bytes, {layout}, {channels}: {how}; resizing ({resize}) stays outside"));
        }
        Err(why) => notes.fell_back(name, format!("takes no raw images: {why}")),
    }
    notes
}

/// Whether the model has channels last, and what was done.
fn enter(g: &mut Graph, name: &str, image: &Image, nhwc: bool) -> Result<(bool, &'static str), String> {
    let x = g.find_value(name).filter(|v| g.inputs.contains(v)).ok_or("the model has no such input")?;
    let Type::Tensor { dtype: Some(DType::F32), shape: Some(shape) } = g.value(x).ty.clone() else {
        return Err("it is not float32, or its rank is not known".into());
    };
    let channels = |d: &Dim| matches!(d, Dim::Known(1 | 3));
    let last = match (&shape[..], image.channels_last) {
        ([_, _, _, _], Some(last)) => last,
        ([_, c, _, _], None) if channels(c) => false,
        ([_, _, _, c], None) if channels(c) => true,
        _ => return Err(format!("its shape {} is no batch of images", shape_text(&shape))),
    };
    let wide = image.mean.len().max(image.std.len());
    if wide > 1 && shape[if last { 3 } else { 1 }] != Dim::Known(wide) {
        return Err(format!("mean and std are for {wide} channels, and its shape is {}", shape_text(&shape)));
    }
    if g.is_output(x) {
        return Err("it is an output too".into());
    }
    let real = g.fresh_name(&format!("{name}_real"));
    g.rename_value(x, &real);
    let raw = g.add_value(name);
    let (order, perm): ([usize; 4], Option<Vec<i64>>) = match (nhwc, last) {
        (true, false) => ([0, 2, 3, 1], Some(vec![0, 3, 1, 2])),
        (false, true) => ([0, 3, 1, 2], Some(vec![0, 2, 3, 1])),
        _ => ([0, 1, 2, 3], None),
    };
    g.value_mut(raw).ty = Type::Tensor { dtype: Some(DType::U8), shape: Some(order.map(|i| shape[i].clone()).to_vec()) };
    g.inputs.iter_mut().filter(|v| **v == x).for_each(|v| *v = raw);
    let typed = |g: &mut Graph, v: ValueId, dtype| g.value_mut(v).ty = Type::Tensor { dtype: Some(dtype), shape: Some(shape.clone()) };
    let (mut bytes, mut at) = (raw, 0);
    if let Some(perm) = perm {
        bytes = g.add_value(&format!("{name}_Transpose"));
        typed(g, bytes, DType::U8);
        g.insert_node(0, Node::new(Op::Transpose, format!("{name}_Transpose")).with("perm", perm), &[Some(raw)], &[Some(bytes)]);
        at = 1;
    }
    if codes_are_bytes(g, x, image) {
        for Port { node, .. } in g.value(x).uses().to_vec() {
            let Some(codes) = g.node(node).output(0) else { continue };
            take_out(g, &[node], &[codes, x]);
            g.replace_uses(codes, bytes);
            g.remove_idle(codes);
        }
        g.remove_idle(x);
        return Ok((last, "they are the codes of the first quantizer"));
    }
    let parts = [(Op::Div, vec![image.scale]), (Op::Sub, image.mean.clone()), (Op::Div, image.std.clone())];
    let steps: Vec<(Op, Vec<f32>)> = parts.into_iter().filter(|(op, n)| n.iter().any(|n| *n != if *op == Op::Sub { 0.0 } else { 1.0 })).collect();
    let mut y = if steps.is_empty() { x } else { g.add_value(&format!("{name}_float32")) };
    typed(g, y, DType::F32);
    g.insert_node(at, Node::new(Op::Cast, format!("{name}_Cast")).with("to", DType::F32.onnx() as i64), &[Some(bytes)], &[Some(y)]);
    let count = steps.len();
    for (i, (op, numbers)) in steps.into_iter().enumerate() {
        let dims = if numbers.len() == 1 { vec![] } else { [vec![numbers.len()], if last { vec![] } else { vec![1, 1] }].concat() };
        let constant = g.add_constant(&format!("{name}_{}_{i}", op.spelling().1), Tensor::of_f32(&dims, numbers));
        let next = if i + 1 == count { x } else { g.add_value(&format!("{name}_{i}")) };
        typed(g, next, DType::F32);
        g.insert_node(at + 1 + i, Node::new(op, format!("{name}_{}_{i}", op.spelling().1)), &[Some(y), Some(constant)], &[Some(next)]);
        y = next;
    }
    Ok((last, "scale, mean and std stand in the graph"))
}

/// Whether everything that reads `x` quantizes it, and gives each byte its own number as code.
fn codes_are_bytes(g: &Graph, x: ValueId, image: &Image) -> bool {
    let number = |list: &[f32], c: usize, none: f32| list.get(if list.len() > 1 { c } else { 0 }).copied().unwrap_or(none);
    let channels = image.mean.len().max(image.std.len()).max(1);
    let real = |c: usize, b: i32| (b as f32 / image.scale - number(&image.mean, c, 0.0)) / number(&image.std, c, 1.0);
    let own = |p: &Port| {
        let n = g.node(p.node);
        let codes = n.output(0).filter(|y| n.op == Op::QuantizeLinear && p.slot == 0 && !g.is_output(*y));
        let coded = codes.and_then(|y| Coded::of(g, n, y)).filter(|c| c.is_plain() && c.dtype == DType::U8);
        coded.is_some_and(|coded| (0..channels).all(|c| (0..256).all(|b| coded.code(g, real(c, b)) == Some(b))))
    };
    !g.value(x).uses().is_empty() && g.value(x).uses().iter().all(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::{lift, real_interface};

    /// x [1, 3, 2, 2] → Q(scale, zero) → DQ → y.
    fn model(scale: f32, zero: u8) -> Model {
        let mut m = Model { opsets: vec![(String::new(), 13)], ..Model::default() };
        let g = &mut m.graph;
        let [x, q, y] = ["x", "q", "y"].map(|n| g.add_value(n));
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some([1, 3, 2, 2].map(Dim::Known).to_vec()) };
        let s = g.add_constant("s", Tensor::scalar(scale));
        let z = g.add_constant("z", Tensor::of(DType::U8, &[], vec![zero]));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::new(Op::QuantizeLinear, "Q"), &[Some(x), Some(s), Some(z)], &[Some(q)]);
        g.add_node(Node::new(Op::DequantizeLinear, "D"), &[Some(q), Some(s), Some(z)], &[Some(y)]);
        m
    }

    fn image(mean: Vec<f32>, std: Vec<f32>) -> Image {
        Image { scale: 255.0, mean, std, channels_last: None, bgr: true, words: "{ scale: 255 }".into(), resize: "stretch" }
    }

    fn ops(m: &Model) -> Vec<Op> {
        m.graph.nodes().map(|(_, n)| n.op).collect()
    }

    #[test]
    fn bytes_that_are_codes_already_go_straight_in() {
        let unit = image(vec![0.0], vec![1.0]);
        let mut m = model(1.0 / 255.0, 0);
        raw_image(&mut m, "x", &unit, true);
        assert_eq!(ops(&m), [Op::Transpose, Op::DequantizeLinear]);
        let x = m.graph.value(m.graph.inputs[0]);
        assert_eq!((x.name.as_str(), x.dtype(), x.known_shape()), ("x", Some(DType::U8), Some(vec![1, 2, 2, 3])));
        let mut m = model(1.0 / 255.0, 0);
        raw_image(&mut m, "x", &unit, false);
        assert_eq!(ops(&m), [Op::DequantizeLinear]);
        // Under another scale bytes are no codes.
        let mut m = model(1.0 / 127.0, 0);
        raw_image(&mut m, "x", &unit, false);
        assert_eq!(ops(&m), [Op::Cast, Op::Div, Op::QuantizeLinear, Op::DequantizeLinear]);
    }

    #[test]
    fn mean_and_std_stand_in_the_graph_and_are_undone_for_whoever_compares() {
        let image = image(vec![0.5, 0.4, 0.3], vec![0.2, 0.2, 0.25]);
        let mut m = model(0.02, 128);
        let notes = raw_image(&mut m, "x", &image, true);
        let said: serde_json::Value = serde_json::from_str(&m.metadata[0].1).unwrap();
        assert!(notes.list()[0].text.contains("nhwc, bgr: scale") && notes.list()[0].text.contains("resizing (stretch) stays outside"), "{:?}", notes.list());
        assert_eq!((&said["channels"], &said["preprocess"]), (&"bgr".into(), &"{ scale: 255 }".into()));
        assert_eq!(ops(&m), [Op::Transpose, Op::Cast, Op::Div, Op::Sub, Op::Div, Op::QuantizeLinear, Op::DequantizeLinear], "{:?}", notes.list());
        real_interface(&mut m).unwrap();
        assert!(m.metadata.is_empty(), "what is undone is no longer said: {:?}", m.metadata);
        let x = m.graph.value(m.graph.inputs[0]);
        assert_eq!((x.name.as_str(), x.dtype(), x.known_shape()), ("x", Some(DType::F32), Some(vec![1, 3, 2, 2])));
        lift(&mut m).unwrap();
        let wrong = Image { mean: vec![0.0; 4], ..image };
        let notes = raw_image(&mut model(0.02, 128), "x", &wrong, true);
        assert!(notes.list()[0].text.contains("for 4 channels"), "{:?}", notes.list());
    }
}
