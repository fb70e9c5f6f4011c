//! Layers → one recipe: target's defaults < `extends` < recipe < command line.

use super::legal::{Refusal, override_refusal, refusal};
use super::parse::parse;
use super::profile::profile;
use super::shape::{Shape, Tree, unknown};
use super::step_table::{EVERY_STEP, STEPS};
use super::table::RECIPE;
use super::{Args, DataRecipe, Gate, InputRecipe, MAX_LAYERS, Origin, Recipe, Sources, Step, configs, preprocess, read, set};
use crate::data::Fill;
use crate::error::{At, Error, Result};
use crate::quant::Format;
use crate::target::{Profile, SchemeKeys, Slot, ZeroKey, format_of};
use std::collections::BTreeMap;

/// What one file, or the command line, says.
pub struct Layer {
    /// For people: `recipe int8`, `my.yaml`, `--set`.
    pub from: String,
    pub tree: Tree,
}

const NOBODY: &str = "default";

/// The recipe that these sources amount to.
pub fn resolve(sources: &Sources) -> Result<Recipe> {
    let sets = sources.set.iter().map(|s| set::Set::parse(s)).collect::<Result<Vec<_>>>()?;
    let mut command = set::layers(&sets);
    if let Some(target) = &sources.target {
        configs::check_target(target).map_err(|e| Error::usage(format!("--target: {e}")))?;
        command.push(Layer { from: "--target".into(), tree: Tree::Map(vec![("target".into(), Tree::Text(target.clone()))]) });
    }
    if let Some(seed) = sources.seed {
        let seed = i64::try_from(seed).map_err(|_| Error::usage(format!("--seed {seed} is too large")))?;
        command.push(Layer { from: "--seed".into(), tree: Tree::Map(vec![("seed".into(), Tree::Int(seed))]) });
    }
    for pattern in &sources.exclude {
        let entry = vec![("nodes".into(), Tree::Text(pattern.clone())), ("keep".into(), Tree::Text("float".into()))];
        let tree = Tree::Map(vec![("overrides".into(), Tree::List(vec![Tree::Map(entry)]))]);
        command.push(Layer { from: format!("--exclude {pattern}"), tree });
    }
    let target_of = |layers: &[Layer]| layers.iter().rev().find_map(|l| Some((l.tree.get("target")?.text()?.to_string(), l.from.clone())));

    // Without a recipe the target chooses it, so the target comes first.
    let (name, mut layers) = match &sources.recipe {
        Some(recipe) => chain(recipe, "-r")?,
        None => {
            let target = target_of(&command).map_or_else(|| "generic".to_string(), |t| t.0);
            let profile = profile(&target).at(|| "--target")?;
            chain(&profile.recipe, &format!("target {target}"))?
        }
    };
    layers.extend(command);
    let (target, target_from) = target_of(&layers).unwrap_or_else(|| ("generic".to_string(), NOBODY.to_string()));
    let target = profile(&target).at(|| &target_from)?;
    assemble(name, target, target_from, layers, &sets, sources)
}

/// A recipe and those it extends, the farthest first, and the recipe's name.
fn chain(recipe: &str, from: &str) -> Result<(String, Vec<Layer>)> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut first = None;
    let mut next = Some((recipe.to_string(), None::<std::path::PathBuf>));
    while let Some((name, beside)) = next {
        let place = layers.last().map_or_else(|| from.to_string(), |l| format!("{}: extends", l.from));
        let found = configs::recipe(&name, beside.as_deref()).at(|| place)?;
        if layers.len() >= MAX_LAYERS || layers.iter().any(|l| l.from == found.place) {
            return Err(Error::usage(format!("{}: `extends` goes in a circle", found.place)));
        }
        let tree = parse(&found.bytes, &Shape::Map(RECIPE), &found.place)?;
        next = tree.get("extends").and_then(Tree::text).map(|e| (e.to_string(), found.path.clone()));
        first.get_or_insert(found.name);
        layers.push(Layer { from: found.place, tree });
    }
    layers.reverse();
    Ok((first.unwrap_or_default(), layers))
}

