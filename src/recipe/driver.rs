//! Carries a recipe out: read, run the steps in order, write, read back, judge, report.

use super::again;
use super::eval;
use super::lowering;
use super::output::{self, Pending, VERSION_KEY};
use super::ranges;
use super::resolve::IMPLIED;
use super::start::{self, Samples};
use super::steps::{self, Work};
use super::tail;
use super::tie::tie;
use super::{Recipe, Sources, Step, resolve};
use crate::data::{self, Dataset};
use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::lift::{lift, real_interface, wide_floats};
use crate::lower;
use crate::note::{NoteKind, Notes};
use crate::onnx::{self, ReadOptions};
use crate::pass::{Progress, State};
use crate::place::Decision;
use crate::report::{self, Report};
use crate::round;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What one call of `convert` was asked.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub model: PathBuf,
    pub data: Option<String>,
    pub validate_data: Option<String>,
    pub labels: Option<PathBuf>,
    pub sources: Sources,
    /// Default: `MODEL.<recipe>.onnx` beside the model.
    pub output: Option<PathBuf>,
    /// Default: `OUT.report.json`.
    pub report: Option<PathBuf>,
    /// The report as a page for a browser.
    pub html: Option<PathBuf>,
    /// A command that prints one number last, run on both models.
    pub eval: Option<String>,
    /// Write what calibration saw.
    pub save_ranges: Option<PathBuf>,
    /// AIMET's encodings of the model, which is float.
    pub encodings: Option<PathBuf>,
    /// Take what an earlier calibration saw.
    pub ranges: Option<PathBuf>,
    pub strict: bool,
    pub force: bool,
    pub keep_failed: bool,
    pub drop_unknown: bool,
    pub stop_after: Option<String>,
    pub dump: Option<PathBuf>,
    /// 0: one a core.
    pub threads: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub report: Report,
    pub output: PathBuf,
    pub report_path: PathBuf,
    /// Whether the model lies at `output`.
    pub written: bool,
    /// Why the result is below the recipe's gate; empty if it is not.
    pub failures: Vec<String>,
}

/// A request, its recipe and its model: what `convert`, `plan` and `explain` begin with.
struct Begun {
    recipe: Recipe,
    /// As read, with dimensions frozen as the recipe says.
    source: Model,
    samples: Option<Samples>,
    threads: usize,
}

fn begin(request: &Request, progress: &dyn Progress) -> Result<Begun> {
    let recipe = resolve(&request.sources)?;
    steps::check_order(&recipe)?;
    lowering::check_forms(&recipe)?;
    if let Some(name) = &request.stop_after
        && !recipe.steps.iter().any(|s| s.is(name))
    {
        let known: Vec<&str> = recipe.steps.iter().map(|s| s.name).collect();
        return Err(Error::usage(format!("--stop-after {name}: the recipe has no such step; its steps are {}", known.join(", "))));
    }
    if request.drop_unknown {
        for field in onnx::unknown_fields(&request.model)? {
            progress.say(&format!("dropped from {}: {field}", request.model.display()));
        }
    }
    let mut source = onnx::read(&request.model, &ReadOptions { drop_unknown: request.drop_unknown })?;
    if let Some(path) = &request.encodings {
        if !again::places(&recipe) {
            return Err(Error::usage(format!("--encodings {}: recipe {} has no step `place`, which alone takes quantizers", path.display(), recipe.name)));
        }
        again::encode(&mut source, path)?;
    }
    if again::lifts(&recipe) {
        real_interface(&mut source).at(|| request.model.display())?;
    }
    start::fix_dims(&mut source, &recipe).at(|| request.model.display())?;
    start::suit(&mut source, &recipe.target, again::lifts(&recipe)).at(|| request.model.display())?.iter().for_each(|line| progress.say(line));
    let samples = match (&request.data, &request.validate_data) {
        (Some(data), validate) => Some(start::open_samples(&source, &recipe, data, validate.as_deref())?),
        (None, Some(_)) => return Err(Error::usage("--validate-data needs --data beside it: the samples that calibrate")),
        (None, None) => None,
    };
    Ok(Begun { recipe, source, samples, threads: threads(request.threads) })
}

/// The steps up to the one that `--stop-after` names.
pub fn carried_out<'r>(recipe: &'r Recipe, request: &Request) -> &'r [Step] {
    let until = request.stop_after.as_deref();
    let end = recipe.steps.iter().position(|s| until.is_some_and(|name| s.is(name))).map_or(recipe.steps.len(), |i| i + 1);
    &recipe.steps[..end]
}

