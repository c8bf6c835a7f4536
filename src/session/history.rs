//! What was done, as a script that does it again.

use std::fmt::Write as _;

use super::Session;

/// How a statement ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It gave its value.
    Done,
    /// It failed, with these words.
    Failed(String),
    /// The person stopped it.
    Cancelled,
}

/// A statement that was run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryLine {
    /// As it was written.
    pub source: String,
    /// How it ended.
    pub status: Status,
    /// Whether replaying it would help: not `quit`, and not the saving of this history itself.
    pub replays: bool,
}

impl Session {
    /// Every statement that was run, oldest first.
    pub fn history(&self) -> &[HistoryLine] {
        &self.history
    }

    /// Keeps a statement. Those of a script are not kept: the line that ran the script is.
    pub(crate) fn remember_line(&mut self, line: HistoryLine) {
        if self.depth == 0 {
            self.history.push(line);
        }
    }

    /// The history as a script that replays: what failed or was stopped is in it as comments.
    pub fn script(&self) -> String {
        let mut script = format!("# Written by aolab {}.\n", env!("CARGO_PKG_VERSION"));
        if self.first_seed != 0 {
            let _ = writeln!(script, "set seed {}", self.first_seed);
        }
        for line in &self.history {
            let commented = || line.source.replace('\n', "\n#   ");
            let _ = match &line.status {
                _ if !line.replays => Ok(()),
                Status::Done => writeln!(script, "{}", line.source),
                Status::Cancelled => writeln!(script, "# stopped: {}", commented()),
                Status::Failed(why) => {
                    let why = why.lines().next().unwrap_or_default();
                    writeln!(script, "# failed: {}\n#   {why}", commented())
                }
            };
        }
        script
    }
}
