//! Whole scripts: `.ao` files, and Markdown documents with blocks that run.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Context as _, Error, Result};
use crate::io::files;
use crate::language::markdown::{Piece, first_missing, pieces};
use crate::language::{Fault, Program, line_number};
use crate::session::{FrontEnd, Outcome, Session};
use crate::value::Value;

/// Longer files are not written by people.
const LARGEST_SCRIPT: u64 = 16 << 20;

impl Session {
    /// Runs a file: a `.md` document, an `.ipynb` notebook of command cells or, by any other name, a script.
    pub fn run_file(&mut self, path: &Path) -> Result<Value> {
        let bytes = files::read(path, LARGEST_SCRIPT)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::file(path, "wanted a text in UTF-8, got other bytes"))?;
        let name = path.display().to_string();
        self.touches(path);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("md") => self.run_markdown(&name, &text),
            Some("ipynb") => self.run_script(&name, &cells_of(path, &text)?),
            _ => self.run_script(&name, &text),
        }
    }

    /// Runs the text of a script. All of it is checked before its first line runs; errors name the line.
    pub fn run_script(&mut self, name: &str, text: &str) -> Result<Value> {
        self.run_lines(name, text, 1, false)
    }

    /// `first` is the number of the first line of `text` in the file; with `echo`, each statement is shown
    /// before its result.
    fn run_lines(&mut self, name: &str, text: &str, first: usize, echo: bool) -> Result<Value> {
        let place = |at: usize| format!("{name}:{}", first - 1 + line_number(text, at));
        let located = |fault: Fault| {
            let part = place(fault.span.start);
            Error::In { part, source: Box::new(fault.into_error(text)) }
        };
        let program = self.check_source(text).map_err(located)?;
        let mut last = Value::Nothing;
        for statement in program.statements {
            let at = statement.span.start;
            if echo {
                self.front_end().echo(&format!("› {}", &text[statement.span.clone()]));
            }
            let one = Program { statements: vec![statement] };
            last = self.run_program(text, &one).within(place(at))?;
            if self.leaving {
                break;
            }
        }
        Ok(last)
    }

    /// Runs the ```` ```ao ```` blocks of a document in order, in this session. A ```` ```output ```` block after one
    /// says what it must have shown: see [`first_missing`].
    pub fn run_markdown(&mut self, name: &str, document: &str) -> Result<Value> {
        let mut last = Value::Nothing;
        let mut shown = String::new();
        for piece in pieces(document) {
            match piece {
                Piece::Heading(heading) => self.front_end().echo(&format!("\n{heading}\n")),
                Piece::Code { text, line } => {
                    let recorder = Arc::new(Recorder::of(Arc::clone(self.front_end())));
                    let front = self.set_front_end(Arc::clone(&recorder) as Arc<dyn FrontEnd>);
                    let result = self.run_lines(name, &text, line, true);
                    self.set_front_end(front);
                    last = result?;
                    shown = recorder.text();
                }
                Piece::Output { text, line } => {
                    if let Some((i, wanted)) = first_missing(&text, &shown) {
                        return Err(not_shown(&format!("{name}:{}", line + i), wanted, &shown));
                    }
                }
            }
            if self.leaving {
                break;
            }
        }
        Ok(last)
    }
}

/// The command cells of a notebook, one below the other.
fn cells_of(path: &Path, text: &str) -> Result<String> {
    let wrong = |words: &str| Error::file(path, format!("not a notebook: {words}"));
    let notebook: serde_json::Value =
        serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
    let cells = notebook["cells"].as_array().ok_or_else(|| wrong("it has no list of cells"))?;
    let mut script = String::new();
    for (i, cell) in cells.iter().enumerate().filter(|(_, cell)| cell["cell_type"] == "code") {
        let source = match &cell["source"] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(lines) => {
                lines.iter().map(|line| line.as_str().unwrap_or_default()).collect()
            }
            _ => return Err(wrong(&format!("cell {} has no source", i + 1))),
        };
        if source.trim_start().starts_with("%%") {
            let magic = source.trim_start().lines().next().unwrap_or_default();
            let words = format!("cell {} is {magic}, which only Jupyter runs", i + 1);
            return Err(Error::file(path, words));
        }
        script.push_str(&source);
        script.push('\n');
    }
    Ok(script)
}

fn not_shown(place: &str, wanted: &str, shown: &str) -> Error {
    let got: Vec<String> = shown.lines().map(|line| format!("  {line}")).collect();
    let wanted = wanted.trim();
    Error::invalid(format!(
        "{place}: the block before did not show this line (after those above it):\nwanted\n  {wanted}\ngot\n{}",
        got.join("\n")
    ))
}

/// Keeps the text of results while another front end shows them.
#[derive(Debug)]
struct Recorder {
    inner: Arc<dyn FrontEnd>,
    text: Mutex<String>,
}

impl Recorder {
    fn of(inner: Arc<dyn FrontEnd>) -> Recorder {
        Recorder { inner, text: Mutex::default() }
    }

    fn add(&self, text: &str) {
        let mut all = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_str(text);
        all.push('\n');
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl FrontEnd for Recorder {
    fn result(&self, outcome: &Outcome<'_>) {
        self.add(&outcome.to_text(None, false));
        self.inner.result(outcome);
    }

    fn note(&self, text: &str) {
        self.add(text);
        self.inner.note(text);
    }

    fn stream(&self, piece: &str) {
        self.inner.stream(piece);
    }

    fn progress(&self, what: &str, done: usize, total: usize) {
        self.inner.progress(what, done, total);
    }

    fn end(&self) {
        self.inner.end();
    }

    fn echo(&self, line: &str) {
        self.inner.echo(line);
    }
}
