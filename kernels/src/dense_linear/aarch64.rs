//! NEON bodies. They are tested under an emulator where no such processor is at hand (see the head
//! of the crate); the choice of blocks follows from 32 registers and has not been timed.

use std::arch::aarch64::{
    float32x4_t, uint16x4_t, vaddq_f32, vaddvq_f32, vdupq_n_f32, vfmaq_f32, vfmaq_n_f32, vld1_u16,
    vld1q_f32, vreinterpretq_f32_u32, vshll_n_u16, vst1q_f32,
};

use half::{bf16, f16};

use super::panels::{Engine, PANEL_K, pack_f32};
use super::passes::{Pass, passes};
use super::{Shape, Weight};
use crate::isa::Neon;
use crate::parallel::Tile;

const LANES: usize = 4;
/// Vectors of a row that a step takes: a cache line of f32.
const STEP: usize = 4;

/// Some rows of the weight with all tokens (1 to 8); `tile` holds their columns of y.
pub(super) fn gemv(_isa: Neon, w: Weight<'_>, x: &[f32], mut tile: Tile<'_, f32>, shape: Shape) {
    // SAFETY: the token is made only after neon was detected.
    unsafe { by_format(w, x, &mut tile, shape) }
}

#[target_feature(enable = "neon")]
fn by_format(w: Weight<'_>, x: &[f32], tile: &mut Tile<'_, f32>, shape: Shape) {
    match w {
        Weight::F32(w) => by_tokens(w, x, tile, shape, |w| load(w)),
        Weight::Bf16(w) => by_tokens(w, x, tile, shape, |w| load_bf16(w)),
        Weight::F16(w) => by_tokens(w, x, tile, shape, |w| load_f16(w)),
    }
}

/// Chooses how many rows go together, so that their accumulators (8 to 16) hide the multiply's
/// latency and fit the 32 registers.
#[target_feature(enable = "neon")]
#[inline]
fn by_tokens<T: Copy + Default>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    shape: Shape,
    load: impl Fn(&[T; LANES]) -> float32x4_t,
) {
    for pass in passes(shape, tile.cols().len()) {
        match pass.tokens.len() {
            1 => rows::<T, 4, 1, 4>(w, x, tile, &pass, &load),
            2 => rows::<T, 4, 2, 2>(w, x, tile, &pass, &load),
            3 => rows::<T, 4, 3, 1>(w, x, tile, &pass, &load),
            4 => rows::<T, 4, 4, 1>(w, x, tile, &pass, &load),
            5 => rows::<T, 3, 5, 1>(w, x, tile, &pass, &load),
            _ => rows::<T, 2, 6, 1>(w, x, tile, &pass, &load),
        }
    }
}

/// R rows of the weight at a time, then the rest one by one.
#[target_feature(enable = "neon")]
#[inline]
fn rows<T: Copy + Default, const R: usize, const M: usize, const A: usize>(
    w: &[T],
    x: &[f32],
    tile: &mut Tile<'_, f32>,
    pass: &Pass,
    load: &impl Fn(&[T; LANES]) -> float32x4_t,
) {
    let x: [&[f32]; M] = std::array::from_fn(|m| pass.of(x, pass.tokens.start + m));
    let whole = pass.rows.end - pass.rows.len() % R;
    for n in (pass.rows.start..whole).step_by(R) {
        let w = std::array::from_fn(|r| pass.of(w, n + r));
        let sums = dot::<T, R, M, A>(w, x, load);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(pass.tokens.start + m)[n..n + R].copy_from_slice(sums);
        }
    }
    for n in whole..pass.rows.end {
        let sums = dot::<T, 1, M, A>([pass.of(w, n)], x, load);
        for (m, sums) in sums.iter().enumerate() {
            tile.row(pass.tokens.start + m)[n] = sums[0];
        }
    }
}

/// The M × R dot products of M tokens and R rows, spread over A sums each.
#[target_feature(enable = "neon")]
#[inline]
fn dot<T: Copy + Default, const R: usize, const M: usize, const A: usize>(
    w: [&[T]; R],
    x: [&[f32]; M],
    load_w: &impl Fn(&[T; LANES]) -> float32x4_t,
) -> [[f32; R]; M] {
    let mut sums = [[[vdupq_n_f32(0.0); A]; R]; M];
    let steps = x[0].len() / (LANES * STEP);
    let ws = w.map(|w| &w.as_chunks::<LANES>().0.as_chunks::<STEP>().0[..steps]);
    let xs = x.map(|x| &x.as_chunks::<LANES>().0.as_chunks::<STEP>().0[..steps]);
    for i in 0..steps {
        let w = std::array::from_fn(|r| &ws[r][i]);
        step(&mut sums, w, std::array::from_fn(|m| &xs[m][i]), load_w);
    }
    let done = steps * LANES * STEP;
    if done < x[0].len() {
        // The last, short step is padded with zeros.
        let ws = w.map(|w| padded(&w[done..]));
        let xs = x.map(|x| padded(&x[done..]));
        step(&mut sums, ws.each_ref(), xs.each_ref(), load_w);
    }
    let mut dots = [[0.0; R]; M];
    for m in 0..M {
        for r in 0..R {
            let mut all = sums[m][r][0];
            for part in &sums[m][r][1..] {
                all = vaddq_f32(all, *part);
            }
            dots[m][r] = vaddvq_f32(all);
        }
    }
    dots
}

