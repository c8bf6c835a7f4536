//! AVX-512 VNNI: 4-bit codes as 16-bit integers times pairs of activations (`vpdpwssd`), some weight rows against some
//! activation rows at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::Rows;
use super::quads::{Quads, TokenRow};
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::int8_linear::gemm::{self, Packed, Source, WeightBlock};
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::{Cpu, Shape};

/// Activation rows that a pass multiplies: their integer and float sums fit the registers.
const M_TILE: usize = 4;

/// Rows of weights that stay in the caches while the next activation rows pass; a multiple of every number of rows
/// that go together.
const PASS_ROWS: usize = 12;

/// Bytes of codes that a step multiplies: 128 codes.
const STEP_BYTES: usize = 64;

/// Up to eight tokens: the codes are streamed once.
pub(super) fn gemv(isa: Avx512Vnni, cpu: &Cpu, w: Rows<'_>, x: &Quads, y: &mut [f32]) {
    let m = x.rows();
    let n = y.len() / m.max(1);
    // Four parts a thread even out what other programs take.
    let part_rows = cpu.threads().share(n.div_ceil(4), PASS_ROWS);
    cpu.threads().tiles_mut(y, n, (m, part_rows), |_, tile| any_tile(isa, w, x, tile));
}

fn any_tile(_: Avx512Vnni, w: Rows<'_>, x: &Quads, tile: Tile<'_, f32>) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { any_tile_vnni(w, x, tile) }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
fn any_tile_vnni(w: Rows<'_>, x: &Quads, tile: Tile<'_, f32>) {
    match x.piece() {
        128 => Gemv::<1>::new(w, x).tile(tile),
        64 => Gemv::<2>::new(w, x).tile(tile),
        _ => Gemv::<4>::new(w, x).tile(tile),
    }
}

/// A weight and activations, P scales a step.
struct Gemv<'a, const P: usize> {
    w: Rows<'a>,
    x: &'a Quads,
}

impl<'a, const P: usize> Gemv<'a, P> {
    fn new(w: Rows<'a>, x: &'a Quads) -> Self {
        Gemv { w, x }
    }

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn tile(&self, mut tile: Tile<'_, f32>) {
        let (rows, m) = (tile.cols(), tile.rows().len());
        let step = if m <= M_TILE { rows.len().max(1) } else { PASS_ROWS };
        let mut params = vec![Params::<P>::new(self.w); 4];
        for first in rows.clone().step_by(step) {
            let some = first..rows.end.min(first + step);
            for m in tile.rows().step_by(M_TILE) {
                match tile.rows().end - m {
                    1 => self.rows::<4, 1>(m, some.clone(), &mut params, &mut tile),
                    2 => self.rows::<4, 2>(m, some.clone(), &mut params, &mut tile),
                    3 => self.rows::<3, 3>(m, some.clone(), &mut params, &mut tile),
                    _ => self.rows::<2, M_TILE>(m, some.clone(), &mut params, &mut tile),
                }
            }
        }
    }

