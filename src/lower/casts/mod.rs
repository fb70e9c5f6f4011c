//! What stays float becomes float16 or bfloat16: tensors, constants and the bodies of If, Loop and Scan, with Casts where types meet, one for each value
//! and type. What must stay float32 ([`keep`]) keeps its tensors. Constants beyond the type's range are saturated, those below it become 0; both are said.
//! Formula: round half to even. Source: ONNX's types by operator (`graph::half_since`); what goes wrong elsewhere, onnxconverter-common issues 266 and 273.
//! Needs: a model in ONNX's own ops; what samples showed of its tensors, where there are any. Declines: what it names in its notes.

mod keep;
#[cfg(test)]
mod tests;

use crate::error::Result;
use crate::graph::{AttrValue, Constant, Fact, Graph, Inferred, InputShapes, Model, Node, NodeId, Op, Port, ValueId};
use crate::graph::{eval, infer, infer_body, stays_float32};
use crate::note::Notes;
use crate::observe::Extremes;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// What is asked of [`half_floats`].
pub struct Casts<'a> {
    /// float16 or bfloat16.
    pub dtype: DType,
    /// Inputs and outputs of the model stay float32.
    pub keep_io: bool,
    /// Operators that stay float32, and nodes.
    pub ops: &'a [Op],
    pub nodes: &'a BTreeSet<NodeId>,
    /// By tensor: what samples showed of it.
    pub seen: &'a BTreeMap<String, Extremes>,
}

/// What is said of all graphs.
struct All<'a> {
    how: &'a Casts<'a>,
    opset: i64,
    notes: Notes,
    /// Nodes in the narrow type, nodes in float32, Casts put in.
    counts: (usize, usize, usize),
    /// Constants of which numbers became 0, and how many numbers.
    vanished: (usize, usize),
    /// Bodies entered so far.
    bodies: usize,
}

/// Values of the graphs around a body, by name: what is known of them, and the type that those which were float32 have now.
#[derive(Default, Clone)]
struct Outer {
    facts: BTreeMap<String, Fact>,
    types: BTreeMap<String, DType>,
}

/// Gives the model's float32 tensors the type asked for, wherever nothing speaks against it.
pub fn half_floats(model: &mut Model, how: &Casts) -> Result<Notes> {
    let inferred = infer(model, &InputShapes::new());
    let mut all = All { how, opset: model.opset("").unwrap_or(0), notes: Notes::of("lower"), counts: (0, 0, 0), vanished: (0, 0), bodies: 0 };
    let kept = keep::kept(&model.graph, &inferred, &mut all);
    let ends = if how.keep_io { DType::F32 } else { how.dtype };
    Rewrite::new(&mut model.graph, &inferred, &mut all, kept, ends, &Outer::default()).run(true)?;
    let (narrow, wide, casts) = all.counts;
    if all.vanished.0 > 0 {
        let (constants, numbers) = all.vanished;
        all.notes.changed("", format!("{numbers} numbers in {constants} constants are too small for {} and become 0", how.dtype));
    }
    all.notes.changed("", format!("{narrow} nodes compute in {}, {wide} on real numbers stay float32, {casts} Casts between them", how.dtype));
    Ok(all.notes)
}

/// One graph on its way.
struct Rewrite<'a, 'h> {
    g: &'a mut Graph,
    inferred: &'a Inferred,
    all: &'a mut All<'h>,
    kept: BTreeSet<NodeId>,
    /// The type of inputs and outputs.
    ends: DType,
    outer: &'a Outer,
    /// Ends the names of Casts: a name stands once in a graph, the graphs around it and those beside it.
    suffix: String,
    /// The type now of values that were float32 and are no constants.
    made: BTreeMap<ValueId, DType>,
    cast: BTreeMap<(ValueId, DType), ValueId>,
}

