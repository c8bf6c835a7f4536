//! Writing text: one token after another, greedily or sampled with a seed.

use std::time::{Duration, Instant};

use aolab_kernels::{Cpu, logits};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Model, NoObserver};
use crate::rng::Rng;

/// How the next token is chosen. The order is temperature, then top-k, then top-p, as in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateConfig {
    /// How many tokens to write at most.
    pub max_new_tokens: usize,
    /// 0 is greedy: always the likeliest token.
    pub temperature: f32,
    /// Only the `k` likeliest tokens; 0 takes all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities reach `p`; 1 takes all.
    pub top_p: f32,
    /// The same seed writes the same text.
    pub seed: u64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig { max_new_tokens: 64, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl GenerateConfig {
    fn check(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let got = self.temperature;
            return Err(Error::invalid(format!("temperature is {got}; wanted 0 or more")));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let got = self.top_p;
            return Err(Error::invalid(format!("top-p is {got}; wanted above 0 and up to 1")));
        }
        Ok(())
    }
}

/// Why writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// `max_new_tokens` were written.
    Length,
    /// The model wrote an end-of-text token.
    EndOfText,
    /// The model's context is full.
    Context,
    /// The caller said stop.
    Cancelled,
}

/// What was written, and how fast.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time to write the tokens.
    pub decode: Duration,
}

/// Continues `prompt`. `stream` gets each piece of text as soon as it is whole and stops the writing with `false`.
pub fn generate(
    model: &Model,
    cpu: &Cpu,
    prompt: &str,
    config: &GenerateConfig,
    stream: &mut dyn FnMut(&str) -> bool,
) -> Result<Generated> {
    config.check()?;
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(prompt, true)?;
    let limit = model.config.max_position_embeddings;
    if ids.is_empty() {
        return Err(Error::invalid("the prompt is empty; give the model something to continue"));
    }
    if ids.len() >= limit {
        let n = ids.len();
        return Err(Error::invalid(format!(
            "the prompt has {n} tokens and the model reads at most {limit}; shorten the prompt"
        )));
    }
    let capacity = limit.min(ids.len() + config.max_new_tokens);
    let mut context = model.context(capacity);
    let started = Instant::now();
    let hidden = model.forward(cpu, &ids, &mut context, &mut NoObserver)?;
    let d = model.config.hidden_size;
    let mut scores = model.logits(cpu, &hidden[hidden.len() - d..])?;
    let prefill = started.elapsed();
    let mut rng = Rng::new(config.seed);
    let mut decoder = tokenizer.stream();
    let mut written = Generated {
        tokens: Vec::new(),
        text: String::new(),
        stop: Stop::Length,
        prompt_tokens: ids.len(),
        prefill,
        decode: Duration::ZERO,
    };
    let started = Instant::now();
    while written.tokens.len() < config.max_new_tokens {
        let token = sample(&scores, config, &mut rng);
        if model.config.eos_token_ids.contains(&token) {
            written.stop = Stop::EndOfText;
            break;
        }
        written.tokens.push(token);
        let piece = decoder.push(token)?;
        written.text.push_str(&piece);
        if !stream(&piece) {
            written.stop = Stop::Cancelled;
            break;
        }
        if context.len() == capacity {
            let full = written.tokens.len() < config.max_new_tokens;
            written.stop = if full { Stop::Context } else { Stop::Length };
            break;
        }
        scores = model.step(cpu, token, &mut context)?;
    }
    let rest = decoder.finish()?;
    if !rest.is_empty() {
        stream(&rest);
        written.text.push_str(&rest);
    }
    written.decode = started.elapsed();
    Ok(written)
}

/// Draws the next token.
#[expect(clippy::cast_possible_truncation, reason = "a vocabulary has fewer than 2³² entries")]
fn sample(values: &[f32], config: &GenerateConfig, rng: &mut Rng) -> u32 {
    if config.temperature <= 0.0 {
        return logits::argmax(values) as u32;
    }
    let mut ranked: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
    let likelier = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if (1..ranked.len()).contains(&config.top_k) {
        ranked.select_nth_unstable_by(config.top_k - 1, likelier);
        ranked.truncate(config.top_k);
    }
    ranked.sort_unstable_by(likelier);
    let top = f64::from(ranked[0].1);
    let temperature = f64::from(config.temperature);
    let mut weights: Vec<f64> =
        ranked.iter().map(|(_, logit)| ((f64::from(*logit) - top) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut reached = 0.0;
    // The token that crosses top-p is kept, so that there is always one.
    let kept = weights.iter().position(|weight| {
        reached += weight / total;
        reached >= f64::from(config.top_p)
    });
    weights.truncate(kept.map_or(weights.len(), |last| last + 1));
    let mut at = rng.uniform() * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|weight| {
        at -= weight;
        at < 0.0
    });
    ranked[chosen.unwrap_or(0)].0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(config: &GenerateConfig) -> Vec<usize> {
        let mut rng = Rng::new(7);
        let mut counts = vec![0; 4];
        for _ in 0..2000 {
            counts[sample(&[0.0, 2.0, 1.0, -9.0], config, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_likeliest() {
        assert_eq!(counts(&GenerateConfig::default())[1], 2000);
    }

    #[test]
    fn sampling_follows_the_distribution_and_its_cuts() {
        let warm = GenerateConfig { temperature: 1.0, ..Default::default() };
        let all = counts(&warm);
        // softmax(0, 2, 1) is 0.09, 0.665, 0.245.
        assert!((1250..1410).contains(&all[1]) && (430..550).contains(&all[2]), "{all:?}");
        let two = counts(&GenerateConfig { top_k: 2, ..warm.clone() });
        assert!(two[0] == 0 && two[2] > 0, "{two:?}");
        let nucleus = counts(&GenerateConfig { top_p: 0.6, ..warm });
        assert_eq!(nucleus[1], 2000);
    }
}
