//! From a table to what a chart shows. Everything that can be wrong with a request is found here.

use super::axis::texts;
use super::bins::{Bins, bins};
use super::choose::{Choice, choose};
use super::names::strip_common_ends;
use super::{PlotConfig, PlotKind, layers, timeline};
use crate::error::{Error, Result};
use crate::table::words::one_line;
use crate::table::{Column, Kind, Table};

/// A chart without a size.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Scale,
    pub(super) y: Scale,
    pub(super) content: Content,
    /// Where on x rules stand, in rising order.
    pub(super) marks: Vec<f64>,
    /// Lines in the numbers of both axes.
    pub(super) rules: Vec<Vec<(f64, f64)>>,
    /// Sentences below the chart: what was not drawn, what the table's notes say.
    pub(super) notes: Vec<String>,
}

/// What an axis says and how it is divided.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    pub(super) label: String,
    /// How its numbers are written.
    pub(super) kind: Kind,
    pub(super) log: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// `series[s].values[i]` belongs to `labels[i]`.
    Bars {
        labels: Vec<String>,
        series: Vec<Series>,
        baseline: Option<usize>,
    },
    /// With `names`, x is the index of a name.
    Points {
        series: Vec<Points>,
        joined: bool,
        names: Option<Vec<String>>,
    },
    Histogram(Bins),
    /// `values[r][c]` belongs to `rows[r]` and `columns[c]`.
    Heat {
        rows: Vec<String>,
        columns: Vec<String>,
        values: Vec<Vec<f64>>,
    },
    Timeline {
        rows: Vec<String>,
        spans: Vec<Span>,
    },
}

/// From `start` to `end` on x, in a row of a timeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) row: usize,
    pub(super) start: f64,
    pub(super) end: f64,
}

/// One number a label; NaN where there is none.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) values: Vec<f64>,
    /// Half the width of what is uncertain about each value, NaN or none where nobody said.
    pub(super) errors: Vec<f64>,
}

/// Points in the order in which a line joins them.
#[derive(Debug, Clone)]
pub(super) struct Points {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// A text beside each point, or none.
    pub(super) labels: Vec<String>,
}

pub(super) fn chart(table: &Table, config: &PlotConfig) -> Result<Chart> {
    let choice = choose(table, config)?;
    let columns = table.columns();
    let y_kind = columns[choice.y[0]].kind;
    let scale = |label: String, kind, log| Scale { label: one_line(&label), kind, log };
    let x_label = choice.x.map_or("row".to_owned(), |x| columns[x].heading());
    let x_kind = choice.x.map_or(Kind::Int, |x| columns[x].kind);
    let mut notes: Vec<String> = table.notes().iter().map(|note| one_line(note)).collect();
    let mut chart = Chart {
        title: one_line(config.title.as_deref().unwrap_or(table.title())),
        x: scale(x_label, x_kind, config.log_x),
        y: scale(y_label(table, &choice), y_kind, config.log_y),
        content: match config.kind {
            PlotKind::Bars => bars(table, &choice)?,
            PlotKind::Lines | PlotKind::Scatter => points(table, &choice, config)?,
            PlotKind::Histogram => {
                let values = numbers(table, choice.y[0]);
                Content::Histogram(bins(&drawable(values, config.log_x), config.log_x))
            }
            PlotKind::HeatMap => heat(table, &choice)?,
            PlotKind::LayerMap => layers::layer_map(table, &choice, &mut notes)?,
            PlotKind::Timeline => timeline::timeline(table, &choice)?,
        },
        marks: marks(config)?,
        rules: config.rules.clone(),
        notes,
    };
    if config.kind == PlotKind::Timeline {
        chart.x = chart.y.clone();
    }
    if config.kind == PlotKind::Histogram {
        chart.x = Scale { log: config.log_x, ..chart.y };
        chart.y = Scale { label: "count".into(), kind: Kind::Int, log: false };
    }
    refuse_or_mention_what_is_not_drawn(&mut chart, table, &choice)?;
    shorten_names(&mut chart);
    Ok(chart)
}

