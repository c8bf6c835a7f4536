//! Small floats against torchao 0.18, bit for bit: the families float8, float8_block128, mx_fp8, mx_fp6_fp4, nvfp4 and
//! floatx of `tests/golden/MANIFEST.md`. Each is a table from the tensor's name to the call that gives it.

#![allow(clippy::panic, reason = "a test fails by panicking")]

mod golden_support;

use std::collections::BTreeMap;

use aolab::kernels::Cpu;
use aolab::kernels::dtypes::{
    e4m3fn_encode, e4m3fn_encode_saturating, e5m2_encode, e5m2_encode_saturating, e8m0_decode,
    floatx_decode, floatx_encode,
};
use aolab::kernels::float_linear::Element;
use aolab::model::DenseWeight;
use aolab::quantization::primitives::{
    Float8, Granularity, ScaleCalculationMode, choose_qparams_affine_floatx, choose_scale_float8,
    compute_error, dequantize_affine_float8, dequantize_affine_floatx, from_blocked, from_mx,
    nvfp4_dequantize, nvfp4_quantize, pack_bits, per_tensor_amax_to_scale, quantize_affine_float8,
    quantize_affine_floatx, quantize_blockwise_float8, to_blocked, to_mx,
};
use aolab::quantization::{
    Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, Recipe,
};
use aolab::{DType, Tensor};
use golden_support::Family;

type Got = BTreeMap<String, Tensor>;

fn tensor<T: aolab::tensor::Element>(values: Vec<T>, shape: &[usize]) -> Tensor {
    Tensor::new(values, shape).expect("its shape")
}

fn bytes_of(x: &Tensor, encode: impl Fn(f32) -> u8) -> Tensor {
    tensor(x.to_f32_vec().into_iter().map(encode).collect::<Vec<u8>>(), x.shape())
}

fn decoded(codes: u16, decode: impl Fn(u8) -> f32) -> Tensor {
    let code = |code: u16| u8::try_from(code).expect("a byte");
    let values: Vec<f32> = (0..codes).map(|c| decode(code(c))).collect();
    let shape = [values.len()];
    tensor(values, &shape)
}

/// PyTorch's own casts, and those behind a clamp.
fn plain_casts(family: &Family, got: &mut Got) {
    let x = family.tensor("cast.x");
    // torch's cast to bf16 makes every NaN 0xFFFF, a negative one.
    let b = x.to_f32_vec().into_iter().map(|x| if x.is_nan() { -f32::NAN } else { x });
    let b = tensor(b.collect::<Vec<f32>>(), x.shape()).to_dtype(DType::BF16).expect("a float cast");
    for (name, plain, saturating) in [
        ("e4m3fn", e4m3fn_encode as fn(f32) -> u8, e4m3fn_encode_saturating as fn(f32) -> u8),
        ("e5m2", e5m2_encode, e5m2_encode_saturating),
    ] {
        // torch 2.13 saturates e4m3fn, which has no infinity, and only there.
        let cast = if name == "e4m3fn" { saturating } else { plain };
        got.insert(format!("cast.{name}"), bytes_of(&x, cast));
        got.insert(format!("cast.bf16.{name}"), bytes_of(&b, cast));
        got.insert(format!("cast.sat.{name}"), bytes_of(&x, saturating));
    }
}

#[test]
fn float8() {
    let family = Family::read("float8");
    let (x, xr) = (family.tensor("x"), family.tensor("xr"));
    let mut got = Got::new();
    for (name, float8) in [
        ("e4m3fn", Float8::E4m3fn),
        ("e5m2", Float8::E5m2),
        ("e4m3fnuz", Float8::E4m3fnuz),
        ("e5m2fnuz", Float8::E5m2fnuz),
    ] {
        got.insert(format!("decode.{name}"), decoded(256, |code| float8.decode(code)));
    }
    plain_casts(&family, &mut got);
    for (name, float8) in [("e4m3fn", Float8::E4m3fn), ("e5m2", Float8::E5m2)] {
        for (granularity, x, block) in [
            ("row", &x, [1, 128]),
            ("g32", &x, [1, 32]),
            ("tensor", &xr, [14, 128]),
            ("block7x64", &xr, [7, 64]),
        ] {
            let name = format!("{name}.{granularity}");
            let scale = choose_scale_float8(x, &block, float8, (None, None), false).expect(&name);
            let q = quantize_affine_float8(x, &block, &scale, float8).expect(&name);
            if granularity == "row" || granularity == "block7x64" {
                let dq = dequantize_affine_float8(&q, &block, &scale, float8, DType::F32);
                got.insert(format!("{name}.dq"), dq.expect(&name));
            }
            got.insert(format!("{name}.scale"), scale);
            got.insert(format!("{name}.q"), q);
        }
        let block = [1, 128];
        let pow2 = choose_scale_float8(&xr, &block, float8, (None, None), true).expect(name);
        got.insert(format!("{name}.pow2.scale"), pow2);
        let bounds = (Some(1e-3), Some(10.0));
        let scale = choose_scale_float8(&x, &block, float8, bounds, false).expect(name);
        let q = quantize_affine_float8(&x, &block, &scale, float8).expect(name);
        got.insert(format!("{name}.lbub.scale"), scale);
        got.insert(format!("{name}.lbub.q"), q);
    }
    family.check(&got, &["x", "xr", "cast.x"]);
}

