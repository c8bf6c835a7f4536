//! The Llama family on a tape: tokens in, logits and the loss out.

use std::sync::Arc;

use super::{LinearRule, Vars};
use crate::autograd::{Positions, Sequences, Tape, Var};
use crate::error::{Context as _, Error, Result};
use crate::kernels::activation::Activation;
use crate::model::ModelConfig;

/// Sequences of one length, and what follows each of their tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many sequences.
    pub batch: usize,
    /// `(batch, tokens)`, row-major.
    pub inputs: Vec<u32>,
    /// The token after each; `cross_entropy::IGNORE` is not counted.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Tokens of a sequence.
    pub fn tokens(&self) -> usize {
        self.inputs.len().checked_div(self.batch).unwrap_or(0)
    }
}

/// How a forward pass is done.
#[derive(Clone, Debug)]
pub struct ForwardOptions {
    /// How linear layers multiply.
    pub rule: Arc<dyn LinearRule>,
    /// Dropout on the embedding and on both residual branches.
    pub dropout: f64,
    /// Where its draws start.
    pub seed: u64,
    /// Computes each block again in the backward pass instead of keeping what is between.
    pub checkpoint_blocks: bool,
}

impl ForwardOptions {
    /// No dropout, nothing computed twice.
    pub fn new(rule: Arc<dyn LinearRule>) -> ForwardOptions {
        ForwardOptions { rule, dropout: 0.0, seed: 0, checkpoint_blocks: false }
    }
}

/// A model's architecture. Clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    config: Arc<ModelConfig>,
}

/// What the blocks of one pass share.
#[derive(Clone, Debug)]
struct Pass {
    config: Arc<ModelConfig>,
    options: ForwardOptions,
    positions: Positions,
    shape: Sequences,
}

impl Network {
    /// The architecture that `config` describes.
    pub fn new(config: Arc<ModelConfig>) -> Network {
        Network { config }
    }

    /// The mean loss of `batch`, `[1]`.
    pub fn loss(
        &self,
        tape: &Tape,
        vars: &Vars,
        batch: &Batch,
        options: &ForwardOptions,
    ) -> Result<Var> {
        let logits = self.logits(tape, vars, batch, options)?;
        tape.cross_entropy(&logits, &batch.targets)
    }

    /// The logits `(batch · tokens, vocabulary)`.
    pub fn logits(
        &self,
        tape: &Tape,
        vars: &Vars,
        batch: &Batch,
        options: &ForwardOptions,
    ) -> Result<Var> {
        let hidden = self.hidden(tape, vars, batch, options)?;
        let head = match vars.find("lm_head.weight") {
            Some(head) => head,
            None => vars.get("model.embed_tokens.weight")?,
        };
        let own = vars.below("lm_head.");
        let logits = options.rule.linear(tape, "lm_head", &hidden, head, &own).within("lm_head")?;
        match vars.find("lm_head.bias") {
            Some(bias) => tape.add(&logits, bias),
            None => Ok(logits),
        }
    }

    /// The normed hidden states `(batch · tokens, hidden)`.
    fn hidden(
        &self,
        tape: &Tape,
        vars: &Vars,
        batch: &Batch,
        options: &ForwardOptions,
    ) -> Result<Var> {
        let (config, tokens) = (&self.config, batch.tokens());
        if tokens == 0 || tokens * batch.batch != batch.inputs.len() {
            return Err(Error::invalid(format!(
                "{} tokens do not make {} sequences",
                batch.inputs.len(),
                batch.batch
            )));
        }
        #[expect(clippy::cast_precision_loss, reason = "head dimensions are far below 2⁵³")]
        let scale = 1.0 / (config.head_dim as f64).sqrt();
        let pass = Pass {
            config: Arc::clone(config),
            options: options.clone(),
            positions: Positions::new(&config.inv_freq(), batch.batch, tokens),
            shape: Sequences {
                batch: batch.batch,
                m: tokens,
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                window: config.sliding_window,
                scale,
            },
        };
        let table = vars.get("model.embed_tokens.weight")?;
        let x = options.rule.embedding(tape, table, &batch.inputs).within("model.embed_tokens")?;
        let mut x = pass.dropout(tape, x, 0)?;
        for i in 0..config.num_hidden_layers {
            tape.check()?;
            let own = vars.below(&format!("model.layers.{i}."));
            x = pass.block(tape, i, &x, &own).within(format!("model.layers.{i}"))?;
        }
        tape.rms_norm(&x, vars.get("model.norm.weight")?, config.rms_norm_eps).within("model.norm")
    }
}

