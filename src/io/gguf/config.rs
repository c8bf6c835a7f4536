//! GGUF metadata to the `config.json` that the same model has at Hugging Face.

use serde_json::{Map, Value as Json, json};

use super::reader::GgufFile;
use super::value::{Kind, Value};
use crate::error::{Context, Error, Result};
use crate::model::{ModelConfig, RopeScaling};

/// Reads the shape of the model.
pub(super) fn read(file: &GgufFile) -> Result<ModelConfig> {
    let arch =
        file.text("general.architecture")?.ok_or_else(|| missing(file, "general.architecture"))?;
    let (model_type, class) = match arch {
        "llama" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
        other => {
            return Err(file.wrong(format!(
                "architecture {other:?} is not supported; wanted llama, qwen2 or qwen3"
            )));
        }
    };
    let mut json = Map::new();
    json.insert("architectures".into(), json!([class]));
    json.insert("model_type".into(), model_type.into());
    add_dims(file, arch, &mut json)?;
    add_rope(file, arch, &mut json)?;
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    let eps = file.float(&eps)?.ok_or_else(|| missing(file, &eps))?;
    json.insert("rms_norm_eps".into(), shortest(eps));
    json.insert("hidden_act".into(), "silu".into());
    add_biases(file, model_type, &mut json)?;
    json.insert("tie_word_embeddings".into(), (!file.has("output.weight")).into());
    for (key, name) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ] {
        if let Some(id) = file.uint(name)? {
            json.insert(key.into(), id.into());
        }
    }
    add_end_of_turn(file, &mut json)?;
    let mut config = ModelConfig::from_json(&Json::Object(json)).within(file.path().display())?;
    if let Some(scaling) = rope_scaling_of_factors(file, &config)? {
        config.json.insert("rope_scaling".into(), scaling);
        config =
            ModelConfig::from_json(&Json::Object(config.json)).within(file.path().display())?;
    }
    Ok(config)
}

fn missing(file: &GgufFile, key: &str) -> Error {
    file.wrong(format!("the metadata key {key} is missing"))
}

fn add_dims(file: &GgufFile, arch: &str, json: &mut Map<String, Json>) -> Result<()> {
    let key = |name: &str| format!("{arch}.{name}");
    let need = |name: &str| file.uint(&key(name))?.ok_or_else(|| missing(file, &key(name)));
    if file.uint(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(file.wrong("mixtures of experts are not supported"));
    }
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let kv_heads = file.uint(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = match file.uint(&key("attention.key_length"))? {
        Some(length) => length,
        None => hidden.checked_div(heads).ok_or_else(|| file.wrong("attention.head_count is 0"))?,
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = file.uint(&key(name))?
            && other != head_dim
        {
            return Err(file.wrong(format!(
                "{name} is {other}, the head dimension {head_dim}: they must be equal"
            )));
        }
    }
    let vocab = match file.value("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) => tokens.len as u64,
        _ => need("vocab_size")?,
    };
    for (name, value) in [
        ("vocab_size", vocab),
        ("hidden_size", hidden),
        ("intermediate_size", need("feed_forward_length")?),
        ("num_hidden_layers", need("block_count")?),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("head_dim", head_dim),
        ("max_position_embeddings", need("context_length")?),
    ] {
        json.insert(name.into(), value.into());
    }
    Ok(())
}

fn add_rope(file: &GgufFile, arch: &str, json: &mut Map<String, Json>) -> Result<()> {
    let theta = file.float(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0);
    json.insert("rope_theta".into(), shortest(theta));
    let kind = file.text(&format!("{arch}.rope.scaling.type"))?.unwrap_or("none");
    match kind {
        "none" => {}
        "linear" => {
            let key = format!("{arch}.rope.scaling.factor");
            let factor = file.float(&key)?.ok_or_else(|| missing(file, &key))?;
            let scaling = json!({ "rope_type": "linear", "factor": shortest(factor) });
            json.insert("rope_scaling".into(), scaling);
        }
        other => {
            return Err(file
                .wrong(format!("rope scaling {other:?} is not supported; wanted none or linear")));
        }
    }
    Ok(())
}

/// Whether there are biases is not metadata: the tensors are there or not.
fn add_biases(file: &GgufFile, model_type: &str, json: &mut Map<String, Json>) -> Result<()> {
    let (qkv, o) = (file.has("blk.0.attn_q.bias"), file.has("blk.0.attn_output.bias"));
    if model_type == "llama" && qkv != o {
        return Err(file.wrong("biases on the query but not on the output projection (or the reverse) are not supported"));
    }
    json.insert("attention_bias".into(), qkv.into());
    json.insert("mlp_bias".into(), file.has("blk.0.ffn_up.bias").into());
    Ok(())
}

/// A chat model ends its turns with another token than its texts.
fn add_end_of_turn(file: &GgufFile, json: &mut Map<String, Json>) -> Result<()> {
    if let Some(turn) = file.uint("tokenizer.ggml.eot_token_id")? {
        let end = json.get("eos_token_id").and_then(Json::as_u64);
        let ids: Vec<u64> =
            end.into_iter().chain([turn].into_iter().filter(|id| Some(*id) != end)).collect();
        json.insert("eos_token_id".into(), json!(ids));
    }
    Ok(())
}

/// The shortest decimal number that rounds to the same single: 1e-5, not 9.999999747378752e-6.
#[expect(clippy::cast_possible_truncation, reason = "checked on the next line")]
fn shortest(value: f64) -> Json {
    let single = value as f32;
    if f64::from(single).to_bits() != value.to_bits() {
        return json!(value);
    }
    let decimal: f64 = single.to_string().parse().unwrap_or(value);
    json!(decimal)
}

/// Llama 3's scaling is stored as what it comes to: a divisor for each frequency. The files come from two
/// families of models; the one whose divisors these are is taken.
fn rope_scaling_of_factors(file: &GgufFile, config: &ModelConfig) -> Result<Option<Json>> {
    if !file.has("rope_freqs.weight") {
        return Ok(None);
    }
    let factors = super::parameters::float_vector(file, "rope_freqs.weight", config.head_dim / 2)?;
    let factors = factors.to_f32_vec();
    let unscaled = ModelConfig { rope_scaling: None, ..config.clone() }.inv_freq();
    for factor in [8.0, 32.0] {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let scaled = ModelConfig { rope_scaling: Some(scaling), ..config.clone() }.inv_freq();
        let same =
            factors.iter().zip(unscaled.iter().zip(&scaled)).all(|(stored, (plain, scaled))| {
                // The stored divisors were computed in singles.
                (f64::from(*stored) * scaled / plain - 1.0).abs() < 1e-4
            });
        if same {
            return Ok(Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            })));
        }
    }
    if factors.iter().all(|factor| factor.to_bits() == 1.0_f32.to_bits()) {
        return Ok(None);
    }
    Err(file.wrong(
        "rope_freqs.weight holds other divisors than Llama 3.1's and 3.2's, which is not supported",
    ))
}

/// The kinds that token ids and token types are stored as.
pub(super) const INTEGERS: [Kind; 2] = [Kind::I32, Kind::U32];
