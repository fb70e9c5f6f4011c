//! What each step of a recipe does: the state of the model it accepts, the one it leaves, and the call into the room that knows how.

use super::again;
use super::lowering;
use super::tail;
use super::{Args, Recipe, Step};
use crate::allocate::{self, Allocate, Amount, Latencies, Sensitivity, Strategy, Widen};
use crate::data::Dataset;
use crate::engine::Trial;
use crate::error::{At, Error, Result};
use crate::graph::Model;
use crate::note::Notes;
use crate::pass::{Progress, State};
use crate::place::{self, Decision, Rules, Standing};
use crate::quant::Scheme;
use crate::range::{self, Calibrate, Calibrated, Clip, Method, Ranges, Weights};
use crate::round::{self, AdaQuant, Biases, CorrectBias, Gather, Gathered, Gptq, Iterations, Reconstruct, TuneBatchNorm, TuneBias, Visits};
use crate::target::SchemeKeys;
use crate::transform::{self, Awq, Balance, Equalize, Grid, ShiftNegatives, Smooth};

/// The model on its way, and what its steps may use.
pub struct Work<'a> {
    pub recipe: &'a Recipe,
    pub model: Model,
    pub state: State,
    /// The float graph as it was before quantizers were placed.
    pub prepared: Option<Model>,
    /// What the file says of codes, if it is quantized: taken off before the first step.
    pub standing: Option<Standing>,
    begun: bool,
    /// Whether only the plan is asked for, and samples are not looked at.
    pub planning: bool,
    /// What was cut off the model, to be written beside it.
    pub tail: Option<Model>,
    /// Encodings as JSON, of a model that is written as float.
    pub encodings: Option<String>,
    pub data: Option<&'a Dataset>,
    /// Samples of `data` to calibrate on.
    pub calibration: &'a [usize],
    /// What calibration saw in an earlier run.
    pub saved: Option<&'a Ranges>,
    /// What it saw in this one.
    pub ranges: Option<Ranges>,
    /// What calibration saw of the float model for the steps behind.
    pub gathered: Option<Gathered>,
    /// What it compared methods on, for the step behind it.
    pub trial: Option<Trial>,
    pub threads: usize,
    pub progress: &'a dyn Progress,
    pub notes: Vec<Notes>,
    pub decisions: Vec<Decision>,
}

/// What carries a step out.
pub struct Run {
    /// States in which the model may come to the step.
    pub accepts: &'static [State],
    /// The state it leaves; `None`: as it came.
    pub leaves: Option<State>,
    /// Whether it also serves models that came with codes. What changes weights or ranges to prepare a float model would take these from them.
    pub coded: bool,
    pub run: fn(&mut Work, &Args) -> Result<Notes>,
}

use State::{Fitted, Float, Lowered, Placed, Rounded};

