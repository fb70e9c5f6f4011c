//! `requant convert`: what a second run is spared, what is judged from outside, where a run stops.

use super::program::{DATA, Folder, MODEL};

#[test]
fn saved_ranges_stand_for_the_pass_over_data() {
    let folder = Folder::new();
    let bytes = |file: &str| std::fs::read(folder.path(file)).unwrap();
    for recipe in ["int8", "int8-percentile"] {
        folder.run(&["convert", MODEL, "--data", DATA, "-r", recipe, "--save-ranges", "r.json", "-o", "a.onnx"]).ok();
        let run = folder.run(&["convert", MODEL, "--data", DATA, "-r", recipe, "--ranges", "r.json", "-o", "b.onnx"]).ok();
        assert!(bytes("a.onnx") == bytes("b.onnx"), "{recipe}: the same bytes");
        assert!(run.stderr.contains("ranges       r.json: 64 samples of data.npz"), "{run:?}");
    }
    folder.run(&["convert", MODEL, "--data", DATA, "-r", "int8-fast", "-o", "a.onnx"]).ok();
    // Histograms hold the extremes; a model without its data is not validated.
    folder.run(&["convert", MODEL, "-r", "int8-fast", "--ranges", "r.json", "-o", "b.onnx"]).ok();
    assert!(bytes("a.onnx") == bytes("b.onnx"));
    let report: serde_json::Value = serde_json::from_slice(&bytes("b.report.json")).unwrap();
    assert_eq!((&report["validated"], &report["data"], &report["ranges"]["samples"]), (&false.into(), &serde_json::Value::Null, &64.into()));
    // Without data `auto` takes what it chose before.
    folder.run(&["convert", MODEL, "--data", DATA, "--stop-after", "calibrate", "--save-ranges", "r.json", "-o", "a.onnx"]).ok();
    folder.run(&["convert", MODEL, "--ranges", "r.json", "--stop-after", "calibrate", "-o", "b.onnx"]).ok();
    assert!(bytes("a.onnx") == bytes("b.onnx"));
}

#[test]
fn ranges_that_do_not_fit_are_refused_by_name() {
    let folder = Folder::new();
    let save = |recipe: &str| folder.run(&["convert", MODEL, "--data", DATA, "-r", recipe, "--save-ranges", "r.json"]).ok();
    save("int8-fast");
    folder.refuses(&["convert", MODEL, "-r", "int8-percentile", "--ranges", "r.json"], 2, &["tensor input", "histogram"]);
    folder.refuses(&["convert", MODEL, "--ranges", "none.json"], 2, &["none.json", "cannot be read"]);
    folder.refuses(&["convert", MODEL, "--set", "steps=[fold-constants]", "--ranges", "r.json"], 2, &["--ranges", "calibrate"]);
    folder.refuses(&["convert", MODEL, "-r", "int8-fast", "--save-ranges", "r.json"], 2, &["--save-ranges", "--data"]);
    folder.refuses(&["convert", MODEL, "--data", DATA, "--save-ranges", "no/r.json"], 2, &["no", "does not exist"]);
    folder.run(&["convert", MODEL, "--set", "steps=[fold-batch-norm,fold-constants]", "-o", "other.onnx"]).ok();
    folder.refuses(&["convert", "other.onnx", "-r", "int8-fast", "--ranges", "r.json"], 2, &["another model", "kws.onnx", "other.onnx"]);
    let text = std::fs::read_to_string(folder.path("r.json")).unwrap();
    folder.write("r.json", text.replacen("\"input\"", "\"outlet\"", 1));
    folder.refuses(&["convert", MODEL, "-r", "int8-fast", "--ranges", "r.json"], 2, &["tensor input", "do not know"]);
    folder.write("r.json", "{}");
    folder.refuses(&["convert", MODEL, "-r", "int8-fast", "--ranges", "r.json"], 2, &["r.json", "no file of ranges"]);
}

#[test]
fn a_command_judges_both_models_and_the_gate_reads_it() {
    let folder = Folder::new();
    // The written model is smaller: its size in KiB stands for a metric.
    let eval = "echo sizes; expr $(wc -c < {model}) / 1024";
    let run = folder.run(&["convert", MODEL, "--data", DATA, "--eval", eval, "--html", "page.html", "-o", "a.onnx"]).ok();
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path("a.report.json")).unwrap()).unwrap();
    let kib = |file: &str| std::fs::metadata(folder.path(file)).unwrap().len() / 1024;
    let of = |key: &str| report["eval"][key].as_f64().unwrap();
    assert_eq!((of("reference"), of("converted")), (kib(MODEL) as f64, kib("a.onnx") as f64));
    assert!(run.stdout.contains(&format!("eval        {} converted, {} float", of("converted"), of("reference"))), "{run:?}");
    let page = std::fs::read_to_string(folder.path("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Nodes, worst first") && page.contains("expr $(wc"), "{page}");
    let run = folder.run(&["convert", MODEL, "--data", DATA, "--eval", eval, "--set", "gate.eval_drop=1", "-o", "b.onnx"]);
    assert!(run.code == Some(1) && run.stderr.contains("eval_drop of the command's number"), "{run:?}");
    assert!(!folder.path("b.onnx").exists());
    folder.refuses(&["convert", MODEL, "--eval", "true", "-o", "c.onnx"], 2, &["--eval", "{model}"]);
    folder.refuses(&["convert", MODEL, "--eval", "echo oh no {model}", "-o", "c.onnx"], 1, &["--eval", "oh no", "one number last"]);
    folder.run(&["diff", MODEL, "a.onnx", "--data", DATA, "--html", "diff.html"]).ok();
    assert!(std::fs::read_to_string(folder.path("diff.html")).unwrap().contains("against kws.onnx, 64 samples"));
}

