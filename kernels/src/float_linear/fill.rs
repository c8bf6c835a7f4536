//! AVX-512: a panel's codes as f32 rows, for the GEMM of many tokens.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{Tables, codes, interleave, load, scale, store_floats};
use super::element::{Arithmetic, Element};
use super::panels::{LANES, Panels, STEP};
use super::view::{LaneScales, View};
use crate::isa::Avx512Vbmi;

/// Words of the values of a step: `[column of four or pair of columns][row]`.
type Scratch = [[i32; LANES]; STEP / 2];

/// Columns `columns` (the start a multiple of 32) of rows `rows` in f32, row-major rows of `stride` numbers.
pub(super) fn rows(
    _: Avx512Vbmi,
    w: &Panels,
    tables: &Tables,
    (rows, columns): (Range<usize>, Range<usize>),
    out: &mut [f32],
    stride: usize,
) {
    let mut n = rows.start;
    while n < rows.end {
        let lanes = n % LANES..LANES.min(n % LANES + rows.end - n);
        let out = &mut out[(n - rows.start) * stride..];
        let view = w.view(n / LANES, 1.0);
        let part = Part { lanes: lanes.clone(), columns: columns.clone(), stride };
        // SAFETY: the `Avx512Vbmi` token is made only after AVX-512 F, BW and VBMI were detected.
        unsafe { any_panel(w.element(), tables, view, &part, out) };
        n += lanes.len();
    }
}

