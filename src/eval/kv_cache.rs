//! What a narrower key and value cache does to a model's predictions (X27).

use aolab_kernels::Cpu;
use aolab_kernels::kv_cache::CacheFormat;

use super::{EvalConfig, KlResult, Progress, kl};
use crate::error::Result;
use crate::model::Model;
use crate::table::{Cell, Table};

/// Compares `model` with its cache in each of `formats` against itself with the cache in f32, as a table of one row a
/// format. `text` is what is read, `name` what the table calls it.
pub fn kv_cache(
    model: &Model,
    formats: &[CacheFormat],
    cpu: &Cpu,
    (text, name): (&str, &str),
    config: &EvalConfig,
    progress: Progress,
) -> Result<Table> {
    let base = model.with_kv_cache(CacheFormat::F32);
    let models: Vec<Model> = formats.iter().map(|format| base.with_kv_cache(*format)).collect();
    let models: Vec<&Model> = models.iter().collect();
    let found = kl(&base, &models, cpu, text, config, progress)?;
    let mut table = Table::new(format!("key and value cache of {}", base.name))
        .column("cache")
        .column_unit("bits", "bit/number")
        .column("bytes/token")
        .column("perplexity")
        .column_unit("mean KL", "nat")
        .column_unit("± standard error", "nat")
        .column_unit("99 %", "nat")
        .column_unit("same top-1", "%")
        .column_unit("± its error", "%");
    if let Some(first) = found.first() {
        table.note(format!(
            "KL(f32 cache ‖ cache) at {} positions; convention {}, context {}, {name}",
            first.tokens, first.convention, first.context
        ));
    }
    table
        .note("quantized caches are read token by token, as text is written; scales count as bits");
    for (format, found) in formats.iter().zip(&found) {
        table.push(row(&base, *format, found))?;
    }
    Ok(table)
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
fn row(model: &Model, format: CacheFormat, found: &KlResult) -> Vec<Cell> {
    let d = model.config.head_dim;
    vec![
        Cell::Text(format.name().to_owned()),
        Cell::Float(8.0 * format.row_nbytes(d) as f64 / d as f64),
        Cell::bytes(model.with_kv_cache(format).context(1).cache().nbytes()),
        Cell::Float(found.perplexity),
        Cell::Float(found.mean),
        Cell::Float(found.mean_error),
        Cell::Float(found.quantiles[3]),
        Cell::Float(100.0 * found.same_top_1),
        Cell::Float(100.0 * found.same_top_1_error),
    ]
}
