//! AVX2: exponentials in f32, summed in f64 a vector at a time.

use crate::isa::Avx2;
use crate::lanes::{exp8, load_tail, load8, max8};
use std::arch::x86_64::*;

/// The largest logit and Σ exp(x − largest).
pub(super) fn max_and_sum(_proof: Avx2, row: &[f32]) -> (f32, f64) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { max_and_sum_avx2(row) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn max_and_sum_avx2(row: &[f32]) -> (f32, f64) {
    let (row, rest) = row.as_chunks::<8>();
    // A NaN that this maximum misses comes back in the sum.
    let mut max = load_tail(rest, f32::NEG_INFINITY);
    for x in row {
        max = _mm256_max_ps(max, load8(x));
    }
    let max = max8(max);
    let maxes = _mm256_set1_ps(max);
    let last = exp8(_mm256_sub_ps(load_tail(rest, f32::NEG_INFINITY), maxes));
    let mut sums = [_mm256_setzero_pd(); 2];
    add(&mut sums, last);
    for x in row {
        add(&mut sums, exp8(_mm256_sub_ps(load8(x), maxes)));
    }
    let sum = _mm256_add_pd(sums[0], sums[1]);
    let sum = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    (max, _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add(sums: &mut [__m256d; 2], x: __m256) {
    sums[0] = _mm256_add_pd(sums[0], _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sums[1] = _mm256_add_pd(sums[1], _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)));
}
