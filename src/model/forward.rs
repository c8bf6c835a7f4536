//! The forward pass: tokens in, hidden states and logits out, with a key/value cache.

use aolab_kernels::attention::{self, AttentionShape, Keys};
use aolab_kernels::kv_cache::KvCache;
use aolab_kernels::rope::{self, RopeShape};
use aolab_kernels::{Cpu, activation, norm};

use super::cuda::GpuContext;
use super::{FeedForward, Job, Layer, Linear, Model};
use crate::error::{Context as _, Error, Result};

/// Sees what flows through the model: calibration, statistics, tests.
pub trait Observer {
    /// The residual stream `(M, hidden)` after `layer` blocks; 0 is the embedding.
    fn hidden(&mut self, layer: usize, x: &[f32]) {
        let _ = (layer, x);
    }

    /// The input `(M, K)` of the linear layer `name` of block `layer`.
    fn linear_input(&mut self, layer: usize, name: &'static str, x: &[f32]) {
        let _ = (layer, name, x);
    }

    /// Whether it looks at all: what a GPU computes is copied to the host only for one that does.
    fn looks(&self) -> bool {
        true
    }
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn looks(&self) -> bool {
        false
    }
}

/// Everything that one sequence needs while it is read or written: the key/value cache, the rotary
/// tables and scratch space. Made by [`Model::context`].
#[derive(Debug)]
pub struct Context {
    capacity: usize,
    len: usize,
    cache: KvCache,
    /// Cosines and sines, `(capacity, head_dim / 2)` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    scratch: Scratch,
    /// In place of all of these where the model runs on a GPU; made by the first pass.
    gpu: Option<GpuContext>,
}

#[derive(Debug, Default)]
struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    activated: Vec<f32>,
}

impl Context {
    /// How many positions the cache holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many positions it holds now.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The GPU's part, made by the first caller, and how many positions it holds.
    fn on_gpu(
        &mut self,
        model: &Model,
        placed: std::sync::Arc<super::cuda::Placed>,
    ) -> Result<(usize, &mut GpuContext)> {
        let gpu = match self.gpu.take() {
            Some(gpu) => gpu,
            None => GpuContext::new(model, placed, self.capacity)?,
        };
        Ok((self.len, self.gpu.insert(gpu)))
    }

    fn check_room(&self, m: usize) -> Result<()> {
        if self.len + m <= self.capacity {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the context holds {} positions and {} are read already: {m} more do not fit",
            self.capacity, self.len
        )))
    }

    /// Forgets everything behind the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The keys and values of every block.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }
}

/// Tokens that go through the model at once: more would only grow the scratch space.
const MAX_CHUNK: usize = 512;

impl Model {
    /// An empty context for up to `capacity` positions, its cache in the model's format.
    pub fn context(&self, capacity: usize) -> Context {
        let config = &self.config;
        // On a GPU the cache lies there.
        let here = if self.device.is_some() { 0 } else { capacity };
        let shape = [config.num_key_value_heads, here, config.head_dim];
        let cache = KvCache::new(self.kv_cache, self.layers.len(), shape);
        let (cos, sin) = rope::tables(&config.inv_freq(), 0..capacity, 1.0);
        let scratch = Scratch::default();
        Context { capacity, len: 0, cache, cos, sin, scratch, gpu: None }
    }

    /// A context for [`Model::forward_block`], which keeps the keys and values of one block at a time.
    pub fn block_context(&self, capacity: usize) -> Context {
        let mut context = self.context(0);
        let shape = [self.config.num_key_value_heads, capacity, self.config.head_dim];
        context.cache = KvCache::new(self.kv_cache, 1, shape);
        (context.cos, context.sin) = rope::tables(&self.config.inv_freq(), 0..capacity, 1.0);
        context.capacity = capacity;
        context
    }

    /// The embedding rows `(M, hidden)` of `tokens`: the residual stream before the first block.
    pub fn embedded(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut x = vec![0.0; tokens.len() * self.config.hidden_size];
        self.embed(tokens, &mut x)?;
        Ok(x)
    }

