//! GGUF files: written by the tests, read into Hugging Face's names and order, saved and read back.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aolab::data::texts;
use aolab::io::{self, Checkpoint, LoadOptions, Parts};
use aolab::kernels::Cpu;
use aolab::kernels::ggml::{self, BlockType};
use aolab::model::{RopeScaling, Weight, dequantize_then_multiply};
use serde_json::Value as Json;
use support::model::{self, FFN, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, Values};
use support::{Gguf, Random};

fn options() -> LoadOptions {
    LoadOptions::new(aolab::quantization::read_weight)
}

fn write(dir: &Path, file: &Gguf) -> PathBuf {
    let path = dir.join("little.gguf");
    fs::write(&path, file.bytes()).expect("a small file");
    path
}

fn open(path: &Path) -> aolab::Result<Checkpoint> {
    io::open(path.to_str().expect("UTF-8"), &options())
}

/// The linear layers and the embedding of the little model.
fn weights(c: &Checkpoint, values: &Values) -> Vec<(String, Arc<dyn Weight>)> {
    let matrices = values.iter().filter(|(name, _)| !name.contains("norm"));
    matrices
        .map(|(name, (n, k, _))| {
            let module = name.trim_end_matches(".weight").to_owned();
            let weight = c.parameters.weight(&module, (*n, *k)).expect(name);
            (module, weight)
        })
        .collect()
}

