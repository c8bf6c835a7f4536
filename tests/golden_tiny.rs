//! The built-in model against transformers in f32: hidden states, logits, perplexity in both conventions, greedy text.
//! The reference was made by PyTorch and transformers; `tests/golden/tiny/reference.json` says how.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use aolab::eval::{Convention, EvalConfig, perplexity};
use aolab::generate::{GenerateConfig, generate};
use aolab::kernels::{Cpu, Isa};
use aolab::model::{Model, Observer};
use safetensors::SafeTensors;
use serde_json::Value as Json;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn reference() -> Json {
    serde_json::from_slice(&golden("reference.json")).expect("valid JSON")
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let view = file.tensor(name).expect(name);
    bytemuck::pod_collect_to_vec(view.data())
}

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model loads")
}

/// The largest difference, or the place of the first value that is not a number.
fn max_abs_diff(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().all(|v| v.is_finite()), "a value is not finite");
    got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[derive(Default)]
struct Hidden(Vec<Vec<f32>>);

impl Observer for Hidden {
    fn hidden(&mut self, _layer: usize, x: &[f32]) {
        self.0.push(x.to_vec());
    }
}

#[test]
fn hidden_states_and_logits_equal_transformers_on_every_isa() {
    let bytes = golden("reference.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let ids: Vec<i32> =
        bytemuck::pod_collect_to_vec(file.tensor("input_ids").expect("input_ids").data());
    let (hidden, final_norm, logits) =
        (floats(&file, "hidden_states"), floats(&file, "final_norm"), floats(&file, "logits"));
    let model = tiny();
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, Some(2));
        for row in 0..2 {
            let tokens: Vec<u32> =
                ids[row * 64..][..64].iter().map(|id| id.cast_unsigned()).collect();
            let mut seen = Hidden::default();
            let mut context = model.context(64);
            let out = model.forward(&cpu, &tokens, &mut context, &mut seen).expect("forward");
            for (layer, x) in seen.0.iter().enumerate() {
                let wanted = &hidden[(layer * 2 + row) * 64 * 256..][..64 * 256];
                let diff = max_abs_diff(x, wanted);
                assert!(diff < 2e-4, "{} row {row} hidden {layer}: {diff}", isa.name());
            }
            let diff = max_abs_diff(&out, &final_norm[row * 64 * 256..][..64 * 256]);
            assert!(diff < 2e-4, "{} row {row} final norm: {diff}", isa.name());
            let got = model.logits(&cpu, &out).expect("logits");
            let diff = max_abs_diff(&got, &logits[row * 64 * 4096..][..64 * 4096]);
            assert!(diff < 2e-4, "{} row {row} logits: {diff}", isa.name());
        }
    }
}

#[test]
fn one_token_at_a_time_gives_the_same_logits() {
    let (model, cpu) = (tiny(), Cpu::new(Some(2)));
    let tokens = [0, 45, 82, 14, 1209, 2331, 266, 12, 2393];
    let mut observer = aolab::model::NoObserver;
    let whole = model.forward(&cpu, &tokens, &mut model.context(16), &mut observer).expect("all");
    let mut context = model.context(16);
    for (i, token) in tokens.iter().enumerate() {
        let one = model.forward(&cpu, &[*token], &mut context, &mut observer).expect("one");
        let diff = max_abs_diff(&one, &whole[i * 256..][..256]);
        assert!(diff < 2e-4, "token {i}: {diff}");
    }
}

#[test]
fn perplexity_equals_transformers_in_both_conventions() {
    let reference = reference();
    let (model, cpu) = (tiny(), Cpu::new(None));
    let cases = [
        (Convention::Window, "a", "nll_sum_first_8_windows"),
        (Convention::Llamacpp, "b", "nll_sum_first_8_chunks"),
    ];
    for (convention, key, sums) in cases {
        let wanted = &reference["eval"][key];
        let config = EvalConfig { convention, ..Default::default() };
        let text = aolab::data::texts::SOTU;
        let got = perplexity(&model, &cpu, text, &config, &mut |_, _| true).expect("perplexity");
        let ppl = wanted["ppl"].as_f64().expect("a number");
        assert_eq!(format!("{:.4}", got.perplexity), format!("{ppl:.4}"), "{convention}");
        assert_eq!(Some(got.tokens as u64), wanted["predicted_tokens"].as_u64());
        for (i, sum) in wanted[sums].as_array().expect("sums").iter().enumerate() {
            let sum = sum.as_f64().expect("a number");
            assert!((got.window_nll[i] - sum).abs() < 2e-3, "{convention} window {i}");
        }
        if let Some(bits) = wanted["bits_per_byte"].as_f64() {
            assert!((got.bits_per_byte.expect("the whole text") - bits).abs() < 1e-5);
        }
    }
}

#[test]
fn greedy_text_equals_transformers() {
    let reference = reference();
    let (model, cpu) = (tiny(), Cpu::new(Some(2)));
    for (prompt, wanted) in reference["greedy"].as_object().expect("prompts") {
        let ids = wanted["ids"].as_array().expect("ids");
        let prompt_ids = model.tokenizer().expect("it has one").encode(prompt, true).expect("text");
        let new = ids.len() - prompt_ids.len();
        let config = GenerateConfig { max_new_tokens: new, ..Default::default() };
        let got = generate(&model, &cpu, prompt, &config, &mut |_| true).expect("text");
        let all: Vec<u64> = prompt_ids.iter().chain(&got.tokens).map(|id| u64::from(*id)).collect();
        let wanted: Vec<u64> = ids.iter().filter_map(Json::as_u64).collect();
        assert_eq!(all, wanted, "{prompt}");
    }
}

#[test]
fn tokens_outside_the_vocabulary_and_full_contexts_are_errors_in_words() {
    let (model, cpu) = (tiny(), Cpu::new(Some(1)));
    let mut observer = aolab::model::NoObserver;
    let error = model.forward(&cpu, &[4096], &mut model.context(4), &mut observer);
    let error = error.expect_err("no such token").to_string();
    assert!(error.contains("4096"), "{error}");
    let error = model.forward(&cpu, &[1; 5], &mut model.context(4), &mut observer);
    assert!(error.expect_err("too long").to_string().contains("do not fit"));
}
