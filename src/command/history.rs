//! `history`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::{HistoryLine, Session, Status};
use crate::value::{Kind, Value};

/// List what was run in this session; `save NAME.ao` keeps it as a script.
#[derive(Debug, clap::Args)]
pub(super) struct History {}

impl Command for History {
    const NAME: &'static str = "history";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Text);
    const REPLAYS: bool = false;
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny; size; history",
        about: "two lines, numbered",
        expect: "2  size",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let lines: Vec<String> =
            session.history().iter().enumerate().map(|(i, line)| numbered(i + 1, line)).collect();
        Ok(Value::Text(lines.join("\n")))
    }
}

fn numbered(number: usize, line: &HistoryLine) -> String {
    let source = line.source.replace('\n', "\n      ");
    let end = match &line.status {
        Status::Done => "",
        Status::Failed(_) => "   # failed",
        Status::Cancelled => "   # stopped",
    };
    format!("{number:4}  {source}{end}")
}
