//! `requant convert`: what is refused, what is left behind, what is written.

use super::program::{DATA, Folder, MODEL, Run};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

/// `convert kws.onnx --data data.npz …`
fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["convert", MODEL, "--data", DATA][..], more].concat()
}

/// A folder whose recipe `my.yaml` has these lines.
fn with_recipe(text: impl AsRef<[u8]>) -> Folder {
    let folder = Folder::new();
    folder.write("my.yaml", text);
    folder
}

fn refuses_recipe(text: &str, words: &[&str]) {
    with_recipe(text).refuses(&with(&["-r", "my.yaml"]), 2, words);
}

#[test]
fn recipes_that_cannot_hold_are_refused() {
    refuses_recipe("weights: { bits: 8 }\nactivatons: { bits: 8 }\n", &["my.yaml:2:1", "activatons", "activations"]);
    refuses_recipe("extends: int8\nsteps:\n  - calibrate: { activations: { methd: minmax } }\n", &["my.yaml:3:", "methd", "method"]);
    refuses_recipe("extends: int8\ndata: { samples: many }\n", &["my.yaml:2:", "many"]);
    refuses_recipe("extends: int8\nsteps: [ quantise ]\n", &["my.yaml:2:", "quantise"]);
    refuses_recipe("extends: int8\nsteps: [ fold-constants, calibrate, place ]\n", &["calibrate", "place", "must stand before"]);
    refuses_recipe("extends: int8\nsteps: [ place, calibrate ]\n", &["lower"]);
    refuses_recipe("extends: int8\ntarget: no-such-chip\n", &["my.yaml:2:", "no-such-chip", "generic"]);
    refuses_recipe("extends: nothing\n", &["my.yaml:1:", "nothing"]);
    refuses_recipe("extends: int8\nweights: { format: float3 }\n", &["my.yaml:2:", "float3"]);
    refuses_recipe("extends: int8\noverrides: [ { nodes: \"/nowhere/**\", keep: float } ]\n", &["overrides[0]", "matches nothing", "optional: true"]);
    refuses_recipe("", &["my.yaml", "empty"]);
    refuses_recipe("\t- x", &["my.yaml:1:"]);
}