/// Threads asked for; one a core where nobody asks.
pub fn threads(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, |n| n.get()) }
}

/// Converts as asked. The outputs are complete where this succeeds, or where `failures` says that only the gate was missed.
pub fn convert(request: &Request, progress: &dyn Progress) -> Result<Outcome> {
    let started = Instant::now();
    let Begun { recipe, source, mut samples, threads } = begin(request, progress)?;
    let output = request.output.clone().unwrap_or_else(|| request.model.with_extension(format!("{}.onnx", recipe.name)));
    let report_path = request.report.clone().unwrap_or_else(|| output.with_extension("report.json"));
    output::check_destination(&output, &request.model, request.force)?;
    [Some(&report_path), request.html.as_ref()].into_iter().flatten().try_for_each(|path| output::check_text(path))?;
    request.eval.as_deref().map_or(Ok(()), eval::check)?;
    if recipe.gate.eval_drop.is_some() && request.eval.is_none() {
        return Err(Error::usage("gate.eval_drop compares what a command prints for both models: give --eval COMMAND"));
    }
    if let Some(dir) = &request.dump {
        std::fs::create_dir_all(dir).map_err(|e| Error::usage(format!("--dump {}: {e}", dir.display())))?;
    }
    let labels = match (&request.labels, &samples) {
        (None, _) => None,
        (Some(path), Some(s)) => Some(data::labels(path, s.judges())?),
        (Some(_), None) => return Err(Error::usage("--labels needs --data beside it: the samples that the labels are of")),
    };
    let saved = ranges::open(request, &recipe, &source, samples.as_ref())?;
    opening(&recipe, request, samples.as_ref(), saved.as_ref(), threads).iter().for_each(|line| progress.say(line));

    // The float reference: the file as it is, or, if it is quantized, what it computes.
    let (reference, lifted) = reference(&source, &recipe, samples.as_mut(), progress).at(|| request.model.display())?;
    let lifted = lifted.at(|| request.model.display());

    // A command that fails does so before any work.
    let evaluated = match &request.eval {
        Some(command) => Some((command, eval::run(command, &request.model)?)),
        None => None,
    };

    let mut work = Work::new(&recipe, source.clone(), threads, progress);
    work.saved = saved.as_ref().map(|s| &s.ranges);
    if let Some(s) = &samples {
        (work.data, work.calibration) = (Some(&s.data), &s.calibration);
    }
    let pool = pool(threads)?;
    let mut measured = Vec::new();
    let steps = carried_out(&recipe, request);
    for (i, step) in steps.iter().enumerate() {
        let begun = Instant::now();
        pool.install(|| work.step(step))?;
        measured.push(report::StepRow::new(step.name, begun.elapsed()));
        if work.state == State::Placed && work.model.quantizers.is_empty() && recipe.float.is_none() {
            if work.standing.is_some() {
                progress.say("the target wants no codes in this model: it is written as a float model");
            } else {
                progress.say("nothing in this model can be quantized under this recipe; it is written unchanged");
                work.model = source.clone();
            }
            (work.prepared, work.tail) = (None, None);
            break;
        }
        if let Some(dir) = &request.dump {
            let path = dir.join(format!("{:02}-{}.onnx", i + 1, step.id.as_deref().unwrap_or(step.name)));
            Pending::write(&as_written(&work.model, work.state)?, &path)?.publish()?;
        }
    }
    if request.stop_after.is_some() {
        work.model = as_written(&work.model, work.state)?;
    }
    let Work { mut model, prepared, notes, ranges: seen, encodings, tail, .. } = work;
    let notes = notes.into_iter().fold(Notes::default(), |mut all, n| {
        all.append(n);
        all
    });
    if request.strict
        && let Some(note) = notes.list().iter().find(|n| n.kind == NoteKind::FellBack)
    {
        return Err(Error::failed(format!("--strict: {note}")));
    }

    let hash = onnx::sha256_file(&request.model)?;
    if !recipe.steps.is_empty() {
        model.set_metadata(VERSION_KEY, env!("CARGO_PKG_VERSION"));
        model.set_metadata("requant.input_sha256", &hash);
        model.set_metadata("requant.recipe", &recipe.name);
        model.set_metadata("requant.recipe_sha256", &onnx::sha256(recipe.resolved.as_bytes()));
        model.graph.name_nodes_apart();
    }
    if tail.is_some() {
        output::check_destination(&output::tail_of(&output), &request.model, request.force)?;
    }
    let pending = Pending::write(&model, &output)?;
    drop(model);
    tail.map_or(Ok(()), |t| pending.write_tail(t))?;

    let mut written = onnx::read(&pending.model(), &ReadOptions::default()).at(|| "the written model cannot be read back")?;
    if let Some(text) = &encodings {
        let path = pending.write_encodings(text)?;
        again::encode(&mut written, &path).at(|| "the written encodings cannot be read back")?;
    }
    let judged = Judged {
        reference: &reference,
        lifted,
        prepared: prepared.as_ref(),
        written: &written,
        tail: pending.tail(),
        labels: labels.as_deref(),
        narrow: recipe.float.is_some(),
        threads,
    };
    let mut report = Report::new(env!("CARGO_PKG_VERSION"));
    report.input = report::FileRow { path: request.model.display().to_string(), sha256: hash, bytes: file_size(&request.model), data_bytes: 0 };
    (report.output, report.tail) = pending.rows()?;
    report.recipe = report::RecipeRow { name: recipe.name.clone(), resolved: recipe.resolved.clone(), origins: recipe.origins.clone() };
    report.target = recipe.target.name.clone();
    report.seed = recipe.seed;
    report.threads = threads;
    report.data = samples.as_ref().map(|s| data_row(request, s)).transpose()?;
    report.ranges = saved.map(|s| s.row);
    report.add_notes(&notes);
    report.coverage = report::coverage(&written);
    report.add_check(&crate::check::check(&written, &recipe.target));
    judged.judge(samples.as_ref(), &mut report, progress)?;
    if let Some((command, reference)) = evaluated {
        report.eval = Some(report::Eval { command: command.clone(), reference, converted: eval::run(command, &pending.model())? });
    }
    report.steps = measured;
    report.seconds = started.elapsed().as_secs_f64();

    let failures = if report.is_random() { Vec::new() } else { recipe.gate.failures(&report) };
    let keep = failures.is_empty() || request.keep_failed;
    drop(written);
    if keep {
        pending.publish()?;
    } else {
        drop(pending);
    }
    if let Some(path) = &request.save_ranges {
        ranges::save(path, seen.unwrap_or_default(), request, &source, samples.as_ref())?;
    }
    output::write_text(&report_path, &report.to_json()?)?;
    if let Some(path) = &request.html {
        output::write_text(path, &report.html(&failures))?;
    }
    Ok(Outcome { report, output, report_path, written: keep, failures })
}

