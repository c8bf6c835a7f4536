//! Low-bit workflows against torchao 0.18 where their numbers are those of another family: uintx_weight_only,
//! int4_dynamic_int4, int8_dynamic_int4, float8_dynamic_int4, bitnet, int8_lut and embedding. Codes, scales and zero points bit for bit;
//! outputs of matrix products within what their order of additions leaves open. The families themselves: tests/golden_vectors.rs.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::primitives::{
    int4_row_quantize, pack_i2_in_i8, pack_shards, read_stream, unpack_i2_in_i8, unpack_shards,
};
use aolab::quantization::{
    BitNetConfig, CodeType, EmbeddingQuantizer, Float8DynamicActivationInt4WeightConfig,
    Float8Int4PackingFormat, Granularity, Int4DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt4WeightConfig, Int8LutConfig, IntxWeightOnlyConfig, MappingType,
    Recipe, UIntXWeightOnlyConfig,
};
use aolab::{DType, Tensor};
use golden_support::{Family, transposed};

fn quantized(recipe: &dyn Recipe, w: &Tensor) -> Arc<dyn Weight> {
    let dense = DenseWeight::new(w.clone()).expect("a float matrix");
    recipe.quantize(&Cpu::new(Some(2)), &dense).expect("quantizes")
}

fn tensor(weight: &dyn Weight, name: &str) -> Tensor {
    let found = weight.tensors().into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no tensor {name}")).1
}

/// The codes that a weight's `qdata` holds, `bias` taken away.
fn codes(weight: &dyn Weight, bits: u32, bias: i16) -> Vec<i16> {
    let (n, k) = weight.shape();
    let qdata = tensor(weight, "qdata");
    let bytes = qdata.as_slice::<u8>().expect("bytes");
    let row = |n: usize, nbytes: usize| {
        let mut codes = vec![0; k];
        read_stream(&bytes[n * nbytes..][..nbytes], bits, &mut codes);
        codes.into_iter().map(|code| i16::from(code) - bias).collect::<Vec<i16>>()
    };
    (0..n).flat_map(|i| row(i, bytes.len() / n)).collect()
}

fn wide(codes: &Tensor) -> Vec<i16> {
    match codes.dtype() {
        DType::I8 => codes.as_slice::<i8>().expect("i8").iter().map(|q| i16::from(*q)).collect(),
        _ => codes.as_slice::<u8>().expect("u8").iter().map(|q| i16::from(*q)).collect(),
    }
}

/// `y` of every instruction set is within `tolerance` of Σ|x·w| of what torch gave.
fn check_output(weight: &dyn Weight, x: &Tensor, bias: &[f32], wanted: &Tensor, name: &str) {
    let (n, k) = weight.shape();
    let (x, wanted_y) = (x.to_f32_vec(), wanted.to_f32_vec());
    let m = x.len() / k;
    let dense = weight.dequantize().expect("dequantizes").to_f32_vec();
    // torch's order of additions differs; in bf16 it also rounds activations, weights and results.
    let part = if wanted.dtype() == DType::BF16 { 2.0_f64.powi(-6) } else { 2.0_f64.powi(-14) };
    for isa in Isa::available() {
        let mut y = vec![f32::NAN; m * n];
        weight.linear(&Cpu::with_isa(isa, Some(2)), &x, m, &mut y).expect("runs");
        for (at, (got, wanted)) in y.iter().zip(&wanted_y).enumerate() {
            let (x, w) = (&x[at / n * k..][..k], &dense[at % n * k..][..k]);
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let amount = products.map(f64::abs).sum::<f64>() + f64::from(bias[at % n]).abs();
            let off = (f64::from(got + bias[at % n]) - f64::from(*wanted)).abs();
            let allowed = part * amount;
            assert!(off <= allowed, "{name} {}: y[{at}] = {got}, {wanted} ± {allowed}", isa.name());
        }
    }
}

