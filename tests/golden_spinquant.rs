//! Hadamard transforms against torchao 0.18, and SpinQuant's rotations, which must not change what a model computes.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use aolab::data::texts;
use aolab::eval::{EvalConfig, kl};
use aolab::kernels::hadamard::{self, Plan};
use aolab::kernels::{Cpu, Isa};
use aolab::quantization::spinquant::{SpinQuantOptions, apply_spinquant};
use aolab::quantization::{Int8WeightOnlyConfig, is_linear, quantize_, read_weight};
use golden_support::Family;

#[test]
fn hadamard() {
    let family = Family::read("hadamard");
    for n in [32, 64, 24, 40, 28] {
        let plan = Plan::new(n).expect("a matrix of this size");
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(isa, Some(2));
            let x = family.tensor(&format!("n{n}.x")).to_f32_vec();
            let identity = (0..n * n).map(|at| f32::from(u8::from(at % (n + 1) == 0))).collect();
            for (name, mut values) in [("y", x), ("H", identity)] {
                hadamard::transform(&cpu, &plan, &mut values);
                // Butterflies are exact to the bit; the product with a stored matrix adds in torch's own order.
                let exact = n.is_power_of_two() || name == "H";
                let allowed = if exact { 0.0 } else { 1e-6 };
                let wanted = family.tensor(&format!("n{n}.{name}")).to_f32_vec();
                let far = wanted.iter().zip(&values).find(|(a, b)| (*a - *b).abs() > allowed);
                assert!(far.is_none(), "{}: n{n}.{name}: {far:?}", isa.name());
            }
        }
    }
}

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
