//! The steps of a tile for few rows, with AVX2: vectors lie along the head, up to four rows share each load.

use super::decode::{Rows, TILE};
use crate::isa::Avx2;
use crate::lanes::{exp8, load8, max8, store8, sum8};
use std::arch::x86_64::*;

/// s (rows, 64) = q (rows, head_dim) · Kᵀ (head_dim, keys); beyond the keys `s` keeps what it holds.
pub(super) fn scores(_proof: Avx2, q: &[f32], k: &[f32], head_dim: usize, s: &mut [f32]) {
    let fours = q.chunks(4 * head_dim).zip(s.chunks_mut(4 * TILE));
    for (q, s) in fours {
        match q.len() / head_dim {
            // SAFETY: the token is made only after AVX2 and FMA were detected.
            4 => unsafe { scores_of::<4, 2>(q, k, head_dim, s) },
            // SAFETY: as above.
            3 => unsafe { scores_of::<3, 4>(q, k, head_dim, s) },
            // SAFETY: as above.
            2 => unsafe { scores_of::<2, 4>(q, k, head_dim, s) },
            // SAFETY: as above.
            _ => unsafe { scores_of::<1, 4>(q, k, head_dim, s) },
        }
    }
}

/// Takes a tile of scores and its values into the state of the rows.
pub(super) fn take(_proof: Avx2, s: &mut [f32], v: &[f32], head_dim: usize, state: &mut Rows<'_>) {
    let (mut max, mut sum) = (&mut *state.max, &mut *state.sum);
    for (s, o) in s.chunks_mut(4 * TILE).zip(state.o.chunks_mut(4 * head_dim)) {
        let rows = s.len() / TILE;
        let (max4, sum4);
        (max4, max) = max.split_at_mut(rows);
        (sum4, sum) = sum.split_at_mut(rows);
        let mut alpha = [0.0; 4];
        for (row, s) in s.chunks_exact_mut(TILE).enumerate() {
            // SAFETY: the token is made only after AVX2 and FMA were detected.
            alpha[row] = unsafe { softmax_step(s, &mut max4[row], &mut sum4[row]) };
        }
        match rows {
            // SAFETY: as above.
            4 => unsafe { values_of::<4>(s, v, head_dim, alpha, o) },
            // SAFETY: as above.
            3 => unsafe { values_of::<3>(s, v, head_dim, alpha, o) },
            // SAFETY: as above.
            2 => unsafe { values_of::<2>(s, v, head_dim, alpha, o) },
            // SAFETY: as above.
            _ => unsafe { values_of::<1>(s, v, head_dim, alpha, o) },
        }
    }
}

/// `R` rows against `K` keys at a time: R · K accumulators.
#[target_feature(enable = "avx2,fma,f16c")]
fn scores_of<const R: usize, const K: usize>(q: &[f32], k: &[f32], head_dim: usize, s: &mut [f32]) {
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * head_dim..][..head_dim]);
    let keys = k.len() / head_dim;
    let whole = keys - keys % K;
    for key in (0..whole).step_by(K) {
        let k: [&[f32]; K] = std::array::from_fn(|i| &k[(key + i) * head_dim..][..head_dim]);
        for (r, dots) in dots(q, k).into_iter().enumerate() {
            s[r * TILE + key..][..K].copy_from_slice(&dots);
        }
    }
    for key in whole..keys {
        for (r, [dot]) in dots(q, [&k[key * head_dim..][..head_dim]]).into_iter().enumerate() {
            s[r * TILE + key] = dot;
        }
    }
}

