//! A piece of a graph between values, as a function that records itself on a tape.

use super::ops::{self, Kernel};
use super::tape::{Tape, Var};
use crate::engine::{Given, cut, cut_at};
use crate::error::{At, Error, Result};
use crate::graph::{Graph, InputShapes, Model, Node, Op, Site, ValueId, infer, specialize};
use crate::quant::{QuantizerId, dequantize, fake_quantize};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Programs kept at once.
const KEPT: usize = 8;

/// What takes the place of a quantizer's scales and zero points.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    /// One element a block, or one for all.
    pub scale: Var,
    /// The same, as real numbers; needed where the quantizer has zero points.
    pub zero: Option<Var>,
}

/// A piece of a model, with its constants and quantizers as they were when it was cut out. Threads share it.
pub struct Segment {
    /// The piece as a model of its own, under the model's ids.
    part: Model,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    programs: Mutex<Vec<(Key, Arc<Program>)>>,
}

/// What a program depends on: the inputs' shapes, and what is overridden, with shapes.
#[derive(PartialEq, Clone)]
struct Key {
    inputs: Vec<Vec<usize>>,
    values: Vec<(ValueId, Vec<usize>)>,
    quantizers: Vec<QuantizerId>,
}

/// A segment for fixed shapes: every shape is a number, and what depends on constants alone is computed.
struct Program {
    constants: Vec<(ValueId, Arc<Vec<f32>>, Vec<usize>)>,
    steps: Vec<Step>,
}

struct Step {
    name: String,
    run: Run,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
}

enum Run {
    Kernel(Kernel),
    /// Under a quantizer of the table, by its root.
    Quantizer(QuantizerId),
}

impl Segment {
    /// The nodes between `inputs`, values given at each run, and `outputs`, values wanted. Values of integers are given as float32.
    ///
    /// # Errors
    /// Names a node that is not differentiable here, and its op, so that callers decline; a value that is neither given nor made from what is. Where
    /// shapes are not declared, [`Segment::run`] finds the rest.
    pub fn of(model: &Model, inputs: &[ValueId], outputs: &[ValueId]) -> Result<Segment> {
        let part = cut_at(model, inputs, outputs)?;
        let segment = Segment { part, inputs: inputs.to_vec(), outputs: outputs.to_vec(), programs: Mutex::default() };
        let g = &segment.part.graph;
        let shapes: Option<Vec<Vec<usize>>> = inputs.iter().map(|v| g.value(*v).known_shape()).collect();
        match shapes {
            Some(inputs) => drop(segment.program(Key { inputs, values: vec![], quantizers: vec![] })?),
            None => segment.check()?,
        }
        Ok(segment)
    }

    /// Values that the segment is given, in their order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Refuses nodes that no shape would make differentiable.
    fn check(&self) -> Result<()> {
        let (g, known) = (&self.part.graph, infer(&self.part, &InputShapes::new()));
        for (_, node) in g.nodes() {
            // Of shapes and what is computed of them only constants will be left.
            let exact = |v: &ValueId| known.get(*v).constant.is_some() || known.get(*v).dtype.is_some_and(|t| !t.is_float());
            let folds = node.outputs().iter().flatten().all(exact) || node.op == Op::ConstantOfShape;
            if node.op != Op::FakeQuant && !folds && !ops::is_known(node) {
                return Err(refused(node, "is not differentiated"));
            }
        }
        Ok(())
    }

