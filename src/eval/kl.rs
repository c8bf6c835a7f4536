//! How far a model's predictions moved from a baseline's: Kullback-Leibler divergence, token by token.

use std::ops::Range;

use aolab_kernels::{Cpu, logits};
use serde::{Deserialize, Serialize};

use super::perplexity::LOGIT_ROWS;
use super::sqnr::Power;
use super::{Convention, EvalConfig, Progress, mean_and_error, windows_of};
use crate::error::{Error, Result};
use crate::model::Model;

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
    /// The model's own perplexity at these positions.
    pub perplexity: f64,
    /// The mean divergence of each window: what two models are compared by, window by window.
    #[serde(default)]
    pub window_means: Vec<f64>,
    /// Signal-to-noise ratio (N23) of its logits at these positions, the baseline's as signal.
    pub logits_sqnr_db: f64,
}

impl KlResult {
    /// The quantiles that are told.
    pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

    /// The standard error of the mean over windows, which unlike positions depend little on each other. NaN for one window.
    pub fn window_error(&self) -> f64 {
        match self.window_means.len() {
            0 | 1 => f64::NAN,
            _ => mean_and_error(&self.window_means).1,
        }
    }

    /// How much farther this model is from the baseline than `other`, and the standard error of that over windows.
    pub fn farther_than(&self, other: &KlResult) -> (f64, f64) {
        let pairs = self.window_means.iter().zip(&other.window_means);
        mean_and_error(&pairs.map(|(a, b)| a - b).collect::<Vec<f64>>())
    }
}

/// Compares the predictions of each of `models` with those of `base` on the windows of `text`, in one pass: the
/// baseline reads each window once. One result a model, in their order.
pub fn kl(
    base: &Model,
    models: &[&Model],
    cpu: &Cpu,
    text: &str,
    config: &EvalConfig,
    progress: Progress,
) -> Result<Vec<KlResult>> {
    if let Some(other) = models.iter().find(|m| m.config.vocab_size != base.config.vocab_size) {
        return Err(Error::invalid(format!(
            "{} has {} vocabulary entries and {} has {}: their predictions cannot be compared",
            base.name, base.config.vocab_size, other.name, other.config.vocab_size
        )));
    }
    let (windows, context, _) = windows_of(base, text, config)?;
    let mut tallies: Vec<Tally> = models.iter().map(|_| Tally::default()).collect();
    let total = windows.len() * models.len();
    for (done, window) in windows.iter().enumerate() {
        let base_hidden = base.read(cpu, &window.tokens)?;
        let mut hidden = Vec::with_capacity(models.len());
        for (i, model) in models.iter().enumerate() {
            if !progress(done * models.len() + i, total) {
                return Err(Error::Cancelled);
            }
            hidden.push(model.read(cpu, &window.tokens)?);
        }
        let positions = window.first_target - 1..window.tokens.len() - 1;
        tallies.iter_mut().for_each(|tally| tally.windows.push(tally.divergence.len()));
        for start in positions.clone().step_by(LOGIT_ROWS) {
            let rows = start..positions.end.min(start + LOGIT_ROWS);
            let targets = &window.tokens[rows.start + 1..rows.end + 1];
            let p = logits_of(base, cpu, &base_hidden, rows.clone())?;
            for ((model, hidden), tally) in models.iter().zip(&hidden).zip(&mut tallies) {
                let q = logits_of(model, cpu, hidden, rows.clone())?;
                tally.add(cpu, &p, &q, targets);
            }
        }
    }
    progress(total, total);
    Ok(tallies.into_iter().map(|tally| tally.result(config.convention, context)).collect())
}

fn logits_of(model: &Model, cpu: &Cpu, hidden: &[f32], rows: Range<usize>) -> Result<Vec<f32>> {
    let d = model.config.hidden_size;
    model.logits(cpu, &hidden[rows.start * d..rows.end * d])
}

/// What is gathered of one model, position by position.
#[derive(Debug, Default)]
struct Tally {
    divergence: Vec<f64>,
    /// Where each window begins among the divergences.
    windows: Vec<usize>,
    nll: Vec<f64>,
    same: usize,
    power: Power,
}

impl Tally {
    fn add(&mut self, cpu: &Cpu, p: &[f32], q: &[f32], targets: &[u32]) {
        for (kl, agree) in divergences(cpu, p, q, p.len() / targets.len()) {
            self.divergence.push(kl);
            self.same += usize::from(agree);
        }
        let mut nll = vec![0.0; targets.len()];
        logits::nll(cpu, q, targets, &mut nll);
        self.nll.extend(nll);
        self.power.add(p, q);
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
    fn result(mut self, convention: Convention, context: usize) -> KlResult {
        let n = self.divergence.len() as f64;
        let (mean, mean_error) = mean_and_error(&self.divergence);
        let ends = self.windows.iter().skip(1).copied().chain([self.divergence.len()]);
        let windows = self.windows.iter().zip(ends).filter(|(start, end)| *start < end);
        let window_means =
            windows.map(|(start, end)| mean_and_error(&self.divergence[*start..end]).0).collect();
        self.divergence.sort_by(f64::total_cmp);
        let agree = self.same as f64 / n;
        KlResult {
            convention,
            context,
            tokens: self.divergence.len(),
            mean,
            mean_error,
            quantiles: KlResult::QUANTILES.map(|q| quantile(&self.divergence, q)).to_vec(),
            max: self.divergence.last().copied().unwrap_or(f64::NAN),
            same_top_1: agree,
            same_top_1_error: (agree * (1.0 - agree) / (n - 1.0).max(1.0)).sqrt(),
            perplexity: mean_and_error(&self.nll).0.exp(),
            window_means,
            logits_sqnr_db: self.power.db(),
        }
    }
}

/// `KL(p ‖ q)` of each row of logits, and whether both rows put the same token first. In f64.
pub(crate) fn divergences(cpu: &Cpu, p: &[f32], q: &[f32], vocab: usize) -> Vec<(f64, bool)> {
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