#[test]
fn every_type_is_read_under_hugging_face_names_and_order() {
    for arch in ["llama", "qwen3"] {
        for ty in BlockType::ALL.into_iter().filter(|ty| ty.block_len() <= 32) {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let values = model::values(VOCAB, 7);
            let c =
                open(&write(dir.path(), &model::gguf(arch, &values, ty))).expect("a valid file");
            assert_eq!(c.name, "little");
            assert_eq!((c.config.num_hidden_layers, c.config.head_dim), (LAYERS, HEAD_DIM));
            assert_eq!(c.config.rms_norm_eps.to_bits(), 1e-5_f32.to_bits());
            assert_eq!(c.config.rope_theta.to_bits(), 100_000.0_f64.to_bits());
            assert!(c.config.tie_word_embeddings && !c.parameters.has("lm_head.weight"));
            assert_eq!(c.config.json["rms_norm_eps"].to_string(), "0.00001", "a short number");
            for (module, weight) in weights(&c, &values) {
                let (n, k, w) = &values[&format!("{module}.weight")];
                let mut blocks = vec![0; ty.nbytes(n * k).expect("whole blocks")];
                ggml::quantize(ty, w, &mut blocks);
                let mut wanted = vec![f32::NAN; n * k];
                ggml::dequantize(ty, &blocks, &mut wanted);
                let got = weight.dequantize().expect("floats").to_f32_vec();
                assert_eq!(bits(&got), bits(&wanted), "{arch} {} {module}", ty.name());
                assert_eq!(weight.workflow().to_uppercase(), ty.name(), "{module}");
            }
            for (name, (_, k, wanted)) in values.iter().filter(|(name, _)| name.contains("norm")) {
                let got = c.parameters.vector(name, *k).expect(name).to_f32_vec();
                assert_eq!(bits(&got), bits(wanted), "{name}");
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn blocks_are_saved_and_read_back_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let values = model::values(VOCAB, 8);
    let c = open(&write(dir.path(), &model::gguf("llama", &values, BlockType::Q4_1)))
        .expect("a valid file");
    let norms = values.iter().filter(|(name, _)| name.contains("norm"));
    let parts = Parts {
        name: "little",
        config: &c.config,
        weights: weights(&c, &values),
        vectors: norms
            .map(|(name, (_, k, _))| (name.clone(), c.parameters.vector(name, *k).expect(name)))
            .collect(),
        tokenizer: c.tokenizer.as_ref(),
        stop: None,
    };
    let target = dir.path().join("saved");
    io::save(&parts, &target, false).expect("an empty place");
    let back = open(&target).expect("what was saved");
    for ((module, a), (_, b)) in parts.weights.iter().zip(weights(&back, &values)) {
        assert_eq!(a.meta(), b.meta(), "{module}");
        assert_eq!(a.tensors()[0].1.bytes(), b.tensors()[0].1.bytes(), "{module}");
    }
    assert_eq!(back.config.eos_token_ids, [1]);
    let (a, b) = (c.tokenizer.expect("a tokenizer"), back.tokenizer.expect("a tokenizer"));
    assert_eq!(
        a.encode("hello 1234 \u{1F680}", true).ok(),
        b.encode("hello 1234 \u{1F680}", true).ok()
    );
    assert_eq!((b.bos(), b.eos(), b.chat_template()), (Some(0), Some(1), Some("{{ messages }}")));
    assert_eq!(a.encode("hel", true).expect("a text"), [0, 259]);
}

#[test]
fn blocks_are_multiplied_as_they_are_dequantized() {
    let cpu = Cpu::new(Some(2));
    let mut random = Random::new(14);
    let values = model::values(VOCAB, 14);
    let dir = tempfile::tempdir().expect("a temporary folder");
    for ty in [BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4_1] {
        let c = open(&write(dir.path(), &model::gguf("llama", &values, ty))).expect("a valid file");
        for (module, weight) in weights(&c, &values) {
            let (n, k) = weight.shape();
            for m in [1, 5] {
                let x = random.floats(m * k);
                let (mut y, mut wanted) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
                weight.linear(&cpu, &x, m, &mut y).expect("it fits");
                dequantize_then_multiply(&*weight, &cpu, &x, m, &mut wanted).expect("it fits");
                // Activations keep 16 bits: half a step of 2⁻¹⁵ each, weights and activations below 2 and 1.
                let bound = 2.0 * k as f32 * 2.0_f32.powi(-16) + 1e-4;
                for (y, wanted) in y.iter().zip(&wanted) {
                    assert!(
                        (y - wanted).abs() <= bound,
                        "{module} {}: {y} is not {wanted}",
                        ty.name()
                    );
                }
            }
            assert!(
                weight.kernel(&cpu, 1).contains(&ty.name().to_lowercase()),
                "the kernel that ran"
            );
            let again = weight.dequantize().expect("the file is still there").to_f32_vec();
            assert_eq!(again.len(), n * k);
        }
    }
}

#[test]
fn the_tokenizer_of_the_metadata_gives_the_tokens_of_the_json() {
    let json: Json =
        serde_json::from_slice(include_bytes!("../src/model/tiny/tokenizer.json")).expect("JSON");
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[usize::try_from(id.as_u64().expect("an id")).expect("small")] = token.clone();
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .expect("merges")
        .iter()
        .map(|pair| match pair {
            Json::String(pair) => pair.clone(),
            pair => {
                format!("{} {}", pair[0].as_str().expect("left"), pair[1].as_str().expect("right"))
            }
        })
        .collect();
    let values = model::values(tokens.len(), 9);
    let mut file = model::gguf("llama", &values, BlockType::F16);
    let mut kinds = vec![1; tokens.len()];
    kinds[0] = 3;
    file.keys.retain(|(key, _, _)| !key.starts_with("tokenizer.ggml."));
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &merges);
    file.u32("tokenizer.ggml.bos_token_id", 0);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let read =
        open(&write(dir.path(), &file)).expect("a valid file").tokenizer.expect("a tokenizer");
    let tiny =
        io::open("tiny", &options()).expect("the built-in model").tokenizer.expect("a tokenizer");
    let text = &texts::SOTU[..100_000];
    assert_eq!(
        read.encode(text, false).expect("a text"),
        tiny.encode(text, false).expect("a text")
    );
    assert_eq!(read.bos(), Some(0));
}

/// A file with the tokenizer of `keys` in place of the model's.
fn with_tokenizer(edit: impl Fn(&mut Gguf)) -> aolab::Result<Checkpoint> {
    let mut file = model::gguf("llama", &model::values(VOCAB, 10), BlockType::F32);
    edit(&mut file);
    let dir = tempfile::tempdir().expect("a temporary folder");
    open(&write(dir.path(), &file))
}

#[test]
fn sentence_piece_joins_by_score_and_falls_back_to_bytes() {
    let c = with_tokenizer(|file| {
        file.keys.retain(|(key, _, _)| !key.starts_with("tokenizer."));
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        let mut kinds = vec![6; tokens.len()];
        kinds[..3].copy_from_slice(&[2, 3, 3]);
        let mut scores = vec![0.0; tokens.len()];
        // "▁ab" cannot come from "ab", since "▁a" is the better pair and is joined first.
        for (token, score) in
            [("▁", -9.0), ("a", -8.0), ("b", -7.0), ("▁a", -1.0), ("ab", -2.0), ("▁ab", -3.0)]
        {
            tokens.push(token.to_owned());
            kinds.push(1);
            scores.push(score);
        }
        file.text("tokenizer.ggml.model", "llama");
        file.texts("tokenizer.ggml.tokens", &tokens);
        file.i32s("tokenizer.ggml.token_type", &kinds);
        file.f32s("tokenizer.ggml.scores", &scores);
        file.u32("tokenizer.ggml.bos_token_id", 1);
        file.u32("tokenizer.ggml.eos_token_id", 2);
    });
    let tokenizer = c.expect("a valid file").tokenizer.expect("a tokenizer");
    let cases: [(&str, &[u32]); 5] = [
        ("ab", &[1, 264]),
        ("a b", &[1, 262, 259, 261]),
        ("bab", &[1, 259, 261, 263]),
        ("é", &[1, 259, 3 + 0xC3, 3 + 0xA9]),
        ("aab", &[1, 262, 263]),
    ];
    for (text, wanted) in cases {
        assert_eq!(tokenizer.encode(text, true).expect(text), wanted, "{text}");
        assert_eq!(tokenizer.decode(wanted).expect(text), text);
    }
}

#[test]
fn digits_and_words_are_cut_as_the_metadata_says() {
    // Two characters are merged only where the rule leaves them in one piece.
    for (pre, text, merge, wanted) in [
        ("smollm", "12", "1 2", 2),
        ("gpt-2", "12", "1 2", 1),
        ("qwen2", "12", "1 2", 2),
        ("llama-bpe", "12", "1 2", 1),
        ("default", "12", "1 2", 1),
        ("gpt-2", "a.b", "a .", 3),
        ("llama-bpe", ".b", ". b", 1),
        ("gpt-2", ".b", ". b", 2),
    ] {
        let c = with_tokenizer(|file| {
            let mut tokens = model::byte_characters();
            tokens.push(merge.replace(' ', ""));
            file.keys.retain(|(key, _, _)| !key.starts_with("tokenizer."));
            file.text("tokenizer.ggml.model", "gpt2");
            file.text("tokenizer.ggml.pre", pre);
            file.texts("tokenizer.ggml.tokens", &tokens);
            file.texts("tokenizer.ggml.merges", &[merge.to_owned()]);
        });
        let tokenizer = c.expect(pre).tokenizer.expect("a tokenizer");
        let ids = tokenizer.encode(text, false).expect(text);
        assert_eq!(ids.len(), wanted, "{pre}: {text} became {ids:?}");
        assert_eq!(tokenizer.decode(&ids).expect(text), text);
    }
    let error = with_tokenizer(|file| {
        file.keys.retain(|(key, _, _)| key != "tokenizer.ggml.pre");
        file.text("tokenizer.ggml.pre", "klingon");
    });
    let error = error.expect_err("an unknown rule").to_string();
    assert!(error.contains("klingon") && error.contains("smollm"), "{error}");
}

#[test]
#[expect(clippy::cast_possible_truncation, reason = "the file holds singles")]
fn rope_divisors_of_llama_3_are_recognized_and_others_refused() {
    let read = |edit: &dyn Fn(&mut Vec<f32>)| {
        with_tokenizer(|file| {
            let theta = 100_000.0_f64;
            let scaled = |i: usize| {
                let freq = theta.powf(-2.0 * i as f64 / HEAD_DIM as f64);
                let turns = 8192.0 * freq / (2.0 * std::f64::consts::PI);
                let ramp = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
                1.0 / ((1.0 - ramp) / 8.0 + ramp)
            };
            let mut factors: Vec<f32> = (0..HEAD_DIM / 2).map(|i| scaled(i) as f32).collect();
            edit(&mut factors);
            file.tensor("rope_freqs.weight", &[factors.len() as u64], BlockType::F32, &factors);
        })
    };
    let config = read(&|_| {}).expect("Llama 3.1's divisors").config;
    assert!(
        matches!(config.rope_scaling, Some(RopeScaling::Llama3 { .. })),
        "{:?}",
        config.rope_scaling
    );
    assert_eq!(config.json["rope_scaling"]["factor"], 8.0);
    assert!(read(&|factors| factors.fill(1.0)).expect("no scaling").config.rope_scaling.is_none());
    for edit in
        [(&|f: &mut Vec<f32>| f[3] = 2.5) as &dyn Fn(&mut Vec<f32>), &|f| f[0] = f32::NAN, &|f| {
            f.push(1.0)
        }]
    {
        assert!(read(edit).is_err());
    }
}

#[test]
fn a_wrong_shape_and_a_missing_tensor_name_the_module() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let c =
        open(&write(dir.path(), &model::gguf("llama", &model::values(VOCAB, 12), BlockType::Q8_0)))
            .expect("valid");
    let kv = KV_HEADS * HEAD_DIM;
    for (module, shape, words) in [
        ("model.layers.1.self_attn.k_proj", (kv + 1, HIDDEN), "num_key_value_heads"),
        ("model.layers.0.mlp.down_proj", (FFN, HIDDEN), "[64, 96]"),
        ("model.layers.9.mlp.down_proj", (HIDDEN, FFN), "no tensor blk.9.ffn_down.weight"),
        ("model.layers.x.mlp.down_proj", (HIDDEN, FFN), "no such module"),
        ("transformer.h.0", (HEADS, HEADS), "no such module"),
    ] {
        let error = c.parameters.weight(module, shape).expect_err(module).to_string();
        assert!(error.contains(words), "{module}: {words:?} is not in: {error}");
    }
    assert!(c.parameters.vector("model.norm.weight", HIDDEN + 1).is_err());
}
