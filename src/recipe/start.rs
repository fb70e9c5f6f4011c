//! What a conversion starts from: the model as the recipe wants its inputs, and the samples.

use super::Recipe;
use crate::data::{self, DataSettings, Dataset, Fill, InputInfo, InputSettings, Split};
use crate::engine;
use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Model, Type, ValueId, shape_text, specialize};
use crate::onnx;
use crate::target::Profile;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Samples, and who takes which.
pub struct Samples {
    pub data: Dataset,
    pub calibration: Vec<usize>,
    /// What the result is judged on.
    pub judging: Option<Dataset>,
    pub validation: Vec<usize>,
    pub remarks: Vec<String>,
}

/// The inputs that a user gives: those that are no initializers.
pub fn inputs(g: &Graph) -> Vec<ValueId> {
    g.inputs.iter().copied().filter(|v| g.value(*v).constant.is_none()).collect()
}

/// What the model says of its inputs.
pub fn declared_inputs(model: &Model) -> Result<Vec<InputInfo>> {
    let g = &model.graph;
    let info = |v: ValueId| {
        let value = g.value(v);
        let dtype = value.dtype().ok_or_else(|| Error::usage(format!("input {} is not a tensor of a declared type; only tensors can be fed", value.name)))?;
        let shape = match &value.ty {
            Type::Tensor { shape, .. } => shape.clone(),
            _ => None,
        };
        Ok(InputInfo { name: value.name.clone(), dtype, shape })
    };
    inputs(g).into_iter().map(info).collect()
}

/// The same, with the recipe's shapes on top.
fn input_infos(model: &Model, recipe: &Recipe) -> Result<Vec<InputInfo>> {
    let mut infos = declared_inputs(model)?;
    for info in &mut infos {
        if let Some(shape) = recipe.inputs.get(&info.name).and_then(|i| i.shape.as_ref()) {
            info.shape = Some(shape.iter().map(|d| Dim::Known(*d)).collect());
        }
    }
    Ok(infos)
}

/// Freezes the dimensions that `--fix-dim` and `inputs.X: { fix: true }` name, throughout the model.
pub fn fix_dims(model: &mut Model, recipe: &Recipe) -> Result<()> {
    let mut sizes: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for (name, n) in &recipe.fix_dims {
        if !symbols(&model.graph).contains(name.as_str()) {
            let known: Vec<&str> = symbols(&model.graph).into_iter().collect();
            let known = if known.is_empty() { "its inputs have none".to_string() } else { format!("its inputs have {}", known.join(", ")) };
            return Err(Error::usage(format!("--fix-dim {name}={n}: the model has no symbolic dimension {name}; {known}")));
        }
        sizes.insert(name.as_str().into(), *n);
    }
    for (name, input) in &recipe.inputs {
        let g = &model.graph;
        let id = g.find_value(name).filter(|v| inputs(g).contains(v));
        let id = id.ok_or_else(|| {
            let known: Vec<&str> = inputs(g).iter().map(|v| g.value(*v).name.as_str()).collect();
            Error::usage(format!("inputs.{name}: the model has no such input; it has {}", known.join(", ")))
        })?;
        let Some(asked) = &input.shape else { continue };
        let Type::Tensor { shape, dtype } = g.value(id).ty.clone() else { continue };
        let Some(declared) = shape else {
            if input.fix {
                let shape = Some(asked.iter().map(|d| Dim::Known(*d)).collect());
                model.graph.value_mut(id).ty = Type::Tensor { dtype, shape };
            }
            continue;
        };
        let fits = declared.len() == asked.len() && declared.iter().zip(asked).all(|(d, a)| !matches!(d, Dim::Known(n) if n != a));
        if !fits {
            return Err(Error::usage(format!("inputs.{name}.shape: {asked:?} does not fit the shape that the model declares, {}", shape_text(&declared))));
        }
        if !input.fix {
            continue;
        }
        for (d, a) in declared.iter().zip(asked) {
            if let Dim::Symbol(s) = d
                && is_name(s)
                && *sizes.entry(s.clone()).or_insert(*a) != *a
            {
                return Err(Error::usage(format!("inputs.{name}.shape: dimension {s} is given two sizes, {} and {a}", sizes[s])));
            }
        }
        model.graph.value_mut(id).ty = Type::Tensor { dtype, shape: Some(asked.iter().map(|d| Dim::Known(*d)).collect()) };
    }
    if !sizes.is_empty() {
        substitute(&mut model.graph, &sizes);
    }
    Ok(())
}

