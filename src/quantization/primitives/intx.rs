//! Rows of 1 to 8 bit codes in groups, as torchao's `IntxUnpackedToInt8Tensor` has them (Q13).

use super::affine::quantize_affine;
use super::cast::CodeRange;
use super::qparams::{MappingType, QParamsOptions, choose_qparams_affine};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Codes of rows with what dequantizes them: `x = (q − zero_point) · scale`.
#[derive(Clone, Debug)]
pub struct IntxRows {
    /// i8 `(N, K)`.
    pub codes: Tensor,
    /// `(N, K/g)`.
    pub scale: Tensor,
    /// i8 `(N, K/g)`; zeros for symmetric mappings.
    pub zero_point: Tensor,
}

/// Groups of `group_size` along K: scale in the weight's dtype with eps its smallest normal number, zero points i8 (Q13).
///
/// A `scale_dtype` other than the weight's rounds the scales, and the codes are made again with them.
pub fn intx_quantize(
    w: &Tensor,
    group_size: usize,
    mapping: MappingType,
    range: CodeRange,
    scale_dtype: Option<DType>,
) -> Result<IntxRows> {
    let block = [1, group_size];
    let options = QParamsOptions {
        zero_point_dtype: Some(DType::I8),
        keepdim: true,
        ..QParamsOptions::default()
    };
    let (mut scale, zero_point) = choose_qparams_affine(w, mapping, &block, range, options)?;
    if let Some(dtype) = scale_dtype {
        scale = scale.to_dtype(dtype)?;
    }
    let codes = quantize_affine(w, &block, &scale, &zero_point, range)?;
    Ok(IntxRows { codes, scale, zero_point })
}
