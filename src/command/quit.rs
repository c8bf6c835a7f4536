//! `quit`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// End the session (so do `exit` and Ctrl-D).
#[derive(Debug, clap::Args)]
pub(super) struct Quit {}

impl Command for Quit {
    const NAME: &'static str = "quit";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Nothing);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "echo first; quit; echo never",
        about: "what stands behind it does not run",
        expect: "first",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        session.leaving = true;
        Ok(Value::Nothing)
    }
}
