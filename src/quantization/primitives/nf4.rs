//! NF4 with doubly quantized scales (Q15), each operation rounded to the weight's dtype as torch rounds it.

use super::cast::{cast, check_float, round_to};
use super::qparams::{nan_max, nan_min};
use super::torch_sum::torch_mean;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The sixteen values, to four digits as torchao has them: quantiles of the normal distribution, and 0.
pub const NF4: [f32; 16] = [
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461,
    0.3379, 0.4407, 0.5626, 0.7230, 1.0,
];

/// [`NF4`] in `dtype`.
pub fn nf4_values(dtype: DType) -> [f32; 16] {
    NF4.map(|value| round_to(dtype, value))
}

/// The scales of blocks in 8 bits.
#[derive(Clone, Debug)]
pub struct Nf4Scalers {
    /// i8, one a block.
    pub quantized_scalers: Tensor,
    /// One for each `scaler_block_size` blocks, in the weight's dtype.
    pub quantization_factor: Tensor,
    /// The mean of all scales, in the weight's dtype: one element.
    pub scaler_mean: Tensor,
}

/// Whether blocks of `block_size`, and `scaler_block_size` of those, cut `numel` elements evenly.
pub fn nf4_check(numel: usize, block_size: usize, scaler_block_size: usize) -> Result<()> {
    if block_size == 0 || !block_size.is_multiple_of(2) || scaler_block_size == 0 {
        return Err(Error::invalid(format!(
            "block_size is {block_size} and scaler_block_size {scaler_block_size}; wanted an even number and more than 0, usual are 64 and 256"
        )));
    }
    let whole = block_size.checked_mul(scaler_block_size);
    if whole.is_some_and(|whole| numel.is_multiple_of(whole)) {
        return Ok(());
    }
    let blocks = numel / block_size;
    let fitting: Vec<usize> = [256, 128, 64, 32, 16, 8, 4, 2, 1]
        .into_iter()
        .filter(|size| numel.is_multiple_of(block_size) && blocks.is_multiple_of(*size))
        .take(2)
        .collect();
    let advice = match fitting[..] {
        [] => format!("{numel} is no multiple of block_size {block_size}"),
        [first, ..] => format!("use scaler_block_size {first}"),
    };
    Err(Error::invalid(format!(
        "{numel} weights are not whole groups of {scaler_block_size} blocks of {block_size}; {advice}"
    )))
}

/// The largest magnitude of each block.
fn absmax(values: &[f32], block_size: usize) -> Vec<f32> {
    let most = |block: &[f32]| block.iter().fold(0.0, |most, v| nan_max(most, v.abs()));
    values.chunks(block_size).map(most).collect()
}

/// `mean` of the blocks' absmax, and `round((absmax − mean) · factor)` in −128 ..= 127 with
/// `factor = 256 / (2 · max |absmax − mean|)` of each `scaler_block_size` blocks.
pub fn nf4_double_quantize_scalers(
    w: &Tensor,
    block_size: usize,
    scaler_block_size: usize,
) -> Result<Nf4Scalers> {
    check_float(w, "nf4")?;
    nf4_check(w.numel(), block_size, scaler_block_size)?;
    let dtype = w.dtype();
    let scalers = absmax(&w.to_f32_vec(), block_size);
    let mean = round_to(dtype, torch_mean(&scalers));
    let centred: Vec<f32> = scalers.iter().map(|scaler| round_to(dtype, scaler - mean)).collect();
    let factor = |most: f32| round_to(dtype, 256.0 / round_to(dtype, 2.0 * most));
    let factors: Vec<f32> = absmax(&centred, scaler_block_size).into_iter().map(factor).collect();
    let blocks = centred.chunks(scaler_block_size).zip(&factors);
    let codes = blocks.flat_map(|(block, factor)| {
        block.iter().map(move |scaler| {
            let steps = round_to(dtype, scaler * factor).round_ties_even();
            nan_min(nan_max(steps, -128.0), 127.0)
        })
    });
    let (blocks, groups) = (centred.len(), factors.len());
    Ok(Nf4Scalers {
        quantized_scalers: cast(codes.collect(), DType::I8, &[blocks])?,
        quantization_factor: cast(factors, dtype, &[groups])?,
        scaler_mean: cast(vec![mean], dtype, &[1])?,
    })
}

/// The blocks' scales: `q / factor + mean`.
pub fn nf4_dequantize_scalers(scalers: &Nf4Scalers) -> Result<Tensor> {
    let dtype = scalers.quantization_factor.dtype();
    let (codes, factors) =
        (scalers.quantized_scalers.to_f32_vec(), scalers.quantization_factor.to_f32_vec());
    let mean = scalers.scaler_mean.to_f32_vec().first().copied().unwrap_or_default();
    let per_factor = codes.len().checked_div(factors.len()).unwrap_or(0).max(1);
    let blocks = codes.chunks(per_factor).zip(&factors);
    let scales = blocks.flat_map(|(codes, factor)| {
        codes.iter().map(move |code| round_to(dtype, round_to(dtype, code / factor) + mean))
    });
    cast(scales.collect(), dtype, &[codes.len()])
}

/// The index of the nearest of [`NF4`] to `x / absmax` for every element of whole blocks, the first of equals, 0 for NaN.
pub fn nf4_codes(values: &[f32], block_size: usize, dtype: DType) -> Vec<u8> {
    let table = nf4_values(dtype);
    let mut codes = Vec::with_capacity(values.len());
    for (block, absmax) in values.chunks(block_size).zip(absmax(values, block_size)) {
        codes.extend(block.iter().map(|x| nearest(round_to(dtype, x / absmax), &table, dtype)));
    }
    codes
}

fn nearest(x: f32, table: &[f32; 16], dtype: DType) -> u8 {
    let (mut best, mut least) = (0, f32::INFINITY);
    for (code, value) in (0..).zip(table) {
        let off = round_to(dtype, x - value).abs();
        if off < least {
            (best, least) = (code, off);
        }
    }
    best
}

/// Two codes a byte, the first in the high nibble (L04).
pub fn nf4_pack(codes: &[u8]) -> Vec<u8> {
    codes.as_chunks::<2>().0.iter().map(|[first, second]| first << 4 | second).collect()
}

/// The codes of [`nf4_pack`].
pub fn nf4_unpack(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect()
}
