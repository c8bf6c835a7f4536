//! What HQQ is for. That its numbers are torchao's, and SINQ's, is among the golden vectors, in tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use aolab::kernels::Cpu;
use aolab::model::DenseWeight;
use aolab::quantization::int4_weight_only::{Int4ChooseQParamsAlgorithm, Int4PackingFormat};
use aolab::quantization::primitives::{
    HqqOptions, choose_qparams_and_quantize_affine_hqq, choose_qparams_and_quantize_scale_only_hqq,
};
use aolab::quantization::{Int4WeightOnlyConfig, Recipe};
use aolab::rng::Rng;
use aolab::{DType, Tensor};

const OPTIONS: HqqOptions = HqqOptions {
    nbits: 4,
    group_size: 64,
    optimize: true,
    compute_dtype: DType::F32,
    raw_output: false,
};

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
