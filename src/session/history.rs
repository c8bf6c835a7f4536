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
    /// What it did to the session.
    pub effect: Effect,
}

/// What a statement did to the session, for whoever brings it back without measuring everything again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that stays: it failed, or showed something.
    Nothing,
    /// It changed a setting, which `undo` does not take back.
    Setting,
    /// It made a model or bound a variable.
    State,
    /// It made a result that no variable holds, which `undo` takes back all the same.
    Result,
    /// It took the step before back.
    Undo,
    /// It did again what was taken back last.
    Redo,
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

    /// The shortest script that brings the models, variables and settings back as they are now: what only measured, and
    /// what was undone, is not in it.
    pub fn resume_script(&self) -> String {
        let mut kept: Vec<&HistoryLine> = Vec::new();
        let mut undone: Vec<&HistoryLine> = Vec::new();
        for line in &self.history {
            match line.effect {
                Effect::Nothing => {}
                Effect::Setting => kept.push(line),
                Effect::State | Effect::Result => {
                    kept.push(line);
                    undone.clear();
                }
                Effect::Undo => {
                    let last = kept.iter().rposition(|line| line.effect != Effect::Setting);
                    undone.extend(last.map(|at| kept.remove(at)));
                }
                Effect::Redo => kept.extend(undone.pop()),
            }
        }
        let mut script = format!(
            "# What a session held, by aolab {}: `aolab --resume` brings it back.\n",
            env!("CARGO_PKG_VERSION")
        );
        if self.first_seed != 0 {
            let _ = writeln!(script, "set seed {}", self.first_seed);
        }
        for line in kept.into_iter().filter(|line| line.effect != Effect::Result) {
            let _ = writeln!(script, "{}", line.source);
        }
        script
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
