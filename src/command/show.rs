//! `show`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::session::Session;
use crate::summary;
use crate::value::{Kind, Value};

/// Show a model's layers: shape, workflow, bytes of each.
///
/// Blocks that are alike stand together as one; `--all` lists each.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// List every block, also those that are alike
    #[arg(long)]
    all: bool,
}

impl Command for Show {
    const NAME: &'static str = "show";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | show",
            about: "the tree of the built-in model",
            expect: "self_attn.q_proj",
        },
        Example {
            line: "show tiny --all",
            about: "the same, block by block",
            expect: "model.layers.1",
        },
    ];

    fn run(self, _session: &mut Session, input: Value) -> Result<Value> {
        summary::layers(&input.into_model()?, self.all).map(Value::Table)
    }
}
