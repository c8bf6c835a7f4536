//! AVX-512 VNNI with VBMI2: stored bytes are spread to their columns (`vpexpandb`) and multiplied in fours (`vpdpbusd`) with both planes of
//! the activations, some weight rows against some tokens at a time.
//!
//! Of a step of 64 weights the load of its mask, the spreading and two products take 4.4 cycles of Zen 4 whatever else is done, which is less than
//! memory takes to bring them. Masks are decoded a chunk before they are used: a mask that was stored just now would be waited for.

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: the indices name rows of weights and activations, and iterators over them spill"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::masks::{CHUNK, masks};
use super::params::Params;
use super::planes::{Chunk, Planes};
use super::row::{Part, Row, Spare};
use super::{Rows, Values, floats};
use crate::Cpu;
use crate::isa::Avx512Vbmi2;
use crate::parallel::Tile;

/// Rows of weights that stay in the caches while the next tokens pass.
pub(super) const PASS_ROWS: usize = 12;

/// Up to eight tokens. `false` where the activations are not finite or so small that integers cannot stand for them.
pub(super) fn gemv(isa: Avx512Vbmi2, cpu: &Cpu, w: Rows<'_>, x: &[f32], y: &mut [f32]) -> bool {
    let (bias, form) = match w.w.values {
        Values::F32(_) | Values::Bf16(_) => {
            floats::gemv(isa, cpu, w, x, y);
            return true;
        }
        Values::Int8 { .. } => (128, run::<Int8, 8> as Run),
        Values::Int4 { zero, group_size, .. } => match (group_size < 128, zero.is_some()) {
            (false, false) => (8, run::<Int4, 4> as Run),
            (false, true) => (0, run::<Int4Zero, 4> as Run),
            (true, false) => (8, run::<Int4Small, 4> as Run),
            (true, true) => (0, run::<Int4SmallZero, 4> as Run),
        },
    };
    let steps = match w.w.values {
        Values::Int4 { group_size, .. } if group_size < 128 => Int4Small::STEPS,
        Values::Int4 { .. } => Int4::STEPS,
        _ => Int8::STEPS,
    };
    let Some(x) = Planes::new(x, w.shape.k, steps, bias) else { return false };
    let work = Gemv { w, x: &x };
    tiles(cpu, w, y, |tile| form(isa, &work, tile));
    true
}

/// Gives every thread some rows of the weight.
pub(super) fn tiles(cpu: &Cpu, w: Rows<'_>, y: &mut [f32], f: impl Fn(Tile<'_, f32>) + Sync) {
    let part = cpu.threads().share(w.shape.n.div_ceil(4), PASS_ROWS);
    cpu.threads().tiles_mut(y, w.shape.n, (w.shape.m, part), |_, tile| f(tile));
}

/// What a loop is compiled for.
trait Form {
    /// Steps of 64 columns that are summed in integers: a block.
    const STEPS: usize;
    /// Whether codes are of 8 bits.
    const INT8: bool = false;
    /// Whether stored numbers have a zero added.
    const ZERO: bool = false;
    /// Groups in a block, of int4.
    const GROUPS: usize = 1;
}

struct Int8;
struct Int4;
struct Int4Zero;
struct Int4Small;
struct Int4SmallZero;

impl Form for Int8 {
    const STEPS: usize = 8;
    const INT8: bool = true;
}
impl Form for Int4 {
    const STEPS: usize = 2;
}
impl Form for Int4Zero {
    const STEPS: usize = 2;
    const ZERO: bool = true;
}
impl Form for Int4Small {
    const STEPS: usize = 1;
    const GROUPS: usize = 2;
}
impl Form for Int4SmallZero {
    const STEPS: usize = 1;
    const ZERO: bool = true;
    const GROUPS: usize = 2;
}

type Run = for<'a, 'b, 'c> fn(Avx512Vbmi2, &'a Gemv<'b>, Tile<'c, f32>);

fn run<F: Form, const L: usize>(_: Avx512Vbmi2, gemv: &Gemv<'_>, tile: Tile<'_, f32>) {
    // SAFETY: the token is made only after avx512vbmi, avx512vbmi2 and gfni were detected, with all of AVX-512 and VNNI.
    unsafe { gemv.tile::<F, L>(tile) }
}

struct Gemv<'a> {
    w: Rows<'a>,
    x: &'a Planes,
}