/// What the file computes, and whether all of it is understood: samples are then those that the engine takes, with states tied.
fn reference(source: &Model, recipe: &Recipe, samples: Option<&mut Samples>, progress: &dyn Progress) -> Result<(Model, Result<()>)> {
    let mut reference = source.clone();
    let lifted = lift(&mut reference).map(drop);
    if let (Some(s), Ok(())) = (samples, &lifted) {
        start::check_engine(&reference, s)?;
        tie(&reference, recipe, s, progress)?;
    }
    Ok((reference, lifted))
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::failed(format!("{threads} threads cannot be started: {e}")))
}

/// What `look` makes of the model as the recipe's steps leave it before weights become codes: quantizers stand and have their scales.
pub fn fitted<T: Send>(request: &Request, progress: &dyn Progress, look: impl FnOnce(&Work, &Samples) -> Result<T> + Send) -> Result<T> {
    let Begun { recipe, source, mut samples, threads } = begin(request, progress)?;
    let Some(s) = &mut samples else { return Err(Error::usage("sample inputs are needed: give --data")) };
    reference(&source, &recipe, Some(&mut *s), progress).and_then(|(_, lifted)| lifted).at(|| request.model.display())?;
    let mut work = Work::new(&recipe, source, threads, progress);
    (work.data, work.calibration) = (Some(&s.data), &s.calibration);
    let pool = pool(threads)?;
    for step in &recipe.steps {
        if step.name == "round" || step.name == "lower" {
            break;
        }
        pool.install(|| work.step(step))?;
    }
    match work.state {
        State::Fitted => pool.install(|| look(&work, s)),
        _ => Err(Error::usage(format!("recipe {} places no quantizers with scales before `round`: there is nothing to raise", recipe.name))),
    }
}

