//! A little Llama with random weights, as Hugging Face orders it and as a GGUF file.

use std::collections::BTreeMap;

use aolab::kernels::ggml::BlockType;

use super::{Gguf, Random};

pub const HIDDEN: usize = 64;
pub const FFN: usize = 96;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 16;
pub const LAYERS: usize = 2;

/// Values by Hugging Face's names; matrices are (N, K).
pub type Values = BTreeMap<String, (usize, usize, Vec<f32>)>;

pub fn values(vocab: usize, seed: u64) -> Values {
    let mut random = Random::new(seed);
    let mut values = Values::new();
    let mut add =
        |name: String, n: usize, k: usize| values.insert(name, (n, k, random.floats(n * k)));
    add("model.embed_tokens.weight".into(), vocab, HIDDEN);
    add("model.norm.weight".into(), 1, HIDDEN);
    for i in 0..LAYERS {
        for (name, n, k) in [
            ("input_layernorm", 1, HIDDEN),
            ("post_attention_layernorm", 1, HIDDEN),
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", FFN, HIDDEN),
            ("mlp.up_proj", FFN, HIDDEN),
            ("mlp.down_proj", HIDDEN, FFN),
        ] {
            add(format!("model.layers.{i}.{name}.weight"), n, k);
        }
    }
    values
}

fn gguf_name(name: &str) -> String {
    let mut name = name.to_owned();
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// As llama.cpp's converter does: a head's rows (2, d/2) become (d/2, 2).
pub fn pair_rows(rows: &[f32], heads: usize, k: usize) -> Vec<f32> {
    let d = rows.len() / k / heads;
    let mut out = vec![f32::NAN; rows.len()];
    for h in 0..heads {
        for j in 0..2 {
            for i in 0..d / 2 {
                let from = h * d + j * d / 2 + i;
                let to = h * d + 2 * i + j;
                out[to * k..][..k].copy_from_slice(&rows[from * k..][..k]);
            }
        }
    }
    out
}

/// The file of `values`, with the tokens of a byte-level tokenizer: its bytes and two merges.
pub fn gguf(arch: &str, values: &Values, ty: BlockType) -> Gguf {
    let mut file = Gguf::default();
    file.text("general.architecture", arch);
    for (key, value) in [
        ("block_count", LAYERS),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("context_length", 128),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        file.u32(&format!("{arch}.{key}"), u32::try_from(value).expect("small"));
    }
    file.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5);
    file.f32(&format!("{arch}.rope.freq_base"), 100_000.0);
    add_tokens(&mut file);
    for (name, (n, k, data)) in values {
        let heads = match name {
            name if name.contains("q_proj") => Some(HEADS),
            name if name.contains("k_proj") => Some(KV_HEADS),
            _ => None,
        };
        let data = match heads.filter(|_| arch == "llama") {
            Some(heads) => pair_rows(data, heads, *k),
            None => data.clone(),
        };
        let (n, k) = (*n as u64, *k as u64);
        if name.contains("norm") {
            file.tensor(&gguf_name(name), &[k], BlockType::F32, &data);
        } else {
            file.tensor(&gguf_name(name), &[k, n], ty, &data);
        }
    }
    file
}

/// The characters that stand for the 256 bytes in a byte-level vocabulary.
pub fn byte_characters() -> Vec<String> {
    let printable =
        |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut shifted = 256..;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { shifted.next().expect("there are more") };
            char::from_u32(code).expect("a character").to_string()
        })
        .collect()
}

pub const VOCAB: usize = 260;

fn add_tokens(file: &mut Gguf) {
    let mut tokens = vec!["<s>".to_owned(), "</s>".to_owned()];
    tokens.extend(byte_characters());
    tokens.extend(["he".to_owned(), "hel".to_owned()]);
    let mut kinds = vec![1; tokens.len()];
    kinds[..2].fill(3);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &["h e".to_owned(), "he l".to_owned()]);
    file.u32("tokenizer.ggml.bos_token_id", 0);
    file.u32("tokenizer.ggml.eos_token_id", 1);
    file.flag("tokenizer.ggml.add_bos_token", true);
    file.text("tokenizer.chat_template", "{{ messages }}");
}
