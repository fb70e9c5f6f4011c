//! The tail that `cut-tail` took off a model, on its way beside it.

use super::Recipe;
use super::steps::Work;
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::note::Notes;
use crate::onnx;
use crate::transform;
use std::path::Path;

/// The step: what the target's `cut_tail` asks for.
pub fn cut(w: &mut Work) -> Result<Notes> {
    if !w.recipe.target.cut_tail {
        return Ok(Notes::default());
    }
    if let Some(why) = narrowed(w.recipe) {
        let mut notes = Notes::of("cut-tail");
        notes.declined("", format!("nothing is cut off: a float tail could not read what the model gives under {why}"));
        return Ok(notes);
    }
    let (notes, tail) = transform::cut_tail(&mut w.model);
    w.tail = tail;
    Ok(notes)
}

/// What of a recipe makes outputs of another type than float32.
fn narrowed(recipe: &Recipe) -> Option<&'static str> {
    let io = recipe.steps.iter().any(|s| s.name == "lower" && s.args.text("io").is_some_and(|io| io != "float"));
    if io {
        return Some("`lower: { io }`");
    }
    recipe.float.as_ref().filter(|f| !f.keep_io).map(|_| "`float` without keep_io")
}

/// A model and its tail as one: what came before the cut.
///
/// # Errors
/// The tail is of another opset and cannot be raised, or reads what the model does not give.
pub fn whole(mut model: Model, path: &Path) -> Result<Model> {
    let mut tail = onnx::read(path, &onnx::ReadOptions::default())?;
    let highest = model.opset("").max(tail.opset("")).unwrap_or(1);
    onnx::raise_opset(&mut model, highest)?;
    onnx::raise_opset(&mut tail, highest)?;
    for (domain, version) in &tail.opsets {
        if model.opset(domain).is_none() {
            model.set_opset(domain, *version);
        }
    }
    model.graph.append(&tail.graph).map_err(|name| Error::failed(format!("{}: its input {name} is no output of the model", path.display())))?;
    Ok(model)
}
