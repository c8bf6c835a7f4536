//! AVX-512 VNNI: 32 codes looked up in a register (`vpermw`) and multiplied in pairs (`vpdpwssd`).

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names a row, and iterators over them spill"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::activation::{Blocks, WORDS};
use super::{BLOCK_NBYTES, Weight};
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::rows::side_by_side;

/// Rows that are multiplied together, so that they share what is loaded of the activations.
const ROWS: usize = 4;

/// Bytes ahead in each of the streams of rows: without, a step's instructions hide too little of what memory takes.
const AHEAD: usize = 2 << 10;

/// The rows of a tile times each row of the activations.
pub(super) fn tile(_: Avx512Vnni, w: &Weight, x: &Blocks, tile: &mut Tile<'_, f32>) {
    match x.per_block() {
        // SAFETY: the token proves the instructions of every `tile_of`.
        2 => unsafe { tile_of::<2>(w, x, tile) },
        // SAFETY: as above.
        4 => unsafe { tile_of::<4>(w, x, tile) },
        // SAFETY: as above.
        8 => unsafe { tile_of::<8>(w, x, tile) },
        // SAFETY: as above.
        _ => unsafe { tile_of::<16>(w, x, tile) },
    }
}

/// `P` codes a word.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile_of<const P: usize>(w: &Weight, x: &Blocks, tile: &mut Tile<'_, f32>) {
    let start = tile.cols().start;
    for (i, m) in tile.rows().enumerate() {
        let (together, rest) = side_by_side::<ROWS>(tile.cols());
        let y = tile.row(i);
        for rows in together {
            for (n, sum) in rows.iter().zip(rows_of::<P, ROWS>(w, rows, x, m)) {
                y[n - start] = sum;
            }
        }
        for n in rest {
            y[n - start] = rows_of::<P, 1>(w, [n], x, m)[0];
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[i16; WORDS]) -> __m512i {
    // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_codes(from: &[u8; BLOCK_NBYTES]) -> __m512i {
    // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// `sum + values · x`, pairs of 16-bit products. Written as the instruction: LLVM takes the intrinsic apart into a product and
/// a sum, which is more work where lookups fill the ports.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products(mut sum: __m512i, values: __m512i, x: &[i16; WORDS]) -> __m512i {
    // SAFETY: the instruction belongs to the features above, reads the 64 bytes of `x` and writes `sum`.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {values}, zmmword ptr [{x}]",
            sum = inout(zmm_reg) sum,
            values = in(zmm_reg) values,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sum
}

/// Some rows times row `m` of the activations. A lookup reads the low five bits of a word: tables repeat, so that
/// what is above a code is harmless.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn rows_of<const P: usize, const R: usize>(
    w: &Weight,
    rows: [usize; R],
    x: &Blocks,
    m: usize,
) -> [f32; R] {
    let (vectors, scales) = x.row(m);
    let columns = WORDS * P;
    let whole_row = w.across() == 1;
    let mut codes: [&[[u8; BLOCK_NBYTES]]; R] = [&[]; R];
    let mut first = [0; R];
    let mut tables = [_mm512_setzero_si512(); R];
    for r in 0..R {
        codes[r] = w.row(rows[r]).as_chunks::<BLOCK_NBYTES>().0;
        first[r] = rows[r] / w.block.0 * w.across();
        tables[r] = load(&w.integers[first[r]]);
    }
    let mut sums = [_mm512_setzero_ps(); R];
    for (b, (x, scale)) in vectors.as_chunks::<P>().0.iter().zip(scales).enumerate() {
        let mut dots = [[_mm512_setzero_si512(); 2]; R];
        let mut words = [_mm512_setzero_si512(); R];
        for r in 0..R {
            if !whole_row {
                tables[r] = load(&w.integers[first[r] + b * columns / w.block.1]);
            }
            let line = codes[r][b].as_ptr().wrapping_add(AHEAD);
            _mm_prefetch::<_MM_HINT_T1>(line.cast());
            words[r] = load_codes(&codes[r][b]);
        }
        for (j, x) in x.iter().enumerate() {
            for r in 0..R {
                let values = _mm512_permutexvar_epi16(words[r], tables[r]);
                dots[r][j % 2] = add_products(dots[r][j % 2], values, x);
                words[r] = match P {
                    2 => _mm512_srli_epi16::<8>(words[r]),
                    4 => _mm512_srli_epi16::<4>(words[r]),
                    8 => _mm512_srli_epi16::<2>(words[r]),
                    _ => _mm512_srli_epi16::<1>(words[r]),
                };
            }
        }
        for r in 0..R {
            let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[r][0], dots[r][1]));
            sums[r] = _mm512_fmadd_ps(dot, _mm512_set1_ps(*scale), sums[r]);
        }
    }
    let mut y = [0.0; R];
    for r in 0..R {
        y[r] = _mm512_reduce_add_ps(sums[r]) * w.scale;
    }
    y
}
