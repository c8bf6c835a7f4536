//! Small floats: float8, float8_block128, mx_fp8, mx_fp6_fp4, nvfp4 and floatx.

use super::checks::{Checks, unknown};
use crate::error::Result;
use crate::kernels::dtypes::{
    e4m3fn_encode_saturating, e5m2_encode, e5m2_encode_saturating, e8m0_decode, floatx_decode,
    floatx_encode,
};
use crate::kernels::float_linear::Element;
use crate::quantization::primitives::{
    Float8, ScaleCalculationMode, choose_qparams_affine_floatx, choose_scale_float8,
    dequantize_affine_float8, dequantize_affine_floatx, from_blocked, from_mx, nvfp4_dequantize,
    nvfp4_quantize, pack_bits, per_tensor_amax_to_scale, quantize_affine_float8,
    quantize_affine_floatx, quantize_blockwise_float8, to_blocked, to_mx,
};
use crate::tensor::{DType, Tensor};

fn bytes_of(x: &Tensor, encode: impl Fn(f32) -> u8) -> Result<Tensor> {
    Tensor::new(x.to_f32_vec().into_iter().map(encode).collect::<Vec<u8>>(), x.shape())
}

/// The values of the codes of `bits` bits.
fn decoded(bits: u32, decode: impl Fn(u8) -> f32) -> Result<Tensor> {
    let last = u8::MAX >> 8_u32.saturating_sub(bits);
    let values: Vec<f32> = (0..=last).map(decode).collect();
    let shape = [values.len()];
    Tensor::new(values, &shape)
}

fn scalar(value: f32) -> Result<Tensor> {
    Tensor::new(vec![value], &[])
}

/// PyTorch's own casts, and those behind a clamp.
fn plain_casts(checks: &mut Checks) -> Result<()> {
    let x = checks.input("cast.x")?;
    // torch's cast to bf16 makes every NaN 0xFFFF, a negative one.
    let b = x.to_f32_vec().into_iter().map(|x| if x.is_nan() { -f32::NAN } else { x });
    let b = Tensor::new(b.collect::<Vec<f32>>(), x.shape())?.to_dtype(DType::BF16)?;
    for (name, cast, saturating) in [
        // torch 2.13 saturates e4m3fn, which has no infinity, and only there.
        ("e4m3fn", e4m3fn_encode_saturating as fn(f32) -> u8, e4m3fn_encode_saturating as _),
        ("e5m2", e5m2_encode as _, e5m2_encode_saturating as fn(f32) -> u8),
    ] {
        checks.exact(format!("cast.{name}"), &bytes_of(&x, cast)?)?;
        checks.exact(format!("cast.bf16.{name}"), &bytes_of(&b, cast)?)?;
        checks.exact(format!("cast.sat.{name}"), &bytes_of(&x, saturating)?)?;
    }
    Ok(())
}

pub(super) fn float8(checks: &mut Checks) -> Result<()> {
    let (x, xr) = (checks.input("x")?, checks.input("xr")?);
    for (name, float8) in [
        ("e4m3fn", Float8::E4m3fn),
        ("e5m2", Float8::E5m2),
        ("e4m3fnuz", Float8::E4m3fnuz),
        ("e5m2fnuz", Float8::E5m2fnuz),
    ] {
        checks.exact(format!("decode.{name}"), &decoded(8, |code| float8.decode(code))?)?;
    }
    plain_casts(checks)?;
    let (n, k) = xr.dims2()?;
    for (name, float8) in [("e4m3fn", Float8::E4m3fn), ("e5m2", Float8::E5m2)] {
        for (granularity, x, block) in [
            ("row", &x, [1, k]),
            ("g32", &x, [1, 32]),
            ("tensor", &xr, [n, k]),
            ("block7x64", &xr, [7, 64]),
        ] {
            let name = format!("{name}.{granularity}");
            let scale = choose_scale_float8(x, &block, float8, (None, None), false)?;
            let q = quantize_affine_float8(x, &block, &scale, float8)?;
            let dq = dequantize_affine_float8(&q, &block, &scale, float8, DType::F32)?;
            checks.exact(format!("{name}.dq"), &dq)?;
            checks.exact(format!("{name}.scale"), &scale)?;
            checks.exact(format!("{name}.q"), &q)?;
        }
        let block = [1, k];
        let power = choose_scale_float8(&xr, &block, float8, (None, None), true)?;
        checks.exact(format!("{name}.pow2.scale"), &power)?;
        let bounds = (Some(1e-3), Some(10.0));
        let scale = choose_scale_float8(&x, &block, float8, bounds, false)?;
        let q = quantize_affine_float8(&x, &block, &scale, float8)?;
        checks.exact(format!("{name}.lbub.scale"), &scale)?;
        checks.exact(format!("{name}.lbub.q"), &q)?;
    }
    Ok(())
}

