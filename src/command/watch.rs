//! `watch`

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Run a script or document, and again whenever it changes, until Ctrl-C.
///
/// Write it in an editor beside, and see what each change does. A mistake in it is shown and ends nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// The script (.ao), document (.md) or notebook (.ipynb)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// End after so many runs
    #[arg(long, value_name = "COUNT")]
    runs: Option<usize>,
}

/// How often the file is looked at: well below what a person notices.
const LOOK: Duration = Duration::from_millis(50);

impl Command for Watch {
    const NAME: &'static str = "watch";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Nothing);
    const CHANGES_VARIABLES: bool = true;
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny; size; save steps.ao; watch steps.ao --runs 1",
        about: "without --runs it goes on at every change",
        expect: "total",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let file = self.file.display().to_string();
        for run in 1.. {
            let before = stamp(&self.file);
            session.depth += 1;
            let result = session.run_file(&self.file);
            session.depth -= 1;
            match result {
                // A file that is not there at first is a mistake; later, an editor is replacing it.
                Err(error) if run == 1 && before.is_none() => return Err(error),
                Err(error) if !error.is_cancelled() => session.note(&format!("error: {error}")),
                _ => {}
            }
            if self.runs.is_some_and(|runs| run >= runs) {
                break;
            }
            session.note(&format!("{file} is watched; Ctrl-C ends it"));
            if !changed(session, &self.file, before) {
                // To stop is how this command ends.
                session.clear_cancelled();
                break;
            }
        }
        Ok(Value::Nothing)
    }
}

type Stamp = Option<(SystemTime, u64)>;

fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some((found.modified().ok()?, found.len()))
}

/// Waits until the file is another and has been so for a moment; `false` when the person stops.
fn changed(session: &Session, file: &Path, before: Stamp) -> bool {
    let mut last = before;
    loop {
        if session.cancelled() {
            return false;
        }
        std::thread::sleep(LOOK);
        let now = stamp(file);
        // An editor that is still writing changes it again.
        if now.is_some() && now != before && now == last {
            return true;
        }
        last = now;
    }
}
