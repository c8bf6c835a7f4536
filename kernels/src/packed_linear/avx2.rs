//! AVX2: pairs of 16-bit products (`vpmaddwd`), two vectors of eight rows a panel.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: indices name rows and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::activation::Block;
use super::codes::{LANES, STEP, planes, step_nbytes};
use super::weight::{Floats, Offset, Panel, Table, Values};
use super::x86::{Decoded, prefetch};

/// Rows of activations that [`tile`] multiplies at once: twelve sums and what they are made of fill the registers.
pub(super) const TILE_ROWS: usize = 6;

/// Sixteen rows: two vectors.
type Both = [__m256i; 2];

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8], half_vector: usize) -> __m256i {
    let bytes = &bytes[32 * half_vector..32 * half_vector + 32];
    // SAFETY: `bytes` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i16; 2 * LANES], half: usize) -> __m256i {
    let codes = &codes[LANES * half..LANES * half + LANES];
    // SAFETY: `codes` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_codes(codes: &mut [i16; 2 * LANES], half: usize, v: __m256i) {
    let codes = &mut codes[LANES * half..LANES * half + LANES];
    // SAFETY: `codes` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(x: &[f32; LANES], half: usize) -> __m256 {
    let x = &x[8 * half..8 * half + 8];
    // SAFETY: `x` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats(x: &mut [f32; LANES], half: usize, v: __m256) {
    let x = &mut x[8 * half..8 * half + 8];
    // SAFETY: `x` is 32 writable bytes; storeu has no alignment need.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}

/// Eight numbers of a group, `half` 0 or 1.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn lanes(floats: &Floats, chunk: usize, half: usize) -> __m256 {
    let at = chunk * LANES + 8 * half;
    match floats {
        Floats::F32(v) => {
            let v = &v[at..at + 8];
            // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
            unsafe { _mm256_loadu_ps(v.as_ptr()) }
        }
        Floats::Bf16(v) => {
            let v = &v[at..at + 8];
            // SAFETY: `v` is 16 readable bytes; loadu has no alignment need.
            let bits = unsafe { _mm_loadu_si128(v.as_ptr().cast()) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
        }
        Floats::F16(v) => {
            let v = &v[at..at + 8];
            // SAFETY: `v` is 16 readable bytes; loadu has no alignment need.
            let bits = unsafe { _mm_loadu_si128(v.as_ptr().cast()) };
            _mm256_cvtph_ps(bits)
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn group_scale(panel: &Panel<'_>, g: usize, half: usize) -> __m256 {
    lanes(&panel.weight.scale, panel.first_group + g, half)
}

/// What group `g` adds to its values.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn group_offset(panel: &Panel<'_>, g: usize, scale: __m256, half: usize) -> __m256 {
    match &panel.weight.offset {
        Offset::None => _mm256_setzero_ps(),
        Offset::Values(values) => lanes(values, panel.first_group + g, half),
        Offset::Zeros(zeros) => {
            let zeros = &zeros[(panel.first_group + g) * LANES + 8 * half..][..8];
            // SAFETY: `zeros` is 8 readable bytes; loadl reads no more.
            let zeros = unsafe { _mm_loadl_epi64(zeros.as_ptr().cast()) };
            let zeros = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(zeros));
            _mm256_mul_ps(_mm256_xor_ps(zeros, _mm256_set1_ps(-0.0)), scale)
        }
    }
}

/// The bits from `bit` on of every word moved to bit `to`; a constant shift once loops are unrolled.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 15")]
fn moved(v: __m256i, bit: usize, to: usize) -> __m256i {
    match (bit >= to, bit == to) {
        (_, true) => v,
        (true, _) => _mm256_srl_epi16(v, _mm_cvtsi32_si128((bit - to) as i32)),
        _ => _mm256_sll_epi16(v, _mm_cvtsi32_si128((to - bit) as i32)),
    }
}

/// The codes of pair `i` of a step.
#[inline]
#[target_feature(enable = "avx2")]
fn pair<const B: u32>(codes: &[u8], i: usize) -> Both {
    let mut both = [_mm256_setzero_si256(); 2];
    let (mut below, mut first) = (0, 0);
    for width in const { planes(B) } {
        if width == 0 {
            break;
        }
        let (per_byte, four, odd) = (8 / width, i % 8, i / 8);
        let (vector, bit) = (first + four / per_byte, 8 * odd + four % per_byte * width);
        #[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "8 bits")]
        let mask = _mm256_set1_epi16((((1_usize << width) - 1) << below) as i16);
        for half in 0..2 {
            let v = load(codes, 2 * vector + half);
            let v = _mm256_and_si256(moved(v, bit, below), mask);
            both[half] = if below == 0 { v } else { _mm256_or_si256(both[half], v) };
        }
        below += width;
        first += width;
    }
    both
}

/// A table of 32 integers: low and high bytes of both its halves, each twice.
#[derive(Clone, Copy)]
struct Planes {
    low: [__m256i; 2],
    high: [__m256i; 2],
}

#[inline]
#[target_feature(enable = "avx2")]
fn table_of(panel: &Panel<'_>) -> Planes {
    let mut bytes = [[[0_u8; 16]; 2]; 2];
    if let Values::Table(Table { integers, .. }) = &panel.weight.values {
        for (i, integer) in integers.iter().enumerate() {
            let [low, high] = integer.to_le_bytes();
            (bytes[0][i / 16][i % 16], bytes[1][i / 16][i % 16]) = (low, high);
        }
    }
    let mut vectors = [[_mm256_setzero_si256(); 2]; 2];
    for plane in 0..2 {
        for half in 0..2 {
            // SAFETY: the array is 16 readable bytes; loadu has no alignment need.
            let sixteen = unsafe { _mm_loadu_si128(bytes[plane][half].as_ptr().cast()) };
            vectors[plane][half] = _mm256_broadcastsi128_si256(sixteen);
        }
    }
    Planes { low: vectors[0], high: vectors[1] }
}

/// The integers of sixteen indices, which are words of at most 31.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const B: u32>(table: Planes, index: __m256i) -> __m256i {
    // Bytes with the highest bit set give 0: the low byte's index stands alone, then the high byte's.
    let low_index = _mm256_or_si256(index, _mm256_set1_epi16(-0x8000));
    let high_index = _mm256_or_si256(_mm256_slli_epi16::<8>(index), _mm256_set1_epi16(0x80));
    let first = _mm256_or_si256(
        _mm256_shuffle_epi8(table.low[0], low_index),
        _mm256_shuffle_epi8(table.high[0], high_index),
    );
    if B < 5 {
        return first;
    }
    let second = _mm256_or_si256(
        _mm256_shuffle_epi8(table.low[1], low_index),
        _mm256_shuffle_epi8(table.high[1], high_index),
    );
    _mm256_blendv_epi8(first, second, _mm256_cmpgt_epi16(index, _mm256_set1_epi16(15)))
}

/// Codes as they are, or out of the table.
#[inline]
#[target_feature(enable = "avx2")]
fn looked_up<const B: u32, const TABLE: bool>(table: Planes, w: Both) -> Both {
    if TABLE { [look_up::<B>(table, w[0]), look_up::<B>(table, w[1])] } else { w }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_products(dots: Both, w: Both, pair: i32) -> Both {
    let pair = _mm256_set1_epi32(pair);
    [
        _mm256_add_epi32(dots[0], _mm256_madd_epi16(w[0], pair)),
        _mm256_add_epi32(dots[1], _mm256_madd_epi16(w[1], pair)),
    ]
}

/// `M` rows of activations times one panel, streamed once.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn stream<const B: u32, const TABLE: bool, const M: usize>(
    panel: &Panel<'_>,
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let nbytes = const { step_nbytes(B) };
    let row_steps = panel.groups * panel.steps_per_group;
    let table = table_of(panel);
    let table_scale = _mm256_set1_ps(panel.weight.table_scale());
    let bias = i32::from(panel.weight.bias());
    let has_offset = panel.has_offset();
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (g, steps) in panel.codes.chunks_exact(nbytes * panel.steps_per_group).enumerate() {
        let mut parts = [[_mm256_setzero_ps(); 2]; M];
        let mut x_sums = [0.0; M];
        for (s, codes) in steps.chunks_exact(nbytes).enumerate() {
            let s = g * panel.steps_per_group + s;
            prefetch(codes);
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            for m in 0..M {
                if !TABLE {
                    dots[m] = [_mm256_set1_epi32(-bias * x[m * row_steps + s].sum); 2];
                }
            }
            for i in 0..STEP / 2 {
                let w = looked_up::<B, TABLE>(table, pair::<B>(codes, i));
                for m in 0..M {
                    dots[m] = add_products(dots[m], w, x[m * row_steps + s].pairs[i]);
                }
            }
            for m in 0..M {
                let x = &x[m * row_steps + s];
                for half in 0..2 {
                    let dot = _mm256_cvtepi32_ps(dots[m][half]);
                    let x_scale = _mm256_set1_ps(x.scale);
                    parts[m][half] = _mm256_fmadd_ps(dot, x_scale, parts[m][half]);
                }
                x_sums[m] += x.scaled_sum;
            }
        }
        for half in 0..2 {
            let scale = group_scale(panel, g, half);
            let product = if TABLE { _mm256_mul_ps(scale, table_scale) } else { scale };
            for m in 0..M {
                sums[m][half] = _mm256_fmadd_ps(parts[m][half], product, sums[m][half]);
            }
            if has_offset {
                let offset = group_offset(panel, g, scale, half);
                for m in 0..M {
                    let x_sum = _mm256_set1_ps(x_sums[m]);
                    sums[m][half] = _mm256_fmadd_ps(offset, x_sum, sums[m][half]);
                }
            }
        }
    }
    for m in 0..M {
        store_floats(&mut y[m], 0, sums[m][0]);
        store_floats(&mut y[m], 1, sums[m][1]);
    }
}

/// Some steps of a panel as 16-bit numbers, without bias, or out of the table.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode<const B: u32, const TABLE: bool>(
    panel: &Panel<'_>,
    codes: &[u8],
    out: &mut [Decoded],
) {
    let (table, bias) = (table_of(panel), _mm256_set1_epi16(panel.weight.bias()));
    for (codes, out) in codes.chunks_exact(const { step_nbytes(B) }).zip(out) {
        for i in 0..STEP / 2 {
            let w = pair::<B>(codes, i);
            for half in 0..2 {
                let w = if TABLE {
                    look_up::<B>(table, w[half])
                } else {
                    _mm256_sub_epi16(w[half], bias)
                };
                store_codes(&mut out.0[i], half, w);
            }
        }
    }
}

