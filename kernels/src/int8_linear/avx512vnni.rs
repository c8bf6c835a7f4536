//! AVX-512 VNNI, weight-only: codes are widened to 16 bits and multiplied in pairs (`vpdpwssd`), some weight rows
//! against some activation rows at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::gemm::{self, Packed, Source, WeightBlock};
use super::{GEMV_MAX_M, Rows};
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::rows::side_by_side;
use crate::{Cpu, Shape};

/// Activation rows that a weight-only pass multiplies: their integer and float sums fit the registers.
const M_TILE: usize = 4;

/// Rows of weights that stay in the caches while the next activation rows pass; a multiple of every number of rows
/// that go together.
const PASS_ROWS: usize = 12;

/// Rows of weights for each part of the work: four parts a thread even out what other programs take.
pub(super) fn part_rows(cpu: &Cpu, n: usize) -> usize {
    cpu.threads().share(n.div_ceil(4), PASS_ROWS)
}

pub(super) fn weight_only(
    isa: Avx512Vnni,
    cpu: &Cpu,
    w: Rows<'_>,
    x: &BlockInt16,
    (y, shape): (&mut [f32], Shape),
) {
    let Shape { m, n, k } = shape;
    if m > GEMV_MAX_M {
        let x = Packed::from_blocks(cpu, x, None, gemm::avx512vnni::width(m));
        let fill = |rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>| {
            fill_block(isa, w, rows, b, to);
        };
        let ahead = |row, b: usize| fetch(w.codes(row), b * x.block, x.block);
        let weights = &Source { fill, ahead };
        return gemm::avx512vnni::scaled(isa, cpu, &x, (y, shape), weights);
    }
    cpu.threads().tiles_mut(y, n, (m, part_rows(cpu, n)), |_, tile| {
        // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
        unsafe { any_tile(w, x, k, tile) }
    });
}

