//! How long work tells whoever watches, and hears that it should stop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::table::Table;
use crate::value::Value;

/// What one statement gave.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The statement as it was written.
    pub source: &'a str,
    /// The variable that took the value.
    pub bound: Option<&'a str>,
    /// The value.
    pub value: &'a Value,
    /// How long each stage took, for a statement that began with `time`.
    pub timing: Option<Table>,
}

impl Outcome<'_> {
    /// What a person sees: the value, or one line for a value that went into a variable.
    pub fn to_text(&self, columns: Option<usize>, color: bool) -> String {
        let mut text = match self.bound {
            Some(name) => format!("{name} = {}", self.value.summary()),
            None => self.value.to_text(columns, color),
        };
        if let Some(timing) = &self.timing {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&timing.to_text(columns, color));
        }
        text
    }
}

/// Whoever shows what a session does: the terminal, a notebook, a test. Every method may do nothing.
pub trait FrontEnd: fmt::Debug + Send + Sync {
    /// A statement is done.
    fn result(&self, _outcome: &Outcome<'_>) {}

    /// A remark beside the results: a layer that was skipped, a convention.
    fn note(&self, _text: &str) {}

    /// A piece of a text that comes bit by bit; the whole text is the result at the end.
    fn stream(&self, _piece: &str) {}

    /// Of `total` steps of this work, `done` are done. At most one work is under way.
    fn progress(&self, _what: &str, _done: usize, _total: usize) {}

    /// The work has ended, done or not.
    fn end(&self) {}

    /// A heading or a line of a document that is being run.
    fn echo(&self, _line: &str) {}
}

/// Shows nothing: what a library user gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl FrontEnd for Silent {}

/// Long work under way. Dropping it takes its progress bar away.
#[derive(Debug)]
pub struct Task {
    front: Arc<dyn FrontEnd>,
    cancel: Arc<AtomicBool>,
    what: String,
}

impl Task {
    pub(super) fn new(front: Arc<dyn FrontEnd>, cancel: Arc<AtomicBool>, what: &str) -> Task {
        Task { front, cancel, what: what.to_owned() }
    }

    /// Says how far the work is; `false` when the person wants to stop. It fits the library's callbacks:
    /// `&mut |done, total| task.progress(done, total)`.
    pub fn progress(&self, done: usize, total: usize) -> bool {
        self.front.progress(&self.what, done, total);
        !self.cancelled()
    }

    /// Passes on a piece of text that comes bit by bit; `false` when the person wants to stop.
    pub fn stream(&self, piece: &str) -> bool {
        self.front.stream(piece);
        !self.cancelled()
    }

    /// Whether the person wants to stop.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] when the person wants to stop.
    pub fn check(&self) -> Result<()> {
        if self.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.front.end();
    }
}
