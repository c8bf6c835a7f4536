//! AVX-512 BF16, more tokens: pairs of a block's columns times pairs of x (`vdpbf16ps`), a few tokens' sums in registers from a row's first block
//! to its last.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name tokens and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::Weight;
use crate::dense_linear::round_to_bf16;
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::{Cpu, Shape};

/// f32 in a vector.
const LANES: usize = 16;

pub(super) fn gemm_bf16(
    isa: Avx512Vnni,
    cpu: &Cpu,
    (w, values): (Weight<'_>, &[bf16]),
    x: &[f32],
    (y, shape): (&mut [f32], Shape),
) {
    let Shape { m, n, k } = shape;
    let mut rounded = vec![bf16::ZERO; x.len()];
    let share = cpu.threads().share(x.len(), 64);
    cpu.threads().chunks_mut(&mut rounded, share, |part, to| {
        round_to_bf16(&x[part * share..][..to.len()], to);
    });
    // k is a multiple of 16: pairs never cross rows.
    let pairs: Vec<[bf16; 2]> = rounded.as_chunks::<2>().0.to_vec();
    cpu.threads().tiles_mut(y, n, (m, w.block), |_, mut tile| {
        row_of_blocks(isa, (w, values), (&pairs, k / 2), &mut tile);
    });
}

fn row_of_blocks(
    _: Avx512Vnni,
    (w, values): (Weight<'_>, &[bf16]),
    x: (&[[bf16; 2]], usize),
    tile: &mut Tile<'_, f32>,
) {
    let b = w.block;
    let row = tile.cols().start / b;
    let mut once: Vec<[bf16; 2]> = Vec::new();
    let mut columns = Vec::new();
    for (at, column) in w.blocks(row) {
        columns.push(column / 2);
        for two in values[at * b * b..][..b * b].chunks_exact(2 * b) {
            once.extend(two[..b].iter().zip(&two[b..]).map(|(even, odd)| [*even, *odd]));
        }
    }
    match b {
        // SAFETY: the token is made only after avx512bf16 was detected, with all of AVX-512.
        16 => unsafe { tokens::<1, 12>(&once, &columns, x, tile) },
        // SAFETY: as above.
        32 => unsafe { tokens::<2, 12>(&once, &columns, x, tile) },
        // SAFETY: as above.
        _ => unsafe { tokens::<4, 6>(&once, &columns, x, tile) },
    }
}

/// V vectors are a block's rows; M tokens go together.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tokens<const V: usize, const M: usize>(
    once: &[[bf16; 2]],
    columns: &[usize],
    (x, k): (&[[bf16; 2]], usize),
    tile: &mut Tile<'_, f32>,
) {
    let all = tile.rows();
    let whole = all.end - all.len() % M;
    for m in (all.start..whole).step_by(M) {
        products::<V, M>(once, columns, (x, k), m, tile);
    }
    for m in whole..all.end {
        products::<V, 1>(once, columns, (x, k), m, tile);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn products<const V: usize, const M: usize>(
    once: &[[bf16; 2]],
    columns: &[usize],
    (x, k): (&[[bf16; 2]], usize),
    m: usize,
    tile: &mut Tile<'_, f32>,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; M];
    // A block has 16 · V columns, half as many pairs, each of V vectors.
    let per_block = 8 * V;
    let vectors = once.as_chunks::<LANES>().0.as_chunks::<V>().0;
    for (block, column) in vectors.chunks_exact(per_block).zip(columns) {
        let mut rows: [&[[bf16; 2]]; M] = [&[]; M];
        for i in 0..M {
            rows[i] = &x[(m + i) * k + column..][..per_block];
        }
        for (j, w) in block.iter().enumerate() {
            let mut wide = [_mm512_setzero_si512(); V];
            for v in 0..V {
                wide[v] = load(&w[v]);
            }
            for i in 0..M {
                let [even, odd] = rows[i][j];
                let pair = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
                let x = _mm512_set1_epi32(pair.cast_signed());
                for v in 0..V {
                    sums[i][v] = dot(sums[i][v], wide[v], x);
                }
            }
        }
    }
    let first = tile.rows().start;
    for i in 0..M {
        let row = tile.row(m + i - first).as_chunks_mut::<LANES>().0;
        for v in 0..V {
            store(&mut row[v], sums[i][v]);
        }
    }
}

/// `sum + w · x` of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(sum: __m512, w: __m512i, x: __m512i) -> __m512 {
    _mm512_dpbf16_ps(sum, as_bf16(w), as_bf16(x))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(v: __m512i) -> __m512bh {
    // SAFETY: both types are the same 64 bytes of a register, in which every bit pattern is valid.
    unsafe { std::ptr::from_ref::<__m512i>(&v).cast::<__m512bh>().read() }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(v: &[[bf16; 2]; LANES]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; LANES], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}
