//! AVX-512 VNNI: pairs of 16-bit products added to sums in one instruction (`vpdpwssd`), one vector a panel.

use super::activation::{Block, blocks_at, rows};
use super::decoded::Decoded;
use super::panels::LANES;
use crate::ggml::BlockType;
use std::arch::asm;
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(bytes: &[u8], at: usize) -> __m512i {
    let bytes = &bytes[at..at + 64];
    // SAFETY: `bytes` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_codes(codes: &mut [i16; 2 * LANES], v: __m512i) {
    // SAFETY: `codes` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_floats(x: &mut [f32; LANES], v: __m512) {
    // SAFETY: `x` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

/// Sixteen f16 from byte `at` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: &[u8], at: usize) -> __m512 {
    let bytes = &bytes[at..at + 32];
    // SAFETY: `bytes` is 32 readable bytes; loadu has no alignment need.
    let halves = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    _mm512_cvtph_ps(halves)
}

/// Sixteen bytes from `at` on, as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn small_integers(bytes: &[u8], at: usize) -> __m512 {
    let bytes = &bytes[at..at + 16];
    // SAFETY: `bytes` is 16 readable bytes; loadu has no alignment need.
    let sixteen = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn all(v: [__m512i; 4], mask: i16) -> [__m512i; 4] {
    let mask = _mm512_set1_epi16(mask);
    [
        _mm512_and_si512(v[0], mask),
        _mm512_and_si512(v[1], mask),
        _mm512_and_si512(v[2], mask),
        _mm512_and_si512(v[3], mask),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn join(low: [__m512i; 4], high: [__m512i; 4]) -> [__m512i; 4] {
    [
        _mm512_or_si512(low[0], high[0]),
        _mm512_or_si512(low[1], high[1]),
        _mm512_or_si512(low[2], high[2]),
        _mm512_or_si512(low[3], high[3]),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_right(v: __m512i, count: usize) -> __m512i {
    // The count is 0, 4, 8 or 12, and a constant once the loops are unrolled.
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 12")]
    let count = _mm_cvtsi32_si128(count as i32);
    _mm512_srl_epi16(v, count)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(v: __m512i) -> [__m512i; 4] {
    let shifted =
        [v, _mm512_srli_epi16::<4>(v), _mm512_srli_epi16::<8>(v), _mm512_srli_epi16::<12>(v)];
    all(shifted, 15)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bit_pairs(v: __m512i) -> [__m512i; 4] {
    let shifted =
        [v, _mm512_srli_epi16::<2>(v), _mm512_srli_epi16::<4>(v), _mm512_srli_epi16::<6>(v)];
    all(shifted, 3)
}

/// Bits 0–3, each moved to bit 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits_to_4(v: __m512i) -> [__m512i; 4] {
    let shifted = [
        _mm512_slli_epi16::<4>(v),
        _mm512_slli_epi16::<3>(v),
        _mm512_slli_epi16::<2>(v),
        _mm512_slli_epi16::<1>(v),
    ];
    all(shifted, 16)
}

/// Bits 0–3, each moved to bit 2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits_to_2(v: __m512i) -> [__m512i; 4] {
    let shifted =
        [_mm512_slli_epi16::<2>(v), _mm512_slli_epi16::<1>(v), v, _mm512_srli_epi16::<1>(v)];
    all(shifted, 4)
}

/// Bits 0–7, pair after pair moved to bits 4 and 5.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bit_pairs_to_4(v: __m512i) -> [__m512i; 4] {
    let shifted =
        [_mm512_slli_epi16::<4>(v), _mm512_slli_epi16::<2>(v), v, _mm512_srli_epi16::<2>(v)];
    all(shifted, 48)
}

/// Codes of columns `8·g .. 8·g + 8` of sixteen rows: four vectors of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn group<const T: u8>(codes: &[u8], g: usize) -> [__m512i; 4] {
    let plane = |first: usize, vector: usize| load(codes, first + 64 * vector);
    match const { BlockType::from_index(T).code_bits() } {
        2 => bit_pairs(shift_right(plane(0, g / 2), g % 2 * 8)),
        3 => join(
            bit_pairs(shift_right(plane(0, g / 2), g % 2 * 8)),
            bits_to_2(shift_right(plane(128, 0), 4 * g)),
        ),
        4 => nibbles(plane(0, g)),
        5 => join(nibbles(plane(0, g)), bits_to_4(shift_right(plane(256, 0), 4 * g))),
        6 => join(nibbles(plane(0, g)), bit_pairs_to_4(shift_right(plane(256, g / 2), g % 2 * 8))),
        _ => {
            let (a, b) = (plane(0, 2 * g), plane(0, 2 * g + 1));
            [
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a)),
                _mm512_srai_epi16::<8>(a),
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)),
                _mm512_srai_epi16::<8>(b),
            ]
        }
    }
}

