//! Loops that do nothing but multiply, in as many independent sums as hide the latency.
//!
//! Each says how many operations it did.

use std::arch::x86_64::{
    __m256i, __m512bh, __m512i, _mm256_add_epi32, _mm256_fmadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_ps,
    _mm256_setzero_si256, _mm512_add_epi32, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_si512, _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
};
use std::hint::black_box;

use crate::isa::{Avx2, Avx512, Avx512Vnni};

/// 12 sums, a factor and an addend fit the 16 registers; 6 cycles of latency × 2 a cycle are hidden.
const SUMS: usize = 12;

/// 24 sums fit the 32 registers: 12 cycles of latency × 2 a cycle, or 24 × 1, are hidden.
const SUMS_512: usize = 24;

/// int8 operands come from the first-level cache, as a kernel's do; a loop over constants would
/// have its products computed once.
const OPERANDS: usize = 64;

pub(super) fn read(_isa: Avx2, data: &[u64]) -> u64 {
    #[target_feature(enable = "avx2")]
    fn wide(data: &[u64]) -> u64 {
        super::xor(data)
    }
    // SAFETY: the token is made only after avx2 was detected.
    unsafe { wide(data) }
}

pub(super) fn f32_avx2(_isa: Avx2, steps: usize) -> u64 {
    #[target_feature(enable = "avx2,fma")]
    fn multiply(steps: usize) {
        let (factor, one) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(1.0));
        let mut sums = [one; SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, one);
            }
        }
        black_box(sums);
    }
    // SAFETY: the token is made only after avx2 and fma were detected.
    unsafe { multiply(steps) };
    (2 * 8 * SUMS * steps) as u64
}

pub(super) fn f32_avx512(_isa: Avx512, steps: usize) -> u64 {
    #[target_feature(enable = "avx512f")]
    fn multiply(steps: usize) {
        let (factor, one) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(1.0));
        let mut sums = [one; SUMS_512];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, one);
            }
        }
        black_box(sums);
    }
    // SAFETY: the token is made only after avx512f was detected.
    unsafe { multiply(steps) };
    (2 * 16 * SUMS_512 * steps) as u64
}

pub(super) fn bf16_avx512(_isa: Avx512Vnni, steps: usize) -> u64 {
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply(steps: usize) {
        let ones = black_box([0x3f80_u16; 32]);
        // SAFETY: `ones` is 64 readable bytes, and any are 32 bf16.
        let ones = unsafe { ones.as_ptr().cast::<__m512bh>().read_unaligned() };
        let mut sums = [_mm512_setzero_ps(); SUMS_512];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }
    // SAFETY: the token is made only after avx512bf16 was detected.
    unsafe { multiply(steps) };
    (2 * 32 * SUMS_512 * steps) as u64
}

pub(super) fn int8_avx2(_isa: Avx2, steps: usize) -> u64 {
    let operands = black_box([[1_i8; 32]; OPERANDS]);
    // SAFETY: the token is made only after avx2 was detected.
    unsafe { int8_256(&operands, steps) };
    (2 * 32 * OPERANDS * (steps / OPERANDS)) as u64
}

#[target_feature(enable = "avx2")]
fn int8_256(operands: &[[i8; 32]; OPERANDS], steps: usize) {
    let (left, ones) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); 8];
    for _ in 0..steps / OPERANDS {
        for group in black_box(operands).as_chunks::<8>().0 {
            for (sum, right) in sums.iter_mut().zip(group) {
                let pairs = _mm256_maddubs_epi16(left, load_256(right));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
    }
    black_box(sums);
}

pub(super) fn int8_avx512(_isa: Avx512, steps: usize) -> u64 {
    let operands = black_box([[1_i8; 64]; OPERANDS]);
    // SAFETY: the token is made only after avx512bw was detected.
    unsafe { int8_512(&operands, steps) };
    (2 * 64 * OPERANDS * (steps / OPERANDS)) as u64
}

#[target_feature(enable = "avx512f,avx512bw")]
fn int8_512(operands: &[[i8; 64]; OPERANDS], steps: usize) {
    let (left, ones) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi16(1));
    let mut sums = [_mm512_setzero_si512(); 8];
    for _ in 0..steps / OPERANDS {
        for group in black_box(operands).as_chunks::<8>().0 {
            for (sum, right) in sums.iter_mut().zip(group) {
                let pairs = _mm512_maddubs_epi16(left, load_512(right));
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(pairs, ones));
            }
        }
    }
    black_box(sums);
}

pub(super) fn int8_vnni(_isa: Avx512Vnni, steps: usize) -> u64 {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply(steps: usize) {
        let (left, right) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); SUMS_512];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, left, right);
            }
        }
        black_box(sums);
    }
    // SAFETY: the token is made only after avx512vnni was detected.
    unsafe { multiply(steps) };
    (2 * 64 * SUMS_512 * steps) as u64
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_256(v: &[i8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_512(v: &[i8; 64]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}
