//! AVX2: codes are widened to 16 bits and multiplied in pairs (`pmaddwd`), one weight row against up to four activation rows.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names the activation row, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::dynamic::{Activation, Epilogue, Weight};
use super::gemm::avx2::EXACT_BLOCK;
use super::gemm::{self, Packed, Source, WeightBlock};
use super::{GEMV_MAX_M, Rows};
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::isa::Avx2;
use crate::lanes::sum8;
use crate::parallel::Tile;
use crate::{Cpu, Shape};

/// Weight bytes of one part of the work: they stay in the second-level cache (at least 256 KiB a core) while
/// all rows of activations pass, so that memory is read once.
const PART_BYTES: usize = 128 << 10;

/// As many activation rows at a time as leaves registers for sums, weights and activations.
const M_TILE: usize = 4;

fn part_rows(k: usize) -> usize {
    (PART_BYTES / k.max(1)).clamp(8, 256)
}

pub(super) fn weight_only(
    isa: Avx2,
    cpu: &Cpu,
    w: Rows<'_>,
    x: &BlockInt16,
    (y, shape): (&mut [f32], Shape),
) {
    let Shape { m, n, k } = shape;
    if m > GEMV_MAX_M {
        let x = Packed::from_blocks(cpu, x, None, gemm::avx2::width(m));
        let fill = |rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>| {
            fill_block(isa, w, rows, b, to);
        };
        let ahead = |row, b: usize| fetch(w.codes(row), b * x.block, x.block);
        let weights = &Source { fill, ahead };
        return gemm::avx2::scaled(isa, cpu, &x, (y, shape), weights);
    }
    cpu.threads().tiles_mut(y, n, (m, part_rows(k)), |_, tile| {
        // SAFETY: the `Avx2` token is made only after avx2, fma and f16c were detected.
        unsafe { any_tile(w, x, tile) }
    });
}

