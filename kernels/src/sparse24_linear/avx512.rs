//! AVX-512 VNNI with VBMI2: stored bytes are spread to their columns (`vpexpandb`) and multiplied in fours (`vpdpbusd`) with both planes of
//! the activations, some weight rows against some tokens at a time.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::planes::{Planes, TokenRow};
use super::spread::{codes_at, mask, padded};
use super::{Activation, Rows, Values, floats, int4_bytes};
use crate::Cpu;
use crate::isa::Avx512Vbmi2;
use crate::parallel::Tile;

/// Rows that go together for one token.
const ROWS: usize = 4;

/// Rows of weights that stay in the caches while the next tokens pass.
const PASS_ROWS: usize = 12;

/// Up to eight tokens. `false` where the activations are not finite or so small that integers cannot stand for them.
pub(super) fn gemv(isa: Avx512Vbmi2, cpu: &Cpu, w: Rows<'_>, x: &[f32], y: &mut [f32]) -> bool {
    let k = w.shape.k;
    match w.w.values {
        Values::F32(_) | Values::Bf16(_) => floats::gemv(isa, cpu, w, x, y),
        Values::Int8 { .. } => {
            let Some(x) = Planes::new(x, k, 256, 128) else { return false };
            tiles(cpu, w, y, |tile| run(isa, &Gemv { w, x: &x }, Form::Int8, tile));
        }
        Values::Int4 { zero, group_size, .. } => {
            let (block, form) = match (group_size, zero.is_some()) {
                (32 | 64, false) => (64, Form::Int4Small),
                (32 | 64, true) => (64, Form::Int4SmallZero),
                (_, false) => (128, Form::Int4),
                (_, true) => (128, Form::Int4Zero),
            };
            let bias = if zero.is_some() { 0 } else { 8 };
            let Some(x) = Planes::new(x, k, block, bias) else { return false };
            tiles(cpu, w, y, |tile| run(isa, &Gemv { w, x: &x }, form, tile));
        }
    }
    true
}

/// Gives every thread some rows of the weight.
pub(super) fn tiles(cpu: &Cpu, w: Rows<'_>, y: &mut [f32], f: impl Fn(Tile<'_, f32>) + Sync) {
    let part = cpu.threads().share(w.shape.n.div_ceil(4), PASS_ROWS);
    cpu.threads().tiles_mut(y, w.shape.n, (w.shape.m, part), |_, tile| f(tile));
}

#[derive(Clone, Copy)]
enum Form {
    Int8,
    Int4,
    Int4Zero,
    Int4Small,
    Int4SmallZero,
}

fn run(_: Avx512Vbmi2, gemv: &Gemv<'_>, form: Form, tile: Tile<'_, f32>) {
    match form {
        // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512 and VNNI.
        Form::Int8 => unsafe { gemv.tile::<INT8, 4>(tile) },
        // SAFETY: as above.
        Form::Int4 => unsafe { gemv.tile::<INT4, 2>(tile) },
        // SAFETY: as above.
        Form::Int4Zero => unsafe { gemv.tile::<INT4_ZERO, 2>(tile) },
        // SAFETY: as above.
        Form::Int4Small => unsafe { gemv.tile::<INT4, 1>(tile) },
        // SAFETY: as above.
        Form::Int4SmallZero => unsafe { gemv.tile::<INT4_ZERO, 1>(tile) },
    }
}

const INT8: u8 = 0;
const INT4: u8 = 1;
const INT4_ZERO: u8 = 2;

struct Gemv<'a> {
    w: Rows<'a>,
    x: &'a Planes,
}

