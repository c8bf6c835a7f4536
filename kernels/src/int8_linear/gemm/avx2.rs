//! AVX2: six rows of weights times 8 or 16 tokens in twelve registers of sums, `pmaddwd` on pairs of k.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Packed, PanelBlock, Source, TileRows, WeightBlock, by_blocks};
use crate::isa::Avx2;
use crate::lanes::{load8, store8};
use crate::{Cpu, Shape};

/// Rows of a tile: 6 × 2 sums, two vectors of tokens, one weight and one product fill the 16 registers.
const ROWS: usize = 6;

/// Columns in which exact sums are kept in registers.
pub(crate) const EXACT_BLOCK: usize = 128;

/// Tokens of a panel, for `m` tokens.
pub(crate) fn width(m: usize) -> usize {
    if m <= 8 { 8 } else { 16 }
}

/// Sums of blocks, each scaled.
pub(crate) fn scaled(
    isa: Avx2,
    cpu: &Cpu,
    x: &Packed<i16>,
    y: (&mut [f32], Shape),
    weights: &Source<
        impl Fn(Range<usize>, usize, &mut WeightBlock<i16>) + Sync,
        impl Fn(usize, usize) + Sync,
    >,
) {
    let multiply = |w: TileRows<'_, i16>, panel: PanelBlock<'_, i16>, sums: &mut [f32]| {
        scaled_block(isa, w, panel, (x.block, x.width), sums);
    };
    by_blocks(cpu, x, y, weights, (ROWS, multiply), |_, _, sums, y| y.copy_from_slice(sums));
}

