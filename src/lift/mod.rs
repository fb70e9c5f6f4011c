//! Anyone's quantized file → FakeQuant nodes, the table of quantizers and codes: what the engine can run and a report can speak of.
//!
//! A value that holds codes in the file holds, afterwards, what they stand for ([`held`]):
//! * **real numbers** on a quantizer's grid, where the quantizer is known: QuantizeLinear becomes FakeQuant in its place, data movement behind
//!   it runs on floats as it stands, and a DequantizeLinear with equal parameters becomes another FakeQuant of the same number, or vanishes;
//! * **codes as float32 numbers**, where it is not: codes are won back by `round(real / scale) + zero`, which is exact for up to 16 bits, and a
//!   DequantizeLinear with parameters of its own is Sub and Mul;
//! * **codes in their own type**, by Cast from those numbers, where a node that knows no quantization reads them, and at the interfaces: inputs and
//!   outputs of the graph and of bodies keep their types.
//!
//! Constant codes become a FakeQuant without input, whose codes stand at its site. Quantized operators become the float operator
//! between FakeQuants. What cannot be said so is an error that names the node. Shares no code with `lower`, whose work it checks.
//! Source: ONNX operators QuantizeLinear, DequantizeLinear, QLinear…, …Integer; com.microsoft's as ONNX Runtime documents them.

mod bodies;
mod dynamic;
mod encodings;
mod held;
mod interface;
mod mct;
mod moves;
mod packed;
mod params;
mod qdq;
mod qlinear;
mod spelled;
mod wide;
mod work;

use crate::error::{At, Error, Result};
use crate::graph::{Flow, Graph, InputShapes, Model, Node, NodeId, Op, infer};
use crate::interrupt;
use crate::note::Notes;
use bodies::Outer;
pub use encodings::apply_encodings;
pub use interface::real_interface;
pub use wide::wide_floats;
use work::{Shared, Work};

/// Rewrites every quantized operator of the graph and its bodies; afterwards FakeQuant is the only op left that speaks of codes. Values read by
/// other nodes keep their names, interfaces their types. A model without quantized operators is left as it is.
///
/// # Errors
/// The first node that cannot be lifted, by name, and why. The model is then of no more use.
pub fn lift(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("lift");
    if count(&model.graph, &|_| true) == 0 && !spelled::any(&model.graph) {
        return Ok(notes);
    }
    let found = count(&model.graph, &|op| op != Op::FakeQuant) + model.graph.nodes().filter(|(id, _)| spelled::is_at(&model.graph, *id)).count();
    let inferred = infer(model, &InputShapes::new());
    let mut all = Shared::new(std::mem::take(&mut model.quantizers), std::mem::take(&mut model.codes), model.opset("").unwrap_or(0));
    lift_graph(&mut model.graph, &mut all, Vec::new(), inferred, &Outer::default())?;
    let (quantizers, constants) = (all.table.len(), all.codes.len());
    model.quantizers = all.table;
    model.codes = all.codes;
    if found == 0 {
        return Ok(notes);
    }
    notes.changed("", format!("{found} quantized operators read as FakeQuant: {quantizers} quantizers, {constants} constants held as codes"));
    notes.append(all.notes);
    Ok(notes)
}

/// Operators that speak of codes in a graph and its bodies, of those that `wanted` takes.
fn count(g: &Graph, wanted: &dyn Fn(Op) -> bool) -> usize {
    let own = |n: &Node| (n.op.flow() == Flow::Quantize && wanted(n.op)) as usize;
    g.nodes().map(|(_, n)| own(n) + n.bodies().map(|(_, b)| count(b, wanted)).sum::<usize>()).sum()
}

fn lift_graph(g: &mut Graph, all: &mut Shared, path: work::Path, inferred: crate::graph::Inferred, outer: &Outer) -> Result<()> {
    let mut w = Work::new(g, all, path, inferred, outer);
    w.receive();
    for id in w.g.order().to_vec() {
        interrupt::check()?;
        let Some(n) = w.g.get_node(id) else { continue };
        let label = label(w.g, n);
        w.from = n.name.clone();
        lift_node(&mut w, id).at(|| label)?;
    }
    w.hand_out()?;
    w.finish()
}

