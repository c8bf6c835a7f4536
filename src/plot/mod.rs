//! [`figure`]: a chart of a [`Table`], for the terminal, as SVG and as PNG.
//!
//! ```
//! # fn main() -> aolab::Result<()> {
//! use aolab::plot::{PlotConfig, figure};
//! use aolab::table::Table;
//! let mut table = Table::new("Decode").column("model").column_unit("time", "ms");
//! table.push(["tiny".into(), 4.25.into()])?;
//! table.push(["tiny, int4".into(), 1.5.into()])?;
//! let figure = figure(&table, &PlotConfig::default())?;
//! println!("{}", figure.to_text(60, 20, false));
//! # Ok(()) }
//! ```
//!
//! The steps: `data` reads the table into a `Chart` (and says what is wrong with it), `axis` places
//! numbers; then either `terminal` writes characters, or `scene` lays out shapes, which `svg` writes
//! down and `paint` hands to plotters for a PNG.

mod axis;
mod bins;
mod choose;
mod data;
mod font;
mod layers;
mod names;
mod paint;
mod palette;
mod scene;
mod svg;
mod terminal;
mod timeline;

pub use terminal::sparkline;

use crate::error::{Error, Result, did_you_mean};
use crate::table::Table;
use data::Chart;

/// What kind of chart it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlotKind {
    /// One bar a row; with several `y` columns or with `by`, a group of bars.
    #[default]
    Bars,
    /// Points joined in the order of x.
    Lines,
    /// Points.
    Scatter,
    /// How often the values of one column fall where.
    Histogram,
    /// A grid of shades: rows by columns.
    HeatMap,
    /// A heat map of a model: what a layer is by the block it is in, from a column of layer names.
    LayerMap,
    /// What ran when: a row a name, from a column of starts and one of durations.
    Timeline,
}

impl PlotKind {
    /// Every kind with the name that a command line gives it.
    pub const NAMES: [(&'static str, PlotKind); 7] = [
        ("bars", PlotKind::Bars),
        ("lines", PlotKind::Lines),
        ("scatter", PlotKind::Scatter),
        ("histogram", PlotKind::Histogram),
        ("heat-map", PlotKind::HeatMap),
        ("layer-map", PlotKind::LayerMap),
        ("timeline", PlotKind::Timeline),
    ];
}

impl std::fmt::Display for PlotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::NAMES.into_iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl std::str::FromStr for PlotKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        if let Some((_, kind)) = Self::NAMES.into_iter().find(|(name, _)| *name == word) {
            return Ok(kind);
        }
        let names = Self::NAMES.map(|(name, _)| name);
        let hint = match did_you_mean(word, names) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("it is one of {}", names.join(", ")),
        };
        Err(Error::usage(format!("there is no kind of plot \"{word}\"; {hint}")))
    }
}

/// What a figure is drawn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(clap::ValueEnum)]
pub enum Theme {
    /// Dark on white.
    #[default]
    Light,
    /// Light on nearly black.
    Dark,
}

/// What to draw. Columns that are not named are chosen: the first texts and the first numbers.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlotConfig {
    /// The kind of chart.
    pub kind: PlotKind,
    /// The column along x; for bars and heat maps the one that names the rows.
    pub x: Option<String>,
    /// The columns of numbers.
    pub y: Vec<String>,
    /// A column whose values split the rows into series (for a heat map: into its rows).
    pub by: Option<String>,
    /// A column whose texts stand beside the points (lines, scatter), as far as there is room.
    pub label: Option<String>,
    /// The title; the table's, if there is none.
    pub title: Option<String>,
    /// Logarithmic x (lines, scatter, histogram).
    pub log_x: bool,
    /// Logarithmic y (for bars, their length; for a heat map, its shades).
    pub log_y: bool,
    /// Values of x with a rule through the chart, as the grid of a quantized weight (lines, scatter, histogram).
    pub marks: Vec<f64>,
    /// Lines through the points of lines and scatter, in the numbers of both axes: roofs, limits.
    pub rules: Vec<Vec<(f64, f64)>>,
    /// Colors of SVG, PNG and notebook output.
    pub theme: Theme,
    /// Width in pixels of SVG and notebook output.
    pub width: u32,
    /// Height in pixels; as much as the chart needs, if there is none.
    pub height: Option<u32>,
}

impl Default for PlotConfig {
    fn default() -> Self {
        Self {
            kind: PlotKind::Bars,
            x: None,
            y: Vec::new(),
            by: None,
            label: None,
            title: None,
            log_x: false,
            log_y: false,
            marks: Vec::new(),
            rules: Vec::new(),
            theme: Theme::Light,
            width: 800,
            height: None,
        }
    }
}

/// A chart that can be drawn again at any size. It keeps its table.
#[derive(Debug, Clone)]
pub struct Figure {
    table: Table,
    config: PlotConfig,
    chart: Chart,
}

/// Makes a chart of a table.
///
/// An error for a table without rows, an unknown column, a column of texts where numbers are
/// wanted, and where no number at all can be drawn.
pub fn figure(table: &Table, config: &PlotConfig) -> Result<Figure> {
    let chart = data::chart(table, config)?;
    check_size(config.width, config.height.unwrap_or(480))?;
    Ok(Figure { table: table.clone(), config: config.clone(), chart })
}

impl Figure {
    /// The table it shows.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What was asked for.
    pub fn config(&self) -> &PlotConfig {
        &self.config
    }

    /// The title above the chart.
    pub fn title(&self) -> &str {
        &self.chart.title
    }

    /// The chart in characters, at most `width` columns wide: braille dots for points and lines,
    /// blocks for bars, shades for heat maps. `height` is for lines and points; bars and heat maps
    /// take a line for each of theirs. With `color`, ANSI codes for 256 colors.
    pub fn to_text(&self, width: usize, height: usize, color: bool) -> String {
        terminal::to_text(&self.chart, width, height, color)
    }

    /// Width and height in pixels, as configured or as the chart needs.
    pub fn size(&self) -> (u32, u32) {
        let height = self.config.height.unwrap_or_else(|| scene::natural_height(&self.chart));
        (self.config.width, height)
    }

    /// The chart as one SVG document.
    pub fn to_svg(&self) -> Result<String> {
        let (width, height) = self.size();
        Ok(svg::svg(&scene::layout(
            &self.chart,
            self.config.theme,
            f64::from(width),
            f64::from(height),
        )?))
    }

    /// The chart as a PNG file of this size in pixels.
    pub fn to_png(&self, width: u32, height: u32) -> Result<Vec<u8>> {
        check_size(width, height)?;
        paint::png(&scene::layout(
            &self.chart,
            self.config.theme,
            f64::from(width),
            f64::from(height),
        )?)
    }
}

/// As in a terminal of 80 columns, without color.
impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_text(80, 20, false))
    }
}

fn check_size(width: u32, height: u32) -> Result<()> {
    // Below, not even the labels fit; above, the bitmap alone takes gigabytes.
    const LIMITS: std::ops::RangeInclusive<u32> = 160..=8000;
    if LIMITS.contains(&width) && LIMITS.contains(&height) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a figure of {width} × {height} pixels; width and height are from {} to {}",
        LIMITS.start(),
        LIMITS.end()
    )))
}

#[cfg(test)]
mod tests;
