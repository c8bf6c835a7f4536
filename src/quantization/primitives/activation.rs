//! Dynamic quantization of activations, a scale for each token (N16, N17).

use super::affine::{dequantize_affine, quantize_affine};
use super::cast::{CodeRange, IntType};
use super::granularity::Granularity;
use super::qparams::{MappingType, QParamsOptions, choose_qparams_affine};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Symmetric int8 codes −127 ..= 127 and the scale `max(absmax / 127, 1e-5)` of each token (N17).
/// The scale is f32 for f16 inputs, else of the input's dtype.
pub fn quantize_activation_per_token_absmax(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let block = Granularity::PerToken.block_size(x.shape())?;
    let range = CodeRange::new(IntType::Int(8), -127, 127)?;
    let options = QParamsOptions {
        eps: Some(1e-5),
        scale_dtype: (x.dtype() == DType::F16).then_some(DType::F32),
        ..QParamsOptions::default()
    };
    let (scale, zero) = choose_qparams_affine(x, MappingType::Symmetric, &block, range, options)?;
    let codes = quantize_affine(x, &block, &scale, &zero, range)?;
    Ok((codes, scale))
}

/// `x` through asymmetric int8 and back, a scale for each token (N16). Scales are f32; zero points are of
/// `zero_point_dtype`: f32 as torchao's function has it, or i8 as its 8da4w activations have it.
pub fn per_token_dynamic_quant(x: &Tensor, zero_point_dtype: DType) -> Result<Tensor> {
    let block = Granularity::PerToken.block_size(x.shape())?;
    let range = CodeRange::full(IntType::Int(8))?;
    let options = QParamsOptions {
        scale_dtype: Some(DType::F32),
        zero_point_dtype: Some(zero_point_dtype),
        ..QParamsOptions::default()
    };
    let (scale, zero) = choose_qparams_affine(x, MappingType::Asymmetric, &block, range, options)?;
    let codes = quantize_affine(x, &block, &scale, &zero, range)?;
    dequantize_affine(&codes, &block, &scale, &zero, x.dtype())
}
