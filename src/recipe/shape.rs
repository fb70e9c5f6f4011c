//! What may stand where in a YAML file: one table drives parsing, the JSON schema, and the lists that the program prints.

use super::configs;
use crate::graph::Op;
use crate::target::FORMATS;

/// A key of a map.
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub doc: &'static str,
}

/// What a value may be.
pub enum Shape {
    Bool,
    /// From the first to the second, both included.
    Int(i64, i64),
    Number(f64, f64),
    Text,
    /// A name that this accepts, or says why it does not; the second is for people.
    Name(fn(&str) -> Result<(), String>, &'static str),
    OneOf(&'static [&'static str]),
    Format,
    Op,
    /// `4GiB`, `512MiB`, or bytes.
    Bytes,
    /// A number, or a fraction such as `1/256`.
    Fraction,
    /// `[low, high]`.
    Range,
    List(&'static Shape),
    Map(&'static [Key]),
    /// Any keys, each of this shape.
    MapOf(&'static Shape),
    /// Slots, each of this shape; or the keys of its map, for every slot.
    Slots(&'static Shape),
    Steps,
    /// The first that fits what stands there.
    Any(&'static [Shape]),
}

/// A value as read.
#[derive(Debug, Clone, PartialEq)]
pub enum Tree {
    Null,
    Bool(bool),
    Int(i64),
    Number(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Key {
    pub const fn new(name: &'static str, shape: Shape, doc: &'static str) -> Key {
        Key { name, shape, doc }
    }
}

impl Shape {
    /// What is wanted, for people.
    pub fn wants(&self) -> String {
        match self {
            Shape::Bool => "true or false".into(),
            Shape::Int(lo, hi) if *hi == i64::MAX => format!("a whole number of at least {lo}"),
            Shape::Int(lo, hi) => format!("a whole number from {lo} to {hi}"),
            Shape::Number(lo, hi) if lo.is_infinite() && hi.is_infinite() => "a number".into(),
            Shape::Number(lo, hi) if hi.is_infinite() => format!("a number of at least {lo}"),
            Shape::Number(lo, hi) => format!("a number from {lo} to {hi}"),
            Shape::Text => "a text".into(),
            Shape::Name(_, what) => what.to_string(),
            Shape::OneOf(names) => names.join(" | "),
            Shape::Format => "a format's name".into(),
            Shape::Op => "an operator's name".into(),
            Shape::Bytes => "a size such as 4GiB".into(),
            Shape::Fraction => "a number or a fraction such as 1/256".into(),
            Shape::Range => "[low, high]".into(),
            Shape::List(each) => format!("a list of {}", each.wants()),
            Shape::Map(keys) => format!("a map of {}", keys.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")),
            Shape::MapOf(_) | Shape::Slots(_) => "a map".into(),
            Shape::Steps => "a list of steps".into(),
            Shape::Any(shapes) => shapes.iter().map(Shape::wants).collect::<Vec<_>>().join(", or "),
        }
    }

    /// Of slots that hold this shape: what stands under a key, which is a slot's number or one of the map's own.
    pub fn in_slots(&self, key: &str) -> Result<&Shape, String> {
        let keys = || self.choices().iter().flat_map(|s| if let Shape::Map(keys) = s { *keys } else { &[] });
        match keys().find(|k| k.name == key) {
            _ if key.parse::<usize>().is_ok() => Ok(self),
            Some(k) => Ok(&k.shape),
            None => Err(format!("`{key}` is not the number of a slot, and {}", unknown("key", key, keys().map(|k| k.name)))),
        }
    }

    /// The alternatives of an `Any`; itself otherwise.
    pub fn choices(&self) -> &[Shape] {
        match self {
            Shape::Any(shapes) => shapes,
            one => std::slice::from_ref(one),
        }
    }

    /// The scalar as it will be read, or why it cannot stand here.
    pub fn scalar(&self, tree: Tree) -> Result<Tree, String> {
        let mut why = None;
        for shape in self.choices() {
            match shape.one_scalar(&tree) {
                Ok(t) => return Ok(t),
                Err(e) => why = why.or(e),
            }
        }
        // Where several things may stand, the complaint of one of them misleads.
        Err(why.filter(|_| self.choices().len() == 1).unwrap_or_else(|| format!("{} is not {}", tree.show(), self.wants())))
    }

    /// `Err(None)`: of another kind.
    fn one_scalar(&self, tree: &Tree) -> Result<Tree, Option<String>> {
        let text = match tree {
            Tree::Text(t) => t.clone(),
            Tree::Int(i) => i.to_string(),
            Tree::Number(n) => n.to_string(),
            Tree::Bool(b) => b.to_string(),
            _ => return Err(None),
        };
        let number = match tree {
            Tree::Int(i) => Some(*i as f64),
            Tree::Number(n) => Some(*n),
            _ => None,
        };
        match self {
            Shape::Bool => matches!(tree, Tree::Bool(_)).then(|| tree.clone()).ok_or(None),
            Shape::Int(lo, hi) => match tree {
                Tree::Int(i) if (lo..=hi).contains(&i) => Ok(tree.clone()),
                _ => Err(None),
            },
            Shape::Number(lo, hi) => number.filter(|n| *lo <= *n && *n <= *hi).map(Tree::Number).ok_or(None),
            Shape::Text => Ok(Tree::Text(text)),
            Shape::Name(check, _) => check(&text).map(|()| Tree::Text(text)).map_err(Some),
            Shape::OneOf(names) => one_of(&text, names.iter().copied()).map(|()| Tree::Text(text)),
            Shape::Format => one_of(&text, format_names()).map(|()| Tree::Text(text)),
            Shape::Op => match Op::of_name(&text) {
                Some(_) => Ok(Tree::Text(text)),
                None => one_of(&text, Op::all().map(|op| op.spelling().1).collect::<Vec<_>>().into_iter()).map(|()| Tree::Text(text)),
            },
            Shape::Bytes => bytes(&text).map(Tree::Int).ok_or(None),
            Shape::Fraction => number.or_else(|| fraction(&text)).filter(|n| n.is_finite()).map(Tree::Number).ok_or(None),
            _ => Err(None),
        }
    }
}

/// What `format:` may say.
pub fn format_names() -> impl Iterator<Item = &'static str> + Clone {
    let own = |name: &&str| !FORMATS.iter().any(|f| f.name == *name);
    FORMATS.iter().map(|f| f.name).chain(configs::scheme_names().filter(own)).chain(["none"])
}

fn one_of<'a>(text: &str, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), Option<String>> {
    if names.clone().any(|n| n == text) { Ok(()) } else { Err(Some(unknown("value", text, names))) }
}

/// "unknown key `x`; did you mean `y`?", or all that there are.
pub fn unknown<'a>(what: &str, text: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let near = names.iter().map(|n| (strsim::jaro_winkler(n, text), *n)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((score, near)) if score > 0.78 => format!("unknown {what} `{text}`; did you mean `{near}`?"),
        _ if names.is_empty() => format!("unknown {what} `{text}`; nothing may stand here"),
        _ if names.len() > 40 => format!("unknown {what} `{text}`"),
        _ => format!("unknown {what} `{text}`; there are {}", names.join(", ")),
    }
}

fn bytes(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: i64 = match &text[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<i64>().ok()?.checked_mul(unit)
}

fn fraction(text: &str) -> Option<f64> {
    let (a, b) = text.split_once('/')?;
    let (a, b): (f64, f64) = (a.trim().parse().ok()?, b.trim().parse().ok()?);
    (b != 0.0).then_some(a / b)
}

impl Tree {
    /// The value of a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        match self {
            Tree::Map(m) => m.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        if let Tree::Text(t) = self { Some(t) } else { None }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Tree::Number(n) => Some(*n),
            Tree::Int(i) => Some(*i as f64),
            _ => None,
        }
    }

    pub fn int(&self) -> Option<i64> {
        if let Tree::Int(i) = self { Some(*i) } else { None }
    }

    pub fn flag(&self) -> Option<bool> {
        if let Tree::Bool(b) = self { Some(*b) } else { None }
    }

    pub fn list(&self) -> &[Tree] {
        if let Tree::List(l) = self { l } else { &[] }
    }

    pub fn entries(&self) -> &[(String, Tree)] {
        if let Tree::Map(m) = self { m } else { &[] }
    }

    /// As YAML on one line, which reads back as the same tree.
    pub fn show(&self) -> String {
        match self {
            Tree::Null => "null".into(),
            Tree::Bool(b) => b.to_string(),
            Tree::Int(i) => i.to_string(),
            Tree::Number(n) if n.fract() == 0.0 && n.abs() < 1e15 => format!("{n:.1}"),
            Tree::Number(n) => n.to_string(),
            Tree::Text(t) if t.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c)) && plain(t) => t.clone(),
            Tree::Text(t) => serde_json::to_string(t).unwrap_or_default(),
            Tree::List(l) => format!("[{}]", l.iter().map(Tree::show).collect::<Vec<_>>().join(", ")),
            Tree::Map(m) if m.is_empty() => "{}".into(),
            Tree::Map(m) => {
                let pairs: Vec<String> = m.iter().map(|(k, v)| format!("{}: {}", Tree::Text(k.clone()).show(), v.show())).collect();
                format!("{{ {} }}", pairs.join(", "))
            }
        }
    }
}

/// Whether a text stands for itself without quotes.
fn plain(text: &str) -> bool {
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic()) && !matches!(text, "true" | "false" | "null" | "yes" | "no" | "on" | "off")
}
