//! YAML text → [`Tree`], held against a [`Shape`] while it is read, so that every complaint has its line and column.

use super::shape::{Key, Shape, Tree, unknown};
use super::step_table::{STEPS, StepRow};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::fmt;

/// Longer files are no recipes.
const MAX_BYTES: usize = 1 << 20;
/// Deeper nesting is no recipe.
const MAX_DEPTH: usize = 32;

/// Reads `text` as one document of this shape. `place` names it in complaints: a file's path, or `--set …`.
pub fn parse(text: &[u8], shape: &Shape, place: &str) -> Result<Tree> {
    let fail = |why: String| Err(Error::usage(format!("{place}: {why}")));
    if text.len() > MAX_BYTES {
        return fail(format!("it has {} bytes; more than 1 MiB is no recipe", text.len()));
    }
    let Ok(text) = std::str::from_utf8(text) else { return fail("it is not UTF-8 text".into()) };
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#') || l.trim() == "---") {
        return fail("it is empty".into());
    }
    let why = RefCell::new(None);
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(first) = documents.next() else { return fail("it is empty".into()) };
    let seed = Seed { shape, why: &why, path: "", depth: 0 };
    let tree = match seed.deserialize(first) {
        Ok(tree) => tree,
        Err(e) => {
            // A value from the command line has no lines.
            let at = e.location().filter(|_| !place.starts_with("--")).map_or(String::new(), |l| format!(":{}:{}", l.line(), l.column()));
            let text = why.take().unwrap_or_else(|| plain(&e));
            return Err(Error::usage(format!("{place}{at}: {text}")));
        }
    };
    match documents.next() {
        None => Ok(tree),
        Some(_) => fail("it holds more than one document; a recipe is one".into()),
    }
}

/// Line and column of what stands under these keys (of a list, an index), as far down as the text goes.
pub fn locate(text: &[u8], path: &[String]) -> Option<(usize, usize)> {
    (1..=path.len()).rev().find_map(|n| {
        let document = serde_yaml::Deserializer::from_slice(text);
        let found = Find(&path[..n]).deserialize(document).err()?.location()?;
        Some((found.line(), found.column()))
    })
}

/// Fails where the path ends: the error knows its place.
struct Find<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl Find<'_> {
    fn scalar<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        if self.0.is_empty() { Err(E::custom("")) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        self.scalar()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        let Some((index, rest)) = self.0.split_first() else { return Err(serde::de::Error::custom("")) };
        for i in 0.. {
            let more = if *index == i.to_string() { seq.next_element_seed(Find(rest))?.is_some() } else { seq.next_element::<IgnoredAny>()?.is_some() };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Some((key, rest)) = self.0.split_first() else { return Err(serde::de::Error::custom("")) };
        while let Some(found) = map.next_key::<String>()? {
            if found == *key { map.next_value_seed(Find(rest))? } else { map.next_value::<IgnoredAny>().map(drop)? }
        }
        Ok(())
    }
}

/// serde_yaml's complaint without its place, which is said in front.
fn plain(e: &serde_yaml::Error) -> String {
    let text = e.to_string();
    if text.contains("repetition limit") {
        return "its aliases multiply beyond measure".into();
    }
    text.split(" at line ").next().unwrap_or_default().to_string()
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    shape: &'a Shape,
    /// The complaint in our words.
    why: &'a RefCell<Option<String>>,
    /// The key that leads here.
    path: &'a str,
    depth: usize,
}

impl<'a> Seed<'a> {
    fn fail<T, E: serde::de::Error>(&self, why: impl Into<String>) -> std::result::Result<T, E> {
        let why = why.into();
        let why = if self.path.is_empty() { why } else { format!("{}: {why}", self.path) };
        self.why.borrow_mut().get_or_insert(why);
        Err(E::custom(""))
    }

