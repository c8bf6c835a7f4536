//! Activations as 16-bit integers with one f32 scale per 32 columns.

use super::panels::STEP;
use crate::{Cpu, Isa};

/// Rows of activations, quantized once for every weight that they meet.
#[derive(Clone, Debug)]
pub struct Activation {
    pub(super) m: usize,
    pub(super) k: usize,
    /// Row after row, `k / 32` each.
    pub(super) blocks: Vec<Block>,
}

/// Thirty-two columns of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Two neighbouring columns a word, the even one in the low half.
    pub(super) pairs: [i32; STEP / 2],
    pub(super) scale: f32,
    /// Sums of the codes of columns 0–15, 16–31 and of all.
    pub(super) sums: [i32; 3],
    /// The sums times `scale`.
    pub(super) scaled_sums: [f32; 3],
}

impl Block {
    const ZERO: Block = Block { pairs: [0; 16], scale: 0.0, sums: [0; 3], scaled_sums: [0.0; 3] };
}

/// Below this a block counts as zeros, so that 32767 / amax stays finite.
const TINY: f32 = 1e-30;

/// The largest code: ±32767 fit i16, and products with 8-bit codes summed over 32 columns fit i32.
const CODE_MAX: f32 = 32767.0;

impl Activation {
    /// Quantizes `m` rows of `k` numbers.
    pub fn quantize(cpu: &Cpu, x: &[f32], m: usize, k: usize) -> Activation {
        assert!(k.is_multiple_of(STEP), "ggml activation: K must be a multiple of 32");
        assert!(x.len() == m * k, "ggml activation: x must be M rows of K numbers");
        let mut blocks = vec![Block::ZERO; m * (k / STEP)];
        let (steps, _) = x.as_chunks::<STEP>();
        // Below some ten thousand numbers (a microsecond or two) waking another thread costs more.
        let share = cpu.threads().share(blocks.len(), 256);
        cpu.threads().chunks_mut(&mut blocks, share, |i, blocks| {
            let steps = &steps[i * share..][..blocks.len()];
            match cpu.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token proves AVX2.
                Isa::Avx2(_) => unsafe { super::avx2::quantize(steps, blocks) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token proves AVX2 too.
                Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe {
                    super::avx2::quantize(steps, blocks);
                },
                _ => quantize(steps, blocks),
            }
        });
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

    /// The blocks of rows from `row` on.
    pub(super) fn rows_from(&self, row: usize) -> &[Block] {
        &self.blocks[row * (self.k / STEP)..]
    }
}

fn quantize(steps: &[[f32; STEP]], blocks: &mut [Block]) {
    for (x, block) in steps.iter().zip(blocks) {
        let amax_bits = x.iter().fold(0, |amax, v| amax.max(v.abs().to_bits()));
        let (scale, inv_scale) = scales(amax_bits);
        for (pair, x) in block.pairs.iter_mut().zip(x.as_chunks::<2>().0) {
            let [low, high] = x.map(|v| code(v * inv_scale).cast_unsigned());
            *pair = (u32::from(high) << 16 | u32::from(low)).cast_signed();
        }
        finish(block, scale);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "|v| ≤ 32767.5; NaN becomes 0, its scale says NaN"
)]
fn code(v: f32) -> i16 {
    v.round_ties_even() as i16
}

/// The scale of a block and its inverse, from the bits of the largest magnitude: as integers these are ordered
/// with NaN on top, so that no NaN is lost.
#[inline]
pub(super) fn scales(amax_bits: u32) -> (f32, f32) {
    let amax = f32::from_bits(amax_bits);
    if !amax.is_finite() {
        return (f32::NAN, 0.0);
    }
    if amax < TINY { (0.0, 0.0) } else { (amax / CODE_MAX, CODE_MAX / amax) }
}

/// Fills in what follows from the codes.
#[inline]
pub(super) fn finish(block: &mut Block, scale: f32) {
    let half = |pairs: &[i32]| -> i32 { pairs.iter().map(|p| (p << 16 >> 16) + (p >> 16)).sum() };
    let (low, high) = (half(&block.pairs[..8]), half(&block.pairs[8..]));
    block.scale = scale;
    block.sums = [low, high, low + high];
    // At most 32 · 32767 < 2²⁴: exact.
    block.scaled_sums = block.sums.map(|sum| sum as f32 * scale);
}

// The next two are not closures in the kernels that call them: a closure has its function's target features,
// `from_fn` has not, and the compiler does not inline the one into the other.

/// Rows of a matrix of blocks.
#[inline]
pub(super) fn rows<const M: usize>(x: &[Block]) -> [&[Block]; M] {
    let len = x.len() / M;
    std::array::from_fn(|row| &x[row * len..(row + 1) * len])
}

/// Block `step` of every row.
#[inline]
pub(super) fn blocks_at<'a, const M: usize>(x: &[&'a [Block]; M], step: usize) -> [&'a Block; M] {
    std::array::from_fn(|row| &x[row][step])
}
