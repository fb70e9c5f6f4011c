//! The step `lower`: a spelling, and what inputs, outputs and what stays float are written in.

use super::steps::Work;
use super::{Args, FloatRecipe, Recipe, Step, preprocess};
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::lift::lift;
use crate::lower;
use crate::note::Notes;
use crate::observe::Extremes;
use crate::onnx;
use crate::range::{self, Ranges};
use crate::target::{Keep, Spelling};
use crate::tensor::DType;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The opset from which Conv and most other layers may be bfloat16.
const BFLOAT16_LAYERS: i64 = 22;

/// Nodes of which an override says that they stay as in the input file.
fn kept_as_input(w: &Work) -> Result<BTreeSet<NodeId>> {
    let mut kept = BTreeSet::new();
    for o in &w.recipe.overrides {
        let nodes = o.select.nodes(&w.model)?;
        // `place` has checked them otherwise.
        if w.prepared.is_none() && nodes.is_empty() && !o.optional && o.select.tensors(&w.model)?.is_empty() {
            return Err(Error::usage(format!("{}: the override matches nothing in this model; correct it, or add `optional: true`", o.origin)));
        }
        match o.set.keep {
            Some(Keep::Input) => kept.extend(nodes),
            Some(Keep::Float) => kept.retain(|id| !nodes.contains(id)),
            None => {}
        }
    }
    Ok(kept)
}

/// Gives what stays float the recipe's type: nodes `kept` and those out of its range excepted, by what the samples or an earlier run showed.
fn narrow(w: &mut Work, float: &FloatRecipe, kept: &BTreeSet<NodeId>, seen: &BTreeMap<String, Extremes>) -> Result<Notes> {
    let casts = lower::Casts { dtype: float.dtype, keep_io: float.keep_io, ops: &float.keep, nodes: kept, seen };
    lower::half_floats(&mut w.model, &casts)
}

/// Makes inputs take images as they are.
fn images(w: &mut Work, nhwc: bool) -> Result<Notes> {
    let mut notes = Notes::of("lower");
    let recipe = w.recipe;
    for (name, how) in recipe.inputs.iter().filter_map(|(name, input)| Some((name, input.preprocess.as_ref()?))) {
        let (scale, mean, std) = (how.scale, how.mean.clone(), how.std.clone());
        let (words, resize) = (preprocess::show(how), preprocess::resize_word(how.resize));
        let image = lower::Image { scale, mean, std, channels_last: how.channels_last, bgr: how.bgr, words, resize };
        notes.append(lower::raw_image(&mut w.model, name, &image, nhwc));
    }
    if notes.list().is_empty() {
        return Err(Error::usage("`images` is for inputs of which the recipe says how images become them: add `inputs.NAME.preprocess`"));
    }
    Ok(notes)
}

/// How large tensors of the float model get, where anything is known of it; or those of a quantized file that stays one.
fn peaks(w: &Work) -> Result<BTreeMap<String, Extremes>> {
    match (w.data, w.saved) {
        (Some(data), _) => {
            let lifted = || {
                let mut model = w.model.clone();
                lift(&mut model).map(|_| Cow::Owned(model))
            };
            let model = w.prepared.as_ref().map_or_else(lifted, |m| Ok(Cow::Borrowed(m)))?;
            range::peaks(&model, (data, w.calibration), w.threads, w.progress)
        }
        (None, saved) => Ok(saved.map(Ranges::peaks).unwrap_or_default()),
    }
}

/// The form in which a step `lower` writes: a chip that reads nothing but its own operators gets these, whatever Q/DQ form the recipe names.
fn form_of<'a>(recipe: &Recipe, args: &'a Args) -> &'a str {
    match args.text("form").unwrap_or("qdq") {
        "qdq" if recipe.target.forms.as_deref() == Some(&[Spelling::MctQuantizers]) => "mct-quantizers",
        form => form,
    }
}

/// Refuses a form that the target does not read, and what a form has no place for, before anything is done.
pub fn check_forms(recipe: &Recipe) -> Result<()> {
    for step in recipe.steps.iter().filter(|s| s.name == "lower") {
        let (form, args) = (form_of(recipe, &step.args), &step.args);
        let (needs, alien): (_, &[&str]) = match form {
            "qoperator" => (Some(Spelling::QOperator), &["version"]),
            "matmul-nbits" => (Some(Spelling::WeightOnly), &["version"]),
            "mct-quantizers" => (Some(Spelling::MctQuantizers), &["io", "images", "accuracy_level", "version"]),
            "encodings" => (None, &["io", "images", "accuracy_level"]),
            _ => (None, &["version"]),
        };
        let refused = |why: String| Err(Error::usage(why).at(&step.origin));
        if recipe.target.is_float() && recipe.steps.iter().any(|s| s.name == "round") {
            return refused(format!("target {} reads float models only: take recipe {}, or another target", recipe.target.name, recipe.target.recipe));
        }
        if needs.is_some_and(|needs| recipe.target.forms.as_ref().is_some_and(|reads| !reads.contains(&needs))) {
            return refused(format!("target {} does not read {form}: take `lower: qdq`, or another target", recipe.target.name));
        }
        if let Some(key) = alien.iter().find(|k| args.text(k).is_some() || args.int(k).is_some()) {
            return refused(format!("`{key}` is no key of form {form}"));
        }
        if let (Some(float), "encodings" | "mct-quantizers") = (&recipe.float, form) {
            return refused(format!("form {form} leaves float32 what stays float: leave `float: {}` out", float.dtype));
        }
    }
    Ok(())
}

