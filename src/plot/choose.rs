//! Which columns a chart shows where the configuration does not name them.

use super::data::is_error;
use super::{PlotConfig, PlotKind};
use crate::error::{Error, Result};
use crate::table::{Column, Kind, Table};

/// The columns of a chart.
pub(super) struct Choice {
    /// `None`: the rows' numbers, counted from 1.
    pub(super) x: Option<usize>,
    /// At least one, all of numbers.
    pub(super) y: Vec<usize>,
    pub(super) by: Option<usize>,
}

pub(super) fn choose(table: &Table, config: &PlotConfig) -> Result<Choice> {
    if table.is_empty() {
        return Err(Error::invalid(format!(
            "table \"{}\" has no rows, so there is nothing to plot",
            table.title()
        )));
    }
    let by = config.by.as_deref().map(|name| table.column_index(name)).transpose()?;
    let named_x = config.x.as_deref().map(|name| table.column_index(name)).transpose()?;
    let mut y = Vec::new();
    for name in &config.y {
        // The error of `column_f64` says which columns hold numbers.
        table.column_f64(name)?;
        y.push(table.column_index(name)?);
    }
    let columns = table.columns();
    let free =
        |index: &usize| !y.contains(index) && Some(*index) != by && !is_error(&columns[*index]);
    let x = match config.kind {
        PlotKind::Histogram => None,
        _ => named_x.or_else(|| default_x(columns, config.kind, !y.is_empty(), free)),
    };
    if y.is_empty() {
        y = default_y(columns, config.kind, x, by);
    }
    if y.is_empty() {
        return Err(Error::invalid(format!(
            "table \"{}\" has no column of numbers to plot{}",
            table.title(),
            if x.is_some() || by.is_some() { " beside x and by" } else { "" }
        )));
    }
    if by.is_some() && y.len() > 1 {
        return Err(Error::invalid(
            "`by` splits one column of numbers into series; name one y column with it",
        ));
    }
    match config.kind {
        PlotKind::Histogram if by.is_some() || y.len() > 1 => Err(Error::invalid(
            "a histogram shows one column of numbers; name one y column and no `by`",
        )),
        PlotKind::LayerMap if by.is_some() || y.len() > 1 || x.is_none() => Err(Error::invalid(
            "a layer map wants a column of layer names as x and one y column, and no `by`",
        )),
        PlotKind::Timeline if by.is_some() || y.len() != 2 || x.is_none() => Err(Error::invalid(
            "a timeline wants a column of names as x, and two y columns: starts and durations",
        )),
        _ => Ok(Choice { x, y, by }),
    }
}

fn default_x(
    columns: &[Column],
    kind: PlotKind,
    y_is_named: bool,
    free: impl Fn(&usize) -> bool,
) -> Option<usize> {
    let first = |wanted: &[Kind]| {
        (0..columns.len()).filter(&free).find(|&i| wanted.contains(&columns[i].kind))
    };
    let numbers = (0..columns.len()).filter(&free).filter(|&i| columns[i].kind.is_number()).count();
    // One column of numbers must be left for y.
    let spare = y_is_named || numbers > 1;
    let text = first(&[Kind::Text]);
    let count = first(&[Kind::Int]).filter(|_| spare);
    let number = first(&[Kind::Int, Kind::Float, Kind::Bytes]).filter(|_| spare);
    match kind {
        PlotKind::Bars | PlotKind::HeatMap => text.or(count),
        PlotKind::LayerMap | PlotKind::Timeline => text,
        PlotKind::Lines => count.or(text).or(number),
        PlotKind::Scatter => number.or(text),
        PlotKind::Histogram => None,
    }
}

/// The first column of numbers; where several make sense on one axis, those of the same unit too.
fn default_y(
    columns: &[Column],
    kind: PlotKind,
    x: Option<usize>,
    by: Option<usize>,
) -> Vec<usize> {
    let numbers: Vec<usize> = (0..columns.len())
        .filter(|&i| columns[i].kind.is_number() && !is_error(&columns[i]))
        .filter(|&i| Some(i) != x && Some(i) != by)
        .collect();
    // A measured number is what a table is about; counts before it are its circumstances.
    let measured = numbers.iter().find(|&&i| columns[i].kind != Kind::Int);
    let Some(&first) = measured.or(numbers.first()) else { return Vec::new() };
    if !matches!(kind, PlotKind::HeatMap | PlotKind::Timeline) || by.is_some() {
        return vec![first];
    }
    let like_first = |i: &usize| {
        columns[*i].unit == columns[first].unit && columns[*i].kind == columns[first].kind
    };
    let alike = numbers.into_iter().filter(like_first);
    alike.take(if kind == PlotKind::Timeline { 2 } else { usize::MAX }).collect()
}