/// Codes, scale and zero point of one of `linear_inference`'s weights.
fn check_weight(family: &Family, name: &str, weight: &dyn Weight, bits: u32) {
    let wanted = wide(&family.tensor(&format!("{name}.qdata")));
    assert_eq!(codes(weight, bits, 1 << (bits - 1)), wanted, "{name}: codes");
    let scale = family.tensor(&format!("{name}.scale"));
    assert_eq!(tensor(weight, "scale").bytes(), scale.bytes(), "{name}: scales");
    assert_eq!(tensor(weight, "scale").dtype(), scale.dtype(), "{name}: scales");
    let zero = family.tensor(&format!("{name}.zero_point"));
    match weight.tensors().iter().find(|(known, _)| known == "zero_point") {
        Some((_, got)) => assert_eq!(got.bytes(), zero.bytes(), "{name}: zero points"),
        None => assert!(zero.bytes().iter().all(|byte| *byte == 0), "{name}: zero points"),
    }
}

fn per_group(group_size: usize) -> Granularity {
    Granularity::PerGroup { group_size }
}

#[test]
fn intx_weight_only_on_the_hard_rows() {
    let family = Family::read("affine_lowbit");
    let x = family.tensor("x");
    for bits in 1..=7 {
        for (name, mapping_type) in [
            ("sym", MappingType::Symmetric),
            ("symnc", MappingType::SymmetricNoClippingErr),
            ("asym", MappingType::Asymmetric),
        ] {
            if bits == 1 && name == "symnc" {
                continue; // The codes −1 and 0: torchao divides by 0, and the family has no such case.
            }
            let config = IntxWeightOnlyConfig {
                weight_dtype: CodeType::int(bits),
                granularity: per_group(32),
                mapping_type,
                ..Default::default()
            };
            let made = quantized(&config, &x);
            let prefix = format!("int{bits}.{name}");
            let wanted = wide(&family.tensor(&format!("{prefix}.q")));
            assert_eq!(codes(made.as_ref(), bits, 1 << (bits - 1)), wanted, "{prefix}");
            let scale = family.tensor(&format!("{prefix}.scale"));
            assert_eq!(tensor(made.as_ref(), "scale").bytes(), scale.bytes(), "{prefix}");
            if [2, 3, 5].contains(&bits) && name != "symnc" {
                let dq = family.tensor(&format!("{prefix}.dq")).to_f32_vec();
                let got = made.dequantize().expect("dequantizes").to_f32_vec();
                assert_eq!(got, dq, "{prefix}: dequantized");
            }
        }
    }
}

#[test]
fn uintx_weight_only() {
    let family = Family::read("bitpacking");
    for bits in 1..=7 {
        let x = family.tensor(&format!("u{bits}.x"));
        let shards = pack_shards(&x, bits).expect("whole bytes");
        for (i, shard) in shards.iter().enumerate() {
            let wanted = family.tensor(&format!("u{bits}.shard{i}"));
            assert_eq!(shard.shape(), wanted.shape(), "uint{bits} shard {i}");
            assert_eq!(shard.bytes(), wanted.bytes(), "uint{bits} shard {i}");
        }
        assert_eq!(unpack_shards(&shards, bits).expect("unpacks").bytes(), x.bytes());
    }
    // eps is f32's, where the family's is the smallest normal number: rows of denormals differ, others do not.
    let family = Family::read("affine_lowbit");
    let x = family.tensor("x");
    let (n, k) = x.dims2().expect("a matrix");
    for bits in 1..=7 {
        let (dtype, group_size) = (CodeType::uint(bits), 32);
        let made =
            quantized(&UIntXWeightOnlyConfig { dtype, group_size, ..Default::default() }, &x);
        let got = codes(made.as_ref(), bits, 0);
        let wanted = wide(&family.tensor(&format!("uint{bits}.asym.q")));
        let scales = family.tensor(&format!("uint{bits}.asym.scale")).to_f32_vec();
        let zeros = family.tensor(&format!("uint{bits}.asym.zp")).to_f32_vec();
        let zero_point = tensor(made.as_ref(), "zero_point");
        let mut compared = 0;
        for at in 0..n * k {
            let group = at / k * (k / 32) + at % k / 32;
            if scales[group] > f32::EPSILON {
                assert_eq!(got[at], wanted[at], "uint{bits} at {at}");
                let zero = i16::from(zero_point.as_slice::<i8>().expect("i8")[group]);
                let zero = f32::from(zero + (1 << (bits - 1)));
                assert_eq!(zero.to_bits(), (zeros[group] + 0.0).to_bits(), "uint{bits} at {at}");
                compared += 1;
            }
        }
        assert!(compared > n * k / 2, "uint{bits}: only {compared} compared");
    }
}