    /// R rows of weights at a time, then the rest one by one.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn rows<const R: usize, const M: usize>(
        &self,
        m: usize,
        rows: Range<usize>,
        params: &mut [Params<P>],
        tile: &mut Tile<'_, f32>,
    ) {
        let start = tile.cols().start;
        let mut x = [self.x.row(m); M];
        for i in 1..M {
            x[i] = self.x.row(m + i);
        }
        let whole = rows.end - rows.len() % R;
        for n in rows.clone().step_by(R).take_while(|n| *n < whole) {
            let dots = self.dot::<R, M>(n, &x, params);
            for i in 0..M {
                tile.row(m + i)[n - start..][..R].copy_from_slice(&dots[i]);
            }
        }
        for n in whole..rows.end {
            let dots = self.dot::<1, M>(n, &x, params);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    /// Rows `n .. n + R` of the weights times M rows of activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn dot<const R: usize, const M: usize>(
        &self,
        n: usize,
        x: &[TokenRow<'_>; M],
        params: &mut [Params<P>],
    ) -> [[f32; R]; M] {
        let row_bytes = self.w.k / 2;
        let mut codes: [&[u8]; R] = [&[]; R];
        let mut scales: [&[[f32; P]]; R] = [&[]; R];
        for (r, params) in params.iter_mut().take(R).enumerate() {
            codes[r] = self.w.codes(n + r);
            params.read(self.w, n + r);
            scales[r] = params.pieces.as_chunks::<P>().0;
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        let whole = row_bytes / STEP_BYTES;
        for b in 0..whole {
            let mut part: [&[u8; STEP_BYTES]; R] = [&[0; STEP_BYTES]; R];
            let mut scale = [&[0.0; P]; R];
            for r in 0..R {
                part[r] = &codes[r].as_chunks::<STEP_BYTES>().0[b];
                scale[r] = &scales[r][b];
                fetch_ahead(part[r], R * row_bytes);
            }
            add_step(part, scale, x, b, &mut sums);
        }
        if whole * STEP_BYTES < row_bytes {
            let mut part = [[0; STEP_BYTES]; R];
            let mut scale = [&[0.0; P]; R];
            for r in 0..R {
                let tail = &codes[r][whole * STEP_BYTES..];
                part[r][..tail.len()].copy_from_slice(tail);
                scale[r] = &scales[r][whole];
            }
            add_step(part.each_ref(), scale, x, whole, &mut sums);
        }
        let mut dots = [[0.0; R]; M];
        for m in 0..M {
            for r in 0..R {
                let sum = add_inner(sums[r][m], &params[r].scale, x[m].minus_eight);
                let sum = add_inner(sum, &params[r].zero, x[m].sum);
                dots[m][r] = _mm512_reduce_add_ps(sum);
            }
        }
        dots
    }
}

/// Scales and zeros of a row.
#[derive(Clone, Debug)]
struct Params<const P: usize> {
    scale: Vec<f32>,
    zero: Vec<f32>,
    /// The scales again, one for each 128 / P codes, P for each step; zeros where a last step lacks codes.
    pieces: Vec<f32>,
}

impl<const P: usize> Params<P> {
    fn new(w: Rows<'_>) -> Self {
        let none = vec![0.0; w.groups()];
        let pieces = vec![0.0; (w.k / 2).div_ceil(STEP_BYTES) * P];
        Params { scale: none.clone(), zero: none, pieces }
    }

    #[inline]
    fn read(&mut self, w: Rows<'_>, n: usize) {
        w.w.scale.copy_row(n, &mut self.scale);
        w.w.zero.copy_row(n, &mut self.zero);
        let per_group = w.w.group_size / (2 * STEP_BYTES / P);
        if per_group == 1 {
            self.pieces[..self.scale.len()].copy_from_slice(&self.scale);
            return;
        }
        for (pieces, scale) in self.pieces.chunks_mut(per_group).zip(&self.scale) {
            pieces.fill(*scale);
        }
    }
}

/// The scales of a step, spread over its sixteen sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread<const P: usize>(pieces: &[f32; P]) -> __m512 {
    match P {
        1 => _mm512_set1_ps(pieces[0]),
        2 => {
            let second = _mm512_set1_ps(pieces[1]);
            _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(pieces[0]), second)
        }
        _ => {
            let four = _mm_set_ps(pieces[3], pieces[2], pieces[1], pieces[0]);
            let places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutexvar_ps(places, _mm512_castps128_ps512(four))
        }
    }
}

/// `sums += Σ q · x · scale` of step `b`: 128 codes of R rows times M rows of activations.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
fn add_step<const P: usize, const R: usize, const M: usize>(
    codes: [&[u8; STEP_BYTES]; R],
    pieces: [&[f32; P]; R],
    x: &[TokenRow<'_>; M],
    b: usize,
    sums: &mut [[__m512; M]; R],
) {
    let mask = _mm512_set1_epi16(15);
    let mut steps = [&x[0].steps[b]; M];
    let mut bytes = [_mm512_setzero_si512(); R];
    let mut scales = [_mm512_setzero_ps(); R];
    for m in 0..M {
        steps[m] = &x[m].steps[b];
    }
    for r in 0..R {
        bytes[r] = load_u8(codes[r]);
        scales[r] = spread(pieces[r]);
    }
    let mut whole = [[_mm512_setzero_si512(); M]; R];
    for i in 0..4 {
        let mut w = [mask; R];
        for r in 0..R {
            // Nibble i of each of 32 words.
            w[r] = match i {
                0 => _mm512_and_si512(bytes[r], mask),
                1 => _mm512_and_si512(_mm512_srli_epi16::<4>(bytes[r]), mask),
                2 => _mm512_and_si512(_mm512_srli_epi16::<8>(bytes[r]), mask),
                _ => _mm512_srli_epi16::<12>(bytes[r]),
            };
        }
        for m in 0..M {
            let x = load_i16(&steps[m].quads[i]);
            for r in 0..R {
                // Eight products of 15 · 2¹⁵ in each of 16 lanes stay far below 2³¹.
                whole[r][m] = add_pairs(whole[r][m], w[r], x);
            }
        }
    }
    for m in 0..M {
        let x_scale = load_f32(&steps[m].scale);
        for r in 0..R {
            let scale = _mm512_mul_ps(x_scale, scales[r]);
            sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][m]), scale, sums[r][m]);
        }
    }
}

