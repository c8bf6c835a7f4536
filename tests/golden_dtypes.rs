//! The quantization primitives in f16 and bf16, with NaN and infinity, bit for bit as torchao 0.18 on x86-64.
//! `tests/golden/make_golden_dtypes.py` made the vectors.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::quantization::primitives::{
    CodeRange, Float8, IntType, MappingType, QParamsOptions, choose_qparams_affine,
    choose_qparams_affine_dont_preserve_zero, choose_qparams_affine_tinygemm, choose_scale_float8,
    dequantize_affine, dequantize_affine_tinygemm, quantize_affine, quantize_affine_tinygemm,
};
use aolab::{DType, Tensor};
use golden_support::Family;

const BLOCK: [usize; 2] = [1, 32];

fn integers(x: &Tensor, prefix: &str, got: &mut BTreeMap<String, Tensor>) {
    for (mapping_name, mapping) in [
        ("sym", MappingType::Symmetric),
        ("symnc", MappingType::SymmetricNoClippingErr),
        ("asym", MappingType::Asymmetric),
    ] {
        for bits in [3, 4, 8] {
            let range = CodeRange::full(IntType::Int(bits)).expect("a type");
            for (name, scale_dtype, zero_point_dtype) in [
                ("own", None, DType::I32),
                ("f32", Some(DType::F32), DType::I8),
                ("flt", None, DType::F32),
            ] {
                let zero_point_dtype = Some(zero_point_dtype);
                let options =
                    QParamsOptions { scale_dtype, zero_point_dtype, ..QParamsOptions::default() };
                let name = format!("{prefix}.{mapping_name}.b{bits}.{name}");
                let (scale, zero) =
                    choose_qparams_affine(x, mapping, &BLOCK, range, options).expect(&name);
                let q = quantize_affine(x, &BLOCK, &scale, &zero, range).expect(&name);
                let dq = dequantize_affine(&q, &BLOCK, &scale, &zero, x.dtype()).expect(&name);
                got.insert(format!("{name}.dq"), dq);
                got.insert(format!("{name}.scale"), scale);
                got.insert(format!("{name}.zp"), zero);
                got.insert(format!("{name}.q"), q);
            }
        }
    }
}

fn raw_ranges(x: &Tensor, prefix: &str, got: &mut BTreeMap<String, Tensor>) {
    let range = CodeRange::new(IntType::Int(32), 0, 15).expect("16 codes");
    for (name, eps) in [("", None), ("eps", Some(1e-6))] {
        let options = QParamsOptions { eps, ..QParamsOptions::default() };
        let (scale, zero) =
            choose_qparams_affine_tinygemm(x, &BLOCK, range, options).expect("tinygemm");
        let q = quantize_affine_tinygemm(x, &BLOCK, &scale, &zero, range).expect("tinygemm");
        let dq = dequantize_affine_tinygemm(&q, &BLOCK, (&scale, &zero), range, x.dtype());
        got.insert(format!("{prefix}.tg{name}.dq"), dq.expect("tinygemm"));
        got.insert(format!("{prefix}.tg{name}.scale"), scale);
        got.insert(format!("{prefix}.tg{name}.zp"), zero);
        got.insert(format!("{prefix}.tg{name}.q"), q);
        let (scale, zero) =
            choose_qparams_affine_dont_preserve_zero(x, &BLOCK, range, options).expect("raw range");
        let q = quantize_affine(x, &BLOCK, &scale, &zero, range).expect("raw range");
        got.insert(format!("{prefix}.dpz{name}.scale"), scale);
        got.insert(format!("{prefix}.dpz{name}.zp"), zero);
        got.insert(format!("{prefix}.dpz{name}.q"), q);
    }
}

fn float8_scales(x: &Tensor, prefix: &str, got: &mut BTreeMap<String, Tensor>) {
    for (name, target) in
        [("e4m3fn", Float8::E4m3fn), ("e5m2", Float8::E5m2), ("e4m3fnuz", Float8::E4m3fnuz)]
    {
        let scale = |bounds, power_of_two| {
            choose_scale_float8(x, &[1, 64], target, bounds, power_of_two).expect(name)
        };
        got.insert(format!("{prefix}.{name}"), scale((None, None), false));
        got.insert(format!("{prefix}.{name}.bounds"), scale((Some(0.01), Some(100.0)), false));
        got.insert(format!("{prefix}.{name}.e8m0"), scale((None, None), true));
    }
}

#[test]
fn affine_dtypes() {
    let family = Family::read("affine_dtypes");
    let mut got = BTreeMap::new();
    for dtype in ["f32", "bf16", "f16"] {
        let x = family.tensor(&format!("{dtype}.x"));
        integers(&x, dtype, &mut got);
        raw_ranges(&x, dtype, &mut got);
        float8_scales(&x, dtype, &mut got);
    }
    family.check(&got, &["f32.x", "bf16.x", "f16.x"]);
}
