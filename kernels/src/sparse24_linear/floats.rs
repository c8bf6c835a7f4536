//! AVX-512: stored f32 and bf16 spread to their columns and multiplied in f32.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::avx512::{prefetch, tiles};
use super::spread::{codes_at, load_f32, low16, mask, padded};
use super::{Rows, Values};
use crate::Cpu;
use crate::isa::Avx512Vbmi2;
use crate::parallel::Tile;

/// Up to eight tokens; any activations will do.
pub(super) fn gemv(isa: Avx512Vbmi2, cpu: &Cpu, w: Rows<'_>, x: &[f32], y: &mut [f32]) {
    let k = w.shape.k;
    let padded_k = k.next_multiple_of(64);
    let pairs = matches!(w.w.values, Values::Bf16(_));
    let mut arranged = vec![0.0; w.shape.m * padded_k];
    for (to, from) in arranged.chunks_exact_mut(padded_k.max(1)).zip(x.chunks_exact(k.max(1))) {
        for (at, x) in from.iter().enumerate() {
            // A bf16 pair is one lane: even columns of 32 first, then odd ones.
            let place = if pairs { at / 32 * 32 + at % 2 * 16 + at % 32 / 2 } else { at };
            to[place] = *x;
        }
    }
    let work = Gemv { w, x: &arranged, padded_k };
    tiles(cpu, w, y, |tile| run(isa, &work, tile));
}

struct Gemv<'a> {
    w: Rows<'a>,
    x: &'a [f32],
    padded_k: usize,
}

fn run(_: Avx512Vbmi2, gemv: &Gemv<'_>, tile: Tile<'_, f32>) {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512.
    unsafe { by_format(gemv, tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn by_format(gemv: &Gemv<'_>, tile: Tile<'_, f32>) {
    match gemv.w.w.values {
        Values::F32(v) => gemv.tile(tile, v, |v, mask| spread_f32(v, mask)),
        Values::Bf16(v) => gemv.tile(tile, v, |v, mask| spread_bf16(v, mask)),
        Values::Int8 { .. } | Values::Int4 { .. } => {}
    }
}

impl Gemv<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
    fn tile<T: Copy + Default>(
        &self,
        mut tile: Tile<'_, f32>,
        values: &[T],
        spread: impl Fn(&[T; 32], u64) -> [__m512; 4],
    ) {
        let rows = tile.cols();
        for m in tile.rows().step_by(4) {
            match tile.rows().end - m {
                1 => self.rows::<T, 4, 1>(m, rows.clone(), &mut tile, values, &spread),
                2 => self.rows::<T, 4, 2>(m, rows.clone(), &mut tile, values, &spread),
                3 => self.rows::<T, 2, 3>(m, rows.clone(), &mut tile, values, &spread),
                _ => self.rows::<T, 2, 4>(m, rows.clone(), &mut tile, values, &spread),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
    fn rows<T: Copy + Default, const R: usize, const M: usize>(
        &self,
        m: usize,
        rows: Range<usize>,
        tile: &mut Tile<'_, f32>,
        values: &[T],
        spread: &impl Fn(&[T; 32], u64) -> [__m512; 4],
    ) {
        let start = rows.start;
        let whole = rows.end - rows.len() % R;
        for n in rows.clone().step_by(R).take_while(|n| *n < whole) {
            let dots = self.dot::<T, R, M>(n, m, values, spread);
            for i in 0..M {
                tile.row(m + i)[n - start..][..R].copy_from_slice(&dots[i]);
            }
        }
        for n in whole..rows.end {
            let dots = self.dot::<T, 1, M>(n, m, values, spread);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
    fn dot<T: Copy + Default, const R: usize, const M: usize>(
        &self,
        n: usize,
        m: usize,
        values: &[T],
        spread: &impl Fn(&[T; 32], u64) -> [__m512; 4],
    ) -> [[f32; R]; M] {
        let half = self.w.shape.k / 2;
        let (mut codes, mut stored): ([&[u8]; R], [&[T]; R]) = ([&[]; R], [&[]; R]);
        for r in 0..R {
            codes[r] = self.w.codes(n + r);
            stored[r] = &values[(n + r) * half..][..half];
        }
        let mut x: [&[[f32; 16]]; M] = [&[]; M];
        for i in 0..M {
            let row = &self.x[(m + i) * self.padded_k..][..self.padded_k];
            x[i] = row.as_chunks::<16>().0;
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        for step in 0..self.padded_k / 64 {
            for r in 0..R {
                let bits = mask(codes_at(codes[r], step));
                let wide = match stored[r][32 * step..].first_chunk::<32>() {
                    Some(stored) => {
                        let next = stored.as_ptr().wrapping_add(R * half).cast::<u8>();
                        let lines = (0..size_of_val(stored)).step_by(64);
                        lines.for_each(|line| prefetch(next.wrapping_add(line)));
                        spread(stored, bits)
                    }
                    None => spread(&padded(&stored[r][32 * step..]), bits),
                };
                for m in 0..M {
                    let x = x[m][4 * step..].iter().zip(&wide);
                    let add = |sum, (x, w): (&_, &_)| _mm512_fmadd_ps(*w, load_f32(x), sum);
                    sums[r][m] = x.take(4).fold(sums[r][m], add);
                }
            }
        }
        let mut dots = [[0.0; R]; M];
        for m in 0..M {
            for r in 0..R {
                dots[m][r] = _mm512_reduce_add_ps(sums[r][m]);
            }
        }
        dots
    }
}

/// Sixteen columns are four fours, which store eight numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn spread_f32(stored: &[f32; 32], mask: u64) -> [__m512; 4] {
    let mut wide = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let eight = _mm512_castps256_ps512(load_8(&stored.as_chunks::<8>().0[i]));
        wide[i] = _mm512_maskz_expand_ps(low16(mask >> (16 * i)), eight);
    }
    wide
}

/// Even and odd columns of 32, twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
fn spread_bf16(stored: &[bf16; 32], mask: u64) -> [__m512; 4] {
    let odd = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut wide = [_mm512_setzero_ps(); 4];
    for i in 0..2 {
        let sixteen = load_16(&stored.as_chunks::<16>().0[i]);
        let part = low32(mask >> (32 * i));
        let columns = _mm512_maskz_expand_epi16(part, _mm512_castsi256_si512(sixteen));
        wide[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(columns));
        wide[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(columns, odd));
    }
    wide
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low32(mask: u64) -> u32 {
    mask as u32
}

#[inline]
#[target_feature(enable = "avx")]
fn load_8(v: &[f32; 8]) -> __m256 {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_16(v: &[bf16; 16]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}