impl Gemv<'_> {
    /// L lines of 32 bytes are a chunk of a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
    fn tile<F: Form, const L: usize>(&self, mut tile: Tile<'_, f32>) {
        let (rows, m) = (tile.cols(), tile.rows().len());
        let step = if m <= 4 { rows.len().max(1) } else { PASS_ROWS };
        for first in rows.clone().step_by(step) {
            let some = first..rows.end.min(first + step);
            for m in tile.rows().step_by(4) {
                match (tile.rows().end - m, F::ZERO) {
                    (1, false) => self.rows::<F, L, 4, 1>(m, some.clone(), &mut tile),
                    (1, true) => self.rows::<F, L, 2, 1>(m, some.clone(), &mut tile),
                    (2, _) => self.rows::<F, L, 2, 2>(m, some.clone(), &mut tile),
                    (3, false) => self.rows::<F, L, 2, 3>(m, some.clone(), &mut tile),
                    (3, true) => self.rows::<F, L, 1, 3>(m, some.clone(), &mut tile),
                    (_, false) => self.rows::<F, L, 2, 4>(m, some.clone(), &mut tile),
                    (_, true) => self.rows::<F, L, 1, 4>(m, some.clone(), &mut tile),
                }
            }
        }
    }

    /// R rows of weights at a time, then the rest one by one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
    fn rows<F: Form, const L: usize, const R: usize, const M: usize>(
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
        let mut params = vec![Params::default(); R];
        let whole = rows.end - rows.len() % R;
        for n in rows.clone().step_by(R).take_while(|n| *n < whole) {
            let dots = self.dot::<F, L, R, M>(n, &x, &mut params);
            for i in 0..M {
                tile.row(m + i)[n - start..][..R].copy_from_slice(&dots[i]);
            }
        }
        for n in whole..rows.end {
            let dots = self.dot::<F, L, 1, M>(n, &x, &mut params);
            for i in 0..M {
                tile.row(m + i)[n - start] = dots[i][0];
            }
        }
    }

    /// Rows `n .. n + R` of the weights times M tokens.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
    fn dot<F: Form, const L: usize, const R: usize, const M: usize>(
        &self,
        n: usize,
        x: &[&[Chunk]; M],
        params: &mut [Params],
    ) -> [[f32; R]; M] {
        let mut rows = [Row::<L>::of(self.w, n); R];
        for r in 1..R {
            rows[r] = Row::of(self.w, n + r);
        }
        let pieces = CHUNK / F::STEPS * F::GROUPS;
        if !F::INT8 {
            for r in 0..R {
                params[r].read(self.w, n + r, x[0].len(), pieces);
            }
        }
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        let (whole, chunks) = (rows[0].whole(), x[0].len());
        let spare: Option<[Spare<L>; R]> =
            (whole < chunks).then(|| std::array::from_fn(|r| rows[r].rest()));
        let part = |r: usize, c: usize| -> Part<'_, L> {
            match &spare {
                Some(spare) if c >= whole => spare[r].part(),
                _ => rows[r].part(c),
            }
        };
        let mut keep = [[0; CHUNK]; R];
        if chunks > 0 {
            for r in 0..R {
                masks(part(r, 0).codes, &mut keep[r]);
            }
        }
        for c in 0..chunks {
            let mut next = [[0; CHUNK]; R];
            let mut parts = [part(0, c); R];
            for r in 0..R {
                parts[r] = part(r, c);
                rows[r].fetch_ahead(c, R);
                masks(part(r, (c + 1).min(chunks - 1)).codes, &mut next[r]);
            }
            let tokens = std::array::from_fn(|m| &x[m][c]);
            chunk::<F, L, R, M>((&parts, &keep), (params, c), &tokens, &mut sums);
            keep = next;
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
/// `sums` and the products of chunk `c`, whose masks are `keep`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
fn chunk<F: Form, const L: usize, const R: usize, const M: usize>(
    (parts, keep): (&[Part<'_, L>; R], &[[u64; CHUNK]; R]),
    (params, c): (&[Params], usize),
    x: &[&Chunk; M],
    sums: &mut [[__m512; M]; R],
) {
    let pieces = CHUNK / F::STEPS * F::GROUPS;
    let none: &[f32] = &[];
    let (mut scale, mut zero) = ([none; R], [none; R]);
    for r in 0..R {
        if !F::INT8 {
            scale[r] = &params[r].scale[c * pieces..][..pieces];
        }
        if F::ZERO {
            zero[r] = &params[r].zero[c * pieces..][..pieces];
        }
    }
    let mut part = [[_mm512_setzero_ps(); M]; R];
    for b in 0..CHUNK / F::STEPS {
        let mut dots = [[[_mm512_setzero_si512(); 2]; M]; R];
        let mut kept = [[[_mm512_setzero_si512(); 2]; M]; R];
        for m in 0..M {
            let surplus = load_i32(&x[m].surplus[b]);
            for r in 0..R {
                dots[r][m][1] = surplus;
            }
        }
        for s in 0..F::STEPS {
            let step = b * F::STEPS + s;
            let mut w = [_mm512_setzero_si512(); R];
            let mut ones = [_mm512_setzero_si512(); R];
            for r in 0..R {
                w[r] = spread::<F, L>(parts[r].q, step, keep[r][step]);
                if F::ZERO {
                    ones[r] = _mm512_maskz_set1_epi8(keep[r][step], 1);
                }
            }
            for m in 0..M {
                let planes = [load_i8(&x[m].steps[step][0]), load_i8(&x[m].steps[step][1])];
                add_rows(&mut dots, m, &w, planes);
                if F::ZERO {
                    add_rows(&mut kept, m, &ones, planes);
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                let whole = _mm512_cvtepi32_ps(joined(dots[r][m]));
                if F::INT8 {
                    part[r][m] = whole;
                    continue;
                }
                let scale = groups::<F>(&scale[r][b * F::GROUPS..]);
                part[r][m] = _mm512_fmadd_ps(whole, scale, part[r][m]);
                if F::ZERO {
                    let kept = _mm512_cvtepi32_ps(joined(kept[r][m]));
                    let zero = groups::<F>(&zero[r][b * F::GROUPS..]);
                    part[r][m] = _mm512_fmadd_ps(kept, zero, part[r][m]);
                }
            }
        }
    }
    for m in 0..M {
        let x_scale = _mm512_set1_ps(x[m].scale);
        for r in 0..R {
            sums[r][m] = _mm512_fmadd_ps(part[r][m], x_scale, sums[r][m]);
        }
    }
}

/// Adds R rows' products of fours with both planes of token `m`.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_rows<const R: usize, const M: usize>(
    sums: &mut [[[__m512i; 2]; M]; R],
    m: usize,
    w: &[__m512i; R],
    planes: [__m512i; 2],
) {
    for r in 0..R {
        for i in 0..2 {
            sums[r][m][i] = add_fours(sums[r][m][i], w[r], planes[i]);
        }
    }
}

/// `256 · high + low`
#[inline]
#[target_feature(enable = "avx512f")]
fn joined([high, low]: [__m512i; 2]) -> __m512i {
    _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
}

/// The parameters of a block's one or two groups, in its lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn groups<F: Form>(of: &[f32]) -> __m512 {
    if F::GROUPS == 1 {
        return _mm512_set1_ps(of[0]);
    }
    _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(of[0]), _mm512_set1_ps(of[1]))
}

/// What stands for the numbers of 64 columns, the bias where none is stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn spread<F: Form, const L: usize>(q: &[[u8; 32]; L], step: usize, mask: u64) -> __m512i {
    if F::INT8 {
        let sign = _mm512_set1_epi8(-128);
        let stored = _mm256_xor_si256(load_u8(&q[step]), _mm512_castsi512_si256(sign));
        return _mm512_mask_expand_epi8(sign, mask, _mm512_castsi256_si512(stored));
    }
    let bytes = load_u8(&q[step / 2]);
    // Bits that come from the neighbour fall to the mask.
    let bytes = if step.is_multiple_of(2) { bytes } else { _mm256_srli_epi16::<4>(bytes) };
    let stored = _mm512_castsi256_si512(_mm256_and_si256(bytes, _mm256_set1_epi8(15)));
    let bias = _mm512_set1_epi8(if F::ZERO { 0 } else { 8 });
    _mm512_mask_expand_epi8(bias, mask, stored)
}

/// `sums` and the products of fours, in one instruction: of the intrinsic the compiler makes two where that shortens a chain, but here the
/// number of instructions counts.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn add_fours(mut sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {sums}, {w}, {x}",
            sums = inout(zmm_reg) sums,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_i8(v: &[i8; 64]) -> __m512i {
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
pub(super) fn load_u8(v: &[u8; 32]) -> __m256i {
    // SAFETY: `v` is 32 readable bytes; loadu has no alignment need.
    unsafe { _mm256_loadu_si256(v.as_ptr().cast()) }
}
