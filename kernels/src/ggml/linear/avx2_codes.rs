//! AVX2: codes, scales and minimums of eight rows of a panel, unpacked into vectors.

use super::panels::LANES;
use crate::ggml::BlockType;
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8], at: usize) -> __m256i {
    let bytes = &bytes[at..at + 32];
    // SAFETY: `bytes` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..at + 16];
    // SAFETY: `bytes` is 16 readable bytes; loadu has no alignment need.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight f16 from byte `at` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8], at: usize) -> __m256 {
    _mm256_cvtph_ps(load_words(bytes, at))
}

/// Bytes `8·half ..` of the sixteen from `at` on, as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn small_integers(bytes: &[u8], at: usize, half: usize) -> __m256 {
    let both = load_words(bytes, at);
    let eight = if half == 0 { both } else { _mm_unpackhi_epi64(both, both) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))
}

#[inline]
#[target_feature(enable = "avx2")]
fn all(v: [__m256i; 4], mask: i16) -> [__m256i; 4] {
    let mask = _mm256_set1_epi16(mask);
    [
        _mm256_and_si256(v[0], mask),
        _mm256_and_si256(v[1], mask),
        _mm256_and_si256(v[2], mask),
        _mm256_and_si256(v[3], mask),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn join(low: [__m256i; 4], high: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_or_si256(low[0], high[0]),
        _mm256_or_si256(low[1], high[1]),
        _mm256_or_si256(low[2], high[2]),
        _mm256_or_si256(low[3], high[3]),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn shift_right(v: __m256i, count: usize) -> __m256i {
    // The count is 0, 4, 8 or 12, and a constant once the loops are unrolled.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 12")]
    let count = _mm_cvtsi32_si128(count as i32);
    _mm256_srl_epi16(v, count)
}

#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(v: __m256i) -> [__m256i; 4] {
    let shifted =
        [v, _mm256_srli_epi16::<4>(v), _mm256_srli_epi16::<8>(v), _mm256_srli_epi16::<12>(v)];
    all(shifted, 15)
}

#[inline]
#[target_feature(enable = "avx2")]
fn bit_pairs(v: __m256i) -> [__m256i; 4] {
    let shifted =
        [v, _mm256_srli_epi16::<2>(v), _mm256_srli_epi16::<4>(v), _mm256_srli_epi16::<6>(v)];
    all(shifted, 3)
}

/// Bits 0–3, each moved to bit 4.
#[inline]
#[target_feature(enable = "avx2")]
fn bits_to_4(v: __m256i) -> [__m256i; 4] {
    let shifted = [
        _mm256_slli_epi16::<4>(v),
        _mm256_slli_epi16::<3>(v),
        _mm256_slli_epi16::<2>(v),
        _mm256_slli_epi16::<1>(v),
    ];
    all(shifted, 16)
}

/// Bits 0–3, each moved to bit 2.
#[inline]
#[target_feature(enable = "avx2")]
fn bits_to_2(v: __m256i) -> [__m256i; 4] {
    let shifted =
        [_mm256_slli_epi16::<2>(v), _mm256_slli_epi16::<1>(v), v, _mm256_srli_epi16::<1>(v)];
    all(shifted, 4)
}

/// Bits 0–7, pair after pair moved to bits 4 and 5.
#[inline]
#[target_feature(enable = "avx2")]
fn bit_pairs_to_4(v: __m256i) -> [__m256i; 4] {
    let shifted =
        [_mm256_slli_epi16::<4>(v), _mm256_slli_epi16::<2>(v), v, _mm256_srli_epi16::<2>(v)];
    all(shifted, 48)
}

/// Codes of columns `8·g .. 8·g + 8` of rows `8·half ..`: four vectors of pairs.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn group<const T: u8>(codes: &[u8], half: usize, g: usize) -> [__m256i; 4] {
    let plane = |first: usize, vector: usize| load(codes, first + 64 * vector + 32 * half);
    match const { BlockType::from_index(T).code_bits() } {
        2 => bit_pairs(shift_right(plane(0, g / 2), g % 2 * 8)),
        3 => join(
            bit_pairs(shift_right(plane(0, g / 2), g % 2 * 8)),
            bits_to_2(shift_right(plane(128, 0), 4 * g)),
        ),
        4 => nibbles(plane(0, g)),
        5 => join(nibbles(plane(0, g)), bits_to_4(shift_right(plane(256, 0), 4 * g))),
        6 => join(nibbles(plane(0, g)), bit_pairs_to_4(shift_right(plane(256, g / 2), g % 2 * 8))),
        _ => {
            let (a, b) = (plane(0, 2 * g), plane(0, 2 * g + 1));
            [
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)),
                _mm256_srai_epi16::<8>(a),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)),
                _mm256_srai_epi16::<8>(b),
            ]
        }
    }
}

/// Scales and minimums of sub-block `sub` of a step, for rows `8·half ..`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn scale_and_min<const T: u8>(
    (unit, step): (&[u8], &[u8]),
    half: usize,
    sub: usize,
) -> (__m256, __m256) {
    let ty = const { BlockType::from_index(T) };
    let subs = ty.unit().subs;
    let d = halves(unit, 16 * half);
    let m = if ty.has_min() { halves(unit, 32 + 16 * half) } else { _mm256_setzero_ps() };
    if ty.sub_scales() == 0 {
        return (d, m);
    }
    let scale = _mm256_mul_ps(d, small_integers(step, LANES * sub, half));
    if !ty.has_min() {
        return (scale, m);
    }
    let min = _mm256_mul_ps(m, small_integers(step, LANES * (subs + sub), half));
    (scale, _mm256_xor_ps(min, _mm256_set1_ps(-0.0)))
}
