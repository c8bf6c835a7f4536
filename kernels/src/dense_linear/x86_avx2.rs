//! AVX2 and FMA bodies.

use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps,
};

use half::{bf16, f16};

use super::panels::{Engine, PANEL_K};
use super::{Shape, Weight};
use crate::isa::Avx2;
use crate::parallel::Tile;

const LANES: usize = 8;

/// Some rows of the weight with all tokens (1 to 8); `tile` holds their columns of y.
pub(super) fn gemv(_isa: Avx2, w: Weight<'_>, x: &[f32], mut tile: Tile<'_, f32>, shape: Shape) {
    // SAFETY: the token is made only after avx2, fma and f16c were detected.
    unsafe { by_format(w, x, &mut tile, shape) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn by_format(w: Weight<'_>, x: &[f32], tile: &mut Tile<'_, f32>, shape: Shape) {
    match w {
        Weight::F32(w) => by_tokens(w, x, tile, shape, |w| load(w)),
        Weight::Bf16(w) => by_tokens(w, x, tile, shape, |w| load_bf16(w)),
        Weight::F16(w) => by_tokens(w, x, tile, shape, |w| load_f16(w)),
    }
}

/// Chooses how many rows go together, so that their accumulators (8 to 12) hide the multiply's
/// latency and fit the 16 registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn by_tokens<T: Copy + Default>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    shape: Shape,
    load: impl Fn(&[T; LANES]) -> __m256,
) {
    let k = shape.k;
    match shape.m {
        1 => rows::<T, 4, 1, 2>(w, x, tile, k, load),
        2 => rows::<T, 4, 2, 1>(w, x, tile, k, load),
        3 => rows::<T, 4, 3, 1>(w, x, tile, k, load),
        4 => rows::<T, 3, 4, 1>(w, x, tile, k, load),
        5 => rows::<T, 2, 5, 1>(w, x, tile, k, load),
        6 => rows::<T, 2, 6, 1>(w, x, tile, k, load),
        7 => rows::<T, 1, 7, 1>(w, x, tile, k, load),
        _ => rows::<T, 1, 8, 1>(w, x, tile, k, load),
    }
}

/// R rows of the weight at a time, then the rest one by one.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn rows<T: Copy + Default, const R: usize, const M: usize, const U: usize>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    k: usize,
    load: impl Fn(&[T; LANES]) -> __m256,
) {
    let x: [&[f32]; M] = std::array::from_fn(|m| &x[m * k..(m + 1) * k]);
    let groups = w.chunks_exact(R * k);
    let rest = groups.remainder();
    let mut n = 0;
    for group in groups {
        let w = std::array::from_fn(|r| &group[r * k..(r + 1) * k]);
        let sums = dot::<T, R, M, U>(w, x, &load);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(m)[n..n + R].copy_from_slice(sums);
        }
        n += R;
    }
    for row in rest.chunks_exact(k) {
        let sums = dot::<T, 1, M, U>([row], x, &load);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(m)[n] = sums[0];
        }
        n += 1;
    }
}

