//! Calibrated quantization of a whole model: what it is for, that a stop loses nothing, that a seed decides everything.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::data::texts;
use aolab::eval::{EvalConfig, KlResult, kl};
use aolab::kernels::Cpu;
use aolab::model::Model;
use aolab::quantization::awq::search;
use aolab::quantization::calibration::{Sequences, draw};
use aolab::quantization::{
    AwqConfig, Calibration, CodeType, FqnToConfig, GptqConfig, Granularity, Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType,
    QuantizeReport, Recipe, SmoothQuantConfig, is_linear, quantize_,
};

fn tiny() -> Model {
    aolab::load("tiny").expect("the built-in model")
}

fn int4(group_size: usize) -> Arc<dyn Recipe> {
    Arc::new(Int4WeightOnlyConfig { group_size, ..Int4WeightOnlyConfig::default() })
}

fn sequences(model: &Model, count: usize) -> Vec<Vec<u32>> {
    let wanted = Sequences { count, length: 256, seed: 7 };
    draw(model, texts::CALIBRATION, &wanted).expect("the text is long enough")
}

fn start(model: &Model, recipe: Arc<dyn Recipe>, count: usize) -> Calibration {
    let sequences = sequences(model, count);
    Calibration::new(model, recipe, &is_linear, false, &sequences).expect("a sound plan")
}

fn calibrated(
    model: &Model,
    recipe: Arc<dyn Recipe>,
    threads: usize,
    count: usize,
) -> (Model, QuantizeReport) {
    let mut work = start(model, recipe, count);
    work.run(&Cpu::new(Some(threads)), &mut |_, _, _| true).expect("runs to the end");
    work.finish().expect("is through")
}

fn rounded(model: &Model, recipe: &dyn Recipe) -> Model {
    let mut model = model.clone();
    quantize_(&mut model, recipe, is_linear).expect("quantizes");
    model
}

fn divergences(base: &Model, models: &[&Model], windows: usize) -> Vec<KlResult> {
    let config = EvalConfig { windows: Some(windows), ..EvalConfig::default() };
    kl(base, models, &Cpu::new(None), texts::SOTU, &config, &mut |_, _| true).expect("measures")
}

/// `better` diverges less than `worse` by more than twice the standard error of the difference.
fn assert_better(better: &KlResult, worse: &KlResult, what: &str) {
    let error = better.mean_error.hypot(worse.mean_error);
    assert!(
        worse.mean - better.mean > 2.0 * error,
        "{what}: KL {:.5} ± {:.5} is not below {:.5} ± {:.5} by more than chance",
        better.mean,
        better.mean_error,
        worse.mean,
        worse.mean_error
    );
}

#[test]
fn gptq_is_nearer_to_the_original_than_rounding_to_nearest() {
    let base = tiny();
    let intx = |bits, mapping_type| -> Arc<dyn Recipe> {
        Arc::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(bits),
            granularity: Granularity::PerGroup { group_size: 32 },
            mapping_type,
            ..IntxWeightOnlyConfig::default()
        })
    };
    let bases = [
        ("int4 g32", int4(32)),
        ("int4 a row", int4(256)),
        ("int3 g32", intx(3, MappingType::Asymmetric)),
        ("int3 g32 symmetric", intx(3, MappingType::Symmetric)),
        ("int2 g32", intx(2, MappingType::Asymmetric)),
    ];
    for (name, recipe) in bases {
        let nearest = rounded(&base, recipe.as_ref());
        let (gptq, report) = calibrated(&base, Arc::new(GptqConfig::new(recipe)), 2, 48);
        assert_eq!(report.quantized(), 43);
        let found = divergences(&base, &[&gptq, &nearest], 4);
        assert_better(&found[0], &found[1], &format!("gptq, {name}"));
    }
}

