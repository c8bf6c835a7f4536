//! The shape of a Llama-family model, as `config.json` or GGUF metadata tell it.

use serde_json::{Map, Value as Json};

use super::experts::ExpertsConfig;
use crate::error::{Error, Result};

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's piecewise scheme: low frequencies divided by `factor`, high ones kept.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_context / low_freq_factor` count as low.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context the model was trained with first.
        original_context: f64,
    },
}

/// The shape of a Llama-family model (Llama 2/3, Mistral, Qwen2/2.5/3, SmolLM2).
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of config.json")]
pub struct ModelConfig {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Biases on the query, key and value projections (Qwen2, `attention_bias`).
    pub qkv_bias: bool,
    /// A bias on the output projection (`attention_bias` of Llama).
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm over each query and key head (Qwen3).
    pub qk_norm: bool,
    pub tie_word_embeddings: bool,
    /// Experts in the place of feed-forward layers (Mixtral, Qwen2-MoE, Qwen3-MoE).
    pub experts: Option<ExpertsConfig>,
    /// Attention sees at most this many positions back, in the layers that `sliding_layers` names.
    pub sliding_window: Option<usize>,
    /// Whether each layer has the window; empty where all have it (Mistral).
    pub sliding_layers: Vec<bool>,
    pub bos_token_id: Option<u32>,
    /// Generation stops at any of these.
    pub eos_token_ids: Vec<u32>,
    /// `config.json` as it was read, so that `save` loses nothing. For GGUF, an equivalent one.
    pub json: Map<String, Json>,
}

/// No model that this program can hold has a dimension above this; a larger one is a lie or a mistake.
const MAX_DIM: u64 = 1 << 24;

