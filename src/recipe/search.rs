//! `requant search`: the fewest layers raised to 16 bits, or float, so that what is lost stays below a limit.
//!
//! Layers are ranked by the noise that each causes alone, measured under tables, in the engine; [`allocate::fewest`] searches along that ranking. Each of its
//! decisions rests on the loss of a written file, and the recipe is converted once more before it is handed over.

use super::driver::{self, Request};
use super::output;
use super::shape::Tree;
use super::{eval, resolve};
use crate::allocate::{self, Fewest, Latencies, Outcome, Raised, Unit};
use crate::engine::{Trial, shapes_of};
use crate::error::{At, Error, Result};
use crate::graph::{Model, NodeId};
use crate::interrupt;
use crate::pass::{Progress, Silent};
use crate::report::Report;
use crate::target::{self, Select};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What counts as cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Minimize {
    /// The number of layers.
    #[default]
    Layers,
    /// Bytes of weights.
    Size,
    /// Multiply-adds times the bits of both operands.
    BitOps,
    /// Times of a table.
    Latency,
}

/// What one call of `search` was asked.
#[derive(Debug, Clone, Default)]
pub struct SearchRequest {
    /// Model, data, labels, recipe and threads; where outputs would go is not looked at.
    pub convert: Request,
    /// Largest loss.
    pub max_drop: f64,
    pub minimize: Minimize,
    /// Times of layers, for `Minimize::Latency`.
    pub latency_table: Option<PathBuf>,
    /// Where the recipe goes; default: `MODEL.<recipe>.search.yaml` beside the model.
    pub output: Option<PathBuf>,
    /// Whether a file that is no recipe of `search` may be replaced.
    pub force: bool,
    /// Conversions at most.
    pub tries: usize,
    /// Samples to rank by.
    pub samples: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The overrides, as YAML; `[]` where none is needed.
    pub overrides: String,
    pub recipe: PathBuf,
    /// What is lost without and with them, and of what.
    pub before: f64,
    pub drop: f64,
    pub measure: &'static str,
    /// Layers raised, and those that could be.
    pub raised: usize,
    pub units: usize,
    /// What they cost, beside the recipe without them.
    pub cost: f64,
    pub conversions: usize,
}

/// The first line of every recipe that `search` writes.
const HEAD: &str = "# Found by requant search";

/// Searches as asked.
pub fn search(request: &SearchRequest, progress: &dyn Progress) -> Result<Found> {
    if request.convert.data.is_none() {
        return Err(Error::usage("search measures on sample inputs: give --data"));
    }
    if !request.max_drop.is_finite() || request.max_drop < 0.0 {
        return Err(Error::usage(format!("--max-drop {}: a number of at least 0 is wanted", request.max_drop)));
    }
    request.convert.eval.as_deref().map_or(Ok(()), eval::check)?;
    let name = resolve(&request.convert.sources)?.name;
    let path = request.output.clone().unwrap_or_else(|| request.convert.model.with_extension(format!("{name}.search.yaml")));
    check_destination(&path, request.force)?;
    let times = match (request.minimize, &request.latency_table) {
        (Minimize::Latency, None) => return Err(Error::usage("--minimize latency: give --latency-table FILE, the times of layers")),
        (Minimize::Latency, Some(path)) => Some(super::steps::latencies(path).at(|| format!("--latency-table {}", path.display()))?),
        _ => None,
    };
    let space = driver::fitted(&request.convert, progress, |work, samples| {
        if samples.is_random() && request.convert.eval.is_none() {
            return Err(Error::usage("search on random inputs would mean nothing: give real samples, or --eval COMMAND"));
        }
        let few = samples.calibration.iter().take(request.samples).map(|&i| samples.data.sample(i)).collect::<Result<Vec<_>>>()?;
        let shapes = few.first().map(shapes_of).unwrap_or_default();
        let model = &work.model;
        let mut units = allocate::units(model, &work.recipe.target, &shapes);
        let overrides = |u: &Unit| overrides(model, work.prepared.as_ref().unwrap_or(model), u);
        units.retain(|u| overrides(u).is_some());
        let trial = Trial::new(model, few, work.threads)?;
        let noises = allocate::noises(model, &units, &trial, progress)?;
        let overrides = units.iter().filter_map(overrides).collect();
        Ok(Space { model: model.clone(), units, overrides, noises, minimize: request.minimize, times })
    })?;
    let folder = output::temporary_folder(&path)?;
    let mut loop_ = Loop { request, space: &space, folder: folder.path(), known: BTreeMap::new(), reference: None, measure: "", progress };
    let chosen = loop_.run()?;
    let (before, (measured, resolved)) = (loop_.known[&Raised::new()].0, loop_.known[&chosen].clone());

    // The recipe as it will be read.
    let listed: Vec<Tree> = chosen.iter().flat_map(|i| space.overrides[*i].clone()).collect();
    let text = recipe_text(request, &loop_, &path, chosen.len(), (before, measured), &resolved);
    let trial = folder.path().join(path.file_name().unwrap_or_default());
    output::write_text(&trial, &text)?;
    let mut last = request.convert.clone();
    last.sources = super::Sources { recipe: Some(trial.display().to_string()), fix_dims: last.sources.fix_dims.clone(), ..Default::default() };
    let (drop, _) = loop_.converted(&last)?;
    if drop > request.max_drop {
        return Err(Error::failed(format!(
            "the recipe that was found loses {drop:.4} when it is read again, and {measured:.4} when it was found; nothing was written"
        )));
    }
    output::write_text(&path, &text)?;
    Ok(Found {
        overrides: if listed.is_empty() {
            "overrides: []\n".into()
        } else {
            format!("overrides:{}\n", listed.iter().map(|t| format!("\n  - {}", t.show())).collect::<String>())
        },
        recipe: path,
        before,
        drop,
        measure: loop_.measure,
        raised: chosen.len(),
        units: space.units.len(),
        cost: space.cost(&chosen)?,
        conversions: loop_.known.len() + 1,
    })
}