#[test]
fn a_stop_loses_no_block_and_threads_change_no_byte() {
    let base = tiny();
    let recipe: Arc<dyn Recipe> =
        Arc::new(GptqConfig { sequential: true, ..GptqConfig::new(int4(64)) });
    let (whole, _) = calibrated(&base, Arc::clone(&recipe), 1, 4);
    let mut work = start(&base, recipe, 4);
    let mut stops = 0;
    loop {
        let mut steps = 0;
        let cpu = Cpu::new(Some(3));
        match work.run(&cpu, &mut |_, _, _| {
            steps += 1;
            steps < 25
        }) {
            Ok(()) => break,
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        stops += 1;
        assert!(stops < 20, "it goes on from where it was");
        assert!(work.blocks().0 > 0, "blocks that were done are kept");
    }
    assert!(stops > 0, "it was stopped at least once");
    let (stopped, _) = work.finish().expect("is through");
    for ((fqn, a), (_, b)) in whole.linears().iter().zip(&stopped.linears()) {
        for ((name, a), (_, b)) in a.weight.tensors().iter().zip(&b.weight.tensors()) {
            assert_eq!(a.bytes(), b.bytes(), "{fqn}: {name}");
        }
    }
    // Its clones untouched: the model that came is the model that was.
    assert!(base.linears().iter().all(|(_, linear)| linear.weight.workflow() == "bf16"));
}

/// AWQ's search starts at the base itself, so that on what it saw no layer's output is farther than the base's. (Of the whole
/// model's predictions this does not follow: `tutorials/03-calibration.md` has the numbers.)
#[test]
fn awq_moves_no_layer_away_and_smoothquant_no_prediction() {
    let base = tiny();
    let cpu = Cpu::new(Some(2));
    let weight = &base.linear("model.layers.2.mlp.up_proj").expect("a layer").weight;
    let mut rng = aolab::rng::Rng::new(9);
    // Features of very different size, which is what AWQ is for.
    let x: Vec<f32> = (0..200 * 256).map(|i| rng.normal() * 1.03_f32.powi(i % 256)).collect();
    let found = search(&cpu, weight.as_ref(), &x, &AwqConfig::new(int4(256))).expect("searches");
    let least = found.losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(least < 0.9 * found.losses[0], "{:?}", found.losses);
    let (awq, report) = calibrated(&base, Arc::new(AwqConfig::new(int4(256))), 2, 4);
    assert!(report.layers.iter().all(|layer| layer.workflow == "awq·int4-weight-only"));
    let dynamic: Arc<dyn Recipe> = Arc::new(Int8DynamicActivationInt8WeightConfig::default());
    let smooth = Arc::new(SmoothQuantConfig::new(Arc::clone(&dynamic)));
    let (smooth, _) = calibrated(&base, smooth, 2, 8);
    let plain = rounded(&base, dynamic.as_ref());
    let found = divergences(&base, &[&smooth, &plain, &awq], 6);
    let error = found[0].mean_error.hypot(found[1].mean_error);
    assert!(
        found[0].mean < found[1].mean + 2.0 * error,
        "smoothquant: KL {} against {} of its base",
        found[0].mean,
        found[1].mean
    );
    assert!(found[2].mean < 0.1, "awq is not broken: KL {}", found[2].mean);
}

#[test]
fn recipes_compose_by_name_and_over_one_another() {
    let base = tiny();
    let by_name = FqnToConfig::new([
        ("re:.*down_proj".to_owned(), Some(Arc::new(Int8WeightOnlyConfig::default()) as _)),
        ("re:.*v_proj".to_owned(), Some(Arc::new(AwqConfig::new(int4(64))) as _)),
        ("lm_head".to_owned(), None),
        ("_default".to_owned(), Some(Arc::new(GptqConfig::new(int4(64))) as _)),
    ]);
    let (model, report) = calibrated(&base, Arc::new(by_name.expect("sound keys")), 2, 2);
    let count = |workflow: &str| {
        report.layers.iter().filter(|l| l.skipped.is_none() && l.workflow == workflow).count()
    };
    assert_eq!((count("int8-weight-only"), count("awq·int4-weight-only")), (6, 6));
    assert_eq!(count("int4-weight-only"), 30);
    // Quantizing once more goes inside awq's scales, which stay.
    let again = rounded(&model, &Int8WeightOnlyConfig::default());
    let v_proj = again.linear("model.layers.0.self_attn.v_proj").expect("a layer");
    assert_eq!(v_proj.weight.workflow(), "awq·int8-weight-only");
}

#[test]
fn what_makes_no_sense_says_why() {
    let base = tiny();
    let refuse = |recipe: Arc<dyn Recipe>, model: &Model, wanted: &str| {
        let error = Calibration::new(model, recipe, &is_linear, false, &sequences(model, 1));
        let error = error.expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let gptq: Arc<dyn Recipe> = Arc::new(GptqConfig::new(int4(32)));
    refuse(Arc::new(AwqConfig::new(Arc::clone(&gptq))), &base, "calibrates anew");
    refuse(Arc::new(GptqConfig::new(Arc::clone(&gptq))), &base, "algorithm of its own");
    refuse(int4(32), &base, "without calibration");
    refuse(
        Arc::new(GptqConfig { percdamp: f64::NAN, ..GptqConfig::new(int4(32)) }),
        &base,
        "percdamp",
    );
    refuse(Arc::new(GptqConfig::new(int4(48))), &base, "multiple of group_size");
    let quantized = rounded(&base, int4(32).as_ref());
    refuse(Arc::clone(&gptq), &quantized, "load the model again");
    let dynamic: Arc<dyn Recipe> = Arc::new(Int8DynamicActivationInt8WeightConfig::default());
    refuse(Arc::new(GptqConfig::new(dynamic)), &base, "one column at a time");
    let error = quantize_(&mut base.clone(), gptq.as_ref(), is_linear).expect_err("no inputs");
    assert!(error.to_string().contains("looks at a layer's inputs"), "{error}");
}
