//! How far a model's predictions moved from a baseline's: Kullback-Leibler divergence, token by token.

use aolab_kernels::Cpu;
use serde::{Deserialize, Serialize};

use super::perplexity::LOGIT_ROWS;
use super::{Convention, EvalConfig, Progress, mean_and_error, windows_of};
use crate::error::{Error, Result};
use crate::model::{Model, NoObserver};

/// What [`kl`] found. Divergences are `KL(base ‖ model)` in nats.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KlResult {
    /// Which positions were counted.
    pub convention: Convention,
    /// Tokens per window.
    pub context: usize,
    /// Positions compared.
    pub tokens: usize,
    /// Mean divergence.
    pub mean: f64,
    /// Its standard error, positions taken as independent.
    pub mean_error: f64,
    /// Divergence at the quantiles of [`KlResult::QUANTILES`], in order.
    pub quantiles: Vec<f64>,
    /// The largest divergence.
    pub max: f64,
    /// Share of positions where both models put the same token first.
    pub same_top_1: f64,
    /// Its standard error.
    pub same_top_1_error: f64,
}

impl KlResult {
    /// The quantiles that are told.
    pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];
}

/// Compares the predictions of `model` with those of `base` on the windows of `text`.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn kl(
    base: &Model,
    model: &Model,
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<KlResult> {
    if base.config.vocab_size != model.config.vocab_size {
        return Err(Error::invalid(format!(
            "{} has {} vocabulary entries and {} has {}: their predictions cannot be compared",
            base.name, base.config.vocab_size, model.name, model.config.vocab_size
        )));
    }
    let (windows, context, _) = windows_of(base, text, config)?;
    let d = (base.config.hidden_size, model.config.hidden_size);
    let mut divergence = Vec::new();
    let mut same = 0_usize;
    for (done, window) in windows.iter().enumerate() {
        if !progress(done, windows.len()) {
            return Err(Error::Cancelled);
        }
        let read = |m: &Model| {
            m.forward(cpu, &window.tokens, &mut m.context(window.tokens.len()), &mut NoObserver)
        };
        let (p, q) = (read(base)?, read(model)?);
        let positions = window.first_target - 1..window.tokens.len() - 1;
        for start in positions.clone().step_by(LOGIT_ROWS) {
            let end = positions.end.min(start + LOGIT_ROWS);
            let p = base.logits(cpu, &p[start * d.0..end * d.0])?;
            let q = model.logits(cpu, &q[start * d.1..end * d.1])?;
            for (kl, agree) in divergences(cpu, &p, &q, base.config.vocab_size) {
                divergence.push(kl);
                same += usize::from(agree);
            }
        }
    }
    progress(windows.len(), windows.len());
    let n = divergence.len() as f64;
    let (mean, mean_error) = mean_and_error(&divergence);
    divergence.sort_by(f64::total_cmp);
    let agree = same as f64 / n;
    Ok(KlResult {
        convention: config.convention,
        context,
        tokens: divergence.len(),
        mean,
        mean_error,
        quantiles: KlResult::QUANTILES.map(|q| quantile(&divergence, q)).to_vec(),
        max: divergence.last().copied().unwrap_or(f64::NAN),
        same_top_1: agree,
        same_top_1_error: (agree * (1.0 - agree) / (n - 1.0).max(1.0)).sqrt(),
    })
}

/// `KL(p ‖ q)` of each row of logits, and whether both rows put the same token first. In f64.
fn divergences(cpu: &Cpu, p: &[f32], q: &[f32], vocab: usize) -> Vec<(f64, bool)> {
    let mut out = vec![(0.0, false); p.len() / vocab];
    let share = cpu.threads().share(out.len(), 1);
    cpu.threads().chunks_mut(&mut out, share, |part, out| {
        for (i, result) in out.iter_mut().enumerate() {
            let row = (part * share + i) * vocab..(part * share + i + 1) * vocab;
            *result = divergence(&p[row.clone()], &q[row]);
        }
    });
    out
}

fn divergence(p: &[f32], q: &[f32]) -> (f64, bool) {
    let (p_top, p_sum) = log_sum_exp(p);
    let (q_top, q_sum) = log_sum_exp(q);
    let kl = p.iter().zip(q).map(|(p, q)| {
        let log_p = f64::from(*p) - p_sum;
        log_p.exp() * (log_p - (f64::from(*q) - q_sum))
    });
    (kl.sum(), p_top == q_top)
}

/// The position of the largest logit and `log Σ exp`.
fn log_sum_exp(row: &[f32]) -> (usize, f64) {
    let mut top = (0, f32::NEG_INFINITY);
    for (i, value) in row.iter().enumerate() {
        if *value > top.1 {
            top = (i, *value);
        }
    }
    let max = f64::from(top.1);
    let sum: f64 = row.iter().map(|value| (f64::from(*value) - max).exp()).sum();
    (top.0, max + sum.ln())
}

/// The `q`-quantile of sorted values, interpolated linearly between neighbours.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
#[expect(clippy::cast_possible_truncation, reason = "floor of an index in range")]
#[expect(clippy::cast_sign_loss, reason = "q and the length are not negative")]
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] * (1.0 - part) + sorted[high] * part
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_interpolate() {
        let v = [0.0, 1.0, 2.0, 3.0];
        for (q, wanted) in [(0.0, 0.0), (0.5, 1.5), (1.0, 3.0)] {
            assert!((quantile(&v, q) - wanted).abs() < 1e-12, "{q}");
        }
    }
}
