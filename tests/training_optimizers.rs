//! Low-bit optimizers (O01–O16): states from checkpoints, SGD, stochastic rounding. That their numbers are torchao's is among the golden
//! vectors (lowbit_optim, lowbit_adam), in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::kernels::Cpu;
use aolab::training::optim::{AdamConfig, Optimizer, OptimizerConfig, StateBits, Update};
use aolab::{DType, Tensor};

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::new(values, shape).expect("its shape")
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