/// What judging reads.
struct Judged<'a> {
    reference: &'a Model,
    /// Whether the engine can run the input file.
    lifted: Result<()>,
    prepared: Option<&'a Model>,
    written: &'a Model,
    /// What was cut off, to be run behind it.
    tail: Option<PathBuf>,
    labels: Option<&'a [i64]>,
    /// What stays float was written in a narrower type.
    narrow: bool,
    threads: usize,
}

impl Judged<'_> {
    /// Runs the input file and the written one over the samples that judge. What cannot be run is said: the result is then unvalidated.
    fn judge(self, samples: Option<&Samples>, report: &mut Report, progress: &dyn Progress) -> Result<()> {
        let mut lifted = self.written.clone();
        let interface = real_interface(&mut lifted);
        if self.narrow {
            wide_floats(&mut lifted);
        }
        match (interface.and_then(|()| lift(&mut lifted)), &self.lifted) {
            (Ok(_), _) => report.add_quantizers(&lifted),
            // What the input had and nobody understands is there still.
            (Err(_), Err(_)) => {}
            (Err(e), Ok(())) => return Err(Error::failed(e)).at(|| "the written model"),
        }
        report.unvalidated_because = match (&samples, self.lifted) {
            (None, _) => Some("no data was given".to_string()),
            (_, Err(e)) => Some(e.to_string()),
            (Some(s), _) if s.validation.is_empty() => Some("no sample judges: data.validate is 0".to_string()),
            _ => None,
        };
        let (Some(samples), None) = (samples, &report.unvalidated_because) else { return Ok(()) };
        let (data, which) = (samples.judges(), &samples.validation[..]);
        let whole = self.tail.map(|t| tail::whole(lifted.clone(), &t)).transpose()?;
        report.outputs = report::compare(self.reference, whole.as_ref().unwrap_or(&lifted), data, which, self.labels, self.threads, progress)?;
        if let Some(prepared) = self.prepared {
            let few = &which[..which.len().min(report::NODE_SAMPLES)];
            report.nodes = report::node_errors(prepared, &lifted, data, few, self.threads, progress)?;
        }
        report.validated = true;
        Ok(())
    }
}

/// The model in ONNX's own ops, wherever it is on its way: quantizers that have no scale yet are left out, weights without codes get the nearest.
fn as_written(model: &Model, state: State) -> Result<Model> {
    let mut model = model.clone();
    match state {
        State::Float | State::Lowered => {}
        State::Placed => remove_fake_quants(&mut model),
        State::Fitted | State::Rounded => {
            round::round_nearest(&mut model)?;
            let need = lower::qdq_opset(&model, None)?;
            onnx::raise_opset(&mut model, need)?;
            lower::lower_qdq(&mut model, None)?;
        }
    }
    model.graph.name_nodes_apart();
    Ok(model)
}

fn remove_fake_quants(model: &mut Model) {
    let g = &mut model.graph;
    for id in g.order().to_vec() {
        if g.node(id).quantizer().is_none() {
            continue;
        }
        g.bypass(id);
    }
    model.quantizers = Default::default();
}

