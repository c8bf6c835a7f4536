//! AVX2: four vectors of eight per step, so that the sums wait for no addition before them.

use crate::isa::Avx2;
use crate::lanes::{load_tail, load8, store_tail, store8, sum8};
use std::arch::x86_64::*;

pub(super) fn rms_norm(_proof: Avx2, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { rms_norm_avx2(x, weight, eps, y) }
}

pub(super) fn layer_norm(
    _proof: Avx2,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { layer_norm_avx2(x, weight, bias, eps, y) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rms_norm_avx2(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let k = weight.len();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let mean_square = sum_of_squares(x, 0.0) / k as f32;
        scale_row(x, 0.0, 1.0 / (mean_square + eps).sqrt(), weight, y);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn layer_norm_avx2(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let k = weight.len();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(k)) {
        let mean = sum(x) / k as f32;
        let variance = sum_of_squares(x, mean) / k as f32;
        scale_row(x, mean, 1.0 / (variance + eps).sqrt(), weight, y);
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }
}

/// Σ x.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<32>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for block in blocks {
        let (vectors, _) = block.as_chunks::<8>();
        for (sum, x) in sums.iter_mut().zip(vectors) {
            *sum = _mm256_add_ps(*sum, load8(x));
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(8)) {
        *sum = _mm256_add_ps(*sum, load_tail(x, 0.0));
    }
    sum8(sum4(sums))
}

/// Σ (x − mean)².
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<32>();
    let means = _mm256_set1_ps(mean);
    let mut sums = [_mm256_setzero_ps(); 4];
    for block in blocks {
        let (vectors, _) = block.as_chunks::<8>();
        for (sum, x) in sums.iter_mut().zip(vectors) {
            let x = _mm256_sub_ps(load8(x), means);
            *sum = _mm256_fmadd_ps(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(8)) {
        let x = _mm256_sub_ps(load_tail(x, mean), means);
        *sum = _mm256_fmadd_ps(x, x, *sum);
    }
    sum8(sum4(sums))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum4([a, b, c, d]: [__m256; 4]) -> __m256 {
    _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))
}

/// y = (x − mean) · scale · weight.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_row(x: &[f32], mean: f32, scale: f32, weight: &[f32], y: &mut [f32]) {
    let (means, scales) = (_mm256_set1_ps(mean), _mm256_set1_ps(scale));
    let (x, x_rest) = x.as_chunks::<8>();
    let (weight, weight_rest) = weight.as_chunks::<8>();
    let (y, y_rest) = y.as_chunks_mut::<8>();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        let x = _mm256_mul_ps(_mm256_sub_ps(load8(x), means), scales);
        store8(y, _mm256_mul_ps(x, load8(weight)));
    }
    let x = _mm256_mul_ps(_mm256_sub_ps(load_tail(x_rest, 0.0), means), scales);
    store_tail(y_rest, _mm256_mul_ps(x, load_tail(weight_rest, 0.0)));
}
