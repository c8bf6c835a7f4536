//! The quant logger (U06): the largest magnitude, mean and standard deviation of every parameter, and of every activation that goes
//! into a linear layer, call by call. Columns and their order are those of torchao's CSV.

use aolab_kernels::Cpu;

use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Progress, windows_of};
use crate::model::{Model, Observer};
use crate::table::{Cell, Table};

fn new_table(title: String) -> Table {
    Table::new(title)
        .column("tag")
        .column("counter_val")
        .column("fqn")
        .column("op")
        .column("max_abs")
        .column("avg")
        .column("std")
        .with_note("std is of the population (no correction); sums are in f64")
}

/// `max |x|`, mean and population standard deviation; a NaN shows in all three, as in torch.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn stats(x: &[f32]) -> [Cell; 3] {
    let n = x.len() as f64;
    let any_nan = x.iter().any(|v| v.is_nan());
    let largest = x.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    let max_abs = if any_nan { f64::NAN } else { f64::from(largest) };
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    [Cell::Float(max_abs), Cell::Float(mean), Cell::Float(variance.sqrt())]
}

fn push(table: &mut Table, tag: &str, fqn: &str, op: &str, x: &[f32]) -> Result<()> {
    let counter = table.len();
    let row = [tag.into(), counter.into(), fqn.into(), op.into()];
    table.push(row.into_iter().chain(stats(x)))
}

/// Every parameter of `model`, dequantized: weights, then norms and biases.
pub fn parameter_stats(model: &Model, progress: Progress) -> Result<Table> {
    let mut table = new_table(format!("Parameters of {}", model.name));
    let linears = model.linears();
    for (done, (fqn, linear)) in linears.iter().enumerate() {
        if !progress(done, linears.len()) {
            return Err(Error::Cancelled);
        }
        let values = linear.weight.dequantize()?.to_f32_vec();
        push(&mut table, "param", &format!("{fqn}.weight"), "", &values)?;
    }
    let embedding = model.embed_tokens.dequantize()?.to_f32_vec();
    push(&mut table, "param", "model.embed_tokens.weight", "", &embedding)?;
    for (fqn, vector) in model.vectors() {
        push(&mut table, "param", &fqn, "", &vector.to_f32_vec())?;
    }
    Ok(table)
}

struct Logger {
    table: Table,
    error: Option<Error>,
}

impl Observer for Logger {
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        let fqn = format!("model.layers.{layer}.{name}.weight");
        if let Err(error) = push(&mut self.table, "act", &fqn, "linear", x) {
            self.error.get_or_insert(error);
        }
    }
}

/// What goes into every linear layer while `model` reads `text`, one row a call, in the order of the calls.
pub fn activation_stats(
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<Table> {
    let (windows, context, _) = windows_of(model, text, config)?;
    let table = new_table(format!("Activations of {}", model.name));
    let mut logger = Logger { table, error: None };
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let mut passes = model.context(window.tokens.len());
        let last = model.forward(cpu, &window.tokens, &mut passes, &mut logger)?;
        if model.lm_head.is_some() {
            push(&mut logger.table, "act", "lm_head.weight", "linear", &last)?;
        }
        if let Some(error) = logger.error.take() {
            return Err(error);
        }
    }
    progress(windows.len(), windows.len());
    logger.table.note(format!("{} windows of {context} tokens", windows.len()));
    Ok(logger.table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_of_the_definition() {
        let numbers = |x: &[f32]| stats(x).map(|cell| cell.as_f64().expect("a number"));
        let [max_abs, avg, std] = numbers(&[1.0, -3.0, 2.0, 0.0]);
        assert!((max_abs - 3.0).abs() < 1e-12 && avg.abs() < 1e-12);
        assert!((std - 3.5_f64.sqrt()).abs() < 1e-12, "{std}");
        assert!(numbers(&[1.0, f32::NAN]).iter().all(|value| value.is_nan()));
        assert!(numbers(&[f32::INFINITY, 1.0])[0].is_infinite());
    }
}
