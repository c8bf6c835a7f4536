//! What was done, as a script that does it again.

use std::fmt::Write as _;
use std::sync::Arc;

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
    /// It changed a setting. `undo` takes back the table that it showed, and not the setting.
    Setting,
    /// It ran a script, which may have done anything.
    Script,
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
            Arc::make_mut(&mut self.history).push(line);
        }
    }

    /// The shortest script that brings the models, variables and settings back as they are now: what only measured, and
    /// what was undone, is not in it.
    pub fn resume_script(&self) -> String {
        // Each line, and whether it still holds; the steps that `undo` goes back, and those that `redo` would do again.
        let mut kept: Vec<(&HistoryLine, bool)> = Vec::new();
        let (mut steps, mut undone): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for line in self.history.iter() {
            match line.effect {
                Effect::Nothing => {}
                Effect::Undo => {
                    // How many steps a script made is not known here: it stays.
                    let step = steps.pop_if(|at| kept[*at].0.effect != Effect::Script);
                    if let Some(at) = step {
                        kept[at].1 = kept[at].0.effect == Effect::Setting;
                        undone.push(at);
                    }
                }
                Effect::Redo => {
                    if let Some(at) = undone.pop() {
                        kept[at].1 = true;
                        steps.push(at);
                    }
                }
                _ => {
                    undone.clear();
                    steps.push(kept.len());
                    kept.push((line, true));
                }
            }
        }
        let mut script = format!(
            "# What a session held, by aolab {}: `aolab --resume` brings it back.\n",
            env!("CARGO_PKG_VERSION")
        );
        let mut lines: Vec<String> = Vec::new();
        if self.first_seed != 0 {
            lines.push(format!("set seed {}", self.first_seed));
        }
        for (line, _) in kept.iter().filter(|(line, holds)| *holds && line.effect != Effect::Result)
        {
            lines.push(line.source.clone());
        }
        // The first line may be the one that chose the seed.
        lines.dedup();
        for line in lines {
            let _ = writeln!(script, "{line}");
        }
        script
    }

    /// The history as a script that replays: what failed or was stopped is in it as comments.
    pub fn script(&self) -> String {
        let mut script = format!("# Written by aolab {}.\n", env!("CARGO_PKG_VERSION"));
        if self.first_seed != 0 {
            let _ = writeln!(script, "set seed {}", self.first_seed);
        }
        for line in self.history.iter() {
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
