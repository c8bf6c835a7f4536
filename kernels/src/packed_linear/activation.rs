//! Activations as 16-bit integers with one f32 scale per 32 columns.

use std::ops::Range;

use super::codes::STEP;
use crate::{Cpu, Isa};

/// Rows of activations, made integers once for a weight.
#[derive(Clone, Debug)]
pub struct Activation {
    m: usize,
    k: usize,
    /// Row after row, one for each 32 columns begun.
    blocks: Vec<Block>,
}

/// Thirty-two columns of one row. What a row lacks at its end is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Columns 4i and 4i + 2 in the halves of word i, 4i + 1 and 4i + 3 in those of word 8 + i: what words of codes hold.
    pub(super) pairs: [i32; STEP / 2],
    pub(super) scale: f32,
    /// The sum of the integers.
    pub(super) sum: i32,
    /// The sum times `scale`.
    pub(super) scaled_sum: f32,
}

impl Block {
    const ZERO: Block = Block { pairs: [0; 16], scale: 0.0, sum: 0, scaled_sum: 0.0 };

    /// Puts in the low halves of `q`, an integer a column.
    #[inline(always)]
    fn put(&mut self, q: &[i32; STEP]) {
        let (even, odd) = self.pairs.split_at_mut(STEP / 4);
        for ((even, odd), [a, b, c, d]) in even.iter_mut().zip(odd).zip(q.as_chunks::<4>().0) {
            *even = a & 0xffff | c << 16;
            *odd = b & 0xffff | d << 16;
        }
    }

    /// The integer of each column.
    pub(super) fn integers(&self) -> [i32; STEP] {
        let (even, odd) = self.pairs.split_at(STEP / 4);
        let mut integers = [0; STEP];
        let fours = integers.as_chunks_mut::<4>().0.iter_mut();
        for (four, (even, odd)) in fours.zip(even.iter().zip(odd)) {
            *four = [even << 16 >> 16, odd << 16 >> 16, even >> 16, odd >> 16];
        }
        integers
    }

    /// The block for words of sixteen one-bit codes that are shifted, but not masked.
    ///
    /// With `a[j] = word >> j`, arithmetically, code j is `a[j] − 2 · a[j + 1]` and the last `−a[15]`. So
    /// `Σ code[j] · x[j] = Σ a[j] · (x[j] − 2 · x[j − 1])`, the last factor `−x[15] − 2 · x[14]`. Products wrap in 32 bits; their sum
    /// does not, and is exact.
    pub(super) fn chained(&self) -> Block {
        let half = |i: usize, odd: bool| {
            let x = |i: usize| if odd { self.pairs[i] >> 16 } else { self.pairs[i] << 16 >> 16 };
            let before = if i == 0 { 0 } else { x(i - 1) };
            let own = if i == STEP / 2 - 1 { -x(i) } else { x(i) };
            own - 2 * before
        };
        let pairs = std::array::from_fn(|i| half(i, false) & 0xffff | half(i, true) << 16);
        Block { pairs, ..*self }
    }
}

/// Thirty-two columns of one row, both bytes of each integer: `256 · high + low`, four neighbouring columns a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    pub(super) high: [i32; STEP / 4],
    pub(super) low: [i32; STEP / 4],
    pub(super) scale: f32,
    /// The sum of the integers.
    pub(super) sum: i32,
    /// The sum times `scale`.
    pub(super) scaled_sum: f32,
}

impl Bytes {
    /// 128 is added before the high byte is taken, so that what the signed low byte lacks is carried.
    pub(super) fn new(block: &Block) -> Bytes {
        let integers = block.integers();
        let fours = integers.as_chunks::<4>().0;
        let byte = |q: i32| q.to_le_bytes()[0];
        let high = |i: usize| i32::from_le_bytes(fours[i].map(|q| byte((q + 128) >> 8)));
        let low = |i: usize| i32::from_le_bytes(fours[i].map(byte));
        Bytes {
            high: std::array::from_fn(high),
            low: std::array::from_fn(low),
            scale: block.scale,
            sum: block.sum,
            scaled_sum: block.scaled_sum,
        }
    }
}

/// How a token becomes codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tokens {
    /// The smallest code.
    pub qmin: i8,
    /// The largest code.
    pub qmax: i8,
    /// Between the smallest and the largest number (N04) instead of about zero (N02).
    pub asymmetric: bool,
    /// The smallest scale.
    pub eps: f32,
}

/// Below this a block counts as zeros, so that its reciprocal scale stays finite.
const TINY: f32 = 1e-30;

