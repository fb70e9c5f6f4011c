//! Fake-quantized constants: computed here once, not at every run. They are baked into the plan, or, where a caller wants to change
//! the table, given to the plan like inputs and computed anew when their quantizer changed.

use super::fake_quant::{Rows, apply, of_f32};
use super::tensors::to_tract;
use crate::error::{At, Error, Result};
use crate::graph::{AttrValue, Constant, Graph, Model, Op, Site, ValueId};
use crate::quant::{Codes, Params, QuantizerId, Scheme, Table, Timing, dequantize};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tract_onnx::prelude::{IntoTValue, TValue};

/// What a quantizer does, as it stands in a table: its scheme, and the parameters that serve it.
pub type Row = (Scheme, Option<Params>);

/// The row of `id`; parameters that follow another quantizer are that one's. Fails, by name, if it needs parameters and has none.
pub fn row(table: &Table, id: QuantizerId) -> Result<Row> {
    if id.0 as usize >= table.len() {
        return Err(Error::failed(format!("quantizer {} is not in the table", id.0)));
    }
    let q = &table[id];
    let params = match q.scheme.timing {
        Timing::Dynamic => None,
        Timing::Static => Some(table[table.root(id)].params.clone().ok_or_else(|| Error::failed(format!("quantizer {} has no parameters yet", q.name)))?),
    };
    Ok((q.scheme.clone(), params))
}

/// Whether `row` is still what the table says, without copying.
pub fn is_current(table: &Table, id: QuantizerId, row: &Row) -> bool {
    let q = &table[id];
    row.0 == q.scheme && row.1.as_ref() == if q.scheme.timing == Timing::Dynamic { None } else { table[table.root(id)].params.as_ref() }
}

/// One fake-quantized constant.
pub struct Weight {
    /// The FakeQuant's output, and its name.
    pub value: ValueId,
    pub name: String,
    pub id: QuantizerId,
    pub dtype: DType,
    pub shape: Vec<usize>,
    from: From,
    /// The last row it was computed under, and what came out.
    last: Mutex<Option<(Row, TValue)>>,
}

enum From {
    Float(Tensor),
    Codes(Codes),
}

impl Weight {
    /// What the plan reads under this row.
    pub fn tensor(&self, (scheme, params): &Row) -> Result<Tensor> {
        match &self.from {
            From::Float(x) => apply(x, scheme, params.as_ref()),
            From::Codes(codes) => {
                let params = params.as_ref().ok_or_else(|| Error::failed("its weights are codes, and codes need stored parameters"))?;
                of_f32(self.dtype, codes.0.shape(), dequantize(codes, scheme, params)?)
            }
        }
        .at(|| format!("the weight {}", self.name))
    }

    /// The constant itself where it is a single zero, or empty, as that which Pad writes: every quantizer holds zero, and the engine wants it to be
    /// constant.
    pub fn zeros(&self, table: &Table) -> Result<Option<Tensor>> {
        if self.shape.iter().product::<usize>() > 1 {
            return Ok(None);
        }
        let x = match &self.from {
            From::Float(x) => x.clone(),
            From::Codes(_) => self.tensor(&row(table, self.id)?)?,
        };
        Ok(Some(x).filter(|x| x.to_f32().is_ok_and(|v| v.iter().all(|v| *v == 0.0))))
    }

    /// The same for the plan's input, from the last run if the table has not changed.
    pub fn current(&self, table: &Table) -> Result<TValue> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((r, value)) = &*last
            && is_current(table, self.id, r)
        {
            return Ok(value.clone());
        }
        let r = row(table, self.id)?;
        let value = to_tract(&self.tensor(&r)?)?.into_tvalue();
        *last = Some((r, value.clone()));
        Ok(value)
    }
}

/// Takes the fake-quantized constants of the outermost graph out of it; their values are left without a producer.
pub fn take(model: &mut Model) -> Vec<Weight> {
    let mut weights = Vec::new();
    for node in model.graph.order().to_vec() {
        let g = &model.graph;
        let n = g.node(node);
        let (Some(id), Some(value)) = (n.quantizer(), n.output(0)) else { continue };
        let float = n.input(0).and_then(|v| g.constant(v)).map(|c| c.tensor.clone());
        let from = match (model.codes.remove(&Site::of(node)), float) {
            (Some(codes), _) => From::Codes(codes),
            (None, Some(x)) => From::Float(x),
            (None, None) => continue,
        };
        let (dtype, shape) = match &from {
            From::Float(x) => (x.dtype(), x.shape().to_vec()),
            From::Codes(c) => (g.value(value).dtype().unwrap_or(DType::F32), c.0.shape().to_vec()),
        };
        weights.push(Weight { value, name: g.value(value).name.clone(), id, dtype, shape, from, last: Mutex::new(None) });
        model.graph.remove_node(node);
    }
    weights
}

