//! A target's profile: YAML files that extend each other → [`Profile`]. What contradicts itself is refused, with line and column where it was said.

use super::parse::{locate, parse};
use super::shape::{Shape, Tree};
use super::table::PROFILE;
use super::{MAX_LAYERS, configs, read};
use crate::error::{Error, Result};
use crate::graph::{Op, since};
use crate::onnx::is_spelled;
use crate::target::{Apart, Fate, Fixed, Fuse, Granularity, Legal, Limit, Must, Profile, SchemeKeys, Shift, Slot, Spelling, Term, spelling};

/// One file.
struct File {
    place: String,
    name: String,
    bytes: Vec<u8>,
    tree: Tree,
}

/// What is wrong, and the keys that lead there (of a list, the index): of what contradicts each other, both.
struct Wrong(Vec<Vec<String>>, String);

fn wrong<T>(paths: &[&[&str]], why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(paths.iter().map(|p| p.iter().map(|k| k.to_string()).collect()).collect(), why.into()))
}

/// A target's profile, by name or path, merged with those it extends.
pub fn profile(name: &str) -> Result<Profile> {
    let mut files: Vec<File> = Vec::new();
    let mut next = Some((name.to_string(), None::<std::path::PathBuf>));
    while let Some((name, beside)) = next {
        let found = configs::target(&name, beside.as_deref())?;
        if files.len() >= MAX_LAYERS || files.iter().any(|f| f.place == found.place) {
            return Err(Error::usage(format!("{}: `extends` goes in a circle", found.place)));
        }
        let tree = parse(&found.bytes, &Shape::Map(PROFILE), &found.place)?;
        next = tree.get("extends").and_then(Tree::text).map(|e| (e.to_string(), found.path.clone()));
        files.push(File { place: found.place, name: found.name, bytes: found.bytes, tree });
    }
    let merged = files.iter().rev().fold(Tree::Map(vec![]), |base, f| merge(base, &f.tree));
    let profile = own_lists(&files[0].tree).and_then(|()| typed(&files[0], &merged));
    profile.map_err(|Wrong(paths, why)| {
        // Of the files that speak of it, the last written one is wrong.
        let found = files.iter().find_map(|f| paths.iter().find(|path| speaks(&f.tree, path)).and_then(|path| Some((f, locate(&f.bytes, path)?))));
        match found {
            Some((file, (line, column))) => Error::usage(format!("{}:{line}:{column}: {why}", file.place)),
            None => Error::usage(format!("{}: {why}", files[0].place)),
        }
    })
}

fn speaks(t: &Tree, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else { return true };
    let below = t.get(key).or(key.parse::<usize>().ok().and_then(|i| t.list().get(i)));
    below.is_some_and(|t| rest.is_empty() || t.text() == Some("none") || speaks(t, rest))
}

/// Schemes merge by key, and so does what is legal; everything else is replaced.
fn merge(base: Tree, over: &Tree) -> Tree {
    let mut merged = base;
    for (key, value) in over.entries() {
        let value = match (key.as_str(), merged.get(key)) {
            ("weights" | "activations" | "bias", Some(old)) => read::scheme_tree(&read::scheme(value).over(&read::scheme(old))),
            ("legal", Some(old)) => value.entries().iter().fold(old.clone(), |legal, (k, v)| with(legal, k, v.clone())),
            _ => value.clone(),
        };
        merged = with(merged, key, value);
    }
    merged
}

/// A map with this under that key.
fn with(map: Tree, key: &str, value: Tree) -> Tree {
    let mut entries: Vec<_> = map.entries().iter().filter(|(k, _)| k != key).cloned().collect();
    entries.push((key.to_string(), value));
    Tree::Map(entries)
}

/// An op that one file puts in two lists that exclude each other.
fn own_lists(t: &Tree) -> Result<(), Wrong> {
    for (a, b) in [("quantize", "float"), ("quantize", "weights_only"), ("weights_only", "float"), ("moves", "float"), ("code_constants", "float_constants")] {
        let twice = read::ops(t.get(a)).into_iter().find(|op| read::ops(t.get(b)).contains(op));
        if let Some(op) = twice {
            return wrong(&[&[b]], format!("{} stands in `{b}` and in `{a}`; it can be one of them only", op.spelling().1));
        }
    }
    Ok(())
}