fn check_destination(path: &Path, force: bool) -> Result<()> {
    output::check_text(path)?;
    let own = |text: String| text.starts_with(HEAD);
    if !force && path.exists() && !std::fs::read_to_string(path).is_ok_and(own) {
        return Err(Error::usage(format!("{} exists and is no recipe that search wrote; --force replaces it", path.display())));
    }
    Ok(())
}

/// What may be raised, how, what that takes off, and what it costs.
struct Space {
    model: Model,
    units: Vec<Unit>,
    overrides: Vec<Vec<Tree>>,
    noises: Vec<f64>,
    minimize: Minimize,
    times: Option<Latencies>,
}

impl Space {
    /// The cost of a choice above that of none.
    fn cost(&self, raised: &Raised) -> Result<f64> {
        let sum = |of: &dyn Fn(&Unit) -> f64| raised.iter().map(|i| of(&self.units[*i])).sum::<f64>();
        Ok(match self.minimize {
            Minimize::Layers => raised.len() as f64,
            Minimize::Size => sum(&|u| allocate::added_bytes(&self.model, u)),
            Minimize::BitOps => {
                allocate::bit_operations_of(&self.model, &self.units, raised) - allocate::bit_operations_of(&self.model, &self.units, &Raised::new())
            }
            Minimize::Latency => {
                let mut all = 0.0;
                for unit in raised.iter().map(|i| &self.units[*i]) {
                    let Some(layer) = &unit.layer else { continue };
                    let time = |bits: u8| {
                        let found = self.times.as_ref().and_then(|t| t.get(&layer.name)?.get(&bits).copied());
                        found.ok_or_else(|| Error::usage(format!("--latency-table: layer {} has no time for {bits} bits", layer.name)))
                    };
                    all += time(if unit.sixteen { 16 } else { 32 })? - time(layer.bits(&self.model))?;
                }
                all
            }
        })
    }
}

/// Conversions, and what each lost.
struct Loop<'a> {
    request: &'a SearchRequest,
    space: &'a Space,
    folder: &'a Path,
    known: BTreeMap<Raised, (f64, String)>,
    /// What the command prints for the float model.
    reference: Option<f64>,
    measure: &'static str,
    progress: &'a dyn Progress,
}

