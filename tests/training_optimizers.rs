//! Low-bit optimizers (O01–O16) and GaLore (X26): states from checkpoints, SGD, stochastic rounding. That their numbers are torchao's is among the golden
//! vectors (lowbit_optim, lowbit_adam), in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::kernels::Cpu;
use aolab::training::optim::{
    AdamConfig, CpuOffloadOptimizer, GaloreConfig, OffloadOptions, Optimizer, OptimizerConfig,
    ProjType, StateBits, Update,
};
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
        again.restore([("p", &[64, 128][..])].into_iter(), &find).expect("a whole state");
        let next = |optimizer: &mut Optimizer| {
            optimizer.step(&cpu, first.clone(), &update).expect("a step")
        };
        assert_eq!(next(&mut optimizer).bytes(), next(&mut again).bytes());
        let missing = |name: &str| find(name).filter(|_| !name.contains("exp_avg_sq"));
        let error =
            again.restore([("p", &[64, 128][..])].into_iter(), &missing).expect_err("incomplete");
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

#[test]
fn galore_steps_along_the_gradients_first_directions() {
    let cpu = Cpu::new(Some(2));
    let (n, k) = (12_u8, 5_u8);
    // A gradient of one direction, u · vᵀ with |v| = 1: what Adam sees is ± u.
    let u: Vec<f32> = (0..n).map(|i| 1e-5 * (f32::from(i) - 4.5)).collect();
    let v = [0.1_f32, -0.5, 0.7, 0.1, -0.489_897_95];
    let g: Vec<f32> = u.iter().flat_map(|u| v.map(|v| u * v)).collect();
    let shape = [usize::from(n), usize::from(k)];
    let start: Vec<f32> = (0..n * k).map(|i| 0.01 * f32::from(i)).collect();
    let (lr, scale, decay) = (0.01_f32, 0.25_f32, 0.1_f32);
    for (state, eps) in [(StateBits::F32, 1e-6_f32), (StateBits::F32, 1e-4)] {
        let galore = GaloreConfig { rank: 1, update_proj_gap: 2, scale, proj_type: ProjType::Std };
        let config = AdamConfig {
            state,
            eps,
            weight_decay: decay,
            galore: Some(galore),
            ..AdamConfig::default()
        };
        let mut optimizer =
            Optimizer::new(OptimizerConfig::Adam(config.clone()), 0).expect("sound");
        let gradient = tensor(g.clone(), &shape);
        let name = "model.layers.0.mlp.up_proj.weight";
        let update = Update { name, gradient: &gradient, lr, decays: true };
        let moved = optimizer.step(&cpu, tensor(start.clone(), &shape), &update).expect("a step");
        // m / c₁ = u and √v = √c₂ · |u|: lr · √c₂ / c₁ · m / (√v + eps), as galore_torch has it.
        let root = (1.0_f32 - 0.999).sqrt();
        for (i, got) in moved.to_f32_vec().iter().enumerate() {
            let (u, v) = (u[i / usize::from(k)], v[i % usize::from(k)]);
            let step = lr * root * u / (root * u.abs() + eps);
            let wanted = (start[i] - scale * step * v) * (1.0 - lr * decay);
            assert!((got - wanted).abs() < 2e-6, "eps {eps}, {i}: {got}, not {wanted}");
        }
        // Moments of 12 × 1 and one direction of 5.
        assert_eq!(optimizer.nbytes(), 4 * (2 * 12 + 5));
        let kept = optimizer.tensors().expect("its state");
        let find = |name: &str| kept.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        let mut again = Optimizer::new(OptimizerConfig::Adam(config), 0).expect("sound");
        again.restore([(name, &shape[..])].into_iter(), &find).expect("a whole state");
        for _ in 0..3 {
            let next = optimizer.step(&cpu, moved.clone(), &update).expect("a step");
            assert_eq!(
                next.bytes(),
                again.step(&cpu, moved.clone(), &update).expect("a step").bytes()
            );
        }
        let missing = |name: &str| find(name).filter(|_| !name.contains("projection"));
        let error = again.restore([(name, &shape[..])].into_iter(), &missing).expect_err("missing");
        assert!(error.to_string().contains("projection_right of 1 × 5"), "{error}");
    }
    let wrong = AdamConfig {
        decoupled: false,
        galore: Some(GaloreConfig::default()),
        ..AdamConfig::default()
    };
    assert!(Optimizer::new(OptimizerConfig::Adam(wrong), 0).is_err());
}

#[test]
fn an_offloaded_optimizer_steps_as_its_base_does() {
    let cpu = Cpu::new(Some(2));
    let wave = |len: u16, f: f32| (0..len).map(|i| (f32::from(i) * f).sin()).collect::<Vec<f32>>();
    let names = ["a", "small", "b"];
    let lens = [8192_u16, 16, 4096];
    let start: Vec<Tensor> = lens
        .iter()
        .map(|len| {
            tensor(wave(*len, 0.3), &[usize::from(*len)]).to_dtype(DType::BF16).expect("bf16")
        })
        .collect();
    let config = || {
        let state = StateBits::Int8;
        OptimizerConfig::Adam(AdamConfig {
            state,
            bf16_stochastic_round: true,
            ..AdamConfig::default()
        })
    };
    for offload_gradients in [false, true] {
        let mut base = Optimizer::new(config(), 5).expect("sound");
        let options = OffloadOptions { offload_gradients, ..OffloadOptions::default() };
        let parameters = names.into_iter().zip(&start);
        let mut offloaded =
            CpuOffloadOptimizer::new(parameters, config(), options, 5).expect("sound");
        let mut wanted = start.clone();
        for step in 0..3_u8 {
            let gradients: Vec<Tensor> = lens
                .iter()
                .map(|len| tensor(wave(*len, 0.1 + f32::from(step)), &[usize::from(*len)]))
                .collect();
            // The small one comes last, whenever its gradient is known.
            for at in [0, 2, 1] {
                let update =
                    Update { name: names[at], gradient: &gradients[at], lr: 0.01, decays: true };
                wanted[at] = base.step(&cpu, wanted[at].clone(), &update).expect("a step");
            }
            let push = |to: &aolab::training::optim::Gradients| {
                for (name, gradient) in names.iter().zip(&gradients) {
                    to.push(name, gradient.clone(), true)?;
                }
                Ok(7)
            };
            let (seven, stepped) = offloaded.step_while(&cpu, 0.01, push).expect("a step");
            assert_eq!(seven, 7);
            assert_eq!(stepped.gradients.len(), if offload_gradients { 0 } else { 3 });
            for (name, got) in &stepped.parameters {
                let at = names.iter().position(|known| known == name).expect("known");
                assert_eq!(got.bytes(), wanted[at].bytes(), "{name} after step {step}");
            }
        }
        let copies: usize = lens.iter().map(|len| 2 * usize::from(*len)).sum();
        assert_eq!(offloaded.nbytes(), offloaded.base().nbytes() + copies);
        let unknown =
            offloaded.step_while(&cpu, 0.01, |to| to.push("c", tensor(vec![1.0], &[1]), true));
        assert!(unknown.expect_err("unknown").to_string().contains("no parameter c"));
    }
}
