//! SpinQuant's rotations (spinquant), which must not change what a model computes. Hadamard transforms are among the golden
//! vectors, in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::data::texts;
use aolab::eval::{EvalConfig, kl};
use aolab::kernels::Cpu;
use aolab::quantization::spinquant::{SpinQuantOptions, apply_spinquant};
use aolab::quantization::{Int8WeightOnlyConfig, is_linear, quantize_, read_weight};

#[test]
fn rotations_change_no_prediction_and_stay_around_what_is_quantized_later() {
    let cpu = Cpu::new(Some(2));
    let base = aolab::load("tiny").expect("the built-in model");
    let options = |use_r1, use_r2, use_r4| SpinQuantOptions { use_r1, use_r2, use_r4, seed: 3 };
    let config = EvalConfig { windows: Some(2), ..EvalConfig::default() };
    for options in
        [options(true, false, false), options(false, true, false), options(true, true, true)]
    {
        let mut turned = base.clone();
        apply_spinquant(&cpu, &mut turned, &options).expect("tiny's sizes have matrices");
        let found = kl(&base, &[&turned], &cpu, texts::SOTU, &config, &mut |_, _| true);
        let found = &found.expect("measures")[0];
        // Turned weights are rounded to bf16 once more, which costs what bf16 costs: some 10⁻⁵.
        assert!(found.mean < 1e-4, "{options:?}: KL {}", found.mean);
        let changed = turned.linear("model.layers.0.self_attn.v_proj").expect("a layer");
        let original = base.linear("model.layers.0.self_attn.v_proj").expect("a layer");
        assert_eq!(
            changed.weight.dequantize().expect("rows").to_f32_vec()
                == original.weight.dequantize().expect("rows").to_f32_vec(),
            !(options.use_r1 || options.use_r2)
        );
    }
    let mut turned = base.clone();
    apply_spinquant(&cpu, &mut turned, &SpinQuantOptions::default()).expect("turns");
    quantize_(&mut turned, &Int8WeightOnlyConfig::default(), is_linear).expect("quantizes");
    let down = turned.linear("model.layers.0.mlp.down_proj").expect("a layer");
    assert_eq!(down.weight.workflow(), "spinquant·int8-weight-only");
    let (meta, tensors) = (down.weight.meta(), down.weight.tensors());
    let back = read_weight(&meta, tensors, down.weight.shape()).expect("reads what it wrote");
    assert_eq!(back.meta(), meta);
    let values =
        |weight: &dyn aolab::model::Weight| weight.dequantize().expect("rows").to_f32_vec();
    assert_eq!(values(back.as_ref()), values(down.weight.as_ref()));
    let error = apply_spinquant(&cpu, &mut turned, &SpinQuantOptions::default());
    assert!(error.expect_err("quantized already").to_string().contains("original"));
}