pub const FOLD_CONSTANTS: Run = Run { accepts: &[Float], leaves: None, coded: true, run: |w, _| transform::fold_constants(&mut w.model) };
pub const FOLD_BATCH_NORM: Run = Run { accepts: &[Float], leaves: None, coded: false, run: fold_batch_norm };
pub const CUT_TAIL: Run = Run { accepts: &[Float], leaves: None, coded: false, run: |w, _| tail::cut(w) };
pub const FUSE: Run = Run { accepts: &[Float], leaves: None, coded: true, run: fuse };
pub const SMOOTH: Run = Run { accepts: &[Float], leaves: None, coded: false, run: smooth };
pub const AWQ: Run = Run { accepts: &[Float], leaves: None, coded: false, run: awq };
pub const EQUALIZE: Run = Run { accepts: &[Float], leaves: None, coded: false, run: equalize };
pub const BALANCE: Run = Run { accepts: &[Float], leaves: None, coded: false, run: balance };
pub const SHIFT_NEGATIVES: Run = Run { accepts: &[Float], leaves: None, coded: false, run: shift_negatives };
pub const PLACE: Run = Run { accepts: &[Float], leaves: Some(Placed), coded: true, run: place };
pub const CALIBRATE: Run = Run { accepts: &[Placed, Fitted], leaves: Some(Fitted), coded: true, run: calibrate };
pub const WIDEN: Run = Run { accepts: &[Fitted], leaves: None, coded: false, run: widen };
pub const ALLOCATE: Run = Run { accepts: &[Fitted], leaves: None, coded: false, run: allocate };
pub const ROUND: Run = Run { accepts: &[Fitted], leaves: Some(Rounded), coded: true, run: round };
pub const CORRECT_BIAS: Run = Run { accepts: &[Rounded], leaves: None, coded: false, run: correct_bias };
pub const TUNE_BATCH_NORM: Run = Run { accepts: &[Rounded], leaves: None, coded: false, run: tune_batch_norm };
pub const TUNE_BIAS: Run = Run { accepts: &[Rounded], leaves: None, coded: false, run: tune_bias };
pub const LOWER: Run = Run { accepts: &[Rounded], leaves: Some(Lowered), coded: true, run: lowering::lower };

/// What carries the step called `name` out.
pub fn run_of(name: &str) -> Option<&'static Run> {
    super::STEPS.iter().find(|row| row.name == name).map(|row| &row.run)
}

fn fold_batch_norm(w: &mut Work, _: &Args) -> Result<Notes> {
    let mut notes = transform::fold_batch_norm(&mut w.model)?;
    notes.append(transform::fold_pads(&mut w.model, &w.recipe.target));
    Ok(notes)
}

fn fuse(w: &mut Work, _: &Args) -> Result<Notes> {
    let mut notes = transform::fuse(&mut w.model, &w.recipe.target.fused, w.recipe.target.opset)?;
    notes.append(transform::spell_out(&mut w.model, &w.recipe.target.spelled));
    notes.append(transform::orient(&mut w.model, &w.recipe.target));
    notes.append(transform::concat_pads(&mut w.model, &w.recipe.target));
    notes.append(transform::part(&mut w.model, &w.recipe.target));
    Ok(notes)
}

/// Refuses a list of steps whose order cannot hold, before anything is done.
pub fn check_order(recipe: &Recipe) -> Result<()> {
    let steps = &recipe.steps;
    // Without quantizers there is nothing to place before what stays float is written in another type.
    let unquantized = recipe.float.is_some() && recipe.weights.is_none() && recipe.activations.is_none();
    let mut state = Float;
    for step in steps {
        let run = of(step)?;
        let nothing = unquantized && state == Float && run.leaves == Some(Lowered);
        if !run.accepts.contains(&state) && !nothing {
            let wanted = run.accepts.iter().map(|s| s.name()).collect::<Vec<_>>().join(" or ");
            let remedy = match (state < run.accepts[0], maker(run.accepts[0])) {
                (true, Some(maker)) => format!("`{maker}` must stand before it"),
                _ => "move it further up".to_string(),
            };
            return Err(Error::usage(format!("step `{}` needs a {wanted} model, and gets a {} one: {remedy}", step.name, state.name())).at(&step.origin));
        }
        state = run.leaves.unwrap_or(state);
    }
    match (state, steps.last()) {
        (Float | Lowered, _) | (_, None) => Ok(()),
        (_, Some(last)) => {
            Err(Error::usage(format!("the steps end with `{}`, before the model is written in ONNX's own ops: add `lower: qdq`", last.name)).at(&last.origin))
        }
    }
}

/// The step whose result is a model of that state.
fn maker(state: State) -> Option<&'static str> {
    super::STEPS.iter().find(|row| row.run.leaves == Some(state)).map(|row| row.name)
}

fn of(step: &Step) -> Result<&'static Run> {
    run_of(step.name).ok_or_else(|| Error::failed(format!("step `{}` has nothing that carries it out", step.name)))
}

