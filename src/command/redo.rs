//! `redo`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Do again what `undo` took back.
#[derive(Debug, clap::Args)]
pub(super) struct Redo {}

impl Command for Redo {
    const NAME: &'static str = "redo";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const CHANGES_VARIABLES: bool = true;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "a = load tiny; undo; redo; $a",
        about: "$a is back, without loading it again",
        expect: "redone: a = load tiny",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        Ok(Value::Text(format!("redone: {}", session.redo()?)))
    }
}
