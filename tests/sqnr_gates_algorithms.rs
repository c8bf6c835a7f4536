//! torchao's gates (§2.2 of the list of its features) of algorithms that look at inputs, of layers that are prepared for quantization,
//! and of training in low precision. Formats: tests/sqnr_gates.rs; prepare against convert to the bit: tests/golden_qat.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod gates_support;

use std::sync::Arc;

use aolab::Tensor;
use aolab::autograd::{Tape, Var};
use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::{AutoRoundConfig, AwqConfig, GptqConfig, Recipe};
use aolab::rng::Rng;
use aolab::training::float8::{Recipe as Float8Recipe, float8_linear};
use aolab::training::int8::{
    Int8MixedPrecisionTrainingConfig, Int8WeightOnlyRule, int8_weight_only_linear,
};
use aolab::training::qat::{QatConfig, QatRule};
use aolab::training::{LinearRule as _, Parameters, Vars};
use gates_support::{SEEDS, all_inputs, config, db, dtype, group, inputs, per};
use serde_json::json;

/// A name, an algorithm, its base, the least ratio.
type Case = (&'static str, Arc<dyn Recipe>, Arc<dyn Recipe>, f64);

/// gptq/test_gptqv2.py:737: GPTQ int4 > 25, int8 > 30, nvfp4 > 15, each above rounding to nearest; AWQ's mean square is below its
/// base's. Inputs are correlated, as a layer's are: on white noise the errors of columns have nothing to make up for.
#[test]
fn algorithms_lose_less_than_their_bases() {
    let int4 = config("Int4WeightOnlyConfig", json!({ "group_size": 32 }));
    let int8 = config("Int8WeightOnlyConfig", json!({}));
    let nvfp4 = config("NVFP4WeightOnlyConfig", json!({}));
    let gptq = |base: &Arc<dyn Recipe>| Arc::new(GptqConfig::new(Arc::clone(base)));
    let rounds =
        AutoRoundConfig { base: Arc::clone(&int4), ..AutoRoundConfig::new(Arc::clone(&int4)) };
    let of_outputs = json!({ "weight_group_size": 32, "range_setting": "activation-loss" });
    let min_max = json!({ "weight_group_size": 32, "range_setting": "min-max" });
    let cases: Vec<Case> = vec![
        ("gptq int4", gptq(&int4), Arc::clone(&int4), 25.0),
        ("gptq int8", gptq(&int8), Arc::clone(&int8), 30.0),
        ("gptq nvfp4", gptq(&nvfp4), Arc::clone(&nvfp4), 15.0),
        ("awq", Arc::new(AwqConfig::new(Arc::clone(&int4))), Arc::clone(&int4), 20.0),
        ("auto-round", Arc::new(rounds), Arc::clone(&int4), 20.0),
        (
            "P16 activation-loss",
            config("QuantizationRecipe", of_outputs),
            config("QuantizationRecipe", min_max),
            15.0,
        ),
    ];
    for seed in SEEDS {
        let mut inputs = inputs(seed, [256, 96, 256]);
        let mut rng = Rng::new(seed + 1);
        // Each feature is its neighbours' mean and a size of its own.
        for row in inputs.x.chunks_exact_mut(256) {
            for i in 1..row.len() {
                row[i] = 0.8 * row[i - 1] + 0.6 * row[i];
            }
        }
        let sizes: Vec<f32> = (0..256).map(|_| (1.5 * rng.normal()).exp()).collect();
        inputs.x.iter_mut().enumerate().for_each(|(i, x)| *x *= sizes[i % 256]);
        for (name, algorithm, base, gate) in &cases {
            let (seen, _) = inputs.seen(inputs.made(algorithm.as_ref()).as_ref());
            let (nearest, _) = inputs.seen(inputs.made(base.as_ref()).as_ref());
            println!("{name}: {seen:.1} dB, base {nearest:.1} dB");
            assert!(seen > *gate, "{name} {seed}: {seen:.1} dB, wanted {gate}");
            assert!(seen > nearest, "{name} {seed}: {seen:.1} dB, its base {nearest:.1}");
        }
    }
}

/// test_qat.py:1883–2020 and :2574: outputs of the prepared layer against the converted one's, and against the unquantized one's.
#[test]
fn prepared_layers_are_what_converted_ones_give() {
    let row = json!([per("PerRow"), per("PerRow")]);
    let mx = json!({ "weight_dtype": dtype("float4_e2m1fn_x2"), "activation_dtype": dtype("float4_e2m1fn_x2") });
    let int = json!({ "weight_dtype": dtype("int4"), "weight_granularity": group(32) });
    let intx = json!({ "weight_dtype": dtype("int4"), "granularity": group(32) });
    let cases = [
        (
            "fp8 × fp8",
            config("Float8DynamicActivationFloat8WeightConfig", json!({ "granularity": row })),
            15.0,
        ),
        (
            "fp8 × int4",
            config(
                "Float8DynamicActivationInt4WeightConfig",
                json!({ "int4_packing_format": "plain" }),
            ),
            22.0,
        ),
        ("int4wo v2", config("Int4WeightOnlyConfig", json!({ "group_size": 128 })), 45.0),
        // To the order of their additions, and to the 15 bits that kernels of packed weights give activations.
        ("int8 × intx", config("Int8DynamicActivationIntxWeightConfig", int), 80.0),
        ("intx", config("IntxWeightOnlyConfig", intx), 80.0),
        ("mxfp4", config("MXDynamicActivationMXWeightConfig", mx), 40.0),
        ("nvfp4", config("NVFP4DynamicActivationNVFP4WeightConfig", json!({})), 40.0),
    ];
    for mut inputs in all_inputs() {
        let [m, _, k] = inputs.shape;
        // Training has f32 weights; scales of bf16 ones would be bf16.
        let w = inputs.weight.dequantize().expect("numbers");
        inputs.weight = DenseWeight::shared(w.clone()).expect("a matrix");
        for (name, base, gate) in &cases {
            let config = QatConfig::of_base(base.as_ref()).expect("fake quantizers");
            let rule = QatRule::new(config).expect("a rule");
            let cpu = Cpu::new(Some(2));
            let tape = Tape::no_grad(&cpu);
            let x = Tensor::new(inputs.x.clone(), &[m, k]).expect("inputs");
            let (x, w) = (tape.constant(x), tape.constant(w.clone()));
            let prepared = rule.linear(&tape, "layer", &x, &w, &Vars::default()).expect("a layer");
            let prepared = prepared.value().to_f32_vec();
            let converted = inputs.run(inputs.made(base.as_ref()).as_ref(), &cpu);
            let seen = db(&converted, &prepared);
            assert!(seen > *gate || converted == prepared, "{name}, {}: {seen:.1} dB", inputs.name);
            let plain = db(&inputs.run(inputs.weight.as_ref(), &cpu), &prepared);
            assert!(plain > 10.0, "{name}, {}: {plain:.1} dB from unquantized", inputs.name);
        }
    }
}

/// test_base.py:318: float8 training's outputs ≥ 18, gradients ≥ 17; and R01, R02, which torchao's tests hold to 20 by their losses.
#[test]
fn training_in_low_precision() {
    type Layer<'a> = &'a dyn Fn(&Tape, &Var, &Var) -> aolab::Result<Var>;
    let int8 = Int8MixedPrecisionTrainingConfig::default();
    let float8 = |recipe| move |tape: &Tape, x: &Var, w: &Var| float8_linear(tape, recipe, x, w);
    let (tensor, rows) = (float8(Float8Recipe::Tensorwise), float8(Float8Recipe::Rowwise));
    let hp = float8(Float8Recipe::RowwiseWithGwHp);
    let layers: [(&str, Layer<'_>, f64, f64); 5] = [
        ("float8 tensorwise", &tensor, 18.0, 17.0),
        ("float8 rowwise", &rows, 18.0, 17.0),
        ("float8 rowwise hp", &hp, 18.0, 17.0),
        ("int8 mixed", &|tape, x, w| int8.linear(tape, x, w), 20.0, 20.0),
        ("int8 weights", &int8_weight_only_linear, 20.0, 20.0),
    ];
    for seed in SEEDS {
        let inputs = inputs(seed, [64, 96, 128]);
        let mut rng = Rng::new(seed + 9);
        let dy: Vec<f32> = (0..64 * 96).map(|_| rng.normal() * 1e-2).collect();
        let dy = Tensor::new(dy, &[64, 96]).expect("a gradient");
        let run = |layer: Layer<'_>| {
            let tape = Tape::new(&Cpu::new(Some(2)));
            let x = tape.leaf(Tensor::new(inputs.x.clone(), &[64, 128]).expect("inputs"));
            let w = tape.leaf(inputs.weight.dequantize().expect("numbers"));
            let y = layer(&tape, &x, &w).expect("a layer");
            let mut gradients = tape.backward_from(&y, dy.clone()).expect("gradients");
            let dx = gradients.take(&x).expect("of x");
            [y.value().clone(), dx, gradients.take(&w).expect("of w")].map(|t| t.to_f32_vec())
        };
        let exact = run(&|tape, x, w| tape.linear(x, w));
        for (name, layer, of_y, of_gradients) in layers {
            let got = run(layer);
            for (part, gate) in [(0, of_y), (1, of_gradients), (2, of_gradients)] {
                let seen = if exact[part] == got[part] {
                    f64::INFINITY
                } else {
                    db(&exact[part], &got[part])
                };
                assert!(seen >= gate, "{name}, part {part}: {seen:.1} dB, wanted {gate}");
            }
        }
    }
}

/// R01 rounds a weight to codes again after each step, at random: to neighbours whose mean is the number, by the seed and the step alone.
#[test]
fn int8_weights_are_rounded_to_neighbours_whose_mean_is_the_number() {
    let (k, name) = (4096, "model.layers.0.mlp.up_proj.weight");
    // The largest number is code 127 and the scale 1; the others lie at 0.3 of a step.
    let mut row = vec![20.3_f32; k];
    row[0] = 127.0;
    let after = |seed: u64, step: usize| {
        let mut parameters = Parameters::default();
        parameters.set(name, Tensor::new(row.clone(), &[1, k]).expect("a row"));
        let rule = Int8WeightOnlyRule { seed };
        rule.end_step(step, &mut parameters).expect("rounded");
        parameters.get(name).expect("it is there").to_f32_vec()
    };
    let seen = after(7, 0);
    assert!(seen[1..].iter().all(|x| [20.0, 21.0].contains(x)), "neighbours only");
    let mean = seen[1..].iter().sum::<f32>() / 4095.0;
    // The deviation of a mean of 4095 draws is √(0.3 · 0.7 / 4095) = 0.0072.
    assert!((mean - 20.3).abs() < 4.0 * 0.0072, "{mean}");
    assert_eq!(after(7, 0), seen, "the same draws");
    assert_ne!(after(8, 0), seen, "another seed");
    assert_ne!(after(7, 1), seen, "another step");
    // Before the first step: to the nearest, which a second time changes nothing but an ulp of the scale.
    let mut parameters = Parameters::default();
    parameters.set(name, Tensor::new(row.clone(), &[1, k]).expect("a row"));
    Int8WeightOnlyRule { seed: 7 }.prepare(&mut parameters).expect("rounded");
    let nearest = parameters.get(name).expect("it is there").to_f32_vec();
    assert!(nearest[1..].iter().all(|x| (x - 20.0).abs() < 1e-5), "to the nearest");
}