    /// Records the segment on `tape`; the values wanted, in their order. `values` takes the place of values of the segment (a constant, or what a
    /// FakeQuant makes of it); `quantizers`, by their roots, that of scales and zero points (codes
    /// under them are set aside: what they were rounded from is rounded anew).
    ///
    /// # Errors
    /// As [`Segment::of`]; shapes that do not fit the graph.
    pub fn run(&self, tape: &mut Tape, inputs: &[Var], values: &BTreeMap<ValueId, Var>, quantizers: &BTreeMap<QuantizerId, Scales>) -> Result<Vec<Var>> {
        let shape = |v: &Var| tape.shape(*v).to_vec();
        let key = Key {
            inputs: inputs.iter().map(shape).collect(),
            values: values.iter().map(|(id, v)| (*id, shape(v))).collect(),
            quantizers: quantizers.keys().copied().collect(),
        };
        let program = self.program(key)?;
        let mut vars: BTreeMap<ValueId, Var> = self.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        vars.extend(values);
        program.record(tape, &self.part, &mut vars, quantizers)?;
        let missing = |v: &ValueId| Error::failed(format!("the segment does not make {}", self.part.graph.value(*v).name));
        self.outputs.iter().map(|v| vars.get(v).copied().ok_or_else(|| missing(v))).collect()
    }

    /// The program for these shapes: built when first met; the few that were asked for last are kept.
    fn program(&self, key: Key) -> Result<Arc<Program>> {
        let mut kept = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(k, _)| *k == key) {
            let entry = kept.remove(at);
            let program = entry.1.clone();
            kept.push(entry);
            return Ok(program);
        }
        let program = Arc::new(self.build(&key)?);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, program.clone()));
        Ok(program)
    }

    fn build(&self, key: &Key) -> Result<Program> {
        let shapes = self.inputs.iter().zip(&key.inputs).chain(key.values.iter().map(|(v, s)| (v, s)));
        let mut seen = BTreeSet::new();
        let given: Vec<Given> = shapes
            .filter(|(v, _)| seen.insert(**v))
            .map(|(v, s)| Given { value: *v, dtype: self.part.graph.value(*v).dtype().unwrap_or(DType::F32), shape: s.clone() })
            .collect();
        let part = cut(&self.part, &given, &self.outputs)?;
        let fixed = given.iter().map(|i| (part.graph.value(i.value).name.clone(), i.shape.clone())).collect();
        let mut part = specialize(part, &fixed)?;
        bake(&mut part, &key.quantizers)?;
        let g = &part.graph;
        let mut tape = Tape::new();
        let mut constants: BTreeMap<ValueId, Var> = BTreeMap::new();
        for (v, value) in g.values().filter(|(v, _)| g.constant(*v).is_some()) {
            let c = g.constant(v).expect("filtered");
            if (value.uses().iter().any(|p| g.get_node(p.node).is_some()) || g.is_output(v))
                && let Ok(values) = c.tensor.to_f32()
            {
                constants.insert(v, tape.constant(values.into_owned(), c.tensor.shape()));
            }
        }
        let mut steps = Vec::new();
        for (_, node) in g.nodes() {
            let (run, free) = match node.quantizer() {
                Some(q) => (Run::Quantizer(part.quantizers.root(q)), true),
                None => {
                    real(g, node)?;
                    (Run::Kernel(ops::kernel(g, node, part.opset("").unwrap_or(0)).map_err(|why| refused(node, &why))?), false)
                }
            };
            let step = Step { name: node.name.clone(), run, inputs: node.inputs().to_vec(), outputs: node.outputs().to_vec() };
            if !free && step.inputs.iter().flatten().all(|v| constants.contains_key(v)) {
                step.record(&mut tape, &part, &mut constants, &BTreeMap::new())?;
            } else {
                steps.push(step);
            }
        }
        let read: BTreeSet<ValueId> = steps.iter().flat_map(|s| s.inputs.iter().flatten().copied()).chain(self.outputs.iter().copied()).collect();
        let constants = constants.into_iter().filter(|(v, _)| read.contains(v)).map(|(v, var)| (v, tape.shared(var), tape.shape(var).to_vec())).collect();
        Ok(Program { constants, steps })
    }
}

