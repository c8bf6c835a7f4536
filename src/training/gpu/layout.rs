//! Where each parameter lies among all of them.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Parameters begin at multiples of this, so that every one is aligned as products want it.
const GRAIN: usize = 64;

/// The numbers that decide about a network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkShape {
    /// Blocks.
    pub layers: usize,
    /// Numbers of the residual stream.
    pub hidden: usize,
    /// Numbers between gate and down.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab: usize,
    /// Of the norms.
    pub eps: f32,
    /// Whether the output layer is the embedding.
    pub tied: bool,
    /// Turns a position makes: `head_dim / 2` of them.
    pub inv_freq: Vec<f64>,
}

/// A matrix among the parameters.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) range: Range<usize>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// A block's parameters.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) qkv: Place,
    pub(super) o: Place,
    pub(super) gate_up: Place,
    pub(super) down: Place,
    pub(super) input_norm: Range<usize>,
    pub(super) post_norm: Range<usize>,
}

/// All parameters: matrices first, since they decay.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) embed: Place,
    pub(super) blocks: Vec<Block>,
    pub(super) head: Place,
    pub(super) norm: Range<usize>,
    /// Numbers of matrices.
    pub(super) decayed: usize,
    /// All numbers.
    pub(super) len: usize,
    /// Where the parameters of a checkpoint lie, by name.
    pub(super) named: Vec<(String, Range<usize>)>,
}

impl NetworkShape {
    /// That of a model, or why the GPU does not train it yet.
    pub fn of(config: &ModelConfig, tokens: usize) -> Result<NetworkShape> {
        let windowed = config.sliding_window.is_some_and(|window| window < tokens);
        let missing = [
            (config.qkv_bias || config.o_bias || config.mlp_bias, "biases"),
            (config.qk_norm, "norms of queries and keys"),
            (config.experts.is_some(), "experts"),
            (windowed, "a window shorter than the sequence"),
            (!config.intermediate_size.is_multiple_of(8), "a feed-forward size not divisible by 8"),
        ];
        if let Some((_, what)) = missing.into_iter().find(|(has, _)| *has) {
            return Err(Error::invalid(format!(
                "a model with {what} is not trained on a GPU; train it with --device cpu"
            )));
        }
        Ok(NetworkShape {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            ffn: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab: config.vocab_size,
            eps: config.rms_norm_eps,
            tied: config.tie_word_embeddings,
            inv_freq: config.inv_freq(),
        })
    }

    /// Numbers of a token's queries, keys and values.
    pub(super) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub(super) fn attended(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Multiply-adds of a token's forward and backward pass times two: every weight three times, and causal attention
    /// over sequences of `tokens`, which sees half of them.
    pub fn flops_per_token(&self, tokens: usize) -> usize {
        let block = self.hidden * (self.qkv() + self.attended() + 3 * self.ffn);
        let matrices = self.layers * block + self.hidden * self.vocab;
        6 * matrices + 6 * self.layers * self.attended() * tokens
    }

    pub(super) fn layout(&self) -> Layout {
        let (h, f) = (self.hidden, self.ffn);
        let mut end = 0;
        let mut named = Vec::new();
        let mut place = |parts: &[(String, usize)], columns: usize| {
            let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
            let start = end;
            for (name, rows) in parts {
                named.push((format!("{name}.weight"), end..end + rows * columns));
                end += rows * columns;
            }
            let range = start..end;
            end = end.next_multiple_of(GRAIN);
            Place { range, rows, columns }
        };
        let one = |name: &str, rows: usize| [(name.to_owned(), rows)];
        let embed = place(&one("model.embed_tokens", self.vocab), h);
        let kv = self.kv_heads * self.head_dim;
        let mut blocks = Vec::with_capacity(self.layers);
        for i in 0..self.layers {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let qkv = [
                (name("self_attn.q_proj"), self.attended()),
                (name("self_attn.k_proj"), kv),
                (name("self_attn.v_proj"), kv),
            ];
            let gate_up = [(name("mlp.gate_proj"), f), (name("mlp.up_proj"), f)];
            blocks.push(Block {
                qkv: place(&qkv, h),
                o: place(&one(&name("self_attn.o_proj"), h), self.attended()),
                gate_up: place(&gate_up, h),
                down: place(&one(&name("mlp.down_proj"), h), f),
                input_norm: 0..0,
                post_norm: 0..0,
            });
        }
        let head = match self.tied {
            true => embed.clone(),
            false => place(&one("lm_head", self.vocab), h),
        };
        let norm = |block: &str, which: &str| [(format!("{block}{which}"), 1)];
        // The matrices end where the first vector begins: no rows, no columns.
        let decayed = place(&[], 0).range.start;
        for (i, block) in blocks.iter_mut().enumerate() {
            let name = format!("model.layers.{i}.");
            block.input_norm = place(&norm(&name, "input_layernorm"), h).range;
            block.post_norm = place(&norm(&name, "post_attention_layernorm"), h).range;
        }
        let norm = place(&norm("", "model.norm"), h).range;
        Layout { embed, blocks, head, norm, decayed, len: end, named }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_apart_and_matrices_first() {
        let shape = NetworkShape {
            layers: 2,
            hidden: 24,
            ffn: 40,
            heads: 3,
            kv_heads: 1,
            head_dim: 8,
            vocab: 11,
            eps: 1e-5,
            tied: false,
            inv_freq: vec![1.0; 4],
        };
        let layout = shape.layout();
        let mut last = 0;
        for (name, range) in &layout.named {
            assert!(range.start >= last, "{name} overlaps");
            last = range.end;
            let is_vector = name.contains("norm");
            assert_eq!(range.start >= layout.decayed, is_vector, "{name}");
        }
        assert!(last <= layout.len && layout.len.is_multiple_of(GRAIN));
        assert_eq!(layout.named.len(), 2 + 7 * 2 + 2 * 2 + 1);
        // 6 · (2 · 24 · (40 + 24 + 120) + 24 · 11) and 6 · 2 · 24 · 10.
        assert_eq!(shape.flops_per_token(10), 6 * (2 * 24 * 184 + 264) + 2880);
        let tied = NetworkShape { tied: true, ..shape }.layout();
        assert_eq!(tied.head.range, tied.embed.range);
    }
}
