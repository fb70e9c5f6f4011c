//! Cross-checks in Python: scripts of `tests/python`, run with the interpreter of REQUANT_PYTHON, or of the `.venv` that `tests/run.sh` makes.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The interpreter.
pub fn interpreter() -> PathBuf {
    std::env::var_os("REQUANT_PYTHON").map(PathBuf::from).unwrap_or_else(|| crate::repository(".venv/bin/python"))
}

/// What `tests/python/<script>` prints when it is run with `args`, from the repository's root.
///
/// # Panics
/// If there is no interpreter or the script fails; the message carries what it wrote to stderr.
#[allow(dead_code)]
pub fn run(script: &str, args: &[&str]) -> String {
    let root = crate::repository("");
    let python = interpreter();
    let output = Command::new(&python)
        .arg(root.join("tests/python").join(script))
        .args(args)
        .current_dir(&root)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", root.join("tests/python/site"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{} does not start ({e}); run tests/run.sh, which makes .venv, or set REQUANT_PYTHON", python.display()));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "tests/python/{script} {args:?} ended with {}:\n{out}{err}", output.status);
    out.into_owned()
}

#[test]
fn the_pinned_packages_are_installed() {
    let versions = run("versions.py", &["tests/requirements.txt"]);
    assert_eq!(versions.trim(), "as pinned");
}
