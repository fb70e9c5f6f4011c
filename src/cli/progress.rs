//! Progress on stderr: a bar with an estimate of the time left, on a terminal only; remarks as lines above it.

use super::args::Loudness;
use super::print;
use crate::pass::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

/// Shows progress and remarks, as far as they were asked for.
pub struct Shown {
    quiet: bool,
    terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Shown {
    pub fn of(loudness: Loudness) -> Self {
        Shown { quiet: loudness.quiet, terminal: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    fn with_bar(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        f(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Shown {
    fn begin(&self, step: &str, total: u64) {
        if self.quiet || !self.terminal {
            return;
        }
        let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() };
        let style = if total > 0 { "{msg:<20} {wide_bar} {pos}/{len}  {eta} left" } else { "{msg:<20} {spinner}" };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(step.to_string());
        self.with_bar(|b| *b = Some(bar));
    }

    fn tick(&self, n: u64) {
        self.with_bar(|b| {
            if let Some(bar) = b {
                bar.inc(n);
            }
        });
    }

    fn end(&self) {
        self.with_bar(|b| {
            if let Some(bar) = b.take() {
                bar.finish_and_clear();
            }
        });
    }

    fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        self.with_bar(|b| match b {
            Some(bar) => bar.suspend(|| print::remark(line)),
            None => print::remark(line),
        });
    }
}
