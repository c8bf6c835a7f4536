//! AVX2, AVX-512 and AVX-512 BF16: a tile of sums stays in registers, a number of a is multiplied with
//! vectors of b.

use std::arch::x86_64::*;

use half::bf16;

use super::{Engine, to_bf16};
use crate::isa::{Avx2, Avx512, Avx512Vnni};

/// 6 × 2 vectors of sums, 2 of b and 1 of a: 15 of 16 registers.
const ROWS_AVX2: usize = 6;
/// 12 × 2 vectors of sums hide the latency of an addition six times over, and fit 32 registers.
const ROWS_AVX512: usize = 12;

pub(super) fn avx2<R>(isa: &Avx2, round: R) -> Engine<'_, f32, R> {
    let _proof = *isa;
    let tile = move |a: &[f32], b: &[f32], c: &mut [f32]| {
        let _ = _proof;
        // SAFETY: the token is made only after AVX2 and FMA were detected.
        unsafe { tile_avx2(a, b, c) }
    };
    Engine { mr: ROWS_AVX2, nr: 16, pair: 1, round, tile: Box::new(tile) }
}

pub(super) fn avx512<R>(isa: &Avx512, round: R) -> Engine<'_, f32, R> {
    let _proof = *isa;
    let tile = move |a: &[f32], b: &[f32], c: &mut [f32]| {
        let _ = _proof;
        // SAFETY: the token is made only after AVX-512 was detected.
        unsafe { tile_avx512(a, b, c) }
    };
    Engine { mr: ROWS_AVX512, nr: 32, pair: 1, round, tile: Box::new(tile) }
}

pub(super) fn bf16(isa: &Avx512Vnni) -> Engine<'_, bf16, impl Fn(f32) -> bf16 + Copy + Sync> {
    let _proof = *isa;
    let tile = move |a: &[bf16], b: &[bf16], c: &mut [f32]| {
        let _ = _proof;
        // SAFETY: the token is made only after avx512bf16 was detected, with all of AVX-512.
        unsafe { tile_bf16(a, b, c) }
    };
    Engine { mr: ROWS_AVX512, nr: 32, pair: 2, round: to_bf16, tile: Box::new(tile) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_avx2(a: &[f32], b: &[f32], c: &mut [f32]) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS_AVX2];
    for (a, b) in a.as_chunks::<ROWS_AVX2>().0.iter().zip(b.as_chunks::<16>().0) {
        let (b, _) = b.as_chunks::<8>();
        let b = [load8(&b[0]), load8(&b[1])];
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = _mm256_set1_ps(*a);
            sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
        }
    }
    for (c, sum) in c.as_chunks_mut::<8>().0.iter_mut().zip(sums.as_flattened()) {
        // SAFETY: `c` is 32 writable bytes; storeu has no alignment need.
        unsafe { _mm256_storeu_ps(c.as_mut_ptr(), *sum) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn tile_avx512(a: &[f32], b: &[f32], c: &mut [f32]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS_AVX512];
    for (a, b) in a.as_chunks::<ROWS_AVX512>().0.iter().zip(b.as_chunks::<32>().0) {
        let (b, _) = b.as_chunks::<16>();
        let b = [load16(&b[0]), load16(&b[1])];
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = _mm512_set1_ps(*a);
            sums[0] = _mm512_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(a, b[1], sums[1]);
        }
    }
    store(&sums, c);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn tile_bf16(a: &[bf16], b: &[bf16], c: &mut [f32]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS_AVX512];
    let (a, _) = a.as_chunks::<2>();
    for (a, b) in a.as_chunks::<ROWS_AVX512>().0.iter().zip(b.as_chunks::<64>().0) {
        let (b, _) = b.as_chunks::<32>();
        let b = [load_pairs(&b[0]), load_pairs(&b[1])];
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = broadcast_pair(*a);
            sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
        }
    }
    store(&sums, c);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: &[[__m512; 2]; ROWS_AVX512], c: &mut [f32]) {
    for (c, sum) in c.as_chunks_mut::<16>().0.iter_mut().zip(sums.as_flattened()) {
        // SAFETY: `c` is 64 writable bytes; storeu has no alignment need.
        unsafe { _mm512_storeu_ps(c.as_mut_ptr(), *sum) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load8(from: &[f32; 8]) -> __m256 {
    // SAFETY: `from` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load16(from: &[f32; 16]) -> __m512 {
    // SAFETY: `from` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_pairs(from: &[bf16; 32]) -> __m512bh {
    // SAFETY: `from` is 64 readable bytes, and any are 32 bf16; an unaligned read has no alignment
    // need.
    unsafe { from.as_ptr().cast::<__m512bh>().read_unaligned() }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast_pair([low, high]: [bf16; 2]) -> __m512bh {
    let pair = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    let pairs = _mm512_set1_epi32(pair.cast_signed());
    // SAFETY: both types are 64 bytes, any of which are 32 bf16.
    unsafe { std::ptr::from_ref(&pairs).cast::<__m512bh>().read() }
}