fn word_of<T: Copy>(word: Option<&str>, words: &[&str], all: &[T]) -> Option<T> {
    words.iter().position(|w| Some(*w) == word).map(|i| all[i])
}

fn fate(t: Option<&Tree>) -> Fate {
    word_of(t.and_then(Tree::text), &Fate::WORDS, &Fate::ALL).unwrap_or_default()
}

fn granularities(t: Option<&Tree>) -> Vec<Granularity> {
    read::texts(t).iter().map(|w| read::granularity(w)).collect()
}

fn typed(file: &File, t: &Tree) -> Result<Profile, Wrong> {
    let of = |key: &str| t.get(key).map(read::scheme).unwrap_or_default();
    let text = |key: &str| t.get(key).and_then(Tree::text).unwrap_or_default().to_string();
    let ops = |key: &str| read::ops(t.get(key));
    let list = |key: &str| t.get(key).map_or(&[][..], Tree::list);
    let profile = Profile {
        name: file.name.clone(),
        doc: text("doc"),
        source: text("source"),
        proven: text("proven"),
        recipe: text("recipe"),
        weights: of("weights"),
        activations: of("activations"),
        bias: of("bias"),
        wide: t.get("wide").map(read::scheme),
        legal: legal(t.get("legal").unwrap_or(&Tree::Null)),
        opset: t.get("opset").and_then(Tree::int),
        ir: t.get("ir").and_then(Tree::int),
        static_shapes: t.get("static").and_then(Tree::flag).unwrap_or(false),
        batch: t.get("batch").and_then(Tree::int).map(|n| n as usize),
        forms: t.get("forms").map(|f| read::texts(Some(f)).iter().filter_map(|w| word_of(Some(w), &Spelling::WORDS, &Spelling::ALL)).collect()),
        float: ops("float"),
        others: fate(t.get("others")),
        limits: list("limits").iter().enumerate().map(|(i, l)| limit(i, l)).collect::<Result<_, _>>()?,
        quantize: ops("quantize"),
        weights_only: ops("weights_only"),
        moves: ops("moves"),
        shifts: list("shifts").iter().enumerate().map(|(i, s)| shift(i, s)).collect::<Result<_, _>>()?,
        cut_tail: t.get("cut_tail").and_then(Tree::flag).unwrap_or(false),
        fused: ops("fused"),
        spelled: ops("spelled"),
        groups: ops("groups"),
        join: ops("join"),
        never_wide: ops("never_wide"),
        code_constants: ops("code_constants"),
        normalization: t.get("normalization").map(read::scheme).filter(|k| !k.is_none()),
        emulated: ops("emulated"),
        float_results: ops("float_results"),
        float_constants: ops("float_constants"),
        shield: ops("shield"),
        own_constants: t.get("own_constants").and_then(Tree::flag).unwrap_or(false),
        fuse: list("fuse")
            .iter()
            .map(|f| Fuse {
                producers: read::ops(f.get("producers")),
                followers: read::ops(f.get("followers")),
                last: f.get("last").and_then(Tree::flag).unwrap_or(false),
                floor: f.get("floor").and_then(Tree::flag).unwrap_or(false),
                exact: f.get("exact").and_then(Tree::flag).unwrap_or(false),
            })
            .collect(),
        fixed: list("fixed").iter().map(|f| Fixed { ops: read::ops(f.get("ops")), output: f.get("output").map(read::scheme).unwrap_or_default() }).collect(),
    };
    agrees(&profile, &file.tree)?;
    Ok(profile)
}

fn legal(t: &Tree) -> Legal {
    let slots = |key: &str| read::texts(t.get(key)).iter().filter_map(|w| word_of(Some(w), &Slot::WORDS, &Slot::ALL)).collect();
    let formats = |slot: Slot| read::texts(t.get(slot.word()));
    Legal {
        weights: formats(Slot::Weights),
        activations: formats(Slot::Activations),
        taken: read::texts(t.get("taken")),
        bias: formats(Slot::Bias),
        granularity: granularities(t.get("granularity")),
        scales: read::texts(t.get("scales")),
        symmetric: slots("symmetric"),
        pow2: slots("pow2"),
        otherwise: fate(t.get("otherwise")),
    }
}