struct Part {
    lanes: Range<usize>,
    columns: Range<usize>,
    stride: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn any_panel(element: Element, tables: &Tables, view: View<'_>, part: &Part, out: &mut [f32]) {
    match element {
        Element::E4m3 => panel::<0>(tables, view, part, out),
        Element::E5m2 => panel::<1>(tables, view, part, out),
        Element::E3m2 => panel::<2>(tables, view, part, out),
        Element::E2m3 => panel::<3>(tables, view, part, out),
        Element::E3m1 => panel::<4>(tables, view, part, out),
        Element::E2m2 => panel::<5>(tables, view, part, out),
        Element::E2m1 => panel::<6>(tables, view, part, out),
        Element::Int8 => panel::<7>(tables, view, part, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn panel<const E: usize>(tables: &Tables, view: View<'_>, part: &Part, out: &mut [f32]) {
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut scratch: Scratch = [[0; LANES]; STEP / 2];
    let first = part.columns.start / STEP;
    let steps = view.codes.chunks_exact(nbytes).skip(first);
    for (s, step) in steps.take(part.columns.len().div_ceil(STEP)).enumerate() {
        values::<E>(tables, step, &mut scratch);
        let scales = step_scales(&view, first + s);
        let columns = s * STEP..part.columns.len().min((s + 1) * STEP);
        for (i, lane) in part.lanes.clone().enumerate() {
            let to = &mut out[i * part.stride..][columns.clone()];
            let row = row::<E>(&scratch, lane);
            let halves = [
                _mm512_mul_ps(row[0], _mm512_set1_ps(scales[0][lane])),
                _mm512_mul_ps(row[1], _mm512_set1_ps(scales[1][lane])),
            ];
            if let Ok(to) = <&mut [f32; STEP]>::try_from(&mut *to) {
                let (parts, _) = to.as_chunks_mut::<LANES>();
                store_floats(&mut parts[0], halves[0]);
                store_floats(&mut parts[1], halves[1]);
                continue;
            }
            let mut whole = [[0.0; LANES]; 2];
            store_floats(&mut whole[0], halves[0]);
            store_floats(&mut whole[1], halves[1]);
            let len = to.len();
            to.copy_from_slice(&whole.as_flattened()[..len]);
        }
    }
}

/// The scales of both halves of step `s`, row by row.
#[inline]
#[target_feature(enable = "avx512f")]
fn step_scales(view: &View<'_>, s: usize) -> [[f32; LANES]; 2] {
    let factor = _mm512_set1_ps(view.factor);
    let mut scales = [[0.0; LANES]; 2];
    let [first, second] = match view.scales {
        LaneScales::E4m3(rows) => [2 * s, (2 * s + 1).min(rows.len() - 1)],
        _ => [s / view.run; 2],
    };
    store_floats(&mut scales[0], _mm512_mul_ps(factor, scale(view.scales, first)));
    store_floats(&mut scales[1], _mm512_mul_ps(factor, scale(view.scales, second)));
    scales
}

/// The values of a step, in bytes or 16 bits, row by row in words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn values<const E: usize>(tables: &Tables, step: &[u8], scratch: &mut Scratch) {
    let element = const { Element::from_index(E) };
    for q in 0..STEP / 4 {
        let codes = codes::<E>(step, q);
        match element.arithmetic() {
            Arithmetic::Bytes if element.bits() == 8 => store(&mut scratch[q], codes),
            Arithmetic::Bytes => {
                let values = _mm512_permutexvar_epi8(codes, load(&tables.low[0], 0));
                store(&mut scratch[q], values);
            }
            Arithmetic::Words => {
                let low = _mm512_permutexvar_epi8(codes, load(&tables.low[0], 0));
                let high = _mm512_permutexvar_epi8(codes, load(&tables.high[0], 0));
                let [a, b] = interleave(low, high);
                store(&mut scratch[2 * q], a);
                store(&mut scratch[2 * q + 1], b);
            }
            Arithmetic::Bf16 => {
                let [a, b] = tables.halves(codes);
                store(&mut scratch[2 * q], a);
                store(&mut scratch[2 * q + 1], b);
            }
        }
    }
}

/// Row `lane` of a step, without its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn row<const E: usize>(scratch: &Scratch, lane: usize) -> [__m512; 2] {
    let element = const { Element::from_index(E) };
    let mut words = [0_i32; STEP / 2];
    let count = if element.arithmetic() == Arithmetic::Bytes { STEP / 4 } else { STEP / 2 };
    for (word, column) in words[..count].iter_mut().zip(scratch) {
        *word = column[lane];
    }
    let step = _mm512_set1_ps(element.step());
    match element.arithmetic() {
        Arithmetic::Bytes => {
            let [a, b] = bytes_of(&words);
            let whole = if element.bits() == 8 {
                [_mm512_cvtepi8_epi32(a), _mm512_cvtepi8_epi32(b)]
            } else {
                let bias = _mm512_set1_epi32(i32::from(element.bias()));
                [
                    _mm512_sub_epi32(_mm512_cvtepu8_epi32(a), bias),
                    _mm512_sub_epi32(_mm512_cvtepu8_epi32(b), bias),
                ]
            };
            [
                _mm512_mul_ps(_mm512_cvtepi32_ps(whole[0]), step),
                _mm512_mul_ps(_mm512_cvtepi32_ps(whole[1]), step),
            ]
        }
        Arithmetic::Words => {
            let [a, b] = words_of(&words);
            [
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(a)), step),
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(b)), step),
            ]
        }
        Arithmetic::Bf16 => {
            let [a, b] = words_of(&words);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(a))),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(b))),
            ]
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [i32; LANES], v: __m512i) {
    // SAFETY: `to` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
}

/// The first 32 bytes, in halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes_of(words: &[i32; STEP / 2]) -> [__m128i; 2] {
    let (quads, _) = words.as_chunks::<4>();
    let load = |quad: &[i32; 4]| {
        // SAFETY: `quad` is 16 readable bytes; loadu has no alignment need.
        unsafe { _mm_loadu_si128(quad.as_ptr().cast()) }
    };
    [load(&quads[0]), load(&quads[1])]
}

/// All 64 bytes, in halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn words_of(words: &[i32; STEP / 2]) -> [__m256i; 2] {
    let (halves, _) = words.as_chunks::<8>();
    let load = |half: &[i32; 8]| {
        // SAFETY: `half` is 32 readable bytes; loadu has no alignment need.
        unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
    };
    [load(&halves[0]), load(&halves[1])]
}
