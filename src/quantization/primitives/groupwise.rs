//! Scales and codes of groups in a row: the helpers that int4 weight-only workflows are told in (N14, N15, N18).

use super::affine::{
    dequantize_affine, dequantize_affine_no_zero_point, dequantize_affine_tinygemm,
    quantize_affine, quantize_affine_no_zero_point, quantize_affine_tinygemm,
};
use super::cast::{CodeRange, IntType};
use super::granularity::check_group_size;
use super::qparams::{
    MappingType, QParamsOptions, choose_qparams_affine, choose_qparams_affine_dont_preserve_zero,
    choose_qparams_affine_tinygemm,
};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What a zero point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPointDomain {
    /// A code: `x = (q − zero_point) · scale`.
    Int,
    /// A value: `x = (q − mid_point) · scale + zero_point`.
    Float,
    /// There is none: `x = q · scale`.
    None,
}

/// N14's eps for groups.
const GROUP_EPS: f32 = 1e-6;

/// `(scale, zero)` of groups of `group_size` along K for codes `0 ..= 2ⁿ − 1`, each `(N, K / g)` (N14).
///
/// [`ZeroPointDomain::Float`] is tinygemm's and never preserves zero; [`ZeroPointDomain::Int`] does if
/// `preserve_zero`. Scales, and float zeros, are rounded to `dtype`; integer zeros are i32.
pub fn get_groupwise_affine_qparams(
    w: &Tensor,
    n_bit: u32,
    group_size: usize,
    dtype: DType,
    domain: ZeroPointDomain,
    preserve_zero: bool,
) -> Result<(Tensor, Tensor)> {
    let (n, k) = w.dims2()?;
    let group_size = group_size.min(k);
    check_group_size(k, group_size)?;
    let range = group_range(n_bit)?;
    let is_float = domain != ZeroPointDomain::Int;
    let options = QParamsOptions {
        eps: Some(GROUP_EPS),
        scale_dtype: Some(dtype),
        zero_point_dtype: Some(if is_float { dtype } else { DType::I32 }),
        keepdim: false,
    };
    let block = [1, group_size];
    let (scale, zero) = match (domain, preserve_zero) {
        (ZeroPointDomain::Float, false) => {
            choose_qparams_affine_tinygemm(w, &block, range, options)?
        }
        (ZeroPointDomain::Int, false) => {
            choose_qparams_affine_dont_preserve_zero(w, &block, range, options)?
        }
        _ => choose_qparams_affine(w, MappingType::Asymmetric, &block, range, options)?,
    };
    let shape = [n, k.checked_div(group_size).unwrap_or(0)];
    Ok((scale.reshape(&shape)?, zero.reshape(&shape)?))
}

/// Codes `0 ..= 2ⁿ − 1` of groups, one a u8 (N14; torchao's CPU path keeps the same numbers in int32).
pub fn groupwise_affine_quantize_tensor_from_qparams(
    w: &Tensor,
    (scale, zero): (&Tensor, &Tensor),
    n_bit: u32,
    group_size: usize,
    domain: ZeroPointDomain,
) -> Result<Tensor> {
    let block = group_block(w, group_size)?;
    let range = group_range(n_bit)?;
    match domain {
        ZeroPointDomain::Int => quantize_affine(w, &block, scale, zero, range),
        ZeroPointDomain::Float => quantize_affine_tinygemm(w, &block, scale, zero, range),
        ZeroPointDomain::None => quantize_affine_no_zero_point(w, &block, scale, range),
    }
}

/// The values of [`groupwise_affine_quantize_tensor_from_qparams`]'s codes, in the scale's dtype.
pub fn groupwise_affine_dequantize_tensor_from_qparams(
    codes: &Tensor,
    (scale, zero): (&Tensor, &Tensor),
    n_bit: u32,
    group_size: usize,
    domain: ZeroPointDomain,
) -> Result<Tensor> {
    let block = group_block(codes, group_size)?;
    let range = group_range(n_bit)?;
    let dtype = scale.dtype();
    match domain {
        ZeroPointDomain::Int => dequantize_affine(codes, &block, scale, zero, dtype),
        ZeroPointDomain::Float => {
            dequantize_affine_tinygemm(codes, &block, (scale, zero), range, dtype)
        }
        ZeroPointDomain::None => dequantize_affine_no_zero_point(codes, &block, scale, dtype),
    }
}

