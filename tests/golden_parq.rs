//! PARQ's quantizers against torchao's, bit for bit, its proximal maps, and training with it.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::sync::Arc;

use aolab::data::texts;
use aolab::kernels::Cpu;
use aolab::training::parq::{ParqConfig, ParqRule, ProxMap, Quantizer};
use aolab::training::{Corpus, RunOptions, TrainConfig, Trainer};
use aolab::{DType, Tensor};
use golden_support::Family;

fn equal(family: &Family, name: &str, got: &Tensor) {
    let wanted = family.tensor(name);
    assert_eq!(got.shape(), wanted.shape(), "{name}");
    let pairs = got.to_f32_vec().into_iter().zip(wanted.to_f32_vec());
    for (i, (got, wanted)) in pairs.enumerate() {
        // Zeros may differ in their sign.
        let same = (got + 0.0).to_bits() == (wanted + 0.0).to_bits();
        assert!(same, "{name}[{i}]: wanted {wanted}, got {got}");
    }
}

#[test]
fn quantizers_are_bit_exact() {
    let family = Family::read("parq");
    let p = family.tensor("p");
    let optimal = Quantizer::Lsb { optimal: true, ternary_multiplier: 1.1 };
    let cases: [(&str, Quantizer, &[u32]); 5] = [
        ("unif", Quantizer::Unif, &[1, 2, 3, 4]),
        ("maxunif", Quantizer::MaxUnif, &[2, 3, 4]),
        ("ternary", Quantizer::TernaryUnif, &[0]),
        ("lsbq_greedy", Quantizer::LSB, &[0, 1, 2, 3]),
        ("lsbq_opt", optimal, &[0, 1, 2]),
    ];
    for (name, quantizer, bits) in cases {
        for bits in bits {
            for (letter, per_channel) in [("t", false), ("c", true)] {
                let key = format!("{name}.b{bits}.{letter}");
                let found = quantizer.quantize(&p, *bits, per_channel).expect("values");
                equal(&family, &format!("{key}.q"), &found.values);
                equal(&family, &format!("{key}.Q"), &found.grid);
            }
        }
    }
    for (quantizer, bits) in [(Quantizer::Unif, 0), (Quantizer::TernaryUnif, 2)] {
        let error = quantizer.quantize(&p, bits, false).expect_err("refused").to_string();
        assert!(error.contains("bits; wanted"), "{error}");
    }
}

#[test]
fn maps_harden_from_nothing_to_the_nearest_value() {
    let p = Tensor::new(vec![-2.0_f32, -0.9, -0.1, 0.2, 0.6, 3.0], &[1, 6]).expect("a row");
    let grid = Tensor::new(vec![-1.0_f32, 0.0, 1.0], &[3]).expect("a grid");
    let parq =
        ProxMap::Parq { anneal_start: 10, anneal_end: 20, steepness: 10.0, anneal_center: 0.5 };
    let relax = ProxMap::BinaryRelax { anneal_start: 10, anneal_end: 20 };
    let seen = |map: ProxMap, step| map.apply(&p, &grid, step).expect("a map").to_f32_vec();
    let hard = [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0];
    for map in [parq, relax] {
        assert_eq!(seen(map, 20), hard);
    }
    assert_eq!(seen(ProxMap::HardQuant, 0), hard);
    assert_eq!(seen(relax, 9), p.to_f32_vec());
    assert_eq!(seen(relax, 15), [-1.5, -0.95, -0.05, 0.1, 0.8, 2.0]);
    // At the start slopes are 1: only what lies beyond the values is moved.
    assert!((parq.inv_slope(10) - 1.0).abs() < 1e-12 && parq.inv_slope(25) == 0.0);
    let half = parq.inv_slope(15);
    assert!((half - 0.5).abs() < 1e-12, "{half}");
    // c + (p − c) / ½, clamped to the interval: −0.9 → −1 (clamped), −0.1 → 0, 0.2 → 0, 0.6 → 0.7.
    for (got, wanted) in seen(parq, 15).iter().zip([-1.0, -1.0, 0.0, 0.0, 0.7, 1.0]) {
        assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
    }
    let back = ProxMap::BinaryRelax { anneal_start: 5, anneal_end: 5 };
    let config = ParqConfig {
        quantizer: Quantizer::Unif,
        bits: 2,
        prox_map: back,
        warmup_steps: 0,
        quant_period: 1,
        quant_per_channel: true,
    };
    let error = ParqRule::new(config).expect_err("refused").to_string();
    assert!(error.contains("wanted an end after the start"), "{error}");
}

#[test]
fn training_ends_with_quantized_weights_and_resumes_exactly() {
    let model = aolab::load("tiny").expect("the built-in model");
    let text = texts::SOTU_TRAIN[..40_000].to_owned();
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let corpus = Corpus::of_texts(tokenizer, model.config.bos_token_id, &[text]).expect("tokens");
    let config = ParqConfig {
        quantizer: Quantizer::LSB,
        bits: 2,
        prox_map: ProxMap::Parq {
            anneal_start: 1,
            anneal_end: 5,
            steepness: 10.0,
            anneal_center: 0.5,
        },
        warmup_steps: 1,
        quant_period: 2,
        quant_per_channel: true,
    };
    let start = || {
        let rule = Arc::new(ParqRule::new(config.clone()).expect("sound"));
        let config =
            TrainConfig { steps: 6, batch: 1, sequence: 32, warmup: 1, ..TrainConfig::default() };
        Trainer::new(&model, corpus.clone(), config, rule).expect("a run")
    };
    let cpu = Cpu::new(Some(2));
    let mut whole = start();
    whole.run(&cpu, &RunOptions::default(), &mut |_, _| true).expect("runs");
    let folder = tempfile::tempdir().expect("a folder");
    let options =
        RunOptions { checkpoints: Some(folder.path().to_owned()), ..RunOptions::default() };
    let mut first = start();
    first.run(&cpu, &options, &mut |curve, _| curve.points.len() < 3).expect("runs");
    let mut second = start();
    assert!(second.resume(folder.path()).expect("a checkpoint"));
    second.run(&cpu, &RunOptions::default(), &mut |_, _| true).expect("runs");
    let all = [whole, second].map(|trainer| trainer.model().expect("a model"));
    let weights = all.map(|model| {
        let mut linears = model.linears().into_iter();
        let linear = linears.find(|(fqn, _)| fqn.ends_with("1.mlp.up_proj"));
        linear.expect("a layer").1.weight.dequantize().expect("numbers")
    });
    assert!(weights[0].bytes() == weights[1].bytes(), "resuming changes nothing");
    let (_, k) = weights[0].dims2().expect("a matrix");
    let values = weights[0].to_dtype(DType::F32).expect("f32").to_f32_vec();
    for row in values.chunks_exact(k) {
        let mut seen: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() <= 4, "two bits have four values, got {}", seen.len());
    }
}
