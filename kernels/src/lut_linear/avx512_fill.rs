//! AVX-512 VNNI, three tokens and more: blocks of 32 codes are looked up once (`vpermw`) and multiplied as 16-bit integers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{GEMM_BLOCK, Weight, width};
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::int8_linear::gemm::{self, Packed, Source, WeightBlock};
use crate::isa::Avx512Vnni;
use crate::{Cpu, Shape};

/// `y = x · dequantize(w)ᵀ` for activations in blocks of 32.
pub(super) fn gemm(
    isa: Avx512Vnni,
    cpu: &Cpu,
    w: &Weight,
    x: &BlockInt16,
    (y, shape): (&mut [f32], Shape),
) {
    let x = Packed::from_blocks(cpu, x, None, gemm::avx512vnni::width(shape.m));
    let nbytes = GEMM_BLOCK * width(w.bits) / 8;
    let fill = |rows, b, to: &mut WeightBlock<i16>| fill_block(isa, w, rows, b, to);
    let ahead = |row, b: usize| fetch(w.row(row), b * nbytes, nbytes);
    gemm::avx512vnni::scaled(isa, cpu, &x, (y, shape), &Source { fill, ahead });
}

/// Block `b` of some rows.
fn fill_block(_: Avx512Vnni, w: &Weight, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { fill_block_avx512(w, rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn fill_block_avx512(w: &Weight, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    let table = b * GEMM_BLOCK / w.block.1;
    let blocks = to.q.as_chunks_mut::<GEMM_BLOCK>().0;
    for ((n, q), scale) in rows.zip(blocks).zip(&mut to.scale) {
        let integers = load(&w.integers[n / w.block.0 * w.across() + table]);
        // Rows of codes are filled up to 64 bytes, so that a last block is whole.
        let codes = w.row(n);
        let index = match width(w.bits) {
            1 => bits(part(codes, b)),
            2 => twos(part(codes, b)),
            4 => nibbles(part(codes, b)),
            _ => bytes(part(codes, b)),
        };
        store(q, _mm512_permutexvar_epi16(index, integers));
        *scale = w.scale;
    }
}

/// Part `b` of a row of codes.
#[inline]
fn part<const NBYTES: usize>(codes: &[u8], b: usize) -> &[u8; NBYTES] {
    &codes.as_chunks::<NBYTES>().0[b]
}

// A lookup reads the low five bits of a word, and tables repeat, so that what is above a code is harmless.

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits(codes: &[u8; 4]) -> __m512i {
    _mm512_maskz_set1_epi16(u32::from_le_bytes(*codes), 1)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn twos(codes: &[u8; 8]) -> __m512i {
    let v = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*codes)));
    let two = _mm512_or_si512(v, _mm512_slli_epi64::<14>(v));
    _mm512_or_si512(two, _mm512_slli_epi64::<28>(two))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn nibbles(codes: &[u8; 16]) -> __m512i {
    // SAFETY: `codes` is 16 readable bytes; loadu has no alignment need.
    let v = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
    _mm512_or_si512(v, _mm512_slli_epi32::<12>(v))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes(codes: &[u8; 32]) -> __m512i {
    // SAFETY: `codes` is 32 readable bytes; loadu has no alignment need.
    _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[i16; 32]) -> __m512i {
    // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [i16; 32], v: __m512i) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
}
