//! The laws of the house, held against the sources: who may see whom, who may print, where names of ops and chips stand.

mod source;

use requant::graph::Op;
use source::{Source, Token, sources};
use std::collections::BTreeSet;

/// Rooms, each line sees only the lines above it (and the first line itself).
const FLOORS: &[&[&str]] = &[
    &["error", "note", "interrupt"],
    &["tensor"],
    &["math"],
    &["quant"],
    &["graph"],
    &["target"],
    &["observe"],
    &["onnx"],
    &["lift"],
    &["engine"],
    &["learn"],
    &["data"],
    &["pass"],
    &["range"],
    &["round"],
    &["transform", "place", "allocate", "lower", "check"],
    &["report"],
    &["recipe"],
    &["cli"],
];

/// Crates (or their prefix before `_`) that one room alone may name.
const OWNED_CRATES: &[(&str, &str)] =
    &[("prost", "onnx"), ("memmap2", "onnx"), ("tract", "engine"), ("serde_yaml", "recipe"), ("clap", "cli"), ("ctrlc", "cli"), ("indicatif", "cli")];

const PRINTING: &[&str] = &["println", "eprintln", "print", "eprint", "dbg"];

/// Chips and their compilers; the names of the profiles in `configs/targets` are added to them.
const CHIPS: &[&str] = &[
    "acuity",
    "ambarella",
    "amlogic",
    "axera",
    "coral",
    "ethos",
    "hailo",
    "hexagon",
    "openvino",
    "qnn",
    "rknn",
    "rockchip",
    "snpe",
    "sophgo",
    "tensorrt",
    "tpumlir",
    "vitis",
    "vivante",
];

const MAX_LINES: usize = 500;

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&room))
}

/// What of `seen` a file of `room` may not see.
fn breaks_layering(room: &str, seen: &str) -> bool {
    match (floor(room), floor(seen)) {
        (Some(own), Some(other)) => room != seen && own <= other && other != 0,
        _ => false,
    }
}

/// Fails with one line an offence.
fn none(offences: Vec<String>, law: &str) {
    assert!(offences.is_empty(), "{law}:\n  {}", offences.join("\n  "));
}

#[test]
fn rooms_see_only_what_stands_left_of_them() {
    let mut offences = Vec::new();
    let mut links = 0;
    for s in sources() {
        let Some(room) = s.room() else { continue };
        if floor(room).is_none() {
            offences.push(format!("src/{}: the room {room} has no place in FLOORS", s.path));
        }
        for (i, seen) in s.root_paths() {
            links += floor(seen).is_some() as usize;
            if breaks_layering(room, seen) {
                offences.push(format!("{}: {room} sees {seen}", s.place(i)));
            }
        }
    }
    assert!(links > 20, "only {links} links between rooms were found");
    none(offences, "each room sees only what stands left of it");
}

#[test]
fn the_five_on_one_floor_do_not_see_each_other() {
    assert!(breaks_layering("place", "lower"));
    assert!(breaks_layering("tensor", "cli"));
    assert!(!breaks_layering("cli", "tensor"));
    assert!(!breaks_layering("tensor", "error"));
    assert!(!breaks_layering("note", "error"));
}

#[test]
fn only_their_rooms_name_the_crates_they_wrap() {
    let mut offences = Vec::new();
    for s in sources() {
        let room = s.room().unwrap_or("");
        for i in 0..s.tokens.len() {
            let Some(word) = s.word(i) else { continue };
            for (name, owner) in OWNED_CRATES {
                let names_it = word == *name || word.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
                // A word of ours that happens to be spelled so is no path.
                let is_path = s.is_mark(i + 1, ':') && s.is_mark(i + 2, ':');
                if names_it && is_path && room != *owner {
                    offences.push(format!("{}: {word} belongs to {owner}", s.place(i)));
                }
            }
        }
    }
    none(offences, "a wrapped crate is named in one room");
}

#[test]
fn only_the_command_line_prints() {
    let mut offences = Vec::new();
    for s in sources().iter().filter(|s| s.room() != Some("cli")) {
        for i in 0..s.tokens.len() {
            if s.word(i).is_some_and(|w| PRINTING.contains(&w)) && s.is_mark(i + 1, '!') {
                offences.push(s.place(i));
            }
        }
    }
    none(offences, "rooms below `cli` return what they have to say");
}

#[test]
fn unsafe_stands_in_the_memory_map_alone() {
    let files: BTreeSet<String> = sources().into_iter().filter(|s| (0..s.tokens.len()).any(|i| s.word(i) == Some("unsafe"))).map(|s| s.path).collect();
    let offences = files.into_iter().filter(|f| f != "onnx/map.rs").collect();
    none(offences, "`unsafe` stands in src/onnx/map.rs alone");
}

#[test]
fn op_names_stand_in_the_table_of_ops_alone() {
    let names: BTreeSet<&str> = Op::all().map(|op| op.spelling().1).collect();
    assert!(names.contains("Conv") && names.len() > 150);
    let mut offences = Vec::new();
    for s in sources().iter().filter(|s| s.path != "graph/op.rs") {
        for (i, text) in literals(s) {
            if names.contains(text) {
                offences.push(format!("{}: \"{text}\"", s.place(i)));
            }
        }
    }
    none(offences, "an op's name as a string stands in src/graph/op.rs; elsewhere say Op::…");
}

#[test]
fn chip_names_stand_in_the_profiles_alone() {
    let mut chips: BTreeSet<String> = CHIPS.iter().map(|c| c.to_string()).collect();
    if let Ok(profiles) = std::fs::read_dir(crate::repository("configs/targets")) {
        let stems = profiles.filter_map(|e| Some(e.ok()?.path().file_stem()?.to_string_lossy().into_owned()));
        chips.extend(stems.filter(|s| s != "generic"));
    }
    let mut offences = Vec::new();
    for s in sources() {
        for (i, (_, token)) in s.tokens.iter().enumerate() {
            let (Token::Word(text) | Token::Text(text)) = token else { continue };
            let text = text.to_lowercase();
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            if !s.test[i] && words.any(|w| chips.contains(w)) {
                offences.push(format!("{}: {text}", s.place(i)));
            }
        }
    }
    none(offences, "a chip's name stands in configs/targets");
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let offences = sources().iter().filter(|s| s.lines > MAX_LINES).map(|s| format!("src/{}: {} lines", s.path, s.lines)).collect();
    none(offences, &format!("at most {MAX_LINES} lines a file, tests included"));
}

/// String literals outside tests.
fn literals(s: &Source) -> impl Iterator<Item = (usize, &str)> {
    s.tokens.iter().enumerate().filter_map(|(i, (_, t))| match t {
        Token::Text(text) if !s.test[i] => Some((i, text.as_str())),
        _ => None,
    })
}
