//! What a GPU is handed of a 2:4 weight stands for the same numbers, compressed where it has a kernel for that.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use aolab::kernels::Cpu;
use aolab::kernels::dtypes::e4m3fn_decode;
use aolab::kernels::sparse24_linear::{expanded, unpack_int4};
use aolab::model::{DenseWeight, DeviceForm, Pattern, Stored, Weight};
use aolab::quantization::{
    Float8DynamicActivationFloat8WeightConfig, Float8Granularities,
    Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, Recipe,
};
use aolab::rng::Rng;
use aolab::sparsity::{Int4MarlinSparseConfig, MagnitudeSparsifier};
use aolab::{DType, Tensor};
use half::bf16;

const SHAPE: (usize, usize) = (32, 256);

fn pruned(dtype: DType) -> Arc<dyn Weight> {
    let mut rng = Rng::new(0x24);
    let (n, k) = SHAPE;
    let values: Vec<f32> = (0..n * k).map(|_| rng.normal()).collect();
    let tensor = Tensor::new(values, &[n, k]).and_then(|t| t.to_dtype(dtype)).expect("floats");
    let dense = DenseWeight::shared(tensor).expect("a matrix");
    let sparsifier = MagnitudeSparsifier { pattern: Pattern::TWO_OF_FOUR, sparsity_level: 0.5 };
    sparsifier.quantize_shared(&Cpu::new(Some(1)), &dense).expect("fits")
}

/// The numbers that a form stands for, and whether it is compressed.
fn decoded(form: &DeviceForm<'_>) -> (Vec<f32>, bool) {
    let (n, k) = SHAPE;
    let rows = |values: Vec<f32>, scale: &[f32]| -> Vec<f32> {
        values.iter().enumerate().map(|(i, v)| v * scale[i / k]).collect()
    };
    match form {
        DeviceForm::Int8 { q, scale } => {
            (rows(q.iter().map(|q| f32::from(*q)).collect(), scale), false)
        }
        DeviceForm::Int4 { q, scale, group_size, .. } => {
            let codes = q.iter().flat_map(|byte| [byte & 15, byte >> 4]);
            let value = |(i, q): (usize, u8)| (f32::from(q) - 8.0) * scale[i / group_size];
            (codes.enumerate().map(value).collect(), false)
        }
        DeviceForm::TwoOfFour { stored, codes } => {
            let all = match stored {
                Stored::Bf16(bits) => {
                    let values: Vec<f32> =
                        bits.iter().map(|v| bf16::from_bits(*v).to_f32()).collect();
                    expanded(&values, codes, SHAPE, 0.0)
                }
                Stored::Int8Dynamic { q, scale } => {
                    let q: Vec<f32> = q.iter().map(|q| f32::from(*q)).collect();
                    rows(expanded(&q, codes, SHAPE, 0.0), scale)
                }
                Stored::Float8Dynamic { q, scale } => {
                    let q: Vec<f32> = q.iter().map(|q| e4m3fn_decode(*q)).collect();
                    rows(expanded(&q, codes, SHAPE, 0.0), scale)
                }
                Stored::Int4 { q, scale, group_size } => {
                    let q = expanded(&unpack_int4(q, k), codes, (n, k), 8);
                    let value =
                        |(i, q): (usize, &u8)| (f32::from(*q) - 8.0) * scale[i / group_size];
                    q.iter().enumerate().map(value).collect()
                }
            };
            (all, true)
        }
        other => panic!("{other:?}"),
    }
}

/// A quantizer, the dtype that it is given, and whether what it makes is handed over compressed.
type Case = (Option<Box<dyn Recipe>>, DType, bool);

#[test]
fn a_gpu_is_handed_the_same_numbers() {
    let cpu = Cpu::new(Some(1));
    let float8 = Float8DynamicActivationFloat8WeightConfig {
        granularity: Float8Granularities::PerRow,
        ..Default::default()
    };
    let cases: Vec<Case> = vec![
        (None, DType::BF16, true),
        (Some(Box::new(Int8DynamicActivationInt8WeightConfig::default())), DType::F32, true),
        (Some(Box::new(Int8WeightOnlyConfig::default())), DType::F32, false),
        (Some(Box::new(float8)), DType::BF16, true),
        (Some(Box::new(Int4MarlinSparseConfig { group_size: 128 })), DType::BF16, true),
        (Some(Box::new(Int4MarlinSparseConfig { group_size: 64 })), DType::BF16, false),
    ];
    for (recipe, dtype, compressed) in cases {
        let mut weight = pruned(dtype);
        if let Some(recipe) = recipe {
            let sparse = weight.as_sparse().expect("2:4");
            weight = match recipe.name() {
                name if name.contains("marlin") => recipe.quantize(&cpu, &*weight).expect("fits"),
                _ => {
                    let dense = Tensor::new(
                        weight.dequantize().expect("dequantizes").to_f32_vec(),
                        &[SHAPE.0, SHAPE.1],
                    );
                    let dense = dense.and_then(|t| t.to_dtype(dtype)).expect("floats");
                    let dense = DenseWeight::shared(dense).expect("a matrix");
                    let quantized = recipe.quantize(&cpu, &*dense).expect("fits");
                    sparse.around(quantized).expect("zeros stay")
                }
            };
        }
        let form = weight.device_form().expect("a form").expect("a kernel");
        let (got, is_compressed) = decoded(&form);
        assert_eq!(is_compressed, compressed, "{}", weight.workflow());
        let wanted = weight.dequantize().expect("dequantizes").to_f32_vec();
        assert_eq!(got, wanted, "{}", weight.workflow());
    }
}
