//! Several models side by side: size, perplexity, divergence from the first, speed.

use aolab_kernels::Cpu;
use serde::{Deserialize, Serialize};

use crate::bench::{self, DecodeConfig, PrefillConfig};
use crate::error::{Context, Error, Result};
use crate::eval::{self, EvalConfig, Progress};
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
    let mut base_perplexity = f64::NAN;
    for (i, model) in models.iter().enumerate() {
        if !progress(i, models.len()) {
            return Err(Error::Cancelled);
        }
        let row = row(base, model, cpu, text, config, &mut base_perplexity);
        table.push(row.within(&model.name)?)?;
    }
    progress(models.len(), models.len());
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

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2⁵³")]
fn row(
    base: &Model,
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &CompareConfig,
    base_perplexity: &mut f64,
) -> Result<Vec<Cell>> {
    let mut silent = |_: usize, _: usize| true;
    let ppl = eval::perplexity(model, cpu, text, &config.eval, &mut silent)?.perplexity;
    if base_perplexity.is_nan() {
        *base_perplexity = ppl;
    }
    let kl = eval::kl(base, model, cpu, text, &config.eval, &mut silent)?;
    let one = EvalConfig { windows: Some(1), ..config.eval.clone() };
    let sqnr = eval::sqnr(base, model, cpu, text, &one, &mut silent)?;
    let (decode, prefill) = if config.decode_tokens == 0 {
        (Cell::Missing, Cell::Missing)
    } else {
        let context = decode_context(model, config);
        let decode = DecodeConfig { context, tokens: config.decode_tokens };
        let prefill = PrefillConfig { tokens: config.prefill_tokens, repeats: 3 };
        (
            Cell::Float(bench::decode(model, cpu, &decode, &mut silent)?.tokens_per_s),
            Cell::Float(bench::prefill(model, cpu, &prefill, &mut silent)?.tokens_per_s),
        )
    };
    let linears = model.linears();
    let bytes: usize = linears.iter().map(|(_, linear)| linear.weight.nbytes()).sum();
    let numel: usize =
        linears.iter().map(|(_, linear)| linear.weight.shape().0 * linear.weight.shape().1).sum();
    Ok(vec![
        Cell::Text(model.name.clone()),
        Cell::bytes(model.nbytes()),
        Cell::Float(8.0 * bytes as f64 / numel as f64),
        Cell::Float(ppl),
        Cell::Float(100.0 * (ppl / *base_perplexity - 1.0)),
        Cell::Float(kl.mean),
        Cell::Float(100.0 * kl.same_top_1),
        Cell::Float(sqnr.logits_db),
        decode,
        prefill,
    ])
}
