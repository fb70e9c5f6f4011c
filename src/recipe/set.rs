//! `--set KEY=VALUE`: one key of the recipe, or of one of its steps, from the command line.

use super::parse::parse;
use super::resolve::Layer;
use super::shape::{Key, Shape, Tree, unknown};
use super::step_table::{EVERY_STEP, STEPS, StepRow};
use super::table::RECIPE;
use crate::error::{Error, Result};

/// One `--set`, understood.
pub struct Set {
    text: String,
    place: Place,
    value: Tree,
}

enum Place {
    /// Keys from the top of the recipe.
    Recipe(Vec<String>),
    /// Keys of a step: by name, or by the `id` that the recipe gives it, and, where it stands more than once, by number.
    Step { name: String, index: Option<usize>, keys: Vec<String> },
}

/// The key of that name, with what it may hold.
fn find<'k>(keys: impl Iterator<Item = &'k Key> + Clone, name: &str) -> Result<&'k Shape, String> {
    keys.clone().find(|k| k.name == name).map(|k| &k.shape).ok_or_else(|| unknown("key", name, keys.map(|k| k.name)))
}

/// Follows dotted keys below `shape`.
fn walk<'k>(mut shape: &'k Shape, keys: &[&str]) -> Result<&'k Shape, String> {
    for key in keys {
        shape = shape
            .choices()
            .iter()
            .find_map(|s| match s {
                Shape::Map(inner) => Some(find(inner.iter(), key)),
                Shape::MapOf(each) => Some(Ok(*each)),
                Shape::Slots(each) => Some(each.in_slots(key)),
                _ => None,
            })
            .unwrap_or_else(|| Err(format!("`{key}`: nothing stands below; {} is wanted there", shape.wants())))?;
    }
    Ok(shape)
}

impl Set {
    /// Reads `KEY=VALUE` or `KEY+=VALUE`; the value is YAML.
    pub fn parse(text: &str) -> Result<Set> {
        let place = format!("--set {text}");
        let fail = |why: String| Error::usage(format!("{place}: {why}"));
        let (path, value) = text.split_once('=').ok_or_else(|| fail("say KEY=VALUE".into()))?;
        let (path, append) = path.strip_suffix('+').map_or((path, false), |p| (p, true));
        let parts: Vec<&str> = path.trim().split('.').collect();
        let owned = |parts: &[&str]| parts.iter().map(|p| p.to_string()).collect::<Vec<_>>();
        let head = parts[0];
        if let Some(key) = RECIPE.iter().find(|k| k.name == head) {
            let shape = walk(&key.shape, &parts[1..]).map_err(fail)?;
            let list = matches!(shape, Shape::List(_));
            let value = match shape {
                Shape::List(each) if append => Tree::List(vec![read(value, each, &place)?]),
                _ if append => return Err(fail(format!("`{path}` is not a list, so nothing can be added to it"))),
                _ => read(value, shape, &place)?,
            };
            // Overrides of a later layer are added in any case.
            if list && !append && head == "overrides" {
                return Err(fail("write overrides+=… to add one; those of the recipe stay".into()));
            }
            return Ok(Set { text: text.into(), place: Place::Recipe(owned(&parts)), value });
        }
        let (name, index) = match head.split_once('[') {
            None => (head, None),
            Some((name, rest)) => {
                let index = rest.strip_suffix(']').and_then(|i| i.parse().ok()).ok_or_else(|| fail(format!("`{head}`: say {name}[0]")))?;
                (name, Some(index))
            }
        };
        if append || parts.len() < 2 {
            return Err(fail(match STEPS.iter().find(|s| s.name == name) {
                Some(_) => format!("say which key of `{name}`, such as {name}.KEY=VALUE"),
                None => unknown("key", head, RECIPE.iter().map(|k| k.name).chain(STEPS.iter().map(|s| s.name))),
            }));
        }
        // An id is known only when the steps are: its shape is that of any step that has these keys.
        let below = |row: &'static StepRow| {
            let shape = find(row.keys.iter().chain(EVERY_STEP), parts[1])?;
            walk(shape, &parts[2..])
        };
        let shape = match STEPS.iter().find(|s| s.name == name) {
            Some(row) => below(row).map_err(fail)?,
            None => match STEPS.iter().find_map(|row| below(row).ok()) {
                Some(shape) => shape,
                None => return Err(fail(unknown("key", head, RECIPE.iter().map(|k| k.name).chain(STEPS.iter().map(|s| s.name))))),
            },
        };
        let value = read(value, shape, &place)?;
        Ok(Set { text: text.into(), place: Place::Step { name: name.into(), index, keys: owned(&parts[1..]) }, value })
    }
}

fn read(value: &str, shape: &Shape, place: &str) -> Result<Tree> {
    if value.trim().is_empty() {
        return Err(Error::usage(format!("{place}: no value stands behind =; {} is wanted", shape.wants())));
    }
    parse(value.as_bytes(), shape, place)
}

/// `value` below these keys.
fn nest(keys: &[String], value: Tree) -> Tree {
    keys.iter().rev().fold(value, |inner, key| Tree::Map(vec![(key.clone(), inner)]))
}

/// Those that speak of the recipe itself, as layers.
pub fn layers(sets: &[Set]) -> Vec<Layer> {
    let of = |s: &Set| match &s.place {
        Place::Recipe(keys) => Some(Layer { from: format!("--set {}", s.text), tree: nest(keys, s.value.clone()) }),
        Place::Step { .. } => None,
    };
    sets.iter().filter_map(of).collect()
}

/// Those that speak of a step, put into `steps`.
pub fn apply_to_steps(sets: &[Set], steps: &mut [Tree], origins: &mut [String]) -> Result<()> {
    for s in sets {
        let Place::Step { name, index, keys } = &s.place else { continue };
        let fail = |why: String| Error::usage(format!("--set {}: {why}", s.text));
        let is = |t: &Tree| t.entries().first().is_some_and(|(n, keys)| n == name || keys.get(EVERY_STEP[0].name).and_then(Tree::text) == Some(name));
        let found: Vec<usize> = (0..steps.len()).filter(|i| is(&steps[*i])).collect();
        let at = match (index, &found[..]) {
            (_, []) => return Err(fail(format!("the recipe has no step `{name}`"))),
            (None, [one]) => *one,
            (None, many) => return Err(fail(format!("`{name}` stands {} times; say {name}[0] or {name}[{}]", many.len(), many.len() - 1))),
            (Some(i), many) => *many.get(*i).ok_or_else(|| fail(format!("`{name}` stands {} times only", many.len())))?,
        };
        if let Tree::Map(entry) = &mut steps[at]
            && let Some((_, args)) = entry.first_mut()
        {
            put(args, keys, s.value.clone());
            origins[at] = format!("--set {}", s.text);
        }
    }
    Ok(())
}

/// Sets the value below these keys, making maps on the way.
fn put(tree: &mut Tree, keys: &[String], value: Tree) {
    let Some((key, rest)) = keys.split_first() else {
        *tree = value;
        return;
    };
    if !matches!(tree, Tree::Map(_)) {
        *tree = Tree::Map(Vec::new());
    }
    if let Tree::Map(entries) = tree {
        let at = entries.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
            entries.push((key.clone(), Tree::Map(Vec::new())));
            entries.len() - 1
        });
        put(&mut entries[at].1, rest, value);
    }
}