/// Scales and minimums of sub-block `sub` of a step.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn scale_and_min<const T: u8>((unit, step): (&[u8], &[u8]), sub: usize) -> (__m512, __m512) {
    let ty = const { BlockType::from_index(T) };
    let subs = ty.unit().subs;
    let d = halves(unit, 0);
    let m = if ty.has_min() { halves(unit, 32) } else { _mm512_setzero_ps() };
    if ty.sub_scales() == 0 {
        return (d, m);
    }
    let scale = _mm512_mul_ps(d, small_integers(step, LANES * sub));
    if !ty.has_min() {
        return (scale, m);
    }
    let min = _mm512_mul_ps(m, small_integers(step, LANES * (subs + sub)));
    (scale, _mm512_xor_ps(min, _mm512_set1_ps(-0.0)))
}

/// Asks for what lies 2 KiB behind `step`: the processor's own prefetching stops at the end of each page.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(step: &[u8]) {
    const AHEAD: usize = 2 << 10;
    for line in (0..step.len()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD + line).cast());
    }
}

/// `sum + w · x`, pairs of 16-bit products. Written as the instruction: LLVM may take the intrinsic apart into a product and a
/// sum.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn add_pairs(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {w}, {x}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Integer dot products of sub-block `sub` of a step with `M` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_products<const T: u8, const M: usize>(
    codes: &[u8],
    x: [&Block; M],
    sub: usize,
) -> [__m512i; M] {
    let ty = const { BlockType::from_index(T) };
    let groups = const { 4 / BlockType::from_index(T).unit().subs };
    // Two sums a row, so that one instruction need not wait for the last. Starting the first at
    // −bias · Σx takes the bias away from every code.
    let mut dots = [[_mm512_setzero_si512(); 2]; M];
    for (dots, x) in dots.iter_mut().zip(x) {
        dots[0] = _mm512_set1_epi32(-i32::from(ty.bias()) * x.sums[which_sum(ty, sub)]);
    }
    for g in sub * groups..(sub + 1) * groups {
        let w = group::<T>(codes, g);
        for (dots, x) in dots.iter_mut().zip(x) {
            for i in 0..4 {
                let pair = _mm512_set1_epi32(x.pairs[4 * g + i]);
                dots[i % 2] = add_pairs(dots[i % 2], w[i], pair);
            }
        }
    }
    let mut sums = [_mm512_setzero_si512(); M];
    for (sum, [even, odd]) in sums.iter_mut().zip(dots) {
        *sum = _mm512_add_epi32(even, odd);
    }
    sums
}

/// Which of a block's three sums belongs to sub-block `sub`.
#[inline]
const fn which_sum(ty: BlockType, sub: usize) -> usize {
    if ty.unit().subs == 1 { 2 } else { sub }
}

/// `M` rows of activations times one panel, streamed once.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
pub(super) fn stream<const T: u8, const M: usize>(
    panel: &[u8],
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let ty = const { BlockType::from_index(T) };
    let u = const { BlockType::from_index(T).unit() };
    let x = rows::<M>(x);
    let mut sums = [_mm512_setzero_ps(); M];
    for (i, unit) in panel.chunks_exact(u.nbytes).enumerate() {
        for (s, step) in unit[u.head..].chunks_exact(u.step_nbytes).enumerate() {
            let x = blocks_at(&x, i * u.steps + s);
            prefetch(step);
            for sub in 0..u.subs {
                let dots = dot_products::<T, M>(&step[u.step_head..], x, sub);
                let (scale, min) = scale_and_min::<T>((unit, step), sub);
                for row in 0..M {
                    let x_sum = x[row].scaled_sums[which_sum(ty, sub)];
                    let min = ty.has_min().then_some((min, x_sum));
                    sums[row] = scale_and_add(sums[row], dots[row], (scale, x[row].scale), min);
                }
            }
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        store_floats(y, sum);
    }
}

/// `sum + dot · scale · x_scale + min · x_sum`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn scale_and_add(
    sum: __m512,
    dot: __m512i,
    (scale, x_scale): (__m512, f32),
    min: Option<(__m512, f32)>,
) -> __m512 {
    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
    let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
    match min {
        None => sum,
        Some((min, x_sum)) => _mm512_fmadd_ps(min, _mm512_set1_ps(x_sum), sum),
    }
}

/// Some units of a panel as 16-bit codes, without bias, and f32 scales.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn decode<const T: u8>(units: &[u8], out: &mut [Decoded]) {
    let u = const { BlockType::from_index(T).unit() };
    let bias = _mm512_set1_epi16(i16::from(const { BlockType::from_index(T) }.bias()));
    let mut out = out.iter_mut();
    for unit in units.chunks_exact(u.nbytes) {
        for (step, out) in unit[u.head..].chunks_exact(u.step_nbytes).zip(&mut out) {
            for (g, out) in out.codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for (w, out) in group::<T>(&step[u.step_head..], g).into_iter().zip(out) {
                    store_codes(out, _mm512_sub_epi16(w, bias));
                }
            }
            for sub in 0..u.subs {
                let (scale, min) = scale_and_min::<T>((unit, step), sub);
                store_floats(&mut out.scales[sub], scale);
                store_floats(&mut out.mins[sub], min);
            }
        }
    }
}
