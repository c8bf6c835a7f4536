//! AVX2: sixteen codes looked up as two byte planes (`vpshufb`) and multiplied in pairs (`vpmaddwd`).

use std::arch::x86_64::*;

use super::activation::{Blocks, WORDS};
use super::{BLOCK_NBYTES, Weight};
use crate::isa::Avx2;
use crate::lanes::sum8;

/// Row `n` times row `m` of the activations.
pub(super) fn row(_: Avx2, w: &Weight, n: usize, x: &Blocks, m: usize) -> f32 {
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
#[target_feature(enable = "avx2")]
fn load(from: &[i16; WORDS], half: usize) -> __m256i {
    let from = &from[16 * half..16 * half + 16];
    // SAFETY: `from` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(from: &[u8; BLOCK_NBYTES], half: usize) -> __m256i {
    let from = &from[32 * half..32 * half + 32];
    // SAFETY: `from` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Low and high bytes of sixteen integers, each twice.
#[inline]
#[target_feature(enable = "avx2")]
fn planes(table: &[i16; 32]) -> [__m256i; 2] {
    let mut bytes = [[0_u8; 16]; 2];
    for (i, integer) in table[..16].iter().enumerate() {
        [bytes[0][i], bytes[1][i]] = integer.to_le_bytes();
    }
    // SAFETY: the array is 16 readable bytes; loadu has no alignment need.
    let low = unsafe { _mm_loadu_si128(bytes[0].as_ptr().cast()) };
    // SAFETY: as above.
    let high = unsafe { _mm_loadu_si128(bytes[1].as_ptr().cast()) };
    [_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)]
}

/// `P` codes a word.
#[target_feature(enable = "avx2,fma,f16c")]
fn row_of<const P: usize>(w: &Weight, n: usize, x: &Blocks, m: usize) -> f32 {
    let first = n / w.block.0 * w.across();
    let (vectors, scales) = x.row(m);
    let columns = WORDS * P;
    let blocks = w.row(n).as_chunks::<BLOCK_NBYTES>().0.iter().zip(vectors.as_chunks::<P>().0);
    let mut table = planes(&w.integers[first]);
    let whole_row = w.across() == 1;
    let mask = _mm256_set1_epi16(15);
    let mut sum = _mm256_setzero_ps();
    for (b, ((codes, x), scale)) in blocks.zip(scales).enumerate() {
        if !whole_row {
            table = planes(&w.integers[first + b * columns / w.block.1]);
        }
        let mut dots = [_mm256_setzero_si256(); 2];
        for (half, dot) in dots.iter_mut().enumerate() {
            let codes = load_codes(codes, half);
            for (j, x) in x.iter().enumerate() {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_possible_wrap,
                    reason = "at most 15"
                )]
                let shift = _mm_cvtsi32_si128((j * (16 / P)) as i32);
                // Tables repeat, so that bits above a shorter code are harmless.
                let index = _mm256_and_si256(_mm256_srl_epi16(codes, shift), mask);
                // Bytes with the highest bit set give 0: the low byte's index stands alone, then the high byte's.
                let low = _mm256_or_si256(index, _mm256_set1_epi16(-0x8000));
                let high = _mm256_or_si256(_mm256_slli_epi16::<8>(index), _mm256_set1_epi16(0x80));
                let values = _mm256_or_si256(
                    _mm256_shuffle_epi8(table[0], low),
                    _mm256_shuffle_epi8(table[1], high),
                );
                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(values, load(x, half)));
            }
        }
        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dots[0], dots[1]));
        sum = _mm256_fmadd_ps(dot, _mm256_set1_ps(*scale), sum);
    }
    sum8(sum) * w.scale
}
