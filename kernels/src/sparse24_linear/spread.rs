//! Sixty-four columns at a time, spread in registers and written out for a dense GEMM.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::{Rows, STEP, Values, int4_bytes};
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

/// The codes of step `b` of a row: 64 columns. The last two bytes may be the next step's, which `mask` does not read.
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
    let (steps, tail) = out[..k.len()].as_chunks_mut::<STEP>();
    let count = steps.len();
    for (i, out) in steps.iter_mut().enumerate() {
        let b = k.start / STEP + i;
        numbers(rows, (n, b), mask(codes_at(codes, b)), out);
    }
    if !tail.is_empty() {
        let (mut all, b) = ([0.0; STEP], k.start / STEP + count);
        numbers(rows, (n, b), mask(codes_at(codes, b)), &mut all);
        tail.copy_from_slice(&all[..tail.len()]);
    }
}

/// Step `b` of row `n`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn numbers(rows: Rows<'_>, (n, b): (usize, usize), mask: u64, out: &mut [f32; STEP]) {
    let out = out.as_chunks_mut::<16>().0;
    match rows.w.values {
        Values::F32(v) => {
            // Sixteen columns are four fours, which store eight numbers.
            let eights = stored_of(v, rows.shape.k, (n, b));
            for (i, (out, eight)) in out.iter_mut().zip(eights.as_chunks::<8>().0).enumerate() {
                let eight = _mm512_castps256_ps512(load_8(eight));
                store_f32(out, _mm512_maskz_expand_ps(low16(mask >> (16 * i)), eight));
            }
        }
        Values::Bf16(v) => {
            let halves = spread_bf16(&stored_of(v, rows.shape.k, (n, b)), mask);
            for (i, out) in out.iter_mut().enumerate() {
                let words = quarter(halves[i / 2], i % 2);
                let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words));
                store_f32(out, _mm512_castsi512_ps(wide));
            }
        }
        Values::Int8 { q, scale } => {
            let codes = spread_i8(&stored_of(q, rows.shape.k, (n, b)), mask);
            let scale = _mm512_set1_ps(scale[n]);
            for (i, out) in out.iter_mut().enumerate() {
                store_f32(out, _mm512_mul_ps(to_f32(codes, i), scale));
            }
        }
        Values::Int4 { q, scale, zero, group_size } => {
            let codes = spread_i4(&q[n * int4_bytes(rows.shape.k)..], b, mask);
            let groups = n * (rows.shape.k / group_size);
            for (i, out) in out.iter_mut().enumerate() {
                let column = STEP * b + 16 * i;
                if column >= rows.shape.k {
                    return;
                }
                let group = groups + column / group_size;
                let zero = _mm512_set1_ps(zero.map_or(0.0, |zero| zero[group]));
                let zero = _mm512_maskz_mov_ps(low16(mask >> (16 * i)), zero);
                let scale = _mm512_set1_ps(scale[group]);
                store_f32(out, _mm512_fmadd_ps(to_f32(codes, i), scale, zero));
            }
        }
    }
}

/// Columns `k`, from a multiple of 64 on, of row `n` of a bf16 weight.
pub(super) fn decode_bf16(
    _: Avx512Vbmi2,
    (rows, v): (Rows<'_>, &[bf16]),
    n: usize,
    k: Range<usize>,
    out: &mut [bf16],
) {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512.
    unsafe { decode_bf16_steps((rows, v), n, k, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn decode_bf16_steps((rows, v): (Rows<'_>, &[bf16]), n: usize, k: Range<usize>, out: &mut [bf16]) {
    let codes = rows.codes(n);
    for (i, out) in out[..k.len()].chunks_mut(STEP).enumerate() {
        let b = k.start / STEP + i;
        let stored = stored_of(v, rows.shape.k, (n, b));
        let halves = spread_bf16(&stored, mask(codes_at(codes, b)));
        if let Some(out) = out.as_chunks_mut::<STEP>().0.first_mut() {
            store_bf16(out, halves);
            continue;
        }
        let mut all = [bf16::ZERO; STEP];
        store_bf16(&mut all, halves);
        out.copy_from_slice(&all[..out.len()]);
    }
}

/// The numbers that step `b` of row `n` stores, zeros where the row ends before.
#[inline]
pub(super) fn stored_of<T: Copy + Default>(
    v: &[T],
    k: usize,
    (n, b): (usize, usize),
) -> [T; STEP / 2] {
    let row = &v[n * k / 2..][..k / 2];
    let rest = &row[STEP / 2 * b..];
    rest.first_chunk().copied().unwrap_or_else(|| padded(rest))
}

/// Thirty-two numbers, zeros where a row ends before.
#[inline]
pub(super) fn padded<T: Copy + Default>(stored: &[T]) -> [T; STEP / 2] {
    let mut all = [T::default(); STEP / 2];
    all[..stored.len()].copy_from_slice(stored);
    all
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
pub(super) fn spread_i8(stored: &[i8; STEP / 2], mask: u64) -> __m512i {
    // SAFETY: `stored` is 32 readable bytes; loadu has no alignment need.
    let stored = unsafe { _mm256_loadu_si256(stored.as_ptr().cast()) };
    _mm512_maskz_expand_epi8(mask, widened(stored))
}

/// `code − 8` of step `b`, zeros where none is stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
pub(super) fn spread_i4(row: &[u8], b: usize, mask: u64) -> __m512i {
    let bytes = &row.as_chunks::<32>().0[b / 2];
    // SAFETY: `bytes` is 32 readable bytes; loadu has no alignment need.
    let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    let bytes = if b.is_multiple_of(2) { bytes } else { _mm256_srli_epi16::<4>(bytes) };
    let codes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    let codes = _mm256_sub_epi8(codes, _mm256_set1_epi8(8));
    _mm512_maskz_expand_epi8(mask, widened(codes))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn spread_bf16(stored: &[bf16; STEP / 2], mask: u64) -> [__m512i; 2] {
    let [low, high] = [mask, mask >> 32].map(low32);
    let halves = stored.as_chunks::<16>().0;
    [
        _mm512_maskz_expand_epi16(low, widened(load_16(&halves[0]))),
        _mm512_maskz_expand_epi16(high, widened(load_16(&halves[1]))),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widened(v: __m256i) -> __m512i {
    _mm512_castsi256_si512(v)
}

/// Sixteen bytes of four times sixteen as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_f32(codes: __m512i, i: usize) -> __m512 {
    let bytes = match i {
        0 => _mm512_extracti32x4_epi32::<0>(codes),
        1 => _mm512_extracti32x4_epi32::<1>(codes),
        2 => _mm512_extracti32x4_epi32::<2>(codes),
        _ => _mm512_extracti32x4_epi32::<3>(codes),
    };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
}

/// One half of 32 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarter(words: __m512i, i: usize) -> __m256i {
    if i == 0 { _mm512_castsi512_si256(words) } else { _mm512_extracti64x4_epi64::<1>(words) }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) fn low16(mask: u64) -> u16 {
    mask as u16
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(super) fn low32(mask: u64) -> u32 {
    mask as u32
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32(v: &[f32; 16]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_8(v: &[f32; 8]) -> __m256 {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_16(v: &[bf16; 16]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(to: &mut [f32; 16], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_bf16(to: &mut [bf16; STEP], halves: [__m512i; 2]) {
    for (to, half) in to.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
        // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), half) }
    }
}
