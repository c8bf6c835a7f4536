//! Formats as gptq and auto_round fill them, column by column, and what that brings. What torchao's gptq, awq and smoothquant give is
//! among the golden vectors, in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::ops::Range;
use std::sync::Arc;

use aolab::Tensor;
use aolab::kernels::Cpu;
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::auto_round::{Rounding, auto_round};
use aolab::quantization::gptq::{Hessian, Solver, gptq_quantize};
use aolab::quantization::{
    CodeType, Granularity, Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxChooseQParamsAlgorithm,
    IntxWeightOnlyConfig, MXDynamicActivationMXWeightConfig, MXWeightOnlyConfig, MappingType,
    NVFP4DynamicActivationNVFP4WeightConfig, NVFP4WeightOnlyConfig, Recipe,
};
use aolab::rng::Rng;

fn cpu() -> Cpu {
    Cpu::new(Some(2))
}

fn dense(w: &Tensor) -> Arc<dyn Weight> {
    DenseWeight::shared(w.clone()).expect("a float matrix")
}

/// A base that is seen through to its columns rounds as it quantizes: without errors to make up for, the codes are the base's.
#[test]
fn columns_round_as_their_format_does() {
    let mut rng = Rng::new(5);
    let w = Tensor::new((0..32 * 128).map(|_| rng.normal()).collect::<Vec<f32>>(), &[32, 128]);
    let w = w.expect("its shape");
    let identity: Vec<f32> = (0..128 * 128).map(|at| f32::from(u8::from(at % 129 == 0))).collect();
    let bases: Vec<Box<dyn Recipe>> = vec![
        Box::new(Int8WeightOnlyConfig::default()),
        Box::new(Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() }),
        Box::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(3),
            granularity: Granularity::PerGroup { group_size: 64 },
            mapping_type: MappingType::Asymmetric,
            ..IntxWeightOnlyConfig::default()
        }),
        Box::new(IntxWeightOnlyConfig {
            weight_dtype: CodeType::int(2),
            ..IntxWeightOnlyConfig::default()
        }),
        Box::new(MXWeightOnlyConfig { weight_dtype: element("e2m1"), ..Default::default() }),
        Box::new(MXWeightOnlyConfig {
            scaling_mode: "floor".parse().expect("a mode"),
            ..Default::default()
        }),
        Box::new(MXWeightOnlyConfig { weight_dtype: element("int8"), ..Default::default() }),
        Box::new(MXDynamicActivationMXWeightConfig::default()),
        Box::new(NVFP4WeightOnlyConfig::default()),
        Box::new(NVFP4DynamicActivationNVFP4WeightConfig::default()),
    ];
    for base in bases {
        let weight = dense(&w);
        let solver = Solver { percdamp: 0.0, block_size: 48, whole_groups: true };
        let mut columns = base.columns(&cpu(), weight.as_ref()).expect("it has columns");
        let filled =
            gptq_quantize(&cpu(), &identity, &w, columns.as_mut(), &solver).expect("solves");
        let plain = base.quantize(&cpu(), weight.as_ref()).expect("quantizes");
        let everything: Range<usize> = 0..32;
        let (mut a, mut b) = (vec![f32::NAN; 32 * 128], vec![f32::NAN; 32 * 128]);
        filled.dequantize_rows(everything.clone(), &mut a).expect("rows");
        plain.dequantize_rows(everything, &mut b).expect("rows");
        assert_eq!(a, b, "{}", base.name());
        assert_eq!(filled.meta(), plain.meta(), "{}", base.name());
    }
}

fn element(word: &str) -> aolab::quantization::primitives::MxElement {
    word.parse().expect("an element")
}

/// Inputs with a few strong directions, as layers have them, and their second moments.
fn inputs(rng: &mut Rng, m: usize, k: usize) -> (Vec<f32>, Hessian) {
    let strong: Vec<f32> = (0..4 * k).map(|_| rng.normal()).collect();
    let mut x = Vec::with_capacity(m * k);
    for _ in 0..m {
        let weights: Vec<f32> = (0..4).map(|_| 3.0 * rng.normal()).collect();
        x.extend((0..k).map(|j| {
            rng.normal()
                + weights.iter().enumerate().map(|(i, w)| w * strong[i * k + j]).sum::<f32>()
        }));
    }
    let mut hessian = Hessian::new(k);
    hessian.update(&cpu(), &x).expect("rows of k");
    (x, hessian)
}

