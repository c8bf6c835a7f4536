//! The metadata of a GGUF file: the model's shape, and its tokenizer.

use super::write_tokenizer;
use crate::error::{Error, Result};
use crate::io::Parts;
use crate::model::{ModelConfig, RopeScaling};

/// Keys and values as the file has them, and how many.
#[derive(Debug, Default)]
pub(super) struct Head {
    bytes: Vec<u8>,
    count: u64,
}

impl Head {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Begins a key whose value has the type number `kind`.
    fn key(&mut self, key: &str, kind: u32) {
        self.raw_text(key);
        self.bytes.extend(kind.to_le_bytes());
        self.count += 1;
    }

    fn raw_text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        self.raw_text(value);
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(value));
    }

    pub(super) fn uint(&mut self, key: &str, value: usize) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| Error::invalid(format!("{key} is {value}, which 32 bits cannot hold")))?;
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
        Ok(())
    }

    pub(super) fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    /// Begins an array of `len` values of the type number `kind`.
    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        values.iter().for_each(|value| self.raw_text(value));
    }

    pub(super) fn ints(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }

    pub(super) fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }
}

/// llama.cpp's name for the architecture.
fn architecture(config: &ModelConfig) -> Result<&'static str> {
    if config.model_type != "qwen3" && config.qk_norm {
        return Err(Error::invalid("a norm of queries and keys: only qwen3 has it in GGUF files"));
    }
    if config.sliding_window.is_some_and(|window| window < config.max_position_embeddings) {
        return Err(Error::invalid(
            "a sliding window: llama.cpp's llama architecture has none, and longer texts would differ",
        ));
    }
    Ok(match config.model_type.as_str() {
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        _ => "llama",
    })
}

/// Everything before the tensors.
pub(super) fn metadata(parts: &Parts<'_>) -> Result<Head> {
    let config = parts.config;
    let arch = architecture(config)?;
    let mut head = Head::default();
    head.text("general.architecture", arch);
    head.text("general.name", parts.name);
    head.uint("general.quantization_version", 2)?;
    for (name, value) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        head.uint(&format!("{arch}.{name}"), value)?;
    }
    head.float(&format!("{arch}.attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    #[expect(clippy::cast_possible_truncation, reason = "the file keeps singles")]
    head.float(&format!("{arch}.rope.freq_base"), config.rope_theta as f32);
    if let Some(RopeScaling::Linear { factor }) = config.rope_scaling {
        head.text(&format!("{arch}.rope.scaling.type"), "linear");
        #[expect(clippy::cast_possible_truncation, reason = "the file keeps singles")]
        head.float(&format!("{arch}.rope.scaling.factor"), factor as f32);
    }
    match parts.tokenizer {
        Some(tokenizer) => write_tokenizer::add(&mut head, tokenizer, config)?,
        None => head.text("tokenizer.ggml.model", "none"),
    }
    Ok(head)
}
