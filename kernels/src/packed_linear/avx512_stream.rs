//! AVX-512 VNNI, one or two tokens: panels that lie far apart are streamed side by side. Integers of two bits and more
//! are multiplied as bytes with both bytes of the activations (`vpdpbusd`), which halves the unpacking; tables and codes
//! of one bit as words (`vpdpwssd`).

#![allow(
    clippy::needless_range_loop,
    reason = "sums are registers: indices name panels and rows, and iterators over them spill"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::activation::{Block, Bytes};
use super::avx512::{
    codes_of_pair, for_each_pair, group_offset, group_scale, load, moved, store_floats, table_of,
};
use super::codes::{LANES, planes, step_nbytes};
use super::weight::Panel;
use super::x86::prefetch;

/// P panels times M rows of activations as bytes; `y` has M vectors for each panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
pub(super) fn bytes<const B: u32, const P: usize, const M: usize>(
    panels: &[Panel<'_>],
    x: &[Bytes],
    y: &mut [[f32; LANES]],
) {
    let (groups, per_group) = (panels[0].groups, panels[0].steps_per_group);
    let bias = i32::from(panels[0].weight.bias());
    let mut sums = [[_mm512_setzero_ps(); M]; P];
    for g in 0..groups {
        let mut parts = [[_mm512_setzero_ps(); M]; P];
        let mut x_sums = [0.0; M];
        for s in g * per_group..(g + 1) * per_group {
            let mut blocks = [&x[s]; M];
            for m in 1..M {
                blocks[m] = &x[m * groups * per_group + s];
            }
            let dots = dots_of_bytes::<B, P, M>(step::<B, P>(panels, s), blocks, bias);
            for m in 0..M {
                add_parts(&mut parts, &dots, m, blocks[m].scale);
                x_sums[m] += blocks[m].scaled_sum;
            }
        }
        add_group::<false, P, M>(panels, g, &parts, x_sums, &mut sums);
    }
    store(&sums, y);
}

/// The same for tables and codes of one bit; for integers of one bit, `x` is chained.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
pub(super) fn words<const B: u32, const TABLE: bool, const P: usize, const M: usize>(
    panels: &[Panel<'_>],
    x: &[Block],
    y: &mut [[f32; LANES]],
) {
    let (groups, per_group) = (panels[0].groups, panels[0].steps_per_group);
    let bias = i32::from(panels[0].weight.bias());
    let table = table_of(&panels[0]);
    let mut sums = [[_mm512_setzero_ps(); M]; P];
    for g in 0..groups {
        let mut parts = [[_mm512_setzero_ps(); M]; P];
        let mut x_sums = [0.0; M];
        for s in g * per_group..(g + 1) * per_group {
            let mut blocks = [&x[s]; M];
            for m in 1..M {
                blocks[m] = &x[m * groups * per_group + s];
            }
            let codes = step::<B, P>(panels, s);
            let dots = dots_of_words::<B, TABLE, P, M>(codes, blocks, bias, table);
            for m in 0..M {
                add_parts(&mut parts, &dots, m, blocks[m].scale);
                x_sums[m] += blocks[m].scaled_sum;
            }
        }
        add_group::<TABLE, P, M>(panels, g, &parts, x_sums, &mut sums);
    }
    store(&sums, y);
}

/// The codes of step `s` of each panel. One panel alone is asked for ahead; of several, far apart, the processor
/// follows each by itself.
#[inline]
#[target_feature(enable = "avx512f")]
fn step<'a, const B: u32, const P: usize>(panels: &[Panel<'a>], s: usize) -> [&'a [u8]; P] {
    let nbytes = const { step_nbytes(B) };
    let mut codes: [&[u8]; P] = [&[]; P];
    for p in 0..P {
        codes[p] = &panels[p].codes[s * nbytes..][..nbytes];
        if P == 1 {
            prefetch(codes[p]);
        }
    }
    codes
}

/// Whole sums of a step: bytes of codes times both bytes of the activations, four columns an instruction. Starting at
/// −bias · Σx takes the bias away from every code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots_of_bytes<const B: u32, const P: usize, const M: usize>(
    codes: [&[u8]; P],
    x: [&Bytes; M],
    bias: i32,
) -> [[__m512i; M]; P] {
    let mut high = [[_mm512_setzero_si512(); M]; P];
    let mut low = high;
    for m in 0..M {
        let start = _mm512_set1_epi32(-bias * x[m].sum);
        for p in 0..P {
            low[p][m] = start;
        }
    }
    for_each_pair!(i => {
        let mut both = [[_mm512_setzero_si512(); 2]; M];
        for m in 0..M {
            both[m] = [_mm512_set1_epi32(x[m].high[i]), _mm512_set1_epi32(x[m].low[i])];
        }
        for p in 0..P {
            let w = bytes_of_four::<B>(codes[p], i);
            for m in 0..M {
                high[p][m] = add_fours(high[p][m], w, both[m][0]);
                low[p][m] = add_fours(low[p][m], w, both[m][1]);
            }
        }
    }, 0 1 2 3 4 5 6 7);
    for p in 0..P {
        for m in 0..M {
            // 32 · 255 · 2⁷ · 2⁸ < 2³¹.
            low[p][m] = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[p][m]), low[p][m]);
        }
    }
    low
}

