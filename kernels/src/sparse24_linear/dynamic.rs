//! Int8 weights by int8 activations: sums of whole rows, exact.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{PASS_ROWS, add_fours, load_i8, load_u8, tiles};
use super::masks::{CHUNK, CHUNK_K, masks};
use super::row::{Part, Row, Spare};
use super::{Activation, Rows, STEP};
use crate::Cpu;
use crate::isa::Avx512Vbmi2;

/// Rows that go together.
const ROWS: usize = 4;

/// 512 activations.
type Chunk = [[i8; STEP]; CHUNK];

/// Up to eight tokens.
pub(super) fn gemv(isa: Avx512Vbmi2, cpu: &Cpu, w: Rows<'_>, act: Activation<'_>, y: &mut [f32]) {
    let (m, k) = (w.shape.m, w.shape.k);
    let per_row = k.div_ceil(CHUNK_K);
    let mut x: Vec<Chunk> = vec![[[0; STEP]; CHUNK]; m * per_row];
    for (to, from) in x.chunks_exact_mut(per_row.max(1)).zip(act.q.chunks_exact(k.max(1))) {
        to.as_flattened_mut().as_flattened_mut()[..k].copy_from_slice(from);
    }
    // Weights come as q + 128.
    let sum = |m: usize| act.q[m * k..][..k].iter().map(|&a| i32::from(a)).sum::<i32>();
    let surplus: Vec<i32> = (0..m).map(|m| sum(m) << 7).collect();
    let work = Gemv { isa, w, x: &x, per_row };
    tiles(cpu, w, y, |mut tile| {
        let (rows, m) = (tile.cols(), tile.rows().len());
        // With more tokens than go together rows stay in the caches while the next ones pass.
        let step = if m <= 4 { rows.len().max(1) } else { PASS_ROWS };
        for first in rows.clone().step_by(step) {
            let some = first..rows.end.min(first + step);
            for m in tile.rows().step_by(4) {
                let mut store = |m: usize, n: usize, sum: i32| {
                    let factor = Row::<8>::of(w, n).factor;
                    let sum = sum.wrapping_sub(surplus[m]) as f32;
                    tile.row(m)[n - rows.start] = sum * act.scale[m] * factor;
                };
                match w.shape.m - m {
                    1 => work.rows::<1>(m, some.clone(), &mut store),
                    2 => work.rows::<2>(m, some.clone(), &mut store),
                    3 => work.rows::<3>(m, some.clone(), &mut store),
                    _ => work.rows::<4>(m, some.clone(), &mut store),
                }
            }
        }
    });
}

struct Gemv<'a> {
    isa: Avx512Vbmi2,
    w: Rows<'a>,
    x: &'a [Chunk],
    per_row: usize,
}

impl Gemv<'_> {
    /// `store(m, n, sum)` of some rows and tokens `m .. m + M`.
    fn rows<const M: usize>(
        &self,
        m: usize,
        rows: Range<usize>,
        store: &mut impl FnMut(usize, usize, i32),
    ) {
        let x: [&[Chunk]; M] =
            std::array::from_fn(|i| &self.x[(m + i) * self.per_row..][..self.per_row]);
        let whole = rows.end - rows.len() % ROWS;
        for n in rows.clone().step_by(ROWS).take_while(|n| *n < whole) {
            let dots = dots::<ROWS, M>(self.isa, self.w, n, &x);
            for (r, dots) in dots.into_iter().enumerate() {
                dots.into_iter().enumerate().for_each(|(i, sum)| store(m + i, n + r, sum));
            }
        }
        for n in whole..rows.end {
            let [dots] = dots::<1, M>(self.isa, self.w, n, &x);
            dots.into_iter().enumerate().for_each(|(i, sum)| store(m + i, n, sum));
        }
    }
}

fn dots<const R: usize, const M: usize>(
    _: Avx512Vbmi2,
    w: Rows<'_>,
    n: usize,
    x: &[&[Chunk]; M],
) -> [[i32; M]; R] {
    // SAFETY: the token is made only after avx512vbmi, avx512vbmi2 and gfni were detected, with all of AVX-512 and VNNI.
    unsafe { dots_vnni(w, n, x) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
fn dots_vnni<const R: usize, const M: usize>(
    w: Rows<'_>,
    n: usize,
    x: &[&[Chunk]; M],
) -> [[i32; M]; R] {
    let mut rows = [Row::<8>::of(w, n); R];
    for r in 1..R {
        rows[r] = Row::of(w, n + r);
    }
    let mut sums = [[_mm512_setzero_si512(); M]; R];
    let whole = rows[0].whole();
    let mut keep = [[0; CHUNK]; R];
    if whole > 0 {
        for r in 0..R {
            masks(rows[r].part(0).codes, &mut keep[r]);
        }
    }
    for c in 0..whole {
        // Masks are decoded a chunk before they are used: one that was stored just now would be waited for.
        let mut next = [[0; CHUNK]; R];
        let mut parts = [rows[0].part(c); R];
        for r in 0..R {
            parts[r] = rows[r].part(c);
            rows[r].fetch_ahead(c, R);
            masks(rows[r].part((c + 1).min(whole - 1)).codes, &mut next[r]);
        }
        let mut tokens = [&x[0][c]; M];
        for m in 1..M {
            tokens[m] = &x[m][c];
        }
        chunk(&parts, &keep, &tokens, &mut sums);
        keep = next;
    }
    if whole < x[0].len() {
        let spare: [Spare<8>; R] = std::array::from_fn(|r| rows[r].rest());
        let parts: [Part<'_, 8>; R] = std::array::from_fn(|r| spare[r].part());
        for r in 0..R {
            masks(parts[r].codes, &mut keep[r]);
        }
        let tokens: [&Chunk; M] = std::array::from_fn(|m| &x[m][whole]);
        chunk(&parts, &keep, &tokens, &mut sums);
    }
    let mut dots = [[0; M]; R];
    for r in 0..R {
        for m in 0..M {
            dots[r][m] = _mm512_reduce_add_epi32(sums[r][m]);
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
fn chunk<const R: usize, const M: usize>(
    parts: &[Part<'_, 8>; R],
    keep: &[[u64; CHUNK]; R],
    x: &[&Chunk; M],
    sums: &mut [[__m512i; M]; R],
) {
    let sign = _mm512_set1_epi8(-128);
    for step in 0..CHUNK {
        let mut w = [sign; R];
        for r in 0..R {
            let stored = load_u8(&parts[r].q[step]);
            let stored = _mm256_xor_si256(stored, _mm512_castsi512_si256(sign));
            let stored = _mm512_castsi256_si512(stored);
            w[r] = _mm512_mask_expand_epi8(sign, keep[r][step], stored);
        }
        for m in 0..M {
            let x = load_i8(&x[m][step]);
            for r in 0..R {
                sums[r][m] = add_fours(sums[r][m], w[r], x);
            }
        }
    }
}
