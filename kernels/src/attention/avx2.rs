//! The three steps of a tile with AVX2. Four rows by three vectors make twelve accumulators; with three
//! vectors of the panel and one number spread over the lanes they fill the sixteen registers, so a panel
//! of 48 lanes is walked in two halves of 24.

use super::prefill::{LANES, Lanes};
use crate::isa::Avx2;
use crate::lanes::{exp8, load8, store8};
use std::arch::x86_64::*;

/// Vectors of half a panel.
const HALF: usize = LANES / 2 / 8;

/// scores (keys, 48) = K (keys, head_dim) · Qᵀ (head_dim, 48).
pub(super) fn scores(_proof: Avx2, k: &[f32], q: &[Lanes], s: &mut [Lanes]) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { scores_avx2(k, q, s) }
}

/// Takes the scores of new keys into the running `max` and `sum`; leaves exp(score − max) in `s`, and in
/// `alpha` what earlier sums must be multiplied by.
pub(super) fn softmax_step(
    _proof: Avx2,
    s: &mut [Lanes],
    max: &mut Lanes,
    sum: &mut Lanes,
    alpha: &mut Lanes,
) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { softmax_step_avx2(s, max, sum, alpha) }
}

/// Oᵀ (head_dim, 48) = Oᵀ · alpha + Vᵀ (head_dim, keys) · P (keys, 48).
pub(super) fn values(_proof: Avx2, v: &[f32], p: &[Lanes], alpha: &Lanes, o: &mut [Lanes]) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { values_avx2(v, p, alpha, o) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn scores_avx2(k: &[f32], q: &[Lanes], s: &mut [Lanes]) {
    let head_dim = q.len();
    let (fours, rest) = s.as_chunks_mut::<4>();
    let (k_fours, k_rest) = k.split_at(4 * head_dim * fours.len());
    for (k, s) in k_fours.chunks_exact(4 * head_dim).zip(fours) {
        let (k01, k23) = k.split_at(2 * head_dim);
        let ((k0, k1), (k2, k3)) = (k01.split_at(head_dim), k23.split_at(head_dim));
        dot::<4, 0>([k0, k1, k2, k3], q, s);
        dot::<4, 1>([k0, k1, k2, k3], q, s);
    }
    for (k, s) in k_rest.chunks_exact(head_dim).zip(rest) {
        dot::<1, 0>([k], q, std::array::from_mut(s));
        dot::<1, 1>([k], q, std::array::from_mut(s));
    }
}

/// The scores of `R` keys and half number `H` of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const R: usize, const H: usize>(k: [&[f32]; R], q: &[Lanes], s: &mut [Lanes; R]) {
    let k = k.map(|k| &k[..q.len()]);
    let mut sums = [[_mm256_setzero_ps(); HALF]; R];
    for (i, q) in q.iter().enumerate() {
        let (q, _) = q.as_chunks::<8>();
        let q = [load8(&q[H * HALF]), load8(&q[H * HALF + 1]), load8(&q[H * HALF + 2])];
        for (sums, k) in sums.iter_mut().zip(&k) {
            let k = _mm256_set1_ps(k[i]);
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum = _mm256_fmadd_ps(k, q, *sum);
            }
        }
    }
    for (sums, s) in sums.into_iter().zip(s) {
        let (s, _) = s.as_chunks_mut::<8>();
        for (sum, s) in sums.into_iter().zip(&mut s[H * HALF..]) {
            store8(s, sum);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax_step_avx2(s: &mut [Lanes], max: &mut Lanes, sum: &mut Lanes, alpha: &mut Lanes) {
    let (maxes, _) = max.as_chunks_mut::<8>();
    let (sums, _) = sum.as_chunks_mut::<8>();
    let (alphas, _) = alpha.as_chunks_mut::<8>();
    for (at, ((max, sum), alpha)) in maxes.iter_mut().zip(sums).zip(alphas).enumerate() {
        let old = load8(max);
        // A NaN that this maximum misses comes back in the sum.
        let mut new = old;
        for s in s.iter() {
            new = _mm256_max_ps(new, load8(&s.as_chunks::<8>().0[at]));
        }
        store8(max, new);
        // Where all is masked so far the maximum is −inf, and −inf − −inf would be NaN.
        let masked = _mm256_cmp_ps::<_CMP_EQ_OQ>(new, _mm256_set1_ps(f32::NEG_INFINITY));
        let new = _mm256_andnot_ps(masked, new);
        let shrink = exp8(_mm256_sub_ps(old, new));
        let mut total = _mm256_mul_ps(load8(sum), shrink);
        for s in s.iter_mut() {
            let s = &mut s.as_chunks_mut::<8>().0[at];
            let p = exp8(_mm256_sub_ps(load8(s), new));
            store8(s, p);
            total = _mm256_add_ps(total, p);
        }
        store8(sum, total);
        store8(alpha, shrink);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn values_avx2(v: &[f32], p: &[Lanes], alpha: &Lanes, o: &mut [Lanes]) {
    let head_dim = o.len();
    let (fours, rest) = o.as_chunks_mut::<4>();
    for (i, o) in fours.iter_mut().enumerate() {
        weigh::<4, 0>(v, head_dim, 4 * i, p, alpha, o);
        weigh::<4, 1>(v, head_dim, 4 * i, p, alpha, o);
    }
    let first = head_dim - rest.len();
    for (i, o) in rest.iter_mut().enumerate() {
        weigh::<1, 0>(v, head_dim, first + i, p, alpha, std::array::from_mut(o));
        weigh::<1, 1>(v, head_dim, first + i, p, alpha, std::array::from_mut(o));
    }
}

/// The weighted sums of dimensions `at..at + R` in half number `H` of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh<const R: usize, const H: usize>(
    v: &[f32],
    head_dim: usize,
    at: usize,
    p: &[Lanes],
    alpha: &Lanes,
    o: &mut [Lanes; R],
) {
    let (alpha, _) = alpha.as_chunks::<8>();
    let mut sums = [[_mm256_setzero_ps(); HALF]; R];
    for (sums, o) in sums.iter_mut().zip(&*o) {
        let (o, _) = o.as_chunks::<8>();
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_mul_ps(load8(&o[H * HALF + i]), load8(&alpha[H * HALF + i]));
        }
    }
    for (v, p) in v.chunks_exact(head_dim).zip(p) {
        let Some(v) = v[at..].first_chunk::<R>() else { return };
        let (p, _) = p.as_chunks::<8>();
        let p = [load8(&p[H * HALF]), load8(&p[H * HALF + 1]), load8(&p[H * HALF + 2])];
        for (sums, &v) in sums.iter_mut().zip(v) {
            let v = _mm256_set1_ps(v);
            for (sum, p) in sums.iter_mut().zip(p) {
                *sum = _mm256_fmadd_ps(v, p, *sum);
            }
        }
    }
    for (sums, o) in sums.into_iter().zip(o) {
        let (o, _) = o.as_chunks_mut::<8>();
        for (sum, o) in sums.into_iter().zip(&mut o[H * HALF..]) {
            store8(o, sum);
        }
    }
}
