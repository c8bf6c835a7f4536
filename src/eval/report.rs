//! The evaluations as tables.

use super::{KlResult, PerplexityResult, SqnrResult};
use crate::error::Result;
use crate::table::{Cell, Table};

impl PerplexityResult {
    /// One row; rows of several models can be appended to each other.
    pub fn table(&self, model: &str, text: &str) -> Result<Table> {
        let mut table = Table::new("perplexity")
            .column("model")
            .column("perplexity")
            .column("± standard error")
            .column("mean NLL")
            .column("bits per byte")
            .column("tokens")
            .column_unit("speed", "tok/s")
            .with_note(format!(
                "convention {}: {} windows of {} tokens of {text}, {}",
                self.convention,
                self.windows,
                self.context,
                match self.convention {
                    super::Convention::Window =>
                        "each behind a fresh BOS, every token predicted once",
                    super::Convention::Llamacpp =>
                        "first token replaced by BOS, only the second half counted",
                }
            ));
        table.push([
            Cell::Text(model.to_owned()),
            Cell::Float(self.perplexity),
            Cell::Float(self.standard_error),
            Cell::Float(self.mean_nll),
            self.bits_per_byte.into(),
            self.tokens.into(),
            Cell::Float(self.tokens_per_s),
        ])?;
        Ok(table)
    }
}

impl KlResult {
    /// One row; rows of several models against one baseline can be appended to each other.
    pub fn table(&self, model: &str, base: &str, text: &str) -> Result<Table> {
        let mut table = Table::new(format!("divergence from {base}"))
            .column("model")
            .column_unit("mean KL", "nat")
            .column_unit("± standard error", "nat")
            .column_unit("median", "nat")
            .column_unit("90 %", "nat")
            .column_unit("95 %", "nat")
            .column_unit("99 %", "nat")
            .column_unit("99.9 %", "nat")
            .column_unit("max", "nat")
            .column_unit("same top-1", "%")
            .column_unit("± its error", "%")
            .with_note(format!(
                "KL({base} ‖ model) at {} positions; convention {}, context {}, {text}",
                self.tokens, self.convention, self.context
            ));
        let mut row = vec![Cell::Text(model.to_owned()), Cell::Float(self.mean)];
        row.push(Cell::Float(self.mean_error));
        row.extend(self.quantiles.iter().copied().map(Cell::Float));
        row.push(Cell::Float(self.max));
        row.push(Cell::Float(100.0 * self.same_top_1));
        row.push(Cell::Float(100.0 * self.same_top_1_error));
        table.push(row)?;
        Ok(table)
    }
}

impl SqnrResult {
    /// One row a layer, the logits last.
    pub fn table(&self, model: &str, base: &str) -> Result<Table> {
        let mut table = Table::new(format!("signal-to-noise of {model} against {base}"))
            .column("layer")
            .column("workflow")
            .column_unit("weight SQNR", "dB")
            .column_unit("output SQNR", "dB")
            .with_note(format!(
                "20·log10(‖x‖ / ‖x − y‖), x from {base}; outputs on {base}'s own inputs, {} tokens; \
                 inf: equal",
                self.tokens
            ));
        for layer in &self.layers {
            table.push([
                Cell::Text(layer.layer.clone()),
                Cell::Text(layer.workflow.clone()),
                Cell::Float(layer.weight_db),
                Cell::Float(layer.output_db),
            ])?;
        }
        table.push([
            Cell::Text("logits (whole model)".to_owned()),
            Cell::Missing,
            Cell::Missing,
            Cell::Float(self.logits_db),
        ])?;
        Ok(table)
    }
}
