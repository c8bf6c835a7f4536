//! The three steps of a tile with AVX-512. Eight rows by three vectors make twenty-four accumulators, which
//! with the three vectors of the panel and one number spread over the lanes stay below 32 registers.

use super::prefill::{LANES, Lanes};
use crate::isa::Avx512;
use std::arch::x86_64::*;

/// Vectors of a panel.
const WHOLE: usize = LANES / 16;

/// scores (keys, 48) = K (keys, head_dim) · Qᵀ (head_dim, 48).
pub(super) fn scores(_proof: Avx512, k: &[f32], q: &[Lanes], s: &mut [Lanes]) {
    // SAFETY: the token is made only after AVX-512 F, BW, DQ and VL were detected.
    unsafe { scores_avx512(k, q, s) }
}

/// Takes the scores of new keys into the running `max` and `sum`; leaves exp(score − max) in `s`, and in
/// `alpha` what earlier sums must be multiplied by.
pub(super) fn softmax_step(
    _proof: Avx512,
    s: &mut [Lanes],
    max: &mut Lanes,
    sum: &mut Lanes,
    alpha: &mut Lanes,
) {
    // SAFETY: the token is made only after AVX-512 F, BW, DQ and VL were detected.
    unsafe { softmax_step_avx512(s, max, sum, alpha) }
}

/// Oᵀ (head_dim, 48) = Oᵀ · alpha + Vᵀ (head_dim, keys) · P (keys, 48).
pub(super) fn values(_proof: Avx512, v: &[f32], p: &[Lanes], alpha: &Lanes, o: &mut [Lanes]) {
    // SAFETY: the token is made only after AVX-512 F, BW, DQ and VL were detected.
    unsafe { values_avx512(v, p, alpha, o) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load16(from: &[f32; 16]) -> __m512 {
    // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store16(to: &mut [f32; 16], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_lanes(from: &Lanes) -> [__m512; WHOLE] {
    let (from, _) = from.as_chunks::<16>();
    [load16(&from[0]), load16(&from[1]), load16(&from[2])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store_lanes(to: &mut Lanes, lanes: [__m512; WHOLE]) {
    let (to, _) = to.as_chunks_mut::<16>();
    for (to, v) in to.iter_mut().zip(lanes) {
        store16(to, v);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scores_avx512(k: &[f32], q: &[Lanes], s: &mut [Lanes]) {
    let head_dim = q.len();
    let (eights, rest) = s.as_chunks_mut::<8>();
    let (k_eights, k_rest) = k.split_at(8 * head_dim * eights.len());
    for (k, s) in k_eights.chunks_exact(8 * head_dim).zip(eights) {
        dot(k, q, s);
    }
    for (k, s) in k_rest.chunks_exact(head_dim).zip(rest) {
        dot(k, q, std::array::from_mut(s));
    }
}

/// The scores of `R` keys.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot<const R: usize>(rows: &[f32], q: &[Lanes], s: &mut [Lanes; R]) {
    // Not `from_fn` or `map`: their closures would not be inlined, for want of the target features.
    let mut k = [&[][..]; R];
    for (k, row) in k.iter_mut().zip(rows.chunks_exact(q.len())) {
        *k = &row[..q.len()];
    }
    let mut sums = [[_mm512_setzero_ps(); WHOLE]; R];
    for (i, q) in q.iter().enumerate() {
        let q = load_lanes(q);
        for (sums, k) in sums.iter_mut().zip(&k) {
            let k = _mm512_set1_ps(k[i]);
            for (sum, q) in sums.iter_mut().zip(q) {
                *sum = _mm512_fmadd_ps(k, q, *sum);
            }
        }
    }
    for (sums, s) in sums.into_iter().zip(s) {
        store_lanes(s, sums);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn softmax_step_avx512(s: &mut [Lanes], max: &mut Lanes, sum: &mut Lanes, alpha: &mut Lanes) {
    let (maxes, _) = max.as_chunks_mut::<16>();
    let (sums, _) = sum.as_chunks_mut::<16>();
    let (alphas, _) = alpha.as_chunks_mut::<16>();
    for (at, ((max, sum), alpha)) in maxes.iter_mut().zip(sums).zip(alphas).enumerate() {
        let old = load16(max);
        // A NaN that this maximum misses comes back in the sum.
        let mut new = old;
        for s in s.iter() {
            new = _mm512_max_ps(new, load16(&s.as_chunks::<16>().0[at]));
        }
        store16(max, new);
        // Where all is masked so far the maximum is −inf, and −inf − −inf would be NaN.
        let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(new, _mm512_set1_ps(f32::NEG_INFINITY));
        let new = _mm512_maskz_mov_ps(seen, new);
        let shrink = exp16(_mm512_sub_ps(old, new));
        let mut total = _mm512_mul_ps(load16(sum), shrink);
        for s in s.iter_mut() {
            let s = &mut s.as_chunks_mut::<16>().0[at];
            let p = exp16(_mm512_sub_ps(load16(s), new));
            store16(s, p);
            total = _mm512_add_ps(total, p);
        }
        store16(sum, total);
        store16(alpha, shrink);
    }
}

/// eˣ in every lane: the polynomial and the error of `exp8`, with `scalef` for the power of two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn exp16(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(-104.0), x);
    let x = _mm512_min_ps(_mm512_set1_ps(89.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
        _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
    );
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    let p = _mm512_set1_ps(1.987_569_2e-4);
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.398_2e-3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.333_452e-3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.166_579_6e-2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.666_666_5e-1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5));
    let p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, n)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn values_avx512(v: &[f32], p: &[Lanes], alpha: &Lanes, o: &mut [Lanes]) {
    let head_dim = o.len();
    let (eights, rest) = o.as_chunks_mut::<8>();
    for (i, o) in eights.iter_mut().enumerate() {
        weigh(v, [head_dim, 8 * i], p, alpha, o);
    }
    let first = head_dim - rest.len();
    for (i, o) in rest.iter_mut().enumerate() {
        weigh(v, [head_dim, first + i], p, alpha, std::array::from_mut(o));
    }
}

/// The weighted sums of dimensions `at..at + R`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn weigh<const R: usize>(
    v: &[f32],
    [head_dim, at]: [usize; 2],
    p: &[Lanes],
    alpha: &Lanes,
    o: &mut [Lanes; R],
) {
    let alpha = load_lanes(alpha);
    let mut sums = [[_mm512_setzero_ps(); WHOLE]; R];
    for (sums, o) in sums.iter_mut().zip(&*o) {
        for ((sum, o), alpha) in sums.iter_mut().zip(load_lanes(o)).zip(alpha) {
            *sum = _mm512_mul_ps(o, alpha);
        }
    }
    for (v, p) in v.chunks_exact(head_dim).zip(p) {
        let Some(v) = v[at..].first_chunk::<R>() else { return };
        let p = load_lanes(p);
        for (sums, &v) in sums.iter_mut().zip(v) {
            let v = _mm512_set1_ps(v);
            for (sum, p) in sums.iter_mut().zip(p) {
                *sum = _mm512_fmadd_ps(v, p, *sum);
            }
        }
    }
    for (sums, o) in sums.into_iter().zip(o) {
        store_lanes(o, sums);
    }
}