/// Block `b` of some rows of weights.
fn fill_block(_: Avx512Vnni, w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { fill_block_avx512(w, rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn fill_block_avx512(w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    let block = to.q.len() / to.scale.len();
    let columns = b * block..w.k.min((b + 1) * block);
    let group = columns.start / w.group_size();
    for ((n, q), scale) in rows.zip(to.q.chunks_exact_mut(block)).zip(&mut to.scale) {
        let (codes, tail) = w.codes(n)[columns.clone()].as_chunks::<32>();
        let mut q = q.as_chunks_mut::<32>().0.iter_mut();
        for (codes, q) in codes.iter().zip(q.by_ref()) {
            store_i16(q, widen(codes));
        }
        if let (false, Some(q)) = (tail.is_empty(), q.next()) {
            // Behind the row's end activations are zero, so that any weight will do.
            q.iter_mut().zip(tail).for_each(|(q, &code)| *q = code.into());
        }
        *scale = w.scales(n).0[group];
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn any_tile(w: Rows<'_>, x: &BlockInt16, k: usize, tile: Tile<'_, f32>) {
    match x.block {
        128 => weight_only_tile::<4>(w, x, k, tile),
        64 => weight_only_tile::<2>(w, x, k, tile),
        _ => weight_only_tile::<1>(w, x, k, tile),
    }
}

/// `V` vectors of 32 activations are a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn weight_only_tile<const V: usize>(
    w: Rows<'_>,
    x: &BlockInt16,
    k: usize,
    mut tile: Tile<'_, f32>,
) {
    let (rows, m) = (tile.cols(), tile.rows().len());
    let (step, ahead) = match m {
        ..=M_TILE => (rows.len().max(1), 0),
        _ => (PASS_ROWS, PASS_ROWS * k),
    };
    for first in rows.clone().step_by(step) {
        let some = first..rows.end.min(first + step);
        for m in tile.rows().step_by(M_TILE) {
            match tile.rows().end - m {
                1 => Tokens::<1, V>::new(x, m).rows::<4>(w, some.clone(), ahead, &mut tile),
                2 => Tokens::<2, V>::new(x, m).rows::<4>(w, some.clone(), ahead, &mut tile),
                3 => Tokens::<3, V>::new(x, m).rows::<4>(w, some.clone(), ahead, &mut tile),
                _ => Tokens::<M_TILE, V>::new(x, m).rows::<3>(w, some.clone(), ahead, &mut tile),
            }
        }
    }
}

/// M rows of activations in blocks of V · 32, from row `first`.
struct Tokens<'a, const M: usize, const V: usize> {
    q: [&'a [[[i16; 32]; V]]; M],
    scale: [&'a [f32]; M],
    first: usize,
}

impl<'a, const M: usize, const V: usize> Tokens<'a, M, V> {
    fn new(x: &'a BlockInt16, first: usize) -> Self {
        let mut tokens = Tokens { q: [&[]; M], scale: [&[]; M], first };
        for m in 0..M {
            tokens.q[m] = x.row(first + m).as_chunks::<32>().0.as_chunks::<V>().0;
            tokens.scale[m] = x.row_scale(first + m);
        }
        tokens
    }

    /// R rows of weights at a time, then the rest one by one; what lies `ahead` bytes behind them is asked for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn rows<const R: usize>(
        &self,
        w: Rows<'_>,
        rows: Range<usize>,
        ahead: usize,
        tile: &mut Tile<'_, f32>,
    ) {
        let start = tile.cols().start;
        let (together, rest) = side_by_side::<R>(rows);
        for rows in together {
            let dots = self.dot(w, rows, ahead);
            for m in 0..M {
                for r in 0..R {
                    tile.row(self.first + m)[rows[r] - start] = dots[m][r];
                }
            }
        }
        for n in rest {
            let dots = self.dot(w, [n], ahead);
            for m in 0..M {
                tile.row(self.first + m)[n - start] = dots[m][0];
            }
        }
    }

    /// R rows of the weights times M rows of activations.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn dot<const R: usize>(&self, w: Rows<'_>, rows: [usize; R], ahead: usize) -> [[f32; R]; M] {
        let mut codes: [&[i8]; R] = [&[]; R];
        let mut scales: [&[f32]; R] = [&[]; R];
        let mut group_size = w.k;
        for r in 0..R {
            codes[r] = w.codes(rows[r]);
            (scales[r], group_size) = w.scales(rows[r]);
        }
        let (block, whole) = (32 * V, w.k / (32 * V));
        let per_group = group_size.div_ceil(block);
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        for g in 0..scales[0].len() {
            let mut scale = [0.0; R];
            for r in 0..R {
                scale[r] = scales[r][g];
            }
            for b in g * per_group..whole.min((g + 1) * per_group) {
                let mut part: [&[[i8; 32]; V]; R] = [&[[0; 32]; V]; R];
                for r in 0..R {
                    part[r] = &codes[r].as_chunks::<32>().0.as_chunks::<V>().0[b];
                    fetch_ahead(part[r].as_flattened(), ahead);
                }
                self.add_block(b, part, scale, &mut sums);
            }
            if (g + 1) * per_group > whole && whole * block < w.k {
                let mut part = [[[0; 32]; V]; R];
                for r in 0..R {
                    let tail = &codes[r][whole * block..];
                    part[r].as_flattened_mut()[..tail.len()].copy_from_slice(tail);
                }
                self.add_block(whole, part.each_ref(), scale, &mut sums);
            }
        }
        let mut dots = [[0.0; R]; M];
        for m in 0..M {
            for r in 0..R {
                dots[m][r] = _mm512_reduce_add_ps(sums[r][m]);
            }
        }
        dots
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add_block<const R: usize>(
        &self,
        b: usize,
        codes: [&[[i8; 32]; V]; R],
        scale: [f32; R],
        sums: &mut [[__m512; M]; R],
    ) {
        let mut whole = [[_mm512_setzero_si512(); M]; R];
        for v in 0..V {
            let mut w = [_mm512_setzero_si512(); R];
            for r in 0..R {
                w[r] = widen(&codes[r][v]);
            }
            for m in 0..M {
                let x = load_i16(&self.q[m][b][v]);
                for r in 0..R {
                    // Pairs of 2⁷ · 2¹⁵ in each of 16 lanes; 4 of them stay far below 2³¹.
                    whole[r][m] = add_pairs(whole[r][m], w[r], x);
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                let scale = _mm512_set1_ps(self.scale[m][b] * scale[r]);
                sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][m]), scale, sums[r][m]);
            }
        }
    }
}

/// Asks for the cache lines `ahead` bytes behind `codes`, where the rows lie that come next, to come to the second
/// level: rows a page apart would displace each other in the first. 0 asks for nothing.
#[inline(always)]
fn fetch_ahead(codes: &[i8], ahead: usize) {
    if ahead == 0 {
        return;
    }
    for line in (0..codes.len()).step_by(64) {
        let line = codes.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
    }
}

/// Thirty-two codes as 16-bit integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen(codes: &[i8; 32]) -> __m512i {
    // SAFETY: `codes` is 32 readable bytes; loadu has no alignment need.
    let bytes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
    _mm512_cvtepi8_epi16(bytes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i16(v: &mut [i16; 32], q: __m512i) {
    // SAFETY: `v` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(v.as_mut_ptr().cast(), q) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i16(v: &[i16; 32]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

/// `sums` and the products of pairs, in one instruction: of the intrinsic the compiler makes two where that shortens a
/// chain, but here the number of instructions counts.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_pairs(mut sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sums}, {w}, {x}",
            sums = inout(zmm_reg) sums,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
