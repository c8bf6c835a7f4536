//! The quantization primitives and workflows against torchao 0.18, bit for bit.
//!
//! `tests/golden/MANIFEST.md` lists every tensor and `make_golden.py` made them. Here each family is a table from
//! the tensor's name to the call that gives it; a tensor that no call gives fails the test, but for inputs and
//! for weights in the layout of one processor (`packed_avx512`).

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::quantization::primitives::{
    CodeRange, Granularity, IntType, MappingType, QParamsOptions, ZeroPointDomain,
    choose_qparams_affine, choose_qparams_affine_dont_preserve_zero,
    choose_qparams_affine_tinygemm, choose_qparams_affine_with_min_max, dequantize_affine,
    dequantize_affine_no_zero_point, dequantize_affine_tinygemm, dynamically_quantize_per_channel,
    get_group_qparams_symmetric, get_groupwise_affine_qparams,
    groupwise_affine_dequantize_tensor_from_qparams, groupwise_affine_quantize_tensor_from_qparams,
    int4_row_quantize, int4_row_quantize_zp, pack_int4, pack_tinygemm_scales_and_zeros,
    per_token_dynamic_quant, quantize_activation_per_token_absmax, quantize_affine,
    quantize_affine_no_zero_point, quantize_affine_tinygemm,
};
use aolab::{DType, Tensor};
use golden_support::{Family, as_u8, transposed};

const MAPPINGS: [(&str, MappingType); 3] = [
    ("sym", MappingType::Symmetric),
    ("symnc", MappingType::SymmetricNoClippingErr),
    ("asym", MappingType::Asymmetric),
];

/// What the calls gave, by the golden tensor's name.
#[derive(Default)]
struct Got(BTreeMap<String, Tensor>);

impl Got {
    fn put(&mut self, name: impl Into<String>, tensor: Tensor) {
        let name = name.into();
        assert!(self.0.insert(name.clone(), tensor).is_none(), "{name} is computed twice");
    }
}

fn int8() -> CodeRange {
    CodeRange::full(IntType::Int(8)).expect("int8")
}

fn codes(target: IntType, min: i32, max: i32) -> CodeRange {
    CodeRange::new(target, min, max).expect("a range of codes")
}

/// One `choose_qparams_affine`, `quantize_affine`, `dequantize_affine`.
struct Case<'a> {
    input: &'a Tensor,
    mapping: MappingType,
    block: &'a [usize],
    range: CodeRange,
    options: QParamsOptions,
}

impl Case<'_> {
    fn run(&self, prefix: &str, got: &mut Got) {
        let Case { input, mapping, block, range, options } = *self;
        let (scale, zero) =
            choose_qparams_affine(input, mapping, block, range, options).expect(prefix);
        let q = quantize_affine(input, block, &scale, &zero, range).expect(prefix);
        let dq = dequantize_affine(&q, block, &scale, &zero, DType::F32).expect(prefix);
        got.put(format!("{prefix}.scale"), scale);
        got.put(format!("{prefix}.zp"), zero);
        got.put(format!("{prefix}.q"), q);
        got.put(format!("{prefix}.dq"), dq);
    }
}

fn per_group_family(name: &str, ranges: &[(&str, CodeRange)]) {
    let family = Family::read(name);
    let x = family.tensor("x");
    let mut got = Got::default();
    for (mapping_name, mapping) in MAPPINGS {
        for (range_name, range) in ranges {
            for g in [32, 64, 128] {
                let case = Case {
                    input: &x,
                    mapping,
                    block: &[1, g],
                    range: *range,
                    options: QParamsOptions::default(),
                };
                case.run(&format!("{range_name}.{mapping_name}.g{g}"), &mut got);
            }
        }
    }
    family.check(&got.0, &["x"]);
}

#[test]
fn affine_8bit() {
    let uint8 = CodeRange::full(IntType::UInt(8)).expect("uint8");
    per_group_family("affine_8bit", &[("int8", int8()), ("uint8", uint8)]);
}

#[test]
fn affine_4bit() {
    let (int4, uint4) = (codes(IntType::Int(8), -8, 7), codes(IntType::UInt(8), 0, 15));
    per_group_family("affine_4bit", &[("int4", int4), ("uint4", uint4)]);
}