fn lift_node(w: &mut Work, id: NodeId) -> Result<()> {
    let op = w.g.node(id).op;
    match op {
        Op::FakeQuant => match w.g.node(id).quantizer() {
            Some(q) if (q.0 as usize) < w.all.table.len() => Ok(()),
            _ => Err(Error::usage("it names a quantizer that the file does not hold; write the model with `lower` before reading it back")),
        },
        Op::QuantizeLinear | Op::MsQuantizeLinear => qdq::quantize_linear(w, id),
        Op::DequantizeLinear | Op::MsDequantizeLinear => qdq::dequantize_linear(w, id),
        Op::DynamicQuantizeLinear => dynamic::dynamic_quantize_linear(w, id),
        Op::MatMulInteger | Op::ConvInteger => dynamic::integer_product(w, id),
        Op::MatMulIntegerToFloat => dynamic::mat_mul_integer_to_float(w, id),
        Op::DynamicQuantizeMatMul => dynamic::dynamic_quantize_mat_mul(w, id),
        Op::DynamicQuantizeLSTM => dynamic::dynamic_quantize_lstm(w, id),
        Op::QLinearConv | Op::MsQLinearConv => qlinear::conv(w, id),
        Op::QLinearMatMul => qlinear::mat_mul(w, id),
        Op::QGemm => qlinear::gemm(w, id),
        Op::QLinearAdd | Op::QLinearMul => qlinear::binary(w, id),
        Op::QLinearWhere => qlinear::choose(w, id),
        Op::QLinearConcat => qlinear::concat(w, id),
        Op::QLinearSoftmax => qlinear::softmax(w, id),
        Op::QLinearSigmoid | Op::QLinearLeakyRelu | Op::QLinearAveragePool | Op::QLinearGlobalAveragePool | Op::QLinearReduceMean => qlinear::unary(w, id),
        Op::MatMulNBits => packed::mat_mul_n_bits(w, id),
        Op::MatMulBnb4 => packed::mat_mul_bnb4(w, id),
        Op::GatherBlockQuantized => packed::gather_block_quantized(w, id),
        Op::ActivationPOTQuantizer | Op::ActivationSymmetricQuantizer | Op::WeightsPOTQuantizer | Op::WeightsSymmetricQuantizer => mct::quantizer(w, id),
        Op::Mul if spelled::is_at(w.g, id) => spelled::mul(w, id),
        _ if op.flow() == Flow::Quantize => {
            Err(Error::usage("this quantized operator cannot be read yet; write the model with QuantizeLinear and DequantizeLinear instead"))
        }
        _ => {
            if w.g.node(id).bodies().next().is_some() {
                bodies::lift_bodies(w, id)?;
            }
            moves::pass(w, id)
        }
    }
}

/// A node as people know it.
fn label(g: &Graph, n: &Node) -> String {
    match (n.name.as_str(), n.outputs().iter().flatten().next()) {
        ("", Some(&v)) => format!("the {} node that makes {}", n.op_type, g.value(v).name),
        (name, _) => format!("node {name} ({})", n.op_type),
    }
}

#[cfg(test)]
mod sample;

#[cfg(test)]
mod tests {
    use super::sample::{bytes, f32s, model, node, ops};
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_float_model_is_left_as_it_is() {
        let mut m = model(13, &[("x", DType::F32, &[2])], &[], vec![(node(Op::Relu), &["x"], &["y"])], &["y"]);
        let before = m.clone();
        assert!(lift(&mut m).unwrap().list().is_empty());
        assert!(m == before);
    }

    #[test]
    fn what_cannot_be_lifted_is_named() {
        let broken = |op, reads: &'static [&'static str], constants: &[(&str, crate::tensor::Tensor)]| {
            let mut m = model(13, &[("x", DType::F32, &[2, 3])], constants, vec![(op, reads, &["y"])], &["y"]);
            lift(&mut m).unwrap_err()
        };
        let e = broken(node(Op::QAttention), &["x"], &[]);
        assert_eq!(e.exit_code(), 2);
        assert!(e.to_string().contains("make_y (QAttention)"), "{e}");
        let scale = ("s", f32s(&[0.1, 0.2]));
        let e = broken(node(Op::QuantizeLinear), &["x", "s"], std::slice::from_ref(&scale)).to_string();
        assert!(e.starts_with("node make_y (QuantizeLinear): its 2 scales"), "{e}");
        let e = broken(node(Op::QuantizeLinear).with("saturate", 0i64), &["x", "s", "z"], &[scale, ("z", bytes(DType::F8E5M2, &[2], &[0, 0]))]).to_string();
        assert!(e.contains("saturate"), "{e}");
        let e = broken(node(Op::FakeQuant).with("quantizer", 7i64), &["x"], &[]);
        assert!(e.to_string().contains("quantizer"), "{e}");
        for op in Op::all().filter(|op| op.flow() == Flow::Quantize) {
            broken(node(op), &[], &[]);
        }
    }

    #[test]
    fn nothing_that_speaks_of_codes_is_left() {
        let constants = [("s", f32s(&[0.5])), ("z", bytes(DType::U8, &[], &[3]))];
        let nodes: Vec<(Node, &[&str], &[&str])> = vec![
            (node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]),
            (node(Op::Relu), &["x"], &["r"]),
            (node(Op::DequantizeLinear), &["q", "s", "z"], &["y"]),
        ];
        let mut m = model(13, &[("x", DType::F32, &[2])], &constants, nodes, &["y", "r"]);
        let notes = lift(&mut m).unwrap();
        assert_eq!(ops(&m), [Op::Relu, Op::FakeQuant]);
        assert!(["q", "s", "z"].iter().all(|n| m.graph.find_value(n).is_none()), "scale, zero point and codes are gone");
        assert!(notes.list()[0].text.starts_with("2 quantized operators"), "{:?}", notes.list());
    }
}
