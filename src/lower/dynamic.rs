//! Layers whose input's scale is found when the model runs: integer products, scaled back to float.
//! Per tensor: `DynamicQuantizeLinear(x) → MatMulInteger or ConvInteger → Cast → Mul(s_x · s_w) → Add(bias)`, which ONNX Runtime makes one kernel of.
//! Per token: `s = max|x| / 127 along the last axis, Cast(Clip(Round(x / s))) → MatMulInteger → Cast → Mul(s) → Mul(s_w) → Add(bias)`.
//! LSTM: com.microsoft's DynamicQuantizeLSTM, which also quantizes the state at every step.
//! Source: ONNX operators; ONNX Runtime 1.31, matmul_integer_to_float.cc and dynamic_quantize_lstm.cc, for the forms that it takes.
//! Needs: codes for the weights, and schemes that `target::spelling::dynamic` takes. Declines: nothing.

use super::coded::sweep;
use crate::error::{At, Error, Result};
use crate::graph::{Graph, Model, Node, NodeId, Op, Site, ValueId};
use crate::note::Notes;
use crate::quant::{Codes, Params, QuantizerId, Scheme, Table, Timing};
use crate::tensor::{DType, Tensor, pack};
use std::collections::BTreeMap;

/// Codes of a value, their scale and, if there is one, their zero point.
#[derive(Clone, Copy)]
struct Found {
    codes: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
}

/// Rewrites every layer of the outermost graph that reads a dynamic quantizer.
pub fn dynamic(model: &mut Model) -> Result<Notes> {
    let mut notes = Notes::of("lower");
    let opset = model.opset("").unwrap_or(0);
    let Model { graph: g, quantizers: table, codes, .. } = model;
    let mut found: BTreeMap<(ValueId, QuantizerId), Found> = BTreeMap::new();
    let mut weights: BTreeMap<(ValueId, QuantizerId, bool), Found> = BTreeMap::new();
    let mut count = 0;
    for id in g.order().to_vec() {
        let Some((x, q)) = dynamic_input(g, table, id) else { continue };
        let name = g.node(id).name.clone();
        let layer = Layer { x, q, opset, table, codes };
        match g.node(id).op {
            Op::LSTM => layer.lstm(g, id),
            _ => layer.product(g, id, &mut found, &mut weights),
        }
        .at(|| format!("node {name}"))?;
        count += 1;
    }
    if count == 0 {
        return Ok(notes);
    }
    sweep(g, Op::FakeQuant);
    g.sort().map_err(|node| Error::failed(format!("node {node} stands on a cycle")))?;
    model.import_used(Op::DynamicQuantizeLSTM.spelling().0);
    notes.changed("", format!("{count} layers multiply codes whose scale is found when the model runs"));
    Ok(notes)
}

/// What a layer reads through a dynamic quantizer.
fn dynamic_input(g: &Graph, table: &Table, id: NodeId) -> Option<(ValueId, QuantizerId)> {
    let node = g.get_node(id).filter(|n| matches!(n.op, Op::Conv | Op::MatMul | Op::Gemm | Op::LSTM))?;
    let fq = g.node(g.value(node.input(0)?).producer()?.0);
    let q = fq.quantizer().filter(|q| table[*q].scheme.timing == Timing::Dynamic)?;
    Some((fq.input(0)?, q))
}

struct Layer<'a> {
    x: ValueId,
    q: QuantizerId,
    opset: i64,
    table: &'a Table,
    codes: &'a BTreeMap<Site, Codes>,
}

/// Adds a node called `name` that makes a new value called after it.
fn emit(g: &mut Graph, mut node: Node, name: &str, inputs: &[Option<ValueId>]) -> ValueId {
    let v = g.add_value(name);
    node.name = name.to_string();
    g.add_node(node, inputs, &[Some(v)]);
    v
}

fn op(g: &mut Graph, op: Op, name: &str, inputs: &[ValueId]) -> ValueId {
    emit(g, Node::new(op, ""), name, &inputs.iter().copied().map(Some).collect::<Vec<_>>())
}