/// The marks on x, which have to be numbers and on an x of numbers.
fn marks(config: &PlotConfig) -> Result<Vec<f64>> {
    if config.marks.is_empty() {
        return Ok(Vec::new());
    }
    let on_numbers =
        matches!(config.kind, PlotKind::Lines | PlotKind::Scatter | PlotKind::Histogram);
    if !on_numbers {
        return Err(Error::usage(format!(
            "{} has no x of numbers to mark; lines, scatter and histogram do",
            config.kind
        )));
    }
    if let Some(bad) = config.marks.iter().find(|mark| !can_draw(**mark, config.log_x)) {
        return Err(Error::usage(format!("a mark at {bad} has no place on this x")));
    }
    let mut marks = config.marks.clone();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    Ok(marks)
}

/// Layer names lose what they all begin and end with; a note says what that was.
fn shorten_names(chart: &mut Chart) {
    let lists = match &mut chart.content {
        Content::Bars { labels, .. } => vec![labels],
        Content::Points { names: Some(names), .. } => vec![names],
        Content::Heat { rows, columns, .. } => vec![rows, columns],
        Content::Timeline { rows, .. } => vec![rows],
        Content::Points { names: None, .. } | Content::Histogram(_) => Vec::new(),
    };
    for (front, back) in lists.into_iter().filter_map(|names| strip_common_ends(names)) {
        chart.notes.push(format!("names are shortened: {front}*{back}"));
    }
}

/// One column's heading, or what several have in common: their unit.
fn y_label(table: &Table, choice: &Choice) -> String {
    let columns = table.columns();
    let first = &columns[choice.y[0]];
    if choice.y.len() == 1 {
        return first.heading();
    }
    if has_one_unit(table, choice) {
        return first.unit.clone();
    }
    String::new()
}

fn has_one_unit(table: &Table, choice: &Choice) -> bool {
    let columns = table.columns();
    choice.y.iter().all(|&i| columns[i].unit == columns[choice.y[0]].unit)
}

/// The name of a series made of a column: with its unit where the axis cannot say it for all.
fn series_name(table: &Table, choice: &Choice, index: usize) -> String {
    let column = &table.columns()[index];
    let name = if has_one_unit(table, choice) { column.name.clone() } else { column.heading() };
    one_line(&name)
}

fn bars(table: &Table, choice: &Choice) -> Result<Content> {
    if let Some(by) = choice.by {
        let (labels, names, grid) = pivot(table, choice.x, by, choice.y[0])?;
        let series = names.into_iter().enumerate();
        let series = series.map(|(s, name)| Series {
            name,
            values: grid.iter().map(|values| values[s]).collect(),
            errors: Vec::new(),
        });
        return Ok(Content::Bars { labels, series: series.collect(), baseline: None });
    }
    let series = choice.y.iter().map(|&index| Series {
        name: series_name(table, choice, index),
        values: numbers(table, index),
        errors: error_column(table, index).map_or(Vec::new(), |errors| numbers(table, errors)),
    });
    let labels = labels(table, choice.x);
    Ok(Content::Bars { labels, series: series.collect(), baseline: table.baseline_row() })
}

/// The column `± …` right of a measured one, in the same unit: its standard error.
fn error_column(table: &Table, index: usize) -> Option<usize> {
    let [measured, error] = table.columns().get(index..index + 2)? else { return None };
    let belongs = is_error(error) && error.kind.is_number() && error.unit == measured.unit;
    belongs.then_some(index + 1)
}

/// Whether a column says how uncertain the one before it is.
pub(super) fn is_error(column: &Column) -> bool {
    column.name.starts_with('±')
}