/// Block `b` of some rows of weights.
fn fill_block(isa: Avx2, w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    let block = to.q.len() / to.scale.len();
    let columns = b * block..w.k.min((b + 1) * block);
    for ((n, q), scale) in rows.zip(to.q.chunks_exact_mut(block)).zip(&mut to.scale) {
        gemm::avx2::widen(isa, &w.codes(n)[columns.clone()], q);
        let (scales, group_size) = w.scales(n);
        *scale = scales[columns.start / group_size];
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn any_tile(w: Rows<'_>, x: &BlockInt16, tile: Tile<'_, f32>) {
    match x.block {
        128 => weight_only_tile::<128>(w, x, tile),
        64 => weight_only_tile::<64>(w, x, tile),
        _ => weight_only_tile::<32>(w, x, tile),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weight_only_tile<const B: usize>(w: Rows<'_>, x: &BlockInt16, mut tile: Tile<'_, f32>) {
    for m in tile.rows().step_by(M_TILE) {
        match tile.rows().end - m {
            1 => weight_only_rows::<1, B>(w, x, m, &mut tile),
            2 => weight_only_rows::<2, B>(w, x, m, &mut tile),
            3 => weight_only_rows::<3, B>(w, x, m, &mut tile),
            _ => weight_only_rows::<M_TILE, B>(w, x, m, &mut tile),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weight_only_rows<const M: usize, const B: usize>(
    w: Rows<'_>,
    x: &BlockInt16,
    m: usize,
    tile: &mut Tile<'_, f32>,
) {
    let mut activations = Blocks::<M, B> { q: [&[]; M], scale: [&[]; M] };
    for i in 0..M {
        activations.q[i] = x.row(m + i).as_chunks::<B>().0;
        activations.scale[i] = x.row_scale(m + i);
    }
    for (i, n) in tile.cols().enumerate() {
        let (scales, group_size) = w.scales(n);
        let sums = activations.dot(w.codes(n), scales, group_size.div_ceil(B));
        for (j, sum) in sums.into_iter().enumerate() {
            tile.row(m + j)[i] = sum;
        }
    }
}

/// M rows of activations in blocks of B.
struct Blocks<'a, const M: usize, const B: usize> {
    q: [&'a [[i16; B]]; M],
    scale: [&'a [f32]; M],
}

impl<const M: usize, const B: usize> Blocks<'_, M, B> {
    /// One row of weights, its scales one for each `per_group` blocks, times M rows of activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn dot(&self, codes: &[i8], scales: &[f32], per_group: usize) -> [f32; M] {
        let (blocks, tail) = codes.as_chunks::<B>();
        let mut sums = [_mm256_setzero_ps(); M];
        for (g, (group, &scale)) in blocks.chunks(per_group).zip(scales).enumerate() {
            for (b, codes) in group.iter().enumerate() {
                self.add_block(g * per_group + b, codes, scale, &mut sums);
            }
        }
        if let (false, Some(&scale)) = (tail.is_empty(), scales.last()) {
            let mut codes = [0; B];
            codes[..tail.len()].copy_from_slice(tail);
            self.add_block(blocks.len(), &codes, scale, &mut sums);
        }
        let mut totals = [0.0; M];
        for m in 0..M {
            totals[m] = sum8(sums[m]);
        }
        totals
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add_block(&self, b: usize, codes: &[i8; B], scale: f32, sums: &mut [__m256; M]) {
        let mut whole = [_mm256_setzero_si256(); M];
        for (i, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
            let w = widen(codes);
            for m in 0..M {
                let x = load(&self.q[m][b].as_chunks::<16>().0[i]);
                // Pairs of 2⁷ · 2¹⁵ in each of 8 lanes; 8 of them stay far below 2³¹.
                whole[m] = _mm256_add_epi32(whole[m], _mm256_madd_epi16(w, x));
            }
        }
        for m in 0..M {
            let scale = _mm256_set1_ps(self.scale[m][b] * scale);
            sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[m]), scale, sums[m]);
        }
    }
}

pub(super) fn dynamic(
    isa: Avx2,
    cpu: &Cpu,
    (w, act): (Weight<'_>, Activation<'_>),
    y: &mut [f32],
    shape: Shape,
) {
    let Shape { m, n, k } = shape;
    let epilogue = Epilogue::new(w, act);
    let padded_k = k.next_multiple_of(16);
    let mut wide = vec![[0_i16; 16]; m * padded_k / 16];
    let rows = wide.as_flattened_mut().chunks_exact_mut(padded_k.max(1));
    for (wide, q) in rows.zip(act.q.chunks_exact(k.max(1))) {
        gemm::avx2::widen(isa, q, wide);
    }
    if m > GEMV_MAX_M {
        let width = gemm::avx2::width(m);
        let x = Packed::new::<2>(cpu, wide.as_flattened(), padded_k, EXACT_BLOCK, width);
        let fill = |rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>| {
            let columns = b * EXACT_BLOCK..k.min((b + 1) * EXACT_BLOCK);
            for (n, q) in rows.zip(to.q.chunks_exact_mut(EXACT_BLOCK)) {
                gemm::avx2::widen(isa, &w.qdata[n * k..][columns.clone()], q);
            }
        };
        let finish = |m, n, sums: &[i32], y: &mut [f32]| epilogue.results(m, n, sums, y);
        let ahead = |row, b| fetch(&w.qdata[row * k..][..k], b * EXACT_BLOCK, EXACT_BLOCK);
        let weights = &Source { fill, ahead };
        return gemm::avx2::exact(isa, cpu, &x, (y, shape), weights, finish);
    }
    let product = Product { w: w.qdata, x: &wide, k, epilogue };
    cpu.threads().tiles_mut(y, n, (m, part_rows(k)), |_, tile| {
        // SAFETY: the `Avx2` token is made only after avx2 was detected.
        unsafe { product.tile(tile) }
    });
}

/// A dynamic product with its activations widened to 16 bits, rows padded with zeros to whole registers.
struct Product<'a> {
    w: &'a [i8],
    x: &'a [[i16; 16]],
    k: usize,
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    #[target_feature(enable = "avx2")]
    fn tile(&self, mut tile: Tile<'_, f32>) {
        for m in tile.rows().step_by(M_TILE) {
            match tile.rows().end - m {
                1 => self.rows::<1>(m, &mut tile),
                2 => self.rows::<2>(m, &mut tile),
                3 => self.rows::<3>(m, &mut tile),
                _ => self.rows::<M_TILE>(m, &mut tile),
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn rows<const M: usize>(&self, m: usize, tile: &mut Tile<'_, f32>) {
        let length = self.k.div_ceil(16);
        let mut x: [&[[i16; 16]]; M] = [&[]; M];
        for i in 0..M {
            x[i] = &self.x[(m + i) * length..][..length];
        }
        for (i, n) in tile.cols().enumerate() {
            let sums = dot_int8(&self.w[n * self.k..][..self.k], &x);
            for (j, sum) in sums.into_iter().enumerate() {
                tile.row(m + j)[i] = self.epilogue.result(m + j, n, sum);
            }
        }
    }
}

/// Exact sums of one row of codes times M rows of activations.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_int8<const M: usize>(codes: &[i8], x: &[&[[i16; 16]]; M]) -> [i32; M] {
    let (body, tail) = codes.as_chunks::<16>();
    let mut sums = [_mm256_setzero_si256(); M];
    for (i, codes) in body.iter().enumerate() {
        add_products(codes, x, i, &mut sums);
    }
    if !tail.is_empty() {
        let mut codes = [0; 16];
        codes[..tail.len()].copy_from_slice(tail);
        add_products(&codes, x, body.len(), &mut sums);
    }
    let mut totals = [0; M];
    for m in 0..M {
        totals[m] = horizontal_sum_i32(sums[m]);
    }
    totals
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_products<const M: usize>(
    codes: &[i8; 16],
    x: &[&[[i16; 16]]; M],
    i: usize,
    sums: &mut [__m256i; M],
) {
    let w = widen(codes);
    for m in 0..M {
        sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(w, load(&x[m][i])));
    }
}

/// Sixteen codes as 16-bit integers.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(codes: &[i8; 16]) -> __m256i {
    // SAFETY: `codes` is 16 readable bytes; loadu has no alignment need.
    let bytes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    _mm256_cvtepi8_epi16(bytes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[i16; 16]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn horizontal_sum_i32(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
}