impl Layer<'_> {
    /// The codes, scheme and parameters of the weight at `slot`.
    fn weight(&self, g: &Graph, node: &Node, slot: usize) -> Result<(ValueId, QuantizerId, Tensor, &Scheme, &Params)> {
        let missing = || Error::failed("its weight has no codes yet; `round` must stand before `lower`");
        let (fq, _) = node.input(slot).and_then(|v| g.value(v).producer()).ok_or_else(missing)?;
        let q = self.table.root(g.node(fq).quantizer().ok_or_else(missing)?);
        let codes = self.codes.get(&Site::of(fq)).ok_or_else(missing)?;
        let value = g.node(fq).input(0).ok_or_else(missing)?;
        let params = self.table[q].params.as_ref().ok_or_else(missing)?;
        Ok((value, q, codes.0.clone(), &self.table[q].scheme, params))
    }

    /// Conv, MatMul or Gemm.
    fn product(
        &self,
        g: &mut Graph,
        id: NodeId,
        found: &mut BTreeMap<(ValueId, QuantizerId), Found>,
        weights: &mut BTreeMap<(ValueId, QuantizerId, bool), Found>,
    ) -> Result<()> {
        let node = g.node(id).clone();
        let y = node.output(0).ok_or_else(|| Error::failed("it makes nothing"))?;
        let flip = node.op == Op::Gemm && node.int("transB").unwrap_or(0) != 0;
        let (w, wq, codes, _, params) = self.weight(g, &node, 1)?;
        let channels_second = node.op == Op::Conv;
        let weight = match weights.get(&(w, wq, flip)) {
            Some(known) => *known,
            None => {
                let known = constants(g, w, if flip { transposed(&codes)? } else { codes }, params, channels_second)?;
                weights.insert((w, wq, flip), known);
                known
            }
        };
        let x = match found.get(&(self.x, self.q)) {
            Some(known) => *known,
            None => {
                let known = if self.table[self.q].scheme.blocks.is_tensor() { per_tensor(g, self.x) } else { per_token(g, self.x, self.opset) };
                found.insert((self.x, self.q), known);
                known
            }
        };
        let old = g.remove_node(id);
        let name = if old.name.is_empty() { g.value(y).name.clone() } else { old.name.clone() };
        let mut integer = Node::new(Op::MatMulInteger, name.clone());
        if old.op == Op::Conv {
            integer = Node::new(Op::ConvInteger, name.clone());
            integer.attrs = old.attrs.clone();
        }
        integer.came_from = old.came_from.clone();
        let sum = g.add_value(&format!("{name}_sum"));
        g.add_node(integer, &[Some(x.codes), Some(weight.codes), x.zero, weight.zero], &[Some(sum)]);
        let cast = emit(g, Node::new(Op::Cast, "").with("to", DType::F32.onnx() as i64), &format!("{name}_cast"), &[Some(sum)]);
        let mut steps = match x.zero {
            // In this order ONNX Runtime takes it for one kernel.
            Some(_) => vec![(Op::Mul, "scaled", op(g, Op::Mul, &format!("{name}_scales"), &[x.scale, weight.scale]))],
            None => vec![(Op::Mul, "rows", x.scale), (Op::Mul, "scaled", weight.scale)],
        };
        if let Some(bias) = old.input(2) {
            let rank = g.constant(weight.codes).map_or(0, |c| c.tensor.rank());
            steps.push((Op::Add, "bias", if old.op == Op::Conv { along_channels(g, bias, &name, rank) } else { bias }));
        }
        let (last, before) = steps.split_last().expect("there is one at least");
        let v = before.iter().fold(cast, |v, (step, what, by)| op(g, *step, &format!("{name}_{what}"), &[v, *by]));
        g.add_node(Node::new(last.0, format!("{name}_{}", last.1)), &[Some(v), Some(last.2)], &[Some(y)]);
        Ok(())
    }

    fn lstm(&self, g: &mut Graph, id: NodeId) -> Result<()> {
        let node = g.node(id).clone();
        let mut inputs = node.inputs().to_vec();
        inputs.resize(8, None);
        inputs[0] = Some(self.x);
        for slot in [1, 2] {
            let (w, _, codes, scheme, params) = self.weight(g, &node, slot)?;
            let [directions, rows, _] = *codes.shape() else { return Err(Error::failed("its weights have no three dimensions")) };
            // Which scale stands where: one for all, one a row, or one a direction and gate.
            let from: Vec<usize> = match (params.scale.len(), scheme.blocks.gates()) {
                (1, _) => vec![0; directions],
                (_, Some(gates)) => (0..directions * rows).map(|i| i / (rows / gates)).collect(),
                _ => (0..directions * rows).map(|i| i % rows).collect(),
            };
            let shape = if params.scale.len() == 1 { vec![directions] } else { vec![directions, rows] };
            let zeros: Vec<i32> = from.iter().map(|i| params.zero_at(*i) as i32).collect();
            let scale = Tensor::of_f32(&shape, from.iter().map(|i| params.scale_at(*i)).collect());
            let zero = Tensor::new(codes.dtype(), shape, pack::pack(&zeros, codes.dtype()).into())?;
            let name = g.value(w).name.clone();
            inputs[slot] = Some(g.add_constant(&format!("{name}_quantized"), transposed(&codes)?));
            inputs.push(Some(g.add_constant(&format!("{name}_scale"), scale)));
            inputs.push(Some(g.add_constant(&format!("{name}_zero_point"), zero)));
        }
        let old = g.remove_node(id);
        let mut new = Node::new(Op::DynamicQuantizeLSTM, old.name.clone());
        new.attrs = old.attrs.iter().filter(|a| a.name != "layout").cloned().collect();
        new.came_from = old.came_from.clone();
        g.add_node(new, &inputs, old.outputs());
        Ok(())
    }
}

