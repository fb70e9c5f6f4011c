//! Shipped recipes and targets: the files of `configs/`, built into the program.

use super::shape::unknown;
use crate::error::{Error, Result};
use std::path::Path;

/// A file of `configs/` or a folder in it.
struct Config {
    name: &'static str,
    text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/configs.rs"));

/// Where a named thing was found.
pub struct Found {
    /// What recipes call it; a file's stem where it is a path.
    pub name: String,
    /// For complaints: the path, or `recipe int8`.
    pub place: String,
    pub bytes: Vec<u8>,
    /// The path as given, where it is a file.
    pub path: Option<std::path::PathBuf>,
}

fn is_path(name: &str) -> bool {
    name.contains(['/', '\\']) || name.ends_with(".json") || name.ends_with(".yaml") || name.ends_with(".yml")
}

fn check(list: &[Config], what: &str, name: &str) -> Result<(), String> {
    if is_path(name) || list.iter().any(|c| c.name == name) { Ok(()) } else { Err(unknown(what, name, list.iter().map(|c| c.name))) }
}

/// Whether `name` can be a recipe.
pub fn check_recipe(name: &str) -> Result<(), String> {
    check(RECIPES, "recipe", name)
}

/// Whether `name` can be a target.
pub fn check_target(name: &str) -> Result<(), String> {
    check(TARGETS, "target", name)
}

/// Whether `name` can be a preset of preprocessing, or a file of one.
pub fn check_preset(name: &str) -> Result<(), String> {
    if name.ends_with(".json") { Ok(()) } else { check(PRESETS, "preset", name) }
}

fn find(list: &[Config], what: &str, name: &str, beside: Option<&Path>) -> Result<Found> {
    if let Some(c) = list.iter().find(|c| c.name == name) {
        return Ok(Found { name: name.into(), place: format!("{what} {name}"), bytes: c.text.as_bytes().to_vec(), path: None });
    }
    check(list, what, name).map_err(Error::usage)?;
    let path = match beside.and_then(Path::parent) {
        Some(dir) if Path::new(name).is_relative() => dir.join(name),
        _ => name.into(),
    };
    let shown = path.display().to_string();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(_) if path.is_dir() => return Err(Error::usage(format!("{shown} is a folder; give the .yaml file in it"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::usage(format!("{shown} does not exist"))),
        Err(e) => return Err(Error::usage(format!("{shown} cannot be read: {e}"))),
    };
    let stem = path.file_stem().map_or_else(|| name.to_string(), |s| s.to_string_lossy().into_owned());
    Ok(Found { name: stem, place: shown, bytes, path: Some(path) })
}

/// The recipe of that name or path; paths are relative to the file `beside`.
pub fn recipe(name: &str, beside: Option<&Path>) -> Result<Found> {
    find(RECIPES, "recipe", name, beside)
}

/// The same of a target's profile.
pub fn target(name: &str, beside: Option<&Path>) -> Result<Found> {
    find(TARGETS, "target", name, beside)
}

/// The same of a preset of preprocessing.
pub fn preset(name: &str, beside: Option<&Path>) -> Result<Found> {
    find(PRESETS, "preset", name, beside)
}

/// Names that `format:` may say besides those of formats: schemes with all their keys.
pub fn scheme_names() -> impl Iterator<Item = &'static str> + Clone {
    SCHEMES.iter().map(|c| c.name)
}

/// (name, first comment line) of each such scheme.
pub fn schemes() -> Vec<(String, String)> {
    list(SCHEMES)
}

/// The text of such a scheme.
pub fn scheme_text(name: &str) -> Option<&'static str> {
    SCHEMES.iter().find(|c| c.name == name).map(|c| c.text)
}

/// (name, first comment line) of each shipped recipe.
pub fn recipes() -> Vec<(String, String)> {
    list(RECIPES)
}

/// The same of each target.
pub fn targets() -> Vec<(String, String)> {
    list(TARGETS)
}

fn list(configs: &[Config]) -> Vec<(String, String)> {
    configs.iter().map(|c| (c.name.to_string(), c.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' ']).to_string())).collect()
}

/// The text of a shipped recipe.
pub fn recipe_text(name: &str) -> Option<String> {
    RECIPES.iter().find(|c| c.name == name).map(|c| c.text.to_string())
}

/// The text of a shipped target's profile.
pub fn target_text(name: &str) -> Option<String> {
    TARGETS.iter().find(|c| c.name == name).map(|c| c.text.to_string())
}
