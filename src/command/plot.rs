//! `plot`

use std::str::FromStr;

use super::{Command, Example, Group, Output};
use crate::error::{Error, Result};
use crate::eval::mask_table;
use crate::model::Model;
use crate::plot::{PlotConfig, PlotKind, Theme, figure};
use crate::session::Session;
use crate::table::Table;
use crate::value::{Kind, Value};

/// Draw a table or a layer's zeros: in the terminal, or by `save NAME.svg` as a file.
///
/// Columns that are not named are chosen: the first texts and the first numbers.
#[derive(Debug, clap::Args)]
pub(super) struct Plot {
    /// bars, lines, scatter, histogram, heat-map, layer-map (layers by blocks), timeline, loss (of training) or roofline of a table; sparsity of a model
    #[arg(value_name = "KIND", default_value = "bars")]
    kind: What,
    /// For sparsity: whose zeros [default: those of the first sparse layer]
    #[arg(long, value_name = "LAYER")]
    layer: Option<String>,
    /// For sparsity: only so many rows and columns of the layer, from its first on
    #[arg(long, value_name = "SIZE")]
    corner: Option<usize>,
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

/// A chart of a table, or the zeros of a model.
#[derive(Clone, Copy, Debug)]
enum What {
    Chart(PlotKind),
    Sparsity,
    Loss,
    Roofline,
}

impl FromStr for What {
    type Err = Error;

    fn from_str(word: &str) -> Result<What> {
        if word == SPARSITY {
            return Ok(What::Sparsity);
        }
        if word == LOSS {
            return Ok(What::Loss);
        }
        if word == ROOFLINE {
            return Ok(What::Roofline);
        }
        let more =
            format!("{LOSS} (of training), {ROOFLINE} (of `roofline`) and {SPARSITY} (of a model)");
        word.parse().map(What::Chart).map_err(|error| Error::usage(format!("{error}, {more}")))
    }
}

/// The kind that is not a chart of a table.
pub(super) const SPARSITY: &str = "sparsity";

/// Losses over steps, with the names that training gives its columns.
pub(super) const LOSS: &str = "loss";

/// Measured rates under the roofs that bandwidth and arithmetic make.
pub(super) const ROOFLINE: &str = "roofline";

/// Cells of a picture of zeros along a side.
const CELLS: usize = 96;

impl Command for Plot {
    const NAME: &'static str = "plot";
    const GROUP: Group = Group::See;
    const INPUT: &'static [Kind] = &[Kind::Table, Kind::Model];
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
        Example {
            line: "load tiny | sparsify magnitude --pattern 2:4 | plot sparsity --corner 32",
            about: "which weights of the first layer's corner are kept",
            expect: "kept",
        },
    ];

    fn run(self, session: &mut Session, input: Value) -> Result<Value> {
        let wanted = if matches!(self.kind, What::Sparsity) { Kind::Model } else { Kind::Table };
        // A table and a model may both be there: each kind of chart takes the latest of its own.
        let input = match session.latest(&[wanted]) {
            Some(latest) if input.kind() != wanted => latest.clone(),
            _ => input,
        };
        let kind = match self.kind {
            What::Chart(kind) => kind,
            What::Sparsity => return self.sparsity(&input.into_model()?),
            What::Loss => return self.losses(&input.into_table()?),
            What::Roofline => return self.roofline(&input.into_table()?),
        };
        let config = self.config(kind);
        figure(&input.into_table()?, &config).map(Value::from)
    }
}

impl Plot {
    fn config(self, kind: PlotKind) -> PlotConfig {
        PlotConfig {
            kind,
            x: self.x,
            y: self.y,
            by: self.by,
            label: self.label,
            title: self.title,
            log_x: self.log_x,
            log_y: self.log_y,
            marks: self.mark,
            rules: Vec::new(),
            theme: self.theme,
            width: self.width,
            height: self.height,
        }
    }

    /// One line a run where there are several, and the held-out losses as points of a line of their own where there are any.
    fn losses(self, table: &Table) -> Result<Value> {
        let has = |name: &str| table.columns().iter().any(|column| column.name == name);
        let measured = |name: &str| {
            let cells = table.column_f64(name);
            has(name) && cells.is_ok_and(|cells| cells.iter().any(|loss| loss.is_finite()))
        };
        if !has("step") || !has("loss") {
            return Err(Error::usage(format!(
                "`plot loss` draws losses over steps, and {:?} has no columns step and loss; `runs losses` gives those of runs that are kept",
                table.title()
            )));
        }
        let by = ["run", "linear layers"].into_iter().find(|name| has(name)).map(str::to_owned);
        let mut y = vec!["loss".to_owned()];
        y.extend((by.is_none() && measured("held-out loss")).then(|| "held-out loss".to_owned()));
        let asked = self.config(PlotKind::Lines);
        let config = PlotConfig {
            x: asked.x.or(Some("step".to_owned())),
            y: if asked.y.is_empty() { y } else { asked.y },
            by: asked.by.or(by),
            label: None,
            ..asked
        };
        figure(table, &config).map(Value::from)
    }