impl ModelConfig {
    /// Reads a Hugging Face `config.json`. Unknown architectures and impossible shapes are errors.
    #[expect(clippy::cast_possible_truncation, reason = "eps is used in f32, rounded once")]
    pub fn from_json(json: &Json) -> Result<ModelConfig> {
        let Json::Object(map) = json else {
            return Err(Error::invalid("config.json: wanted an object"));
        };
        let model_type = text(map, "model_type")?.unwrap_or("llama").to_owned();
        let known = ["llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"];
        let is_qwen2 = model_type.starts_with("qwen2");
        let is_qwen3 = model_type.starts_with("qwen3");
        if !known.contains(&model_type.as_str()) {
            return Err(Error::invalid(format!(
                "config.json: model_type {model_type:?} is not supported; wanted one of {}",
                known.join(", ")
            )));
        }
        let act = text(map, "hidden_act")?.unwrap_or("silu");
        if act != "silu" {
            return Err(Error::invalid(format!(
                "config.json: hidden_act {act:?} is not supported; wanted silu"
            )));
        }
        check_rotates_whole_heads(map)?;
        let (hidden_size, layers) = (dim(map, "hidden_size")?, dim(map, "num_hidden_layers")?);
        let heads = dim(map, "num_attention_heads")?;
        let attention_bias = flag(map, "attention_bias")?.unwrap_or(false);
        let has_attention_bias = model_type == "llama" || is_qwen3;
        let sliding_window = sliding_window(map, &model_type)?;
        let config = ModelConfig {
            vocab_size: dim(map, "vocab_size")?,
            hidden_size,
            intermediate_size: dim(map, "intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: optional_dim(map, "num_key_value_heads")?.unwrap_or(heads),
            head_dim: optional_dim(map, "head_dim")?.unwrap_or(if is_qwen3 {
                128
            } else {
                hidden_size / heads
            }),
            max_position_embeddings: optional_dim(map, "max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: number(map, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta: rope_parameter(map, "rope_theta")?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(map)?,
            qkv_bias: is_qwen2 || (has_attention_bias && attention_bias),
            o_bias: has_attention_bias && attention_bias,
            mlp_bias: model_type == "llama" && flag(map, "mlp_bias")?.unwrap_or(false),
            qk_norm: is_qwen3,
            tie_word_embeddings: flag(map, "tie_word_embeddings")?.unwrap_or(false),
            experts: ExpertsConfig::of_json(map, &model_type)?,
            sliding_layers: match sliding_window {
                Some(_) => sliding_layers(map, &model_type, layers)?,
                None => Vec::new(),
            },
            sliding_window,
            bos_token_id: token_ids(map, "bos_token_id")?.first().copied(),
            eos_token_ids: token_ids(map, "eos_token_id")?,
            model_type,
            json: map.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that the dimensions fit each other.
    pub fn check(&self) -> Result<()> {
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            return Err(Error::invalid(format!(
                "{heads} query heads cannot share {kv} key/value heads: wanted a divisor of {heads}"
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            let got = self.head_dim;
            return Err(Error::invalid(format!("head_dim {got} is odd: RoPE rotates pairs")));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            let got = self.rope_theta;
            return Err(Error::invalid(format!("rope_theta is {got}; wanted a positive number")));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let got = self.rms_norm_eps;
            return Err(Error::invalid(format!("rms_norm_eps is {got}; wanted 0 or more")));
        }
        Ok(())
    }

    /// How far back the attention of a layer sees, where that has a limit.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.sliding_layers.get(layer).copied().unwrap_or(true))
    }

    /// The inverse rotary frequencies, `head_dim / 2` of them, scaled as the config says.
    #[expect(clippy::cast_precision_loss, reason = "head dimensions are far below 2⁵³")]
    pub fn inv_freq(&self) -> Vec<f64> {
        let d = self.head_dim as f64;
        (0..self.head_dim / 2)
            .map(|i| self.rope_theta.powf(-2.0 * i as f64 / d))
            .map(|freq| match &self.rope_scaling {
                None => freq,
                Some(RopeScaling::Linear { factor }) => freq / factor,
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context,
                }) => {
                    let wavelength = 2.0 * std::f64::consts::PI / freq;
                    // 0 for the low band, 1 for the high band, a ramp between them.
                    let ramp = (original_context / wavelength - low) / (high - low);
                    let ramp = ramp.clamp(0.0, 1.0);
                    (1.0 - ramp) * freq / factor + ramp * freq
                }
            })
            .collect()
    }
}

fn wrong(key: &str, wanted: &str, got: &Json) -> Error {
    Error::invalid(format!("config.json: {key} is {got}; wanted {wanted}"))
}

fn text<'a>(map: &'a Map<String, Json>, key: &str) -> Result<Option<&'a str>> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(s)) => Ok(Some(s)),
        Some(other) => Err(wrong(key, "a string", other)),
    }
}

pub(super) fn flag(map: &Map<String, Json>, key: &str) -> Result<Option<bool>> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(wrong(key, "true or false", other)),
    }
}

fn number(map: &Map<String, Json>, key: &str) -> Result<Option<f64>> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(key, "a number", value)),
    }
}

pub(super) fn optional_dim(map: &Map<String, Json>, key: &str) -> Result<Option<usize>> {
    match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => {
            let dim = value.as_u64().filter(|dim| (1..=MAX_DIM).contains(dim));
            let dim = dim.and_then(|dim| usize::try_from(dim).ok());
            dim.map(Some).ok_or_else(|| wrong(key, "a whole number from 1 to 16777216", value))
        }
    }
}

pub(super) fn dim(map: &Map<String, Json>, key: &str) -> Result<usize> {
    optional_dim(map, key)?
        .ok_or_else(|| Error::invalid(format!("config.json: {key} is missing; wanted a number")))
}

/// A list of small numbers, empty where there is none.
pub(super) fn list_of_dims(map: &Map<String, Json>, key: &str) -> Result<Vec<usize>> {
    let number = |value: &Json| {
        let number = value.as_u64().filter(|number| *number <= MAX_DIM);
        let number = number.and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| wrong(key, "a list of whole numbers", value))
    };
    match map.get(key) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Array(all)) => all.iter().map(number).collect(),
        Some(value) => Err(wrong(key, "a list of whole numbers", value)),
    }
}