#[target_feature(enable = "neon")]
#[inline]
fn step<T, const R: usize, const M: usize, const A: usize>(
    sums: &mut [[[float32x4_t; A]; R]; M],
    w: [&[[T; LANES]; STEP]; R],
    x: [&[[f32; LANES]; STEP]; M],
    load_w: &impl Fn(&[T; LANES]) -> float32x4_t,
) {
    for l in 0..STEP {
        let mut wide = [vdupq_n_f32(0.0); R];
        for r in 0..R {
            wide[r] = load_w(&w[r][l]);
        }
        for m in 0..M {
            let x = load(&x[m][l]);
            for r in 0..R {
                sums[m][r][l % A] = vfmaq_f32(sums[m][r][l % A], wide[r], x);
            }
        }
    }
}

fn padded<T: Copy + Default>(tail: &[T]) -> [[T; LANES]; STEP] {
    let mut all = [[T::default(); LANES]; STEP];
    all.as_flattened_mut()[..tail.len()].copy_from_slice(tail);
    all
}

/// `to` receives `from` as f32.
pub(super) fn widen_f16(_isa: Neon, from: &[f16], to: &mut [f32]) {
    // SAFETY: the token is made only after neon was detected.
    unsafe { widen(from, to) }
}

#[target_feature(enable = "neon")]
fn widen(from: &[f16], to: &mut [f32]) {
    let (from, from_tail) = from.as_chunks::<LANES>();
    let (to, to_tail) = to.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        store(to, load_f16(from));
    }
    to_tail.iter_mut().zip(from_tail).for_each(|(to, from)| *to = from.to_f32());
}

/// Rows of a tile: with two vectors of tokens 24 sums, which leaves room for x and a weight.
const ROWS: usize = 12;

/// The panel GEMM's tiles: 12 rows × 8 tokens and 12 rows × 4.
pub(super) fn engine(_isa: &Neon) -> Engine<'_, f32> {
    Engine {
        rows: ROWS,
        width: 2 * LANES,
        narrow: LANES,
        pair: 1,
        pack: pack_f32,
        multiply: &|w, x, y, width| {
            if width == LANES {
                // SAFETY: the token is made only after neon was detected.
                unsafe { tiles::<1>(w, x, y) }
            } else {
                // SAFETY: the token is made only after neon was detected.
                unsafe { tiles::<2>(w, x, y) }
            }
        },
    }
}

#[target_feature(enable = "neon")]
fn tiles<const V: usize>(w: &[[f32; PANEL_K]], x: &[f32], y: &mut [f32]) {
    let x = x.as_chunks::<LANES>().0.as_chunks::<V>().0;
    let y = y.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0.as_chunks_mut::<ROWS>().0;
    for (w, y) in w.as_chunks::<ROWS>().0.iter().zip(y) {
        multiply_tile(w, x, y);
    }
}

/// `y (ROWS, V vectors) += w (ROWS, K) · x (K, V vectors)`
#[target_feature(enable = "neon")]
#[inline]
fn multiply_tile<const V: usize>(
    w: &[[f32; PANEL_K]; ROWS],
    x: &[[[f32; LANES]; V]],
    y: &mut [[[f32; LANES]; V]; ROWS],
) {
    let mut sums = [[vdupq_n_f32(0.0); V]; ROWS];
    for (k, x) in x.iter().take(PANEL_K).enumerate() {
        let mut tokens = [vdupq_n_f32(0.0); V];
        for v in 0..V {
            tokens[v] = load(&x[v]);
        }
        for r in 0..ROWS {
            for v in 0..V {
                sums[r][v] = vfmaq_n_f32(sums[r][v], tokens[v], w[r][k]);
            }
        }
    }
    for (y, sums) in y.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        let total = vaddq_f32(load(y), *sums);
        store(y, total);
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn load(v: &[f32; LANES]) -> float32x4_t {
    // SAFETY: `v` is 16 readable bytes; the load has no alignment need beyond that of f32.
    unsafe { vld1q_f32(v.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(to: &mut [f32; LANES], v: float32x4_t) {
    // SAFETY: `to` is 16 writable bytes; the store has no alignment need beyond that of f32.
    unsafe { vst1q_f32(to.as_mut_ptr(), v) }
}

/// bf16 is the upper half of an f32.
#[target_feature(enable = "neon")]
#[inline]
fn load_bf16(v: &[bf16; LANES]) -> float32x4_t {
    // SAFETY: `v` is 8 readable bytes, aligned as u16 is.
    let v = unsafe { vld1_u16(v.as_ptr().cast()) };
    vreinterpretq_f32_u32(vshll_n_u16::<16>(v))
}

#[target_feature(enable = "neon")]
#[inline]
fn load_f16(v: &[f16; LANES]) -> float32x4_t {
    // SAFETY: `v` is 8 readable bytes, aligned as u16 is.
    let v: uint16x4_t = unsafe { vld1_u16(v.as_ptr().cast()) };
    let wide: float32x4_t;
    // SAFETY: `fcvtl` (of every ARMv8 processor) widens four f16 in a register, and touches nothing else.
    unsafe {
        std::arch::asm!("fcvtl {wide:v}.4s, {v:v}.4h", wide = lateout(vreg) wide, v = in(vreg) v,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}
