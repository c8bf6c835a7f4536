//! f32 to block formats, as llama.cpp's reference quantizers do it.
//!
//! `d = amax / 127` (Q8_0), `d = extreme / −8` (Q4_0), `d = (max − min) / 15, m = min` (Q4_1); codes by the f32 reciprocal of d.
//! w (len) f32 → blocks (len / 32) × block_bytes u8.
//! Layout as in `dequantize.rs`; scales are rounded to f16, ties to even.
//! Error: |w − dequantized| ≤ d/2 (Q4_0: d where the extreme's mirror image is cut off) plus the f16 rounding of d and m.
//! Source: llama.cpp, ggml/src/ggml-quants.c (`quantize_row_*_ref`).

use super::BlockType;
use half::f16;

/// The types that [`quantize`] can write.
pub const QUANTIZABLE: [BlockType; 6] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q4_1,
];

/// Writes `w` as blocks of `ty`, which must be one of [`QUANTIZABLE`].
pub fn quantize(ty: BlockType, w: &[f32], blocks: &mut [u8]) {
    assert!(
        ty.nbytes(w.len()) == Some(blocks.len()),
        "quantize: blocks must be w.len() / block_len blocks of block_bytes bytes"
    );
    assert!(QUANTIZABLE.contains(&ty), "quantize: no reference quantizer for this type");
    match ty {
        BlockType::F32 => each(w, blocks, |[x], b| *b = x.to_le_bytes()),
        BlockType::F16 => each(w, blocks, |[x], b| *b = f16::from_f32(*x).to_le_bytes()),
        BlockType::Bf16 => each(w, blocks, |[x], b| *b = half::bf16::from_f32(*x).to_le_bytes()),
        BlockType::Q4_0 => each(w, blocks, q4_0),
        BlockType::Q4_1 => each(w, blocks, q4_1),
        _ => each(w, blocks, q8_0),
    }
}

fn each<const B: usize, const L: usize>(
    w: &[f32],
    blocks: &mut [u8],
    encode: impl Fn(&[f32; L], &mut [u8; B]),
) {
    let (w, _) = w.as_chunks();
    let (blocks, _) = blocks.as_chunks_mut();
    for (w, block) in w.iter().zip(blocks) {
        encode(w, block);
    }
}

fn q8_0(w: &[f32; 32], b: &mut [u8; 34]) {
    // NaN loses every comparison, as in C's MAX(amax, fabsf(v)).
    let amax = w.iter().fold(0.0_f32, |amax, v| if amax > v.abs() { amax } else { v.abs() });
    let d = amax / 127.0;
    let inv_d = reciprocal(d);
    let (scale, qs) = b.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, v) in qs.iter_mut().zip(w) {
        *q = half_away(v * inv_d).cast_unsigned();
    }
}

fn q4_0(w: &[f32; 32], b: &mut [u8; 18]) {
    // The element of largest magnitude, with its sign, gets code 0, that is −8·d.
    let extreme = w.iter().fold(0.0_f32, |e, v| if e.abs() < v.abs() { *v } else { e });
    let d = extreme / -8.0;
    let inv_d = reciprocal(d);
    let (scale, qs) = b.split_at_mut(2);
    scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (j, q) in qs.iter_mut().enumerate() {
        *q = nibble(w[j] * inv_d + 8.5) | nibble(w[j + 16] * inv_d + 8.5) << 4;
    }
}

fn q4_1(w: &[f32; 32], b: &mut [u8; 20]) {
    let min = w.iter().fold(f32::MAX, |min, v| if *v < min { *v } else { min });
    let max = w.iter().fold(-f32::MAX, |max, v| if *v > max { *v } else { max });
    let d = (max - min) / 15.0;
    let inv_d = reciprocal(d);
    let (scales, qs) = b.split_at_mut(4);
    scales[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    scales[2..].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    for (j, q) in qs.iter_mut().enumerate() {
        *q = nibble((w[j] - min) * inv_d + 0.5) | nibble((w[j + 16] - min) * inv_d + 0.5) << 4;
    }
}

/// 1/d, and 0 for a block of zeros.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// C's `MIN(15, (int8_t) v)`.
#[expect(clippy::cast_possible_truncation, reason = "C's conversion to int8_t is meant: truncate")]
#[expect(clippy::cast_sign_loss, reason = "v is at least 0 for every finite block")]
fn nibble(v: f32) -> u8 {
    (v as u8).min(15)
}

/// C's `roundf` to an int8: ties away from zero. |v| is at most 127 for every finite block.
#[expect(clippy::cast_possible_truncation, reason = "|v| is at most 127; NaN becomes 0")]
fn half_away(v: f32) -> i8 {
    // Adding the largest float under 1/2 cannot carry 0.49999997 up to 1, as adding 1/2 would.
    (v + 0.499_999_97_f32.copysign(v)).trunc() as i8
}
