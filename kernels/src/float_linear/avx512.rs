//! AVX-512 with VNNI, BF16 and VBMI: codes become values by a look-up among 64 or 128 bytes in registers (`vpermb`,
//! `vpermi2b`), and sixteen rows are summed side by side.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names the activation row, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::activation::{Bytes, Halves, Words};
use super::element::{Arithmetic, Element};
use super::panels::LANES;
use super::view::{LaneScales, View};

/// Columns of four that a step has.
const QUADS: usize = 8;

/// The values of all codes of an element, as bytes that registers hold.
pub(super) struct Tables {
    pub(super) low: [[u8; 64]; 2],
    pub(super) high: [[u8; 64]; 2],
}

impl Tables {
    pub(super) fn new(element: Element) -> Tables {
        let mut tables = Tables { low: [[0; 64]; 2], high: [[0; 64]; 2] };
        for code in 0..128_u8 {
            let value = element.decode(code);
            let [low, high] = match element.arithmetic() {
                Arithmetic::Bf16 => half::bf16::from_f32(value).to_le_bytes(),
                _ => integer(value / element.step() + f32::from(element.bias())).to_le_bytes(),
            };
            let (table, at) = (usize::from(code / 64), usize::from(code % 64));
            tables.low[table][at] = low;
            tables.high[table][at] = high;
        }
        tables
    }

    /// The bf16 of fp8 codes: columns 0 and 1, and 2 and 3, of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn halves(&self, codes: __m512i) -> [__m512i; 2] {
        let [low, high] = [&self.low, &self.high].map(|table| [&table[0], &table[1]]);
        let lower = _mm512_permutex2var_epi8(load(low[0], 0), codes, load(low[1], 0));
        // The look-up takes the seven bits of the magnitude; the eighth is put on top again.
        let upper = _mm512_permutex2var_epi8(load(high[0], 0), codes, load(high[1], 0));
        let sign = _mm512_set1_epi8(-128);
        interleave(lower, _mm512_ternarylogic_epi32::<0xF8>(upper, codes, sign))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number below 2¹⁰: see `Element`")]
fn integer(x: f32) -> i16 {
    x as i16
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8], at: usize) -> __m512i {
    let bytes = &bytes[at..at + 64];
    // SAFETY: `bytes` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
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

/// Sixteen bytes as 32-bit integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(bytes: &[u8; LANES]) -> __m512i {
    // SAFETY: `bytes` is 16 readable bytes; loadu has no alignment need.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    _mm512_cvtepu8_epi32(bytes)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(v: __m512i) -> __m512bh {
    // SAFETY: both types are the same 64 bytes of a register, in which every bit pattern is valid.
    unsafe { std::ptr::from_ref::<__m512i>(&v).cast::<__m512bh>().read() }
}

/// Asks for what lies 8 KiB behind `step`, into the second-level cache: the processor's own prefetching stops at the end
/// of each page, and 2 KiB are read in less time than memory takes to answer.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(step: &[u8]) {
    const AHEAD: usize = 8 << 10;
    for line in (0..step.len()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T1>(step.as_ptr().wrapping_add(AHEAD + line).cast());
    }
}

/// Codes of quad `q` of a step in bytes, the bits above the code arbitrary.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn codes<const E: usize>(step: &[u8], q: usize) -> __m512i {
    let bits = const { Element::from_index(E).bits() };
    if bits == 8 {
        return load(step, 64 * q);
    }
    let low = load(step, 64 * (q / 2));
    let low = if q.is_multiple_of(2) { low } else { _mm512_srli_epi16::<4>(low) };
    match bits {
        6 => {
            let high = load(step, 256 + 64 * (q / 4));
            let high = match q % 4 {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<2>(high),
                2 => high,
                _ => _mm512_srli_epi16::<2>(high),
            };
            select(0x30, high, low)
        }
        5 => {
            let high = load(step, 256);
            let high = match q {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<3>(high),
                2 => _mm512_slli_epi16::<2>(high),
                3 => _mm512_slli_epi16::<1>(high),
                4 => high,
                5 => _mm512_srli_epi16::<1>(high),
                6 => _mm512_srli_epi16::<2>(high),
                _ => _mm512_srli_epi16::<3>(high),
            };
            select(0x10, high, low)
        }
        _ => low,
    }
}

/// The bits of `mask` from `a`, the others from `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn select(mask: i8, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi8(mask), a, b)
}

