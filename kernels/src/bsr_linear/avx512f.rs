//! AVX-512, any stored numbers: a block's column is V vectors, widened where it is read, and each token's x a broadcast. The sums of
//! a few tokens stay in registers from a row's first block to its last, so that a call reads what is stored once for each of these few.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name tokens and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::Weight;
use crate::isa::Avx512;
use crate::parallel::Tile;

/// f32 in a vector.
const LANES: usize = 16;

/// What a block may hold.
pub(super) trait Stored: Copy {
    /// Sixteen of them as f32.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    unsafe fn widen(from: &[Self; LANES]) -> __m512;
}

impl Stored for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen(from: &[f32; LANES]) -> __m512 {
        // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
}

impl Stored for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen(from: &[bf16; LANES]) -> __m512 {
        // SAFETY: `from` is 32 readable bytes; loadu has no alignment need.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

impl Stored for i8 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen(from: &[i8; LANES]) -> __m512 {
        // SAFETY: `from` is 16 readable bytes; loadu has no alignment need.
        let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
    }
}

/// Every row of blocks of the tile, all of its tokens.
pub(super) fn rows<T: Stored>(
    _: Avx512,
    w: Weight<'_>,
    values: &[T],
    x: (&[f32], usize),
    tile: &mut Tile<'_, f32>,
) {
    let b = w.block;
    let columns = tile.cols();
    for row in columns.start / b..columns.end / b {
        let place = row * b - columns.start;
        let blocks: Vec<(usize, usize)> = w.blocks(row).collect();
        match b {
            // SAFETY: the token is made only after AVX-512 F was detected.
            16 => unsafe { tokens::<T, 1, 12>(&blocks, values, x, (tile, place)) },
            // SAFETY: as above.
            32 => unsafe { tokens::<T, 2, 12>(&blocks, values, x, (tile, place)) },
            // SAFETY: as above.
            _ => unsafe { tokens::<T, 4, 6>(&blocks, values, x, (tile, place)) },
        }
    }
}

/// V vectors are a block's rows; M tokens go together.
#[target_feature(enable = "avx512f")]
fn tokens<T: Stored, const V: usize, const M: usize>(
    blocks: &[(usize, usize)],
    values: &[T],
    (x, k): (&[f32], usize),
    (tile, place): (&mut Tile<'_, f32>, usize),
) {
    let all = tile.rows();
    let mut m = all.start;
    while m < all.end {
        let x = (&x[m * k..], k);
        let to = m - all.start;
        m += match all.end - m {
            left if left >= M => products::<T, V, M>(blocks, values, x, (tile, to, place)),
            left if left >= 4 => products::<T, V, 4>(blocks, values, x, (tile, to, place)),
            3 => products::<T, V, 3>(blocks, values, x, (tile, to, place)),
            2 => products::<T, V, 2>(blocks, values, x, (tile, to, place)),
            _ => products::<T, V, 1>(blocks, values, x, (tile, to, place)),
        };
    }
}

/// M tokens' results of one row of blocks; returns M.
#[inline]
#[target_feature(enable = "avx512f")]
fn products<T: Stored, const V: usize, const M: usize>(
    blocks: &[(usize, usize)],
    values: &[T],
    (x, k): (&[f32], usize),
    (tile, to, place): (&mut Tile<'_, f32>, usize, usize),
) -> usize {
    let b = LANES * V;
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    for (at, column) in blocks {
        let block = values[at * b * b..][..b * b].as_chunks::<LANES>().0.as_chunks::<V>().0;
        let mut rows: [&[f32]; M] = [&[]; M];
        for i in 0..M {
            rows[i] = &x[i * k + column..][..b];
        }
        for (j, w) in block.iter().enumerate() {
            let mut wide = [_mm512_setzero_ps(); V];
            for v in 0..V {
                // SAFETY: this function has AVX-512 F.
                wide[v] = unsafe { T::widen(&w[v]) };
            }
            for i in 0..M {
                let x = _mm512_set1_ps(rows[i][j]);
                for v in 0..V {
                    sums[i][v] = _mm512_fmadd_ps(wide[v], x, sums[i][v]);
                }
            }
        }
    }
    for i in 0..M {
        let row = tile.row(to + i)[place..][..b].as_chunks_mut::<LANES>().0;
        for v in 0..V {
            // SAFETY: a chunk is 64 writable bytes; storeu has no alignment need.
            unsafe { _mm512_storeu_ps(row[v].as_mut_ptr(), sums[i][v]) };
        }
    }
    M
}
