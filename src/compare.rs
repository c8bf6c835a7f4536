//! Several models side by side: size, perplexity, divergence from the first, speed.

use aolab_kernels::Cpu;
use serde::{Deserialize, Serialize};

use crate::bench::{self, DecodeConfig, PrefillConfig};
use crate::error::{Context, Error, Result};
use crate::eval::{self, EvalConfig, KlResult, Progress};
use crate::model::Model;
use crate::table::{Cell, Table};

/// What to measure of each model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompareConfig {
    /// Text, convention and windows of the perplexity and the divergence.
    pub eval: EvalConfig,
    /// Timed tokens; 0 leaves speed out.
    pub decode_tokens: usize,
    /// Tokens of the timed prompt.
    pub prefill_tokens: usize,
}

/// Measures every model in one run; the first is the baseline.
pub fn compare(
    models: &[Model],
    cpu: &Cpu,
    text: &str,
    config: &CompareConfig,
    progress: Progress,
) -> Result<Table> {
    let Some(base) = models.first() else {
        return Err(Error::invalid("nothing to compare: name at least two models"));
    };
    let mut table = Table::new(format!("{} models, baseline {}", models.len(), base.name))
        .column("model")
        .column("size")
        .column_unit("weights", "bits each")
        .column("perplexity")
        .column_unit("change", "%")
        .column_unit("mean KL", "nat")
        .column_unit("same top-1", "%")
        .column_unit("logits SQNR", "dB")
        .column_unit("decode", "tok/s")
        .column_unit("prefill", "tok/s");
    let all: Vec<&Model> = models.iter().collect();
    let found = eval::kl(base, &all, cpu, text, &config.eval, progress)?;
    for (model, found_of) in models.iter().zip(&found) {
        let speed = speed(model, cpu, config, progress).within(&model.name)?;
        let mut row = row(model, found_of, found[0].perplexity);
        row.extend(speed);
        table.push(row)?;
    }
    table.mark_baseline(&base.name);
    table.note(format!(
        "perplexity and KL: convention {}, {} windows at most; KL and SQNR against {}",
        config.eval.convention,
        config.eval.windows.map_or_else(|| "all".to_owned(), |w| w.to_string()),
        base.name
    ));
    if config.decode_tokens > 0 {
        table.note(format!(
            "decode: batch 1, {} tokens behind a context of {}; prefill: {} tokens; {} threads, {}",
            config.decode_tokens,
            decode_context(base, config),
            config.prefill_tokens,
            cpu.threads().count(),
            cpu.isa().name()
        ));
    }
    Ok(table)
}

/// Half of what the model reads, so that the cache matters as it does in use.
fn decode_context(model: &Model, config: &CompareConfig) -> usize {
    let limit = model.config.max_position_embeddings.min(512);
    (limit / 2).min(limit.saturating_sub(config.decode_tokens))
}

/// Decode and prefill in tok/s, if they are wanted.
fn speed(
    model: &Model,
    cpu: &Cpu,
    config: &CompareConfig,
    progress: Progress,
) -> Result<[Cell; 2]> {
    if config.decode_tokens == 0 {
        return Ok([Cell::Missing, Cell::Missing]);
    }
    let context = decode_context(model, config);
    let decode = DecodeConfig { context, tokens: config.decode_tokens };
    let prefill = PrefillConfig { tokens: config.prefill_tokens, repeats: 3 };
    Ok([
        Cell::Float(bench::decode(model, cpu, &decode, progress)?.tokens_per_s),
        Cell::Float(bench::prefill(model, cpu, &prefill, progress)?.tokens_per_s),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
fn row(model: &Model, found: &KlResult, base_perplexity: f64) -> Vec<Cell> {
    let linears = model.linears();
    let bytes: usize = linears.iter().map(|(_, linear)| linear.weight.nbytes()).sum();
    let numel: usize =
        linears.iter().map(|(_, linear)| linear.weight.shape().0 * linear.weight.shape().1).sum();
    vec![
        Cell::Text(model.name.clone()),
        Cell::bytes(model.nbytes()),
        Cell::Float(8.0 * bytes as f64 / numel as f64),
        Cell::Float(found.perplexity),
        Cell::Float(100.0 * (found.perplexity / base_perplexity - 1.0)),
        Cell::Float(found.mean),
        Cell::Float(100.0 * found.same_top_1),
        Cell::Float(found.logits_sqnr_db),
    ]
}
