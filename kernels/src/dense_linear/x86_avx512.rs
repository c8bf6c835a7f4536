//! AVX-512 bodies.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::panels::{Engine, PANEL_K, pack_f32};
use super::passes::{Pass, passes};
use super::{Shape, Weight};
use crate::isa::Avx512;
use crate::parallel::Tile;
use crate::rows::side_by_side;

const LANES: usize = 16;
/// Vectors of a step.
const L: usize = 2;

/// Some rows of the weight with all tokens (1 to 8); `tile` holds their columns of y.
pub(super) fn gemv(_isa: Avx512, w: Weight<'_>, x: &[f32], mut tile: Tile<'_, f32>, shape: Shape) {
    // SAFETY: the token is made only after avx512f, bw, dq and vl were detected.
    unsafe { by_format(w, x, &mut tile, shape) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn by_format(w: Weight<'_>, x: &[f32], tile: &mut Tile<'_, f32>, shape: Shape) {
    match w {
        Weight::F32(w) => by_tokens(w, x, tile, shape, |w| [load(&w[0]), load(&w[1])]),
        Weight::Bf16(w) => by_tokens(w, x, tile, shape, |w| even_and_odd(w)),
        Weight::F16(w) => by_tokens(w, x, tile, shape, |w| [load_f16(&w[0]), load_f16(&w[1])]),
    }
}

/// x as the steps of a bf16 weight meet it: in every 32 columns the even ones before the odd ones, rows filled up with
/// zeros.
pub(super) fn even_before_odd(x: &[f32], k: usize) -> Vec<f32> {
    let padded = k.next_multiple_of(2 * LANES).max(1);
    let mut all = vec![0.0; x.len() / k.max(1) * padded];
    for (x, all) in x.chunks_exact(k.max(1)).zip(all.chunks_exact_mut(padded)) {
        for (x, all) in x.chunks(2 * LANES).zip(all.as_chunks_mut::<{ 2 * LANES }>().0) {
            x.iter().enumerate().for_each(|(i, x)| all[i % 2 * LANES + i / 2] = *x);
        }
    }
    all
}

/// Chooses how many rows go together, so that their accumulators (8 to 24) hide the multiply's
/// latency and fit the 32 registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn by_tokens<T: Copy + Default>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    shape: Shape,
    load: impl Fn(&[[T; LANES]; L]) -> [__m512; L],
) {
    for pass in passes(shape, tile.cols().len()) {
        match pass.tokens.len() {
            1 => rows::<T, 4, 1, 2>(w, x, tile, &pass, &load),
            2 => rows::<T, 4, 2, 2>(w, x, tile, &pass, &load),
            3 => rows::<T, 4, 3, 1>(w, x, tile, &pass, &load),
            4 => rows::<T, 4, 4, 1>(w, x, tile, &pass, &load),
            5 => rows::<T, 4, 5, 1>(w, x, tile, &pass, &load),
            _ => rows::<T, 3, 6, 1>(w, x, tile, &pass, &load),
        }
    }
}

/// R rows of the weight at a time, then the rest one by one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn rows<T: Copy + Default, const R: usize, const M: usize, const A: usize>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    pass: &Pass,
    load: &impl Fn(&[[T; LANES]; L]) -> [__m512; L],
) {
    // Rows of x may be longer than those of the weight: see `even_before_odd`.
    let k = x.len() / pass.m;
    let x: [&[f32]; M] = std::array::from_fn(|m| &x[(pass.tokens.start + m) * k..][..k]);
    let (together, rest) = side_by_side::<R>(pass.rows.clone());
    for rows in together {
        let sums = dot::<T, R, M, A>(rows.map(|n| pass.of(w, n)), x, pass.ahead(), load);
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in rows.iter().zip(sums) {
                tile.row(pass.tokens.start + m)[*n] = *sum;
            }
        }
    }
    for n in rest {
        let sums = dot::<T, 1, M, A>([pass.of(w, n)], x, pass.ahead(), load);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(pass.tokens.start + m)[n] = sums[0];
        }
    }
}