/// `sum + Σ a · b` of two rows of group values, still in sixteen lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_inner(mut sum: __m512, a: &[f32], b: &[f32]) -> __m512 {
    let (a, a_tail) = a.as_chunks::<16>();
    let (b, b_tail) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        sum = _mm512_fmadd_ps(load_f32(a), load_f32(b), sum);
    }
    if a_tail.is_empty() {
        return sum;
    }
    let (mut last_a, mut last_b) = ([0.0; 16], [0.0; 16]);
    last_a[..a_tail.len()].copy_from_slice(a_tail);
    last_b[..b_tail.len()].copy_from_slice(b_tail);
    _mm512_fmadd_ps(load_f32(&last_a), load_f32(&last_b), sum)
}

/// More tokens: codes become 16-bit integers once, block by block.
pub(super) fn gemm(
    isa: Avx512Vnni,
    cpu: &Cpu,
    w: Rows<'_>,
    (x, integers): (&[f32], &BlockInt16),
    (y, shape): (&mut [f32], Shape),
) {
    let width = gemm::avx512vnni::width(shape.m);
    let x = Packed::from_blocks(cpu, integers, Some((x, shape.k)), width);
    let fill = |rows, b, to: &mut WeightBlock<i16>| fill_block(isa, w, rows, b, to);
    let ahead = |row, b: usize| fetch(w.codes(row), b * x.block / 2, x.block / 2);
    let weights = &Source { fill, ahead };
    gemm::avx512vnni::scaled(isa, cpu, &x, (y, shape), weights);
}

/// Block `b` of some rows of weights.
fn fill_block(_: Avx512Vnni, w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { fill_block_avx512(w, rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn fill_block_avx512(w: Rows<'_>, rows: Range<usize>, b: usize, to: &mut WeightBlock<i16>) {
    let block = to.q.len() / to.scale.len();
    let bytes = b * block / 2..(b + 1) * block / 2;
    let (groups, group) = (w.groups(), b * block / w.w.group_size);
    let params = to.scale.iter_mut().zip(&mut to.zero);
    for ((n, q), (scale, zero)) in rows.zip(to.q.chunks_exact_mut(block)).zip(params) {
        unpack(&w.codes(n)[bytes.clone()], q);
        (*scale, *zero) = (w.w.scale.get(n * groups + group), w.w.zero.get(n * groups + group));
    }
}

/// `q = code − 8`, sixteen bytes at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(codes: &[u8], q: &mut [i16]) {
    let (nibbles, eight) = (_mm512_set1_epi32(0x000f_000f), _mm512_set1_epi16(8));
    for (codes, q) in codes.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<32>().0) {
        // A byte in a word of 32 bits: its high nibble moves to the upper half.
        let bytes = _mm512_cvtepu8_epi32(load_16(codes));
        let both = _mm512_or_si512(bytes, _mm512_slli_epi32::<12>(bytes));
        store_i16(q, _mm512_sub_epi16(_mm512_and_si512(both, nibbles), eight));
    }
}

/// Asks for the cache line `ahead` bytes behind `codes`, where the rows lie that come next, to come to the second
/// level: rows a page apart would displace each other in the first.
#[inline(always)]
fn fetch_ahead(codes: &[u8; STEP_BYTES], ahead: usize) {
    let line = codes.as_ptr().wrapping_add(ahead).cast();
    // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_u8(v: &[u8; STEP_BYTES]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_16(v: &[u8; 16]) -> __m128i {
    // SAFETY: `v` is 16 readable bytes; loadu has no alignment need.
    unsafe { _mm_loadu_si128(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i16(v: &[i16; 32]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_i16(v: &mut [i16; 32], q: __m512i) {
    // SAFETY: `v` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(v.as_mut_ptr().cast(), q) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(v: &[f32; 16]) -> __m512 {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

/// `sums` and the products of pairs, in one instruction: of the intrinsic the compiler makes two where that shortens a
/// chain, but here the number of instructions counts.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_pairs(mut sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sums}, {w}, {x}",
            sums = inout(zmm_reg) sums,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
