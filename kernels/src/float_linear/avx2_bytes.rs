//! AVX2 for elements whose values fit a byte: look-ups among sixteen bytes (`pshufb`) and integer products with the two
//! byte planes of x (`pmaddubsw`), eight rows side by side. (MX's int8 would overflow 16 bits and goes through f32.)

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names the activation row, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::activation::Bytes;
use super::avx2::{add_run, at, codes, finish};
use super::element::Element;
use super::panels::LANES;
use super::view::View;

/// Values of sixteen codes in either half of a register.
type Table = [__m256i; 4];

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn table<const E: usize>() -> Table {
    let bytes = const { biased(Element::from_index(E)) };
    let mut table = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        // SAFETY: a row of `bytes` is 16 readable bytes; loadu has no alignment need.
        let row = unsafe { _mm_loadu_si128(bytes[i].as_ptr().cast()) };
        table[i] = _mm256_broadcastsi128_si256(row);
    }
    table
}

/// How many steps the value of each code of 6 bits is, and the bias on top.
const fn biased(element: Element) -> [[u8; 16]; 4] {
    let mut table = [[0; 16]; 4];
    let (magnitude_bits, mantissa_bits) = match element {
        Element::E2m3 => (5, 3),
        Element::E2m2 => (4, 2),
        _ => (3, 1),
    };
    let mut code = 0;
    while code < 64 {
        let magnitude = code & ((1 << magnitude_bits) - 1);
        let exponent = magnitude >> mantissa_bits;
        let mantissa = magnitude & ((1 << mantissa_bits) - 1);
        let steps = if exponent == 0 {
            mantissa
        } else {
            (mantissa + (1 << mantissa_bits)) << (exponent - 1)
        };
        let negative = code >> magnitude_bits & 1 == 1;
        let value = if negative { element.bias() - steps } else { element.bias() + steps };
        table[code as usize / 16][code as usize % 16] = value;
        code += 1;
    }
    table
}

/// The values of codes, biased.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up<const E: usize>(table: &Table, codes: __m256i) -> __m256i {
    let index = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    let bits = const { Element::from_index(E).bits() };
    let low = _mm256_shuffle_epi8(table[0], index);
    if bits == 4 {
        return low;
    }
    // A byte is taken where bit 7 of the mask is set: bit 4, and bit 5, of the code, moved there.
    let fourth = _mm256_slli_epi16::<3>(codes);
    let low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(table[1], index), fourth);
    if bits == 5 {
        return low;
    }
    let (third, last) =
        (_mm256_shuffle_epi8(table[2], index), _mm256_shuffle_epi8(table[3], index));
    let high = _mm256_blendv_epi8(third, last, fourth);
    _mm256_blendv_epi8(low, high, _mm256_slli_epi16::<2>(codes))
}

/// One panel times M rows of activations. With `SUBS` 2 each half of a step has its scale.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn stream<const E: usize, const SUBS: usize, const M: usize>(
    w: View<'_>,
    x: [&[Bytes]; M],
    y: &mut [[f32; LANES]; M],
) {
    let table = table::<E>();
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut totals = [[_mm256_setzero_ps(); 2]; M];
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (g, run) in w.codes.chunks(w.run * nbytes).enumerate() {
        for (s, step) in run.chunks_exact(nbytes).enumerate() {
            let x = at(&x, g * w.run + s);
            for sub in 0..SUBS {
                for half in 0..2 {
                    add_step::<E, SUBS, M>(&table, step, x, (sub, half), &mut sums);
                }
                if SUBS == 2 {
                    add_run(w.scales, SUBS * g + sub, &mut sums, &mut totals);
                }
            }
        }
        if SUBS == 1 {
            add_run(w.scales, g, &mut sums, &mut totals);
        }
    }
    finish(w.factor, &totals, y);
}

/// Adds part `sub` of `SUBS` of a step, for eight of the sixteen rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_step<const E: usize, const SUBS: usize, const M: usize>(
    table: &Table,
    step: &[u8],
    x: [&Bytes; M],
    (sub, half): (usize, usize),
    sums: &mut [[__m256; 2]; M],
) {
    let element = const { Element::from_index(E) };
    let ones = _mm256_set1_epi16(1);
    let mut high = [_mm256_setzero_si256(); M];
    let mut low = [_mm256_setzero_si256(); M];
    for m in 0..M {
        let sum = if SUBS == 1 { x[m].sums[0] + x[m].sums[1] } else { x[m].sums[sub] };
        // Starting at −bias · Σx takes the bias away from every value.
        low[m] = _mm256_set1_epi32(-i32::from(element.bias()) * sum);
    }
    for q in sub * 8 / SUBS..(sub + 1) * 8 / SUBS {
        let values = look_up::<E>(table, codes::<E>(step, q, half));
        for m in 0..M {
            // A pair is at most 2 · 120 · 127 = 30480, which 16 bits hold.
            let upper = _mm256_maddubs_epi16(values, _mm256_set1_epi32(x[m].high[q]));
            let lower = _mm256_maddubs_epi16(values, _mm256_set1_epi32(x[m].low[q]));
            high[m] = _mm256_add_epi32(high[m], _mm256_madd_epi16(upper, ones));
            low[m] = _mm256_add_epi32(low[m], _mm256_madd_epi16(lower, ones));
        }
    }
    for m in 0..M {
        let whole = _mm256_add_epi32(_mm256_slli_epi32::<8>(high[m]), low[m]);
        let x_scale = _mm256_set1_ps(x[m].scale);
        sums[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), x_scale, sums[m][half]);
    }
}