/// 1.5 · 2²³: adding it rounds a small number to an integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Activation {
    /// `m` rows of `k` numbers as integers of at most ±`x_max`.
    pub(super) fn quantize(cpu: &Cpu, x: &[f32], (m, k): (usize, usize), x_max: f32) -> Activation {
        let steps = k.div_ceil(STEP);
        let mut blocks = vec![Block::ZERO; m * steps];
        if k == 0 {
            return Activation { m, k, blocks };
        }
        // Below some ten thousand numbers (a microsecond or two) waking another thread costs more.
        let share = cpu.threads().share(m, 8192_usize.div_ceil(k)) * steps;
        cpu.threads().chunks_mut(&mut blocks, share, |i, blocks| {
            let x = &x[i * share / steps * k..];
            for (x, blocks) in x.chunks_exact(k).zip(blocks.chunks_exact_mut(steps)) {
                quantize_row(cpu.isa(), x, blocks, x_max);
            }
        });
        Activation { m, k, blocks }
    }

    /// `m` rows quantized as torchao quantizes tokens (N02, N04), a scale and a zero point a row, and multiplied as
    /// `(code − zero) · scale`. A NaN or an infinity makes its row's results NaN.
    pub fn quantize_tokens(cpu: &Cpu, x: &[f32], (m, k): (usize, usize), to: Tokens) -> Activation {
        assert!(x.len() == m * k, "{} activations are not {m} × {k}", x.len());
        let steps = k.div_ceil(STEP);
        let mut blocks = vec![Block::ZERO; m * steps];
        if k == 0 {
            return Activation { m, k, blocks };
        }
        let share = cpu.threads().share(m, 8192_usize.div_ceil(k)) * steps;
        cpu.threads().chunks_mut(&mut blocks, share, |i, blocks| {
            let x = &x[i * share / steps * k..];
            for (x, blocks) in x.chunks_exact(k).zip(blocks.chunks_exact_mut(steps)) {
                quantize_token(cpu.isa(), x, blocks, to);
            }
        });
        Activation { m, k, blocks }
    }

    /// Rows that are integers already, `x = (q − zero) · scale` with a scale and a zero a row: `q` (M, K) and both (M).
    pub fn from_codes(q: &[i8], scale: &[f32], zero: &[i32], k: usize) -> Activation {
        let m = scale.len();
        assert!(q.len() == m * k && zero.len() == m, "{} codes are not {m} × {k}", q.len());
        assert!(zero.iter().all(|z| (-1024..=1024).contains(z)), "zeros are beyond ±1024");
        let steps = k.div_ceil(STEP);
        let mut blocks = vec![Block::ZERO; m * steps];
        if k > 0 {
            let rows = q.chunks_exact(k).zip(blocks.chunks_exact_mut(steps));
            for ((q, blocks), (&scale, &zero)) in rows.zip(scale.iter().zip(zero)) {
                for (q, block) in q.chunks(STEP).zip(blocks) {
                    block.scale = scale;
                    put_codes(block, q, zero);
                    finish(block);
                }
            }
        }
        Activation { m, k, blocks }
    }

    /// Rows.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    pub(super) fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> &[Block] {
        &self.blocks[rows.start * self.steps()..rows.end * self.steps()]
    }
}

fn quantize_row(isa: Isa, x: &[f32], blocks: &mut [Block], x_max: f32) {
    match isa {
        // SAFETY: the token is made only after avx2 was detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => unsafe { quantize_row_avx2(x, blocks, x_max) },
        // SAFETY: every processor with an AVX-512 token has avx2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe { quantize_row_avx2(x, blocks, x_max) },
        _ => quantize_row_plain(x, blocks, x_max),
    }
}

/// The plain loops again, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_row_avx2(x: &[f32], blocks: &mut [Block], x_max: f32) {
    quantize_row_plain(x, blocks, x_max);
}

#[inline(always)]
fn quantize_row_plain(x: &[f32], blocks: &mut [Block], x_max: f32) {
    let (whole, tail) = x.as_chunks::<STEP>();
    for (x, block) in whole.iter().zip(&mut *blocks) {
        quantize_block(x, block, x_max);
    }
    if let (false, Some(block)) = (tail.is_empty(), blocks.last_mut()) {
        let mut padded = [0.0; STEP];
        padded[..tail.len()].copy_from_slice(tail);
        quantize_block(&padded, block, x_max);
    }
}