impl<'a, 'h> Rewrite<'a, 'h> {
    fn new(g: &'a mut Graph, inferred: &'a Inferred, all: &'a mut All<'h>, kept: BTreeSet<NodeId>, ends: DType, outer: &'a Outer) -> Self {
        let mut made = BTreeMap::new();
        for (v, value) in g.values().filter(|(v, _)| is_real(inferred, *v)) {
            let dtype = match value.producer() {
                Some((node, slot)) if kept.contains(&node) || always_float32(g.node(node).op, slot) => DType::F32,
                Some(_) => all.how.dtype,
                None if g.inputs.contains(&v) => ends,
                None => outer.types.get(&value.name).copied().unwrap_or(DType::F32),
            };
            made.insert(v, dtype);
        }
        let suffix = if all.bodies == 0 { String::new() } else { format!("_body{}", all.bodies) };
        all.bodies += 1;
        Rewrite { g, inferred, all, kept, ends, outer, suffix, made, cast: BTreeMap::new() }
    }

    fn run(mut self, outermost: bool) -> Result<()> {
        for id in self.g.order().to_vec() {
            crate::interrupt::check()?;
            self.node(id)?;
        }
        for i in 0..self.g.outputs.len() {
            self.output(i, outermost)?;
        }
        for v in self.g.inputs.clone() {
            self.retype(v);
        }
        self.drop_idle();
        Ok(())
    }

    fn is_real(&self, v: ValueId) -> bool {
        is_real(self.inferred, v)
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let half = !self.kept.contains(&id);
        let (op, inputs, outputs) = (self.g.node(id).op, self.g.node(id).inputs().to_vec(), self.g.node(id).outputs().to_vec());
        if op == Op::Constant {
            return Ok(());
        }
        let mut touches = outputs.iter().flatten().any(|v| self.is_real(*v));
        for (slot, v) in inputs.iter().enumerate() {
            let Some(v) = v.filter(|v| self.is_real(*v)) else { continue };
            touches = true;
            let want = if half && !stays_float32(op, slot) { self.all.how.dtype } else { DType::F32 };
            let typed = self.as_type(v, want)?;
            if typed != v {
                self.g.set_input(id, slot, Some(typed));
            }
        }
        if self.g.node(id).bodies().next().is_some() {
            self.bodies(id, half)?;
        }
        if touches && half {
            self.all.counts.0 += 1;
            self.attributes(id)?;
        } else if touches {
            self.all.counts.1 += 1;
        }
        outputs.iter().flatten().for_each(|v| self.retype(*v));
        Ok(())
    }

    /// Attributes that name the type of what a node makes.
    fn attributes(&mut self, id: NodeId) -> Result<()> {
        let to = self.all.how.dtype;
        if !self.g.node(id).output(0).is_some_and(|y| self.is_real(y)) {
            return Ok(());
        }
        match self.g.node(id).op {
            Op::Cast => self.g.node_mut(id).set_attr("to", to.onnx() as i64),
            Op::EyeLike => self.g.node_mut(id).set_attr("dtype", to.onnx() as i64),
            Op::ConstantOfShape => {
                let value = match self.g.node(id).attr("value") {
                    Some(AttrValue::Tensor(c)) => c.tensor.clone(),
                    _ => Tensor::of_f32(&[1], vec![0.0]),
                };
                let name = self.g.node(id).name.clone();
                let narrow = self.narrowed(&name, &value)?;
                self.g.node_mut(id).set_attr("value", narrow);
            }
            _ => {}
        }
        Ok(())
    }

    fn bodies(&mut self, id: NodeId, half: bool) -> Result<()> {
        let mut outer = self.outer.clone();
        for v in self.g.node(id).captures().to_vec() {
            let name = self.g.value(v).name.clone();
            outer.facts.insert(name.clone(), self.inferred.get(v).clone());
            let dtype = self.g.constant(v).map(|c| c.tensor.dtype()).or(self.made.get(&v).copied());
            outer.types.extend(dtype.map(|t| (name, t)));
        }
        let mut attrs = std::mem::take(&mut self.g.node_mut(id).attrs);
        for attr in &mut attrs {
            let graphs: &mut [Graph] = match &mut attr.value {
                AttrValue::Graph(body) => std::slice::from_mut(body),
                AttrValue::Graphs(bodies) => bodies,
                _ => continue,
            };
            for body in graphs {
                let inferred = infer_body(body, &outer.facts);
                let (kept, ends) = match half {
                    true => (keep::kept(body, &inferred, self.all), self.all.how.dtype),
                    false => (body.order().iter().copied().collect(), DType::F32),
                };
                Rewrite::new(body, &inferred, self.all, kept, ends, &outer).run(false)?;
            }
        }
        self.g.node_mut(id).attrs = attrs;
        self.g.refresh_captures(id);
        Ok(())
    }

