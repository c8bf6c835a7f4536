//! AVX2: codes become f32 by shifts, eight rows side by side; x stays as it is.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names the activation row, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::element::{Arithmetic, Element};
use super::panels::{LANES, STEP};
use super::view::{LaneScales, View};
use crate::dtypes::{e4m3fn_decode, e8m0_decode};
use crate::lanes::{load8, store8};

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(bytes: &[u8], at: usize) -> __m256i {
    let bytes = &bytes[at..at + 32];
    // SAFETY: `bytes` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Codes of columns `4q ..= 4q + 3` of eight rows, one row a 32-bit word, the bits above the code arbitrary.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn codes<const E: usize>(step: &[u8], q: usize, half: usize) -> __m256i {
    let element = const { Element::from_index(E) };
    let at = 32 * half;
    let codes = if element.bits() == 8 {
        load(step, 64 * q + at)
    } else {
        let low = load(step, 64 * (q / 2) + at);
        let low = if q.is_multiple_of(2) { low } else { _mm256_srli_epi16::<4>(low) };
        match element.bits() {
            6 => {
                let high = load(step, 256 + 64 * (q / 4) + at);
                select(0x30, moved(high, 2 * (q % 4)), low)
            }
            5 => select(0x10, moved(load(step, 256 + at), q), low),
            _ => low,
        }
    };
    match element.arithmetic() {
        Arithmetic::Bytes => codes,
        _ => {
            // Pairs of columns come first in memory: back to four columns of a row.
            let order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
            _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(order))
        }
    }
}

/// Bit `from` of every byte moved to bit 4.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn moved(v: __m256i, from: usize) -> __m256i {
    // The counts are constants once the loops are unrolled.
    let count = |n: usize| _mm_cvtsi32_si128(i32::try_from(n).unwrap_or(0));
    if from <= 4 {
        _mm256_sll_epi16(v, count(4 - from))
    } else {
        _mm256_srl_epi16(v, count(from - 4))
    }
}

/// The bits of `mask` from `a`, the others from `b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn select(mask: i8, a: __m256i, b: __m256i) -> __m256i {
    let mask = _mm256_set1_epi8(mask);
    _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b))
}

/// Mantissa bits and exponent bias.
const fn shape(element: Element) -> (i32, u32) {
    match element {
        Element::E4m3 => (3, 7),
        Element::E5m2 => (2, 15),
        Element::E3m2 => (2, 3),
        Element::E3m1 => (1, 3),
        Element::E2m3 => (3, 1),
        Element::E2m2 => (2, 1),
        Element::E2m1 | Element::Int8 => (1, 1),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 8")]
const fn small(n: usize) -> i32 {
    n as i32
}

/// Column `j` of four, as f32. It is exact.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn values<const E: usize>(codes: __m256i, j: usize) -> __m256 {
    let element = const { Element::from_index(E) };
    let column = match j {
        0 => codes,
        1 => _mm256_srli_epi32::<8>(codes),
        2 => _mm256_srli_epi32::<16>(codes),
        _ => _mm256_srli_epi32::<24>(codes),
    };
    if element == Element::Int8 {
        let signed = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(column));
        return _mm256_mul_ps(_mm256_cvtepi32_ps(signed), _mm256_set1_ps(element.step()));
    }
    let (mantissa_bits, bias) = const { shape(Element::from_index(E)) };
    let magnitude_bits = const { small(Element::from_index(E).bits() - 1) };
    let magnitude = _mm256_and_si256(column, _mm256_set1_epi32((1 << magnitude_bits) - 1));
    let place = _mm_cvtsi32_si128(23 - mantissa_bits);
    // In f32 the same bits mean 2^(bias − 127) as much; subnormals become normal by the multiplication.
    let up = _mm256_set1_ps(f32::from_bits((254 - bias) << 23));
    let size = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_sll_epi32(magnitude, place)), up);
    let to_top = _mm_cvtsi32_si128(31 - magnitude_bits);
    let sign = _mm256_and_si256(_mm256_sll_epi32(column, to_top), _mm256_set1_epi32(i32::MIN));
    _mm256_or_ps(size, _mm256_castsi256_ps(sign))
}

/// The scales of run `g`, of either half of the panel.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale(scales: LaneScales<'_>, g: usize) -> [__m256; 2] {
    let mut lanes = [1.0; LANES];
    match scales {
        LaneScales::One => {}
        LaneScales::Rows(rows) => lanes = rows[g],
        LaneScales::Squares(values) => lanes = [values[g]; LANES],
        LaneScales::E8m0(rows) => {
            lanes.iter_mut().zip(&rows[g]).for_each(|(to, code)| *to = e8m0_decode(*code));
        }
        LaneScales::E4m3(rows) => {
            // The half of a last step that K lacks has no scale, and sums of zero.
            let row = &rows[g.min(rows.len() - 1)];
            lanes.iter_mut().zip(row).for_each(|(to, code)| *to = e4m3fn_decode(*code));
        }
    }
    let (halves, _) = lanes.as_chunks::<8>();
    [load8(&halves[0]), load8(&halves[1])]
}

/// One panel times M rows of activations of K numbers, padded to whole steps. With `SUBS` 2 each half of a step has
/// its scale.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn stream<const E: usize, const SUBS: usize, const M: usize>(
    w: View<'_>,
    x: [&[[f32; STEP]]; M],
    y: &mut [[f32; LANES]; M],
) {
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut totals = [[_mm256_setzero_ps(); 2]; M];
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (g, run) in w.codes.chunks(w.run * nbytes).enumerate() {
        for (s, step) in run.chunks_exact(nbytes).enumerate() {
            for sub in 0..SUBS {
                let x = at(&x, g * w.run + s);
                for q in sub * 8 / SUBS..(sub + 1) * 8 / SUBS {
                    add_quad::<E, M>(step, q, x, &mut sums);
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

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn finish<const M: usize>(
    factor: f32,
    totals: &[[__m256; 2]; M],
    y: &mut [[f32; LANES]; M],
) {
    let factor = _mm256_set1_ps(factor);
    for m in 0..M {
        let (halves, _) = y[m].as_chunks_mut::<8>();
        store8(&mut halves[0], _mm256_mul_ps(totals[m][0], factor));
        store8(&mut halves[1], _mm256_mul_ps(totals[m][1], factor));
    }
}

/// Step `i` of every row.
#[inline]
pub(super) fn at<'a, T, const M: usize>(x: &[&'a [T]; M], i: usize) -> [&'a T; M] {
    let mut steps = [&x[0][i]; M];
    for m in 1..M {
        steps[m] = &x[m][i];
    }
    steps
}

/// Adds four columns of both halves of a panel.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_quad<const E: usize, const M: usize>(
    step: &[u8],
    q: usize,
    x: [&[f32; STEP]; M],
    sums: &mut [[__m256; 2]; M],
) {
    for half in 0..2 {
        let codes = codes::<E>(step, q, half);
        for j in 0..4 {
            let value = values::<E>(codes, j);
            for m in 0..M {
                let x = _mm256_set1_ps(x[m][4 * q + j]);
                sums[m][half] = _mm256_fmadd_ps(value, x, sums[m][half]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_run<const M: usize>(
    scales: LaneScales<'_>,
    g: usize,
    sums: &mut [[__m256; 2]; M],
    totals: &mut [[__m256; 2]; M],
) {
    let scale = scale(scales, g);
    for m in 0..M {
        for half in 0..2 {
            totals[m][half] = _mm256_fmadd_ps(sums[m][half], scale[half], totals[m][half]);
            sums[m][half] = _mm256_setzero_ps();
        }
    }
}