impl<'a> Work<'a> {
    /// At the start: the model as read, and no data.
    pub fn new(recipe: &'a Recipe, model: Model, threads: usize, progress: &'a dyn Progress) -> Self {
        Work {
            recipe,
            model,
            state: Float,
            prepared: None,
            standing: None,
            begun: false,
            planning: false,
            tail: None,
            encodings: None,
            data: None,
            calibration: &[],
            saved: None,
            ranges: None,
            gathered: None,
            trial: None,
            threads,
            progress,
            notes: Vec::new(),
            decisions: Vec::new(),
        }
    }

    /// Carries one step out.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        let run = of(step)?;
        if !std::mem::replace(&mut self.begun, true) {
            again::take_off(self).at(|| "the model is quantized already")?;
        }
        if self.standing.is_some() && !run.coded {
            let mut notes = Notes::of(step.name);
            notes.declined("", "the file is quantized, and keeps its weights and ranges as they are");
            self.notes.push(notes);
            return Ok(());
        }
        let known = self.trial.is_some();
        let notes = (run.run)(self, &step.args).at(|| format!("step `{}`", step.name))?;
        // Other steps may change what the float model gives.
        self.trial.take_if(|_| known);
        self.notes.push(notes);
        self.state = run.leaves.unwrap_or(self.state);
        Ok(())
    }
}

/// Which values become codes, by the target's rules and the recipe's wishes.
pub fn rules(recipe: &Recipe) -> Rules<'_> {
    Rules {
        profile: &recipe.target,
        weights: recipe.weights.as_ref(),
        activations: recipe.activations.as_ref(),
        bias: &recipe.bias,
        overrides: &recipe.overrides,
    }
}

fn equalize(w: &mut Work, args: &Args) -> Result<Notes> {
    let absorb = args.flag("absorb").unwrap_or(true);
    let how = Equalize {
        sweeps: args.count("sweeps", 20),
        absorb: absorb.then(|| args.number("sigmas").unwrap_or(3.0)),
        samples: args.count("samples", 32),
        threads: w.threads,
    };
    transform::equalize(&mut w.model, &how, w.data.map(|d| (d, w.calibration)))
}

fn smooth(w: &mut Work, args: &Args) -> Result<Notes> {
    let how = Smooth { alpha: args.number("alpha"), samples: args.count("samples", 16), threads: w.threads };
    transform::smooth(&mut w.model, &how, w.data.map(|d| (d, w.calibration)))
}

fn awq(w: &mut Work, args: &Args) -> Result<Notes> {
    let keys = w.recipe.weights.as_ref().ok_or_else(|| Error::usage("awq is for models whose weights become codes"))?;
    let how = Awq { scheme: keys.scheme_along(Some(1), Some(0))?, grid: args.count("grid", 20), samples: args.count("samples", 64), threads: w.threads };
    transform::awq(&mut w.model, &how, w.data.map(|d| (d, w.calibration)))
}

fn balance(w: &mut Work, args: &Args) -> Result<Notes> {
    let scheme = |keys: Option<&SchemeKeys>| {
        keys.ok_or_else(|| Error::usage("balance is for models whose weights and activations become codes")).and_then(|k| k.scheme(Some(0)))
    };
    let how = Balance {
        grid: Grid::of(&scheme(w.recipe.weights.as_ref())?, &scheme(w.recipe.activations.as_ref())?),
        sweeps: args.count("sweeps", 8),
        samples: args.count("samples", 64),
        bounded: args.flag("bounded").unwrap_or(true),
        threads: w.threads,
    };
    transform::balance(&mut w.model, &how, w.data.map(|d| (d, w.calibration)))
}

fn shift_negatives(w: &mut Work, args: &Args) -> Result<Notes> {
    let bits = w.recipe.activations.as_ref().and_then(|k| k.scheme(None).ok()).map_or(8, |s| s.format.bits());
    let how = ShiftNegatives { bits, ratio: args.number("ratio").unwrap_or(0.05), samples: args.count("samples", 64), threads: w.threads };
    transform::shift_negatives(&mut w.model, &how, w.data.map(|d| (d, w.calibration)))
}