    /// A point a layer and M, in the color of its kernel, below the roofs.
    fn roofline(self, table: &Table) -> Result<Value> {
        let has = |name: &str| table.columns().iter().any(|column| column.name == name);
        if !["intensity", "rate", "bound by", "of the roof"].into_iter().all(has) {
            return Err(Error::usage(format!(
                "`plot roofline` draws what `roofline` gives, and {:?} is another table",
                table.title()
            )));
        }
        let rules = roofs(table)?;
        let asked = self.config(PlotKind::Scatter);
        let config = PlotConfig {
            x: Some("intensity".to_owned()),
            y: vec!["rate".to_owned()],
            by: asked.by.or(Some("kernel".to_owned())),
            log_x: true,
            log_y: true,
            rules,
            ..asked
        };
        figure(table, &config).map(Value::from)
    }

    fn sparsity(self, model: &Model) -> Result<Value> {
        let table = mask_table(model, self.layer.as_deref(), self.corner, CELLS)?;
        let columns = table.columns().iter().skip(1).map(|column| column.name.clone());
        let config = PlotConfig {
            kind: PlotKind::HeatMap,
            x: Some(table.columns()[0].name.clone()),
            y: columns.collect(),
            title: self.title,
            theme: self.theme,
            width: self.width,
            height: self.height.or(Some(self.width)),
            ..PlotConfig::default()
        };
        figure(&table, &config).map(Value::from)
    }
}

/// The roofs of a roofline's table, a line for each arithmetic: up with the bandwidth to its peak, then level.
fn roofs(table: &Table) -> Result<Vec<Vec<(f64, f64)>>> {
    let (intensities, rates) = (table.column_f64("intensity")?, table.column_f64("rate")?);
    let (shares, bounds) = (table.column_f64("of the roof")?, table.column_text("bound by")?);
    let (mut slope, mut peaks) = (None, Vec::<f64>::new());
    for (i, bound) in bounds.iter().enumerate() {
        // The rate that the roof allows here.
        let roof = rates[i] * 100.0 / shares[i];
        if bound == "memory" {
            slope = Some(roof / intensities[i]);
        } else if roof.is_finite() && !peaks.iter().any(|peak| (peak / roof - 1.0).abs() < 1e-6) {
            peaks.push(roof);
        }
    }
    let least = intensities.iter().copied().fold(f64::INFINITY, f64::min) / 1.5;
    let most = intensities.iter().copied().fold(0.0, f64::max) * 1.5;
    let Some(slope) = slope else {
        return Ok(peaks.into_iter().map(|peak| vec![(least, peak), (most, peak)]).collect());
    };
    if peaks.is_empty() {
        return Ok(vec![vec![(least, slope * least), (most, slope * most)]]);
    }
    let roof = |peak: f64| {
        let knee = (peak / slope).max(least);
        vec![(least, (slope * least).min(peak)), (knee, peak), (most.max(1.5 * knee), peak)]
    };
    Ok(peaks.into_iter().map(roof).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roofs_rise_with_the_bandwidth_and_end_at_the_peaks() {
        let mut table = Table::new("t")
            .column("bound by")
            .column("intensity")
            .column("of the roof")
            .column("rate");
        let rows = [
            ("memory", 2.0, 50.0, 40.0),
            ("int8 arithmetic", 90.0, 25.0, 100.0),
            ("int8 arithmetic", 60.0, 50.0, 200.0),
            ("f32 arithmetic", 50.0, 100.0, 100.0),
        ];
        for (bound, intensity, share, rate) in rows {
            table.push([bound.into(), intensity.into(), share.into(), rate.into()]).expect("a row");
        }
        let roofs = roofs(&table).expect("roofs");
        // 80 of 2 FLOP/byte are 40 GB/s; the peaks are 400 and 100.
        let knees: Vec<(f64, f64)> = roofs.iter().map(|roof| roof[1]).collect();
        assert_eq!(knees, [(10.0, 400.0), (2.5, 100.0)]);
        assert_eq!(roofs[0][2], (135.0, 400.0));
    }
}