/// Lowers the opset to what the target reads, and freezes symbolic batches where it wants numbers; refuses what it cannot read whatever becomes of the
/// model. `lifted`: Q/DQ will be taken off and written anew. Returns what was done.
pub fn suit(model: &mut Model, target: &Profile, lifted: bool) -> Result<Vec<String>> {
    let name = &target.name;
    let opset = model.opset("").unwrap_or(0);
    let mut said = Vec::new();
    if let Some(most) = target.opset.filter(|most| *most < opset) {
        onnx::lower_opset(model, most, lifted)
            .map_err(|e| Error::usage(format!("it has opset {opset}, and target {name} reads at most {most}: {e}; export it again with a lower opset")))?;
        said.push(format!("opset {opset} is written as {most}, the last that target {name} reads"));
    }
    let ir = model.ir_version;
    if let Some(most) = target.ir.filter(|most| *most < ir) {
        return Err(Error::usage(format!("it has IR version {ir}, and target {name} reads at most {most}; export it again with a lower opset")));
    }
    if !target.static_shapes {
        return Ok(said);
    }
    let batch = target.batch.unwrap_or(1);
    let mut sizes: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for v in inputs(&model.graph) {
        let Type::Tensor { shape: Some(shape), .. } = &mut model.graph.value_mut(v).ty else { continue };
        match shape.first_mut() {
            Some(Dim::Symbol(s)) if is_name(s) => drop(sizes.insert(s.clone(), batch)),
            Some(d @ (Dim::Unknown | Dim::Symbol(_))) => *d = Dim::Known(batch),
            _ => {}
        }
    }
    said.extend(sizes.keys().map(|s| format!("dimension {s} is written as {batch}: target {name} wants numbers (--fix-dim {s}=N for another)")));
    substitute(&mut model.graph, &sizes);
    for v in inputs(&model.graph) {
        let value = model.graph.value(v);
        let Type::Tensor { shape: Some(shape), .. } = &value.ty else { continue };
        let remedy = match shape.iter().find(|d| !matches!(d, Dim::Known(_))) {
            // Those of all inputs at once.
            Some(Dim::Symbol(s)) if is_name(s) => {
                format!("say {}", symbols(&model.graph).iter().map(|s| format!("--fix-dim {s}=N")).collect::<Vec<_>>().join(" "))
            }
            Some(_) => format!("say its `shape` with `fix: true` under inputs.{} of the recipe", value.name),
            None => continue,
        };
        return Err(Error::usage(format!("input {} has shape {}, and target {name} wants numbers: {remedy}", value.name, shape_text(shape))));
    }
    Ok(said)
}

/// Whether a symbol is one dimension's own: Paddle's exporter writes `?` for every size that it does not know.
fn is_name(symbol: &str) -> bool {
    symbol != "?"
}

fn symbols(g: &Graph) -> std::collections::BTreeSet<&str> {
    let shapes = inputs(g).into_iter().filter_map(|v| match &g.value(v).ty {
        Type::Tensor { shape: Some(s), .. } => Some(s),
        _ => None,
    });
    shapes.flatten().filter_map(|d| if let Dim::Symbol(s) = d { Some(&**s).filter(|s| is_name(s)) } else { None }).collect()
}

/// Symbolic dimensions become numbers in every declaration, bodies included.
fn substitute(g: &mut Graph, sizes: &BTreeMap<Arc<str>, usize>) {
    let values: Vec<ValueId> = g.values().map(|(v, _)| v).collect();
    for v in values {
        if let Type::Tensor { shape: Some(shape), .. } = &mut g.value_mut(v).ty {
            for d in shape {
                if let Dim::Symbol(s) = d
                    && let Some(n) = sizes.get(s)
                {
                    *d = Dim::Known(*n);
                }
            }
        }
    }
    for node in g.order().to_vec() {
        g.node_mut(node).bodies_mut().for_each(|body| substitute(body, sizes));
    }
}

/// What the recipe says of the data.
pub fn settings(recipe: &Recipe) -> DataSettings {
    let of = |i: &super::InputRecipe| InputSettings {
        from: i.from.clone(),
        fill: i.fill.or(i.tie.is_some().then_some(Fill::Zeros)),
        preprocess: i.preprocess.clone(),
    };
    DataSettings { inputs: recipe.inputs.iter().map(|(name, i)| (name.clone(), of(i))).collect(), seed: recipe.seed }
}

/// Opens the samples and divides them.
pub fn open_samples(model: &Model, recipe: &Recipe, data: &str, validate_data: Option<&str>) -> Result<Samples> {
    let infos = input_infos(model, recipe)?;
    let settings = settings(recipe);
    let data = Dataset::open(data, &infos, &settings)?;
    let shuffle = recipe.data.shuffle.then_some(recipe.seed);
    let Split { mut calibration, mut validation, mut remarks } = data::split(data.len(), recipe.data.samples, recipe.data.validate, shuffle);
    remarks.extend(data.remarks().iter().cloned());
    let judging = validate_data.map(|spec| Dataset::open(spec, &infos, &settings)).transpose()?;
    if let Some(judging) = &judging {
        // All of the data calibrates; what was said of its halves no longer holds.
        let alone = data::split(data.len(), recipe.data.samples, Some(0), shuffle);
        calibration = alone.calibration;
        remarks = alone.remarks;
        remarks.extend(data.remarks().iter().chain(judging.remarks()).cloned());
        validation = (0..judging.len().min(recipe.data.validate.unwrap_or(usize::MAX))).collect();
    }
    Ok(Samples { data, calibration, judging, validation, remarks })
}

impl Samples {
    /// The samples that judge.
    pub fn judges(&self) -> &Dataset {
        self.judging.as_ref().unwrap_or(&self.data)
    }

    pub fn is_random(&self) -> bool {
        self.data.is_random() || self.judging.as_ref().is_some_and(Dataset::is_random)
    }
}

/// Names, in one error, every node that the engine cannot run on the first sample's shapes.
pub fn check_engine(model: &Model, samples: &Samples) -> Result<()> {
    let sample = samples.data.sample(samples.calibration.first().copied().unwrap_or(0))?;
    engine::check_supported(&specialize(model.clone(), &engine::shapes_of(&sample))?)
}