/// Everything merged and typed.
fn assemble(name: String, target: Profile, target_from: String, layers: Vec<Layer>, sets: &[set::Set], sources: &Sources) -> Result<Recipe> {
    let mut origins: Vec<Origin> = vec![Origin::new("target", &target.name, &target_from)];
    let mut of = |key: &str, base: &SchemeKeys| merged_scheme(key, base, &layers, &target, &mut origins);
    let (mut weights, activations, bias) = (of("weights", &target.weights)?, of("activations", &target.activations)?, of("bias", &target.bias)?);

    let mut float = None;
    for (from, tree) in layers.iter().filter_map(|l| Some((&l.from, l.tree.get("float")?))) {
        float = read::float(tree, float);
        origins.retain(|o| o.key != "float");
        origins.push(Origin::new("float", &tree.show(), from));
    }

    // Of these, the last to speak of a key decides.
    let last = |path: &[&str]| layers.iter().rev().find_map(|l| path.iter().try_fold(&l.tree, |t, k| t.get(k)).map(|t| (t, l.from.as_str())));
    let mut take = |path: &[&str]| {
        let (tree, from) = last(path)?;
        origins.push(Origin::new(&path.join("."), &tree.show(), from));
        Some(tree.clone())
    };
    let number = |t: Option<Tree>| t.and_then(|t| t.int()).map(|n| n as usize);
    let data = DataRecipe {
        samples: number(take(&["data", "samples"])).unwrap_or(128),
        validate: number(take(&["data", "validate"])),
        shuffle: take(&["data", "shuffle"]).and_then(|t| t.flag()).unwrap_or(true),
    };
    let memory = take(&["memory"]).and_then(|t| t.int()).unwrap_or(4 << 30) as u64;
    let seed = take(&["seed"]).and_then(|t| t.int()).unwrap_or(0) as u64;
    let mut gate_of = |key: &str| take(&["gate", key]).and_then(|t| t.number());
    let gate = Gate {
        sqnr_db: gate_of("sqnr_db"),
        cosine: gate_of("cosine"),
        agreement: gate_of("agreement"),
        coverage: gate_of("coverage"),
        top1_drop: gate_of("top1_drop"),
        eval_drop: gate_of("eval_drop"),
    };
    let mut inputs: BTreeMap<String, InputRecipe> = BTreeMap::new();
    for (name, keys) in layers.iter().filter_map(|l| l.tree.get("inputs")).flat_map(Tree::entries) {
        let input = inputs.entry(name.clone()).or_default();
        if let Some(s) = keys.get("shape") {
            input.shape = Some(s.list().iter().filter_map(|d| Some(d.int()? as usize)).collect());
        }
        input.fix = keys.get("fix").and_then(Tree::flag).unwrap_or(input.fix);
        input.from = keys.get("from").and_then(Tree::text).map(str::to_string).or(input.from.take());
        input.fill = keys.get("fill").map(fill).or(input.fill);
        input.tie = keys.get("tie").and_then(Tree::text).map(str::to_string).or(input.tie.take());
        if let Some(tree) = keys.get("preprocess") {
            input.preprocess = Some(preprocess::preprocess(tree).at(|| format!("inputs.{name}.preprocess"))?);
        }
    }
    let (mut steps, steps_from) = match last(&["steps"]) {
        Some((steps, from)) => (steps.list().to_vec(), from.to_string()),
        None => return Err(Error::usage("neither the recipe nor what it extends says any `steps`").at(name)),
    };
    let mut step_origins = vec![steps_from; steps.len()];
    if activations.is_none() {
        imply(&mut steps, &mut step_origins);
    }
    set::apply_to_steps(sets, &mut steps, &mut step_origins)?;
    if let Some(method) = steps.iter().find_map(moves_zeros)
        && weights.zero_point.or(weights.symmetric.map(|_| ZeroKey::None)).is_none()
        && matches!(weights.format.as_deref().and_then(format_of), Some(Format::Int { signed: false, .. }))
    {
        weights.zero_point = Some(ZeroKey::Real);
        origins.push(Origin::new("weights.zero_point", "real", &format!("round: {method}")));
    }
    let mut overrides = Vec::new();
    let mut override_trees = Vec::new();
    for layer in &layers {
        for (i, tree) in layer.tree.get("overrides").map_or(&[][..], Tree::list).iter().enumerate() {
            let origin = if layer.from.starts_with("--") { layer.from.clone() } else { format!("{}: overrides[{i}]", layer.from) };
            let over = read::override_of(tree, origin)?;
            if let Some(why) = override_refusal(&target, &over, [&weights, &activations, &bias]) {
                return Err(Error::usage(why).at(&over.origin));
            }
            overrides.push(over);
            override_trees.push(tree.clone());
        }
    }
    let mut fix_dims = BTreeMap::new();
    for text in &sources.fix_dims {
        let parsed = text.split_once('=').and_then(|(name, n)| Some((name.trim(), n.trim().parse::<usize>().ok().filter(|n| *n > 0)?)));
        let (name, n) = parsed.filter(|(name, _)| !name.is_empty()).ok_or_else(|| Error::usage(format!("--fix-dim {text}: say NAME=N, such as batch=1")))?;
        fix_dims.insert(name.to_string(), n);
    }
    let mut recipe = Recipe {
        name,
        weights: Some(weights).filter(|k| !k.is_none()),
        activations: Some(activations).filter(|k| !k.is_none()),
        bias,
        float,
        inputs,
        fix_dims,
        data,
        memory,
        steps: steps.iter().zip(step_origins).map(|(tree, origin)| step(tree, origin)).collect::<Result<_>>()?,
        overrides,
        gate,
        seed,
        origins,
        resolved: String::new(),
        target,
    };
    recipe.resolved = text_of(&recipe, sources, &steps, &override_trees);
    Ok(recipe)
}