#[test]
fn affine_lowbit() {
    let family = Family::read("affine_lowbit");
    let x = family.tensor("x");
    let mut got = Got::default();
    for bits in 1..=7 {
        for (mapping_name, mapping) in MAPPINGS {
            for (kind, target) in [("int", IntType::Int(bits)), ("uint", IntType::UInt(bits))] {
                let range = CodeRange::full(target).expect("a type");
                let block = &[1, 32];
                let options = QParamsOptions::default();
                Case { input: &x, mapping, block, range, options }
                    .run(&format!("{kind}{bits}.{mapping_name}"), &mut got);
            }
        }
    }
    family.check(&got.0, &["x"]);
}

#[test]
fn affine_granularity() {
    let family = Family::read("affine_granularity");
    let (x, x3, xb) = (family.tensor("x"), family.tensor("x3"), family.tensor("xb"));
    assert_eq!(xb.bytes(), x.to_dtype(DType::BF16).expect("a float cast").bytes());
    let mut got = Got::default();
    let uint8 = CodeRange::full(IntType::UInt(8)).expect("uint8");
    for (name, mapping) in MAPPINGS {
        for (block_name, granularity) in [
            ("tensor", "per-tensor"),
            ("axis0", "per-axis:0"),
            ("axis1", "per-axis:1"),
            ("group16", "per-group:16"),
            ("block2x8", "per-block:2x8"),
            ("block4x4", "per-block:4x4"),
        ] {
            let granularity: Granularity = granularity.parse().expect(granularity);
            let block = granularity.block_size(x.shape()).expect(block_name);
            let options = QParamsOptions::default();
            Case { input: &x, mapping, block: &block, range: int8(), options }
                .run(&format!("{block_name}.{name}.int8"), &mut got);
        }
        for (block_name, granularity, range) in
            [("token3d", "per-token", int8()), ("block3d", "per-block:2x16", uint8)]
        {
            let granularity: Granularity = granularity.parse().expect(granularity);
            let block = granularity.block_size(x3.shape()).expect(block_name);
            let options = QParamsOptions::default();
            let kind = if range == uint8 { "uint8" } else { "int8" };
            Case { input: &x3, mapping, block: &block, range, options }
                .run(&format!("{block_name}.{name}.{kind}"), &mut got);
        }
        let options =
            QParamsOptions { zero_point_dtype: Some(DType::I32), ..QParamsOptions::default() };
        let (min, max) = (family.tensor("minmax.min"), family.tensor("minmax.max"));
        let (scale, zero) =
            choose_qparams_affine_with_min_max(&min, &max, mapping, int8(), options).expect(name);
        got.put(format!("minmax.{name}.scale"), scale);
        got.put(format!("minmax.{name}.zp"), zero);
    }
    granularity_options(&x, &xb, &mut got);
    family.check(&got.0, &["x", "x3", "xb", "minmax.min", "minmax.max"]);
}

/// eps, dtypes of scale and zero point, keepdim, bf16.
fn granularity_options(x: &Tensor, xb: &Tensor, got: &mut Got) {
    let none = QParamsOptions::default();
    let small: Vec<f32> = x.to_f32_vec().iter().map(|value| value * 1e-3).collect();
    let small = Tensor::new(small, x.shape()).expect("as x");
    let int4 = codes(IntType::Int(8), -8, 7);
    let (sym, asym) = (MappingType::Symmetric, MappingType::Asymmetric);
    let row = [1, 64];
    let eps = QParamsOptions { eps: Some(1e-2), ..none };
    Case { input: &small, mapping: asym, block: &row, range: int8(), options: eps }
        .run("eps1e-2.asym.int8", got);
    let f32s = QParamsOptions {
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(DType::F32),
        ..none
    };
    Case { input: x, mapping: asym, block: &row, range: int8(), options: f32s }
        .run("zpf32.asym.int8", got);
    let kept = QParamsOptions { zero_point_dtype: Some(DType::I8), keepdim: true, ..none };
    Case { input: x, mapping: sym, block: &[1, 32], range: int4, options: kept }
        .run("zpi8.sym.int4", got);
    Case { input: xb, mapping: asym, block: &row, range: int8(), options: none }
        .run("bf16.asym.int8", got);
    Case { input: xb, mapping: sym, block: &row, range: int8(), options: none }
        .run("bf16.sym.int8", got);
    Case { input: xb, mapping: sym, block: &[1, 32], range: int4, options: none }
        .run("bf16.sym.int4.g32", got);
}