/// `‖X · (W − Q)ᵀ‖²`
fn output_error(x: &[f32], w: &dyn Weight, q: &dyn Weight) -> f64 {
    let (n, k) = w.shape();
    let m = x.len() / k;
    let output = |weight: &dyn Weight| {
        let mut y = vec![f32::NAN; m * n];
        let dense = DenseWeight::new(weight.dequantize().expect("rows")).expect("a matrix");
        dense.linear(&cpu(), x, m, &mut y).expect("runs");
        y
    };
    output(w).iter().zip(output(q)).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn intx(bits: u32, mapping_type: MappingType) -> IntxWeightOnlyConfig {
    IntxWeightOnlyConfig {
        weight_dtype: CodeType::int(bits),
        granularity: Granularity::PerGroup { group_size: 32 },
        mapping_type,
        ..IntxWeightOnlyConfig::default()
    }
}

/// Both make the layer's output better than rounding to nearest does, for every kind of format that has columns.
#[test]
fn gptq_and_auto_round_lose_less_of_the_output_than_rounding_to_nearest() {
    let mut rng = Rng::new(17);
    let (n, k) = (48, 128);
    let w = Tensor::new((0..n * k).map(|_| rng.normal() * 0.1).collect::<Vec<f32>>(), &[n, k]);
    let w = w.expect("its shape");
    let (x, hessian) = inputs(&mut rng, 200, k);
    let hqq = IntxWeightOnlyConfig {
        intx_choose_qparams_algorithm: IntxChooseQParamsAlgorithm::HqqScaleOnly,
        ..intx(3, MappingType::Symmetric)
    };
    let (sym, asym) = (MappingType::Symmetric, MappingType::Asymmetric);
    let int4 = Int4WeightOnlyConfig { group_size: 32, ..Int4WeightOnlyConfig::default() };
    let bases: Vec<(Box<dyn Recipe>, bool)> = vec![
        (Box::new(Int8WeightOnlyConfig::default()), true),
        (Box::new(int4), true),
        (Box::new(intx(4, sym)), true),
        (Box::new(intx(3, asym)), true),
        (Box::new(intx(2, asym)), true),
        (Box::new(hqq), true),
        (
            Box::new(MXWeightOnlyConfig { weight_dtype: element("e2m1"), ..Default::default() }),
            false,
        ),
        (
            Box::new(MXWeightOnlyConfig { weight_dtype: element("e3m2"), ..Default::default() }),
            false,
        ),
        (Box::new(NVFP4WeightOnlyConfig::default()), false),
    ];
    let weight = dense(&w);
    for (base, equal_steps) in bases {
        let name = base.config_to_dict().to_string();
        let nearest = base.quantize(&cpu(), weight.as_ref()).expect("quantizes");
        let nearest = output_error(&x, weight.as_ref(), nearest.as_ref());
        let mut columns = base.columns(&cpu(), weight.as_ref()).expect("it has columns");
        let solver = Solver { percdamp: 0.01, block_size: 256, whole_groups: true };
        let solved = gptq_quantize(&cpu(), hessian.values(), &w, columns.as_mut(), &solver);
        let solved = output_error(&x, weight.as_ref(), solved.expect("solves").as_ref());
        assert!(solved < 0.7 * nearest, "{name}: gptq {solved}, to nearest {nearest}");
        assert_eq!(columns.step(0, 0).is_some(), equal_steps, "{name}");
        if !equal_steps {
            continue;
        }
        let run = |iters, threads| {
            let cpu = Cpu::new(Some(threads));
            let mut columns = base.columns(&cpu, weight.as_ref()).expect("it has columns");
            let rounding = Rounding { iters, lr: 1.0 / 200.0 };
            auto_round(&cpu, hessian.values(), &w, columns.as_mut(), rounding).expect("learns")
        };
        let learned = output_error(&x, weight.as_ref(), run(200, 2).as_ref());
        println!("{name}: gptq {:.3}, auto-round {:.3}", solved / nearest, learned / nearest);
        assert!(learned < 0.7 * nearest, "{name}: auto-round {learned}, to nearest {nearest}");
        let bytes = |weight: &dyn Weight| weight.dequantize().expect("rows").to_f32_vec();
        assert_eq!(bytes(run(10, 1).as_ref()), bytes(run(10, 3).as_ref()), "{name}: threads");
    }
}