fn scaled_block(
    _: Avx2,
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    size: (usize, usize),
    sums: &mut [f32],
) {
    // SAFETY: the `Avx2` token is made only after avx2, fma and f16c were detected.
    unsafe { scaled_block_avx2(w, x, size, sums) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn scaled_block_avx2(
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    (block, width): (usize, usize),
    sums: &mut [f32],
) {
    match (block, width) {
        (128, 16) => scaled_rows::<64, 2>(w, x, sums),
        (64, 16) => scaled_rows::<32, 2>(w, x, sums),
        (32, 16) => scaled_rows::<16, 2>(w, x, sums),
        (128, _) => scaled_rows::<64, 1>(w, x, sums),
        (64, _) => scaled_rows::<32, 1>(w, x, sums),
        _ => scaled_rows::<16, 1>(w, x, sums),
    }
}

/// P pairs of k, V vectors of tokens.
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled_rows<const P: usize, const V: usize>(
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    sums: &mut [f32],
) {
    let params = w.scale.as_chunks::<ROWS>().0.iter().zip(w.zero.as_chunks::<ROWS>().0);
    let rows = tiles::<P>(w.q).iter().zip(params);
    let sums = sums.as_chunks_mut::<8>().0.as_chunks_mut::<V>().0.as_chunks_mut::<ROWS>().0;
    for ((w, (scale, zero)), sums) in rows.zip(sums) {
        let whole = tile::<P, V>(w, vectors::<P, V>(x.q));
        for v in 0..V {
            let x_scale = load8(&x.scale.as_chunks::<8>().0[v]);
            for r in 0..ROWS {
                let scale = _mm256_mul_ps(x_scale, _mm256_set1_ps(scale[r]));
                let part = _mm256_cvtepi32_ps(whole[r][v]);
                let mut sum = _mm256_fmadd_ps(part, scale, load8(&sums[r][v]));
                if let Some(x_sum) = x.sum.as_chunks::<8>().0.get(v) {
                    sum = _mm256_fmadd_ps(load8(x_sum), _mm256_set1_ps(zero[r]), sum);
                }
                store8(&mut sums[r][v], sum);
            }
        }
    }
}

/// Exact sums.
pub(crate) fn exact(
    isa: Avx2,
    cpu: &Cpu,
    x: &Packed<i16>,
    y: (&mut [f32], Shape),
    weights: &Source<
        impl Fn(Range<usize>, usize, &mut WeightBlock<i16>) + Sync,
        impl Fn(usize, usize) + Sync,
    >,
    finish: impl Fn(usize, usize, &[i32], &mut [f32]) + Sync,
) {
    let multiply = |w: TileRows<'_, i16>, panel: PanelBlock<'_, i16>, sums: &mut [i32]| {
        exact_block(isa, w, panel, x.width, sums);
    };
    by_blocks(cpu, x, y, weights, (ROWS, multiply), finish);
}

fn exact_block(
    _: Avx2,
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    width: usize,
    sums: &mut [i32],
) {
    // SAFETY: the `Avx2` token is made only after avx2 was detected.
    unsafe { exact_block_avx2(w, x, width, sums) }
}

#[target_feature(enable = "avx2")]
fn exact_block_avx2(w: TileRows<'_, i16>, x: PanelBlock<'_, i16>, width: usize, sums: &mut [i32]) {
    const PAIRS: usize = EXACT_BLOCK / 2;
    match width {
        16 => exact_rows::<PAIRS, 2>(w, x, sums),
        _ => exact_rows::<PAIRS, 1>(w, x, sums),
    }
}

#[target_feature(enable = "avx2")]
fn exact_rows<const P: usize, const V: usize>(
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    sums: &mut [i32],
) {
    let sums = sums.as_chunks_mut::<8>().0.as_chunks_mut::<V>().0.as_chunks_mut::<ROWS>().0;
    for (w, sums) in tiles::<P>(w.q).iter().zip(sums) {
        let whole = tile::<P, V>(w, vectors::<P, V>(x.q));
        for r in 0..ROWS {
            for v in 0..V {
                let sum = _mm256_add_epi32(load_i32(&sums[r][v]), whole[r][v]);
                store_i32(&mut sums[r][v], sum);
            }
        }
    }
}

/// Rows of P pairs, six at a time.
#[inline]
fn tiles<const P: usize>(q: &[i16]) -> &[[[[i16; 2]; P]; ROWS]] {
    q.as_chunks::<2>().0.as_chunks::<P>().0.as_chunks::<ROWS>().0
}

/// The V vectors of 8 tokens' pairs, for each of P pairs.
#[inline]
fn vectors<const P: usize, const V: usize>(q: &[i16]) -> &[[[i16; 16]; V]; P] {
    &q.as_chunks::<16>().0.as_chunks::<V>().0.as_chunks::<P>().0[0]
}

/// Widens codes to 16 bits; what `to` has more of becomes zero.
pub(crate) fn widen(_: Avx2, codes: &[i8], to: &mut [i16]) {
    // SAFETY: the `Avx2` token is made only after avx2 was detected.
    unsafe { widen_avx2(codes, to) }
}

/// A plain loop that the compiler makes vectors of.
#[target_feature(enable = "avx2")]
fn widen_avx2(codes: &[i8], to: &mut [i16]) {
    let (to, rest) = to.split_at_mut(codes.len());
    to.iter_mut().zip(codes).for_each(|(to, &q)| *to = q.into());
    rest.fill(0);
}

/// Exact sums of P pairs: pairs of 2⁷ · 2¹⁵, at most 64 of them, stay below 2³¹.
#[inline]
#[target_feature(enable = "avx2")]
fn tile<const P: usize, const V: usize>(
    w: &[[[i16; 2]; P]; ROWS],
    x: &[[[i16; 16]; V]; P],
) -> [[__m256i; V]; ROWS] {
    let mut sums = [[_mm256_setzero_si256(); V]; ROWS];
    for k in 0..P {
        for r in 0..ROWS {
            let w = broadcast(&w[r][k]);
            for v in 0..V {
                sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(w, load(&x[k][v])));
            }
        }
    }
    sums
}

/// A pair of weights in all eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(pair: &[i16; 2]) -> __m256i {
    // SAFETY: `pair` is 4 readable bytes; read_unaligned has no alignment need.
    let pair = unsafe { pair.as_ptr().cast::<i32>().read_unaligned() };
    _mm256_set1_epi32(pair)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[i16; 16]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i32(v: &[i32; 8]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_i32(v: &mut [i32; 8], sums: __m256i) {
    // SAFETY: `v` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_si256(v.as_mut_ptr().cast(), sums) }
}
