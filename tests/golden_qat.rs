//! Quantization-aware training: prepare against convert. What torchao's fake quantizers, layers and learned ranges give is among the
//! golden vectors (qat, qat_linear), in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::Tensor;
use aolab::autograd::Tape;
use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::primitives::IntType;
use aolab::quantization::{
    CodeType, Granularity, Int4WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig, Recipe,
};
use aolab::rng::Rng;
use aolab::training::qat::{
    FakeQuantizeConfig, IntxFakeQuantizeConfig, IntxGranularity, QatConfig, QatRule,
};

const SYMMETRIC: fn(u32, IntxGranularity) -> IntxFakeQuantizeConfig =
    |bits, granularity| IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);

/// What training saw is what `quantize` stores, bit for bit.
#[test]
fn prepare_and_convert_agree_bit_for_bit() {
    let mut rng = Rng::new(5);
    for (n, k, spread) in [(16, 64, 1.0), (5, 128, 1e-3), (3, 96, 1e4), (1, 32, 0.0)] {
        let w: Vec<f32> = (0..n * k).map(|_| rng.normal() * spread).collect();
        let w = Tensor::new(w, &[n, k]).expect("its shape");
        for group_size in [32, k] {
            let base = Int4WeightOnlyConfig { group_size, ..Int4WeightOnlyConfig::default() };
            let weight = QatConfig::of_base(&base).expect("known").weight.expect("a weight");
            let cpu = Cpu::new(Some(2));
            let tape = Tape::no_grad(&cpu);
            let seen = weight.fake_quantize(&tape, &tape.constant(w.clone())).expect("sound");
            let dense = DenseWeight::new(w.clone()).expect("a matrix");
            let stored = base.quantize(&cpu, &dense).expect("quantizes").dequantize().expect("ok");
            assert!(seen.value().bytes() == stored.bytes(), "{n} × {k}, groups of {group_size}");
            integers_agree(&cpu, &w, group_size);
        }
    }
}

/// The same for 2 to 8 bits, weights alone and with activations.
fn integers_agree(cpu: &Cpu, w: &Tensor, group_size: usize) {
    for bits in 2..=8 {
        let granularity = Granularity::PerGroup { group_size };
        let alone = IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(bits),
            granularity: granularity.clone(),
            ..IntxWeightOnlyConfig::default()
        };
        let both = Int8DynamicActivationIntxWeightConfig {
            weight_dtype: CodeType::int(bits),
            weight_granularity: granularity,
            ..Int8DynamicActivationIntxWeightConfig::default()
        };
        for base in [&alone as &dyn Recipe, &both] {
            let config = QatConfig::of_base(base).expect("known");
            let tape = Tape::no_grad(cpu);
            let weight = config.weight.expect("a weight");
            let seen = weight.fake_quantize(&tape, &tape.constant(w.clone())).expect("sound");
            let dense = DenseWeight::new(w.clone()).expect("a matrix");
            let stored = base.quantize(cpu, &dense).expect("quantizes").dequantize().expect("ok");
            let same = seen.value().bytes() == stored.bytes();
            assert!(same, "{} {bits} bits, groups of {group_size}", base.name());
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let words = |result: aolab::Result<QatConfig>| result.expect_err("refused").to_string();
    assert!(words(QatConfig::of_word("int9", None)).contains("int2 to int8"));
    let tiled = Int4WeightOnlyConfig {
        int4_packing_format: "tile-packed-to-4d".parse().expect("a format"),
        ..Int4WeightOnlyConfig::default()
    };
    assert!(words(QatConfig::of_base(&tiled)).contains("no fake quantizer"));
    let symmetric_token = SYMMETRIC(8, IntxGranularity::PerToken);
    assert!(FakeQuantizeConfig::Intx(symmetric_token).check(64).is_err());
    let uneven = FakeQuantizeConfig::Intx(SYMMETRIC(4, IntxGranularity::PerGroup(48)));
    assert!(uneven.check(64).expect_err("uneven").to_string().contains("48"));
    let float = QatConfig { range_learning: true, ..QatConfig::new(None, None) };
    assert!(QatRule::new(float).is_err());
}
