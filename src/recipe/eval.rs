//! `--eval COMMAND`: a figure that only the user's own program knows, such as mAP, of the float and of the converted model.

use crate::error::{Error, Result};
use crate::interrupt;
use std::path::Path;
use std::process::{Command, Stdio};

const MODEL: &str = "{model}";

/// Refuses a command that names no model.
pub fn check(command: &str) -> Result<()> {
    if command.contains(MODEL) {
        return Ok(());
    }
    Err(Error::usage(format!("--eval '{command}': say {MODEL} where the model's path belongs, such as 'python map.py {MODEL}'")))
}

/// Runs the command through the shell with the path of `model` in place of `{model}`. The number that it prints last on stdout.
///
/// # Errors
/// Where it cannot be started, ends with another code than 0, or prints something else last: with the last line that it wrote.
pub fn run(command: &str, model: &Path) -> Result<f64> {
    let path = model.to_str().ok_or_else(|| Error::usage(format!("--eval: the path {} is not UTF-8", model.display())))?;
    let line = command.replace(MODEL, &quoted(path));
    let fail = |why: String| Err(Error::failed(format!("--eval '{command}' on {path}: {why}")));
    let output = match Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(e) => return fail(format!("the shell cannot be started: {e}")),
    };
    interrupt::check()?;
    let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or_default().to_string();
    if !output.status.success() {
        let said = last(&output.stderr);
        return fail(format!("it ended with {}{}", output.status, if said.is_empty() { String::new() } else { format!(": {said}") }));
    }
    let said = last(&output.stdout);
    match said.split_whitespace().next_back().and_then(|word| word.parse::<f64>().ok()).filter(|x| x.is_finite()) {
        Some(x) => Ok(x),
        None if said.is_empty() => fail("it printed nothing; it must print one number last".into()),
        None => fail(format!("it must print one number last, and printed: {said}")),
    }
}

/// `text` as one word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts_and_any_path_is_one_word() {
        let path = Path::new("a dir/it's $HOME.onnx");
        assert_eq!(run("echo loading; echo 'mAP50: 0.25'; echo; : {model}", path).unwrap(), 0.25);
        assert_eq!(run("test {model} = \"a dir/it's \\$HOME.onnx\" && echo 1e-3", path).unwrap(), 0.001);
        check("cat {model}").unwrap();
        assert!(check("cat model").unwrap_err().to_string().contains("{model}"));
    }

    #[test]
    fn what_gives_no_number_is_said() {
        let fails = |command: &str, word: &str| {
            let e = run(command, Path::new("m.onnx")).unwrap_err();
            assert!(e.exit_code() == 1 && e.to_string().contains(word) && e.to_string().contains("m.onnx"), "{e}");
        };
        fails("echo broken >&2; exit 3", "broken");
        fails("exit 3", "3");
        fails(":", "printed nothing");
        fails("echo 5 apples", "5 apples");
        fails("echo nan", "nan");
    }
}