fn place(w: &mut Work, _: &Args) -> Result<Notes> {
    w.prepared = Some(w.model.clone());
    let (notes, decisions) = match &w.standing {
        Some(standing) => place::retarget(&mut w.model, &rules(w.recipe), standing, again::how(w.recipe, w.data.is_some() || w.planning))?,
        None => place::place(&mut w.model, &rules(w.recipe))?,
    };
    w.decisions = decisions;
    lowering::check_schemes(w)?;
    Ok(notes)
}

fn calibrate(w: &mut Work, args: &Args) -> Result<Notes> {
    let how = Calibrate {
        activations: method(args)?,
        weights: match args.text("weights.method") {
            Some("mse") => Weights::Mse,
            Some("clip") => Weights::Clip(Clip {
                shrink: args.number("weights.shrink").unwrap_or(0.5),
                grid: args.count("weights.grid", 20),
                samples: args.count("weights.samples", 64),
            }),
            _ => Weights::MinMax,
        },
        outliers: args.number("activations.outliers"),
        unsigned: args.flag("activations.unsigned").unwrap_or(false),
        shifts: &w.recipe.target.shifts,
        threads: w.threads,
    };
    let before = again::codes_under(&w.model);
    let gather = gather(w);
    let data = w.data.map(|d| (d, w.calibration));
    let Calibrated { mut notes, ranges, passed, trial } = range::calibrate(&mut w.model, &how, data, w.saved, Some(&gather), w.progress)?;
    w.gathered = passed.then(|| gather.done());
    w.trial = trial;
    again::drop_stale(&mut w.model, &before, &mut notes);
    match &mut w.ranges {
        // A step that stands twice watches what the first left.
        Some(have) => have.tensors.extend(ranges.tensors),
        none => *none = Some(ranges),
    }
    Ok(notes)
}

fn method(args: &Args) -> Result<Method> {
    Ok(match args.text("activations.method").unwrap_or("minmax") {
        "minmax" => Method::MinMax,
        "auto" => Method::Auto,
        "mse" => Method::Mse,
        "mae" => Method::Mae,
        "lp" => Method::Lp(args.number("activations.power").unwrap_or(2.0)),
        "entropy" => Method::Entropy,
        "tail" => Method::Tail,
        "no-clip" => Method::NoClip,
        "moving-average" => Method::MovingAverage { constant: args.number("activations.constant").unwrap_or(0.01) },
        "percentile" => Method::Percentile(args.number("activations.percentile").unwrap_or(99.99)),
        other => return Err(Error::usage(format!("`{other}` is no method of activations"))),
    })
}

fn widen(w: &mut Work, args: &Args) -> Result<Notes> {
    let how = Widen {
        share: args.number("share").unwrap_or(0.08),
        macs: args.number("macs").unwrap_or(0.02),
        tries: args.count("tries", 24),
        samples: args.count("samples", 4),
        loss: args.number("loss").unwrap_or(0.01),
        wide: w.recipe.target.wide.as_ref().filter(|k| !k.is_none()),
        never: &w.recipe.target.never_wide,
        threads: w.threads,
    };
    let trial = w.trial.take();
    allocate::widen(&mut w.model, &how, w.data.map(|d| (d, w.calibration)), trial, w.progress)
}

