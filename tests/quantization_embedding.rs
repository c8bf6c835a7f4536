//! Quantized embeddings, alone and tied to the output layer, in a whole model, and back from a file.

use aolab::kernels::Cpu;
use aolab::model::{Model, NoObserver};
use aolab::quantization::primitives::compute_error;
use aolab::quantization::{CodeType, EmbeddingQuantizer, Granularity, TiedEmbeddingQuantizer};
use aolab::{Tensor, io};

fn tiny(tied: bool) -> Model {
    let mut model = aolab::load("tiny").expect("the built-in model");
    if tied {
        model.lm_head = None;
    }
    model
}

fn logits(model: &Model) -> Tensor {
    let cpu = Cpu::new(Some(2));
    let tokens = [1, 17, 300, 4000, 5, 2000];
    let mut context = model.context(tokens.len());
    let hidden = model.forward(&cpu, &tokens, &mut context, &mut NoObserver).expect("runs");
    let logits = model.logits(&cpu, &hidden).expect("runs");
    let len = logits.len();
    Tensor::new(logits, &[len]).expect("a vector")
}

fn saved_and_loaded(model: &Model, name: &str) -> Model {
    let dir = std::env::temp_dir().join(format!("aolab-{name}-{}", std::process::id()));
    let mut weights = vec![("model.embed_tokens".to_owned(), model.embed_tokens.clone())];
    weights.extend(model.linears().into_iter().map(|(name, linear)| (name, linear.weight)));
    let (vectors, config) = (model.vectors(), &model.config);
    let parts = io::Parts {
        name: "embedding",
        config,
        weights,
        vectors,
        tokenizer: model.tokenizer.as_ref(),
        stop: None,
    };
    io::save(&parts, &dir, true).expect("saves");
    let back = aolab::load(&dir.to_string_lossy()).expect("loads");
    std::fs::remove_dir_all(&dir).expect("removes what it made");
    back
}

fn rows(bits: u32) -> EmbeddingQuantizer {
    let granularity = Granularity::PerGroup { group_size: 32 };
    EmbeddingQuantizer { weight_dtype: CodeType::int(bits), granularity, ..Default::default() }
}

#[test]
fn an_embedding_is_gathered_from_its_codes_and_comes_back_from_a_file() {
    let cpu = Cpu::new(Some(2));
    for (tied, bits, gate) in [(false, 8, 30.0), (false, 4, 10.0), (true, 8, 30.0)] {
        let (mut model, name) = (tiny(tied), format!("embedding-{bits}-{tied}"));
        let (before, head) = (logits(&model), model.head().clone());
        rows(bits).apply(&cpu, &mut model).expect("applies");
        assert_eq!(model.embed_tokens.workflow(), "embedding");
        // The output layer keeps its numbers, whether it was tied or not.
        assert_eq!(model.head().workflow(), head.workflow());
        assert!(!model.config.tie_word_embeddings);
        let after = logits(&model);
        let sqnr = compute_error(&before, &after).expect("one shape");
        assert!(sqnr > gate, "{name}: {sqnr:.1} dB");
        assert_eq!(logits(&saved_and_loaded(&model, &name)).bytes(), after.bytes(), "{name}");
    }
}

#[test]
fn a_tied_embedding_is_one_buffer_for_both() {
    let cpu = Cpu::new(Some(2));
    let config = TiedEmbeddingQuantizer { rows: rows(8) };
    let mut model = tiny(true);
    let before = logits(&model);
    config.apply(&cpu, &mut model).expect("applies");
    assert!(model.lm_head.is_none() && model.config.tie_word_embeddings);
    assert_eq!(model.head().workflow(), "tied-embedding");
    let after = logits(&model);
    let sqnr = compute_error(&before, &after).expect("one shape");
    assert!(sqnr > 25.0, "{sqnr:.1} dB");
    assert_eq!(logits(&saved_and_loaded(&model, "tied")).bytes(), after.bytes());
    // What is not tied is refused, and left as it is.
    let mut model = tiny(false);
    let error = config.apply(&cpu, &mut model).expect_err("not tied").to_string();
    assert!(error.contains("not tied"), "{error}");
    assert_ne!(model.embed_tokens.workflow(), "tied-embedding");
}