/// The method of a `round` step whose gain lies in zero points that are no whole numbers.
fn moves_zeros(step: &Tree) -> Option<String> {
    let method = step.get("round")?.get("method")?.text()?;
    ["hqq", "k-quant"].contains(&method).then(|| method.to_string())
}

/// Origin of steps that nobody wrote.
pub const IMPLIED: &str = "implied by `round`";

/// Where only weights are quantized, `round` alone says enough: what places and calibrates them without data comes before it.
fn imply(steps: &mut Vec<Tree>, origins: &mut Vec<String>) {
    let name = |step: &Tree| step.entries().first().map(|(name, _)| name.clone()).unwrap_or_default();
    let Some(mut at) = steps.iter().position(|s| name(s) == "round") else { return };
    for implied in ["place", "calibrate"] {
        if !steps.iter().any(|s| name(s) == implied) {
            steps.insert(at, Tree::Map(vec![(implied.into(), Tree::Map(vec![]))]));
            origins.insert(at, IMPLIED.into());
            at += 1;
        }
    }
}

/// The target's scheme with the layers' keys on top; a format that somebody set and the target cannot hold is refused.
fn merged_scheme(key: &str, base: &SchemeKeys, layers: &[Layer], target: &Profile, origins: &mut Vec<Origin>) -> Result<SchemeKeys> {
    let mut keys = base.clone();
    let mut froms: BTreeMap<String, String> = BTreeMap::new();
    let target_from = format!("target {}", target.name);
    for (from, tree) in layers.iter().filter_map(|l| Some((&l.from, l.tree.get(key)?))) {
        keys = read::scheme(tree).over(&keys);
        for (name, _) in read::scheme_tree(&read::scheme(tree)).entries() {
            froms.insert(name.clone(), from.clone());
        }
        if tree.text().is_some() {
            froms.insert(String::new(), from.clone());
        }
    }
    let slot = Slot::ALL.into_iter().find(|s| s.word() == key).unwrap_or(Slot::Bias);
    if let Some(Refusal { keys: [name, also], why }) = refusal(target, slot, &keys) {
        let last = layers.iter().rev().find(|l| l.tree.get(key).is_some()).map(|l| &l.from);
        let from = froms.get(name).or(froms.get(also)).or(froms.get("")).or(last.filter(|_| name.is_empty())).unwrap_or(&target_from);
        return Err(Error::usage(format!("{from}: {key}: {why}")));
    }
    match read::scheme_tree(&keys) {
        Tree::Map(entries) => {
            for (name, value) in entries {
                // A format that follows from `bits` came with them.
                let from = froms.get(&name).or(if name == "format" { froms.get("bits") } else { None }).unwrap_or(&target_from);
                origins.push(Origin::new(&format!("{key}.{name}"), &value.show(), from));
            }
        }
        other => origins.push(Origin::new(key, &other.show(), froms.get("").unwrap_or(&target_from))),
    }
    Ok(keys)
}