#[inline(always)]
fn quantize_block(x: &[f32; STEP], block: &mut Block, x_max: f32) {
    // Compared as integers, magnitudes order like numbers, with infinity and NaN on top.
    let amax = x.iter().fold(0, |amax: u32, v| amax.max(v.to_bits() & 0x7fff_ffff));
    let amax = f32::from_bits(amax);
    let inv_scale = if !amax.is_finite() || amax < TINY { 0.0 } else { x_max / amax };
    block.scale = match amax {
        amax if !amax.is_finite() => f32::NAN,
        amax if amax < TINY => 0.0,
        amax => amax / x_max,
    };
    let mut integers = [0; STEP];
    for (integer, x) in integers.iter_mut().zip(x) {
        *integer = (x * inv_scale + ROUND).to_bits().cast_signed();
    }
    block.put(&integers);
    finish(block);
}

/// `q − zero` of up to 32 codes.
fn put_codes(block: &mut Block, q: &[i8], zero: i32) {
    let mut integers = [0; STEP];
    integers.iter_mut().zip(q).for_each(|(integer, q)| *integer = i32::from(*q) - zero);
    block.put(&integers);
}

/// `x` through the codes of [`Activation::quantize_tokens`] and back, for weights that have no panels.
pub fn through_tokens(x: &[f32], k: usize, to: Tokens) -> Vec<f32> {
    let mut blocks = vec![Block::ZERO; k.div_ceil(STEP)];
    let mut seen = Vec::with_capacity(x.len());
    for x in x.chunks_exact(k.max(1)) {
        quantize_token_plain(x, &mut blocks, to);
        let integers = blocks.iter().flat_map(|block| {
            block.integers().into_iter().map(|integer| integer as f32 * block.scale)
        });
        seen.extend(integers.take(k));
    }
    seen
}

fn quantize_token(isa: Isa, x: &[f32], blocks: &mut [Block], to: Tokens) {
    match isa {
        // SAFETY: the token is made only after avx2 was detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(_) => unsafe { quantize_token_avx2(x, blocks, to) },
        // SAFETY: every processor with an AVX-512 token has avx2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe { quantize_token_avx2(x, blocks, to) },
        _ => quantize_token_plain(x, blocks, to),
    }
}

/// The plain loops again, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_token_avx2(x: &[f32], blocks: &mut [Block], to: Tokens) {
    quantize_token_plain(x, blocks, to);
}

#[inline(always)]
fn quantize_token_plain(x: &[f32], blocks: &mut [Block], to: Tokens) {
    let (mut min, mut max, mut finite) = (0.0_f32, 0.0_f32, true);
    for &v in x {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
        finite &= v.is_finite();
    }
    let (qmin, qmax) = (f32::from(to.qmin), f32::from(to.qmax));
    let (scale, zero) = if to.asymmetric {
        let scale = ((max - min) / (qmax - qmin)).max(to.eps);
        (scale, (qmin - (min / scale).round_ties_even()).clamp(qmin, qmax))
    } else {
        ((-min).max(max) / ((qmax - qmin) / 2.0), 0.0)
    };
    let scale = scale.max(to.eps);
    // The range itself may overflow; torch's product with an infinite scale is NaN too.
    let finite = finite && scale.is_finite();
    let inv_scale = if finite { 1.0 / scale } else { 0.0 };
    for (x, block) in x.chunks(STEP).zip(blocks) {
        let mut codes = [0.0; STEP];
        for (code, &x) in codes.iter_mut().zip(x) {
            *code = (round(x * inv_scale) + zero).clamp(qmin, qmax) - zero;
        }
        block.scale = if finite { scale } else { f32::NAN };
        let mut integers = [0; STEP];
        for (integer, code) in integers.iter_mut().zip(codes) {
            *integer = (code + ROUND).to_bits().cast_signed();
        }
        block.put(&integers);
        finish(block);
    }
}

/// To nearest, ties to even, for what is clamped to 8 bits afterwards: adding 1.5 · 2²³ would lose larger numbers' signs.
#[inline(always)]
fn round(v: f32) -> f32 {
    (v.clamp(-4096.0, 4096.0) + ROUND) - ROUND
}

/// Fills in what follows from the integers.
#[inline(always)]
fn finish(block: &mut Block) {
    block.sum = block.pairs.iter().map(|pair| (pair << 16 >> 16) + (pair >> 16)).sum();
    // At most 32 · 32639 < 2²⁴: exact before it is scaled.
    block.scaled_sum = block.sum as f32 * block.scale;
}
