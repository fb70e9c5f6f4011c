//! Nodes that are no quantized operators and yet read codes: data movement goes on with what stands for them, all others get codes in their own type.

use super::held::{Held, Real, Under};
use super::work::Work;
use crate::error::Result;
use crate::graph::{Flow, Node, NodeId, Op, Role, ValueId};
use crate::quant::{QuantizerId, Zeros};
use crate::tensor::{DType, Tensor};

/// Moves through one data input, that codes may be pulled through backwards.
const PULLED: &[Op] = &[Op::Gather, Op::Reshape, Op::Transpose, Op::Squeeze, Op::Unsqueeze, Op::Slice, Op::Flatten, Op::Identity, Op::Expand, Op::Tile];

/// How far back codes are pulled.
const FAR: usize = 32;

/// Whether a node moves codes without looking at them, or only at their order.
fn moves(n: &Node) -> bool {
    match n.op {
        Op::Resize => n.str("mode").unwrap_or("nearest") == "nearest",
        Op::Scatter | Op::ScatterElements | Op::ScatterND => n.str("reduction").unwrap_or("none") == "none",
        Op::Pad => n.str("mode").unwrap_or("constant") == "constant" || n.str("mode") == Some("edge") || n.str("mode") == Some("reflect"),
        op => op.flow() == Flow::Move,
    }
}

/// Whether the op fills in the code 0.
fn fills_zeros(op: Op) -> bool {
    matches!(op, Op::Trilu | Op::MaxUnpool | Op::CenterCropPad)
}

/// Gives a node what it needs in place of codes.
pub fn pass(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.g.node(id);
    let reads: Vec<(usize, ValueId)> = n.inputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))).filter(|(_, v)| w.held.contains_key(v)).collect();
    if reads.is_empty() {
        return Ok(());
    }
    match n.op {
        Op::Shape | Op::Size => {
            let h = &w.held[&reads[0].1];
            let v = h.real.map(|r| r.value).or(h.numbers);
            w.g.set_input(id, 0, v);
        }
        Op::Cast => {
            let numbers = w.numbers(reads[0].1)?;
            w.g.set_input(id, 0, Some(numbers));
        }
        _ if moves(n) && reads.iter().any(|(slot, _)| n.op.role(*slot) == Role::Activation) => return movement(w, id),
        _ => {
            for (slot, v) in reads {
                let codes = w.integers(v)?;
                w.g.set_input(id, slot, Some(codes));
            }
        }
    }
    Ok(())
}

fn movement(w: &mut Work, id: NodeId) -> Result<()> {
    let n = w.g.node(id).clone();
    let data: Vec<(usize, ValueId)> =
        n.inputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))).filter(|(i, _)| n.op.role(*i) == Role::Activation).collect();
    let dtype = data.iter().find_map(|(_, v)| w.held.get(v)).map_or(DType::U8, |h| h.dtype);
    let grid = if fills_zeros(n.op) { None } else { common(w, &data) };
    let float = grid.map_or(DType::F32, |g| g.1);
    let grid = grid.map(|g| g.0);
    for &(slot, v) in &data {
        let stand_in = match grid {
            Some(q) => match (w.held.get(&v).and_then(|h| h.real), w.constant(v)) {
                (_, Some(t)) => w.constant_real(t, q, float, None, &format!("{}_dequantized", w.name(v)))?,
                (Some(real), None) => real.value,
                (None, None) => v,
            },
            None => w.numbers(v)?,
        };
        w.g.set_input(id, slot, Some(stand_in));
    }
    for (slot, v) in n.inputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
        if n.op.role(slot) != Role::Activation && w.held.contains_key(&v) {
            let codes = w.integers(v)?;
            w.g.set_input(id, slot, Some(codes));
        }
    }
    if let (Op::Pad, Some(q), None) = (n.op, grid, n.input(2)) {
        pad_with_code_zero(w, id, &n, q);
    }
    let outputs = if n.op == Op::Split { n.outputs().len() } else { 1 };
    for (slot, y) in n.outputs().iter().take(outputs).enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
        let mut made = y;
        if w.g.is_output(y) {
            made = w.g.add_value(&format!("{}_float", w.name(y)));
            w.g.set_output(id, slot, made);
        } else {
            w.retype(y, float);
        }
        let held = match grid {
            Some(q) => Held::real(dtype, made, float, Under::Static(q)),
            None => Held::numbers(dtype, made),
        };
        w.hold(y, held)?;
    }
    Ok(())
}