fn fill(t: &Tree) -> Fill {
    match t.text() {
        Some("zeros") => Fill::Zeros,
        Some("arange") => Fill::Positions,
        Some(_) => Fill::Ones,
        None => Fill::Value(t.number().unwrap_or(0.0)),
    }
}

/// One entry of `steps`, with its keys dotted.
fn step(tree: &Tree, origin: String) -> Result<Step> {
    let (name, keys) = tree.entries().first().ok_or_else(|| Error::usage("an empty step").at(&origin))?;
    let row = STEPS.iter().find(|s| s.name == *name).ok_or_else(|| Error::usage(unknown("step", name, STEPS.iter().map(|s| s.name))).at(&origin))?;
    let mut args = BTreeMap::new();
    dotted(keys, "", &mut args);
    let id = match args.remove(EVERY_STEP[0].name) {
        Some(Tree::Text(id)) => Some(id),
        _ => None,
    };
    Ok(Step { name: row.name, id, args: Args(args), origin })
}

fn dotted(tree: &Tree, prefix: &str, out: &mut BTreeMap<String, Tree>) {
    for (key, value) in tree.entries() {
        match value {
            Tree::Map(_) => dotted(value, &format!("{prefix}{key}."), out),
            leaf => {
                out.insert(format!("{prefix}{key}"), leaf.clone());
            }
        }
    }
}

/// The merged recipe as YAML; parsed again with the same target it gives the same recipe.
fn text_of(r: &Recipe, sources: &Sources, steps: &[Tree], overrides: &[Tree]) -> String {
    let none = || Tree::Text("none".into());
    let mut lines = Vec::new();
    let mut put = |key: &str, value: String| lines.push(format!("{key}: {value}"));
    put("target", sources.target.clone().filter(|t| t.contains(['/', '.'])).map_or_else(|| r.target.name.clone(), |t| Tree::Text(t).show()));
    put("weights", r.weights.as_ref().map_or_else(none, read::scheme_tree).show());
    put("activations", r.activations.as_ref().map_or_else(none, read::scheme_tree).show());
    put("bias", read::scheme_tree(&r.bias).show());
    if let Some(float) = &r.float {
        put("float", read::float_tree(float).show());
    }
    let validate = r.data.validate.map_or(String::new(), |n| format!(", validate: {n}"));
    put("data", format!("{{ samples: {}{validate}, shuffle: {} }}", r.data.samples, r.data.shuffle));
    for (name, i) in &r.inputs {
        let mut keys = Vec::new();
        keys.extend(i.shape.as_ref().map(|s| format!("shape: {s:?}")));
        keys.extend(i.fix.then(|| "fix: true".to_string()));
        keys.extend(i.from.as_ref().map(|f| format!("from: {}", Tree::Text(f.clone()).show())));
        keys.extend(i.fill.map(|f| match f {
            Fill::Zeros => "fill: zeros".to_string(),
            Fill::Ones => "fill: ones".to_string(),
            Fill::Positions => "fill: arange".to_string(),
            Fill::Value(v) => format!("fill: {v:?}"),
        }));
        keys.extend(i.tie.as_ref().map(|t| format!("tie: {}", Tree::Text(t.clone()).show())));
        keys.extend(i.preprocess.as_ref().map(|p| format!("preprocess: {}", preprocess::show(p))));
        let first = r.inputs.keys().next() == Some(name);
        lines.push(format!("{}  {}: {{ {} }}", if first { "inputs:\n" } else { "" }, Tree::Text(name.clone()).show(), keys.join(", ")));
    }
    let mut put = |key: &str, value: String| lines.push(format!("{key}: {value}"));
    put("memory", r.memory.to_string());
    put("seed", r.seed.to_string());
    let list = |trees: &[Tree]| trees.iter().map(|t| format!("\n  - {}", t.show())).collect::<String>();
    put("steps", if steps.is_empty() { "[]".into() } else { list(steps) });
    if !overrides.is_empty() {
        put("overrides", list(overrides));
    }
    let gate: Vec<String> = r.gate.limits().map(|(k, v)| format!("{k}: {v:?}")).collect();
    if !gate.is_empty() {
        put("gate", format!("{{ {} }}", gate.join(", ")));
    }
    lines.join("\n") + "\n"
}