#[test]
fn an_alias_bomb_is_refused_at_once() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        text += &format!("a{i}: &a{i} [{refs}]\n");
    }
    let started = std::time::Instant::now();
    refuses_recipe(&text, &["my.yaml"]);
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn the_command_line_is_held_to_the_recipe_too() {
    let folder = Folder::new();
    folder.refuses(&with(&["-r", "no-such-recipe"]), 2, &["no-such-recipe", "int8"]);
    folder.refuses(&with(&["--target", "no-such-chip"]), 2, &["no-such-chip", "generic"]);
    folder.refuses(&with(&["--set", "calibrate.activations.methd=minmax"]), 2, &["--set", "methd", "method"]);
    folder.refuses(&with(&["--set", "samples"]), 2, &["--set", "samples"]);
    folder.refuses(&with(&["--set", "data.samples=0"]), 2, &["--set", "data.samples"]);
    folder.refuses(&with(&["--fix-dim", "batch"]), 2, &["--fix-dim", "batch"]);
    folder.refuses(&with(&["--exclude", "/nowhere/**"]), 2, &["matches nothing"]);
    folder.refuses(&with(&["--stop-after", "dream"]), 2, &["--stop-after", "dream"]);
    folder.refuses(&["convert", MODEL, "--validate-data", DATA], 2, &["--data"]);
    folder.refuses(&["convert", MODEL], 2, &["--data"]);
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let folder = Folder::new();
    crate::python::run("bad_data.py", &[folder.path("").to_str().unwrap()]);
    let refuses = |file: &str, words: &[&str]| folder.refuses(&["convert", MODEL, "--data", file], 2, words);
    refuses("nowhere.npz", &["nowhere.npz", "does not exist"]);
    refuses("name.npz", &["name.npz", "picture", "sound", "input"]);
    refuses("rank.npz", &["rank.npz", "input"]);
    refuses("shape.npz", &["shape.npz", "input"]);
    refuses("type.npz", &["type.npz", "input", "float64", "float32"]);
    refuses("nan.npz", &["nan.npz", "input", "NaN"]);
    refuses("infinite.npz", &["infinite.npz", "input", "inf"]);
    refuses("none.npz", &["none.npz", "no sample"]);
    refuses("cut.npz", &["cut.npz"]);
    refuses("text.npz", &["text.npz"]);
    refuses("random:0", &["random:0"]);
    std::fs::create_dir(folder.path("empty")).unwrap();
    refuses("empty", &["empty"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_any_work() {
    let folder = Folder::new();
    folder.refuses(&with(&["-o", "none/out.onnx"]), 2, &["none", "does not exist"]);
    folder.refuses(&with(&["-o", MODEL]), 2, &[MODEL, "never changed"]);
    folder.write("theirs.onnx", "somebody's");
    folder.refuses(&with(&["-o", "theirs.onnx"]), 2, &["theirs.onnx", "--force"]);
    std::fs::create_dir(folder.path("locked")).unwrap();
    std::fs::set_permissions(folder.path("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Nothing is read-only to root.
    if std::fs::write(folder.path("locked/try"), "").is_err() {
        folder.refuses(&with(&["-o", "locked/out.onnx"]), 2, &["locked", "permission"]);
    }
}

/// A read-only file system refuses root too.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_file_system_is_refused() {
    let folder = Folder::new();
    folder.refuses(&with(&["-o", "/proc/out.onnx"]), 2, &["/proc"]);
}

#[test]
fn the_main_job_writes_a_model_and_a_report() {
    let folder = Folder::new();
    let run = folder.run(&with(&[])).ok();
    assert!(folder.path("kws.int8.onnx").exists() && folder.path("kws.int8.report.json").exists());
    assert!(run.stdout.lines().all(|l| l.chars().count() <= 100), "{}", run.stdout);
    for word in ["SQNR", "coverage"] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
    for word in ["target", "generic", "weights", "activations", "samples", "64"] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    let files: Vec<_> = folder.listing().into_keys().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(files, [DATA, "kws.int8.onnx", "kws.int8.report.json", MODEL]);
    // Its own output may be replaced.
    let first = std::fs::read(folder.path("kws.int8.onnx")).unwrap();
    let quiet = folder.run(&with(&["-q"])).ok();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert!(first == std::fs::read(folder.path("kws.int8.onnx")).unwrap(), "twice in a row, the same bytes");
}

#[test]
fn without_samples_that_judge_the_model_is_written_unvalidated() {
    let folder = Folder::new();
    let run = folder.run(&with(&["-r", "int8-fast", "--set", "data.validate=0"])).ok();
    assert!(run.stdout.contains("unvalidated: no sample judges") && run.stderr.contains("none judges"), "{run:?}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path("kws.int8-fast.report.json")).unwrap()).unwrap();
    assert_eq!((&report["validated"], &report["outputs"]), (&false.into(), &serde_json::json!([])));
    assert!(folder.path("kws.int8-fast.onnx").exists());
    // What was not measured cannot pass a gate.
    assert_eq!(folder.run(&with(&["--set", "data.validate=0", "--set", "gate.sqnr_db=1"])).code, Some(1));
}

#[test]
fn a_gate_that_is_missed_keeps_the_report_and_not_the_model() {
    let folder = Folder::new();
    let run = folder.run(&with(&["--set", "gate.sqnr_db=200"]));
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("gate") && run.stderr.contains("sqnr_db"), "{run:?}");
    assert!(!folder.path("kws.int8.onnx").exists() && folder.path("kws.int8.report.json").exists());
    let run = folder.run(&with(&["--set", "gate.sqnr_db=200", "--keep-failed"]));
    assert_eq!(run.code, Some(1));
    assert!(folder.path("kws.int8.onnx").exists());
}

#[test]
fn no_steps_write_the_model_back_as_it_was() {
    let folder = Folder::new();
    folder.run(&["convert", MODEL, "--set", "steps=[]", "-o", "copy.onnx"]).ok();
    assert!(std::fs::read(folder.path(MODEL)).unwrap() == std::fs::read(folder.path("copy.onnx")).unwrap());
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = Folder::new();
    let before = folder.listing();
    let run = folder.run(&with(&["--dry-run"])).ok();
    for word in ["# recipe", "# plan", "# estimate", "calibrate", "MiB"] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
    folder.is_as(&before);
}

#[test]
fn the_lists_and_explanations_answer() {
    let folder = Folder::new();
    for (args, word) in [
        (&["recipes"][..], "int8"),
        (&["recipes", "int8"], "steps:"),
        (&["targets"], "generic"),
        (&["targets", "generic"], "quantize:"),
        (&["steps"], "calibrate"),
        (&["steps", "calibrate"], "activations.method"),
        (&["formats"], "float8e4m3fn"),
        (&["formats", "float4e2m1"], "0.5"),
        (&["schema"], "\"properties\""),
        (&["explain", MODEL, "**"], "because:"),
        (&["diff", MODEL, MODEL, "--data", DATA], "exact"),
    ] {
        let run = folder.run(args).ok();
        assert!(run.stdout.contains(word), "{args:?}: {}", run.stdout);
    }
    folder.refuses(&["recipes", "int9"], 2, &["int9", "int8"]);
    folder.refuses(&["explain", MODEL, "no-such-node"], 2, &["no-such-node"]);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let folder = Folder::new();
    let before = folder.listing();
    for wait in [20, 60, 120, 250] {
        let args = with(&["--data", "random:100000", "--set", "data.samples=100000"]);
        let args: Vec<&str> = args.into_iter().enumerate().filter(|(i, _)| *i != 2 && *i != 3).map(|(_, a)| a).collect();
        let child = folder.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        assert!(matches!(run.code, Some(130) | None), "{run:?}");
        folder.is_as(&before);
    }
}
