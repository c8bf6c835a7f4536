//! AVX2: eight pairs at a time in the order `Half`, four in the order `Interleaved`.

use super::{Order, turn_scalar};
use crate::isa::Avx2;
use crate::lanes::{load8, store8};
use std::arch::x86_64::*;

/// Turns every head of one token.
pub(super) fn turn(
    _proof: Avx2,
    x: &mut [f32],
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    order: Order,
) {
    match order {
        // SAFETY: the token is made only after AVX2 and FMA were detected.
        Order::Half if cos.len().is_multiple_of(8) => unsafe { turn_half(x, head_dim, cos, sin) },
        Order::Interleaved if cos.len().is_multiple_of(4) => {
            // SAFETY: the token is made only after AVX2 and FMA were detected.
            unsafe { turn_interleaved(x, head_dim, cos, sin) }
        }
        // No model's heads come here; rows of odd pairs are not worth a tail.
        _ => turn_scalar(x, head_dim, cos, sin, order),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn turn_half(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let (cos, _) = cos.as_chunks::<8>();
    let (sin, _) = sin.as_chunks::<8>();
    let pairs = cos.len() * 8;
    for head in x.chunks_exact_mut(head_dim) {
        let (a, b) = head[..2 * pairs].split_at_mut(pairs);
        let (a, _) = a.as_chunks_mut::<8>();
        let (b, _) = b.as_chunks_mut::<8>();
        for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
            let (old_a, old_b, cos, sin) = (load8(a), load8(b), load8(cos), load8(sin));
            store8(a, _mm256_fmsub_ps(old_a, cos, _mm256_mul_ps(old_b, sin)));
            store8(b, _mm256_fmadd_ps(old_b, cos, _mm256_mul_ps(old_a, sin)));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn turn_interleaved(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let (cos, _) = cos.as_chunks::<4>();
    let (sin, _) = sin.as_chunks::<4>();
    let pairs = cos.len() * 4;
    for head in x.chunks_exact_mut(head_dim) {
        let (head, _) = head[..2 * pairs].as_chunks_mut::<8>();
        for (x, (cos, sin)) in head.iter_mut().zip(cos.iter().zip(sin)) {
            let old = load8(x);
            let swapped = _mm256_permute_ps::<0b10_11_00_01>(old);
            // Even lanes: a · cos − b · sin; odd lanes: b · cos + a · sin.
            let sines = _mm256_mul_ps(swapped, twice(sin));
            store8(x, _mm256_fmaddsub_ps(old, twice(cos), sines));
        }
    }
}

/// (a, a, b, b, c, c, d, d).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn twice(four: &[f32; 4]) -> __m256 {
    // SAFETY: `four` is 16 readable bytes; loadu has no alignment need.
    let four = unsafe { _mm_loadu_ps(four.as_ptr()) };
    let lanes = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
    _mm256_permutevar8x32_ps(_mm256_castps128_ps256(four), lanes)
}