fn file_size(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

fn data_row(request: &Request, s: &Samples) -> Result<report::DataRow> {
    let names = |d: &Dataset, which: &[usize]| which.iter().map(|i| d.name(*i)).collect();
    Ok(report::DataRow {
        path: request.data.clone().unwrap_or_default(),
        sha256: s.data.sha256()?,
        validate_path: request.validate_data.clone(),
        validate_sha256: s.judging.as_ref().map(Dataset::sha256).transpose()?,
        random: s.is_random(),
        calibration: names(&s.data, &s.calibration),
        validation: names(s.judges(), &s.validation),
        remarks: s.remarks.clone(),
    })
}

/// The lines with which a run opens: target, formats, methods and samples, and where each came from.
fn opening(recipe: &Recipe, request: &Request, samples: Option<&Samples>, saved: Option<&ranges::Saved>, threads: usize) -> Vec<String> {
    let from = |prefix: &str| {
        let dotted = format!("{prefix}.");
        let list: Vec<String> = recipe
            .origins
            .iter()
            .filter(|o| o.key == prefix || o.key.starts_with(&dotted))
            .map(|o| match o.key.strip_prefix(&dotted) {
                Some(short) => format!("{short} {} ({})", o.value, o.from),
                None => format!("{} ({})", o.value, o.from),
            })
            .collect();
        list.join(", ")
    };
    let mut lines = vec![format!("target       {}", from("target")), format!("recipe       {}", recipe.name)];
    for (title, key) in [("weights      ", "weights"), ("activations  ", "activations"), ("bias         ", "bias")] {
        lines.push(format!("{title}{}", from(key)));
    }
    lines.extend(recipe.float.is_some().then(|| format!("float        {}", from("float"))));
    let step = |s: &Step| {
        let implied = (s.origin == IMPLIED).then(|| s.origin.clone());
        let words: Vec<String> = implied.into_iter().chain(Some(s.args.show()).filter(|keys| !keys.is_empty())).collect();
        if words.is_empty() { s.name.to_string() } else { format!("{} ({})", s.name, words.join(", ")) }
    };
    let list: Vec<String> = recipe.steps.iter().map(step).collect();
    lines.push(format!("steps        {}", if list.is_empty() { "none: the model is written back as it was".to_string() } else { list.join(", ") }));
    match samples {
        None => lines.push("samples      none: the result is not validated".to_string()),
        Some(s) => {
            let judge = request.validate_data.as_deref().map_or(String::new(), |p| format!(" of {p}"));
            let data = request.data.as_deref().unwrap_or_default();
            let judging = if s.validation.is_empty() { "none judges".to_string() } else { format!("{}{judge} judge", s.validation.len()) };
            lines.push(format!("samples      {} of {data} calibrate, {judging}; {threads} threads", s.calibration.len()));
            lines.extend(s.remarks.iter().map(|r| format!("             {r}")));
        }
    }
    lines.extend(saved.map(|s| format!("ranges       {}", s.show())));
    lines
}

/// Everything that would be decided, without data and without writing: the decisions, and the model as it is when quantizers stand.
fn decide(begun: &Begun, progress: &dyn Progress) -> Result<(Vec<Decision>, Model)> {
    let mut work = Work::new(&begun.recipe, begun.source.clone(), begun.threads, progress);
    work.planning = true;
    for step in &begun.recipe.steps {
        work.step(step)?;
        if work.state == State::Placed {
            break;
        }
    }
    Ok((work.decisions, work.prepared.unwrap_or(work.model)))
}

/// `--dry-run`: the resolved recipe, the plan node by node, and an estimate of time and memory.
pub fn dry_run(request: &Request, progress: &dyn Progress) -> Result<String> {
    let begun = begin(request, progress)?;
    let saved = ranges::open(request, &begun.recipe, &begun.source, begun.samples.as_ref())?;
    let (decisions, prepared) = decide(&begun, progress)?;
    let mut page = format!("# recipe, resolved\n{}\n# plan\n", begun.recipe.resolved);
    for d in &decisions {
        page += &format!("{}: {} ({})\n", d.node, d.what, d.rule);
    }
    if decisions.is_empty() {
        page += "no quantizers are placed\n";
    }
    page += "\n# estimate\n";
    page += &match &begun.samples {
        Some(samples) => {
            let ranges = (saved.is_some(), begun.recipe.activations.is_some());
            super::estimate::estimate(&prepared, carried_out(&begun.recipe, request), samples, ranges, begun.threads)?
        }
        None => "no data was given, so nothing was timed\n".to_string(),
    };
    Ok(page)
}

/// Every decision about the nodes that `pattern` matches, by their own names or those of tensors they make.
pub fn explain(request: &Request, pattern: &str, progress: &dyn Progress) -> Result<Vec<Decision>> {
    let begun = begin(request, progress)?;
    let (decisions, prepared) = decide(&begun, progress)?;
    let g = &prepared.graph;
    let by_tensor = g.find_value(pattern).and_then(|v| g.value(v).producer()).map(|(n, _)| g.node(n).name.clone());
    let select = crate::target::Select { nodes: Some(pattern.to_string()), ..Default::default() };
    let mut names: Vec<String> = select.nodes(&prepared)?.into_iter().map(|n| g.node(n).name.clone()).collect();
    names.extend(by_tensor);
    names.push(pattern.to_string());
    let found: Vec<Decision> = decisions.iter().filter(|d| names.contains(&d.node)).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if begun.source.graph.nodes().any(|(_, n)| n.name == pattern) {
        return Ok(vec![Decision {
            node: pattern.to_string(),
            what: "is no longer there when quantizers are placed".into(),
            rule: "a step before `place` folded it into its neighbours or into a constant".into(),
        }]);
    }
    let near = g.nodes().map(|(_, n)| (strsim::jaro_winkler(&n.name, pattern), n.name.as_str())).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = near.map_or(String::new(), |(_, n)| format!("; the nearest name is {n}"));
    Err(Error::usage(format!("{}: no node is called {pattern}{hint}", request.model.display())))
}