impl Gemv<'_> {
    /// S steps of 64 columns share a scale of x.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi2,bmi2")]
    fn tile<const F: u8, const S: usize>(&self, mut tile: Tile<'_, f32>) {
        let (rows, m) = (tile.cols(), tile.rows().len());
        let step = if m <= 4 { rows.len().max(1) } else { PASS_ROWS };
        for first in rows.clone().step_by(step) {
            let some = first..rows.end.min(first + step);
            for m in tile.rows().step_by(4) {
                match tile.rows().end - m {
                    1 => self.rows::<F, S, ROWS, 1>(m, some.clone(), &mut tile),
                    2 => self.rows::<F, S, ROWS, 2>(m, some.clone(), &mut tile),
                    3 => self.rows::<F, S, 2, 3>(m, some.clone(), &mut tile),
                    _ => self.rows::<F, S, 2, 4>(m, some.clone(), &mut tile),
                }
            }
        }
    }

    /// R rows of weights at a time, then the rest one by one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi2,bmi2")]
    fn rows<const F: u8, const S: usize, const R: usize, const M: usize>(
        &self,
        m: usize,
        rows: Range<usize>,
        tile: &mut Tile<'_, f32>,
    ) {
        let start = tile.cols().start;
        let mut x = [self.x.row(m); M];
        for i in 1..M {
            x[i] = self.x.row(m + i);
        }
        let whole = rows.end - rows.len() % R;
        for n in rows.clone().step_by(R).take_while(|n| *n < whole) {
            let dots = self.dot::<F, S, R, M>(n, &x);
            for i in 0..M {
                tile.row(m + i)[n - start..][..R].copy_from_slice(&dots[i]);
            }
        }
        for n in whole..rows.end {
            let dots = self.dot::<F, S, 1, M>(n, &x);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    /// Rows `n .. n + R` of the weights times M tokens.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi2,bmi2")]
    fn dot<const F: u8, const S: usize, const R: usize, const M: usize>(
        &self,
        n: usize,
        x: &[TokenRow<'_>; M],
    ) -> [[f32; R]; M] {
        let mut rows = [Row::of(self.w, n); R];
        for r in 1..R {
            rows[r] = Row::of(self.w, n + r);
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        for b in 0..x[0].scale.len() {
            let mut w = [[_mm512_setzero_si512(); S]; R];
            let mut kept = [[_mm512_setzero_si512(); S]; R];
            let (mut scale, mut zero) = ([_mm512_setzero_ps(); R], [_mm512_setzero_ps(); R]);
            for r in 0..R {
                for s in 0..S {
                    (w[r][s], kept[r][s]) = rows[r].decoded::<F>(b * S + s);
                }
                rows[r].fetch_ahead::<F, S>(b, R);
                if F != INT8 {
                    (scale[r], zero[r]) = rows[r].params::<S>(b);
                }
            }
            for m in 0..M {
                let steps = &x[m].steps[b * S..][..S];
                let x_scale = _mm512_set1_ps(x[m].scale[b]);
                let surplus = load_i32(&x[m].surplus[b]);
                for r in 0..R {
                    let factors = (x_scale, scale[r], zero[r]);
                    let w = (&w[r], &kept[r]);
                    sums[r][m] = added::<F, S>(sums[r][m], w, steps, surplus, factors);
                }
            }
        }
        let mut dots = [[0.0; R]; M];
        for m in 0..M {
            for r in 0..R {
                dots[m][r] = _mm512_reduce_add_ps(sums[r][m]) * rows[r].factor;
            }
        }
        dots
    }
}

/// `sum` and the products of a block: codes times tokens by their scales, and with `INT4_ZERO` the zeros of those that are stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn added<const F: u8, const S: usize>(
    sum: __m512,
    (w, kept): (&[__m512i; S], &[__m512i; S]),
    x: &[[[i8; 64]; 2]],
    surplus: __m512i,
    (x_scale, scale, zero): (__m512, __m512, __m512),
) -> __m512 {
    let whole = _mm512_cvtepi32_ps(products::<S>(w, x, surplus));
    let factor = if F == INT8 { x_scale } else { _mm512_mul_ps(x_scale, scale) };
    let sum = _mm512_fmadd_ps(whole, factor, sum);
    if F != INT4_ZERO {
        return sum;
    }
    let whole = _mm512_cvtepi32_ps(products::<S>(kept, x, _mm512_setzero_si512()));
    _mm512_fmadd_ps(whole, _mm512_mul_ps(x_scale, zero), sum)
}

/// `Σ w · (256 · high + low) + surplus` of S steps, in sixteen lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<const S: usize>(
    w: &[__m512i; S],
    steps: &[[[i8; 64]; 2]],
    surplus: __m512i,
) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for s in 0..S {
        sum = _mm512_dpbusd_epi32(sum, w[s], load_i8(&steps[s][0]));
    }
    sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(sum), surplus);
    for s in 0..S {
        sum = _mm512_dpbusd_epi32(sum, w[s], load_i8(&steps[s][1]));
    }
    sum
}

