//! AVX-512: stored f32 and bf16 spread to their columns and multiplied in f32, some weight rows against some tokens at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::avx512::tiles;
use super::masks::{CHUNK, CHUNK_K, CODE_BYTES, masks};
use super::row::prefetch;
use super::spread::{load_8, load_16, load_f32, low16, low32};
use super::{Rows, STEP, Values, code_bytes};
use crate::Cpu;
use crate::isa::Avx512Vbmi2;
use crate::parallel::Tile;

/// 512 activations, in vectors of sixteen.
type Chunk = [[[f32; 16]; 4]; CHUNK];

/// What 512 columns store.
type Stored<T> = [[T; STEP / 2]; CHUNK];

/// A number that is stored, and how 64 columns of it are spread.
trait Number: Copy + Default + Send + Sync {
    /// Whether even columns of 32 come first, then odd ones.
    const PAIRS: bool;

    /// The columns that `mask` names, zeros between. Wants AVX-512 with VBMI2.
    unsafe fn spread(stored: &[Self; STEP / 2], mask: u64) -> [__m512; 4];
}

impl Number for f32 {
    const PAIRS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    unsafe fn spread(stored: &[f32; STEP / 2], mask: u64) -> [__m512; 4] {
        // Sixteen columns are four fours, which store eight numbers.
        let eights = stored.as_chunks::<8>().0;
        let mut wide = [_mm512_setzero_ps(); 4];
        for i in 0..4 {
            let eight = _mm512_castps256_ps512(load_8(&eights[i]));
            wide[i] = _mm512_maskz_expand_ps(low16(mask >> (16 * i)), eight);
        }
        wide
    }
}

impl Number for bf16 {
    const PAIRS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    unsafe fn spread(stored: &[bf16; STEP / 2], mask: u64) -> [__m512; 4] {
        let odd = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let halves = stored.as_chunks::<16>().0;
        let mut wide = [_mm512_setzero_ps(); 4];
        for i in 0..2 {
            let sixteen = _mm512_castsi256_si512(load_16(&halves[i]));
            let columns = _mm512_maskz_expand_epi16(low32(mask >> (32 * i)), sixteen);
            wide[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(columns));
            wide[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(columns, odd));
        }
        wide
    }
}

/// Up to eight tokens; any activations will do.
pub(super) fn gemv(isa: Avx512Vbmi2, cpu: &Cpu, w: Rows<'_>, x: &[f32], y: &mut [f32]) {
    match w.w.values {
        Values::F32(values) => by_number(isa, cpu, (w, values), x, y),
        Values::Bf16(values) => by_number(isa, cpu, (w, values), x, y),
        Values::Int8 { .. } | Values::Int4 { .. } => {}
    }
}

fn by_number<T: Number>(
    isa: Avx512Vbmi2,
    cpu: &Cpu,
    (w, values): (Rows<'_>, &[T]),
    x: &[f32],
    y: &mut [f32],
) {
    let k = w.shape.k;
    let per_row = k.div_ceil(CHUNK_K);
    let mut chunks: Vec<Chunk> = vec![[[[0.0; 16]; 4]; CHUNK]; w.shape.m * per_row];
    for (to, from) in chunks.chunks_exact_mut(per_row.max(1)).zip(x.chunks_exact(k.max(1))) {
        let to = to.as_flattened_mut().as_flattened_mut().as_flattened_mut();
        for (at, x) in from.iter().enumerate() {
            let pair = at / 32 * 32 + at % 2 * 16 + at % 32 / 2;
            to[if T::PAIRS { pair } else { at }] = *x;
        }
    }
    let work = Gemv { w, values, x: &chunks, per_row };
    tiles(cpu, w, y, |tile| run(isa, &work, tile));
}

struct Gemv<'a, T> {
    w: Rows<'a>,
    values: &'a [T],
    x: &'a [Chunk],
    per_row: usize,
}

fn run<T: Number>(_: Avx512Vbmi2, gemv: &Gemv<'_, T>, tile: Tile<'_, f32>) {
    // SAFETY: the token is made only after avx512vbmi, avx512vbmi2 and gfni were detected, with all of AVX-512.
    unsafe { gemv.tile(tile) }
}

