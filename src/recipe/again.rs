//! Models that come with codes: what is taken off them before the first step, what the recipe asks of it, and codes whose scale moved under them.

use super::Recipe;
use super::steps::Work;
use crate::error::{At, Error, Result};
use crate::graph::{Model, Site};
use crate::lift::{apply_encodings, lift};
use crate::note::Notes;
use crate::place::{self, Retarget};
use crate::quant::{Origin, Params, QuantizerId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Whether a recipe places quantizers; one that does not leaves a quantized file as it is.
pub fn places(recipe: &Recipe) -> bool {
    recipe.steps.iter().any(|s| s.name == "place")
}

/// Whether quantizers are taken off a model that comes with some: the recipe places its own, or the target reads float models only.
pub fn lifts(recipe: &Recipe) -> bool {
    places(recipe) || recipe.target.is_float() && !recipe.steps.is_empty()
}

/// Puts the quantizers of an encodings file onto its float model.
pub fn encode(model: &mut Model, path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::usage(format!("{} cannot be read: {e}", path.display())))?;
    apply_encodings(model, &text).at(|| path.display())
}

/// Takes quantizers off a model that comes with some, if they cannot stay. Where none are placed, constants are what their codes stood for, and floats like
/// any others.
pub fn take_off(w: &mut Work) -> Result<()> {
    if !lifts(w.recipe) {
        return Ok(());
    }
    let notes = lift(&mut w.model)?;
    if !place::is_quantized(&w.model) {
        return Ok(());
    }
    let (standing, said) = place::take_off(&mut w.model)?;
    w.notes.extend([notes, said]);
    w.standing = places(w.recipe).then_some(standing);
    Ok(())
}

/// What the recipe asks, beyond what its target's own recipe would.
pub fn how(recipe: &Recipe, data: bool) -> Retarget {
    let own = recipe.name == recipe.target.recipe;
    let asked = |keys: [&str; 2]| {
        let by_user = |from: &str| from.starts_with("--") || !own && !from.starts_with("target ");
        recipe.origins.iter().any(|o| keys.contains(&o.key.as_str()) && by_user(&o.from))
    };
    let packed = recipe.steps.iter().any(|s| s.name == "lower" && s.args.text("form") == Some("matmul-nbits"));
    Retarget { data, weights: asked(["weights.bits", "weights.format"]), activations: asked(["activations.bits", "activations.format"]), packed }
}

/// Parameters of every quantizer that constants have codes under.
pub fn codes_under(model: &Model) -> BTreeMap<QuantizerId, Params> {
    let sites = model.constant_sites().into_iter().filter(|(node, _)| model.codes.contains_key(&Site::of(*node)));
    let ids: BTreeSet<QuantizerId> = sites.flat_map(|(_, q)| factors(model, q)).collect();
    ids.into_iter().filter_map(|q| Some((q, model.quantizers[q].params.clone()?))).collect()
}

/// The quantizers whose parameters decide what codes stand for.
fn factors(model: &Model, q: QuantizerId) -> Vec<QuantizerId> {
    let q = model.quantizers.root(q);
    match model.quantizers[q].params.as_ref().map(|p| p.origin) {
        Some(Origin::Product(x, w)) => vec![model.quantizers.root(x), model.quantizers.root(w)],
        _ => vec![q],
    }
}

/// Codes under parameters that are no longer those of `before` go: the constants are rounded anew.
pub fn drop_stale(model: &mut Model, before: &BTreeMap<QuantizerId, Params>, notes: &mut Notes) {
    let moved = |q: &QuantizerId| match (before.get(q), &model.quantizers[*q].params) {
        (Some(a), Some(b)) => (&a.scale, &a.zero) != (&b.scale, &b.zero),
        _ => false,
    };
    let sites = model.constant_sites();
    let stale: Vec<Site> = sites.into_iter().filter(|(_, q)| factors(model, *q).iter().any(moved)).map(|(node, _)| Site::of(node)).collect();
    let stale: Vec<Site> = stale.into_iter().filter(|s| model.codes.contains_key(s)).collect();
    stale.iter().for_each(|s| drop(model.codes.remove(s)));
    if !stale.is_empty() {
        notes.changed("", format!("the scales of {} constants that had codes moved: they are rounded anew", stale.len()));
    }
}