    /// Moves the residual stream `x (M, hidden)` of a whole sequence through block `index`.
    /// `context` is [`Model::block_context`]'s, and what it held is forgotten.
    pub fn forward_block(
        &self,
        cpu: &Cpu,
        index: usize,
        x: &mut [f32],
        context: &mut Context,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let layer = self.layers.get(index).ok_or_else(|| {
            let count = self.layers.len();
            Error::invalid(format!("there is no block {index}; {} has {count}", self.name))
        })?;
        let m = x.len() / self.config.hidden_size;
        if m > context.capacity {
            return Err(Error::invalid(format!(
                "the context holds {} positions and the sequence has {m}",
                context.capacity
            )));
        }
        if cpu.stopped() {
            return Err(Error::Cancelled);
        }
        context.truncate(0);
        let mut s = std::mem::take(&mut context.scratch);
        s.resize(self, m);
        s.x.copy_from_slice(x);
        let mut block = Block { cpu, model: self, layer, index, cache: 0, m, observer };
        block.attention(&mut s, context).within(format!("model.layers.{index}.self_attn"))?;
        block.feed_forward(&mut s).within(format!("model.layers.{index}.mlp"))?;
        x.copy_from_slice(&s.x);
        context.scratch = s;
        Ok(())
    }

    /// The last norm of the residual stream: what [`Model::logits`] reads.
    pub fn final_norm(&self, cpu: &Cpu, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
        norm::rms_norm(cpu, x, self.norm.as_slice()?, self.config.rms_norm_eps, &mut out);
        Ok(out)
    }

    /// Reads `tokens` behind what `context` holds and returns the normed hidden states `(M, hidden)`, which
    /// [`Model::logits`] turns into logits.
    pub fn forward(
        &self,
        cpu: &Cpu,
        tokens: &[u32],
        context: &mut Context,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>> {
        let hidden = self.config.hidden_size;
        let mut out = vec![0.0; tokens.len() * hidden];
        for (chunk, out) in tokens.chunks(MAX_CHUNK).zip(out.chunks_mut(MAX_CHUNK * hidden)) {
            self.forward_chunk(cpu, chunk, context, observer, out)?;
        }
        Ok(out)
    }

    /// [`Model::forward`] over a whole text, as its predictions are to be judged. A quantized cache answers only for
    /// tokens of earlier calls, so that such a model reads one token a call, as it does when it writes.
    pub fn read(&self, cpu: &Cpu, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut context = self.context(tokens.len());
        let at_once = if self.kv_cache.is_quantized() { 1 } else { tokens.len().max(1) };
        let mut hidden = Vec::with_capacity(tokens.len() * self.config.hidden_size);
        for tokens in tokens.chunks(at_once) {
            hidden.extend(self.forward(cpu, tokens, &mut context, &mut NoObserver)?);
        }
        Ok(hidden)
    }

    /// The logits `(M, vocabulary)` of normed hidden states `(M, hidden)`.
    pub fn logits(&self, cpu: &Cpu, hidden: &[f32]) -> Result<Vec<f32>> {
        if cpu.stopped() {
            return Err(Error::Cancelled);
        }
        if let Some(placed) = self.placed()? {
            return placed.logits(hidden).within("lm_head");
        }
        let (vocab, d) = self.head().shape();
        let m = hidden.len() / d;
        let mut logits = vec![0.0; m * vocab];
        self.head().linear(cpu, hidden, m, &mut logits).within("lm_head")?;
        if let Some(bias) = self.lm_head.as_ref().and_then(|head| head.bias.as_ref()) {
            add_bias(&mut logits, bias.as_slice()?);
        }
        Ok(logits)
    }

    fn forward_chunk(
        &self,
        cpu: &Cpu,
        tokens: &[u32],
        context: &mut Context,
        observer: &mut dyn Observer,
        out: &mut [f32],
    ) -> Result<()> {
        let m = tokens.len();
        context.check_room(m)?;
        if let Some(placed) = self.placed()? {
            let (past, gpu) = context.on_gpu(self, placed)?;
            gpu.prefill(tokens, past, observer, out)?;
            context.len += m;
            return Ok(());
        }
        let mut s = std::mem::take(&mut context.scratch);
        s.resize(self, m);
        self.embed(tokens, &mut s.x)?;
        observer.hidden(0, &s.x);
        for (i, layer) in self.layers.iter().enumerate() {
            if cpu.stopped() {
                return Err(Error::Cancelled);
            }
            let mut block = Block { cpu, model: self, layer, index: i, cache: i, m, observer };
            block.attention(&mut s, context).within(format!("model.layers.{i}.self_attn"))?;
            block.feed_forward(&mut s).within(format!("model.layers.{i}.mlp"))?;
            observer.hidden(i + 1, &s.x);
        }
        norm::rms_norm(cpu, &s.x, self.norm.as_slice()?, self.config.rms_norm_eps, out);
        context.len += m;
        context.scratch = s;
        Ok(())
    }

    /// Reads one token and gives the logits of the next; on a GPU as one captured graph.
    pub fn step(&self, cpu: &Cpu, token: u32, context: &mut Context) -> Result<Vec<f32>> {
        let Some(placed) = self.placed()? else {
            let hidden = self.forward(cpu, &[token], context, &mut NoObserver)?;
            return self.logits(cpu, &hidden);
        };
        context.check_room(1)?;
        self.check_token(token)?;
        let (past, gpu) = context.on_gpu(self, placed)?;
        let logits = gpu.step(token, past)?;
        context.len += 1;
        Ok(logits)
    }

    /// On a GPU: reads `token`, then the likeliest after it and so on, `count` tokens in all, without waiting for any; gives what was
    /// chosen, the last of which was not read.
    pub fn decode_greedy(
        &self,
        token: u32,
        count: usize,
        context: &mut Context,
    ) -> Result<Vec<u32>> {
        context.check_room(count)?;
        self.check_token(token)?;
        let (past, gpu) = context.on_gpu(self, self.need_placed()?)?;
        let chosen = gpu.decode(token, past, count)?;
        context.len += count;
        Ok(chosen)
    }

    /// On a GPU: the microseconds of one token, the median of `count`, and how many kernels it is.
    pub fn time_step(
        &self,
        token: u32,
        count: usize,
        context: &mut Context,
    ) -> Result<(f64, usize)> {
        context.check_room(count + 1)?;
        self.check_token(token)?;
        let (past, gpu) = context.on_gpu(self, self.need_placed()?)?;
        gpu.time_step(token, past, count)
    }

    /// On a GPU: what each part of a token takes by itself, the median of `count`.
    pub fn time_parts(
        &self,
        token: u32,
        count: usize,
        context: &mut Context,
    ) -> Result<Vec<super::cuda::PartTime>> {
        context.check_room(count + 1)?;
        self.check_token(token)?;
        let (past, gpu) = context.on_gpu(self, self.need_placed()?)?;
        gpu.time_parts(token, past, count)
    }

    fn need_placed(&self) -> Result<std::sync::Arc<super::cuda::Placed>> {
        self.placed()?.ok_or_else(|| {
            Error::invalid(format!("{} is not on a GPU; use --device cuda", self.name))
        })
    }

    fn check_token(&self, token: u32) -> Result<()> {
        let vocab = self.config.vocab_size;
        if usize::try_from(token).is_ok_and(|id| id < vocab) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "token id {token} is outside the vocabulary of {vocab} entries"
        )))
    }

    /// Writes the embedding rows of `tokens` into `x`.
    fn embed(&self, tokens: &[u32], x: &mut [f32]) -> Result<()> {
        let (vocab, d) = self.embed_tokens.shape();
        for (token, row) in tokens.iter().zip(x.chunks_exact_mut(d)) {
            let id = usize::try_from(*token).unwrap_or(usize::MAX);
            if id >= vocab {
                return Err(Error::invalid(format!(
                    "token id {token} is outside the vocabulary of {vocab} entries"
                )));
            }
            self.embed_tokens.dequantize_rows(id..id + 1, row).within("model.embed_tokens")?;
        }
        Ok(())
    }
}

