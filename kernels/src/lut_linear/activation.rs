//! Activations as integers, in the order in which a vector of codes is shifted out.

use super::{BLOCK_NBYTES, INTEGER_MAX};

/// 16-bit words of a vector of codes.
pub(super) const WORDS: usize = BLOCK_NBYTES / 2;

/// Rows of activations in blocks, each as many columns as 64 bytes have codes.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Row after row, block after block, `16 / width` vectors each: vector j holds the columns of code j of every word.
    vectors: Vec<[i16; WORDS]>,
    /// One a block.
    scales: Vec<f32>,
    blocks: usize,
    per_block: usize,
}

impl Blocks {
    /// `x` (rows of `k`) for codes of `width` bits; `None` when a number is NaN or infinite.
    pub(super) fn new(x: &[f32], k: usize, width: usize) -> Option<Blocks> {
        let per_block = 16 / width;
        let columns = WORDS * per_block;
        let blocks = k.div_ceil(columns);
        let rows = x.len() / k;
        let mut vectors = vec![[0; WORDS]; rows * blocks * per_block];
        let mut scales = Vec::with_capacity(rows * blocks);
        let parts = x.chunks_exact(k).flat_map(|row| row.chunks(columns));
        for (x, vectors) in parts.zip(vectors.chunks_exact_mut(per_block)) {
            let amax = x.iter().fold(0.0_f32, |amax, v| {
                if v.is_finite() { amax.max(v.abs()) } else { f32::INFINITY }
            });
            if amax.is_infinite() {
                return None;
            }
            let (scale, inv_scale) =
                if amax < 1e-30 { (0.0, 0.0) } else { (amax / INTEGER_MAX, INTEGER_MAX / amax) };
            for (word, x) in x.chunks(per_block).enumerate() {
                for (vector, v) in vectors.iter_mut().zip(x) {
                    vector[word] = integer(v * inv_scale);
                }
            }
            scales.push(scale);
        }
        Some(Blocks { vectors, scales, blocks, per_block })
    }

    /// Vectors of a block.
    pub(super) fn per_block(&self) -> usize {
        self.per_block
    }

    /// Vectors and scales of row `m`.
    pub(super) fn row(&self, m: usize) -> (&[[i16; WORDS]], &[f32]) {
        let (per_row, blocks) = (self.blocks * self.per_block, self.blocks);
        (&self.vectors[m * per_row..][..per_row], &self.scales[m * blocks..][..blocks])
    }
}

/// 1.5 · 2²³: adding it rounds a small number to an integer, ties to even, and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

#[expect(clippy::cast_possible_truncation, reason = "the upper half is the exponent of `ROUND`")]
fn integer(v: f32) -> i16 {
    ((v + ROUND).to_bits() as u16).cast_signed()
}
