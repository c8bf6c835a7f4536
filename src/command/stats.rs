//! `stats`

use super::eval::TextArgs;
use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::inspect::{activation_stats, parameter_stats};
use crate::session::Session;
use crate::value::{Kind, Value};

/// Log the largest magnitude, mean and spread of parameters or activations.
///
/// `stats activations | save log.csv` writes the columns of torchao's quant logger: tag, counter_val, fqn, op, max_abs, avg, std.
#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// What goes into every linear layer, one row a call
    Activations {
        #[command(flatten)]
        text: TextArgs,
    },
    /// Every weight, norm and bias, dequantized
    Parameters,
}

impl Command for Stats {
    const NAME: &'static str = "stats";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | stats activations --windows 1 | save log.csv",
            about: "where the outliers are",
            expect: "mlp.down_proj",
        },
        Example {
            line: "load tiny | stats parameters",
            about: "of the weights themselves",
            expect: "param",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = input.into_model()?;
        let cpu = session.cpu().clone();
        let task = session.task("reading");
        let progress = &mut |done, total| task.progress(done, total);
        let table = match &self.what {
            What::Activations { text } => {
                let (words, mut config) = text.read(session)?;
                // A row a layer and window: a few are enough to see by.
                config.windows = config.windows.or(Some(4));
                activation_stats(&model, &cpu, &words, &config, progress)?
            }
            What::Parameters => parameter_stats(&model, progress)?,
        };
        Ok(Value::Table(table))
    }
}