/// Scales and zeros `(N, K/g)` interleaved as tinygemm reads them: `(K/g, N, 2)` (N14).
pub fn pack_tinygemm_scales_and_zeros(scale: &Tensor, zero: &Tensor) -> Result<Tensor> {
    let (n, groups) = scale.dims2()?;
    if zero.shape() != scale.shape() || zero.dtype() != scale.dtype() {
        return Err(Error::invalid(format!(
            "scales are {} {:?} and zeros {} {:?}; wanted the same dtype and shape",
            scale.dtype(),
            scale.shape(),
            zero.dtype(),
            zero.shape()
        )));
    }
    let (scales, zeros) = (scale.to_f32_vec(), zero.to_f32_vec());
    let order = (0..groups).flat_map(|group| (0..n).map(move |row| row * groups + group));
    let values = order.flat_map(|at| [scales[at], zeros[at]]).collect();
    super::cast::cast(values, scale.dtype(), &[groups, n, 2])
}

/// `(scale, zero_point)` of symmetric signed groups, both in `precision`, each `(N, K/g)` (N15).
/// One bit has the codes −1 and 0. eps is the smallest normal number of `w`'s dtype.
pub fn get_group_qparams_symmetric(
    w: &Tensor,
    n_bit: u32,
    group_size: usize,
    precision: DType,
    mapping: MappingType,
) -> Result<(Tensor, Tensor)> {
    let (n, k) = w.dims2()?;
    let group_size = group_size.min(k);
    check_group_size(k, group_size)?;
    if !(1..=8).contains(&n_bit) {
        return Err(Error::invalid(format!("n_bit is {n_bit}; wanted 1 to 8")));
    }
    let (quant_min, quant_max) = IntType::Int(n_bit).bounds()?;
    let range = CodeRange::new(IntType::Int(8), quant_min, quant_max)?;
    let options = QParamsOptions {
        scale_dtype: Some(precision),
        zero_point_dtype: Some(precision),
        ..QParamsOptions::default()
    };
    let (scale, zero) = choose_qparams_affine(w, mapping, &[1, group_size], range, options)?;
    let shape = [n, k.checked_div(group_size).unwrap_or(0)];
    Ok((scale.reshape(&shape)?, zero.reshape(&shape)?))
}

/// `(codes, scale, zero_point)` of rows, symmetric int8 in `range`; the zero point is i64 (N18).
pub fn dynamically_quantize_per_channel(
    x: &Tensor,
    range: CodeRange,
) -> Result<(Tensor, Tensor, Tensor)> {
    let block = [1, x.dims2()?.1];
    let options = QParamsOptions {
        eps: Some(f32::MIN_POSITIVE),
        zero_point_dtype: Some(DType::I64),
        ..QParamsOptions::default()
    };
    let (scale, zero) = choose_qparams_affine(x, MappingType::Symmetric, &block, range, options)?;
    let codes = quantize_affine(x, &block, &scale, &zero, range)?;
    Ok((codes, scale, zero))
}

fn group_block(w: &Tensor, group_size: usize) -> Result<[usize; 2]> {
    let k = w.dims2()?.1;
    let group_size = group_size.min(k);
    check_group_size(k, group_size)?;
    Ok([1, group_size])
}

fn group_range(n_bit: u32) -> Result<CodeRange> {
    if !(1..=8).contains(&n_bit) {
        return Err(Error::invalid(format!("n_bit is {n_bit}; wanted 1 to 8")));
    }
    CodeRange::new(IntType::UInt(8), 0, (1 << n_bit) - 1)
}
