//! `shapes`

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::inspect::shapes;
use crate::session::Session;
use crate::value::{Kind, Value};

/// List the op, shape and kernel of every linear layer.
#[derive(Debug, clap::Args)]
pub(super) struct Shapes {
    /// Rows of the activation, separated by commas: 1 for decoding, more for prompts
    #[arg(long, value_delimiter = ',', default_value = "1")]
    m: Vec<usize>,
}

impl Command for Shapes {
    const NAME: &'static str = "shapes";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | shapes --m 1,512",
            about: "what decoding and a prompt of 512 tokens multiply",
            expect: "model.layers.0.mlp.down_proj",
        },
        Example {
            line: "quantize tiny --fqn 're:.*down_proj' int8-weight-only --default int4-weight-only | shapes | plot layer-map --y stored",
            about: "where the bits went, as a picture",
            expect: "mlp.down_proj",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        if self.m.contains(&0) {
            return Err(Error::usage("--m 0 multiplies nothing; wanted 1 or more rows"));
        }
        shapes(&input.into_model()?, session.cpu(), &self.m).map(Value::Table)
    }
}
