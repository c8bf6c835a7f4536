//! Tokens per second of a whole model.

use std::time::Instant;

use aolab_kernels::{Cost, Cpu, machine};
use serde::{Deserialize, Serialize};

use super::{Times, peak_rss_bytes, reset_peak_rss};
use crate::error::{Error, Result};
use crate::eval::Progress;
use crate::model::{Context, Model, NoObserver};
use crate::rng::Rng;

/// What to time when writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeConfig {
    /// Positions in the cache before the first timed token.
    pub context: usize,
    /// Timed tokens.
    pub tokens: usize,
}

/// What [`decode`] found: batch 1, weights cold or warm as a real generation leaves them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecodeResult {
    /// Positions in the cache before the first timed token.
    pub context: usize,
    /// Timed tokens.
    pub tokens: usize,
    /// Median time of one token.
    pub ms_per_token: f64,
    /// Time that nine tokens of ten stay under.
    pub ms_per_token_p90: f64,
    /// One over the median time.
    pub tokens_per_s: f64,
    /// Bytes that one token needs: every weight once, and the keys and values in the middle of the timed tokens.
    pub bytes_per_token: u64,
    /// How keys and values are kept, by [`CacheFormat::name`](aolab_kernels::kv_cache::CacheFormat::name).
    pub kv_cache: String,
    /// Bytes of the keys and values among them.
    pub kv_cache_bytes: u64,
    /// Those bytes over the median time.
    pub gb_per_s: f64,
    /// Read bandwidth of this machine with the same threads: the median of what it was before, between and after the
    /// timed tokens, for where memory is shared it does not stay the same.
    pub read_gb_per_s: f64,
    /// Peak resident memory of the process while it was timed.
    pub peak_rss_bytes: Option<u64>,
}

/// What to time when reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefillConfig {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Timed prompts.
    pub repeats: usize,
}

/// What [`prefill`] found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PrefillResult {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Median time of the prompt.
    pub ms: f64,
    /// Tokens over the median time.
    pub tokens_per_s: f64,
    /// The median time over the tokens.
    pub ms_per_token: f64,
    /// Operations of the linear layers, the output layer's for one token, over the median time.
    pub gflop_per_s: f64,
    /// The f32 multiply-add peak of this machine with the same threads, measured in the same run.
    pub peak_gflop_per_s: f64,
    /// Bytes of every weight once, of what goes in and out of the layers, and of the cache, over the median time.
    pub gb_per_s: f64,
    /// Read bandwidth of this machine with the same threads, the median of what it was before each prompt.
    pub read_gb_per_s: f64,
    /// Peak resident memory of the process while it was timed.
    pub peak_rss_bytes: Option<u64>,
}

/// Seconds spent on measuring a ceiling.
const CEILING_SECONDS: f64 = 0.3;

/// Seconds spent on reading at each of several moments.
const READ_SECONDS: f64 = 0.03;

/// How often the read bandwidth is measured in [`decode`].
pub(super) const READ_SPOTS: usize = 5;

/// The read bandwidth, now and again, and the most memory that was held without what reading it takes.
struct Reads {
    gb_per_s: Vec<f64>,
    peak_rss_bytes: Option<u64>,
}

impl Reads {
    fn new() -> Reads {
        reset_peak_rss();
        Reads { gb_per_s: Vec::new(), peak_rss_bytes: None }
    }

    fn measure(&mut self, cpu: &Cpu) {
        self.peak_rss_bytes = self.peak_rss_bytes.max(peak_rss_bytes());
        self.gb_per_s.push(machine::read_bandwidth(cpu, READ_SECONDS));
        reset_peak_rss();
    }

    /// The median, and the most memory that was held.
    fn finish(self) -> (f64, Option<u64>) {
        let peak = self.peak_rss_bytes.max(peak_rss_bytes());
        (Times::from_samples(self.gb_per_s).median(), peak)
    }
}

fn random_tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocab = u64::try_from(model.config.vocab_size).unwrap_or(u64::MAX);
    let mut rng = Rng::new(1);
    (0..count).map(|_| u32::try_from(rng.next_u64() % vocab).unwrap_or(0)).collect()
}

fn check_fits(model: &Model, wanted: usize) -> Result<()> {
    let limit = model.config.max_position_embeddings;
    if wanted == 0 {
        return Err(Error::invalid("nothing to time: ask for at least one token"));
    }
    if wanted <= limit {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} reads at most {limit} positions; {wanted} were asked for",
        model.name
    )))
}