#[test]
fn float8_block128() {
    let family = Family::read("float8_block128");
    let w = family.tensor("w").to_dtype(DType::F32).expect("a float cast");
    let a = tensor(w.to_f32_vec()[..24 * 256].to_vec(), &[24, 256]);
    let mut got = Got::new();
    for (name, x, block) in [
        ("train.weight", &w, [128, 128]),
        ("train.act", &a, [1, 128]),
        ("train.act_rhs", &w, [128, 1]),
    ] {
        let (q, rscale) = quantize_blockwise_float8(x, &block, Float8::E4m3fn).expect(name);
        got.insert(format!("{name}.q"), q);
        got.insert(format!("{name}.rscale"), rscale);
    }
    for (name, x, block) in [("affine.w", &w, [128, 128]), ("affine.a", &a, [1, 128])] {
        let scale = choose_scale_float8(x, &block, Float8::E4m3fn, (None, None), false);
        let scale = scale.expect(name);
        let q = quantize_affine_float8(x, &block, &scale, Float8::E4m3fn).expect(name);
        got.insert(format!("{name}.scale"), scale);
        got.insert(format!("{name}.q"), q);
    }
    family.check(&got, &["w"]);
}

/// Two codes a byte where torchao has them so.
fn packed(codes: &Tensor, element: Element) -> Tensor {
    if element != Element::E2m1 {
        return codes.clone();
    }
    let mut bytes = Vec::new();
    pack_bits(4, codes.as_slice::<u8>().expect("u8"), &mut bytes);
    let (rows, k) = codes.dims2().expect("a matrix");
    tensor(bytes, &[rows, k / 2])
}

fn mx(family: &Family, elements: &[(&str, Element)], got: &mut Got) {
    for (name, element) in elements {
        for (mode_name, mode) in [
            ("floor", ScaleCalculationMode::Floor),
            ("ceil", ScaleCalculationMode::Ceil),
            ("even", ScaleCalculationMode::Even),
            ("rceil", ScaleCalculationMode::Rceil),
        ] {
            for input in ["x", "xn", "xb"] {
                let name = format!("{name}.{mode_name}.{input}");
                let x = family.tensor(input);
                let (scale, codes) = to_mx(&x, *element, 32, mode).expect(&name);
                if input == "x" {
                    let dq = from_mx(&codes, &scale, *element, 32).expect(&name);
                    got.insert(format!("{name}.dq"), dq);
                }
                got.insert(format!("{name}.q"), packed(&codes, *element));
                got.insert(format!("{name}.scale"), scale);
            }
        }
    }
}

#[test]
fn mx_fp8() {
    let family = Family::read("mx_fp8");
    let mut got = Got::new();
    mx(&family, &[("e4m3", Element::E4m3), ("e5m2", Element::E5m2)], &mut got);
    family.check(&got, &["x", "xn", "xb"]);
}

#[test]
fn mx_fp6_fp4() {
    let family = Family::read("mx_fp6_fp4");
    let mut got = Got::new();
    let elements =
        [("fp6_e2m3", Element::E2m3), ("fp6_e3m2", Element::E3m2), ("fp4_e2m1", Element::E2m1)];
    mx(&family, &elements, &mut got);
    let swizzled = to_blocked(&family.tensor("swizzle.in")).expect("a matrix");
    let back = from_blocked(&swizzled, 140, 9).expect("as many");
    assert_eq!(back.bytes(), family.tensor("swizzle.in").bytes());
    got.insert("swizzle.out".into(), swizzled);
    let x = family.tensor("cast.x");
    for (name, codes, ebits, mbits) in
        [("f4", 16, 2, 1), ("f6_e2m3", 64, 2, 3), ("f6_e3m2", 64, 3, 2)]
    {
        got.insert(format!("cast.{name}"), bytes_of(&x, |x| floatx_encode(x, ebits, mbits)));
        got.insert(format!("decode.{name}"), decoded(codes, |c| floatx_decode(c, ebits, mbits)));
    }
    got.insert("decode.e8m0".into(), decoded(256, e8m0_decode));
    family.check(&got, &["x", "xn", "xb", "swizzle.in", "cast.x"]);
}