fn token_ids(map: &Map<String, Json>, key: &str) -> Result<Vec<u32>> {
    let id = |value: &Json| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| wrong(key, "a token id or a list of them", value))
    };
    match map.get(key) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// The window of the attention: Mistral has one of 4096 unless its config says otherwise, Qwen has
/// one where `use_sliding_window` says so, Llama has none.
fn sliding_window(map: &Map<String, Json>, model_type: &str) -> Result<Option<usize>> {
    const IF_NOT_SAID: usize = 4096; // transformers' default for Mistral and Qwen
    let has_one = match model_type {
        "mistral" => true,
        // Mixtral's config says null; where it says nothing, transformers has none.
        "mixtral" => map.contains_key("sliding_window"),
        "llama" => false,
        _ => flag(map, "use_sliding_window")?.unwrap_or(false),
    };
    match map.get("sliding_window") {
        _ if !has_one => Ok(None),
        None => Ok(Some(IF_NOT_SAID)),
        Some(_) => optional_dim(map, "sliding_window"),
    }
}

/// Which layers have the window: Qwen keeps the first `max_window_layers` without, or names each.
fn sliding_layers(map: &Map<String, Json>, model_type: &str, layers: usize) -> Result<Vec<bool>> {
    let kind = |value: &Json| match value.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(wrong("layer_types", "full_attention or sliding_attention for each", value)),
    };
    match map.get("layer_types") {
        Some(Json::Array(kinds)) if kinds.len() == layers => kinds.iter().map(kind).collect(),
        Some(Json::Array(kinds)) => Err(Error::invalid(format!(
            "config.json: layer_types names {} layers; wanted num_hidden_layers, {layers}",
            kinds.len()
        ))),
        Some(other) if !other.is_null() => Err(wrong("layer_types", "a list", other)),
        _ if model_type == "mistral" => Ok(Vec::new()),
        _ => {
            let full = match map.get("max_window_layers") {
                Some(Json::Number(count)) if count.as_u64() == Some(0) => 0,
                _ => optional_dim(map, "max_window_layers")?.unwrap_or(28),
            };
            Ok((0..layers).map(|layer| layer >= full).collect())
        }
    }
}

/// Some relatives rotate only a part of each head; computed as if it were the whole, they would
/// give nonsense.
fn check_rotates_whole_heads(map: &Map<String, Json>) -> Result<()> {
    match rope_parameter(map, "partial_rotary_factor")? {
        Some(part) if (part - 1.0).abs() > f64::EPSILON => Err(Error::invalid(format!(
            "config.json: partial_rotary_factor is {part}; only whole heads are rotated, 1"
        ))),
        _ => Ok(()),
    }
}

/// A RoPE parameter: newer configs keep it in `rope_parameters`, older ones at the top.
fn rope_parameter(map: &Map<String, Json>, key: &str) -> Result<Option<f64>> {
    if let Some(Json::Object(inner)) = map.get("rope_parameters")
        && let Some(value) = number(inner, key)?
    {
        return Ok(Some(value));
    }
    number(map, key)
}

fn rope_scaling(map: &Map<String, Json>) -> Result<Option<RopeScaling>> {
    let inner = ["rope_scaling", "rope_parameters"].iter().find_map(|key| match map.get(*key) {
        Some(Json::Object(inner)) => Some(inner),
        _ => None,
    });
    let Some(inner) = inner else { return Ok(None) };
    let kind = match text(inner, "rope_type")? {
        Some(kind) => Some(kind),
        None => text(inner, "type")?,
    };
    let need = |key: &str| {
        number(inner, key)?.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| {
            Error::invalid(format!("config.json: rope scaling needs a positive {key}"))
        })
    };
    match kind {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: need("factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_context: need("original_max_position_embeddings")?,
        })),
        Some(other) => Err(Error::invalid(format!(
            "config.json: rope_type {other:?} is not supported; wanted default, linear or llama3"
        ))),
    }
}