pub(super) fn float8_block128(checks: &mut Checks) -> Result<()> {
    let w = checks.input("w")?.to_dtype(DType::F32)?;
    let (_, k) = w.dims2()?;
    // The activations are the first rows of the weight, as many as their golden codes have.
    let rows = checks.golden("train.act.q")?.dims2()?.0;
    let values = w.to_f32_vec();
    let first =
        values.get(..rows * k).ok_or_else(|| unknown("train.act.q with more rows than w"))?;
    let a = Tensor::new(first.to_vec(), &[rows, k])?;
    for (name, x, block) in [
        ("train.weight", &w, [128, 128]),
        ("train.act", &a, [1, 128]),
        ("train.act_rhs", &w, [128, 1]),
    ] {
        let (q, rscale) = quantize_blockwise_float8(x, &block, Float8::E4m3fn)?;
        checks.exact(format!("{name}.q"), &q)?;
        checks.exact(format!("{name}.rscale"), &rscale)?;
    }
    for (name, x, block) in [("affine.w", &w, [128, 128]), ("affine.a", &a, [1, 128])] {
        let scale = choose_scale_float8(x, &block, Float8::E4m3fn, (None, None), false)?;
        let q = quantize_affine_float8(x, &block, &scale, Float8::E4m3fn)?;
        checks.exact(format!("{name}.scale"), &scale)?;
        checks.exact(format!("{name}.q"), &q)?;
    }
    Ok(())
}

/// Two codes a byte where torchao has them so.
pub(super) fn packed(codes: &Tensor, element: Element) -> Result<Tensor> {
    if element != Element::E2m1 {
        return Ok(codes.clone());
    }
    let mut bytes = Vec::new();
    pack_bits(4, codes.as_slice::<u8>()?, &mut bytes);
    let (rows, k) = codes.dims2()?;
    Tensor::new(bytes, &[rows, k / 2])
}

/// `fp6_e2m3.rceil.xn`; and what the family of the smaller ones holds besides.
pub(super) fn mx(checks: &mut Checks) -> Result<()> {
    for prefix in checks.prefixes(".scale") {
        let words: Vec<&str> = prefix.split('.').collect();
        let [element, mode, input] = words[..] else { return Err(unknown(&prefix)) };
        let element = match element {
            "e4m3" => Element::E4m3,
            "e5m2" => Element::E5m2,
            "fp6_e2m3" => Element::E2m3,
            "fp6_e3m2" => Element::E3m2,
            "fp4_e2m1" => Element::E2m1,
            _ => return Err(unknown(&prefix)),
        };
        let mode: ScaleCalculationMode = mode.parse()?;
        let x = checks.input(input)?;
        let (scale, codes) = to_mx(&x, element, 32, mode)?;
        checks.exact(format!("{prefix}.dq"), &from_mx(&codes, &scale, element, 32)?)?;
        checks.exact(format!("{prefix}.q"), &packed(&codes, element)?)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
    }
    if !checks.contains("swizzle.in") {
        return Ok(());
    }
    let scales = checks.input("swizzle.in")?;
    let swizzled = to_blocked(&scales)?;
    checks.exact("swizzle.out", &swizzled)?;
    let (rows, columns) = scales.dims2()?;
    // Not asked for by name: swizzled and back is what it was.
    checks.exact("swizzle.in", &from_blocked(&swizzled, rows, columns)?)?;
    let x = checks.input("cast.x")?;
    for (name, ebits, mbits) in [("f4", 2, 1), ("f6_e2m3", 2, 3), ("f6_e3m2", 3, 2)] {
        let codes = bytes_of(&x, |x| floatx_encode(x, ebits, mbits))?;
        checks.exact(format!("cast.{name}"), &codes)?;
        let values = decoded(1 + ebits + mbits, |code| floatx_decode(code, ebits, mbits))?;
        checks.exact(format!("decode.{name}"), &values)?;
    }
    checks.exact("decode.e8m0", &decoded(8, e8m0_decode)?)
}

/// `xr.l2`: without and with a scale above.
pub(super) fn nvfp4(checks: &mut Checks) -> Result<()> {
    for prefix in checks.prefixes(".scale") {
        let Some((input, level)) = prefix.split_once('.') else { return Err(unknown(&prefix)) };
        let x = checks.input(input)?;
        let amax = x.to_f32_vec().into_iter().fold(0.0, |amax: f32, x| amax.max(x.abs()));
        let above = (level == "l2").then(|| per_tensor_amax_to_scale(amax));
        let (scale, codes) = nvfp4_quantize(&x, above)?;
        checks.exact(format!("{prefix}.dq"), &nvfp4_dequantize(&codes, &scale, above)?)?;
        checks.exact(format!("{prefix}.q"), &packed(&codes, Element::E2m1)?)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
        if let Some(above) = above {
            checks.exact(format!("{prefix}.per_tensor_scale"), &scalar(above)?)?;
        }
    }
    Ok(())
}

/// `e3m2`
pub(super) fn floatx(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    for prefix in checks.prefixes(".scale") {
        let bits = prefix.strip_prefix('e').and_then(|bits| bits.split_once('m'));
        let bits = bits.and_then(|(e, m)| e.parse().ok().zip(m.parse().ok()));
        let known = |(e, m): &(u32, u32)| (1..=5).contains(e) && *m <= 5 && 1 + e + m <= 8;
        let (ebits, mbits) = bits.filter(known).ok_or_else(|| unknown(&prefix))?;
        let scale = choose_qparams_affine_floatx(&x, ebits, mbits)?;
        let q = quantize_affine_floatx(&x, &scale, ebits, mbits)?;
        let dq = dequantize_affine_floatx(&q, &scale, ebits, mbits)?;
        let values = decoded(1 + ebits + mbits, |code| floatx_decode(code, ebits, mbits))?;
        checks.exact(format!("{prefix}.decode"), &values)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.q"), &q)?;
        checks.exact(format!("{prefix}.dq"), &dq)?;
    }
    Ok(())
}
