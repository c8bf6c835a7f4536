//! AVX-512 VNNI: twelve rows of weights times 16 or 32 tokens in 12 or 24 registers of sums; `vpdpwssd` on pairs of k,
//! `vpdpbusd` on fours.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Packed, PanelBlock, Source, TileRows, WeightBlock, by_blocks};
use crate::isa::Avx512Vnni;
use crate::{Cpu, Shape};

/// Rows of a tile: 12 × 2 sums, two vectors of tokens and a weight fit the 32 registers.
const ROWS: usize = 12;

/// Sums in a vector.
const LANES: usize = 16;

/// Columns in which exact sums are kept in registers: 48 rows of weights take 12 KiB, a panel 8.
pub(crate) const EXACT_BLOCK: usize = 256;

/// Tokens of a panel, for `m` tokens: 32, unless that leaves more than a tenth of the work to absent tokens.
pub(crate) fn width(m: usize) -> usize {
    let (wide, narrow) = (m.next_multiple_of(2 * LANES), m.next_multiple_of(LANES));
    if 9 * wide > 10 * narrow { LANES } else { 2 * LANES }
}

/// Sums of blocks, each scaled.
pub(crate) fn scaled(
    isa: Avx512Vnni,
    cpu: &Cpu,
    x: &Packed<i16>,
    y: (&mut [f32], Shape),
    weights: &Source<
        impl Fn(Range<usize>, usize, &mut WeightBlock<i16>) + Sync,
        impl Fn(usize, usize) + Sync,
    >,
) {
    let size = (x.block, x.width);
    let multiply = |w: TileRows<'_, i16>, panel: PanelBlock<'_, i16>, sums: &mut [f32]| {
        scaled_block(isa, w, panel, size, sums);
    };
    by_blocks(cpu, x, y, weights, (ROWS, multiply), |_, _, sums, y| y.copy_from_slice(sums));
}

fn scaled_block(
    _: Avx512Vnni,
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    size: (usize, usize),
    sums: &mut [f32],
) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { scaled_block_vnni(w, x, size, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn scaled_block_vnni(
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    (block, width): (usize, usize),
    sums: &mut [f32],
) {
    match (block, width) {
        (128, 32) => scaled_rows::<64, 2>(w, x, sums),
        (64, 32) => scaled_rows::<32, 2>(w, x, sums),
        (32, 32) => scaled_rows::<16, 2>(w, x, sums),
        (128, _) => scaled_rows::<64, 1>(w, x, sums),
        (64, _) => scaled_rows::<32, 1>(w, x, sums),
        _ => scaled_rows::<16, 1>(w, x, sums),
    }
}

/// P pairs of k, V vectors of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn scaled_rows<const P: usize, const V: usize>(
    w: TileRows<'_, i16>,
    x: PanelBlock<'_, i16>,
    sums: &mut [f32],
) {
    let params = w.scale.as_chunks::<ROWS>().0.iter().zip(w.zero.as_chunks::<ROWS>().0);
    let rows = tiles::<[i16; 2], P>(w.q.as_chunks::<2>().0).iter().zip(params);
    let sums = sums.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<ROWS>().0;
    let x_vectors = &x.q.as_chunks::<{ 2 * LANES }>().0.as_chunks::<V>().0.as_chunks::<P>().0[0];
    let x_scales = &x.scale.as_chunks::<LANES>().0.as_chunks::<V>().0[0];
    let x_sums = x.sum.as_chunks::<LANES>().0.as_chunks::<V>().0.first();
    for ((w, (scale, zero)), sums) in rows.zip(sums) {
        let whole = tile_of_pairs::<P, V>(w, x_vectors);
        for r in 0..ROWS {
            for v in 0..V {
                let scale = _mm512_mul_ps(load_f32(&x_scales[v]), _mm512_set1_ps(scale[r]));
                let part = _mm512_cvtepi32_ps(whole[r][v]);
                let mut sum = _mm512_fmadd_ps(part, scale, load_f32(&sums[r][v]));
                if let Some(x_sums) = x_sums {
                    let zero = _mm512_set1_ps(zero[r]);
                    sum = _mm512_fmadd_ps(load_f32(&x_sums[v]), zero, sum);
                }
                store_f32(&mut sums[r][v], sum);
            }
        }
    }
}

/// Exact sums of P pairs: 64 of them of 2⁷ · 2¹⁵ stay below 2³¹, and 16 of 2¹³ · 2¹³ (`lut_linear`).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_of_pairs<const P: usize, const V: usize>(
    w: &[[[i16; 2]; P]; ROWS],
    x: &[[[i16; 2 * LANES]; V]; P],
) -> [[__m512i; V]; ROWS] {
    let mut sums = [[_mm512_setzero_si512(); V]; ROWS];
    for k in 0..P {
        for r in 0..ROWS {
            let w = _mm512_set1_epi32(pair(w[r][k]));
            for v in 0..V {
                sums[r][v] = _mm512_dpwssd_epi32(sums[r][v], w, load_i16(&x[k][v]));
            }
        }
    }
    sums
}

