//! `size`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::summary;
use crate::value::{Kind, Value};

/// Say how many bytes a model takes, and which parts take them.
#[derive(Debug, clap::Args)]
pub(super) struct Size {}

impl Command for Size {
    const NAME: &'static str = "size";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[Example {
        line: "load tiny | size",
        about: "parameters, bytes and bits per weight of each kind of layer",
        expect: "total",
    }];

    fn run(self, _session: &mut Session, input: Value) -> Result<Value> {
        summary::sizes(&input.into_model()?).map(Value::Table)
    }
}
