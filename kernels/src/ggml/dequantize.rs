//! Block formats to f32.
//!
//! `w = q·d`, `w = q·d + m`, and for the K types `w = (d·scale)·q − (dmin·min)`, in this order of f32 operations.
//! blocks (len / block_len) × block_bytes u8 → out (len) f32.
//! Little-endian; the fields of a block in the order in which each function below cuts them off.
//! Error: none, the bits are those of llama.cpp without fused multiply-adds.
//! Source: llama.cpp, ggml/src/ggml-quants.c (`dequantize_row_*`) and ggml-common.h.

use super::BlockType;
use half::{bf16, f16};

/// Writes the numbers that `blocks` stand for. This function is the definition of the formats.
pub fn dequantize(ty: BlockType, blocks: &[u8], out: &mut [f32]) {
    assert!(
        ty.nbytes(out.len()) == Some(blocks.len()),
        "dequantize: blocks must be out.len() / block_len blocks of block_bytes bytes"
    );
    match ty {
        BlockType::F32 => each(blocks, out, |b, [y]| *y = f32::from_le_bytes(*b)),
        BlockType::F16 => each(blocks, out, |b, [y]| *y = f16::from_le_bytes(*b).to_f32()),
        BlockType::Bf16 => each(blocks, out, |b, [y]| *y = bf16::from_le_bytes(*b).to_f32()),
        BlockType::Q4_0 => each(blocks, out, q4_0),
        BlockType::Q4_1 => each(blocks, out, q4_1),
        BlockType::Q5_0 => each(blocks, out, q5_0),
        BlockType::Q5_1 => each(blocks, out, q5_1),
        BlockType::Q8_0 => each(blocks, out, q8_0),
        BlockType::Q2K => each(blocks, out, q2_k),
        BlockType::Q3K => each(blocks, out, q3_k),
        BlockType::Q4K => each(blocks, out, q4_k),
        BlockType::Q5K => each(blocks, out, q5_k),
        BlockType::Q6K => each(blocks, out, q6_k),
    }
}

fn each<const B: usize, const L: usize>(
    blocks: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; L]),
) {
    let (blocks, _) = blocks.as_chunks();
    let (out, _) = out.as_chunks_mut();
    for (block, out) in blocks.iter().zip(out) {
        decode(block, out);
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let (d, qs) = b.split_at(2);
    let d = half(d);
    for (j, &q) in qs.iter().enumerate() {
        y[j] = (f32::from(q & 15) - 8.0) * d;
        y[j + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (dm, qs) = b.split_at(4);
    let (d, m) = (half(dm), half(&dm[2..]));
    for (j, &q) in qs.iter().enumerate() {
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, rest) = b.split_at(2);
    let (qh, qs) = rest.split_at(4);
    let d = half(d);
    for (j, q) in five_bits(qh, qs).into_iter().enumerate() {
        y[j] = (f32::from(q) - 16.0) * d;
    }
}

fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (dm, rest) = b.split_at(4);
    let (qh, qs) = rest.split_at(4);
    let (d, m) = (half(dm), half(&dm[2..]));
    for (j, q) in five_bits(qh, qs).into_iter().enumerate() {
        y[j] = f32::from(q) * d + m;
    }
}

/// Bit k of `qh` is the fifth bit of code k; nibbles as in Q4_0.
fn five_bits(qh: &[u8], qs: &[u8]) -> [u8; 32] {
    std::array::from_fn(|k| {
        let low = (qs[k % 16] >> (4 * (k / 16))) & 15;
        let high = (qh[k / 8] >> (k % 8)) & 1;
        low | high << 4
    })
}

fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let (d, qs) = b.split_at(2);
    let d = half(d);
    for (y, &q) in y.iter_mut().zip(qs) {
        *y = f32::from(q.cast_signed()) * d;
    }
}

fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, rest) = b.split_at(16);
    let (qs, dm) = rest.split_at(64);
    let (d, dmin) = (half(dm), half(&dm[2..]));
    for (k, y) in y.iter_mut().enumerate() {
        let scale = scales[k / 16];
        let q = (qs[32 * (k / 128) + k % 32] >> (2 * (k % 128 / 32))) & 3;
        *y = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let (hmask, rest) = b.split_at(32);
    let (qs, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(12);
    let d = half(d);
    let scales = q3_k_scales(scales);
    for (k, y) in y.iter_mut().enumerate() {
        let low = (qs[32 * (k / 128) + k % 32] >> (2 * (k % 128 / 32))) & 3;
        let high = (hmask[k % 32] >> (k / 32)) & 1;
        *y = d * (f32::from(scales[k / 16]) - 32.0) * (f32::from(low | high << 2) - 4.0);
    }
}

/// Sixteen 6-bit scales, to be lowered by 32: low nibbles in bytes 0–7, upper bit pairs in bytes 8–11.
pub(super) fn q3_k_scales(s: &[u8]) -> [u8; 16] {
    std::array::from_fn(|j| {
        let low = (s[j % 8] >> (4 * (j / 8))) & 15;
        let high = (s[8 + j % 4] >> (2 * (j / 4))) & 3;
        low | high << 4
    })
}

fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (dm, rest) = b.split_at(4);
    let (scales, qs) = rest.split_at(12);
    let (d, dmin) = (half(dm), half(&dm[2..]));
    let (scales, mins) = q4_k_scales(scales);
    for (k, y) in y.iter_mut().enumerate() {
        let q = (qs[32 * (k / 64) + k % 32] >> (4 * (k % 64 / 32))) & 15;
        *y = d * f32::from(scales[k / 32]) * f32::from(q) - dmin * f32::from(mins[k / 32]);
    }
}

fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (dm, rest) = b.split_at(4);
    let (scales, rest) = rest.split_at(12);
    let (qh, qs) = rest.split_at(32);
    let (d, dmin) = (half(dm), half(&dm[2..]));
    let (scales, mins) = q4_k_scales(scales);
    for (k, y) in y.iter_mut().enumerate() {
        let low = (qs[32 * (k / 64) + k % 32] >> (4 * (k % 64 / 32))) & 15;
        let high = (qh[k % 32] >> (k / 32)) & 1;
        let q = f32::from(low | high << 4);
        *y = d * f32::from(scales[k / 32]) * q - dmin * f32::from(mins[k / 32]);
    }
}

/// Eight 6-bit scales and eight 6-bit minimums. The first four of each are the low six bits of bytes 0–3 and
/// 4–7; the others have their low nibbles in bytes 8–11 and their upper bits in the top of bytes 0–7.
pub(super) fn q4_k_scales(s: &[u8]) -> ([u8; 8], [u8; 8]) {
    let scale = |j: usize| match j {
        0..4 => s[j] & 63,
        _ => (s[j + 4] & 15) | (s[j - 4] >> 6) << 4,
    };
    let min = |j: usize| match j {
        0..4 => s[j + 4] & 63,
        _ => (s[j + 4] >> 4) | (s[j] >> 6) << 4,
    };
    (std::array::from_fn(scale), std::array::from_fn(min))
}

fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let (ql, rest) = b.split_at(128);
    let (qh, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d);
    for (k, y) in y.iter_mut().enumerate() {
        // Each half of 128 has its own 64 bytes of nibbles and 32 bytes of bit pairs.
        let (half, quarter, l) = (k / 128, k % 128 / 32, k % 32);
        let low = (ql[64 * half + 32 * (quarter % 2) + l] >> (4 * (quarter / 2))) & 15;
        let high = (qh[32 * half + l] >> (2 * quarter)) & 3;
        let scale = f32::from(scales[k / 16].cast_signed());
        *y = d * scale * (f32::from(low | high << 4) - 32.0);
    }
}