fn allocate(w: &mut Work, args: &Args) -> Result<Notes> {
    let latencies = args.text("latency_table").map(|path| latencies(std::path::Path::new(path)).at(|| format!("latency_table {path}"))).transpose()?;
    let how = Allocate {
        bits: args.numbers("bits").map_or_else(|| vec![4, 8], |list| list.into_iter().map(|n| n as u8).collect()),
        base: w.recipe.weights.as_ref().and_then(|k| k.scheme(Some(0)).ok()).map_or(8, |s| s.format.bits()),
        size: args.number("size").map(|n| if n <= 1.0 { Amount::Share(n) } else { Amount::Whole(n) }),
        bitops: args.number("bitops").map(Amount::Share),
        latency: args.number("latency"),
        latencies: latencies.as_ref(),
        front: args.numbers("front").unwrap_or_default(),
        strategy: match args.text("strategy") {
            Some("greedy") => Strategy::Greedy,
            Some("uniform") => Strategy::Uniform,
            _ => Strategy::Program,
        },
        sensitivity: match args.text("sensitivity") {
            Some("layer-mse") => Sensitivity::LayerMse,
            Some("hessian-trace") => Sensitivity::HessianTrace,
            _ => Sensitivity::OneAtATime,
        },
        samples: args.count("samples", 32),
        profile: &w.recipe.target,
        threads: w.threads,
    };
    allocate::allocate(&mut w.model, &how, w.data.map(|d| (d, w.calibration)), w.progress)
}

/// Reads times by layer and bits.
pub fn latencies(path: &std::path::Path) -> Result<Latencies> {
    let bytes = std::fs::read(path).map_err(|e| Error::usage(format!("cannot be read: {e}")))?;
    let tree = super::parse::parse(&bytes, &super::step_table::LATENCIES, &path.display().to_string())?;
    let mut all = Latencies::new();
    for (layer, times) in tree.entries() {
        let of_layer = all.entry(layer.clone()).or_default();
        for (bits, time) in times.entries() {
            let width = bits.parse().map_err(|_| Error::usage(format!("layer {layer}: `{bits}` is no number of bits")))?;
            of_layer.insert(width, time.number().unwrap_or(0.0));
        }
    }
    Ok(all)
}

fn round(w: &mut Work, args: &Args) -> Result<Notes> {
    let mut notes = match args.text("method") {
        // What the other target holds keeps its codes; the rest need no samples to be near them.
        Some("gptq") if w.standing.is_some() && w.data.is_none() => {
            let mut notes = Notes::of("round");
            notes.declined("", "the file is quantized and no samples are given: weights without codes get the nearest");
            notes
        }
        Some("gptq") => {
            let data = w.data.map(|d| (d, w.calibration));
            let how = gptq_of(args, w);
            let notes = round::gptq(&mut w.model, &how, data, w.gathered.as_ref(), w.progress)?;
            w.gathered.iter_mut().for_each(Gathered::forget_inputs);
            notes
        }
        Some(method @ ("adaround" | "block")) => {
            let how = Reconstruct { blocks: method == "block", lambda: args.number("lambda").unwrap_or(0.01), visits: visits(w, args) };
            round::reconstruct(&mut w.model, &how, w.data.map(|d| (d, w.calibration)), w.progress)?
        }
        Some("adaquant") => {
            let how = AdaQuant { parallel: args.flag("parallel").unwrap_or(false), visits: visits(w, args) };
            round::adaquant(&mut w.model, &how, w.data.map(|d| (d, w.calibration)), w.progress)?
        }
        Some("hqq") => round::hqq(&mut w.model)?,
        Some("k-quant") => round::k_quant(&mut w.model)?,
        _ => Notes::of("round"),
    };
    notes.append(round::round_nearest(&mut w.model)?);
    Ok(notes)
}

fn gptq_of(args: &Args, w: &Work) -> Gptq {
    Gptq {
        damping: args.number("damping"),
        samples: args.count("samples", 32),
        work: args.number("work").unwrap_or(2000.0) * 1e9,
        memory: w.recipe.memory,
        threads: w.threads,
    }
}

/// What the steps behind want to know of the float model.
fn gather(w: &Work) -> Gather {
    let args = |name: &str| w.recipe.steps.iter().find(|s| s.name == name).map(|s| &s.args);
    let gptq = args("round").filter(|args| args.text("method") == Some("gptq")).map(|args| gptq_of(args, w));
    Gather::new(&w.model, gptq.as_ref(), args("correct-bias").map_or(0, corrected), w.calibration)
}

