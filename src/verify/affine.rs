//! `affine_*`: choose, quantize and dequantize over blocks (N02–N11).

use super::checks::{Checks, number_behind, unknown};
use crate::error::Result;
use crate::quantization::primitives::{
    CodeRange, Float8, Granularity, IntType, MappingType, QParamsOptions, choose_qparams_affine,
    choose_qparams_affine_dont_preserve_zero, choose_qparams_affine_tinygemm,
    choose_qparams_affine_with_min_max, choose_scale_float8, dequantize_affine,
    dequantize_affine_no_zero_point, dequantize_affine_tinygemm, quantize_affine,
    quantize_affine_no_zero_point, quantize_affine_tinygemm,
};
use crate::tensor::{DType, Tensor};

fn mapping(word: &str) -> Result<MappingType> {
    match word {
        "sym" => Ok(MappingType::Symmetric),
        "symnc" => Ok(MappingType::SymmetricNoClippingErr),
        "asym" => Ok(MappingType::Asymmetric),
        _ => Err(unknown(word)),
    }
}

fn int8() -> Result<CodeRange> {
    CodeRange::full(IntType::Int(8))
}

/// `int4`, `uint8`: its codes in a container of 8 bits, as the vectors were made.
fn range_in_8_bits(word: &str) -> Result<CodeRange> {
    let signed = word.strip_prefix("int");
    let bits = number_behind(word, if signed.is_some() { "int" } else { "uint" })?;
    let half = i32::try_from(bits).ok().filter(|bits| (1..=8).contains(bits));
    let half = 1 << (half.ok_or_else(|| unknown(word))? - 1);
    match signed {
        Some(_) => CodeRange::new(IntType::Int(8), -half, half - 1),
        None => CodeRange::new(IntType::UInt(8), 0, 2 * half - 1),
    }
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
    fn run(&self, prefix: &str, checks: &mut Checks) -> Result<()> {
        let Case { input, mapping, block, range, options } = *self;
        let (scale, zero) = choose_qparams_affine(input, mapping, block, range, options)?;
        let q = quantize_affine(input, block, &scale, &zero, range)?;
        let dq = dequantize_affine(&q, block, &scale, &zero, DType::F32)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zp"), &zero)?;
        checks.exact(format!("{prefix}.q"), &q)?;
        checks.exact(format!("{prefix}.dq"), &dq)
    }
}

/// `int4.sym.g32`
pub(super) fn per_group(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    for prefix in checks.prefixes(".scale") {
        let words: Vec<&str> = prefix.split('.').collect();
        let [codes, map, group] = words[..] else { return Err(unknown(&prefix)) };
        let block = &[1, number_behind(group, "g")?];
        let (mapping, range) = (mapping(map)?, range_in_8_bits(codes)?);
        let options = QParamsOptions::default();
        Case { input: &x, mapping, block, range, options }.run(&prefix, checks)?;
    }
    Ok(())
}

/// `uint3.asym`, in groups of 32.
pub(super) fn low_bit(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    for prefix in checks.prefixes(".scale") {
        let Some((codes, map)) = prefix.split_once('.') else { return Err(unknown(&prefix)) };
        let bits = |before| {
            let bits = number_behind(codes, before)?;
            u32::try_from(bits).map_err(|_| unknown(codes))
        };
        let target = match codes.starts_with('u') {
            true => IntType::UInt(bits("uint")?),
            false => IntType::Int(bits("int")?),
        };
        let (block, options) = (&[1, 32], QParamsOptions::default());
        let range = CodeRange::full(target)?;
        Case { input: &x, mapping: mapping(map)?, block, range, options }.run(&prefix, checks)?;
    }
    Ok(())
}

