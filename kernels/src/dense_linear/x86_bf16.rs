//! AVX-512 BF16 bodies.
//!
//! `vdpbf16ps` multiplies pairs of bf16 and adds both products to an f32 lane. It takes
//! subnormal numbers as zero and makes none.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::Shape;
use super::panels::{Engine, PANEL_K, to_bf16};
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;

/// f32 in a vector.
const LANES: usize = 16;
/// bf16 in a vector: a pair for each f32.
const PAIRED: usize = 2 * LANES;

/// Some rows of the weight with all tokens (1 to 8); `tile` holds their columns of y.
pub(super) fn gemv(
    _isa: Avx512Vnni,
    w: &[bf16],
    x: &[bf16],
    mut tile: Tile<'_, f32>,
    shape: Shape,
) {
    // SAFETY: the token is made only after avx512bf16 was detected, with all of AVX-512.
    unsafe { by_tokens(w, x, &mut tile, shape) }
}

/// Chooses how many rows go together, so that their accumulators (8 to 24) hide the multiply's
/// latency and fit the 32 registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn by_tokens(w: &[bf16], x: &[bf16], tile: &mut Tile<'_, f32>, shape: Shape) {
    let k = shape.k;
    match shape.m {
        1 => rows::<4, 1, 2>(w, x, tile, k),
        2 => rows::<4, 2, 2>(w, x, tile, k),
        3 => rows::<4, 3, 1>(w, x, tile, k),
        4 => rows::<4, 4, 1>(w, x, tile, k),
        5 => rows::<4, 5, 1>(w, x, tile, k),
        6 => rows::<4, 6, 1>(w, x, tile, k),
        7 => rows::<3, 7, 1>(w, x, tile, k),
        _ => rows::<3, 8, 1>(w, x, tile, k),
    }
}

/// R rows of the weight at a time, then the rest one by one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn rows<const R: usize, const M: usize, const U: usize>(
    w: &[bf16],
    x: &[bf16],
    tile: &mut Tile<'_, f32>,
    k: usize,
) {
    let x: [&[bf16]; M] = std::array::from_fn(|m| &x[m * k..(m + 1) * k]);
    let groups = w.chunks_exact(R * k);
    let rest = groups.remainder();
    let mut n = 0;
    for group in groups {
        let w = std::array::from_fn(|r| &group[r * k..(r + 1) * k]);
        let sums = dot::<R, M, U>(w, x);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(m)[n..n + R].copy_from_slice(sums);
        }
        n += R;
    }
    for row in rest.chunks_exact(k) {
        let sums = dot::<1, M, U>([row], x);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(m)[n] = sums[0];
        }
        n += 1;
    }
}

/// The M × R dot products of M tokens and R rows; U steps of the loop have their own sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn dot<const R: usize, const M: usize, const U: usize>(
    w: [&[bf16]; R],
    x: [&[bf16]; M],
) -> [[f32; R]; M] {
    let mut sums = [[[_mm512_setzero_ps(); U]; R]; M];
    let steps = x[0].len() / (PAIRED * U);
    let ws = w.map(|w| &w.as_chunks::<PAIRED>().0.as_chunks::<U>().0[..steps]);
    let xs = x.map(|x| &x.as_chunks::<PAIRED>().0.as_chunks::<U>().0[..steps]);
    for i in 0..steps {
        step(&mut sums, ws.map(|w| &w[i]), xs.map(|x| &x[i]));
    }
    let done = steps * PAIRED * U;
    if done < x[0].len() {
        // The last, short step is padded with zeros.
        let ws = w.map(|w| padded::<U>(&w[done..]));
        let xs = x.map(|x| padded::<U>(&x[done..]));
        step(&mut sums, ws.each_ref(), xs.each_ref());
    }
    sums.map(|sums| sums.map(|sums| sum(sums)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn step<const R: usize, const M: usize, const U: usize>(
    sums: &mut [[[__m512; U]; R]; M],
    w: [&[[bf16; PAIRED]; U]; R],
    x: [&[[bf16; PAIRED]; U]; M],
) {
    for u in 0..U {
        let w = w.map(|w| load_pairs(&w[u]));
        for m in 0..M {
            let x = load_pairs(&x[m][u]);
            for r in 0..R {
                sums[m][r][u] = _mm512_dpbf16_ps(sums[m][r][u], w[r], x);
            }
        }
    }
}

fn padded<const U: usize>(tail: &[bf16]) -> [[bf16; PAIRED]; U] {
    let mut all = [[bf16::ZERO; PAIRED]; U];
    all.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    all
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn sum<const U: usize>(sums: [__m512; U]) -> f32 {
    let all = sums.into_iter().fold(_mm512_setzero_ps(), |all, part| _mm512_add_ps(all, part));
    _mm512_reduce_add_ps(all)
}

/// Rows of a tile of two vectors; a tile of one has twice as many. 24 sums, 2 vectors of x and a
/// weight fit the 32 registers.
const ROWS: usize = 12;

/// The panel GEMM's tiles: 12 rows × 32 tokens and 24 rows × 16.
pub(super) fn engine(_isa: &Avx512Vnni) -> Engine<'_, bf16> {
    Engine {
        rows: 2 * ROWS,
        width: 2 * LANES,
        narrow: LANES,
        pair: 2,
        round: to_bf16,
        multiply: &|w, x, y, width| {
            if width == LANES {
                // SAFETY: the token is made only after avx512bf16 was detected, with all of
                // AVX-512.
                unsafe { tiles::<{ 2 * ROWS }, 1>(w, x, y) }
            } else {
                // SAFETY: the token is made only after avx512bf16 was detected, with all of
                // AVX-512.
                unsafe { tiles::<ROWS, 2>(w, x, y) }
            }
        },
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn tiles<const R: usize, const V: usize>(w: &[[bf16; PANEL_K]], x: &[bf16], y: &mut [f32]) {
    let x = x.as_chunks::<PAIRED>().0.as_chunks::<V>().0;
    let y = y.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<R>().0;
    for (w, y) in w.as_chunks::<R>().0.iter().zip(y) {
        multiply_tile(w, x, y);
    }
}

/// `y (R, V vectors) += w (R, K) · x (K / 2, V vectors of pairs)`
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn multiply_tile<const R: usize, const V: usize>(
    w: &[[bf16; PANEL_K]; R],
    x: &[[[bf16; PAIRED]; V]],
    y: &mut [[[f32; LANES]; V]; R],
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for (k, x) in x.iter().take(PANEL_K / 2).enumerate() {
        let x = x.each_ref().map(|x| load_pairs(x));
        for r in 0..R {
            let w = broadcast_pair([w[r][2 * k], w[r][2 * k + 1]]);
            for v in 0..V {
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], w, x[v]);
            }
        }
    }
    for (y, sums) in y.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        let total = _mm512_add_ps(load(y), *sums);
        store(y, total);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn broadcast_pair([low, high]: [bf16; 2]) -> __m512bh {
    let pair = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    let all = _mm512_set1_epi32(pair.cast_signed());
    // SAFETY: both types are the same 64 bytes of a register, in which every bit pattern is valid.
    unsafe { std::ptr::from_ref::<__m512i>(&all).cast::<__m512bh>().read() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn load_pairs(v: &[bf16; PAIRED]) -> __m512bh {
    // SAFETY: `v` is 64 readable bytes, and any are 32 bf16; an unaligned read has no alignment
    // need.
    unsafe { v.as_ptr().cast::<__m512bh>().read_unaligned() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn load(v: &[f32; LANES]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn store(to: &mut [f32; LANES], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}