/// A window for positions.
fn shift(i: usize, t: &Tree) -> Result<Shift, Wrong> {
    let ends: Vec<i32> = t.get("window").map_or(&[][..], Tree::list).iter().filter_map(|n| Some(n.int()? as i32)).collect();
    let of = t.get("of").and_then(Tree::text).and_then(|w| Term::NAMES.iter().find(|(name, _)| *name == w)).map(|(_, term)| *term);
    let ops = |key: &str| read::ops(t.get(key));
    match (of, &ends[..]) {
        (Some(of), &[lo, hi]) if lo <= hi => Ok(Shift { ops: ops("ops"), of, window: (lo, hi), after: ops("after"), before: ops("before") }),
        _ => wrong(&[&["shifts", &i.to_string()]], format!("shifts[{i}]: it needs `of` and `window: [least, most]`, the least first")),
    }
}

fn limit(i: usize, t: &Tree) -> Result<Limit, Wrong> {
    let at = i.to_string();
    let fail = |why: &str| wrong(&[&["limits", &at]], format!("limits[{i}]: {why}"));
    let text = |key: &str| t.get(key).and_then(Tree::text).unwrap_or_default().to_string();
    let name = text("attribute");
    let conditions = [
        "values",
        "at_most",
        "given",
        "rank",
        "constant",
        "unpadded",
        "apart",
        "weights",
        "activations",
        "granularity",
        "zeroless",
        "unsigned",
        "floor",
        "alike",
        "codes",
    ];
    let mut given = conditions.iter().filter_map(|key| Some((*key, t.get(key)?)));
    let must = match given.next() {
        None if t.get("attribute").is_some() => return fail("`attribute` wants `values`, `at_most` or `given` beside it"),
        None => Must::Never,
        Some(("values" | "at_most" | "given", _)) if name.is_empty() => return fail("`values`, `at_most` and `given` want the `attribute` that they are of"),
        Some(("values", list)) => Must::Attribute { name, values: read::texts(Some(list)) },
        Some(("at_most", n)) => Must::AtMost { name, most: n.int().unwrap_or(i64::MAX) },
        Some(("given", _)) => Must::Given(name),
        Some(("rank", n)) => Must::Rank(n.int().unwrap_or(0) as usize),
        Some(("constant", n)) => Must::Constant(n.int().unwrap_or(0) as usize),
        Some(("unpadded", n)) => Must::Unpadded(n.int().unwrap_or(0) as usize),
        Some(("apart", list)) => Must::Apart(Apart {
            makers: read::ops(Some(list)),
            across: read::ops(t.get("across")),
            alone: t.get("alone").and_then(Tree::flag).unwrap_or(false),
            pieces: t.get("pieces").and_then(Tree::int).unwrap_or(0) as usize,
        }),
        Some(("weights", list)) => Must::Weights(read::texts(Some(list))),
        Some(("activations", list)) => Must::Activations(read::texts(Some(list))),
        Some(("granularity", list)) => Must::Granularity(granularities(Some(list))),
        Some(("zeroless", _)) => Must::Zeroless,
        Some(("unsigned", _)) => Must::Unsigned,
        Some(("floor", _)) => Must::Floor,
        Some(("alike", _)) => Must::Alike,
        Some(_) => Must::Codes,
    };
    if let Some(key) = ["across", "alone", "pieces"].into_iter().find(|key| t.get(key).is_some() && t.get("apart").is_none()) {
        return fail(&format!("`{key}` wants `apart` beside it"));
    }
    if let Some((key, _)) = given.next() {
        return fail(&format!("`{key}` is a second condition; write a limit for each"));
    }
    let ops = read::ops(t.get("ops"));
    let place = t.get("where").and_then(Tree::text).and_then(read::place);
    if ops.is_empty()
        && place.is_none()
        && matches!(must, Must::Never | Must::Attribute { .. } | Must::AtMost { .. } | Must::Given(_) | Must::Constant(_) | Must::Unpadded(_) | Must::Apart(_))
    {
        return fail("it names no `ops`");
    }
    if t.get("then").is_none() || t.get("why").is_none() {
        return fail("it says not what becomes of the nodes: say `then` and `why`");
    }
    let emulated = t.get("emulated").and_then(Tree::flag).unwrap_or(false);
    let unless_after = read::ops(t.get("unless_after"));
    Ok(Limit { ops, place, unless_after, must, then: fate(t.get("then")), emulated, why: text("why"), remedy: text("remedy") })
}