impl Loop<'_> {
    fn run(&mut self) -> Result<Raised> {
        let (space, request, progress) = (self.space, self.request, self.progress);
        let (n, most) = (space.units.len(), request.max_drop);
        // Whatever lacks in the table of times is told before any work.
        (0..n).try_for_each(|i| space.cost(&Raised::from([i])).map(drop))?;
        let cost = |set: &Raised| space.cost(set).unwrap_or(f64::INFINITY);
        let how = Fewest { noises: &space.noises, cost: &cost, most, tries: request.tries };
        let started = std::time::Instant::now();
        let found = allocate::fewest(&how, |set| {
            let drop = self.drop(set)?;
            if set.is_empty() && drop > most {
                let seconds = started.elapsed().as_secs_f64();
                progress.say(&format!("{n} layers can be raised; a conversion takes some {seconds:.0} s, and about {} are made at most", request.tries));
            }
            Ok(drop)
        })?;
        match found {
            Outcome::Met(set) => Ok(set),
            Outcome::Missed(best) => Err(Error::failed(format!(
                "with all {n} layers raised the {} is still {best:.4}, above --max-drop {most}: nothing was written; the loss lies elsewhere, see `requant convert`",
                self.measure
            ))),
        }
    }

    /// What the model loses where these are raised.
    fn drop(&mut self, raised: &Raised) -> Result<f64> {
        let mut request = self.request.convert.clone();
        request.sources.set.extend(raised.iter().flat_map(|i| &self.space.overrides[*i]).map(|t| format!("overrides+={}", t.show())));
        let (drop, resolved) = self.converted(&request)?;
        self.progress.say(&format!("{} of {} layers raised: {} {drop:.4}", raised.len(), self.space.units.len(), self.measure));
        self.known.insert(raised.clone(), (drop, resolved));
        Ok(drop)
    }

    /// Converts into the temporary folder; what is lost, and the resolved recipe.
    fn converted(&mut self, request: &Request) -> Result<(f64, String)> {
        interrupt::check()?;
        let out = self.folder.join("out.onnx");
        let mut request =
            Request { output: Some(out.clone()), report: Some(self.folder.join("report.json")), html: None, keep_failed: true, force: true, ..request.clone() };
        let command = request.eval.take();
        let outcome = driver::convert(&request, &Silent)?;
        let drop = match command {
            Some(command) => {
                self.measure = "loss of the command's number";
                let reference = match self.reference {
                    Some(r) => r,
                    None => eval::run(&command, &request.model)?,
                };
                self.reference = Some(reference);
                reference - eval::run(&command, &out)?
            }
            None => {
                let (measure, drop) = drop_of(&outcome.report)?;
                self.measure = measure;
                drop
            }
        };
        if drop.is_nan() {
            return Err(Error::failed("what the converted model loses is no number; its outputs or the float model's are NaN on the samples"));
        }
        Ok((drop, outcome.report.recipe.resolved))
    }
}

/// What a report says was lost, the worst output counting: accuracy against labels; where there are none, samples whose class changed; for outputs that are
/// no classes, noise over signal.
fn drop_of(report: &Report) -> Result<(&'static str, f64)> {
    let worst =
        |of: &dyn Fn(&crate::report::OutputRow) -> Option<f64>| report.outputs.iter().filter_map(of).reduce(|a, b| if b.is_nan() || b > a { b } else { a });
    if let Some(drop) = worst(&|o| o.accuracy.map(|a| a.reference - a.converted)) {
        return Ok(("loss of accuracy", drop));
    }
    if let Some(drop) = worst(&|o| o.agreement.map(|a| 1.0 - a)) {
        return Ok(("share of samples whose class changed", drop));
    }
    if let Some(drop) = worst(&|o| o.equal.map(|e| 1.0 - e).or(Some(10f64.powf(-o.sqnr_db.0 / 10.0)))) {
        return Ok(("noise over signal", drop));
    }
    let why = report.unvalidated_because.clone().unwrap_or_else(|| "it has no outputs".into());
    Err(Error::failed(format!("the converted model cannot be judged: {why}")))
}

/// The overrides that raise a unit; `None` where its names select something else too.
fn overrides(model: &Model, prepared: &Model, unit: &Unit) -> Option<Vec<Tree>> {
    let text = |t: &str| Tree::Text(t.to_string());
    let map = |entries: Vec<(&str, Tree)>| Tree::Map(entries.into_iter().map(|(k, v)| (k.to_string(), v)).collect());
    let sixteen = || map(vec![("bits", Tree::Int(16))]);
    let mut all = Vec::new();
    if unit.layer.is_some() || !unit.sixteen {
        for &node in &unit.nodes {
            let pattern = target::literal(&model.graph.node(node).name);
            if !selects(prepared, &pattern, node) {
                return None;
            }
            let wish = if unit.sixteen { ("weights", sixteen()) } else { ("keep", text("float")) };
            all.push(map(vec![("nodes", text(&pattern)), wish]));
        }
    }
    for name in unit.tensors.iter().filter(|_| unit.sixteen) {
        if prepared.graph.find_value(name).is_some() {
            all.push(map(vec![("tensors", text(&target::literal(name))), ("activations", sixteen())]));
        }
    }
    (!all.is_empty()).then_some(all)
}

fn selects(prepared: &Model, pattern: &str, node: NodeId) -> bool {
    let select = Select { nodes: Some(pattern.to_string()), ..Select::default() };
    select.nodes(prepared).is_ok_and(|found| found.len() == 1 && found.contains(&node))
}

/// The recipe that does all this by itself.
fn recipe_text(request: &SearchRequest, found: &Loop, path: &Path, raised: usize, (before, drop): (f64, f64), resolved: &str) -> String {
    let model = request.convert.model.display();
    let dims: String = request.convert.sources.fix_dims.iter().map(|d| format!(" --fix-dim {d}")).collect();
    format!(
        "{HEAD} {model} --max-drop {}: {} of {} layers raised take the {} from {before:.4} to {drop:.4}.\n# requant convert {model} -r {} --data {}{dims}\n{}",
        request.max_drop,
        raised,
        found.space.units.len(),
        found.measure,
        path.display(),
        request.convert.data.as_deref().unwrap_or_default(),
        resolved
    )
}