#[test]
fn int4_dynamic_int4() {
    // The weight is that of `IntxWeightOnlyConfig(int4, PerAxis(0))`: only eps differs.
    let family = Family::read("linear_inference");
    let made = quantized(&Int4DynamicActivationInt4WeightConfig::default(), &family.tensor("w"));
    assert_eq!(codes(made.as_ref(), 4, 8), wide(&family.tensor("intxwo_int4_axis.f32.qdata")));
    let scale = family.tensor("intxwo_int4_axis.f32.scale");
    assert_eq!(tensor(made.as_ref(), "scale").bytes(), scale.bytes());
}

#[test]
fn int8_dynamic_int4() {
    let family = Family::read("tinygemm_int4");
    let made = quantized(&Int8DynamicActivationInt4WeightConfig::default(), &family.tensor("w"));
    assert_eq!(tensor(made.as_ref(), "scale").bytes(), family.tensor("int_pz.scale").bytes());
    let zeros = family.tensor("int_pz.zero");
    let zeros: Vec<i32> = zeros.as_slice::<i32>().expect("i32").to_vec();
    let got = tensor(made.as_ref(), "zero_point");
    let got: Vec<i32> = got.as_slice::<i8>().expect("i8").iter().map(|z| i32::from(*z)).collect();
    assert_eq!(got, zeros);
}

#[test]
fn float8_dynamic_int4() {
    let family = Family::read("int4_mslk");
    let x = family.tensor("x");
    let rows = int4_row_quantize(&x, 128).expect("one group a row");
    let config = Float8DynamicActivationInt4WeightConfig {
        int4_packing_format: Float8Int4PackingFormat::Plain,
    };
    let made = quantized(&config, &x);
    assert_eq!(codes(made.as_ref(), 4, 8), wide(&family.tensor("sym.g128.q")));
    let scale = tensor(made.as_ref(), "scale");
    assert_eq!(scale.bytes(), rows.scale.bytes());
    assert_eq!(transposed(&scale).bytes(), family.tensor("sym.g128.scale").bytes());
    // One group a row: its share of the row's scale is 1, which float8 has.
    let made = quantized(&Float8DynamicActivationInt4WeightConfig::default(), &x);
    assert_eq!(tensor(made.as_ref(), "scale").bytes(), scale.bytes());
}

#[test]
fn bitnet() {
    let family = Family::read("quantized_training");
    let (w, x) = (family.tensor("w"), family.tensor("x"));
    let q = family.tensor("bitnet.q");
    assert_eq!(pack_i2_in_i8(&q).expect("packs").bytes(), family.tensor("bitnet.packed").bytes());
    let unpacked = unpack_i2_in_i8(&family.tensor("bitnet.packed")).expect("unpacks");
    assert_eq!(unpacked.bytes(), q.bytes());
    let made = quantized(&BitNetConfig::default(), &w);
    assert_eq!(tensor(made.as_ref(), "int_data").bytes(), family.tensor("bitnet.packed").bytes());
    let scale = tensor(made.as_ref(), "scale").to_f32_vec()[0];
    let wanted = family.tensor("bitnet.scale").to_f32_vec()[0];
    // A mean of 2048 numbers in f32: the order of additions is torch's own.
    assert!((scale - wanted).abs() <= 2.0_f32.powi(-22) * wanted, "{scale}, wanted {wanted}");
    let bias = vec![0.0; 32];
    check_output(made.as_ref(), &x, &bias, &family.tensor("bitnet.y"), "bitnet");
}

#[test]
fn int8_lut_and_embedding_keep_the_codes_of_intx() {
    let family = Family::read("linear_inference");
    let w = family.tensor("w");
    let made = quantized(&Int8LutConfig::default(), &w);
    check_weight(&family, "8da4w_g32.f32", made.as_ref(), 4);
    let config = EmbeddingQuantizer { granularity: per_group(32), ..Default::default() };
    let made = quantized(&config, &w);
    check_weight(&family, "intxwo_int4_asym_g32.f32", made.as_ref(), 4);
}