#[test]
fn affine_zp_domain() {
    let family = Family::read("affine_zp_domain");
    let x = family.tensor("x");
    let mut got = Got::default();
    let block = [1, 32];
    let options = QParamsOptions { eps: Some(1e-6), ..QParamsOptions::default() };
    for (name, target, max) in [
        ("int32b4", IntType::Int(32), 15),
        ("int32b8", IntType::Int(32), 255),
        ("uint8b8", IntType::UInt(8), 255),
        ("int32b2", IntType::Int(32), 3),
    ] {
        let range = codes(target, 0, max);
        let (scale, zero) =
            choose_qparams_affine_dont_preserve_zero(&x, &block, range, options).expect(name);
        let q = quantize_affine(&x, &block, &scale, &zero, range).expect(name);
        let dq = dequantize_affine(&q, &block, &scale, &zero, DType::F32).expect(name);
        got.put(format!("dpz.{name}.scale"), scale);
        got.put(format!("dpz.{name}.zp"), zero);
        got.put(format!("dpz.{name}.q"), as_u8(&q));
        got.put(format!("dpz.{name}.dq"), dq);
        let (scale, zero) = choose_qparams_affine_tinygemm(&x, &block, range, options).expect(name);
        let q = quantize_affine_tinygemm(&x, &block, &scale, &zero, range).expect(name);
        let dq = dequantize_affine_tinygemm(&q, &block, (&scale, &zero), range, DType::F32);
        got.put(format!("tg.{name}.dq"), dq.expect(name));
        got.put(format!("tg.{name}.scale"), scale);
        got.put(format!("tg.{name}.zp"), zero);
        got.put(format!("tg.{name}.q"), as_u8(&q));
    }
    let default = QParamsOptions::default();
    let (scale, _) =
        choose_qparams_affine(&x, MappingType::Symmetric, &block, int8(), default).expect("none");
    let q = quantize_affine_no_zero_point(&x, &block, &scale, int8()).expect("none");
    let dq = dequantize_affine_no_zero_point(&q, &block, &scale, DType::F32).expect("none");
    got.put("none.scale", scale);
    got.put("none.q", q);
    got.put("none.dq", dq);
    family.check(&got.0, &["x"]);
}

#[test]
fn tinygemm_int4() {
    let family = Family::read("tinygemm_int4");
    let w = family.tensor("w");
    let mut got = Got::default();
    let float = ZeroPointDomain::Float;
    for dtype in [DType::BF16, DType::F32] {
        let w = w.to_dtype(dtype).expect("a float cast");
        for g in [32, 64, 128] {
            let name = format!("{dtype}.g{g}");
            let (scale, zero) =
                get_groupwise_affine_qparams(&w, 4, g, dtype, float, false).expect(&name);
            let both = (&scale, &zero);
            let q =
                groupwise_affine_quantize_tensor_from_qparams(&w, both, 4, g, float).expect(&name);
            let dq = groupwise_affine_dequantize_tensor_from_qparams(&q, both, 4, g, float);
            got.put(format!("{name}.dq"), dq.expect(&name));
            let packed = pack_tinygemm_scales_and_zeros(&scale, &zero).expect(&name);
            got.put(format!("{name}.scales_and_zeros"), packed);
            if g == 32 {
                let act = family.tensor(&format!("{name}.act"));
                let y = golden_support::int4_linear(&q, both, g, &act);
                golden_support::check_int4_mm(&family.tensor(&format!("{name}.mm")), &y);
            }
            got.put(format!("{name}.scale"), scale);
            got.put(format!("{name}.zero"), zero);
            got.put(format!("{name}.q"), q);
        }
    }
    for (name, preserve_zero) in [("int_pz", true), ("int_npz", false)] {
        let domain = ZeroPointDomain::Int;
        let (scale, zero) =
            get_groupwise_affine_qparams(&w, 4, 32, DType::F32, domain, preserve_zero).expect(name);
        got.put(format!("{name}.scale"), scale);
        got.put(format!("{name}.zero"), zero);
    }
    for bits in [2, 3, 4, 8] {
        let sym = MappingType::Symmetric;
        let (scale, zero) =
            get_group_qparams_symmetric(&w, bits, 32, DType::F32, sym).expect("symmetric");
        got.put(format!("gsym{bits}.scale"), scale);
        got.put(format!("gsym{bits}.zp"), zero);
    }
    let (act, mm) = (["bf16.g32.act", "f32.g32.act"], ["bf16.g32.mm", "f32.g32.mm"]);
    family.check(&got.0, &[&["w"][..], &act, &mm].concat());
}