/// Samples over which means are restored.
fn corrected(args: &Args) -> usize {
    args.count("samples", 32)
}

/// What methods that learn how to round take where a recipe does not say it: steps a unit and samples a step as in their papers, and multiply-adds of all
/// steps, beyond which there are fewer. A step of a block moves more weights than one of a layer, so that more are needed.
pub fn learning(method: &str) -> (Iterations, usize) {
    match method {
        "adaquant" => (Iterations::AtMost { steps: 1000, work: 4e11 }, 50),
        "block" => (Iterations::AtMost { steps: 20_000, work: 1e12 }, 8),
        _ => (Iterations::AtMost { steps: 20_000, work: 4e11 }, 8),
    }
}

/// Samples to learn from, at most, where a recipe does not say it.
pub const LEARNT_FROM: usize = 1000;

/// Steps a unit and samples a step of a method that learns, as the recipe says or by default.
pub fn pace(args: &Args) -> (Iterations, usize) {
    let (iterations, batch) = learning(args.text("method").unwrap_or_default());
    (args.int("iterations").map_or(iterations, |n| Iterations::Exactly(n as usize)), args.count("batch", batch))
}

/// How units are visited to learn from samples.
fn visits(w: &Work, args: &Args) -> Visits {
    let (iterations, batch) = pace(args);
    Visits { samples: args.count("samples", LEARNT_FROM), iterations, batch, seed: w.recipe.seed, memory: w.recipe.memory, threads: w.threads }
}

/// Under what biases are written; `bias`: the recipe's scheme of those that layers do not have yet.
fn biases<'a>(recipe: &'a Recipe, bias: Option<&'a Scheme>) -> Biases<'a> {
    Biases { bias, float: recipe.bias.is_none(), shifts: &recipe.target.shifts }
}

fn correct_bias(w: &mut Work, args: &Args) -> Result<Notes> {
    let bias = w.recipe.bias.scheme(None).ok();
    let how = CorrectBias {
        samples: corrected(args),
        biases: biases(w.recipe, bias.as_ref()),
        gathered: w.gathered.as_ref(),
        memory: w.recipe.memory,
        threads: w.threads,
    };
    round::correct_bias(&mut w.model, &how, w.data.map(|d| (d, w.calibration)), w.progress)
}

fn tune_batch_norm(w: &mut Work, args: &Args) -> Result<Notes> {
    let samples = args.count("samples", 64);
    let bias = w.recipe.bias.scheme(None).ok();
    let how = TuneBatchNorm { samples, biases: biases(w.recipe, bias.as_ref()), memory: w.recipe.memory, threads: w.threads };
    let float = float(w);
    round::tune_batch_norm(&mut w.model, &how, &float, w.data.map(|d| (d, w.calibration)), w.progress)
}

fn tune_bias(w: &mut Work, args: &Args) -> Result<Notes> {
    let bias = w.recipe.bias.scheme(None).ok();
    let how = TuneBias {
        samples: args.count("samples", 128),
        epochs: args.count("epochs", 20),
        batch: args.count("batch", 16),
        rate: args.number("rate").unwrap_or(0.001),
        loss: args.number("loss").unwrap_or(0.001),
        seed: w.recipe.seed,
        biases: biases(w.recipe, bias.as_ref()),
        memory: w.recipe.memory,
        threads: w.threads,
    };
    let float = float(w);
    round::tune_bias(&mut w.model, &how, &float, w.data.map(|d| (d, w.calibration)), w.progress)
}

/// The float model: as it was before quantizers were placed; where none were here, the model whose quantizers came with it.
fn float(w: &Work) -> Model {
    w.prepared.clone().unwrap_or_else(|| w.model.clone())
}