/// The one quantizer, of the whole tensor and with a positive scale, on whose grid all of `data` lie or can be put, and the type of their numbers.
fn common(w: &mut Work, data: &[(usize, ValueId)]) -> Option<(QuantizerId, DType)> {
    let mut grid: Option<(QuantizerId, DType)> = None;
    for (_, v) in data {
        match w.held.get(v).map(|h| h.real) {
            Some(Some(Real { under: Under::Static(q), float, .. })) if grid.is_none_or(|(g, f)| w.equal(g, q) && f == float) => {
                grid = grid.or(Some((q, float)));
            }
            Some(_) => return None,
            None if w.constant(*v).is_some() => {}
            None => return None,
        }
    }
    let q = &w.all.table[grid?.0];
    if q.scheme.blocks.is_tensor() && q.params.as_ref().is_some_and(|p| p.scale.iter().all(|s| *s > 0.0)) { grid } else { None }
}

/// Pad fills in code 0 where it is told nothing else.
fn pad_with_code_zero(w: &mut Work, id: NodeId, n: &Node, q: QuantizerId) {
    let Some(p) = w.all.table[q].params.as_ref() else { return };
    let fill = (0.0 - p.zero_at(0)) * p.scale_at(0);
    if matches!(p.zero, Zeros::None) || fill == 0.0 {
        return;
    }
    if n.attr("pads").is_some() {
        w.g.node_mut(id).set_attr("value", fill);
    } else {
        let value = w.g.add_constant(&format!("{}_fill", n.name), Tensor::scalar(fill));
        w.g.set_input(id, 2, Some(value));
    }
}

/// Real numbers for codes that were moved out of a constant, as embeddings are: the constant is dequantized, and moved in their place. `None` where
/// no constant is found, or `q` is not of the whole tensor.
pub fn pull(w: &mut Work, v: ValueId, q: QuantizerId) -> Result<Option<ValueId>> {
    if !w.all.table[q].scheme.blocks.is_tensor() {
        return Ok(None);
    }
    let mut chain = Vec::new();
    let mut at = v;
    let codes = loop {
        if let Some(t) = w.constant(at) {
            break t;
        }
        let Some((node, 0)) = w.g.value(at).producer() else { return Ok(None) };
        let n = w.g.node(node);
        let (Some(from), true) = (n.input(0), PULLED.contains(&n.op) && chain.len() < FAR && !w.held.contains_key(&at)) else { return Ok(None) };
        chain.push(node);
        at = from;
    };
    let dtype = codes.dtype();
    if w.dtype(v).is_some_and(|t| t != dtype) || chain.is_empty() {
        return Ok(None);
    }
    let mut made = match w.reals.get(&(at, q)) {
        Some(known) => *known,
        None => w.constant_real(codes, q, DType::F32, None, &format!("{}_dequantized", w.name(at)))?,
    };
    w.reals.insert((at, q), made);
    for node in chain.into_iter().rev() {
        let n = w.g.node(node).clone();
        let name = n.output(0).map_or(String::new(), |v| w.name(v));
        let mut inputs = n.inputs().to_vec();
        inputs[0] = Some(made);
        made = w.emit(n, &inputs, &format!("{name}_dequantized"));
    }
    Ok(Some(made))
}