/// Adds `M` rows of activations times the decoded steps from `first` on to `y`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile<const M: usize>(
    (panel, first): (&Panel<'_>, usize),
    w: &[Decoded],
    x: [&[Block]; M],
    y: &mut [[f32; LANES]],
) {
    let table_scale = _mm256_set1_ps(panel.weight.table_scale());
    // A length that the compiler does not know: it would unroll the loop whole and run out of registers.
    let pairs = std::hint::black_box(STEP / 2).min(STEP / 2);
    let mut start = 0;
    while start < w.len() {
        let g = (first + start) / panel.steps_per_group;
        let end = w.len().min((g + 1) * panel.steps_per_group - first);
        let mut x_sums = [0.0; M];
        let mut parts = [[[0.0; 8]; 2]; M];
        for s in start..end {
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            let mut blocks = [&x[0][s]; M];
            for m in 0..M {
                blocks[m] = &x[m][s];
            }
            for i in 0..pairs {
                let (w0, w1) = (load_codes(&w[s].0[i], 0), load_codes(&w[s].0[i], 1));
                for m in 0..M {
                    let pair = _mm256_set1_epi32(blocks[m].pairs[i]);
                    dots[m][0] = _mm256_add_epi32(dots[m][0], _mm256_madd_epi16(w0, pair));
                    dots[m][1] = _mm256_add_epi32(dots[m][1], _mm256_madd_epi16(w1, pair));
                }
            }
            for m in 0..M {
                let x_scale = _mm256_set1_ps(blocks[m].scale);
                for half in 0..2 {
                    let dot = _mm256_cvtepi32_ps(dots[m][half]);
                    let part = crate::lanes::load8(&parts[m][half]);
                    let part = _mm256_fmadd_ps(dot, x_scale, part);
                    crate::lanes::store8(&mut parts[m][half], part);
                }
                x_sums[m] += blocks[m].scaled_sum;
            }
        }
        for half in 0..2 {
            let scale = group_scale(panel, g, half);
            let product = _mm256_mul_ps(scale, table_scale);
            let offset = group_offset(panel, g, scale, half);
            for m in 0..M {
                let part = crate::lanes::load8(&parts[m][half]);
                let mut sum = _mm256_fmadd_ps(part, product, load_floats(&y[m], half));
                if panel.has_offset() {
                    sum = _mm256_fmadd_ps(offset, _mm256_set1_ps(x_sums[m]), sum);
                }
                store_floats(&mut y[m], half, sum);
            }
        }
        start = end;
    }
}
