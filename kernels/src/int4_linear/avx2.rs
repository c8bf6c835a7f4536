//! AVX2: 4-bit codes as unsigned bytes times int8 planes of the activations (`pmaddubsw`), one weight row against up to
//! four activation rows.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the index names the activation row, and iterators over them spill"
)]

use std::arch::x86_64::*;

use super::Rows;
use super::planes::{Halves, PlaneRow, Planes};
use crate::Cpu;
use crate::isa::Avx2;
use crate::lanes::{load8, sum8};
use crate::parallel::Tile;

/// Weight bytes of one part of the work: they stay in the second-level cache (at least 256 KiB a core) while
/// all rows of activations pass, so that memory is read once.
const PART_BYTES: usize = 64 << 10;

/// As many activation rows at a time as leaves registers for two sums each and the codes.
const M_TILE: usize = 4;

pub(super) fn weight_only(_: Avx2, cpu: &Cpu, w: Rows<'_>, x: &Planes, y: &mut [f32]) {
    let m = x.rows();
    let n = y.len() / m.max(1);
    let part_rows = (PART_BYTES / (w.k / 2)).clamp(8, 256);
    cpu.threads().tiles_mut(y, n, (m, part_rows), |_, tile| {
        // SAFETY: the `Avx2` token is made only after avx2, fma and f16c were detected.
        unsafe { any_tile(w, x, tile) }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn any_tile(w: Rows<'_>, x: &Planes, tile: Tile<'_, f32>) {
    match (x.block(), w.w.group_size) {
        (128, _) => weight_only_tile::<128>(w, x, tile),
        (_, 32) => weight_only_tile::<32>(w, x, tile),
        _ => weight_only_tile::<64>(w, x, tile),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn weight_only_tile<const B: usize>(w: Rows<'_>, x: &Planes, mut tile: Tile<'_, f32>) {
    for m in tile.rows().step_by(M_TILE) {
        match tile.rows().end - m {
            1 => weight_only_rows::<1, B>(w, x, m, &mut tile),
            2 => weight_only_rows::<2, B>(w, x, m, &mut tile),
            3 => weight_only_rows::<3, B>(w, x, m, &mut tile),
            _ => weight_only_rows::<M_TILE, B>(w, x, m, &mut tile),
        }
    }
}

/// `B` is how many codes are summed as integers; 32 stands for two groups of 32 in the halves of a register.
#[target_feature(enable = "avx2,fma,f16c")]
fn weight_only_rows<const M: usize, const B: usize>(
    w: Rows<'_>,
    x: &Planes,
    m: usize,
    tile: &mut Tile<'_, f32>,
) {
    let mut rows = [x.row(m); M];
    for i in 1..M {
        rows[i] = x.row(m + i);
    }
    let groups = w.groups();
    let (mut scale, mut zero) = (vec![0.0; groups], vec![0.0; groups]);
    for (i, n) in tile.cols().enumerate() {
        w.w.scale.copy_row(n, &mut scale);
        w.w.zero.copy_row(n, &mut zero);
        let codes = w.codes(n);
        let sums = match B {
            128 => dot::<M, 2>(codes, &scale, w.w.group_size / B, &rows),
            64 => dot::<M, 1>(codes, &scale, w.w.group_size / B, &rows),
            _ => dot_groups_of_32(codes, &scale, &rows),
        };
        for j in 0..M {
            let offset = inner(&scale, rows[j].minus_eight) + inner(&zero, rows[j].sum);
            tile.row(m + j)[i] = sum8(sums[j]) + offset;
        }
    }
}

/// `Σ q · x · scale` of one weight row, still in eight lanes; blocks of C · 64 codes, `per_group` blocks a scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const M: usize, const C: usize>(
    codes: &[u8],
    scales: &[f32],
    per_group: usize,
    x: &[PlaneRow<'_>; M],
) -> [__m256; M] {
    let blocks = codes.as_chunks::<32>().0.as_chunks::<C>().0;
    let mut sums = [_mm256_setzero_ps(); M];
    for (g, (group, &scale)) in blocks.chunks(per_group).zip(scales).enumerate() {
        for (b, codes) in group.iter().enumerate() {
            let b = g * per_group + b;
            let whole = block::<M, C>(codes, x, b);
            for m in 0..M {
                let scale = _mm256_set1_ps(x[m].scale[b] * scale);
                sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[m]), scale, sums[m]);
            }
        }
    }
    sums
}

/// The same for groups of 32: byte 16 begins the second group, and lane 4 its sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_groups_of_32<const M: usize>(
    codes: &[u8],
    scales: &[f32],
    x: &[PlaneRow<'_>; M],
) -> [__m256; M] {
    let (blocks, tail) = codes.as_chunks::<32>();
    let (pairs, last) = scales.as_chunks::<2>();
    let mut sums = [_mm256_setzero_ps(); M];
    for (b, (codes, &scales)) in blocks.iter().zip(pairs).enumerate() {
        add_pair_of_groups(codes, scales, x, b, &mut sums);
    }
    if let [scale] = last {
        let mut codes = [0; 32];
        codes[..16].copy_from_slice(tail);
        // The absent group has activations 0, and its scale must not be infinite or NaN either.
        add_pair_of_groups(&codes, [*scale, 0.0], x, blocks.len(), &mut sums);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_pair_of_groups<const M: usize>(
    codes: &[u8; 32],
    [first, second]: [f32; 2],
    x: &[PlaneRow<'_>; M],
    b: usize,
    sums: &mut [__m256; M],
) {
    let scales = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first));
    let whole = block::<M, 1>(std::array::from_ref(codes), x, b);
    for m in 0..M {
        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x[m].scale[b]));
        sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[m]), scale, sums[m]);
    }
}