/// The codes of four columns, one a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes_of_four<const B: u32>(codes: &[u8], i: usize) -> __m512i {
    let mut four = _mm512_setzero_si512();
    let mut below = 0;
    for width in const { planes(B) } {
        if width == 0 {
            break;
        }
        let per_byte = 8 / width;
        let v = moved(load(codes, below + i / per_byte), i % per_byte * width, below);
        let mask = mask_of_bytes(width, below);
        four = match (width, below) {
            (8, _) => v,
            (_, 0) => _mm512_and_si512(v, mask),
            // (v & mask) | four
            _ => _mm512_ternarylogic_epi32::<0xea>(v, mask, four),
        };
        below += width;
    }
    four
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[expect(clippy::cast_possible_truncation, reason = "8 bits")]
fn mask_of_bytes(width: usize, below: usize) -> __m512i {
    _mm512_set1_epi8((((1_usize << width) - 1) << below) as i8)
}

/// Whole sums of a step in two sums a row, so that one instruction need not wait for the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots_of_words<const B: u32, const TABLE: bool, const P: usize, const M: usize>(
    codes: [&[u8]; P],
    x: [&Block; M],
    bias: i32,
    table: __m512i,
) -> [[__m512i; M]; P] {
    let mut dots = [[[_mm512_setzero_si512(); M]; P]; 2];
    if !TABLE {
        for m in 0..M {
            let start = _mm512_set1_epi32(-bias * x[m].sum);
            for p in 0..P {
                dots[0][p][m] = start;
            }
        }
    }
    for_each_pair!(i => {
        for p in 0..P {
            let w = match TABLE {
                true => _mm512_permutexvar_epi16(codes_of_pair::<B, TABLE>(codes[p], i), table),
                false => chained_pair(codes[p], i),
            };
            for m in 0..M {
                dots[i % 2][p][m] = add_pairs(dots[i % 2][p][m], w, &x[m].pairs[i]);
            }
        }
    });
    let [mut whole, other] = dots;
    for p in 0..P {
        for m in 0..M {
            whole[p][m] = _mm512_add_epi32(whole[p][m], other[p][m]);
        }
    }
    whole
}

/// The word of pair `i` of codes of one bit, arithmetically shifted to where the pair begins, with all bits above left in:
/// see [`Block::chained`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn chained_pair(codes: &[u8], i: usize) -> __m512i {
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 15")]
    let count = _mm_cvtsi32_si128(i as i32);
    _mm512_sra_epi16(load(codes, 0), count)
}

/// `parts += dots · scale` of token `m`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_parts<const P: usize, const M: usize>(
    parts: &mut [[__m512; M]; P],
    dots: &[[__m512i; M]; P],
    m: usize,
    scale: f32,
) {
    let scale = _mm512_set1_ps(scale);
    for p in 0..P {
        parts[p][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[p][m]), scale, parts[p][m]);
    }
}

/// Group `g`'s scales and offsets.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_group<const TABLE: bool, const P: usize, const M: usize>(
    panels: &[Panel<'_>],
    g: usize,
    parts: &[[__m512; M]; P],
    x_sums: [f32; M],
    sums: &mut [[__m512; M]; P],
) {
    for p in 0..P {
        let panel = &panels[p];
        let scale = group_scale(panel, g);
        let product = match TABLE {
            true => _mm512_mul_ps(scale, _mm512_set1_ps(panel.weight.table_scale())),
            false => scale,
        };
        for m in 0..M {
            sums[p][m] = _mm512_fmadd_ps(parts[p][m], product, sums[p][m]);
        }
        if panel.has_offset() {
            let offset = group_offset(panel, g, scale);
            for m in 0..M {
                sums[p][m] = _mm512_fmadd_ps(offset, _mm512_set1_ps(x_sums[m]), sums[p][m]);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const P: usize, const M: usize>(sums: &[[__m512; M]; P], y: &mut [[f32; LANES]]) {
    for p in 0..P {
        for m in 0..M {
            store_floats(&mut y[p * M + m], sums[p][m]);
        }
    }
}

/// `sum + w · pair`, pairs of 16-bit products. Written as the instruction: LLVM takes the intrinsic apart into a product and a
/// sum, to shorten chains that are not what this loop waits for, and the loop becomes a third longer.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_pairs(mut sum: __m512i, w: __m512i, pair: &i32) -> __m512i {
    // SAFETY: the instruction belongs to the features above, reads the four bytes of `pair` and writes `sum`.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {w}, dword ptr [{pair}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            pair = in(reg) pair,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sum
}

/// `sum + w · x`, four products of unsigned and signed bytes a lane; the instruction, for the same reason.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_fours(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes these registers only, and the target feature says that it is there.
    unsafe {
        asm!(
            "vpdpbusd {sum}, {w}, {x}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
