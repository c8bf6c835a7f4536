//! Key and value caches in fewer bits (X27), on the built-in model.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::eval::{EvalConfig, KlResult, kl};
use aolab::kernels::Cpu;
use aolab::kernels::kv_cache::CacheFormat;
use aolab::model::{Model, NoObserver};

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model")
}

/// What was read in one call is not looked up in a quantized cache: torchao returns the current tokens unquantized.
#[test]
fn a_quantized_cache_answers_only_for_earlier_calls() {
    let (model, cpu) = (tiny(), Cpu::new(Some(2)));
    let tokens: Vec<u32> = (0..40).map(|i| 7 * i + 3).collect();
    let read = |format, at_once: usize| -> Vec<f32> {
        let model = model.with_kv_cache(format);
        let mut context = model.context(tokens.len());
        let parts = tokens.chunks(at_once);
        parts
            .flat_map(|part| {
                model.forward(&cpu, part, &mut context, &mut NoObserver).expect("read")
            })
            .collect()
    };
    let exact = read(CacheFormat::F32, 40);
    let distance =
        |other: &[f32]| exact.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    for format in CacheFormat::ALL.into_iter().filter(|format| format.is_quantized()) {
        let whole = distance(&read(format, 40));
        // The two kinds of keys are summed apart, so that only the rounding of sums may differ.
        assert!(whole < 1e-4, "{format:?} in one call: {whole}");
        for at_once in [1, 7] {
            let parts = distance(&read(format, at_once));
            assert!(parts > 1e-3 && parts.is_finite(), "{format:?} by {at_once}: {parts}");
        }
    }
}

#[test]
fn fewer_bits_move_the_predictions_further() {
    let (model, cpu) = (tiny(), Cpu::new(Some(2)));
    let formats = [
        CacheFormat::F16,
        CacheFormat::Bf16,
        CacheFormat::Int8,
        CacheFormat::Float8,
        CacheFormat::Int4,
    ];
    let models: Vec<Model> = formats.iter().map(|format| model.with_kv_cache(*format)).collect();
    let models: Vec<&Model> = models.iter().collect();
    let text = aolab::data::texts::read("sotu".as_ref()).expect("the built-in text");
    let config = EvalConfig { context: Some(256), windows: Some(1), ..Default::default() };
    let found = kl(&model, &models, &cpu, &text, &config, &mut |_, _| true).expect("divergences");
    for (pair, format) in found.windows(2).zip(formats) {
        let error = |kl: &KlResult| 2.0 * kl.mean_error;
        let (low, high) = (pair[0].mean + error(&pair[0]), pair[1].mean - error(&pair[1]));
        assert!(low < high, "{format:?} {low} and the next {high}");
    }
    // Eight bits are as good as none on this model.
    assert!(found[2].mean < 5e-4 && found[2].same_top_1 > 0.98, "int8: {:?}", found[2].mean);
}

#[test]
fn the_cache_takes_what_its_format_says() {
    let model = tiny();
    let nbytes = |format| model.with_kv_cache(format).context(100).cache().nbytes();
    let f32 = nbytes(CacheFormat::F32);
    assert_eq!(nbytes(CacheFormat::F16), f32 / 2);
    let d = model.config.head_dim;
    assert_eq!(nbytes(CacheFormat::Int8), f32 / 4 / d * (d + 2));
    assert_eq!(nbytes(CacheFormat::Int4), f32 / 4 / d * (d / 2 + 2));
    assert!(model.with_kv_cache(CacheFormat::Int8).name.ends_with("kv-int8"));
}
