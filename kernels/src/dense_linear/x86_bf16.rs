//! AVX-512 BF16 bodies.
//!
//! `vdpbf16ps` multiplies pairs of bf16 and adds both products to an f32 lane. It takes
//! subnormal numbers as zero and makes none.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_dpbf16_ps,
    _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use half::bf16;

use super::Shape;
use super::panels::{Engine, PANEL_K, pack_bf16};
use super::passes::{Pass, passes};
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::rows::side_by_side;

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
    for pass in passes(shape, tile.cols().len()) {
        match pass.tokens.len() {
            1 => rows::<4, 1, 2>(w, x, tile, &pass),
            2 => rows::<4, 2, 2>(w, x, tile, &pass),
            3 => rows::<4, 3, 1>(w, x, tile, &pass),
            4 => rows::<4, 4, 1>(w, x, tile, &pass),
            5 => rows::<4, 5, 1>(w, x, tile, &pass),
            _ => rows::<4, 6, 1>(w, x, tile, &pass),
        }
    }
}

/// R rows of the weight at a time, then the rest one by one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn rows<const R: usize, const M: usize, const A: usize>(
    w: &[bf16],
    x: &[bf16],
    tile: &mut Tile<'_, f32>,
    pass: &Pass,
) {
    let x: [&[bf16]; M] = std::array::from_fn(|m| pass.of(x, pass.tokens.start + m));
    let (together, rest) = side_by_side::<R>(pass.rows.clone());
    for rows in together {
        let sums = dot::<R, M, A>(rows.map(|n| pass.of(w, n)), x, pass.ahead());
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in rows.iter().zip(sums) {
                tile.row(pass.tokens.start + m)[*n] = *sum;
            }
        }
    }
    for n in rest {
        let sums = dot::<1, M, A>([pass.of(w, n)], x, pass.ahead());
        for (m, sums) in sums.iter().enumerate() {
            tile.row(pass.tokens.start + m)[n] = sums[0];
        }
    }
}

/// The M × R dot products of M tokens and R rows. A step takes two vectors of each, two cache lines,
/// and spreads them over A sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn dot<const R: usize, const M: usize, const A: usize>(
    w: [&[bf16]; R],
    x: [&[bf16]; M],
    ahead: usize,
) -> [[f32; R]; M] {
    let mut sums = [[[_mm512_setzero_ps(); A]; R]; M];
    let steps = x[0].len() / (PAIRED * 2);
    let ws = w.map(|w| &w.as_chunks::<PAIRED>().0.as_chunks::<2>().0[..steps]);
    let xs = x.map(|x| &x.as_chunks::<PAIRED>().0.as_chunks::<2>().0[..steps]);
    for i in 0..steps {
        if ahead > 0 {
            ws.iter().for_each(|w| fetch_ahead(&w[i], ahead));
        }
        let w = std::array::from_fn(|r| &ws[r][i]);
        step(&mut sums, w, std::array::from_fn(|m| &xs[m][i]));
    }
    let done = steps * PAIRED * 2;
    if done < x[0].len() {
        // The last, short step is padded with zeros.
        let ws = w.map(|w| padded(&w[done..]));
        let xs = x.map(|x| padded(&x[done..]));
        step(&mut sums, ws.each_ref(), xs.each_ref());
    }
    let mut dots = [[0.0; R]; M];
    for m in 0..M {
        for r in 0..R {
            dots[m][r] = sum(sums[m][r]);
        }
    }
    dots
}

/// Asks for the two cache lines of `v`'s counterpart `ahead` numbers further on.
///
/// Several rows and tokens at once are more streams than the processor follows by itself.
#[inline(always)]
fn fetch_ahead(v: &[[bf16; PAIRED]; 2], ahead: usize) {
    for line in v {
        let line = line.as_ptr().wrapping_add(ahead);
        // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn step<const R: usize, const M: usize, const A: usize>(
    sums: &mut [[[__m512; A]; R]; M],
    w: [&[[bf16; PAIRED]; 2]; R],
    x: [&[[bf16; PAIRED]; 2]; M],
) {
    for l in 0..2 {
        for m in 0..M {
            let x = load_pairs(&x[m][l]);
            for r in 0..R {
                sums[m][r][l % A] = _mm512_dpbf16_ps(sums[m][r][l % A], load_pairs(&w[r][l]), x);
            }
        }
    }
}

fn padded(tail: &[bf16]) -> [[bf16; PAIRED]; 2] {
    let mut all = [[bf16::ZERO; PAIRED]; 2];
    all.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    all
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn sum<const A: usize>(sums: [__m512; A]) -> f32 {
    let mut all = sums[0];
    for part in &sums[1..] {
        all = _mm512_add_ps(all, *part);
    }
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
        pack: pack_bf16,
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
        for r in 0..R {
            let w = broadcast_pair([w[r][2 * k], w[r][2 * k + 1]]);
            for v in 0..V {
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], w, load_pairs(&x[v]));
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
