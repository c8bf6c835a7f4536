//! The low-bit workflows against torchao 0.18: intx_weight_only, int8_dynamic_intx, uintx_weight_only,
//! int4_dynamic_int4, int8_dynamic_int4, float8_dynamic_int4, bitnet,
//! nf4, codebook, codebook_coreml, groupwise_lut, int8_lut and embedding. Codes, scales and zero points bit for bit;
//! outputs of matrix products within what their order of additions leaves open.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::sync::Arc;

use aolab::kernels::{Cpu, Isa};
use aolab::model::{DenseWeight, Weight};
use aolab::quantization::primitives::{
    int4_row_quantize, nf4_values, pack_i2_in_i8, pack_int4_for_avx512, pack_shards, push_stream,
    read_stream, unpack_i2_in_i8, unpack_int4_for_avx512, unpack_shards,
};
use aolab::quantization::{
    BitNetConfig, CodeType, CodebookWeightOnlyConfig, EmbeddingQuantizer,
    Float8DynamicActivationInt4WeightConfig, Float8Int4PackingFormat, Granularity,
    Int4DynamicActivationInt4WeightConfig, Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationIntxWeightConfig, Int8LutConfig, IntxWeightOnlyConfig, MappingType,
    NF4WeightOnlyConfig, Recipe, UIntXWeightOnlyConfig, read_weight,
};
use aolab::{DType, Tensor};
use golden_support::{Family, transposed};
use serde_json::json;

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
fn intx_weight_only_and_int8_dynamic_intx() {
    let family = Family::read("linear_inference");
    let (w, x) = (family.tensor("w"), family.tensor("x"));
    let bias = family.tensor("b").to_f32_vec();
    let wb = w.to_dtype(DType::BF16).expect("a float cast");
    let (sym, asym) = (MappingType::Symmetric, MappingType::Asymmetric);
    let only = |bits, granularity, mapping_type| -> Box<dyn Recipe> {
        let weight_dtype = CodeType::int(bits);
        let rest = IntxWeightOnlyConfig::default();
        Box::new(IntxWeightOnlyConfig { weight_dtype, granularity, mapping_type, ..rest })
    };
    let dynamic = |bits, weight_mapping_type| -> Box<dyn Recipe> {
        let weight_dtype = CodeType::int(bits);
        let rest = Int8DynamicActivationIntxWeightConfig::default();
        Box::new(Int8DynamicActivationIntxWeightConfig {
            weight_dtype,
            weight_mapping_type,
            ..rest
        })
    };
    let mut cases: Vec<(String, u32, Box<dyn Recipe>)> = (1..=8)
        .map(|bits| (format!("intxwo_int{bits}_g32"), bits, only(bits, per_group(32), sym)))
        .collect();
    cases.push(("intxwo_int4_axis".into(), 4, only(4, Granularity::PerAxis { axis: 0 }, sym)));
    cases.push(("intxwo_int4_asym_g32".into(), 4, only(4, per_group(32), asym)));
    cases.push(("8da2w_g32".into(), 2, dynamic(2, sym)));
    cases.push(("8da4w_g32".into(), 4, dynamic(4, sym)));
    cases.push(("8da8w_g32".into(), 8, dynamic(8, sym)));
    cases.push(("8da4w_asym_g32".into(), 4, dynamic(4, asym)));
    for (name, bits, recipe) in cases {
        let made = quantized(recipe.as_ref(), &w);
        check_weight(&family, &format!("{name}.f32"), made.as_ref(), bits);
        let y = family.tensor(&format!("{name}.f32.y"));
        check_output(made.as_ref(), &x, &bias, &y, &name);
        let made = quantized(recipe.as_ref(), &wb);
        let y = family.tensor(&format!("{name}.bf16.y"));
        check_output(made.as_ref(), &x, &bias, &y, &format!("{name} in bf16"));
        if name == "8da4w_g32" {
            check_weight(&family, "8da4w_g32.bf16", made.as_ref(), bits);
        }
    }
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
fn nf4() {
    let family = Family::read("nf4");
    for (name, block_size, scaler_block_size) in [
        ("f32.b32s16", 32, 16),
        ("bf16.b64s256", 64, 256),
        ("bf16.b64s64", 64, 64),
        ("f32.b64s64", 64, 64),
    ] {
        let x = family.tensor(&format!("{name}.x"));
        let made = quantized(&NF4WeightOnlyConfig { block_size, scaler_block_size }, &x);
        for part in ["quantized_data", "quantized_scalers", "quantization_factor", "scaler_mean"] {
            let wanted = family.tensor(&format!("{name}.{part}"));
            let got = tensor(made.as_ref(), part);
            assert_eq!(got.dtype(), wanted.dtype(), "{name}: {part}");
            assert_eq!(got.bytes(), wanted.bytes(), "{name}: {part}");
        }
        let table = family.tensor(&format!("{name}.nf4")).to_f32_vec();
        assert_eq!(nf4_values(x.dtype())[..], table, "{name}");
        let dq = family.tensor(&format!("{name}.dq")).to_f32_vec();
        assert_eq!(made.dequantize().expect("dequantizes").to_f32_vec(), dq, "{name}: dq");
    }
}

#[test]
fn codebook() {
    let family = Family::read("codebook");
    let x = family.tensor("x");
    for (name, bits, block_size, scale_block_size) in [
        ("u4", 4, [1, 1], 64),
        ("u2", 2, [1, 1], 32),
        ("u4v4", 4, [1, 4], 64),
        ("u8v2", 8, [1, 2], 64),
    ] {
        let config = CodebookWeightOnlyConfig {
            dtype: CodeType::uint(bits),
            block_size,
            scale_block_size: Some(scale_block_size),
        };
        let made = quantized(&config, &x);
        let wanted = family.tensor(&format!("{name}.scale")).to_f32_vec();
        let scales = tensor(made.as_ref(), "scales").to_f32_vec();
        for (got, wanted) in scales.iter().zip(&wanted) {
            assert!((got - wanted).abs() <= 2.0_f32.powi(-21) * wanted, "{name}: {got} {wanted}");
        }
        // k-means adds in torch's order: centroids are near, and codes those of the nearest.
        let wanted = family.tensor(&format!("{name}.codebook")).to_f32_vec();
        let entries = tensor(made.as_ref(), "codebook").to_f32_vec();
        for (at, (got, wanted)) in entries.iter().zip(&wanted).enumerate() {
            let allowed = 1e-4 * (1.0 + wanted.abs());
            assert!(
                (got - wanted).abs() <= allowed,
                "{name}: entry {at} is {got}, wanted {wanted}"
            );
        }
        let wanted = family.tensor(&format!("{name}.codes"));
        let codes = wide(&wanted);
        let stream = tensor(made.as_ref(), "codes");
        let across = 64 / block_size[1];
        let mut got = Vec::new();
        for bytes in stream.bytes().chunks_exact(stream.shape()[1]) {
            let mut row = vec![0; across];
            read_stream(bytes, bits, &mut row);
            got.extend(row.into_iter().map(i16::from));
        }
        let differ = got.iter().zip(&codes).filter(|(got, wanted)| got != wanted).count();
        assert!(differ * 200 <= codes.len(), "{name}: {differ} of {} codes differ", codes.len());
        let dq = family.tensor(&format!("{name}.dq")).to_f32_vec();
        let values = made.dequantize().expect("dequantizes").to_f32_vec();
        let error: f64 = dq.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let power: f64 = dq.iter().map(|a| f64::from(*a).powi(2)).sum();
        assert!(error <= power * 1e-3, "{name}: dequantized, {error} of {power}");
    }
}

#[test]
fn codebook_coreml_and_groupwise_lut() {
    let family = Family::read("codebook");
    let (codes, lut) = (family.tensor("lut.codes"), family.tensor("lut.lut"));
    let dq = family.tensor("lut.dq").to_f32_vec();
    let mut stream = Vec::new();
    for row in codes.bytes().chunks_exact(64) {
        push_stream(row, 4, &mut stream);
    }
    for weight_type in ["CodebookCoreMlWeight", "GroupwiseLutWeight"] {
        let meta = json!({ "_type": weight_type, "_version": 1, "_data": {
            "dtype": { "_type": "torch.dtype", "_data": "float32" },
            "code_dtype": { "_type": "torch.dtype", "_data": "uint4" },
            "block_size": [8, 32] } });
        let tensors = vec![
            ("codes".to_owned(), Tensor::new(stream.clone(), &[8, 32]).expect("its shape")),
            ("codebook".to_owned(), lut.clone()),
        ];
        let weight = read_weight(&meta, tensors, (8, 64)).expect("a sound weight");
        assert_eq!(weight.dequantize().expect("dequantizes").to_f32_vec(), dq, "{weight_type}");
    }
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

#[test]
fn layouts_of_4_bit_codes() {
    let family = Family::read("bitpacking");
    let x = family.tensor("int4pack_cpu.x");
    let packed = family.tensor("int4pack_cpu.packed");
    assert_eq!(pack_int4_for_avx512(&x).expect("whole blocks").bytes(), packed.bytes());
    assert_eq!(unpack_int4_for_avx512(&packed).expect("unpacks").bytes(), x.bytes());
    let (x, packed) = (family.tensor("uint4.x"), family.tensor("uint4.packed"));
    let mut stream = Vec::new();
    push_stream(x.bytes(), 4, &mut stream);
    assert_eq!(stream, packed.bytes(), "a stream of 4 bits is the even column in the low nibble");
    let family = Family::read("tinygemm_int4");
    for name in ["bf16.g32", "f32.g32"] {
        let q = family.tensor(&format!("{name}.q"));
        let packed = family.tensor(&format!("{name}.packed_avx512"));
        assert_eq!(pack_int4_for_avx512(&q).expect("whole blocks").bytes(), packed.bytes());
    }
}
