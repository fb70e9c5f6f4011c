//! `requant search` and recipe `mixed`: what is refused, what is found, what reproduces it.

use super::program::{DATA, Folder, MODEL};
use std::fs;

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["search", MODEL, "--data", DATA, "--set", "data.samples=24", "--max-drop"][..], more].concat()
}

#[test]
fn what_search_cannot_use_is_refused_and_nothing_is_left() {
    let folder = Folder::new();
    folder.refuses(&["search", MODEL, "--max-drop", "0.1"], 2, &["--data"]);
    folder.refuses(&with(&["-1"]), 2, &["--max-drop", "at least 0"]);
    folder.refuses(&with(&["nan"]), 2, &["--max-drop"]);
    folder.refuses(&with(&["0.1", "--minimize", "latency"]), 2, &["--latency-table"]);
    folder.refuses(&with(&["0.1", "--minimize", "latency", "--latency-table", "none.yaml"]), 2, &["none.yaml", "cannot be read"]);
    folder.refuses(&with(&["0.1", "-r", "copy"]), 2, &["copy", "nothing to raise"]);
    folder.refuses(&with(&["0.1", "-o", "nowhere/r.yaml"]), 2, &["nowhere", "does not exist"]);
    folder.refuses(&with(&["0.1", "--eval", "echo 1"]), 2, &["{model}"]);
    folder.refuses(&["search", MODEL, "--data", "random:8", "--max-drop", "0.1"], 2, &["random"]);
    folder.write("mine.yaml", "extends: int8\n");
    folder.refuses(&with(&["0.1", "-o", "mine.yaml"]), 2, &["mine.yaml", "--force"]);
    folder.write("times.yaml", "some_layer: { 8: 1 }\n");
    folder.refuses(
        &with(&["0.0", "-r", "int8-fast", "--set", "weights.bits=2", "--minimize", "latency", "--latency-table", "times.yaml"]),
        2,
        &["has no time for"],
    );
    assert_eq!(folder.run(&with(&["0.1", "--minimize", "watts"])).code, Some(2));
}

#[test]
fn what_is_found_holds_the_limit_and_the_recipe_writes_the_same_bytes() {
    let folder = Folder::new();
    let search = with(&["0.1", "-r", "int8-fast", "--set", "weights.bits=3", "--minimize", "size", "--tries", "12", "-o", "found.yaml"]);
    let run = folder.run(&search).ok();
    assert!(run.stdout.contains("overrides:\n  - { nodes: ") && run.stdout.contains("weights: { bits: 16 }"), "{run:?}");
    let recipe = fs::read_to_string(folder.path("found.yaml")).unwrap();
    assert!(recipe.starts_with("# Found by requant search kws.onnx --max-drop 0.1: "), "{recipe}");
    let convert = |out: &str, threads: &str| {
        folder.run(&["convert", MODEL, "-r", "found.yaml", "--data", DATA, "-o", out, "--threads", threads]).ok();
        fs::read(folder.path(out)).unwrap()
    };
    assert!(convert("a.onnx", "1") == convert("b.onnx", "2"), "the bytes depend on the number of threads");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(folder.path("a.report.json")).unwrap()).unwrap();
    assert!(report["outputs"][0]["agreement"].as_f64().unwrap() >= 0.9, "{}", report["outputs"][0]);
    let again = folder.run(&search).ok();
    assert_eq!(again.stdout, run.stdout);
    assert_eq!(fs::read_to_string(folder.path("found.yaml")).unwrap(), recipe);
}

#[test]
fn limits_of_mixed_that_nothing_meets_are_told_with_the_smallest_possible() {
    let folder = Folder::new();
    let with = |more: &[&'static str]| [&["convert", MODEL, "--data", DATA, "-r", "mixed", "-o", "m.onnx", "--set"][..], more].concat();
    folder.refuses(&with(&["allocate.size=0.2"]), 2, &["size", "smallest possible", "0.5"]);
    folder.refuses(&with(&["allocate.latency=5"]), 2, &["latency_table"]);
    folder.refuses(&with(&["allocate.latency=5", "--set", "allocate.latency_table=no.json"]), 2, &["no.json"]);
    folder.refuses(&with(&["allocate.bits=[4, 99]"]), 2, &["bits"]);
    let write = |out: &str, threads: &str| {
        folder.run(&["convert", MODEL, "--data", DATA, "-r", "mixed", "--set", "data.samples=16", "-o", out, "--threads", threads]).ok();
        fs::read(folder.path(out)).unwrap()
    };
    assert!(write("a.onnx", "1") == write("b.onnx", "2"), "the bytes depend on the number of threads");
}
