//! `run`

use std::path::PathBuf;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::value::{Kind, Value};

/// Run a script (.ao), a document's blocks (.md) or a notebook's cells (.ipynb).
///
/// In a document the blocks that begin with ```ao run in order. A block ```output after one says what it
/// must have shown, line by line, each in a line of the output: `…` stands for any words, ~44.3 for a number within 1 % of it, ~44.3±0.5
/// for one within 0.5. What is missing is an error that names the line.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The script or document
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Scripts that run one another deeper than this run themselves.
const DEEPEST: usize = 16;

impl Command for Run {
    const NAME: &'static str = "run";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Nothing);
    const CHANGES_VARIABLES: bool = true;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny; size; save steps.ao; run steps.ao",
        about: "do again what was done before",
        expect: "total",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        if session.depth >= DEEPEST {
            let file = self.file.display();
            return Err(Error::invalid(format!(
                "{file} is {DEEPEST} scripts deep: does it run itself?"
            )));
        }
        session.depth += 1;
        let result = session.run_file(&self.file);
        session.depth -= 1;
        result.map(|_| Value::Nothing)
    }
}
