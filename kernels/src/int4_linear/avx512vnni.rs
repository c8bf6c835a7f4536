//! AVX-512 VNNI: 4-bit codes as bytes times both bytes of an activation (`vpdpbusd`), some weight rows against some
//! activation rows at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::Rows;
use super::quads::{Quads, Step, TokenRow};
use crate::block_int16::BlockInt16;
use crate::dense_linear::fetch;
use crate::int8_linear::gemm::{self, Packed, Source, WeightBlock};
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::rows::side_by_side;
use crate::{Cpu, Shape};

/// Activation rows that a pass multiplies: their integer and float sums fit the registers.
const M_TILE: usize = 4;

/// Rows of weights that stay in the caches while the next activation rows pass; a multiple of every number of rows
/// that go together.
const PASS_ROWS: usize = 12;

/// Bytes ahead in each of the streams that few tokens read: without, a step's thirty instructions hide too little.
const AHEAD: usize = 2 << 10;

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
        let (step, ahead) = match m {
            ..=M_TILE => (rows.len().max(1), AHEAD),
            _ => (PASS_ROWS, PASS_ROWS * self.w.k / 2),
        };
        let mut params = vec![Params::<P>::new(self.w); 4];
        for first in rows.clone().step_by(step) {
            let some = first..rows.end.min(first + step);
            for m in tile.rows().step_by(M_TILE) {
                match tile.rows().end - m {
                    1 => self.rows::<4, 1>(m, (some.clone(), ahead), &mut params, &mut tile),
                    2 => self.rows::<4, 2>(m, (some.clone(), ahead), &mut params, &mut tile),
                    3 => self.rows::<3, 3>(m, (some.clone(), ahead), &mut params, &mut tile),
                    _ => self.rows::<2, M_TILE>(m, (some.clone(), ahead), &mut params, &mut tile),
                }
            }
        }
    }

    /// R rows of weights at a time, then the rest one by one; what lies `ahead` bytes behind them is asked for.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn rows<const R: usize, const M: usize>(
        &self,
        m: usize,
        (rows, ahead): (Range<usize>, usize),
        params: &mut [Params<P>],
        tile: &mut Tile<'_, f32>,
    ) {
        let start = tile.cols().start;
        let mut x = [self.x.row(m); M];
        for i in 1..M {
            x[i] = self.x.row(m + i);
        }
        let (together, rest) = side_by_side::<R>(rows);
        for rows in together {
            let dots = self.dot((rows, ahead), &x, params);
            for i in 0..M {
                for r in 0..R {
                    tile.row(m + i)[rows[r] - start] = dots[i][r];
                }
            }
        }
        for n in rest {
            let dots = self.dot(([n], ahead), &x, params);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    /// R rows of the weights times M rows of activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn dot<const R: usize, const M: usize>(
        &self,
        (rows, ahead): ([usize; R], usize),
        x: &[TokenRow<'_>; M],
        params: &mut [Params<P>],
    ) -> [[f32; R]; M] {
        let row_bytes = self.w.k / 2;
        let whole = row_bytes / STEP_BYTES;
        // All cut to the same length, so that nothing is left to check in the loop.
        let mut codes: [&[[u8; STEP_BYTES]]; R] = [&[]; R];
        let mut factors: [[&[[f32; P]]; M]; R] = [[&[]; M]; R];
        let mut steps: [&[Step]; M] = [&[]; M];
        for (r, params) in params.iter_mut().take(R).enumerate() {
            codes[r] = &self.w.codes(rows[r]).as_chunks().0[..whole];
            params.read(self.w, rows[r], x);
            for m in 0..M {
                factors[r][m] = &params.factors[m].as_chunks().0[..whole];
            }
        }
        for m in 0..M {
            steps[m] = &x[m].steps[..whole];
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        for b in 0..whole {
            let mut part = [(&[0; STEP_BYTES], [&[0.0; P]; M]); R];
            let mut step = [&steps[0][b]; M];
            for m in 1..M {
                step[m] = &steps[m][b];
            }
            for r in 0..R {
                part[r].0 = &codes[r][b];
                for m in 0..M {
                    part[r].1[m] = &factors[r][m][b];
                }
                fetch_ahead(part[r].0, ahead);
            }
            add_step(part, step, &mut sums);
        }
        if whole * STEP_BYTES < row_bytes {
            let mut padded = [[0; STEP_BYTES]; R];
            let mut part = [(&[0; STEP_BYTES], [&[0.0; P]; M]); R];
            for (r, padded) in padded.iter_mut().enumerate() {
                let tail = &self.w.codes(rows[r])[whole * STEP_BYTES..];
                padded[..tail.len()].copy_from_slice(tail);
                part[r].0 = padded;
                for m in 0..M {
                    part[r].1[m] = &params[r].factors[m].as_chunks().0[whole];
                }
            }
            let mut step = [&x[0].steps[whole]; M];
            for m in 1..M {
                step[m] = &x[m].steps[whole];
            }
            add_step(part, step, &mut sums);
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
    /// The scales again where groups are longer than that: one for each 128 / P codes, P for each step; zeros where a last
    /// step lacks codes.
    pieces: Vec<f32>,
    /// The same times the scales of some rows of activations: what a step's whole sums are multiplied with; zeros as above.
    factors: [Vec<f32>; M_TILE],
}

impl<const P: usize> Params<P> {
    fn new(w: Rows<'_>) -> Self {
        let none = vec![0.0; w.groups()];
        let pieces = vec![0.0; (w.k / 2).div_ceil(STEP_BYTES) * P];
        let factors = std::array::from_fn(|_| pieces.clone());
        Params { scale: none.clone(), zero: none, pieces, factors }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn read<const M: usize>(&mut self, w: Rows<'_>, n: usize, x: &[TokenRow<'_>; M]) {
        w.w.scale.copy_row(n, &mut self.scale);
        w.w.zero.copy_row(n, &mut self.zero);
        let per_group = w.w.group_size / (2 * STEP_BYTES / P);
        let mut pieces = &self.scale;
        if per_group > 1 {
            for (pieces, scale) in self.pieces.chunks_mut(per_group).zip(&self.scale) {
                pieces.fill(*scale);
            }
            pieces = &self.pieces;
        }
        for m in 0..M {
            let both = pieces.iter().zip(x[m].scale);
            self.factors[m].iter_mut().zip(both).for_each(|(f, (w, x))| *f = w * x);
        }
    }
}

/// The factors of a step, spread over its sixteen sums.
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

/// `sums += Σ q · x · factor` of a step: 128 codes of R rows, with a factor for each row of activations, times M rows of
/// activations.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
fn add_step<const P: usize, const R: usize, const M: usize>(
    codes: [(&[u8; STEP_BYTES], [&[f32; P]; M]); R],
    x: [&Step; M],
    sums: &mut [[__m512; M]; R],
) {
    let mask = _mm512_set1_epi8(15);
    let (mut low, mut high) = ([mask; R], [mask; R]);
    for r in 0..R {
        let bytes = load_u8(codes[r].0);
        low[r] = _mm512_and_si512(bytes, mask);
        high[r] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
    }
    for m in 0..M {
        // Four products of 15 · 2⁷ in each of 16 lanes, twice; times 256 they stay far below 2³¹.
        let mut whole = [_mm512_setzero_si512(); R];
        whole = add_products(whole, &low, &x[m].even_high);
        whole = add_products(whole, &high, &x[m].odd_high);
        for r in 0..R {
            whole[r] = _mm512_slli_epi32::<8>(whole[r]);
        }
        whole = add_products(whole, &low, &x[m].even_low);
        whole = add_products(whole, &high, &x[m].odd_low);
        for r in 0..R {
            let factor = spread(codes[r].1[m]);
            sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r]), factor, sums[r][m]);
        }
    }
}

/// `sums += w · x` of R rows, four products a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_products<const R: usize>(
    mut sums: [__m512i; R],
    w: &[__m512i; R],
    x: &[i8; STEP_BYTES],
) -> [__m512i; R] {
    let x = load_i8(x);
    for r in 0..R {
        sums[r] = add_fours(sums[r], w[r], x);
    }
    sums
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
fn load_i8(v: &[i8; STEP_BYTES]) -> __m512i {
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

/// `sum` and four products of unsigned `w` with signed `x` in each lane, in one instruction: of the intrinsic the
/// compiler makes several where that shortens a chain, but here the number of instructions counts.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_fours(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {sum}, {w}, {x}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