#[test]
fn weights_alone_need_no_data() {
    let folder = Folder::new();
    folder.run(&["convert", MODEL, "-r", "w8"]).ok();
    assert!(folder.path("kws.w8.onnx").exists());
}

/// The report without what depends on the run: paths, times, threads.
fn figures(folder: &Folder, file: &str) -> serde_json::Value {
    let mut report: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path(file)).unwrap()).unwrap();
    for key in ["steps", "seconds", "threads"] {
        report.as_object_mut().unwrap().remove(key).unwrap();
    }
    report["output"].as_object_mut().unwrap().remove("path").unwrap();
    report
}

#[test]
fn every_recipe_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = Folder::new();
    let recipes = std::fs::read_dir(crate::repository("configs")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"));
    let recipes: Vec<String> = recipes.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    assert!(recipes.len() > 4 && recipes.iter().any(|r| r == "int8"), "{recipes:?}");
    for recipe in &recipes {
        // What is learnt takes minutes by default, and the same steps however few.
        let steps: &[&str] = if ["adaround", "block", "adaquant"].contains(&recipe.as_str()) { &["--set", "round.iterations=40"] } else { &[] };
        for threads in ["1", "2", "4"] {
            let out = format!("{threads}.onnx");
            let few = ["--set", "data.samples=12", "--set", "data.validate=6", "-q", "--force", "--threads", threads, "-o", &out, "-r", recipe];
            folder.run(&[&["convert", MODEL, "--data", DATA][..], &few, steps].concat()).ok();
            let bytes = |file: &str| std::fs::read(folder.path(file)).unwrap();
            assert!(bytes("1.onnx") == bytes(&out), "{recipe} on {threads} threads");
            assert_eq!(figures(&folder, "1.report.json"), figures(&folder, &format!("{threads}.report.json")), "{recipe} on {threads} threads");
        }
    }
}

/// Inputs, outputs, operators and constants of a model, by `requant inspect`.
fn operators(folder: &Folder, file: &str) -> String {
    let said = folder.run(&["inspect", file]).ok().stdout;
    said[said.find("inputs\n").unwrap()..].to_string()
}

#[test]
fn a_run_stops_after_a_step_and_dumps_each() {
    let folder = Folder::new();
    let few = ["convert", MODEL, "--data", DATA, "--set", "data.samples=8", "--set", "data.validate=4", "-r", "int8-fast"];
    let with = |more: &[&str]| folder.run(&[&few[..], more].concat()).ok();
    with(&["--dump", "steps", "-o", "all.onnx"]);
    let mut dumped: Vec<String> = std::fs::read_dir(folder.path("steps")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    dumped.sort();
    let last = dumped.last().unwrap().clone();
    assert!(dumped.len() > 4 && dumped[0] == "01-fold-constants.onnx" && last.ends_with("-lower.onnx"), "{dumped:?}");
    for step in ["fold-batch-norm", "place", "calibrate", "lower"] {
        with(&["--stop-after", step, "-o", "part.onnx"]);
        let file = format!("steps/{}", dumped.iter().find(|d| d.ends_with(&format!("-{step}.onnx"))).unwrap());
        assert_eq!(operators(&folder, "part.onnx"), operators(&folder, &file), "{step}");
        // Quantizers are written once they have scales.
        assert_eq!(operators(&folder, "part.onnx").contains("QuantizeLinear"), ["calibrate", "lower"].contains(&step), "{step}");
    }
    let exact = folder.run(&["diff", "all.onnx", &format!("steps/{last}"), "--data", DATA]).ok();
    assert!(exact.stdout.contains("SQNR exact"), "{exact:?}");
    // A step's own name serves too.
    with(&["--set", "calibrate.id=ranges", "--stop-after", "ranges", "-o", "named.onnx"]);
    assert!(operators(&folder, "named.onnx").contains("QuantizeLinear"));
    folder.refuses(&[&few[..], &["--dump", DATA]].concat(), 2, &["--dump", DATA]);
    folder.refuses(&[&few[..], &["--dry-run", "--stop-after", "dream"]].concat(), 2, &["--stop-after", "dream"]);
}
