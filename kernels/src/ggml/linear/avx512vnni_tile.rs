//! AVX-512 VNNI for many rows of activations: one or two panels, decoded before, times some rows.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: indices name panels and rows, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::activation::{Block, blocks_at};
use super::avx512vnni::{add_pairs, scale_and_add, store_floats};
use super::decoded::Decoded;
use super::panels::{LANES, STEP};

#[inline]
#[target_feature(enable = "avx512f")]
fn load_codes(codes: &[i16; 2 * LANES]) -> __m512i {
    // SAFETY: `codes` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(x: &[f32; LANES]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Adds `M` rows of activations times some steps of `P` decoded panels to `y`, in which panels are `stride` apart. Twelve sums
/// hide the latency of `vpdpwssd`; six rows of two panels load 8 vectors for 12 products, where twelve rows of one load 13.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn tile<const SUBS: usize, const MIN: bool, const P: usize, const M: usize>(
    w: [&[Decoded]; P],
    x: [&[Block]; M],
    (y, stride): (&mut [[f32; LANES]], usize),
) {
    let mut sums = [[_mm512_setzero_ps(); M]; P];
    for p in 0..P {
        for m in 0..M {
            sums[p][m] = load_floats(&y[p * stride + m]);
        }
    }
    // A length that the compiler does not know: it would unroll the loop whole, multiply row after row, and
    // run out of registers for the weights.
    let pairs = std::hint::black_box(STEP / 2 / SUBS);
    assert!(pairs * SUBS <= STEP / 2, "a step has sixteen pairs of columns");
    for s in 0..w[0].len() {
        let x = blocks_at(&x, s);
        let mut step = [&w[0][s]; P];
        for p in 1..P {
            step[p] = &w[p][s];
        }
        for sub in 0..SUBS {
            let dots = dot_products(step, x, sub * pairs..(sub + 1) * pairs);
            for p in 0..P {
                let scale = load_floats(&step[p].scales[sub]);
                let min = load_floats(&step[p].mins[sub]);
                for m in 0..M {
                    let min = MIN.then_some((min, x[m].scaled_sums[which_sum(SUBS, sub)]));
                    sums[p][m] = scale_and_add(sums[p][m], dots[p][m], (scale, x[m].scale), min);
                }
            }
        }
    }
    for p in 0..P {
        for m in 0..M {
            store_floats(&mut y[p * stride + m], sums[p][m]);
        }
    }
}

/// Which of a block's three sums belongs to sub-block `sub`.
#[inline]
const fn which_sum(subs: usize, sub: usize) -> usize {
    if subs == 1 { 2 } else { sub }
}

/// Integer dot products of some pairs of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_products<const P: usize, const M: usize>(
    w: [&Decoded; P],
    x: [&Block; M],
    pairs: Range<usize>,
) -> [[__m512i; M]; P] {
    let mut dots = [[_mm512_setzero_si512(); M]; P];
    for i in pairs {
        let mut codes = [_mm512_setzero_si512(); P];
        for p in 0..P {
            codes[p] = load_codes(&w[p].codes[i]);
        }
        for m in 0..M {
            let pair = _mm512_set1_epi32(x[m].pairs[i]);
            for p in 0..P {
                dots[p][m] = add_pairs(dots[p][m], codes[p], pair);
            }
        }
    }
    dots
}