/// A row of the weight.
#[derive(Clone, Copy)]
struct Row<'a> {
    codes: &'a [u8],
    /// From this row on, to the end of the weight.
    int8: &'a [i8],
    int4: &'a [u8],
    scale: &'a [f32],
    zero: &'a [f32],
    group_size: usize,
    factor: f32,
    /// Steps of 64 columns.
    steps: usize,
}

impl<'a> Row<'a> {
    #[inline]
    fn of(w: Rows<'a>, n: usize) -> Row<'a> {
        let k = w.shape.k;
        let (codes, steps) = (w.codes(n), k.div_ceil(64));
        let none: (&[i8], &[u8], &[f32]) = (&[], &[], &[]);
        let (int8, int4, floats) = none;
        match w.w.values {
            Values::Int8 { q, scale } => Row {
                codes,
                int8: &q[n * k / 2..],
                int4,
                scale: floats,
                zero: floats,
                group_size: k,
                factor: scale[n],
                steps,
            },
            Values::Int4 { q, scale, zero, group_size } => {
                let groups = k / group_size;
                let of_row = |v: &'a [f32]| &v[n * groups..][..groups];
                Row {
                    codes,
                    int8,
                    int4: &q[n * int4_bytes(k)..],
                    scale: of_row(scale),
                    zero: zero.map_or(floats, of_row),
                    group_size,
                    factor: 1.0,
                    steps,
                }
            }
            Values::F32(_) | Values::Bf16(_) => Row {
                codes,
                int8,
                int4,
                scale: floats,
                zero: floats,
                group_size: k,
                factor: 1.0,
                steps,
            },
        }
    }

    #[inline]
    #[target_feature(enable = "bmi2")]
    fn mask(&self, step: usize) -> u64 {
        mask(codes_at(self.codes, step))
    }

    /// The codes of 64 columns, and with `INT4_ZERO` a 1 where one is stored.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi2")]
    fn decoded<const F: u8>(&self, step: usize) -> (__m512i, __m512i) {
        let mask = if step < self.steps { self.mask(step) } else { 0 };
        let w = match F {
            INT8 => self.int8(step, mask),
            INT4 => self.int4(step, mask, 8),
            _ => self.int4(step, mask, 0),
        };
        let ones = if F == INT4_ZERO { mask } else { 0 };
        (w, _mm512_maskz_set1_epi8(ones, 1))
    }

    /// `q + 128` of 64 columns, 128 where none is stored.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    fn int8(&self, step: usize, mask: u64) -> __m512i {
        let sign = _mm512_set1_epi8(-128);
        let stored = match self.int8.get(32 * step..).and_then(|rest| rest.first_chunk::<32>()) {
            Some(stored) => load_32(stored),
            None => load_32(&padded(self.int8.get(32 * step..).unwrap_or(&[]))),
        };
        let stored = _mm256_xor_si256(stored, _mm512_castsi512_si256(sign));
        _mm512_mask_expand_epi8(sign, mask, _mm512_castsi256_si512(stored))
    }

    /// The codes of 64 columns, `other` where none is stored.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
    fn int4(&self, step: usize, mask: u64, other: i8) -> __m512i {
        // A row's bytes are of whole 128 columns.
        let bytes = &self.int4.as_chunks::<32>().0[step / 2];
        let bytes = load_u8(bytes);
        let nibbles = _mm256_set1_epi8(15);
        let high = _mm256_srli_epi16::<4>(bytes);
        let bytes = if step.is_multiple_of(2) { bytes } else { high };
        let stored = _mm512_castsi256_si512(_mm256_and_si256(bytes, nibbles));
        _mm512_mask_expand_epi8(_mm512_set1_epi8(other), mask, stored)
    }