/// Whether what the profile asks for is what it calls legal, and can be written.
fn agrees(p: &Profile, own: &Tree) -> Result<(), Wrong> {
    if p.recipe.is_empty() {
        return wrong(&[&["recipe"]], "it names no `recipe`, the one to use where nobody asks for another");
    }
    let asked: [(&str, Slot, &SchemeKeys); 4] = [
        ("weights", Slot::Weights, &p.weights),
        ("activations", Slot::Activations, &p.activations),
        ("bias", Slot::Bias, &p.bias),
        ("wide", Slot::Activations, p.wide.as_ref().unwrap_or(&p.activations)),
    ];
    for (key, slot, keys) in asked {
        let legal = p.legal.formats(slot);
        let Some(format) = &keys.format else { continue };
        if !legal.is_empty() && !legal.contains(format) && (slot == Slot::Bias || !keys.is_none()) {
            return wrong(
                &[&[key, "format"], &["legal", slot.word()]],
                format!("{key}.format is {format}, which its own legal.{} does not list ({})", slot.word(), legal.join(", ")),
            );
        }
        if keys.is_none() {
            continue;
        }
        if p.legal.symmetric.contains(&slot) && keys.symmetric == Some(false) {
            return wrong(&[&[key, "symmetric"], &["legal", "symmetric"]], format!("{key}.symmetric is false, and legal.symmetric lists {}", slot.word()));
        }
        let scheme = keys.scheme(Some(0)).map_err(|e| Wrong(vec![vec![key.into()]], format!("{key}: {e}")))?;
        let constant = (slot != Slot::Activations).then_some(&[1, 1][..]);
        match (spelling::qdq_opset(&scheme, constant), p.opset) {
            (Ok(need), Some(have)) if need > have && !p.forms.as_ref().is_some_and(|f| f.contains(&Spelling::MsQdq)) => {
                return wrong(&[&[key], &["opset"]], format!("{key} need opset {need}, and the target reads at most opset {have}"));
            }
            _ => {}
        }
    }
    if let Some(asked) = p.weights.granularity.filter(|g| !p.legal.granularity.is_empty() && !p.legal.granularity.contains(g)) {
        return wrong(
            &[&["weights", "granularity"], &["legal", "granularity"]],
            format!("weights.granularity is {}, which its own legal.granularity does not list", read::granularity_name(asked)),
        );
    }
    for (i, fixed) in p.fixed.iter().enumerate() {
        let params = fixed.output.scheme(None).and_then(|s| fixed.output.params(&s));
        params.map_err(|e| Wrong(vec![vec!["fixed".into(), i.to_string()]], format!("fixed: {e}")))?;
    }
    for (key, ops) in [("fused", &p.fused), ("groups", &p.groups)] {
        if let Some(op) = ops.iter().find(|op| since(**op).is_none()) {
            return wrong(&[&[key]], format!("{key} lists {}, which `fuse` does not know spelled out", op.spelling().1));
        }
    }
    if let Some(op) = p.spelled.iter().find(|op| !is_spelled(**op) || p.fused.contains(op)) {
        return wrong(&[&["spelled"]], format!("spelled lists {}, which `fuse` does not write out in other words, or makes of them", op.spelling().1));
    }
    let known = |op: &Op| [&p.quantize, &p.moves, &p.weights_only].iter().any(|l| l.contains(op));
    for (key, list) in [("join", &p.join), ("code_constants", &p.code_constants), ("float_results", &p.float_results)] {
        // Of a list that is inherited, what is not run does not matter.
        if let Some(op) = list.iter().find(|op| own.get(key).is_some() && !known(op)) {
            return wrong(&[&[key]], format!("`{key}` lists {}, which the target does not run on codes", op.spelling().1));
        }
    }
    Ok(())
}
