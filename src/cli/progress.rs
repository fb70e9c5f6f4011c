//! Progress on stderr: a bar with the time left, on a terminal; nothing that moves anywhere else.

use super::args::Volume;
use super::print;
use crate::pass::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Shows progress as the command line asks.
pub struct Shown {
    volume: Volume,
    terminal: bool,
    running: Mutex<Option<Running>>,
}

struct Running {
    step: String,
    since: Instant,
    bar: ProgressBar,
}

impl Shown {
    pub fn new(volume: Volume) -> Self {
        Shown { volume, terminal: std::io::stderr().is_terminal(), running: Mutex::new(None) }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Progress for Shown {
    fn begin(&self, step: &str, total: u64) {
        self.end();
        let bar = match self.terminal && !self.volume.quiet {
            true => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let template = if total == 0 { "{spinner} {msg}  {elapsed}" } else { "{msg:24} {bar:32} {pos}/{len}  {eta} left" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(step.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.running() = Some(Running { step: step.to_string(), since: Instant::now(), bar });
    }

    fn tick(&self, n: u64) {
        if let Some(r) = &*self.running() {
            r.bar.inc(n);
        }
    }

    fn end(&self) {
        if let Some(r) = self.running().take() {
            r.bar.finish_and_clear();
            if self.volume.verbose {
                print::remark(&format!("{}: {:.2} s", r.step, r.since.elapsed().as_secs_f64()));
            }
        }
    }

    fn say(&self, line: &str) {
        if self.volume.quiet {
            return;
        }
        match &*self.running() {
            Some(r) => r.bar.suspend(|| print::remark(line)),
            None => print::remark(line),
        }
    }
}
