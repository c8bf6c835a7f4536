//! Sixty-four columns at a time, spread in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Rows, Values, int4_bytes, pack};
use crate::isa::Avx512Vbmi2;

/// Column k of 64 is stored where bit k is set: three bits of each four from the codes, the fourth where they have one of two.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) fn mask(codes: &[u8; 8]) -> u64 {
    const THREE: u64 = 0x7777_7777_7777_7777;
    let low = _pdep_u64(u64::from_le_bytes(*codes), THREE);
    let odd = (low ^ (low >> 1) ^ (low >> 2)) & 0x1111_1111_1111_1111;
    low | odd << 3
}

/// The codes of step `b` of a row: 64 columns.
#[inline]
pub(super) fn codes_at(codes: &[u8], b: usize) -> &[u8; 8] {
    codes[6 * b..].first_chunk::<8>().expect("a row has two bytes behind its codes")
}

/// Columns `k`, from a multiple of 64 on, of row `n` as f32.
pub(super) fn decode(_: Avx512Vbmi2, rows: Rows<'_>, n: usize, k: Range<usize>, out: &mut [f32]) {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512.
    unsafe { decode_steps(rows, n, k, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn decode_steps(rows: Rows<'_>, n: usize, k: Range<usize>, out: &mut [f32]) {
    let codes = rows.codes(n);
    let half = rows.shape.k / 2;
    for (i, out) in out.chunks_mut(64).enumerate() {
        let b = k.start / 64 + i;
        let mask = mask(codes_at(codes, b));
        let stored = n * half + 32 * b..n * half + half.min(32 * (b + 1));
        let mut dense = [0.0; 64];
        match rows.w.values {
            Values::F32(v) => spread_f32(mask, &padded(&v[stored]), &mut dense),
            Values::Bf16(v) => {
                let wide = padded(&v[stored]).map(|v| f32::from_bits(u32::from(v.to_bits()) << 16));
                spread_f32(mask, &wide, &mut dense);
            }
            Values::Int8 { q, scale } => {
                let wide = padded(&q[stored]).map(|q| f32::from(q) * scale[n]);
                spread_f32(mask, &wide, &mut dense);
            }
            Values::Int4 { q, scale, zero, group_size } => {
                let bytes = int4_bytes(rows.shape.k);
                let row = &q[n * bytes..][..bytes];
                let wide =
                    std::array::from_fn(|at| f32::from(pack::int4_at(row, 32 * b + at)) - 8.0);
                spread_f32(mask, &wide, &mut dense);
                let groups = rows.shape.k / group_size;
                for (j, w) in dense.iter_mut().enumerate().take(out.len()) {
                    let group = n * groups + (64 * b + j) / group_size;
                    let zero = zero.map_or(0.0, |zero| zero[group]);
                    let kept = mask >> j & 1 == 1;
                    *w = if kept { *w * scale[group] + zero } else { 0.0 };
                }
            }
        }
        out.copy_from_slice(&dense[..out.len()]);
    }
}

/// Thirty-two numbers, zeros where a row ends before.
#[inline]
pub(super) fn padded<T: Copy + Default>(stored: &[T]) -> [T; 32] {
    let mut all = [T::default(); 32];
    all[..stored.len()].copy_from_slice(stored);
    all
}

#[inline]
#[target_feature(enable = "avx512f")]
fn spread_f32(mask: u64, stored: &[f32; 32], dense: &mut [f32; 64]) {
    let mut at = 0;
    for (i, dense) in dense.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let part = low16(mask >> (16 * i));
        let mut next = [0.0; 16];
        let len = (32 - at).min(16);
        next[..len].copy_from_slice(&stored[at..at + len]);
        store_f32(dense, _mm512_maskz_expand_ps(part, load_f32(&next)));
        at += part.count_ones() as usize;
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) fn low16(mask: u64) -> u16 {
    mask as u16
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32(v: &[f32; 16]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(to: &mut [f32; 16], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}