impl Series {
    /// The values as they are written: `44.33`, or `44.33 ± 0.81`.
    pub(super) fn texts(&self, kind: Kind) -> Vec<String> {
        let values = texts(&self.values, kind);
        let errors = texts(&self.errors, kind);
        let both = values.into_iter().enumerate().map(|(i, value)| match errors.get(i) {
            Some(error) if self.errors[i].is_finite() => format!("{value} ± {error}"),
            _ => value,
        });
        both.collect()
    }

    /// Where each value might as well be: its ends with the error taken off and put on.
    pub(super) fn ends(&self) -> impl Iterator<Item = f64> + Clone {
        let errors = self.errors.iter().copied().chain(std::iter::repeat(0.0));
        let pairs = self.values.iter().copied().zip(errors);
        pairs.flat_map(|(value, error)| {
            let error = if error.is_finite() { error } else { 0.0 };
            [value - error, value, value + error]
        })
    }
}

fn heat(table: &Table, choice: &Choice) -> Result<Content> {
    if let Some(by) = choice.by {
        let (columns, rows, grid) = pivot(table, choice.x, by, choice.y[0])?;
        let values = (0..rows.len()).map(|r| grid.iter().map(|column| column[r]).collect());
        return Ok(Content::Heat { columns, values: values.collect(), rows });
    }
    let names = choice.y.iter().map(|&index| series_name(table, choice, index));
    let by_column: Vec<Vec<f64>> = choice.y.iter().map(|&i| numbers(table, i)).collect();
    let values = (0..table.len()).map(|r| by_column.iter().map(|column| column[r]).collect());
    Ok(Content::Heat {
        rows: labels(table, choice.x),
        columns: names.collect(),
        values: values.collect(),
    })
}

fn points(table: &Table, choice: &Choice, config: &PlotConfig) -> Result<Content> {
    let joined = config.kind == PlotKind::Lines;
    let named = choice.x.is_some_and(|x| table.columns()[x].kind == Kind::Text);
    if named && config.log_x {
        return Err(Error::invalid("x holds texts, so it cannot be logarithmic; name another x"));
    }
    let (names, xs) = if named {
        let labels = labels(table, choice.x);
        let names = distinct(&labels);
        let xs = labels.iter().map(|label| count(position(&names, label))).collect();
        (Some(names), xs)
    } else {
        let rows = || (1..=table.len()).map(count).collect();
        (None, choice.x.map_or_else(rows, |x| numbers(table, x)))
    };
    let beside = match &config.label {
        Some(name) => labels(table, Some(table.column_index(name)?)),
        None => Vec::new(),
    };
    let mut series: Vec<Points> = Vec::new();
    for &index in &choice.y {
        let ys = numbers(table, index);
        let pairs = xs.iter().copied().zip(ys);
        let Some(by) = choice.by else {
            let name = series_name(table, choice, index);
            series.push(Points { name, points: pairs.collect(), labels: beside.clone() });
            continue;
        };
        let groups = labels(table, Some(by));
        for group in distinct(&groups) {
            let rows: Vec<usize> = (0..groups.len()).filter(|row| groups[*row] == group).collect();
            let all: Vec<(f64, f64)> = pairs.clone().collect();
            let points = rows.iter().map(|row| all[*row]).collect();
            let labels = rows.iter().filter_map(|row| beside.get(*row).cloned()).collect();
            series.push(Points { name: group, points, labels });
        }
    }
    if joined {
        for one in &mut series {
            // A point without x has no place in the order and is not drawn either way.
            let mut order: Vec<usize> = (0..one.points.len()).collect();
            order.sort_by(|a, b| one.points[*a].0.total_cmp(&one.points[*b].0));
            one.labels = order.iter().filter_map(|i| one.labels.get(*i).cloned()).collect();
            one.points = order.into_iter().map(|i| one.points[i]).collect();
        }
    }
    Ok(Content::Points { series, joined, names })
}

/// Distinct x, distinct `by`, and the numbers at `[x][by]`, NaN where no row has that pair.
type Pivot = (Vec<String>, Vec<String>, Vec<Vec<f64>>);

