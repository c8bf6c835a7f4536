//! AVX2: pairs of 16-bit products (`vpmaddwd`), two vectors of eight rows a panel.

use super::activation::{Block, blocks_at, finish, rows, scales};
use super::avx2_codes::{group, scale_and_min};
use super::decoded::Decoded;
use super::panels::{LANES, STEP};
use crate::ggml::BlockType;
use std::arch::x86_64::*;

/// Rows of activations that [`tile`] multiplies at once: 6 × 2 sums, two weights and one activation fill the
/// sixteen registers.
pub(super) const TILE_ROWS: usize = 6;

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i16; 16]) -> __m256i {
    // SAFETY: `codes` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_codes(codes: &mut [i16; 16], v: __m256i) {
    // SAFETY: `codes` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats(x: &mut [f32; 8], v: __m256) {
    // SAFETY: `x` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}

/// Asks for what lies 2 KiB behind `step`: the processor's own prefetching stops at the end of each page.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(step: &[u8]) {
    const AHEAD: usize = 2 << 10;
    for line in (0..step.len()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD + line).cast());
    }
}

/// Integer dot products of sub-block `sub` of a step with `M` rows.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_products<const T: u8, const M: usize>(
    codes: &[u8],
    x: [&Block; M],
    sub: usize,
) -> [[__m256i; 2]; M] {
    let ty = const { BlockType::from_index(T) };
    let groups = const { 4 / BlockType::from_index(T).unit().subs };
    // Starting at −bias · Σx takes the bias away from every code.
    let mut dots = [[_mm256_setzero_si256(); 2]; M];
    for (dots, x) in dots.iter_mut().zip(x) {
        let bias = -i32::from(ty.bias()) * x.sums[which_sum(ty, sub)];
        *dots = [_mm256_set1_epi32(bias); 2];
    }
    for g in sub * groups..(sub + 1) * groups {
        let w = [group::<T>(codes, 0, g), group::<T>(codes, 1, g)];
        for (dots, x) in dots.iter_mut().zip(x) {
            for (i, (low, high)) in w[0].into_iter().zip(w[1]).enumerate() {
                let pair = _mm256_set1_epi32(x.pairs[4 * g + i]);
                dots[0] = _mm256_add_epi32(dots[0], _mm256_madd_epi16(low, pair));
                dots[1] = _mm256_add_epi32(dots[1], _mm256_madd_epi16(high, pair));
            }
        }
    }
    dots
}

/// Which of a block's three sums belongs to sub-block `sub`.
#[inline]
const fn which_sum(ty: BlockType, sub: usize) -> usize {
    if ty.unit().subs == 1 { 2 } else { sub }
}

/// `sums + dots · scale · x.scale + min · Σx`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled<const T: u8>(
    sums: [__m256; 2],
    dots: [__m256i; 2],
    scales: [(__m256, __m256); 2],
    (x, sub): (&Block, usize),
) -> [__m256; 2] {
    let ty = const { BlockType::from_index(T) };
    let mut out = sums;
    for (half, (scale, min)) in scales.into_iter().enumerate() {
        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale));
        out[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[half]), scale, out[half]);
        if ty.has_min() {
            let x_sum = _mm256_set1_ps(x.scaled_sums[which_sum(ty, sub)]);
            out[half] = _mm256_fmadd_ps(min, x_sum, out[half]);
        }
    }
    out
}

/// `M` rows of activations times one panel, streamed once.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn stream<const T: u8, const M: usize>(
    panel: &[u8],
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let u = const { BlockType::from_index(T).unit() };
    let x = rows::<M>(x);
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (i, unit) in panel.chunks_exact(u.nbytes).enumerate() {
        for (s, step) in unit[u.head..].chunks_exact(u.step_nbytes).enumerate() {
            let x = blocks_at(&x, i * u.steps + s);
            prefetch(step);
            for sub in 0..u.subs {
                let dots = dot_products::<T, M>(&step[u.step_head..], x, sub);
                let scales = [
                    scale_and_min::<T>((unit, step), 0, sub),
                    scale_and_min::<T>((unit, step), 1, sub),
                ];
                for row in 0..M {
                    sums[row] = add_scaled::<T>(sums[row], dots[row], scales, (x[row], sub));
                }
            }
        }
    }
    for (y, sums) in y.iter_mut().zip(sums) {
        for (y, sum) in y.as_chunks_mut().0.iter_mut().zip(sums) {
            store_floats(y, sum);
        }
    }
}

