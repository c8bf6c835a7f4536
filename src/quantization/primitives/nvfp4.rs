//! NVFP4: fp4 in blocks of 16 with e4m3 scales, and one f32 scale above them or none (M13).

use crate::error::{Error, Result};
use crate::kernels::dtypes::{e4m3fn_decode, e4m3fn_encode_saturating, floatx_encode};
use crate::kernels::float_linear::Element;
use crate::quantization::primitives::qparams::nan_max;
use crate::tensor::Tensor;

/// Columns that share an e4m3 scale.
pub const NVFP4_BLOCK: usize = 16;

/// e4m3's smallest normal number, 2⁻⁶: no block's scale is smaller.
const SMALLEST_SCALE: f32 = 1.0 / 64.0;

/// `amax / (448 · 6)`: with it the largest block's scale is e4m3's largest value.
pub fn per_tensor_amax_to_scale(amax: f32) -> f32 {
    amax / (448.0 * 6.0)
}

/// The e4m3 scales `(…, K / 16)` and the fp4 codes of `x (…, K)`, one a byte.
///
/// Without `per_tensor_scale` a block's scale is `e4m3(amax / 6)`; with it, `e4m3(amax / 6 / per_tensor_scale)`.
pub fn nvfp4_quantize(x: &Tensor, per_tensor_scale: Option<f32>) -> Result<(Tensor, Tensor)> {
    let shape = scales_shape(x.shape())?;
    let values = x.to_f32_vec();
    let (mut scales, mut codes) = (Vec::new(), Vec::with_capacity(values.len()));
    for block in values.chunks_exact(NVFP4_BLOCK) {
        let amax = block.iter().fold(0.0, |amax, x| nan_max(amax, x.abs()));
        let (scale, factor) = nvfp4_scale(amax, per_tensor_scale);
        scales.push(scale);
        codes.extend(block.iter().map(|x| {
            let scaled = if x.is_nan() || !factor.is_nan() { x * factor } else { f32::NAN };
            // NaN passes through torch's clamp.
            floatx_encode(scaled, 2, 1)
        }));
    }
    Ok((Tensor::new(scales, &shape)?, Tensor::new(codes, x.shape())?))
}

/// The code and the value of `x` in a block whose scale is the byte `scale`.
pub fn nvfp4_round(x: f32, scale: u8, per_tensor_scale: Option<f32>) -> (u8, f32) {
    let decoded = e4m3fn_decode(scale);
    let factor = per_tensor_scale.map_or(1.0 / decoded, |above| 1.0 / above / decoded);
    let code = floatx_encode(x * factor, 2, 1);
    (code, Element::E2m1.decode(code) * (per_tensor_scale.unwrap_or(1.0) * decoded))
}

/// The e4m3 code of a block's scale, and what its numbers are multiplied by before they are rounded.
pub fn nvfp4_scale(amax: f32, per_tensor_scale: Option<f32>) -> (u8, f32) {
    match per_tensor_scale {
        None => {
            let scale = encode_scale(amax / 6.0);
            (scale, 1.0 / e4m3fn_decode(scale))
        }
        Some(above) => {
            let scale = encode_scale(quotient(amax / 6.0, above));
            (scale, 1.0 / above / e4m3fn_decode(scale))
        }
    }
}

/// 0 / 0 is a negative NaN on x86, where torchao runs; here it is on every processor.
fn quotient(a: f32, b: f32) -> f32 {
    if a == 0.0 && b == 0.0 { -f32::NAN } else { a / b }
}

fn encode_scale(scale: f32) -> u8 {
    // `max` would drop NaN, which torch's clamp keeps.
    e4m3fn_encode_saturating(if scale < SMALLEST_SCALE { SMALLEST_SCALE } else { scale })
}

/// `code · (per_tensor_scale · scale)`, f32.
pub fn nvfp4_dequantize(
    codes: &Tensor,
    scales: &Tensor,
    per_tensor_scale: Option<f32>,
) -> Result<Tensor> {
    let shape = scales_shape(codes.shape())?;
    if scales.shape() != shape {
        return Err(Error::invalid(format!("scales are {:?}; wanted {shape:?}", scales.shape())));
    }
    let blocks = codes.as_slice::<u8>()?.chunks_exact(NVFP4_BLOCK).zip(scales.as_slice::<u8>()?);
    let values = blocks.flat_map(|(codes, scale)| {
        let scale = per_tensor_scale.unwrap_or(1.0) * e4m3fn_decode(*scale);
        codes.iter().map(move |code| Element::E2m1.decode(*code) * scale)
    });
    Tensor::new(values.collect::<Vec<f32>>(), codes.shape())
}

fn scales_shape(shape: &[usize]) -> Result<Vec<usize>> {
    let k = shape.last().copied().unwrap_or(0);
    if !k.is_multiple_of(NVFP4_BLOCK) {
        return Err(Error::invalid(format!("K = {k} is not a multiple of 16, NVFP4's block")));
    }
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last /= NVFP4_BLOCK;
    }
    Ok(shape)
}
