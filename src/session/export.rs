//! What was done, as a notebook and as a Rust program: each does it again.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::history::Status;
use super::{HistoryLine, Session};
use crate::error::{Error, Result};
use crate::value::Value;

/// What a statement gave, for reports.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The statement.
    pub source: String,
    /// Its value, or what went wrong.
    pub result: std::result::Result<Value, String>,
    /// How long it took.
    pub took: Duration,
}

/// A report of more results than this is read by nobody, and costs memory.
const MOST_LOGGED: usize = 2000;

impl Session {
    /// Every result of this session, oldest first. Models are there by their summary only, so that the log keeps none alive.
    pub fn log_of_results(&self) -> &[Logged] {
        &self.logged
    }

    pub(crate) fn log(
        &mut self,
        source: &str,
        result: &Result<(Value, Vec<(String, f64)>)>,
        took: Duration,
    ) {
        if self.depth > 0 {
            return;
        }
        let result = match result {
            Ok((Value::Model(_) | Value::Tensor(_), _)) => Ok(result
                .as_ref()
                .map_or(Value::Nothing, |(value, _)| Value::Text(value.summary()))),
            Ok((value, _)) => Ok(value.clone()),
            Err(error) => Err(error.to_string()),
        };
        let logged = Arc::make_mut(&mut self.logged);
        if logged.len() == MOST_LOGGED {
            logged.remove(0);
        }
        logged.push(Logged { source: source.to_owned(), result, took });
    }

    /// The lines that do the session again: what succeeded and is worth repeating, after the seed that it began with.
    fn replayed(&self) -> Vec<String> {
        let seed = (self.first_seed != 0).then(|| format!("set seed {}", self.first_seed));
        let good = |line: &&HistoryLine| line.replays && line.status == Status::Done;
        let lines = self.history.iter().filter(good).map(|line| line.source.clone());
        seed.into_iter().chain(lines).collect()
    }

    /// The session as a notebook of command cells for aolab's own Jupyter kernel; `aolab run NAME.ipynb` runs it too.
    pub fn notebook(&self) -> Result<String> {
        let lines = |text: &str| text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>();
        let title = "# A session of aolab\n\nEach cell is a line of the command language.";
        let mut cells = vec![json!({
            "cell_type": "markdown", "id": "title", "metadata": {}, "source": lines(title),
        })];
        for (i, line) in self.replayed().iter().enumerate() {
            cells.push(json!({
                "cell_type": "code", "id": format!("line-{}", i + 1), "metadata": {},
                "execution_count": null, "outputs": [], "source": lines(line),
            }));
        }
        let notebook = json!({
            "cells": cells,
            "metadata": {
                "kernelspec": {"display_name": "aolab", "language": "aolab", "name": "aolab"},
                "language_info": {"name": "aolab", "file_extension": ".ao", "mimetype": "text/x-aolab"},
            },
            "nbformat": 4,
            "nbformat_minor": 5,
        });
        let text = serde_json::to_string_pretty(&notebook);
        text.map(|text| text + "\n").map_err(|error| Error::invalid(error.to_string()))
    }

    /// The session as a Rust program that needs the crate `aolab` alone.
    pub fn rust_program(&self) -> String {
        let mut program = format!(
            "//! A session of aolab {}, as a program.\n//!\n//! In an empty crate: `cargo add aolab`, put this into src/main.rs, and \
             `cargo run --release`.\n\nfn main() -> aolab::Result<()> {{\n    let mut lab = aolab::Session::new();\n",
            env!("CARGO_PKG_VERSION")
        );
        for line in self.replayed() {
            let hashes = "#".repeat(longest_run_of_hashes(&line) + 1);
            let call = format!("lab.run(r{hashes}\"{line}\"{hashes})?");
            let _ = writeln!(program, "    println!(\"{{}}\", {call});");
        }
        program.push_str("    Ok(())\n}\n");
        program
    }
}

/// A raw string ends at a quote with as many #: the longest row of them in the text must be shorter.
fn longest_run_of_hashes(text: &str) -> usize {
    text.split(|c| c != '#').map(str::len).max().unwrap_or(0)
}
