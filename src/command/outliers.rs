//! `outliers`

use super::eval::TextArgs;
use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::inspect::channels;
use crate::session::Session;
use crate::value::{Kind, Value};

/// Find input channels many times as large as the others, layer by layer.
///
/// They are what makes activations hard to quantize, and what smoothquant and spinquant are for.
/// `--map KIND` gives the channels of one kind of layer, to be drawn with `plot heat-map`.
#[derive(Debug, clap::Args)]
pub(super) struct Outliers {
    /// Channels by blocks of this kind of layer, such as self_attn.q_proj
    #[arg(long, value_name = "KIND")]
    map: Option<String>,
    /// With --map: at most so many runs of neighbouring channels
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=4096))]
    buckets: u32,
    #[command(flatten)]
    text: TextArgs,
}

impl Command for Outliers {
    const NAME: &'static str = "outliers";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Model];
    const OUTPUT: Output = Output::Is(Kind::Table);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | outliers --windows 1",
            about: "the largest channel of each layer's input against the median one",
            expect: "max / median",
        },
        Example {
            line: "load tiny | outliers --windows 1 --map mlp.down_proj | plot heat-map --x channel --by layer --y 'max / median' --log-y",
            about: "the map of a layer's channels, block by block",
            expect: "outlier channels",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let model = session.placed(input.into_model()?)?;
        let (text, config) = self.text.read(session)?;
        let cpu = session.cpu().clone();
        let task = session.task("reading");
        let progress = &mut |done, total| task.progress(done, total);
        let found = channels(&model, &cpu, &text, &config, progress)?;
        let table = match &self.map {
            Some(kind) => found.map(kind, usize::try_from(self.buckets).unwrap_or(usize::MAX))?,
            None => found.table()?,
        };
        Ok(Value::Table(table))
    }
}
