//! Quantization-aware training against torchao's: fake quantizers, layers, learned ranges, and prepare against convert.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use aolab::autograd::{Tape, Var};
use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::primitives::{Float8, IntType, ZeroPointDomain};
use aolab::quantization::{
    CodeType, Granularity, Int4WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig, MappingType, Recipe,
};
use aolab::rng::Rng;
use aolab::training::qat::{
    FakeQuantizeConfig, Float8FakeQuantizeConfig, Int4Activation, Int4WeightFakeQuantizeConfig,
    IntxFakeQuantizeConfig, IntxGranularity, LearnedRange, QatConfig, QatRule, initial_range,
};
use aolab::training::{LinearRule, Vars};
use aolab::{DType, Tensor};
use golden_support::Family;

const SYMMETRIC: fn(u32, IntxGranularity) -> IntxFakeQuantizeConfig =
    |bits, granularity| IntxFakeQuantizeConfig::new(IntType::Int(bits), granularity);

fn asymmetric_uint4() -> IntxFakeQuantizeConfig {
    IntxFakeQuantizeConfig {
        mapping_type: MappingType::Asymmetric,
        ..IntxFakeQuantizeConfig::new(IntType::UInt(4), IntxGranularity::PerGroup(32))
    }
}

/// `y` and the gradient for `x` where the upstream gradient is `g`.
fn run(x: &Tensor, g: &Tensor, f: impl Fn(&Tape, &Var) -> Var) -> [Tensor; 2] {
    let mut first: Option<[Tensor; 2]> = None;
    for threads in [1, 3] {
        let tape = Tape::new(&Cpu::new(Some(threads)));
        let x = tape.leaf(x.clone());
        let y = f(&tape, &x);
        let mut gradients = tape.backward_from(&y, g.clone()).expect("gradients");
        let all = [y.value().clone(), gradients.take(&x).expect("of x")];
        let first = first.get_or_insert_with(|| all.clone());
        assert!(first.iter().zip(&all).all(|(a, b)| a.bytes() == b.bytes()), "threads");
    }
    first.expect("two runs")
}

/// Within `steps` units of the last place of the larger of the two and of `size`; NaN only with NaN.
fn close(name: &str, got: &Tensor, wanted: &Tensor, steps: f32, size: f32) {
    assert_eq!(got.shape(), wanted.shape(), "{name}");
    for (i, (got, wanted)) in got.to_f32_vec().iter().zip(wanted.to_f32_vec()).enumerate() {
        let bound = steps * 2.0_f32.powi(-23) * wanted.abs().max(size);
        let same = (got - wanted).abs() <= bound || (got.is_nan() && wanted.is_nan());
        assert!(same, "{name}[{i}]: wanted {wanted}, got {got}");
    }
}

#[test]
fn integer_fake_quantizers_are_bit_exact() {
    let family = Family::read("qat");
    let (x, g) = (family.tensor("x"), family.tensor("g"));
    let g32 = IntxGranularity::PerGroup(32);
    let cases = [
        ("token_asym_int8", IntxFakeQuantizeConfig::int8_activation()),
        ("g32_sym_int4", SYMMETRIC(4, g32)),
        ("g32_sym_int2", SYMMETRIC(2, g32)),
        ("chan_sym_int8", SYMMETRIC(8, IntxGranularity::PerChannel)),
        ("g32_asym_uint4", asymmetric_uint4()),
        (
            "g32_asym_uint4_float",
            IntxFakeQuantizeConfig {
                zero_point_domain: ZeroPointDomain::Float,
                zero_point_precision: DType::F32,
                ..asymmetric_uint4()
            },
        ),
        (
            "g32_sym_int4_bf16s",
            IntxFakeQuantizeConfig { scale_precision: DType::BF16, ..SYMMETRIC(4, g32) },
        ),
    ];
    for (name, config) in cases {
        let [y, gx] = run(&x, &g, |tape, x| {
            FakeQuantizeConfig::Intx(config).fake_quantize(tape, x).expect("sound")
        });
        close(&format!("{name}.y"), &y, &family.tensor(&format!("{name}.y")), 0.0, 0.0);
        close(&format!("{name}.gx"), &gx, &family.tensor(&format!("{name}.gx")), 0.0, 0.0);
    }
}

