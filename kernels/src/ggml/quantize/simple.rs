//! The types with 32 numbers a block and no sub-blocks.
//!
//! `d = amax / 127` (Q8_0), `d = extreme / −8` or `/ −16` (Q4_0, Q5_0), `d = (max − min) / 15` or `/ 31, m = min` (Q4_1, Q5_1);
//! codes by the f32 reciprocal of d. With importance, `search.rs` chooses d and m.

use super::super::BlockType;
use super::super::fields::{Fields, write};
use super::half;
use super::search::{Steps, fit_scale, fit_scale_min};

pub(super) fn q8_0(w: &[f32; 32], b: &mut [u8; 34]) {
    // NaN loses every comparison, as in C's MAX(amax, fabsf(v)).
    let amax = w.iter().fold(0.0_f32, |amax, v| if amax > v.abs() { amax } else { v.abs() });
    let d = amax / 127.0;
    let inv_d = reciprocal(d);
    let (scale, qs) = b.split_at_mut(2);
    scale.copy_from_slice(&half(d).0);
    for (q, v) in qs.iter_mut().zip(w) {
        *q = half_away(v * inv_d).cast_unsigned();
    }
}

pub(super) fn q4_0(w: &[f32; 32], b: &mut [u8; 18]) {
    symmetric(BlockType::Q4_0, 8, w, b);
}

pub(super) fn q5_0(w: &[f32; 32], b: &mut [u8; 22]) {
    symmetric(BlockType::Q5_0, 16, w, b);
}

pub(super) fn q4_1(w: &[f32; 32], b: &mut [u8; 20]) {
    asymmetric(BlockType::Q4_1, 15, w, b);
}

pub(super) fn q5_1(w: &[f32; 32], b: &mut [u8; 24]) {
    asymmetric(BlockType::Q5_1, 31, w, b);
}

/// The element of largest magnitude, with its sign, gets code 0, that is −`half_range` · d.
fn symmetric(ty: BlockType, half_range: u8, w: &[f32; 32], b: &mut [u8]) {
    let extreme = w.iter().fold(0.0_f32, |e, v| if e.abs() < v.abs() { *v } else { e });
    let d = extreme / -f32::from(half_range);
    let inv_d = reciprocal(d);
    let mut fields = Fields { d: half(d).0, ..Fields::ZERO };
    let offset = f32::from(half_range) + 0.5;
    for (code, v) in fields.codes.iter_mut().zip(w) {
        *code = truncated(v * inv_d + offset, 2 * half_range - 1);
    }
    write(ty, &fields, b);
}

/// The smallest element gets code 0, the largest `most`.
fn asymmetric(ty: BlockType, most: u8, w: &[f32; 32], b: &mut [u8]) {
    let min = w.iter().fold(f32::MAX, |min, v| if *v < min { *v } else { min });
    let max = w.iter().fold(-f32::MAX, |max, v| if *v > max { *v } else { max });
    let d = (max - min) / f32::from(most);
    let inv_d = reciprocal(d);
    let mut fields = Fields { d: half(d).0, m: half(min).0, ..Fields::ZERO };
    for (code, v) in fields.codes.iter_mut().zip(w) {
        *code = truncated((v - min) * inv_d + 0.5, most);
    }
    write(ty, &fields, b);
}

/// A row of Q4_0, Q4_1, Q5_0 or Q5_1 whose columns matter as `importance` says: an error at a large number, as seen from
/// the row's mean square, weighs more than one at a small number.
pub(super) fn weighted_row(ty: BlockType, row: &[f32], importance: &[f32], blocks: &mut [u8]) {
    let sigma2 = row.iter().fold(0.0_f32, |sum, v| sum + v * v) / row.len() as f32;
    let parts = row.chunks_exact(32).zip(importance.chunks_exact(32));
    for ((w, importance), block) in parts.zip(blocks.chunks_exact_mut(ty.block_bytes())) {
        let mut weights = [0.0; 32];
        for ((weight, v), importance) in weights.iter_mut().zip(w).zip(importance) {
            *weight = importance * (sigma2 + v * v).sqrt();
        }
        let mut fields = Fields::ZERO;
        if ty.has_min() {
            let most = if ty == BlockType::Q4_1 { 15 } else { 31 };
            let (d, min) =
                fit_scale_min(most, w, &weights, &mut fields.codes[..32], Steps::WEIGHTED);
            (fields.d, fields.m) = (half(d).0, half(min).0);
        } else {
            let half_range = if ty == BlockType::Q4_0 { 8 } else { 16 };
            fields.d = half(fit_scale(half_range, w, &weights, &mut fields.codes[..32])).0;
        }
        write(ty, &fields, block);
    }
}

/// 1/d, and 0 for a block of zeros.
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// C's `MIN(most, (int8_t) v)`.
#[expect(clippy::cast_possible_truncation, reason = "C's conversion to int8_t is meant: truncate")]
#[expect(clippy::cast_sign_loss, reason = "v is at least 0 for every finite block")]
fn truncated(v: f32, most: u8) -> i8 {
    (v as u8).min(most).cast_signed()
}

/// C's `roundf` to an int8: ties away from zero. |v| is at most 127 for every finite block.
#[expect(clippy::cast_possible_truncation, reason = "|v| is at most 127; NaN becomes 0")]
fn half_away(v: f32) -> i8 {
    // Adding the largest float under 1/2 cannot carry 0.49999997 up to 1, as adding 1/2 would.
    (v + 0.499_999_97_f32.copysign(v)).trunc() as i8
}
