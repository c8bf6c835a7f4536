//! The steps of a tile for few rows, with AVX-512: vectors lie along the head, up to four rows share each load,
//! and numbers of every cache format become f32 in registers. Scales come last: a key's is multiplied into its
//! scores, a value's into the weights that it meets.

use super::WHOLE;
use super::decode::TILE;
use super::decode_avx2::sum_each;
use crate::isa::Avx512;
use crate::kv_cache::{CacheFormat, Rows};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Keys whose scores are summed at once: 4 · 4 sums, and their vectors, stay below 32 registers.
const KEYS: usize = 4;

// In every kernel here F is a `CacheFormat` and B the bytes that WHOLE of its numbers take.

/// s (rows, 64) = q (rows, head_dim) · Kᵀ (head_dim, keys) for the keys in `rows`, and asks for their values.
pub(super) fn scores(
    _proof: Avx512,
    q: &[f32],
    [k, v]: [Rows<'_>; 2],
    rows: Range<usize>,
    head_dim: usize,
    s: &mut [f32],
) {
    let nbytes = k.format().codes_nbytes(head_dim);
    let range = rows.start * nbytes..rows.end * nbytes;
    let (keys, values) = (&k.bytes()[range.clone()], &v.bytes()[range]);
    let scales = k.scales().get(rows).unwrap_or_default();
    let one = for_format::<ScoresOf>(k.format());
    for (q, s) in q.chunks(4 * head_dim).zip(s.chunks_mut(4 * TILE)) {
        let kernel = one[q.len() / head_dim - 1];
        // SAFETY: the token is made only after AVX-512 F, BW, DQ and VL were detected.
        unsafe { kernel(q, [keys, values], head_dim, s) };
        scale_scores(s, k.format(), scales);
    }
}

/// o (rows, head_dim) = o · alpha + p (rows, 64) · V for up to four rows; `p` is used up. Asks for the `next` keys.
pub(super) fn values(
    _proof: Avx512,
    p: &mut [f32],
    [v, k]: [Rows<'_>; 2],
    [rows, next]: [&Range<usize>; 2],
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let head_dim = o.len() / (p.len() / TILE);
    let nbytes = v.format().codes_nbytes(head_dim);
    let values = &v.bytes()[rows.start * nbytes..rows.end * nbytes];
    let keys = &k.bytes()[next.start * nbytes..next.end * nbytes];
    scale_scores(p, v.format(), v.scales().get(rows.clone()).unwrap_or_default());
    let kernel = for_format::<ValuesOf>(v.format())[p.len() / TILE - 1];
    // SAFETY: the token is made only after AVX-512 F, BW, DQ and VL were detected.
    unsafe { kernel(p, [values, keys], head_dim, alpha, o) };
}

type Scores = unsafe fn(&[f32], [&[u8]; 2], usize, &mut [f32]);
type Values = unsafe fn(&[f32], [&[u8]; 2], usize, [f32; 4], &mut [f32]);

/// Names a kernel whose instances differ by format and rows.
trait Family {
    type Kernel;
    fn of<const F: u8, const B: usize>() -> [Self::Kernel; 4];
}

struct ScoresOf;
impl Family for ScoresOf {
    type Kernel = Scores;
    fn of<const F: u8, const B: usize>() -> [Scores; 4] {
        [scores_of::<F, B, 1>, scores_of::<F, B, 2>, scores_of::<F, B, 3>, scores_of::<F, B, 4>]
    }
}

struct ValuesOf;
impl Family for ValuesOf {
    type Kernel = Values;
    fn of<const F: u8, const B: usize>() -> [Values; 4] {
        [values_of::<F, B, 1>, values_of::<F, B, 2>, values_of::<F, B, 3>, values_of::<F, B, 4>]
    }
}

fn for_format<T: Family>(format: CacheFormat) -> [T::Kernel; 4] {
    match format {
        CacheFormat::F32 => T::of::<{ CacheFormat::F32 as u8 }, 128>(),
        CacheFormat::F16 => T::of::<{ CacheFormat::F16 as u8 }, 64>(),
        CacheFormat::Bf16 => T::of::<{ CacheFormat::Bf16 as u8 }, 64>(),
        CacheFormat::Int8 => T::of::<{ CacheFormat::Int8 as u8 }, 32>(),
        CacheFormat::Int4 => T::of::<{ CacheFormat::Int4 as u8 }, 16>(),
        CacheFormat::Float8 => T::of::<{ CacheFormat::Float8 as u8 }, 32>(),
    }
}

/// Multiplies the scores (or weights) of a tile's keys by their scales.
fn scale_scores(s: &mut [f32], format: CacheFormat, scales: &[bf16]) {
    // See `load`: e4m3 comes from f16's bits, which mean 2⁻⁸ as much.
    let unit = if format == CacheFormat::Float8 { 256.0 } else { 1.0 };
    let mut wide = [0.0; TILE];
    wide.iter_mut().zip(scales).for_each(|(wide, scale)| *wide = unit * scale.to_f32());
    if !scales.is_empty() {
        for s in s.chunks_exact_mut(TILE) {
            s[..scales.len()].iter_mut().zip(&wide).for_each(|(s, scale)| *s *= scale);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_f32(x: &[f32; WHOLE]) -> [__m512; 2] {
    let (x, _) = x.as_chunks::<16>();
    // SAFETY: `x[0]` is 64 readable bytes; loadu has no alignment need.
    let low = unsafe { _mm512_loadu_ps(x[0].as_ptr()) };
    // SAFETY: as above, of `x[1]`.
    [low, unsafe { _mm512_loadu_ps(x[1].as_ptr()) }]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn bytes64(x: &[u8], at: usize) -> __m512i {
    let x = &x[at..at + 64];
    // SAFETY: `x` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn bytes32(x: &[u8], at: usize) -> __m256i {
    let x = &x[at..at + 32];
    // SAFETY: `x` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn bytes16(x: &[u8], at: usize) -> __m128i {
    let x = &x[at..at + 16];
    // SAFETY: `x` is 16 readable bytes; loadu has no alignment need.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
}

/// Thirty-two numbers before their scale: two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load<const F: u8, const B: usize>(x: &[u8; B]) -> [__m512; 2] {
    const F32: u8 = CacheFormat::F32 as u8;
    const F16: u8 = CacheFormat::F16 as u8;
    const BF16: u8 = CacheFormat::Bf16 as u8;
    const INT4: u8 = CacheFormat::Int4 as u8;
    const FLOAT8: u8 = CacheFormat::Float8 as u8;
    match F {
        F32 => [_mm512_castsi512_ps(bytes64(x, 0)), _mm512_castsi512_ps(bytes64(x, 64))],
        F16 => [_mm512_cvtph_ps(bytes32(x, 0)), _mm512_cvtph_ps(bytes32(x, 32))],
        BF16 => [bf16s(bytes32(x, 0)), bf16s(bytes32(x, 32))],
        FLOAT8 => [e4m3s(bytes16(x, 0)), e4m3s(bytes16(x, 16))],
        INT4 => {
            // `permutexvar` looks at four bits of each lane, so that the nibble above need not be masked.
            let values = _mm512_setr_ps(
                -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0,
                7.0,
            );
            let codes = _mm512_cvtepu8_epi32(bytes16(x, 0));
            let upper = _mm512_srli_epi32::<4>(codes);
            [_mm512_permutexvar_ps(codes, values), _mm512_permutexvar_ps(upper, values)]
        }
        _ => [int8s(bytes16(x, 0)), int8s(bytes16(x, 16))],
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn bf16s(codes: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(codes)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn int8s(codes: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
}

/// Sign, exponent and mantissa put where f16 has them: the value times 2⁻⁸. There is no NaN among the codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn e4m3s(codes: __m128i) -> __m512 {
    let codes = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(codes));
    // The sign came twice: bit 14 belongs to f16's exponent.
    _mm512_cvtph_ps(_mm256_andnot_si256(_mm256_set1_epi16(0x4000), codes))
}

/// Asks for the cache lines of `bytes` from `at` on, as far as they go.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(bytes: &[u8], at: usize, nbytes: usize) {
    for line in (at..bytes.len().min(at + nbytes)).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(line).cast());
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scores_of<const F: u8, const B: usize, const R: usize>(
    q: &[f32],
    [keys, values]: [&[u8]; 2],
    head_dim: usize,
    s: &mut [f32],
) {
    let nbytes = head_dim / WHOLE * B;
    let mut q_rows = [&[][..]; R];
    for (row, q) in q_rows.iter_mut().zip(q.chunks_exact(head_dim)) {
        *row = q.as_chunks::<WHOLE>().0;
    }
    let (fours, rest) = keys.split_at(keys.len() / (KEYS * nbytes) * KEYS * nbytes);
    for (i, keys) in fours.chunks_exact(KEYS * nbytes).enumerate() {
        prefetch(values, i * KEYS * nbytes, KEYS * nbytes);
        dots::<F, B, R, KEYS>(q_rows, keys, &mut s[i * KEYS..]);
    }
    prefetch(values, fours.len(), rest.len());
    for (i, key) in rest.chunks_exact(nbytes).enumerate() {
        dots::<F, B, R, 1>(q_rows, key, &mut s[fours.len() / nbytes + i..]);
    }
}

/// s (R, 64), of each row the first K = q (R, head_dim) · keysᵀ (head_dim, K).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dots<const F: u8, const B: usize, const R: usize, const K: usize>(
    q: [&[[f32; WHOLE]]; R],
    keys: &[u8],
    s: &mut [f32],
) {
    let (keys, _) = keys.as_chunks::<B>();
    let wholes = keys.len() / K;
    let (mut q_rows, mut k_rows) = (q, [&[][..]; K]);
    for row in &mut q_rows {
        *row = &row[..wholes];
    }
    for (row, k) in k_rows.iter_mut().zip(keys.chunks_exact(wholes)) {
        *row = &k[..wholes];
    }
    let mut sums = [[_mm512_setzero_ps(); KEYS]; R];
    for i in 0..wholes {
        let mut k = [[_mm512_setzero_ps(); 2]; K];
        for (k, row) in k.iter_mut().zip(&k_rows) {
            *k = load::<F, B>(&row[i]);
        }
        for (sums, row) in sums.iter_mut().zip(&q_rows) {
            let q = load_f32(&row[i]);
            for (sum, k) in sums.iter_mut().zip(k) {
                *sum = _mm512_fmadd_ps(q[0], k[0], *sum);
                *sum = _mm512_fmadd_ps(q[1], k[1], *sum);
            }
        }
    }
    for (sums, s) in sums.into_iter().zip(s.chunks_mut(TILE)) {
        let halves = [half(sums[0]), half(sums[1]), half(sums[2]), half(sums[3])];
        s[..K].copy_from_slice(&sum_each(halves)[..K]);
    }
}

/// The upper half added to the lower.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn half(v: __m512) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn values_of<const F: u8, const B: usize, const R: usize>(
    p: &[f32],
    [values, keys]: [&[u8]; 2],
    head_dim: usize,
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let wholes = head_dim / WHOLE;
    let mut at = 0;
    while at < wholes {
        let ahead = if at == 0 { keys } else { &[] };
        if at + 2 <= wholes {
            weigh::<F, B, R, 2>(p, [values, ahead], [wholes, at], alpha, o);
        } else {
            weigh::<F, B, R, 1>(p, [values, ahead], [wholes, at], alpha, o);
        }
        at += 2;
    }
}

/// `R` rows by `C` times 32 numbers of the head, from 32 · `at` on: 2 · C · R sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn weigh<const F: u8, const B: usize, const R: usize, const C: usize>(
    p: &[f32],
    [values, ahead]: [&[u8]; 2],
    [wholes, at]: [usize; 2],
    alpha: [f32; 4],
    o: &mut [f32],
) {
    let (o, _) = o.as_chunks_mut::<WHOLE>();
    let mut sums = [[[_mm512_setzero_ps(); 2]; C]; R];
    for ((sums, o), alpha) in sums.iter_mut().zip(o.chunks_exact(wholes)).zip(alpha) {
        let alpha = _mm512_set1_ps(alpha);
        for (sum, o) in sums.iter_mut().zip(&o[at..]) {
            let o = load_f32(o);
            *sum = [_mm512_mul_ps(o[0], alpha), _mm512_mul_ps(o[1], alpha)];
        }
    }
    let mut p_rows = [&[][..]; R];
    for (row, p) in p_rows.iter_mut().zip(p.chunks_exact(TILE)) {
        *row = &p[..TILE];
    }
    let rows = values.as_chunks::<B>().0.chunks_exact(wholes).take(TILE);
    for (key, row) in rows.enumerate() {
        prefetch(ahead, key * wholes * B, wholes * B);
        let Some(row) = row[at..].first_chunk::<C>() else { return };
        let mut v = [[_mm512_setzero_ps(); 2]; C];
        for (v, x) in v.iter_mut().zip(row) {
            *v = load::<F, B>(x);
        }
        for (sums, p) in sums.iter_mut().zip(&p_rows) {
            let p = _mm512_set1_ps(p[key]);
            for (sum, v) in sums.iter_mut().zip(v) {
                sum[0] = _mm512_fmadd_ps(p, v[0], sum[0]);
                sum[1] = _mm512_fmadd_ps(p, v[1], sum[1]);
            }
        }
    }
    for (sums, o) in sums.into_iter().zip(o.chunks_exact_mut(wholes)) {
        for (o, sum) in o[at..].iter_mut().zip(sums) {
            for (o, sum) in o.as_chunks_mut::<16>().0.iter_mut().zip(sum) {
                // SAFETY: `o` is 64 writable bytes; storeu has no alignment need.
                unsafe { _mm512_storeu_ps(o.as_mut_ptr(), sum) };
            }
        }
    }
}