/// Makes constants of those that are fake-quantized, under quantizers other than `open`.
fn bake(part: &mut Model, open: &[QuantizerId]) -> Result<()> {
    for id in part.graph.order().to_vec() {
        let node = part.graph.node(id);
        let (Some(q), Some(y)) = (node.quantizer().map(|q| part.quantizers.root(q)), node.output(0)) else { continue };
        let (row, codes) = (&part.quantizers[q], part.codes.get(&Site::of(id)));
        let constant = node.input(0).and_then(|v| part.graph.constant(v));
        let Some(shape) = codes.map(|c| c.0.shape()).or(constant.map(|c| c.tensor.shape())).filter(|_| !open.contains(&q)).map(<[usize]>::to_vec) else {
            continue;
        };
        let values = match (codes, constant, &row.params) {
            (Some(codes), _, Some(params)) => dequantize(codes, &row.scheme, params),
            (None, Some(c), params) => c.tensor.to_f32().and_then(|x| {
                let mut x = x.into_owned();
                fake_quantize(&mut x, &shape, &row.scheme, params.as_ref())?;
                Ok(x)
            }),
            _ => Err(Error::failed("has codes but no scale")),
        };
        let values = values.at(|| &row.name)?;
        part.graph.remove_node(id);
        part.graph.value_mut(y).constant = Some(Tensor::of_f32(&shape, values).into());
    }
    Ok(())
}

impl Program {
    fn record(&self, tape: &mut Tape, part: &Model, vars: &mut BTreeMap<ValueId, Var>, quantizers: &BTreeMap<QuantizerId, Scales>) -> Result<()> {
        for (v, values, shape) in &self.constants {
            let var = tape.constant(values.clone(), shape);
            vars.entry(*v).or_insert(var);
        }
        self.steps.iter().try_for_each(|step| step.record(tape, part, vars, quantizers))
    }
}

impl Step {
    fn record(&self, tape: &mut Tape, part: &Model, vars: &mut BTreeMap<ValueId, Var>, quantizers: &BTreeMap<QuantizerId, Scales>) -> Result<()> {
        let inputs: Vec<Option<Var>> = self.inputs.iter().map(|v| v.and_then(|v| vars.get(&v).copied())).collect();
        let made = match &self.run {
            Run::Kernel(kernel) => kernel(tape, &inputs),
            Run::Quantizer(id) => {
                let row = &part.quantizers[*id];
                let x = inputs.first().copied().flatten().ok_or_else(|| Error::failed("has no input to quantize")).at(|| &row.name)?;
                let made = match (quantizers.get(id), &row.params) {
                    (Some(s), Some(params)) => tape.fake_quant(x, s.scale, s.zero, &row.scheme, params),
                    (_, params) => tape.fake_quant_under(x, &row.scheme, params.as_ref()),
                };
                made.map(|v| vec![v])
            }
        };
        for (v, var) in self.outputs.iter().zip(made.at(|| &self.name)?) {
            if let Some(v) = v {
                vars.insert(*v, var);
            }
        }
        Ok(())
    }
}

fn refused(node: &Node, why: &str) -> Error {
    let name = if node.name.is_empty() { "a node without a name" } else { &node.name };
    Error::failed(format!("{name}: {} {why}", node.op_type))
}

/// Refuses a node that makes anything but float32; integers may be moved.
fn real(g: &Graph, node: &Node) -> Result<()> {
    for v in node.outputs().iter().flatten() {
        let ty = g.value(*v).dtype();
        let unused = g.value(*v).uses().is_empty() && !g.is_output(*v);
        if ty.is_some_and(|t| t != DType::F32) && !unused && !ops::moves(node.op) {
            return Err(refused(node, &format!("of {} is not differentiated", ty.expect("checked above"))));
        }
    }
    Ok(())
}

/// The declared shape of a value in a specialised graph.
pub(super) fn shape_of(g: &Graph, v: Option<ValueId>) -> Option<Vec<usize>> {
    g.value(v?).known_shape()
}