    /// The value itself, or what is made of it, in that type.
    fn as_type(&mut self, v: ValueId, want: DType) -> Result<ValueId> {
        if let Some(c) = constant_of(self.g, v) {
            return if c.dtype() == want || want == DType::F32 { Ok(v) } else { self.constant(v, &c) };
        }
        if self.made.get(&v) == Some(&want) {
            return Ok(v);
        }
        if let Some(&known) = self.cast.get(&(v, want)) {
            return Ok(known);
        }
        let at = self.g.value(v).producer().map_or(0, |(node, _)| self.g.position(node) + 1);
        let y = self.g.add_value(&format!("{}_{want}{}", self.g.value(v).name, self.suffix));
        self.g.value_mut(y).ty = self.g.value(v).ty.clone();
        self.g.value_mut(y).set_dtype(want);
        self.put_cast(at, v, y, want);
        self.cast.insert((v, want), y);
        Ok(y)
    }

    fn put_cast(&mut self, at: usize, from: ValueId, to: ValueId, dtype: DType) -> NodeId {
        let name = format!("{}_Cast", self.g.value(to).name);
        self.all.counts.2 += 1;
        self.g.insert_node(at, Node::new(Op::Cast, name).with("to", dtype.onnx() as i64), &[Some(from)], &[Some(to)])
    }

    /// A constant in the narrow type: in its place where nobody wants it as it was.
    fn constant(&mut self, v: ValueId, tensor: &Tensor) -> Result<ValueId> {
        let dtype = self.all.how.dtype;
        if let Some(&known) = self.cast.get(&(v, dtype)) {
            return Ok(known);
        }
        let name = self.g.value(v).name.clone();
        let narrow = self.narrowed(&name, tensor)?;
        let wide = |p: &Port| p.slot == Port::CAPTURE || self.kept.contains(&p.node) || stays_float32(self.g.node(p.node).op, p.slot as usize);
        let here = self.g.value(v).constant.is_some() && !self.g.is_output(v) && !self.g.inputs.contains(&v) && !self.g.value(v).uses().iter().any(wide);
        let y = if here {
            if let Some(c) = &mut self.g.value_mut(v).constant {
                c.tensor = narrow;
            }
            self.g.value_mut(v).set_dtype(dtype);
            v
        } else {
            self.g.add_constant(&format!("{name}_{dtype}{}", self.suffix), Constant::from(narrow))
        };
        self.cast.insert((v, dtype), y);
        Ok(y)
    }

    fn narrowed(&mut self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let dtype = self.all.how.dtype;
        let Narrowed { tensor, saturated, vanished } = narrow(tensor, dtype)?;
        if let Some((count, worst)) = saturated {
            let text = format!("{count} numbers of this constant, to {worst:e}, lie beyond {dtype} and become {:e}", largest(dtype).copysign(worst));
            self.all.notes.changed(name, text);
        }
        if vanished > 0 {
            self.all.vanished = (self.all.vanished.0 + 1, self.all.vanished.1 + vanished);
        }
        Ok(tensor)
    }

