//! `vars`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::table::{Cell, Table};
use crate::value::{Kind, Value};

/// List the variables: kind, content and bytes.
///
/// `name = load tiny` binds one, `$name` uses it. One is stale when a file that it was made of has changed since.
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
        let stale = |name: &str| session.stale(&format!("${name}"));
        let any = session.variables().keys().any(|name| stale(name).is_some());
        if any {
            table = table.column("stale");
        }
        for (name, value) in session.variables() {
            let mut row: Vec<Cell> = vec![
                format!("${name}").into(),
                value.kind().to_string().into(),
                value.nbytes().map_or(Cell::Missing, Cell::bytes),
                value.summary().into(),
            ];
            if any {
                row.push(stale(name).into());
            }
            table.push(row)?;
        }
        if table.is_empty() {
            table.note("there is none yet; `base = load tiny` binds one");
        }
        Ok(Value::Table(table))
    }
}
