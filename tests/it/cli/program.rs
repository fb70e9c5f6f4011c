//! Runs the program in a folder of its own and looks at what it leaves there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that holds the model of the main job and its data; it goes when dropped.
pub struct Folder(tempfile::TempDir);

pub const MODEL: &str = "kws.onnx";
pub const DATA: &str = "data.npz";

impl Folder {
    /// An empty folder.
    pub fn empty() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    /// With `kws.onnx` and 64 samples of data, `data.npz`.
    pub fn new() -> Self {
        let folder = Folder::empty();
        std::fs::copy(crate::repository("models/kws_dscnn.onnx"), folder.path(MODEL)).unwrap();
        std::fs::copy(crate::repository("models/kws_calibration.npz"), folder.path(DATA)).unwrap();
        folder
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(file), bytes).unwrap();
    }

    /// Every file below, with its content.
    pub fn listing(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        list(self.0.path(), &mut files);
        files
    }

    /// The program, to be run in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_requant"));
        command.args(args).current_dir(self.0.path()).env_remove("NO_COLOR").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    /// Runs it and demands: this exit code, one sentence on stderr that holds each of `words`, nothing on stdout, nothing left behind.
    pub fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.listing();
        let run = self.run(args);
        assert_eq!(run.code, Some(code), "{args:?} ended with {run:?}");
        let errors: Vec<&str> = run.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{args:?} ended with {run:?}");
        assert_eq!(run.stderr.lines().last(), Some(errors[0]), "something follows the error: {run:?}");
        for word in words {
            assert!(errors[0].contains(word), "{word:?} is not in: {}", errors[0]);
        }
        for trace in ["panicked", "called `", "Os {", "src/", "ParseError"] {
            assert!(!run.stderr.contains(trace), "{trace:?} is in: {}", run.stderr);
        }
        self.is_as(&before);
    }

    /// Demands that nothing was added, changed or removed since `before`.
    pub fn is_as(&self, before: &BTreeMap<PathBuf, Vec<u8>>) {
        let after = self.listing();
        let names = |l: &BTreeMap<PathBuf, Vec<u8>>| l.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(before), names(&after));
        assert!(*before == after, "a file changed");
    }
}

fn list(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.insert(path.clone(), Vec::new());
            list(&path, files);
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Demands success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}