    /// Scales and zeros of block `b` of S steps, spread over its lanes; zeros are those of code 0.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn params<const S: usize>(&self, b: usize) -> (__m512, __m512) {
        let first = b * 64 * S / self.group_size;
        let (scale, second) = (self.scale[first], first + usize::from(self.group_size == 32));
        let mut scales = _mm512_set1_ps(scale);
        if self.group_size == 32 {
            let next = self.scale.get(second).copied().unwrap_or(0.0);
            scales = _mm512_mask_blend_ps(0xff00, scales, _mm512_set1_ps(next));
        }
        if self.zero.is_empty() {
            return (scales, scales);
        }
        let mut zeros = _mm512_set1_ps(self.zero[first]);
        if self.group_size == 32 {
            let next = self.zero.get(second).copied().unwrap_or(0.0);
            zeros = _mm512_mask_blend_ps(0xff00, zeros, _mm512_set1_ps(next));
        }
        (scales, _mm512_fnmadd_ps(_mm512_set1_ps(8.0), scales, zeros))
    }

    /// Asks for what lies R rows behind block `b`, where the rows are that come next, to come to the second level.
    #[inline(always)]
    fn fetch_ahead<const F: u8, const S: usize>(&self, b: usize, rows: usize) {
        let (from, ahead) = match F {
            INT8 => (self.int8.as_ptr().cast::<u8>().wrapping_add(32 * S * b), 32 * self.steps),
            _ => {
                let bytes = 32 * self.steps.div_ceil(2);
                (self.int4.as_ptr().wrapping_add(16 * S * b), bytes)
            }
        };
        for line in (0..16 * S * if F == INT8 { 2 } else { 1 }).step_by(64) {
            prefetch(from.wrapping_add(rows * ahead + line));
        }
        let codes = self.codes.as_ptr().wrapping_add(6 * S * b + rows * 6 * self.steps);
        prefetch(codes);
    }
}

#[inline(always)]
pub(super) fn prefetch(line: *const u8) {
    // SAFETY: a prefetch reads nothing into the program and never faults, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

/// Int8 activations: sums of whole rows, exact.
pub(super) fn dynamic(
    isa: Avx512Vbmi2,
    cpu: &Cpu,
    w: Rows<'_>,
    act: Activation<'_>,
    y: &mut [f32],
) {
    let (m, k) = (w.shape.m, w.shape.k);
    let padded_k = k.next_multiple_of(64);
    let mut q = vec![0; m * padded_k];
    for (to, from) in q.chunks_exact_mut(padded_k.max(1)).zip(act.q.chunks_exact(k.max(1))) {
        to[..k].copy_from_slice(from);
    }
    let sum = |m: usize| act.q[m * k..][..k].iter().map(|&a| i32::from(a)).sum::<i32>();
    let surplus: Vec<i32> = (0..m).map(|m| sum(m) << 7).collect();
    tiles(cpu, w, y, |mut tile| {
        let rows = tile.cols();
        for (at, n) in rows.enumerate() {
            for m in tile.rows() {
                let x = &q[m * padded_k..][..padded_k];
                let sum = dynamic_row(isa, w, n, x).wrapping_sub(surplus[m]);
                let factor = Row::of(w, n).factor;
                tile.row(m)[at] = sum as f32 * act.scale[m] * factor;
            }
        }
    });
}

fn dynamic_row(_: Avx512Vbmi2, w: Rows<'_>, n: usize, x: &[i8]) -> i32 {
    // SAFETY: the token is made only after avx512vbmi2 and bmi2 were detected, with all of AVX-512 and VNNI.
    unsafe { dynamic_row_vnni(w, n, x) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi2,bmi2")]
fn dynamic_row_vnni(w: Rows<'_>, n: usize, x: &[i8]) -> i32 {
    let row = Row::of(w, n);
    let mut sums = [_mm512_setzero_si512(); 2];
    for (step, x) in x.as_chunks::<64>().0.iter().enumerate() {
        if step.is_multiple_of(2) {
            row.fetch_ahead::<INT8, 2>(step / 2, 2);
        }
        let w = row.int8(step, row.mask(step));
        sums[step % 2] = _mm512_dpbusd_epi32(sums[step % 2], w, load_i8(x));
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i8(v: &[i8; 64]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(v: &[i32; 16]) -> __m512i {
    // SAFETY: `v` is 64 readable bytes; loadu has no alignment need.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_32(v: &[i8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn load_u8(v: &[u8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}