/// The scale of run `g`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn scale(scales: LaneScales<'_>, g: usize) -> __m512 {
    match scales {
        LaneScales::One => _mm512_set1_ps(1.0),
        LaneScales::Rows(rows) => load_floats(&rows[g]),
        LaneScales::Squares(values) => _mm512_set1_ps(values[g]),
        LaneScales::E8m0(rows) => {
            // Code 0 is 2⁻¹²⁷, whose bits are not those of its exponent.
            let smallest = _mm512_set1_epi32(0x0040_0000);
            _mm512_castsi512_ps(_mm512_max_epu32(
                _mm512_slli_epi32::<23>(widen(&rows[g])),
                smallest,
            ))
        }
        LaneScales::E4m3(rows) => {
            // In f32 the bits of e4m3 mean 2⁻¹²⁰ as much; subnormals become normal by the multiplication.
            let up = _mm512_set1_ps(f32::from_bits((127 + 120) << 23));
            // The half of a last step that K lacks has no scale, and sums of zero.
            let row = &rows[g.min(rows.len() - 1)];
            _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32::<20>(widen(row))), up)
        }
    }
}

/// Step `i` of every row.
#[inline]
fn at<'a, T, const M: usize>(x: &[&'a [T]; M], i: usize) -> [&'a T; M] {
    let mut steps = [&x[0][i]; M];
    for m in 1..M {
        steps[m] = &x[m][i];
    }
    steps
}

/// One panel times M rows of activations in two planes of bytes. With `SUBS` 2 each half of a step has its scale.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
pub(super) fn bytes<const E: usize, const SUBS: usize, const M: usize>(
    tables: &Tables,
    w: View<'_>,
    x: [&[Bytes]; M],
    y: &mut [[f32; LANES]; M],
) {
    let table = load(&tables.low[0], 0);
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut totals = [_mm512_setzero_ps(); M];
    for (g, run) in w.codes.chunks(w.run * nbytes).enumerate() {
        let mut sums = [_mm512_setzero_ps(); M];
        for (s, step) in run.chunks_exact(nbytes).enumerate() {
            prefetch(step);
            let x = at(&x, g * w.run + s);
            if SUBS == 1 {
                add_step::<E, 1, M>(table, step, x, 0, &mut sums);
                continue;
            }
            for sub in 0..SUBS {
                let mut sums = [_mm512_setzero_ps(); M];
                add_step::<E, SUBS, M>(table, step, x, sub, &mut sums);
                add_run(w.scales, SUBS * g + sub, &sums, &mut totals);
            }
        }
        if SUBS == 1 {
            add_run(w.scales, g, &sums, &mut totals);
        }
    }
    finish(w.factor, &totals, y);
}

