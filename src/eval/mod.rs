//! What quantization did to a model's answers: perplexity, divergence from a baseline, signal-to-noise.

mod kl;
mod kv_cache;
mod perplexity;
mod report;
mod sparsity;
mod sqnr;
mod windows;

pub(crate) use kl::divergences;
pub use kl::{KlResult, kl};
pub use kv_cache::kv_cache;
pub use perplexity::{PerplexityResult, perplexity};
pub use sparsity::{LayerSparsity, mask_table, sparsity, sparsity_table, with_errors};
pub use sqnr::{LayerSqnr, SqnrResult, sqnr};
pub use windows::{Convention, Window, cut};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::Model;

/// What to read and how to count.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalConfig {
    /// See [`Convention`].
    pub convention: Convention,
    /// Tokens per window, BOS included; `None` takes 512 or the model's limit, whichever is less.
    pub context: Option<usize>,
    /// Only the first so many windows; `None` takes all.
    pub windows: Option<usize>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig { convention: Convention::Window, context: None, windows: None }
    }
}

/// Is asked before each unit of work: progress `(done, total)` in, "stop" out as `false`.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// Tokenizes `text` with the model's tokenizer and cuts it as `config` says. Also tells the context.
pub(crate) fn windows_of(
    model: &Model,
    text: &str,
    config: &EvalConfig,
) -> Result<(Vec<Window>, usize, bool)> {
    if config.windows == Some(0) {
        return Err(Error::usage("0 windows hold no token to predict; wanted 1 or more"));
    }
    let tokenizer = model.tokenizer()?;
    let limit = model.config.max_position_embeddings;
    let context = config.context.unwrap_or(512.min(limit));
    if context > limit {
        return Err(Error::invalid(format!(
            "{} reads at most {limit} positions; {context} were asked for",
            model.name
        )));
    }
    let ids = tokenizer.encode(text, false)?;
    // What the tokenizer itself puts in front of a text, which is what the model was trained with.
    let bos = tokenizer.encode("", true)?.first().copied();
    let mut windows = cut(&ids, bos, context, config.convention)?;
    let all = windows.len();
    windows.truncate(config.windows.unwrap_or(usize::MAX));
    let whole_text = windows.len() == all && bos.is_some();
    Ok((windows, context, whole_text))
}

/// Mean and its standard error.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}