#[test]
fn int4_mslk() {
    let family = Family::read("int4_mslk");
    let x = family.tensor("x");
    let mut got = Got::default();
    for g in [32, 128] {
        let rows = int4_row_quantize_zp(&x, g).expect("groups divide K");
        let zero = rows.zero.expect("a zero for each group");
        // The workflow keeps codes 0 ..= 15 where MSLK keeps −8 ..= 7: the top bit of each nibble differs.
        let stored = golden_support::int4_weight_only(&x, g);
        let signed: Vec<i8> = stored[0]
            .as_slice::<u8>()
            .expect("u8")
            .iter()
            .map(|b| (b ^ 0x88).cast_signed())
            .collect();
        let packed = pack_int4(&rows.codes).expect("an even K");
        assert_eq!(packed.as_slice::<i8>().expect("i8"), signed, "the workflow's codes");
        assert_eq!(stored[1].bytes(), rows.scale.bytes(), "the workflow's scales");
        assert_eq!(stored[2].bytes(), zero.bytes(), "the workflow's zeros");
        got.put(format!("zp.g{g}.packed"), packed);
        got.put(format!("zp.g{g}.q"), rows.codes);
        got.put(format!("zp.g{g}.scale"), transposed(&rows.scale));
        got.put(format!("zp.g{g}.zero"), transposed(&zero));
        let rows = int4_row_quantize(&x, g).expect("groups divide K");
        got.put(format!("sym.g{g}.q"), rows.codes);
        got.put(format!("sym.g{g}.scale"), transposed(&rows.scale));
    }
    family.check(&got.0, &["x"]);
}

#[test]
fn int8_dynamic_act() {
    let family = Family::read("int8_dynamic_act");
    let (x, xb) = (family.tensor("x"), family.tensor("xb"));
    let mut got = Got::default();
    for (name, x) in [("absmax", &x), ("absmax.bf16", &xb)] {
        let (q, scale) = quantize_activation_per_token_absmax(x).expect(name);
        got.put(format!("{name}.q"), q);
        got.put(format!("{name}.scale"), scale);
    }
    let qdq = |zero_point_dtype| per_token_dynamic_quant(&x, zero_point_dtype).expect("per token");
    got.put("per_token_dynamic_quant", qdq(DType::F32));
    got.put("asym_per_token_qdq", qdq(DType::I8));
    let int8_zero =
        QParamsOptions { zero_point_dtype: Some(DType::I8), ..QParamsOptions::default() };
    let (row, asym) = ([1, 64], MappingType::Asymmetric);
    let (scale, zero) = choose_qparams_affine(&x, asym, &row, int8(), int8_zero).expect("asym");
    got.put("asym.q", quantize_affine(&x, &row, &scale, &zero, int8()).expect("asym"));
    got.put("asym.scale", scale);
    got.put("asym.zp", zero);
    for (mapping_name, mapping) in
        [("symmetric", MappingType::Symmetric), ("asymmetric", MappingType::Asymmetric)]
    {
        for reduce_range in [false, true] {
            let name = format!("int8tensor.{mapping_name}.rr{}", u8::from(reduce_range));
            let (min, max) = if reduce_range { (-64, 63) } else { (-128, 127) };
            let range = codes(IntType::Int(8), min, max);
            let options = QParamsOptions {
                eps: Some(f32::EPSILON),
                scale_dtype: Some(DType::F32),
                zero_point_dtype: Some(DType::I8),
                keepdim: true,
            };
            let (scale, zero) =
                choose_qparams_affine(&x, mapping, &row, range, options).expect(&name);
            let q = quantize_affine(&x, &row, &scale, &zero, range).expect(&name);
            let found = [&q, &scale, &zero];
            golden_support::check_int8_kernels(&x, found, mapping, reduce_range);
            got.put(format!("{name}.q"), q);
            got.put(format!("{name}.scale"), scale);
            got.put(format!("{name}.zp"), zero);
        }
    }
    let (q, scale, zero) =
        dynamically_quantize_per_channel(&family.tensor("w"), int8()).expect("per channel");
    let y = golden_support::int8_dynamic_linear(&family.tensor("x5"), &q, &scale);
    got.put("dqpc.q", q);
    got.put("dqpc.scale", scale);
    got.put("dqpc.zp", zero);
    // Integer sums have no order, and two products in f32 follow: exact although it is a matmul.
    got.put("dynlin.y", y);
    family.check(&got.0, &["x", "xb", "w", "x5"]);
}
