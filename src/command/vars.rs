//! `vars`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::value::{Kind, Value};

/// List the variables: kind, content and bytes.
///
/// `name = load tiny` binds one, `$name` uses it.
#[derive(Debug, clap::Args)]
pub(super) struct Vars {}

impl Command for Vars {
    const NAME: &'static str = "vars";
    const GROUP: Group = Group::Session;
    const INPUT: &'static [Kind] = &[Kind::Nothing];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[Example {
        line: "base = load tiny; sizes = size; vars",
        about: "a model and a table under names",
        expect: "$sizes",
    }];

    fn run(self, session: &mut Session, _input: Value) -> Result<Value> {
        let mut table =
            Table::new("Variables").column("name").column("kind").column("bytes").column("content");
        for (name, value) in session.variables() {
            table.push([
                format!("${name}").into(),
                value.kind().to_string().into(),
                value.nbytes().map_or(Cell::Missing, Cell::bytes),
                value.summary().into(),
            ])?;
        }
        if table.is_empty() {
            table.note("there is none yet; `base = load tiny` binds one");
        }
        Ok(Value::Table(table))
    }
}