/// Some units of a panel as 16-bit codes, without bias, and f32 scales.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode<const T: u8>(units: &[u8], out: &mut [Decoded]) {
    let u = const { BlockType::from_index(T).unit() };
    let mut out = out.iter_mut();
    for unit in units.chunks_exact(u.nbytes) {
        for (step, out) in unit[u.head..].chunks_exact(u.step_nbytes).zip(&mut out) {
            for half in 0..2 {
                decode_codes::<T>(&step[u.step_head..], half, &mut out.codes);
                for sub in 0..u.subs {
                    let (scale, min) = scale_and_min::<T>((unit, step), half, sub);
                    store_floats(&mut out.scales[sub].as_chunks_mut().0[half], scale);
                    store_floats(&mut out.mins[sub].as_chunks_mut().0[half], min);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn decode_codes<const T: u8>(codes: &[u8], half: usize, out: &mut [[i16; 2 * LANES]; STEP / 2]) {
    let bias = _mm256_set1_epi16(i16::from(const { BlockType::from_index(T) }.bias()));
    for (g, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        for (w, out) in group::<T>(codes, half, g).into_iter().zip(out) {
            store_codes(&mut out.as_chunks_mut().0[half], _mm256_sub_epi16(w, bias));
        }
    }
}

/// Adds `M` rows of activations times some steps of a decoded panel to `y`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn tile<const SUBS: usize, const MIN: bool, const M: usize>(
    w: &[Decoded],
    x: [&[Block]; M],
    y: &mut [[f32; LANES]; M],
) {
    // A length that the compiler does not know: it would unroll the loop whole, multiply row after row, and
    // run out of registers for the weights.
    let pairs = std::hint::black_box(STEP / 2 / SUBS);
    assert!(pairs * SUBS <= STEP / 2, "a step has sixteen pairs of columns");
    for (s, w) in w.iter().enumerate() {
        let x = blocks_at(&x, s);
        for sub in 0..SUBS {
            let (first, end) = (sub * pairs, (sub + 1) * pairs);
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            for i in first..end {
                let (codes, _) = w.codes[i].as_chunks();
                let w = [load_codes(&codes[0]), load_codes(&codes[1])];
                for (dots, x) in dots.iter_mut().zip(x) {
                    let pair = _mm256_set1_epi32(x.pairs[i]);
                    dots[0] = _mm256_add_epi32(dots[0], _mm256_madd_epi16(w[0], pair));
                    dots[1] = _mm256_add_epi32(dots[1], _mm256_madd_epi16(w[1], pair));
                }
            }
            for row in 0..M {
                add_to_tile::<SUBS, MIN>((w, sub), x[row], dots[row], &mut y[row]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_to_tile<const SUBS: usize, const MIN: bool>(
    (w, sub): (&Decoded, usize),
    x: &Block,
    dots: [__m256i; 2],
    y: &mut [f32; LANES],
) {
    let (scales, _) = w.scales[sub].as_chunks();
    let (mins, _) = w.mins[sub].as_chunks();
    let x_scale = _mm256_set1_ps(x.scale);
    let x_sum = _mm256_set1_ps(x.scaled_sums[if SUBS == 1 { 2 } else { sub }]);
    for (half, y) in y.as_chunks_mut().0.iter_mut().enumerate() {
        let scale = _mm256_mul_ps(load_floats(&scales[half]), x_scale);
        let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[half]), scale, load_floats(y));
        if MIN {
            sum = _mm256_fmadd_ps(load_floats(&mins[half]), x_sum, sum);
        }
        store_floats(y, sum);
    }
}

/// See `activation::quantize`: the same numbers, eight at a time.
#[target_feature(enable = "avx2,fma")]
pub(super) fn quantize(steps: &[[f32; STEP]], blocks: &mut [Block]) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    for (x, block) in steps.iter().zip(blocks) {
        let (x, _) = x.as_chunks();
        let mut amax = _mm256_setzero_si256();
        for x in x {
            let bits = _mm256_and_si256(_mm256_castps_si256(load_floats(x)), magnitude);
            amax = _mm256_max_epu32(amax, bits);
        }
        let (scale, inv_scale) = scales(largest(amax));
        let inv_scale = _mm256_set1_ps(inv_scale);
        let codes = |i: usize| _mm256_cvtps_epi32(_mm256_mul_ps(load_floats(&x[i]), inv_scale));
        let (pairs, _) = block.pairs.as_chunks_mut();
        for (i, pairs) in pairs.iter_mut().enumerate() {
            // Packing works in 128-bit lanes: quarters come out as 0 2 1 3.
            let packed = _mm256_packs_epi32(codes(2 * i), codes(2 * i + 1));
            store_pairs(pairs, _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
        finish(block, scale);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_pairs(pairs: &mut [i32; 8], v: __m256i) {
    // SAFETY: `pairs` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), v) }
}

/// The largest of eight unsigned integers.
#[inline]
#[target_feature(enable = "avx2")]
fn largest(v: __m256i) -> u32 {
    let v = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_max_epu32(v, _mm_shuffle_epi32::<0b00_00_00_01>(v));
    _mm_cvtsi128_si32(v).cast_unsigned()
}