impl Scratch {
    fn resize(&mut self, model: &Model, m: usize) {
        let config = &model.config;
        let (d, q) = (config.hidden_size, config.num_attention_heads * config.head_dim);
        let kv = config.num_key_value_heads * config.head_dim;
        self.x.resize(m * d, 0.0);
        self.normed.resize(m * d, 0.0);
        self.q.resize(m * q, 0.0);
        self.k.resize(m * kv, 0.0);
        self.v.resize(m * kv, 0.0);
        self.attended.resize(m * q, 0.0);
        self.projected.resize(m * d, 0.0);
        self.gate.resize(m * config.intermediate_size, 0.0);
        self.up.resize(m * config.intermediate_size, 0.0);
        self.activated.resize(m * config.intermediate_size, 0.0);
    }
}

/// One block at work on `m` rows.
struct Block<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    layer: &'a Layer,
    index: usize,
    /// Which of the context's caches is the block's: a context of one block at a time has one.
    cache: usize,
    m: usize,
    observer: &'a mut dyn Observer,
}

impl Block<'_> {
    /// `x += o_proj(attention(norm(x)))`, with the new keys and values put into the cache.
    fn attention(&mut self, s: &mut Scratch, context: &mut Context) -> Result<()> {
        let (config, layer, m) = (&self.model.config, self.layer, self.m);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (d, past) = (config.head_dim, context.len);
        let eps = config.rms_norm_eps;
        let weight = layer.input_layernorm.as_slice()?;
        norm::rms_norm(self.cpu, &s.x, weight, eps, &mut s.normed);
        let qkv = &mut [
            ("self_attn.q_proj", &layer.q_proj, &mut *s.q),
            ("self_attn.k_proj", &layer.k_proj, &mut *s.k),
            ("self_attn.v_proj", &layer.v_proj, &mut *s.v),
        ];
        self.linears(&s.normed, qkv)?;
        if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
            // The attention's output is not there yet: its buffer holds the normed queries.
            norm::rms_norm(self.cpu, &s.q, q_norm.as_slice()?, eps, &mut s.attended);
            s.q.copy_from_slice(&s.attended);
            let normed = &mut s.attended[..s.k.len()];
            norm::rms_norm(self.cpu, &s.k, k_norm.as_slice()?, eps, normed);
            s.k.copy_from_slice(normed);
        }
        let positions = past * (d / 2)..(past + m) * (d / 2);
        let (cos, sin) = (&context.cos[positions.clone()], &context.sin[positions]);
        for (x, heads) in [(&mut s.q, heads), (&mut s.k, kv_heads)] {
            let shape = RopeShape { m, heads, head_dim: d };
            rope::apply(self.cpu, x, shape, cos, sin, rope::Order::Half);
        }
        let shape = AttentionShape {
            m,
            heads,
            kv_heads,
            head_dim: d,
            past,
            capacity: context.capacity,
            window: config.window(self.index),
            scale: softmax_scale(d),
        };
        let new = [&*s.k, &*s.v];
        context.cache.store(self.cache, past, new);
        // As in torchao, a quantized cache answers for the tokens before; this call's are as they came.
        let new = context.cache.format().is_quantized().then_some(new);
        let keys = Keys { cache: &context.cache, layer: self.cache, new };
        attention::attention(self.cpu, &s.q, keys, &shape, &mut s.attended);
        let o = ("self_attn.o_proj", &layer.o_proj, &mut *s.projected);
        self.linears(&s.attended, &mut [o])?;
        add(&mut s.x, &s.projected);
        Ok(())
    }

    /// `x += down_proj(silu(gate_proj(norm(x))) · up_proj(norm(x)))`, or that of the experts of each token.
    fn feed_forward(&mut self, s: &mut Scratch) -> Result<()> {
        let layer = self.layer;
        let weight = layer.post_attention_layernorm.as_slice()?;
        let eps = self.model.config.rms_norm_eps;
        norm::rms_norm(self.cpu, &s.x, weight, eps, &mut s.normed);
        let dense = match &layer.feed_forward {
            FeedForward::Dense(dense) => dense,
            FeedForward::Experts(experts) => {
                add(&mut s.x, &experts.forward(self.cpu, &s.normed, self.m)?);
                return Ok(());
            }
        };
        let gate_up = &mut [
            ("mlp.gate_proj", &dense.gate_proj, &mut *s.gate),
            ("mlp.up_proj", &dense.up_proj, &mut *s.up),
        ];
        self.linears(&s.normed, gate_up)?;
        activation::silu_mul(self.cpu, &s.gate, &s.up, &mut s.activated);
        let down = ("mlp.down_proj", &dense.down_proj, &mut *s.projected);
        self.linears(&s.activated, &mut [down])?;
        add(&mut s.x, &s.projected);
        Ok(())
    }

    /// The linear layers of `group`, which all read `x`: what prepares x does so once.
    fn linears(&mut self, x: &[f32], group: &mut [Named<'_>]) -> Result<()> {
        for (name, _, _) in &*group {
            self.observer.linear_input(self.index, name, x);
        }
        let weights = group.iter_mut().map(|(_, linear, y)| (&*linear.weight, &mut **y));
        let mut jobs: Vec<Job<'_>> = weights.collect();
        if let Some((first, _)) = jobs.first() {
            first.linear_many(self.cpu, x, self.m, &mut jobs)?;
        }
        for (_, linear, y) in group {
            if let Some(bias) = &linear.bias {
                add_bias(y, bias.as_slice()?);
            }
        }
        Ok(())
    }
}

/// A linear layer by name, and where its output goes.
type Named<'a> = (&'static str, &'a Linear, &'a mut [f32]);

#[expect(clippy::cast_precision_loss, reason = "head dimensions are far below 2²⁴")]
fn softmax_scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn add_bias(y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        add(row, bias);
    }
}