/// Refuses schemes that the spelling to come cannot say, before they cost any work.
pub fn check_schemes(w: &Work) -> Result<()> {
    let spelled = |s: &&Step| s.name == "lower" && !["encodings", "mct-quantizers"].contains(&form_of(w.recipe, &s.args));
    match w.recipe.steps.iter().find(spelled) {
        Some(_) => needed_opset(w).map(drop),
        None => Ok(()),
    }
}

/// The opset above which com.microsoft's Q/DQ stand in for ONNX's own: the last that the target reads, if it reads them.
fn ceiling(recipe: &Recipe) -> Option<i64> {
    let reads = recipe.target.forms.as_ref().is_none_or(|forms| forms.contains(&Spelling::MsQdq));
    recipe.target.opset.filter(|_| reads)
}

/// The opset that the model's quantizers need, if the target reads it.
fn needed_opset(w: &Work) -> Result<i64> {
    let need = lower::qdq_opset(&w.model, ceiling(w.recipe))?;
    let target = &w.recipe.target;
    match target.opset.filter(|limit| *limit < need) {
        Some(limit) => Err(Error::usage(format!("the formats asked for need opset {need}, and target {} reads at most opset {limit}", target.name))),
        None => Ok(need),
    }
}

/// Raises the opset as far as the formats ask, and writes in the spelling asked for.
pub fn lower(w: &mut Work, args: &Args) -> Result<Notes> {
    let recipe = w.recipe;
    let float = recipe.float.as_ref();
    let (kept, seen) = match float {
        Some(f) => (kept_as_input(w)?, if f.dtype == DType::F16 { peaks(w)? } else { BTreeMap::new() }),
        None => Default::default(),
    };
    let mut notes = lower::relus(&mut w.model, &recipe.target);
    let settings = lower::Settings { accuracy_level: args.int("accuracy_level") };
    let form = form_of(recipe, args);
    if form == "encodings" {
        let (text, said) = lower::encodings(&mut w.model, args.int("version").unwrap_or(1))?;
        w.encodings = Some(text);
        notes.append(said);
        return Ok(notes);
    }
    if form == "mct-quantizers" {
        notes.append(onnx::raise_opset(&mut w.model, lower::MCT_OPSET)?);
        notes.append(lower::mct_quantizers(&mut w.model)?);
        return Ok(notes);
    }
    notes.append(lower::spell(&mut w.model, form, &settings)?);
    let need = needed_opset(w)?;
    // Layers may be bfloat16 from opset 22 on; a target that reads less keeps them float32.
    let wished = if float.is_some_and(|f| f.dtype == DType::BF16) { BFLOAT16_LAYERS.min(recipe.target.opset.unwrap_or(BFLOAT16_LAYERS)) } else { 0 };
    notes.append(onnx::raise_opset(&mut w.model, need.max(wished))?);
    notes.append(lower::lower_qdq(&mut w.model, ceiling(recipe))?);
    if recipe.target.own_constants {
        lower::own_constants(&mut w.model);
    }
    if form == "qoperator" {
        notes.append(lower::qoperator(&mut w.model));
    }
    notes.append(lower::shield(&mut w.model, &w.recipe.target.shield));
    if let Some(dtype) = args.text("io").and_then(DType::of_name) {
        notes.append(lower::integer_interface(&mut w.model, dtype));
    }
    if let Some(layout) = args.text("images") {
        notes.append(images(w, layout == "nhwc")?);
    }
    if let Some(float) = float {
        notes.append(narrow(w, float, &kept, &seen)?);
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Sources, resolve};

    #[test]
    fn what_a_form_has_no_place_for_is_refused_before_anything_is_done() {
        let checked = |target: &str, set: &[&str]| {
            let set = set.iter().map(|s| s.to_string()).collect();
            let sources = Sources { recipe: Some("hptq".into()), target: Some(target.into()), set, ..Sources::default() };
            check_forms(&resolve(&sources).unwrap())
        };
        let fails = |target: &str, set: &[&str], words: &str| {
            let e = checked(target, set).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(words), "{e}");
        };
        checked("generic", &["lower.io=uint8"]).unwrap();
        checked("generic", &["lower.form=encodings", "lower.version=2"]).unwrap();
        fails("generic", &["lower.version=2"], "`version` is no key of form qdq");
        fails("generic", &["lower.form=encodings", "lower.images=nhwc"], "`images` is no key of form encodings");
        fails("generic", &["lower.form=mct-quantizers", "float=float16"], "leave `float: float16` out");
        // Most targets do not read it; one that reads nothing else gets it unasked.
        let names = || crate::recipe::targets().into_iter().map(|(name, _)| name);
        let other = names().find(|name| checked(name, &["lower.form=mct-quantizers"]).is_err());
        fails(&other.unwrap(), &["lower.form=mct-quantizers"], "does not read mct-quantizers");
        let refused = |words| names().find(|name| checked(name, &["lower.io=uint8"]).is_err_and(|e| e.to_string().contains(words)));
        assert!(refused("`io` is no key of form mct-quantizers").is_some());
        assert!(refused("reads float models only: take recipe float-prep").is_some());
    }
}