/// Exact `Σ q · x` of the C · 64 codes of block `b` as eight sums, for each of M rows of activations.
#[inline]
#[target_feature(enable = "avx2")]
fn block<const M: usize, const C: usize>(
    codes: &[[u8; 32]; C],
    x: &[PlaneRow<'_>; M],
    b: usize,
) -> [__m256i; M] {
    let mask = _mm256_set1_epi8(15);
    let mut high = [_mm256_setzero_si256(); M];
    let mut low = [_mm256_setzero_si256(); M];
    for c in 0..C {
        let bytes = load_u8(&codes[c]);
        let even = _mm256_and_si256(bytes, mask);
        let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        for m in 0..M {
            let plane = &x[m].planes.as_chunks::<C>().0[b][c];
            // A pair is at most 2 · 15 · 128 = 3840; the four of a block of 128 fit 16 bits.
            high[m] = _mm256_add_epi16(high[m], multiply(even, odd, &plane.high));
            low[m] = _mm256_add_epi16(low[m], multiply(even, odd, &plane.low));
        }
    }
    let (high_unit, low_unit) = (_mm256_set1_epi16(256), _mm256_set1_epi16(1));
    let mut whole = [_mm256_setzero_si256(); M];
    for m in 0..M {
        let high = _mm256_madd_epi16(high[m], high_unit);
        whole[m] = _mm256_add_epi32(high, _mm256_madd_epi16(low[m], low_unit));
    }
    whole
}

#[inline]
#[target_feature(enable = "avx2")]
fn multiply(even: __m256i, odd: __m256i, x: &Halves) -> __m256i {
    let even = _mm256_maddubs_epi16(even, load(&x.even));
    _mm256_add_epi16(even, _mm256_maddubs_epi16(odd, load(&x.odd)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(v: &[i8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_u8(v: &[u8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}

/// `Σ a · b` of two rows of group values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn inner(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<8>();
    let (b, b_tail) = b.as_chunks::<8>();
    let mut sum = _mm256_setzero_ps();
    for (a, b) in a.iter().zip(b) {
        sum = _mm256_fmadd_ps(load8(a), load8(b), sum);
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sum8(sum) + tail
}