#[test]
fn float8_and_int4_weight_fake_quantizers_match_with_their_gradients() {
    let family = Family::read("qat");
    let rows = |name: &str| {
        let tensor = family.tensor(name);
        let values = tensor.to_f32_vec()[4 * 64..].to_vec();
        Tensor::new(values, &[9, 64]).expect("nine rows")
    };
    let (x, g) = (rows("x"), rows("g"));
    let float8 = |per_row| {
        let dtype = Float8::E4m3fn;
        FakeQuantizeConfig::Float8(Float8FakeQuantizeConfig {
            dtype,
            per_row,
            bounds: (None, None),
        })
    };
    let int4 = |activation| {
        FakeQuantizeConfig::Int4Weight(Int4WeightFakeQuantizeConfig { group_size: 32, activation })
    };
    let cases = [
        ("float8_row", float8(true)),
        ("float8_tensor", float8(false)),
        ("int4w_bf16act_g32", int4(Int4Activation::Bf16)),
        ("int4w_fp8act_g32", int4(Int4Activation::Fp8)),
    ];
    for (name, config) in cases {
        let [y, gx] = run(&x, &g, |tape, x| config.fake_quantize(tape, x).expect("sound"));
        close(&format!("{name}.y"), &y, &family.tensor(&format!("{name}.y")), 0.0, 0.0);
        // A scale's gradient is a sum over its block, whose order is PyTorch's: its terms are code · g or x / s · g.
        let size = if name == "float8_tensor" { 200.0 } else { 60.0 };
        close(&format!("{name}.gx"), &gx, &family.tensor(&format!("{name}.gx")), 16.0, size);
    }
}

fn rule(name: &str) -> QatRule {
    let config = match name {
        "8da4w" => QatConfig::of_word("8da4w", Some(32)).expect("known"),
        "int4wo_intx" => QatConfig::of_word("int4", Some(32)).expect("known"),
        _ => {
            let base = Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() };
            QatConfig::of_base(&base).expect("known")
        }
    };
    QatRule::new(config).expect("sound")
}

#[test]
fn layers_match_forward_and_backward() {
    let family = Family::read("qat_linear");
    let (w, x, g) = (family.tensor("w"), family.tensor("x"), family.tensor("g"));
    for name in ["8da4w", "int4wo_intx", "int4wo_g32"] {
        let rule = rule(name);
        let tape = Tape::new(&Cpu::new(Some(2)));
        let (x, w) = (tape.leaf(x.clone()), tape.leaf(w.clone()));
        let y = rule.linear(&tape, "layer", &x, &w, &Vars::default()).expect("sound");
        let mut gradients = tape.backward_from(&y, g.clone()).expect("gradients");
        // Sums over 64, 16 and 6 products, each in another order than PyTorch's.
        close(name, y.value(), &family.tensor(&format!("{name}.y")), 16.0, 4.0);
        let gx = gradients.take(&x).expect("of x");
        close(name, &gx, &family.tensor(&format!("{name}.gx")), 16.0, 2.0);
        let gw = gradients.take(&w).expect("of w");
        let size = if name == "int4wo_g32" { 40.0 } else { 4.0 };
        close(name, &gw, &family.tensor(&format!("{name}.gw")), 16.0, size);
        if name != "int4wo_g32" {
            // torchao's converted layer gives what its prepared one gave; ours sees the same numbers.
            close(name, y.value(), &family.tensor(&format!("{name}.converted.y")), 16.0, 4.0);
        }
    }
}

#[test]
fn learned_ranges_match_with_their_gradients() {
    let family = Family::read("qat_linear");
    let learned = |config: IntxFakeQuantizeConfig| IntxFakeQuantizeConfig {
        zero_point_precision: DType::F32,
        ..config
    };
    let cases = [
        ("rl_sym_int4", "w", learned(SYMMETRIC(4, IntxGranularity::PerGroup(32)))),
        ("rl_asym_int8_token", "x", learned(IntxFakeQuantizeConfig::int8_activation())),
    ];
    for (name, input, config) in cases {
        let x = family.tensor(input);
        let golden = |part: &str| family.tensor(&format!("{name}.{part}"));
        let cpu = Cpu::new(Some(2));
        let start = initial_range(&cpu, &config, &x).expect("a range");
        let shrunk: Vec<f32> = start.scale.to_f32_vec().iter().map(|s| s * 0.7).collect();
        close(
            name,
            &Tensor::new(shrunk, golden("scale").shape()).expect("ok"),
            &golden("scale"),
            0.0,
            0.0,
        );
        let tape = Tape::new(&cpu);
        let var = tape.leaf(x.clone());
        let scale = golden("scale").reshape(start.scale.shape()).expect("its shape");
        let zero_point = start.zero_point.map(|zero| tape.leaf(zero));
        let range = LearnedRange { scale: tape.leaf(scale), zero_point };
        let y = config.fake_quantize_learned(&tape, &var, &range).expect("sound");
        close(name, y.value(), &golden("y"), 0.0, 0.0);
        let mut gradients = tape.backward_from(&y, golden("g")).expect("gradients");
        close(name, &gradients.take(&var).expect("of x"), &golden("gx"), 0.0, 0.0);
        let gscale = gradients.take(&range.scale).expect("of the scale");
        let shape = golden("gscale").shape().to_vec();
        // Sums of 32 or 64 terms of up to 128 codes.
        close(name, &gscale.reshape(&shape).expect("ok"), &golden("gscale"), 64.0, 300.0);
        if let Some(zero) = &range.zero_point {
            let gzp = gradients.take(zero).expect("of the zero point");
            close(name, &gzp.reshape(&shape).expect("ok"), &golden("gzp"), 64.0, 1.0);
        }
    }
}

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