impl<T: Number> Gemv<'_, T> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni")]
    fn tile(&self, mut tile: Tile<'_, f32>) {
        let rows = tile.cols();
        for m in tile.rows().step_by(4) {
            match tile.rows().end - m {
                1 => self.rows::<4, 1>(m, rows.clone(), &mut tile),
                2 => self.rows::<4, 2>(m, rows.clone(), &mut tile),
                3 => self.rows::<2, 3>(m, rows.clone(), &mut tile),
                _ => self.rows::<2, 4>(m, rows.clone(), &mut tile),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni")]
    fn rows<const R: usize, const M: usize>(
        &self,
        m: usize,
        rows: Range<usize>,
        tile: &mut Tile<'_, f32>,
    ) {
        let start = rows.start;
        let whole = rows.end - rows.len() % R;
        for n in rows.clone().step_by(R).take_while(|n| *n < whole) {
            let dots = self.dot::<R, M>(n, m);
            for i in 0..M {
                tile.row(m + i)[n - start..][..R].copy_from_slice(&dots[i]);
            }
        }
        for n in whole..rows.end {
            let dots = self.dot::<1, M>(n, m);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    /// Chunk `c` of row `n`, one that has all its columns.
    #[inline]
    fn part(&self, n: usize, c: usize) -> (&Stored<T>, &[u8; CODE_BYTES]) {
        let half = self.w.shape.k / 2;
        let values = self.values[n * half..][..half].as_chunks::<{ STEP / 2 }>().0;
        let codes = self.w.codes(n)[c * CODE_BYTES..].first_chunk();
        let codes = codes.expect("a whole chunk has all its codes");
        (&values.as_chunks::<CHUNK>().0[c], codes)
    }

    /// The chunk that has not, zeros behind.
    fn rest(&self, n: usize) -> (Stored<T>, [u8; CODE_BYTES]) {
        let (mut values, mut codes) = ([[T::default(); STEP / 2]; CHUNK], [0; CODE_BYTES]);
        let (k, whole) = (self.w.shape.k, self.w.shape.k / CHUNK_K);
        let rest = &self.values[n * k / 2..][whole * CHUNK_K / 2..k / 2];
        values.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
        // The two bytes behind a row's codes are the next row's.
        let rest = &self.w.codes(n)[whole * CODE_BYTES..code_bytes(k)];
        codes[..rest.len()].copy_from_slice(rest);
        (values, codes)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni")]
    fn dot<const R: usize, const M: usize>(&self, n: usize, m: usize) -> [[f32; R]; M] {
        let whole = self.w.shape.k / CHUNK_K;
        let mut x: [&[Chunk]; M] = [&[]; M];
        for i in 0..M {
            x[i] = &self.x[(m + i) * self.per_row..][..self.per_row];
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        let mut keep = [[0; CHUNK]; R];
        if whole > 0 {
            for r in 0..R {
                masks(self.part(n + r, 0).1, &mut keep[r]);
            }
        }
        for c in 0..whole {
            // Masks are decoded a chunk before they are used: one that was stored just now would be waited for.
            let mut next = [[0; CHUNK]; R];
            let mut stored = [self.part(n, c).0; R];
            for r in 0..R {
                stored[r] = self.part(n + r, c).0;
                masks(self.part(n + r, (c + 1).min(whole - 1)).1, &mut next[r]);
                self.fetch_ahead(n + r, c, R);
            }
            let mut tokens = [&x[0][c]; M];
            for i in 0..M {
                tokens[i] = &x[i][c];
            }
            chunk(&stored, &keep, &tokens, &mut sums);
            keep = next;
        }
        if whole < self.per_row {
            let rest: [_; R] = std::array::from_fn(|r| self.rest(n + r));
            let stored: [&Stored<T>; R] = std::array::from_fn(|r| &rest[r].0);
            for r in 0..R {
                masks(&rest[r].1, &mut keep[r]);
            }
            let tokens: [&Chunk; M] = std::array::from_fn(|i| &x[i][whole]);
            chunk(&stored, &keep, &tokens, &mut sums);
        }
        let mut dots = [[0.0; R]; M];
        for m in 0..M {
            for r in 0..R {
                dots[m][r] = _mm512_reduce_add_ps(sums[r][m]);
            }
        }
        dots
    }

    /// Asks for what lies R rows behind chunk `c`, where the rows are that come next.
    #[inline(always)]
    fn fetch_ahead(&self, n: usize, c: usize, rows: usize) {
        let at = (n + rows) * self.w.shape.k / 2 + c * CHUNK_K / 2;
        let from = self.values.as_ptr().wrapping_add(at).cast::<u8>();
        for line in (0..CHUNK_K / 2 * size_of::<T>()).step_by(64) {
            prefetch(from.wrapping_add(line));
        }
        let stride = code_bytes(self.w.shape.k);
        prefetch(self.w.codes(n).as_ptr().wrapping_add(c * CODE_BYTES + rows * stride));
    }
}

/// `sums` and the products of 512 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,gfni")]
fn chunk<T: Number, const R: usize, const M: usize>(
    stored: &[&Stored<T>; R],
    keep: &[[u64; CHUNK]; R],
    x: &[&Chunk; M],
    sums: &mut [[__m512; M]; R],
) {
    for step in 0..CHUNK {
        for r in 0..R {
            // SAFETY: this function has the target features that `spread` wants.
            let w = unsafe { T::spread(&stored[r][step], keep[r][step]) };
            for m in 0..M {
                for i in 0..4 {
                    let x = load_f32(&x[m][step][i]);
                    sums[r][m] = _mm512_fmadd_ps(w[i], x, sums[r][m]);
                }
            }
        }
    }
}
