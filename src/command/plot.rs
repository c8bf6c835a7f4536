//! `plot`

use super::{Command, Example, Group, Output};
use crate::error::Result;
use crate::plot::{PlotConfig, PlotKind, Theme, figure};
use crate::session::Session;
use crate::value::{Kind, Value};

/// Draw a table: in the terminal, and by `save NAME.svg` or NAME.png as a file.
///
/// Columns that are not named are chosen: the first texts and the first numbers.
#[derive(Debug, clap::Args)]
pub(super) struct Plot {
    /// bars, lines, scatter, histogram, heat-map, layer-map (layers by blocks) or timeline
    #[arg(value_name = "KIND", default_value = "bars")]
    kind: PlotKind,
    /// The column along x; for bars and heat maps the one that names the rows
    #[arg(long, value_name = "COLUMN")]
    x: Option<String>,
    /// The columns of numbers; can be given more than once
    #[arg(long, value_name = "COLUMN")]
    y: Vec<String>,
    /// A column whose values split the rows into series
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
    /// A column whose texts stand beside the points of lines and scatter
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// The title [default: the table's]
    #[arg(long)]
    title: Option<String>,
    /// Logarithmic x
    #[arg(long)]
    log_x: bool,
    /// Logarithmic y; for bars, their length
    #[arg(long)]
    log_y: bool,
    /// A value of x with a rule through the chart; can be given more than once
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    mark: Vec<f64>,
    /// Colors of files
    #[arg(long, value_enum, default_value_t)]
    theme: Theme,
    /// Width in pixels, for files
    #[arg(long, default_value_t = 800)]
    width: u32,
    /// Height in pixels, for files [default: as much as it needs]
    #[arg(long)]
    height: Option<u32>,
}

impl Command for Plot {
    const NAME: &'static str = "plot";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Table];
    const OUTPUT: Output = Output::Is(Kind::Figure);
    const EXAMPLES: &'static [Example] = &[
        Example {
            line: "load tiny | size | plot --y bytes",
            about: "bars in the terminal",
            expect: "feed-forward",
        },
        Example {
            line: "size tiny; plot histogram --y parameters --log-x; save sizes.png",
            about: "the latest table, and the figure as a file",
            expect: "sizes.png",
        },
        Example {
            line: "load tiny | quantize int4-weight-only | eval sqnr tiny --windows 1 | plot layer-map --y 'output SQNR'",
            about: "which layers lost most: a shade a layer, blocks across",
            expect: "self_attn.q_proj",
        },
    ];

    fn run(self, _session: &mut Session, input: Value) -> Result<Value> {
        let config = PlotConfig {
            kind: self.kind,
            x: self.x,
            y: self.y,
            by: self.by,
            label: self.label,
            title: self.title,
            log_x: self.log_x,
            log_y: self.log_y,
            marks: self.mark,
            theme: self.theme,
            width: self.width,
            height: self.height,
        };
        figure(&input.into_table()?, &config).map(Value::from)
    }
}
