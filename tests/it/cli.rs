//! The program as users meet it: bad input gets one sentence and the right exit code, and leaves nothing behind.

mod convert;
mod loops;
mod models;
mod program;
mod search;

use program::Folder;

#[test]
fn usage_errors_are_2_and_help_is_0() {
    let folder = Folder::empty();
    for args in [&["inspect"][..], &["inspect", "a.onnx", "--no-such-flag"], &["no-such-command"], &["completions", "no-such-shell"]] {
        assert_eq!(folder.run(args).code, Some(2), "{args:?}");
    }
    let help = folder.run(&["--help"]).ok();
    assert!(help.stdout.contains("inspect"));
    folder.run(&["--version"]).ok();
    assert!(folder.run(&["completions", "bash"]).ok().stdout.contains("requant"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    let mut child = folder.command(&["inspect", program::MODEL]).spawn().unwrap();
    drop(child.stdout.take());
    let run = program::Run::of(child.wait_with_output().unwrap()).ok();
    assert_eq!(run.stderr, "");
}
