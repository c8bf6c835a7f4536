//! AVX2: eight numbers at a time; one loop for all functions, chosen outside of it.

use super::{Activation, ERFC};
use crate::isa::Avx2;
use crate::lanes::{exp8, load_tail, load8, store_tail, store8};
use std::arch::x86_64::*;

/// `y = f(x)`, times `up` where there is one.
pub(super) fn activate(
    _proof: Avx2,
    function: Activation,
    x: &[f32],
    up: Option<&[f32]>,
    y: &mut [f32],
) {
    // SAFETY: the token is made only after AVX2 and FMA were detected.
    unsafe { activate_avx2(function, x, up, y) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn activate_avx2(function: Activation, x: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
    match function {
        Activation::Silu => map(x, up, y, |x| silu(x)),
        Activation::Gelu => map(x, up, y, |x| gelu(x)),
        Activation::GeluTanh => map(x, up, y, |x| gelu_tanh(x)),
        Activation::Relu => map(x, up, y, |x| relu(x)),
        Activation::ReluSquared => map(x, up, y, |x| _mm256_mul_ps(relu(x), relu(x))),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn map(x: &[f32], up: Option<&[f32]>, y: &mut [f32], f: impl Fn(__m256) -> __m256) {
    let (x, x_rest) = x.as_chunks::<8>();
    let (y, y_rest) = y.as_chunks_mut::<8>();
    let last = f(load_tail(x_rest, 0.0));
    let Some(up) = up else {
        for (x, y) in x.iter().zip(y) {
            store8(y, f(load8(x)));
        }
        store_tail(y_rest, last);
        return;
    };
    let (up, up_rest) = up.as_chunks::<8>();
    for ((x, up), y) in x.iter().zip(up).zip(y) {
        store8(y, _mm256_mul_ps(f(load8(x)), load8(up)));
    }
    store_tail(y_rest, _mm256_mul_ps(last, load_tail(up_rest, 0.0)));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn silu(x: __m256) -> __m256 {
    times_sigmoid(x, x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn gelu_tanh(x: __m256) -> __m256 {
    // 2u = 2 √(2/π) · x · (1 + 0.044715 · x²)
    let cubic = _mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044_715));
    let twice = _mm256_mul_ps(x, _mm256_set1_ps(1.595_769));
    times_sigmoid(x, _mm256_fmadd_ps(twice, cubic, twice))
}

/// x / (1 + e⁻ᵘ).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn times_sigmoid(x: __m256, u: __m256) -> __m256 {
    // −inf / inf would be NaN; the largest finite number has the same limit, 0. max gives its
    // second operand when one is NaN, so that NaN passes.
    let x = _mm256_max_ps(_mm256_set1_ps(f32::MIN), x);
    let minus = _mm256_xor_ps(u, _mm256_set1_ps(-0.0));
    _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0), exp8(minus)))
}

/// 0.5 · x · erfc(−x / √2).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(clippy::cast_possible_truncation, reason = "the coefficients are rounded to f32 here")]
fn gelu(x: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    let sign = _mm256_set1_ps(-0.0);
    // Beyond ±20 the result is x or 0; bounded so, −inf · 0 does not come up.
    let bounded = _mm256_max_ps(_mm256_set1_ps(-20.0), x);
    let z = _mm256_mul_ps(bounded, _mm256_set1_ps(std::f32::consts::FRAC_1_SQRT_2));
    let size = _mm256_andnot_ps(sign, z);
    let t = _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.5), one));
    let mut polynomial = _mm256_setzero_ps();
    for c in ERFC {
        polynomial = _mm256_fmadd_ps(polynomial, t, _mm256_set1_ps(c as f32));
    }
    let tail = _mm256_mul_ps(t, exp8(_mm256_fnmadd_ps(z, z, polynomial)));
    let other = _mm256_sub_ps(_mm256_set1_ps(2.0), tail);
    // erfc(−z): the small tail for negative x, two minus it for positive.
    let erfc = _mm256_blendv_ps(other, tail, z);
    _mm256_mul_ps(_mm256_mul_ps(bounded, _mm256_set1_ps(0.5)), erfc)
}

/// max gives its second operand when one is NaN, so that NaN passes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn relu(x: __m256) -> __m256 {
    _mm256_max_ps(_mm256_setzero_ps(), x)
}