pub(super) fn granularity(checks: &mut Checks) -> Result<()> {
    let (x, x3, xb) = (checks.input("x")?, checks.input("x3")?, checks.input("xb")?);
    let (min, max) = (checks.input("minmax.min")?, checks.input("minmax.max")?);
    let none = QParamsOptions::default();
    let (_, k) = x.dims2()?;
    for prefix in checks.prefixes(".scale") {
        let words: Vec<&str> = prefix.split('.').collect();
        let [block, map, ..] = words[..] else { return Err(unknown(&prefix)) };
        let mapping = mapping(map)?;
        if block == "minmax" {
            let options = QParamsOptions { zero_point_dtype: Some(DType::I32), ..none };
            let (scale, zero) =
                choose_qparams_affine_with_min_max(&min, &max, mapping, int8()?, options)?;
            checks.exact(format!("{prefix}.scale"), &scale)?;
            checks.exact(format!("{prefix}.zp"), &zero)?;
            continue;
        }
        let range = range_in_8_bits(words.get(2).copied().unwrap_or("int8"))?;
        let small: Vec<f32> = x.to_f32_vec().iter().map(|value| value * 1e-3).collect();
        let small = Tensor::new(small, x.shape())?;
        let (input, block, options) = match block {
            "token3d" => (&x3, blocks("per-token", &x3)?, none),
            "block3d" => (&x3, blocks("per-block:2x16", &x3)?, none),
            "eps1e-2" => (&small, vec![1, k], QParamsOptions { eps: Some(1e-2), ..none }),
            "zpf32" => {
                let dtype = Some(DType::F32);
                let options =
                    QParamsOptions { scale_dtype: dtype, zero_point_dtype: dtype, ..none };
                (&x, vec![1, k], options)
            }
            "zpi8" => {
                let zero_point_dtype = Some(DType::I8);
                (&x, vec![1, 32], QParamsOptions { zero_point_dtype, keepdim: true, ..none })
            }
            "bf16" => match words.get(3) {
                Some(group) => (&xb, vec![1, number_behind(group, "g")?], none),
                None => (&xb, vec![1, k], none),
            },
            "tensor" => (&x, blocks("per-tensor", &x)?, none),
            other => (&x, blocks(&granularity_word(other)?, &x)?, none),
        };
        Case { input, mapping, block: &block, range, options }.run(&prefix, checks)?;
    }
    Ok(())
}

fn blocks(granularity: &str, x: &Tensor) -> Result<Vec<usize>> {
    granularity.parse::<Granularity>()?.block_size(x.shape())
}

/// `axis0`, `group16`, `block2x8` as the granularity is written.
fn granularity_word(word: &str) -> Result<String> {
    for kind in ["axis", "group", "block"] {
        if let Some(size) = word.strip_prefix(kind) {
            return Ok(format!("per-{kind}:{size}"));
        }
    }
    Err(unknown(word))
}

/// `dpz.int32b4`, `tg.uint8b8`, `none`
pub(super) fn zero_point_domain(checks: &mut Checks) -> Result<()> {
    let x = checks.input("x")?;
    let block = [1, 32];
    let options = QParamsOptions { eps: Some(1e-6), ..QParamsOptions::default() };
    for prefix in checks.prefixes(".scale").into_iter().filter(|prefix| prefix != "none") {
        let Some((how, codes)) = prefix.split_once('.') else { return Err(unknown(&prefix)) };
        let Some((target, bits)) = codes.split_once('b') else { return Err(unknown(&prefix)) };
        let bits = bits.parse().ok().filter(|bits| (1..=8_u32).contains(bits));
        let max = (1 << bits.ok_or_else(|| unknown(&prefix))?) - 1;
        let target = if target == "int32" { IntType::Int(32) } else { IntType::UInt(8) };
        let range = CodeRange::new(target, 0, max)?;
        let (scale, zero, q, dq) = if how == "tg" {
            tinygemm(&x, &block, range, options, DType::F32)?
        } else {
            let (scale, zero) =
                choose_qparams_affine_dont_preserve_zero(&x, &block, range, options)?;
            let q = quantize_affine(&x, &block, &scale, &zero, range)?;
            let dq = dequantize_affine(&q, &block, &scale, &zero, DType::F32)?;
            (scale, zero, q, dq)
        };
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zp"), &zero)?;
        checks.exact(format!("{prefix}.q"), &as_u8(&q)?)?;
        checks.exact(format!("{prefix}.dq"), &dq)?;
    }
    let default = QParamsOptions::default();
    let (scale, _) = choose_qparams_affine(&x, MappingType::Symmetric, &block, int8()?, default)?;
    let q = quantize_affine_no_zero_point(&x, &block, &scale, int8()?)?;
    let dq = dequantize_affine_no_zero_point(&q, &block, &scale, DType::F32)?;
    checks.exact("none.scale", &scale)?;
    checks.exact("none.q", &q)?;
    checks.exact("none.dq", &dq)
}

/// Scale, zero point, codes, values.
fn tinygemm(
    x: &Tensor,
    block: &[usize],
    range: CodeRange,
    options: QParamsOptions,
    dtype: DType,
) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
    let (scale, zero) = choose_qparams_affine_tinygemm(x, block, range, options)?;
    let q = quantize_affine_tinygemm(x, block, &scale, &zero, range)?;
    let dq = dequantize_affine_tinygemm(&q, block, (&scale, &zero), range, dtype)?;
    Ok((scale, zero, q, dq))
}

