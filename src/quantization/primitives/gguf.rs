//! torchao's outline of Q4_K (P14, N22): super-blocks of 8 blocks of 32, whose scales and minimums are meant to be 6-bit codes.
//!
//! torchao rounds and clamps neither those codes nor the numbers' own, so what comes out is f32 in everything but name, and a
//! minimum below 0 is cut off. It is here so that its numbers can be compared; `quantize gguf` makes the true blocks.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Numbers that share a scale, and blocks that share the scale of their scales.
const BLOCK: usize = 32;
const BLOCKS: usize = 8;

/// What `_choose_qparams_gguf` gives for a matrix `(N, K)`, f32.
#[derive(Clone, Debug)]
pub struct GgufQParams {
    /// `(N, K/256)`: the largest block scale over 63.
    pub super_block_scale_scale: Tensor,
    /// `(N, K/256)`: the largest block minimum by magnitude over 63.
    pub super_block_min_scale: Tensor,
    /// `(N, K/256, 8)`, 0 to 63, not rounded.
    pub quantized_block_scale: Tensor,
    /// `(N, K/256, 8)`, 0 to 63, not rounded.
    pub quantized_block_min: Tensor,
}

/// The parameters of super-blocks of a matrix `(N, K)`, K a multiple of 256 (N22).
///
/// `block_scale = (max − min) / 15`, `block_min = min`; each over its super-block's largest magnitude / 63.
pub fn choose_qparams_gguf(w: &Tensor) -> Result<GgufQParams> {
    let (n, k) = super_blocks(w)?;
    let values = w.to_dtype(DType::F32)?.to_f32_vec();
    let range = |block: &[f32]| {
        let min = block.iter().copied().fold(f32::INFINITY, f32::min);
        let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ((max - min) / 15.0, min)
    };
    let (scales, mins): (Vec<f32>, Vec<f32>) = values.chunks_exact(BLOCK).map(range).unzip();
    let (super_scale, scale) = over_largest(&scales);
    let (super_min, min) = over_largest(&mins);
    let (one, eight) = ([n, k / 256], [n, k / 256, BLOCKS]);
    Ok(GgufQParams {
        super_block_scale_scale: Tensor::new(super_scale, &one)?,
        super_block_min_scale: Tensor::new(super_min, &one)?,
        quantized_block_scale: Tensor::new(scale, &eight)?,
        quantized_block_min: Tensor::new(min, &eight)?,
    })
}

fn super_blocks(w: &Tensor) -> Result<(usize, usize)> {
    let (n, k) = w.dims2()?;
    if k.is_multiple_of(BLOCK * BLOCKS) {
        return Ok((n, k));
    }
    Err(Error::invalid(format!("K = {k} is not a multiple of 256, a super-block of Q4_K")))
}

/// The largest magnitude / 63 of every 8 values, and the values in units of it, clamped to 0 ..= 63.
fn over_largest(values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut codes = Vec::with_capacity(values.len());
    let units = values.chunks_exact(BLOCKS).map(|block| {
        let unit = block.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 63.0;
        codes.extend(block.iter().map(|v| (v / unit).clamp(0.0, 63.0)));
        unit
    });
    (units.collect(), codes)
}

/// Scale and minimum of every block.
fn blocks(qparams: &GgufQParams) -> Result<Vec<(f32, f32)>> {
    let scale_scale = qparams.super_block_scale_scale.as_slice::<f32>()?;
    let min_scale = qparams.super_block_min_scale.as_slice::<f32>()?;
    let codes = qparams.quantized_block_scale.as_slice::<f32>()?.iter();
    let codes = codes.zip(qparams.quantized_block_min.as_slice::<f32>()?);
    let block = |(at, (scale, min)): (usize, (&f32, &f32))| {
        (scale_scale[at / BLOCKS] * scale, min_scale[at / BLOCKS] * min)
    };
    Ok(codes.enumerate().map(block).collect())
}

/// `(w − block_min) / block_scale` as f32, neither rounded nor clamped (`_quantize_gguf`).
pub fn quantize_gguf(w: &Tensor, qparams: &GgufQParams) -> Result<Tensor> {
    super_blocks(w)?;
    let blocks = blocks(qparams)?;
    let values = w.to_dtype(DType::F32)?.to_f32_vec();
    let codes = values.iter().enumerate().map(|(at, v)| {
        let (scale, min) = blocks[at / BLOCK];
        (v - min) / scale
    });
    Tensor::new(codes.collect::<Vec<f32>>(), w.shape())
}

/// `q · block_scale + block_min` as f32 (`_dequantize_gguf`).
pub fn dequantize_gguf(q: &Tensor, qparams: &GgufQParams) -> Result<Tensor> {
    super_blocks(q)?;
    let blocks = blocks(qparams)?;
    let values = q.as_slice::<f32>()?.iter().enumerate().map(|(at, q)| {
        let (scale, min) = blocks[at / BLOCK];
        q * scale + min
    });
    Tensor::new(values.collect::<Vec<f32>>(), q.shape())
}
