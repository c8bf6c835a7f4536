//! AVX-512 VNNI, dynamic: fours of bytes are multiplied in one instruction (`vpdpbusd`), some weight rows against all
//! activation rows at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::GEMV_MAX_M;
use super::avx512vnni::part_rows;
use super::dynamic::{Activation, Epilogue, Weight};
use super::gemm::avx512vnni::EXACT_BLOCK;
use super::gemm::{self, Packed, Source, WeightBlock};
use crate::dense_linear::fetch;
use crate::isa::Avx512Vnni;
use crate::parallel::Tile;
use crate::rows::side_by_side;
use crate::{Cpu, Shape};

/// Flips a code's sign bit, which makes it `q + 128` as an unsigned byte: the instruction wants one side unsigned.
const SIGN: u8 = 0x80;

pub(super) fn dynamic(
    isa: Avx512Vnni,
    cpu: &Cpu,
    (w, act): (Weight<'_>, Activation<'_>),
    y: &mut [f32],
    shape: Shape,
) {
    let Shape { m, n, k } = shape;
    // Weights go in as q + 128, so that 128 · Σ a is too much.
    let sum = |m: usize| act.q[m * k..][..k].iter().map(|&a| i32::from(a)).sum::<i32>();
    let mut surplus = vec![0; m];
    let share = cpu.threads().share(m, 16384_usize.div_ceil(k.max(1)));
    cpu.threads().chunks_mut(&mut surplus, share, |i, surplus| {
        for (m, surplus) in surplus.iter_mut().enumerate() {
            *surplus = sum(i * share + m) << 7;
        }
    });
    let epilogue = Epilogue::new(w, act);
    if m > GEMV_MAX_M {
        let x = Packed::new::<4>(cpu, act.q, k, EXACT_BLOCK, gemm::avx512vnni::width(m));
        let fill = |rows, b, to: &mut WeightBlock<u8>| fill_block(isa, (w.qdata, k), rows, b, to);
        let ahead = |row, b| fetch(&w.qdata[row * k..][..k], b * EXACT_BLOCK, EXACT_BLOCK);
        let weights = &Source { fill, ahead };
        let finish = |m: usize, n, sums: &[i32], y: &mut [f32]| {
            let right: Vec<i32> = sums.iter().map(|sum| sum.wrapping_sub(surplus[m])).collect();
            epilogue.results(m, n, &right, y);
        };
        return gemm::avx512vnni::exact(isa, cpu, &x, (y, shape), weights, finish);
    }
    let finish = |m: usize, n, sum: i32| epilogue.result(m, n, sum.wrapping_sub(surplus[m]));
    let product = Product { w: w.qdata, x: act.q, k };
    cpu.threads().tiles_mut(y, n, (m, part_rows(cpu, n)), |_, tile| {
        // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
        unsafe { product.tile(tile, &finish) }
    });
}

