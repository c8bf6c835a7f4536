//! AVX-512 VNNI: 32 codes looked up in a register (`vpermw`) and multiplied in pairs (`vpdpwssd`).

use std::arch::asm;
use std::arch::x86_64::*;

use super::activation::{Blocks, WORDS};
use super::{BLOCK_NBYTES, Weight};
use crate::isa::Avx512Vnni;

/// Row `n` times row `m` of the activations.
pub(super) fn row(_: Avx512Vnni, w: &Weight, n: usize, x: &Blocks, m: usize) -> f32 {
    match x.per_block() {
        // SAFETY: the token proves the instructions of every `row_of`.
        4 => unsafe { row_of::<4>(w, n, x, m) },
        // SAFETY: as above.
        8 => unsafe { row_of::<8>(w, n, x, m) },
        // SAFETY: as above.
        _ => unsafe { row_of::<16>(w, n, x, m) },
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

/// `P` codes a word. A lookup reads the low five bits of a word: tables repeat, so that what is above a code is harmless.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn row_of<const P: usize>(w: &Weight, n: usize, x: &Blocks, m: usize) -> f32 {
    let first = n / w.block.0 * w.across();
    let (vectors, scales) = x.row(m);
    let columns = WORDS * P;
    let blocks = w.row(n).as_chunks::<BLOCK_NBYTES>().0.iter().zip(vectors.as_chunks::<P>().0);
    let mut table = load(&w.integers[first]);
    let whole_row = w.across() == 1;
    let mut sum = _mm512_setzero_ps();
    for (b, ((codes, x), scale)) in blocks.zip(scales).enumerate() {
        if !whole_row {
            table = load(&w.integers[first + b * columns / w.block.1]);
        }
        let ahead = codes.as_ptr().wrapping_add(2 << 10);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        let codes = load_codes(codes);
        let mut dots = [_mm512_setzero_si512(); 2];
        for (j, x) in x.iter().enumerate() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_possible_wrap,
                reason = "at most 15"
            )]
            let shift = _mm_cvtsi32_si128((j * (16 / P)) as i32);
            let index = _mm512_srl_epi16(codes, shift);
            let values = _mm512_permutexvar_epi16(index, table);
            dots[j % 2] = add_products(dots[j % 2], values, x);
        }
        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[0], dots[1]));
        sum = _mm512_fmadd_ps(dot, _mm512_set1_ps(*scale), sum);
    }
    _mm512_reduce_add_ps(sum) * w.scale
}