/// Exact sums, modulo 2³².
pub(crate) fn exact(
    isa: Avx512Vnni,
    cpu: &Cpu,
    x: &Packed<i8>,
    y: (&mut [f32], Shape),
    weights: &Source<
        impl Fn(Range<usize>, usize, &mut WeightBlock<u8>) + Sync,
        impl Fn(usize, usize) + Sync,
    >,
    finish: impl Fn(usize, usize, &[i32], &mut [f32]) + Sync,
) {
    let multiply = |w: TileRows<'_, u8>, panel: PanelBlock<'_, i8>, sums: &mut [i32]| {
        exact_block(isa, w, panel, x.width, sums);
    };
    by_blocks(cpu, x, y, weights, (ROWS, multiply), finish);
}

fn exact_block(
    _: Avx512Vnni,
    w: TileRows<'_, u8>,
    x: PanelBlock<'_, i8>,
    width: usize,
    sums: &mut [i32],
) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { exact_block_vnni(w, x, width, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn exact_block_vnni(w: TileRows<'_, u8>, x: PanelBlock<'_, i8>, width: usize, sums: &mut [i32]) {
    const FOURS: usize = EXACT_BLOCK / 4;
    match width {
        32 => exact_rows::<FOURS, 2>(w, x, sums),
        _ => exact_rows::<FOURS, 1>(w, x, sums),
    }
}

/// F fours of k, V vectors of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn exact_rows<const F: usize, const V: usize>(
    w: TileRows<'_, u8>,
    x: PanelBlock<'_, i8>,
    sums: &mut [i32],
) {
    let sums = sums.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<ROWS>().0;
    let x = &x.q.as_chunks::<{ 4 * LANES }>().0.as_chunks::<V>().0.as_chunks::<F>().0[0];
    for (w, sums) in tiles::<[u8; 4], F>(w.q.as_chunks::<4>().0).iter().zip(sums) {
        let whole = tile_of_fours::<F, V>(w, x);
        for r in 0..ROWS {
            for v in 0..V {
                let sum = _mm512_add_epi32(load_i32(&sums[r][v]), whole[r][v]);
                store_i32(&mut sums[r][v], sum);
            }
        }
    }
}

/// Sums of F fours of unsigned weights and signed activations, modulo 2³².
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_of_fours<const F: usize, const V: usize>(
    w: &[[[u8; 4]; F]; ROWS],
    x: &[[[i8; 4 * LANES]; V]; F],
) -> [[__m512i; V]; ROWS] {
    let mut sums = [[_mm512_setzero_si512(); V]; ROWS];
    for k in 0..F {
        for r in 0..ROWS {
            let w = _mm512_set1_epi32(i32::from_le_bytes(w[r][k]));
            for v in 0..V {
                sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], w, load_i8(&x[k][v]));
            }
        }
    }
    sums
}

/// Rows of P pairs or fours, twelve at a time.
#[inline]
fn tiles<T, const P: usize>(q: &[T]) -> &[[[T; P]; ROWS]] {
    q.as_chunks::<P>().0.as_chunks::<ROWS>().0
}

/// Two neighbouring weights as the halves of a word.
#[inline]
fn pair([even, odd]: [i16; 2]) -> i32 {
    let ([a, b], [c, d]) = (even.to_le_bytes(), odd.to_le_bytes());
    i32::from_le_bytes([a, b, c, d])
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i16(v: &[i16; 2 * LANES]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i8(v: &[i8; 4 * LANES]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(v: &[i32; LANES]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i32(v: &mut [i32; LANES], sums: __m512i) {
    // SAFETY: `v` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(v.as_mut_ptr().cast(), sums) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(v: &[f32; LANES]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(v: &mut [f32; LANES], sums: __m512) {
    // SAFETY: `v` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(v.as_mut_ptr(), sums) }
}