/// A weight's codes, scales and zero points as initializers: one scale, or one an output channel, which stands last, or second before the window.
fn constants(g: &mut Graph, w: ValueId, codes: Tensor, params: &Params, channels_second: bool) -> Result<Found> {
    let (name, dtype, n) = (g.value(w).name.clone(), codes.dtype(), params.scale.len());
    let shape = match n {
        1 => vec![],
        n if channels_second => [vec![1, n], vec![1; codes.rank() - 2]].concat(),
        n => vec![n],
    };
    let mut zeros: Vec<i32> = (0..n).map(|i| params.zero_at(i) as i32).collect();
    if zeros.iter().all(|z| *z == zeros[0]) {
        zeros.truncate(1);
    }
    let zero_shape = if zeros.len() == 1 { vec![] } else { vec![n] };
    let scale = g.add_constant(&format!("{name}_scale"), Tensor::of_f32(&shape, params.scale.clone()));
    let zero = g.add_constant(&format!("{name}_zero_point"), Tensor::new(dtype, zero_shape, pack::pack(&zeros, dtype).into())?);
    Ok(Found { codes: g.add_constant(&format!("{name}_quantized"), codes), scale, zero: Some(zero) })
}

/// A bias of one number a channel, in a shape that is added to `[batch, channels, …]`.
fn along_channels(g: &mut Graph, bias: ValueId, name: &str, rank: usize) -> ValueId {
    let mut shape = vec![1i64; rank];
    shape[1] = -1;
    if let Some(t) = g.constant(bias).map(|c| c.tensor.clone()) {
        let shape = shape.iter().map(|d| if *d < 0 { t.len() } else { 1 }).collect();
        if let Ok(t) = t.reshaped(shape) {
            let name = format!("{}_along", g.value(bias).name);
            return g.add_constant(&name, t);
        }
    }
    let shape = g.add_constant(&format!("{name}_bias_shape"), Tensor::of_i64(&[rank], shape));
    op(g, Op::Reshape, &format!("{name}_bias_along"), &[bias, shape])
}

/// The last two dimensions changed for each other; elements of one byte.
fn transposed(t: &Tensor) -> Result<Tensor> {
    let (shape, bytes) = (t.shape(), t.bytes());
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let matrix = |m: &[u8]| (0..rows * columns).map(|i| m[i % rows * columns + i / rows]).collect::<Vec<u8>>();
    let data: Vec<u8> = bytes.chunks_exact((rows * columns).max(1)).flat_map(matrix).collect();
    let mut turned = shape.to_vec();
    turned.swap(shape.len() - 2, shape.len() - 1);
    Tensor::new(t.dtype(), turned, data.into())
}

fn per_tensor(g: &mut Graph, x: ValueId) -> Found {
    let name = g.value(x).name.clone();
    let [codes, scale, zero] = ["quantized", "scale", "zero_point"].map(|what| g.add_value(&format!("{name}_{what}")));
    g.add_node(Node::new(Op::DynamicQuantizeLinear, format!("{name}_DynamicQuantizeLinear")), &[Some(x)], &[Some(codes), Some(scale), Some(zero)]);
    Found { codes, scale, zero: Some(zero) }
}