/// Times single tokens behind `config.context` positions.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn decode(
    model: &Model,
    cpu: &Cpu,
    config: &DecodeConfig,
    progress: Progress,
) -> Result<DecodeResult> {
    check_fits(model, config.context + config.tokens)?;
    if config.tokens == 0 {
        return Err(Error::invalid("nothing to time: --tokens is 0"));
    }
    let mut reads = Reads::new();
    let tokens = random_tokens(model, config.context + config.tokens);
    let (before, timed) = tokens.split_at(config.context);
    let mut context = model.context(tokens.len());
    model.forward(cpu, before, &mut context, &mut NoObserver)?;
    let mut seconds = Vec::with_capacity(timed.len());
    let spots = timed.len().div_ceil(READ_SPOTS - 1);
    for (done, token) in timed.iter().enumerate() {
        if !progress(done, timed.len()) {
            return Err(Error::Cancelled);
        }
        if done.is_multiple_of(spots) {
            reads.measure(cpu);
            // Once untimed, so that the caches hold again what they hold while a text is written.
            next_token(model, cpu, *token, &mut context)?;
            context.truncate(config.context + done);
        }
        let start = Instant::now();
        next_token(model, cpu, *token, &mut context)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    reads.measure(cpu);
    let (read_gb_per_s, peak_rss_bytes) = reads.finish();
    progress(timed.len(), timed.len());
    let times = Times::from_samples(seconds);
    let positions = config.context + config.tokens / 2;
    let kv_cache_bytes = context.cache().nbytes_of(positions) as u64;
    let bytes_per_token = weight_bytes(model, 1) + kv_cache_bytes;
    Ok(DecodeResult {
        context: config.context,
        tokens: config.tokens,
        ms_per_token: 1e3 * times.median(),
        ms_per_token_p90: 1e3 * times.quantile(9, 10),
        tokens_per_s: 1.0 / times.median(),
        bytes_per_token,
        kv_cache: model.kv_cache.name().to_owned(),
        kv_cache_bytes,
        gb_per_s: bytes_per_token as f64 / times.median() * 1e-9,
        read_gb_per_s,
        peak_rss_bytes,
    })
}

fn next_token(model: &Model, cpu: &Cpu, token: u32, context: &mut Context) -> Result<()> {
    let hidden = model.forward(cpu, &[token], context, &mut NoObserver)?;
    model.logits(cpu, &hidden)?;
    Ok(())
}

/// Every weight once, and what goes in and out of the layers; the output layer sees one token only.
fn weight_bytes(model: &Model, m: usize) -> u64 {
    let costs = linears_and_head(model, m);
    costs.map(|cost| cost.bytes).sum()
}

/// The cost of each linear layer for `m` tokens, and of the output layer for one.
fn linears_and_head(model: &Model, m: usize) -> impl Iterator<Item = Cost> {
    let linears = model.linears();
    let count = linears.len() - usize::from(model.lm_head.is_some());
    let head = model.head().cost(1);
    linears.into_iter().take(count).map(move |(_, linear)| linear.weight.cost(m)).chain([head])
}

/// Times whole prompts, logits of the last token included.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2⁵³")]
pub fn prefill(
    model: &Model,
    cpu: &Cpu,
    config: &PrefillConfig,
    progress: Progress,
) -> Result<PrefillResult> {
    check_fits(model, config.tokens)?;
    let peak_gflop_per_s = machine::f32_peak(cpu, CEILING_SECONDS);
    let mut reads = Reads::new();
    let tokens = random_tokens(model, config.tokens);
    let d = model.config.hidden_size;
    let mut context = model.context(tokens.len());
    let mut seconds = Vec::new();
    for done in 0..config.repeats.max(1) {
        if !progress(done, config.repeats) {
            return Err(Error::Cancelled);
        }
        context.truncate(0);
        reads.measure(cpu);
        let start = Instant::now();
        let hidden = model.forward(cpu, &tokens, &mut context, &mut NoObserver)?;
        model.logits(cpu, &hidden[hidden.len() - d..])?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    progress(config.repeats, config.repeats);
    let flops: u64 = linears_and_head(model, config.tokens).map(|cost| cost.flops).sum();
    let bytes = weight_bytes(model, config.tokens) + context.cache().nbytes() as u64;
    let seconds = Times::from_samples(seconds).median();
    let (read_gb_per_s, peak_rss_bytes) = reads.finish();
    Ok(PrefillResult {
        tokens: config.tokens,
        ms: 1e3 * seconds,
        tokens_per_s: config.tokens as f64 / seconds,
        gflop_per_s: flops as f64 / seconds * 1e-9,
        peak_gflop_per_s,
        ms_per_token: 1e3 * seconds / config.tokens as f64,
        gb_per_s: bytes as f64 / seconds * 1e-9,
        read_gb_per_s,
        peak_rss_bytes,
    })
}
