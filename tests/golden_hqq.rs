//! HQQ and SINQ against torchao 0.18, bit for bit, and what HQQ is for.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::int4_weight_only::{Int4ChooseQParamsAlgorithm, Int4PackingFormat};
use aolab::quantization::primitives::{
    HqqOptions, choose_qparams_and_quantize_affine_hqq, choose_qparams_and_quantize_scale_only_hqq,
    choose_qparams_and_quantize_scale_only_sinq,
};
use aolab::quantization::{Int4WeightOnlyConfig, Recipe};
use aolab::rng::Rng;
use aolab::{DType, Tensor};
use golden_support::Family;

const OPTIONS: HqqOptions = HqqOptions {
    nbits: 4,
    group_size: 64,
    optimize: true,
    compute_dtype: DType::F32,
    raw_output: false,
};

#[test]
fn hqq_and_sinq() {
    let family = Family::read("hqq");
    let w = family.tensor("w");
    let mut got = BTreeMap::new();
    for (nbits, group_size) in [(2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (8, 64)] {
        for (tag, optimize) in [("opt", true), ("noopt", false)] {
            let options = HqqOptions { nbits, group_size, optimize, ..OPTIONS };
            let name = format!("b{nbits}.g{group_size}.{tag}");
            put_hqq(&mut got, &name, &w, options, true);
        }
    }
    put_hqq(&mut got, "raw.b4.g64", &w, HqqOptions { raw_output: true, ..OPTIONS }, false);
    put_hqq(&mut got, "const", &family.tensor("w_const"), OPTIONS, true);
    for (bits, range) in [(4, (-8, 7)), (8, (-128, 127)), (2, (-2, 1))] {
        for group_size in [32, 128] {
            let fit = choose_qparams_and_quantize_scale_only_hqq(&w, group_size, range)
                .expect("groups divide K");
            got.insert(format!("so.b{bits}.g{group_size}.q"), fit.codes);
            got.insert(format!("so.b{bits}.g{group_size}.scale"), fit.scale);
        }
    }
    let sinq = choose_qparams_and_quantize_scale_only_sinq(&w, (-8, 7), 64, DType::F32);
    let sinq = sinq.expect("groups divide K");
    got.insert("sinq.q".into(), sinq.codes);
    got.insert("sinq.scale_row".into(), sinq.scale_row);
    got.insert("sinq.scale_col".into(), sinq.scale_col);
    family.check(&got, &["w", "w_const"]);
}

/// torchao's tinygemm form has one scale a row of groups, its raw form one row a row of the weight.
fn put_hqq(
    got: &mut BTreeMap<String, Tensor>,
    name: &str,
    w: &Tensor,
    options: HqqOptions,
    flat: bool,
) {
    for threads in [1, 3] {
        let cpu = Cpu::new(Some(threads));
        let codes = choose_qparams_and_quantize_affine_hqq(&cpu, w, &options).expect("quantizes");
        let shape = [codes.scale.numel(), 1];
        let shaped = |t: &Tensor| if flat { t.reshape(&shape) } else { Ok(t.clone()) };
        got.insert(format!("{name}.q"), codes.codes.clone());
        got.insert(format!("{name}.scale"), shaped(&codes.scale).expect("its numel"));
        got.insert(format!("{name}.zero"), shaped(&codes.zero).expect("its numel"));
    }
}

/// Fitted zeros are nearer to the weight than those of the extremes, in every dtype and with every group size.
#[test]
fn hqq_of_int4_weight_only_is_nearer_than_tinygemm() {
    let mut rng = Rng::new(11);
    for (group_size, dtype) in [(32, DType::BF16), (64, DType::F32), (128, DType::BF16)] {
        // Heavy tails: what HQQ's norm is made for.
        let values = (0..24 * 256).map(|_| rng.normal().powi(3) * 0.02).collect();
        let w = Tensor::new(values, &[24, 256]).expect("its shape").to_dtype(dtype).expect("float");
        let dense = DenseWeight::new(w.clone()).expect("a float matrix");
        let sqnr = |algorithm| {
            let config = Int4WeightOnlyConfig {
                group_size,
                int4_packing_format: Int4PackingFormat::TilePackedTo4d,
                int4_choose_qparams_algorithm: algorithm,
                ..Int4WeightOnlyConfig::default()
            };
            let weight = config.quantize(&Cpu::new(Some(2)), &dense).expect("quantizes");
            let error = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()).powf(0.7)).sum()
            };
            let values = weight.dequantize().expect("dequantizes");
            error(&w.to_f32_vec(), &values.to_f32_vec())
        };
        let (hqq, tinygemm) =
            (sqnr(Int4ChooseQParamsAlgorithm::Hqq), sqnr(Int4ChooseQParamsAlgorithm::Tinygemm));
        assert!(hqq < tinygemm, "{dtype} g{group_size}: Σ|e|^0.7 is {hqq} and {tinygemm}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let config = Int4WeightOnlyConfig {
        int4_choose_qparams_algorithm: Int4ChooseQParamsAlgorithm::Hqq,
        ..Int4WeightOnlyConfig::default()
    };
    let error = config.check((64, 256)).expect_err("plain has no HQQ").to_string();
    assert!(error.contains("tile-packed-to-4d"), "{error}");
    let w = Tensor::zeros(DType::F32, &[2, 10]).expect("zeros");
    let options = HqqOptions { group_size: 4, ..OPTIONS };
    assert!(choose_qparams_and_quantize_affine_hqq(&Cpu::new(Some(1)), &w, &options).is_err());
    assert!(choose_qparams_and_quantize_scale_only_hqq(&w, 5, (3, 3)).is_err());
}
