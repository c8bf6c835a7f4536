//! `echo`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Give its words as text.
#[derive(Debug, clap::Args)]
pub(super) struct Echo {
    /// The words, joined by spaces
    #[arg(value_name = "WORD", allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

impl Command for Echo {
    const NAME: &'static str = "echo";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const EXAMPLES: &'static [Example] = &[Example {
        line: "echo 'four bits:' done",
        about: "say something between the steps of a script",
        expect: "four bits: done",
    }];

    fn run(self, _session: &mut Session, _input: Value) -> Result<Value> {
        Ok(Value::Text(self.words.join(" ")))
    }
}
