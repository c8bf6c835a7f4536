//! Low-bit optimizers against torchao's: maps, codes, scales and parameters after steps (O01–O16).

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::kernels::Cpu;
use aolab::kernels::adam::{Codec, decode, dynamic_map, encode, linear_map};
use aolab::training::optim::{AdamConfig, Optimizer, OptimizerConfig, StateBits, Update};
use aolab::{DType, Tensor};
use golden_support::Family;

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::new(values, shape).expect("its shape")
}

#[test]
fn lowbit_optim_is_bit_exact() {
    let family = Family::read("lowbit_optim");
    let x = family.tensor("x");
    let signed = x.to_f32_vec();
    let unsigned: Vec<f32> = signed.iter().map(|x| x.abs()).collect();
    let mut computed = BTreeMap::new();
    let mut put = |name: String, tensor: Tensor| computed.insert(name, tensor);
    put("map8_signed".into(), tensor(dynamic_map(true, 7, 8), &[256]));
    put("map8_unsigned".into(), tensor(dynamic_map(false, 7, 8), &[256]));
    put("map4_signed".into(), tensor(dynamic_map(true, 3, 4), &[16]));
    put("map4_unsigned".into(), tensor(linear_map(), &[16]));
    let cases = [
        ("s8", Codec::table(8, true), 256, &signed),
        ("u8", Codec::table(8, false), 256, &unsigned),
        ("s4", Codec::table(4, true), 128, &signed),
        ("u4", Codec::table(4, false), 128, &unsigned),
        ("s8b64", Codec::table(8, true), 64, &signed),
        ("fp8", Codec::Float8, 256, &signed),
    ];
    for (name, codec, block, x) in cases {
        let bytes = block / codec.per_byte();
        let mut codes = vec![0; x.len() / codec.per_byte()];
        let mut back = vec![f32::NAN; x.len()];
        let mut scales = Vec::new();
        for ((x, codes), back) in
            x.chunks(block).zip(codes.chunks_mut(bytes)).zip(back.chunks_mut(block))
        {
            scales.push(encode(&codec, x, codes));
            decode(&codec, codes, scales[scales.len() - 1], back);
        }
        let count = scales.len();
        if name == "s4" {
            put("state4.codes".into(), Tensor::new(codes.clone(), &[2048]).expect("bytes"));
            put("state4.scale".into(), tensor(scales.clone(), &[count]));
        }
        // torchao's codes before they are packed.
        let apart = match codec.per_byte() {
            2 => codes.iter().flat_map(|c| [c >> 4, c & 15]).collect(),
            _ => codes,
        };
        put(format!("{name}.codes"), Tensor::new(apart, x_shape()).expect("codes"));
        put(format!("{name}.scale"), tensor(scales, &[count]));
        put(format!("{name}.dq"), tensor(back, x_shape()));
    }
    family.check(&computed, &["x"]);
}

fn x_shape() -> &'static [usize] {
    &[16, 256]
}

#[test]
fn lowbit_adam_states_are_bit_exact_and_parameters_within_an_ulp_after_three_steps() {
    let family = Family::read("lowbit_adam");
    let start = family.tensor("p0").to_dtype(DType::F32).expect("a float");
    let gradients =
        [0, 1, 2].map(|i| family.tensor(&format!("g{i}")).to_dtype(DType::F32).expect("a float"));
    let mut computed = BTreeMap::new();
    let adamw = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
    let cases = [
        ("adamw8bit", AdamConfig { state: StateBits::Int8, ..adamw.clone() }),
        ("adamw4bit", AdamConfig { state: StateBits::Int4, ..adamw.clone() }),
        ("adamwfp8", AdamConfig { state: StateBits::Fp8, ..adamw.clone() }),
        (
            "adam8bit",
            AdamConfig { state: StateBits::Int8, decoupled: false, weight_decay: 0.05, ..adamw },
        ),
    ];
    for (name, config) in cases {
        let mut optimizer = Optimizer::new(OptimizerConfig::Adam(config), 0).expect("a config");
        let mut p = start.clone();
        for (i, gradient) in gradients.iter().enumerate() {
            let update = Update { name: "p", gradient, lr: 1e-2, decays: true };
            p = optimizer.step(&Cpu::new(Some(2)), p, &update).expect("a step");
            computed.insert(format!("{name}.p{}", i + 1), p.clone());
        }
        for (part, state) in optimizer.tensors().expect("its state") {
            let part = part.strip_prefix("p.").expect("of p").to_owned();
            let shape: &[usize] = if state.numel() == 4096 { &[64, 64] } else { state.shape() };
            computed.insert(format!("{name}.{part}"), state.reshape(shape).expect("its shape"));
        }
    }
    // PyTorch takes roots from MKL, whose last bit is not always the nearest: 0.6 % of the numbers move by one.
    let parameters = ["adamw8bit.p1", "adamw8bit.p3", "adamw4bit.p3", "adamwfp8.p3", "adam8bit.p3"];
    for name in parameters {
        let (wanted, got) = (family.tensor(name).to_f32_vec(), computed[name].to_f32_vec());
        let apart = wanted.iter().zip(&got).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert!(apart < 100, "{name}: {apart} of 4096 differ");
        for (wanted, got) in wanted.iter().zip(&got) {
            let bound = 2.0_f32.powi(-22) * wanted.abs().max(1e-2);
            assert!((wanted - got).abs() <= bound, "{name}: wanted {wanted}, got {got}");
        }
    }
    let given = ["p0", "g0", "g1", "g2"];
    family.check(&computed, &[&given[..], &parameters[..]].concat());
}

