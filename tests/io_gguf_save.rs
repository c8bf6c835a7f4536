//! Models saved as GGUF files: read back they are the same, bit for bit, tokenizer and perplexity too.

mod support;

use std::path::Path;

use aolab::data::texts;
use aolab::io;
use aolab::kernels::Cpu;
use aolab::model::{Model, NoObserver};
use aolab::quantization::{GgufBlockConfig, is_linear, quantize_};
use support::model;

fn save(model: &Model, path: &Path) -> aolab::Result<()> {
    let mut weights = vec![("model.embed_tokens".to_owned(), model.embed_tokens.clone())];
    let mut vectors = model.vectors();
    for (name, linear) in model.linears() {
        vectors.extend(linear.bias.map(|bias| (format!("{name}.bias"), bias)));
        weights.push((name, linear.weight));
    }
    let (name, config, tokenizer) = (&model.name, &model.config, model.tokenizer.as_ref());
    io::gguf::write(&io::Parts { name, config, weights, vectors, tokenizer, stop: None }, path)
}

fn load(path: &Path) -> Model {
    aolab::load(path.to_str().expect("UTF-8")).expect("what was just saved")
}

fn logits(model: &Model, ids: &[u32]) -> Vec<u32> {
    let cpu = Cpu::new(Some(1));
    let mut context = model.context(ids.len());
    let hidden = model.forward(&cpu, ids, &mut context, &mut NoObserver).expect("known ids");
    model
        .logits(&cpu, &hidden)
        .expect("hidden states")
        .iter()
        .map(|value| value.to_bits())
        .collect()
}

fn tiny(block_type: Option<&str>) -> Model {
    let mut model = aolab::load("tiny").expect("the built-in model");
    if let Some(name) = block_type {
        let config =
            GgufBlockConfig { block_type: name.parse().expect("a type"), ..Default::default() };
        quantize_(&mut model, &config, is_linear).expect("K is a multiple of 256");
    }
    model
}

#[test]
fn what_is_saved_as_gguf_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for ty in
        [None, Some("Q8_0"), Some("Q4_0"), Some("Q5_1"), Some("Q4_K"), Some("Q6_K"), Some("Q2_K")]
    {
        let model = tiny(ty);
        let path = dir.path().join("tiny.gguf");
        save(&model, &path).expect("a free disk");
        let back = load(&path);
        for ((name, a), (_, b)) in model.linears().into_iter().zip(back.linears()) {
            assert_eq!(a.weight.workflow(), b.weight.workflow(), "{name}");
            let (a, b) = (a.weight.dequantize(), b.weight.dequantize());
            assert_eq!(a.expect("f32").bytes(), b.expect("f32").bytes(), "{ty:?} {name}");
        }
        for ((name, a), (_, b)) in model.vectors().into_iter().zip(back.vectors()) {
            assert_eq!(a.to_f32_vec(), b.to_f32_vec(), "{name}");
        }
        let ids: Vec<u32> = (1..40).collect();
        assert_eq!(logits(&model, &ids), logits(&back, &ids), "{ty:?}");
        let (a, b) = (model.tokenizer.expect("one"), back.tokenizer.expect("one"));
        let text = &texts::SOTU[..20_000];
        assert_eq!(a.encode(text, true).expect("a text"), b.encode(text, true).expect("a text"));
        assert_eq!((a.bos(), a.eos()), (b.bos(), b.eos()));
        assert_eq!(model.config.eos_token_ids, back.config.eos_token_ids);
    }
}

#[test]
fn a_file_of_every_architecture_survives_a_second_writing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for arch in ["llama", "qwen3"] {
        let file = model::gguf(
            arch,
            &model::values(model::VOCAB, 3),
            aolab::kernels::ggml::BlockType::Q8_0,
        );
        let (first, second) = (dir.path().join("first.gguf"), dir.path().join("second.gguf"));
        std::fs::write(&first, file.bytes()).expect("a small file");
        // Qwen3 wants norms that this little file lacks: only what opens can be written again.
        let Ok(model) = aolab::load(first.to_str().expect("UTF-8")) else {
            assert_eq!(arch, "qwen3");
            continue;
        };
        save(&model, &second).expect("a free disk");
        let ids = [0, 5, 9, 200, 3];
        assert_eq!(logits(&model, &ids), logits(&load(&second), &ids), "{arch}");
    }
}

#[test]
fn formats_that_gguf_lacks_are_refused_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut model = tiny(None);
    let config = aolab::quantization::Int8WeightOnlyConfig::default();
    quantize_(&mut model, &config, is_linear).expect("int8 takes any K");
    let error = save(&model, &dir.path().join("x.gguf")).expect_err("int8 rows").to_string();
    assert!(error.contains("int8-weight-only") && error.contains("quantize gguf"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
}

#[test]
fn a_k_type_wants_rows_of_256() {
    let shape = (4, 576);
    let config = GgufBlockConfig::default();
    let error = aolab::quantization::Recipe::check(&config, shape).expect_err("576").to_string();
    assert!(error.contains("256") && error.contains("Q5_0"), "{error}");
    let error = "Q4K".parse::<aolab::quantization::GgufType>().expect_err("no such").to_string();
    assert!(error.contains("Q4_K"), "{error}");
}