/// The M × R dot products of M tokens and R rows; U steps of the loop have their own sums.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dot<T: Copy + Default, const R: usize, const M: usize, const U: usize>(
    w: [&[T]; R],
    x: [&[f32]; M],
    load_w: &impl Fn(&[T; LANES]) -> __m256,
) -> [[f32; R]; M] {
    let mut sums = [[[_mm256_setzero_ps(); U]; R]; M];
    let steps = x[0].len() / (LANES * U);
    let ws = w.map(|w| &w.as_chunks::<LANES>().0.as_chunks::<U>().0[..steps]);
    let xs = x.map(|x| &x.as_chunks::<LANES>().0.as_chunks::<U>().0[..steps]);
    for i in 0..steps {
        step(&mut sums, ws.map(|w| &w[i]), xs.map(|x| &x[i]), load_w);
    }
    let done = steps * LANES * U;
    if done < x[0].len() {
        // The last, short step is padded with zeros.
        let ws = w.map(|w| padded::<T, U>(&w[done..]));
        let xs = x.map(|x| padded::<f32, U>(&x[done..]));
        step(&mut sums, ws.each_ref(), xs.each_ref(), load_w);
    }
    sums.map(|sums| sums.map(|sums| sum(sums)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn step<T, const R: usize, const M: usize, const U: usize>(
    sums: &mut [[[__m256; U]; R]; M],
    w: [&[[T; LANES]; U]; R],
    x: [&[[f32; LANES]; U]; M],
    load_w: &impl Fn(&[T; LANES]) -> __m256,
) {
    for u in 0..U {
        let w = w.map(|w| load_w(&w[u]));
        for m in 0..M {
            let x = load(&x[m][u]);
            for r in 0..R {
                sums[m][r][u] = _mm256_fmadd_ps(w[r], x, sums[m][r][u]);
            }
        }
    }
}

fn padded<T: Copy + Default, const U: usize>(tail: &[T]) -> [[T; LANES]; U] {
    let mut all = [[T::default(); LANES]; U];
    all.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    all
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum<const U: usize>(sums: [__m256; U]) -> f32 {
    let all = sums.into_iter().fold(_mm256_setzero_ps(), |all, part| _mm256_add_ps(all, part));
    let mut lanes = [0.0; LANES];
    store(&mut lanes, all);
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// Rows of a tile of two vectors; a tile of one has twice as many. 12 sums, 2 vectors of x and a
/// weight fit the 16 registers.
const ROWS: usize = 6;

/// The panel GEMM's tiles: 6 rows × 16 tokens and 12 rows × 8.
pub(super) fn engine(_isa: &Avx2) -> Engine<'_, f32> {
    Engine {
        rows: 2 * ROWS,
        width: 2 * LANES,
        narrow: LANES,
        pair: 1,
        round: |v| v,
        multiply: &|w, x, y, width| {
            if width == LANES {
                // SAFETY: the token is made only after avx2, fma and f16c were detected.
                unsafe { tiles::<{ 2 * ROWS }, 1>(w, x, y) }
            } else {
                // SAFETY: the token is made only after avx2, fma and f16c were detected.
                unsafe { tiles::<ROWS, 2>(w, x, y) }
            }
        },
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tiles<const R: usize, const V: usize>(w: &[[f32; PANEL_K]], x: &[f32], y: &mut [f32]) {
    let x = x.as_chunks::<LANES>().0.as_chunks::<V>().0;
    let y = y.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<R>().0;
    for (w, y) in w.as_chunks::<R>().0.iter().zip(y) {
        multiply_tile(w, x, y);
    }
}

/// `y (R, V vectors) += w (R, K) · x (K, V vectors)`
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn multiply_tile<const R: usize, const V: usize>(
    w: &[[f32; PANEL_K]; R],
    x: &[[[f32; LANES]; V]],
    y: &mut [[[f32; LANES]; V]; R],
) {
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    for (k, x) in x.iter().take(PANEL_K).enumerate() {
        let x = x.each_ref().map(|x| load(x));
        for r in 0..R {
            let w = _mm256_set1_ps(w[r][k]);
            for v in 0..V {
                sums[r][v] = _mm256_fmadd_ps(w, x[v], sums[r][v]);
            }
        }
    }
    for (y, sums) in y.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        let total = _mm256_add_ps(load(y), *sums);
        store(y, total);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load(v: &[f32; LANES]) -> __m256 {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn store(to: &mut [f32; LANES], v: __m256) {
    // SAFETY: `to` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
}

/// bf16 is the upper half of an f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_bf16(v: &[bf16; LANES]) -> __m256 {
    // SAFETY: `v` is 16 readable bytes; loadu has no alignment need.
    let v = unsafe { _mm_loadu_si128(v.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn load_f16(v: &[f16; LANES]) -> __m256 {
    // SAFETY: `v` is 16 readable bytes; loadu has no alignment need.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(v.as_ptr().cast()) })
}
