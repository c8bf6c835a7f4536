//! Results on standard output; remarks, errors and progress bars on standard error.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aolab::session::{FrontEnd, Outcome};
use aolab::{Error, Result, Value};
use indicatif::{ProgressBar, ProgressStyle};

use super::Environment;
use super::arguments::Arguments;

/// How things are shown.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Style {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    /// Colors on standard output.
    pub(crate) color: bool,
    /// Colors on standard error.
    color_errors: bool,
    /// Whether standard output is a terminal, which has a width.
    terminal: bool,
}

impl Style {
    pub(super) fn of(arguments: &Arguments, environment: &Environment) -> Style {
        let terminal = io::stdout().is_terminal();
        let may_color = !(arguments.no_color || environment.no_color || environment.dumb_terminal);
        Style {
            json: arguments.json,
            quiet: arguments.quiet,
            color: may_color && terminal && !arguments.json,
            color_errors: may_color && io::stderr().is_terminal(),
            terminal,
        }
    }

    /// The columns of the terminal; `None` where the output goes elsewhere.
    fn columns(self) -> Option<usize> {
        let size = || console::Term::stdout().size_checked();
        let (_, columns) = self.terminal.then(size)??;
        (columns > 0).then(|| usize::from(columns))
    }
}

/// The front end of the program.
#[derive(Debug)]
pub(crate) struct Terminal {
    style: Style,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bar: Option<ProgressBar>,
    /// What has been streamed of a text whose result is still to come.
    streamed: String,
    /// Why standard output cannot be written any more.
    failed: Option<io::Error>,
}

impl Terminal {
    pub(super) fn new(style: Style, stop: Arc<AtomicBool>) -> Terminal {
        Terminal { style, stop, state: Mutex::default() }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the reader of our output closed it.
    pub(crate) fn reader_left(&self) -> bool {
        self.state().failed.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What went wrong with standard output, if anything did.
    pub(super) fn finish(&self) -> Result<()> {
        let flushed = io::stdout().flush().err();
        match self.state().failed.take().or(flushed) {
            Some(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::Io { path: "standard output".into(), source })
            }
            _ => Ok(()),
        }
    }

    /// Shows an error in words.
    pub(crate) fn error(&self, error: &Error) {
        self.clear_bar();
        self.end_stream();
        let mark = if self.style.color_errors { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        // Where standard error is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "{mark} {error}");
    }

    /// A remark of the program itself.
    pub(crate) fn remark(&self, text: &str) {
        self.note(text);
    }

    fn print(&self, text: &str) {
        let written = {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        if let Err(error) = written {
            // Nobody sees further results: what runs may stop.
            self.stop.store(true, Ordering::Relaxed);
            self.state().failed.get_or_insert(error);
        }
    }

    fn clear_bar(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Ends the line of a text that was streamed and did not come to its end.
    fn end_stream(&self) {
        let streamed = std::mem::take(&mut self.state().streamed);
        if !streamed.is_empty() && !streamed.ends_with('\n') {
            self.print("\n");
        }
    }

    fn result_as_json(&self, outcome: &Outcome<'_>) {
        let shown = !matches!(outcome.value, Value::Nothing) && outcome.bound.is_none();
        if shown {
            self.print(&format!("{}\n", outcome.value.to_json()));
        }
        if let Some(timing) = &outcome.timing {
            self.print(&format!("{}\n", timing.to_json()));
        }
    }
}

impl FrontEnd for Terminal {
    fn result(&self, outcome: &Outcome<'_>) {
        self.clear_bar();
        if self.style.json {
            return self.result_as_json(outcome);
        }
        let text = outcome.to_text(self.style.columns(), self.style.color);
        let streamed = std::mem::take(&mut self.state().streamed);
        let rest = text.strip_prefix(streamed.as_str()).unwrap_or(&text);
        if !text.is_empty() {
            self.print(&format!("{}\n", rest.trim_end_matches('\n')));
        }
    }

    fn note(&self, text: &str) {
        if self.style.quiet {
            return;
        }
        self.clear_bar();
        let text =
            if self.style.color_errors { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() };
        let _ = writeln!(io::stderr(), "{text}");
    }

    fn stream(&self, piece: &str) {
        if self.style.json {
            return;
        }
        self.clear_bar();
        self.state().streamed.push_str(piece);
        self.print(piece);
    }

    fn progress(&self, what: &str, done: usize, total: usize) {
        if self.style.quiet || !io::stderr().is_terminal() {
            return;
        }
        let mut state = self.state();
        let bar = state.bar.get_or_insert_with(|| new_bar(self.style.color_errors));
        bar.set_length(total as u64);
        bar.set_message(what.to_owned());
        bar.set_position(done as u64);
    }

    fn end(&self) {
        self.clear_bar();
    }

    fn echo(&self, line: &str) {
        if self.style.quiet || self.style.json {
            return;
        }
        match (self.style.color, line.trim_start().starts_with('#')) {
            (true, true) => self.print(&format!("\x1b[1m{line}\x1b[0m\n")),
            (true, false) => self.print(&format!("\x1b[36m{line}\x1b[0m\n")),
            (false, _) => self.print(&format!("{line}\n")),
        }
    }
}

fn new_bar(color: bool) -> ProgressBar {
    let bar = if color { "{bar:24.cyan/dim}" } else { "{bar:24}" };
    let template = format!("{{msg}} {bar} {{pos}}/{{len}}, {{elapsed}} gone, {{eta}} to go");
    // A template that does not parse would be a mistake above; the default bar still tells how far it is.
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
