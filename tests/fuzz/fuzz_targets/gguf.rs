//! Any bytes as a GGUF file: the model is built from it and runs, or there is an error.
#![no_main]

#[path = "damage.rs"]
mod damage;
#[path = "../../support/mod.rs"]
mod support;

use std::sync::LazyLock;

use aolab::kernels::Cpu;
use aolab::kernels::ggml::BlockType;
use aolab::model::NoObserver;
use libfuzzer_sys::fuzz_target;
use support::model;

static VALID: LazyLock<Vec<u8>> =
    LazyLock::new(|| model::gguf("llama", &model::values(model::VOCAB, 21), BlockType::Q4_0).bytes());

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(Some(1)));

fuzz_target!(|bytes: &[u8]| {
    // The valid file itself takes a thousand times as long as one that is refused.
    if bytes.len() < 12 {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("any.gguf");
    std::fs::write(&path, damage::file_of(bytes, &VALID)).expect("a small file");
    let Ok(model) = aolab::load(path.to_str().expect("UTF-8")) else { return };
    if let Some(tokenizer) = &model.tokenizer
        && let Ok(ids) = tokenizer.encode("hello </s> 12 naïve \u{1F680}", true)
    {
        let _ = tokenizer.decode(&ids);
    }
    let mut context = model.context(2);
    let _ = model.forward(&CPU, &[0, 1], &mut context, &mut NoObserver);
});
