//! `roofline`

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::inspect::roofline;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Say how fast each linear layer can be on this machine, and how fast it is.
///
/// Bandwidth and arithmetic peaks are measured in the same run. `plot roofline` draws it.
#[derive(Debug, clap::Args)]
pub(super) struct Roofline {
    /// Rows of the activation, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1,128")]
    m: Vec<usize>,
    /// Seconds a case
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
}

impl Command for Roofline {
    const NAME: &'static str = "roofline";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const MEASURES: bool = true;
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | quantize int8-weight-only | roofline --m 1 --seconds 0.01",
            about: "predicted and measured, shape by shape",
            expect: "of the roof",
        },
        Example {
            line: "load tiny | quantize int8-weight-only | roofline --seconds 0.01 | plot roofline",
            about: "the rates, below the roofs of bandwidth and arithmetic",
            expect: "FLOP/byte",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        if !(self.seconds > 0.0 && self.seconds <= 60.0) {
            return Err(Error::usage(format!(
                "--seconds is {}; wanted above 0 and up to 60",
                self.seconds
            )));
        }
        if self.m.iter().any(|m| !(1..=65_536).contains(m)) {
            return Err(Error::usage("--m takes 1 to 65536 rows"));
        }
        let model = input.into_model()?;
        session.measures(&model, &self.m);
        let cpu = session.cpu().clone();
        let task = session.task("timing");
        let progress = &mut |done, total| task.progress(done, total);
        roofline(&model, &cpu, &self.m, self.seconds, progress).map(Value::Table)
    }
}