    /// Gives an output the type of the interface. Outputs of the model keep their names.
    fn output(&mut self, i: usize, outermost: bool) -> Result<()> {
        let (v, want) = (self.g.outputs[i], self.ends);
        if !self.is_real(v) {
            return Ok(());
        }
        if !outermost {
            self.g.outputs[i] = self.as_type(v, want)?;
            return Ok(());
        }
        let (Some(&have), Some((node, slot))) = (self.made.get(&v), self.g.value(v).producer()) else { return Ok(()) };
        if have == want || constant_of(self.g, v).is_some() {
            return Ok(());
        }
        let x = self.g.add_value(&format!("{}_{have}", self.g.value(v).name));
        self.g.value_mut(x).ty = self.g.value(v).ty.clone();
        self.g.value_mut(x).set_dtype(have);
        self.g.set_output(node, slot as usize, x);
        self.g.replace_uses(v, x);
        self.made.extend([(x, have), (v, want)]);
        self.g.value_mut(v).set_dtype(want);
        if let Some(c) = self.cast.remove(&(v, want))
            && let Some((cast, _)) = self.g.value(c).producer()
        {
            self.g.set_output(cast, 0, v);
            self.g.replace_uses(c, v);
            self.g.remove_idle(c);
            return Ok(());
        }
        self.put_cast(self.g.position(node) + 1, x, v, want);
        Ok(())
    }

    /// The type of a value that is no constant, as it is now.
    fn retype(&mut self, v: ValueId) {
        if let Some(&dtype) = self.made.get(&v).filter(|_| self.g.has_value(v) && self.g.value(v).constant.is_none()) {
            self.g.value_mut(v).set_dtype(dtype);
        }
    }

    /// Takes out Casts from a type to itself, and constants that nobody reads any more.
    fn drop_idle(&mut self) {
        for id in self.g.order().to_vec() {
            let n = self.g.node(id);
            let (op, Some(y)) = (n.op, n.output(0)) else { continue };
            if op == Op::Constant && self.g.value(y).uses().is_empty() && !self.g.is_output(y) && self.is_real(y) {
                self.g.remove_node(id);
                self.g.remove_idle(y);
            } else if let (Op::Cast, Some(x)) = (op, n.input(0)) {
                let from = constant_of(self.g, x).map(|c| c.dtype()).or(self.made.get(&x).copied()).or(self.inferred.get(x).dtype);
                if from.is_some_and(|t| n.int("to") == Some(t.onnx() as i64)) {
                    self.g.bypass(id);
                }
            }
        }
    }
}

/// Whether a value of the model as it was is float32.
fn is_real(inferred: &Inferred, v: ValueId) -> bool {
    inferred.get(v).dtype == Some(DType::F32)
}

/// Results that are float32 whatever goes in: a LayerNormalization's mean and deviation.
fn always_float32(op: Op, slot: u32) -> bool {
    op == Op::LayerNormalization && slot > 0
}

/// The number behind a constant, or behind a node that makes one of nothing.
fn constant_of(g: &Graph, v: ValueId) -> Option<Tensor> {
    if let Some(c) = g.constant(v) {
        return Some(c.tensor.clone());
    }
    let node = g.node(g.value(v).producer()?.0);
    if node.op == Op::Constant { eval(node, &[])?.into_iter().next() } else { None }
}

/// The largest number of a type.
fn largest(dtype: DType) -> f32 {
    if dtype == DType::F16 { half::f16::MAX.to_f32() } else { half::bf16::MAX.to_f32() }
}

struct Narrowed {
    tensor: Tensor,
    /// How many numbers lay beyond the type, and the largest of them.
    saturated: Option<(usize, f32)>,
    /// How many became 0.
    vanished: usize,
}

/// float32 numbers in a narrower type. Those beyond it become its largest; infinities stay.
fn narrow(tensor: &Tensor, dtype: DType) -> Result<Narrowed> {
    let limit = largest(dtype);
    let code = |x: f32| if dtype == DType::F16 { half::f16::from_f32(x).to_bits() } else { half::bf16::from_f32(x).to_bits() };
    let (mut beyond, mut worst, mut vanished) = (0, 0f32, 0);
    let mut one = |x: &f32| {
        if x.is_finite() && x.abs() > limit {
            beyond += 1;
            worst = if x.abs() > worst.abs() { *x } else { worst };
            return code(limit.copysign(*x));
        }
        let bits = code(*x);
        vanished += (bits & 0x7fff == 0 && *x != 0.0) as usize;
        bits
    };
    let codes: Vec<u16> = tensor.to_f32()?.iter().map(&mut one).collect();
    let saturated = (beyond > 0).then_some((beyond, worst));
    Ok(Narrowed { tensor: Tensor::of(dtype, tensor.shape(), codes), saturated, vanished })
}
