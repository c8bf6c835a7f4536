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
            3 => unsafe { scores_of::<3, 3>(q, k, head_dim, s) },
            // SAFETY: as above.
            2 => unsafe { scores_of::<2, 4>(q, k, head_dim, s) },
            // SAFETY: as above.
            _ => unsafe { scores_of::<1, 4>(q, k, head_dim, s) },
        }
    }
}

/// Takes a tile of scores into the state of the rows, up to four at a time; `values` then sums their values:
/// o (rows, head_dim) = o · alpha + p (rows, 64) · V.
pub(super) fn take(
    _proof: Avx2,
    s: &mut [f32],
    head_dim: usize,
    state: &mut Rows<'_>,
    mut values: impl FnMut(&mut [f32], [f32; 4], &mut [f32]),
) {
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
        values(s, alpha, o);
    }
}

/// o (rows, head_dim) = o · alpha + p (rows, 64) · V (keys, head_dim) for up to four rows.
pub(super) fn values(
    _proof: Avx2,
    p: &[f32],
    v: &[f32],
    head_dim: usize,
    alpha: [f32; 4],
    o: &mut [f32],
) {
    match p.len() / TILE {
        // SAFETY: the token is made only after AVX2 and FMA were detected.
        4 => unsafe { values_of::<4, 2>(p, v, head_dim, alpha, o) },
        // SAFETY: as above.
        3 => unsafe { values_of::<3, 3>(p, v, head_dim, alpha, o) },
        // SAFETY: as above.
        2 => unsafe { values_of::<2, 4>(p, v, head_dim, alpha, o) },
        // SAFETY: as above.
        _ => unsafe { values_of::<1, 8>(p, v, head_dim, alpha, o) },
    }
}

/// `R` rows against `K` keys at a time: R · K accumulators, and K keys and a row in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn scores_of<const R: usize, const K: usize>(q: &[f32], k: &[f32], head_dim: usize, s: &mut [f32]) {
    let whole = k.len() / (K * head_dim) * K;
    let (k_whole, k_rest) = k.split_at(whole * head_dim);
    for (i, k) in k_whole.chunks_exact(K * head_dim).enumerate() {
        dots::<R, K>(q, k, head_dim, &mut s[i * K..]);
    }
    for (i, k) in k_rest.chunks_exact(head_dim).enumerate() {
        dots::<R, 1>(q, k, head_dim, &mut s[whole + i..]);
    }
}

/// s (R, 64), of each row the first K = q (R, head_dim) · kᵀ (head_dim, K). R · K is at most 12.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots<const R: usize, const K: usize>(q: &[f32], k: &[f32], head_dim: usize, s: &mut [f32]) {
    let vectors = head_dim / 8;
    let (mut q_rows, mut k_rows) = ([&[][..]; R], [&[][..]; K]);
    for (row, q) in q_rows.iter_mut().zip(q.chunks_exact(head_dim)) {
        *row = &q.as_chunks::<8>().0[..vectors];
    }
    for (row, k) in k_rows.iter_mut().zip(k.chunks_exact(head_dim)) {
        *row = &k.as_chunks::<8>().0[..vectors];
    }
    let mut sums = [[_mm256_setzero_ps(); K]; R];
    for i in 0..vectors {
        let mut k = [_mm256_setzero_ps(); K];
        for (k, row) in k.iter_mut().zip(&k_rows) {
            *k = load8(&row[i]);
        }
        for (sums, row) in sums.iter_mut().zip(&q_rows) {
            let q = load8(&row[i]);
            for (sum, k) in sums.iter_mut().zip(k) {
                *sum = _mm256_fmadd_ps(q, k, *sum);
            }
        }
    }
    // Summing across lanes costs least for four vectors at once.
    let mut flat = [_mm256_setzero_ps(); 12];
    for (flat, sum) in flat.iter_mut().zip(sums.as_flattened()) {
        *flat = *sum;
    }
    let mut dots = [0.0; 12];
    let fours = flat.as_chunks::<4>().0.iter().zip(dots.as_chunks_mut::<4>().0);
    for (flat, dots) in fours.take((R * K).div_ceil(4)) {
        *dots = sum_each(*flat);
    }
    // Heads that are no multiple of eight end in single numbers.
    if !head_dim.is_multiple_of(8) {
        for (at, dot) in dots[..R * K].iter_mut().enumerate() {
            let q = &q[at / K * head_dim..][vectors * 8..head_dim];
            let k = &k[at % K * head_dim..][vectors * 8..head_dim];
            *dot += q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        }
    }
    for (dots, s) in dots.chunks_exact(K).zip(s.chunks_mut(TILE)).take(R) {
        s[..K].copy_from_slice(dots);
    }
}

/// The sum of each of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum_each([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let mut sums = [0.0; 4];
    // SAFETY: `sums` is 16 writable bytes; storeu has no alignment need.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), v) };
    sums
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

/// o (R, head_dim) = o · alpha + p (R, keys) · V (keys, head_dim), `C` vectors of the head at a time: R · C
/// accumulators, and C vectors of a value and one weight in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn values_of<const R: usize, const C: usize>(
    p: &[f32],
    v: &[f32],
    head_dim: usize,
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let mut at = 0;
    while at + 8 * C <= head_dim {
        weigh::<R, C>(p, v, [head_dim, at], alpha, o);
        at += 8 * C;
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
    for (r, p) in p.chunks_exact(TILE).enumerate() {
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
    p: &[f32],
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
    let mut p_rows = [&[][..]; R];
    for (row, p) in p_rows.iter_mut().zip(p.chunks_exact(TILE)) {
        *row = &p[..TILE];
    }
    for (key, v) in v.chunks_exact(head_dim).take(TILE).enumerate() {
        let (from, _) = v[at..][..8 * C].as_chunks::<8>();
        let mut v = [_mm256_setzero_ps(); C];
        for (v, from) in v.iter_mut().zip(from) {
            *v = load8(from);
        }
        for (sums, p) in sums.iter_mut().zip(&p_rows) {
            let p = _mm256_set1_ps(p[key]);
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum = _mm256_fmadd_ps(p, v, *sum);
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
