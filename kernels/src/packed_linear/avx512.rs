//! AVX-512 VNNI: pairs of 16-bit products added to sums in one instruction (`vpdpwssd`), one vector a panel. Few tokens
//! are in `avx512_stream.rs`.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: indices name rows and vectors, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::activation::Block;
use super::codes::{LANES, STEP, planes, step_nbytes};
use super::weight::{Floats, Offset, Panel, Table, Values};
use super::x86::Decoded;

/// Rows of activations that [`tile`] multiplies at once: twelve sums hide the latency of `vpdpwssd`.
pub(super) const TILE_ROWS: usize = 12;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8], vector: usize) -> __m512i {
    let bytes = &bytes[64 * vector..64 * vector + 64];
    // SAFETY: `bytes` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_codes(codes: &[i16; 2 * LANES]) -> __m512i {
    // SAFETY: `codes` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_codes(codes: &mut [i16; 2 * LANES], v: __m512i) {
    // SAFETY: `codes` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(x: &[f32; LANES]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_floats(x: &mut [f32; LANES], v: __m512) {
    // SAFETY: `x` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

/// Sixteen numbers of a group.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(floats: &Floats, chunk: usize) -> __m512 {
    let at = chunk * LANES;
    match floats {
        Floats::F32(v) => {
            let v = &v[at..at + LANES];
            // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
            unsafe { _mm512_loadu_ps(v.as_ptr()) }
        }
        Floats::Bf16(v) => {
            let v = &v[at..at + LANES];
            // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
            let bits = unsafe { _mm256_loadu_si256(v.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
        Floats::F16(v) => {
            let v = &v[at..at + LANES];
            // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
            let bits = unsafe { _mm256_loadu_si256(v.as_ptr().cast()) };
            _mm512_cvtph_ps(bits)
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn group_scale(panel: &Panel<'_>, g: usize) -> __m512 {
    lanes(&panel.weight.scale, panel.first_group + g)
}

/// What group `g` adds to its values.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn group_offset(panel: &Panel<'_>, g: usize, scale: __m512) -> __m512 {
    match &panel.weight.offset {
        Offset::None => _mm512_setzero_ps(),
        Offset::Values(values) => lanes(values, panel.first_group + g),
        Offset::Zeros(zeros) => {
            let zeros = &zeros[(panel.first_group + g) * LANES..][..LANES];
            // SAFETY: `zeros` is 16 readable bytes; loadu has no alignment need.
            let zeros = unsafe { _mm_loadu_si128(zeros.as_ptr().cast()) };
            let zeros = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(zeros));
            _mm512_mul_ps(_mm512_xor_ps(zeros, _mm512_set1_ps(-0.0)), scale)
        }
    }
}

/// The bits from `bit` on of every word moved to bit `to`; a constant shift once loops are unrolled.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 15")]
pub(super) fn moved(v: __m512i, bit: usize, to: usize) -> __m512i {
    match (bit >= to, bit == to) {
        (_, true) => v,
        (true, _) => _mm512_srl_epi16(v, _mm_cvtsi32_si128((bit - to) as i32)),
        _ => _mm512_sll_epi16(v, _mm_cvtsi32_si128((to - bit) as i32)),
    }
}

/// The codes of pair `i` of a step, `i` a constant. In a table of at most 32 that repeats, bits above an index of one
/// plane change nothing and are left in.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn codes_of_pair<const B: u32, const TABLE: bool>(codes: &[u8], i: usize) -> __m512i {
    let [low, middle, high] = const { planes(B) };
    let pair = bits_of_pair(codes, i, (low, 0));
    if TABLE && middle == 0 {
        return pair;
    }
    let mut pair = _mm512_and_si512(pair, mask(low, 0));
    if middle > 0 {
        let v = bits_of_pair(codes, i, (middle, low));
        // (v & mask) | pair
        pair = _mm512_ternarylogic_epi32::<0xea>(v, mask(middle, low), pair);
    }
    if high > 0 {
        let below = low + middle;
        let v = bits_of_pair(codes, i, (high, below));
        pair = _mm512_ternarylogic_epi32::<0xea>(v, mask(high, below), pair);
    }
    pair
}

/// The word of pair `i` in a plane of `width` bits, moved to where that plane's bits begin; planes below take `below` bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits_of_pair(codes: &[u8], i: usize, (width, below): (usize, usize)) -> __m512i {
    let (per_byte, four, odd) = (8 / width, i % 8, i / 8);
    moved(load(codes, below + four / per_byte), 8 * odd + four % per_byte * width, below)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[expect(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "8 bits")]
fn mask(width: usize, below: usize) -> __m512i {
    _mm512_set1_epi16((((1_usize << width) - 1) << below) as i16)
}

/// The block once for each pair of a step, `i` a constant in each: the compiler would leave a loop, and shift by variables.
macro_rules! for_each_pair {
    ($i:ident => $body:block) => {
        for_each_pair!($i => $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($i:ident => $body:block, $($pair:literal)*) => {
        $({
            let $i: usize = $pair;
            $body
        })*
    };
}
pub(super) use for_each_pair;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn table_of(panel: &Panel<'_>) -> __m512i {
    match &panel.weight.values {
        Values::Table(Table { integers, .. }) => load_codes(integers),
        Values::Integers { .. } => _mm512_setzero_si512(),
    }
}

/// Some steps of a panel as 16-bit numbers, without bias, or out of the table.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn decode<const B: u32, const TABLE: bool>(
    panel: &Panel<'_>,
    codes: &[u8],
    out: &mut [Decoded],
) {
    let (table, bias) = (table_of(panel), _mm512_set1_epi16(panel.weight.bias()));
    for (codes, out) in codes.chunks_exact(const { step_nbytes(B) }).zip(out) {
        for_each_pair!(i => {
            let pair = codes_of_pair::<B, TABLE>(codes, i);
            let w = if TABLE {
                _mm512_permutexvar_epi16(pair, table)
            } else {
                _mm512_sub_epi16(pair, bias)
            };
            store_codes(&mut out.0[i], w);
        });
    }
}

/// Adds `M` rows of activations times the decoded steps from `first` on to `y`; rows of `x` are `row_steps` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
pub(super) fn tile<const M: usize>(
    (panel, first): (&Panel<'_>, usize),
    w: &[Decoded],
    x: [&[Block]; M],
    y: &mut [[f32; LANES]],
) {
    let table_scale = _mm512_set1_ps(panel.weight.table_scale());
    let has_offset = panel.has_offset();
    let mut sums = [_mm512_setzero_ps(); M];
    for m in 0..M {
        sums[m] = load_floats(&y[m]);
    }
    // A length that the compiler does not know: it would unroll the loop whole and run out of registers.
    let pairs = std::hint::black_box(STEP / 2).min(STEP / 2);
    let mut start = 0;
    while start < w.len() {
        let g = (first + start) / panel.steps_per_group;
        let end = w.len().min((g + 1) * panel.steps_per_group - first);
        let scale = group_scale(panel, g);
        let product = _mm512_mul_ps(scale, table_scale);
        let mut x_sums = [0.0; M];
        let mut parts = [_mm512_setzero_ps(); M];
        for s in start..end {
            let w = &w[s].0;
            let mut dots = [_mm512_setzero_si512(); M];
            let mut blocks = [&x[0][s]; M];
            for m in 0..M {
                blocks[m] = &x[m][s];
            }
            for i in 0..pairs {
                let w = load_codes(&w[i]);
                for m in 0..M {
                    let pair = _mm512_set1_epi32(blocks[m].pairs[i]);
                    dots[m] = _mm512_dpwssd_epi32(dots[m], w, pair);
                }
            }
            for m in 0..M {
                let dot = _mm512_cvtepi32_ps(dots[m]);
                parts[m] = _mm512_fmadd_ps(dot, _mm512_set1_ps(blocks[m].scale), parts[m]);
                x_sums[m] += blocks[m].scaled_sum;
            }
        }
        for m in 0..M {
            sums[m] = _mm512_fmadd_ps(parts[m], product, sums[m]);
        }
        if has_offset {
            let offset = group_offset(panel, g, scale);
            for m in 0..M {
                sums[m] = _mm512_fmadd_ps(offset, _mm512_set1_ps(x_sums[m]), sums[m]);
            }
        }
        start = end;
    }
    for m in 0..M {
        store_floats(&mut y[m], sums[m]);
    }
}
