//! AVX2: three passes over a row, which stays in the caches between them.

use crate::isa::Avx2;
use crate::lanes::{exp8, load_tail, load8, max8, store_tail, store8, sum8};
use std::arch::x86_64::*;

pub(super) fn softmax(_proof: Avx2, x: &mut [f32], n: usize) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    x.chunks_exact_mut(n).for_each(|row| unsafe { softmax_row(row) });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax_row(row: &mut [f32]) {
    let (row, rest) = row.as_chunks_mut::<8>();
    // A NaN that this maximum misses comes back in the sum.
    let mut max = load_tail(rest, f32::NEG_INFINITY);
    for x in row.iter() {
        max = _mm256_max_ps(max, load8(x));
    }
    let max = _mm256_set1_ps(max8(max));
    let last = exp8(_mm256_sub_ps(load_tail(rest, f32::NEG_INFINITY), max));
    let mut sum = _mm256_setzero_ps();
    for x in row.iter_mut() {
        let y = exp8(_mm256_sub_ps(load8(x), max));
        store8(x, y);
        sum = _mm256_add_ps(sum, y);
    }
    let scale = _mm256_set1_ps(1.0 / sum8(_mm256_add_ps(sum, last)));
    for x in row {
        store8(x, _mm256_mul_ps(load8(x), scale));
    }
    store_tail(rest, _mm256_mul_ps(last, scale));
}