#[test]
fn states_are_small_and_come_back_from_a_checkpoint() {
    let cpu = Cpu::new(Some(2));
    let start = tensor((0..8192_u16).map(|i| f32::from(i) * 1e-4 - 0.4).collect(), &[64, 128]);
    let gradient = tensor((0..8192_u16).map(|i| (f32::from(i) * 0.7).sin()).collect(), &[64, 128]);
    let nbytes = |state| {
        let config = AdamConfig { state, amsgrad: true, ..AdamConfig::default() };
        let mut optimizer = Optimizer::new(OptimizerConfig::Adam(config.clone()), 3).expect("ok");
        let update = Update { name: "p", gradient: &gradient, lr: 1e-2, decays: true };
        let first = optimizer.step(&cpu, start.clone(), &update).expect("a step");
        let kept = optimizer.tensors().expect("its state");
        let find = |name: &str| kept.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        let mut again = Optimizer::new(OptimizerConfig::Adam(config), 3).expect("ok");
        again.restore([("p", 8192)].into_iter(), &find).expect("a whole state");
        let next = |optimizer: &mut Optimizer| {
            optimizer.step(&cpu, first.clone(), &update).expect("a step")
        };
        assert_eq!(next(&mut optimizer).bytes(), next(&mut again).bytes());
        let missing = |name: &str| find(name).filter(|_| !name.contains("exp_avg_sq"));
        let error = again.restore([("p", 8192)].into_iter(), &missing).expect_err("incomplete");
        assert!(error.to_string().contains("exp_avg_sq"), "{error}");
        optimizer.nbytes()
    };
    let full = nbytes(StateBits::F32);
    assert!(nbytes(StateBits::Int8) * 100 <= full * 27, "8 bits");
    assert!(nbytes(StateBits::Int4) * 100 <= full * 15, "4 bits");
    assert!(nbytes(StateBits::Fp8) * 100 <= full * 27, "float8");
}

#[test]
fn sgd_is_pytorchs_and_bf16_parameters_keep_their_mean() {
    let cpu = Cpu::new(Some(2));
    let config = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.1 };
    let mut optimizer = Optimizer::new(config, 0).expect("ok");
    let gradient = tensor(vec![1.0], &[1]);
    let update = Update { name: "p", gradient: &gradient, lr: 0.1, decays: true };
    let mut p = tensor(vec![2.0], &[1]);
    // g = 1 + 0.2, p = 2 − 0.12 = 1.88; b = 0.9 · 1.2 + 1.188 = 2.268, p = 1.88 − 0.2268
    for wanted in [1.88, 1.6532] {
        p = optimizer.step(&cpu, p, &update).expect("a step");
        assert!((p.to_f32_vec()[0] - wanted).abs() < 1e-6, "{p:?}");
    }

    let config =
        AdamConfig { bf16_stochastic_round: true, weight_decay: 0.0, ..AdamConfig::default() };
    let mut optimizer = Optimizer::new(OptimizerConfig::Adam(config), 7).expect("ok");
    let mut p = tensor(vec![1.0; 4096], &[4096]).to_dtype(DType::BF16).expect("bf16");
    let gradient = tensor(vec![1.0; 4096], &[4096]);
    for _ in 0..10 {
        let update = Update { name: "p", gradient: &gradient, lr: 1e-4, decays: true };
        p = optimizer.step(&cpu, p, &update).expect("a step");
    }
    // Ten steps of 1e-4 are less than half of bf16's step below 1: to nearest, nothing would move.
    let mean = p.to_f32_vec().iter().map(|p| f64::from(*p)).sum::<f64>() / 4096.0;
    assert!((mean - 0.999).abs() < 2e-4, "{mean}");
}
