//! What a person sees of long work: one line a step, on stderr; stdout is for data.

use crate::build::{Outcome, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::Write;
use std::time::Duration;

/// Prints steps: on a terminal with a moving line for the present one, else one plain line each.
#[derive(Debug)]
pub struct Report {
    bar: ProgressBar,
    moving: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// A report to stderr.
    #[must_use]
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let moving = !bar.is_hidden();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        Self { bar, moving }
    }

    /// A step begins.
    pub fn begin(&mut self, step: &str) {
        self.bar.reset_elapsed();
        self.bar.set_prefix(step.to_owned());
        self.bar.set_message("");
        if self.moving {
            self.bar.enable_steady_tick(Duration::from_millis(120));
        }
    }

    /// What the present step is at.
    pub fn at(&mut self, detail: &str) {
        self.bar.set_message(detail.to_owned());
    }

    /// A step has ended.
    pub fn end(&mut self, step: &str, how: &str, took: Duration) {
        self.bar.disable_steady_tick();
        self.line(&format!("  {how:<7} {:>7.1} s  {step}", took.as_secs_f64()));
        self.bar.set_prefix("");
    }

    /// Something to know.
    pub fn line(&mut self, text: &str) {
        if self.moving {
            self.bar.println(text);
        } else {
            say(text);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Report {
    fn started(&mut self, step: &str) {
        self.begin(step);
    }

    fn finished(&mut self, step: &str, outcome: Outcome, took: Duration) {
        let how = match outcome {
            Outcome::Built => "built",
            Outcome::Cached => "cached",
        };
        self.end(step, how, took);
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("  note: {text}"));
    }

    fn aside(&mut self, talk: &mut dyn FnMut()) {
        self.bar.suspend(talk);
    }
}

/// A line for people.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A line of data. A reader that has seen enough is no failure.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