    fn scalar<E: serde::de::Error>(&self, tree: Tree) -> std::result::Result<Tree, E> {
        if let Shape::Steps = self.shape {
            return self.fail(format!("{} is not a list of steps", tree.show()));
        }
        match self.shape.scalar(tree) {
            Ok(t) => Ok(t),
            Err(why) => self.fail(why),
        }
    }

    fn inner(&self, shape: &'a Shape, path: &'a str) -> Seed<'a> {
        Seed { shape, path, depth: self.depth + 1, ..*self }
    }
}

impl<'de, 'a> DeserializeSeed<'de> for Seed<'a> {
    type Value = Tree;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Tree, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, 'a> Visitor<'de> for Seed<'a> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.shape.wants())
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> std::result::Result<Tree, E> {
        self.scalar(Tree::Bool(v))
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> std::result::Result<Tree, E> {
        self.scalar(Tree::Int(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> std::result::Result<Tree, E> {
        self.scalar(i64::try_from(v).map_or(Tree::Number(v as f64), Tree::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Tree, E> {
        self.scalar(Tree::Number(v))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<Tree, E> {
        self.scalar(Tree::Text(v.to_string()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Tree, E> {
        self.fail(format!("nothing stands here; {} is wanted", self.shape.wants()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Tree, A::Error> {
        if self.depth > MAX_DEPTH {
            return self.fail("it is nested too deeply");
        }
        const NUMBER: Shape = Shape::Number(f64::NEG_INFINITY, f64::INFINITY);
        let mut list = Vec::new();
        for shape in self.shape.choices() {
            match shape {
                Shape::Steps => {
                    while let Some(step) = seq.next_element_seed(StepSeed(self))? {
                        list.push(step);
                    }
                    return Ok(Tree::List(list));
                }
                Shape::List(each) => {
                    while let Some(item) = seq.next_element_seed(self.inner(each, self.path))? {
                        list.push(item);
                    }
                    return Ok(Tree::List(list));
                }
                Shape::Range => {
                    while let Some(item) = seq.next_element_seed(self.inner(&NUMBER, self.path))? {
                        list.push(item);
                    }
                    return match (list.len(), list.first().and_then(Tree::number), list.get(1).and_then(Tree::number)) {
                        (2, Some(lo), Some(hi)) if lo <= hi => Ok(Tree::List(list)),
                        _ => self.fail("a range is [low, high], low not above high"),
                    };
                }
                _ => {}
            }
        }
        self.fail(format!("a list stands here; {} is wanted", self.shape.wants()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tree, A::Error> {
        if self.depth > MAX_DEPTH {
            return self.fail("it is nested too deeply");
        }
        for shape in self.shape.choices() {
            match shape {
                Shape::Map(keys) => return self.map(keys, &[], &mut map),
                Shape::MapOf(each) | Shape::Slots(each) => {
                    let mut entries: Vec<(String, Tree)> = Vec::new();
                    while let Some(key) = map.next_key_seed(Text(self))? {
                        if entries.iter().any(|(k, _)| *k == key) {
                            return self.fail(format!("key `{key}` stands twice"));
                        }
                        let inner = match shape {
                            Shape::Slots(each) => each.in_slots(&key),
                            _ => Ok(*each),
                        };
                        let inner = inner.or_else(|why| self.fail(why))?;
                        let value = map.next_value_seed(self.inner(inner, &key))?;
                        entries.push((key, value));
                    }
                    return Ok(Tree::Map(entries));
                }
                _ => {}
            }
        }
        self.fail(format!("a map stands here; {} is wanted", self.shape.wants()))
    }
}

impl<'a> Seed<'a> {
    fn map<'de, A: MapAccess<'de>>(self, keys: &'a [Key], more: &'a [Key], map: &mut A) -> std::result::Result<Tree, A::Error> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        while let Some(key) = map.next_key_seed(KeySeed { seed: self, keys, more, seen: &entries })? {
            let value = map.next_value_seed(self.inner(&key.shape, key.name))?;
            entries.push((key.name.to_string(), value));
        }
        Ok(Tree::Map(entries))
    }
}

/// A key of a map of known keys.
struct KeySeed<'a, 's> {
    seed: Seed<'a>,
    keys: &'a [Key],
    more: &'a [Key],
    seen: &'s [(String, Tree)],
}

impl<'de, 'a> DeserializeSeed<'de> for KeySeed<'a, '_> {
    type Value = &'a Key;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<&'a Key, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, 'a> Visitor<'de> for KeySeed<'a, '_> {
    type Value = &'a Key;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<&'a Key, E> {
        let all = || self.keys.iter().chain(self.more);
        match all().find(|k| k.name == v) {
            Some(_) if self.seen.iter().any(|(k, _)| k == v) => self.seed.fail(format!("key `{v}` stands twice")),
            Some(k) => Ok(k),
            None => self.seed.fail(unknown("key", v, all().map(|k| k.name))),
        }
    }
}

/// A key of any name.
struct Text<'a>(Seed<'a>);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<String, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Int(i64),
            Other(IgnoredAny),
        }
        match Any::deserialize(d)? {
            Any::Text(t) => Ok(t),
            Any::Int(i) => Ok(i.to_string()),
            Any::Other(_) => self.0.fail("a key must be a text"),
        }
    }
}

/// An entry of `steps`: a name, or a map from one name to the step's keys.
struct StepSeed<'a>(Seed<'a>);

impl<'de> DeserializeSeed<'de> for StepSeed<'_> {
    type Value = Tree;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Tree, D::Error> {
        d.deserialize_any(self)
    }
}

fn row<E: serde::de::Error>(seed: &Seed, name: &str) -> std::result::Result<&'static StepRow, E> {
    match STEPS.iter().find(|s| s.name == name) {
        Some(row) => Ok(row),
        None => seed.fail(unknown("step", name, STEPS.iter().map(|s| s.name))),
    }
}

impl<'de> Visitor<'de> for StepSeed<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a step")
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<Tree, E> {
        let row = row(&self.0, v)?;
        Ok(Tree::Map(vec![(row.name.to_string(), Tree::Map(vec![]))]))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tree, A::Error> {
        struct Name<'a>(Seed<'a>);
        impl<'de> DeserializeSeed<'de> for Name<'_> {
            type Value = &'static StepRow;
            fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<&'static StepRow, D::Error> {
                d.deserialize_any(self)
            }
        }
        impl<'de> Visitor<'de> for Name<'_> {
            type Value = &'static StepRow;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a step's name")
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<&'static StepRow, E> {
                row(&self.0, v)
            }
        }
        let Some(row) = map.next_key_seed(Name(self.0))? else { return self.0.fail("an empty step") };
        let value = map.next_value_seed(StepKeys { seed: Seed { path: row.name, depth: self.0.depth + 1, ..self.0 }, row })?;
        if map.next_key_seed(Text(self.0))?.is_some() {
            return self.0.fail(format!("step `{}` is followed by another key; each step is an entry of its own", row.name));
        }
        Ok(Tree::Map(vec![(row.name.to_string(), value)]))
    }
}

/// The keys of a step, or the scalar that stands for the first of them.
struct StepKeys<'a> {
    seed: Seed<'a>,
    row: &'static StepRow,
}

impl<'de> DeserializeSeed<'de> for StepKeys<'_> {
    type Value = Tree;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Tree, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StepKeys<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the keys of a step")
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<Tree, E> {
        let key = self.row.scalar.and_then(|name| self.row.keys.iter().find(|k| k.name == name));
        match key {
            Some(key) => {
                let value = self.seed.inner(&key.shape, self.row.name).scalar(Tree::Text(v.to_string()))?;
                Ok(Tree::Map(vec![(key.name.to_string(), value)]))
            }
            None => self.seed.fail(format!("`{v}`: this step takes no scalar")),
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Tree, E> {
        Ok(Tree::Map(vec![]))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tree, A::Error> {
        self.seed.map(self.row.keys, super::step_table::EVERY_STEP, &mut map)
    }
}