#[cfg(test)]
mod tests {
    use crate::graph::{Model, Node, Op};
    use crate::lift::lift;
    use crate::lift::sample::{bytes, f32s, maker, model, node, ops, read};
    use crate::tensor::DType;

    type Nodes = Vec<(Node, &'static [&'static str], &'static [&'static str])>;

    fn lifted(mut nodes: Nodes, outputs: &[&str]) -> Model {
        let constants = [
            ("s", f32s(&[0.5])),
            ("t", f32s(&[0.25])),
            ("z", bytes(DType::U8, &[], &[3])),
            ("k", bytes(DType::U8, &[4, 1], &[1, 2, 3, 4])),
            ("pads", crate::tensor::Tensor::of_i64(&[4], vec![0, 1, 0, 0])),
        ];
        nodes.insert(0, (node(Op::QuantizeLinear), &["x", "s", "z"], &["q"]));
        let mut m = model(13, &[("x", DType::F32, &[4, 2]), ("i", DType::I64, &[3])], &constants, nodes, outputs);
        lift(&mut m).unwrap();
        m
    }

    #[test]
    fn movement_between_the_two_runs_on_floats_and_keeps_the_last_name() {
        let m = lifted(vec![(node(Op::Transpose), &["q"], &["r"]), (node(Op::DequantizeLinear), &["r", "s", "z"], &["y"])], &["y"]);
        assert_eq!((ops(&m), read(&m, "y", 0)), (vec![Op::FakeQuant, Op::Transpose], "q"));
        assert!(m.graph.find_value("r").is_none());
    }

    #[test]
    fn moved_codes_that_others_read_too_keep_their_meaning() {
        let nodes: Nodes = vec![
            (node(Op::Transpose), &["q"], &["r"]),
            (node(Op::DequantizeLinear), &["r", "s", "z"], &["a"]),
            (node(Op::Cast).with("to", DType::I32.onnx() as i64), &["r"], &["b"]),
        ];
        let m = lifted(nodes, &["a", "b"]);
        assert_eq!(maker(&m, "a").1.op, Op::Identity);
        assert!(ops(&m).contains(&Op::Round), "the cast reads codes, not what they stand for");
    }

    #[test]
    fn a_constant_that_is_joined_is_dequantized_under_the_others_quantizer() {
        let m = lifted(vec![(node(Op::Concat).with("axis", 1i64), &["q", "k"], &["r"]), (node(Op::DequantizeLinear), &["r", "s", "z"], &["y"])], &["y"]);
        assert_eq!(ops(&m), [Op::FakeQuant, Op::FakeQuant, Op::Concat]);
        assert_eq!((m.codes.len(), m.quantizers.len()), (1, 1));
    }

    #[test]
    fn padding_of_codes_fills_in_what_code_0_stands_for() {
        let m = lifted(vec![(node(Op::Pad), &["q", "pads"], &["r"]), (node(Op::DequantizeLinear), &["r", "s", "z"], &["y"])], &["y"]);
        let fill = maker(&m, "y").1.input(2).unwrap();
        assert_eq!(m.graph.constant(fill).unwrap().tensor.to_f32().unwrap()[0], -1.5);
    }

    #[test]
    fn codes_are_pulled_through_an_embedding() {
        let m = lifted(vec![(node(Op::Gather), &["k", "i"], &["g"]), (node(Op::DequantizeLinear), &["g", "t", "z"], &["y"])], &["y"]);
        assert_eq!(ops(&m)[..2], [Op::FakeQuant, Op::Gather]);
        assert_eq!(m.codes.len(), 1);
    }

    #[test]
    fn other_nodes_get_codes_in_their_own_type() {
        let m = lifted(vec![(node(Op::ArgMax), &["q"], &["y"])], &["y"]);
        let (_, cast) = maker(&m, read(&m, "y", 0));
        assert_eq!((cast.op, cast.int("to")), (Op::Cast, Some(DType::U8.onnx() as i64)));
    }
}