/// Constants of bodies whose codes are stored become constants there: bodies are planned by tract itself, which knows no codes. In float, those
/// that also have an input pass it through. The rows they were computed under.
pub fn bake_bodies(model: &mut Model, float: bool) -> Result<Vec<(QuantizerId, Row)>> {
    let mut baked = Vec::new();
    for site in model.codes.keys().filter(|s| !s.path.is_empty()).cloned().collect::<Vec<_>>() {
        let Some(codes) = model.codes.remove(&site) else { continue };
        let Some(body) = body_mut(&mut model.graph, &site.path) else { continue };
        let Some((id, value, only_codes)) = body.get_node(site.node).and_then(|n| Some((n.quantizer()?, n.output(0)?, n.input(0).is_none()))) else { continue };
        if float && !only_codes {
            continue;
        }
        let row = row(&model.quantizers, id)?;
        let (dtype, shape) = (body.value(value).dtype().unwrap_or(DType::F32), codes.0.shape().to_vec());
        let name = body.value(value).name.clone();
        let weight = Weight { value, name, id, dtype, shape, from: From::Codes(codes), last: Mutex::new(None) };
        body.remove_node(site.node);
        body.value_mut(value).constant = Some(weight.tensor(&row)?.into());
        baked.push((id, row));
    }
    Ok(baked)
}

/// The body that a site's path leads to.
fn body_mut<'a>(g: &'a mut Graph, path: &[(crate::graph::NodeId, std::sync::Arc<str>, u32)]) -> Option<&'a mut Graph> {
    let Some(((node, attr, index), rest)) = path.split_first() else { return Some(g) };
    g.get_node(*node)?;
    let attr = g.node_mut(*node).attrs.iter_mut().find(|a| *a.name == **attr)?;
    let body = match &mut attr.value {
        AttrValue::Graph(b) if *index == 0 => &mut **b,
        AttrValue::Graphs(b) => b.get_mut(*index as usize)?,
        _ => return None,
    };
    body_mut(body, rest)
}

/// Makes every FakeQuant pass its input through. One that has only codes gives what they stand for.
pub fn make_float(model: &mut Model) -> Result<()> {
    let table = model.quantizers.clone();
    let mut only_codes = BTreeMap::new();
    for (node, n) in model.graph.nodes() {
        if let (Op::FakeQuant, None, Some(c)) = (n.op, n.input(0), model.codes.get(&Site::of(node))) {
            only_codes.insert(node, c.clone());
        }
    }
    model.codes = only_codes.into_iter().map(|(n, c)| (Site::of(n), c)).collect();
    let sites: Vec<Site> = model.codes.keys().cloned().collect();
    pass_through(&mut model.graph, &|node| sites.iter().any(|s| s.node == node));
    for w in take(model) {
        let tensor = w.tensor(&row(&table, w.id)?)?;
        model.graph.value_mut(w.value).constant = Some(Constant::from(tensor));
    }
    Ok(())
}

fn pass_through(g: &mut Graph, spare: &dyn Fn(crate::graph::NodeId) -> bool) {
    for id in g.order().to_vec() {
        let n = g.node_mut(id);
        if n.op == Op::FakeQuant && !spare(id) {
            n.op = Op::Identity;
            n.op_type = Op::Identity.spelling().1.into();
            n.domain = "".into();
            n.attrs.clear();
        }
        n.bodies_mut().for_each(|b| pass_through(b, &|_| false));
    }
}

/// The quantizers that FakeQuant nodes of the graph and its bodies still read.
pub fn live(g: &Graph) -> Vec<QuantizerId> {
    let mut ids: Vec<QuantizerId> = g.nodes().flat_map(|(_, n)| n.quantizer().into_iter().chain(n.bodies().flat_map(|(_, b)| live(b)))).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The rows of `ids` that a run binds: `last`, if they are still current.
pub fn rows(table: &Table, ids: &[QuantizerId], last: &Rows) -> Result<Option<Rows>> {
    let current = |id: &QuantizerId| (id.0 as usize) < table.len() && last.get(&id.0).is_some_and(|r| is_current(table, *id, r));
    if ids.iter().all(current) {
        return Ok(None);
    }
    ids.iter().map(|&id| Ok((id.0, row(table, id)?))).collect::<Result<Rows>>().map(Some)
}