/// Block `b` of some rows of weights (N, K).
fn fill_block(
    _: Avx512Vnni,
    (w, k): (&[i8], usize),
    rows: Range<usize>,
    b: usize,
    to: &mut WeightBlock<u8>,
) {
    // SAFETY: the token is made only after avx512vnni was detected, with all of AVX-512.
    unsafe { fill_block_avx512((w, k), rows, b, to) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn fill_block_avx512(
    (w, k): (&[i8], usize),
    rows: Range<usize>,
    b: usize,
    to: &mut WeightBlock<u8>,
) {
    let columns = b * EXACT_BLOCK..k.min((b + 1) * EXACT_BLOCK);
    for (n, q) in rows.zip(to.q.chunks_exact_mut(EXACT_BLOCK)) {
        let (codes, tail) = w[n * k..][columns.clone()].as_chunks::<64>();
        let mut q = q.as_chunks_mut::<64>().0.iter_mut();
        for (codes, q) in codes.iter().zip(q.by_ref()) {
            store_u8(q, unsigned(codes));
        }
        if let (false, Some(q)) = (tail.is_empty(), q.next()) {
            // Behind the row's end activations are zero, so that any weight will do.
            q.iter_mut().zip(tail).for_each(|(q, code)| *q = code.cast_unsigned() ^ SIGN);
        }
    }
}

/// A dynamic product.
struct Product<'a> {
    w: &'a [i8],
    x: &'a [i8],
    k: usize,
}

impl Product<'_> {
    /// As many rows of weights at a time as give 4 to 24 sums.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn tile(&self, mut tile: Tile<'_, f32>, finish: &impl Fn(usize, usize, i32) -> f32) {
        match tile.rows().len() {
            0 => {}
            1 => self.rows::<4, 1>(&mut tile, finish),
            2 => self.rows::<4, 2>(&mut tile, finish),
            3 => self.rows::<4, 3>(&mut tile, finish),
            4 => self.rows::<4, 4>(&mut tile, finish),
            5 => self.rows::<4, 5>(&mut tile, finish),
            6 => self.rows::<4, 6>(&mut tile, finish),
            7 => self.rows::<3, 7>(&mut tile, finish),
            _ => self.rows::<3, 8>(&mut tile, finish),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn rows<const R: usize, const M: usize>(
        &self,
        tile: &mut Tile<'_, f32>,
        finish: &impl Fn(usize, usize, i32) -> f32,
    ) {
        let start = tile.cols().start;
        let (together, rest) = side_by_side::<R>(tile.cols());
        for rows in together {
            let dots = self.dot::<R, M>(rows);
            for m in 0..M {
                for r in 0..R {
                    tile.row(m)[rows[r] - start] = finish(m, rows[r], dots[m][r]);
                }
            }
        }
        for n in rest {
            let dots = self.dot::<1, M>([n]);
            for m in 0..M {
                tile.row(m)[n - start] = finish(m, n, dots[m][0]);
            }
        }
    }

    /// Exact sums, modulo 2³², of R rows of codes + 128 times M rows of activations.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn dot<const R: usize, const M: usize>(&self, rows: [usize; R]) -> [[i32; R]; M] {
        let (mut w, mut x): ([&[i8]; R], [&[i8]; M]) = ([&[]; R], [&[]; M]);
        for r in 0..R {
            w[r] = &self.w[rows[r] * self.k..][..self.k];
        }
        for m in 0..M {
            x[m] = &self.x[m * self.k..][..self.k];
        }
        let mut sums = [[_mm512_setzero_si512(); M]; R];
        let steps = self.k / 64;
        for i in 0..steps {
            let mut codes = [_mm512_setzero_si512(); R];
            for r in 0..R {
                codes[r] = unsigned(&w[r].as_chunks::<64>().0[i]);
            }
            for m in 0..M {
                let x = load_i8(&x[m].as_chunks::<64>().0[i]);
                add_fours(&codes, x, m, &mut sums);
            }
        }
        if steps * 64 < self.k {
            let mut codes = [_mm512_setzero_si512(); R];
            for r in 0..R {
                codes[r] = unsigned(&padded(&w[r][steps * 64..]));
            }
            for m in 0..M {
                add_fours(&codes, load_i8(&padded(&x[m][steps * 64..])), m, &mut sums);
            }
        }
        let mut totals = [[0; R]; M];
        for m in 0..M {
            for r in 0..R {
                totals[m][r] = _mm512_reduce_add_epi32(sums[r][m]);
            }
        }
        totals
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_fours<const R: usize, const M: usize>(
    codes: &[__m512i; R],
    x: __m512i,
    m: usize,
    sums: &mut [[__m512i; M]; R],
) {
    for r in 0..R {
        sums[r][m] = _mm512_dpbusd_epi32(sums[r][m], codes[r], x);
    }
}

/// Sixty-four codes as `q + 128`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn unsigned(codes: &[i8; 64]) -> __m512i {
    _mm512_xor_si512(load_i8(codes), _mm512_set1_epi8(SIGN.cast_signed()))
}

fn padded(tail: &[i8]) -> [i8; 64] {
    let mut all = [0; 64];
    all[..tail.len()].copy_from_slice(tail);
    all
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_u8(v: &mut [u8; 64], q: __m512i) {
    // SAFETY: `v` is 64 writable bytes; storeu has no alignment need.
    unsafe { _mm512_storeu_si512(v.as_mut_ptr().cast(), q) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i8(v: &[i8; 64]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}
