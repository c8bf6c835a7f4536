//! Integer weights and more tokens than a GEMV takes: the dense GEMM, whose blocks are spread where it fills them.

use std::arch::x86_64::*;
use std::ops::Range;

use super::spread::{codes_at, mask, spread_i4, spread_i8, stored_of};
use super::{Activation, Rows, STEP, Values, int4_bytes};
use crate::Cpu;
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::int8_linear::gemm::avx512vnni::{EXACT_BLOCK, exact, scaled, width};
use crate::int8_linear::gemm::{Packed, Source, WeightBlock};
use crate::isa::{Avx512Vbmi2, Avx512Vnni};

/// Columns that a block of 16-bit integers has: within a group. `None` where such integers cannot stand for the weight (a zero is added to what
/// is stored alone) or a step holds two groups.
pub(super) fn block(values: Values<'_>) -> Option<usize> {
    match values {
        Values::Int8 { .. } => Some(2 * STEP),
        Values::Int4 { zero: None, group_size: STEP, .. } => Some(STEP),
        Values::Int4 { zero: None, group_size, .. } if group_size > STEP => Some(2 * STEP),
        _ => None,
    }
}

/// `false` where there is no block, or the activations are none that integers can stand for.
pub(super) fn linear(
    (isa, spread): (Avx512Vnni, Avx512Vbmi2),
    cpu: &Cpu,
    w: Rows<'_>,
    x: &[f32],
    y: &mut [f32],
) -> bool {
    let blocks = block(w.w.values);
    let integers = blocks.and_then(|block| BlockInt16::new(cpu.isa(), x, w.shape.k, block));
    let Some(integers) = integers else { return false };
    let x = Packed::from_blocks(cpu, &integers, None, width(w.shape.m));
    let fill = |rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>| {
        fill_words(spread, w, rows, b, to);
    };
    let ahead = |row: usize, b: usize| ask(w, row, b * integers.block, integers.block);
    scaled(isa, cpu, &x, (y, w.shape), &Source { fill, ahead });
    true
}

/// Int8 by int8.
pub(super) fn dynamic(
    (isa, spread): (Avx512Vnni, Avx512Vbmi2),
    cpu: &Cpu,
    w: Rows<'_>,
    act: Activation<'_>,
    y: &mut [f32],
) {
    let (m, k) = (w.shape.m, w.shape.k);
    let Values::Int8 { scale, .. } = w.w.values else { return };
    // Weights go in as q + 128, so that 128 · Σ a is too much.
    let sum = |m: usize| act.q[m * k..][..k].iter().map(|&a| i32::from(a)).sum::<i32>();
    let surplus: Vec<i32> = (0..m).map(|m| sum(m) << 7).collect();
    let x = Packed::new::<4>(cpu, act.q, k, EXACT_BLOCK, width(m));
    let fill = |rows: Range<usize>, b: usize, to: &mut WeightBlock<u8>| {
        fill_bytes(spread, w, rows, b, to);
    };
    let ahead = |row: usize, b: usize| ask(w, row, b * EXACT_BLOCK, EXACT_BLOCK);
    let finish = |m: usize, n: usize, sums: &[i32], y: &mut [f32]| {
        for ((y, sum), scale) in y.iter_mut().zip(sums).zip(&scale[n..]) {
            *y = sum.wrapping_sub(surplus[m]) as f32 * act.scale[m] * scale;
        }
    };
    exact(isa, cpu, &x, (y, w.shape), &Source { fill, ahead }, finish);
}

/// Asks for a row's block to be brought near.
fn ask(w: Rows<'_>, row: usize, start: usize, len: usize) {
    match w.w.values {
        Values::Int8 { q, .. } => fetch(&q[row * w.shape.k / 2..], start / 2, len / 2),
        Values::Int4 { q, .. } => fetch(&q[row * int4_bytes(w.shape.k)..], start / 4, len / 4),
        Values::F32(_) | Values::Bf16(_) => {}
    }
    fetch(w.codes(row), start / STEP * 6, 6);
}

fn fill_words(
    _: Avx512Vbmi2,
    w: Rows<'_>,
    rows: Range<usize>,
    b: usize,
    to: &mut WeightBlock<i16>,
) {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512.
    unsafe { fill_words_avx512(w, rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn fill_words_avx512(w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    let block = to.q.len() / to.scale.len();
    for ((n, q), to_scale) in rows.zip(to.q.chunks_exact_mut(block)).zip(&mut to.scale) {
        *to_scale = match w.w.values {
            Values::Int8 { scale, .. } => scale[n],
            Values::Int4 { scale, group_size, .. } => {
                scale[n * (w.shape.k / group_size) + b * block / group_size]
            }
            Values::F32(_) | Values::Bf16(_) => return,
        };
        for (i, words) in q.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
            let bytes = step(w, n, b * (block / STEP) + i);
            let (low, high) = words.split_at_mut(STEP / 2);
            store_words(low, _mm512_castsi512_si256(bytes));
            store_words(high, _mm512_extracti64x4_epi64::<1>(bytes));
        }
    }
}

fn fill_bytes(_: Avx512Vbmi2, w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<u8>) {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512.
    unsafe { fill_bytes_avx512(w, rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn fill_bytes_avx512(w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<u8>) {
    let sign = _mm512_set1_epi8(-128);
    for (n, q) in rows.zip(to.q.chunks_exact_mut(EXACT_BLOCK)) {
        for (i, bytes) in q.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
            let codes = step(w, n, b * (EXACT_BLOCK / STEP) + i);
            store_bytes(bytes, _mm512_xor_si512(codes, sign));
        }
    }
}

/// Step `b` of row `n` as signed bytes, zeros where nothing is stored and behind the row's end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn step(w: Rows<'_>, n: usize, b: usize) -> __m512i {
    if b * STEP >= w.shape.k {
        return _mm512_setzero_si512();
    }
    let mask = mask(codes_at(w.codes(n), b));
    match w.w.values {
        Values::Int8 { q, .. } => spread_i8(&stored_of(q, w.shape.k, (n, b)), mask),
        Values::Int4 { q, .. } => spread_i4(&q[n * int4_bytes(w.shape.k)..], b, mask),
        Values::F32(_) | Values::Bf16(_) => _mm512_setzero_si512(),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_words(to: &mut [i16], bytes: __m256i) {
    assert!(to.len() == STEP / 2);
    let words = _mm512_cvtepi8_epi16(bytes);
    // SAFETY: `to` is 64 writable bytes, by the assert; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_bytes(to: &mut [u8; STEP], bytes: __m512i) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
}