impl Pass {
    /// Block `i`, kept or computed twice.
    fn block(&self, tape: &Tape, i: usize, x: &Var, own: &Vars) -> Result<Var> {
        if !self.options.checkpoint_blocks {
            return self.attend_and_feed(tape, i, x, own);
        }
        let names: Vec<String> = own.iter().map(|(name, _)| name.clone()).collect();
        let inputs: Vec<&Var> = std::iter::once(x).chain(own.iter().map(|(_, var)| var)).collect();
        let pass = self.clone();
        tape.checkpoint(&inputs, move |tape, vars| {
            let (x, own) =
                vars.split_first().ok_or_else(|| Error::invalid("a block has inputs"))?;
            let own = names.iter().cloned().zip(own.iter().cloned()).collect();
            pass.attend_and_feed(tape, i, x, &own)
        })
    }

    fn attend_and_feed(&self, tape: &Tape, i: usize, x: &Var, own: &Vars) -> Result<Var> {
        let layer = Layer { pass: self, tape, own, prefix: format!("model.layers.{i}."), index: i };
        let attended = layer.attention(x).within("self_attn")?;
        // Three draws of dropout a block: see `dropout`.
        let x = tape.add(x, &self.dropout(tape, attended, 2 * i as u64 + 1)?)?;
        let fed = layer.feed_forward(&x).within("mlp")?;
        tape.add(&x, &self.dropout(tape, fed, 2 * i as u64 + 2)?)
    }

    /// Dropout at the `place`-th of the places that have it.
    fn dropout(&self, tape: &Tape, x: Var, place: u64) -> Result<Var> {
        if self.options.dropout == 0.0 {
            return Ok(x);
        }
        // An odd constant keeps the places' seeds apart from the steps'.
        let seed = self.options.seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        tape.dropout(&x, self.options.dropout, seed)
    }
}

/// One block on a tape.
pub(super) struct Layer<'a> {
    pass: &'a Pass,
    pub(super) tape: &'a Tape,
    own: &'a Vars,
    prefix: String,
    index: usize,
}

impl Layer<'_> {
    pub(super) fn get(&self, name: &str) -> Result<&Var> {
        self.own.get(&format!("{}{name}", self.prefix))
    }

    /// Tokens that the linear layers take at a time.
    pub(super) fn token_multiple(&self) -> usize {
        self.pass.options.rule.token_multiple()
    }

    pub(super) fn linear(&self, name: &str, x: &Var) -> Result<Var> {
        let fqn = format!("{}{name}", self.prefix);
        let weight = self.get(&format!("{name}.weight"))?;
        let own = self.own.below(&format!("{fqn}."));
        let y = self.pass.options.rule.linear(self.tape, &fqn, x, weight, &own).within(name)?;
        match self.own.find(&format!("{fqn}.bias")) {
            Some(bias) => self.tape.add(&y, bias),
            None => Ok(y),
        }
    }

    /// The RMS norm of every head `(rows · heads, head_dim)`, where the model has one (Qwen3).
    fn head_norm(&self, name: &str, x: Var) -> Result<Var> {
        let Some(weight) = self.own.find(&format!("{}self_attn.{name}.weight", self.prefix)) else {
            return Ok(x);
        };
        let shape = x.shape().to_vec();
        let d = self.pass.config.head_dim;
        let heads = self.tape.reshape(&x, &[x.value().numel() / d, d])?;
        let normed = self.tape.rms_norm(&heads, weight, self.pass.config.rms_norm_eps)?;
        self.tape.reshape(&normed, &shape)
    }

    fn attention(&self, x: &Var) -> Result<Var> {
        let (tape, pass) = (self.tape, self.pass);
        let normed =
            tape.rms_norm(x, self.get("input_layernorm.weight")?, pass.config.rms_norm_eps)?;
        let q = self.linear("self_attn.q_proj", &normed)?;
        let k = self.linear("self_attn.k_proj", &normed)?;
        let v = self.linear("self_attn.v_proj", &normed)?;
        let (q, k) = (self.head_norm("q_norm", q)?, self.head_norm("k_norm", k)?);
        let q = tape.rope(&q, &pass.positions, pass.shape.heads)?;
        let k = tape.rope(&k, &pass.positions, pass.shape.kv_heads)?;
        let shape = Sequences { window: pass.config.window(self.index), ..pass.shape };
        let attended = tape.attention(&q, &k, &v, &shape)?;
        self.linear("self_attn.o_proj", &attended)
    }

    fn feed_forward(&self, x: &Var) -> Result<Var> {
        let tape = self.tape;
        let weight = self.get("post_attention_layernorm.weight")?;
        let normed = tape.rms_norm(x, weight, self.pass.config.rms_norm_eps)?;
        let experts = self.pass.config.experts.as_ref();
        if let Some(experts) = experts.filter(|experts| experts.in_layer(self.index)) {
            return self.experts(experts, &normed);
        }
        let gate = self.linear("mlp.gate_proj", &normed)?;
        let up = self.linear("mlp.up_proj", &normed)?;
        let activated = tape.activate_mul(Activation::Silu, &gate, &up)?;
        self.linear("mlp.down_proj", &activated)
    }
}
