//! How the values of a weight, or of a layer's inputs, are spread, and where the grid of the quantized weight lies.

use aolab_kernels::Cpu;

use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Progress, windows_of};
use crate::model::{Model, Observer};
use crate::plot::{Figure, PlotConfig, PlotKind, Theme, figure};
use crate::table::Table;

/// More values say nothing new about a histogram.
const MOST: usize = 1 << 16;

/// More levels than this would cover the histogram.
const MOST_LEVELS: usize = 64;

/// Which values, and how they are drawn.
#[derive(Clone, Debug)]
pub struct ValuesConfig {
    /// The layer's name.
    pub layer: String,
    /// Only this row of the weight (an output channel).
    pub row: Option<usize>,
    /// Only these columns of the row, from 0: a quantization group.
    pub columns: Option<(usize, usize)>,
    /// Of the figure.
    pub theme: Theme,
}

/// The histogram of a weight of `base` with the values that the same layer of `model` can take there as marks: its grid. Marks are
/// left out, with a note, where there are more than 64 different values (a whole matrix has a grid per group).
///
/// Wrong names, rows and columns are errors.
pub fn distribution(base: &Model, model: &Model, config: &ValuesConfig) -> Result<Figure> {
    let weight = |of: &Model| -> Result<Vec<f32>> {
        let weight = &of.linear(&config.layer)?.weight;
        slice(&weight.dequantize()?.to_f32_vec(), weight.shape(), config)
    };
    let (values, grid) = (weight(base)?, weight(model)?);
    if values.len() != grid.len() {
        return Err(Error::invalid(format!(
            "{} has other shapes in {} and {}",
            config.layer, base.name, model.name
        )));
    }
    let mut levels = grid;
    levels.sort_by(f32::total_cmp);
    levels.dedup();
    let is_quantized = !model.linear(&config.layer)?.weight.meta().is_null();
    let mut table = spread(&format!("{} of {}", place(config), base.name), "weight", &values)?;
    let marks = match (is_quantized, levels.len() <= MOST_LEVELS) {
        (true, true) => levels.iter().filter(|v| v.is_finite()).map(|v| f64::from(*v)).collect(),
        (true, false) => {
            table.note(format!(
                "{} has {} different values here, too many to mark; name a --row and a group's --columns",
                model.name,
                levels.len()
            ));
            Vec::new()
        }
        (false, _) => Vec::new(),
    };
    if !marks.is_empty() {
        table.note(format!("{} marks: the values of {} here", marks.len(), model.name));
    }
    let plot = PlotConfig {
        kind: PlotKind::Histogram,
        marks,
        theme: config.theme,
        ..PlotConfig::default()
    };
    figure(&table, &plot)
}

/// The histogram of a layer's inputs on the first windows of `text`.
pub fn inputs(
    model: &Model,
    cpu: &Cpu,
    text: &str,
    eval: &EvalConfig,
    config: &ValuesConfig,
    progress: Progress,
) -> Result<Figure> {
    model.linear(&config.layer)?;
    let (windows, _, _) = windows_of(model, text, eval)?;
    let mut watch = Watch { layer: &config.layer, values: Vec::new() };
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        model.forward(cpu, &window.tokens, &mut model.context(window.tokens.len()), &mut watch)?;
    }
    progress(windows.len(), windows.len());
    if watch.values.is_empty() {
        return Err(Error::invalid(format!(
            "the inputs of {} cannot be watched; a layer of a block can",
            config.layer
        )));
    }
    let table =
        spread(&format!("inputs of {} of {}", config.layer, model.name), "input", &watch.values)?;
    let plot =
        PlotConfig { kind: PlotKind::Histogram, theme: config.theme, ..PlotConfig::default() };
    figure(&table, &plot)
}

struct Watch<'a> {
    layer: &'a str,
    values: Vec<f32>,
}

impl Observer for Watch<'_> {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        if self.layer == format!("model.layers.{layer}.{name}") {
            self.values.extend_from_slice(x);
        }
    }
}

fn place(config: &ValuesConfig) -> String {
    match (config.row, config.columns) {
        (Some(row), Some((from, to))) => format!("{}[{row}, {from}..{to}]", config.layer),
        (Some(row), None) => format!("{}[{row}]", config.layer),
        _ => config.layer.clone(),
    }
}

/// The asked part of a weight `(N, K)`.
fn slice(all: &[f32], (n, k): (usize, usize), config: &ValuesConfig) -> Result<Vec<f32>> {
    let Some(row) = config.row else {
        return match config.columns {
            None => Ok(all.to_vec()),
            Some(_) => Err(Error::usage("columns are of one row; name a row too")),
        };
    };
    let (from, to) = config.columns.unwrap_or((0, k));
    if row >= n || from >= to || to > k {
        return Err(Error::usage(format!(
            "{} is not in {}, which has {n} rows of {k} columns, counted from 0",
            place(config),
            config.layer
        )));
    }
    Ok(all[row * k + from..row * k + to].to_vec())
}

/// A table of one column, of at most [`MOST`] values taken evenly from all.
fn spread(title: &str, what: &str, values: &[f32]) -> Result<Table> {
    let mut table = Table::new(title).column(what);
    let step = values.len().div_ceil(MOST).max(1);
    for value in values.iter().step_by(step) {
        table.push([f64::from(*value).into()])?;
    }
    if step > 1 {
        table.note(format!("1 in {step} of {} values", values.len()));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(row: Option<usize>, columns: Option<(usize, usize)>) -> ValuesConfig {
        ValuesConfig { layer: "l".into(), row, columns, theme: Theme::Light }
    }

    #[test]
    fn a_row_and_its_columns_are_cut_out_or_refused() {
        let all = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let cut = |row, columns| slice(&all, (2, 3), &config(row, columns));
        assert_eq!(cut(None, None).unwrap(), all);
        assert_eq!(cut(Some(1), None).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(cut(Some(1), Some((1, 3))).unwrap(), [4.0, 5.0]);
        for (row, columns) in [
            (Some(2), None),
            (Some(0), Some((1, 4))),
            (Some(0), Some((1, 1))),
            (None, Some((0, 1))),
            (Some(usize::MAX), Some((2, 1))),
        ] {
            let text = cut(row, columns).unwrap_err().to_string();
            assert!(text.contains("row"), "{text}");
        }
    }

    #[test]
    fn many_values_are_thinned_evenly_and_it_is_said() {
        let values = vec![1.0; MOST * 2 + 1];
        let table = spread("t", "v", &values).unwrap();
        assert!(table.len() <= MOST && table.len() > MOST / 2, "{}", table.len());
        assert!(table.notes()[0].starts_with("1 in 3 of"), "{:?}", table.notes());
    }
}
