//! AVX2: eight numbers at a time, the tail by the scalar oracle, which gives the same bits.

use std::arch::x86_64::*;

use super::{Params, Range, scalar_min_max, scalar_quantize};
use crate::isa::Avx2;

pub(super) fn min_max(_: Avx2, x: &[f32]) -> (f32, f32) {
    // SAFETY: the `Avx2` token is made only after avx2 was detected.
    unsafe { min_max_avx2(x) }
}

pub(super) fn quantize(_: Avx2, x: &[f32], params: Params, range: Range, q: &mut [i8]) {
    // SAFETY: the `Avx2` token is made only after avx2 was detected.
    unsafe { quantize_avx2(x, params, range, q) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[f32; 8]) -> __m256 {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: `out` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_codes(out: &mut [i8; 8], v: __m128i) {
    // SAFETY: `out` is 8 writable bytes; storel has no alignment need.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), v) };
}

#[target_feature(enable = "avx2")]
fn min_max_avx2(x: &[f32]) -> (f32, f32) {
    let (body, tail) = x.as_chunks::<8>();
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    // min and max drop NaN, so that a mask remembers it.
    let mut nan = _mm256_setzero_ps();
    for v in body {
        let v = load(v);
        low = _mm256_min_ps(v, low);
        high = _mm256_max_ps(v, high);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
    }
    let (tail_low, tail_high) = scalar_min_max(tail);
    if _mm256_movemask_ps(nan) != 0 || tail_low.is_nan() {
        return (f32::NAN, f32::NAN);
    }
    let low = store(low).into_iter().fold(tail_low, f32::min);
    let high = store(high).into_iter().fold(tail_high, f32::max);
    (low, high)
}

#[target_feature(enable = "avx2")]
fn quantize_avx2(x: &[f32], params: Params, range: Range, q: &mut [i8]) {
    let inv_scale = _mm256_set1_ps(1.0 / params.scale);
    let zero_point = _mm256_set1_ps(params.zero_point);
    let qmin = _mm256_set1_ps(f32::from(range.qmin));
    let qmax = _mm256_set1_ps(f32::from(range.qmax));
    let (body, tail) = x.as_chunks::<8>();
    let (codes, tail_codes) = q.as_chunks_mut::<8>();
    for (x, q) in body.iter().zip(codes) {
        let scaled = _mm256_mul_ps(load(x), inv_scale);
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let code = _mm256_add_ps(_mm256_round_ps::<NEAREST>(scaled), zero_point);
        let clamped = _mm256_min_ps(_mm256_max_ps(code, qmin), qmax);
        // NaN becomes 0, as in the scalar cast.
        let known = _mm256_cmp_ps::<_CMP_ORD_Q>(code, code);
        let whole = _mm256_cvtps_epi32(_mm256_and_ps(clamped, known));
        let words =
            _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
        store_codes(q, _mm_packs_epi16(words, words));
    }
    scalar_quantize(tail, params, range, tail_codes);
}