/// The M × R dot products of M tokens and R rows. A step takes two vectors of each, a cache line or
/// two, and spreads them over A sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn dot<T: Copy + Default, const R: usize, const M: usize, const A: usize>(
    w: [&[T]; R],
    x: [&[f32]; M],
    ahead: usize,
    load_w: &impl Fn(&[[T; LANES]; L]) -> [__m512; L],
) -> [[f32; R]; M] {
    let mut sums = [[[_mm512_setzero_ps(); A]; R]; M];
    let steps = w[0].len() / (LANES * L);
    let ws = w.map(|w| &w.as_chunks::<LANES>().0.as_chunks::<L>().0[..steps]);
    let xs = x.map(|x| &x.as_chunks::<LANES>().0.as_chunks::<L>().0[..steps]);
    for i in 0..steps {
        if ahead > 0 {
            ws.iter().for_each(|w| fetch_ahead(&w[i], ahead));
        }
        let w = std::array::from_fn(|r| &ws[r][i]);
        step(&mut sums, w, std::array::from_fn(|m| &xs[m][i]), load_w);
    }
    let done = steps * LANES * L;
    if done < w[0].len() {
        // The last, short step is padded with zeros.
        let ws = w.map(|w| padded(&w[done..]));
        let xs = x.map(|x| padded(&x[done..]));
        step(&mut sums, ws.each_ref(), xs.each_ref(), load_w);
    }
    let mut dots = [[0.0; R]; M];
    for m in 0..M {
        for r in 0..R {
            dots[m][r] = sum(sums[m][r]);
        }
    }
    dots
}

/// Asks for the cache lines of `v`'s counterpart `ahead` numbers further on.
///
/// Several rows and tokens at once are more streams than the processor follows by itself.
#[inline(always)]
fn fetch_ahead<T, const L: usize>(v: &[[T; LANES]; L], ahead: usize) {
    let start = v.as_ptr().cast::<T>().wrapping_add(ahead);
    for line in 0..size_of_val(v).div_ceil(64) {
        let line = start.wrapping_byte_add(64 * line);
        // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn step<T, const R: usize, const M: usize, const A: usize>(
    sums: &mut [[[__m512; A]; R]; M],
    w: [&[[T; LANES]; L]; R],
    x: [&[[f32; LANES]; L]; M],
    load_w: &impl Fn(&[[T; LANES]; L]) -> [__m512; L],
) {
    let mut wide = [[_mm512_setzero_ps(); L]; R];
    for r in 0..R {
        wide[r] = load_w(w[r]);
    }
    for l in 0..L {
        for m in 0..M {
            let x = load(&x[m][l]);
            for r in 0..R {
                sums[m][r][l % A] = _mm512_fmadd_ps(wide[r][l], x, sums[m][r][l % A]);
            }
        }
    }
}

fn padded<T: Copy + Default>(tail: &[T]) -> [[T; LANES]; L] {
    let mut all = [[T::default(); LANES]; L];
    all.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    all
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
pub(super) fn engine(_isa: &Avx512) -> Engine<'_, f32> {
    Engine {
        rows: 2 * ROWS,
        width: 2 * LANES,
        narrow: LANES,
        pair: 1,
        pack: pack_f32,
        multiply: &|w, x, y, width| {
            if width == LANES {
                // SAFETY: the token is made only after avx512f, bw, dq and vl were detected.
                unsafe { tiles::<{ 2 * ROWS }, 1>(w, x, y) }
            } else {
                // SAFETY: the token is made only after avx512f, bw, dq and vl were detected.
                unsafe { tiles::<ROWS, 2>(w, x, y) }
            }
        },
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn tiles<const R: usize, const V: usize>(w: &[[f32; PANEL_K]], x: &[f32], y: &mut [f32]) {
    let x = x.as_chunks::<LANES>().0.as_chunks::<V>().0;
    let y = y.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<R>().0;
    for (w, y) in w.as_chunks::<R>().0.iter().zip(y) {
        multiply_tile(w, x, y);
    }
}

/// `y (R, V vectors) += w (R, K) · x (K, V vectors)`
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn multiply_tile<const R: usize, const V: usize>(
    w: &[[f32; PANEL_K]; R],
    x: &[[[f32; LANES]; V]],
    y: &mut [[[f32; LANES]; V]; R],
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for (k, x) in x.iter().take(PANEL_K).enumerate() {
        let mut tokens = [_mm512_setzero_ps(); V];
        for v in 0..V {
            tokens[v] = load(&x[v]);
        }
        for r in 0..R {
            let w = _mm512_set1_ps(w[r][k]);
            for v in 0..V {
                sums[r][v] = _mm512_fmadd_ps(w, tokens[v], sums[r][v]);
            }
        }
    }
    for (y, sums) in y.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        let total = _mm512_add_ps(load(y), *sums);
        store(y, total);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load(v: &[f32; LANES]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn store(to: &mut [f32; LANES], v: __m512) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}

/// bf16 is the upper half of an f32.
/// Thirty-two bf16 as f32, those of even places and those of odd ones: a bf16 is the upper half of an f32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn even_and_odd(v: &[[bf16; LANES]; L]) -> [__m512; L] {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    let v = unsafe { _mm512_loadu_si512(v.as_ptr().cast()) };
    let (even, odd) =
        (_mm512_slli_epi32::<16>(v), _mm512_and_si512(v, _mm512_set1_epi32(-0x1_0000)));
    [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load_f16(v: &[f16; LANES]) -> __m512 {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(v.as_ptr().cast()) })
}
