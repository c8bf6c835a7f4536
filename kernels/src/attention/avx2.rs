//! The three steps of a tile with AVX2. Six rows by two vectors make twelve accumulators; with the two
//! vectors of the panel and one number spread over the lanes they fill fifteen of the sixteen registers
//! (four by three fill all, and the compiler spills). So a panel of 48 lanes is walked in three thirds.

use super::prefill::Lanes;
use crate::isa::Avx2;
use crate::lanes::{exp8, load8, store8};
use std::arch::x86_64::*;

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
    let (sixes, rest) = s.as_chunks_mut::<6>();
    let (fours, ones) = rest.as_chunks_mut::<4>();
    let mut k = k;
    for s in sixes {
        k = dot_all(k, q, s);
    }
    for s in fours {
        k = dot_all(k, q, s);
    }
    for s in ones {
        k = dot_all(k, q, std::array::from_mut(s));
    }
}

/// The scores of the first `R` keys in all lanes; gives the keys after them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_all<'k, const R: usize>(k: &'k [f32], q: &[Lanes], s: &mut [Lanes; R]) -> &'k [f32] {
    let (rows, later) = k.split_at(R * q.len());
    // Not `from_fn` or `map`: their closures would not be inlined, for want of the target features.
    let mut k = [&[][..]; R];
    for (k, row) in k.iter_mut().zip(rows.chunks_exact(q.len())) {
        *k = &row[..q.len()];
    }
    dot::<R, 0>(k, q, s);
    dot::<R, 2>(k, q, s);
    dot::<R, 4>(k, q, s);
    later
}

/// The scores of `R` keys in the two vectors of lanes from number `AT` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const R: usize, const AT: usize>(k: [&[f32]; R], q: &[Lanes], s: &mut [Lanes; R]) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (i, q) in q.iter().enumerate() {
        let (q, _) = q.as_chunks::<8>();
        let q = [load8(&q[AT]), load8(&q[AT + 1])];
        for (sums, k) in sums.iter_mut().zip(&k) {
            let k = _mm256_set1_ps(k[i]);
            sums[0] = _mm256_fmadd_ps(k, q[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(k, q[1], sums[1]);
        }
    }
    for (sums, s) in sums.into_iter().zip(s) {
        let (s, _) = s.as_chunks_mut::<8>();
        store8(&mut s[AT], sums[0]);
        store8(&mut s[AT + 1], sums[1]);
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
    let (sixes, rest) = o.as_chunks_mut::<6>();
    let (fours, ones) = rest.as_chunks_mut::<4>();
    let mut at = 0;
    for o in sixes {
        weigh_all(v, [head_dim, at], p, alpha, o);
        at += 6;
    }
    for o in fours {
        weigh_all(v, [head_dim, at], p, alpha, o);
        at += 4;
    }
    for o in ones {
        weigh_all(v, [head_dim, at], p, alpha, std::array::from_mut(o));
        at += 1;
    }
}

/// The weighted sums of dimensions `at..at + R` in all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh_all<const R: usize>(
    v: &[f32],
    [head_dim, at]: [usize; 2],
    p: &[Lanes],
    alpha: &Lanes,
    o: &mut [Lanes; R],
) {
    weigh::<R, 0>(v, [head_dim, at], p, alpha, o);
    weigh::<R, 2>(v, [head_dim, at], p, alpha, o);
    weigh::<R, 4>(v, [head_dim, at], p, alpha, o);
}

/// The weighted sums of dimensions `at..at + R` in the two vectors of lanes from number `AT` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn weigh<const R: usize, const AT: usize>(
    v: &[f32],
    [head_dim, at]: [usize; 2],
    p: &[Lanes],
    alpha: &Lanes,
    o: &mut [Lanes; R],
) {
    let (alpha, _) = alpha.as_chunks::<8>();
    let alpha = [load8(&alpha[AT]), load8(&alpha[AT + 1])];
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (sums, o) in sums.iter_mut().zip(&*o) {
        let (o, _) = o.as_chunks::<8>();
        sums[0] = _mm256_mul_ps(load8(&o[AT]), alpha[0]);
        sums[1] = _mm256_mul_ps(load8(&o[AT + 1]), alpha[1]);
    }
    for (v, p) in v.chunks_exact(head_dim).zip(p) {
        let Some(v) = v[at..].first_chunk::<R>() else { return };
        let (p, _) = p.as_chunks::<8>();
        let p = [load8(&p[AT]), load8(&p[AT + 1])];
        for (sums, &v) in sums.iter_mut().zip(v) {
            let v = _mm256_set1_ps(v);
            sums[0] = _mm256_fmadd_ps(v, p[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(v, p[1], sums[1]);
        }
    }
    for (sums, o) in sums.into_iter().zip(o) {
        let (o, _) = o.as_chunks_mut::<8>();
        store8(&mut o[AT], sums[0]);
        store8(&mut o[AT + 1], sums[1]);
    }
}