/// Adds part `sub` of `SUBS` of a step to the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn add_step<const E: usize, const SUBS: usize, const M: usize>(
    table: __m512i,
    step: &[u8],
    x: [&Bytes; M],
    sub: usize,
    sums: &mut [__m512; M],
) {
    let element = const { Element::from_index(E) };
    let mut high = [_mm512_setzero_si512(); M];
    let mut low = [_mm512_setzero_si512(); M];
    for m in 0..M {
        let sum = if SUBS == 1 { x[m].sums[0] + x[m].sums[1] } else { x[m].sums[sub] };
        // Starting at −bias · Σx takes the bias away from every value.
        low[m] = _mm512_set1_epi32(-i32::from(element.bias()) * sum);
    }
    for q in sub * QUADS / SUBS..(sub + 1) * QUADS / SUBS {
        let codes = codes::<E>(step, q);
        let values = if element.bits() == 8 {
            _mm512_xor_si512(codes, _mm512_set1_epi8(-128))
        } else {
            _mm512_permutexvar_epi8(codes, table)
        };
        for m in 0..M {
            high[m] = _mm512_dpbusd_epi32(high[m], values, _mm512_set1_epi32(x[m].high[q]));
            low[m] = _mm512_dpbusd_epi32(low[m], values, _mm512_set1_epi32(x[m].low[q]));
        }
    }
    for m in 0..M {
        let whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[m]), low[m]);
        let x_scale = _mm512_set1_ps(x[m].scale);
        sums[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), x_scale, sums[m]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_run<const M: usize>(
    scales: LaneScales<'_>,
    g: usize,
    sums: &[__m512; M],
    totals: &mut [__m512; M],
) {
    let scale = scale(scales, g);
    for m in 0..M {
        totals[m] = _mm512_fmadd_ps(sums[m], scale, totals[m]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn finish<const M: usize>(factor: f32, totals: &[__m512; M], y: &mut [[f32; LANES]; M]) {
    for m in 0..M {
        store_floats(&mut y[m], _mm512_mul_ps(totals[m], _mm512_set1_ps(factor)));
    }
}

/// The two bytes of sixteen bits that each code of a register stands for: columns 0 and 1, and 2 and 3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleave(low: __m512i, high: __m512i) -> [__m512i; 2] {
    [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
}

/// One panel times M rows of activations as 16-bit integers.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
pub(super) fn words<const E: usize, const M: usize>(
    tables: &Tables,
    w: View<'_>,
    x: [&[Words]; M],
    y: &mut [[f32; LANES]; M],
) {
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut totals = [_mm512_setzero_ps(); M];
    for (g, run) in w.codes.chunks(w.run * nbytes).enumerate() {
        let mut sums = [_mm512_setzero_ps(); M];
        for (s, step) in run.chunks_exact(nbytes).enumerate() {
            prefetch(step);
            add_words::<E, M>(tables, step, at(&x, g * w.run + s), &mut sums);
        }
        add_run(w.scales, g, &sums, &mut totals);
    }
    finish(w.factor, &totals, y);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn add_words<const E: usize, const M: usize>(
    tables: &Tables,
    step: &[u8],
    x: [&Words; M],
    sums: &mut [__m512; M],
) {
    let (low, high) = (load(&tables.low[0], 0), load(&tables.high[0], 0));
    let mut dots = [[_mm512_setzero_si512(); 2]; M];
    for q in 0..QUADS {
        let codes = codes::<E>(step, q);
        let lower = _mm512_permutexvar_epi8(codes, low);
        let [a, b] = interleave(lower, _mm512_permutexvar_epi8(codes, high));
        for m in 0..M {
            let pairs = [x[m].pairs[2 * q], x[m].pairs[2 * q + 1]];
            // 32 products of 448 · 32639 stay below 2³¹.
            dots[m][0] = _mm512_dpwssd_epi32(dots[m][0], a, _mm512_set1_epi32(pairs[0]));
            dots[m][1] = _mm512_dpwssd_epi32(dots[m][1], b, _mm512_set1_epi32(pairs[1]));
        }
    }
    for m in 0..M {
        let whole = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[m][0], dots[m][1]));
        sums[m] = _mm512_fmadd_ps(whole, _mm512_set1_ps(x[m].scale), sums[m]);
    }
}

/// One panel of fp8 times M rows of activations in two bf16 parts.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vbmi")]
pub(super) fn halves<const E: usize, const M: usize>(
    tables: &Tables,
    w: View<'_>,
    x: [&[Halves]; M],
    y: &mut [[f32; LANES]; M],
) {
    let nbytes = const { Element::from_index(E).step_nbytes() };
    let mut totals = [_mm512_setzero_ps(); M];
    for (g, run) in w.codes.chunks(w.run * nbytes).enumerate() {
        // Four sums a row, so that one instruction need not wait for the last.
        let mut sums = [[_mm512_setzero_ps(); 4]; M];
        for (s, step) in run.chunks_exact(nbytes).enumerate() {
            prefetch(step);
            add_halves(tables, step, at(&x, g * w.run + s), &mut sums);
        }
        let mut whole = [_mm512_setzero_ps(); M];
        for m in 0..M {
            let [a, b, c, d] = sums[m];
            whole[m] = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
        }
        add_run(w.scales, g, &whole, &mut totals);
    }
    finish(w.factor, &totals, y);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vbmi")]
fn add_halves<const M: usize>(
    tables: &Tables,
    step: &[u8],
    x: [&Halves; M],
    sums: &mut [[__m512; 4]; M],
) {
    for q in 0..QUADS {
        let values = tables.halves(load(step, 64 * q));
        let [a, b] = [as_bf16(values[0]), as_bf16(values[1])];
        for m in 0..M {
            let pair = |words: &[i32; 16], i: usize| _mm512_set1_epi32(words[2 * q + i]);
            let x = [
                as_bf16(pair(&x[m].high, 0)),
                as_bf16(pair(&x[m].high, 1)),
                as_bf16(pair(&x[m].low, 0)),
                as_bf16(pair(&x[m].low, 1)),
            ];
            sums[m][0] = _mm512_dpbf16_ps(sums[m][0], a, x[0]);
            sums[m][1] = _mm512_dpbf16_ps(sums[m][1], b, x[1]);
            sums[m][2] = _mm512_dpbf16_ps(sums[m][2], a, x[2]);
            sums[m][3] = _mm512_dpbf16_ps(sums[m][3], b, x[3]);
        }
    }
}