/// i32 codes of an unsigned range in their container.
fn as_u8(codes: &Tensor) -> Result<Tensor> {
    if codes.dtype() == DType::U8 {
        return Ok(codes.clone());
    }
    let codes_of = codes.as_slice::<i32>()?.iter();
    let bytes = codes_of.map(|code| u8::try_from(*code).map_err(|_| unknown("codes above 255")));
    Tensor::new(bytes.collect::<Result<Vec<u8>>>()?, codes.shape())
}

/// Every mapping in f32, bf16 and f16, with NaN and infinity.
pub(super) fn dtypes(checks: &mut Checks) -> Result<()> {
    for dtype in ["f32", "bf16", "f16"] {
        let x = checks.input(&format!("{dtype}.x"))?;
        integers(checks, &x, dtype)?;
        raw_ranges(checks, &x, dtype)?;
        let (_, k) = x.dims2()?;
        for (name, target) in
            [("e4m3fn", Float8::E4m3fn), ("e5m2", Float8::E5m2), ("e4m3fnuz", Float8::E4m3fnuz)]
        {
            let scale = |bounds, power| choose_scale_float8(&x, &[1, k], target, bounds, power);
            let bounds = (Some(0.01), Some(100.0));
            checks.exact(format!("{dtype}.{name}"), &scale((None, None), false)?)?;
            checks.exact(format!("{dtype}.{name}.bounds"), &scale(bounds, false)?)?;
            checks.exact(format!("{dtype}.{name}.e8m0"), &scale((None, None), true)?)?;
        }
    }
    Ok(())
}

/// `bf16.asym.b4.own`
fn integers(checks: &mut Checks, x: &Tensor, dtype: &str) -> Result<()> {
    let block = [1, 32];
    for prefix in checks.prefixes(".dq").into_iter().filter(|p| p.split('.').next() == Some(dtype))
    {
        let words: Vec<&str> = prefix.split('.').collect();
        let [_, map, bits, how] = words[..] else { continue };
        let (scale_dtype, zero_point_dtype) = match how {
            "own" => (None, DType::I32),
            "f32" => (Some(DType::F32), DType::I8),
            "flt" => (None, DType::F32),
            _ => return Err(unknown(&prefix)),
        };
        let bits = u32::try_from(number_behind(bits, "b")?).map_err(|_| unknown(&prefix))?;
        let range = CodeRange::full(IntType::Int(bits))?;
        let options = QParamsOptions {
            scale_dtype,
            zero_point_dtype: Some(zero_point_dtype),
            ..QParamsOptions::default()
        };
        let (scale, zero) = choose_qparams_affine(x, mapping(map)?, &block, range, options)?;
        let q = quantize_affine(x, &block, &scale, &zero, range)?;
        let dq = dequantize_affine(&q, &block, &scale, &zero, x.dtype())?;
        checks.exact(format!("{prefix}.dq"), &dq)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zp"), &zero)?;
        checks.exact(format!("{prefix}.q"), &q)?;
    }
    Ok(())
}

/// `f16.tgeps`, `f32.dpz`
fn raw_ranges(checks: &mut Checks, x: &Tensor, dtype: &str) -> Result<()> {
    let range = CodeRange::new(IntType::Int(32), 0, 15)?;
    let block = [1, 32];
    for (name, eps) in [("", None), ("eps", Some(1e-6))] {
        let options = QParamsOptions { eps, ..QParamsOptions::default() };
        let (scale, zero, q, dq) = tinygemm(x, &block, range, options, x.dtype())?;
        let prefix = format!("{dtype}.tg{name}");
        checks.exact(format!("{prefix}.dq"), &dq)?;
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zp"), &zero)?;
        checks.exact(format!("{prefix}.q"), &q)?;
        let (scale, zero) = choose_qparams_affine_dont_preserve_zero(x, &block, range, options)?;
        let q = quantize_affine(x, &block, &scale, &zero, range)?;
        let prefix = format!("{dtype}.dpz{name}");
        checks.exact(format!("{prefix}.scale"), &scale)?;
        checks.exact(format!("{prefix}.zp"), &zero)?;
        checks.exact(format!("{prefix}.q"), &q)?;
    }
    Ok(())
}