fn per_token(g: &mut Graph, x: ValueId, opset: i64) -> Found {
    let name = g.value(x).name.clone();
    let number = |g: &mut Graph, what: &str, n: f32| g.add_constant(&format!("{name}_{what}"), Tensor::scalar(n));
    let size = op(g, Op::Abs, &format!("{name}_size"), &[x]);
    let largest = Node::new(Op::ReduceMax, "").with("keepdims", 1i64);
    let largest = if opset < 18 {
        emit(g, largest.with("axes", vec![-1i64]), &format!("{name}_largest"), &[Some(size)])
    } else {
        let axes = g.add_constant(&format!("{name}_last_axis"), Tensor::of_i64(&[1], vec![-1]));
        emit(g, largest, &format!("{name}_largest"), &[Some(size), Some(axes)])
    };
    let (top, bottom) = (number(g, "highest_code", 127.0), number(g, "lowest_code", -127.0));
    let exact = op(g, Op::Div, &format!("{name}_exact_scale"), &[largest, top]);
    let least = number(g, "least_scale", f32::MIN_POSITIVE);
    let scale = op(g, Op::Max, &format!("{name}_scale"), &[exact, least]);
    let steps = op(g, Op::Div, &format!("{name}_steps"), &[x, scale]);
    let rounded = op(g, Op::Round, &format!("{name}_rounded"), &[steps]);
    let cut = op(g, Op::Clip, &format!("{name}_cut"), &[rounded, bottom, top]);
    let codes = emit(g, Node::new(Op::Cast, "").with("to", DType::I8.onnx() as i64), &format!("{name}_quantized"), &[Some(cut)]);
    Found { codes, scale, zero: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, Type};
    use crate::lift::lift;
    use crate::quant::{Blocks, Format};

    /// x → FakeQuant (dynamic) → `node` with a weight of `shape`, codes 1, 2, 3 …, under `scales` along `axis`, and perhaps a bias → y.
    fn layer(node: Node, input: Scheme, shape: &[usize], axis: i32, bias: bool, opset: i64) -> Model {
        let mut m = Model { opsets: vec![(String::new(), opset)], ir_version: 7, ..Model::default() };
        let a = m.quantizers.add("x", Scheme { timing: Timing::Dynamic, ..input });
        let n = shape[axis as usize];
        let w = m.quantizers.add("w", Scheme { blocks: Blocks::channel(axis), ..Scheme::int(8, true) });
        m.quantizers[w].params = Some(Params { scale: (1..=n).map(|i| i as f32 / 8.0).collect(), ..Params::tensor(1.0, None) });
        let g = &mut m.graph;
        let [x, xq, wq, y] = ["x", "xq", "wq", "y"].map(|n| g.add_value(n));
        let rank = if node.op == Op::Conv { 4 } else { 2 };
        g.value_mut(x).ty = Type::Tensor { dtype: Some(DType::F32), shape: Some(vec![Dim::Known(3); rank]) };
        let size: usize = shape.iter().product();
        let wv = g.add_constant("w", Tensor::of_f32(shape, vec![1.0; size]));
        let c = bias.then(|| g.add_constant("c", Tensor::of_f32(&[n], vec![0.5; n])));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(a, "fx"), &[Some(x)], &[Some(xq)]);
        let f = g.add_node(Node::fake_quant(w, "fw"), &[Some(wv)], &[Some(wq)]);
        g.add_node(node, &[&[Some(xq), Some(wq)][..], c.map(Some).as_slice()].concat(), &[Some(y)]);
        m.codes.insert(Site::of(f), Codes(Tensor::of(DType::I8, shape, (1..=size as i8).collect())));
        m
    }

    fn ops(m: &Model) -> Vec<Op> {
        m.graph.nodes().map(|(_, n)| n.op).collect()
    }

    #[test]
    fn a_layer_is_an_integer_product_and_reads_back_as_it_was() {
        let gemm = Node::new(Op::Gemm, "gemm").with("transB", 1i64);
        let mut m = layer(gemm, Scheme::int(8, false), &[2, 3], 0, true, 13);
        super::super::lower_qdq(&mut m, None).unwrap();
        assert_eq!(ops(&m), [Op::DynamicQuantizeLinear, Op::MatMulInteger, Op::Cast, Op::Mul, Op::Mul, Op::Add]);
        let (_, product) = m.graph.nodes().nth(1).unwrap();
        let codes = &m.graph.constant(product.input(1).unwrap()).unwrap().tensor;
        assert_eq!((product.name.as_str(), codes.shape(), codes.bytes().to_vec()), ("gemm", &[3, 2][..], vec![1, 4, 2, 5, 3, 6]));
        assert!(m.graph.find_value("w").is_none(), "the float weight is gone");
        lift(&mut m).unwrap();
        assert_eq!(ops(&m), [Op::FakeQuant, Op::FakeQuant, Op::MatMul, Op::Add]);
        let of = |name: &str| m.quantizers.ids().map(|q| &m.quantizers[q]).find(|q| q.name == name).unwrap();
        assert_eq!(of("x").scheme.timing, Timing::Dynamic);
        assert_eq!(of("w_quantized").params.as_ref().unwrap().scale, [0.125, 0.25]);
    }

    #[test]
    fn a_convolution_scales_its_second_dimension() {
        let mut m = layer(Node::new(Op::Conv, "conv").with("group", 1i64), Scheme::int(8, false), &[2, 3, 1, 1], 0, true, 13);
        dynamic(&mut m).unwrap();
        assert_eq!(ops(&m), [Op::DynamicQuantizeLinear, Op::ConvInteger, Op::Cast, Op::Mul, Op::Mul, Op::Add]);
        let constants: Vec<(String, Vec<usize>)> =
            m.graph.initializers.iter().map(|v| (m.graph.value(*v).name.clone(), m.graph.value(*v).known_shape().unwrap())).collect();
        let shape = |name: &str| constants.iter().find(|c| c.0 == name).map(|c| c.1.clone());
        assert_eq!((shape("w_scale"), shape("c_along"), shape("w_zero_point")), (Some(vec![1, 2, 1, 1]), Some(vec![1, 2, 1, 1]), Some(vec![])));
        lift(&mut m).unwrap();
        assert_eq!(ops(&m), [Op::FakeQuant, Op::FakeQuant, Op::Conv, Op::Add]);
    }

    #[test]
    fn tokens_have_scales_of_their_own() {
        let token = Scheme { blocks: Blocks::token(), ..Scheme::int(8, true) };
        for (opset, inputs) in [(13, 1), (18, 2)] {
            let mut m = layer(Node::new(Op::MatMul, "p"), token.clone(), &[3, 2], 1, false, opset);
            dynamic(&mut m).unwrap();
            let want = [Op::Abs, Op::ReduceMax, Op::Div, Op::Max, Op::Div, Op::Round, Op::Clip, Op::Cast, Op::MatMulInteger, Op::Cast, Op::Mul, Op::Mul];
            assert_eq!(ops(&m), want);
            assert_eq!(m.graph.nodes().nth(1).unwrap().1.inputs().len(), inputs);
            lift(&mut m).unwrap();
        }
    }

    #[test]
    fn a_recurrent_layer_has_its_weights_turned_and_a_scale_each_row() {
        let mut m = Model { opsets: vec![(String::new(), 14)], ..Model::default() };
        let a = m.quantizers.add("x", Scheme { timing: Timing::Dynamic, ..Scheme::int(8, false) });
        let q = m.quantizers.add("w", Scheme { blocks: Blocks::gate(4), ..Scheme::int(8, true) });
        m.quantizers[q].params = Some(Params { scale: vec![1.0, 2.0, 3.0, 4.0], ..Params::tensor(1.0, None) });
        let g = &mut m.graph;
        let [x, xq, wq, rq, y] = ["x", "xq", "wq", "rq", "y"].map(|n| g.add_value(n));
        (g.inputs, g.outputs) = (vec![x], vec![y]);
        g.add_node(Node::fake_quant(a, "fx"), &[Some(x)], &[Some(xq)]);
        for (name, out) in [("w", wq), ("r", rq)] {
            let v = g.add_constant(name, Tensor::of_f32(&[1, 8, 2], vec![1.0; 16]));
            let f = g.add_node(Node::fake_quant(q, name), &[Some(v)], &[Some(out)]);
            m.codes.insert(Site::of(f), Codes(Tensor::of(DType::I8, &[1, 8, 2], (0..16i8).collect())));
        }
        g.add_node(Node::new(Op::LSTM, "lstm").with("hidden_size", 2i64).with("layout", 0i64), &[Some(xq), Some(wq), Some(rq)], &[Some(y)]);
        dynamic(&mut m).unwrap();
        assert_eq!((ops(&m), m.opset("com.microsoft")), (vec![Op::DynamicQuantizeLSTM], Some(1)));
        let (_, n) = m.graph.nodes().next().unwrap();
        let tensor = |slot: usize| m.graph.constant(n.input(slot).unwrap()).unwrap().tensor.clone();
        assert_eq!((tensor(1).shape().to_vec(), tensor(1).bytes()[..3].to_vec()), (vec![1, 2, 8], vec![0, 2, 4]));
        assert_eq!(tensor(8), Tensor::of_f32(&[1, 8], vec![1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]));
        assert_eq!((n.input(0), tensor(9).shape().to_vec(), n.attr("layout")), (Some(x), vec![1, 8], None));
        assert_eq!(Format::of_dtype(tensor(9).dtype()), Format::of_dtype(DType::I8));
    }
}