/// q (R, head_dim) · kᵀ (head_dim, K).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots<const R: usize, const K: usize>(q: [&[f32]; R], k: [&[f32]; K]) -> [[f32; K]; R] {
    let q_vectors = q.map(|q| q.as_chunks::<8>().0);
    let vectors = q_vectors[0].len();
    let q_vectors = q_vectors.map(|q| &q[..vectors]);
    let k_vectors = k.map(|k| &k.as_chunks::<8>().0[..vectors]);
    let mut sums = [[_mm256_setzero_ps(); K]; R];
    for i in 0..vectors {
        let k = k_vectors.map(|k| load8(&k[i]));
        for (sums, q) in sums.iter_mut().zip(&q_vectors) {
            let q = load8(&q[i]);
            for (sum, k) in sums.iter_mut().zip(k) {
                *sum = _mm256_fmadd_ps(q, k, *sum);
            }
        }
    }
    let mut dots = sums.map(|sums| sums.map(|sum| sum8(sum)));
    // Heads that are no multiple of eight end in single numbers.
    for (dots, q) in dots.iter_mut().zip(q) {
        for (dot, k) in dots.iter_mut().zip(k) {
            *dot += q[vectors * 8..].iter().zip(&k[vectors * 8..]).map(|(q, k)| q * k).sum::<f32>();
        }
    }
    dots
}

/// Takes 64 scores into `max` and `sum`; leaves exp(score − max) in `s`; gives what earlier sums must be
/// multiplied by.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn softmax_step(s: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let (s, _) = s.as_chunks_mut::<8>();
    // A NaN that this maximum misses comes back in the sum.
    let mut new = _mm256_set1_ps(*max);
    for s in s.iter() {
        new = _mm256_max_ps(new, load8(s));
    }
    let old = std::mem::replace(max, max8(new));
    // Where all is masked so far the maximum is −inf, and −inf − −inf would be NaN.
    let new = if *max == f32::NEG_INFINITY { 0.0 } else { *max };
    let news = _mm256_set1_ps(new);
    let mut total = _mm256_setzero_ps();
    for s in s {
        let p = exp8(_mm256_sub_ps(load8(s), news));
        store8(s, p);
        total = _mm256_add_ps(total, p);
    }
    let alpha = if old >= new { 1.0 } else { (old - new).exp() };
    *sum = *sum * alpha + sum8(total);
    alpha
}

/// o (R, head_dim) = o · alpha + p (R, keys) · V (keys, head_dim), 32 numbers of the head at a time.
#[target_feature(enable = "avx2,fma,f16c")]
fn values_of<const R: usize>(
    p: &[f32],
    v: &[f32],
    head_dim: usize,
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let p: [&[f32]; R] = std::array::from_fn(|r| &p[r * TILE..][..v.len() / head_dim]);
    let mut at = 0;
    while R <= 3 && at + 32 <= head_dim {
        weigh::<R, 4>(p, v, [head_dim, at], alpha, o);
        at += 32;
    }
    while at + 16 <= head_dim {
        weigh::<R, 2>(p, v, [head_dim, at], alpha, o);
        at += 16;
    }
    while at + 8 <= head_dim {
        weigh::<R, 1>(p, v, [head_dim, at], alpha, o);
        at += 8;
    }
    // Heads that are no multiple of eight end in single numbers.
    for (r, p) in p.into_iter().enumerate() {
        for d in at..head_dim {
            let sum: f32 = p.iter().zip(v.chunks_exact(head_dim)).map(|(p, v)| p * v[d]).sum();
            let o = &mut o[r * head_dim + d];
            *o = *o * alpha[r] + sum;
        }
    }
}

/// `R` rows by `C` vectors of the head from `at` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh<const R: usize, const C: usize>(
    p: [&[f32]; R],
    v: &[f32],
    [head_dim, at]: [usize; 2],
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        let (o, _) = o[r * head_dim + at..][..8 * C].as_chunks::<8>();
        for (sum, o) in sums.iter_mut().zip(o) {
            *sum = _mm256_mul_ps(load8(o), _mm256_set1_ps(alpha[r]));
        }
    }
    let keys = p[0].len();
    let p = p.map(|p| &p[..keys]);
    for (key, v) in v.chunks_exact(head_dim).enumerate().take(keys) {
        let (v, _) = v[at..][..8 * C].as_chunks::<8>();
        for (sums, p) in sums.iter_mut().zip(&p) {
            let p = _mm256_set1_ps(p[key]);
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum = _mm256_fmadd_ps(p, load8(v), *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let (o, _) = o[r * head_dim + at..][..8 * C].as_chunks_mut::<8>();
        for (sum, o) in sums.into_iter().zip(o) {
            store8(o, sum);
        }
    }
}
