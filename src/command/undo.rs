//! `undo`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Take back the last statement that changed the model, a result or a variable.
#[derive(Debug, clap::Args)]
pub(super) struct Undo {}

impl Command for Undo {
    const NAME: &'static str = "undo";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const CHANGES_VARIABLES: bool = true;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "a = load tiny; b = load tiny; undo; vars",
        about: "$b is gone, $a is still there",
        expect: "undone: b = load tiny",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        Ok(Value::Text(format!("undone: {}", session.undo()?)))
    }
}