#[test]
fn nvfp4() {
    let family = Family::read("nvfp4");
    let mut got = Got::new();
    for input in ["x", "xr", "xrb"] {
        let x = family.tensor(input);
        let amax = x.to_f32_vec().into_iter().fold(0.0, |amax: f32, x| amax.max(x.abs()));
        for (level, above) in [(1, None), (2, Some(per_tensor_amax_to_scale(amax)))] {
            let name = format!("{input}.l{level}");
            let (scale, codes) = nvfp4_quantize(&x, above).expect(&name);
            let dq = nvfp4_dequantize(&codes, &scale, above).expect(&name);
            got.insert(format!("{name}.dq"), dq);
            got.insert(format!("{name}.q"), packed(&codes, Element::E2m1));
            got.insert(format!("{name}.scale"), scale);
            if let Some(above) = above {
                got.insert(format!("{name}.per_tensor_scale"), tensor(vec![above], &[]));
            }
        }
    }
    family.check(&got, &["x", "xr", "xrb"]);
}

#[test]
fn floatx() {
    let family = Family::read("floatx");
    let x = family.tensor("x");
    let mut got = Got::new();
    for (ebits, mbits) in [(3, 2), (2, 3), (2, 2), (3, 1), (2, 1), (1, 2)] {
        let name = format!("e{ebits}m{mbits}");
        let scale = choose_qparams_affine_floatx(&x, ebits, mbits).expect(&name);
        let q = quantize_affine_floatx(&x, &scale, ebits, mbits).expect(&name);
        let dq = dequantize_affine_floatx(&q, &scale, ebits, mbits).expect(&name);
        let codes = 1 << (1 + ebits + mbits);
        got.insert(format!("{name}.decode"), decoded(codes, |c| floatx_decode(c, ebits, mbits)));
        got.insert(format!("{name}.scale"), scale);
        got.insert(format!("{name}.q"), q);
        got.insert(format!("{name}.dq"), dq);
    }
    family.check(&got, &["x"]);
}

/// What `quantize_` makes of a Linear(64 → 32), and its results: codes and scales to the bit, results by the tolerance
/// of torch's sums and of the dtype they are rounded to.
#[test]
fn linear_inference() {
    let family = Family::read("linear_inference");
    let (w, x) = (family.tensor("w"), family.tensor("x"));
    let bias = family.tensor("b").to_f32_vec();
    let row: Granularity = "per-row".parse().expect("a granularity");
    let dynamic = |granularity: &str| Float8DynamicActivationFloat8WeightConfig {
        granularity: granularity.parse().expect("a granularity"),
        ..Default::default()
    };
    let weight_only = Float8WeightOnlyConfig { granularity: row, ..Default::default() };
    let cases: [(&str, &dyn Recipe, DType, bool); 5] = [
        ("float8wo.f32", &weight_only, DType::F32, true),
        ("float8wo.bf16", &weight_only, DType::BF16, false),
        ("float8dq_row.bf16", &dynamic("per-row"), DType::BF16, false),
        ("float8dq_tensor.f32", &dynamic("per-tensor"), DType::F32, true),
        ("float8dq_tensor.bf16", &dynamic("per-tensor"), DType::BF16, false),
    ];
    for (name, recipe, dtype, stored) in cases {
        let dense = DenseWeight::new(w.to_dtype(dtype).expect("a float cast")).expect("a matrix");
        let made = recipe.quantize(&Cpu::new(Some(1)), &dense).expect(name);
        for (tensor_name, tensor) in made.tensors().into_iter().filter(|_| stored) {
            let wanted = family.tensor(&format!("{name}.{tensor_name}"));
            assert_eq!(tensor.bytes(), wanted.bytes(), "{name}.{tensor_name}");
        }
        let x = x.to_dtype(dtype).expect("a float cast").to_f32_vec();
        let mut y = vec![f32::NAN; 5 * 32];
        made.linear(&Cpu::new(Some(1)), &x, 5, &mut y).expect(name);
        for (at, y) in y.iter_mut().enumerate() {
            *y += bias[at % 32];
        }
        let wanted = family.tensor(&format!("{name}.y"));
        let sqnr = compute_error(&wanted, &tensor(y, &[5, 32])).expect("one shape");
        // bf16 results have 8 bits: 50 dB; and bf16 activations get a scale in bf16 from torchao, in f32 here.
        let gate = match (dtype, name.contains("dq")) {
            (DType::F32, _) => 80.0,
            (_, false) => 40.0,
            (_, true) => 30.0,
        };
        assert!(sqnr > gate, "{name}: {sqnr:.1} dB");
    }
}
