//! Perplexity: `exp` of the mean negative log-likelihood of the text's own tokens.

use std::time::Instant;

use aolab_kernels::{Cpu, logits};
use serde::{Deserialize, Serialize};

use super::{Convention, EvalConfig, Progress, Window, mean_and_error, windows_of};
use crate::error::{Error, Result};
use crate::model::Model;

/// What [`perplexity`] found, with its convention.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PerplexityResult {
    /// How it was counted.
    pub convention: Convention,
    /// Tokens per window.
    pub context: usize,
    /// Windows read.
    pub windows: usize,
    /// Tokens predicted and counted.
    pub tokens: usize,
    /// Mean negative log-likelihood of a token, in nats.
    pub mean_nll: f64,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// Standard error of the perplexity, tokens taken as independent.
    pub standard_error: f64,
    /// Bits per byte of the text, where every token of it was predicted.
    pub bits_per_byte: Option<f64>,
    /// Tokens read per second.
    pub tokens_per_s: f64,
    /// Sum of negative log-likelihoods of each window.
    pub window_nll: Vec<f64>,
}

/// Reads `text` as `config` says and tells the model's perplexity on it.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn perplexity(
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<PerplexityResult> {
    let (windows, context, whole_text) = windows_of(model, text, config)?;
    let started = Instant::now();
    let mut nll = Vec::new();
    let mut window_nll = Vec::with_capacity(windows.len());
    let mut read = 0;
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let new = negative_log_likelihoods(model, cpu, window)?;
        window_nll.push(new.iter().sum());
        nll.extend(new);
        read += window.tokens.len();
    }
    progress(windows.len(), windows.len());
    let (mean_nll, error) = mean_and_error(&nll);
    let every_token =
        whole_text && config.convention == Convention::Window && model.tokenizer()?.bos().is_some();
    let bits = mean_nll * nll.len() as f64 / std::f64::consts::LN_2;
    Ok(PerplexityResult {
        convention: config.convention,
        context,
        windows: windows.len(),
        tokens: nll.len(),
        mean_nll,
        perplexity: mean_nll.exp(),
        standard_error: mean_nll.exp() * error,
        bits_per_byte: every_token.then(|| bits / text.len() as f64),
        tokens_per_s: read as f64 / started.elapsed().as_secs_f64(),
        window_nll,
    })
}

/// Rows of logits that are held at once: 64 rows of a 150,000-word vocabulary are 38 MB.
pub(super) const LOGIT_ROWS: usize = 64;

/// The negative log-likelihood of each target of `window`, in order.
fn negative_log_likelihoods(model: &Model, cpu: &Cpu, window: &Window) -> Result<Vec<f64>> {
    let hidden = model.read(cpu, &window.tokens)?;
    let d = model.config.hidden_size;
    // Row i predicts token i + 1.
    let rows = &hidden[(window.first_target - 1) * d..(window.tokens.len() - 1) * d];
    let mut nll = vec![0.0; window.targets().len()];
    let parts = nll.chunks_mut(LOGIT_ROWS);
    for ((rows, targets), nll) in
        rows.chunks(LOGIT_ROWS * d).zip(window.targets().chunks(LOGIT_ROWS)).zip(parts)
    {
        logits::nll(cpu, &model.logits(cpu, rows)?, targets, nll);
    }
    Ok(nll)
}