fn pivot(table: &Table, x: Option<usize>, by: usize, y: usize) -> Result<Pivot> {
    let (x_labels, by_labels, values) =
        (labels(table, x), labels(table, Some(by)), numbers(table, y));
    let (xs, series) = (distinct(&x_labels), distinct(&by_labels));
    let mut grid = vec![vec![f64::NAN; series.len()]; xs.len()];
    let mut taken = vec![vec![false; series.len()]; xs.len()];
    for (row, value) in values.into_iter().enumerate() {
        let (i, s) = (position(&xs, &x_labels[row]), position(&series, &by_labels[row]));
        if taken[i][s] {
            return Err(Error::invalid(format!(
                "two rows have {} and {}, and a chart has one place for them; \
                 filter the table, or name another x or by",
                xs[i], series[s]
            )));
        }
        taken[i][s] = true;
        grid[i][s] = value;
    }
    Ok((xs, series, grid))
}

pub(super) fn labels(table: &Table, x: Option<usize>) -> Vec<String> {
    let Some(x) = x else { return (1..=table.len()).map(|row| row.to_string()).collect() };
    let texts = table.column_text(&table.columns()[x].name);
    texts.unwrap_or_default().iter().map(|text| one_line(text)).collect()
}

pub(super) fn numbers(table: &Table, index: usize) -> Vec<f64> {
    table.rows().iter().map(|row| row[index].as_f64().unwrap_or(f64::NAN)).collect()
}

pub(super) fn distinct(labels: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    for label in labels {
        if !seen.contains(label) {
            seen.push(label.clone());
        }
    }
    seen
}

pub(super) fn position(names: &[String], name: &str) -> usize {
    names.iter().position(|candidate| candidate == name).unwrap_or(0)
}

/// A small count as a coordinate.
#[expect(clippy::cast_precision_loss, reason = "rows of a table and pixels are far below 2⁵³")]
pub(super) fn count(n: usize) -> f64 {
    n as f64
}

fn drawable(values: Vec<f64>, log: bool) -> Vec<f64> {
    values.into_iter().filter(|v| can_draw(*v, log)).collect()
}

/// Whether a number has a place on an axis.
pub(super) fn can_draw(value: f64, log: bool) -> bool {
    value.is_finite() && (!log || value >= f64::MIN_POSITIVE)
}

fn refuse_or_mention_what_is_not_drawn(
    chart: &mut Chart,
    table: &Table,
    choice: &Choice,
) -> Result<()> {
    let (x_log, y_log) = (chart.x.log, chart.y.log);
    let (drawn, all) = match &chart.content {
        Content::Bars { series, .. } => {
            let values = series.iter().flat_map(|one| one.values.iter());
            (values.clone().filter(|v| can_draw(**v, y_log)).count(), values.count())
        }
        Content::Points { series, .. } => {
            let points = series.iter().flat_map(|one| one.points.iter());
            let fits = |p: &&(f64, f64)| can_draw(p.0, x_log) && can_draw(p.1, y_log);
            (points.clone().filter(fits).count(), points.count())
        }
        Content::Histogram(bins) => (bins.counts.iter().sum(), table.len()),
        Content::Heat { values, .. } => {
            let values = values.iter().flatten();
            (values.clone().filter(|v| can_draw(**v, y_log)).count(), values.count())
        }
        Content::Timeline { spans, .. } => (spans.len(), table.len()),
    };
    let why = match x_log || y_log {
        true => "missing, NaN, infinite, or not positive on a logarithmic axis",
        false => "missing, NaN or infinite",
    };
    if drawn == 0 {
        let names: Vec<_> =
            choice.y.iter().map(|&i| format!("\"{}\"", table.columns()[i].name)).collect();
        return Err(Error::invalid(format!(
            "no value of {} can be drawn: all are {why}",
            names.join(", ")
        )));
    }
    if drawn < all {
        chart.notes.push(format!("not drawn: {} of {all} values ({why})", all - drawn));
    }
    Ok(())
}
